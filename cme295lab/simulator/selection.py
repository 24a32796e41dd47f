"""`tl.where`, of numbers and of pointers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cme295lab.simulator import dtypes
from cme295lab.simulator.arithmetic import Operand, as_block, in_place, make_room, promoted
from cme295lab.simulator.broadcasting import broadcast_sizes, common_shape, lifted, result
from cme295lab.simulator.casts import cast
from cme295lab.simulator.deferred import is_deferred, is_pending, record, size_of, source, together
from cme295lab.simulator.dtypes import DType
from cme295lab.simulator.errors import KernelTypeError
from cme295lab.simulator.machine import Machine
from cme295lab.simulator.steps import Step
from cme295lab.simulator.values import Block, Pointer, as_torch, require_block, sum_terms


def where(m: Machine, condition: Operand, a: Operand, b: Operand) -> Operand:
    """`tl.where`: elements of a where the condition holds, else of b."""
    if not isinstance(condition, Block):
        return a if condition else b
    if isinstance(a, Pointer) or isinstance(b, Pointer):
        return _where_pointers(m, condition, a, b)
    a, b, dtype = promoted(m, "where", a, b)
    if dtype.is_fp8():  # torch does not choose between 8-bit floats
        wide = (cast(m, x, dtypes.float32) if isinstance(x, Block) else x for x in (a, b))
        return cast(m, require_block(where(m, condition, *wide), "tl.where"), dtype)
    shape = common_shape(condition, a, b)
    rank = len(shape)
    if is_pending(condition, m) and condition.dtype.is_bool() and dtype.is_float:
        return _where_later(m, condition, a, b, dtype, shape)
    if not condition.dtype.is_float and condition.arrays[0].size == 1 == len(condition.arrays):  # the same everywhere
        chosen = a if condition.arrays[0].item() else b
        if isinstance(chosen, Block) and chosen.shape == shape:
            return chosen
    mask = as_torch(lifted(condition.data(m.active), rank))
    if mask.dtype != torch.bool:
        mask = mask != 0
    if not dtype.is_float:
        x, y = (lifted(as_block(m, v, dtype).data(m.active), rank) for v in (a, b))
        return result(m, np.where(mask.numpy(), x, y), dtype, shape)
    if is_deferred(m, a, b) or (m.num_active > 1 and mask.shape[0] > 1):
        return _where_later(m, condition, a, b, dtype, shape)
    if not isinstance(b, Block) and isinstance(a, Block):
        make_room(m, (a,), dtype, shape)
        data = as_torch(lifted(a.data(m.active), rank))
        size = broadcast_sizes(data.shape, mask.shape)
        out = in_place(m, (a,), dtype, shape, size)
        filled = data.expand(size).masked_fill(~mask, b) if out is None else out.masked_fill_(~mask, b)
        return result(m, filled, dtype, shape)
    x, y = (as_torch(lifted(as_block(m, v, dtype).data(m.active), rank)) for v in (a, b))
    return result(m, torch.where(mask, x, y), dtype, shape)


def _where_later(m: Machine, condition: Block, a: Operand, b: Operand, dtype: DType, shape: tuple[int, ...]) -> Block:
    """`tl.where` on floats that are still to be computed, or by a condition that is."""
    make_room(m, (a,) if not isinstance(b, Block) else (), dtype, shape)
    sources, repeats = together(m, [source(m, x, len(shape)) for x in (condition, a, b)])
    size = size_of(sources[0])
    for x in sources[1:]:
        if isinstance(x, Step | torch.Tensor):
            size = broadcast_sizes(size, size_of(x))

    def choose(rows: slice, out: Any, mask: torch.Tensor, x: Any, y: Any) -> Any:
        mask = mask if mask.dtype == torch.bool else mask != 0
        if out is x and not isinstance(y, torch.Tensor):
            return out.masked_fill_(~mask, y)
        chosen = torch.where(mask, x, y)
        return chosen if chosen.dtype == dtype.torch else chosen.to(dtype.torch)  # of two numbers

    return record(m, choose, sources, size, dtype, shape, overwrites=(1, 2), repeats=repeats)


def _where_pointers(m: Machine, condition: Block, a: Operand, b: Operand) -> Pointer:
    if not isinstance(a, Pointer) or not isinstance(b, Pointer):
        raise KernelTypeError("tl.where: a pointer and a number cannot be alternatives")
    shape = common_shape(condition, a, b)
    choices = [lifted(v.data(m.active), len(shape)) for v in (a, b)]
    storage = a.storage
    if a.storage is not b.storage:  # from here on the pointer may lead to either
        pairs = [m.memory.anywhere(v, [c]) for v, c in zip((a, b), choices, strict=True)]
        choices, storage = [sum_terms(terms) for terms, _ in pairs], pairs[0][1]
    choose = np.asarray(lifted(condition.data(m.active), len(shape)))
    return Pointer([np.where(choose != 0, *choices)], a.dtype, shape, m.active, storage)
