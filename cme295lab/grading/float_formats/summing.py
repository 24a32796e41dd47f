"""Part 4: adding in 16 bits without losing what is too small: the lost part is carried along.

A state of two 16-bit numbers, judged by its first: after many steps it must be the right sum, rounded once or nearly.
Inside a step any way is right, and so is either sign of what is carried.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cme295lab.grading.exercise import Property
from cme295lab.grading.observe import Observation, refuse_function
from cme295lab.grading.observe_plainly import observe_plainly
from cme295lab.grading.result import Kind, Outcome

State = tuple[Tensor, Tensor]


def _step(total: Tensor, lost: Tensor, value: Tensor) -> State:
    """Kahan's step: add what was lost as well, and see what is lost now."""
    wanted = value + lost
    new = total + wanted
    return new, wanted - (new - total)


def _forgets_older(total: Tensor, lost: Tensor, value: Tensor) -> State:
    new = total + (value + lost)
    return new, value - (new - total)


def _wrong_sign(total: Tensor, lost: Tensor, value: Tensor) -> State:
    wanted = value + lost
    new = total + wanted
    return new, (new - total) - wanted


def _never_put_in(total: Tensor, lost: Tensor, value: Tensor) -> State:
    new = total + value
    return new, lost + (value - (new - total))


def _plain(total: Tensor, lost: Tensor, value: Tensor) -> State:
    return total + value, torch.zeros_like(lost)


def _doubled(total: Tensor, lost: Tensor, value: Tensor) -> State:
    wanted = value + lost
    new = total + wanted
    return new, lost + (wanted - (new - total))


