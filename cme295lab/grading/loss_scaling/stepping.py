"""Part 3: one training step with 16-bit weights, fp32 masters and a scaled loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cme295lab.grading.exercise import Property
from cme295lab.grading.loss_scaling.training import Mistake, Run, StepFacts, step_with
from cme295lab.grading.observe import Observation, refuse_function
from cme295lab.grading.observe_plainly import observe_plainly
from cme295lab.grading.result import Kind, Outcome

RIGHT = Mistake()
MISTAKES = (
    Mistake(cause="the loss is not scaled: multiply it by the scale before backward()", scaled=False,
            unscale="never"),
    Mistake(cause="the loss is not scaled, and the gradients are divided all the same", scaled=False),
    Mistake(cause="gradients are never divided by the scale", unscale="never"),
    Mistake(cause="gradients are multiplied by the scale: divide by it", inverted=True),
    Mistake(
        cause="gradients are divided in fp16: what was too small is lost again. Make them fp32 first, then divide",
        half=True,
    ),
    Mistake(
        cause="gradients are clipped first and divided by the scale then: the norm must be that of the true gradients",
        unscale="after clipping",
    ),
    Mistake(
        cause="the learning rate is divided by the scale instead of the gradients: clipping and Adam's moments see "
        "gradients that are too large",
        unscale="learning rate",
    ),
    Mistake(cause="gradients are not clipped", clip="none"),
    Mistake(cause="each tensor is clipped by itself: the norm is that of all gradients together", clip="each"),
    Mistake(cause="small gradients are made larger: clipping divides by norm / max_norm only if that is above 1",
            clip="always"),
    Mistake(cause="the single values are clipped: it is the norm of all gradients that counts", clip="values"),
    Mistake(
        cause="the step is taken although a gradient is inf or NaN, and that is reported: check before the update",
        checked="later",
    ),
    Mistake(cause="what is inf or NaN becomes 0, and the step is taken: the other gradients are wrong, too. Skip it",
            checked="zeros"),
    Mistake(
        cause="the step is taken with zeros: Adam's moments and its count of steps move all the same. Skip it",
        checked="all zeros",
    ),
    Mistake(
        cause="masters are checked, after the step was taken: check the gradients, before the update", checked="masters"
    ),
    Mistake(cause="the step is taken although a gradient is inf or NaN: check them, and skip the update",
            checked="nothing"),
    Mistake(cause="NaN is not counted: isinf() misses it, isfinite() does not", checked="inf"),
    Mistake(cause="only the first tensor's gradient is checked", checked="first"),
    Mistake(cause="only the last tensor's gradient is checked", checked="last"),
    Mistake(cause="the loss is checked: it can be finite while a gradient overflows", checked="loss"),
    Mistake(cause="masters are rounded to 16 bits after the step: small updates are lost, which they are there to hold",
            rounded=True),
    Mistake(cause="masters are read from the 16-bit weights: they hold more, and lose it", copied_back=True),
    Mistake(cause="the 16-bit weights are not written: copy the masters into them, weight.copy_(master)", copied=False),
    Mistake(cause="after a step that is skipped gradients are not cleared: the inf stays in them", cleared="taken"),
    Mistake(cause="gradients are not cleared: backward() adds to those of the steps before", cleared="never"),
    Mistake(cause="the optimizer makes no step", stepped=False),
    Mistake(cause="the returned value is the other way round: True means that the step was skipped", flag="inverted"),
    Mistake(cause="a step that is skipped must return True", flag="false"),
)  # fmt: skip


def properties(*, seed: int = 0, scale: float = 1024.0) -> list[Property]:
    """What must hold for `mixed_step(loss_of, masters, weights, optimizer, scale, max_norm) -> skipped`.

    Args:
        seed: of weights and gradients.
        scale: of the loss, in most runs; a power of two up to 4096.
    """
    # The first optimizer of a process imports for seconds: not in the time that the student has.
    torch.optim.SGD([torch.zeros(1)], lr=0.0)
    draw = torch.Generator().manual_seed(seed)

    def normal(size: float) -> tuple[Tensor, ...]:
        return tuple(size * torch.randn(shape, generator=draw) for shape in ((3, 4), (5,)))

    def steps(count: int, size: float) -> tuple[tuple[Tensor, ...], ...]:
        return tuple(normal(size) for _ in range(count))

    masters = normal(1.0)
    broken = {}
    for kind, number in (("inf", 1e30), ("NaN", float("nan"))):
        for which in (0, 1):
            gradients = steps(1, 0.01)[0]
            gradients[which].view(-1)[1] = number
            broken[kind, which] = gradients
    plain = "without clipping, a step is that of the true gradients"
    skips = "a step with an infinite gradient is skipped"
    make = partial(Run, masters=masters, scale=scale)
    infinite = tuple(
        broken["inf", which] if which is not None else steps(1, 0.01)[0] for which in (None, 0, None, 1, None, 0, None)
    )
    return [
        _property(plain, make(gradients=steps(1, 0.1)), "one step of SGD"),
        _property(
            "the next step sees the new weights", make(gradients=steps(3, 0.1), pull=0.5), "three steps of SGD",
            needs=(plain,),
        ),
        _property(
            "gradients below 2^-24 are not lost",
            make(gradients=steps(3, 1e-8), scale=16384.0, adam=True, learning_rate=0.05),
            "three steps of AdamW, gradients around 1e-8", weight=2,
        ),
        _property(
            "clipping sees the true gradients", make(gradients=(*steps(1, 1.0), *steps(1, 0.05)), max_norm=0.5),
            "two steps of SGD, gradient norms around 4 and 0.2, max_norm=0.5", weight=2, needs=(plain,),
        ),
        _property(
            skips, make(gradients=infinite, infinite=(5,)), "seven steps of SGD, each second one with one inf",
            weight=2, needs=(plain,),
        ),
        _property(
            "so is a step with NaN",
            make(gradients=(broken["NaN", 1], broken["inf", 1], *steps(1, 0.01), broken["NaN", 0], *steps(1, 0.01)),
                 adam=True, learning_rate=0.01),
            "five steps of AdamW, the first and the fourth with one NaN, the second with inf", needs=(plain, skips),
        ),
        _property(
            "many small updates add up in the masters", make(gradients=(normal(1e-4),) * 8),
            "8 steps of SGD, each too small for fp16", weight=2, needs=(plain,),
        ),
    ]  # fmt: skip


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "mixed_step")


def _property(
    name: str, run: Run, words: str, *, weight: float = 1.0, needs: tuple[str, ...] = ()
) -> Property:
    where = f"{words}; {len(run.masters)} tensors of {str(run.dtype).removeprefix('torch.')}, scale {run.scale:g}"

    def observe(student: Callable[..., Any]) -> Observation:
        return observe_plainly(lambda: list(run.follow(student)), {})

    return Property(name=name, observe=observe, judge=partial(judge, run), where=where, weight=weight, needs=needs)


def judge(run: Run, seen: Observation) -> Outcome:
    """Judge the masters, the weights and what was returned, step by step."""
    got: list[StepFacts] = seen.outputs["result"]
    for number, facts in enumerate(got, start=1):
        if (outcome := _judge_shape(run, facts)) is not None:
            return outcome
        if not isinstance(_flag(facts.flag), bool):
            cause = f"return True if the step was skipped, False if not; step {number} returned {str(facts.flag)[:40]}"
            return Outcome(name="", kind=Kind.WRONG_SHAPE, cause=cause)
    for number, (mine, right) in enumerate(zip(got, run.follow(partial(step_with, RIGHT)), strict=True), start=1):
        if difference := _difference(run, mine, right):
            cause = next((mistake.cause for mistake in MISTAKES if _is_run_of(mistake, run, got)), "")
            return Outcome(name="", kind=Kind.WRONG_VALUE, difference=f"step {number}: {difference}", cause=cause)
    return Outcome(name="")


def _is_run_of(mistake: Mistake, run: Run, got: Sequence[StepFacts]) -> bool:
    """Whether a mistake explains a run, with what the loss was multiplied by."""
    return all(
        set(mine.multipliers) == set(other.multipliers) and not _difference(run, mine, other)
        for mine, other in zip(got, run.follow(partial(step_with, mistake)), strict=False)
    )


def _flag(flag: Any) -> Any:
    """What was returned as Python's bool, if it is one of torch's or numpy's."""
    flag = flag.item() if getattr(flag, "ndim", None) == 0 else flag
    return bool(flag) if isinstance(flag, int | float) and flag in (0, 1) else flag


