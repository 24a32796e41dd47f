"""`libdevice` functions about integers, bits and rounding: conversions and arithmetic rounded to nearest (`_rn`),
toward zero (`_rz`), down (`_rd`) and up (`_ru`).

A directed rounding is decided exactly: the result to nearest is compared with the true value as a fraction, element by
element, and moved by one place where it lies on the wrong side.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from cme295lab.simulator.dtypes import DType, float32, float64, int32, int64, uint32, uint64
from cme295lab.simulator.language.libdevice import Overloads, define, floats

_Compare = Callable[..., int]  # sign of (result - true value), for one element


def _sign(difference: Fraction) -> int:
    return (difference > 0) - (difference < 0)


def _square_side(found: float, x: float) -> int:
    return _sign(Fraction(found) ** 2 - Fraction(x)) if found > 0 else 0


_ARITHMETIC: dict[str, tuple[int, Callable[..., Any], _Compare]] = {  # operands, to nearest, side of the true value
    "add": (2, np.add, lambda r, x, y: _sign(Fraction(r) - Fraction(x) - Fraction(y))),
    "sub": (2, np.subtract, lambda r, x, y: _sign(Fraction(r) - Fraction(x) + Fraction(y))),
    "mul": (2, np.multiply, lambda r, x, y: _sign(Fraction(r) - Fraction(x) * Fraction(y))),
    "div": (2, np.divide, lambda r, x, y: _sign(Fraction(r) - Fraction(x) / Fraction(y)) if y else 0),
    "rcp": (1, lambda x: x.dtype.type(1) / x, lambda r, x: _sign(Fraction(r) - 1 / Fraction(x)) if x else 0),
    "sqrt": (1, np.sqrt, _square_side),
}


def _fused(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """x * y + z, rounded once."""

    def one(a: float, b: float, c: float) -> float:
        try:
            return float(Fraction(a) * Fraction(b) + Fraction(c))
        except (ValueError, OverflowError):
            return a * b + c

    wide = np.vectorize(one, otypes=[np.float64])(x, y, z)
    return wide if x.dtype == np.float64 else _nearest_float32(wide, x, y, z)


def _nearest_float32(wide: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """`wide` as fp32: rounded to odd first (the product is exact in float64), so that rounding twice does no harm."""
    high = x.astype(np.float64) * y.astype(np.float64)
    side = _sides(lambda r, a, b: _sign(Fraction(r) - Fraction(a) - Fraction(b)), wide, high, z.astype(np.float64))
    bits = wide.view(np.int64)
    toward_zero = np.where(side * np.sign(wide) > 0, bits - 1, bits)
    odd = np.where((side != 0) & np.isfinite(wide), toward_zero | 1, bits)
    return odd.view(np.float64).astype(np.float32)


def _sides(compare: _Compare, found: np.ndarray, *operands: np.ndarray) -> np.ndarray:
    def one(*values: float) -> int:
        return compare(*values) if all(np.isfinite(v) for v in values) else 0

    arrays = [np.asarray(a, np.float64) for a in (found, *operands)]
    return np.asarray(np.vectorize(one, otypes=[np.int64])(*arrays))


def _directed(mode: str, nearest: Callable[..., Any], compare: _Compare) -> Callable[..., np.ndarray]:
    """A function rounded in one direction."""

    def compute(*operands: np.ndarray) -> np.ndarray:
        found = np.asarray(nearest(*operands))
        if mode == "rn":
            return found
        side = _sides(compare, found, *operands)
        return _stepped(found, side, mode)

    return compute


def _stepped(found: np.ndarray, side: np.ndarray, mode: str) -> np.ndarray:
    """Move results to nearest that lie on the wrong side of the true value (`side` is the sign of their error)."""
    infinity = found.dtype.type(np.inf)
    down, up = np.nextafter(found, -infinity), np.nextafter(found, infinity)
    too_high = (side > 0) & ((mode == "rd") | ((mode == "rz") & (found > 0)))
    too_low = (side < 0) & ((mode == "ru") | ((mode == "rz") & (found < 0)))
    return np.where(too_high, down, np.where(too_low, up, found))


def _converted(target: DType, mode: str) -> Callable[[np.ndarray], np.ndarray]:
    """A number as a float of another type."""
    return _directed(
        mode, lambda x: x.astype(np.float64 if target == float64 else np.float32),
        lambda r, x: _sign(Fraction(r) - Fraction(x)),
    )  # fmt: skip


def _from_integer(target: DType, mode: str) -> Callable[[np.ndarray], np.ndarray]:
    def compute(x: np.ndarray) -> np.ndarray:
        found = x.astype(np.float64 if target == float64 else np.float32)
        if mode == "rn":
            return found
        side = np.vectorize(lambda r, n: _sign(Fraction(float(r)) - int(n)), otypes=[np.int64])(found, x)
        return _stepped(found, side, mode)

    return compute


_WHOLE = {"rn": np.rint, "rz": np.trunc, "rd": np.floor, "ru": np.ceil}


def _to_integer(kind: DType, mode: str) -> Callable[[np.ndarray], np.ndarray]:
    """A float as an integer: what does not fit becomes the nearest that does, NaN becomes 0 (or the sign bit)."""
    limits = np.iinfo(kind.numpy)

    def compute(x: np.ndarray) -> np.ndarray:
        whole = _WHOLE[mode](x)
        inside = (whole >= float(limits.min)) & (whole < float(limits.max) + 1.0)
        cast = np.where(inside, whole, 0.0).astype(kind.numpy)
        edge = np.where(whole > 0, limits.max, limits.min).astype(kind.numpy)
        no_number = kind.numpy.type(0 if limits.bits == 32 else limits.min if kind.signed else 1 << 63)
        return np.where(np.isnan(x), no_number, np.where(inside, cast, edge)).view(f"i{kind.itemsize}")

    return compute


def _popcount(x: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(x).view(np.uint8).reshape(*x.shape, x.dtype.itemsize)
    return np.unpackbits(bits, axis=-1).sum(-1).astype(np.int32)


def _leading_zeros(x: np.ndarray) -> np.ndarray:
    unsigned = np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}").copy()
    for shift in (1, 2, 4, 8, 16, 32)[: 5 if x.dtype.itemsize == 4 else 6]:  # fill up below the highest bit
        unsigned |= unsigned >> unsigned.dtype.type(shift)
    return (8 * x.dtype.itemsize - _popcount(unsigned)).astype(np.int32)


def _first_set(x: np.ndarray) -> np.ndarray:
    lowest = x & -x
    return np.where(x == 0, 0, 8 * x.dtype.itemsize - _leading_zeros(lowest)).astype(np.int32)


def _reversed_bits(x: np.ndarray) -> np.ndarray:
    size = x.dtype.itemsize
    bits = np.unpackbits(np.ascontiguousarray(x).view(np.uint8).reshape(*x.shape, size), axis=-1, bitorder="little")
    return np.packbits(bits[..., ::-1], axis=-1, bitorder="little").view(x.dtype).reshape(x.shape)


def _permuted_bytes(x: np.ndarray, y: np.ndarray, selector: np.ndarray) -> np.ndarray:
    both = (y.view(np.uint32).astype(np.uint64) << np.uint64(32)) | x.view(np.uint32).astype(np.uint64)
    found = np.zeros(np.broadcast_shapes(both.shape, selector.shape), np.uint64)
    for place in range(4):
        choice = (selector >> (4 * place)) & 15
        byte = (both >> ((choice & 7) * 8).astype(np.uint64)) & np.uint64(255)
        sign = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
        found |= np.where(choice & 8, sign, byte) << np.uint64(8 * place)
    return found.astype(np.uint32).view(np.int32)


def _high_half(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    product = (x.astype(object) * y.astype(object)) >> (8 * x.dtype.itemsize)
    return np.asarray(product).astype(x.dtype)


def _low_24(x: np.ndarray) -> np.ndarray:
    wide = x.astype(np.int64) & 0xFFFFFF
    return np.where(wide & 0x800000, wide - 0x1000000, wide) if x.dtype.kind == "i" else wide


def _average(rounding: int) -> Callable[..., np.ndarray]:
    return lambda x, y: ((x.astype(np.int64) + y.astype(np.int64) + rounding) >> 1).astype(x.dtype)


def _define_integers() -> None:
    words: Overloads = {(int32,): int32, (int64,): int32}
    pairs: Overloads = {(int32, int32): int32, (uint32, uint32): uint32}
    for name, compute in (("clz", _leading_zeros), ("popc", _popcount), ("ffs", _first_set)):
        define(name, words, compute)
    define("brev", {(int32,): int32, (int64,): int64}, _reversed_bits)
    define("byte_perm", {(int32, int32, int32): int32}, _permuted_bytes)
    define("mulhi", {**pairs, (int64, int64): int64, (uint64, uint64): uint64}, _high_half)
    define("mul24", pairs, lambda x, y: (_low_24(x) * _low_24(y)).astype(x.dtype))
    define("hadd", pairs, _average(0))
    define("rhadd", pairs, _average(1))
    define(
        "sad", {(int32, int32, uint32): int32, (uint32, uint32, uint32): uint32},
        lambda x, y, z: (np.abs(x.astype(np.int64) - y.astype(np.int64)) + z.astype(np.int64)).astype(x.dtype),
    )  # fmt: skip
    views = {
        "int_as_float": (int32, float32), "float_as_int": (float32, int32), "uint_as_float": (uint32, float32),
        "float_as_uint": (float32, int32), "longlong_as_double": (int64, float64),
        "double_as_longlong": (float64, int64),
    }  # fmt: skip
    for name, (source, target) in views.items():
        held = f"f{target.itemsize}" if target.is_float else f"i{target.itemsize}"
        define(name, {(source,): target}, lambda x, h=held: np.ascontiguousarray(x).view(h), in_own_type=True)
    define("double2hiint", {(float64,): int32}, lambda x: np.ascontiguousarray(x).view(np.int64) >> 32)
    define("double2loint", {(float64,): int32}, lambda x: np.ascontiguousarray(x).view(np.int64))
    define(
        "hiloint2double", {(int32, int32): float64},
        lambda high, low: ((high.astype(np.int64) << 32) | (low.astype(np.int64) & 0xFFFFFFFF)).view(np.float64),
    )  # fmt: skip


def _define_rounding() -> None:
    for mode in ("rn", "rz", "rd", "ru"):
        for name, (count, nearest, compare) in _ARITHMETIC.items():
            define(f"{name}_{mode}", floats(count), _directed(mode, nearest, compare), in_own_type=True)
        fused = _directed(mode, _fused, lambda r, x, y, z: _sign(Fraction(r) - Fraction(x) * Fraction(y) - Fraction(z)))
        define(f"fma_{mode}", floats(3), fused, in_own_type=True)
        define(f"double2float_{mode}", {(float64,): float32}, _converted(float32, mode), in_own_type=True)
        for source, kind in (("float", float32), ("double", float64)):
            for target, integer in (("int", int32), ("uint", uint32), ("ll", int64), ("ull", uint64)):
                out = int32 if integer.itemsize == 4 else int64
                define(f"{source}2{target}_{mode}", {(kind,): out}, _to_integer(integer, mode))
                if mode == "rn" or kind == float32 or integer.itemsize == 8:  # 32-bit integers fit in fp64
                    define(f"{target}2{source}_{mode}", {(integer,): kind}, _from_integer(kind, mode))
    define("fma", floats(3), _fused, in_own_type=True)
    define("rsqrt_rn", {(float32,): float32}, lambda x: 1.0 / np.sqrt(x), transcendental=True)


_define_integers()
_define_rounding()
