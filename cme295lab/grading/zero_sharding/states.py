"""Part 2: an optimizer that keeps states for its shard alone (ZeRO, stage 1).

The model has a tied weight, and in one case a layer that one rank does not use. The truth is one process with the same
optimizer on all ranks' batches. Adam with a large eps is used, which sees whether gradients are summed or averaged.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from cme295lab.grading.compare import Expected, Hypothesis, diagnose, judge_tensor
from cme295lab.grading.ddp_overlap.training import Case, Gradients, refuse_class
from cme295lab.grading.distributed import (
    RankCase,
    collectives_called,
    judge_same_calls,
    on_each,
    rank_property,
    scene,
)
from cme295lab.grading.exercise import Once, Property
from cme295lab.grading.observe import Observation, RankFacts
from cme295lab.grading.on_rank import Probe, Scenario
from cme295lab.grading.result import Kind, Outcome
from cme295lab.memory.measurement.timeline import MemoryTimeline

OPTIONS: dict[str, Any] = {"lr": 0.02, "eps": 1e-3}
ALLOWED = 1e-3 * 0.02  # of the learning rate
_FLOAT_BYTES = 4
_ROOM_BYTES = 256  # step counters, a number or two
_COLLECTIVES = (
    "all_reduce", "reduce_scatter", "all_gather", "broadcast", "reduce", "gather", "scatter", "all_to_all", "barrier",
    "send", "recv",
)  # fmt: skip
_TWO = "two ranks: the weights are those of one process"
_THREE = "three ranks, which do not divide the parameters: so they are"
_SKIPS = (
    "a rank that has no gradient for a layer must take part all the same, with zeros in its place: the others wait for "
    "it, or its elements land on somebody else's"
)
_TIED = "the tied weight is in it twice: the embedding and the head share it. model.parameters() gives it once"
_SECOND = (
    "the first step is right and the second is not: what does the optimizer start the second one from? Its shard and "
    "its states must be those that the first step has left"
)


def properties(*, seed: int = 0, num_tokens: int = 6) -> list[Property]:
    """What must hold for the class `ShardedOptimizer(model, optimizer_class, **options)` with its method `step()`.

    Args:
        seed: seeds the model and the batches.
        num_tokens: tokens of each rank.
    """
    tokens = (num_tokens,) * 3
    two = Case(seed=seed, num_ranks=2, num_tokens=tokens[:2])
    three = Case(seed=seed, num_ranks=3, num_tokens=tokens, num_steps=2)
    unused = Case(seed=seed, num_ranks=2, num_tokens=tokens[:2], without_branch=1)
    on_three, needs = _run(three), (_THREE,)
    return [
        rank_property(_TWO, two, _run(two), _judging_weights(two)),
        rank_property(_THREE, three, on_three, _judging_weights(three), weight=2, needs=(_TWO,)),
        rank_property("the second step is right, too", three, on_three, _judging_weights(three, 1), needs=needs),
        rank_property(
            "a rank holds states for its shard alone", three, on_three, on_each(judge_memory, three), weight=2,
            needs=needs,
        ),
        rank_property(
            "a rank sends 2 (N - 1) / N times the parameters", three, on_three, on_each(judge_bytes, three), weight=2,
            needs=needs,
        ),
        rank_property("all ranks end with the same bits", three, on_three, judge_bits, needs=needs),
        rank_property(
            "a layer that one rank does not use is updated as well", unused, _run(unused), _judging_weights(unused),
            weight=2, needs=(_TWO,),
        ),
    ]  # fmt: skip


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_class(student, "ShardedOptimizer", ("step",))


def scenario(probe: Probe, student: Callable[..., Any], case: Case) -> Mapping[str, Any]:
    """Some steps with the student's optimizer, measured."""
    model = case.model()
    weights: list[Gradients] = []
    held: dict[str, int] = {}
    with MemoryTimeline(model=model) as timeline:
        optimizer = student(model, torch.optim.Adam, **OPTIONS)
        for step in range(case.num_steps):
            case.loss(model, probe.rank, step).backward()  # type: ignore[no-untyped-call]
            with probe.phase(f"step {step}"):
                optimizer.step()
            model.zero_grad(set_to_none=True)
            held = held or settled(timeline, held_limit_bytes(case))  # before anything is copied for the judge
            weights.append({name: p.detach().clone() for name, p in model.named_parameters()})
    return {"weights": weights, "held": held}


def settled(timeline: MemoryTimeline, limit_bytes: int, patience_s: float = 0.5) -> dict[str, int]:
    """What is alive, by class, once the threads of gloo have let go of the tensors of messages that have ended.

    Args:
        timeline: that measures.
        limit_bytes: wait no longer if there is no more than that.
        patience_s: how long to wait, in s.
    """
    until_s = time.monotonic() + patience_s
    while timeline.live_bytes > limit_bytes and time.monotonic() < until_s:
        time.sleep(0.005)
    return timeline.by_class()


def _run(case: Case) -> Once:
    return measured(scenario, case, "" if case.without_branch is None else _SKIPS)


