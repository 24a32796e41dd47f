"""Part 3: the load-balancing loss and the router's z loss, their values and what their gradients go through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cme295lab.grading.compare import Expected, Hypothesis, judge_tensor
from cme295lab.grading.exercise import Once, Property
from cme295lab.grading.observe import Observation, refuse_function
from cme295lab.grading.observe_plainly import observe_plainly
from cme295lab.grading.result import Kind, Outcome


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A known mistake; the defaults make none.

    Args:
        cause: the mistake, in the words of the exercise.
        factor: of the balance loss: "experts", or "one" where it is forgotten.
        share: f: of all "choices", of "first" choices, per "token" (it sums to k), the "counts" themselves, or the mean
            "probabilities".
        mean: P: "probabilities", "logits", or of "chosen" experts alone.
        z: "squares", "plain" (no square), "square of the mean", "sum" (no mean) or "log" of softmax.
    """

    cause: str = ""
    factor: str = "experts"
    share: str = "choices"
    mean: str = "probabilities"
    z: str = "squares"


BALANCE_MISTAKES = (
    Mistake(cause="the factor E is missing: with even use the loss is 1, for any number of experts", factor="one"),
    Mistake(cause="f counts first choices alone: all k choices of a token count", share="first"),
    Mistake(cause="f does not sum to 1: divide by all choices, tokens times k", share="token"),
    Mistake(cause="f is a count: divide it by the number of choices", share="counts"),
    Mistake(
        cause="both factors are the mean probability: f counts where tokens were sent, whatever the probability was",
        share="probabilities",
    ),
    Mistake(cause="P is the mean of logits: take the softmax first", mean="logits"),
    Mistake(cause="P counts only the probabilities of chosen experts: all count", mean="chosen"),
)
Z_MISTAKES = (
    Mistake(cause="the z loss lacks its square", z="plain"),
    Mistake(
        cause="the z loss squares the mean: square each token's logsumexp, then take the mean", z="square of the mean"
    ),
    Mistake(cause="the z loss sums over tokens: take the mean", z="sum"),
    Mistake(cause="the z loss is of probabilities: logsumexp of the logits", z="log"),
)
_NO_GRADIENT = "no gradient reaches the logits: P must be computed from them without detach() or no_grad()"
_THROUGH_F = "the gradient goes through f as well: f is counted from `chosen`, and P alone has a gradient"


def loss_with(mistake: Mistake, logits: Tensor, chosen: Tensor, balance: float, z: float) -> Tensor:
    """Both losses, weighted, in float64."""
    logits = logits.double()
    num_experts, probabilities = logits.shape[1], logits.softmax(-1)
    counted = torch.bincount(chosen.flatten(), minlength=num_experts).double()
    first = torch.bincount(chosen[:, 0], minlength=num_experts).double()
    share = {
        "choices": counted / chosen.numel(), "first": first / len(chosen), "token": counted / len(chosen),
        "counts": counted, "probabilities": probabilities.mean(0),
    }[mistake.share]  # fmt: skip
    sent = torch.zeros_like(logits).scatter(1, chosen, 1.0)
    mean = {"probabilities": probabilities, "logits": logits, "chosen": probabilities * sent}[mistake.mean].mean(0)
    sizes = (probabilities if mistake.z == "log" else logits).logsumexp(-1)
    squares = {
        "plain": sizes.mean(), "square of the mean": sizes.mean().square(), "sum": sizes.square().sum(),
    }.get(mistake.z, sizes.square().mean())  # fmt: skip
    factor = num_experts if mistake.factor == "experts" else 1
    return balance * factor * (share * mean).sum() + z * squares


