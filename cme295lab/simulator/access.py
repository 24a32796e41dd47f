"""Loads and stores: bounds checks, row copies, gathers and scatters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from cme295lab.simulator import dtypes
from cme295lab.simulator.addresses import Access, count, elements, out_of_bounds, plan, touched
from cme295lab.simulator.arithmetic import Operand
from cme295lab.simulator.broadcasting import common_shape, lifted, result
from cme295lab.simulator.casts import cast
from cme295lab.simulator.deferred import blank, is_deferred, is_pending, source, written_out
from cme295lab.simulator.errors import KernelTypeError
from cme295lab.simulator.machine import AccessKind, Machine
from cme295lab.simulator.programs import Array
from cme295lab.simulator.steps import held_as
from cme295lab.simulator.storage import Storage, values_of, words_of
from cme295lab.simulator.tape import BlankTape
from cme295lab.simulator.tiles_in_memory import load_later, store_later
from cme295lab.simulator.values import Block, Pointer, as_torch, scalar


def load(m: Machine, pointer: Operand, mask: Operand | None = None, other: Operand | None = None) -> Block:
    """`tl.load`: lanes that are masked out read nothing and get `other` (0 without it; undefined on a GPU)."""
    fill_varies = isinstance(other, Block) and any(len(a.reshape(-1)) > 1 for a in other.arrays)
    access = plan(m, pointer, mask, "tl.load", cut_rows=not fill_varies)
    dtype = access.pointer.dtype
    if isinstance(m.tape, BlankTape) and (dtype.is_float or access.pointer.storage.memory in m.tape.blank):
        _check_and_count(m, access, "load")
        return blank(m, dtype, access.shape)
    fill = _fill(m, other, dtype)
    later = dtype.is_float and _is_tiles(m, access, dtype.torch)
    if not later:
        m.tape.before_load(access.pointer.storage.memory)
    if access.prefix == 0:
        data = _nothing_loaded(access, fill)
    elif access.rows is not None:
        repeats = 1
        if access.mask is None:
            rows, repeats = access.rows.once_per_run()
            access.rows = rows
        if later:
            return _load_later(m, access, repeats, fill)
        data = _load_rows(m, access, fill)
        if repeats > 1 and data.shape[0] > 1:
            data = np.repeat(np.asarray(data), repeats, axis=0)
    else:
        data = _load_elements(m, access, fill)
    if m.counting:
        count(m, access, "load")
    return result(m, data, dtype, access.shape)


def _check_and_count(m: Machine, access: Access, kind: AccessKind) -> None:
    """All of an access but the access: it is made later, or never."""
    if access.prefix != 0 and not _inside(*touched(m, access), access.pointer.storage):
        raise out_of_bounds(m, access, kind)
    if m.counting:
        count(m, access, kind)


def _is_tiles(m: Machine, access: Access, held: torch.dtype) -> bool:
    """Whether an access is one for the tape: whole rows of a tensor of the type that values wait in, not the same rows
    in all programs."""
    rows = access.rows
    return (
        rows is not None
        and access.mask is None
        and m.num_active > 1
        and access.pointer.storage.flat.dtype == held
        and rows.starts.shape[0] > 1
    )


def _load_later(m: Machine, access: Access, repeats: int, fill: Array | float) -> Block:
    rows = access.rows
    assert rows is not None
    _check_and_count(m, access, "load")
    number: Any = fill if isinstance(fill, int | float) else fill.reshape(-1)[0].item()
    return load_later(m, access, rows, repeats, number)


def _fill(m: Machine, other: Operand | None, dtype: dtypes.DType) -> Array | float:
    """The value of masked lanes: a number, or an array where it differs between lanes."""
    if other is None:
        return 0
    if not isinstance(other, Block):
        return other
    return cast(m, other, dtype).data(m.active)


def _nothing_loaded(access: Access, fill: Array | float) -> Array:
    """A block that holds nothing but `fill`."""
    dtype, rank = access.pointer.dtype, len(access.shape)
    if isinstance(fill, torch.Tensor | np.ndarray):
        data = lifted(fill, rank)
        return data.clone() if isinstance(data, torch.Tensor) else data
    shape = (1,) * (rank + 1)
    return torch.full(shape, fill, dtype=dtype.torch) if dtype.is_float else np.full(shape, fill, dtype.numpy)


def _filled(access: Access, fill: Array | float, data: Array) -> Array:
    """A block whose rows hold `data` up to the prefix and one number after it."""
    dtype = access.pointer.dtype
    number: Any = fill if isinstance(fill, int | float) else fill.reshape(-1)[0].item()
    assert access.rows is not None
    axis = access.rows.axis
    shape = (*data.shape[:axis], access.shape[axis - 1], *data.shape[axis + 1 :])
    whole: Array = (
        torch.full(shape, number, dtype=dtype.torch) if dtype.is_float else np.full(shape, number, dtype.numpy)
    )
    whole[(slice(None),) * axis + (slice(0, access.rows.length),)] = data  # type: ignore[index,assignment]
    return whole


def _load_rows(m: Machine, access: Access, fill: Array | float) -> Array:
    rows, storage, dtype = access.rows, access.pointer.storage, access.pointer.dtype
    assert rows is not None
    starts = rows.starts
    if access.mask is not None:  # rows that are masked out read some row that exists
        starts = np.where(access.mask, starts, _some_start(access.mask, starts))
    if not _inside(starts, rows.length, storage):
        raise out_of_bounds(m, access, "load")
    shape = [n for axis, n in enumerate(starts.shape) if axis != rows.axis]
    if dtype.is_float and storage.flat.dtype == dtype.torch:
        first, length = _runs(starts, rows.length)
        windows = storage.flat.unfold(0, length, 1)
        data: Array = windows.index_select(0, torch.from_numpy(first)).view([*shape, rows.length])
        data = data if rows.axis == len(access.shape) else _last_axis_to(data, rows.axis)
    else:
        data = values_of(storage.windows(rows.length)[starts.reshape(shape)], dtype)
        if rows.axis != len(access.shape):
            data = _last_axis_to(data, rows.axis)
    if access.prefix is not None and access.prefix < access.shape[rows.axis - 1]:
        return _filled(access, fill, data)
    return data if access.mask is None else _masked(data, access.mask, fill)


def _runs(starts: np.ndarray, length: int) -> tuple[np.ndarray, int]:
    """The runs of memory to copy, first elements and length: whole tiles where the rows of a tile follow each other."""
    by_program = starts.reshape(starts.shape[0], -1)
    num_rows = by_program.shape[1]
    if num_rows > 1 and (by_program == by_program[:, :1] + length * np.arange(num_rows)).all():
        return np.ascontiguousarray(by_program[:, 0]), length * num_rows
    return np.ascontiguousarray(by_program.reshape(-1)), length


def _last_axis_to(data: Array, axis: int) -> Array:
    return data.movedim(-1, axis) if isinstance(data, torch.Tensor) else np.moveaxis(data, -1, axis)


def _some_start(mask: np.ndarray, starts: np.ndarray) -> int:
    """The start of any active row, or 0 when there is none."""
    if not mask.any():
        return 0
    return int(
        np.broadcast_to(starts, np.broadcast_shapes(starts.shape, mask.shape))[
            np.broadcast_to(mask, np.broadcast_shapes(starts.shape, mask.shape))
        ][0]
    )


def _inside(starts: np.ndarray, length: int, storage: Storage) -> bool:
    return not starts.size or (int(starts.min()) >= 0 and int(starts.max()) + length <= storage.num_elements)


def _masked(data: Array, mask: np.ndarray, fill: Array | float) -> Array:
    """Put the fill value where the mask is false."""
    if isinstance(data, torch.Tensor):
        off = torch.from_numpy(np.ascontiguousarray(~mask))
        if not isinstance(fill, torch.Tensor):
            size = torch.broadcast_shapes(data.shape, off.shape)
            if data.shape == size and data.dtype.itemsize > 1:
                return data.masked_fill_(off, float(fill))
            return torch.where(off, torch.tensor(float(fill)).to(data.dtype), data)
        return torch.where(off, as_torch(lifted(fill, data.ndim - 1)), data)
    filler = fill if not isinstance(fill, np.ndarray) else lifted(fill, data.ndim - 1)
    return np.where(mask, data, np.asarray(filler, data.dtype))


def _safe_elements(m: Machine, access: Access) -> np.ndarray:
    """The element of every lane; masked-out lanes, which may point anywhere, get element 0."""
    index = elements(m, access)
    return index if access.mask is None else np.where(access.mask, index, 0)


def _load_elements(m: Machine, access: Access, fill: Array | float) -> Array:
    storage, dtype = access.pointer.storage, access.pointer.dtype
    index = _safe_elements(m, access)
    if index.min() < 0 or index.max() >= storage.num_elements:
        raise out_of_bounds(m, access, "load")
    data = values_of(storage.raw[index], dtype)
    return data if access.mask is None else _masked(data, access.mask, fill)


def store(m: Machine, pointer: Operand, value: Operand, mask: Operand | None = None) -> None:
    """`tl.store`: write the active lanes; of several programs that write one address, the last in grid order wins."""
    access = plan(m, pointer, mask, "tl.store")
    storage = access.pointer.storage
    block = value if isinstance(value, Block) else scalar(value, m.active, access.pointer.dtype)
    if isinstance(block, Pointer):
        raise KernelTypeError("tl.store cannot store pointers")
    if block.shape and not access.pointer.shape:
        raise KernelTypeError(f"tl.store: a block of shape {block.shape} cannot be stored through one scalar pointer")
    if common_shape(block, access.pointer) != access.shape:
        raise KernelTypeError(
            f"tl.store: the value has shape {block.shape}, the pointers {access.shape}; they must agree"
        )
    block = cast(m, block, access.pointer.dtype)
    if isinstance(m.tape, BlankTape) and is_pending(block, m):
        _check_and_count(m, access, "store")
        m.tape.blank.add(storage.memory)
        return
    waits = is_pending(block, m) or (block.dtype.is_float and is_deferred(m, block))
    if waits and not m.shows_values and _is_tiles(m, access, held_as(block.dtype)):
        _store_later(m, access, block)
        return
    words = words_of(lifted(block.data(m.active), len(access.shape)), storage)
    m.tape.before_store(storage.memory)
    if access.prefix != 0:
        if access.rows is not None:
            _store_rows(m, access, words)
        else:
            _store_elements(m, access, words)
    if m.counting:
        count(m, replace(access, stored=words) if m.observers else access, "store")


def _store_later(m: Machine, access: Access, block: Block) -> None:
    rows = access.rows
    assert rows is not None
    _check_and_count(m, access, "store")
    store_later(m, access, rows, written_out(m, source(m, block, len(access.shape))))


def _store_rows(m: Machine, access: Access, words: np.ndarray) -> None:
    rows, storage = access.rows, access.pointer.storage
    assert rows is not None
    full = (
        max(rows.starts.shape[0], words.shape[0], 1 if access.mask is None else access.mask.shape[0]),
        *access.shape,
    )
    words = np.moveaxis(np.broadcast_to(words, full), rows.axis, -1)[..., : rows.length]
    heads = words.shape[:-1]
    starts = np.broadcast_to(np.squeeze(rows.starts, rows.axis), heads)
    if access.mask is not None:
        keep = np.broadcast_to(np.squeeze(access.mask, rows.axis), heads)
        starts, words = starts[keep], words[keep]
    if not _inside(starts, rows.length, storage):
        raise out_of_bounds(m, access, "store")
    if starts.size:
        storage.windows(rows.length)[starts] = words


def _store_elements(m: Machine, access: Access, words: np.ndarray) -> None:
    index = _safe_elements(m, access)
    storage = access.pointer.storage
    size = np.broadcast_shapes(index.shape, words.shape, () if access.mask is None else access.mask.shape)
    index, words = np.broadcast_to(index, size), np.broadcast_to(words, size)
    if access.mask is not None:
        keep = np.broadcast_to(access.mask, size)
        index, words = index[keep], words[keep]
    if index.size:
        if index.min() < 0 or index.max() >= storage.num_elements:
            raise out_of_bounds(m, access, "store")
        storage.raw[index] = words
