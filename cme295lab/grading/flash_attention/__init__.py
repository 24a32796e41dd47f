"""The exercises of the notebook on FlashAttention: merge two softmax blocks, tile, write the kernel, count its traffic.

Read `reference` (the truth, and what known mistakes give), then `merge`, `tiled`, `kernel` and `traffic`, a module per
part.
"""

from cme295lab.grading.exercise import Exercise
from cme295lab.grading.flash_attention import kernel, merge, tiled, traffic
from cme295lab.grading.flash_attention.hints import HINTS

_ALL = (
    Exercise(
        id="flash_attention/1",
        title="Merge two softmax blocks",
        hints=HINTS["flash_attention/1"],
        check=merge.properties,
    ),
    Exercise(
        id="flash_attention/2",
        title="Tiled attention",
        hints=HINTS["flash_attention/2"],
        check=tiled.properties,
    ),
    Exercise(
        id="flash_attention/3",
        title="The inner loop of the kernel",
        hints=HINTS["flash_attention/3"],
        check=kernel.properties,
        refuse=kernel.refuse,
    ),
    Exercise(
        id="flash_attention/4",
        title="Count the traffic",
        hints=HINTS["flash_attention/4"],
        check=traffic.properties,
        refuse=traffic.refuse,
    ),
)
EXERCISES = {exercise.id: exercise for exercise in _ALL}