def measured(run: Scenario, case: RankCase, cause: str) -> Once:
    """One run of a scenario.

    Args:
        run: the scenario.
        case: its input.
        cause: why ranks wait for each other, or do not call the same; if empty, what the places tell.
    """
    seen_in = scene(run, case, deadlock=cause, forbid=forbidden_calls)

    def observe(student: Any) -> Observation:
        seen = seen_in(student)
        if not cause or seen.error is None or seen.error.kind is not Kind.RANKS_DISAGREE:
            return seen
        return replace(seen, error=replace(seen.error, cause=cause))

    return Once(observe)


def forbidden_calls(facts: RankFacts) -> list[str]:
    """What a rank called that does the exercise's work."""
    return collectives_called(facts, _COLLECTIVES, "write it yourself, with torch.distributed")


def _judging_weights(case: Case, step: int = 0) -> Callable[[Sequence[RankFacts]], Outcome]:
    """Judge the weights on every rank; if they are wrong and the ranks did not call the same, that is why."""

    def judge(ranks: Sequence[RankFacts]) -> Outcome:
        outcome, same = on_each(judge_weights, case, step)(ranks), judge_same_calls(ranks)
        if outcome.passed or same.passed:
            return outcome
        return same if case.without_branch is None else replace(same, cause=_SKIPS)

    return judge


def judge_weights(case: Case, facts: RankFacts, step: int = 0) -> Outcome:
    """Judge all weights of one rank after a step."""
    got, want = facts.outputs["weights"][step], trained(case)[step]
    outcomes = {
        name: judge_tensor(got[name], Expected(name=name, value=want[name], dtype=torch.float32, allowed=ALLOWED))
        for name in want
    }
    failed = {name: outcome for name, outcome in outcomes.items() if not outcome.passed}
    if not failed:
        return Outcome(name="")
    first = next(iter(failed.values()))
    if first.kind is not Kind.WRONG_VALUE:
        return first
    cause = diagnose(flat(got), flat(want), _mistakes(case, facts.rank, step), ALLOWED)
    if not cause and case.without_branch is not None and all(name.startswith("branch") for name in failed):
        cause = _SKIPS
    if not cause and step:
        cause = _SECOND
    return Outcome(name="", kind=Kind.WRONG_VALUE, difference=first.difference, cause=cause)


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    """All tensors in a row, in float64."""
    return torch.cat([tensor.flatten().double() for tensor in tensors.values()])


def initial(case: Case) -> Gradients:
    """The weights before the first step, in float64."""
    return {name: p.detach().double() for name, p in case.model().named_parameters()}


@functools.lru_cache(maxsize=16)
def trained(case: Case, factor: float = 1.0) -> tuple[Gradients, ...]:
    """The weights after each step on one process with all batches.

    Args:
        case: the steps.
        factor: of the gradients.
    """
    model = case.model().double()
    optimizer = torch.optim.Adam(model.parameters(), **OPTIONS)
    after = []
    for step in range(case.num_steps):
        losses = [case.loss(model, rank, step) for rank in range(case.num_ranks)]
        (torch.stack(losses).mean() * factor).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        after.append({name: p.detach().clone() for name, p in model.named_parameters()})
    return tuple(after)


def updated(weights: Gradients, gradients: Gradients) -> Gradients:
    """The weights after a first step of the optimizer with these gradients."""
    parameters = {name: torch.nn.Parameter(value.clone()) for name, value in weights.items()}
    for name, parameter in parameters.items():
        parameter.grad = gradients[name].clone()
    torch.optim.Adam(parameters.values(), **OPTIONS).step()
    return {name: parameter.detach() for name, parameter in parameters.items()}


def _mistakes(case: Case, rank: int, step: int) -> Iterator[Hypothesis]:
    """What known mistakes give on one rank."""
    num_ranks = case.num_ranks
    cause = "the gradients are summed, not averaged: divide by the number of ranks"
    yield Hypothesis(cause, lambda: flat(trained(case, float(num_ranks))[step]))
    cause = "divided twice: the mean is divided by the number of ranks again"
    yield Hypothesis(cause, lambda: flat(trained(case, 1 / num_ranks)[step]))
    if step:
        cause = "the second step changes nothing: are gradients of the second backward used?"
        yield Hypothesis(cause, lambda: flat(trained(case)[step - 1]))
        return
    start, want = initial(case), trained(case)[0]
    own = case.own_gradients(rank)
    cause = "the weights are those from before the step: copy what was gathered into the model's parameters"
    yield Hypothesis(cause, lambda: flat(start))
    cause = "every rank has taken a step with its own gradients: nothing has reached it from the others"
    yield Hypothesis(cause, lambda: flat(updated(start, own)))
    ranks_own = [flat(updated(start, case.own_gradients(other))) for other in range(num_ranks)]
    cause = "each shard was updated with the gradients of its own rank alone: reduce-scatter them first"
    yield Hypothesis(cause, lambda: by_shard(ranks_own))
    cause = "only this rank's shard is new: the shards of the others must come back, with an all-gather"
    yield Hypothesis(cause, lambda: by_shard([flat(want if r == rank else start) for r in range(num_ranks)]))
    num_elements = len(flat(want))
    whole = num_elements // num_ranks * num_ranks
    cause = "the last elements are not updated: the number of ranks does not divide the parameters"
    yield Hypothesis(cause, lambda: torch.cat([flat(want)[:whole], flat(start)[whole:]]))
    if case.without_branch is not None:
        few = {
            name: g * num_ranks / (num_ranks - 1) if name.startswith("branch") else g for name, g in case.mean().items()
        }
        cause = "the gradient of the layer is averaged over the ranks that use it: divide by the number of all ranks"
        yield Hypothesis(cause, lambda: flat(updated(start, few)))
        still = {name: g * 0 if name.startswith("branch") else g for name, g in case.mean().items()}
        yield Hypothesis(_SKIPS, lambda: flat(updated(start, still)))


