"""Tensor descriptors: tiles of a tensor moved by one instruction (TMA on Hopper and later).

`tl.make_tensor_descriptor` makes one in the kernel; `triton.tools.tensor_descriptor.TensorDescriptor` makes one on the
host and passes it as an argument. What lies outside of the tensor reads the padding and is not written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cme295lab.simulator import access, atomics, casts, dtypes
from cme295lab.simulator.arithmetic import Operand
from cme295lab.simulator.compound import Compound
from cme295lab.simulator.dtypes import BlockType, DType
from cme295lab.simulator.errors import KernelTypeError
from cme295lab.simulator.language.constants import block_shape as checked_shape
from cme295lab.simulator.language.registry import native
from cme295lab.simulator.language.shapes import expand_dims
from cme295lab.simulator.language.tiles import inside, integer_scalars, padding, pointers, positions
from cme295lab.simulator.machine import Machine
from cme295lab.simulator.values import Block, Pointer

_MIN_ROW_BYTES = 16
_MIN_GATHERED_ROWS = 8


@dataclass(frozen=True, eq=False)
class Descriptor(Compound):
    """A tensor (base, shape, strides) and the shape of the tiles that are moved."""

    base: Pointer
    shape: tuple[Block, ...]
    strides: tuple[Block, ...]
    block_shape: tuple[int, ...]
    padding_option: object = "zero"

    @property
    def dtype(self) -> DType:
        return self.base.dtype

    @property
    def block_type(self) -> BlockType:
        return BlockType(self.base.dtype, self.block_shape)

    type = block_type

    def parts(self) -> tuple[Any, ...]:
        return self.base, *self.shape, *self.strides

    def with_parts(self, parts: Sequence[Any]) -> Descriptor:
        n = len(self.block_shape)
        return Descriptor(
            parts[0], tuple(parts[1 : 1 + n]), tuple(parts[1 + n :]), self.block_shape, self.padding_option
        )

    def matches(self, other: object) -> bool:
        return isinstance(other, Descriptor) and self.block_shape == other.block_shape

    def method(self, name: str) -> Callable[..., Any] | None:
        """The operation `descriptor.name(...)`, as a function of the machine and its arguments."""
        operation = _METHODS.get(name)
        return None if operation is None else lambda m, *args, **kwargs: operation(m, self, *args, **kwargs)


@native("make_tensor_descriptor", "_experimental_make_tensor_descriptor")
def make_tensor_descriptor(
    m: Machine, base: Operand, shape: Any, strides: Any, block_shape: Any, padding_option: object = "zero"
) -> Descriptor:
    if not isinstance(base, Pointer) or base.shape:
        raise KernelTypeError("tl.make_tensor_descriptor's base must be one pointer, such as a tensor argument")
    sizes = checked_shape(block_shape, "tl.make_tensor_descriptor")
    rank = len(sizes)
    if rank > 5:
        raise KernelTypeError(f"tl.make_tensor_descriptor: one to five axes, got {rank}")
    steps = list(strides)
    if not isinstance(steps[-1], int) or steps[-1] != 1:
        raise KernelTypeError(f"tl.make_tensor_descriptor: the last stride must be the constant 1, got {steps[-1]!r}")
    if sizes[-1] * base.dtype.itemsize < _MIN_ROW_BYTES:
        raise KernelTypeError(
            f"tl.make_tensor_descriptor: a row of the block needs {_MIN_ROW_BYTES} bytes at least, "
            f"got {sizes[-1]} x {base.dtype.itemsize}"
        )
    padding(padding_option, base.dtype)
    extent = integer_scalars(m, shape, "tl.make_tensor_descriptor's shape", rank)
    return Descriptor(
        base,
        tuple(casts.cast(m, n, dtypes.int32) for n in extent),
        integer_scalars(m, steps, "tl.make_tensor_descriptor's strides", rank),
        sizes,
        padding_option,
    )


def from_host(m: Machine, argument: Any, base: Pointer) -> Descriptor:
    """The kernel's view of a `TensorDescriptor` that was passed to the launch."""
    shape = integer_scalars(m, [int(n) for n in argument.shape], "a descriptor's shape")
    strides = integer_scalars(m, [int(n) for n in argument.strides], "a descriptor's strides")
    sizes = checked_shape(list(argument.block_shape), "TensorDescriptor")
    extent = tuple(casts.cast(m, n, dtypes.int32) for n in shape)
    return Descriptor(base, extent, strides, sizes, getattr(argument, "padding", "zero"))


