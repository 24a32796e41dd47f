"""The table of Triton functions that the simulator implements itself, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from cme295lab.simulator.machine import Machine

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Builtin:
    """A function of `triton.language`: `function(machine, *args, **kwargs)` with Triton's parameter names."""

    name: str
    function: Callable[..., Any]

    def __call__(self, m: Machine, *args: Any, **kwargs: Any) -> Any:
        return self.function(m, *args, **kwargs)


NATIVE: dict[str, Builtin] = {}
LIBDEVICE: dict[str, Builtin] = {}  # functions of triton.language.extra.libdevice, where they differ from `tl.…`
METHODS: set[str] = set()


def native(*names: str, method: bool = False) -> Callable[[Function], Function]:
    """Register an implementation under Triton's name(s); with method=True `x.name(...)` works too."""

    def register(function: Function) -> Function:
        for name in names:
            NATIVE[name] = Builtin(name, function)
            if method:
                METHODS.add(name)
        return function

    return register
