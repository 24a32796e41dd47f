"""Tiles of a tensor given by shape, strides and an offset per axis: what block pointers and descriptors have in common.

A tile becomes the pointers and the mask that a kernel would otherwise write itself, so it is loaded, stored and counted
like any other access: `base + sum over axes of (offset + arange) * stride`, and `0 <= offset + arange < shape`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from cme295lab.simulator import casts, dtypes
from cme295lab.simulator.arithmetic import Operand, binary
from cme295lab.simulator.broadcasting import lazy_sum
from cme295lab.simulator.errors import KernelTypeError
from cme295lab.simulator.machine import Machine
from cme295lab.simulator.values import Block, Pointer, scalar


def integer_scalars(m: Machine, values: Any, what: str, rank: int | None = None) -> tuple[Block, ...]:
    """Compile-time or run-time integers, widened to 64 bits; `rank` is how many there must be."""
    items = tuple(values) if isinstance(values, tuple | list) else (values,)
    if rank is not None and len(items) != rank:
        raise KernelTypeError(f"{what} needs one value for each of {rank} axes, got {len(items)}")
    found = []
    for item in items:
        if not isinstance(item, Block | int):
            raise KernelTypeError(f"{what} must be integer scalars, got {item!r}")
        block = item if isinstance(item, Block) else scalar(item, m.active, dtypes.int64)
        if block.shape or block.dtype.is_float or isinstance(block, Pointer):
            raise KernelTypeError(f"{what} must be integer scalars, got {block.dtype} of shape {block.shape}")
        found.append(casts.cast(m, block, dtypes.int64))
    return tuple(found)


def positions(m: Machine, offset: Block, size: int, axis: int, rank: int) -> Block:
    """`offset + arange(0, size)` along one axis of a tile, left as a sum."""
    ramp = np.arange(size, dtype=np.int64).reshape([1, *(size if a == axis else 1 for a in range(rank))])
    first = np.asarray(offset.data(m.active)).reshape([-1, *(1,) * rank])
    return lazy_sum(m, [first, ramp], dtypes.int64, tuple(size if a == axis else 1 for a in range(rank)))


def pointers(m: Machine, base: Pointer, where: Iterable[Operand], strides: Sequence[Block]) -> Pointer:
    """Addresses of a tile, from the positions along its axes."""
    address: Operand = base
    for position, stride in zip(where, strides, strict=True):
        address = binary(m, "+", address, binary(m, "*", position, stride))
    assert isinstance(address, Pointer)
    return address


def inside(m: Machine, where: Sequence[Operand], shape: Sequence[Block], axes: Iterable[int]) -> Operand | None:
    """Which lanes of a tile lie in the tensor, looking at some of the axes; None: all of them."""
    mask: Operand | None = None
    for axis in axes:
        for test in (binary(m, ">=", where[axis], 0), binary(m, "<", where[axis], shape[axis])):
            mask = test if mask is None else binary(m, "&", mask, test)
    return mask


def padding(option: object, dtype: dtypes.DType) -> float | int | None:
    """What lanes outside of the tensor read: zero, or NaN."""
    name = str(getattr(option, "name", option) or "").lower().removeprefix("pad_")
    if name not in ("", "zero", "nan"):
        raise KernelTypeError(f"padding_option must be 'zero' or 'nan', got {option!r}")
    if name == "nan" and not dtype.is_float:
        raise KernelTypeError(f"padding_option 'nan' needs a floating-point tensor, got {dtype}")
    return float("nan") if name == "nan" else 0