def _tile(m: Machine, tensor: Descriptor, offsets: Any, what: str) -> tuple[Pointer, Operand | None]:
    """Addresses of the tile at `offsets`, and which of its lanes lie in the tensor."""
    rank = len(tensor.block_shape)
    starts = integer_scalars(m, offsets, f"{what}'s offsets", rank)
    where = [positions(m, starts[a], n, a, rank) for a, n in enumerate(tensor.block_shape)]
    return pointers(m, tensor.base, where, tensor.strides), inside(m, where, tensor.shape, range(rank))


def _like_tile(m: Machine, tensor: Descriptor, value: Operand, what: str) -> Block:
    if not isinstance(value, Block) or value.shape != tensor.block_shape:
        shape = value.shape if isinstance(value, Block) else ()
        raise KernelTypeError(f"{what}: the value has shape {shape}, the descriptor's tiles {tensor.block_shape}")
    return casts.cast(m, value, tensor.dtype)


@native("load_tensor_descriptor")
def load(m: Machine, desc: Descriptor, offsets: Any, cache_modifier: str = "", eviction_policy: str = "") -> Block:
    where, mask = _tile(m, _checked(desc), offsets, "a descriptor load")
    return access.load(m, where, mask, padding(desc.padding_option, desc.dtype))


@native("store_tensor_descriptor")
def store(m: Machine, desc: Descriptor, offsets: Any, value: Operand) -> None:
    block = _like_tile(m, _checked(desc), value, "a descriptor store")
    where, mask = _tile(m, desc, offsets, "a descriptor store")
    access.store(m, where, block, mask)


def _checked(desc: object) -> Descriptor:
    if not isinstance(desc, Descriptor):
        raise KernelTypeError(f"expected a tensor descriptor, got {type(desc).__name__}")
    return desc


def _atomic(op: str) -> Callable[..., None]:
    def run(m: Machine, desc: Descriptor, offsets: Any, value: Operand) -> None:
        block = _like_tile(m, desc, value, f"descriptor.atomic_{op}")
        where, mask = _tile(m, desc, offsets, f"descriptor.atomic_{op}")
        m.discard_result = True
        atomics.atomic(m, op, where, block, mask)

    return run


def _rows(m: Machine, desc: Descriptor, x_offsets: Operand, y_offset: Any, what: str) -> tuple[Pointer, Operand | None]:
    """Addresses of the rows `x_offsets` of a matrix, from column `y_offset` on."""
    if len(desc.block_shape) != 2 or desc.block_shape[0] != 1:
        raise KernelTypeError(f"{what} needs a descriptor with tiles of one row, got {desc.block_shape}")
    if not isinstance(x_offsets, Block) or len(x_offsets.shape) != 1 or x_offsets.dtype.name not in ("int16", "int32"):
        raise KernelTypeError(f"{what}: the rows must be a one-dimensional block of int16 or int32")
    if x_offsets.shape[0] < _MIN_GATHERED_ROWS:
        raise KernelTypeError(f"{what} moves {_MIN_GATHERED_ROWS} rows at least, got {x_offsets.shape[0]}")
    columns = 32 // desc.dtype.primitive_bitwidth * 8
    if desc.block_shape[1] < columns:
        raise KernelTypeError(f"{what} of {desc.dtype} needs {columns} columns at least, got {desc.block_shape[1]}")
    (first,) = integer_scalars(m, y_offset, f"{what}'s column")
    where = [expand_dims(m, casts.cast(m, x_offsets, dtypes.int64), 1), positions(m, first, desc.block_shape[1], 1, 2)]
    return pointers(m, desc.base, where, desc.strides), inside(m, where, desc.shape, (0, 1))


def _gather(m: Machine, desc: Descriptor, x_offsets: Operand, y_offset: Any) -> Block:
    where, mask = _rows(m, desc, x_offsets, y_offset, "descriptor.gather")
    return access.load(m, where, mask, padding(desc.padding_option, desc.dtype))


def _scatter(m: Machine, desc: Descriptor, value: Operand, x_offsets: Operand, y_offset: Any) -> None:
    where, mask = _rows(m, desc, x_offsets, y_offset, "descriptor.scatter")
    access.store(m, where, value, mask)


_METHODS: dict[str, Callable[..., Any]] = {
    "load": load,
    "store": store,
    "gather": _gather,
    "scatter": _scatter,
    **{f"atomic_{op}": _atomic(op) for op in ("add", "min", "max", "and", "or", "xor")},
}
