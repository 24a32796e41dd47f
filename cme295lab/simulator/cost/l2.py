"""The second-level cache: which sectors come from main memory, and which are written back.

The model: one cache for all SMs with lines of 128 bytes in sectors of 32, fully associative, least recently used line
out first. It is empty when a launch begins. An access of a program looks up its lines in ascending order.

- A load of a sector that is not there reads it from main memory.
- A store writes to the cache (*write-back*): the sector is dirty, and goes to main memory when its line is evicted, or
  at the end of the launch. It is not read before, even if only a part of it is written (byte masks), and counts as
  present afterwards.
- An atomic is done in the cache: the sector is read if it is not there, and dirty.

A GPU's cache is set-associative and hashed, in two halves, and has a policy of its own, so real figures lie somewhat
higher near capacity.

How it is computed. Lines that are always looked up together, one after the other (the lines of a tile), hit or miss
together: since the last time, the same number of other lines has been looked up for each. Such a group is one *atom*
whose weight is its number of lines. With atoms instead of lines the result is the same, and a tile costs one look-up.

Where that would still be too much (a launch that gathers millions of scattered elements), one line of every group of R
neighbouring lines is followed, picked at random but for each group the same one throughout, in a cache of 1/R of the
capacity; the figures are R times what is seen. `CacheReport.line_sample` is R; up to 2 million look-ups it is 1.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from cme295lab.simulator.cost.sectors import Footprints, Touches

_AT_ONCE = 1 << 18
_MOST_LOOKUPS = 1 << 21


@dataclass(frozen=True)
class Sectors:
    """Sectors of one tensor in the cache model: not found by loads and atomics (read from main memory), not found by
    stores, written back."""

    read: int = 0
    allocated: int = 0
    written: int = 0


@dataclass
class Atoms:
    """The footprint of every access, as atoms: access i touches atoms first[i] … first[i + 1] - 1 of the columns."""

    access: np.ndarray  # the footprint of each access, a row of `first`
    first: np.ndarray
    atom: np.ndarray
    weight: np.ndarray
    sectors: list[int]  # which sectors of the atom, 8 bits per line
    line_sample: int = 1  # of how many lines one is followed


def find_atoms(touches: Touches, most_lookups: int = _MOST_LOOKUPS) -> Atoms:
    """Group the lines of a launch; follow only some of them if there would be more look-ups than allowed."""
    parts = touches.footprints
    span = int(touches.line.max(initial=0)) + int(parts.lines.max(initial=0)) + 2
    pairs, access = np.unique(touches.footprint.astype(np.int64) * span + touches.line, return_inverse=True)
    footprint, base = np.divmod(pairs, span)
    counts = parts.first[footprint + 1] - parts.first[footprint]
    sample = _power_of_two(int(counts.sum()) / (2 * most_lookups))
    while True:
        atoms, sectors, starts = _grouped(parts, footprint, base, sample)
        lookups = int(np.diff(atoms.first)[access].sum())
        few = lookups <= 2 * len(access)  # hardly more than one for each access: fewer lines would not help
        if lookups <= most_lookups or few:
            atoms.access, atoms.sectors = access, _bits(sectors, starts, atoms.weight)
            return atoms
        sample *= _power_of_two(lookups / most_lookups)


def _power_of_two(ratio: float) -> int:
    """The smallest power of two that is not below a ratio; at least 1."""
    return 1 << max(0, math.ceil(math.log2(max(ratio, 1))))


def _grouped(
    parts: Footprints, footprint: np.ndarray, base: np.ndarray, sample: int
) -> tuple[Atoms, np.ndarray, np.ndarray]:
    """Atoms of footprints that begin at lines `base`, the sectors of all lines, and where each atom begins in them."""
    counts = parts.first[footprint + 1] - parts.first[footprint]
    entry = np.arange(counts.sum()) + np.repeat(parts.first[footprint] - np.cumsum(counts) + counts, counts)
    lines = parts.lines[entry] + np.repeat(base, counts)
    owner = np.repeat(np.arange(len(footprint), dtype=np.int32), counts)
    if sample > 1:
        followed = np.flatnonzero(_is_followed(lines, sample))
        entry, lines, owner = entry[followed], lines[followed], owner[followed]
    label = _labels(lines, owner, len(footprint))
    starts = np.flatnonzero(_is_head(label, owner))
    _, atom = np.unique(label[starts], return_inverse=True)
    weight = np.diff(np.append(starts, len(lines)))
    first = np.concatenate([[0], np.cumsum(np.bincount(owner[starts], minlength=len(footprint)))])
    return Atoms(np.zeros(0, np.int64), first, atom, weight, [], sample), parts.sectors[entry], starts


def _is_head(label: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Where a new run of equal labels begins, or a new footprint."""
    head = np.ones(len(label), bool)
    head[1:] = (label[1:] != label[:-1]) | (owner[1:] != owner[:-1])
    return head


