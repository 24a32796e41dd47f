"""Part 2: buckets whose all-reduce starts while backward still runs.

One rank starts backward only when rank 0 has ended it. If rank 0's hooks wait for their messages, it never gets that
far (after five seconds the late rank starts all the same); and if `finish` does not wait, it reads gradients that
cannot have arrived. So both mistakes show in every run, however fast the machine is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from cme295lab.grading.ddp_overlap.training import (
    Case,
    Gradients,
    gradients_of,
    judge_bytes,
    judge_gradients,
    refuse_class,
    scaled,
    what_else_it_calls,
)
from cme295lab.grading.distributed import on_each, on_each_or_why, rank_property, scene
from cme295lab.grading.exercise import Once, Property
from cme295lab.grading.observe import Communication, RankFacts
from cme295lab.grading.on_rank import Probe
from cme295lab.grading.result import Kind, Outcome

_MEAN = "after finish, every gradient is the mean over the ranks"
_REDUCING = ("all_reduce", "reduce_scatter")  # a reduce-scatter's other half, the all-gather, is no further bucket
_LATE_S = 0.2
_SECOND_STEP = (
    "the first step is right and the second is not: at the end of finish, empty what you have collected and reset the "
    "counters"
)


def properties(
    *, seed: int = 0, bucket_bytes: int = 1200, larger_bucket_bytes: int = 3000, num_tokens: int = 6
) -> list[Property]:
    """What must hold for the class `OverlappedGradients(model, bucket_bytes)` with its method `finish()`.

    Args:
        seed: seeds the model and the batches.
        bucket_bytes: size of a bucket, for two ranks.
        larger_bucket_bytes: and for three; chosen so that the last bucket is not full.
        num_tokens: tokens of each rank.
    """
    tokens = (num_tokens,) * 3
    two = Case(seed=seed, num_ranks=2, num_tokens=tokens[:2], num_steps=2, bucket_bytes=bucket_bytes, late=1)
    three = Case(seed=seed, num_ranks=3, num_tokens=tokens, bucket_bytes=larger_bucket_bytes)
    on_two, needs = _run(two), (_MEAN,)
    return [
        rank_property(_MEAN, two, on_two, on_each_or_why(judge_mean, two), weight=2),
        rank_property("the next step is right, too", two, on_two, on_each_or_why(judge_mean, two, 1), needs=needs),
        rank_property("every gradient is sent once", two, on_two, on_each(judge_bytes, two, "step 0"), needs=needs),
        rank_property(
            "gradients travel in buckets of bucket_bytes",
            two,
            on_two,
            on_each(judge_buckets, two),
            weight=2,
            needs=needs,
        ),
        rank_property(
            "buckets are sent while backward runs", two, on_two, on_each(judge_start, two), weight=2, needs=needs
        ),
        rank_property("backward does not wait for messages", two, on_two, judge_blocking, weight=2, needs=needs),
        rank_property(
            "three ranks and larger buckets work, the last of which is not full",
            three,
            _run(three),
            on_each_or_why(judge_mean, three),
            weight=2,
            needs=needs,
        ),
    ]


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_class(student, "OverlappedGradients", ("finish",))


def scenario(probe: Probe, student: Callable[..., Any], case: Case) -> Mapping[str, Any]:
    """Some steps with the student's class."""
    model = case.model()
    averaged = student(model, case.bucket_bytes)
    gradients, came = [], True
    for step in range(case.num_steps):
        model.zero_grad(set_to_none=True)
        loss = case.loss(model, probe.rank, step)
        if case.late == probe.rank and step == 0:
            came = probe.wait_for("backward has ended", rank=0)
            time.sleep(_LATE_S)
        with probe.phase(_backward(step)):
            loss.backward()  # type: ignore[no-untyped-call]
        if step == 0:
            probe.signal("backward has ended")
        with probe.phase(f"step {step}: finish"):
            averaged.finish()
        gradients.append(gradients_of(model))
    return {"gradients": gradients, "backward ended by itself": came}


def _backward(step: int) -> str:
    return f"step {step}: backward"


def _run(case: Case) -> Once:
    return scene(scenario, case, forbid=what_else_it_calls)


