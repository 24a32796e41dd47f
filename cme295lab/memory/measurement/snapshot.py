"""A timeline as a snapshot in the layout of PyTorch's CUDA allocator, for the viewers that read such files.

`torch.cuda._memory_viz trace_plot FILE` turns it into a page, and so does https://pytorch.org/memory_viz. The layout:

    device_traces   per device a list of {action: alloc | free_requested | free_completed, addr, size, stream, frames}
    segments        what is reserved at the end, with its blocks; here each living storage is a segment of its own,
                    because this timeline measures tensors and no allocator

Devices are numbered as CUDA's, and the CPU comes after them. Addresses are made up: storage after storage, in steps of
512 bytes, none used twice. The first frame of an entry is no line of code: it says class, module and operator.

Source: derived from the functions of `torch.cuda._memory_viz`, PyTorch 2.13.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from cme295lab.memory.measurement.records import Event, StorageRecord

_FIRST_ADDRESS = 1 << 32
_ALIGNMENT_BYTES = 512


def write_snapshot(events: Sequence[Event], path: str | Path) -> None:
    """Write events as a pickled snapshot.

    Args:
        events: of a timeline.
        path: the file.
    """
    Path(path).write_bytes(pickle.dumps(memory_snapshot(events)))


def memory_snapshot(events: Sequence[Event]) -> dict[str, Any]:
    """Events as the dictionary that is written.

    Args:
        events: of a timeline.
    """
    numbers = _device_numbers(event.record.device for event in events)
    traces: list[list[dict[str, Any]]] = [[] for _ in range(max(numbers.values(), default=0) + 1)]
    blocks: dict[StorageRecord, dict[str, Any]] = {}  # what is alive, as the entry of its allocation
    address = _FIRST_ADDRESS
    for number, event in enumerate(events):
        if event.kind == "rename":
            continue
        trace = traces[numbers[event.record.device]]
        if event.before_bytes:
            gone = {key: value for key, value in blocks.pop(event.record).items() if key != "category"}
            trace += [gone | {"action": action, "time_us": number} for action in ("free_requested", "free_completed")]
        if event.after_bytes:
            entry = {
                "action": "alloc", "addr": address, "size": event.after_bytes, "stream": 0, "time_us": number,
                "frames": _frames(event.record), "category": event.record.class_name,
            }  # fmt: skip
            address += -(-event.after_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
            blocks[event.record] = entry
            trace.append(entry)
    segments = [_segment(entry, numbers[record.device]) for record, entry in blocks.items()]
    return {"segments": segments, "device_traces": traces, "allocator_settings": {}}


def _device_numbers(devices: Iterable[torch.device]) -> dict[torch.device, int]:
    seen = list(dict.fromkeys(devices))
    numbers = {device: device.index or 0 for device in seen if device.type == "cuda"}
    behind = max(numbers.values(), default=-1) + 1
    return numbers | {device: behind for device in seen if device.type != "cuda"}


def _frames(record: StorageRecord) -> list[dict[str, Any]]:
    where = " ".join(part for part in (record.module, record.name) if part)
    what = {"filename": record.class_name, "line": 0, "name": f"{where or '-'} {record.operator or 'was there before'}"}
    lines = [{"filename": line.file, "line": line.line, "name": line.function} for line in record.stack]
    return [what, *lines]


def _segment(entry: dict[str, Any], device: int) -> dict[str, Any]:
    size = entry["size"]
    block = {
        "address": entry["addr"], "size": size, "requested_size": size, "state": "active_allocated",
        "frames": entry["frames"],
    }  # fmt: skip
    return {
        "device": device, "address": entry["addr"], "total_size": size, "allocated_size": size, "active_size": size,
        "requested_size": size, "stream": 0, "segment_type": "large", "segment_pool_id": (0, 0),
        "is_expandable": False, "frames": entry["frames"], "blocks": [block],
    }  # fmt: skip
