"""All memory that a launch can reach: numbers that are addresses, and pointers into any of several tensors.

A pointer normally belongs to one tensor. Two things need more: an integer that a kernel turns into a pointer (a table
of `data_ptr()`s), and a pointer that is one tensor's in some programs and another's in others. `Memory` finds the live
tensor that an address belongs to, and gives each tensor a number; a pointer into `Anywhere` has that number in the
upper bits of its offset. Such a pointer is loaded, stored and counted tensor by tensor (`by_tensor`).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cme295lab.simulator import dtypes
from cme295lab.simulator.dtypes import DType
from cme295lab.simulator.errors import KernelTypeError, SimulatorError, UnsupportedFeatureError
from cme295lab.simulator.programs import Array, combine
from cme295lab.simulator.storage import Storage
from cme295lab.simulator.values import Block, Pointer, add_terms

if TYPE_CHECKING:
    from cme295lab.simulator.machine import Machine

_SHIFT = 48  # bits of an offset; above them stands the tensor's number, 0 for addresses that are no tensor's
_NOTHING = -1  # stands for the tensor of a program whose lanes are all masked out
_TORCH = {d: t for t, d in dtypes.BY_TORCH.items()}


class Anywhere(Storage):
    """Stands for the storage of a pointer whose tensor differs between programs or lanes; it has no memory itself."""

    def __init__(self, dtype: DType) -> None:
        self.name = "several tensors"
        self.dtype = dtype


class Memory:
    """The tensors of a launch: its arguments, and those that addresses have led to."""

    def __init__(self) -> None:
        self.storages: list[Storage] = []
        self._numbered: list[Storage] = []
        self._views: dict[tuple[int, str], Storage] = {}
        self._anywhere: dict[str, Anywhere] = {}
        self._starts = np.zeros(0, np.int64)
        self._ends = np.zeros(0, np.int64)
        self._tensors: list[torch.Tensor] = []

    # ---- one tensor under several types

    def view(self, storage: Storage, dtype: DType) -> Storage:
        """The same memory as elements of another type."""
        return storage if storage.dtype == dtype else self._view(storage.tensor, dtype, storage.name)

    def _view(self, tensor: torch.Tensor, dtype: DType, name: str) -> Storage:
        """The whole memory behind a tensor as elements of a type: an argument of the launch if it is one."""
        memory = tensor.untyped_storage()
        for storage in self.storages:
            if storage.dtype == dtype and storage.tensor.untyped_storage().data_ptr() == memory.data_ptr():
                return storage
        whole = torch.empty(0, dtype=_TORCH[dtype]).set_(memory)  # type: ignore[call-overload]
        taken = {s.name for s in self.storages}
        storage = Storage(f"{name}.{dtype}" if name in taken else name, whole)
        self.storages.append(storage)
        return storage

    def recast(self, m: Machine, pointer: Pointer, dtype: DType) -> Pointer:
        """The same addresses as pointers to another type."""
        old, new, terms = pointer.dtype.itemsize, dtype.itemsize, pointer.terms(m.active)
        if old == new:
            return Pointer(terms, dtype, pointer.shape, m.active, pointer.storage)
        if isinstance(pointer.storage, Anywhere):
            raise UnsupportedFeatureError("a pointer into several tensors as one to a type of another width")
        if old > new:
            terms = [t * (old // new) for t in terms]
        else:
            total = np.asarray(pointer.data(m.active))
            if (total % (new // old)).any():
                raise KernelTypeError(f"a pointer to {pointer.dtype} is not aligned for {dtype}")
            terms = [total // (new // old)]
        return Pointer(terms, dtype, pointer.shape, m.active, self.view(pointer.storage, dtype))

    # ---- addresses

    def address(self, m: Machine, pointer: Pointer) -> np.ndarray:
        """What the pointer is as a number."""
        offsets = np.asarray(pointer.data(m.active))
        size = pointer.dtype.itemsize
        if not isinstance(pointer.storage, Anywhere):
            return offsets * size + _first_address(pointer.storage)
        bases = np.array([0, *(_first_address(s) for s in self._numbered)], np.int64)
        number, offset = offsets >> _SHIFT, offsets & ((1 << _SHIFT) - 1)
        return bases[number] + offset * size

    def pointer(self, m: Machine, addresses: Block, dtype: DType) -> Pointer:
        """The pointers that integers stand for. Numbers that are no address of a live tensor may not be used."""
        numbers = np.asarray(addresses.data(m.active)).astype(np.int64)
        if (numbers % dtype.itemsize).any():
            wrong = int(numbers[numbers % dtype.itemsize != 0].reshape(-1)[0])
            raise KernelTypeError(f"the address {wrong:#x} is not aligned for {dtype} of {dtype.itemsize} bytes")
        where = self._find(numbers)
        found = [self._view(self._tensors[i], dtype, self._name(i)) for i in np.unique(where) if i >= 0]
        storages = dict(zip((i for i in np.unique(where) if i >= 0), found, strict=True))
        if len(storages) == 1 and (where >= 0).all():
            (storage,) = found
            return Pointer(
                [(numbers - _first_address(storage)) // dtype.itemsize], dtype, addresses.shape, m.active, storage
            )
        offsets = numbers // dtype.itemsize
        for i, storage in storages.items():
            offset = (numbers - _first_address(storage)) // dtype.itemsize + self._base(storage)
            offsets = np.where(where == i, offset, offsets)
        return Pointer([offsets], dtype, addresses.shape, m.active, self._elsewhere(dtype))

    def _find(self, addresses: np.ndarray) -> np.ndarray:
        """Which of the known tensors each address belongs to, or -1."""
        for look in (self._add_arguments, self._add_live_tensors, None):
            place = np.searchsorted(self._starts, addresses, side="right") - 1
            known = (place >= 0) & (addresses < self._ends[place]) if len(self._ends) else np.zeros(place.shape, bool)
            if known.all() or look is None:
                break
            look()
        return np.where(known, place, -1)

    def _add_arguments(self) -> None:
        self._add([s.tensor for s in self.storages])

    def _add_live_tensors(self) -> None:
        self._add([t for t in gc.get_objects() if issubclass(type(t), torch.Tensor)])

    def _add(self, tensors: Sequence[torch.Tensor]) -> None:
        by_start = {t.untyped_storage().data_ptr(): t for t in self._tensors}
        for tensor in tensors:
            if tensor.device.type == "cpu" and tensor.layout == torch.strided and tensor.untyped_storage().nbytes():
                by_start.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        starts = sorted(by_start)
        self._tensors = [by_start[s] for s in starts]
        self._starts = np.array(starts, np.int64)
        self._ends = self._starts + np.array([t.untyped_storage().nbytes() for t in self._tensors], np.int64)

    def _name(self, place: int) -> str:
        memory = self._tensors[place].untyped_storage().data_ptr()
        for storage in self.storages:
            if storage.tensor.untyped_storage().data_ptr() == memory:
                return storage.name
        return f"pointed_{sum(s.name.startswith('pointed_') for s in self.storages)}"

    # ---- pointers into several tensors

    def _elsewhere(self, dtype: DType) -> Anywhere:
        return self._anywhere.setdefault(dtype.name, Anywhere(dtype))

    def _base(self, storage: Storage) -> int:
        """The offset at which a tensor begins in `Anywhere`."""
        if storage not in self._numbered:
            self._numbered.append(storage)
        return (self._numbered.index(storage) + 1) << _SHIFT

    def anywhere(self, pointer: Pointer, arrays: list[Array]) -> tuple[list[Array], Anywhere]:
        """The terms of a pointer (`arrays`, for the programs in question) as one that may point into any tensor."""
        if isinstance(pointer.storage, Anywhere):
            return arrays, pointer.storage
        base = np.full((1,) * arrays[0].ndim, self._base(self.view(pointer.storage, pointer.dtype)), np.int64)
        return add_terms(arrays, [base]), self._elsewhere(pointer.dtype)

    def storage_of(self, number: int, address: int, dtype: DType) -> Storage:
        """The tensor with a number, or an error: the address is no tensor's."""
        if not 1 <= number <= len(self._numbered):
            raise SimulatorError(
                f"a pointer to {dtype} made from the number {address * dtype.itemsize:#x}, which is not an address "
                "of any tensor that is alive: fill the table with tensor.data_ptr(), and keep the tensors"
            )
        return self._numbered[number - 1]


