"""Operations that change the shape of a block; those without a copy return a view."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from cme295lab.simulator import arithmetic
from cme295lab.simulator.arithmetic import Operand
from cme295lab.simulator.broadcasting import common_shape, lifted, result, sharing
from cme295lab.simulator.deferred import is_pending, viewed
from cme295lab.simulator.errors import KernelTypeError
from cme295lab.simulator.language.registry import native
from cme295lab.simulator.machine import Machine
from cme295lab.simulator.values import Block, Pointer, require_block, scalar


def _sizes(shape: tuple[Any, ...]) -> tuple[int, ...]:
    """Accept f(x, 2, 3) and f(x, (2, 3))."""
    return tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], list | tuple) else tuple(shape)


@native("expand_dims", method=True)
def expand_dims(m: Machine, input: Operand, axis: int | Sequence[int]) -> Block:
    block = require_block(input, "the argument of expand_dims")
    axes = [axis] if isinstance(axis, int) else list(axis)
    for a in sorted(n % (len(block.shape) + len(axes)) for n in axes):
        shape = (*block.shape[:a], 1, *block.shape[a:])
        if is_pending(block, m):
            size = (*block.step.size[:a], 1, *block.step.size[a:])
            block = viewed(m, block, functools.partial(torch.unsqueeze, dim=a + 1), size, shape)
            continue
        block = block.viewed([_expanded(t, a + 1) for t in block.terms(m.active)], shape, m.active)
    return block


def _expanded(array: Any, axis: int) -> Any:
    return array.unsqueeze(axis) if isinstance(array, torch.Tensor) else np.expand_dims(array, axis)


@native("broadcast_to", method=True)
def broadcast_to(m: Machine, input: Operand, *shape: Any) -> Block:
    block = input if isinstance(input, Block) else scalar(input, m.active)
    target = _sizes(shape)
    missing = len(target) - len(block.shape)
    if missing < 0 or any(n not in (1, t) for n, t in zip(block.shape, target[missing:], strict=True)):
        raise KernelTypeError(f"cannot broadcast a block of shape {block.shape} to {target}")
    if is_pending(block, m):
        size = (1,) * missing + block.step.size
        return viewed(m, block, lambda t: lifted(t, len(target)), size, target)
    return block.viewed([lifted(t, len(target)) for t in block.terms(m.active)], target, m.active)


@native("broadcast")
def broadcast(m: Machine, input: Block, other: Block) -> tuple[Block, Block]:
    shape = common_shape(input, other)
    return broadcast_to(m, input, shape), broadcast_to(m, other, shape)


@native("permute", "trans", method=True)
def permute(m: Machine, input: Operand, *dims: Any) -> Block:
    block = require_block(input, "the argument of trans")
    rank = len(block.shape)
    order = [int(d) % rank for d in _sizes(dims)] if dims else [*range(rank - 2), rank - 1, rank - 2]
    if sorted(order) != list(range(rank)):
        raise KernelTypeError(
            f"trans: {tuple(order)} is not an order of the {rank} axes of a block of shape {block.shape}"
        )
    axes = [0, *(d + 1 for d in order)]
    if is_pending(block, m):
        size = tuple(block.step.size[d] for d in order)
        return viewed(m, block, lambda t: t.permute(axes), size, tuple(block.shape[d] for d in order))
    arrays = [t.permute(axes) if isinstance(t, torch.Tensor) else t.transpose(axes) for t in block.terms(m.active)]
    return block.viewed(list(arrays), tuple(block.shape[d] for d in order), m.active)


@native("reshape", "view", method=True)
def reshape(m: Machine, input: Operand, *shape: Any, can_reorder: bool = False) -> Block:
    block = require_block(input, "the argument of reshape")
    target = _sizes(shape)
    if int(np.prod(target)) != block.num_elements:
        raise KernelTypeError(
            f"cannot reshape a block of shape {block.shape} to {target}: the numbers of elements differ"
        )
    if isinstance(block, Pointer):
        address = np.broadcast_to(np.asarray(block.data(m.active)), (block.data(m.active).shape[0], *block.shape))
        return block.viewed([address.reshape(address.shape[0], *target)], target, m.active)
    if is_pending(block, m):
        shape_before = block.shape
        return viewed(m, block, lambda t: t.expand(-1, *shape_before).reshape(-1, *target), target, target)
    full = block.full(m.active)
    return block.viewed([full.reshape((full.shape[0], *target))], target, m.active)


@native("ravel", method=True)
def ravel(m: Machine, x: Block, can_reorder: bool = False) -> Block:
    return reshape(m, x, [x.num_elements])


def _aligned(m: Machine, blocks: list[Block]) -> list[Any]:
    """Blocks written out with the same number of program rows."""
    arrays = [b.full(m.active) for b in blocks]
    rows = max(a.shape[0] for a in arrays)
    return [
        a.expand(rows, *a.shape[1:]) if isinstance(a, torch.Tensor) else np.broadcast_to(a, (rows, *a.shape[1:]))
        for a in arrays
    ]


@native("cat")
def cat(m: Machine, input: Block, other: Block, can_reorder: bool = False, dim: int = 0) -> Block:
    a, b = _aligned(m, [input, other])
    joined = torch.cat([a, b], dim + 1) if isinstance(a, torch.Tensor) else np.concatenate([a, b], dim + 1)
    return result(m, joined, input.dtype, tuple(joined.shape[1:]))


@native("join", method=False)
def join(m: Machine, a: Operand, b: Operand) -> Block:
    a, b, dtype = arithmetic.promoted(m, "where", a, b)
    left, right = (x if isinstance(x, Block) else scalar(x, m.active, dtype) for x in (a, b))
    shape = common_shape(left, right)
    x, y = _aligned(m, [broadcast_to(m, v, shape) for v in (left, right)])
    joined = torch.stack([x, y], -1) if isinstance(x, torch.Tensor) else np.stack([x, y], -1)
    return result(m, joined, dtype, (*shape, 2))


@native("split", method=True)
def split(m: Machine, a: Block) -> tuple[Block, Block]:
    if not a.shape or a.shape[-1] != 2:
        raise KernelTypeError(f"tl.split needs a last axis of size 2, got shape {a.shape}")
    full = a.full(m.active)
    first, second = (sharing(a, result(m, full[..., i], a.dtype, a.shape[:-1])) for i in (0, 1))
    return first, second


@native("interleave")
def interleave(m: Machine, a: Operand, b: Operand) -> Block:
    joined = join(m, a, b)
    return reshape(m, joined, (*joined.shape[:-2], 2 * joined.shape[-2]) if len(joined.shape) > 1 else joined.shape)


@native("flip", method=True)
def flip(m: Machine, x: Block, dim: int | None = None) -> Block:
    axis = (len(x.shape) - 1 if dim is None else dim % len(x.shape)) + 1
    full = x.full(m.active)
    return result(m, full.flip(axis) if isinstance(full, torch.Tensor) else np.flip(full, axis), x.dtype, x.shape)
