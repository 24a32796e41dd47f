"""Operations on whole blocks that are no arithmetic: `tl.gather`, `tl.histogram`, `tl.map_elementwise`, `tl.item`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from cme295lab.simulator import dtypes
from cme295lab.simulator.arithmetic import Operand
from cme295lab.simulator.broadcasting import common_shape, lifted, result
from cme295lab.simulator.errors import KernelTypeError, SimulatorError
from cme295lab.simulator.language.constants import block_shape, whole_number
from cme295lab.simulator.language.registry import native
from cme295lab.simulator.language.shapes import reshape
from cme295lab.simulator.machine import Machine
from cme295lab.simulator.programs import Array, ProgramSet
from cme295lab.simulator.values import Block, scalar


@native("gather", method=True)
def gather(m: Machine, src: Block, index: Block, axis: int) -> Block:
    """The elements of `src` whose place along the axis `index` says."""
    rank = len(src.shape)
    if not isinstance(index, Block) or index.dtype.is_float or len(index.shape) != rank:
        raise KernelTypeError(f"tl.gather: the index must be a block of integers of rank {rank}, got {index!r}")
    if not -rank <= whole_number(axis, "tl.gather's axis") < rank:
        raise KernelTypeError(f"tl.gather: axis {axis} does not exist in a block of shape {src.shape}")
    at = axis % rank
    if any(a != b for i, (a, b) in enumerate(zip(src.shape, index.shape, strict=True)) if i != at):
        raise KernelTypeError(f"tl.gather: shapes {src.shape} and {index.shape} may differ along axis {at} only")
    where = np.asarray(index.full(m.active)).astype(np.int64)
    if (where < 0).any() or (where >= src.shape[at]).any():
        wrong = where[(where < 0) | (where >= src.shape[at])][0]
        raise SimulatorError(f"tl.gather: the index {wrong} is outside of axis {at} of length {src.shape[at]}")
    source = src.full(m.active)
    rows = max(source.shape[0], where.shape[0])
    where = np.broadcast_to(where, (rows, *index.shape))
    if isinstance(source, torch.Tensor):
        whole = source.expand(rows, *src.shape)
        return result(m, torch.gather(whole, at + 1, torch.from_numpy(where.copy())), src.dtype, index.shape)
    whole_array = np.broadcast_to(source, (rows, *src.shape))
    return result(m, np.take_along_axis(whole_array, where, at + 1), src.dtype, index.shape)


@native("histogram", method=True)
def histogram(m: Machine, input: Block, num_bins: int, mask: Operand | None = None) -> Block:
    """How often each of the numbers 0 … num_bins - 1 occurs, in the lanes where the mask is true."""
    (bins,) = block_shape(num_bins, "tl.histogram's num_bins")
    if len(input.shape) != 1 or input.dtype.is_float or input.dtype.primitive_bitwidth != 32:
        raise KernelTypeError(f"tl.histogram needs a one-dimensional block of 32-bit integers, got {input!r}")
    data = np.asarray(input.full(m.active)).astype(np.int64)
    active = np.ones((1, *input.shape), bool)
    if mask is not None:
        block = mask if isinstance(mask, Block) else scalar(bool(mask), m.active)
        if not block.dtype.is_bool() or block.shape not in ((), input.shape):
            raise KernelTypeError(f"tl.histogram: the mask must be boolean and have shape {input.shape}, got {block!r}")
        active = np.asarray(lifted(block.data(m.active), 1))
    size = np.broadcast_shapes(data.shape, active.shape)
    data, active = np.broadcast_to(data, size), np.broadcast_to(active, size)
    outside = active & ((data < 0) | (data >= bins))
    if outside.any():
        raise SimulatorError(
            f"tl.histogram: the value {data[outside][0]} has none of {bins} bins; a GPU's result is undefined: mask it"
        )
    row = np.broadcast_to(np.arange(size[0])[:, None], size)
    counts = np.bincount((row * bins + data)[active], minlength=size[0] * bins).reshape(size[0], bins)
    return result(m, counts.astype(np.int32), dtypes.int32, (bins,))


@native("map_elementwise")
def map_elementwise(m: Machine, scalar_fn: Callable[..., Any], *args: Operand, pack: int = 1) -> Any:
    """Call a jit function on single elements, `pack` of them at a time: every group is a program of its own, so the
    function may branch on its values."""
    whole_number(pack, "tl.map_elementwise's pack")
    blocks = [a if isinstance(a, Block) else scalar(a, m.active) for a in args]
    shape = common_shape(*blocks)
    count = int(np.prod(shape))
    if pack < 1 or count % pack:
        raise KernelTypeError(f"tl.map_elementwise: {count} elements do not make groups of {pack}")
    entry = m.active
    columns = [_columns(_elements(b, shape, entry), pack) for b in blocks]
    groups = len(entry) * count // pack
    ids, m.program_ids = m.program_ids, np.repeat(m.program_ids[entry.ids], count // pack, axis=0)
    m.active = inner = ProgramSet(np.arange(groups))
    try:
        scalars = [Block([c], b.dtype, (), inner) for b, parts in zip(blocks, columns, strict=True) for c in parts]
        found = m.call(scalar_fn, list(scalars))
        parts = [found] if isinstance(found, Block) else list(found)
        if not parts or not all(isinstance(p, Block) and not p.shape for p in parts) or len(parts) % pack:
            raise KernelTypeError(f"tl.map_elementwise: the function must return scalars, {pack} for each result")
        arrays = [(p.dtype, _one_per_program(p.data(inner), groups)) for p in parts]
    finally:
        m.active, m.program_ids = entry, ids
    done = []
    for first in range(0, len(arrays), pack):
        packed = [a for _, a in arrays[first : first + pack]]
        joined = _side_by_side(packed)
        done.append(result(m, joined.reshape((len(entry), *shape)), arrays[first][0], shape))
    return done[0] if isinstance(found, Block) or len(done) == 1 else tuple(done)


def _elements(block: Block, shape: tuple[int, ...], active: ProgramSet) -> Array:
    """All elements in one row, program by program."""
    data = lifted(block.data(active), len(shape))
    size = (len(active), *shape)
    if isinstance(data, torch.Tensor):
        return data.expand(size).reshape(-1)
    return np.broadcast_to(data, size).reshape(-1)


def _side_by_side(parts: list[Array]) -> Array:
    if isinstance(parts[0], torch.Tensor):
        return torch.stack([torch.as_tensor(p) for p in parts], -1)
    return np.stack([np.asarray(p) for p in parts], -1)


def _columns(data: Array, pack: int) -> list[Array]:
    """The first, second, … element of every group."""
    return [data.reshape(-1, pack)[:, i] for i in range(pack)]


def _one_per_program(data: Array, count: int) -> Array:
    return data.expand(count) if isinstance(data, torch.Tensor) else np.broadcast_to(data, (count,))


@native("item", method=True)
def item(m: Machine, input: Block) -> Block:
    """The only element of a block, as a scalar."""
    if not isinstance(input, Block) or input.num_elements != 1:
        raise KernelTypeError(f"item() needs a block of one element, got {input!r}")
    return reshape(m, input, ())
