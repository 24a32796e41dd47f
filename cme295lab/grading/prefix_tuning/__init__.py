"""The exercise on prefix tuning: attention with a trained prefix, its parameters counted, and the MLP that is dropped.

Read `attending` (with `attention`, the right and wrong ways), `counts` and `encoder`. Nothing here uses the library's
own fine-tuning: attention is held to its formula in float64.
"""

from cme295lab.grading.exercise import Exercise
from cme295lab.grading.prefix_tuning import attending, counts, encoder
from cme295lab.grading.prefix_tuning.hints import HINTS

_ALL = (
    Exercise(
        id="prefix_tuning/1",
        title="Keys and values in front",
        hints=HINTS["prefix_tuning/1"],
        check=attending.properties,
        refuse=attending.refuse,
    ),
    Exercise(
        id="prefix_tuning/2",
        title="Few parameters, counted",
        hints=HINTS["prefix_tuning/2"],
        check=counts.properties,
        refuse=counts.refuse,
    ),
    Exercise(
        id="prefix_tuning/3",
        title="The MLP that is dropped",
        hints=HINTS["prefix_tuning/3"],
        check=encoder.properties,
        refuse=encoder.refuse,
    ),
)
EXERCISES = {exercise.id: exercise for exercise in _ALL}
