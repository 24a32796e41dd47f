"""GGUF, the file format of llama.cpp, read in plain Python.

    "GGUF", version                      4 + 4 bytes, little-endian as everything that follows
    number of tensors, of values         8 + 8
    values: name, type, value            about the model: its shape, its vocabulary, anything
    tensors: name, sizes, type, offset   sizes with the innermost first, the other way round than PyTorch
    padding to a multiple of `general.alignment` (32)
    the numbers of all tensors, each beginning at its offset

A quantised tensor is a row of blocks, each for 32 consecutive numbers of the innermost dimension:

    Q8_0   34 bytes   fp16 d; 32 signed bytes q                                 x = d q
    Q4_1   20 bytes   fp16 d, fp16 m; 16 bytes, low halves first, then high     x = d q + m, q from 0 to 15

The file is mapped into memory, so a tensor is read from the disk when it is asked for. Each length, count and offset is
compared with the size of the file before it is used: a file that was cut off or tampered with ends in an error that
says where.

Source: github.com/ggml-org/ggml, docs/gguf.md and ggml-quants; tests compare with the `gguf` package.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

BLOCK = 32  # numbers in a block of a quantised tensor
_CHUNK_BYTES = 1 << 21  # of a file, turned into numbers at a time
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4
_TYPE_NAMES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
_LAYOUT = {"F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q4_1": (BLOCK, 20), "Q8_0": (BLOCK, 34)}  # numbers, bytes


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """Where a tensor is in the file.

    Attributes:
        shape: as PyTorch has it, outermost dimension first.
        kind: "F32", "F16", "BF16", "Q4_1" or "Q8_0".
        start, num_bytes: its place, from the beginning of the file.
    """

    shape: tuple[int, ...]
    kind: str
    start: int
    num_bytes: int


class GgufFile:
    """The metadata and tensors of a GGUF file.

    Args:
        path: the file.

    Attributes:
        where: its path, for messages.
        metadata: name -> value; arrays are lists.
        tensors: name -> where it is.
        shapes: name -> shape.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no GGUF file, cut off, damaged, or has tensors of a type that is not read.
    """

    def __init__(self, path: str | Path) -> None:
        self.where = str(path)
        with Path(path).open("rb") as file:
            if Path(path).stat().st_size == 0:
                raise ValueError(f"{path} is empty")
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        cursor = _Cursor(self._data, self.where)
        num_tensors, num_values = _read_head(cursor)
        self.metadata: dict[str, Any] = {}
        for _ in range(num_values):
            name = cursor.string()
            if name in self.metadata:
                raise cursor.damaged(f"the value {name!r} is there twice")
            self.metadata[name] = cursor.value(cursor.number("I"))
        infos = [_read_info(cursor) for _ in range(num_tensors)]
        self.tensors = _place(infos, cursor, self._alignment(cursor))
        self.shapes = {name: tensor.shape for name, tensor in self.tensors.items()}

    def _alignment(self, cursor: _Cursor) -> int:
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise cursor.damaged(f"general.alignment is {alignment!r}, not a power of two")
        return alignment

    def read(self, name: str) -> Tensor:
        """The numbers of one tensor, as fp32."""
        tensor = self.tensors[name]
        block_numbers, block_bytes = _LAYOUT[tensor.kind]
        out = np.empty(math.prod(tensor.shape), dtype=np.float32)
        step = max(1, _CHUNK_BYTES // block_bytes)
        num_blocks = tensor.num_bytes // block_bytes
        for first in range(0, num_blocks, step):  # piece by piece, so that temporaries stay small
            count = min(step, num_blocks - first)
            start = tensor.start + first * block_bytes
            raw = np.frombuffer(self._data, dtype=np.uint8, count=count * block_bytes, offset=start)
            out[first * block_numbers : (first + count) * block_numbers] = dequantize(raw, tensor.kind)
        return torch.from_numpy(out).view(tensor.shape)


def dequantize(raw: np.ndarray, kind: str) -> np.ndarray:
    """Bytes of whole blocks -> fp32 numbers.

    Args:
        raw: uint8, one dimension.
        kind: "F32", "F16", "BF16", "Q4_1" or "Q8_0".
    """
    if kind == "F32":
        return raw.view("<f4")
    if kind == "F16":
        return raw.view("<f2").astype(np.float32)
    if kind == "BF16":  # the upper half of an fp32
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    blocks = raw.reshape(-1, _LAYOUT[kind][1])
    scale = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    if kind == "Q8_0":
        return (blocks[:, 2:].view(np.int8).astype(np.float32) * scale).reshape(-1)
    offset = np.ascontiguousarray(blocks[:, 2:4]).view("<f2").astype(np.float32)
    nibbles = blocks[:, 4:]
    numbers = np.empty((len(blocks), BLOCK), dtype=np.float32)
    numbers[:, :16] = nibbles & 15
    numbers[:, 16:] = nibbles >> 4
    numbers *= scale
    numbers += offset
    return numbers.reshape(-1)


class _Cursor:
    """Reads on through the head of the file, and never beyond its end."""

    def __init__(self, data: mmap.mmap, where: str) -> None:
        self.data, self.where, self.position = data, where, 0

    def damaged(self, what: str) -> ValueError:
        return ValueError(f"{self.where} is damaged, or no GGUF file: near byte {self.position}, {what}")

    def skip(self, num_bytes: int) -> int:
        """Go on by so many bytes, and return where they begin."""
        start = self.position
        if num_bytes > len(self.data) - start:
            raise self.damaged(f"{num_bytes} bytes should follow and {len(self.data) - start} do: it is cut off")
        self.position += num_bytes
        return start

    def number(self, code: str) -> Any:
        return struct.unpack_from(f"<{code}", self.data, self.skip(struct.calcsize(f"<{code}")))[0]

    def string(self) -> str:
        length = self.number("Q")
        start = self.skip(length)
        try:
            return self.data[start : start + length].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged(f"a text is not UTF-8: {error}") from error

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise self.damaged(f"a value has the unknown type {kind}")
        kind, count = self.number("I"), self.number("Q")
        if kind in _SCALARS:
            size = struct.calcsize(f"<{_SCALARS[kind]}")
            return list(struct.unpack_from(f"<{count}{_SCALARS[kind]}", self.data, self.skip(count * size)))
        if kind != _STRING:
            raise self.damaged(f"a list has elements of type {kind}, which is not read")
        if count * 8 > len(self.data) - self.position:
            raise self.damaged(f"a list should have {count} texts, more than the file has room for")
        return [self.string() for _ in range(count)]


def _read_head(cursor: _Cursor) -> tuple[int, int]:
    start = cursor.skip(4)
    if cursor.data[start : start + 4] != b"GGUF":
        raise ValueError(f"{cursor.where} is no GGUF file: it does not begin with the letters GGUF")
    version = cursor.number("I")
    if version not in (2, 3):
        raise ValueError(f"{cursor.where} has version {version} of GGUF (or is big-endian); 2 and 3 are read")
    num_tensors, num_values = cursor.number("Q"), cursor.number("Q")
    if max(num_tensors, num_values) * 13 > len(cursor.data):  # a name and a type take 12 bytes, a value at least 1
        raise cursor.damaged(f"{num_tensors} tensors and {num_values} values are more than the file has room for")
    return num_tensors, num_values


def _read_info(cursor: _Cursor) -> tuple[str, GgufTensor]:
    """Name of a tensor, and its place counted from where the numbers begin."""
    name, num_dimensions = cursor.string(), cursor.number("I")
    if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
        raise cursor.damaged(f"{name} has {num_dimensions} dimensions")
    sizes = [cursor.number("Q") for _ in range(num_dimensions)]
    code, start = cursor.number("I"), cursor.number("Q")
    kind = _TYPE_NAMES.get(code, f"number {code}")
    if kind not in _LAYOUT:
        raise ValueError(
            f"{cursor.where}: {name} has type {kind}, which is not read; types that are: {', '.join(_LAYOUT)}. "
            f"Take the same model in one of these"
        )
    block_numbers, block_bytes = _LAYOUT[kind]
    if 0 in sizes or sizes[0] % block_numbers:
        raise cursor.damaged(f"{name} has sizes {sizes}, and {kind} comes in blocks of {block_numbers}")
    num_bytes = math.prod(sizes) // block_numbers * block_bytes
    return name, GgufTensor(shape=tuple(reversed(sizes)), kind=kind, start=start, num_bytes=num_bytes)


def _place(infos: list[tuple[str, GgufTensor]], cursor: _Cursor, alignment: int) -> dict[str, GgufTensor]:
    """Places from the beginning of the file; each tensor must be inside it, and none over another."""
    base = -(-cursor.position // alignment) * alignment
    placed: dict[str, GgufTensor] = {}
    end, before = base, "the head of the file"
    for name, info in sorted(infos, key=lambda item: item[1].start):
        start = base + info.start
        if info.start % alignment or name in placed or start < end:
            raise cursor.damaged(f"{name} begins at {start}, inside {before} or not at a multiple of {alignment}")
        end, before = start + info.num_bytes, name
        if end > len(cursor.data):
            raise ValueError(
                f"{cursor.where} is cut off: {name} should end at byte {end}, and the file has {len(cursor.data)}. "
                f"Get the file again"
            )
        placed[name] = GgufTensor(shape=info.shape, kind=info.kind, start=start, num_bytes=info.num_bytes)
    return placed
