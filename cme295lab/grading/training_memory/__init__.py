"""The exercises on the memory of training: model states, activations, recomputation, and a plan that fits a GPU.

Read `states`, `activations`, `recompute` and `fitting`, a module per part. A student's formula is judged in
`cme295lab.grading.formulas`.
"""

from cme295lab.grading.exercise import Exercise
from cme295lab.grading.training_memory import activations, fitting, recompute, states
from cme295lab.grading.training_memory.hints import HINTS

_ALL = (
    Exercise(
        id="training_memory/1",
        title="Sixteen bytes per parameter",
        hints=HINTS["training_memory/1"],
        check=states.properties,
        refuse=states.refuse,
    ),
    Exercise(
        id="training_memory/2",
        title="What a layer keeps",
        hints=HINTS["training_memory/2"],
        check=activations.properties,
        refuse=activations.refuse,
    ),
    Exercise(
        id="training_memory/3",
        title="Forget, and compute again",
        hints=HINTS["training_memory/3"],
        check=recompute.properties,
        refuse=recompute.refuse,
    ),
    Exercise(
        id="training_memory/4",
        title="Make it fit",
        hints=HINTS["training_memory/4"],
        check=fitting.properties,
        refuse=fitting.refuse,
    ),
)
EXERCISES = {exercise.id: exercise for exercise in _ALL}
