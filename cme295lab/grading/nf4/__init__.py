"""The exercise on NF4: the levels, bytes of two codes, the way back, and constants in 8 bits.

Read `table`, `packing`, `unpacking` and `constants`, a module per part. Nothing here uses the library's own NF4: it is
held to the definition.
"""

from cme295lab.grading.exercise import Exercise
from cme295lab.grading.nf4 import constants, packing, table, unpacking
from cme295lab.grading.nf4.hints import HINTS

_ALL = (
    Exercise(
        id="nf4/1",
        title="Levels where the weights are",
        hints=HINTS["nf4/1"],
        check=table.properties,
        refuse=table.refuse,
    ),
    Exercise(
        id="nf4/2",
        title="Two to a byte",
        hints=HINTS["nf4/2"],
        check=packing.properties,
        refuse=packing.refuse,
    ),
    Exercise(
        id="nf4/3",
        title="And back",
        hints=HINTS["nf4/3"],
        check=unpacking.properties,
        refuse=unpacking.refuse,
    ),
    Exercise(
        id="nf4/4",
        title="The constants' constants",
        hints=HINTS["nf4/4"],
        check=constants.properties,
        refuse=constants.refuse,
    ),
)
EXERCISES = {exercise.id: exercise for exercise in _ALL}
