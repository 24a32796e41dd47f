"""Coalescing: which 32-byte sectors and 128-byte lines each access of a program asks for.

A GPU moves memory in *sectors* of 32 bytes; a cache line holds four of them. One instruction of a warp (32 lanes) is a
*request*, and every sector that it touches is moved once, whole, however few of its bytes are wanted.

How the lanes of a block are dealt to requests follows Triton's compiler: neighbouring lanes lie along the axis whose
addresses are consecutive (the last axis, if none is), and a lane moves as many neighbouring elements as make up 16
bytes, if the addresses of all programs are aligned to them and the mask keeps or drops them together. So a request
covers 32 x that many elements. Elements that neighbours share within a request are moved once: a broadcast can have an
efficiency above 1. A sector that two requests touch is moved twice; the first-level cache is not modelled.

Tensors are taken to begin at multiples of 256 bytes, as torch's allocator places them on a GPU; a view begins where its
storage offset says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from cme295lab.simulator.cost.log import AccessRecord, AddressLog, Layout

SECTOR_BYTES, LINE_BYTES, WARP_LANES, VECTOR_BYTES = 32, 128, 32, 16
_LANES_AT_ONCE = 1 << 21
_NOWHERE = np.iinfo(np.int32).min  # the sector of a lane that is masked out


@dataclass
class Footprints:
    """What accesses of single programs touch, one row each: lines in ascending order, relative to a first line, and
    which of a line's four sectors, as bits."""

    first: np.ndarray  # (n + 1,) where each row begins in `lines` and `sectors`
    lines: np.ndarray
    sectors: np.ndarray
    lanes: np.ndarray  # (n,) active lanes
    moved: np.ndarray  # (n,) sectors, summed over requests


@dataclass
class Touches:
    """All accesses of all programs that have an active lane, one row each, in no particular order, and per program the
    number of its accesses."""

    program: np.ndarray
    turn: np.ndarray  # the program's how manieth access it is
    instruction: np.ndarray
    footprint: np.ndarray
    line: np.ndarray  # that the footprint is relative to
    footprints: Footprints
    num_accesses: np.ndarray  # (programs,)
    executions: np.ndarray  # (instructions,)


@dataclass
class _Builder:
    log: AddressLog
    num_programs: int
    parts: list[Footprints] = field(default_factory=list)
    known: dict[object, int] = field(default_factory=dict)
    columns: list[tuple[np.ndarray, ...]] = field(default_factory=list)
    size: int = 0

    def add(self, footprints: Footprints) -> int:
        """Number of the first of new footprints."""
        self.parts.append(footprints)
        self.size += len(footprints.lanes)
        return self.size - len(footprints.lanes)


def find_touches(log: AddressLog, num_programs: int) -> Touches:
    """The sectors of every access in the log."""
    build = _Builder(log, num_programs)
    build.add(_footprints(np.zeros((1, 1), np.int64), np.zeros((1, 1), bool), WARP_LANES))
    num_accesses = np.zeros(num_programs, np.int64)
    executions = np.zeros(len(log.instructions), np.int64)
    vectors = _vectors(log)
    for record in log.records:
        executions[record.instruction] += len(record.programs)
        turn = num_accesses[record.programs]
        num_accesses[record.programs] += 1
        if log.layouts[record.layout].length:
            footprint, line = _touched(build, record, vectors[record.instruction])
            instruction = np.full(len(footprint), record.instruction)
            build.columns.append((record.programs, turn, instruction, footprint, line))
    columns = [np.concatenate([c[i] for c in build.columns] or [np.zeros(0, np.int64)]) for i in range(5)]
    whole = _joined(build.parts)
    active = whole.lanes[columns[3]] > 0
    program, turn, instruction, footprint, line = (c[active] for c in columns)
    return Touches(program, turn, instruction, footprint, line, whole, num_accesses, executions)


