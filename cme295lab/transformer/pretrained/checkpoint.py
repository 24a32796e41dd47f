"""Tensors in files, read one at a time: the Hugging Face layout.

A folder has all its tensors in model.safetensors, or in several files with model.safetensors.index.json saying which
tensor is in which. A safetensors file is 8 bytes for the length of a header, the header (JSON: name, dtype, shape and
place of each tensor) and the numbers. The library maps the file into memory, so a tensor is read from the disk when it
is used, and the file as a whole is never in memory twice.

Nothing in a folder is trusted: a file name in the index that leads out of the folder is refused, a header whose sizes
do not match the file is refused by the library, and dtypes that are no plain numbers are refused here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from safetensors import SafetensorError, safe_open
from torch import Tensor

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_READABLE = ("F64", "F32", "F16", "BF16")


@runtime_checkable  # the tests' type checks ask for it
class Checkpoint(Protocol):
    """Named tensors somewhere outside memory."""

    @property
    def where(self) -> str:
        """The file or folder, for messages."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name -> shape of each tensor."""

    def read(self, name: str) -> Tensor:
        """The numbers of one tensor, to be copied and not kept: they may be a view of the file."""


class SafetensorsFolder:
    """The tensors of a folder in the Hugging Face layout.

    Args:
        folder: it has model.safetensors, or model.safetensors.index.json and the files that are named there.

    Raises:
        FileNotFoundError: if there are no weights, or a file that the index names is missing.
        ValueError: if a file is damaged, a tensor has a dtype that is not read, or the index does not fit its files.
    """

    def __init__(self, folder: Path) -> None:
        self.where = str(folder)
        index = folder / INDEX
        expected = _read_index(index) if index.is_file() else None
        names = sorted(set(expected.values())) if expected is not None else [WEIGHTS]
        self._files = {name: _open(folder / name) for name in names}
        self._home = {tensor: name for name, file in self._files.items() for tensor in file.keys()}  # noqa: SIM118
        if expected is not None:
            _compare_with_index(index, expected, self._home)
        self.shapes = {tensor: self._shape(tensor) for tensor in self._home}

    def _shape(self, tensor: str) -> tuple[int, ...]:
        part = self._files[self._home[tensor]].get_slice(tensor)
        if part.get_dtype() not in _READABLE:
            raise ValueError(
                f"{self.where}: {tensor} has dtype {part.get_dtype()}; dtypes that are read: {', '.join(_READABLE)}. "
                f"If the weights are quantised, load the original ones"
            )
        return tuple(part.get_shape())

    def read(self, name: str) -> Tensor:
        """The numbers of one tensor, a view of the file."""
        return self._files[self._home[name]].get_tensor(name)


def _open(file: Path) -> Any:
    if not file.is_file():
        raise FileNotFoundError(f"there is no {file.name} in {file.parent}: is the folder complete?")
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged or cut off: {error}. Get the file again") from error


def _read_index(index: Path) -> dict[str, str]:
    """Tensor -> file name, for the files beside the index and no others."""
    values = read_json(index)
    expected = values.get("weight_map")
    if not isinstance(expected, dict) or not expected or not all(isinstance(name, str) for name in expected.values()):
        raise ValueError(f"{index} is damaged: weight_map must give a file name for each tensor")
    for name in expected.values():
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise ValueError(f"{index} names the file {name!r}: only .safetensors files in the same folder are read")
    return expected


def _compare_with_index(index: Path, expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    for tensor in sorted(expected.keys() | found.keys()):
        if expected.get(tensor) != found.get(tensor):
            raise ValueError(
                f"{index} says that {tensor} is in {expected.get(tensor, 'no file')}, and it is in "
                f"{found.get(tensor, 'none of them')}: the files do not belong together"
            )


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object in a file.

    Raises:
        FileNotFoundError: if there is no such file; ValueError if it is no JSON, or no object.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no {file.name} in {file.parent}: is the folder complete?")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} is damaged: it must hold a JSON object, not a {type(values).__name__}")
    return values
