"""What the tests of formats compare with: other libraries' dtypes, and exact rational arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import torch

from cme295lab.precision import FloatFormat

LIBRARY_DTYPES = {
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "fp8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp6_e3m2": ml_dtypes.float6_e3m2fn,
    "fp6_e2m3": ml_dtypes.float6_e2m3fn,
    "fp4_e2m1": ml_dtypes.float4_e2m1fn,
    "e8m0": ml_dtypes.float8_e8m0fnu,
}
E4M3_IEEE = FloatFormat(name="e4m3 with infinity", exponent_bits=4, mantissa_bits=3, bias=7, specials="ieee")
E3M4_IEEE = FloatFormat(name="e3m4 with infinity", exponent_bits=3, mantissa_bits=4, bias=3, specials="ieee")
E4M3_UNSIGNED = FloatFormat(
    name="e4m3 without sign", exponent_bits=4, mantissa_bits=3, bias=7, specials="nan-only", signed=False
)
TINY_VALUES = FloatFormat(name="down to 2^-1026", exponent_bits=10, mantissa_bits=5, bias=1022, specials="ieee")
FINE_VALUES = FloatFormat(name="52 bits from 2^-1051", exponent_bits=10, mantissa_bits=52, bias=1000, specials="ieee")
LARGE_VALUES = FloatFormat(name="up to 2^410", exponent_bits=9, mantissa_bits=4, bias=100, specials="ieee")


def library_codes(values: np.ndarray, dtype: type) -> np.ndarray:
    """Codes that NumPy or ml_dtypes give."""
    with np.errstate(all="ignore"):
        converted = values.astype(dtype)
    return converted.view(np.uint16 if np.dtype(dtype).itemsize == 2 else np.uint8).astype(np.int64)


def library_values(dtype: type, num_codes: int) -> np.ndarray:
    """What NumPy or ml_dtypes take each code for, in float64."""
    narrow = np.arange(num_codes).astype(np.uint16 if np.dtype(dtype).itemsize == 2 else np.uint8)
    with np.errstate(all="ignore"):
        return narrow.view(dtype).astype(np.float64)


def random_patterns(count: int, seed: int) -> torch.Tensor:
    """Float32s of which every pattern of bits is as likely as every other: all exponents, infinities, NaNs."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 1 << 32, count, dtype=np.uint32).view(np.float32))


def exact_rounding(x: float, format: FloatFormat, *, toward_zero: bool = False) -> float:
    """The value that x is rounded to, in rational arithmetic; for formats with a mantissa and finite x."""
    size = Fraction(abs(x))
    if not size:
        return x
    exponent = math.frexp(abs(x))[1] - 1
    step = Fraction(2) ** (max(exponent, 1 - format.bias) - format.mantissa_bits)
    count = math.floor(size / step) if toward_zero else round(size / step)  # Python's round takes ties to even
    result = count * step
    if result > Fraction(format.max):
        if toward_zero or format.specials == "finite":
            result = Fraction(format.max)
        else:
            return math.copysign(math.inf, x) if format.specials == "ieee" else math.nan
    return math.copysign(float(result), x)
