"""The exercises on scaling laws: parabolas at equal compute, an optimum in closed form, a fit, and a life of serving.

Read `answers` (judging several numbers at once), then `parabolas`, `optimum`, `fitting` and `serving`, a module per
part.
"""

from cme295lab.grading.exercise import Exercise
from cme295lab.grading.scaling_fit import fitting, optimum, parabolas, serving
from cme295lab.grading.scaling_fit.hints import HINTS

_ALL = (
    Exercise(
        id="scaling_fit/1",
        title="Valleys at equal compute",
        hints=HINTS["scaling_fit/1"],
        check=parabolas.properties,
        refuse=parabolas.refuse,
    ),
    Exercise(
        id="scaling_fit/2",
        title="Spend a budget",
        hints=HINTS["scaling_fit/2"],
        check=optimum.properties,
        refuse=optimum.refuse,
    ),
    Exercise(
        id="scaling_fit/3",
        title="Fit until the optimum",
        hints=HINTS["scaling_fit/3"],
        check=fitting.properties,
        refuse=fitting.refuse,
    ),
    Exercise(
        id="scaling_fit/4",
        title="Made to be served",
        hints=HINTS["scaling_fit/4"],
        check=serving.properties,
        refuse=serving.refuse,
    ),
)
EXERCISES = {exercise.id: exercise for exercise in _ALL}
