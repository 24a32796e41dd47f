"""The address log: which memory every load, store and atomic of a launch touched, kept in little memory.

An address is the sum of what tells the programs apart and of a *pattern* that they share. So an access of the whole
batch is kept as one number per program and one pattern, which is the same for every turn of a loop and kept once.
Only addresses that have no such form (a true gather, whose index comes from memory) are kept one by one, as 32-bit
numbers. Masks are kept as bits. Nothing is worked out here beyond that: `sectors` and `l2` do it when they are asked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

import numpy as np

from cme295lab.simulator.addresses import Access
from cme295lab.simulator.broadcasting import lifted
from cme295lab.simulator.machine import AccessKind, Machine
from cme295lab.simulator.programs import ProgramSet
from cme295lab.simulator.storage import Storage
from cme295lab.simulator.values import sum_terms

_T = TypeVar("_T")
_ALIGNMENT_BYTES = 256  # of torch's allocator on a GPU


@dataclass(frozen=True)
class Instruction:
    """A load, store or atomic in a kernel's source."""

    kind: AccessKind
    tensor: str
    file: str
    line: int
    source: str


@dataclass(frozen=True)
class Memory:
    """Where a tensor argument lies in the launch's memory, which begins at 0: arguments that share their storage lie
    in the same place."""

    first_byte: int
    num_bytes: int
    element_bytes: int


@dataclass(frozen=True)
class Layout:
    """How the lanes of an access lie: the block's shape, and the axis (counted from 0) along which addresses are
    runs of `length` elements; without runs the axis is None."""

    shape: tuple[int, ...]
    axis: int | None = None
    length: int = 1


@dataclass(frozen=True)
class Mask:
    """Active lanes as bits; `shape` has the program axis in front, axes that do not matter have length 1."""

    bits: np.ndarray
    shape: tuple[int, ...]

    def unpacked(self) -> np.ndarray:
        """The mask as booleans, in its shape."""
        return np.unpackbits(self.bits, count=math.prod(self.shape)).view(np.bool_).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class AccessRecord:
    """One access of several programs.

    Attributes:
        instruction, layout: numbers in the tables of the log.
        programs: (P,) positions in the grid.
        offsets: (P or 1,) element that each program's pattern is relative to.
        heads: (P or 1, *shape with length 1 along the row axis) element offsets of the runs, or of the lanes.
        mask: None if every lane is active, or none is (then `layout` has length 0).
        repeats: `offsets` and `heads` have one row per run of so many programs.
    """

    instruction: int
    layout: int
    programs: np.ndarray
    offsets: np.ndarray
    heads: np.ndarray
    mask: Mask | None
    repeats: int


