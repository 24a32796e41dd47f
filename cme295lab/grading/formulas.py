"""Formulas of the student's: calling them on some inputs, and finding the mistake that a wrong number comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from cme295lab.grading.exercise import Property
from cme295lab.grading.observe import Observation, observe_call
from cme295lab.grading.result import Kind, Outcome

_RELATIVE = 1e-6
_TIME_LIMIT_S = 5.0
_SAME_NUMBER = "the same number comes back whatever the arguments: compute it from them"


@dataclass(frozen=True, kw_only=True)
class Question:
    """One call of a formula, and what is known about the answer.

    Args:
        function: its name.
        arguments: of the call.
        want: the right number.
        mistakes: causes, and the numbers that they give.
        unit: of the number, in words.
        position: which function it is, where several are handed over; None for one alone.
    """

    function: str
    arguments: Mapping[str, Any]
    want: float
    mistakes: tuple[tuple[str, float], ...]
    unit: str
    position: int | None = None

    @property
    def call(self) -> str:
        """The call, in words."""
        return f"{self.function}({', '.join(f'{name}={value!r}' for name, value in self.arguments.items())})"


def formula_property(
    name: str, questions: Sequence[Question], *, weight: float = 1.0, needs: tuple[str, ...] = ()
) -> Property:
    """The property that a formula answers some questions right."""

    def answer(student: Any, question: Question) -> Any:
        function = student if question.position is None else student[question.position]
        return function(**question.arguments)

    def observe(student: Any) -> Observation:
        return observe_call(lambda: tuple(answer(student, question) for question in questions), {}, _TIME_LIMIT_S)

    def judge(seen: Observation) -> Outcome:
        return judge_answers(questions, seen.outputs["result"])

    where = "; ".join(question.call for question in questions)
    return Property(name=name, observe=observe, judge=judge, where=where, weight=weight, needs=needs)


def judge_answers(questions: Sequence[Question], answers: Sequence[Any]) -> Outcome:
    """Judge the answers in order; the first wrong one is reported, with a cause that fits them all if there is one."""
    for question, got in zip(questions, answers):
        if isinstance(got, bool) or not isinstance(got, int | float) or not math.isfinite(got):
            cause = f"return a number, not {got!r}"
            return Outcome(name="", kind=Kind.WRONG_SHAPE, where=question.call, cause=cause)
    for question, got in zip(questions, answers):
        if not is_close(got, question.want):
            times = f" ({got / question.want:.4g} times)" if question.want else ""
            difference = f"expected {question.want:,.7g} {question.unit}, got {got:,.7g}{times}"
            is_constant = got != 0 and len(set(answers)) == 1 < len({other.want for other in questions})
            cause = _SAME_NUMBER if is_constant else explain(question, got, questions, answers)
            return Outcome(name="", kind=Kind.WRONG_VALUE, where=question.call, difference=difference, cause=cause)
    return Outcome(name="")


def explain(question: Question, got: float, questions: Sequence[Question], answers: Sequence[float]) -> str:
    """Name the mistake that gives this number, of several the one that gives the other answers too.

    Args:
        question: with a wrong answer.
        got: the answer.
        questions, answers: all that were asked together.

    Returns:
        A cause; an empty string if no known mistake gives the number.
    """
    causes = [
        cause for cause, value in question.mistakes if is_close(got, value) and not is_close(value, question.want)
    ]
    fitting = (cause for cause in causes if all(map(partial(_fits, cause), questions, answers)))
    return next(fitting, next(iter(causes), ""))


def _fits(cause: str, question: Question, got: float) -> bool:
    """Whether a mistake explains an answer; where it is not known, it changes nothing."""
    values = [value for name, value in question.mistakes if name == cause] or [question.want]
    return any(is_close(got, value) for value in values)


def is_close(a: float, b: float) -> bool:
    """Whether two numbers are equal but for rounding."""
    return math.isclose(a, b, rel_tol=_RELATIVE, abs_tol=1e-12)
