"""Which programs of the grid run right now, and how values follow them.

All programs of a launch run together, so every value has a leading axis with one row per program (or one row for all,
when it is the same everywhere). Where programs take different branches, the interpreter continues with a subset: a
`ProgramSet` that knows its parent and which rows of the parent it keeps. A value made before the split stays as it
was; it is narrowed when a subset reads it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

Array = torch.Tensor | np.ndarray
Selector = slice | np.ndarray


class ProgramSet:
    """An ordered set of programs; `ids` are their positions in the batch that runs. `first_of` is the set of which
    these are the first ones."""

    __slots__ = ("ids", "parent", "selector", "first_of", "size")

    def __init__(self, ids: np.ndarray, parent: ProgramSet | None = None, selector: Selector | None = None) -> None:
        self.ids = ids
        self.size = len(ids)
        self.parent = parent
        self.selector = selector
        is_prefix = parent is not None and isinstance(selector, slice) and not selector.start
        self.first_of: ProgramSet = parent.first_of if is_prefix and parent is not None else self

    def __len__(self) -> int:
        return self.size

    def select(self, selector: Selector) -> ProgramSet:
        """The subset made of the given rows, in that order."""
        return ProgramSet(self.ids[selector], self, selector)

    def rows_of(self, other: ProgramSet) -> np.ndarray:
        """Row numbers, in this set, of the programs of `other` (all of which must be in it)."""
        row = np.empty(int(self.ids.max()) + 1, np.int64)
        row[self.ids] = np.arange(len(self.ids))
        return row[other.ids]


def take(array: Array, selector: Selector) -> Array:
    """Rows of an array that has one row per program; an array with a single row serves every program."""
    if array.shape[0] == 1:
        return array
    if isinstance(array, torch.Tensor) and not isinstance(selector, slice):
        return array.index_select(0, torch.from_numpy(selector))
    return array[selector]


def combine(parts: Sequence[tuple[np.ndarray, Array]], num_programs: int) -> Array:
    """Put arrays of disjoint groups of programs together: `parts` holds (rows in the result, data of that group)."""
    first = parts[0][1]
    tail = np.broadcast_shapes(*[tuple(data.shape[1:]) for _, data in parts])
    if isinstance(first, torch.Tensor):
        result = torch.empty((num_programs, *tail), dtype=first.dtype)
        for rows, data in parts:
            result[torch.from_numpy(rows)] = torch.as_tensor(data)
        return result
    merged = np.empty((num_programs, *tail), first.dtype)
    for rows, data in parts:
        merged[rows] = data
    return merged
