"""Debugging: what a kernel does that no GPU gives a meaning to, and what one program does, line by line.

Read in this order: `problem` (the records), `runs` (an access as the checks see it), `shadow`, `ordering` and `races`
(the race detector), `memory` and `initialization` (reads of undefined memory), `check` (both, for a trace), `watch`
(one program's values).
"""

from __future__ import annotations

from cme295lab.simulator.debug.check import Check, unseen
from cme295lab.simulator.debug.problem import Problem, Problems
from cme295lab.simulator.debug.watch import Watch

__all__ = ["Check", "Problem", "Problems", "Watch", "unseen"]
