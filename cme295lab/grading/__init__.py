"""The checks behind the exercises.

A check runs the student's code, observes what it returns *and what it uses* (memory, traffic, the functions it calls),
and judges the observation. Observing and judging are kept apart: a judge sees only recorded outputs and counts, so it
can also work in another process than the one that ran the student's code.

Read in this order: `result` (what a check returns), `compare` (tolerances, differences, likely causes), `observe`
(running the student's code), `exercise` (the shape of an exercise), a folder of one topic such as `flash_attention/`,
`checks` (the entrance that notebooks use). For code that runs on several processes: `distributed` (running it, and why
it did not end), `on_rank` (what happens in each process), then `ring_all_reduce/` or `ddp_overlap/`.
"""

from cme295lab.grading.result import CheckResult, Kind, Outcome

__all__ = ["CheckResult", "Kind", "Outcome"]