def _first_address(storage: Storage) -> int:
    return int(storage.tensor.untyped_storage().data_ptr())


def by_tensor(
    m: Machine, pointer: Any, mask: Any, run: Callable[[Any, Any], Any], choose: Callable[[Block, Any, Any], Any]
) -> Any:
    """Do an access through `run(pointer, mask)`, tensor by tensor if the pointer may point into several.

    Args:
        choose: `choose(condition, a, b)` is `tl.where`.
    """
    if not isinstance(pointer, Pointer) or not isinstance(pointer.storage, Anywhere):
        return run(pointer, mask)
    entry, unused = m.active, m.discard_result
    shape = (len(entry), *pointer.shape)
    numbers = np.broadcast_to(np.asarray(pointer.data(entry)) >> _SHIFT, shape)
    lanes = numbers if mask is None or mask is True else _where_active(m, numbers, mask)
    by_program = lanes.reshape(len(entry), -1)
    alone = (by_program == by_program[:, :1]).all()
    if not alone:
        return _by_lane(m, pointer, mask, run, choose, lanes)
    parts = []
    for number in np.unique(by_program[:, 0]):
        rows = np.flatnonzero(by_program[:, 0] == number)
        m.active, m.discard_result = entry if len(rows) == len(entry) else entry.select(rows), unused
        try:
            found = run(_within(m, pointer, int(number)), mask)
            if isinstance(found, Block):
                parts.append((rows, found.full(m.active), found))
        finally:
            m.active = entry
    if not parts:
        return None
    first = parts[0][2]
    whole = parts[0][1] if len(parts) == 1 else combine([(rows, data) for rows, data, _ in parts], len(entry))
    return Block([whole], first.dtype, first.shape, entry)


