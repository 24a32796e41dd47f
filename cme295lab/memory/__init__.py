"""Where the memory of a training step goes: by formula, and by measurement.

The formulas, in reading order: ``precision`` (which number format holds weights, gradients, masters and states),
``model_states`` (bytes of those, for every optimizer, whole or sharded by ZeRO), ``activations`` (what the course's
`DecoderLM` keeps for the backward pass, operator by operator), ``korthikanti`` (the same as a published table counts
it), ``ledger`` (all of it for one training step: `training_memory`), ``fit`` (does it fit a GPU, what is the largest
that does, which change is the cheapest).

The measurement: ``timeline`` (`MemoryTimeline` follows every storage of real code; ``storages``, ``classify``,
``saved`` and ``origin`` are its parts), ``recompute`` (activation checkpointing written out, to be measured).

``compare`` runs a real step of a real model and lays formula and measurement side by side.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cme295lab.memory.comparison import Comparison, compare
    from cme295lab.memory.fit import Fix, cheapest_fix, largest_fitting
    from cme295lab.memory.ledger import (
        LedgerRow,
        MemoryLedger,
        Verdict,
        inference_memory,
        kv_cache_bytes,
        training_memory,
    )
    from cme295lab.memory.model_states import (
        ModelStates,
        blockwise_bits_per_parameter,
        bytes_per_parameter,
        largest_model_parameters,
        zero_model_state_bytes,
    )
    from cme295lab.memory.precision import POLICIES, PrecisionPolicy, get_policy
    from cme295lab.memory.recompute import apply_recompute, checkpoint, recomputed_flops
    from cme295lab.memory.setting import ParallelConfig, TrainingSetting
    from cme295lab.memory.timeline import MemoryTimeline

_HOME: dict[str, str] = {
    "Comparison": "comparison",
    "Fix": "fit",
    "LedgerRow": "ledger",
    "MemoryLedger": "ledger",
    "MemoryTimeline": "timeline",
    "ModelStates": "model_states",
    "POLICIES": "precision",
    "ParallelConfig": "setting",
    "PrecisionPolicy": "precision",
    "TrainingSetting": "setting",
    "Verdict": "ledger",
    "bytes_per_parameter": "model_states",
    "apply_recompute": "recompute",
    "blockwise_bits_per_parameter": "model_states",
    "cheapest_fix": "fit",
    "checkpoint": "recompute",
    "compare": "comparison",
    "get_policy": "precision",
    "inference_memory": "ledger",
    "kv_cache_bytes": "ledger",
    "largest_fitting": "fit",
    "largest_model_parameters": "model_states",
    "recomputed_flops": "recompute",
    "training_memory": "ledger",
    "zero_model_state_bytes": "model_states",
}
_MODULES = ("activations", "comparison", "fit", "korthikanti", "ledger", "model_states", "moments", "precision",
            "real_step", "recompute", "setting", "shapes", "snapshot", "timeline")  # fmt: skip

__all__: list[str] = [
    "training_memory",
    "inference_memory",
    "MemoryLedger",
    "LedgerRow",
    "Verdict",
    "TrainingSetting",
    "ParallelConfig",
    "PrecisionPolicy",
    "POLICIES",
    "get_policy",
    "zero_model_state_bytes",
    "largest_model_parameters",
    "bytes_per_parameter",
    "blockwise_bits_per_parameter",
    "ModelStates",
    "kv_cache_bytes",
    "largest_fitting",
    "cheapest_fix",
    "Fix",
    "MemoryTimeline",
    "compare",
    "Comparison",
    "apply_recompute",
    "checkpoint",
    "recomputed_flops",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that a formula costs no import of torch."""
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
