"""Part 2: the dynamic scale, step by step, against torch.amp.GradScaler itself.

Only the scale is judged: what is counted between the steps is the student's own, as long as it comes back.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from cme295lab.grading.exercise import Property
from cme295lab.grading.observe import Observation, refuse_function
from cme295lab.grading.observe_plainly import observe_plainly
from cme295lab.grading.result import Kind, Outcome


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A known mistake; the defaults make none.

    Args:
        cause: the mistake, in the words of the exercise.
        backoff: what the scale is multiplied by where something is not finite.
        growth: what it is multiplied by after enough clean steps.
        early: steps by which it grows too early; negative: too late.
        reset_on_inf, reset_on_growth: whether the counter starts again.
        counts_all: whether steps that are skipped count as clean.
        floor: the smallest scale.
        every_step: whether it grows at every clean step.
    """

    cause: str = ""
    backoff: float = 0.5
    growth: float = 2.0
    early: int = 0
    reset_on_inf: bool = True
    reset_on_growth: bool = True
    counts_all: bool = False
    floor: float = 0.0
    every_step: bool = False


MISTAKES = (
    Mistake(cause="the scale is not halved where a gradient is inf or NaN", backoff=1.0),
    Mistake(cause="the scale is doubled where a gradient is inf: that makes it worse, halve it", backoff=2.0),
    Mistake(cause="the scale is quartered where a gradient is inf: halve it", backoff=0.25),
    Mistake(cause="the scale falls to 1 where a gradient is inf: halve it", backoff=0.0, floor=1.0),
    Mistake(cause="the scale never grows: after growth_interval clean steps in a row it doubles", growth=1.0),
    Mistake(cause="the scale is halved after clean steps: it doubles", growth=0.5),
    Mistake(cause="the scale grows at every clean step: only after growth_interval of them in a row", every_step=True),
    Mistake(cause="the counter is not reset where a gradient is inf: clean steps must be in a row", reset_on_inf=False),
    Mistake(
        cause="the counter is not reset after growth: from the first time on, the scale doubles at every step",
        reset_on_growth=False,
    ),
    Mistake(cause="skipped steps count as clean ones: after inf the counter is 0", counts_all=True, reset_on_inf=False),
    Mistake(cause="the step with inf counts as the first clean one: after it the counter is 0, not 1", counts_all=True),
    Mistake(cause="the scale grows one step too late: with the growth_interval-th clean step of a row", early=-1),
    Mistake(cause="the scale grows one step too early: with the growth_interval-th clean step of a row", early=1),
    Mistake(cause="the scale stops at 1: gradients that overflow by themselves need a smaller one", floor=1.0),
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A sequence of training steps.

    Args:
        start: the first scale.
        interval: clean steps in a row after which it grows.
        overflows: whether a gradient is not finite, in each step.
        name: of the sequence, in words.
    """

    start: float
    interval: int
    overflows: tuple[bool, ...]
    name: str

    @property
    def where(self) -> str:
        """The input in words."""
        return f"{self.name}: scale {self.start:g}, growth_interval={self.interval}"

    def scales(self) -> list[float]:
        """The scale after each step, by torch."""
        return list(_by_torch(self))

    def mistaken(self, mistake: Mistake) -> list[float]:
        """The scale after each step, with a mistake."""
        scale, clean, found = self.start, 0, []
        for overflow in self.overflows:
            if overflow:
                scale *= mistake.backoff
                clean = 0 if mistake.reset_on_inf else clean
            if not overflow or mistake.counts_all:
                clean += 1
            if not overflow and (clean >= self.interval - mistake.early or mistake.every_step):
                scale *= mistake.growth
                clean = 0 if mistake.reset_on_growth else clean
            scale = max(scale, mistake.floor)
            found.append(scale)
        return found


@functools.cache
def _by_torch(case: Case) -> tuple[float, ...]:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=case.start, growth_interval=case.interval)
    found = []
    for overflow in case.overflows:
        scaler.scale(weight.sum())
        weight.grad = torch.full((1,), torch.inf if overflow else 1.0)
        scaler.step(optimizer)
        scaler.update()
        found.append(float(scaler.get_scale()))
    return tuple(found)


def properties(*, seed: int = 0, interval: int = 5) -> list[Property]:
    """What must hold for `update(scale, clean_steps, found_inf, growth_interval) -> (scale, clean_steps)`.

    Args:
        seed: of the random sequence.
        interval: clean steps in a row after which the scale grows; at least 3.
    """
    draw = random.Random(seed)
    clean, inf = (False,) * interval, (True,)
    case = partial(Case, start=1024.0, interval=interval)
    halves, grows = "a step with inf halves the scale at once", "enough clean steps in a row double the scale"
    again = "it doubles again after as many steps, not before"
    return [
        _property(halves, case(overflows=inf * 4, name="4 steps with inf")),
        _property("the scale may fall below 1", case(start=4.0, overflows=inf * 4, name="4 steps with inf"), (halves,)),
        _property(grows, case(overflows=(*clean, False, False), name=f"{interval + 2} clean steps")),
        _property(again, case(overflows=clean * 3, name=f"{3 * interval} clean steps"), (grows,)),
        _property(
            "a step with inf starts the count again",
            case(overflows=(*clean[1:], *inf, *clean[1:], *inf, *clean, *inf, *clean), name="inf between clean steps"),
            (halves, grows), weight=2,
        ),
        _property(
            "a long run goes like GradScaler's", weight=2, needs=(halves, grows),
            case=case(
                overflows=tuple(draw.random() < 0.6 / interval for _ in range(40 * interval)),
                name=f"{40 * interval} random steps, seed {seed}",
            ),
        ),
    ]  # fmt: skip


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "update")


def _property(name: str, case: Case, needs: tuple[str, ...] = (), *, weight: float = 1.0) -> Property:
    return Property(
        name=name, observe=partial(_observe, case), judge=partial(_judge, case), where=case.where, weight=weight,
        needs=needs,
    )  # fmt: skip


def _observe(case: Case, student: Callable[..., Any]) -> Observation:
    def run() -> list[Any]:
        scale, clean, found = case.start, 0, []
        for overflow in case.overflows:
            state = student(scale, clean, overflow, case.interval)
            found.append(state)
            if not _is_state(state):
                break
            scale, clean = state
        return found

    return observe_plainly(run, {})


def _is_state(state: Any) -> bool:
    if not isinstance(state, tuple | list) or len(state) != 2:
        return False
    try:
        return all(not isinstance(part, bool) and part is not None and float(part) == part for part in state)
    except (TypeError, ValueError, RuntimeError):
        return False


def _judge(case: Case, seen: Observation) -> Outcome:
    states = seen.outputs["result"]
    if not _is_state(states[-1]):
        cause = f"return (scale, clean_steps), two numbers, not {str(states[-1])[:60]}"
        return Outcome(name="", kind=Kind.WRONG_SHAPE, cause=cause)
    got, want = [float(scale) for scale, _ in states], case.scales()
    if got == want:
        return Outcome(name="")
    step = next(i for i, (a, b) in enumerate(zip(got, want, strict=True)) if a != b)
    history = "".join("x" if overflow else "." for overflow in case.overflows[: step + 1])
    difference = (
        f"expected the scale {want[step]:g} after step {step + 1}, got {got[step]:g} (steps so far, x with inf: "
        f"{history[-40:]})"
    )
    cause = next((mistake.cause for mistake in MISTAKES if case.mistaken(mistake) == got), "")
    return Outcome(name="", kind=Kind.WRONG_VALUE, difference=difference, cause=cause)
