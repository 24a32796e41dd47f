"""The exercise on loss scaling: choosing a scale, a scale that finds itself, and a training step with fp32 masters.

Read `scales` and `updates`, a module per part, then `training` (right and wrong steps) and `stepping`, the third part.
"""

from cme295lab.grading.exercise import Exercise
from cme295lab.grading.loss_scaling import scales, stepping, updates
from cme295lab.grading.loss_scaling.hints import HINTS

_ALL = (
    Exercise(
        id="loss_scaling/1",
        title="Into the range of fp16",
        hints=HINTS["loss_scaling/1"],
        check=scales.properties,
        refuse=scales.refuse,
    ),
    Exercise(
        id="loss_scaling/2",
        title="A scale that finds itself",
        hints=HINTS["loss_scaling/2"],
        check=updates.properties,
        refuse=updates.refuse,
    ),
    Exercise(
        id="loss_scaling/3",
        title="A step with masters",
        hints=HINTS["loss_scaling/3"],
        check=stepping.properties,
        refuse=stepping.refuse,
    ),
)
EXERCISES = {exercise.id: exercise for exercise in _ALL}
