"""How many floating-point operations training takes, and how much of a GPU's peak that uses.

Read in this order: ``quantities`` (a count, FLOP, and a rate, FLOP/s, are kept apart), ``counting`` (the operations of
a `ModelConfig`, operator by operator, for one token), ``breakdown`` (the table that comes of it), ``utilization`` (MFU
and HFU, from tokens per second and back), ``published`` (the formulas of the papers: 6ND, PaLM, Megatron, Korthikanti,
Kaplan). Counting and the papers must agree, and both with what PyTorch executes: tests hold the three together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cme295lab._lazy import lazy_names

if TYPE_CHECKING:
    from cme295lab.pretraining.flops.breakdown import FlopBreakdown, FlopRow
    from cme295lab.pretraining.flops.counting import flops_per_token, matmul_parameters, training_flops
    from cme295lab.pretraining.flops.published import (
        PF_DAY,
        approximate_training_flops,
        kaplan_flops_per_token,
        korthikanti_flops,
        megatron_flops,
        megatron_parameters,
        palm_flops_per_token,
    )
    from cme295lab.pretraining.flops.quantities import FlopCount, FlopRate
    from cme295lab.pretraining.flops.utilization import hfu, mfu, tokens_per_s, training_time_s

_HOME = {
    "FlopBreakdown": "breakdown",
    "FlopCount": "quantities",
    "FlopRate": "quantities",
    "FlopRow": "breakdown",
    "PF_DAY": "published",
    "approximate_training_flops": "published",
    "flops_per_token": "counting",
    "hfu": "utilization",
    "kaplan_flops_per_token": "published",
    "korthikanti_flops": "published",
    "matmul_parameters": "counting",
    "megatron_flops": "published",
    "megatron_parameters": "published",
    "mfu": "utilization",
    "palm_flops_per_token": "published",
    "tokens_per_s": "utilization",
    "training_flops": "counting",
    "training_time_s": "utilization",
}
_MODULES = ("breakdown", "counting", "published", "quantities", "utilization")

__all__ = [
    "FlopCount",
    "FlopRate",
    "flops_per_token",
    "training_flops",
    "matmul_parameters",
    "FlopBreakdown",
    "FlopRow",
    "mfu",
    "hfu",
    "tokens_per_s",
    "training_time_s",
    "approximate_training_flops",
    "palm_flops_per_token",
    "kaplan_flops_per_token",
    "megatron_parameters",
    "megatron_flops",
    "korthikanti_flops",
    "PF_DAY",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME, _MODULES)
