"""`tl.dot`: products of blocks, exact in the operands and accumulated in float32 like a tensor core."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from cme295lab.simulator import dtypes
from cme295lab.simulator.broadcasting import result
from cme295lab.simulator.dtypes import DType
from cme295lab.simulator.errors import KernelTypeError
from cme295lab.simulator.language.registry import native
from cme295lab.simulator.machine import Machine
from cme295lab.simulator.programs import Array
from cme295lab.simulator.sharing import SharedBlock
from cme295lab.simulator.values import Block, require_block

_TF32_LOST_BITS = 13


@native("dot")
def dot(
    m: Machine,
    input: Block,
    other: Block,
    acc: Block | None = None,
    input_precision: str | None = None,
    allow_tf32: bool | None = None,
    max_num_imprecise_acc: int | None = None,
    out_dtype: DType | None = None,
) -> Block:
    """acc + input @ other. Products of 16- and 8-bit floats are exact in float32; float32 operands keep all their
    bits unless `input_precision="tf32"` asks for the rounding of tensor cores."""
    _check_types(input.dtype, other.dtype)
    shape = _result_shape(input, other, acc)
    out = _result_type(input.dtype, acc, out_dtype)
    left, right = _operands(m, input, other, input_precision)
    flops = 2 * math.prod(shape) * input.shape[-1] * m.num_active
    m.counters.count_dot(flops, _number_format(input.dtype, input_precision, allow_tf32))
    if acc is not None and acc.temporary and acc.dtype == out:
        m.temporary_bytes -= acc.block_bytes  # the product is added to it where it stands
    if acc is not None and acc.dtype == out == dtypes.float32 and len(shape) == 2:
        product = _accumulated(m, acc, left, right)
        if product is not None:
            return result(m, product, out, shape)
    product = _matmul(left, right).reshape(-1, *shape)
    if acc is not None and not _is_zero(acc):
        previous: Any = acc.data(m.active)
        product = product + (
            torch.from_numpy(np.ascontiguousarray(previous)) if isinstance(previous, np.ndarray) else previous
        ).to(product.dtype)
    if not out.is_float:
        return result(m, product.to(torch.int32).numpy(), out, shape)
    return result(m, product if product.dtype == out.torch else product.to(out.torch), out, shape)


def _check_types(a: DType, b: DType) -> None:
    """What Triton has tensor cores multiply: floats, and signed bytes."""
    if not a.is_float and not a == b == dtypes.int8:
        raise KernelTypeError(f"tl.dot multiplies floats or int8, got {a} and {b}")


def _number_format(dtype: DType, input_precision: str | None, allow_tf32: bool | None) -> str:
    """The format in which a GPU multiplies, as data sheets call it."""
    if dtype.is_fp32():
        precision = input_precision or ("ieee" if allow_tf32 is False else "tf32")
        return "fp32" if precision == "ieee" else precision
    if dtype.is_fp64():
        return "fp64_tensor"
    return "fp8" if dtype.is_fp8() else "int8" if not dtype.is_float else str(dtype)


def _result_type(operands: DType, acc: Block | None, wanted: DType | None) -> DType:
    """Integers are accumulated in int32, fp64 in itself, fp16 and fp8 in fp32 or fp16, everything else in fp32."""
    out = wanted or (acc.dtype if acc is not None else dtypes.float32)
    if not operands.is_float:
        out = dtypes.int32
    elif operands.is_fp64() or operands.is_fp32() or operands.is_bf16():
        out = dtypes.float64 if operands.is_fp64() else dtypes.float32
    if out.is_bf16() or (acc is not None and acc.dtype != out):
        raise KernelTypeError(
            f"tl.dot: products of {operands} are not accumulated in {acc.dtype if acc is not None else out}; "
            f"use {dtypes.float32 if out.is_bf16() else out}, and convert the result with .to(...)"
        )
    return out


def _result_shape(a: Block, b: Block, acc: Block | None) -> tuple[int, ...]:
    for name, x in (("input", a), ("other", b)):
        if not isinstance(require_block(x, f"tl.dot's {name}"), Block) or len(x.shape) not in (2, 3):
            raise KernelTypeError(f"tl.dot's {name} must be a block of rank 2 or 3, got shape {x.shape}")
    if a.dtype != b.dtype and not (a.dtype.is_fp8() and b.dtype.is_fp8()):
        raise KernelTypeError(
            f"tl.dot: both operands must have the same type, got {a.dtype} and {b.dtype}; convert one with .to(...)"
        )
    if a.shape[-1] != b.shape[-2] or a.shape[:-2] != b.shape[:-2]:
        raise KernelTypeError(
            f"tl.dot: shapes {a.shape} and {b.shape} do not match (columns of the first, rows of the second)"
        )
    shape = (*a.shape[:-1], b.shape[-1])
    if acc is not None and acc.shape != shape:
        raise KernelTypeError(f"tl.dot: the accumulator has shape {acc.shape}, the product {shape}")
    return shape


def _operands(m: Machine, a: Block, b: Block, precision: str | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Both operands, widened; where programs share the second one, the first ones of a run are stacked on it."""
    left = _wide(a.full(m.active), precision)
    if isinstance(b, SharedBlock) and b.programs is m.active and left.dim() == 3 and left.shape[0] == m.num_active:
        stacked = left.reshape(b.shared.shape[0], -1, left.shape[-1])
        return stacked, _wide(b.shared, precision)
    return left, _wide(b.full(m.active), precision)


def _wide(data: Array, precision: str | None) -> torch.Tensor:
    """An operand in a type whose products are exact: float32 for floats up to 32 bits, float64 for integers."""
    if isinstance(data, np.ndarray):
        return torch.from_numpy(data.astype(np.float64))
    if data.dtype not in (torch.float32, torch.float64):
        return data.float()
    if precision == "tf32" and data.dtype == torch.float32:
        return _round_to_tf32(data)
    return data


def _round_to_tf32(x: torch.Tensor) -> torch.Tensor:
    """Round float32 to 10 mantissa bits, ties to even."""
    bits = x.contiguous().view(torch.int32)
    half = (1 << (_TF32_LOST_BITS - 1)) - 1
    rounded = (bits + half + ((bits >> _TF32_LOST_BITS) & 1)) & ~((1 << _TF32_LOST_BITS) - 1)
    return torch.where(torch.isfinite(x), rounded.view(torch.float32), x)


def _matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    if a.dim() == 3 and a.shape[0] == b.shape[0]:
        return torch.bmm(a, b)
    if (
        a.dim() == 3 and b.shape[0] == 1 and a.is_contiguous()
    ):  # one right operand for all programs: a single tall product
        return (a.reshape(-1, a.shape[-1]) @ b[0]).view(a.shape[0], a.shape[1], b.shape[-1])
    return torch.matmul(a, b)


def _accumulated(m: Machine, acc: Block, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor | None:
    """Add the product to an accumulator that nobody else holds, in place."""
    held = acc.arrays[0]
    if acc.exposed or not (acc.temporary or acc.expiring) or acc.programs is not m.active:
        return None
    if not isinstance(held, torch.Tensor) or a.shape[0] != b.shape[0]:
        return None
    if held.numel() != a.shape[0] * a.shape[1] * b.shape[2] or not held.is_contiguous():
        return None
    held.view(a.shape[0], a.shape[1], b.shape[2]).baddbmm_(a, b)
    return held


def _is_zero(acc: Block) -> bool:
    array = acc.arrays[0]
    return len(acc.arrays) == 1 and len(array.reshape(-1)) == 1 and not array.reshape(-1)[0]
