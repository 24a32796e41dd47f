"""The exercise on losses of conversations: which tokens have a label, how their losses are averaged, and packing.

Read `labels`, `losses` and `packing`, a module per part. Each has one right way whose options are the known mistakes;
nothing here uses the library's own templates, masks or packing.
"""

from cme295lab.grading.exercise import Exercise
from cme295lab.grading.sft_loss_mask import labels, losses, packing
from cme295lab.grading.sft_loss_mask.hints import HINTS

_ALL = (
    Exercise(
        id="sft_loss_mask/1",
        title="Whose words count",
        hints=HINTS["sft_loss_mask/1"],
        check=labels.properties,
        refuse=labels.refuse,
    ),
    Exercise(
        id="sft_loss_mask/2",
        title="Every token weighs the same",
        hints=HINTS["sft_loss_mask/2"],
        check=losses.properties,
        refuse=losses.refuse,
    ),
    Exercise(
        id="sft_loss_mask/3",
        title="Strangers in one row",
        hints=HINTS["sft_loss_mask/3"],
        check=packing.properties,
        refuse=packing.refuse,
    ),
)
EXERCISES = {exercise.id: exercise for exercise in _ALL}
