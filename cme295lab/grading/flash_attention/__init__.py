"""The exercises of the notebook on FlashAttention: merge two softmax blocks, tile, write the kernel, count its traffic.

Read `reference` (the truth, and what known mistakes give), then `merge`, `tiled`, `kernel` and `traffic`, a module per part.
"""

from cme295lab.grading.exercise import Exercise
from cme295lab.grading.flash_attention import merge, tiled
from cme295lab.grading.flash_attention.hints import HINTS

EXERCISES = {
    exercise.id: exercise
    for exercise in (
        Exercise(
            id="flash_attention/1",
            title="Merge two softmax blocks",
            hints=HINTS["flash_attention/1"],
            check=merge.properties,
        ),
        Exercise(
            id="flash_attention/2", title="Tiled attention", hints=HINTS["flash_attention/2"], check=tiled.properties
        ),
    )
}
