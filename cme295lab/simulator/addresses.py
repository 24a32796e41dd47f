"""Planning an access: which addresses, in which order, with which lanes active — and adding it to the counts.

Most blocks of addresses are rows: along one axis the offsets are 0, 1, 2, …, the other axes say where each row begins.
`find_rows` sees that from the terms of the sum. Everything else is a set of single elements.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from cme295lab.simulator.arithmetic import Operand
from cme295lab.simulator.broadcasting import common_shape, lifted
from cme295lab.simulator.errors import KernelTypeError
from cme295lab.simulator.machine import AccessEvent, Machine
from cme295lab.simulator.programs import Array
from cme295lab.simulator.sharing import run_length
from cme295lab.simulator.values import Block, Pointer, scalar, sum_terms

_MIN_ROW = 4


@dataclass(frozen=True)
class Rows:
    """Addresses that are runs of `length` consecutive elements along block axis `axis` (counted with the program axis
    in front)."""

    axis: int
    length: int
    starts: np.ndarray  # like the addresses, with length 1 along `axis`
    offsets: np.ndarray | None = None  # (P,) what tells the programs' addresses apart, if it is one number for each

    def shortened(self, length: int) -> Rows:
        return replace(self, length=length)

    def once_per_run(self) -> tuple[Rows, int]:
        """The rows of one program out of every run of programs that read the same, and the length of the runs."""
        length = 1 if self.offsets is None else run_length(self.offsets)
        return (self, 1) if length == 1 else (replace(self, starts=self.starts[::length], offsets=None), length)


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
        if flat[1] - flat[0] != 1 or not (np.diff(flat) == 1).all():
            continue
        starts = np.full((1,) * (rank + 1), flat[0], np.int64)
        for term in terms:
            if term is not ramp:
                starts = starts + term
        differing = [t for t in terms if t.shape[0] > 1]
        alike = bool(differing) and all(t.size == t.shape[0] for t in differing)
        return Rows(axis, length, starts, sum_terms(differing).reshape(-1) if alike else None)
    return None


@dataclass(frozen=True)
class Access:
    """One access, planned: addresses (as rows, or element by element), active lanes, shape."""

    pointer: Pointer
    shape: tuple[int, ...]
    mask: np.ndarray | None  # None: every lane is active
    rows: Rows | None
    prefix: int | None  # the mask keeps the first `prefix` elements of every row; 0: it keeps nothing


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


def count(m: Machine, access: Access, kind: Literal["load", "store"]) -> None:
    """Add an access to the traffic of its tensor."""
    storage = access.pointer.storage
    lanes = _active_lanes(m, access)
    coverage = storage.read if kind == "load" else storage.written
    if kind == "load":
        storage.loads += m.num_active
        storage.read_elements += lanes
    else:
        storage.stores += m.num_active
        storage.written_elements += lanes
    if lanes:
        cover(m, access, coverage.add_rows, coverage.add_elements)
    if m.recording:
        record(m, access, kind)


def _active_lanes(m: Machine, access: Access) -> int:
    total = m.num_active
    for n in access.shape:
        total *= n
    if access.prefix is not None:
        assert access.rows is not None or access.prefix == 0
        return total // access.shape[access.rows.axis - 1] * access.prefix if access.rows else 0
    if access.mask is None:
        return total
    return int(np.count_nonzero(access.mask)) * (total // access.mask.size)


def cover(m: Machine, access: Access, add_rows: Any, add_elements: Any) -> None:
    """Report the touched addresses to a set of distinct elements, as rows where they are rows."""
    if access.rows is not None:
        starts = access.rows.starts
        if access.mask is not None:
            size = np.broadcast_shapes(starts.shape, access.mask.shape)
            starts = np.broadcast_to(starts, size)[np.broadcast_to(access.mask, size)]
        add_rows(starts, access.rows.length)
        return
    rank = len(access.shape)
    index = sum_terms([lifted(t, rank) for t in access.pointer.terms(m.active)])
    if access.mask is not None:
        size = np.broadcast_shapes(index.shape, access.mask.shape)
        index = np.broadcast_to(index, size)[np.broadcast_to(access.mask, size)]
    add_elements(index)


def record(m: Machine, access: Access, kind: Literal["load", "store", "atomic"]) -> None:
    """Keep the access for a step-by-step view: first active element and bytes of every program."""
    storage, rank = access.pointer.storage, len(access.shape)
    index = sum_terms([lifted(t, rank) for t in access.pointer.terms(m.active)])
    full = (m.num_active, *access.shape)
    flat = np.broadcast_to(index, full).reshape(m.num_active, -1)
    if access.prefix is not None:
        axis = access.rows.axis if access.rows else rank
        lane = np.arange(full[axis]).reshape([-1 if i == axis else 1 for i in range(rank + 1)])
        mask = np.broadcast_to(lane < access.prefix, full).reshape(m.num_active, -1)
    elif access.mask is not None:
        mask = np.broadcast_to(access.mask, full).reshape(m.num_active, -1)
    else:
        mask = np.ones_like(flat, bool)
    first = flat[np.arange(m.num_active), mask.argmax(1)] - storage.first_element
    moved = mask.sum(1) * storage.dtype.itemsize
    first = np.where(moved > 0, first, -1)
    m.counters.events.append(
        AccessEvent(kind, storage.name, m.line, m.line_text, m.active_numbers(), first, moved, access.shape)
    )
