"""Where there is no Triton (it has packages for Linux only), `import triton` gives a stand-in, to those who ask for a
language: notebooks, scripts, this package. Where Triton is installed this module does nothing.

Installed packages (torch, transformers, …) ask for something else: whether a compiler is here that makes kernels for
GPUs. They must go on hearing "no". A finder in `sys.meta_path` could not tell the two apart for long, because what it
finds ends up in `sys.modules`, and from there it is handed to everybody. So the stand-in never enters `sys.modules`:
the function behind the `import` statement, `builtins.__import__`, is wrapped by one that looks at who imports, and
answers for the stand-in's modules only. `importlib.util.find_spec("triton")` stays None.

The stand-in itself is in `cme295lab.simulator.standin`; it is loaded when it is first asked for.
"""

from __future__ import annotations

import builtins
import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

_INSTALLED = re.compile(r"[\\/](site|dist)-packages[\\/]")
_OURS = __name__.partition(".")[0]

shown_to = {_OURS}  # installed packages that see the stand-in all the same
_python_import = builtins.__import__


def is_installed() -> bool:
    """Whether the real Triton is here."""
    if "triton" in sys.modules:
        return sys.modules["triton"] is not None
    return importlib.util.find_spec("triton") is not None


def stand_in_where_missing() -> None:
    """From now on, `import triton` gives the stand-in where Triton is missing."""
    global _python_import
    if builtins.__import__ is not _import and not is_installed():
        _python_import, builtins.__import__ = builtins.__import__, _import


def sees_stand_in(importer: Mapping[str, Any] | None) -> bool:
    """Whether code with these globals gets the stand-in: all but installed packages."""
    name, path = ((importer or {}).get(key) for key in ("__name__", "__file__"))
    package = str(name).partition(".")[0]
    return package in shown_to or not (package == "torch" or (isinstance(path, str) and _INSTALLED.search(path)))


def _import(
    name: str,
    globals: Mapping[str, Any] | None = None,
    locals: Mapping[str, Any] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    if level == 0 and (name == "triton" or name.startswith("triton.")) and sees_stand_in(globals):
        from cme295lab.simulator import standin

        module = standin.module(name)  # an error if there is none
        return module if fromlist else standin.module("triton")
    return _python_import(name, globals, locals, fromlist, level)


# Python leaves its own import machinery out when it looks for the line that a warning is about (`stacklevel`), and
# knows it by this file name. A step more in every import must not move those warnings.
_import.__code__ = _import.__code__.replace(co_filename="<frozen importlib._bootstrap>")
