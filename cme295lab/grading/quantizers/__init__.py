"""The exercise on integer quantisers: absmax, zero point, blocks, and the mixed product of LLM.int8().

Read `rounding` (right and wrong ways from numbers to codes, which the parts share), then `whole`, `affine`, `blocks`
and `mixed`, a module per part.
"""

from cme295lab.grading.exercise import Exercise
from cme295lab.grading.quantizers import affine, blocks, mixed, whole
from cme295lab.grading.quantizers.hints import HINTS

_ALL = (
    Exercise(
        id="quantizers/1",
        title="One step for all",
        hints=HINTS["quantizers/1"],
        check=whole.properties,
        refuse=whole.refuse,
    ),
    Exercise(
        id="quantizers/2",
        title="Where zero lies",
        hints=HINTS["quantizers/2"],
        check=affine.properties,
        refuse=affine.refuse,
    ),
    Exercise(
        id="quantizers/3",
        title="A step for every block",
        hints=HINTS["quantizers/3"],
        check=blocks.properties,
        refuse=blocks.refuse,
    ),
    Exercise(
        id="quantizers/4",
        title="All but the outliers",
        hints=HINTS["quantizers/4"],
        check=mixed.properties,
        refuse=mixed.refuse,
    ),
)
EXERCISES = {exercise.id: exercise for exercise in _ALL}
