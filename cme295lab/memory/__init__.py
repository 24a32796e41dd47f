"""Where the memory of a training step goes: by formula, and by measurement.

The formulas, in reading order: ``precision`` (which number format holds weights, gradients, masters and states),
``model_states`` (bytes of those, for every optimizer, whole or sharded by ZeRO), ``activations`` (what the course's
`DecoderLM` keeps for the backward pass, operator by operator), ``korthikanti`` (the same as a published table counts
it), ``ledger`` (all of it for one training step: `training_memory`), ``fit`` (does it fit a GPU, what is the largest that
does, which change is the cheapest).

``compare`` runs a real step of a real model and lays formula and measurement side by side.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass

_HOME: dict[str, str] = {}
_MODULES = ("precision", "model_states", "activations", "korthikanti", "ledger", "fit")

__all__: list[str] = []


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that a formula costs no import of torch."""
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
