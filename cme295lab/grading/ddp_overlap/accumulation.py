"""Part 3: micro-batches without communication, and a rank that has no gradient for a parameter."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
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
from cme295lab.grading.observe import RankFacts
from cme295lab.grading.on_rank import Probe
from cme295lab.grading.result import Kind, Outcome

_MEAN = "after several micro-batches, every gradient is the mean over the ranks"
_UNUSED = "a rank that does not use a layer gets its gradient from the others"
_NOBODY_FILLS_IT = (
    "a rank that has not used a parameter has no gradient for it. Its bucket never fills there, it is never sent, and "
    "the others wait for ever. In finish, send what is left, with zeros where there is no gradient"
)


def properties(*, seed: int = 0, bucket_bytes: int = 1200, num_micro_batches: int = 3) -> list[Property]:
    """What must hold for the class `AccumulatedGradients(model, bucket_bytes)` with `no_sync()` and `finish()`.

    Args:
        seed: seeds the model and the batches.
        bucket_bytes: size of a bucket.
        num_micro_batches: micro-batches of a step.
    """
    sizes = {"seed": seed, "bucket_bytes": bucket_bytes}
    two = Case(**sizes, num_ranks=2, num_tokens=(6, 6), num_micro_batches=num_micro_batches)
    unused = Case(**sizes, num_ranks=3, num_tokens=(6, 6, 6), num_steps=2, without_branch=1)
    on_two, on_three, needs = _run(two), _run(unused), (_MEAN,)
    return [
        rank_property(_MEAN, two, on_two, on_each_or_why(judge_mean, two), weight=2),
        rank_property(
            "within no_sync, nothing is sent", two, on_two, on_each(judge_silence, two), weight=2, needs=needs
        ),
        rank_property(
            "every gradient is sent once in a step", two, on_two, on_each(judge_bytes, two, "step 0"), needs=needs
        ),
        rank_property(
            "in the last micro-batch, buckets are sent while backward runs",
            two,
            on_two,
            on_each(judge_last, two),
            needs=needs,
        ),
        rank_property(_UNUSED, unused, on_three, on_each_or_why(judge_mean, unused), weight=3, needs=needs),
        rank_property(
            "so it does in the next step",
            unused,
            on_three,
            on_each_or_why(judge_mean, unused, 1),
            needs=(_MEAN, _UNUSED),
        ),
    ]


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_class(student, "AccumulatedGradients", ("no_sync", "finish"))


def scenario(probe: Probe, student: Callable[..., Any], case: Case) -> Mapping[str, Any]:
    """Some steps of several micro-batches with the student's class."""
    model = case.model()
    averaged = student(model, case.bucket_bytes)
    gradients = []
    for step in range(case.num_steps):
        model.zero_grad(set_to_none=True)
        for micro_batch in range(case.num_micro_batches):
            is_last = micro_batch == case.num_micro_batches - 1
            quiet = contextlib.nullcontext() if is_last else averaged.no_sync()
            with probe.phase(_micro_batch(step, micro_batch)), quiet:
                case.loss(model, probe.rank, step, micro_batch).backward()  # type: ignore[no-untyped-call]
        with probe.phase(f"step {step}: finish"):
            averaged.finish()
        gradients.append(gradients_of(model))
    return {"gradients": gradients}


def _micro_batch(step: int, micro_batch: int) -> str:
    return f"step {step}: micro-batch {micro_batch}"


def _run(case: Case) -> Once:
    deadlock = "" if case.without_branch is None else _NOBODY_FILLS_IT
    return scene(scenario, case, deadlock=deadlock, forbid=what_else_it_calls)


def judge_mean(case: Case, facts: RankFacts, step: int = 0) -> Outcome:
    """Judge the gradients of one rank after a step."""
    want, own = case.mean(step), case.own_gradients(facts.rank, step)
    got, mistakes = facts.outputs["gradients"][step], _mistakes(case, want, own, step)
    return judge_gradients(got, want, mistakes, own)


def _mistakes(case: Case, want: Gradients, own: Gradients, step: int) -> Iterator[tuple[str, Gradients]]:
    """What known mistakes give on one rank."""
    num_ranks, last = case.num_ranks, case.num_micro_batches - 1
    mean_of = [1 / num_ranks] * num_ranks
    yield "the gradients are summed, not averaged: divide by the number of ranks", scaled(want, num_ranks)
    yield "these are still this rank's own gradients: nothing was sent, or nothing copied back", own
    if last:
        cause = "only the last micro-batch counts: what was accumulated before is lost"
        yield cause, case.weighted(mean_of, step, [last])
        cause = "divided by the number of micro-batches a second time: the loss is divided already"
        yield cause, scaled(want, 1 / (last + 1))
        cause = "only the first micro-batch counts: its gradients were sent before the others had been added"
        yield cause, case.weighted(mean_of, step, [0])
    if case.without_branch is not None:
        few = {name: g * num_ranks / (num_ranks - 1) if name.startswith("branch") else g for name, g in want.items()}
        cause = "the gradient of the layer is averaged over the ranks that use it: divide by the number of all ranks"
        yield cause, few


def judge_silence(case: Case, facts: RankFacts) -> Outcome:
    """Judge what one rank sends in all but the last micro-batch: nothing."""
    early = [
        call
        for micro_batch in range(case.num_micro_batches - 1)
        for call in facts.calls_in(_micro_batch(0, micro_batch))
    ]
    if not early:
        return Outcome(name="")
    at = f", at {early[0].line}" if early[0].line else ""
    difference = (
        f"{sum(call.payload_bytes for call in early):,} bytes are sent within no_sync, in {len(early)} messages{at}"
    )
    cause = (
        "the gradients of a micro-batch add up where they are; the mean of the sum is the sum of the means. Within "
        "no_sync the hook has nothing to do"
    )
    return Outcome(name="", kind=Kind.TOO_MUCH_COMMUNICATION, difference=difference, cause=cause)


def judge_last(case: Case, facts: RankFacts) -> Outcome:
    """Judge whether the last micro-batch still overlaps."""
    early = sum(call.payload_bytes for call in facts.calls_in(_micro_batch(0, case.num_micro_batches - 1)))
    total = sum(case.parameter_bytes.values())
    if early >= total - max(case.bucket_bytes, *case.parameter_bytes.values()):
        return Outcome(name="")
    difference = f"{early:,} of {total:,} bytes were under way when the last backward ended"
    cause = "in the last micro-batch, outside no_sync, the hooks must send as in part 2"
    return Outcome(name="", kind=Kind.NOT_OVERLAPPED, difference=difference, cause=cause)
