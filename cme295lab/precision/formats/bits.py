"""Rounding as integer arithmetic on the bits of float32 and float64.

Codes without sign grow with the value, so a float is rounded by shifting its bits to the right: what falls off says
whether to add one, and a carry out of the mantissa runs into the exponent and is right there. Subnormals are the same
shift, only longer. A value too large for the format ends above its largest code, as if exponents had no end, and is
replaced then. Nothing here checks its input: ``codes`` does.

Speed comes from doing the same to every value. Comparisons and masks cost ten times as much as an addition, so they
are made only where a chunk holds an infinity or a NaN; subnormals are not told apart, but both kinds are computed of
values that are limited to their own range, and added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cme295lab.precision.formats.description import FORMATS, FloatFormat

Rounding = Literal["nearest", "zero", "stochastic"]

RANDOM_BITS = 62  # drawn per value for stochastic rounding


@dataclass(frozen=True)
class Source:
    """The wide format whose bits are taken apart."""

    format: FloatFormat
    float_dtype: torch.dtype
    int_dtype: torch.dtype

    @property
    def infinity(self) -> int:
        """Bits of infinity; NaNs are above, numbers below."""
        return self.format.max_code + 1


FLOAT32 = Source(FORMATS["fp32"], torch.float32, torch.int32)
FLOAT64 = Source(FORMATS["fp64"], torch.float64, torch.int64)


def source_of(dtype: torch.dtype, format: FloatFormat, rounding: Rounding) -> Source:
    """Float32's bits where they hold the input and every step to the code, else float64's."""
    wide = FLOAT32.format
    inside = format.mantissa_bits <= wide.mantissa_bits and format.bias <= wide.bias and format.max <= wide.max
    narrow = dtype.itemsize <= 4 and inside and format.num_bits < 32
    return FLOAT32 if narrow and rounding != "stochastic" and format.specials != "scale" else FLOAT64


def encode_bits(
    bits: Tensor,
    format: FloatFormat,
    source: Source,
    rounding: Rounding,
    saturate: bool,
    generator: torch.Generator | None,
) -> Tensor:
    """Codes from the bits of wide floats. Masks are slow, so they are made only where a value needs one."""
    magnitude = bits & torch.iinfo(source.int_dtype).max
    highest = int(magnitude.amax())
    code = round_bits(magnitude, format, source, rounding, generator)
    beyond = format.max_code if saturate or format.specials == "finite" else format.max_code + 1
    if rounding == "zero":
        code.clamp_(max=format.max_code)
        if highest >= source.infinity:
            code.masked_fill_(magnitude == source.infinity, beyond)
    else:
        code.clamp_(max=beyond)
    if highest > source.infinity and format.nan_code is not None:
        code.masked_fill_(magnitude > source.infinity, format.nan_code)
    if format.signed:
        sign = bits >> (source.format.num_bits - format.num_bits)
        code |= sign.bitwise_and_(_as_int64(format.sign_bit))
    return code


def round_bits(
    magnitude: Tensor,
    format: FloatFormat,
    source: Source,
    rounding: Rounding,
    generator: torch.Generator | None,
) -> Tensor:
    """Codes without sign, as if exponents had no end; meaningless for NaN."""
    wide = source.format
    dropped = wide.mantissa_bits - format.mantissa_bits
    rebias = wide.bias - format.bias
    if format.specials == "scale":
        return _shift_scale(magnitude - (rebias << wide.mantissa_bits), dropped, rounding, generator).clamp_(min=0)
    if rounding == "stochastic" or (rebias and format.min_positive < 4 * wide.min_normal):
        return _round_significands(magnitude, format, source, rounding, generator)
    if rebias == 0:
        return _shift(magnitude, dropped, rounding)
    # Two scales meet at min_normal: evenly spaced values below, floating ones above. Each is given only its own part,
    # the border where a value lies in the other's, and the border is counted twice.
    border = (rebias + 1) << wide.mantissa_bits
    subnormal = magnitude.clamp(max=border).view(source.float_dtype) * (1 / format.min_positive)
    even = subnormal.round_() if rounding == "nearest" else subnormal.trunc_()
    floating = _shift(magnitude.clamp(min=border), dropped, rounding)
    return floating.add_(even.to(source.int_dtype)).sub_((rebias + 1) << format.mantissa_bits)


def _round_significands(
    magnitude: Tensor,
    format: FloatFormat,
    source: Source,
    rounding: Rounding,
    generator: torch.Generator | None,
) -> Tensor:
    """Codes without sign, each value shifted by its own number of bits: slower, for chance and for the smallest values.

    With the significand s of the input (its leading one included) and t the exponent field that the result will have,
    at least 1, the code is (t - 1) · 2^mantissa_bits + round(s / 2^shift). The leading one of s counts as the last
    step of t; where t was raised to 1 there is none, and the result is subnormal.
    """
    wide = source.format
    field = (magnitude >> wide.mantissa_bits).clamp_(min=1)
    significand = magnitude - ((field - 1) << wide.mantissa_bits)
    target = field.add_(format.bias - wide.bias - 1)  # t - 1, before it is raised
    shift = (-target).clamp_(min=0).add_(wide.mantissa_bits - format.mantissa_bits)
    base = target.clamp_(min=0) << format.mantissa_bits
    if rounding == "stochastic":
        return base.add_(_shift_randomly(significand, shift, generator))
    # Formats that come here for another rounding reach down to the input's own subnormals: no shift is long.
    return base.add_(_shift(significand, shift, rounding))


def _shift(integer: Tensor, shift: Tensor | int, rounding: Rounding) -> Tensor:
    """integer / 2^shift, to the nearest (ties to even) or toward zero."""
    if rounding == "zero" or (isinstance(shift, int) and shift == 0):
        return integer >> shift
    last = (integer >> shift).bitwise_and_(1)
    if isinstance(shift, int):
        return last.add_(integer).add_((1 << (shift - 1)) - 1).bitwise_right_shift_(shift)
    half_less_one = (torch.ones_like(shift) << shift).bitwise_right_shift_(1).sub_(1)
    exact = shift == 0
    carry = last.add_(half_less_one).masked_fill_(exact, 0)
    return carry.add_(integer).bitwise_right_shift_(shift)


def _shift_randomly(integer: Tensor, shift: Tensor, generator: torch.Generator | None) -> Tensor:
    """integer / 2^shift, rounded up with the probability of what is cut off: add random bits below, then cut."""
    too_long = (shift - RANDOM_BITS).clamp_(min=0, max=63)  # then the probability is right to 2^-62
    shift = shift.clamp(max=RANDOM_BITS)
    random = torch.randint(1 << RANDOM_BITS, integer.shape, generator=generator, device=integer.device)
    return ((integer >> too_long) + (random >> (RANDOM_BITS - shift))) >> shift


def _shift_scale(integer: Tensor, shift: int, rounding: Rounding, generator: torch.Generator | None) -> Tensor:
    """Exponents: rounded down, or up from one and a half on, or at random."""
    if rounding == "stochastic":
        return _shift_randomly(integer.clamp(min=0), torch.full_like(integer, shift), generator)
    return (integer if rounding == "zero" else integer + (1 << (shift - 1))) >> shift


def decode_bits(codes: Tensor, format: FloatFormat) -> Tensor:
    """Float64 values of int64 codes."""
    values = decode_magnitude(codes & ((1 << (format.exponent_bits + format.mantissa_bits)) - 1), format)
    return torch.where((codes & _as_int64(format.sign_bit)) != 0, -values, values) if format.signed else values


def decode_magnitude(magnitude: Tensor, format: FloatFormat) -> Tensor:
    """Float64 values of int64 codes without sign."""
    wide = FLOAT64.format
    shift = wide.mantissa_bits - format.mantissa_bits
    normal = ((magnitude << shift) + ((wide.bias - format.bias) << wide.mantissa_bits)).view(torch.float64)
    if format.specials == "scale":
        values = normal
    else:
        least = 1 << format.mantissa_bits
        values = torch.where(magnitude < least, magnitude.to(torch.float64) * format.value_without_sign(1), normal)
    if format.infinity_code is not None:
        values = values.masked_fill(magnitude == format.infinity_code, torch.inf)
        return values.masked_fill(magnitude > format.infinity_code, torch.nan)
    return values if format.nan_code is None else values.masked_fill(magnitude == format.nan_code, torch.nan)


def _as_int64(bits: int) -> int:
    """64 bits as the signed integer that PyTorch takes them for."""
    return bits - (1 << 64) if bits >= 1 << 63 else bits