def _value_alone(total: Tensor, lost: Tensor, value: Tensor) -> State:
    return total + (value + lost), value


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A wrong step, in 16-bit arithmetic.

    Args:
        cause: the mistake, in the words of the exercise.
        step: (total, lost, value) to (total, lost).
    """

    cause: str
    step: Callable[[Tensor, Tensor, Tensor], State]


MISTAKES = (
    Mistake(cause="nothing is carried along: what total + value rounds away is lost for good", step=_plain),
    Mistake(cause="the sign of what is carried is wrong: it is subtracted where it must be added, or the reverse",
            step=_wrong_sign),
    Mistake(cause="what was lost is kept, and never added: add it to the value before total + value",
            step=_never_put_in),
    Mistake(cause="what was lost earlier is forgotten: compare with value + lost, not with value alone",
            step=_forgets_older),
    Mistake(cause="what was lost is added and kept as well: once added, it is no longer lost", step=_doubled),
    Mistake(cause="the whole value is carried along: only the part of it that total has not taken", step=_value_alone),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Case:
    """A sum.

    Args:
        start: where it starts.
        values: the same shape, added in order.
        where: the input in words.
    """

    start: Tensor
    values: list[Tensor]
    where: str

    def run(self, step: Callable[..., Any]) -> Any:
        """The state after all steps, or the first that is none."""
        total, lost = self.start.clone(), torch.zeros_like(self.start)
        for value in self.values:
            state = step(total, lost, value)
            if _refuse_state(state, total) is not None:
                return state
            total, lost = state
        return total, lost

    def exact(self) -> Tensor:
        """The sum in float64."""
        return self.start.double() + torch.stack([value.double() for value in self.values]).sum(0)


def properties(*, seed: int = 0, steps: int = 400) -> list[Property]:
    """What must hold for `compensated_add(total, lost, value) -> (total, lost)`.

    Args:
        seed: draws the values of the last two sums.
        steps: additions in them.
    """
    half, bf16 = torch.float16, torch.bfloat16
    generator = torch.Generator().manual_seed(seed)
    small = (0.2 + 0.6 * torch.rand(steps, 7, generator=generator)).to(half)
    mixed = torch.randn(steps, 2, 3, generator=generator).to(half)
    ones = "2048 + 1 + 1 + ... goes on"
    return [
        _property(
            ones, torch.tensor([2048.0, 2048.0], dtype=half), [torch.tensor([1.0, 3.0], dtype=half)] * 601,
            "1, and plus 3, 601 times", weight=2,
        ),
        _property(
            "parts smaller than half a step are not lost", torch.full((7,), 1500.0, dtype=half), list(small),
            f"7 sums of {steps} numbers from 0.2 to 0.8, seed {seed}", weight=2,
        ),
        _property(
            "subtracting works, too", torch.full((2, 3), -3000.0, dtype=half), list(mixed),
            f"sums of {steps} normal numbers, seed {seed}",
        ),
        _property(
            "it works in bf16", torch.tensor([1.0, -4.0], dtype=bf16),
            [torch.tensor([2**-10, -(2**-9)], dtype=bf16)] * 300, "2^-10 and -2^-9, 300 times", needs=(ones,),
        ),
    ]  # fmt: skip


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "compensated_add")


def _property(
    name: str, start: Tensor, values: list[Tensor], words: str, *, weight: float = 1.0, needs: tuple[str, ...] = ()
) -> Property:
    dtype = str(start.dtype).removeprefix("torch.")
    first = float(start.flatten()[0])
    case = Case(start=start, values=values, where=f"{dtype}, starting at {first:g}, plus {words}")
    return Property(
        name=name, observe=partial(_observe, case), judge=partial(_judge, case), where=case.where, weight=weight,
        needs=needs,
    )  # fmt: skip


def _observe(case: Case, student: Callable[..., Any]) -> Observation:
    def careful(total: Tensor, lost: Tensor, value: Tensor) -> Any:
        return student(total.clone(), lost.clone(), value.clone())

    return observe_plainly(lambda: case.run(careful), {})


def _refuse_state(state: Any, total: Tensor) -> str | None:
    """Why something is not a state; None if it is."""
    if not isinstance(state, tuple | list) or len(state) != 2:
        return f"return (total, lost), two tensors, not {type(state).__name__}"
    for name, part in zip(("total", "lost"), state, strict=True):
        if not isinstance(part, Tensor):
            return f"{name} must be a tensor, not {type(part).__name__}"
        if part.shape != total.shape:
            return f"{name} must have the shape {tuple(total.shape)}, yours has {tuple(part.shape)}"
        if part.dtype != total.dtype:
            want, got = (str(dtype).removeprefix("torch.") for dtype in (total.dtype, part.dtype))
            return f"{name} must stay {want}: two 16-bit numbers are the point. Yours is {got}"
    return None


def _judge(case: Case, seen: Observation) -> Outcome:
    state = seen.outputs["result"]
    if (cause := _refuse_state(state, case.start)) is not None:
        return Outcome(name="", kind=Kind.WRONG_SHAPE, cause=cause)
    got, want = state[0].double(), case.exact()
    # Spacing of the format at the sum: a total that has been rounded once is off by half of it, plus what is carried.
    spacing = torch.finfo(case.start.dtype).eps * 2 ** want.abs().log2().floor()
    off = ~((got - want).abs() <= spacing)
    if not off.any():
        return Outcome(name="")
    index = tuple(off.nonzero()[0].tolist())
    difference = (
        f"expected {float(want[index]):.8g} (numbers are {float(spacing[index]):g} apart there), "
        f"got {float(got[index]):.8g}; {int(off.sum())} of {off.numel()} sums are off"
    )
    given = {m.cause: [part.nan_to_num() for part in case.run(m.step)] for m in MISTAKES}
    found = [part.nan_to_num() for part in state]
    # Several lose the total in the same way and carry something else along.
    same = [cause for cause, parts in given.items() if torch.equal(parts[0], found[0])]
    cause = next((cause for cause in same if torch.equal(given[cause][1].abs(), found[1].abs())), next(iter(same), ""))
    return Outcome(name="", kind=Kind.WRONG_VALUE, difference=difference, cause=cause)
