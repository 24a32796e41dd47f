"""What a check found, as records that say where it is and what to do."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cme295lab.simulator.errors import Place

ProblemKind = Literal["race", "uninitialized"]
Program = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that a kernel did and that no GPU gives a meaning to.

    Attributes:
        kind: "race" (two accesses of one element without an order) or "uninitialized" (a read of an element that
            nobody has written).
        kernel: the launched kernel.
        file, line, source: where in it; of a race, the access further down in the source. The line that called a torch
            operation which found the problem; 0 and "" if the end of the block did.
        tensor: the kernel's name of the tensor.
        index: of the first element concerned.
        programs: the programs concerned; of a race two, in the order of their lines (the same one twice, if a program
            is in conflict with itself).
        count: how often the same happened (same lines, same tensor) in this launch.
        message: all of it in words, with the likely fix.
    """

    kind: ProblemKind
    kernel: str
    file: str
    line: int
    source: str
    tensor: str
    index: tuple[int, ...]
    programs: tuple[Program, ...]
    message: str
    count: int = 1

    def __str__(self) -> str:
        return self.message


class Problems(list[Problem]):
    """A list of problems that prints as their messages."""

    def __str__(self) -> str:
        if not self:
            return "no problems"
        return "\n\n".join(f"{number}. {problem.message}" for number, problem in enumerate(self, 1))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        if not self:
            return "<p>no problems</p>"
        return "<ol>" + "".join(f"<li><pre>{html.escape(p.message)}</pre></li>" for p in self) + "</ol>"


def shown_index(index: Sequence[int]) -> str:
    """An index as one writes it: [3, 70]."""
    return "[" + ", ".join(map(str, index)) + "]"


def shown_program(program: Program) -> str:
    """Grid coordinates, for a message."""
    return f"program {tuple(program)}"


def shown_line(place: Place) -> str:
    """File, line and text of a place, on two lines."""
    return f"line {place.line} of {place.file}\n    --> {place.source.strip()}"


def program_of_number(number: int, grid: tuple[int, int, int]) -> Program:
    """Grid coordinates of a program from its position (axis 0 runs fastest)."""
    x, y, _ = grid
    return number % x, number // x % y, number // (x * y)


def several(count: int, what: str) -> str:
    """ "", or how often it happened besides the one that is described."""
    return "" if count <= 1 else f"\n  {count:,} {what} in all; this is the first"
