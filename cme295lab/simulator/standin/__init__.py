"""A stand-in for Triton, for systems that Triton has no packages for (macOS, Windows).

A kernel needs little of Triton to be run by the simulator: names that exist when Python reads its file (`tl.load`,
`tl.float16`, `tl.constexpr`), and decorators that keep the function. What the names mean inside a kernel is the
simulator's own business, with Triton installed or without. So the modules made here hold names, types, constants and
decorators, and no language: its functions are whatever `simulator.language` implements.

`launching` (jit, autotune, heuristics), `names` (types, constants, functions of `tl`), `modules` (which of them is in
which module of Triton). `cme295lab._triton_imports` says who gets to see them.
"""

from __future__ import annotations

from types import ModuleType

from cme295lab import _triton_imports
from cme295lab.simulator.standin.modules import MODULES

__all__ = ["module", "show_to"]


def module(name: str) -> ModuleType:
    """The stand-in for a module of Triton, such as "triton.language".

    Raises:
        ModuleNotFoundError: it needs Triton's compiler, or is not known.
    """
    found = MODULES.get(name)
    if found is None:
        raise ModuleNotFoundError(
            f"No module named {name!r}: there is no Triton here, only the simulator's stand-in for its language, "
            "which has no compiler and no driver. Triton has packages for Linux: use that, or WSL 2",
            name=name,
        )
    return found


def show_to(*packages: str) -> None:
    """Let installed packages import the stand-in, to run their kernels in the simulator where there is no Triton.

    Args:
        packages: top-level names, such as "liger_kernel". Call this before they are imported.
    """
    _triton_imports.shown_to.update(packages)