def by_shard(rows: Sequence[Tensor]) -> Tensor:
    """Of the r-th row the r-th shard."""
    num_ranks, num_elements = len(rows), len(rows[0])
    shards = [pad(row, (0, -num_elements % num_ranks)).view(num_ranks, -1)[r] for r, row in enumerate(rows)]
    return torch.cat(shards)[:num_elements]


def num_parameters(case: Case) -> int:
    """Parameters of the model; the tied one once."""
    return sum(case.parameter_bytes.values()) // _FLOAT_BYTES


def shard_bytes(case: Case) -> int:
    """Bytes of a shard, rounded up."""
    return -(-num_parameters(case) // case.num_ranks) * _FLOAT_BYTES


def held_limit_bytes(case: Case) -> int:
    """What may be alive between steps: weights, the shard (with its gradient), and two states of the shard."""
    return num_parameters(case) * _FLOAT_BYTES + 4 * shard_bytes(case) + _ROOM_BYTES


def judge_memory(case: Case, facts: RankFacts) -> Outcome:
    """Judge what is alive between steps."""
    held, shard = facts.outputs["held"], shard_bytes(case)
    whole = num_parameters(case) * _FLOAT_BYTES
    total = sum(held.values())
    if total <= held_limit_bytes(case):
        return Outcome(name="")
    parts = ", ".join(f"{name} {size:,}" for name, size in held.items() if size)
    difference = (
        f"{total:,} bytes are held between two steps ({parts}); the weights are {whole:,} and a shard is {shard:,}"
    )
    states = held.get("optimizer state", 0)
    tied = 2 * case.parameter_bytes["embedding.weight"] / case.num_ranks
    if 0 < states - 2 * shard - tied <= _ROOM_BYTES / 4:
        cause = _TIED
    elif states >= 2 * whole:
        cause = (
            "the optimizer keeps states for all parameters on every rank: hand it the shard alone, so that a rank "
            "updates its part only"
        )
    elif states > 2 * shard + _ROOM_BYTES:
        cause = "the optimizer keeps states for more than one shard: each rank updates one"
    else:
        cause = (
            "a copy of all weights or gradients stays alive between steps: keep only the shard, and make the rest anew"
        )
    return Outcome(name="", kind=Kind.NOT_SHARDED, difference=difference, cause=cause)


def judge_bytes(case: Case, facts: RankFacts) -> Outcome:
    """Judge what one rank sends in the first step."""
    calls = facts.calls_in("step 0")
    others, shard = case.num_ranks - 1, shard_bytes(case)
    sent, needed = sum(call.sent_bytes for call in calls), 2 * others * shard
    if sent <= needed + _ROOM_BYTES / 4:
        return Outcome(name="")
    difference = f"{sent:,.0f} bytes are sent in a step; 2 (N - 1) / N times the parameters are {needed:,}"
    tied = 2 * others * case.parameter_bytes["embedding.weight"] / case.num_ranks
    if abs(sent - needed - tied) < _ROOM_BYTES / 4:
        cause = _TIED
    elif any(call.collective == "all_reduce" and call.payload_bytes > _ROOM_BYTES for call in calls):
        cause = (
            "all_reduce brings every rank all gradients, and it needs those of its shard alone: reduce-scatter is half "
            "of it"
        )
    else:
        cause = (
            f"the parameters travel {sent / needed:.2g} times as often as needed: one reduce-scatter, one all-gather"
        )
    return Outcome(name="", kind=Kind.TOO_MUCH_COMMUNICATION, difference=difference, cause=cause)


def judge_bits(ranks: Sequence[RankFacts]) -> Outcome:
    """Judge whether all ranks hold exactly the same weights at the end."""
    first = flat(ranks[0].outputs["weights"][-1])
    for facts in ranks[1:]:
        error = float((first - flat(facts.outputs["weights"][-1])).abs().max())
        if error:
            difference = f"ranks 0 and {facts.rank} differ by up to {error:.1g}"
            cause = "every rank must take all weights from the all-gather, its own shard too"
            return Outcome(name="", kind=Kind.NOT_EXACT, difference=difference, cause=cause)
    return Outcome(name="")
