"""Students for the tests: the solution's cells, as they stand in the instructor's notebook or with one change."""

import contextlib
import functools
import itertools
import linecache
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupytext
import torch
import torch.distributed as dist
import triton
import triton.language as tl

from cme295lab import simulator
from cme295lab.grading import checks
from cme295lab.grading.result import CheckResult, Kind

SOLUTIONS = Path(__file__).parents[2] / "solutions" / "source"
Change = tuple[str, str]
_numbers = itertools.count(1)


@functools.cache
def cells(topic: str) -> dict[str, str]:
    """The source of the nbgrader cells of a solution, by grade_id."""
    notebook = jupytext.read(SOLUTIONS / f"{topic}.py", fmt="py:percent")
    return {
        cell.metadata["nbgrader"]["grade_id"]: cell.source for cell in notebook.cells if "nbgrader" in cell.metadata
    }


def written(topic: str, grade_id: str, *changes: Change, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Execute a solution cell, with changes, as a student's cell; its names.

    Args:
        topic: of the solution.
        grade_id: of the cell.
        changes: text of the solution and what stands there instead.
        given: names that cells before this one have defined.
    """
    source = cells(topic)[grade_id]
    for old, new in changes:
        assert old in source, f"the solution no longer contains {old!r}: adapt this student"
        source = source.replace(old, new)
    return _executed(source, given or {})


def written_here(source: str, name: str = "student") -> Any:
    """Execute a cell that the test has written, as a student's; one of its names."""
    return _executed(source, {})[name]


def _executed(source: str, given: Mapping[str, Any]) -> dict[str, Any]:
    filename = f"<student {next(_numbers)}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    names: dict[str, Any] = {"__name__": "student", "math": math, "simulator": simulator, "torch": torch}
    names |= {"triton": triton, "tl": tl, "dist": dist, "contextlib": contextlib, **given}
    names["Tensor"] = torch.Tensor
    exec(compile(source, filename, "exec"), names)
    return names


@dataclass(frozen=True)
class Student:
    """A plausible answer: what it changes in the solution, and what the check must say about it.

    Args:
        name: what the student did.
        changes: text of the solution and what stands there instead.
        kind: how the check must call it.
        says: words of the cause that must appear in the message.
        at_most: the largest score it may get.
    """

    name: str
    changes: tuple[Change, ...]
    kind: Kind = Kind.PASSED
    says: tuple[str, ...] = ()
    at_most: float = 0.95

    def __str__(self) -> str:
        return self.name


def student(
    name: str, *changes: str, kind: Kind = Kind.PASSED, says: str | tuple[str, ...] = (), at_most: float = 0.95
) -> Student:
    """A student; changes are given as old, new, old, new, ..."""
    says = (says,) if isinstance(says, str) else says
    return Student(name, tuple(zip(changes[::2], changes[1::2], strict=True)), kind, says, at_most)


def assert_refused(result: CheckResult, made: Student) -> None:
    """The check has rejected the answer, for what is wrong with it, with no more points than it may get."""
    assert not result.passed
    assert result.kind is (Kind.WRONG_VALUE if made.kind is Kind.PASSED else made.kind), result.message
    assert result.score <= made.at_most, result.message
    for words in made.says:
        assert words in result.message, result.message


def handed_in(topic: str, cell: str, names: str | Sequence[str], made: Student, **given: Any) -> Any:
    """What a student hands in for a part: the function of that name, or several as a tuple.

    Args:
        topic: of the solution.
        cell: its grade_id.
        names: of the function, or of the functions.
        made: the student.
        given: names that cells before this one have defined.
    """
    found = written(topic, cell, *made.changes, given=given)
    return found[names] if isinstance(names, str) else tuple(found[name] for name in names)


def assert_stubs_and_results_are_told_apart(exercise: str, cell: str, names: str | Sequence[str]) -> None:
    """A stub is not attempted, a number instead of a function is told what is wanted, and there are three hints."""
    source = "def stub(*arguments):\n    raise NotImplementedError()\n"
    topic = exercise.partition("/")[0]
    stub = written(topic, cell, (cells(topic)[cell], source))["stub"]
    stubs = stub if isinstance(names, str) else (stub,) * len(names)
    assert checks.run(exercise, stubs).kind is Kind.NOT_ATTEMPTED
    assert (names if isinstance(names, str) else names[0]) in checks.run(exercise, 3.0).message
    for level in (1, 2, 3):
        assert checks.hint(exercise, level).text
