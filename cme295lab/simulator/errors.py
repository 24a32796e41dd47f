"""Errors of the simulator: each names the kernel, the source line and what to do.

`SimulatorError` is the base. It is raised without a place by the operations, and the interpreter adds the place
(kernel, file, line, source text) exactly once, on its way out: see `SimulatorError.locate`.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where in a kernel something happened: kernel name, file, line number and the text of that line."""

    kernel: str
    file: str
    line: int
    source: str

    def __str__(self) -> str:
        return f"kernel {self.kernel}, line {self.line} of {self.file}:\n    --> {self.source.strip()}"


class SimulatorError(RuntimeError):
    """A kernel cannot be run, or did something that no GPU would allow."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self.place: Place | None = None

    def locate(self, place: Place) -> SimulatorError:
        """Add the place in the kernel, unless an inner call has done so."""
        if self.place is None:
            self.place = place
        return self

    @property
    def line(self) -> int | None:
        """Line number in the kernel's file, where known."""
        return self.place.line if self.place else None

    def __str__(self) -> str:
        return self.message if self.place is None else f"{self.message}\n  in {self.place}"


class OutOfBoundsError(SimulatorError):
    """A load, store or atomic touches an element outside the storage of its tensor.

    Attributes:
        tensor: its name in the kernel.
        program, lane: the first program that does it, and where in its block.
        element: offset from the tensor's first element.
        index: where in the tensor that would be; a coordinate lies outside of its axis.
    """

    def __init__(
        self, message: str, *, tensor: str, program: tuple[int, int, int], element: int,
        index: tuple[int, ...] = (), lane: tuple[int, ...] = (),
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.tensor = tensor
        self.program = program
        self.element = element
        self.index = index
        self.lane = lane


class UnsupportedFeatureError(SimulatorError):
    """A kernel uses a feature of Python or Triton that the simulator does not execute."""

    def __init__(self, feature: str, advice: str = "") -> None:
        super().__init__(f"the simulator does not support {feature}" + (f": {advice}" if advice else ""))
        self.feature = feature


class KernelTypeError(SimulatorError):
    """Operands have types or shapes that Triton does not combine."""


_RUNS_THE_KERNEL = frozenset(
    ["interpreter.py", "expressions.py", "names.py", "registry.py", "frontend.py", "aggregates.py"]
)
_COMPILE_TIME = frozenset(["_numbers", "compare_constants"])  # arithmetic of Python's own


def explained(error: Exception) -> SimulatorError:
    """A Python error that came up while a kernel ran, as an error with a place.

    If it was raised where the simulator does for the kernel what Python would do (an operation on compile-time values,
    a call with the wrong keywords, a compile-time function), the kernel is wrong. Anywhere else the simulator is, or it
    was given an argument that it should have refused.
    """
    text = f"{type(error).__name__}: {error}"
    folder = Path(__file__).parent
    own = [f for f in traceback.extract_tb(error.__traceback__) if folder in Path(f.filename).parents]
    if own and (Path(own[-1].filename).name in _RUNS_THE_KERNEL or own[-1].name in _COMPILE_TIME):
        return SimulatorError(text)
    where = f" in {Path(own[-1].filename).name}, line {own[-1].lineno}" if own else ""
    return SimulatorError(
        f"internal error of the simulator{where} ({text}): check the types of the arguments in this line; "
        "if they are what Triton expects, the kernel is right and the simulator is wrong"
    )
