"""The checks of one `trace(check=True)` block, put together."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch.utils._python_dispatch import _disable_current_modes

from cme295lab.simulator.debug.initialization import Initialization
from cme295lab.simulator.debug.problem import Problem, Problems
from cme295lab.simulator.debug.races import RaceDetector
from cme295lab.simulator.machine import Observer

MOST_ALIKE = 3  # of problems of one kind, kernel, line and tensor; later launches repeat the same


class Check:
    """Looks for races in each launch, and for reads of undefined memory in the whole block.

    `problems` are what a GPU gives no meaning to; `notes` are races that always wrote the same value.
    """

    def __init__(self) -> None:
        self.problems = Problems()
        self.notes = Problems()
        self._initialization = Initialization()
        self._races = RaceDetector()
        self._alike: Counter[tuple[str, str, str, int, str]] = Counter()

    def begin_launch(self) -> tuple[Observer, ...]:
        """What has to observe the launch that follows."""
        self._races = RaceDetector()
        return self._races, self._initialization

    def end_launch(self) -> None:
        """Take in what the launch has shown; also after one that failed."""
        self._initialization.end_launch()
        self._add(self.problems, self._races.problems())
        self._add(self.notes, self._races.notes())
        self._races.release()
        self._take_undefined()

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """The block in which torch operations are followed; afterwards the results must be defined."""
        with self._initialization.following():
            yield
        self._initialization.end_block()
        self._take_undefined()

    def refresh(self) -> None:
        """Take in what torch operations have shown since the last launch."""
        self._take_undefined()

    def _take_undefined(self) -> None:
        found, self._initialization.problems = self._initialization.problems, []
        self._add(self.problems, found)

    def _add(self, known: Problems, new: Sequence[Problem]) -> None:
        for problem in new:
            key = (problem.kind, problem.kernel, problem.file, problem.line, problem.tensor)
            self._alike[key] += 1
            if self._alike[key] <= MOST_ALIKE:
                known.append(problem)


@contextlib.contextmanager
def unseen(checks: Sequence[Check]) -> Iterator[None]:
    """The simulator's own torch operations are not for the checks."""
    if not checks:
        yield
        return
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        yield
