"""Right and wrong ways from bits to a number and back, for any format of IEEE's kind.

One exact implementation in each direction (fractions, no rounding but the one that is meant), right with every option
at its default: a test holds it to numpy, torch and ml_dtypes. The options are the known mistakes. It is written apart
from `cme295lab.precision`, so that a slip there could not be taught here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import torch


class Format(NamedTuple):
    """A format of IEEE's kind: a sign bit, then exponent, then mantissa; the largest exponent is inf and NaN."""

    exponent_bits: int
    mantissa_bits: int

    @property
    def top(self) -> int:
        """The largest exponent field."""
        return 2**self.exponent_bits - 1

    @property
    def infinity(self) -> int:
        """The code of +inf; each code below it is a number that is not negative."""
        return self.top << self.mantissa_bits

    @property
    def sign(self) -> int:
        """The sign bit."""
        return 1 << (self.exponent_bits + self.mantissa_bits)

    @property
    def smallest_normal(self) -> int:
        """The code of the smallest number with an implicit one."""
        return 1 << self.mantissa_bits

    def is_nan(self, code: int) -> bool:
        """Whether a code is one of those that mean NaN."""
        return self.infinity < code & (self.sign - 1) < self.sign and code < 2 * self.sign

    def bits(self, code: int) -> str:
        """The code with its fields apart, such as "0 101 10"."""
        digits = f"{code:0{1 + sum(self)}b}"
        return f"{digits[:-sum(self)]} {digits[-sum(self) : -self.mantissa_bits]} {digits[-self.mantissa_bits :]}"


