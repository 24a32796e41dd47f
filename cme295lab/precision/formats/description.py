"""A float format in six numbers, and the eleven formats of the course.

A code is a row of bits: sign, exponent field, mantissa field, from the highest bit to the lowest. Read as an integer
without its sign, a larger code is a larger value: this one property makes rounding, overflow and the search for
neighbours integer arithmetic (``codes``, ``rounding``).

    exponent field e > 0    ±(1 + mantissa / 2^mantissa_bits) · 2^(e - bias)       normal
    exponent field e = 0    ±(0 + mantissa / 2^mantissa_bits) · 2^(1 - bias)       subnormal, and zero

What the highest codes mean is a decision of each format, `specials`:

    "ieee"       the highest exponent field holds infinity (mantissa 0) and NaN (else): fp64, fp32, fp16, bf16, e5m2
    "nan-only"   only the code of all ones is NaN, there is no infinity, so that one more binade holds numbers: e4m3fn
    "finite"     every code is a number: fp6 and fp4, where no code can be spared
    "scale"      no sign, no mantissa, no zero: code c is 2^(c - bias), all ones are NaN: e8m0, the scale of MX blocks

Limits of a description: every value must be one of float64's, since `decode` answers in float64. That leaves no room
for formats beyond fp64 (x87's 80 bits, fp128), nor for formats whose codes are spread differently (posits, "fnuz"
formats that keep NaN at negative zero).

Source: IEEE 754-2019, §3.4; Micikevicius et al. 2022, "FP8 Formats for Deep Learning", §3; Rouhani et al. 2023, "OCP
Microscaling Formats (MX) Specification v1.0", §5.3 and §5.4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

Specials = Literal["ieee", "nan-only", "finite", "scale"]

FLOAT64_MANTISSA_BITS = 52
FLOAT64_BIAS = 1023


@dataclass(frozen=True, kw_only=True)
class FloatFormat:
    """A float format. Your own can be made: anything whose values float64 has.

    Args:
        name: for messages and tables.
        exponent_bits: width of the exponent field, at least 1.
        mantissa_bits: width of the mantissa field, without the leading one that is not stored.
        bias: what the exponent field is above the exponent; half of the field's range, in most formats.
        specials: what the highest codes mean, see the module.
        signed: whether there is a sign bit; a "scale" has none.

    Raises:
        TypeError: if a count is not an int.
        ValueError: if a count is impossible, the parts contradict each other, or a value lies beyond float64.

        >>> half = FloatFormat(name="half", exponent_bits=5, mantissa_bits=10, bias=15, specials="ieee")
        >>> half.max, half.num_bits
        (65504.0, 16)
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    specials: Specials
    signed: bool = True

    def __post_init__(self) -> None:
        for field in ("exponent_bits", "mantissa_bits", "bias"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{field} of format {self.name!r} must be an int, got {value!r}")
        if self.exponent_bits < 1:
            raise ValueError(f"exponent_bits of format {self.name!r} must be at least 1, got {self.exponent_bits}")
        if self.mantissa_bits < 0:
            raise ValueError(f"mantissa_bits of format {self.name!r} must not be negative, got {self.mantissa_bits}")
        if self.specials not in get_args(Specials):
            raise ValueError(
                f"specials of format {self.name!r} must be one of {get_args(Specials)}, got {self.specials!r}"
            )
        self._check_specials()
        self._check_range()

    def _check_specials(self) -> None:
        if self.specials == "scale" and (self.signed or self.mantissa_bits):
            raise ValueError(
                f'format {self.name!r} is a "scale", which has neither sign nor mantissa: say signed=False and '
                f"mantissa_bits=0, got signed={self.signed} and mantissa_bits={self.mantissa_bits}"
            )
        if self.specials == "ieee" and (self.exponent_bits < 2 or self.mantissa_bits < 1):
            raise ValueError(
                f'specials "ieee" take the highest exponent field, and tell infinity from NaN by the mantissa: format '
                f"{self.name!r} needs exponent_bits of at least 2 and mantissa_bits of at least 1, got "
                f"{self.exponent_bits} and {self.mantissa_bits}"
            )
        if self.max_code < 1:
            raise ValueError(
                f"format {self.name!r} would hold no number but one: exponent_bits {self.exponent_bits}, mantissa_bits "
                f"{self.mantissa_bits}, specials {self.specials!r}; give it more bits"
            )

    def _check_range(self) -> None:
        if self.num_bits > 64:
            raise ValueError(f"format {self.name!r} has {self.num_bits} bits, more than 64: take bits from a field")
        if self.mantissa_bits > FLOAT64_MANTISSA_BITS:
            raise ValueError(
                f"mantissa_bits of format {self.name!r} must be at most 52, float64's own, got {self.mantissa_bits}"
            )
        highest = (self.max_code >> self.mantissa_bits) - self.bias
        lowest = (0 if self.specials == "scale" else 1) - self.bias
        if highest > FLOAT64_BIAS or lowest < 1 - FLOAT64_BIAS:
            raise ValueError(
                f"bias {self.bias} of format {self.name!r} gives exponents {lowest} to {highest}, but float64 holds "
                f"-1022 to 1023: change bias or exponent_bits ({self.exponent_bits})"
            )

    @property
    def num_bits(self) -> int:
        """Bits of a code."""
        return int(self.signed) + self.exponent_bits + self.mantissa_bits

    @property
    def num_codes(self) -> int:
        """How many codes there are, 2^num_bits."""
        return 1 << self.num_bits

    @property
    def sign_bit(self) -> int:
        """The code that is the sign bit alone; 0 in a format without sign."""
        return 1 << (self.num_bits - 1) if self.signed else 0

    @property
    def max_code(self) -> int:
        """Code of the largest finite value; the next, if there is a special one, is infinity or NaN."""
        all_ones = (1 << (self.exponent_bits + self.mantissa_bits)) - 1
        if self.specials == "ieee":
            return all_ones - (1 << self.mantissa_bits)
        return all_ones if self.specials == "finite" else all_ones - 1

    @property
    def infinity_code(self) -> int | None:
        """Code of +infinity, None where there is none."""
        return self.max_code + 1 if self.specials == "ieee" else None

    @property
    def nan_code(self) -> int | None:
        """Code of NaN, None where there is none; of several, the one with only the highest mantissa bit (quiet)."""
        if self.specials == "ieee":
            return self.max_code + 1 + (1 << (self.mantissa_bits - 1))
        return None if self.specials == "finite" else self.max_code + 1

    @property
    def max(self) -> float:
        """Largest finite value."""
        return self.value_without_sign(self.max_code)

    @property
    def min_normal(self) -> float:
        """Smallest positive value with a full mantissa, 2^(1 - bias); of a scale its smallest value, 2^-bias."""
        return self.value_without_sign(0 if self.specials == "scale" else 1 << self.mantissa_bits)

    @property
    def min_subnormal(self) -> float:
        """Smallest positive subnormal; NaN where there is none, in a format without mantissa. See `min_positive`."""
        return self.value_without_sign(1) if self.mantissa_bits else math.nan

    @property
    def min_positive(self) -> float:
        """Smallest positive value, subnormal or not."""
        return self.value_without_sign(0 if self.specials == "scale" else 1)

    @property
    def epsilon(self) -> float:
        """Distance from 1 to the next larger value, 2^-mantissa_bits (whether or not 1 lies in the range)."""
        return math.ldexp(1.0, -self.mantissa_bits)

    def value_without_sign(self, code: int) -> float:
        """Value of one of the codes 0 to max_code, from the definition."""
        exponent, mantissa = code >> self.mantissa_bits, code & ((1 << self.mantissa_bits) - 1)
        if exponent or self.specials == "scale":
            mantissa += 1 << self.mantissa_bits
        else:
            exponent = 1
        return math.ldexp(mantissa, exponent - self.bias - self.mantissa_bits)


def _table(*rows: tuple[str, int, int, int, Specials]) -> dict[str, FloatFormat]:
    return {
        name: FloatFormat(
            name=name,
            exponent_bits=exponent_bits,
            mantissa_bits=mantissa_bits,
            bias=bias,
            specials=specials,
            signed=specials != "scale",
        )
        for name, exponent_bits, mantissa_bits, bias, specials in rows
    }


FORMATS = _table(
    ("fp64", 11, 52, 1023, "ieee"),
    ("fp32", 8, 23, 127, "ieee"),
    ("tf32", 8, 10, 127, "ieee"),  # 19 bits: what tensor cores keep of an fp32 operand
    ("fp16", 5, 10, 15, "ieee"),
    ("bf16", 8, 7, 127, "ieee"),
    ("fp8_e4m3fn", 4, 3, 7, "nan-only"),
    ("fp8_e5m2", 5, 2, 15, "ieee"),
    ("fp6_e3m2", 3, 2, 3, "finite"),
    ("fp6_e2m3", 2, 3, 1, "finite"),
    ("fp4_e2m1", 2, 1, 1, "finite"),
    ("e8m0", 8, 0, 127, "scale"),
)


def get_format(name_or_format: str | FloatFormat) -> FloatFormat:
    """A format by its name; a format as it is.

    Raises:
        TypeError: if it is neither.
        ValueError: if no format has this name.
    """
    if isinstance(name_or_format, FloatFormat):
        return name_or_format
    if not isinstance(name_or_format, str):
        raise TypeError(f"format must be a name or a FloatFormat, got {type(name_or_format).__name__}")
    if name_or_format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, or a FloatFormat, got {name_or_format!r}")
    return FORMATS[name_or_format]
