"""The exercises on data parallelism: weighting by tokens, buckets that overlap with backward, and accumulation.

Read `training` (the model, the batches and the gradients that must come out), then `weighting`, `overlap` and
`accumulation`, a module per part.
"""

from cme295lab.grading.ddp_overlap import accumulation, overlap, weighting
from cme295lab.grading.ddp_overlap.hints import HINTS
from cme295lab.grading.exercise import Exercise

_ALL = (
    Exercise(
        id="ddp_overlap/1",
        title="Every token counts the same",
        hints=HINTS["ddp_overlap/1"],
        check=weighting.properties,
        refuse=weighting.refuse,
    ),
    Exercise(
        id="ddp_overlap/2",
        title="Send while backward runs",
        hints=HINTS["ddp_overlap/2"],
        check=overlap.properties,
        refuse=overlap.refuse,
    ),
    Exercise(
        id="ddp_overlap/3",
        title="Accumulate in silence, and leave nobody out",
        hints=HINTS["ddp_overlap/3"],
        check=accumulation.properties,
        refuse=accumulation.refuse,
    ),
)
EXERCISES = {exercise.id: exercise for exercise in _ALL}
