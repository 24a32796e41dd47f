"""Part 1: average the gradients of ranks with unequal batches, so that every token counts the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cme295lab.grading.ddp_overlap.training import (
    Case,
    Gradients,
    gradients_of,
    judge_bytes,
    judge_gradients,
    scaled,
    what_else_it_calls,
)
from cme295lab.grading.distributed import on_each, rank_property, scene
from cme295lab.grading.exercise import Once, Property
from cme295lab.grading.observe import RankFacts, refuse_function
from cme295lab.grading.on_rank import Probe
from cme295lab.grading.result import Outcome

_EQUAL = "equal batches: every rank ends with the mean"
_UNEQUAL = "unequal batches: the gradient is that of one process on all tokens"


def properties(*, seed: int = 0, num_tokens: tuple[int, ...] = (3, 17, 8)) -> list[Property]:
    """What must hold for `average_gradients(model, num_tokens)`.

    Args:
        seed: seeds the model and the batches.
        num_tokens: tokens of each of three ranks.
    """
    equal = Case(seed=seed, num_ranks=2, num_tokens=(6, 6))
    unequal = Case(seed=seed, num_ranks=3, num_tokens=num_tokens)
    on_three = _run(unequal)
    return [
        rank_property(_EQUAL, equal, _run(equal), on_each(judge_average, equal)),
        rank_property(_UNEQUAL, unequal, on_three, on_each(judge_average, unequal), weight=3, needs=(_EQUAL,)),
        rank_property(
            "each gradient is sent once",
            unequal,
            on_three,
            on_each(judge_bytes, unequal),
            needs=(_UNEQUAL,),
        ),
    ]


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "average_gradients")


def scenario(probe: Probe, student: Callable[..., Any], case: Case) -> Mapping[str, Any]:
    """Backward on this rank's batch, then the student's function."""
    model = case.model()
    case.loss(model, probe.rank).backward()  # type: ignore[no-untyped-call]
    student(model, case.num_tokens[probe.rank])
    return {"gradients": gradients_of(model)}


def _run(case: Case) -> Once:
    return scene(scenario, case, forbid=what_else_it_calls)


def judge_average(case: Case, facts: RankFacts) -> Outcome:
    """Judge the gradients of one rank."""
    total = sum(case.num_tokens)
    want = case.weighted([tokens / total for tokens in case.num_tokens])
    own = case.own_gradients(facts.rank)
    return judge_gradients(facts.outputs["gradients"], want, _mistakes(case, want, own, facts.rank), own)


def _mistakes(case: Case, want: Gradients, own: Gradients, rank: int) -> Iterator[tuple[str, Gradients]]:
    """What known mistakes give on one rank."""
    num_ranks, tokens, total = case.num_ranks, case.num_tokens, sum(case.num_tokens)
    plain_sum = case.weighted([1.0] * num_ranks)
    cause = "the gradients are summed, not averaged: divide by the number of tokens of all ranks together"
    yield cause, plain_sum
    cause = "the gradient is this rank's own: nothing has reached it"
    yield cause, own
    if len(set(tokens)) > 1:
        cause = (
            "this is the mean of the ranks' means: a token on a rank with few of them counts more than one on a rank "
            "with many. Weight each rank by its tokens"
        )
        yield cause, scaled(plain_sum, 1 / num_ranks)
    yield "the sum is weighted by tokens, and not divided by the number of all tokens", scaled(want, total)
    yield "divided by the number of all tokens without being weighted by the rank's own", scaled(plain_sum, 1 / total)
    yield "weighted right, and then divided by the number of ranks as well", scaled(want, 1 / num_ranks)
    cause = "divided by this rank's own number of tokens: divide by that of all ranks together"
    yield cause, scaled(want, total / tokens[rank])
