"""Part 2: tokens go to their experts as far as there is room, and come back weighted.

The experts count the rows that they compute: a mixture that runs all tokens through all experts gives the right values
and saves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cme295lab.grading.compare import Expected, Hypothesis, allowed_error, judge_tensor
from cme295lab.grading.exercise import Once, Property
from cme295lab.grading.observe import Observation, refuse_function
from cme295lab.grading.observe_plainly import observe_plainly
from cme295lab.grading.result import Kind, Outcome


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A known mistake; the defaults make none.

    Args:
        cause: the mistake, in the words of the exercise.
        capacity: how it is computed: "right", "without k", "down" (rounded), "none" (nothing is dropped).
        queue: who has room: "choices" first, or "tokens" first; "last" come first; "gates" by their size.
        gates: "right", "ignored", "mean" or "renormalised" after dropping.
        residual: whether what was dropped passes through, as x.
        kept_only: whether a token with one dropped choice loses all.
    """

    cause: str = ""
    capacity: str = "right"
    queue: str = "choices"
    gates: str = "right"
    residual: bool = False
    kept_only: bool = False


MISTAKES = (
    Mistake(cause="nothing is dropped: an expert takes only its capacity, a share of all choices", capacity="none"),
    Mistake(cause="the capacity ignores k: each token brings k choices", capacity="without k"),
    Mistake(cause="the capacity is rounded down: round up", capacity="down"),
    Mistake(
        cause="the queue goes token by token: first choices of all tokens come before second choices", queue="tokens"
    ),
    Mistake(cause="the last tokens found room, and the first ones were dropped", queue="last"),
    Mistake(cause="the largest gates found room: the rule is the order of tokens", queue="gates"),
    Mistake(cause="the gates are ignored: weigh what comes back from an expert", gates="ignored"),
    Mistake(cause="what comes back is averaged: weigh it by the gates", gates="mean"),
    Mistake(
        cause="gates are renormalised after dropping: a gate that was spent on a full expert is lost",
        gates="renormalised",
    ),
    Mistake(
        cause="what was dropped comes back as x: the residual stream, outside of the mixture, has it already",
        residual=True,
    ),
    Mistake(cause="a token that one full expert refused lost its other expert, too", kept_only=True),
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Tokens, their choices, and experts.

    Args:
        x: tokens, (tokens, dim).
        gates, chosen: (tokens, k).
        weights: of the experts, (experts, dim, dim).
        capacity_factor: in multiples of an even share.
        where: the input in words.
    """

    x: Tensor
    gates: Tensor
    chosen: Tensor
    weights: Tensor
    capacity_factor: float
    where: str

    def capacity(self, how: str = "right") -> int:
        """Tokens that an expert takes."""
        (num_tokens, k), num_experts = self.chosen.shape, len(self.weights)
        choices = num_tokens * (1 if how == "without k" else k)
        if how == "none":
            return num_tokens
        share = self.capacity_factor * choices / num_experts
        return math.floor(share) if how == "down" else math.ceil(share - 1e-9)

    def kept(self, mistake: Mistake) -> Tensor:
        """Which choices find room, (tokens, k)."""
        num_tokens, k = self.chosen.shape
        places = [(token, choice) for choice in range(k) for token in range(num_tokens)]
        if mistake.queue == "tokens":
            places.sort()
        elif mistake.queue == "last":
            places = [(token, choice) for choice in range(k) for token in reversed(range(num_tokens))]
        elif mistake.queue == "gates":
            places.sort(key=lambda place: -self.gates[place].item())
        kept, taken = torch.zeros(num_tokens, k, dtype=torch.bool), [0] * len(self.weights)
        for token, choice in places:
            expert = int(self.chosen[token, choice])
            kept[token, choice] = taken[expert] < self.capacity(mistake.capacity)
            taken[expert] += int(kept[token, choice])
        return kept & kept.all(-1, keepdim=True) if mistake.kept_only else kept

    def result(self, mistake: Mistake = Mistake()) -> Tensor:
        """What comes back, in float64."""
        x, kept = self.x.double(), self.kept(mistake)
        gates = self.gates.double()
        if mistake.gates == "ignored":
            gates = torch.ones_like(gates)
        elif mistake.gates == "mean":
            gates = torch.full_like(gates, 1 / gates.shape[1])
        elif mistake.gates == "renormalised":
            gates = gates * kept
            gates = gates / gates.sum(-1, keepdim=True).clamp(min=1e-12)
        computed = expert_output(x[:, None, :], self.weights.double()[self.chosen])
        back = torch.where(kept[..., None], computed, x[:, None, :] if mistake.residual else 0.0)
        return (gates[..., None] * back).sum(1)


def expert_output(x: Tensor, weight: Tensor) -> Tensor:
    """tanh(W x): what the check's experts compute; x (..., dim), weight (..., dim, dim)."""
    return torch.tanh((weight @ x[..., None]).squeeze(-1))


class CountingExpert:
    """An expert that counts its calls and the rows that it computes."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight
        self.num_calls = 0
        self.num_rows = 0

    def __call__(self, rows: Tensor) -> Tensor:
        if rows.ndim != 2 or rows.shape[1] != len(self._weight):
            raise ValueError(f"an expert takes rows of shape (tokens, {len(self._weight)}), got {tuple(rows.shape)}")
        self.num_calls += 1
        self.num_rows += len(rows)
        return torch.tanh(rows @ self._weight.T)


def properties(
    *, seed: int = 0, tokens: int = 13, dim: int = 6, experts: int = 4, k: int = 2, capacity_factor: float = 0.8
) -> list[Property]:
    """What must hold for `mixture(x, gates, chosen, experts, capacity_factor) -> y`.

    Args:
        seed: seeds all tensors.
        tokens, dim, experts, k: sizes.
        capacity_factor: of the case in which tokens are dropped.
    """
    roomy = make_case(seed, tokens, dim, experts, k, float(experts))
    tight = make_case(seed, tokens, dim, experts, k, capacity_factor)
    single = make_case(seed + 1, tokens, dim, experts, 1, 1.0)
    values = "with room for all, each token gets the weighted sum of its experts"
    drops = "full experts drop what comes too late"
    observe_roomy = Once(partial(_observe, roomy))
    return [
        Property(name=values, observe=observe_roomy, judge=partial(_judge_values, roomy), where=roomy.where, weight=2),
        Property(
            name="an expert computes its own tokens, in one call", observe=observe_roomy, needs=(values,), weight=2,
            judge=partial(_judge_work, roomy), where=roomy.where,
        ),
        Property(
            name=drops, observe=partial(_observe, tight), judge=partial(_judge_values, tight), where=tight.where,
            weight=2, needs=(values,),
        ),
        Property(
            name="k = 1 (Switch) works", observe=partial(_observe, single), judge=partial(_judge_values, single),
            where=single.where, needs=(values,),
        ),
        Property(
            name="an expert that nobody chose is no problem", where="two tokens, four experts, k=1",
            observe=partial(_observe, _lonely()), judge=partial(_judge_values, _lonely()), needs=(values,),
        ),
    ]  # fmt: skip


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "mixture")


def make_case(seed: int, tokens: int, dim: int, experts: int, k: int, capacity_factor: float) -> Case:
    """Random tokens and experts; the first experts are more popular, so that they overflow."""
    generator = torch.Generator().manual_seed(seed)
    popular = torch.linspace(1.0, -1.0, experts)
    logits = torch.randn(tokens, experts, generator=generator) + popular
    best, chosen = logits.topk(k, dim=-1)
    return Case(
        x=torch.randn(tokens, dim, generator=generator),
        gates=best.softmax(-1) if k > 1 else torch.rand(tokens, 1, generator=generator) / 2 + 0.5,
        chosen=chosen,
        weights=torch.randn(experts, dim, dim, generator=generator) / dim**0.5,
        capacity_factor=capacity_factor,
        where=f"{tokens} tokens of {dim}, {experts} experts, k={k}, capacity_factor={capacity_factor:g}, seed {seed}",
    )


def _lonely() -> Case:
    case = make_case(7, 2, 3, 4, 1, 4.0)
    return Case(**(vars(case) | {"chosen": torch.tensor([[1], [1]])}))


def _observe(case: Case, student: Callable[..., Any]) -> Observation:
    experts = [CountingExpert(weight) for weight in case.weights]

    def call(x: Tensor, gates: Tensor, chosen: Tensor) -> Any:
        return student(x, gates, chosen, experts, case.capacity_factor)

    seen = observe_plainly(call, {"x": case.x, "gates": case.gates, "chosen": case.chosen})
    if seen.error is not None:
        return seen
    work = [(expert.num_calls, expert.num_rows) for expert in experts]
    return Observation(outputs={**seen.outputs, "work": work}, changed_inputs=seen.changed_inputs)


def _judge_values(case: Case, seen: Observation) -> Outcome:
    expected = Expected(
        name="the result", value=case.result(), dtype=case.x.dtype, allowed=allowed_error(case.x.dtype, 1.0),
        mistakes=[Hypothesis(mistake.cause, partial(case.result, mistake)) for mistake in MISTAKES],
    )  # fmt: skip
    return judge_tensor(seen.outputs["result"], expected)


def _judge_work(case: Case, seen: Observation) -> Outcome:
    """Rows and calls of each expert against what its own tokens need."""
    own = torch.bincount(case.chosen.flatten(), minlength=len(case.weights)).tolist()
    for number, ((calls, rows), needed) in enumerate(zip(seen.outputs["work"], own, strict=True)):
        difference = f"expert {number} has {needed} tokens; it computed {rows} rows in {calls} calls"
        if rows > needed:
            cause = "an expert computes tokens that were not sent to it: give it x[rows] of its own tokens alone"
        elif calls > 1:
            cause = "an expert is called several times: gather all its tokens and call it once"
        else:
            continue
        return Outcome(name="", kind=Kind.WRONG_ROUTE, difference=difference, cause=cause)
    return Outcome(name="")
