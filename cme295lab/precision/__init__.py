"""Numbers of few bits: what a format holds, and how to train in sixteen bits without losing the run.

Read in this order: ``formats`` (bits, rounding, limits of fp64 down to fp4), ``block_formats`` (few bits that share a
scale: MX, NVFP4), ``underflow`` (what a format does to gradients), ``loss_scaling`` (moving them into its range),
``stochastic`` (rounding that is right on average), ``accumulation`` (sums of 16 bits), ``policies`` (what runs in which
format), ``autocast`` (operators that do), ``mixed_precision`` (the training step), ``comparison`` (several policies
beside each other), ``adamw`` and ``adamw_optimizer`` (a step over fp32 masters, in one pass over memory).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cme295lab._lazy import lazy_names

if TYPE_CHECKING:
    from cme295lab.precision.accumulation import matmul_in_16_bits, sum_in_16_bits
    from cme295lab.precision.adamw import (
        AdamWOptions,
        adamw_step_fused,
        adamw_step_reference,
        adamw_step_unfused,
    )
    from cme295lab.precision.adamw_optimizer import MixedPrecisionAdamW
    from cme295lab.precision.autocast import HIGH_OPERATORS, LOW_OPERATORS, autocast_like
    from cme295lab.precision.block_formats import MX_ELEMENTS, BlockScaled, quantize_mx, quantize_nvfp4
    from cme295lab.precision.comparison import MAIN_POLICIES, compare_policies
    from cme295lab.precision.formats.bits import Rounding
    from cme295lab.precision.formats.codes import all_values, code_dtype, decode, encode, neighbours
    from cme295lab.precision.formats.description import FORMATS, FloatFormat, get_format
    from cme295lab.precision.formats.rounding import Number, describe, describe_code, round_to
    from cme295lab.precision.loss_scaling import LossNeverFinite, LossScaler, LossScaling
    from cme295lab.precision.mixed_precision import MixedPrecisionTraining, ModelStateBytes, StepRecord
    from cme295lab.precision.policies import POLICIES, PrecisionPolicy, get_policy
    from cme295lab.precision.stochastic import stochastic_round_
    from cme295lab.precision.underflow import (
        GradientStatistics,
        Log2Histogram,
        UnderflowReport,
        UnderflowRow,
        gradient_statistics,
        log2_histogram,
        underflow_report,
    )

_HOME = {
    "BlockScaled": "block_formats",
    "MX_ELEMENTS": "block_formats",
    "quantize_mx": "block_formats",
    "quantize_nvfp4": "block_formats",
    "AdamWOptions": "adamw",
    "MixedPrecisionAdamW": "adamw_optimizer",
    "adamw_step_fused": "adamw",
    "adamw_step_reference": "adamw",
    "adamw_step_unfused": "adamw",
    "FORMATS": "formats.description",
    "FloatFormat": "formats.description",
    "Number": "formats.rounding",
    "Rounding": "formats.bits",
    "all_values": "formats.codes",
    "code_dtype": "formats.codes",
    "decode": "formats.codes",
    "describe": "formats.rounding",
    "describe_code": "formats.rounding",
    "encode": "formats.codes",
    "get_format": "formats.description",
    "neighbours": "formats.codes",
    "round_to": "formats.rounding",
    "LossNeverFinite": "loss_scaling",
    "LossScaler": "loss_scaling",
    "LossScaling": "loss_scaling",
    "stochastic_round_": "stochastic",
    "GradientStatistics": "underflow",
    "Log2Histogram": "underflow",
    "UnderflowReport": "underflow",
    "UnderflowRow": "underflow",
    "gradient_statistics": "underflow",
    "log2_histogram": "underflow",
    "underflow_report": "underflow",
    "matmul_in_16_bits": "accumulation",
    "sum_in_16_bits": "accumulation",
    "HIGH_OPERATORS": "autocast",
    "LOW_OPERATORS": "autocast",
    "autocast_like": "autocast",
    "MAIN_POLICIES": "comparison",
    "compare_policies": "comparison",
    "MixedPrecisionTraining": "mixed_precision",
    "ModelStateBytes": "mixed_precision",
    "StepRecord": "mixed_precision",
    "POLICIES": "policies",
    "PrecisionPolicy": "policies",
    "get_policy": "policies",
}
_MODULES = (
    "accumulation", "adamw", "adamw_optimizer", "autocast", "block_formats", "comparison",
    "formats", "loss_scaling", "mixed_precision", "policies", "stochastic", "underflow",
)  # fmt: skip

__all__ = [
    "FloatFormat",
    "FORMATS",
    "get_format",
    "encode",
    "decode",
    "code_dtype",
    "all_values",
    "neighbours",
    "Rounding",
    "round_to",
    "describe",
    "describe_code",
    "Number",
    "BlockScaled",
    "quantize_mx",
    "quantize_nvfp4",
    "MX_ELEMENTS",
    "LossNeverFinite",
    "LossScaler",
    "LossScaling",
    "stochastic_round_",
    "GradientStatistics",
    "Log2Histogram",
    "UnderflowReport",
    "UnderflowRow",
    "gradient_statistics",
    "log2_histogram",
    "underflow_report",
    "MixedPrecisionAdamW",
    "AdamWOptions",
    "adamw_step_reference",
    "adamw_step_unfused",
    "adamw_step_fused",
    "matmul_in_16_bits",
    "sum_in_16_bits",
    "HIGH_OPERATORS",
    "LOW_OPERATORS",
    "autocast_like",
    "MAIN_POLICIES",
    "compare_policies",
    "MixedPrecisionTraining",
    "ModelStateBytes",
    "StepRecord",
    "POLICIES",
    "PrecisionPolicy",
    "get_policy",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME, _MODULES)
