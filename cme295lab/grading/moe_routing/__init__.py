"""The exercise on mixtures of experts: gates, dispatch within a capacity, and the losses that keep experts in use.

Read `gates`, `dispatch` and `balance`, a module per part: each has one right implementation whose options are the known
mistakes.
"""

from cme295lab.grading.exercise import Exercise
from cme295lab.grading.moe_routing import balance, dispatch, gates
from cme295lab.grading.moe_routing.hints import HINTS

_ALL = (
    Exercise(
        id="moe_routing/1",
        title="Who gets the token",
        hints=HINTS["moe_routing/1"],
        check=gates.properties,
        refuse=gates.refuse,
    ),
    Exercise(
        id="moe_routing/2",
        title="There and back, as far as there is room",
        hints=HINTS["moe_routing/2"],
        check=dispatch.properties,
        refuse=dispatch.refuse,
    ),
    Exercise(
        id="moe_routing/3",
        title="Keep all experts in use",
        hints=HINTS["moe_routing/3"],
        check=balance.properties,
        refuse=balance.refuse,
    ),
)
EXERCISES = {exercise.id: exercise for exercise in _ALL}
