"""The files of a sharded checkpoint: what they hold, how they are written whole or not at all, how they are checked.

    directory/
      manifest.json                        which model, optimizer and files, with their checksums
      files-000012-4f1c/                   named by the step and by chance
        rank-00000-of-00004.safetensors    pieces of weights and states that rank 0 held
        ...

A piece is "elements 300 to 700 of the flattened parameter layers.0.mlp.up.weight". So files that four ranks wrote
can be read by three: each takes the pieces, or parts of pieces, that its own shard is made of.

**Whole or not at all.** A new checkpoint goes into a new folder; every file is forced to the disk. Only then is the
manifest replaced, by one rename, which the file system does in one go. Until that moment the old manifest points at the
old files, which are still there; after it, they are removed. A crash at any point leaves one whole checkpoint.

The manifest holds a checksum of every file and of itself.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

FORMAT = 1
MANIFEST = "manifest.json"
_BLOCK_BYTES = 2**20


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or is not of this model; says which file, and what to do."""


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A file of a checkpoint.

    Attributes:
        name: path from the directory.
        num_bytes: its size.
        sha256: its checksum.
        pieces: (parameter, start, stop) of all pieces in it.
    """

    name: str
    num_bytes: int
    sha256: str
    pieces: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, kw_only=True)
class ParameterEntry:
    """A parameter: its name, shape and dtype, and the names of the states that its optimizer keeps."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint is of.

    Attributes:
        step: steps taken.
        world_size: ranks that wrote it.
        stage: of ZeRO.
        parameters: of the model, in its order, each once.
        aliases: other names of parameters (tied weights) -> the first name.
        keys: all names in the model's state dict, in its order.
        optimizer: name of the optimizer's class.
        groups: its parameter groups: options, and under "params" the names.
        files: those with pieces.
        extra: what the user added.
    """

    step: int
    world_size: int
    stage: int
    parameters: tuple[ParameterEntry, ...]
    aliases: Mapping[str, str]
    keys: tuple[str, ...]
    optimizer: str
    groups: tuple[Mapping[str, Any], ...]
    files: tuple[FileEntry, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Checksum of names, shapes, dtypes and ties: equal for equal models."""
        return _digest({"parameters": [asdict(entry) for entry in self.parameters], "aliases": dict(self.aliases)})


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> tuple[int, str]:
    """Write a safetensors file and force it to the disk.

    Returns:
        Its size in bytes and its checksum.
    """
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), path)
    _to_disk(path)
    _to_disk(path.parent)
    return path.stat().st_size, checksum(path)


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Put a manifest in the place of the old one, in one go.

    Raises:
        TypeError: an option of the optimizer, or what the user added, is not JSON.
    """
    content: dict[str, Any] = {"format": FORMAT, "fingerprint": manifest.fingerprint, **asdict(manifest)}
    text = json.dumps({"checksum": _digest(content), **content}, indent=1)
    temporary = directory / f"{MANIFEST}.{os.getpid()}.tmp"
    temporary.write_text(text)
    _to_disk(temporary)
    temporary.replace(directory / MANIFEST)
    _to_disk(directory)


def read_manifest(directory: str | os.PathLike[str]) -> Manifest:
    """Read and check a checkpoint's manifest.

    Raises:
        FileNotFoundError: there is no checkpoint.
        CheckpointError: it is truncated, was changed, or is of a newer format.
    """
    path = Path(directory) / MANIFEST
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: there is no whole checkpoint in this directory")
    try:
        content = json.loads(path.read_text())
        found_format = content["format"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is truncated or no manifest ({error}); use an older checkpoint") from error
    if found_format != FORMAT:
        raise CheckpointError(
            f"{path} has format {found_format!r}, and this version of cme295lab reads format {FORMAT}; "
            "read it with the version that wrote it, or a newer one"
        )
    stated = content.pop("checksum", None)
    if stated != _digest(content):
        raise CheckpointError(
            f"{path} was changed after it was written (its checksum differs); use an older checkpoint"
        )
    del content["format"], content["fingerprint"]
    return Manifest(
        **{
            **content,
            "parameters": tuple(
                ParameterEntry(**{**entry, "shape": tuple(entry["shape"])}) for entry in content["parameters"]
            ),
            "keys": tuple(content["keys"]),
            "groups": tuple(content["groups"]),
            "files": tuple(
                FileEntry(**{**entry, "pieces": tuple((n, a, b) for n, a, b in entry["pieces"])})
                for entry in content["files"]
            ),
        }
    )


def check_file(directory: Path, entry: FileEntry, *, contents: bool = True) -> None:
    """See whether a file is as it was written.

    Args:
        directory: of the checkpoint.
        entry: the file.
        contents: compare the checksum, too, not only the size.

    Raises:
        CheckpointError: it is missing, truncated or changed.
    """
    path = directory / entry.name
    advice = "copy it again from where it was written, or use an older checkpoint"
    if not path.exists():
        raise CheckpointError(f"{path} is missing; {advice}")
    if path.stat().st_size != entry.num_bytes:
        raise CheckpointError(
            f"{path} has {path.stat().st_size} bytes instead of {entry.num_bytes}: truncated; {advice}"
        )
    if contents and checksum(path) != entry.sha256:
        raise CheckpointError(f"{path} was changed after it was written (its checksum differs); {advice}")


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
