"""Tiles of a tensor as PyTorch sees them: what a deferred load reads and a deferred store writes.

The rows of a tile usually lie at equal distances, and so do the tiles of neighbouring programs. Then the tiles of a
chunk of programs are a strided view of the tensor, and nothing is copied before the operation that uses them.
"""

from __future__ import annotations

import numpy as np
import torch

from cme295lab.simulator.addresses import Access, Rows
from cme295lab.simulator.deferred import Source
from cme295lab.simulator.machine import Machine
from cme295lab.simulator.steps import Step
from cme295lab.simulator.storage import Storage, words_of
from cme295lab.simulator.tape import PendingBlock
from cme295lab.simulator.values import Block


class Tiles:
    """Where the tiles of some programs begin (`first`), and how one tile lies in memory."""

    def __init__(self, access: Access, rows: Rows) -> None:
        self.storage: Storage = access.pointer.storage
        self.shape = access.shape
        self.axis = rows.axis - 1
        self.length = rows.length
        self.starts = rows.starts.reshape(rows.starts.shape[0], -1)
        inner = self.starts[0] - self.starts[0, 0]
        pitch = int(inner[1]) if len(inner) > 1 else self.length
        self.is_regular = len(access.shape) <= 2 and bool((inner == pitch * np.arange(len(inner))).all())
        if self.is_regular and len(self.starts) > 1:
            self.is_regular = rows.offsets is not None or bool((self.starts - self.starts[:, :1] == inner).all())
        self.first = np.ascontiguousarray(self.starts[:, 0])
        self.pitch = pitch
        self.num_runs = len(inner)

    def view(self, rows: slice) -> torch.Tensor | None:
        """The tiles of a chunk of programs as a view of the tensor; None if they lie at unequal distances."""
        if not self.is_regular:
            return None
        first = self.first[rows]
        distance = int(first[1] - first[0]) if len(first) > 1 else 0
        if distance < 0 or self.pitch < 0 or (len(first) > 2 and not (first[1:] - first[:-1] == distance).all()):
            return None
        if len(self.shape) == 1:
            size, stride = [len(first), self.length], [distance, 1]
        else:
            size, stride = [len(first), self.num_runs, self.length], [distance, self.pitch, 1]
        tile = self.storage.flat.as_strided(size, stride, int(first[0]))
        return tile if self.axis == len(self.shape) - 1 else tile.transpose(1, 2)

    def gathered(self, rows: slice) -> torch.Tensor:
        """A copy of the tiles of a chunk of programs."""
        if self.is_regular and self.pitch == self.length:  # a tile is one run
            index, length = self.first[rows], self.length * self.num_runs
        else:
            index, length = self.starts[rows].reshape(-1), self.length
        data = self.storage.flat.unfold(0, length, 1).index_select(0, torch.from_numpy(np.ascontiguousarray(index)))
        around = [n for axis, n in enumerate(self.shape) if axis != self.axis]
        return data.view(-1, *around, self.length).movedim(-1, self.axis + 1)

    def may_overlap(self, rows: slice) -> bool:
        """Whether two elements of a view share an address, so that it cannot be written to as a whole."""
        first = self.first[rows]
        extent = self.length if self.num_runs == 1 else max(self.pitch * (self.num_runs - 1) + self.length, 0)
        if self.num_runs > 1 and self.pitch < self.length:
            return True
        distance = int(first[1] - first[0]) if len(first) > 1 else extent
        interleaved = self.num_runs > 1 and self.length <= distance and distance * len(first) <= self.pitch
        return distance < extent and not interleaved

    def runs(self) -> tuple[np.ndarray, int]:
        """First byte and number of bytes of all runs of memory that the programs' tiles consist of."""
        width = self.storage.raw.itemsize
        if self.is_regular and self.pitch == self.length:
            return self.first * width, self.length * self.num_runs * width
        return self.starts.reshape(-1) * width, self.length * width

    def lie_as(self, other: Tiles) -> bool:
        """Whether every program's tile is at the same place as its tile of `other`."""
        return self.length == other.length and np.array_equal(self.starts, other.starts)

    def scatter(self, rows: slice, values: torch.Tensor) -> None:
        """Write the tiles of a chunk of programs one after another."""
        words = words_of(values.movedim(self.axis + 1, -1).contiguous(), self.storage)
        starts = self.starts[rows]
        self.storage.windows(self.length)[starts] = words.reshape(*starts.shape, self.length)


def load_later(m: Machine, access: Access, rows: Rows, repeats: int, fill: float) -> Block:
    """Write a load of unmasked rows down on the tape; lanes after the rows' end get `fill`."""
    tiles, shape, dtype = Tiles(access, rows), access.shape, access.pointer.dtype
    whole = shape[tiles.axis]

    def read(part: slice, out: torch.Tensor | None) -> torch.Tensor:
        data = tiles.view(part)
        if data is None:
            data = tiles.gathered(part)
        if tiles.length == whole:
            return data
        filled = torch.empty((data.shape[0], *shape), dtype=dtype.torch) if out is None else out
        filled.narrow(tiles.axis + 1, tiles.length, whole - tiles.length).fill_(fill)
        filled.narrow(tiles.axis + 1, 0, tiles.length).copy_(data)
        return filled

    step = Step(read, (), shape, dtype, repeats)
    step.tiles = tiles
    step.loads = tiles.storage.memory
    step.reads_in_place = tiles.length == whole
    block = PendingBlock(m.tape.append(step, m.active), m.tape, shape, m.active)
    m.note_block(block)
    return block


def store_later(m: Machine, access: Access, rows: Rows, value: Source) -> None:
    """Write a store of unmasked rows down on the tape."""
    tiles = Tiles(access, rows)

    def write(part: slice, out: None, data: torch.Tensor) -> None:
        data = data.expand(-1, *tiles.shape).narrow(tiles.axis + 1, 0, tiles.length)
        target = tiles.view(part)
        if target is None or tiles.may_overlap(part):
            tiles.scatter(part, data)
        else:
            target.copy_(data)

    step = Step(write, [value], access.shape, access.pointer.dtype)
    step.tiles = tiles
    step.stores = tiles.storage.memory
    m.tape.append(step, m.active)
