"""`libdevice`: CUDA's library of mathematics, as `triton.language.extra.libdevice` offers it.

Each function is a table entry: which operand types it takes, the type of its result, and what it computes. Functions
of fp32 are computed in float64 and rounded once, so they are right to the last bit; a GPU's are off by a few, and its
`fast_` ones by more. Left out: Bessel functions of any order (`jn`, `yn`) and `rcp64h`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cme295lab.simulator import arithmetic
from cme295lab.simulator.arithmetic import Operand
from cme295lab.simulator.broadcasting import common_shape, lifted, result
from cme295lab.simulator.casts import cast
from cme295lab.simulator.dtypes import DType, float32, float64, int1, int32, int64
from cme295lab.simulator.errors import KernelTypeError
from cme295lab.simulator.language.registry import LIBDEVICE, Builtin
from cme295lab.simulator.machine import Machine
from cme295lab.simulator.values import Block, scalar

Overloads = dict[tuple[DType, ...], DType]  # operand types: type of the result


@dataclass(frozen=True)
class DeviceFunction:
    """One function: `compute` gets numpy arrays (floats in float64) and the operands' types."""

    name: str
    overloads: Overloads
    compute: Callable[..., np.ndarray]
    transcendental: bool = False
    in_own_type: bool = False  # floats are handed over as they are

    def __call__(self, m: Machine, *args: Operand) -> Block:
        """Choose the overload, compute element by element, round to the type of the result."""
        blocks = self._operands(m, args)
        kinds = tuple(b.dtype for b in blocks)
        out, shape = self.overloads[kinds], common_shape(*blocks)
        arrays = [self._array(lifted(b.data(m.active), len(shape)), b.dtype) for b in blocks]
        with np.errstate(all="ignore"):
            found = np.asarray(self.compute(*arrays))
        if kinds[0].is_float or out.is_float:
            m.count_float_ops(math.prod(shape), transcendental=self.transcendental)
        if not out.is_float:
            return result(m, found if found.dtype == out.numpy else found.astype(out.numpy), out, shape)
        return result(m, torch.from_numpy(np.ascontiguousarray(found)).to(out.torch), out, shape)

    def _array(self, data: Any, dtype: DType) -> np.ndarray:
        if not isinstance(data, torch.Tensor):
            return np.asarray(data)
        return (data if self.in_own_type or dtype == float64 else data.double()).numpy()

    def _operands(self, m: Machine, args: Sequence[Operand]) -> list[Block]:
        count = len(next(iter(self.overloads)))
        if len(args) != count:
            raise KernelTypeError(f"libdevice.{self.name} takes {count} operands, got {len(args)}")
        blocks = [a if isinstance(a, Block) else scalar(a, m.active) for a in args]
        if tuple(b.dtype for b in blocks) not in self.overloads and count > 1:
            common = self._common_type(m, args, blocks)
            blocks = [
                cast(m, b, common) if isinstance(a, Block) else scalar(a, m.active, common)
                for a, b in zip(args, blocks, strict=True)
            ]
        kinds = tuple(b.dtype for b in blocks)
        if kinds not in self.overloads:
            allowed = " or ".join("(" + ", ".join(map(str, o)) + ")" for o in self.overloads)
            raise KernelTypeError(
                f"libdevice.{self.name} takes {allowed}, got ({', '.join(map(str, kinds))}): convert with .to(...)"
            )
        return blocks

    def _common_type(self, m: Machine, args: Sequence[Operand], blocks: list[Block]) -> DType:
        """The type that all operands are promoted to; Python numbers do not widen it."""
        together: Operand = args[0]
        for other in args[1:]:
            first, second, _ = arithmetic.promoted(m, "*", together, other)
            together = first if isinstance(first, Block) else second
        return together.dtype if isinstance(together, Block) else blocks[0].dtype


def define(
    name: str, overloads: Overloads, compute: Callable[..., Any], *, transcendental: bool = False,
    in_own_type: bool = False,
) -> None:  # fmt: skip
    """Add a function to the table."""
    function = DeviceFunction(name, overloads, compute, transcendental, in_own_type)
    LIBDEVICE[name] = Builtin(name, function)


def floats(count: int, out: DType | None = None) -> Overloads:
    """Operands that are all fp32 or all fp64; the result has their type, or `out`."""
    return {(kind,) * count: out or kind for kind in (float32, float64)}


