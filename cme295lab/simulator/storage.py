"""The memory behind a tensor argument, and which of its bytes a launch has touched."""

from __future__ import annotations

import numpy as np
import torch

from cme295lab.simulator import dtypes
from cme295lab.simulator.dtypes import DType
from cme295lab.simulator.errors import SimulatorError
from cme295lab.simulator.programs import Array

_RAW = {1: torch.int8, 2: torch.int16}
_NOT_IN_NUMPY = (
    torch.bfloat16, torch.float8_e5m2, torch.float8_e4m3fn, torch.float8_e5m2fnuz, torch.float8_e4m3fnuz,
)  # fmt: skip


def words_of(values: Array, storage: Storage) -> np.ndarray:
    """Values as the words that the storage holds (bf16 and fp8 are stored as integers of their width)."""
    if isinstance(values, torch.Tensor):
        words = values.contiguous() if values.dtype.itemsize < 4 and values.dtype != torch.float16 else values
        return (words.view(_RAW[words.element_size()]) if values.dtype in _NOT_IN_NUMPY else words).numpy()
    return values if values.dtype == storage.raw.dtype else values.view(storage.raw.dtype)


def values_of(words: np.ndarray, dtype: DType) -> Array:
    """Memory words as values of an element type."""
    if not dtype.is_float:
        return words if words.dtype == dtype.numpy else words.view(dtype.numpy)
    tensor = torch.from_numpy(words)
    return tensor if tensor.dtype == dtype.torch else tensor.view(dtype.torch)


def windows(flat: np.ndarray, length: int) -> np.ndarray:
    """View of all (overlapping) runs of `length` elements of a flat array; shape (len(flat) - length + 1, length)."""
    return np.lib.stride_tricks.as_strided(flat, (len(flat) - length + 1, length), (flat.itemsize, flat.itemsize))


class Coverage:
    """The set of elements touched so far, for the count of distinct bytes.

    Rows of a fixed length that start at multiples of it (after a common phase) are kept as one bit per row;
    everything else as one bit per element. Both are merged only when the count is asked for.
    """

    def __init__(self, num_elements: int) -> None:
        self.num_elements = num_elements
        self._rows: dict[tuple[int, int], np.ndarray] = {}
        self._starts: dict[int, np.ndarray] = {}
        self._elements: np.ndarray | None = None

    def add_rows(self, starts: np.ndarray, length: int) -> None:
        """Mark elements start … start + length - 1 for every start."""
        if not starts.size:
            return
        phase = int(starts.flat[0]) % length
        aligned, remainder = np.divmod(starts, length)
        if (remainder == phase).all():
            bits = self._rows.get((length, phase))
            if bits is None:
                bits = self._rows[length, phase] = np.zeros(self.num_elements // length + 1, bool)
            bits[aligned] = True
            return
        bits = self._starts.get(length)
        if bits is None:
            bits = self._starts[length] = np.zeros(self.num_elements + 1, bool)
        bits[starts] = True

    def add_elements(self, elements: np.ndarray) -> None:
        """Mark single elements."""
        if self._elements is None:
            self._elements = np.zeros(self.num_elements, bool)
        self._elements[elements] = True

    def count(self) -> int:
        """Number of distinct elements marked."""
        if self._elements is None and not self._starts and len(self._rows) == 1:
            ((length, _), bits), *_ = self._rows.items()
            return int(np.count_nonzero(bits)) * length
        if self._elements is not None and not self._starts and not self._rows:
            return int(np.count_nonzero(self._elements))
        edges = np.zeros(self.num_elements + 1, np.int32)
        for (length, phase), bits in self._rows.items():
            first = np.flatnonzero(bits) * length + phase
            np.add.at(edges, first, 1)
            np.add.at(edges, first + length, -1)
        for length, bits in self._starts.items():
            first = np.flatnonzero(bits)
            np.add.at(edges, first, 1)
            np.add.at(edges, first + length, -1)
        touched = np.cumsum(edges[:-1], out=edges[:-1]) > 0
        if self._elements is not None:
            touched |= self._elements
        return int(np.count_nonzero(touched))


class Storage:
    """One tensor argument of a launch: its whole underlying memory as a flat array, and the launch's traffic to it.

    Addresses are element offsets in the underlying storage, so a strided view (a transposed head axis, a slice) needs
    no copy; an access is out of bounds when it leaves that storage, as it would be on a GPU.
    """

    def __init__(self, name: str, tensor: torch.Tensor) -> None:
        if tensor.dtype not in dtypes.BY_TORCH:
            raise SimulatorError(
                f"argument {name!r} has dtype {tensor.dtype}, which Triton has no name for; convert it first"
            )
        self.name = name
        self.tensor = tensor
        self.dtype: DType = dtypes.BY_TORCH[tensor.dtype]
        self.num_elements = tensor.untyped_storage().nbytes() // tensor.element_size()
        self.first_element = int(tensor.storage_offset())
        self.flat = torch.as_strided(tensor.detach(), (self.num_elements,), (1,), 0)
        self.memory = self.flat.untyped_storage().data_ptr()  # the same for all tensors that share it
        self.raw: np.ndarray = (
            self.flat.view(_RAW[tensor.element_size()]) if self._numpy_lacks() else self.flat
        ).numpy()
        self.loads = self.stores = 0
        self.read_elements = self.written_elements = 0
        self.read = Coverage(self.num_elements)
        self.written = Coverage(self.num_elements)

    def _numpy_lacks(self) -> bool:
        return self.dtype.is_bf16() or self.dtype.is_fp8()

    def windows(self, length: int) -> np.ndarray:
        """View of all runs of `length` elements, for copying whole rows."""
        return windows(self.raw, length)
