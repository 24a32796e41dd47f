"""Which elements of a tensor made by `torch.empty` somebody has written."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from cme295lab.simulator.indices import index_of

_MOST_VIEWS = 64


class Memory:
    """One allocation whose content is undefined until written: one flag for each element.

    It does not keep the allocation alive, but while it exists no other one gets the same identity (`cdata`).
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        self.num_bytes = storage.nbytes()
        self.unit_bytes = tensor.element_size()
        self.written = torch.zeros(self.num_bytes // self.unit_bytes, dtype=torch.bool)
        self.stored_by: dict[str, str] = {}  # kernels that store to it, and what they call it
        self._storage = StorageWeakRef(storage)
        self._views: list[weakref.ref[torch.Tensor]] = []
        self.note_view(tensor)

    @property
    def is_alive(self) -> bool:
        """Whether somebody still holds a tensor of this allocation."""
        return not self._storage.expired()

    @property
    def is_complete(self) -> bool:
        """Whether every element has been written."""
        return bool(self.written.all())

    def note_view(self, tensor: torch.Tensor) -> None:
        """Remember a tensor that shows (a part of) this allocation."""
        if len(self._views) >= _MOST_VIEWS:
            self._views = [r for r in self._views if r() is not None]
        self._views.append(weakref.ref(tensor))

    def shown(self) -> list[torch.Tensor]:
        """The tensors that still exist and of which no other one is a view: what somebody can look at."""
        live = [t for t in (r() for r in self._views) if t is not None]
        bases = {id(t._base) for t in live if t._base is not None}
        return [t for t in live if id(t) not in bases]

    def flags(self, unit_bytes: int) -> np.ndarray:
        """The flags, one for each element of this size; what is written there counts."""
        if unit_bytes < self.unit_bytes:
            self.written = self.written.repeat_interleave(self.unit_bytes // unit_bytes)
            self.unit_bytes = unit_bytes
        return self.written.numpy()

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """A view of the flags in the shape of a tensor; a last axis is added where its elements are wider."""
        self.flags(tensor.element_size())
        factor = tensor.element_size() // self.unit_bytes
        if factor == 1:
            return self.written.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        strides = (*[s * factor for s in tensor.stride()], 1)
        return self.written.as_strided((*tensor.shape, factor), strides, tensor.storage_offset() * factor)

    def mark(self, tensor: torch.Tensor) -> None:
        """Somebody has written all elements of this tensor."""
        self.of(tensor).fill_(True)

    def first_unwritten(self, tensor: torch.Tensor) -> tuple[tuple[int, ...], int] | None:
        """Index of the first element of a tensor that nobody has written, and how many there are."""
        flags = self.of(tensor)
        if flags.all():
            return None
        if flags.ndim > tensor.ndim:
            flags = flags.all(-1)
        missing = (~flags).nonzero()
        return tuple(missing[0].tolist()), len(missing)


def place_in(shape: Sequence[int], strides: Sequence[int], first: int, element: int) -> tuple[int, ...]:
    """Index, in a tensor that begins at `first`, of an element of its storage."""
    return index_of(shape, strides, element - first)
