"""Stochastic rounding: up or down at random, so often up that the average is exact.

To nearest, 1 + 0.001 is 1 in bf16, whose next number is 1.0078; add 0.001 a thousand times and it is 1 still.
Stochastically, 0.001 / 0.0078 = 13 % of the additions go up to that next number and the sum comes out at 2, give or
take. That is why weights can live in bf16 alone, without an fp32 copy: an update smaller than the gap between two
numbers is made sometimes instead of never. The price is noise, as large as the gap.

The way it is done is short. The 16 bits of a bf16 number are the upper 16 of an fp32 number, and patterns of one sign
are ordered as their values are. So add a random number of 16 bits to the pattern, and cut the lower 16 off: a carry
into the upper half is rounding up, and its probability is the part that is cut off.

fp16 drops 13 bits in the same way where its numbers are normal. Its subnormal numbers (below 2^-14) are 2^-24 apart
wherever they are, while fp32's get closer: there the same is done with a fraction of that gap.

inf and NaN stay as they are. Beyond the largest number the next is inf, as it is when rounding to nearest: a value in
the last gap gets there with its probability, one above it always.

Source: Gupta et al. 2015, "Deep Learning with Limited Numerical Precision", section 3; Zamirai et al. 2020, "Revisiting
BFloat16 Training".
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

StochasticFormat = Literal["bf16", "fp16"]

_DROPPED_BITS = {"bf16": 16, "fp16": 13}
_FP16_MIN_NORMAL = 2.0**-14
_FP16_GAP = 2.0**-24  # between neighbours below it
_FP16_MAX = 65504.0


@torch.no_grad()
def stochastic_round_(
    x: Float[Tensor, "*shape"], format: StochasticFormat = "bf16", *, generator: torch.Generator | None = None
) -> Float[Tensor, "*shape"]:
    """Round fp32 values to numbers of a 16-bit format, at random, in place; the mean of many is the value itself.

        >>> x = torch.full((100_000,), 1.001)
        >>> sorted(set(stochastic_round_(x, "bf16", generator=torch.Generator().manual_seed(0)).tolist()))
        [1.0, 1.0078125]
        >>> round(x.mean().item(), 4)
        1.001

    Args:
        x: values in torch.float32, of any shape; overwritten.
        format: "bf16" or "fp16".
        generator: of the random bits, on the device of `x`; None takes torch's own.

    Returns:
        `x`, still fp32: `.to(torch.bfloat16)` or `.to(torch.float16)` is exact now.

    Raises:
        TypeError: if `x` is not torch.float32.
        ValueError: if the format is another one.
    """
    if format not in get_args(StochasticFormat):
        raise ValueError(f"format must be 'bf16' or 'fp16', got {format!r}")
    if x.dtype != torch.float32:
        raise TypeError(f"x must be torch.float32, got {x.dtype}: its pattern is what the random bits are added to")
    dropped = _DROPPED_BITS[format]
    bits = x.view(torch.int32)
    noise = torch.randint(0, 1 << dropped, x.shape, dtype=torch.int32, device=x.device, generator=generator)
    rounded = (bits + noise).bitwise_and_(-(1 << dropped)).view(torch.float32)
    if format == "fp16":
        rounded = torch.where(x.abs() < _FP16_MIN_NORMAL, _round_to_gaps(x, generator), rounded)
        rounded = torch.where(rounded.abs() > _FP16_MAX, torch.copysign(rounded.new_tensor(torch.inf), x), rounded)
    return x.copy_(torch.where(x.isfinite(), rounded, x))


def _round_to_gaps(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """To multiples of 2^-24, at random, with the sign of x even where they are zero."""
    gaps = x.abs().double() / _FP16_GAP
    whole = gaps.floor()
    chance = torch.rand(x.shape, dtype=torch.float64, device=x.device, generator=generator)
    return torch.copysign((whole + (chance < gaps - whole)) * _FP16_GAP, x).to(x.dtype)
