"""The exercises of the appendix on one's own kernel: coalescing, races, block sizes, and reading a report.

Read `launches` (running a student's kernel and recording what it did to memory), then `coalescing`, `races`, `blocks`
and `reading`, a module per part.
"""

from cme295lab.grading.exercise import Exercise
from cme295lab.grading.kernel_clinic import blocks, coalescing, races, reading
from cme295lab.grading.kernel_clinic.hints import HINTS

_ALL = (
    Exercise(
        id="kernel_clinic/1",
        title="Right, and wasteful",
        hints=HINTS["kernel_clinic/1"],
        check=coalescing.properties,
        refuse=coalescing.refuse,
    ),
    Exercise(
        id="kernel_clinic/2",
        title="Right, sometimes",
        hints=HINTS["kernel_clinic/2"],
        check=races.properties,
        refuse=races.refuse,
    ),
    Exercise(
        id="kernel_clinic/3",
        title="Blocks of the right size",
        hints=HINTS["kernel_clinic/3"],
        check=blocks.properties,
        refuse=blocks.refuse,
    ),
    Exercise(
        id="kernel_clinic/4",
        title="Read a report",
        hints=HINTS["kernel_clinic/4"],
        check=reading.properties,
        refuse=reading.refuse,
    ),
)
EXERCISES = {exercise.id: exercise for exercise in _ALL}
