"""Questions about single numbers and codes, which two parts share: asking them all, and finding the mistake behind."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cme295lab.grading.exercise import Property
from cme295lab.grading.float_formats.formats import RIGHT, Format, Mistake
from cme295lab.grading.observe import Observation
from cme295lab.grading.observe_plainly import observe_plainly
from cme295lab.grading.result import Kind, Outcome


@dataclass(frozen=True, kw_only=True)
class Question:
    """One call of the student's function.

    Args:
        argument: the code, or the number.
        kind: the format.
    """

    argument: Any
    kind: Format


@dataclass(frozen=True, kw_only=True)
class Direction:
    """What is asked: numbers of codes, or codes of numbers.

    Args:
        function: its name in the exercise.
        answer: gives the right or a wrong answer to (mistake, argument, format).
        is_same: whether two answers mean the same, in a format.
        show_argument, show_answer: in words, in a format.
        is_whole: whether an answer must be a whole number.
        mistakes: those that can be made.
    """

    function: str
    answer: Callable[[Mistake, Any, Format], Any]
    is_same: Callable[[Any, Any, Format], bool]
    show_argument: Callable[[Any, Format], str]
    show_answer: Callable[[Any, Format], str]
    is_whole: bool
    mistakes: Sequence[Mistake]

    def call(self, question: Question) -> str:
        """A call, in words."""
        e, m = question.kind
        argument = self.show_argument(question.argument, question.kind)
        return f"{self.function}({argument}, exponent_bits={e}, mantissa_bits={m})"

    def property(
        self, name: str, questions: Sequence[Question], *, weight: float = 1.0, needs: tuple[str, ...] = ()
    ) -> Property:
        """The property that all questions are answered right."""

        def ask_all(student: Callable[..., Any]) -> list[Any]:
            return [student(question.argument, *question.kind) for question in questions]

        def observe(student: Callable[..., Any]) -> Observation:
            return observe_plainly(lambda: ask_all(student), {})

        def judge(seen: Observation) -> Outcome:
            return self.judge(questions, seen.outputs["result"])

        formats = sorted({question.kind for question in questions})
        where = f"{len(questions)} calls, with {' and '.join(f'1+{e}+{m}' for e, m in formats)} bits"
        return Property(name=name, observe=observe, judge=judge, where=where, weight=weight, needs=needs)

    def judge(self, questions: Sequence[Question], answers: Sequence[Any]) -> Outcome:
        """Judge the answers in order; the first wrong one is reported, with the mistake that explains all of them."""
        found = [_plain(answer, self.is_whole) for answer in answers]
        for question, answer, plain in zip(questions, answers, found, strict=True):
            if plain is None:
                wanted = "the code as an int" if self.is_whole else "the number as a float"
                cause = f"return {wanted}, not {type(answer).__name__} {str(answer)[:40]}"
                return Outcome(name="", kind=Kind.WRONG_SHAPE, where=self.call(question), cause=cause)
        for question, plain in zip(questions, found, strict=True):
            want = self.answer(RIGHT, question.argument, question.kind)
            if not self.is_same(plain, want, question.kind):
                expected, got = (self.show_answer(value, question.kind) for value in (want, plain))
                return Outcome(
                    name="", kind=Kind.WRONG_VALUE, where=self.call(question),
                    difference=f"expected {expected}, got {got}", cause=self._cause(questions, found),
                )  # fmt: skip
        return Outcome(name="")

    def _cause(self, questions: Sequence[Question], found: Sequence[Any]) -> str:
        for mistake in self.mistakes:
            given = (self.answer(mistake, question.argument, question.kind) for question in questions)
            if all(self.is_same(a, b, question.kind) for a, b, question in zip(found, given, questions, strict=True)):
                return mistake.cause
        return ""


def _plain(answer: Any, is_whole: bool) -> Any:
    """A number of Python, numpy or torch as one of Python; None if it is none."""
    if getattr(answer, "ndim", None) == 0 and hasattr(answer, "item"):
        answer = answer.item()
    if isinstance(answer, bool):
        return None
    if is_whole:
        return int(answer) if isinstance(answer, numbers.Integral) else None
    return float(answer) if isinstance(answer, numbers.Real) else None


def is_same_number(a: float, b: float, kind: Format) -> bool:
    """Whether two numbers are the same, the sign of zero included; NaN is NaN."""
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    return a == b and math.copysign(1, a) == math.copysign(1, b)


def is_same_code(a: int, b: int, kind: Format) -> bool:
    """Whether two codes mean the same: all codes of NaN do."""
    return a == b or (a >= 0 and b >= 0 and kind.is_nan(a) and kind.is_nan(b))
