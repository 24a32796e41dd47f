"""Element-wise mathematics."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cme295lab.simulator import arithmetic, casts, dtypes, selection
from cme295lab.simulator.arithmetic import Operand, binary
from cme295lab.simulator.broadcasting import common_shape, lifted, result
from cme295lab.simulator.errors import KernelTypeError
from cme295lab.simulator.language.registry import native
from cme295lab.simulator.machine import Machine
from cme295lab.simulator.values import Block, as_torch, scalar

_FUNCTIONS: dict[str, tuple[Any, bool]] = {  # name: (torch function, transcendental)
    "exp": (torch.exp, True), "exp2": (torch.exp2, True), "log": (torch.log, True), "log2": (torch.log2, True),
    "sin": (torch.sin, True), "cos": (torch.cos, True), "sqrt": (torch.sqrt, True), "sqrt_rn": (torch.sqrt, True),
    "rsqrt": (torch.rsqrt, True), "erf": (torch.erf, True), "floor": (torch.floor, False), "ceil": (torch.ceil, False),
    "tanh": (torch.tanh, True),
}  # fmt: skip


def _register_functions() -> None:
    for name, (function, transcendental) in _FUNCTIONS.items():

        def run(
            m: Machine, x: Operand, _name: str = name, _function: Any = function, _transcendental: bool = transcendental
        ) -> Block:
            return arithmetic.unary(m, _function, x, f"tl.{_name}", transcendental=_transcendental)

        native(name, method=True)(run)


_register_functions()


@native("sigmoid", method=True)
def sigmoid(m: Machine, x: Block) -> Operand:
    raised = arithmetic.unary(m, torch.exp, arithmetic.negative(m, x), "tl.sigmoid")
    return binary(m, "/", 1.0, binary(m, "+", 1.0, raised))


@native("abs", method=True)
def absolute(m: Machine, x: Operand) -> Operand:
    if not isinstance(x, Block):
        return abs(x)
    if x.dtype.is_float:
        m.count_float_ops(x.num_elements)
        return result(m, as_torch(x.data(m.active)).abs(), x.dtype, x.shape)
    return result(m, np.abs(x.data(m.active)), x.dtype, x.shape)  # type: ignore[arg-type]


def _nan_suffix(propagate_nan: object) -> str:
    """Triton's default drops a NaN when the other operand is a number; `tl.PropagateNan.ALL` keeps it."""
    return "nan" if getattr(propagate_nan, "name", "NONE") == "ALL" or propagate_nan == "ALL" else ""


@native("maximum", method=False)
def maximum(m: Machine, x: Operand, y: Operand, propagate_nan: object = None) -> Operand:
    return binary(m, "max" + _nan_suffix(propagate_nan), x, y)


@native("minimum", method=False)
def minimum(m: Machine, x: Operand, y: Operand, propagate_nan: object = None) -> Operand:
    return binary(m, "min" + _nan_suffix(propagate_nan), x, y)


@native("clamp")
def clamp(m: Machine, x: Operand, min: Operand, max: Operand, propagate_nan: object = None) -> Operand:
    suffix = _nan_suffix(propagate_nan)
    return binary(m, "min" + suffix, binary(m, "max" + suffix, x, min), max)


@native("add")
def add(m: Machine, x: Operand, y: Operand, sanitize_overflow: bool = True) -> Operand:
    return binary(m, "+", x, y)


@native("sub")
def sub(m: Machine, x: Operand, y: Operand, sanitize_overflow: bool = True) -> Operand:
    return binary(m, "-", x, y)


@native("mul")
def mul(m: Machine, x: Operand, y: Operand, sanitize_overflow: bool = True) -> Operand:
    return binary(m, "*", x, y)


@native("fdiv", "div_rn")
def divide(m: Machine, x: Operand, y: Operand, ieee_rounding: bool = False) -> Operand:
    return binary(m, "/", x, y)


@native("fma")
def fma(m: Machine, x: Operand, y: Operand, z: Operand) -> Operand:
    """x * y + z, rounded once: a product of two 32-bit floats is exact in 64 bits."""
    x, y, _ = arithmetic.promoted(m, "*", x, y)
    _, z, dtype = arithmetic.promoted(m, "+", x if isinstance(x, Block) else y, z)
    if not dtype.is_float:
        return binary(m, "+", binary(m, "*", x, y), z)
    a, b, c = (casts.cast(m, v, dtypes.float64) if isinstance(v, Block) else v for v in (x, y, z))
    exact = binary(m, "+", binary(m, "*", a, b), c)
    return casts.cast(m, exact, dtype) if isinstance(exact, Block) else exact


@native("umulhi")
def umulhi(m: Machine, x: Operand, y: Operand) -> Block:
    """The upper half of the product of unsigned integers."""
    x, y, dtype = arithmetic.promoted(m, "*", x, y)
    if dtype.is_float or dtype.primitive_bitwidth not in (32, 64):
        raise KernelTypeError(f"tl.umulhi needs 32- or 64-bit integers, got {dtype}")
    a, b = (v if isinstance(v, Block) else scalar(v, m.active, dtype) for v in (x, y))
    shape = common_shape(a, b)
    left, right = (np.asarray(lifted(v.data(m.active), len(shape))) for v in (a, b))
    if dtype.primitive_bitwidth == 32:
        high = (left.view(np.uint32).astype(np.uint64) * right.view(np.uint32).astype(np.uint64)) >> np.uint64(32)
        return result(m, high.astype(np.uint32).view(dtype.numpy), dtype, shape)
    wide = (left.view(np.uint64).astype(object) * right.view(np.uint64).astype(object)) >> 64
    return result(m, wide.astype(np.uint64).view(dtype.numpy), dtype, shape)


@native("where")
def where(m: Machine, condition: Operand, x: Operand, y: Operand) -> Operand:
    return selection.where(m, condition, x, y)


@native("softmax", method=True)
def softmax(
    m: Machine, x: Block, dim: int | None = None, keep_dims: bool | None = None, ieee_rounding: bool = False
) -> Operand:
    from cme295lab.simulator.language.reductions import max_, sum_
    from cme295lab.simulator.language.shapes import expand_dims

    axis = 0 if dim is None else dim
    x.temporary = False
    largest = max_(m, x, axis)
    assert isinstance(largest, Block)
    shifted = binary(m, "-", x, expand_dims(m, largest, axis))
    raised = arithmetic.unary(m, torch.exp, shifted, "tl.softmax")
    raised.temporary = False
    return binary(m, "/", raised, expand_dims(m, sum_(m, raised, axis), axis))


@native("isnan")
def isnan(m: Machine, x: Block) -> Block:
    return result(m, torch.isnan(as_torch(x.data(m.active))).numpy(), dtypes.int1, x.shape)
