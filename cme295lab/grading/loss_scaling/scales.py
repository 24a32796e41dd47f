"""Part 1: the largest scale that does not overflow, and what is still lost with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cme295lab.grading.exercise import Property
from cme295lab.grading.formulas import Question, judge_answers
from cme295lab.grading.observe import Observation, refuse_function
from cme295lab.grading.observe_plainly import observe_plainly
from cme295lab.grading.result import Kind, Outcome

FUNCTIONS = ("largest_scale", "num_lost")
_LARGEST = 65504.0
_FP16 = torch.finfo(torch.float16)


@dataclass(frozen=True, kw_only=True)
class Asked(Question):
    """One call of one of the two functions.

    Args:
        words: what the gradients are.
    """

    words: str

    @property
    def call(self) -> str:
        """The call, in words."""
        scale = f", scale={self.arguments['scale']:g}" if "scale" in self.arguments else ""
        return f"{self.function}({self.words}{scale})"


def properties(*, seed: int = 0, size: float = 1e-5) -> list[Property]:
    """What must hold for `largest_scale(gradients) -> scale` and `num_lost(gradients, scale) -> count`.

    Args:
        seed: draws the gradients.
        size: of the smaller ones.
    """
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int, spread: float = 0.0) -> Tensor:
        """Normal numbers, times two to the power of normal ones."""
        return torch.randn(shape, generator=draw) * 2 ** (spread * torch.randn(shape, generator=draw))

    page = [torch.tensor([0.0, 3e-8, -2e-5, 0.003])]
    # The largest is negative, and not in the first tensor.
    third = torch.tensor([20.0, -97.0, 0.5, -95.0, -92.0, -90.0, -89.0])
    several = [normal(3, 4) * size, normal(5) * size, third * size, normal(2, 2, 2) * size / 10]
    around_one = [normal(3, 3), normal(4).clamp(-1, 1)]
    large = [normal(6) * 100, torch.tensor([-3.1e6, 4e5])]
    small = size * 1e-3
    wide = [normal(40, 5, spread=4.0) * small, torch.tensor([0.0, -0.0, 0.0]), normal(30, spread=4.0) * small]
    tiny = [normal(7) * 1e-30]
    # In units of 2^-24, the smallest number of fp16: what rounds to it is not lost, the tie 0.5 is.
    beside = torch.tensor([0.25, 0.5, 0.51, -0.75, 1.0, -0.4, 1.5, 700.0]) * 2.0**-24
    edges, scaled_edges = [beside], [beside / 256, -beside / 256]
    in_words = partial(_words, seed=seed)
    return [
        _property(
            "the largest power of two that keeps all gradients below 65504 is chosen", weight=2,
            questions=[
                _scale(page, "the page's"), _scale(several, in_words(several)),
                _scale(around_one, in_words(around_one)),
            ],
        ),
        _property("gradients that are too large by themselves are made smaller", [_scale(large, in_words(large))]),
        _property("gradients far below fp16's range get a scale that fits", [_scale(tiny, in_words(tiny))]),
        _property(
            "what becomes zero in fp16 is counted", weight=2,
            questions=[
                _lost(page, 1.0, "the page's"), _lost(wide, 1.0, in_words(wide)), _lost(wide, 1024.0, in_words(wide)),
            ],
        ),
        _property(
            "numbers that round up to the smallest one are not lost",
            [_lost(edges, 1.0, "8 numbers around 2^-25"), _lost(scaled_edges, 256.0, "16 numbers around 2^-33")],
        ),
    ]  # fmt: skip


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    if not isinstance(student, tuple | list) or len(student) != len(FUNCTIONS):
        cause = f"hand over a tuple of the functions {', '.join(FUNCTIONS)}"
        return Outcome(name="there are two functions", kind=Kind.WRONG_SHAPE, cause=cause)
    refusals = [refuse_function(function, name) for function, name in zip(student, FUNCTIONS, strict=True)]
    found = [refusal for refusal in refusals if refusal is not None]
    # One that is written is judged although the other is still a stub: that one says so where it is asked.
    return found[0] if len(found) == len(FUNCTIONS) or any(r.kind is Kind.WRONG_SHAPE for r in found) else None


def _words(gradients: Sequence[Tensor], seed: int) -> str:
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    return f"{len(gradients)} tensors with {len(flat)} numbers up to {float(flat.abs().max()):.4g}, seed {seed}"


def _largest_scale(largest: float) -> float:
    """The largest power of two whose product with a number is below 65504; NaN if the number is not positive."""
    if largest <= 0:
        return math.nan
    scale = 2.0 ** math.floor(math.log2(_LARGEST / largest))
    return scale if scale * largest < _LARGEST else scale / 2


def _scale(gradients: list[Tensor], words: str) -> Asked:
    flat = torch.cat([gradient.flatten() for gradient in gradients]).double()
    sizes = flat.abs()
    largest = float(sizes.max())
    want = _largest_scale(largest)
    first = float(gradients[0].double().abs().max())
    mistakes = (
        ("the scale is not a power of two: others round the mantissas, too", _LARGEST / largest),
        ("the scale is one power of two too large: the largest gradient overflows, round the power down", want * 2),
        ("the scale is one power of two too small: there is room for twice as much", want / 2),
        ("the sign counts: the largest gradient by size is negative, take abs()", _largest_scale(float(flat.max()))),
        ("only the first tensor is looked at", _largest_scale(first)),
        ("only the last tensor is looked at", _largest_scale(float(gradients[-1].double().abs().max()))),
        ("the smallest gradient is looked at: it is the largest that overflows",
         _largest_scale(float(sizes[sizes > 0].min()))),
        ("the mean is looked at: it is the largest gradient that overflows", _largest_scale(float(sizes.mean()))),
        ("the norm is looked at: each number is stored by itself, so the largest counts",
         _largest_scale(float(flat.norm()))),
        ("the scale is never below 1: gradients that overflow by themselves need a smaller one", max(want, 1.0)),
        ("the scale is cut off at 65536: where gradients are smaller, it can be larger", min(want, 65536.0)),
        ("that is the power: the scale is 2 to the power of it", math.log2(want)),
        ("that is the reciprocal: gradients are multiplied by the scale", 1 / want),
    )  # fmt: skip
    return Asked(
        function=FUNCTIONS[0], arguments={"gradients": gradients}, want=want, mistakes=mistakes, unit="as the scale",
        position=0, words=words,
    )  # fmt: skip


def _lost(gradients: list[Tensor], scale: float, words: str) -> Asked:
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    stored, nonzero = (flat * scale).half(), flat != 0
    sizes = (flat.double() * scale).abs()
    lost = (stored == 0) & nonzero
    mistakes = (
        ("zeros are counted: what was zero before is not lost", int((stored == 0).sum())),
        ("the scale is not used, or too late: multiply by it, and convert to fp16 then",
         int((flat.half() == 0)[nonzero].sum())),
        ("gradients are divided by the scale: it multiplies them", int(((flat / scale).half() == 0)[nonzero].sum())),
        ("subnormal numbers are counted: below 2^-14 digits are lost, and only below 2^-25 the number",
         int((sizes[nonzero] < _FP16.tiny).sum())),
        ("numbers between 2^-25 and 2^-24 round up to 2^-24: convert, and compare with 0",
         int((sizes[nonzero] < 2.0**-24).sum())),
        ("a number of exactly 2^-25 is a tie of 0 and 2^-24, and 0 is even: it is lost",
         int((sizes[nonzero] < 2.0**-25).sum())),
        ("that is bf16, whose range is that of fp32", int(((flat * scale).bfloat16() == 0)[nonzero].sum())),
        ("that is a share: return a count", float(lost.double().mean())),
        ("that is a share: return a count", float(lost.sum() / nonzero.sum())),
        ("those are counted that are left", int((stored != 0).sum())),
        ("only the first tensor is counted", int(((gradients[0] * scale).half() == 0)[gradients[0] != 0].sum())),
        ("nothing is counted: count what is not 0 before and 0 in fp16", 0),
    )  # fmt: skip
    return Asked(
        function=FUNCTIONS[1], arguments={"gradients": gradients, "scale": scale}, want=int(lost.sum()),
        mistakes=mistakes, unit="lost", position=1, words=words,
    )  # fmt: skip


def _property(name: str, questions: Sequence[Asked], *, weight: float = 1.0) -> Property:
    def ask(student: Sequence[Callable[..., Any]], question: Asked) -> Any:
        gradients = [gradient.clone() for gradient in question.arguments["gradients"]]
        answer = student[question.position or 0](**{**question.arguments, "gradients": gradients})
        return answer.item() if getattr(answer, "ndim", None) == 0 else answer

    def observe(student: Sequence[Callable[..., Any]]) -> Observation:
        return observe_plainly(lambda: [ask(student, question) for question in questions], {})

    def judge(seen: Observation) -> Outcome:
        return judge_answers(questions, seen.outputs["result"])

    where = "; ".join(question.call for question in questions)
    return Property(name=name, observe=observe, judge=judge, where=where, weight=weight)
