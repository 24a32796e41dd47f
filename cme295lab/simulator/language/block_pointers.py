"""Block pointers: `tl.make_block_ptr` and `tl.advance`, with loads and stores through them (see `core`).

Triton 3.9 has removed them in favour of tensor descriptors; kernels written for earlier versions run here all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cme295lab.simulator import access
from cme295lab.simulator.arithmetic import Operand, binary
from cme295lab.simulator.broadcasting import common_shape
from cme295lab.simulator.compound import Compound
from cme295lab.simulator.dtypes import BlockType, PointerType
from cme295lab.simulator.errors import KernelTypeError
from cme295lab.simulator.language.constants import block_shape as checked_shape
from cme295lab.simulator.language.registry import native
from cme295lab.simulator.language.shapes import broadcast_to
from cme295lab.simulator.language.tiles import inside, integer_scalars, padding, pointers, positions
from cme295lab.simulator.machine import Machine
from cme295lab.simulator.values import Block, Pointer, scalar


@dataclass(frozen=True, eq=False)
class BlockPointer(Compound):
    """A tile of a tensor: the tensor's base, shape and strides, and where the tile is."""

    base: Pointer
    shape: tuple[Block, ...]
    strides: tuple[Block, ...]
    offsets: tuple[Block, ...]
    block_shape: tuple[int, ...]

    @property
    def type(self) -> PointerType:
        """A pointer to a whole block, so that `p.type.element_ty.element_ty` is the type of its elements."""
        return PointerType(BlockType(self.base.dtype, self.block_shape))

    dtype = type

    def parts(self) -> tuple[Any, ...]:
        return self.base, *self.shape, *self.strides, *self.offsets

    def with_parts(self, parts: Sequence[Any]) -> BlockPointer:
        n = len(self.block_shape)
        shape, strides, offsets = (tuple(parts[1 + n * i : 1 + n * (i + 1)]) for i in range(3))
        return BlockPointer(parts[0], shape, strides, offsets, self.block_shape)

    def matches(self, other: object) -> bool:
        return isinstance(other, BlockPointer) and self.block_shape == other.block_shape


@native("make_block_ptr")
def make_block_ptr(
    m: Machine, base: Operand, shape: object, strides: object, offsets: object, block_shape: object, order: object
) -> BlockPointer:
    if not isinstance(base, Pointer) or base.shape:
        raise KernelTypeError("tl.make_block_ptr's base must be one pointer, such as a tensor argument plus an offset")
    sizes = checked_shape(block_shape, "tl.make_block_ptr")
    rank = len(sizes)
    axes = tuple(order) if isinstance(order, tuple | list) else (order,)
    if sorted(axes) != list(range(rank)):
        raise KernelTypeError(f"tl.make_block_ptr: order must name each of {rank} axes once, got {axes}")
    extent, steps, start = (
        integer_scalars(m, v, f"tl.make_block_ptr's {n}", rank)
        for n, v in (("shape", shape), ("strides", strides), ("offsets", offsets))
    )
    return BlockPointer(base, extent, steps, start, sizes)


@native("advance", method=True)
def advance(m: Machine, base: object, offsets: object) -> BlockPointer:
    """The tile that lies `offsets` elements further along each axis."""
    if not isinstance(base, BlockPointer):
        raise KernelTypeError("tl.advance needs a block pointer made by tl.make_block_ptr")
    steps = integer_scalars(m, offsets, "tl.advance's offsets", len(base.block_shape))
    moved = [binary(m, "+", old, step) for old, step in zip(base.offsets, steps, strict=True)]
    return replace(base, offsets=tuple(v for v in moved if isinstance(v, Block)))


def _tile(m: Machine, tile: BlockPointer, boundary_check: object, what: str) -> tuple[Pointer, Operand | None]:
    """Addresses and mask of the tile."""
    rank = len(tile.block_shape)
    checked = boundary_check if isinstance(boundary_check, tuple | list) else (boundary_check,)
    if not all(isinstance(a, int) and 0 <= a < rank for a in checked) or len(set(checked)) != len(checked):
        raise KernelTypeError(f"{what}: boundary_check names axes of the tile, 0 to {rank - 1}, got {boundary_check!r}")
    where = [positions(m, tile.offsets[a], n, a, rank) for a, n in enumerate(tile.block_shape)]
    return pointers(m, tile.base, where, tile.strides), inside(m, where, tile.shape, sorted(checked))


def load(
    m: Machine, tile: BlockPointer, mask: object, other: object, boundary_check: object, padding_option: object
) -> Block:
    """`tl.load` of a tile; along the axes in `boundary_check`, what lies outside of the tensor reads the padding."""
    if mask is not None or other is not None:
        raise KernelTypeError("tl.load: a block pointer has boundary_check and padding_option, not mask and other")
    fill = padding(padding_option, tile.base.dtype)
    where, mask = _tile(m, tile, boundary_check, "tl.load")
    return access.load(m, where, mask, fill)


def store(m: Machine, tile: BlockPointer, value: Operand, mask: object, boundary_check: object) -> None:
    """`tl.store` of a tile; along the axes in `boundary_check`, what lies outside of the tensor is not written."""
    if mask is not None:
        raise KernelTypeError("tl.store: a block pointer has boundary_check instead of a mask")
    block = value if isinstance(value, Block) else scalar(value, m.active)
    if block.shape and block.shape != tile.block_shape:
        raise KernelTypeError(f"tl.store: the value has shape {block.shape}, the tile {tile.block_shape}")
    where, active = _tile(m, tile, boundary_check, "tl.store")
    assert common_shape(where) == tile.block_shape
    access.store(m, where, block if block.shape else broadcast_to(m, block, tile.block_shape), active)
