"""Part 1: reduce-scatter from messages between neighbours. Rank r ends with the sum of chunk r."""

from __future__ import annotations

from collections.abc import Iterator
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

_TWO = "two ranks: rank r ends with the sum of chunk r"
_THREE = "so it does on three ranks, one of which is late"
_FOUR = "four ranks: rank r ends with the sum of chunk r"


def properties(*, seed: int = 0, chunk: int = 5) -> list[Property]:
    """What must hold for `ring_reduce_scatter(tensor)`.

    Args:
        seed: seeds the tensors.
        chunk: elements of a chunk.
    """
    two, four = (Case(seed=seed, num_ranks=n, shape=(n * chunk,)) for n in (2, 4))
    three = Case(seed=seed, num_ranks=3, shape=(3 * chunk,), late=1)
    on_four, needs = _run(four), (_FOUR,)
    return [
        rank_property(_TWO, two, _run(two), on_each(judge_chunk, two)),
        rank_property(_THREE, three, _run(three), on_each(judge_chunk, three), weight=2, needs=(_TWO,)),
        rank_property(_FOUR, four, on_four, on_each(judge_chunk, four), weight=2, needs=(_TWO,)),
        rank_property(
            "each rank sends, and receives, one chunk in each of N - 1 steps",
            four,
            on_four,
            lambda ranks: judge_bytes(ranks, four, 3 * chunk * 4),
            weight=2,
            needs=needs,
        ),
        rank_property("every message goes to the next rank", four, on_four, judge_route, needs=needs),
    ]


def _run(case: Case) -> Once:
    return scene(scenario, case, forbid=only_messages)


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "ring_reduce_scatter")


def judge_chunk(case: Case, facts: RankFacts) -> Outcome:
    """Judge what one rank returned."""
    got, rank = facts.outputs["result"], facts.rank
    if isinstance(got, Tensor) and got.shape == case.shape and case.num_ranks > 1:
        cause = f"return chunk {rank} alone: {case.shape[0] // case.num_ranks} elements, not the whole tensor"
        return Outcome(name="", kind=Kind.WRONG_SHAPE, difference=f"a tensor of shape {tuple(got.shape)}", cause=cause)
    chunks = case.tensors().view(case.num_ranks, case.num_ranks, -1)
    expected = Expected(
        name=f"chunk {rank}",
        value=chunks.sum(0)[rank],
        dtype=torch.float32,
        allowed=case.allowed,
        mistakes=_mistakes(chunks, rank),
        explain=lambda error: UNEXPLAINED,
    )
    return judge_tensor(got, expected)


def _mistakes(chunks: Tensor, rank: int) -> Iterator[Hypothesis]:
    """What known mistakes give on one rank; `chunks` is (ranks, chunks, elements)."""
    num_ranks, total = len(chunks), chunks.sum(0)
    for other in range(num_ranks):
        if other != rank:
            cause = (
                f"this is the sum of chunk {other}, and rank {rank} must end with chunk {rank}: all indices are off "
                "by the same number. Which chunk does a rank send first?"
            )
            yield Hypothesis(cause, partial(total.__getitem__, other))
            cause = (
                f"this is rank {other}'s chunk alone: what arrives must be added to your own part before it is sent on"
            )
            yield Hypothesis(cause, partial(chunks.__getitem__, (other, rank)))
    cause = (
        "this is the rank's own chunk, as it was: either nothing was added (was every message waited for?), or the "
        "chunk that is complete on this rank has another number"
    )
    yield Hypothesis(cause, lambda: chunks[rank, rank])
    yield Hypothesis("this is the mean; this part asks for the sum", lambda: total[rank] / num_ranks)
    cause = "the rank's own part is in the sum twice"
    yield Hypothesis(cause, lambda: total[rank] + chunks[rank, rank])
    for num_added in range(2, num_ranks):
        for first in range(num_ranks):
            ranks = [(first + step) % num_ranks for step in range(num_added)]
            if rank in ranks:
                yield Hypothesis(_too_few(num_added, num_ranks), partial(_partial_sum, chunks, ranks, rank))


def _partial_sum(chunks: Tensor, ranks: list[int], chunk: int) -> Tensor:
    return chunks[ranks, chunk].sum(0)


def _too_few(num_added: int, num_ranks: int) -> str:
    return (
        f"the parts of {num_added} of the {num_ranks} ranks are in the sum: either a step is missing (there are "
        f"{num_ranks - 1}), or a chunk is sent on without what has been received for it (was every message waited for?)"
    )