def _judge_shape(run: Run, facts: StepFacts) -> Outcome | None:
    """Why this is no step at all; None if it is one."""
    if not facts.dtypes:
        cause = "loss_of was not called: it is the forward pass, loss_of(weights)"
        return Outcome(name="", kind=Kind.WRONG_ROUTE, cause=cause)
    if any(dtype != run.dtype for dtype in facts.dtypes):
        found = str(facts.dtypes[0]).removeprefix("torch.")
        cause = f"the forward pass ran in {found}: hand the weights to loss_of; masters are for the optimizer"
        return Outcome(name="", kind=Kind.WRONG_ROUTE, cause=cause)
    if any(master.dtype != torch.float32 for master in facts.masters):
        cause = "masters must stay fp32: they hold what 16 bits cannot"
        return Outcome(name="", kind=Kind.WRONG_SHAPE, cause=cause)
    if any(weight.dtype != run.dtype for weight in facts.weights):
        cause = "the 16-bit weights must stay in 16 bits: copy into them, weight.copy_(master)"
        return Outcome(name="", kind=Kind.WRONG_SHAPE, cause=cause)
    return None


def _difference(run: Run, mine: StepFacts, right: StepFacts) -> str:
    """The first difference after a step, in words; an empty string if there is none."""
    if _flag(mine.flag) != right.flag:
        return f"it returned {mine.flag}, expected {right.flag}"
    for name, found, wanted in (("masters", mine.masters, right.masters), ("weights", mine.weights, right.weights)):
        for index, (a, b, start) in enumerate(zip(found, wanted, run.masters, strict=True)):
            if not _agree(a, b, start, name):
                place = int(((a.double() - b.double()).abs().nan_to_num(nan=torch.inf)).argmax())
                return (
                    f"{name}[{index}] has {float(a.flatten()[place]):.8g}, expected {float(b.flatten()[place]):.8g}; "
                    f"the run began with {float(start.flatten()[place]):.8g}"
                )
    return ""


def _agree(got: Tensor, want: Tensor, start: Tensor, name: str) -> bool:
    """Whether tensors agree: masters to a thousandth of how far they have moved, 16-bit weights to one rounding."""
    a, b = got.double(), want.double()
    moved = float((b - start.double()).abs().nan_to_num(nan=0.0, posinf=0.0).max())
    allowed = 1e-3 * moved + 4e-7 * float(start.abs().max())
    if name == "weights":
        spacing = torch.finfo(got.dtype).eps * b.abs()
        return bool((((a - b).abs() <= allowed + spacing) | (a.isnan() & b.isnan()) | (a == b)).all())
    return bool((((a - b).abs() <= allowed) | (a.isnan() & b.isnan()) | (a == b)).all())
