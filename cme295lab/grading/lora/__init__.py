"""The exercise on LoRA: the layer, merging, what there is to train, and several adapters in one batch.

Read `layers`, `merging`, `counting` and `batches`, a module per part. Nothing here uses the library's own adapters:
the product is written out, in float64.
"""

from cme295lab.grading.exercise import Exercise
from cme295lab.grading.lora import batches, counting, layers, merging
from cme295lab.grading.lora.hints import HINTS

_ALL = (
    Exercise(
        id="lora/1",
        title="A correction that is learned",
        hints=HINTS["lora/1"],
        check=layers.properties,
        refuse=layers.refuse,
    ),
    Exercise(
        id="lora/2",
        title="Into the weight, and out again",
        hints=HINTS["lora/2"],
        check=merging.properties,
        refuse=merging.refuse,
    ),
    Exercise(
        id="lora/3",
        title="What there is to train",
        hints=HINTS["lora/3"],
        check=counting.properties,
        refuse=counting.refuse,
    ),
    Exercise(
        id="lora/4",
        title="One base, many adapters",
        hints=HINTS["lora/4"],
        check=batches.properties,
        refuse=batches.refuse,
    ),
)
EXERCISES = {exercise.id: exercise for exercise in _ALL}