PAGE, FP16, BF16, FP32, E5M2 = Format(3, 2), Format(5, 10), Format(8, 7), Format(8, 23), Format(5, 2)


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A known mistake; the defaults make none. Some options are of one direction alone.

    Args:
        cause: the mistake, in the words of the exercise.
        bias: "right", "none", "one more" (2^(e-1)), or "127" whatever the format.
        implicit_one: whether normal numbers have it.
        fraction: decoding: the mantissa counts "right", "whole" (not divided by 2^m) or "half" (divided by 2^(m+1)).
        subnormals: "right", "flushed", "exponent" (0 - bias instead of 1 - bias) or "normal" (with an implicit one).
        specials: decoding: "right", "finite" (no inf, no NaN), "all inf" or "all nan".
        sign: "right", "ignored", "inverted", or "zero" (that of zero alone is lost).
        swapped: decoding: mantissa above exponent.
        rounding: encoding: "even", "away" or "up" (of ties), "down" (ties toward zero), "zero" or "ceil" (of all).
        carry: encoding: whether a mantissa that rounds up to 2 raises the exponent.
        overflow: encoding: "right", "max" (stays the largest number), "early" (all above it), or "none" (not checked).
        infinity: encoding: what inf becomes, "right", "max" or "nan".
        nan: encoding: what NaN becomes, "right", "inf" or "zero".
        zero: encoding: "right", or "frexp" (its power is taken for -1).
        first: encoding: a rounding before the real one, to "fp32" or to "normal" (m bits, before it is subnormal).
    """

    cause: str = ""
    bias: str = "right"
    implicit_one: bool = True
    fraction: str = "right"
    subnormals: str = "right"
    specials: str = "right"
    sign: str = "right"
    swapped: bool = False
    rounding: str = "even"
    carry: bool = True
    overflow: str = "right"
    infinity: str = "right"
    nan: str = "right"
    zero: str = "right"
    first: str = ""

    def bias_of(self, kind: Format) -> int:
        """The bias, right or wrong."""
        half = int(2 ** (kind.exponent_bits - 1))
        return {"right": half - 1, "none": 0, "one more": half, "127": 127}[self.bias]

    def signed(self, value: float, negative: bool) -> float:
        """A magnitude with its sign, right or wrong."""
        if self.sign == "ignored" or (self.sign == "zero" and value == 0):
            return value
        return -value if negative != (self.sign == "inverted") else value


RIGHT = Mistake()


def decode_with(mistake: Mistake, code: int, kind: Format) -> float:
    """The number that a code means."""
    e, m = kind
    negative = bool(code & kind.sign)
    exponent, mantissa = code >> m & kind.top, code & (2**m - 1)
    if mistake.swapped:
        exponent, mantissa = code & kind.top, code >> e & (2**m - 1)
    if exponent == kind.top and mistake.specials != "finite":
        is_infinite = mistake.specials == "all inf" or (mistake.specials == "right" and mantissa == 0)
        return mistake.signed(math.inf, negative) if is_infinite else math.nan
    bias = mistake.bias_of(kind)
    fraction = Fraction(mantissa, {"right": 2**m, "whole": 1, "half": 2 ** (m + 1)}[mistake.fraction])
    power, leading = exponent - bias, int(mistake.implicit_one)
    if exponent == 0 and mistake.subnormals != "normal":
        power, leading = (-bias if mistake.subnormals == "exponent" else 1 - bias), 0
        fraction = Fraction(0) if mistake.subnormals == "flushed" else fraction
    return mistake.signed(float((leading + fraction) * Fraction(2) ** power), negative)


def encode_with(mistake: Mistake, x: float, kind: Format) -> int:
    """The code of the nearest number."""
    negative = math.copysign(1.0, x) < 0
    if math.isnan(x):
        return {"right": kind.infinity | 1, "inf": kind.infinity, "zero": 0}[mistake.nan]
    if math.isinf(x):
        code = kind.infinity + {"right": 0, "max": -1, "nan": 1}[mistake.infinity]
    else:
        code = _magnitude(mistake, x, kind)
    return code | kind.sign if mistake.signed(1.0 if code or mistake.sign != "zero" else 0.0, negative) < 0 else code


def _magnitude(mistake: Mistake, x: float, kind: Format) -> int:
    """The code without its sign, of a finite number."""
    m, bias = kind.mantissa_bits, mistake.bias_of(kind)
    if mistake.first == "fp32":
        x = torch.tensor(x, dtype=torch.float64).float().item()
    if math.isinf(x):
        return kind.infinity
    exponent = math.frexp(x)[1] - 1 if x or mistake.zero == "frexp" else 1 - bias  # of the leading one
    exact = abs(Fraction(x))
    if mistake.first == "normal":
        exact = _rounded(exact, exponent - m, "even", False) * Fraction(2) ** (exponent - m)
    if mistake.overflow == "early" and exact > Fraction(decode_with(RIGHT, kind.infinity - 1, kind)):
        return kind.infinity
    if exponent < 1 - bias and mistake.subnormals == "flushed":
        return 0
    is_normal = exponent >= 1 - bias
    exponent = max(exponent, 1 - bias)
    unit = exponent - m - (not is_normal and mistake.subnormals == "exponent")
    units = _rounded(exact, unit, mistake.rounding, x < 0)
    if units == 2 ** (m + 1) and not mistake.carry:
        units = 2**m
    # The leading one of a normal number adds 1 to the exponent field, and so does a mantissa that rounds up to 2.
    code = units + (exponent + bias - (1 if mistake.implicit_one or not is_normal else 0) << m)
    if code >= kind.infinity and mistake.overflow != "none":
        return kind.infinity - (mistake.overflow == "max")
    return code


def _rounded(exact: Fraction, unit: int, rounding: str, negative: bool) -> int:
    """A magnitude in units of 2^unit, rounded to a whole number."""
    units = exact / Fraction(2) ** unit
    half = Fraction(1, 2)
    if rounding == "even":
        return round(units)
    if rounding == "away" or (rounding == "up" and not negative):
        return math.floor(units + half)
    if rounding in ("down", "up"):
        return math.ceil(units - half)
    return math.floor(units) if rounding == "zero" else math.ceil(units)


def middle(code: int, kind: Format) -> float:
    """The number halfway between a positive code and the next; behind the largest number, where infinity begins."""
    units, unit = code & (2**kind.mantissa_bits - 1), max(code >> kind.mantissa_bits, 1)
    leading = 2**kind.mantissa_bits if code >> kind.mantissa_bits else 0
    power = unit - RIGHT.bias_of(kind) - kind.mantissa_bits
    return float((units + leading + Fraction(1, 2)) * Fraction(2) ** power)