def _from_torch(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: function(torch.from_numpy(np.ascontiguousarray(x))).numpy()


def _each(function: Callable[..., float]) -> Callable[..., np.ndarray]:
    """A function of Python floats, for every element; where it has no value the result is NaN."""

    def guarded(*values: float) -> float:
        try:
            return function(*values)
        except (ValueError, ZeroDivisionError):
            return math.nan
        except OverflowError:
            return math.inf

    return lambda *arrays: np.vectorize(guarded, otypes=[np.float64])(*arrays)


def _tgamma(x: float) -> float:
    if x == 0:
        return math.copysign(math.inf, x)
    return math.gamma(x)


def _sinpi(x: np.ndarray) -> np.ndarray:
    turns = np.fmod(x, 2.0)
    return np.where(turns == np.rint(turns), np.copysign(0.0, x), np.sin(np.pi * turns))


def _cospi(x: np.ndarray) -> np.ndarray:
    turns = np.fmod(np.abs(x), 2.0)
    return np.where((turns == 0.5) | (turns == 1.5), 0.0, np.cos(np.pi * turns))


def _round_half_away(x: np.ndarray) -> np.ndarray:
    whole = np.trunc(x)
    return np.where(np.abs(x - whole) >= 0.5, whole + np.copysign(1.0, x), whole)


def _exponent(x: np.ndarray) -> np.ndarray:
    """The exponent of the leading bit, as a float."""
    exponent = np.frexp(x)[1] - 1.0
    return np.where(x == 0, -np.inf, np.where(np.isinf(x), np.inf, np.where(np.isnan(x), np.nan, exponent)))


def _ilogb(x: np.ndarray) -> np.ndarray:
    limits = np.iinfo(np.int32)
    exponent = np.frexp(np.where(np.isfinite(x), x, 1.0))[1] - 1
    return np.where((x == 0) | np.isnan(x), limits.min, np.where(np.isinf(x), limits.max, exponent))


def _norm(*parts: np.ndarray) -> np.ndarray:
    """A length without overflow on the way."""
    length = np.abs(parts[0])
    for part in parts[1:]:
        length = np.hypot(length, part)
    return length


def _positive_difference(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(x) | np.isnan(y), np.nan, np.where(x > y, x - y, 0.0))


_SQRT_HALF = math.sqrt(0.5)
_TRANSCENDENTAL: dict[str, Callable[..., Any]] = {
    "exp": np.exp, "exp2": np.exp2, "exp10": lambda x: np.power(10.0, x), "expm1": np.expm1, "log": np.log,
    "log2": np.log2, "log10": np.log10, "log1p": np.log1p, "sin": np.sin, "cos": np.cos, "tan": np.tan,
    "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "sinh": np.sinh, "cosh": np.cosh, "tanh": np.tanh,
    "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh, "sinpi": _sinpi, "cospi": _cospi, "sqrt": np.sqrt,
    "rsqrt": lambda x: 1.0 / np.sqrt(x), "cbrt": np.cbrt, "rcbrt": lambda x: 1.0 / np.cbrt(x),
    "erf": _from_torch(torch.erf), "erfc": _from_torch(torch.erfc), "erfinv": _from_torch(torch.erfinv),
    "erfcx": _from_torch(torch.special.erfcx), "normcdf": _from_torch(torch.special.ndtr),
    "erfcinv": lambda x: -_from_torch(torch.special.ndtri)(x / 2) * _SQRT_HALF,
    "normcdfinv": _from_torch(torch.special.ndtri), "lgamma": _from_torch(torch.lgamma), "tgamma": _each(_tgamma),
    "j0": _from_torch(torch.special.bessel_j0), "j1": _from_torch(torch.special.bessel_j1),
    "y0": _from_torch(torch.special.bessel_y0), "y1": _from_torch(torch.special.bessel_y1),
    "cyl_bessel_i0": _from_torch(torch.special.i0), "cyl_bessel_i1": _from_torch(torch.special.i1),
}  # fmt: skip
_SIMPLE: dict[str, Callable[..., Any]] = {
    "floor": np.floor, "ceil": np.ceil, "trunc": np.trunc, "rint": np.rint, "nearbyint": np.rint,
    "round": _round_half_away, "logb": _exponent,
}  # fmt: skip
_OF_TWO: dict[str, Callable[..., Any]] = {
    "atan2": np.arctan2, "hypot": np.hypot, "rhypot": lambda x, y: 1.0 / np.hypot(x, y), "fmod": np.fmod,
    "copysign": np.copysign, "fdim": _positive_difference, "remainder": _each(math.remainder),
}  # fmt: skip
_FAST: dict[str, Callable[..., Any]] = {
    "fast_sinf": np.sin, "fast_cosf": np.cos, "fast_tanf": np.tan, "fast_logf": np.log, "fast_log2f": np.log2,
    "fast_log10f": np.log10, "fast_expf": np.exp, "fast_exp10f": lambda x: np.power(10.0, x), "fast_tanhf": np.tanh,
}  # fmt: skip


def _define_floats() -> None:
    for name, compute in _TRANSCENDENTAL.items():
        define(name, floats(1), compute, transcendental=True)
    for name, compute in _SIMPLE.items():
        define(name, floats(1), compute)
    define("abs", {**floats(1), (int32,): int32, (int64,): int64}, np.abs)
    for name, compute in _OF_TWO.items():
        define(name, floats(2), compute, transcendental=name in ("atan2", "hypot", "rhypot"))
    for name, compute in _FAST.items():
        define(name, {(float32,): float32}, compute, transcendental=True)
    powers = {**floats(2), (float32, int32): float32, (float64, int32): float64}
    define("pow", powers, np.power, transcendental=True)
    define("fast_powf", {(float32, float32): float32}, np.power, transcendental=True)
    define("fast_dividef", {(float32, float32): float32}, np.divide)
    define("saturatef", {(float32,): float32}, lambda x: np.where(np.isnan(x), 0.0, np.clip(x, 0.0, 1.0)))
    for count in (3, 4):
        define(f"norm{count}d", floats(count), _norm, transcendental=True)
        define(f"rnorm{count}d", floats(count), lambda *x: 1.0 / _norm(*x), transcendental=True)
    scaling: Overloads = {(float32, int32): float32, (float64, int32): float64}
    for name in ("ldexp", "scalbn"):
        define(name, scaling, lambda x, n: np.ldexp(x, n), in_own_type=True)
    define("nextafter", floats(2), np.nextafter, in_own_type=True)
    define("isnan", floats(1, int1), np.isnan)
    define("isinf", floats(1, int1), np.isinf)
    define("signbit", floats(1, int32), np.signbit)
    define("finitef", {(float32,): int1}, np.isfinite)
    define("isfinited", {(float64,): int1}, np.isfinite)
    define("ilogb", floats(1, int32), _ilogb)
    define("llrint", floats(1, int64), np.rint)
    define("llround", floats(1, int64), _round_half_away)


_define_floats()
