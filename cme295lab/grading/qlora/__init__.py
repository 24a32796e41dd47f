"""The exercise on QLoRA: a frozen 4-bit layer with an adapter, the bytes of a run, and optimizer states in pages.

Read `linear` (with `products`, the right and wrong layers that it compares with), `memory` and `paging`. Nothing here
uses the library's own fine-tuning: the layer is held to its formula in float64.
"""

from cme295lab.grading.exercise import Exercise
from cme295lab.grading.qlora import linear, memory, paging
from cme295lab.grading.qlora.hints import HINTS

_ALL = (
    Exercise(
        id="qlora/1",
        title="A frozen layer with an adapter",
        hints=HINTS["qlora/1"],
        check=linear.properties,
        refuse=linear.refuse,
    ),
    Exercise(
        id="qlora/2",
        title="The bytes of a run",
        hints=HINTS["qlora/2"],
        check=memory.properties,
        refuse=memory.refuse,
    ),
    Exercise(
        id="qlora/3",
        title="States in pages",
        hints=HINTS["qlora/3"],
        check=paging.properties,
        refuse=paging.refuse,
    ),
)
EXERCISES = {exercise.id: exercise for exercise in _ALL}
