"""Answers of several numbers: calling the student's function, and finding the mistake that gives them all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from cme295lab.grading.exercise import Property
from cme295lab.grading.observe import Observation, observe_call
from cme295lab.grading.result import Kind, Outcome

_TIME_LIMIT_S = 10.0
Numbers = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Question:
    """One call, and what is known about the answer.

    Args:
        call: in words.
        arguments: of the call.
        names: of the numbers that come back.
        want: the right numbers.
        mistakes: causes, and the numbers that they give.
        tolerance: relative.
    """

    call: str
    arguments: Mapping[str, Any]
    names: tuple[str, ...]
    want: Numbers
    mistakes: tuple[tuple[str, Numbers], ...]
    tolerance: float = 1e-6


def answers_property(name: str, questions: Sequence[Question], *, needs: tuple[str, ...] = ()) -> Property:
    """The property that a function answers some questions right."""

    def observe(student: Callable[..., Any]) -> Observation:
        return observe_call(
            lambda: tuple(student(**dict(question.arguments)) for question in questions), {}, _TIME_LIMIT_S
        )

    def judge(seen: Observation) -> Outcome:
        for question, got in zip(questions, seen.outputs["result"], strict=True):
            outcome = judge_answer(question, got)
            if not outcome.passed:
                return outcome
        return Outcome(name="")

    return Property(
        name=name, observe=observe, judge=judge, where="; ".join(question.call for question in questions), needs=needs
    )


def numbers_of(got: Any, names: Sequence[str]) -> Numbers | Outcome:
    """The answer as numbers, or why it is none."""
    is_list = isinstance(got, tuple | list) and len(got) == len(names)
    if not is_list or not all(isinstance(x, Real) and math.isfinite(x) for x in got):
        cause = f"return {len(names)} numbers, ({', '.join(names)}), not {got!r}"
        return Outcome(name="", kind=Kind.WRONG_SHAPE, cause=cause)
    return tuple(float(x) for x in got)


def judge_answer(question: Question, got: Any) -> Outcome:
    """Judge one answer."""
    numbers = numbers_of(got, question.names)
    if isinstance(numbers, Outcome):
        return numbers
    off = [i for i in range(len(numbers)) if not is_close(numbers[i], question.want[i], question.tolerance)]
    if not off:
        return Outcome(name="")
    first = off[0]
    difference = f"{question.names[first]}: expected {question.want[first]:.6g}, got {numbers[first]:.6g}"
    if question.want[first]:
        difference += f" ({numbers[first] / question.want[first]:.4g} times)"
    return Outcome(
        name="", kind=Kind.WRONG_VALUE, where=question.call, difference=difference, cause=explain(question, numbers)
    )


def explain(question: Question, numbers: Numbers) -> str:
    """The first mistake that gives all of these numbers; an empty string if none does."""
    for cause, mistaken in question.mistakes:
        same = all(is_close(a, b, question.tolerance) for a, b in zip(numbers, mistaken, strict=True))
        wrong = any(not is_close(a, b, question.tolerance) for a, b in zip(mistaken, question.want, strict=True))
        if same and wrong:
            return cause
    return ""


def is_close(a: float, b: float, tolerance: float) -> bool:
    """Whether two numbers are equal but for a relative tolerance."""
    return math.isclose(a, b, rel_tol=tolerance, abs_tol=1e-300)