def _where_active(m: Machine, numbers: np.ndarray, mask: Any) -> np.ndarray:
    """The tensors' numbers; masked-out lanes, which may point nowhere, get that of an active lane of their program."""
    data = np.asarray(mask.data(m.active)) if isinstance(mask, Block) else np.asarray(bool(mask))
    data = data.reshape(data.shape[:1] + (1,) * (numbers.ndim - data.ndim) + data.shape[1:]) if data.ndim else data
    active = np.broadcast_to(data, numbers.shape).reshape(len(numbers), -1) != 0
    flat = numbers.reshape(len(numbers), -1)
    known = np.where(active.any(1), flat[np.arange(len(flat)), active.argmax(1)], _NOTHING)
    return np.where(active, flat, known[:, None]).reshape(numbers.shape)


def _within(m: Machine, pointer: Pointer, number: int) -> Pointer:
    """A pointer into `Anywhere` as one into the tensor with this number."""
    memory, terms = m.memory, pointer.terms(m.active)
    if number == _NOTHING:
        nothing = Storage("nothing", torch.zeros(1, dtype=_TORCH[pointer.dtype]))
        return Pointer(terms, pointer.dtype, pointer.shape, m.active, nothing)
    storage = memory.storage_of(number, int(np.asarray(pointer.data(m.active)).reshape(-1)[0]), pointer.dtype)
    back = np.full((1,) * terms[0].ndim, -(number << _SHIFT), np.int64)
    return Pointer(add_terms(terms, [back]), pointer.dtype, pointer.shape, m.active, storage)


def _by_lane(
    m: Machine, pointer: Pointer, mask: Any, run: Callable[[Any, Any], Any], choose: Callable[[Block, Any, Any], Any],
    lanes: np.ndarray,
) -> Any:  # fmt: skip
    """An access whose lanes point into different tensors: one masked access for each tensor."""
    found: Any = None
    unused = m.discard_result
    for number in np.unique(lanes):
        here = Block([lanes == number], dtypes.int1, pointer.shape, m.active)
        active = here if mask is None or mask is True else choose(here, mask, False)
        m.discard_result = unused
        part = run(_within(m, pointer, int(number)), active)
        found = part if found is None or part is None else choose(here, part, found)
    return found
