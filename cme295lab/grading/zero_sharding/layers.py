"""Part 3: a linear layer whose weight is in shards, and whole only while it is needed (ZeRO, stage 3).

The layers stand in a row, with tanh between them. What each rank holds is measured when nothing runs, after the forward
pass, and at the peak. The truth is one process on all ranks' batches, and the plain layers' own memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from cme295lab.grading.compare import Expected, Hypothesis, allowed_error, judge_tensor
from cme295lab.grading.ddp_overlap.training import refuse_class
from cme295lab.grading.distributed import rank_property
from cme295lab.grading.exercise import Once, Property
from cme295lab.grading.observe import RankFacts
from cme295lab.grading.result import Kind, Outcome
from cme295lab.grading.zero_sharding.stack import Case, plain_memory, run_stack, scenario, truth
from cme295lab.grading.zero_sharding.states import measured

_ROOM_BYTES = 512
# Whole weights at the peak besides what must be there: a weight, its gradient, padded copies and lists of shards of it,
# and what the threads of gloo have not let go of yet.
_PEAK_WEIGHTS = 5
_SHARD, _FORWARD, _GRADIENT = (
    "each layer holds its shard of the weight, and no more",
    "the forward pass gives the outputs of the whole weights",
    "each shard gets its part of the mean gradient",
)
_STALE = (
    "the second step's outputs are those of the first step's weights: gather anew in every forward pass, from the "
    "shard as it is then. A weight that is kept goes stale"
)
_ORDER = "every rank must gather the same layers in the same order: no rank may leave a gather or a reduce-scatter out"


def properties(*, seed: int = 0, narrow: int = 16, wide: int = 24, num_layers: int = 10) -> list[Property]:
    """What must hold for the module `ShardedLinear(weight)` with its parameter `shard`.

    Args:
        seed: of weights and batches.
        narrow, wide: widths of the layers.
        num_layers: layers on three ranks.
    """
    three = Case(seed=seed, num_ranks=3, narrow=narrow, wide=wide, uses=tuple(range(num_layers)))
    four = Case(seed=seed, num_ranks=4, narrow=5, wide=narrow // 2 + 1, uses=(0, 1, 0, 3))
    on_three, on_four = _run(three), _run(four)
    forward, gradient = (_FORWARD,), (_FORWARD, _GRADIENT)
    tied = "four ranks, a weight that they do not divide and that two layers share"

    def on(case: Case, judge: Callable[..., Outcome], *more: Any) -> Callable[[Sequence[RankFacts]], Outcome]:
        return lambda ranks: judge(case, ranks, *more)

    return [
        rank_property(_SHARD, three, on_three, on(three, judge_shards)),
        rank_property(_FORWARD, three, on_three, on(three, judge_outputs, 0), needs=(_SHARD,)),
        rank_property(_GRADIENT, three, on_three, on(three, judge_gradients), weight=2, needs=forward),
        rank_property(
            "the next step uses the new weights", three, on_three, on(three, judge_outputs, 1), needs=gradient
        ),
        rank_property(
            "after the forward pass, no whole weight is left",
            three,
            on_three,
            on(three, judge_kept),
            weight=2,
            needs=forward,
        ),
        rank_property(
            "one layer at a time is whole",
            three,
            on_three,
            on(three, judge_peak),
            weight=2,
            needs=gradient,
        ),
        rank_property(
            "a rank sends 3 (N - 1) / N times the weights",
            three,
            on_three,
            on(three, judge_bytes),
            weight=2,
            needs=gradient,
        ),
        rank_property(tied, four, on_four, on(four, judge_all), weight=2, needs=gradient),
    ]


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_class(student, "ShardedLinear", ("forward",))


def _run(case: Case) -> Once:
    return measured(scenario, case, _ORDER)


def judge_shards(case: Case, ranks: Sequence[RankFacts]) -> Outcome:
    """Judge what the layers hold before anything runs."""
    for facts in ranks:
        for name, shard in facts.outputs["shards"].items():
            if not isinstance(shard, Tensor):
                cause = "a layer must have an attribute shard, an nn.Parameter"
                return Outcome(name="", kind=Kind.WRONG_SHAPE, difference=f"shard is {shard!r}", cause=cause)
            if shard.shape != (case.shard_elements,):
                difference = f"on rank {facts.rank}: the shard of weight {name} has the shape {tuple(shard.shape)}"
                whole = case.narrow * case.wide
                if shard.numel() >= whole:
                    cause = f"the parameter is the whole weight: keep {case.shard_elements} of {whole} elements"
                    return Outcome(name="", kind=Kind.NOT_SHARDED, difference=difference, cause=cause)
                cause = f"a shard is flat and has {case.shard_elements} elements, the last one padded with zeros"
                return Outcome(name="", kind=Kind.WRONG_SHAPE, difference=difference, cause=cause)
        held = facts.outputs["memory"]["at rest"]
        if held > case.shard_bytes + _ROOM_BYTES:
            difference = (
                f"rank {facts.rank} holds {held:,} bytes before the first step; its shards are {case.shard_bytes:,}"
            )
            cause = (
                "the whole weight is still alive: a shard that is a view keeps it, or an attribute does. Copy the piece"
            )
            return Outcome(name="", kind=Kind.NOT_SHARDED, difference=difference, cause=cause)
    return Outcome(name="")


def judge_outputs(case: Case, ranks: Sequence[RankFacts], step: int) -> Outcome:
    """Judge the outputs of a step on each rank."""
    found = truth(case)
    for facts in ranks:
        expected = Expected(
            name=f"the output of rank {facts.rank}",
            value=found.outputs[step][facts.rank],
            dtype=torch.float32,
            allowed=allowed_error(torch.float32, 1.0),
            mistakes=_wrong_outputs(case, facts.rank, step),
        )
        outcome = judge_tensor(facts.outputs["outputs"][step], expected)
        if not outcome.passed:
            return outcome
    return Outcome(name="")


def _wrong_outputs(case: Case, rank: int, step: int) -> Iterator[Hypothesis]:
    if step:
        yield Hypothesis(_STALE, lambda: truth(case).stale[rank])
        return

    def output(change: Callable[[Tensor], Tensor]) -> Tensor:
        weights = [change(case.weight(index).double()) for index in case.uses]
        layers = [functools.partial(linear, weight=weight) for weight in weights]
        return run_stack(layers, case.batch(rank, 0).double())

    def own_only(weight: Tensor) -> Tensor:
        rows = torch.zeros(case.num_ranks, case.shard_elements, dtype=weight.dtype)
        rows.view(-1)[: weight.numel()] = weight.flatten()
        kept = rows[rank].clone()
        rows.zero_()
        rows[rank] = kept
        return rows.view(-1)[: weight.numel()].view(weight.shape)

    def turned(weight: Tensor) -> Tensor:
        return weight.flatten().view(weight.shape[::-1]).mT

    yield Hypothesis("the weight has this rank's shard only: gather those of all ranks", lambda: output(own_only))
    yield Hypothesis("the gathered elements are put into the transposed shape", lambda: output(turned))


def judge_gradients(case: Case, ranks: Sequence[RankFacts]) -> Outcome:
    """Judge the gradients of all shards, put together from all ranks."""
    found = truth(case)
    for weight in sorted(set(case.uses)):
        parts = [facts.outputs["gradients"].get(str(weight)) for facts in ranks]
        for rank, part in enumerate(parts):
            if not isinstance(part, Tensor):
                cause = "the shard has no gradient: backward must return one for it, in the place of its argument"
                return Outcome(name="", kind=Kind.WRONG_VALUE, difference=f"on rank {rank}: None", cause=cause)
            if part.numel() != case.shard_elements:
                difference = (
                    f"on rank {rank}: a gradient of {part.numel()} elements, for a shard of {case.shard_elements}"
                )
                cause = "the gradient must be sharded like the weight: reduce-scatter it"
                return Outcome(name="", kind=Kind.NOT_SHARDED, difference=difference, cause=cause)
        want = found.gradient(case, weight)
        got = torch.cat([part.flatten() for part in parts])[: want.numel()].view(want.shape)
        expected = Expected(
            name=f"the gradient of weight {weight}",
            value=want,
            dtype=torch.float32,
            allowed=allowed_error(torch.float32, max(float(g.abs().max()) for g in found.by_use)),
            mistakes=_wrong_gradients(case, weight, want),
        )
        outcome = judge_tensor(got, expected)
        if not outcome.passed:
            return outcome
    return Outcome(name="")


def _wrong_gradients(case: Case, weight: int, want: Tensor) -> Iterator[Hypothesis]:
    """What known mistakes give for one weight."""
    found, num_ranks = truth(case), case.num_ranks
    places = [place for place, use in enumerate(case.uses) if use == weight]
    own = [torch.stack([gradients[place] for place in places]).sum(0) for gradients in found.own]
    cause = "the gradients are summed, not averaged: divide by the number of ranks"
    yield Hypothesis(cause, lambda: want * num_ranks)
    yield Hypothesis("divided twice: the mean is divided by the number of ranks again", lambda: want / num_ranks)

    def shards_of_own(factor: float) -> Tensor:
        rows = [torch.nn.functional.pad(g.flatten(), (0, -g.numel() % num_ranks)).view(num_ranks, -1) for g in own]
        flat = torch.cat([row[rank] for rank, row in enumerate(rows)])
        return factor * flat[: want.numel()].view(want.shape)

    cause = "each shard has the gradient of its own rank's batch alone: reduce-scatter adds up those of all ranks"
    yield Hypothesis(cause, lambda: shards_of_own(1.0))
    yield Hypothesis(cause, lambda: shards_of_own(1 / num_ranks))
    cause = "the gradient is counted twice: it is returned by backward, and added to .grad as well"
    yield Hypothesis(cause, lambda: 2 * want)
    if len(places) == 2:
        first, last = (found.by_use[place] for place in places)
        cause = "of a weight that two layers use, only one use has a gradient: both must be added up"
        yield Hypothesis(cause, lambda: first)
        yield Hypothesis(cause, lambda: last)
        cause = (
            "the gradient of the shared weight is counted twice: what was reduced for one use is reduced again with "
            "the other"
        )
        yield Hypothesis(cause, lambda: first + 2 * last)
        yield Hypothesis(cause, lambda: 2 * first + last)


def judge_kept(case: Case, ranks: Sequence[RankFacts]) -> Outcome:
    """Judge what is alive between forward and backward, besides shards and the activations that plain layers keep."""
    activations = plain_memory(case)
    for facts in ranks:
        kept = facts.outputs["memory"]["after forward"] - activations
        if kept > case.weight_bytes // 2:
            difference = (
                f"on rank {facts.rank}, {kept:,} bytes are alive after the forward pass besides shards and "
                f"activations; {case.num_weights} whole weights are {case.num_weights * case.weight_bytes:,}"
            )
            cause = (
                "the gathered weights stay alive: autograd keeps the inputs of a product, or an attribute keeps the "
                "weight. Compute inside an autograd.Function, save x and the shard, and gather again in backward"
            )
            return Outcome(name="", kind=Kind.NOT_SHARDED, difference=difference, cause=cause)
    return Outcome(name="")


def judge_peak(case: Case, ranks: Sequence[RankFacts]) -> Outcome:
    """Judge the peak of the first step."""
    limit = plain_memory(case) + case.shard_bytes + _PEAK_WEIGHTS * case.weight_bytes + _ROOM_BYTES
    for facts in ranks:
        peak = facts.outputs["memory"]["peak"]
        if peak > limit:
            difference = (
                f"rank {facts.rank} peaks {peak:,} bytes above what it holds at rest; a whole weight is "
                f"{case.weight_bytes:,}, and {limit:,} are enough"
            )
            cause = (
                "several whole weights, or whole gradients, are alive at the same time: gather a layer just before it "
                "computes, and reduce-scatter its gradient at once"
            )
            return Outcome(name="", kind=Kind.NOT_SHARDED, difference=difference, cause=cause)
    return Outcome(name="")


def judge_bytes(case: Case, ranks: Sequence[RankFacts]) -> Outcome:
    """Judge what a rank sends in both steps."""
    once = case.shard_bytes * (case.num_ranks - 1)
    needed = 2 * 3 * once
    for facts in ranks:
        sent = facts.sent_bytes
        if sent > needed + _ROOM_BYTES:
            difference = (
                f"rank {facts.rank} sends {sent:,.0f} bytes in two steps; 3 (N - 1) / N times the weights in each are "
                f"{needed:,}"
            )
            if any(call.collective == "all_reduce" for call in facts.calls):
                cause = (
                    "all_reduce brings every rank the whole gradient, and it needs its shard: reduce-scatter is half"
                )
            else:
                cause = (
                    f"the weights travel {sent / once / 2:.2g} times in a step: gather once in forward and once in "
                    "backward, and reduce-scatter once"
                )
            return Outcome(name="", kind=Kind.TOO_MUCH_COMMUNICATION, difference=difference, cause=cause)
    return Outcome(name="")


def judge_all(case: Case, ranks: Sequence[RankFacts]) -> Outcome:
    """Judge shards, outputs and gradients of a case."""
    outcomes = (
        lambda: judge_shards(case, ranks),
        lambda: judge_outputs(case, ranks, 0),
        lambda: judge_gradients(case, ranks),
        lambda: judge_outputs(case, ranks, 1),
    )
    for judge in outcomes:
        outcome = judge()
        if not outcome.passed:
            return outcome
    return Outcome(name="")
