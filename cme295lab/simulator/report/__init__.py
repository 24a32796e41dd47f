"""One view of a trace: what moved through which memory, what a program holds, how long it takes at least, what the
compiler made of it, and the source with the bytes of each line.

Read in this order: `facts` (what there is to say), `text`, `html` with the pictures of `diagrams` (drawn by `svg`),
`view` (the object that `Trace.report` returns, and its JSON).
"""

from cme295lab.simulator.report.facts import Facts
from cme295lab.simulator.report.view import Report

__all__ = ["Facts", "Report"]
