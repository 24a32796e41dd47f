"""Part 1: the k best experts of each token, and gates that sum to 1.

What is compared is the table of gates, (tokens, experts), with zeros at experts that were not chosen: the order of a
token's choices is free.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cme295lab.grading.compare import Expected, Hypothesis, allowed_error, judge_tensor
from cme295lab.grading.exercise import Property
from cme295lab.grading.observe import Observation, refuse_function
from cme295lab.grading.observe_plainly import observe_plainly
from cme295lab.grading.result import Kind, Outcome

_NOT_RENORMALISED = (
    "the gates of a token do not sum to 1: softmax ran over all experts, and what is left was not renormalised"
)
MISTAKES = {
    _NOT_RENORMALISED: "all",
    "softmax was taken twice: of all logits, and then of the k largest probabilities": "twice",
    "the gates are the logits themselves: take their softmax": "logits",
    "all gates are 1 / k: weigh experts by what the router says": "even",
    "the experts of the smallest logits are chosen": "smallest",
    "softmax runs over the tokens: it runs over the experts, dim=-1": "tokens",
    "the gates do not belong to their experts: both must be in the same order": "order",
}


def gate_table(logits: Tensor, k: int, mistake: str = "") -> Tensor:
    """Gates of all experts, zero where a token does not go, in float64; `mistake` is a value of `MISTAKES`."""
    z = logits.double()
    best, experts = z.topk(k, dim=-1, largest=mistake != "smallest")
    probabilities = z.softmax(0 if mistake == "tokens" else -1).gather(-1, experts)
    gates = {
        "all": probabilities,
        "twice": probabilities.softmax(-1),
        "logits": best,
        "even": torch.full_like(best, 1 / k),
        "tokens": best.softmax(0),
        "order": best.softmax(-1).flip(-1),
    }.get(mistake, best.softmax(-1))
    return torch.zeros_like(z).scatter(-1, experts, gates)


def properties(*, seed: int = 0, tokens: int = 9, experts: int = 6, k: int = 3) -> list[Property]:
    """What must hold for `route(logits, k) -> (gates, experts)`.

    Args:
        seed: seeds the logits.
        tokens, experts: their shape.
        k: experts of a token, at least 2 and below `experts`.
    """
    random = 2 * torch.randn(tokens, experts, generator=torch.Generator().manual_seed(seed))
    made = f"logits of shape {tuple(random.shape)}, seed {seed}"
    page = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    right = "the k best experts get gates that sum to 1"
    return [
        _property("the example of the page comes out", page, 2, "the page's logits, k=2"),
        _property(right, random, k, f"{made}; k={k}", weight=2),
        _property("k = 1 sends each token to its best expert, whole", random, 1, f"{made}; k=1"),
        _property("k = all experts is a dense mixture", random, experts, f"{made}; k={experts}"),
        _property("logits around 1000 do not overflow", random + 1000, k, f"{made}, plus 1000; k={k}", needs=(right,)),
    ]


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "route")


def _property(
    name: str, logits: Tensor, k: int, where: str, *, weight: float = 1.0, needs: tuple[str, ...] = ()
) -> Property:
    def observe(student: Callable[..., Any]) -> Observation:
        return observe_plainly(student, {"logits": logits, "k": k})

    def judge(seen: Observation) -> Outcome:
        return judge_gates(logits, k, seen.outputs["result"])

    return Property(name=name, observe=observe, judge=judge, where=where, weight=weight, needs=needs)


def judge_gates(logits: Tensor, k: int, got: Any) -> Outcome:
    """Judge (gates, experts): their shapes, whether experts are distinct, then the table of gates."""
    problem = _shape_problem(logits, k, got)
    if problem:
        return Outcome(name="", kind=Kind.WRONG_SHAPE, cause=problem)
    gates, experts = got
    if any(len(set(row)) < k for row in experts.tolist()):
        return Outcome(name="", kind=Kind.WRONG_VALUE, cause="an expert is chosen twice by the same token")
    table = torch.zeros_like(logits).scatter(-1, experts.long(), gates.to(logits.dtype))
    mistakes = [Hypothesis(cause, partial(gate_table, logits, k, option)) for cause, option in MISTAKES.items()]
    expected = Expected(
        name="the gates", value=gate_table(logits, k), dtype=logits.dtype, mistakes=mistakes,
        # A softmax turns a rounding of the logits into as large a relative one of the gates.
        allowed=allowed_error(logits.dtype, max(1.0, float(logits.abs().max()) / 64)),
    )  # fmt: skip
    outcome = judge_tensor(table, expected)
    if outcome.kind is Kind.WRONG_VALUE and not outcome.cause:
        sums = gates.double().sum(-1)
        if not torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
            cause = f"the gates of a token must sum to 1, yours sum to {sums.min():.4g} to {sums.max():.4g}"
            return Outcome(name="", kind=outcome.kind, difference=outcome.difference, cause=cause)
    return outcome


def _shape_problem(logits: Tensor, k: int, got: Any) -> str:
    if not isinstance(got, tuple | list) or len(got) != 2 or not all(isinstance(part, Tensor) for part in got):
        return "return two tensors: (gates, experts)"
    gates, experts = got
    shape = (logits.shape[0], k)
    for name, part in (("gates", gates), ("experts", experts)):
        if tuple(part.shape) != shape:
            return f"{name} must have the shape (tokens, k) = {shape}, yours have {tuple(part.shape)}"
    if experts.dtype.is_floating_point or experts.dtype is torch.bool:
        swapped = " (gates and experts are swapped?)" if not gates.dtype.is_floating_point else ""
        return f"experts must be whole numbers, yours are {experts.dtype}{swapped}"
    if int(experts.min()) < 0 or int(experts.max()) >= logits.shape[1]:
        found = f"yours go from {experts.min()} to {experts.max()}"
        return f"experts must be numbers from 0 to {logits.shape[1] - 1}, {found}"
    return ""