def _vectors(log: AddressLog) -> list[int]:
    """Elements that a lane moves at once, for each instruction: what alignment and runs of all its accesses allow."""
    bits = [0] * len(log.instructions)
    runs = [True] * len(log.instructions)
    for record in log.records:
        layout, number = log.layouts[record.layout], record.instruction
        if not layout.length:
            continue
        size = log.memories[log.instructions[number].tensor].element_bytes
        if layout.axis is None:
            runs[number] = False
            continue
        for offsets in (record.offsets, record.heads):
            bits[number] |= int(np.bitwise_or.reduce(offsets, axis=None)) * size
        bits[number] |= (layout.length | layout.shape[layout.axis]) * size
    vectors = []
    for number, instruction in enumerate(log.instructions):
        size = log.memories[instruction.tensor].element_bytes
        aligned = bits[number] & -bits[number] if bits[number] else VECTOR_BYTES
        vectors.append(max(1, min(aligned, VECTOR_BYTES) // size) if runs[number] else 1)
    return vectors


def _touched(build: _Builder, record: AccessRecord, vector: int) -> tuple[np.ndarray, np.ndarray]:
    """Footprint and first line of each program of an access."""
    num_programs = len(record.programs)
    memory = build.log.memories[build.log.instructions[record.instruction].tensor]
    if len(record.heads) > 1:
        found = _one_by_one(build, record, vector)
        return found, np.zeros(num_programs, np.int64)
    first = memory.first_byte + record.offsets.astype(np.int64) * memory.element_bytes
    if len(first) > 1 and record.repeats > 1:
        first = np.repeat(first, record.repeats)
    first = np.broadcast_to(first, (num_programs,))
    line, phase = np.divmod(first, LINE_BYTES)
    masks, which = _distinct_masks(record, num_programs)
    kind = phase + LINE_BYTES * which
    kinds, inverse = np.unique(kind, return_inverse=True)
    numbers = np.empty(len(kinds), np.int64)
    for i, k in enumerate(kinds.tolist()):
        mask = None if masks is None else masks[k // LINE_BYTES]
        mask_key = None if mask is None else (mask.shape, mask.tobytes())
        key = (record.layout, id(record.heads), mask_key, k % LINE_BYTES, vector, memory.element_bytes)
        if key not in build.known:
            elements, active = _lanes(build.log.layouts[record.layout], record.heads.astype(np.int64), mask)
            addresses = elements * memory.element_bytes + k % LINE_BYTES
            build.known[key] = build.add(_footprints(addresses, active, WARP_LANES * vector))
        numbers[i] = build.known[key]
    return numbers[inverse], line


def _distinct_masks(record: AccessRecord, num_programs: int) -> tuple[np.ndarray | None, np.ndarray]:
    """The different masks of the programs, and which one each has."""
    if record.mask is None:
        return None, np.zeros(num_programs, np.int64)
    mask = record.mask.unpacked()
    if len(mask) == 1:
        return mask[:, None], np.zeros(num_programs, np.int64)
    packed = np.packbits(mask.reshape(len(mask), -1), axis=1)
    rows = np.ascontiguousarray(packed).view(np.dtype((np.void, packed.shape[1]))).reshape(-1)
    _, index, which = np.unique(rows, return_index=True, return_inverse=True)
    return mask[index][:, None], which


def _one_by_one(build: _Builder, record: AccessRecord, vector: int) -> np.ndarray:
    """New footprints, one for each program, where addresses have no common pattern."""
    layout = build.log.layouts[record.layout]
    memory = build.log.memories[build.log.instructions[record.instruction].tensor]
    mask = None if record.mask is None else record.mask.unpacked()
    step = max(1, _LANES_AT_ONCE // max(1, math.prod(layout.shape)))
    numbers = []
    for start in range(0, len(record.heads), step):
        heads = record.heads[start : start + step].astype(np.int64)
        part = mask if mask is None or len(mask) == 1 else mask[start : start + step]
        elements, active = _lanes(layout, heads, part)
        made = _footprints(
            elements * memory.element_bytes + memory.first_byte,
            None if active is None else np.broadcast_to(active, elements.shape),
            WARP_LANES * vector,
        )
        numbers.append(build.add(made) + np.arange(len(heads)))
    return np.repeat(np.concatenate(numbers), record.repeats)


def _lanes(layout: Layout, heads: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """The element of every lane (n, lanes) in the order in which lanes are dealt to requests, and which are active."""
    n, rank = len(heads), len(layout.shape)
    axis = _fast_axis(layout, heads)
    if layout.axis is not None:
        along = np.arange(layout.shape[layout.axis]).reshape([-1 if a == axis + 1 else 1 for a in range(rank + 1)])
        elements = heads + along
        active = None if layout.length == layout.shape[layout.axis] else along < layout.length
    else:
        elements, active = heads, None
    if mask is not None:
        active = mask if active is None else mask & active
    elements = np.broadcast_to(elements, (n, *layout.shape))
    if active is not None:
        active = np.broadcast_to(active, (len(active), *layout.shape))
        active = (np.moveaxis(active, axis + 1, -1) if rank else active).reshape(len(active), -1)
    return (np.moveaxis(elements, axis + 1, -1) if rank else elements).reshape(n, -1), active


def _fast_axis(layout: Layout, heads: np.ndarray) -> int:
    """The axis along which neighbouring lanes lie: where addresses are consecutive, else the last one."""
    if layout.axis is not None:
        return layout.axis
    for axis in reversed(range(len(layout.shape))):
        if heads.shape[axis + 1] > 1 and (np.diff(heads[0], axis=axis) == 1).all():
            return axis
    return len(layout.shape) - 1


def _footprints(addresses: np.ndarray, active: np.ndarray | None, lanes_per_request: int) -> Footprints:
    """Footprints of accesses given by the byte addresses of their lanes, (n, lanes)."""
    n, num_lanes = addresses.shape
    sectors = (addresses >> 5).astype(np.int32)  # enough for 64 GiB
    if active is not None:
        active = np.broadcast_to(active, sectors.shape)
        sectors = np.where(active, sectors, np.int32(_NOWHERE))
        lanes = np.count_nonzero(active, axis=1)
    else:
        lanes = np.full(n, num_lanes)
    request = min(lanes_per_request, num_lanes)
    missing = -num_lanes % request
    if missing:
        sectors = np.concatenate([sectors, np.full((n, missing), _NOWHERE, np.int32)], axis=1)
    by_request = np.sort(sectors.reshape(n, -1, request), axis=2)
    moved = _num_new(by_request).sum(1)
    by_access = np.sort(by_request.reshape(n, -1), axis=1)
    new = np.ones(by_access.shape, bool)
    new[:, 1:] = by_access[:, 1:] != by_access[:, :-1]
    new &= by_access != _NOWHERE
    rows, _ = np.nonzero(new)
    distinct = by_access[new]
    line, bit = distinct >> 2, (1 << (distinct & 3)).astype(np.uint8)
    heads = np.ones(len(line), bool)
    heads[1:] = (line[1:] != line[:-1]) | (rows[1:] != rows[:-1])
    starts = np.flatnonzero(heads)
    merged = np.bitwise_or.reduceat(bit, starts) if len(starts) else bit
    first = np.concatenate([[0], np.cumsum(np.bincount(rows[starts], minlength=n))])
    return Footprints(first, line[starts], merged, lanes, moved)


def _num_new(ordered: np.ndarray) -> np.ndarray:
    """Number of different sectors along the last axis of sorted ones."""
    changes = np.count_nonzero(ordered[..., 1:] != ordered[..., :-1], axis=-1)
    return changes + 1 - (ordered[..., 0] == _NOWHERE)


def _joined(parts: list[Footprints]) -> Footprints:
    starts = np.cumsum([0] + [len(p.lines) for p in parts])
    first = np.concatenate([*(p.first[:-1] + s for p, s in zip(parts, starts, strict=False)), starts[-1:]])
    lines, sectors, lanes, moved = (
        np.concatenate([getattr(p, name) for p in parts]) for name in ("lines", "sectors", "lanes", "moved")
    )
    return Footprints(first, lines, sectors, lanes, moved)
