"""The log of storages: which are alive, how large, and what changed when.

A storage is known by its address as long as it lives. Python keeps one object per storage, so a weak reference to it
dies exactly when the bytes are released, be it by the program, by autograd or by the garbage collector. The callback of
that reference may run in the middle of anything; it only puts the record into a queue, and every entry point of the log
empties the queue first. Releases are therefore ordered before what is seen next.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from cme295lab.memory.measurement.records import TEMPORARY, Event, EventKind, SourceLine, StorageRecord

Origin = Callable[[], tuple[str, str, tuple[SourceLine, ...]]]  # operator, module, stack; asked for new storages only
_DEVICE_TYPES = ("cpu", "cuda")


class _Reference(weakref.ref):
    """A weak reference to a storage that knows which record it belongs to when it dies."""

    __slots__ = ("address", "record")
    address: int
    record: StorageRecord


class StorageLog:
    """Follows storages; the sum of its live records is the memory that tensors hold.

    Args:
        device_type: "cpu" or "cuda" to follow only that, None for both.
        phase: says which phase of the step it is now.
    """

    def __init__(self, device_type: str | None, phase: Callable[[], str]) -> None:
        self.records: list[StorageRecord] = []
        self.live_bytes = 0
        self.peak_bytes = 0
        self.peak_event = -1
        self.is_following = True
        self._events: list[Event] = []
        self._live: dict[int, StorageRecord] = {}
        self._references: dict[int, _Reference] = {}
        self._dead: deque[tuple[int, StorageRecord, str]] = deque()
        self._device_types = _DEVICE_TYPES if device_type is None else (device_type,)
        self._phase = phase

    @property
    def events(self) -> list[Event]:
        """Everything that happened, in order."""
        self.settle()
        return self._events

    def live_records(self) -> list[StorageRecord]:
        """The storages that are alive, in the order of their first moments."""
        self.settle()
        return list(self._live.values())

    def settle(self) -> None:
        """Write down the storages that have died since the last call."""
        while self._dead:
            address, record, phase = self._dead.popleft()
            del self._live[address]
            record.died, record.death_phase = len(self._events), phase
            self._append(record, "free", record.num_bytes, 0, phase)

    def see(self, tensor: Tensor, origin: Origin, class_name: str = TEMPORARY) -> list[StorageRecord]:
        """The records of a tensor's storages: new ones are entered, changed sizes noted."""
        return [
            self._see(storage, part, origin, class_name)
            for storage, part in storages_of(tensor)
            if storage.device.type in self._device_types
        ]

    def is_known(self, tensor: Tensor) -> bool:
        """Whether a plain tensor's storage is alive in the log with the size that it has (fast; may say no wrongly)."""
        if self._dead:
            self.settle()
        if tensor.layout is not torch.strided:
            return False
        storage = tensor.untyped_storage()
        record = self._live.get(storage._cdata)
        return record is not None and record.num_bytes == storage.nbytes()

    def find(self, storage: torch.UntypedStorage) -> StorageRecord | None:
        """The record of a storage, if it is followed."""
        self.settle()
        return self._live.get(storage._cdata)

    def rename(self, record: StorageRecord, class_name: str) -> None:
        """Give a record another class."""
        if record.class_name != class_name and record.rename(class_name, len(self._events)):
            self._append(record, "rename", record.num_bytes, record.num_bytes, self._phase())

    def resized(self, storage: torch.UntypedStorage) -> None:
        """Note that a storage has another size, if it is followed."""
        self.settle()
        record = self._live.get(storage._cdata)
        if record is not None:
            self._update_size(record, storage.nbytes())

    def reset_peak(self) -> None:
        """The peak is what is alive now, until more is."""
        self.settle()
        self.peak_bytes, self.peak_event = self.live_bytes, len(self._events) - 1

    def stop(self) -> None:
        """Follow nothing any more; what is alive stays written down as alive."""
        self.settle()
        self.is_following = False
        self._references.clear()

    def _see(self, storage: torch.UntypedStorage, part: Tensor, origin: Origin, class_name: str) -> StorageRecord:
        self.settle()
        address = storage._cdata
        record = self._live.get(address)
        if record is not None:
            self._update_size(record, storage.nbytes())
            return record
        operator, module, stack = origin()
        event, phase = len(self._events), self._phase()
        record = StorageRecord(
            number=len(self.records), num_bytes=storage.nbytes(), dtype=part.dtype, shape=tuple(part.shape),
            device=storage.device, operator=operator, module=module, stack=stack, born=event, phase=phase,
            classes=[(event, class_name)],
        )  # fmt: skip
        self._live[address] = record
        reference = self._references[address] = _Reference(storage, self._on_death)
        reference.address, reference.record = address, record
        self.records.append(record)
        self._append(record, "allocate", 0, record.num_bytes, phase)
        return record

    def _on_death(self, reference: _Reference) -> None:
        self._dead.append((reference.address, reference.record, self._phase()))

    def _update_size(self, record: StorageRecord, num_bytes: int) -> None:
        if num_bytes != record.num_bytes:
            before, record.num_bytes = record.num_bytes, num_bytes
            self._append(record, "resize", before, num_bytes, self._phase())

    def _append(self, record: StorageRecord, kind: EventKind, before: int, after: int, phase: str) -> None:
        self.live_bytes += after - before
        if self.live_bytes > self.peak_bytes:
            self.peak_bytes, self.peak_event = self.live_bytes, len(self._events)
        self._events.append(Event(record, kind, before, after, self.live_bytes, phase))


def storages_of(tensor: Any) -> Iterator[tuple[torch.UntypedStorage, Tensor]]:
    """The storages behind a tensor, each with the plain tensor on it: of a sparse tensor's or a wrapper's parts.

    A tensor without bytes that torch shows (meta, opaque) has none.

    Args:
        tensor: any tensor; typed loosely, as torch says what wrappers have by a protocol.
    """
    if tensor.device.type == "meta":
        return
    if is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            part = getattr(tensor, name)
            if isinstance(part, Tensor):  # a DTensor's mesh is among its parts, too
                yield from storages_of(part)
    elif tensor.layout is torch.strided:
        yield tensor.untyped_storage(), tensor
    elif tensor.layout is torch.sparse_coo:
        for part in (tensor._indices(), tensor._values()):
            yield part.untyped_storage(), part
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        for part in (tensor.crow_indices(), tensor.col_indices(), tensor.values()):
            yield part.untyped_storage(), part
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        for part in (tensor.ccol_indices(), tensor.row_indices(), tensor.values()):
            yield part.untyped_storage(), part
