"""The browser's part of the walks: what they share, and each one's own file, put together as one module and sheet."""

from pathlib import Path

_HERE = Path(__file__).parent


def walk_source(name: str) -> str:
    """The JavaScript module of a walk: the shared functions, then its own file."""
    return _read("walk_common.js") + _read(name)


def walk_style(*names: str) -> str:
    """The style sheet of a walk."""
    return "".join(map(_read, ("walk_common.css", *names)))


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