def _is_followed(lines: np.ndarray, sample: int) -> np.ndarray:
    """One line of each group of `sample` (a power of two) neighbours."""
    groups = np.arange((int(lines.max(initial=0)) // sample) + 1, dtype=np.uint64)
    chosen = (groups * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(40)).astype(np.int64) & (sample - 1)
    return chosen[lines >> (sample.bit_length() - 1)] == (lines & (sample - 1))


def _labels(lines: np.ndarray, owner: np.ndarray, num_owners: int) -> np.ndarray:
    """A number for every line, equal for lines that the same footprints hold, next to each other."""
    if not len(lines):
        return np.zeros(0, np.uint64)
    random = np.random.default_rng(0)
    marks = random.integers(1, 2**63, num_owners, dtype=np.uint64)
    by_line = np.zeros(int(lines.max()) + 1, np.uint64)
    np.add.at(by_line, lines, marks[owner])
    label = by_line[lines]
    runs = np.flatnonzero(_is_head(label, owner))
    pair = label[runs] * np.uint64(2 * num_owners + 1) + owner[runs].astype(np.uint64)
    ordered = np.sort(pair)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):  # in pieces within some footprint: each line for itself
        apart = np.isin(by_line, label[runs][np.isin(pair, twice)])
        by_line[apart] = random.integers(1, 2**63, int(np.count_nonzero(apart)), dtype=np.uint64)
        label = by_line[lines]
    return label


def _bits(sectors: np.ndarray, starts: np.ndarray, weight: np.ndarray) -> list[int]:
    """The sectors of each atom as one integer."""
    result: list[int] = sectors[starts].tolist()
    whole = sectors.tobytes()
    known: dict[bytes, int] = {}
    for i in np.flatnonzero(weight > 1).tolist():
        part = whole[starts[i] : starts[i] + weight[i]]
        bits = known.get(part)
        if bits is None:
            bits = known[part] = int.from_bytes(part, "little")
        result[i] = bits
    return result


def replay(
    atoms: Atoms, order: np.ndarray, kinds: list[str], instruction: np.ndarray, tensors: list[int], capacity_lines: int
) -> dict[int, Sectors]:
    """Run accesses through the cache.

    Args:
        atoms: what each access touches.
        order: the accesses in the order in which they happen.
        kinds, tensors: kind of each instruction, and a number for its tensor.
        instruction: of each access.
        capacity_lines: lines that the cache holds.
    """
    capacity_lines //= atoms.line_sample
    cache: OrderedDict[int, list[int]] = OrderedDict()  # atom -> present sectors, dirty ones, weight, last writer
    room = np.zeros(int(atoms.atom.max(initial=0)) + 1, np.int64)
    room[atoms.atom] = atoms.weight
    fits, used = int(room.sum()) <= capacity_lines, 0  # then nothing is evicted, and order does not matter
    read, allocated, written = ([0] * (max(tensors, default=0) + 1) for _ in range(3))
    for start in range(0, len(order), _AT_ONCE):
        part = order[start : start + _AT_ONCE]
        row = atoms.access[part]
        counts = atoms.first[row + 1] - atoms.first[row]
        entry = np.arange(counts.sum()) + np.repeat(atoms.first[row] - np.cumsum(counts) + counts, counts)
        who = np.repeat(instruction[part], counts)
        for atom, e, weight, number in zip(
            atoms.atom[entry].tolist(), entry.tolist(), atoms.weight[entry].tolist(), who.tolist(), strict=True
        ):
            wanted, kind, tensor = atoms.sectors[e], kinds[number], tensors[number]
            state = cache.get(atom)
            if state is None:
                state = cache[atom] = [0, 0, weight, tensor]
                used += weight
            elif not fits:
                cache.move_to_end(atom)
            absent = wanted & ~state[0]
            if absent:
                state[0] |= wanted
                (allocated if kind == "store" else read)[tensor] += absent.bit_count()
            if kind != "load":
                state[1] |= wanted
                state[3] = tensor
            while used > capacity_lines:
                _, old = cache.popitem(last=False)
                used -= old[2]
                written[old[3]] += old[1].bit_count()
    for old in cache.values():
        written[old[3]] += old[1].bit_count()
    times = atoms.line_sample
    return {t: Sectors(times * read[t], times * allocated[t], times * written[t]) for t in set(tensors)}
