"""Reductions, scans and matrix products."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from cme295lab.simulator import casts, dtypes
from cme295lab.simulator.broadcasting import result
from cme295lab.simulator.deferred import is_deferred, record, size_of, source
from cme295lab.simulator.dtypes import DType
from cme295lab.simulator.errors import KernelTypeError
from cme295lab.simulator.language.registry import native
from cme295lab.simulator.language.shapes import expand_dims, reshape
from cme295lab.simulator.machine import Machine
from cme295lab.simulator.steps import Step
from cme295lab.simulator.values import Block


def _along(m: Machine, x: Block, axis: int | None, what: str) -> tuple[Block, int]:
    """The block and the axis to reduce; None reduces over all elements."""
    if not x.shape:
        raise KernelTypeError(f"{what} needs a block, got a scalar")
    if axis is None:
        return reshape(m, x, [x.num_elements]), 0
    if not -len(x.shape) <= axis < len(x.shape):
        raise KernelTypeError(f"{what}: axis {axis} does not exist in a block of shape {x.shape}")
    return x, axis % len(x.shape)


def _written_out(m: Machine, x: Block, axis: int) -> Any:
    """The data with the reduced axis at its true length."""
    data = x.data(m.active)
    length = x.shape[axis]
    if data.shape[axis + 1] == length:
        return data
    shape = [length if i == axis + 1 else n for i, n in enumerate(data.shape)]
    return data.expand(shape) if isinstance(data, torch.Tensor) else np.broadcast_to(data, shape)


def _finish(
    m: Machine, data: Any, dtype: DType, x: Block, axis: int, keep_dims: bool, original_rank: int | None
) -> Block:
    shape = (*x.shape[:axis], *x.shape[axis + 1 :])
    block = data if isinstance(data, Block) else result(m, data, dtype, shape)
    if not keep_dims:
        return block
    if original_rank is None:
        return expand_dims(m, block, axis)
    return reshape(m, block, (1,) * original_rank)


@native("sum", method=True)
def sum_(
    m: Machine, input: Block, axis: int | None = None, keep_dims: bool = False, dtype: DType | None = None
) -> Block:
    target = dtype or input.dtype
    if dtype is None and not target.is_float and target.primitive_bitwidth < 32:
        target = dtypes.int32 if target.is_int_signed() else dtypes.uint32
    x, at = _along(m, casts.cast(m, input, target), axis, "tl.sum")
    if target.is_float and is_deferred(m, x):
        m.count_float_ops(x.num_elements)
        return _finish(m, _later(m, x, at, _total), target, x, at, keep_dims, _rank(input, axis))
    data = _written_out(m, x, at)
    if not target.is_float:
        return _finish(
            m, np.add.reduce(data, axis=at + 1, dtype=target.numpy), target, x, at, keep_dims, _rank(input, axis)
        )
    m.count_float_ops(x.num_elements)
    total = _total(data, at + 1, None)
    return _finish(m, total, target, x, at, keep_dims, _rank(input, axis))


def _total(data: torch.Tensor, axis: int, out: torch.Tensor | None) -> torch.Tensor:
    return torch.sum(data, axis, out=out) if data.dtype.itemsize >= 4 else _pairwise_sum(data, axis)


def _later(
    m: Machine, x: Block, axis: int, reduce: Callable[[torch.Tensor, int, torch.Tensor | None], torch.Tensor]
) -> Block:
    """Write the reduction of a block of floats down on the tape."""
    operand = source(m, x, len(x.shape))
    length, size = x.shape[axis], size_of(operand)
    axes = [-1] * (len(size) + 1)
    axes[axis + 1] = length

    def run(rows: slice, out: torch.Tensor | None, data: torch.Tensor) -> torch.Tensor:
        return reduce(data if data.shape[axis + 1] == length else data.expand(axes), axis + 1, out)

    return record(
        m, run, [operand], (*size[:axis], *size[axis + 1 :]), x.dtype, (*x.shape[:axis], *x.shape[axis + 1 :]),
        repeats=operand.repeats if isinstance(operand, Step) else 1,
    )  # fmt: skip


def _rank(x: Block, axis: int | None) -> int | None:
    return len(x.shape) if axis is None else None


def _pairwise_sum(data: torch.Tensor, axis: int) -> torch.Tensor:
    """Sum in the type itself, rounding every partial sum, as a tree of 16-bit additions does on a GPU."""
    if data.shape[axis] == 1:
        return data.squeeze(axis).clone()
    while data.shape[axis] > 1:
        half = data.shape[axis] // 2
        low, high = data.narrow(axis, 0, half), data.narrow(axis, half, half)
        data = low + high if data.element_size() > 1 else (low.float() + high.float()).to(data.dtype)
    return data.squeeze(axis)


def _largest(data: torch.Tensor, axis: int, out: torch.Tensor | None) -> torch.Tensor:
    """The maximum; Triton's drops a NaN beside a number, torch's keeps it."""
    found = torch.amax(data, axis, out=out)
    if not math.isnan(found.sum()):  # the sum of infinities of both signs is a NaN too: looked at closely below
        return found
    missing = torch.isnan(data)
    return torch.where(missing.all(axis), found, data.masked_fill(missing, float("-inf")).amax(axis))


def _smallest(data: torch.Tensor, axis: int, out: torch.Tensor | None) -> torch.Tensor:
    return -_largest(-data, axis, None)


def _extreme(m: Machine, input: Block, axis: int | None, keep_dims: bool, largest: bool, what: str) -> Block:
    x = input
    if x.dtype.primitive_bitwidth < 32:
        x = casts.cast(m, x, dtypes.float32 if x.dtype.is_float else dtypes.int32)
    x, at = _along(m, x, axis, what)
    if x.dtype.is_float and is_deferred(m, x):
        m.count_float_ops(x.num_elements)
        reduce = _largest if largest else _smallest
        return _finish(m, _later(m, x, at, reduce), x.dtype, x, at, keep_dims, _rank(input, axis))
    data = _written_out(m, x, at)
    if isinstance(data, np.ndarray):
        found: Any = (np.maximum if largest else np.minimum).reduce(data, axis=at + 1)
        return _finish(m, found, x.dtype, x, at, keep_dims, _rank(input, axis))
    m.count_float_ops(x.num_elements)
    found = (_largest if largest else _smallest)(data, at + 1, None)
    return _finish(m, found, x.dtype, x, at, keep_dims, _rank(input, axis))


def _position(m: Machine, input: Block, axis: int | None, keep_dims: bool, largest: bool, what: str) -> Block:
    x, at = _along(m, input, axis, what)
    data = _written_out(m, x, at)
    if isinstance(data, torch.Tensor):
        found: Any = (torch.argmax if largest else torch.argmin)(
            data.float() if data.element_size() < 4 else data, at + 1
        ).numpy()
    else:
        found = (np.argmax if largest else np.argmin)(data, at + 1)
    return _finish(m, found.astype(np.int32), dtypes.int32, x, at, keep_dims, _rank(input, axis))


@native("max", method=True)
def max_(
    m: Machine,
    input: Block,
    axis: int | None = None,
    return_indices: bool = False,
    return_indices_tie_break_left: bool = True,
    keep_dims: bool = False,
) -> Block | tuple[Block, Block]:
    found = _extreme(m, input, axis, keep_dims, True, "tl.max")
    if not return_indices:
        return found
    return casts.cast(m, found, input.dtype), _position(m, input, axis, keep_dims, True, "tl.max")


@native("min", method=True)
def min_(
    m: Machine,
    input: Block,
    axis: int | None = None,
    return_indices: bool = False,
    return_indices_tie_break_left: bool = True,
    keep_dims: bool = False,
) -> Block | tuple[Block, Block]:
    found = _extreme(m, input, axis, keep_dims, False, "tl.min")
    if not return_indices:
        return found
    return casts.cast(m, found, input.dtype), _position(m, input, axis, keep_dims, False, "tl.min")


@native("argmax", method=True)
def argmax(m: Machine, input: Block, axis: int | None, tie_break_left: bool = True, keep_dims: bool = False) -> Block:
    return _position(m, input, axis, keep_dims, True, "tl.argmax")


@native("argmin", method=True)
def argmin(m: Machine, input: Block, axis: int | None, tie_break_left: bool = True, keep_dims: bool = False) -> Block:
    return _position(m, input, axis, keep_dims, False, "tl.argmin")


@native("xor_sum", method=True)
def xor_sum(m: Machine, input: Block, axis: int | None = None, keep_dims: bool = False) -> Block:
    x, at = _along(m, input, axis, "tl.xor_sum")
    if x.dtype.is_float:
        raise KernelTypeError(f"tl.xor_sum needs integers, got {x.dtype}")
    return _finish(
        m, np.bitwise_xor.reduce(_written_out(m, x, at), axis=at + 1), x.dtype, x, at, keep_dims, _rank(input, axis)
    )


@native("reduce_or", method=True)
def reduce_or(m: Machine, input: Block, axis: int | None, keep_dims: bool = False) -> Block:
    x, at = _along(m, input, axis, "tl.reduce_or")
    if x.dtype.is_float:
        raise KernelTypeError(f"tl.reduce_or needs integers, got {x.dtype}")
    whole = np.bitwise_or.reduce(_written_out(m, x, at), axis=at + 1)
    return _finish(m, whole, x.dtype, x, at, keep_dims, _rank(input, axis))


Blocks = Block | tuple[Block, ...] | list[Block]


def _slice(m: Machine, x: Block, axis: int, part: slice) -> Block:
    data = x.full(m.active)[(slice(None),) * (axis + 1) + (part,)]
    return x.viewed([data], tuple(data.shape[1:]), m.active)


@native("reduce", method=True)
def reduce(m: Machine, input: Blocks, axis: int | None, combine_fn: Callable[..., Any], keep_dims: bool = False) -> Any:
    """Reduce with any combine function, in log2(n) steps; neighbours are combined, so it need only be associative."""
    single = isinstance(input, Block)
    blocks = [input] if isinstance(input, Block) else list(input)
    rank = _rank(blocks[0], axis)
    pairs = [_along(m, b, axis, "tl.reduce") for b in blocks]
    blocks, at = [b for b, _ in pairs], pairs[0][1]
    shape = blocks[0].shape
    while blocks[0].shape[at] > 1:
        even = [_slice(m, b, at, slice(0, None, 2)) for b in blocks]
        odd = [_slice(m, b, at, slice(1, None, 2)) for b in blocks]
        combined = m.call(combine_fn, [*even, *odd])
        blocks = [combined] if isinstance(combined, Block) else list(combined)
    ends = [_slice(m, b, at, slice(0, 1)).full(m.active) for b in blocks]
    if shape[at] == 1:
        ends = [e.clone() if isinstance(e, torch.Tensor) else e for e in ends]  # nothing was combined: these are views
    like = blocks[0].viewed([], shape, m.active)
    done = [
        _finish(m, e.squeeze(at + 1), b.dtype, like, at, keep_dims, rank) for e, b in zip(ends, blocks, strict=True)
    ]
    return done[0] if single else tuple(done)


@native("associative_scan", method=True)
def associative_scan(
    m: Machine, input: Blocks, axis: int, combine_fn: Callable[..., Any], reverse: bool = False
) -> Any:
    """Inclusive scan with any combine function, in log2(n) steps of combining with the neighbour 1, 2, 4, … places
    before."""
    single = isinstance(input, Block)
    blocks = [input] if isinstance(input, Block) else list(input)
    at = axis % len(blocks[0].shape)
    length = blocks[0].shape[at]
    whole = [_reversed(b.full(m.active), at, reverse) for b in blocks]
    if length == 1:
        whole = [w.clone() if isinstance(w, torch.Tensor) else w for w in whole]
    kinds = [b.dtype for b in blocks]
    step = 1
    while step < length:
        earlier = [result(m, _rolled(w, step, at), d, tuple(w.shape[1:])) for w, d in zip(whole, kinds, strict=True)]
        current = [result(m, w, d, tuple(w.shape[1:])) for w, d in zip(whole, kinds, strict=True)]
        for b in (*earlier, *current):
            b.temporary = False
        combined = m.call(combine_fn, [*earlier, *current])
        parts = [combined] if isinstance(combined, Block) else list(combined)
        whole = [_kept(old, p.full(m.active), step, at) for old, p in zip(whole, parts, strict=True)]
        step *= 2
    done = [result(m, _reversed(w, at, reverse), d, tuple(w.shape[1:])) for w, d in zip(whole, kinds, strict=True)]
    return done[0] if single else tuple(done)


def _reversed(data: Any, axis: int, reverse: bool) -> Any:
    if not reverse:
        return data
    return data.flip(axis + 1) if isinstance(data, torch.Tensor) else np.flip(data, axis + 1)


def _rolled(data: Any, step: int, axis: int) -> Any:
    return torch.roll(data, step, axis + 1) if isinstance(data, torch.Tensor) else np.roll(data, step, axis + 1)


def _kept(old: Any, new: Any, step: int, axis: int) -> Any:
    """`new`, with the first `step` places along the axis taken from `old` (they have no earlier neighbour)."""
    copy = new.clone() if isinstance(new, torch.Tensor) else np.array(new)
    head = (slice(None),) * (axis + 1) + (slice(0, step),)
    copy[head] = old[head]
    return copy


@native("cumsum", method=True)
def cumsum(m: Machine, input: Block, axis: int = 0, reverse: bool = False, dtype: DType | None = None) -> Block:
    return _cumulative(m, input, axis, reverse, dtype, torch.cumsum, np.cumsum)


@native("cumprod", method=True)
def cumprod(m: Machine, input: Block, axis: int = 0, reverse: bool = False, dtype: DType | None = None) -> Block:
    return _cumulative(m, input, axis, reverse, dtype, torch.cumprod, np.cumprod)


def _cumulative(
    m: Machine, input: Block, axis: int, reverse: bool, dtype: DType | None, with_torch: Any, with_numpy: Any
) -> Block:
    target = dtype or input.dtype
    if dtype is None and not target.is_float and target.primitive_bitwidth < 32:
        target = dtypes.int32 if target.is_int_signed() else dtypes.uint32
    if target.is_fp8():  # torch does not add 8-bit floats
        wide = casts.cast(m, input, dtypes.float32)
        return casts.cast(m, _cumulative(m, wide, axis, reverse, None, with_torch, with_numpy), target)
    x = casts.cast(m, input, target)
    at = axis % len(x.shape)
    data = _reversed(x.full(m.active), at, reverse)
    if isinstance(data, torch.Tensor):
        m.count_float_ops(x.num_elements)
        done: Any = with_torch(data, at + 1)
    else:
        done = with_numpy(data, at + 1, dtype=target.numpy)
    return result(m, _reversed(done, at, reverse), target, x.shape)
