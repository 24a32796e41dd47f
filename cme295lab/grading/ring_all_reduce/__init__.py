"""The exercises on the ring: reduce-scatter, the mean on every rank, and what it costs.

Read `ring` (the inputs, and judging what was sent to whom), then `scatter`, `mean` and `cost`, a module per part.
"""

from cme295lab.grading.exercise import Exercise
from cme295lab.grading.ring_all_reduce import cost, mean, scatter
from cme295lab.grading.ring_all_reduce.hints import HINTS

_ALL = (
    Exercise(
        id="ring_all_reduce/1",
        title="Half a ring: reduce-scatter",
        hints=HINTS["ring_all_reduce/1"],
        check=scatter.properties,
        refuse=scatter.refuse,
    ),
    Exercise(
        id="ring_all_reduce/2",
        title="The mean, everywhere",
        hints=HINTS["ring_all_reduce/2"],
        check=mean.properties,
        refuse=mean.refuse,
    ),
    Exercise(
        id="ring_all_reduce/3",
        title="What it costs, and when a tree wins",
        hints=HINTS["ring_all_reduce/3"],
        check=cost.properties,
        refuse=cost.refuse,
    ),
)
EXERCISES = {exercise.id: exercise for exercise in _ALL}
