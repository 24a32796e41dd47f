"""Atomic operations. Lanes are applied in program order, so a result is one that a GPU could have produced.

`atomic_cas` and `atomic_xchg` order programs against each other; a kernel that uses them is run one program at a time
(see `launch`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from cme295lab.simulator.access import raw_words
from cme295lab.simulator.addresses import Access, cover, plan, record
from cme295lab.simulator.arithmetic import Operand
from cme295lab.simulator.broadcasting import lifted, result
from cme295lab.simulator.casts import cast
from cme295lab.simulator.errors import KernelTypeError, OutOfBoundsError
from cme295lab.simulator.machine import Machine
from cme295lab.simulator.storage import Storage
from cme295lab.simulator.values import Block, Pointer, scalar, sum_terms

_COMBINE: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda old, new: old + new, "max": lambda old, new: max(old, new), "min": lambda old, new: min(old, new),
    "and": lambda old, new: old & new, "or": lambda old, new: old | new, "xor": lambda old, new: old ^ new,
    "xchg": lambda old, new: new,
}  # fmt: skip
_UNORDERED: dict[str, Any] = {
    "add": np.add,
    "max": np.maximum,
    "min": np.minimum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def atomic(m: Machine, op: str, pointer: Operand, value: Operand, mask: Operand | None = None) -> Block:
    """`tl.atomic_<op>`: combine values into memory and return what was there before each lane's turn."""
    access = plan(m, pointer, mask, f"tl.atomic_{op}")
    storage, dtype = access.pointer.storage, access.pointer.dtype
    block = cast(m, value, dtype) if isinstance(value, Block) else scalar(value, m.active, dtype)
    index, lanes = _lanes(m, access)
    rank = len(access.shape)
    values = np.broadcast_to(raw_words(lifted(block.data(m.active), rank), storage), index.shape)
    if m.counting:
        _count(m, access, storage, int(np.count_nonzero(lanes)))
    unused = m.discard_result
    if unused and op in _UNORDERED and storage.raw.dtype.kind in ("f" if dtype.is_float else "iub"):
        _UNORDERED[op].at(storage.raw, index[lanes], values[lanes])
        return result(m, _zeros(dtype.is_float, rank, dtype), dtype, access.shape)
    before = np.zeros(index.shape, storage.raw.dtype)
    combine = _COMBINE[op]
    for position in np.argwhere(lanes):
        at = tuple(position)
        before[at] = storage.raw[index[at]]
        storage.raw[index[at]] = _combined(storage, combine, storage.raw[index[at]], values[at])
    return result(m, _values(before, dtype), dtype, access.shape)


def _zeros(is_float: bool, rank: int, dtype: Any) -> Any:
    shape = (1,) * (rank + 1)
    return torch.zeros(shape, dtype=dtype.torch) if is_float else np.zeros(shape, dtype.numpy)


def _values(words: np.ndarray, dtype: Any) -> Any:
    if not dtype.is_float:
        return words.view(dtype.numpy)
    tensor = torch.from_numpy(words)
    return tensor if tensor.dtype == dtype.torch else tensor.view(dtype.torch)


def _combined(storage: Storage, combine: Callable[[Any, Any], Any], old: Any, new: Any) -> Any:
    """Combine two memory words; words of bf16 and fp8 are combined as the floats they stand for."""
    if storage.raw.dtype.kind == "f" or not storage.dtype.is_float:
        with np.errstate(all="ignore"):
            return combine(old, new)
    held = torch.int16 if storage.raw.itemsize == 2 else torch.int8
    floats = [torch.tensor(int(w), dtype=held).view(storage.dtype.torch).float().item() for w in (old, new)]
    return torch.tensor(combine(*floats)).to(storage.dtype.torch).view(held).item()


def compare_and_swap(m: Machine, pointer: Operand, expected: Operand, value: Operand) -> Block:
    """`tl.atomic_cas`: store `value` where memory holds `expected`; return what it held."""
    access = plan(m, pointer, None, "tl.atomic_cas")
    storage, dtype = access.pointer.storage, access.pointer.dtype
    index, lanes = _lanes(m, access)
    rank = len(access.shape)
    operands = []
    for x in (expected, value):
        block = cast(m, x, dtype) if isinstance(x, Block) else scalar(x, m.active, dtype)
        operands.append(np.broadcast_to(raw_words(lifted(block.data(m.active), rank), storage), index.shape))
    before = np.zeros(index.shape, storage.raw.dtype)
    for position in np.argwhere(lanes):
        at = tuple(position)
        before[at] = storage.raw[index[at]]
        if before[at] == operands[0][at]:
            storage.raw[index[at]] = operands[1][at]
    if m.counting:
        _count(m, access, storage, index.size)
    return result(m, _values(before, dtype), dtype, access.shape)


def _lanes(m: Machine, access: Access) -> tuple[np.ndarray, np.ndarray]:
    """Element index and activity of every lane of every active program."""
    pointer: Pointer = access.pointer
    rank = len(access.shape)
    full = (m.num_active, *access.shape)
    index = np.broadcast_to(sum_terms([lifted(t, rank) for t in pointer.terms(m.active)]), full)
    if access.prefix is not None:
        axis = access.rows.axis if access.rows else rank
        lanes = np.broadcast_to(
            np.arange(full[axis]).reshape([-1 if i == axis else 1 for i in range(rank + 1)]) < access.prefix, full
        )
    else:
        lanes = np.broadcast_to(True if access.mask is None else access.mask, full)
    touched = index[lanes]
    if touched.size and (touched.min() < 0 or touched.max() >= pointer.storage.num_elements):
        storage = pointer.storage
        wrong = np.argwhere(lanes & ((index < 0) | (index >= storage.num_elements)))[0]
        element = int(index[tuple(wrong)]) - storage.first_element
        program = m.program_of_row(int(wrong[0]))
        raise OutOfBoundsError(
            f"out-of-bounds atomic: program {program} touches element {element} of {storage.name!r} "
            f"(shape {tuple(storage.tensor.shape)})",
            tensor=storage.name,
            program=program,
            element=element,
        )
    if pointer.dtype.is_fp8():
        raise KernelTypeError("atomics on fp8 do not exist on any GPU")
    return index, lanes


def _count(m: Machine, access: Access, storage: Storage, num_lanes: int) -> None:
    """An atomic reads and writes its lanes."""
    storage.loads += m.num_active
    storage.stores += m.num_active
    storage.read_elements += num_lanes
    storage.written_elements += num_lanes
    if num_lanes:
        for coverage in (storage.read, storage.written):
            cover(m, access, coverage.add_rows, coverage.add_elements)
    if m.recording:
        record(m, access, "atomic")