@dataclass
class AddressLog:
    """An observer that keeps the addresses of a launch; see the module."""

    sees_values: ClassVar[bool] = False

    instructions: list[Instruction] = field(default_factory=list)
    layouts: list[Layout] = field(default_factory=list)
    memories: dict[str, Memory] = field(default_factory=dict)
    records: list[AccessRecord] = field(default_factory=list)
    _numbers: dict[object, int] = field(default_factory=dict)
    _arrays: dict[tuple[str, tuple[int, ...], bytes], np.ndarray] = field(default_factory=dict)
    _regions: dict[int, int] = field(default_factory=dict)
    _size: int = 0
    _last: tuple[ProgramSet, int, np.ndarray] | None = None

    def access(self, m: Machine, access: Access, kind: AccessKind) -> None:
        """Keep one access of all active programs."""
        storage = access.pointer.storage
        if storage.name not in self.memories:
            self._add_memory(storage)
        instruction = self._instruction(m, kind, storage.name)
        programs = self._programs(m)
        if access.prefix == 0:
            zero = self._interned(np.zeros((1,) * (len(access.shape) + 1), np.int64))
            layout = self._number_of(Layout(access.shape, None, 0), self.layouts)
            self.records.append(AccessRecord(instruction, layout, programs, zero.reshape(-1), zero, None, 1))
            return
        rows = access.rows
        layout = self._number_of(
            Layout(access.shape) if rows is None else Layout(access.shape, rows.axis - 1, rows.length), self.layouts
        )
        offsets, heads = self._split(m, access)
        mask = None
        if access.mask is not None:
            mask = Mask(self._interned(np.packbits(access.mask)), access.mask.shape)
        rows_given = max(len(offsets), len(heads))
        repeats = len(programs) // rows_given if rows_given > 1 else 1
        self.records.append(AccessRecord(instruction, layout, programs, offsets, heads, mask, repeats))

    def _split(self, m: Machine, access: Access) -> tuple[np.ndarray, np.ndarray]:
        """The addresses (heads of runs, or lanes) as what differs between programs and what they share."""
        if access.rows is not None:
            starts = access.rows.starts
            flat = starts.reshape(starts.shape[0], -1)
            offsets = flat[:, 0]
            if starts.shape[0] == 1 or flat.shape[1] == 1:
                pattern = starts[:1] - offsets[0]
                return offsets.copy(), self._interned(pattern)
            pattern = flat[0] - offsets[0]
            if access.rows.offsets is not None or (flat == offsets[:, None] + pattern).all():
                return offsets.copy(), self._interned(pattern.reshape(1, *starts.shape[1:]))
            return np.zeros(1, np.int64), _compact(starts)
        rank = len(access.shape)
        terms = [lifted(t, rank) for t in access.pointer.terms(m.active)]
        apart = [t for t in terms if t.shape[0] > 1]
        if any(t.size != t.shape[0] for t in apart):
            return np.zeros(1, np.int64), _compact(sum_terms(terms))
        shared = sum_terms([t for t in terms if t.shape[0] == 1] or [np.zeros((1,) * (rank + 1), np.int64)])
        first = int(shared.flat[0])
        offsets = sum_terms([*apart, np.full((1,) * (rank + 1), first)]).reshape(-1)
        return offsets, self._interned(shared - first)

    def _interned(self, array: np.ndarray) -> np.ndarray:
        """The one copy of an array that is kept."""
        key = (array.dtype.str, array.shape, array.tobytes())
        found = self._arrays.get(key)
        if found is None:
            found = self._arrays[key] = array.copy()
        return found

    def _programs(self, m: Machine) -> np.ndarray:
        last = self._last
        if last is None or last[0] is not m.active or last[1] != m.first_program:
            self._last = last = (m.active, m.first_program, m.active_numbers().astype(np.int32))
        return last[2]

    def _instruction(self, m: Machine, kind: AccessKind, tensor: str) -> int:
        place = (kind, tensor, m.source, m.line)
        number = self._numbers.get(place)
        if number is None:
            where = m.source.place(m.line) if m.source is not None else None
            new = Instruction(kind, tensor, where.file if where else "?", m.line, where.source.strip() if where else "")
            number = self._numbers[place] = self._number_of(new, self.instructions)
        return number

    def _number_of(self, value: _T, table: list[_T]) -> int:
        number = self._numbers.get(value)
        if number is None:
            number = self._numbers[value] = len(table)
            table.append(value)
        return number

    def _add_memory(self, storage: Storage) -> None:
        """Give a tensor's storage a place of its own, or the place of the argument that shares it."""
        memory = storage.tensor.untyped_storage()
        first = self._regions.get(memory.data_ptr())
        if first is None:
            first = self._regions[memory.data_ptr()] = self._size
            self._size += -(-max(memory.nbytes(), 1) // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        self.memories[storage.name] = Memory(first, memory.nbytes(), storage.dtype.itemsize)


def _compact(elements: np.ndarray) -> np.ndarray:
    """A copy in 32 bits, where they are enough."""
    small = not elements.size or max(abs(int(elements.min())), abs(int(elements.max()))) < 2**31
    return elements.astype(np.int32 if small else np.int64)
