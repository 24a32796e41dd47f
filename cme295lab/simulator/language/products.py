"""`tl.dot`: products of blocks, exact in the operands and accumulated in float32 like a tensor core."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from cme295lab.simulator import dtypes
from cme295lab.simulator.broadcasting import result
from cme295lab.simulator.deferred import Source, has_rows, is_deferred, is_pending, record, source, written_out
from cme295lab.simulator.dtypes import DType
from cme295lab.simulator.errors import KernelTypeError
from cme295lab.simulator.language.registry import native
from cme295lab.simulator.machine import Machine
from cme295lab.simulator.programs import Array
from cme295lab.simulator.steps import Step
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
    flops = 2 * math.prod(shape) * input.shape[-1] * m.num_active
    m.counters.count_dot(flops, _number_format(input.dtype, input_precision, allow_tf32))
    if acc is not None and acc.temporary and acc.dtype == out:
        m.temporary_bytes -= acc.block_bytes  # the product is added to it where it stands
    if acc is not None and _is_zero(m, acc):
        acc = None
    if input.dtype.is_float and is_deferred(m, input, other, *([] if acc is None else [acc])):
        return _dot_later(m, input, other, acc, input_precision, out, shape)
    left, right = (_wide(x.full(m.active), input_precision) for x in (input, other))
    product = torch.matmul(left, right).reshape(-1, *shape)
    if acc is not None:
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


def _is_zero(m: Machine, acc: Block) -> bool:
    """Whether an accumulator is zero, the same everywhere, so that nothing need be added to it."""
    if is_pending(acc, m) or len(acc.arrays) > 1:
        return False
    array = acc.arrays[0].reshape(-1)
    return len(array) == 1 and not array[0]


def _dot_later(
    m: Machine, input: Block, other: Block, acc: Block | None, precision: str | None, out: DType, shape: tuple[int, ...]
) -> Block:
    """Write the product of floats down on the tape; where programs share the second operand, the first ones of a run
    are stacked on it when it is done."""
    rank = len(shape)
    sources = [_wide_source(m, source(m, x, rank), precision) for x in (input, other)]
    if acc is not None:
        sources.append(source(m, acc, rank))
    runs = {x.repeats if isinstance(x, Step) else 1 for x in sources if has_rows(x)}
    repeats = runs.pop() if len(runs) == 1 else 1
    if repeats == 1:
        sources = [x if i == 1 and rank == 2 else written_out(m, x) for i, x in enumerate(sources)]
    multiply = _multiply_matrices if rank == 2 and out.primitive_bitwidth >= 32 else _multiply

    inner = input.shape[-1]  # the step must not keep the block itself

    def run(rows: slice, result: torch.Tensor | None, *operands: torch.Tensor) -> torch.Tensor:
        return multiply((rows.stop - rows.start, *shape), inner, out, result, *operands)

    return record(m, run, sources, shape, out, shape, overwrites=() if acc is None else (2,), repeats=repeats)


def _wide_source(m: Machine, x: Source, precision: str | None) -> Source:
    """An operand in a type whose products are exact; converted once, however many products it is in."""
    if isinstance(x, torch.Tensor):
        return _wide(x, precision)
    assert isinstance(x, Step)
    if x.dtype.is_fp64() or (x.dtype.is_fp32() and precision != "tf32"):
        return x
    if x.wide is None or x.wide[0] != m.tape.times_played:
        if x.view and x.inputs:
            inner = _wide_source(m, x.inputs[0], precision)
            step = Step(x.function, [inner], x.size, dtypes.float32, repeats=x.repeats, view=True)
        else:
            step = Step(lambda rows, out, data: _wide(data, precision), [x], x.size, dtypes.float32, repeats=x.repeats)
        x.wide = (m.tape.times_played, m.tape.append(step, m.active))
    return x.wide[1]


def _multiply_matrices(
    shape: tuple[int, ...], inner: int, dtype: DType, result: torch.Tensor | None,
    left: torch.Tensor, right: torch.Tensor, previous: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Products of two matrices per program, added to what was there before; `shape` begins with the number of
    programs."""
    count, height, width = shape
    if left.shape[1] != height or left.shape[2] != inner:
        left = left.expand(-1, height, inner)
    if right.shape[1] != inner or right.shape[2] != width:
        right = right.expand(-1, inner, width)
    if left.shape[0] == 1 < right.shape[0]:
        left = left.expand(right.shape[0], -1, -1)
    if left.shape[0] < count:  # only the accumulators differ between programs
        left = left.expand(count, -1, -1)
    if left.shape[0] != right.shape[0]:
        left = left.reshape(right.shape[0], -1, inner)
    if result is None or not result.is_contiguous():
        result = torch.empty(shape, dtype=dtype.torch)
    product = result.view(left.shape[0], left.shape[1], width)
    if previous is None:
        torch.bmm(left, right, out=product)
    elif previous is result:
        product.baddbmm_(left, right)
    else:
        torch.baddbmm(previous.expand(shape).reshape(product.shape), left, right, out=product)
    return result


def _multiply(
    shape: tuple[int, ...], inner: int, dtype: DType, result: torch.Tensor | None,
    left: torch.Tensor, right: torch.Tensor, previous: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """The same for any rank and type of the result."""
    product = torch.matmul(left.expand(-1, *shape[1:-1], inner), right.expand(-1, *shape[1:-2], inner, shape[-1]))
    if previous is not None:
        product = product + previous.to(product.dtype)
    return product.expand(shape).to(dtype.torch)
