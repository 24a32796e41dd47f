"""An access in the form that the checks work on: runs of consecutive elements, each with its program."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cme295lab.simulator.addresses import Access, active_lanes, elements
from cme295lab.simulator.machine import Machine
from cme295lab.simulator.storage import windows


@dataclass(frozen=True)
class Runs:
    """The active lanes of an access: n runs of `length` elements.

    Attributes:
        starts: (n,) first element of each run, an offset in the storage.
        rows: (n,) which row of the active set each run belongs to.
        length: elements of a run.
        words: (n, length) or (n, 1): the memory words that a store writes there; None for other accesses.
    """

    starts: np.ndarray
    rows: np.ndarray
    length: int
    words: np.ndarray | None = None

    def windows(self, flat: np.ndarray) -> np.ndarray:
        """View of all runs of this length in a flat array: index it with `starts` to read or write them."""
        return windows(flat, self.length)

    def scaled(self, factor: int) -> Runs:
        """The same memory in units `factor` times smaller."""
        if factor == 1:
            return self
        return Runs(self.starts * factor, self.rows, self.length * factor)

    def element(self, position: int) -> int:
        """The element at a position of the flattened (n, length) lanes."""
        run, lane = divmod(position, self.length)
        return int(self.starts[run]) + lane


def runs_of(m: Machine, access: Access, *, one_for_all: bool = False) -> Runs | None:
    """The active lanes of an access, or None if there are none.

    Args:
        m, access: the machine and what it accesses.
        one_for_all: where programs next to each other touch the same elements, the first and the last suffice.
    """
    if access.prefix == 0:
        return None
    if access.rows is None:
        return _single_elements(m, access)
    axis, length = access.rows.axis, access.rows.length
    starts = np.squeeze(access.rows.starts, axis)
    keep = None if access.mask is None else np.squeeze(access.mask, axis)
    rows = np.arange(m.num_active)
    repeats = m.num_active // starts.shape[0]  # runs of so many programs have one row of starts
    if repeats > 1 and one_for_all and (keep is None or keep.shape[0] == 1):
        rows = rows.reshape(-1, repeats)[:, [0, -1]].reshape(-1)
        repeats = 2
    if repeats > 1:
        starts = np.repeat(starts, repeats, axis=0)
    heads = (len(rows), *[n for i, n in enumerate(access.shape, 1) if i != axis])
    lifted_rows = np.broadcast_to(rows.reshape(-1, *[1] * (len(heads) - 1)), heads)
    starts, words = np.broadcast_to(starts, heads), access.stored
    if words is not None:
        words = np.moveaxis(words, axis, -1)
        words = np.broadcast_to(words, (*heads, words.shape[-1]))[..., :length]
    if keep is None:
        runs = Runs(starts.reshape(-1), lifted_rows.reshape(-1), length, _flat(words))
    else:
        keep = np.broadcast_to(keep, heads)
        runs = Runs(starts[keep], lifted_rows[keep], length, None if words is None else words[keep])
    return runs if runs.starts.size else None


def _flat(words: np.ndarray | None) -> np.ndarray | None:
    return None if words is None else words.reshape(-1, words.shape[-1])


def _single_elements(m: Machine, access: Access) -> Runs | None:
    lanes = active_lanes(m, access)
    starts = np.broadcast_to(elements(m, access), lanes.shape)
    rows = np.broadcast_to(np.arange(m.num_active).reshape(-1, *[1] * len(access.shape)), lanes.shape)
    words = None if access.stored is None else np.broadcast_to(access.stored, lanes.shape)
    if lanes.all():
        starts, rows = starts.reshape(-1), rows.reshape(-1)
        words = None if words is None else words.reshape(-1, 1)
    else:
        starts, rows = starts[lanes], rows[lanes]
        words = None if words is None else words[lanes].reshape(-1, 1)
    return Runs(starts, rows, 1, words) if starts.size else None
