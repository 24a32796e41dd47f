"""The shape of an exercise: an id, hints, and a check made of properties.

A property *observes* (runs the student's code on one input and records what came out and what was used) and then
*judges* the record. Only observing needs the student's code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from cme295lab.grading.observe import Observation
from cme295lab.grading.result import Kind, Outcome

_NOT_AGAIN = (Kind.TIMED_OUT, Kind.DEADLOCK, Kind.RANKS_DISAGREE, Kind.NOT_ALLOWED)


@dataclass(frozen=True, kw_only=True)
class Property:
    """One thing that must hold for the student's code.

    Args:
        name: what must hold, as a short sentence.
        observe: runs the student's code on one input.
        judge: turns the record into an outcome; it sees no student code.
        where: the input: shapes, dtype, seed.
        weight: its share of the score.
        needs: names of properties without which this one means nothing. Code that returns zeros uses little memory.
    """

    name: str
    observe: Callable[[Any], Observation]
    judge: Callable[[Observation], Outcome]
    where: str
    weight: float = 1.0
    needs: tuple[str, ...] = ()


class Once:
    """One run of the student's code that several properties judge; an `observe` for each of them.

    Args:
        observe: runs the student's code on one input.
    """

    def __init__(self, observe: Callable[[Any], Observation]) -> None:
        self._observe = observe
        self._seen: tuple[Any, Observation] | None = None

    def __call__(self, student: Any) -> Observation:
        """Run the student's code, unless it was this student's that ran last."""
        if self._seen is None or self._seen[0] is not student:
            self._seen = student, self._observe(student)
        return self._seen[1]


class Check(Protocol):
    """Builds the properties of an exercise; the arguments choose inputs other than the visible ones."""

    def __call__(self, *, seed: int = 0) -> list[Property]:
        """Return the properties for this seed."""
        ...


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """One part of an exercise notebook.

    Args:
        id: topic and part, such as "flash_attention/2": the same on the page, in the stub, the check and the hints.
        title: a few words.
        hints: from a nudge to nearly the answer.
        check: builds the properties.
        refuse: says why an object cannot be checked at all (a wrong type, a stub), or returns None.
    """

    id: str
    title: str
    hints: tuple[str, ...]
    check: Callable[..., list[Property]]
    refuse: Callable[[Any], Outcome | None] = lambda student: None


def judge_all(properties: Iterable[Property], student: Any) -> tuple[Outcome, ...]:
    """Judge the student's code on every property, in order.

    Code that ran out of time, hung or may hang, or used something forbidden is not run again: the rest is not judged.
    """
    outcomes: list[Outcome] = []
    failed: set[str] = set()
    stop = ""
    for item in properties:
        unmet = [name for name in item.needs if name in failed]
        if stop or unmet:
            reason = stop or f"this means something only once it is true that {_lower(unmet[0])}"
            outcome = Outcome(name=item.name, kind=Kind.NOT_JUDGED, cause=reason)
        else:
            outcome = _judge(item, item.observe(student))
            if outcome.kind in _NOT_AGAIN:
                stop = f"the code was not run again after: {outcome.kind}"
        if not outcome.passed:
            failed.add(item.name)
        outcomes.append(replace(outcome, weight=item.weight, where=outcome.where or item.where))
    return tuple(outcomes)


def _judge(item: Property, seen: Observation) -> Outcome:
    """The outcome of one property: what stopped the code or was forbidden comes before its values."""
    if seen.error is not None:
        return Outcome(name=item.name, kind=seen.error.kind, difference=seen.error.text, cause=seen.error.cause)
    if seen.forbidden:
        return Outcome(name=item.name, kind=Kind.NOT_ALLOWED, cause=seen.forbidden[0])
    if seen.changed_inputs:
        names = ", ".join(seen.changed_inputs)
        cause = f"your code changes its input {names} in place; the caller still needs it. Work on a copy"
        return Outcome(name=item.name, kind=Kind.WRONG_VALUE, cause=cause)
    return replace(item.judge(seen), name=item.name)


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]