def properties(*, seed: int = 0, tokens: int = 11, experts: int = 5, k: int = 2) -> list[Property]:
    """What must hold for `auxiliary_loss(logits, chosen, balance, z) -> loss`.

    Args:
        seed: seeds the logits.
        tokens, experts, k: sizes.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(tokens, experts, generator=generator) + torch.linspace(1, -1, experts)
    chosen = logits.topk(k, dim=-1).indices
    made = f"{tokens} tokens, {experts} experts, k={k}, seed {seed}"
    balance, z, both = ((logits, chosen, *weights) for weights in ((1.0, 0.0), (0.0, 1.0), (0.01, 0.001)))
    even = (torch.zeros(4, 4), torch.arange(4)[:, None], 1.0, 0.0)
    one = (torch.tensor([[60.0, 0, 0, 0]] * 6), torch.zeros(6, 1, dtype=torch.long), 1.0, 0.0)
    right = "the balance loss is right"
    observe = Once(partial(_observe, balance))
    gradient = partial(_judge_gradient, balance)
    return [
        Property(name=right, observe=observe, judge=partial(_judge_value, [balance], BALANCE_MISTAKES),
                 where=f"{made}; balance=1, z=0", weight=2),
        Property(name="its gradient goes through the probabilities, not through the counts", observe=observe,
                 judge=gradient, where=f"{made}; balance=1, z=0", weight=2, needs=(right,)),
        _property("even use gives 1, a single expert for all gives E", [even, one], "four experts", BALANCE_MISTAKES),
        _property("the z loss is right", [z], f"{made}; balance=0, z=1", Z_MISTAKES),
        _property("both are weighted and summed", [both], f"{made}; balance=0.01, z=0.001", ()),
    ]  # fmt: skip


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "auxiliary_loss")


_Case = tuple[Tensor, Tensor, float, float]


def _property(name: str, cases: list[_Case], where: str, mistakes: tuple[Mistake, ...]) -> Property:
    return Property(
        name=name, observe=partial(_observe, *cases), judge=partial(_judge_value, cases, mistakes), where=where
    )


def _observe(*cases_and_student: Any) -> Observation:
    """Losses of all cases, and the gradient of the first with respect to its logits."""
    *cases, student = cases_and_student
    losses: list[Any] = []
    gradients: list[Tensor | None] = []
    for logits, chosen, balance, z in cases:

        def call(logits: Tensor, chosen: Tensor, balance: float = balance, z: float = z) -> Any:
            loss = student(logits.requires_grad_(), chosen, balance, z)
            if isinstance(loss, Tensor) and loss.ndim == 0 and loss.requires_grad:
                (gradient,) = torch.autograd.grad(loss, logits, allow_unused=True)
                gradients.append(gradient)
            else:
                gradients.append(None)
            return loss.detach() if isinstance(loss, Tensor) else loss

        seen = observe_plainly(call, {"logits": logits, "chosen": chosen})
        if seen.error is not None or seen.changed_inputs:
            return seen
        losses.append(seen.outputs["result"])
    return Observation(outputs={"result": losses, "gradient": gradients[0]})


def _judge_value(cases: list[_Case], mistakes: tuple[Mistake, ...], seen: Observation) -> Outcome:
    for case, got in zip(cases, seen.outputs["result"], strict=True):
        want = loss_with(Mistake(), *case)
        hypotheses = [Hypothesis(mistake.cause, partial(loss_with, mistake, *case)) for mistake in mistakes]
        allowed = 1e-5 * max(1e-3, abs(want.item()))
        expected = Expected(name="the loss", value=want, dtype=case[0].dtype, allowed=allowed, mistakes=hypotheses)
        outcome = judge_tensor(got, expected)
        if not outcome.passed:
            return outcome
    return Outcome(name="")


def _judge_gradient(case: _Case, seen: Observation) -> Outcome:
    logits = case[0].double().requires_grad_()
    (want,) = torch.autograd.grad(loss_with(Mistake(), logits, *case[1:]), logits)
    got = seen.outputs["gradient"]
    if got is None or not got.any():
        return Outcome(name="", kind=Kind.WRONG_VALUE, cause=_NO_GRADIENT)
    (doubled,) = torch.autograd.grad(loss_with(Mistake(share="probabilities"), logits, *case[1:]), logits)
    # With straight-through counts, f has the gradient of P: half of P·P's, and the right one.
    through = [Hypothesis(_THROUGH_F, lambda: want + doubled / 2)]
    expected = Expected(
        name="the gradient", value=want, dtype=case[0].dtype, allowed=1e-5 * float(want.abs().max()), mistakes=through
    )
    return judge_tensor(got, expected)


def student_of(mistake: Mistake) -> Callable[..., Tensor]:
    """A student who makes the mistake: what the tests hand over."""
    return lambda logits, chosen, balance, z: loss_with(mistake, logits, chosen, balance, z).to(logits.dtype)
