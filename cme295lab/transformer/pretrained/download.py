"""A file from a web server: resumed where it stopped, checked, and under its name only when it is complete.

    target.part    what has arrived so far; it stays when the download is interrupted, and the next one goes on with it
    target         appears by a rename, after size and checksum were right

A server is asked for the rest with `Range: bytes=N-`. It may answer with just that (206) or with everything (200); then
the download starts over. A file whose checksum is wrong is deleted, since nobody knows where the wrong byte is.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from tqdm.auto import tqdm

_CHUNK_BYTES = 1 << 18
_TIMEOUT_S = 30.0
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class FetchError(RuntimeError):
    """A model could not be fetched; the message says why, and what to do."""


class _BrokenConnectionError(Exception):
    """The connection ended before the file did; asking again may help."""


def part_of(target: Path) -> Path:
    """Where a file is while it is not complete."""
    return target.with_name(target.name + ".part")


def download(
    url: str, target: Path, *, size_bytes: int, sha256: str, num_attempts: int = 5, progress: bool = True
) -> None:
    """Download a file whose size and checksum are known.

    Args:
        url: where it is; http or https.
        target: where to; the folder exists.
        size_bytes, sha256: what the file must have.
        num_attempts: how often to go on after the connection broke.
        progress: show a bar on stderr.

    Raises:
        FetchError: if the server has no such file, the connection keeps breaking, or the file is another one.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise FetchError(f"{url} is not an address on the web: it must begin with https:// or http://")
    part = part_of(target)
    for attempt in range(1, num_attempts + 1):
        try:
            digest = _continue(url, part, size_bytes, progress)
            break
        except _BrokenConnectionError as error:
            if attempt == num_attempts:
                have = part.stat().st_size if part.exists() else 0
                raise FetchError(
                    f"the connection to {url} broke ({error}), {num_attempts} times; {have} of {size_bytes} bytes are "
                    f"here, and the same command goes on from there"
                ) from error
    finish(part, target, digest=digest, sha256=sha256, what=url)


def finish(part: Path, target: Path, *, digest: str, sha256: str, what: str) -> None:
    """Give a complete file its name if its checksum is right, else delete it."""
    if digest != sha256:
        part.unlink()
        raise FetchError(
            f"what came from {what} is not the file it should be: its SHA-256 is {digest}, expected {sha256}. It was "
            f"deleted. Try again, or from another source; if it stays like this, the file there was replaced"
        )
    with part.open("rb") as file:
        os.fsync(file.fileno())  # the name must not be on the disk before the bytes are
    part.replace(target)


def write_hashed(
    file: BinaryIO, chunks: Iterable[bytes], *, room: int, digest: hashlib._Hash, report: Callable[[int], object]
) -> None:
    """Write pieces to a file, hashing them; raises a FetchError if they are more bytes than there should be."""
    for chunk in chunks:
        room -= len(chunk)
        if room < 0:
            raise FetchError("the source has more bytes than the file should have: it is another file")
        file.write(chunk)
        digest.update(chunk)
        report(len(chunk))


def _continue(url: str, part: Path, size_bytes: int, progress: bool) -> str:
    """Get what is missing of a file, and return the checksum of all of it."""
    have = part.stat().st_size if part.exists() else 0
    if have > size_bytes:
        part.unlink()
        have = 0
    digest = hashlib.sha256()
    if have:
        with part.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    if have == size_bytes:
        return digest.hexdigest()
    with _open(url, have, size_bytes) as response:
        if response.status != 206:  # the server sends all of it
            digest, have = hashlib.sha256(), 0
        bar = tqdm(total=size_bytes, initial=have, unit="B", unit_scale=True, desc=part.stem, disable=not progress)
        with part.open("ab" if have else "wb") as file, bar:
            write_hashed(file, _pieces(response), room=size_bytes - have, digest=digest, report=bar.update)
    missing = size_bytes - part.stat().st_size
    if missing:
        raise _BrokenConnectionError(f"{missing} bytes are missing")
    return digest.hexdigest()


def _pieces(response: http.client.HTTPResponse) -> Iterator[bytes]:
    try:
        while chunk := response.read1(_CHUNK_BYTES):
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenConnectionError(f"{type(error).__name__}: {error}") from error


def _open(url: str, have: int, size_bytes: int) -> http.client.HTTPResponse:
    """Ask for the file, or for what follows the first bytes of it."""
    request = urllib.request.Request(url, headers={"User-Agent": "cme295lab", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        raise FetchError(f"{url}: the server says {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        reason = getattr(error, "reason", error)
        raise FetchError(f"{url} cannot be reached: {reason}. Is there a network? Try another source") from error
    _check_range(response, url, have, size_bytes)
    return response


def _check_range(response: http.client.HTTPResponse, url: str, have: int, size_bytes: int) -> None:
    if response.status == 206:
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if not match or int(match[1]) != have or int(match[3]) != size_bytes:
            response.close()
            raise FetchError(
                f"{url}: asked for what follows byte {have} of {size_bytes}, the server answered with "
                f"{response.headers.get('Content-Range')!r}"
            )
    length = response.headers.get("Content-Length")
    if response.status == 200 and length is not None and int(length) != size_bytes:
        response.close()
        raise FetchError(f"{url} has {length} bytes, and the file should have {size_bytes}: it is another file")
