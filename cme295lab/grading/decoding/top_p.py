"""Part 2: softmax over the smallest set of tokens whose probabilities reach p."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cme295lab.grading.decoding.truncation import ZERO_LOGITS, Case, Mistake, case_property, top_p_with, words
from cme295lab.grading.exercise import Property
from cme295lab.grading.observe import refuse_function
from cme295lab.grading.result import Outcome

_CROSSING = "the token that crosses p is dropped: without it the kept ones do not reach p"
MISTAKES = (
    Mistake(cause=_CROSSING, more=-1),
    Mistake(cause=_CROSSING, more=-1, at_least=1),
    Mistake(cause="one token too many is kept: stop at the first whose cumulative sum reaches p", more=1),
    Mistake(
        cause="the sort is not undone: the result is in the order of rank, and must be in that of the vocabulary",
        in_order="ranked",
    ),
    Mistake(
        cause="the mask is sorted once more instead of back: order[i] is the token at rank i, so scatter to it, "
        "do not gather from it",
        in_order="twice",
    ),
    Mistake(cause="the probabilities are cut and not renormalised: they must sum to 1 again", renormalise=False),
    Mistake(cause=ZERO_LOGITS, dropped_logit=0),
    Mistake(cause="the least likely tokens are kept: sort from large to small", smallest=True),
    Mistake(cause="the cumulative sum runs in the order of the vocabulary: sort first", presorted=True),
    Mistake(cause="each token's own probability is held against p: it is the cumulative sum that counts", alone=True),
    Mistake(cause="these are logarithms: return probabilities", log=True),
)


def properties(*, seed: int = 0, rows: int = 6, vocab: int = 12, top_p: float = 0.7) -> list[Property]:
    """What must hold for `top_p_probabilities(logits, top_p) -> probabilities`.

    Args:
        seed: seeds the random logits.
        rows: rows of the batch; later rows are surer.
        vocab: tokens.
        top_p: the probability that must be reached.
    """
    random = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))
    random = random * torch.linspace(0.5, 3, rows)[:, None]
    smallest = "the smallest set that reaches p is kept"
    return [
        case_property("the example of the page comes out", _case(torch.tensor([[0.0, 2.0, -1.0, 1.0]]), 0.7, None)),
        case_property(smallest, _case(random, top_p, seed), weight=2),
        case_property("a larger p keeps more", _case(random, (1 + top_p) / 2, seed), needs=(smallest,)),
        case_property("the most likely token is kept, however small p is", _case(random, 0.01, seed)),
        case_property("p = 1 keeps all", _case(random, 1.0, seed), needs=(smallest,)),
    ]


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "top_p_probabilities")


def _case(logits: Tensor, top_p: float, seed: int | None) -> Case:
    return Case(
        inputs={"logits": logits, "top_p": top_p},
        right=top_p_with,
        mistakes=MISTAKES,
        where=f"{words(logits, seed)}; top_p={top_p}",
    )
