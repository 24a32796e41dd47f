"""Planning an access: which addresses, in which order, with which lanes active — and adding it to the counts.

Most blocks of addresses are rows: along one axis the offsets are 0, 1, 2, …, the other axes say where each row begins.
`find_rows` sees that from the terms of the sum. Everything else is a set of single elements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cme295lab.simulator.arithmetic import Operand
from cme295lab.simulator.broadcasting import common_shape, lifted
from cme295lab.simulator.errors import KernelTypeError, OutOfBoundsError
from cme295lab.simulator.indices import index_of
from cme295lab.simulator.machine import AccessEvent, AccessKind, Machine
from cme295lab.simulator.programs import Array
from cme295lab.simulator.storage import Coverage
from cme295lab.simulator.values import Block, Pointer, scalar, sum_terms

_MIN_ROW = 4


@dataclass(slots=True)
class Rows:
    """Addresses that are runs of `length` consecutive elements along block axis `axis` (counted with the program axis
    in front)."""

    axis: int
    length: int
    starts: np.ndarray  # like the addresses, with length 1 along `axis`
    offsets: np.ndarray | None = None  # (P,) what tells the programs' addresses apart, if it is one number for each

    def shortened(self, length: int) -> Rows:
        return Rows(self.axis, length, self.starts, self.offsets)

    def once_per_run(self) -> tuple[Rows, int]:
        """The rows of one program out of every run of programs that read the same, and the length of the runs."""
        length = 1 if self.offsets is None else run_length(self.offsets)
        return (self, 1) if length == 1 else (Rows(self.axis, self.length, self.starts[::length]), length)


def run_length(values: np.ndarray) -> int:
    """The length of the runs of equal values that an array consists of; 1 if they are not all equally long."""
    changes = np.flatnonzero(values[1:] != values[:-1]) + 1
    length = int(changes[0]) if len(changes) else len(values)
    runs, rest = divmod(len(values), length)
    return length if not rest and np.array_equal(changes, np.arange(1, runs) * length) else 1


def find_rows(terms: list[Array], rank: int) -> Rows | None:
    """Recognise contiguous rows in a sum of address terms."""
    for axis in range(rank, 0, -1):
        along = [t for t in terms if t.shape[axis] > 1]
        if len(along) != 1:
            continue
        ramp = along[0]
        assert isinstance(ramp, np.ndarray)
        length = ramp.shape[axis]
        if ramp.size != length or length < _MIN_ROW:
            continue
        flat = ramp.reshape(-1)
        if flat[1] - flat[0] != 1 or not (flat[1:] - flat[:-1] == 1).all():
            continue
        starts = np.full((1,) * (rank + 1), flat[0], np.int64)
        for term in terms:
            if term is not ramp:
                starts = starts + term
        differing = [t for t in terms if t.shape[0] > 1]
        alike = bool(differing) and all(t.size == t.shape[0] for t in differing)
        return Rows(axis, length, starts, sum_terms(differing).reshape(-1) if alike else None)
    return None


@dataclass(slots=True)
class Access:
    """One access, planned: addresses (as rows, or element by element), active lanes, shape."""

    pointer: Pointer
    shape: tuple[int, ...]
    mask: np.ndarray | None  # None: every lane is active
    rows: Rows | None
    prefix: int | None  # the mask keeps the first `prefix` elements of every row; 0: it keeps nothing
    stored: np.ndarray | None = None  # the words that a store writes, (P or 1, *shape or 1); for observers


def plan(m: Machine, pointer: Operand, mask: Operand | None, what: str, *, cut_rows: bool = True) -> Access:
    """Check the operands of an access and choose how to do it; with cut_rows=False a mask that keeps a prefix of every
    row is treated like any other."""
    if not isinstance(pointer, Pointer):
        kind = f"a block of {pointer.dtype}" if isinstance(pointer, Block) else f"the number {pointer!r}"
        raise KernelTypeError(f"{what} needs a pointer (a tensor argument plus offsets), got {kind}")
    shape = common_shape(pointer, mask)
    if shape != pointer.shape and pointer.shape:
        raise KernelTypeError(f"{what}: the mask has shape {shape}, the pointers {pointer.shape}; they must agree")
    rank = len(shape)
    active = _mask_data(m, mask, rank)
    if active is not None and not active.any():
        return Access(pointer, shape, None, None, 0)
    rows = find_rows([lifted(t, rank) for t in pointer.terms(m.active)], rank) if rank else None
    prefix = None
    if rows is not None and active is not None and active.shape[rows.axis] > 1:
        prefix = _prefix(active, rows.axis) if cut_rows else None
        if prefix is None:
            rows = None
        else:
            active = None
            rows = rows.shortened(prefix)
    return Access(pointer, shape, active, rows, prefix)


def _mask_data(m: Machine, mask: Operand | None, rank: int) -> np.ndarray | None:
    if mask is None or mask is True:
        return None
    block = mask if isinstance(mask, Block) else scalar(bool(mask), m.active)
    if block.dtype.is_float:
        raise KernelTypeError(f"a mask must be boolean, got {block.dtype}: compare, or convert with .to(tl.int1)")
    data = lifted(block.data(m.active), rank)
    assert isinstance(data, np.ndarray)
    data = data if data.dtype == np.bool_ else data != 0
    return None if data.all() else data


def _prefix(mask: np.ndarray, axis: int) -> int | None:
    """Length of the true prefix, if the mask depends on `axis` alone and is true up to some point."""
    if mask.size != mask.shape[axis]:
        return None
    flat = mask.reshape(-1)
    count = int(np.count_nonzero(flat))
    return count if flat[:count].all() else None


def elements(m: Machine, access: Access) -> np.ndarray:
    """The element that every lane points to, masked out or not; axes along which it does not change have length 1."""
    rank = len(access.shape)
    return sum_terms([lifted(t, rank) for t in access.pointer.terms(m.active)])


def active_lanes(m: Machine, access: Access) -> np.ndarray:
    """Whether each lane of each active program takes part, (P, *shape)."""
    full = (m.num_active, *access.shape)
    if access.prefix is None:
        return np.broadcast_to(True if access.mask is None else access.mask, full)
    axis = access.rows.axis if access.rows else len(access.shape)
    lane = np.arange(full[axis]).reshape([-1 if i == axis else 1 for i in range(len(full))])
    return np.broadcast_to(lane < access.prefix, full)


def out_of_bounds(m: Machine, access: Access, kind: str) -> OutOfBoundsError:
    """Find the first offending lane and say where it is, in the terms that one thinks in."""
    storage, lanes = access.pointer.storage, active_lanes(m, access)
    index = np.broadcast_to(elements(m, access), lanes.shape)
    outside = lanes & ((index < 0) | (index >= storage.num_elements))
    where = np.argwhere(outside)[0]
    row, lane = int(where[0]), tuple(int(i) for i in where[1:])
    element = int(index[tuple(where)]) - storage.first_element
    shape, strides = tuple(storage.tensor.shape), storage.tensor.stride()
    program, position = m.program_of_row(row), index_of(shape, strides, element)
    spot = "" if len(shape) < 2 and not storage.first_element else f", index {list(position)}"
    past = element - (storage.num_elements - storage.first_element) + 1
    beyond = f"{past:,} past the last" if past > 0 else f"{-element - storage.first_element:,} before the first"
    memory = f"{storage.num_elements:,} elements in memory"
    if storage.first_element:
        memory += f", of which the first {storage.first_element:,} come before it"
    num_lanes, num_active = int(outside[row].sum()), int(np.broadcast_to(lanes, outside.shape)[row].sum())
    return OutOfBoundsError(
        f"out-of-bounds {kind}: program {program}, lane {lane} touches element {element:,} of {storage.name!r}{spot}, "
        f"{beyond} (shape {shape}, strides {strides}, {memory}); {num_lanes:,} of the {num_active:,} active lanes of "
        f"this program are outside. {_advice(past > 0, num_lanes == num_active)}",
        tensor=storage.name, program=program, element=element, index=position, lane=lane,
    )  # fmt: skip


def _advice(past_end: bool, all_lanes: bool) -> str:
    """What to do about addresses outside of a tensor."""
    if not past_end:
        return "Offsets must not be negative: mask those lanes (mask=offsets >= 0), or check what is subtracted"
    if all_lanes:
        return "Nothing of the block is inside: check the strides, the size of the grid, and the order of its axes"
    return "Mask the lanes beyond the end (mask=offsets < n), in every axis that the block size does not divide"


def count(m: Machine, access: Access, kind: AccessKind) -> None:
    """Add an access to the traffic of its tensor; an atomic reads and writes its lanes."""
    storage = access.pointer.storage
    lanes = _num_active_lanes(m, access)
    if kind != "store":
        storage.loads += m.num_active
        storage.read_elements += lanes
        if lanes:
            _cover(m, access, storage.read)
    if kind != "load":
        storage.stores += m.num_active
        storage.written_elements += lanes
        if lanes:
            _cover(m, access, storage.written)
    if m.recording:
        _record(m, access, kind)
    for observer in m.observers:
        observer.access(m, access, kind)


def _num_active_lanes(m: Machine, access: Access) -> int:
    total = m.num_active * math.prod(access.shape)
    if access.prefix is not None:
        return total // access.shape[access.rows.axis - 1] * access.prefix if access.rows else 0
    if access.mask is None:
        return total
    return int(np.count_nonzero(access.mask)) * (total // access.mask.size)


def _cover(m: Machine, access: Access, coverage: Coverage) -> None:
    """Add the touched addresses to a set of distinct elements, as rows where they are rows."""
    first, length = touched(m, access)
    if access.rows is not None:
        coverage.add_rows(first, length)
    else:
        coverage.add_elements(first)


def touched(m: Machine, access: Access) -> tuple[np.ndarray, int]:
    """The addresses of active lanes, as runs of consecutive elements: where each begins, and their length."""
    if access.rows is not None:
        first, length = access.rows.starts, access.rows.length
    else:
        first, length = elements(m, access), 1
    if access.mask is not None:
        size = np.broadcast_shapes(first.shape, access.mask.shape)
        first = np.broadcast_to(first, size)[np.broadcast_to(access.mask, size)]
    return first, length


def _record(m: Machine, access: Access, kind: AccessKind) -> None:
    """Keep the access for a step-by-step view: first active element and bytes of every program."""
    storage, lanes = access.pointer.storage, active_lanes(m, access)
    flat = np.broadcast_to(elements(m, access), lanes.shape).reshape(m.num_active, -1)
    lanes = lanes.reshape(m.num_active, -1)
    first = flat[np.arange(m.num_active), lanes.argmax(1)] - storage.first_element
    moved = lanes.sum(1) * storage.dtype.itemsize
    first = np.where(moved > 0, first, -1)
    m.counters.events.append(
        AccessEvent(kind, storage.name, m.line, m.line_text, m.active_numbers(), first, moved, access.shape)
    )
