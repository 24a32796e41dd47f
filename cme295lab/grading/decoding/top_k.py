"""Part 1: softmax(z / T) over the k largest logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cme295lab.grading.compare import Expected, judge_tensor
from cme295lab.grading.decoding.truncation import (
    ZERO_LOGITS,
    Case,
    Mistake,
    case_property,
    top_k_with,
    words,
)
from cme295lab.grading.exercise import Property
from cme295lab.grading.observe import Observation, refuse_function
from cme295lab.grading.observe_plainly import observe_plainly
from cme295lab.grading.result import Kind, Outcome

MISTAKES = (
    Mistake(cause="the temperature multiplies the logits: it divides them, T < 1 sharpens", temperature_power=1),
    Mistake(cause="the temperature has no effect: divide the logits by it", temperature_power=0),
    Mistake(
        cause="softmax came first, and what is left was not renormalised: cut the logits (-inf), then take softmax",
        renormalise=False,
    ),
    Mistake(cause=ZERO_LOGITS, dropped_logit=0),
    Mistake(cause="one token too many is kept: exactly k", more=1),
    Mistake(cause="one token too few is kept: exactly k", more=-1),
    Mistake(cause="the smallest logits are kept: keep the largest", smallest=True),
    Mistake(cause="the k largest of the whole batch are kept: each row has its own k", together=True),
    Mistake(cause="softmax runs over the batch: it runs over the vocabulary, dim=-1", dim=0),
    Mistake(cause="these are logarithms: return probabilities", log=True),
)


def properties(*, seed: int = 0, rows: int = 6, vocab: int = 12, top_k: int = 4) -> list[Property]:
    """What must hold for `top_k_probabilities(logits, temperature, top_k) -> probabilities`.

    Args:
        seed: seeds the random logits.
        rows: rows of the batch.
        vocab: tokens, more than top_k + 1.
        top_k: tokens kept.
    """
    random = 2 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))
    all_kept = "with all tokens kept it is softmax(z / T)"
    exactly_k = "the k largest are kept, and sum to 1"
    return [
        case_property("the example of the page comes out", _case(torch.tensor([[2.0, 1.0, 0.0, -1.0]]), 0.5, 2, None)),
        case_property(all_kept, _case(random, 0.7, vocab, seed)),
        case_property(exactly_k, _case(random, 1.6, top_k, seed), weight=2),
        case_property("k = 1 leaves the most likely token alone", _case(random, 1.0, 1, seed), needs=(exactly_k,)),
        case_property("k beyond the vocabulary keeps all", _case(random, 2.0, vocab + 5, seed), needs=(all_kept,)),
        case_property(
            "logits around 1000 do not overflow", _case(random + 1000, 1.6, top_k, seed), needs=(exactly_k,)
        ),
        _ties("of tokens that tie, exactly k are kept", needs=(exactly_k,)),
    ]


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "top_k_probabilities")


def _case(logits: Tensor, temperature: float, top_k: int, seed: int | None) -> Case:
    return Case(
        inputs={"logits": logits, "temperature": temperature, "top_k": top_k},
        right=top_k_with,
        mistakes=MISTAKES,
        where=f"{words(logits, seed)}; temperature={temperature}, top_k={top_k}",
    )


def _ties(name: str, needs: tuple[str, ...]) -> Property:
    logits = torch.tensor([[1.0, 3.0, 1.0, 1.0, 0.0], [2.0, 2.0, 2.0, 2.0, 2.0]])
    inputs = {"temperature": 1.0, "top_k": 2}

    def observe(student: Callable[..., Any]) -> Observation:
        return observe_plainly(student, {"logits": logits, **inputs})

    return Property(
        name=name, observe=observe, judge=lambda seen: judge_ties(logits, seen.outputs["result"]), needs=needs,
        where="logits [[1, 3, 1, 1, 0], [2, 2, 2, 2, 2]]; temperature=1.0, top_k=2",
    )  # fmt: skip


def judge_ties(logits: Tensor, got: Any) -> Outcome:
    """Judge what two of the tied tokens were kept: any choice is right, and its probabilities are the same."""
    # Sorted, a right row is the same whichever of the tied tokens were taken.
    want = top_k_with(Mistake(), logits, 1.0, 2).sort(-1, descending=True).values
    ranked = got.sort(-1, descending=True).values if isinstance(got, Tensor) and got.ndim else got
    outcome = judge_tensor(ranked, Expected(name="the sorted result", value=want, dtype=logits.dtype, allowed=1e-5))
    if outcome.kind is Kind.WRONG_VALUE and bool(((got > 0).sum(-1) > 2).any()):
        cause = "all that tie with the k-th largest are kept: a threshold cannot tell them apart, topk's indices can"
        return Outcome(name="", kind=outcome.kind, difference=outcome.difference, cause=cause)
    return outcome
