"""Part 2: the whole all-reduce. Every rank ends with the mean of all ranks' tensors, of any shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cme295lab.grading.compare import Expected, Hypothesis, judge_tensor
from cme295lab.grading.distributed import on_each, rank_property, scene
from cme295lab.grading.exercise import Once, Property
from cme295lab.grading.observe import RankFacts, refuse_function
from cme295lab.grading.result import Kind, Outcome
from cme295lab.grading.ring_all_reduce.ring import (
    UNEXPLAINED,
    Case,
    judge_bytes,
    judge_route,
    only_messages,
    scenario,
)

_TWO = "two ranks: both end with the mean"
_FOUR = "four ranks, one of which is late: all end with the mean"
_RAGGED = "right for lengths that the ranks divide, wrong for others: where do the last elements go?"


def properties(*, seed: int = 0, columns: int = 6, ragged: int = 10) -> list[Property]:
    """What must hold for `ring_mean(tensor)`.

    Args:
        seed: seeds the tensors.
        columns: the tensors of four ranks have the shape (4, columns).
        ragged: elements of a tensor that three ranks do not divide.
    """
    two, four = Case(seed=seed, num_ranks=2, shape=(8,)), Case(seed=seed, num_ranks=4, shape=(4, columns), late=1)
    uneven, few = (Case(seed=seed, num_ranks=3, shape=(length,)) for length in (ragged, 2))
    alone = Case(seed=seed, num_ranks=1, shape=(5,))
    on_four, needs = _run(four), (_FOUR,)
    return [
        rank_property(_TWO, two, _run(two), on_each(judge_mean, two)),
        rank_property(_FOUR, four, on_four, on_each(judge_mean, four), weight=2, needs=(_TWO,)),
        rank_property("all ranks end with the same bits", four, on_four, judge_bits, needs=needs),
        rank_property(
            "each rank sends, and receives, 2 (N - 1) / N times the tensor",
            four,
            on_four,
            lambda ranks: judge_bytes(ranks, four, 2 * 3 * columns * 4),
            weight=2,
            needs=needs,
        ),
        rank_property("every message goes to the next rank", four, on_four, judge_route, needs=needs),
        rank_property(
            "a length that the ranks do not divide works",
            uneven,
            _run(uneven),
            on_each(judge_mean, uneven, _RAGGED),
            needs=needs,
        ),
        rank_property("fewer elements than ranks work", few, _run(few), on_each(judge_mean, few, _RAGGED), needs=needs),
        rank_property("one rank alone keeps its tensor", alone, _run(alone), on_each(judge_mean, alone), needs=needs),
    ]


def _run(case: Case) -> Once:
    return scene(scenario, case, forbid=only_messages)


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "ring_mean")


def judge_mean(case: Case, facts: RankFacts, otherwise: str = UNEXPLAINED) -> Outcome:
    """Judge what one rank returned.

    Args:
        case: the input.
        facts: of the rank.
        otherwise: the likely cause where no known mistake matches.
    """
    tensors = case.tensors()
    expected = Expected(
        name="the mean",
        value=tensors.mean(0),
        dtype=torch.float32,
        allowed=case.allowed,
        mistakes=_mistakes(tensors, facts.rank),
        explain=lambda error: otherwise,
    )
    return judge_tensor(facts.outputs["result"], expected)


def judge_bits(ranks: Sequence[RankFacts]) -> Outcome:
    """Judge whether all ranks hold exactly the same numbers."""
    first = ranks[0].outputs["result"]
    for facts in ranks[1:]:
        got = facts.outputs["result"]
        if not torch.equal(first, got):
            error = float((first.double() - got.double()).abs().max())
            difference = f"ranks 0 and {facts.rank} differ by up to {error:.1g}"
            cause = (
                "each rank has added in an order of its own: add up every chunk on one rank, and let the others copy "
                "the result. Models that differ by one rounding drift apart"
            )
            return Outcome(name="", kind=Kind.NOT_EXACT, difference=difference, cause=cause)
    return Outcome(name="")


def _mistakes(tensors: Tensor, rank: int) -> Iterator[Hypothesis]:
    """What known mistakes give on one rank; `tensors` is (ranks, *shape)."""
    num_ranks, shape = len(tensors), tensors.shape[1:]
    if num_ranks == 1:
        return
    mean, own = tensors.mean(0).flatten(), tensors[rank].flatten()
    yield from (replace(found, output=partial(_shaped, found.output, shape)) for found in _on_all(mean, own, num_ranks))
    for num_added in range(2, num_ranks):
        for first in range(num_ranks):
            ranks = [(first + step) % num_ranks for step in range(num_added)]
            cause = (
                f"the parts of {num_added} of the {num_ranks} ranks are in it: a step is missing, or one too early "
                "(was every message waited for?)"
            )
            yield Hypothesis(cause, partial(_partial_mean, tensors, ranks, num_ranks))
    if mean.numel() % num_ranks:
        whole = mean.numel() // num_ranks * num_ranks
        cause = "the last elements are left out: the number of ranks does not divide the length"
        for tail in (own[whole:], own[whole:] * 0, own[whole:] / num_ranks):
            yield Hypothesis(cause, partial(_shaped, partial(torch.cat, [mean[:whole], tail]), shape))
        return
    yield from (
        replace(found, output=partial(_shaped, found.output, shape))
        for found in _on_chunks(mean.view(num_ranks, -1), own.view(num_ranks, -1), rank)
    )


def _on_all(mean: Tensor, own: Tensor, num_ranks: int) -> Iterator[Hypothesis]:
    """Mistakes that touch all elements alike."""
    cause = "the tensors are summed, not averaged: divide by the number of ranks"
    yield Hypothesis(cause, lambda: mean * num_ranks)
    yield Hypothesis("divided twice: the mean is divided by the number of ranks again", lambda: mean / num_ranks)
    yield Hypothesis("the rank's own tensor comes back: nothing has reached it", lambda: own)
    yield Hypothesis("this is the rank's own tensor, divided: nothing has been added to it", lambda: own / num_ranks)


def _on_chunks(mean: Tensor, own: Tensor, rank: int) -> Iterator[Hypothesis]:
    """Mistakes that touch whole chunks; both are (chunks, elements)."""
    num_ranks = len(mean)
    for index in dict.fromkeys((rank, (rank + 1) % num_ranks)):
        is_done = (torch.arange(num_ranks) == index)[:, None]
        cause = f"only chunk {index} is the mean: the second half, which passes the finished chunks on, is missing"
        for rest in (own, own / num_ranks, own * 0):
            yield Hypothesis(cause, partial(_where, is_done, mean, rest))
        cause = "only one chunk is divided by the number of ranks, and the others are sums"
        yield Hypothesis(cause, partial(_where, is_done, mean, mean * num_ranks))
    for shift in range(1, num_ranks):
        cause = f"all chunks are right, and stand {shift} too far: which chunk does a rank hold after the first half?"
        yield Hypothesis(cause, partial(mean.roll, shift, 0))
    cause = "the chunks stand in another order than in the tensor"
    yield Hypothesis(cause, lambda: mean.flip(0))


def _where(condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(condition, yes, no)


def _shaped(output: Callable[[], Tensor], shape: torch.Size) -> Tensor:
    return output().reshape(shape)


def _partial_mean(tensors: Tensor, ranks: list[int], num_ranks: int) -> Tensor:
    return tensors[ranks].sum(0) / num_ranks
