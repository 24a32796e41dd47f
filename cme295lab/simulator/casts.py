"""Conversions between types, and reinterpretation of bits."""

from __future__ import annotations

import numpy as np
import torch

from cme295lab.simulator.broadcasting import lazy_sum, result, sharing
from cme295lab.simulator.deferred import is_deferred, is_pending, record, size_of, source
from cme295lab.simulator.dtypes import DType, float32
from cme295lab.simulator.errors import KernelTypeError
from cme295lab.simulator.machine import Machine
from cme295lab.simulator.programs import Array
from cme295lab.simulator.steps import Step, held_as
from cme295lab.simulator.values import Block, Pointer, as_torch


def cast(m: Machine, x: Block, dtype: DType, *, rounding: str | None = None) -> Block:
    """Convert values to another type; floats to narrower floats round to nearest even (or toward zero with
    rounding="rtz")."""
    if x.dtype == dtype:
        return x
    if x.dtype.is_fp8() and dtype.is_fp8():
        return cast(m, cast(m, x, float32), dtype, rounding=rounding)
    if isinstance(x, Pointer):
        raise KernelTypeError("a pointer can only be cast with bitcast=True")
    if x.dtype.is_bool() and not dtype.is_float and is_pending(x, m):
        held = held_as(dtype)
        return record(
            m, lambda rows, out, data: data.to(held) if out is None else out.copy_(data), [x.step], x.step.size, dtype,
            x.shape, repeats=x.step.repeats,
        )  # fmt: skip
    if not x.dtype.is_float and not dtype.is_float:
        if dtype.is_bool():
            return result(m, x.data(m.active) != 0, dtype, x.shape)
        if len(x.arrays) > 1 and dtype.primitive_bitwidth == 64 and not x.may_wrap(m.active):
            return lazy_sum(m, [t.astype(dtype.numpy) for t in x.terms(m.active)], dtype, x.shape)  # type: ignore[union-attr]
        with np.errstate(all="ignore"):
            return result(m, x.data(m.active).astype(dtype.numpy), dtype, x.shape)  # type: ignore[union-attr]
    if dtype.is_float and x.dtype.is_float:
        return _between_floats(m, x, dtype, toward_zero=rounding == "rtz" and dtype.primitive_bitwidth < 32)
    data = x.data(m.active)
    if isinstance(data, np.ndarray) and dtype.is_float:
        wide = np.float64 if data.dtype.itemsize == 8 or dtype.is_fp64() else np.float32
        return result(m, torch.from_numpy(np.ascontiguousarray(data.astype(wide))).to(dtype.torch), dtype, x.shape)
    floats = as_torch(data)
    floats = floats if floats.dtype in (torch.float32, torch.float64) else floats.float()
    if dtype.is_bool():
        return result(m, (floats != 0).numpy(), dtype, x.shape)
    with np.errstate(all="ignore"):
        return result(m, floats.numpy().astype(dtype.numpy), dtype, x.shape)


def _between_floats(m: Machine, x: Block, dtype: DType, *, toward_zero: bool) -> Block:
    def convert(rows: slice | None, out: torch.Tensor | None, data: torch.Tensor) -> torch.Tensor:
        if toward_zero:
            data = _toward_zero(data, dtype)
        if dtype.is_fp8():  # cvt.rn.satfinite: what is too large becomes the largest number; a NaN stays
            largest = torch.finfo(dtype.torch).max
            data = data.clamp(-largest, largest)
        return data.to(dtype.torch) if out is None else out.copy_(data)

    if not is_deferred(m, x):
        return result(m, convert(None, None, as_torch(x.data(m.active))), dtype, x.shape)
    operand = source(m, x, len(x.shape))
    return record(
        m, convert, [operand], size_of(operand), dtype, x.shape,
        repeats=operand.repeats if isinstance(operand, Step) else 1,
    )  # fmt: skip


def _toward_zero(data: torch.Tensor, dtype: DType) -> torch.Tensor:
    """The nearest value of `dtype` that is not larger in size: step back where rounding to nearest went away from
    zero."""
    exact = data.double()
    near = data.to(dtype.torch)
    width = {2: torch.int16, 1: torch.int8}[dtype.itemsize]
    stepped = (near.view(width) - 1).view(
        dtype.torch
    )  # the bit pattern below is the next value toward zero, for either sign
    return torch.where(near.double().abs() > exact.abs(), stepped, near)


def bitcast(m: Machine, x: Block, dtype: DType) -> Block:
    """Reinterpret the bits of a value as another type of the same width."""
    if isinstance(x, Pointer):
        if dtype.itemsize != x.dtype.itemsize:
            raise KernelTypeError(
                f"cannot reinterpret a pointer to {x.dtype} as a pointer to {dtype}: the widths differ"
            )
        return Pointer(x.terms(m.active), dtype, x.shape, m.active, x.storage)
    if x.dtype.primitive_bitwidth != dtype.primitive_bitwidth:
        raise KernelTypeError(f"cannot bitcast {x.dtype} to {dtype}: the widths differ")
    signed = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    data = x.data(m.active)
    if isinstance(data, np.ndarray):
        integers = np.ascontiguousarray(data)
        if dtype.is_float:
            bits: Array = torch.from_numpy(integers.view(f"i{dtype.itemsize}")).view(dtype.torch)
        else:
            bits = integers.view(dtype.numpy)
    elif dtype.is_float:
        bits = data.contiguous().view(dtype.torch)
    else:
        bits = data.contiguous().view(signed).numpy().view(dtype.numpy)
    return sharing(x, result(m, bits, dtype, x.shape))
