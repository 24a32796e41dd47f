"""Public names of a room that are imported when they are first used.

Importing a room costs nothing then: the formulas of `cme295lab.memory` need no PyTorch until somebody measures.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any


def lazy_names(
    room: str, home: Mapping[str, str], modules: Collection[str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the `__getattr__` and `__dir__` of a room's `__init__`.

    Args:
        room: its `__name__`.
        home: public name -> the module in the room where it lives, such as "config" or "formulas.ledger".
        modules: the room's own modules that can be named as attributes, too.
    """

    def get(name: str) -> Any:
        if name in modules:
            return importlib.import_module(f"{room}.{name}")
        if name in home:
            return getattr(importlib.import_module(f"{room}.{home[name]}"), name)
        known = ", ".join(sys.modules[room].__all__)
        raise AttributeError(f"module {room!r} has no attribute {name!r}; it has {known}")

    def names() -> list[str]:
        return sorted({*vars(sys.modules[room]), *home, *modules})

    return get, names
