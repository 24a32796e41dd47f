"""What a check returns: one outcome per property, drawn as text or HTML, and worth a score."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from html import escape
from typing import Any


class Kind(StrEnum):
    """How a property ended."""

    PASSED = "passed"
    NOT_ATTEMPTED = "not attempted"
    CRASHED = "crashed"
    TIMED_OUT = "took too long"
    WRONG_SHAPE = "wrong shape or type"
    WRONG_VALUE = "wrong value"
    NOT_EXACT = "not exact"
    TOO_MUCH_MEMORY = "too much memory"
    TOO_MUCH_TRAFFIC = "too much traffic"
    TOO_MUCH_COMMUNICATION = "too much communication"
    WRONG_ROUTE = "wrong route"
    NOT_OVERLAPPED = "not overlapped"
    NOT_SHARDED = "not sharded"
    DEADLOCK = "deadlock"
    RANKS_DISAGREE = "ranks disagree"
    RACE = "programs race"
    NOT_PARALLEL = "not parallel"
    NOT_ALLOWED = "not allowed"
    DOES_NOT_COMPILE = "does not compile"
    NOT_JUDGED = "not judged"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one property of the student's code was judged.

    Args:
        name: the property: what must hold, as a short sentence.
        kind: `Kind.PASSED` or how it failed.
        weight: its share of the score, relative to the other properties.
        where: the input that was used: shapes, dtype, seed.
        difference: expected against got, with the largest error and where it is.
        cause: the likely cause, in the words of the exercise.
    """

    name: str
    kind: Kind = Kind.PASSED
    weight: float = 1.0
    where: str = ""
    difference: str = ""
    cause: str = ""

    @property
    def passed(self) -> bool:
        """Whether the property holds."""
        return self.kind is Kind.PASSED

    def details(self) -> list[tuple[str, str]]:
        """The labelled lines of a failure, in reading order."""
        lines = [("Input", self.where), ("Seen", self.difference), ("Likely cause", self.cause)]
        return [(label, text) for label, text in lines if text]


@dataclass(frozen=True)
class CheckResult:
    """The verdict on one part of an exercise.

    Args:
        exercise: its id, such as "flash_attention/2".
        title: its title.
        outcomes: one per property, in the order in which they were judged.
    """

    exercise: str
    title: str
    outcomes: tuple[Outcome, ...]

    @property
    def passed(self) -> bool:
        """Whether every property holds."""
        return bool(self.outcomes) and all(outcome.passed for outcome in self.outcomes)

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """The properties that do not hold: forbidden ones first, those that could not be judged last."""
        order = {Kind.NOT_ALLOWED: 0, Kind.NOT_JUDGED: 2}
        failed = [outcome for outcome in self.outcomes if not outcome.passed]
        return tuple(sorted(failed, key=lambda outcome: order.get(outcome.kind, 1)))

    @property
    def kind(self) -> Kind:
        """`Kind.PASSED`, or how the first failing property failed."""
        return self.failures[0].kind if self.failures else Kind.PASSED

    @property
    def score(self) -> float:
        """The share of the properties that hold, by weight, from 0 to 1; 0 if something forbidden was used."""
        total = sum(outcome.weight for outcome in self.outcomes)
        if total == 0 or any(outcome.kind is Kind.NOT_ALLOWED for outcome in self.outcomes):
            return 0.0
        return sum(outcome.weight for outcome in self.outcomes if outcome.passed) / total

    @property
    def message(self) -> str:
        """The verdict as text: which property failed, on what input, expected against got, likely cause, hint."""
        total, held = len(self.outcomes), sum(outcome.passed for outcome in self.outcomes)
        head = f"{self.exercise} · {self.title}: {self.kind}"
        if self.passed:
            return f"{head}. All {total} properties hold."
        if self.kind is Kind.NOT_ATTEMPTED and not held:
            return "\n".join([f"{head}.", f"  {self.failures[0].cause}", f"  Hint: {self.hint}"])
        first = self.failures[0]
        lines = [head, f"  Failed: {first.name}", *(f"  {label}: {text}" for label, text in first.details())]
        lines += [f"  Hint: {self.hint}", f"{held} of {total} properties hold, score {self.score:.0%}:"]
        return "\n".join([*lines, *(f"  {_mark(outcome)} {_headline(outcome)}" for outcome in self.outcomes)])

    @property
    def hint(self) -> str:
        """What to type for a hint."""
        return f'checks.hint("{self.exercise}")'

    def __and__(self, other: CheckResult) -> CheckResult:
        """Both verdicts in one: a property holds only if it holds in both."""
        if not isinstance(other, CheckResult):
            return NotImplemented
        if other.exercise != self.exercise:
            raise ValueError(f"cannot combine the results of {self.exercise!r} and {other.exercise!r}")
        theirs = {outcome.name: outcome for outcome in other.outcomes}
        merged = []
        for mine in self.outcomes:
            rival = theirs.pop(mine.name, mine)
            merged.append(replace(rival, weight=mine.weight) if mine.passed else mine)
        return CheckResult(self.exercise, self.title, (*merged, *theirs.values()))

    def award(self, points: float) -> float:
        """Show the verdict and return the points it earns: the last line of a graded cell.

        Args:
            points: what full marks are worth.

        Returns:
            `score` times `points`, rounded down to two decimals so that it never exceeds `points`.
        """
        show(self)
        return int(self.score * points * 100 + 1e-6) / 100

    def as_dict(self) -> dict[str, Any]:
        """The verdict as plain data, for a file or another process."""
        return {
            "exercise": self.exercise,
            "title": self.title,
            "passed": self.passed,
            "score": self.score,
            "kind": str(self.kind),
            "outcomes": [asdict(outcome) for outcome in self.outcomes],
        }

    def __str__(self) -> str:
        return self.message

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(self.message)

    def _repr_html_(self) -> str:
        return _html(self)


