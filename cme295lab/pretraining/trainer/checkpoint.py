"""One file that holds a run at one moment, and is never half written.

    checkpoint.safetensors     tensors: model/<name>, optimizer/<name>/m, .../v, .../step
                               header:  the run (settings, shape of the model, fingerprint of the data) and the step

The file is written under another name, forced to the disk (`fsync`), and renamed. A rename replaces the old file in one
go: whoever is killed, or loses power, at any moment, has the old checkpoint or the new one. Two files, weights here and
optimizer there, could not promise that. Nothing is pickled: reading a checkpoint runs no code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

FILE_NAME = "checkpoint.safetensors"
_KEY = "cme295lab"


def has_checkpoint(folder: str | Path) -> bool:
    """Whether there is a run in a folder that can be resumed."""
    return (Path(folder) / FILE_NAME).is_file()


def write_checkpoint(
    folder: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, name: str = FILE_NAME
) -> None:
    """Replace the checkpoint of a folder in one go.

    Args:
        folder: of the run; made if it does not exist.
        tensors: of the model and the optimizer.
        facts: plain values.
        name: of the file, where a folder has several.
    """
    copies = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    write_atomically(folder / name, save(copies, metadata={_KEY: json.dumps(facts)}))


def read_checkpoint(folder: Path, *, name: str = FILE_NAME) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a checkpoint.

    Args:
        folder: of the run.
        name: of the file, where a folder has several.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is damaged, or no checkpoint of a run.
    """
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"there is no {name} in {folder}: no run was started there")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if _KEY not in metadata:
        raise ValueError(f"{path} is no checkpoint of a training run: its header has no {_KEY!r}")
    return tensors, json.loads(metadata[_KEY])


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is there in full, or not at all, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY) if os.name == "posix" else None
    if folder is not None:  # the name itself is an entry of the folder
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def optimizer_part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those of the tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def load_parameters(parameters: Mapping[str, torch.nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    """Copy stored values into a model's parameters, in place; a head tied to the embedding is stored once.

    Args:
        parameters: by name, those that were stored.
        tensors: the values.

    Raises:
        ValueError: if names or shapes differ.
    """
    if set(parameters) != set(tensors):
        raise ValueError(f"the checkpoint has other parameters: {', '.join(sorted(set(parameters) ^ set(tensors)))}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.shape != tensors[name].shape:
                raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}, needed {tuple(parameter.shape)}")
            parameter.copy_(tensors[name])
