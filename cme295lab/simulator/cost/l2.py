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
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from cme295lab.simulator.cost.sectors import Touches

_AT_ONCE = 1 << 18


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


def find_atoms(touches: Touches) -> Atoms:
    """Group the lines of a launch."""
    parts = touches.footprints
    span = int(touches.line.max()) + int(parts.lines.max(initial=0)) + 2 if len(touches.line) else 1
    pairs, access = np.unique(touches.footprint.astype(np.int64) * span + touches.line, return_inverse=True)
    footprint, base = pairs // span, pairs % span
    counts = parts.first[footprint + 1] - parts.first[footprint]
    first = np.concatenate([[0], np.cumsum(counts)])
    entry = np.arange(first[-1]) + np.repeat(parts.first[footprint] - first[:-1], counts)
    lines = parts.lines[entry] + np.repeat(base, counts)
    sectors = parts.sectors[entry]
    owner = np.repeat(np.arange(len(pairs)), counts)
    label = _labels(lines, owner, len(pairs))
    head = np.ones(len(lines), bool)
    head[1:] = (label[1:] != label[:-1]) | (owner[1:] != owner[:-1])
    starts = np.flatnonzero(head)
    _, atom = np.unique(label[starts], return_inverse=True)
    weight = np.diff(np.append(starts, len(lines)))
    where = np.concatenate([[0], np.cumsum(np.bincount(owner[starts], minlength=len(pairs)))])
    return Atoms(access, where, atom, weight, _bits(sectors, starts, weight))


def _labels(lines: np.ndarray, owner: np.ndarray, num_owners: int) -> np.ndarray:
    """A number for every line, equal for lines that the same footprints hold, next to each other."""
    if not len(lines):
        return np.zeros(0, np.uint64)
    random = np.random.default_rng(0)
    marks = random.integers(1, 2**63, num_owners, dtype=np.uint64)
    by_line = np.zeros(int(lines.max()) + 1, np.uint64)
    np.add.at(by_line, lines, marks[owner])
    label = by_line[lines]
    head = np.ones(len(lines), bool)
    head[1:] = (label[1:] != label[:-1]) | (owner[1:] != owner[:-1])
    runs = np.flatnonzero(head)
    order = np.lexsort((label[runs], owner[runs]))
    labels, owners = label[runs][order], owner[runs][order]
    torn = np.unique(labels[1:][(labels[1:] == labels[:-1]) & (owners[1:] == owners[:-1])])
    if len(torn):  # in pieces within some footprint: each line for itself
        apart = np.isin(by_line, torn)
        by_line[apart] = random.integers(1, 2**63, int(np.count_nonzero(apart)), dtype=np.uint64)
        label = by_line[lines]
    return label


def _bits(sectors: np.ndarray, starts: np.ndarray, weight: np.ndarray) -> list[int]:
    """The sectors of each atom as one integer."""
    if (weight == 1).all():
        return sectors.tolist()
    whole, result = sectors.tobytes(), []
    known: dict[bytes, int] = {}
    for start, size in zip(starts.tolist(), weight.tolist(), strict=True):
        part = whole[start : start + size]
        bits = known.get(part)
        if bits is None:
            bits = known[part] = int.from_bytes(part, "little")
        result.append(bits)
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
    cache: OrderedDict[int, list[int]] = OrderedDict()  # atom -> present sectors, dirty ones, weight, last writer
    used = 0
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
            else:
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
    return {t: Sectors(read[t], allocated[t], written[t]) for t in set(tensors)}