def show(thing: object) -> None:
    """Draw an object in the notebook, or print it where there is none."""
    ipython = sys.modules.get("IPython")
    if ipython is not None and ipython.get_ipython() is not None:
        from IPython.display import display

        display(thing)
    else:
        print(thing)


def _headline(outcome: Outcome) -> str:
    """A property on one line, with how it failed."""
    return outcome.name if outcome.passed else f"{outcome.name} ({outcome.kind})"


def _mark(outcome: Outcome) -> str:
    return "✓" if outcome.passed else "–" if outcome.kind is Kind.NOT_JUDGED else "✗"


# Blue and vermilion of the Okabe-Ito palette: told apart by colour-blind readers, and the marks say it too.
_COLOURS = {"✓": "#0072B2", "✗": "#D55E00", "–": "#767676"}


def _html(result: CheckResult) -> str:
    untouched = result.kind is Kind.NOT_ATTEMPTED and not any(outcome.passed for outcome in result.outcomes)
    mark = "✓" if result.passed else "–" if untouched else "✗"
    colour = _COLOURS[mark]
    held = sum(outcome.passed for outcome in result.outcomes)
    head = (
        f"<b>{escape(result.exercise)} · {escape(result.title)}</b>: "
        f'<b style="color:{colour}">{mark} {escape(result.kind)}</b>'
    )
    parts = [f'<div role="status" style="border-left:4px solid {colour};padding:4px 12px;margin:4px 0">{head}']
    if untouched:
        parts.append(f"<div>{escape(result.failures[0].cause)}</div>")
    elif not result.passed:
        parts.append(_html_details(result.failures[0]))
    if not result.passed:
        parts.append(f"<div>Hint: <code>{escape(result.hint)}</code></div>")
    if not untouched:
        items = "".join(_html_item(outcome) for outcome in result.outcomes)
        parts.append(f"<div>{held} of {len(result.outcomes)} properties hold, score {result.score:.0%}</div>")
        parts.append(f'<ul style="list-style:none;padding-left:0;margin:4px 0">{items}</ul>')
    return "".join([*parts, "</div>"])


def _html_item(outcome: Outcome) -> str:
    mark = _mark(outcome)
    return f'<li><span style="color:{_COLOURS[mark]}">{mark}</span> {escape(_headline(outcome))}</li>'


def _html_details(outcome: Outcome) -> str:
    style = "text-align:left;vertical-align:top"
    cells = "".join(
        f'<tr><th style="{style};white-space:nowrap">{escape(label)}</th>'
        f'<td style="{style};white-space:pre-wrap">{escape(text)}</td></tr>'
        for label, text in [("Failed", outcome.name), *outcome.details()]
    )
    return f"<table>{cells}</table>"
