"""Right and wrong ways from numbers to codes of 8 bits, in float64; four parts share them.

Every option at its default is right: x / scale, rounded to the nearest. Inputs of the checks keep away from ties
(`clear_of_ties`), where the last bit of a division would decide: which way a student rounds them is free, and so is
dividing by the scale or multiplying by its inverse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from cme295lab.grading.compare import Hypothesis

LEVELS = 127  # the largest code: -128 stays unused, so that codes are symmetric
_TIE_MARGIN = 0.02  # in steps


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """How numbers become codes; the defaults make no mistake.

    Args:
        cause: the mistake, in the words of the exercise.
        levels: what the largest number becomes.
        largest: "absolute", "signed", "range" (largest minus smallest) or "mean" of the absolute values.
        rounding: "nearest", "zero" (truncated), "down" or "up".
        low, high: codes beyond them are clamped; without `low` they wrap around as int8 does.
    """

    cause: str = ""
    levels: float = LEVELS
    largest: str = "absolute"
    rounding: str = "nearest"
    low: float | None = None
    high: float = LEVELS


RIGHT = Rounding()
_TRUNCATED = "the codes are cut off, not rounded: .to(torch.int8) drops what is behind the point, so round first"
MISTAKES = (
    Rounding(cause=_TRUNCATED, rounding="zero"),
    Rounding(cause="the codes are rounded down: round to the nearest", rounding="down"),
    Rounding(cause="the codes are rounded up: round to the nearest", rounding="up"),
    Rounding(
        cause="the largest number becomes 128, which int8 does not have: it ends at 127, so scale = max|x| / 127",
        levels=128,
    ),
    Rounding(
        cause="255 steps are for the whole range: on each side of zero there are 127, so scale = max|x| / 127",
        levels=255,
    ),
    Rounding(cause="half of 255 steps on each side is 127.5, which is no code: scale = max|x| / 127", levels=127.5),
    Rounding(
        cause="the scale is that of the largest number, not of the largest absolute value: here the farthest from 0 "
        "is negative",
        largest="signed",
    ),
    Rounding(cause="the scale is (max - min) / 127: absmax asks for the largest |x| alone", largest="range"),
    Rounding(
        cause="the scale is (max - min) / 255: that belongs to a quantiser with a zero point", largest="range",
        levels=255,
    ),
    Rounding(cause="the scale comes from the mean of |x|: the largest values do not fit", largest="mean"),
    Rounding(cause="negative numbers have become 0: int8 codes have a sign", low=0),
)  # fmt: skip


def with_overflow(mistakes: Iterable[Rounding]) -> Iterator[Rounding]:
    """Each mistake three times: codes beyond int8 wrap around, stop at -128, or stop at -127."""
    for mistake in mistakes:
        yield mistake
        if mistake.low is None:
            yield replace(mistake, low=-128)
            yield replace(mistake, low=-127)


def scale_of(x: Tensor, mistake: Rounding = RIGHT) -> Tensor:
    """The scale of the last dimension's numbers, kept as a dimension of 1."""
    largest = {
        "absolute": lambda: x.abs().amax(-1, keepdim=True),
        "signed": lambda: x.amax(-1, keepdim=True),
        "range": lambda: x.amax(-1, keepdim=True) - x.amin(-1, keepdim=True),
        "mean": lambda: x.abs().mean(-1, keepdim=True),
    }[mistake.largest]()
    return largest / mistake.levels


def codes_of(x: Tensor, scale: Tensor | float, mistake: Rounding = RIGHT, zero_point: float = 0.0) -> Tensor:
    """The codes of numbers, as float64; where the scale is 0, the number is 0 and so is its code."""
    scales = torch.as_tensor(scale)
    # Cut off, the last bit decides whether the largest number becomes 127 or 126: so as float32 has it.
    steps = x / scales if mistake.rounding == "nearest" else (x.float() / scales.float()).double()
    steps = steps.nan_to_num(0.0, posinf=0.0, neginf=0.0)
    rounded = {"nearest": torch.round, "zero": torch.trunc, "down": torch.floor, "up": torch.ceil}[mistake.rounding]
    codes: Tensor = rounded(steps) + zero_point
    if mistake.low is not None:
        return codes.clamp(mistake.low, mistake.high)
    return (codes + 128) % 256 - 128


def clear_of_ties(x: Tensor, scale: Tensor | float) -> Tensor:
    """Numbers of which those near the middle of two codes have moved away from it, and on no code.

    Args:
        x: numbers, float32.
        scale: the step of each, broadcast.
    """
    steps = (x.double() / scale).nan_to_num(0.0)
    near = ((steps - steps.floor()) - 0.5).abs() < _TIE_MARGIN
    return torch.where(near, (steps.floor() + 0.25) * scale, x.double()).to(x.dtype)


def hypotheses(output: Callable[[Rounding], Tensor], mistakes: Iterable[Rounding] = MISTAKES) -> list[Hypothesis]:
    """What each mistake gives."""
    return [Hypothesis(mistake.cause, partial(output, mistake)) for mistake in with_overflow(mistakes)]
