"""How blocks of different shapes meet, and how results are made.

Arrays have the program axis in front of the block axes, so bringing two blocks to the same rank means inserting axes
behind the first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cme295lab.simulator.dtypes import DType
from cme295lab.simulator.errors import KernelTypeError
from cme295lab.simulator.machine import Machine
from cme295lab.simulator.programs import Array
from cme295lab.simulator.values import Block


def common_shape(*operands: object) -> tuple[int, ...]:
    """The shape to which blocks broadcast."""
    shapes = [x.shape for x in operands if isinstance(x, Block) and x.shape]
    if not shapes:
        return ()
    if all(s == shapes[0] for s in shapes):
        return shapes[0]
    try:
        return tuple(np.broadcast_shapes(*shapes))
    except ValueError:
        raise KernelTypeError(f"cannot broadcast blocks of shapes {' and '.join(map(str, shapes))}") from None


def lifted(array: Array, rank: int) -> Array:
    """Insert block axes behind the program axis, so that an array of a lower rank broadcasts."""
    missing = rank + 1 - array.ndim
    return array if missing == 0 else array.reshape((array.shape[0],) + (1,) * missing + tuple(array.shape[1:]))


def broadcast_sizes(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    """The shape of two arrays of the same rank that are known to broadcast."""
    return tuple(y if x == 1 else x for x, y in zip(a, b, strict=True))


def result(m: Machine, array: Array, dtype: DType, shape: tuple[int, ...]) -> Block:
    """A new value, noted for the size of the batch."""
    block = Block([array], dtype, shape, m.active)
    m.note_block(block)
    return block


def sharing(source: Block, block: Block) -> Block:
    """A result that has memory in common with what it was made of: neither may be overwritten from now on."""
    source.exposed = block.exposed = True
    return block


def lazy_sum(m: Machine, terms: list[Array], dtype: DType, shape: tuple[int, ...]) -> Block:
    """A new integer value that is left as a sum of terms."""
    block = Block(terms, dtype, shape, m.active)
    m.note_block(block)
    return block
