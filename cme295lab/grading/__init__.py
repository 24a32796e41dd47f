"""The checks behind the exercises.

A check runs the student's code, observes what it returns *and what it uses* (memory, traffic, the functions it calls),
and judges the observation. Observing and judging are kept apart: a judge sees only recorded outputs and counts, so it
can also work in another process than the one that ran the student's code.

Read in this order: `result` (what a check returns), `compare` (tolerances, differences, likely causes), `observe`
(running the student's code), `exercise` (the shape of an exercise), `flash_attention/` (the exercises of notebook 07),
`checks` (the entrance that notebooks use).
"""

from cme295lab.grading.result import CheckResult, Kind, Outcome

__all__ = ["CheckResult", "Kind", "Outcome"]
