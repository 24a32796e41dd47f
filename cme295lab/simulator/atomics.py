"""Atomic operations. Lanes are applied in program order, so a result is one that a GPU could have produced.

`atomic_cas` and `atomic_xchg` order programs against each other; a kernel that uses them is run one program at a time
(see `launch`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from cme295lab.simulator.addresses import Access, active_lanes, count, elements, out_of_bounds, plan
from cme295lab.simulator.arithmetic import Operand
from cme295lab.simulator.broadcasting import lifted, result
from cme295lab.simulator.casts import cast
from cme295lab.simulator.errors import KernelTypeError
from cme295lab.simulator.machine import Machine
from cme295lab.simulator.storage import Storage, values_of, words_of
from cme295lab.simulator.values import Block, scalar

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
    m.tape.before_load(access.pointer.storage.memory)
    m.tape.before_store(access.pointer.storage.memory)
    storage, dtype = access.pointer.storage, access.pointer.dtype
    index, lanes = _lanes(m, access)
    values = _words(m, access, value, index.shape)
    if m.counting:
        count(m, access, "atomic")
    unused = m.discard_result
    if unused and op in _UNORDERED and storage.raw.dtype.kind in ("f" if dtype.is_float else "iub"):
        with np.errstate(all="ignore"):
            _UNORDERED[op].at(storage.raw, index[lanes], values[lanes])
        return result(m, _zeros(dtype.is_float, len(access.shape), dtype), dtype, access.shape)
    before = np.zeros(index.shape, storage.raw.dtype)
    combine = _COMBINE[op]
    for position in np.argwhere(lanes):
        at = tuple(position)
        before[at] = storage.raw[index[at]]
        storage.raw[index[at]] = _combined(storage, combine, storage.raw[index[at]], values[at])
    return result(m, values_of(before, dtype), dtype, access.shape)


def _zeros(is_float: bool, rank: int, dtype: Any) -> Any:
    shape = (1,) * (rank + 1)
    return torch.zeros(shape, dtype=dtype.torch) if is_float else np.zeros(shape, dtype.numpy)


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
    m.tape.before_load(access.pointer.storage.memory)
    m.tape.before_store(access.pointer.storage.memory)
    storage, dtype = access.pointer.storage, access.pointer.dtype
    index, lanes = _lanes(m, access)
    wanted, new = (_words(m, access, x, index.shape) for x in (expected, value))
    before = np.zeros(index.shape, storage.raw.dtype)
    for position in np.argwhere(lanes):
        at = tuple(position)
        before[at] = storage.raw[index[at]]
        if before[at] == wanted[at]:
            storage.raw[index[at]] = new[at]
    if m.counting:
        count(m, access, "atomic")
    return result(m, values_of(before, dtype), dtype, access.shape)


def _lanes(m: Machine, access: Access) -> tuple[np.ndarray, np.ndarray]:
    """Element index and activity of every lane of every active program."""
    lanes = active_lanes(m, access)
    index = np.broadcast_to(elements(m, access), lanes.shape)
    touched = index[lanes]
    if touched.size and (touched.min() < 0 or touched.max() >= access.pointer.storage.num_elements):
        raise out_of_bounds(m, access, "atomic")
    if access.pointer.dtype.is_fp8():
        raise KernelTypeError("atomics on fp8 do not exist on any GPU")
    return index, lanes


def _words(m: Machine, access: Access, value: Operand, shape: tuple[int, ...]) -> np.ndarray:
    """An operand as memory words, one for every lane."""
    dtype = access.pointer.dtype
    block = cast(m, value, dtype) if isinstance(value, Block) else scalar(value, m.active, dtype)
    return np.broadcast_to(words_of(lifted(block.data(m.active), len(access.shape)), access.pointer.storage), shape)
