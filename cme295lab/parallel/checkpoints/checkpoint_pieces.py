"""Pieces of weights and states, into files and out of them: the seam between a rank's shards and `checkpoint_files`.

In a file, a tensor is called `kind|parameter|start`: kind is "weight" or a state's name such as "exp_avg", start the
first element of the flattened parameter. States that are a single number, such as Adam's count of steps, are stored
with every piece. A buffer is called `buffer|name|0`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cme295lab.parallel.checkpoints.checkpoint_files import CheckpointError, Manifest, ParameterEntry
from cme295lab.parallel.sharding.partition import Piece

WEIGHT, BUFFER = "weight", "buffer"


@dataclass(frozen=True, kw_only=True)
class HeldRun:
    """A flat tensor of weights that a rank holds: pieces of parameters, next to each other.

    Attributes:
        tensor: what is written into it is the weights from then on.
        pieces: what lies in it; offsets count from its beginning.
        state: the optimizer's states of it, by name: of its shape, or single numbers. Empty before the first step.
    """

    tensor: Tensor
    pieces: tuple[Piece, ...]
    state: Mapping[str, Any]


def key_of(kind: str, name: str, start: int) -> str:
    """The name of a tensor in a file."""
    return f"{kind}|{name}|{start}"


def tensors_of(runs: Sequence[HeldRun]) -> dict[str, Tensor]:
    """What a rank writes: for each piece its weights and its states.

    Raises:
        TypeError: a state is neither of the shape of the weights nor a single number, so it cannot be cut.
    """
    tensors = {}
    for run in runs:
        for piece in run.pieces:
            part = slice(piece.offset, piece.offset + piece.numel)
            tensors[key_of(WEIGHT, piece.name, piece.start)] = run.tensor.detach()[part]
            for kind, value in run.state.items():
                value = torch.as_tensor(value)
                if value.shape == run.tensor.shape:
                    value = value[part]
                elif value.dim():
                    raise TypeError(
                        f"the optimizer's state {kind!r} of {piece.name} has shape {tuple(value.shape)} where the "
                        f"weights have {tuple(run.tensor.shape)}; only states like the weights, or single numbers, "
                        "can be cut into pieces"
                    )
                else:
                    value = value.clone()  # files hold no tensor twice
                tensors[key_of(kind, piece.name, piece.start)] = value.detach()
    return tensors


class PieceReader:
    """Reads any part of any parameter, whatever pieces there are.

    Args:
        where: what they are read from, for errors.
        pieces: file -> (parameter, start, stop) of all pieces in it.
        open_file: gives what is in a file: `keys`, `get_tensor` and `get_slice`, as safetensors has them.
    """

    def __init__(
        self, where: str, pieces: Mapping[str, Sequence[tuple[str, int, int]]], open_file: Callable[[str], Any]
    ) -> None:
        self._where = where
        self._names = list(pieces)
        self._open_file = open_file
        self._files: dict[str, Any] = {}
        self._keys: dict[str, set[str]] = {}
        self._pieces: dict[str, list[tuple[int, int, str]]] = {}
        for file, held in pieces.items():
            for name, start, stop in held:
                self._pieces.setdefault(name, []).append((start, stop, file))

    @classmethod
    def of_checkpoint(cls, directory: Path, manifest: Manifest) -> PieceReader:
        """Reads the files of a checkpoint, only those that are asked for."""
        from safetensors import safe_open

        pieces = {entry.name: entry.pieces for entry in manifest.files}
        return cls(str(directory), pieces, lambda file: safe_open(directory / file, framework="pt"))

    @classmethod
    def of_ranks(cls, tensors: Sequence[Mapping[str, Tensor]]) -> PieceReader:
        """Reads what ranks have sent: for each of them its tensors by key."""
        pieces: dict[str, list[tuple[str, int, int]]] = {}
        for rank, held in enumerate(tensors):
            weights = [key.split("|") for key in held if key.startswith(f"{WEIGHT}|")]
            pieces[str(rank)] = [
                (name, int(at), int(at) + held[key_of(WEIGHT, name, int(at))].numel()) for _, name, at in weights
            ]
        return cls("the ranks", pieces, lambda file: _InMemory(tensors[int(file)]))

    def kinds(self, name: str) -> list[str]:
        """The states that there are of a parameter."""
        start, _, file = self._pieces[name][0]
        self._open(file)
        keys = (key.split("|") for key in self._keys[file])
        return sorted(kind for kind, owner, at in keys if owner == name and int(at) == start and kind != WEIGHT)

    def read(self, name: str, kind: str, start: int, stop: int) -> Tensor:
        """Elements start to stop of a flattened parameter, or of a state of it; a single number as such.

        Raises:
            CheckpointError: the files hold no such piece.
        """
        parts, position = [], start
        for first, last, file in sorted(self._pieces.get(name, [])):
            if last <= position or first >= stop:
                continue
            if first > position:
                break
            stored = self._open(file).get_slice(key_of(kind, name, first))
            if not stored.get_shape():
                return self._open(file).get_tensor(key_of(kind, name, first))
            parts.append(stored[position - first : min(stop, last) - first])
            position = min(stop, last)
        if position < stop:
            raise CheckpointError(
                f"{self._where} holds no elements {position} to {stop} of {name} ({kind}); a file is missing in "
                "the manifest, so use an older checkpoint"
            )
        return torch.cat(parts)

    def whole(self, entry: ParameterEntry, kind: str) -> Tensor:
        """A parameter, or a state of it, in its shape; a single number as such."""
        value = self.read(entry.name, kind, 0, prod(entry.shape))
        return value.view(entry.shape) if value.dim() else value

    def fill(self, run: HeldRun) -> dict[str, Tensor]:
        """Write a run's weights in their place.

        Returns:
            Its states.

        Raises:
            CheckpointError: its pieces have not the same states, or not the same single numbers.
        """
        for piece in run.pieces:
            part = slice(piece.offset, piece.offset + piece.numel)
            run.tensor.detach()[part] = self.read(piece.name, WEIGHT, piece.start, piece.stop)
        states: dict[str, Tensor] = {}
        kinds = self.kinds(run.pieces[0].name) if run.pieces else []
        for kind in kinds:
            for piece in run.pieces:
                if kind not in self.kinds(piece.name):
                    raise CheckpointError(
                        f"{self._where}: {piece.name} has no state {kind!r}, {run.pieces[0].name} has"
                    )
                value = self.read(piece.name, kind, piece.start, piece.stop)
                if not value.dim():
                    if kind in states and not torch.equal(states[kind], value):
                        raise CheckpointError(
                            f"{self._where}: state {kind!r} is {value.item()} for {piece.name} and "
                            f"{states[kind].item()} for {run.pieces[0].name}, which are updated together here"
                        )
                    states[kind] = value
                    continue
                if kind not in states:
                    states[kind] = torch.zeros(run.tensor.shape, dtype=value.dtype, device=run.tensor.device)
                states[kind][piece.offset : piece.offset + piece.numel] = value
        return states

    def buffers(self) -> Iterator[tuple[str, Tensor]]:
        """The model's buffers."""
        for name_of_file in self._names:
            file = self._open(name_of_file)
            for key in self._keys[name_of_file]:
                kind, name, _ = key.split("|")
                if kind == BUFFER:
                    yield name, file.get_tensor(key)

    def _open(self, file: str) -> Any:
        if file not in self._files:
            self._files[file] = self._open_file(file)
            self._keys[file] = set(self._files[file].keys())
        return self._files[file]


class _Slice:
    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def get_shape(self) -> list[int]:
        return list(self._tensor.shape)

    def __getitem__(self, part: slice) -> Tensor:
        return self._tensor[part]


class _InMemory:
    """Tensors by key, with the methods of a safetensors file."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def keys(self) -> list[str]:
        return list(self._tensors)

    def get_tensor(self, key: str) -> Tensor:
        return self._tensors[key]

    def get_slice(self, key: str) -> _Slice:
        return _Slice(self._tensors[key])
