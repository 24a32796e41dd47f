"""The exercises on counting compute: parameters and 6ND, MFU, gradient accumulation by tokens, days and a bill.

Read `compute`, `utilization`, `accumulation` and `bill`, a module per part. A student's formula is judged in
`cme295lab.grading.formulas`.
"""

from cme295lab.grading.exercise import Exercise
from cme295lab.grading.flops_accounting import accumulation, bill, compute, utilization
from cme295lab.grading.flops_accounting.hints import HINTS

_ALL = (
    Exercise(
        id="flops_accounting/1",
        title="Six times N times D",
        hints=HINTS["flops_accounting/1"],
        check=compute.properties,
        refuse=compute.refuse,
    ),
    Exercise(
        id="flops_accounting/2",
        title="A share of the peak",
        hints=HINTS["flops_accounting/2"],
        check=utilization.properties,
        refuse=utilization.refuse,
    ),
    Exercise(
        id="flops_accounting/3",
        title="Every token counts once",
        hints=HINTS["flops_accounting/3"],
        check=accumulation.properties,
        refuse=accumulation.refuse,
    ),
    Exercise(
        id="flops_accounting/4",
        title="Days, dollars, megawatt-hours",
        hints=HINTS["flops_accounting/4"],
        check=bill.properties,
        refuse=bill.refuse,
    ),
)
EXERCISES = {exercise.id: exercise for exercise in _ALL}
