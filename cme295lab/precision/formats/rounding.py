"""Rounding tensors to a format, and one number taken apart for people to look at.

`round_to` is what emulation needs: values go to the format and come back as a tensor of the dtype they had. `describe`
says everything about one number in one format: which bits it has, what kind of number it is, what rounding lost.
`describe_code` starts from the bits instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from cme295lab.precision.formats.bits import Rounding
from cme295lab.precision.formats.codes import all_values, decode, encode, look_up
from cme295lab.precision.formats.description import FloatFormat, get_format

Kind = Literal["zero", "subnormal", "normal", "infinity", "nan"]


@dataclass(frozen=True, kw_only=True)
class Number:
    """One number of a format.

    Args:
        format: the format.
        code: all bits as an integer, 0 to num_codes - 1 (of fp64, too: never negative).
        sign: the sign bit, 0 or 1; 0 where there is none.
        exponent: the exponent field, as stored.
        mantissa: the mantissa field, as stored.
        kind: "zero", "subnormal", "normal", "infinity" or "nan".
        value: what it means.
        error: value less the number that was asked for; NaN where either is not finite, 0 where a code was asked for.
    """

    format: FloatFormat
    code: int
    sign: int
    exponent: int
    mantissa: int
    kind: Kind
    value: float
    error: float

    @property
    def bits(self) -> str:
        """Sign, exponent and mantissa in binary, with a space between the fields.

        >>> describe(-1.5, "fp16").bits
        '1 01111 1000000000'
        """
        parts = [str(self.sign)] if self.format.signed else []
        parts.append(f"{self.exponent:0{self.format.exponent_bits}b}")
        if self.format.mantissa_bits:
            parts.append(f"{self.mantissa:0{self.format.mantissa_bits}b}")
        return " ".join(parts)


def round_to(
    x: Float[Tensor, "*shape"],
    format: str | FloatFormat,
    *,
    rounding: Rounding = "nearest",
    saturate: bool = False,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*shape"]:
    """x with every value rounded to one of the format's; x's dtype, and no gradient.

    Args:
        x: any floating dtype that holds the results.
        format, rounding, saturate, generator: as for `encode`.

    Raises:
        TypeError: if x is not of a floating dtype.
        ValueError: as `encode`; or if a result does not fit x's dtype (65504 of fp16 is no value of bfloat16).

        >>> round_to(torch.tensor([2049.0, 65519.0, 65520.0]), "fp16").tolist()
        [2048.0, 65504.0, inf]
    """
    chosen = get_format(format)
    codes = encode(x, chosen, rounding=rounding, saturate=saturate, generator=generator)
    if chosen.num_bits <= 16 and codes.numel() > chosen.num_codes:
        values = all_values(chosen).to(codes.device)
        rounded, fits = _cast(values, x.dtype)
        if bool(fits.all()) or bool(look_up(fits, codes).all()):
            return look_up(rounded, codes)
    values = decode(codes, chosen)
    rounded, fits = _cast(values, x.dtype)
    if not bool(fits.all()):
        lost, dtype = float(values[~fits].reshape(-1)[0]), x.dtype
        raise ValueError(f"{lost!r} of {chosen.name} is no value of {dtype}, x's dtype: give x.float() or x.double()")
    return rounded


def _cast(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Float64s in another dtype, and which of them it holds."""
    narrow = values.to(dtype)
    return narrow, (narrow.to(torch.float64) == values) | values.isnan()


def describe(
    x: float, format: str | FloatFormat, rounding: Rounding = "nearest", *, saturate: bool = False
) -> Number:
    """What becomes of one number in a format.

    Args:
        x: a Python number.
        format, rounding, saturate: as for `encode`.

    Raises:
        ValueError: if the format has no code for x.

        >>> describe(0.1, "fp8_e4m3fn").value
        0.1015625
    """
    number = float(x)
    codes = encode(torch.tensor(number, dtype=torch.float64), format, rounding=rounding, saturate=saturate)
    chosen = get_format(format)
    return _number(int(codes) & (chosen.num_codes - 1), chosen, number)


def describe_code(code: int, format: str | FloatFormat) -> Number:
    """What a code means: the way back, for bits that somebody toggled.

    Raises:
        ValueError: if there is no such code.

        >>> describe_code(0b0_1111_110, "fp8_e4m3fn").value
        448.0
    """
    chosen = get_format(format)
    if isinstance(code, bool) or not isinstance(code, int) or not 0 <= code < chosen.num_codes:
        raise ValueError(f"code of {chosen.name} must be an int of 0 to {chosen.num_codes - 1}, got {code!r}")
    return _number(code, chosen, None)


def _number(code: int, format: FloatFormat, asked: float | None) -> Number:
    signed_code = code - (1 << 64) if code >= 1 << 63 else code
    value = float(decode(torch.tensor(signed_code), format))
    exponent = code >> format.mantissa_bits & ((1 << format.exponent_bits) - 1)
    if asked is None:
        error = 0.0
    else:
        error = value - asked if math.isfinite(value) and math.isfinite(asked) else math.nan
    return Number(
        format=format,
        code=code,
        sign=int(code & format.sign_bit != 0),
        exponent=exponent,
        mantissa=code & ((1 << format.mantissa_bits) - 1),
        kind=_kind(value, exponent, format),
        value=value,
        error=error,
    )


def _kind(value: float, exponent: int, format: FloatFormat) -> Kind:
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "infinity"
    if value == 0:
        return "zero"
    return "subnormal" if exponent == 0 and format.specials != "scale" else "normal"
