"""What a kernel computes with: blocks of numbers and pointers into tensors.

A `Block` of logical shape (d0, d1, …) holds data of shape (P or 1, d0 or 1, d1 or 1, …) for P programs: an axis of
length 1 is the same for all programs or all positions and is never written out. Integers are kept as a *sum of terms*
that is only added up when somebody needs the numbers. Addresses are such sums — `row * stride + column` stays "rows +
columns" — so a load can see that one axis is contiguous and copy whole rows, and a mask that is true everywhere is
recognised from the terms' bounds.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from cme295lab.simulator import dtypes
from cme295lab.simulator.dtypes import DType, PointerType
from cme295lab.simulator.errors import SimulatorError
from cme295lab.simulator.programs import Array, ProgramSet, Selector, take

if TYPE_CHECKING:
    from cme295lab.simulator.storage import Storage

_MAX_REMEMBERED = 2


class Block:
    """A scalar (shape ()) or block of values, one row per program.

    An operation may overwrite a value that nobody needs any more: one that no variable has held (`temporary`), or one
    whose variable is read for the last time (`expiring`) — unless another value shares its memory (`exposed`).
    `block_bytes` is what one program needs to hold the value: 0 for scalars, pointers and views of another value.
    """

    __slots__ = (
        "dtype",
        "shape",
        "programs",
        "arrays",
        "temporary",
        "expiring",
        "exposed",
        "is_view",
        "num_elements",
        "block_bytes",
        "_narrowed",
    )

    def __init__(
        self, arrays: list[Array], dtype: DType, shape: tuple[int, ...], programs: ProgramSet, *, is_view: bool = False
    ) -> None:
        self.arrays = arrays
        self.dtype = dtype
        self.shape = shape
        self.programs = programs
        self.temporary = not is_view
        self.expiring = False
        self.exposed = is_view
        self.is_view = is_view
        self.num_elements = math.prod(shape)
        self.block_bytes = 0 if is_view or not shape else self.num_elements * dtype.itemsize
        self._narrowed: dict[ProgramSet, list[Array]] | None = None

    def __repr__(self) -> str:
        """As an error message names it."""
        kind = f"pointer to {self.dtype}" if isinstance(self, Pointer) else str(self.dtype)
        return f"<{kind} block of shape {self.shape}>" if self.shape else f"<{kind} scalar>"

    def terms(self, active: ProgramSet) -> list[Array]:
        """The arrays whose sum is the value, for the programs `active`."""
        if self.programs is active:
            return self.arrays
        return self._narrow(active)

    def _narrow(self, active: ProgramSet) -> list[Array]:
        if self.programs is active or all(a.shape[0] == 1 for a in self.arrays):
            return self.arrays
        remembered = self._narrowed
        if remembered is not None and active in remembered:
            return remembered[active]
        if active.parent is None or active.selector is None:
            raise AssertionError("a value of a divergent region is read outside of it")
        arrays = [take(a, active.selector) for a in self._narrow(active.parent)]
        if not isinstance(active.selector, slice):  # slices are views: cheaper to make again than to remember
            remembered = self._narrowed = {} if remembered is None else remembered
            if len(remembered) >= _MAX_REMEMBERED:
                del remembered[next(iter(remembered))]
            remembered[active] = arrays
        return arrays

    def data(self, active: ProgramSet) -> Array:
        """The value as one array, for the programs `active`."""
        arrays = self.terms(active)
        if len(arrays) == 1:
            return arrays[0]
        total = sum_terms(arrays).astype(self.dtype.numpy, copy=False)
        if arrays is self.arrays:
            self.arrays = [total]
        return total

    def full(self, active: ProgramSet) -> Array:
        """The value with all block axes written out: shape (P or 1, *shape)."""
        data = self.data(active)
        shape = (data.shape[0], *self.shape)
        if tuple(data.shape) == shape:
            return data
        return data.expand(shape) if isinstance(data, torch.Tensor) else np.broadcast_to(data, shape)

    def restricted(self, programs: ProgramSet, selector: Selector, *, copy: bool = False) -> Block:
        """This value for a subset of the programs it was made for (`selector`: rows to keep)."""
        arrays = [take(a, selector) for a in self.arrays]
        if copy:
            arrays = [a.clone() if isinstance(a, torch.Tensor) else a.copy() for a in arrays]
        result = self._with(arrays, self.shape, programs, is_view=self.is_view)
        result.exposed = not copy
        return result

    def _with(self, arrays: list[Array], shape: tuple[int, ...], programs: ProgramSet, *, is_view: bool) -> Block:
        result = Block(arrays, self.dtype, shape, programs, is_view=is_view)
        result.temporary = False
        return result

    def viewed(self, arrays: list[Array], shape: tuple[int, ...], active: ProgramSet) -> Block:
        """The same elements in another shape, without moving data."""
        self.exposed = True
        return self._with(arrays, shape, active, is_view=True)

    def may_wrap(self, active: ProgramSet) -> bool:
        """Whether the sum of the terms can leave the range of the type, so that the value is not the sum itself."""
        if len(self.arrays) == 1:
            return False
        (low, high), limits = self.bounds(active), np.iinfo(self.dtype.numpy)
        return low < limits.min or high > limits.max

    def bounds(self, active: ProgramSet) -> tuple[int, int]:
        """A lower and an upper bound of an integer value, from its terms (no sum is formed)."""
        arrays = self.terms(active)
        return sum(int(a.min()) for a in arrays), sum(int(a.max()) for a in arrays)


class Pointer(Block):
    """A pointer, or a block of pointers, into one tensor argument: the terms are element offsets in its storage."""

    __slots__ = ("storage",)

    def __init__(
        self,
        arrays: list[Array],
        dtype: DType,
        shape: tuple[int, ...],
        programs: ProgramSet,
        storage: Storage,
        *,
        is_view: bool = False,
    ) -> None:
        super().__init__(arrays, dtype, shape, programs, is_view=is_view)
        self.block_bytes = 0
        self.storage = storage

    @property
    def pointer_type(self) -> PointerType:
        return PointerType(self.dtype)

    def data(self, active: ProgramSet) -> Array:
        return sum_terms(self.terms(active))

    def _with(self, arrays: list[Array], shape: tuple[int, ...], programs: ProgramSet, *, is_view: bool) -> Pointer:
        return Pointer(arrays, self.dtype, shape, programs, self.storage, is_view=is_view)


def sum_terms(arrays: list[Array]) -> np.ndarray:
    """Add up integer terms."""
    total = arrays[0]
    for term in arrays[1:]:
        total = total + term
    assert isinstance(total, np.ndarray)
    return total


def add_terms(first: list[Array], second: list[Array]) -> list[Array]:
    """The terms of a sum; terms are added at once where that does not enlarge them."""
    terms = list(first)
    for new in second:
        new_axes = [n != 1 for n in new.shape]
        for i, old in enumerate(terms):
            old_axes = [n != 1 for n in old.shape]
            if all(o or not n for n, o in zip(new_axes, old_axes, strict=True)) or all(
                n or not o for n, o in zip(new_axes, old_axes, strict=True)
            ):
                terms[i] = old + new
                break
        else:
            terms.append(new)
    return terms


def scalar(value: bool | int | float, programs: ProgramSet, dtype: DType | None = None) -> Block:
    """A number as a value that is the same in all programs."""
    dtype = dtype or dtypes.of_number(value)
    if dtype.is_float:
        return Block([torch.tensor([value], dtype=dtype.torch)], dtype, (), programs)
    return Block([np.array([int(value)]).astype(dtype.numpy)], dtype, (), programs)


def as_torch(array: Array) -> torch.Tensor:
    """A numpy array as a tensor that shares its memory where it can."""
    if isinstance(array, torch.Tensor):
        return array
    return torch.from_numpy(array if array.flags.writeable and array.flags.c_contiguous else np.array(array))


def as_numpy(array: Array) -> np.ndarray:
    """Numbers as numpy, for reporting: 16- and 8-bit floats are widened to float32."""
    if isinstance(array, np.ndarray):
        return array
    return (array if array.dtype in (torch.float32, torch.float64) else array.float()).numpy()


def require_block(value: object, what: str) -> Block:
    """The value itself if it is a kernel value, else an error that says what was expected."""
    if not isinstance(value, Block):
        raise SimulatorError(f"{what} must be a kernel value, got {type(value).__name__} {value!r}")
    return value
