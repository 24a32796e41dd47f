"""The rest of Triton's standard library: sorting, the order of tiles, axes of length 1.

Triton sorts with a bitonic network. It is repeated here step by step, because with NaNs or zeros of both signs the
result depends on which pairs are compared.

Source: Batcher, Sorting networks and their applications (1968).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cme295lab.simulator.arithmetic import Operand, binary
from cme295lab.simulator.broadcasting import result
from cme295lab.simulator.errors import KernelTypeError
from cme295lab.simulator.language.constants import whole_number
from cme295lab.simulator.language.reductions import max_, min_
from cme295lab.simulator.language.registry import native
from cme295lab.simulator.language.shapes import expand_dims, reshape
from cme295lab.simulator.machine import Machine
from cme295lab.simulator.values import Block, require_block

_ALTERNATING = 2  # the order of neighbouring sequences that a later stage merges


@native("sort", method=True)
def sort(m: Machine, x: Block, dim: int | None = None, descending: bool = False) -> Block:
    return _sorted(m, x, None, dim, descending, "tl.sort")


@native("topk")
def topk(m: Machine, x: Block, k: int, dim: int | None = None, descending: bool = True) -> Block:
    return _sorted(m, x, k, dim, descending, "tl.topk")


def _sorted(m: Machine, x: Block, k: int | None, dim: int | None, descending: bool, what: str) -> Block:
    """Sort along the last axis; with k, keep the k largest (smallest).

    Runs of k are sorted; then pairs of runs are merged, and the better half of each is kept.
    """
    length = _last_axis(x, dim, what)
    if k is not None and (whole_number(k, f"{what}'s k") < 1 or k & (k - 1) or k > length):
        raise KernelTypeError(f"{what}: k must be a power of two and at most {length}, got {k}")
    log_n, kept = length.bit_length() - 1, k or length
    log_k, better = kept.bit_length() - 1, max_ if descending else min_
    if log_k == 0:
        found = better(m, x, len(x.shape) - 1, keep_dims=True)
        assert isinstance(found, Block)
        return found
    flat = reshape(m, x, [x.num_elements])
    for stage in range(1, log_k + 1):
        flat = _merge(m, flat, stage, _ALTERNATING if stage < log_n else int(descending))
    for stage in range(log_k + 1, log_n + 1):
        halves = better(m, reshape(m, flat, [flat.num_elements // (2 * kept), 2, kept]), 1)
        assert isinstance(halves, Block)
        flat = _merge(
            m, reshape(m, halves, [halves.num_elements]), log_k, _ALTERNATING if stage < log_n else int(descending)
        )
    return reshape(m, flat, (*x.shape[:-1], kept))


@native("bitonic_merge")
def bitonic_merge(m: Machine, x: Block, dim: int | None = None, descending: bool = False) -> Block:
    stage = _last_axis(x, dim, "tl.bitonic_merge").bit_length() - 1
    return reshape(m, _merge(m, reshape(m, x, [x.num_elements]), stage, int(descending)), x.shape)


def _last_axis(x: Block, dim: int | None, what: str) -> int:
    if not isinstance(x, Block) or not x.shape:
        raise KernelTypeError(f"{what} needs a block")
    if dim is not None and dim != len(x.shape) - 1:
        raise KernelTypeError(f"{what}: only the last axis can be sorted, which is {len(x.shape) - 1}; got dim={dim}")
    return x.shape[-1]


def _merge(m: Machine, x: Block, stage: int, order: int) -> Block:
    """Merge bitonic sequences of 2**stage elements: compare and swap at distances 2**(stage-1), …, 2, 1."""
    data: Any = x.full(m.active)
    rows = data.shape[0]
    narrow = isinstance(data, torch.Tensor) and data.element_size() == 1
    where: Any = torch.where if isinstance(data, torch.Tensor) else np.where
    data = data.float() if narrow else data  # torch does not compare 8-bit floats
    for bit in range(stage - 1, -1, -1):
        pairs = data.reshape(rows, -1, 2, 1 << bit)
        left, right = pairs[:, :, 0], pairs[:, :, 1]
        down: Any = np.full(pairs.shape[1], order == 1)
        if order == _ALTERNATING:
            down = (np.arange(pairs.shape[1]) >> (stage - bit - 1)) & 1 == 1
        down = down[None, :, None]
        down = torch.from_numpy(down) if isinstance(data, torch.Tensor) else down
        swapped = (where((left > right) != down, right, left), where((right > left) == down, left, right))
        data = torch.stack(swapped, 2) if isinstance(data, torch.Tensor) else np.stack(swapped, 2)
        if x.dtype.is_float:
            m.count_float_ops(x.num_elements)
    data = data.reshape(rows, *x.shape)
    return result(m, data.to(x.dtype.torch) if narrow else data, x.dtype, x.shape)


@native("swizzle2d")
def swizzle2d(
    m: Machine, i: Operand, j: Operand, size_i: Operand, size_j: Operand, size_g: Operand
) -> tuple[Operand, Operand]:
    """Where tile (i, j) of a row-major grid goes, if groups of `size_g` rows are walked column by column."""

    def compute(op: str, a: Operand, b: Operand) -> Operand:
        value = binary(m, op, a, b)
        if isinstance(value, Block):
            value.temporary = False  # several are used twice
        return value

    tile = compute("+", compute("*", i, size_j), j)
    per_group = compute("*", size_g, size_j)
    first_row = compute("*", compute("//", tile, per_group), size_g)
    rows = compute("min", compute("-", size_i, first_row), size_g)  # the last group may have fewer
    within = compute("%", tile, per_group)
    return compute("+", first_row, compute("%", within, rows)), compute("//", within, rows)


@native("unsqueeze")
def unsqueeze(m: Machine, x: Block, dim: int) -> Block:
    rank = len(require_block(x, "the argument of tl.unsqueeze").shape) + 1
    if not -rank <= dim < rank:
        raise KernelTypeError(f"tl.unsqueeze: dim must be between {-rank} and {rank - 1}, got {dim}")
    return expand_dims(m, x, dim % rank)


@native("squeeze")
def squeeze(m: Machine, x: Block, dim: int) -> Block:
    shape = require_block(x, "the argument of tl.squeeze").shape
    if not -len(shape) <= dim < len(shape) or shape[dim] != 1:
        raise KernelTypeError(f"tl.squeeze: axis {dim} of a block of shape {shape} does not have length 1")
    at = dim % len(shape)
    return reshape(m, x, (*shape[:at], *shape[at + 1 :]))