def judge_mean(case: Case, facts: RankFacts, step: int = 0) -> Outcome:
    """Judge the gradients of one rank after a step."""
    want, own = case.mean(step), case.own_gradients(facts.rank, step)
    got, mistakes = facts.outputs["gradients"][step], _mistakes(case, want, own, step)
    return judge_gradients(got, want, mistakes, own, _SECOND_STEP if step else "")


def _mistakes(case: Case, want: Gradients, own: Gradients, step: int) -> Iterator[tuple[str, Gradients]]:
    """What known mistakes give on one rank."""
    num_ranks = case.num_ranks
    yield "the gradients are summed, not averaged: divide by the number of ranks", scaled(want, num_ranks)
    yield "divided twice: the mean is divided by the number of ranks again", scaled(want, 1 / num_ranks)
    cause = (
        "these are still this rank's own gradients: either they were read before the messages had arrived (wait for "
        "each of them in finish), or the result was never copied back"
    )
    yield cause, own
    yield cause, scaled(own, 1 / num_ranks)
    if step:
        yield _SECOND_STEP, case.mean(step - 1)


def judge_buckets(case: Case, facts: RankFacts) -> Outcome:
    """Judge the number and the size of the messages of a step."""
    buckets = [call.payload_bytes for call in _reducing(facts) if call.phase.startswith("step 0")]
    largest, enough = max(case.parameter_bytes.values()), num_buckets(case)
    difference = f"{len(buckets)} messages of {', '.join(f'{size:,}' for size in buckets)} bytes"
    if len(buckets) > enough + 1:
        cause = (
            f"{enough} buckets hold all gradients: each message costs a latency, so fill a bucket before you send it"
        )
        if len(buckets) >= len(case.parameter_bytes):
            cause = f"there is a message per parameter. {cause}"
        return Outcome(name="", kind=Kind.TOO_MUCH_COMMUNICATION, difference=difference, cause=cause)
    if max(buckets) > case.bucket_bytes + largest:
        cause = "a bucket holds (nearly) everything: it is full only when backward is over, and nothing overlaps"
        return Outcome(name="", kind=Kind.NOT_OVERLAPPED, difference=difference, cause=cause)
    return Outcome(name="")


def num_buckets(case: Case) -> int:
    """How many buckets hold all gradients, filled from the last parameter to the first."""
    count, filled = 1, 0
    for size in reversed(case.parameter_bytes.values()):
        if filled and filled + size > case.bucket_bytes:
            count, filled = count + 1, 0
        filled += size
    return count


def judge_start(case: Case, facts: RankFacts) -> Outcome:
    """Judge how much is under way when backward ends; one bucket may be left for `finish`."""
    calls = [call for call in _reducing(facts) if call.phase.startswith("step 0")]
    early = sum(call.payload_bytes for call in calls if call.phase == _backward(0))
    total = sum(case.parameter_bytes.values())
    if early >= total - max(case.bucket_bytes, *case.parameter_bytes.values()):
        return Outcome(name="")
    difference = f"{early:,} of {total:,} bytes were under way when backward ended"
    cause = (
        "all communication comes after backward: start it in the hook, as soon as a bucket is full"
        if early == 0
        else "most of the communication comes after backward: send each bucket as soon as its last gradient is there"
    )
    return Outcome(name="", kind=Kind.NOT_OVERLAPPED, difference=difference, cause=cause)


def _reducing(facts: RankFacts) -> list[Communication]:
    return [call for call in facts.calls if call.collective in _REDUCING]


def judge_blocking(ranks: Sequence[RankFacts]) -> Outcome:
    """Judge whether rank 0 ended backward while the other rank had not sent anything yet."""
    if all(facts.outputs["backward ended by itself"] for facts in ranks):
        return Outcome(name="")
    difference = "rank 0 did not end backward before rank 1 had begun it"
    cause = (
        "a hook waits for its message, so backward stands still meanwhile: start it with async_op=True in the hook, "
        "and wait for it in finish"
    )
    return Outcome(name="", kind=Kind.NOT_OVERLAPPED, difference=difference, cause=cause)
