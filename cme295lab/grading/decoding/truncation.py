"""Right and wrong ways from logits to the probabilities that are drawn from.

One float64 implementation per method, right with every option at its default (a test holds it to the library), and the
options are the known mistakes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cme295lab.grading.compare import Expected, Hypothesis, allowed_error, judge_tensor
from cme295lab.grading.exercise import Property
from cme295lab.grading.observe import Observation
from cme295lab.grading.observe_plainly import observe_plainly
from cme295lab.grading.result import Kind, Outcome

ZERO_LOGITS = "the logits of dropped tokens became 0, and exp(0) = 1 still counts: set them to -inf"


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A known mistake; the defaults make none. Two options are about softmax, the others about what is kept.

    Args:
        cause: the mistake, in the words of the exercise.
        temperature_power: the logits are multiplied by the temperature to this power.
        dim: the dimension that softmax runs over.
        more: tokens kept beyond the right number, by rank.
        at_least: tokens kept in any case.
        smallest: whether the least likely tokens are kept instead.
        together: whether the ranking is that of the whole batch.
        dropped_logit: what the logit of a token that is not kept becomes.
        renormalise: whether the probabilities sum to 1 again.
        in_order: "restored", "ranked" (the sort is not undone) or "twice" (it is done once more instead of undone).
        presorted: whether the cumulative sum runs in the order of the vocabulary.
        alone: whether a token's own probability is held against p.
        log: whether logarithms are returned.
    """

    cause: str = ""
    temperature_power: float = -1.0
    dim: int = -1
    more: int = 0
    at_least: int = 0
    smallest: bool = False
    together: bool = False
    dropped_logit: float = -math.inf
    renormalise: bool = True
    in_order: str = "restored"
    presorted: bool = False
    alone: bool = False
    log: bool = False


def top_k_with(mistake: Mistake, logits: Tensor, temperature: float, top_k: int) -> Tensor:
    """softmax of the k largest of z / T, in float64."""
    z = logits.double() * temperature**mistake.temperature_power
    count = min(max(top_k + mistake.more, 0), z.shape[-1])
    rows = z.flatten()[None] if mistake.together else z
    kept = torch.zeros_like(rows, dtype=torch.bool)
    kept.scatter_(-1, rows.topk(count, dim=-1, largest=not mistake.smallest).indices, True)
    return _probabilities(z, kept.view_as(z), mistake)


def top_p_with(mistake: Mistake, logits: Tensor, top_p: float) -> Tensor:
    """softmax of the smallest set of tokens whose probabilities reach p, in float64."""
    z = logits.double()
    probabilities = z.softmax(-1)
    if mistake.alone:
        return _probabilities(z, probabilities >= top_p, mistake)
    if mistake.presorted:
        return _probabilities(z, probabilities.cumsum(-1) - probabilities < top_p, mistake)
    ranked, order = probabilities.sort(dim=-1, descending=not mistake.smallest, stable=True)
    count = ((ranked.cumsum(-1) - ranked) < top_p - 1e-12).sum(-1, keepdim=True) + mistake.more
    kept_ranks = torch.arange(z.shape[-1]) < count.clamp(min=mistake.at_least)
    if mistake.in_order == "ranked":
        return _probabilities(z.gather(-1, order), kept_ranks, mistake)
    kept = torch.zeros_like(kept_ranks).scatter(-1, order, kept_ranks)
    return _probabilities(z, kept_ranks.gather(-1, order) if mistake.in_order == "twice" else kept, mistake)


def _probabilities(z: Tensor, kept: Tensor, mistake: Mistake) -> Tensor:
    cut = torch.where(kept, z, mistake.dropped_logit)
    result = cut.softmax(mistake.dim) if mistake.renormalise else torch.where(kept, z.softmax(mistake.dim), 0.0)
    return result.log() if mistake.log else result


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call of the student's function.

    Args:
        inputs: its arguments by name.
        right: computes the result, given a mistake.
        mistakes: those that can be made here.
        where: the input in words.
    """

    inputs: Mapping[str, Any]
    right: Callable[..., Tensor]
    mistakes: Iterable[Mistake]
    where: str

    def expected(self) -> Expected:
        """What must come out, and what known mistakes give."""
        logits = self.inputs["logits"]
        return Expected(
            name="the result",
            value=self._with(Mistake()),
            dtype=logits.dtype,
            allowed=allowed_error(logits.dtype, 1.0),
            mistakes=[Hypothesis(mistake.cause, partial(self._with, mistake)) for mistake in self.mistakes],
        )

    def _with(self, mistake: Mistake) -> Tensor:
        return self.right(mistake, **self.inputs)


def case_property(name: str, case: Case, *, weight: float = 1.0, needs: tuple[str, ...] = ()) -> Property:
    """The property that the right probabilities come out."""

    def observe(student: Callable[..., Any]) -> Observation:
        return observe_plainly(student, case.inputs)

    def judge(seen: Observation) -> Outcome:
        return judge_probabilities(case, seen.outputs["result"])

    return Property(name=name, observe=observe, judge=judge, where=case.where, weight=weight, needs=needs)


def judge_probabilities(case: Case, got: Any) -> Outcome:
    """Judge a result; where no known mistake gives it, say whether it is a distribution at all."""
    outcome = judge_tensor(got, case.expected())
    if outcome.kind is not Kind.WRONG_VALUE or outcome.cause:
        return outcome
    sums = got.double().sum(-1)
    if not torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
        cause = f"each row must sum to 1, yours sum to {sums.min():.4g} to {sums.max():.4g}"
        return Outcome(name="", kind=outcome.kind, difference=outcome.difference, cause=cause)
    return outcome


def words(logits: Tensor, seed: int | None) -> str:
    """Logits in words."""
    made = "the page's" if seed is None else f"seed {seed}"
    return f"logits of shape {tuple(logits.shape)}, {str(logits.dtype).removeprefix('torch.')}, {made}"
