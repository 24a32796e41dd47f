"""Exercises in which a few small functions are handed over together, each of them judged for itself.

A pair such as quantise and dequantise is handed over as a tuple. Each property calls one of them on inputs of its own,
right ones: so an error in the first function is not an error of the second. What comes back is a tensor, a number, or
a tuple of both, and a mistake is named if it gives exactly that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, SupportsFloat

import torch
from torch import Tensor

from cme295lab.grading.compare import Expected, judge_tensor
from cme295lab.grading.exercise import Property
from cme295lab.grading.observe import Observation, refuse_function
from cme295lab.grading.observe_plainly import observe_plainly
from cme295lab.grading.result import Kind, Outcome


def refuse_functions(student: Any, names: Sequence[str]) -> Outcome | None:
    """Say why a tuple of functions cannot be checked.

    One that is written is judged although another is still a stub: that one says so where it is asked.

    Args:
        student: what was handed over.
        names: of the functions, in order.
    """
    if not isinstance(student, tuple | list) or len(student) != len(names):
        cause = f"hand over a tuple of the functions {', '.join(names)}"
        return Outcome(name="the functions are handed over", kind=Kind.WRONG_SHAPE, cause=cause)
    refusals = [refuse_function(function, name) for function, name in zip(student, names)]
    found = [refusal for refusal in refusals if refusal is not None]
    return found[0] if len(found) == len(names) or any(r.kind is Kind.WRONG_SHAPE for r in found) else None


@dataclass(frozen=True, kw_only=True)
class Step:
    """One call of one function, and how to judge what it returns.

    Args:
        position: of the function in the tuple; None if it is handed over alone.
        inputs: its arguments by name.
        judge: of the result.
        where: the input in words.
    """

    position: int | None
    inputs: Mapping[str, Any]
    judge: Callable[[Any], Outcome]
    where: str

    def observe(self, student: Any) -> Observation:
        """Call the student's function."""
        return observe_plainly(student if self.position is None else student[self.position], self.inputs)

    def as_property(
        self, name: str, *, observe: Callable[[Any], Observation] | None = None, weight: float = 1.0,
        needs: tuple[str, ...] = (),
    ) -> Property:  # fmt: skip
        """The property that the result is right.

        Args:
            name: what must hold.
            observe: another way of calling, such as one call that several properties judge.
            weight: its share of the score.
            needs: names of properties without which it means nothing.
        """
        return Property(
            name=name, observe=observe or self.observe, judge=lambda seen: self.judge(seen.outputs["result"]),
            where=self.where, weight=weight, needs=needs,
        )  # fmt: skip


def judge_tuple(got: Any, names: Sequence[str], judges: Mapping[str, Callable[[Any], Outcome]]) -> Outcome:
    """Judge the parts of a tuple; the first that is wrong is reported.

    Args:
        got: what the student returned.
        names: what the parts are called on the page.
        judges: of the parts that are judged here, by name.
    """
    if not isinstance(got, tuple | list) or len(got) != len(names):
        cause = f"return ({', '.join(names)}), not {_what(got)}"
        return Outcome(name="", kind=Kind.WRONG_SHAPE, cause=cause)
    parts = dict(zip(names, got))
    outcomes = (judge(parts[name]) for name, judge in judges.items())
    return next((outcome for outcome in outcomes if not outcome.passed), Outcome(name=""))


def judge_number(got: Any, expected: Expected) -> Outcome:
    """Judge one number: Python's, numpy's, or a tensor that holds one."""
    number = number_of(got)
    if number is None:
        cause = f"{expected.name} must be one number, not {_what(got)}"
        return Outcome(name="", kind=Kind.WRONG_SHAPE, cause=cause)
    return judge_tensor(torch.tensor(number, dtype=torch.float64), replace(expected, dtype=torch.float64))


def number_of(value: Any) -> float | None:
    """The number that a value is or holds; None if it is none."""
    if isinstance(value, Tensor):
        return float(value) if value.numel() == 1 and not value.is_complex() else None
    return float(value) if isinstance(value, SupportsFloat) and getattr(value, "size", 1) == 1 else None


def _what(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return type(value).__name__
