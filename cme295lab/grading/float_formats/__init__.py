"""The exercise on float formats: bits to a number and back, rounding at random, and sums that lose nothing.

Read `formats` (right and wrong ways from bits to numbers and back, exactly) and `answers` (questions about single
numbers), then `decoding`, `encoding`, `stochastic` and `summing`, a module per part.
"""

from cme295lab.grading.exercise import Exercise
from cme295lab.grading.float_formats import decoding, encoding, stochastic, summing
from cme295lab.grading.float_formats.hints import HINTS

_ALL = (
    Exercise(
        id="float_formats/1",
        title="What bits mean",
        hints=HINTS["float_formats/1"],
        check=decoding.properties,
        refuse=decoding.refuse,
    ),
    Exercise(
        id="float_formats/2",
        title="The nearest code",
        hints=HINTS["float_formats/2"],
        check=encoding.properties,
        refuse=encoding.refuse,
    ),
    Exercise(
        id="float_formats/3",
        title="Right on average",
        hints=HINTS["float_formats/3"],
        check=stochastic.properties,
        refuse=stochastic.refuse,
    ),
    Exercise(
        id="float_formats/4",
        title="Nothing lost",
        hints=HINTS["float_formats/4"],
        check=summing.properties,
        refuse=summing.refuse,
    ),
)
EXERCISES = {exercise.id: exercise for exercise in _ALL}
