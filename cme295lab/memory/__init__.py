"""Where the memory of a training step goes: by formula, and by measurement.

Three parts, in reading order. ``formulas``: a training step on paper, line by line (`training_memory`), what of it fits
a GPU, and what would. ``measurement``: a training step as it runs, every storage followed (`MemoryTimeline`), and the
two held against each other (`compare`). ``recompute``: activation checkpointing written out, to be measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cme295lab._lazy import lazy_names

if TYPE_CHECKING:
    from cme295lab.memory.formulas.fit import Fix, cheapest_fix, largest_fitting
    from cme295lab.memory.formulas.ledger import (
        LedgerRow,
        MemoryLedger,
        Verdict,
        inference_memory,
        kv_cache_bytes,
        training_memory,
    )
    from cme295lab.memory.formulas.model_states import (
        ModelStates,
        blockwise_bits_per_parameter,
        bytes_per_parameter,
        largest_model_parameters,
        zero_model_state_bytes,
    )
    from cme295lab.memory.formulas.precision import POLICIES, PrecisionPolicy, get_policy
    from cme295lab.memory.formulas.setting import ParallelConfig, TrainingSetting
    from cme295lab.memory.measurement.comparison import Comparison, compare
    from cme295lab.memory.measurement.timeline import MemoryTimeline
    from cme295lab.memory.recompute import apply_recompute, checkpoint, recomputed_flops

_HOME: dict[str, str] = {
    "Comparison": "measurement.comparison",
    "Fix": "formulas.fit",
    "LedgerRow": "formulas.ledger",
    "MemoryLedger": "formulas.ledger",
    "MemoryTimeline": "measurement.timeline",
    "ModelStates": "formulas.model_states",
    "POLICIES": "formulas.precision",
    "ParallelConfig": "formulas.setting",
    "PrecisionPolicy": "formulas.precision",
    "TrainingSetting": "formulas.setting",
    "Verdict": "formulas.ledger",
    "bytes_per_parameter": "formulas.model_states",
    "apply_recompute": "recompute",
    "blockwise_bits_per_parameter": "formulas.model_states",
    "cheapest_fix": "formulas.fit",
    "checkpoint": "recompute",
    "compare": "measurement.comparison",
    "get_policy": "formulas.precision",
    "inference_memory": "formulas.ledger",
    "kv_cache_bytes": "formulas.ledger",
    "largest_fitting": "formulas.fit",
    "largest_model_parameters": "formulas.model_states",
    "recomputed_flops": "recompute",
    "training_memory": "formulas.ledger",
    "zero_model_state_bytes": "formulas.model_states",
}
_MODULES = ("formulas", "measurement", "recompute")

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

__getattr__, __dir__ = lazy_names(__name__, _HOME, _MODULES)
