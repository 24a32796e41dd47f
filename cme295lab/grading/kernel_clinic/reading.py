"""Part 4: numbers read from a report. The check launches the same kernel and computes them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from cme295lab.grading.exercise import Property
from cme295lab.grading.observe import Observation, observe_call, refuse_function
from cme295lab.grading.result import Kind, Outcome

ROWS, COLUMNS, BLOCK, DEVICE = 256, 4096, 1024, "A100"
_QUESTIONS = {
    "programs": "the number of programs is read right",
    "times_read": "how often x is read is right",
    "dram_share": "the share that reaches DRAM is right",
    "bound": "what limits the kernel is right",
    "saved_bytes": "what one pass would save is right",
}
_RELATIVE, _SHARE = 0.01, 0.02  # a rounded figure of the report is as good as an exact one


@dataclass(frozen=True)
class Truth:
    """What the launch counted."""

    programs: int
    x_read_bytes: int
    x_distinct_bytes: int
    requested_bytes: int
    distinct_bytes: int
    dram_bytes: int
    bound: str

    @property
    def answers(self) -> dict[str, float | str]:
        """The right answers, by name."""
        return {
            "programs": self.programs,
            "times_read": self.x_read_bytes / self.x_distinct_bytes,
            "dram_share": self.dram_bytes / self.requested_bytes,
            "bound": self.bound,
            "saved_bytes": self.x_read_bytes - self.x_distinct_bytes,
        }


@functools.cache
def truth() -> Truth:
    """Launch the patient and count."""
    from cme295lab import simulator
    from cme295lab.kernels.softmax import plain_softmax_kernel

    x = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))
    y = torch.zeros_like(x)
    with simulator.trace(device=DEVICE) as trace:
        plain_softmax_kernel[(ROWS,)](x, y, COLUMNS, *x.stride(), *y.stride(), BLOCK_N=BLOCK)
    return Truth(
        programs=trace.launches[0].num_programs,
        x_read_bytes=trace.tensors["x"].read_bytes,
        x_distinct_bytes=trace.tensors["x"].distinct_read_bytes,
        requested_bytes=trace.requested_bytes,
        distinct_bytes=trace.distinct_bytes,
        dram_bytes=trace.dram_bytes,
        bound=trace.roofline().bound,
    )


def properties() -> list[Property]:
    """What must hold for `answers()`."""
    return [_property(name, sentence) for name, sentence in _QUESTIONS.items()]


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "answers")


def _property(name: str, sentence: str) -> Property:
    def observe(student: Callable[..., Any]) -> Observation:
        return observe_call(student, {}, 30.0)

    def judge(seen: Observation) -> Outcome:
        return judge_answer(name, seen.outputs["result"])

    return Property(name=sentence, observe=observe, judge=judge, where=f'answers()["{name}"]')


def judge_answer(name: str, answers: Any) -> Outcome:
    """Judge one answer."""
    if not isinstance(answers, dict):
        cause = f"answers() must return a dictionary with the keys {', '.join(_QUESTIONS)}"
        return Outcome(name="", kind=Kind.WRONG_SHAPE, cause=cause)
    got, want = answers.get(name), truth().answers[name]
    if got is None:
        cause = f'there is no answer for "{name}" yet'
        return Outcome(name="", kind=Kind.NOT_ATTEMPTED, cause=cause)
    if isinstance(want, str):
        if str(got).strip().lower() == want:
            return Outcome(name="")
        cause = "compare the intensity with the ridge point: below it, the kernel waits for memory"
        return Outcome(name="", kind=Kind.WRONG_VALUE, difference=f"got {got!r}", cause=cause)
    if isinstance(got, bool) or not isinstance(got, int | float):
        return Outcome(name="", kind=Kind.WRONG_SHAPE, cause=f"the answer must be a number, not {got!r}")
    allowed = _SHARE if name == "dram_share" else _RELATIVE * want
    if abs(got - want) <= allowed:
        return Outcome(name="")
    causes = (cause for cause, value in _mistakes(name) if abs(got - value) <= max(_RELATIVE * abs(value), 1e-9))
    return Outcome(name="", kind=Kind.WRONG_VALUE, difference=f"got {got:,}", cause=next(causes, ""))


def _mistakes(name: str) -> Iterator[tuple[str, float]]:
    """What known mistakes give."""
    found = truth()
    want = found.answers[name]
    assert not isinstance(want, str)
    if name == "programs":
        yield "that is the number of blocks in the matrix: a program walks over a whole row", ROWS * COLUMNS // BLOCK
        yield "that is the number of columns: the grid has a program per row", COLUMNS
        yield "that is BLOCK, the width of a block: the grid has a program per row", BLOCK
    elif name == "times_read":
        yield "that is how often each number would be read at least: compare requested with distinct", 1
        yield "y is written once, but the question is about x alone", found.requested_bytes / found.distinct_bytes
        yield "x is read in three loops; the fourth access is the store of y", 4
    elif name == "dram_share":
        yield "that is the share of what is requested and does not reach DRAM", 1 - want
        yield "that is in percent: give a number from 0 to 1", 100 * want
        yield "that is the number of bytes: divide it by the requested bytes", found.dram_bytes
        yield "the other way round: DRAM bytes divided by requested bytes", 1 / want
        yield "all requested bytes are taken for DRAM bytes: the L2 cache keeps x between the passes", 1
    else:
        once = found.x_distinct_bytes
        yield "that is x once: three passes become one, so two are saved", once
        yield "that is all that is read: one of the three passes stays", found.x_read_bytes
        yield "that is what a single pass requests, not what it saves", found.distinct_bytes
        yield "saved are requested bytes, not DRAM bytes", found.requested_bytes - found.dram_bytes
        yield "that is the number of elements: a float32 has 4 bytes", want / 4
