"""Quantisation: weights in 4 and 8 bits, what that loses, and what it saves.

Whole numbers first: ``integers`` (absmax and zero-point, from 2 to 8 bits, a scale per tensor, channel or block) and
``errors`` (how far a tensor is from its quantised self), ``outliers`` (LLM.int8: few features keep 16 bits),
``observers`` (what a model's layers hold), ``schemes`` and ``quality`` (perplexity against bits).

Four-bit weights, in this order: ``codebooks`` (the 16 levels), ``four_bit`` (a tensor in 4 bits), ``four_bit_steps`` (a
scale per block, the nearest level, two codes to a byte), ``four_bit_fast`` and ``large_pages`` (the same quickly),
``nf4`` and ``fp4`` (the two types by name), ``double_quantization`` (the scales in 8 bits), ``files`` (the layout that
bitsandbytes reads and writes), ``linear4bit`` (a layer whose weight stays in 4 bits), ``quantized_models`` (all linear
layers of a model, in place), ``four_bit_kernels`` (the same on a GPU, and products that never write the weight out).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cme295lab._lazy import lazy_names

if TYPE_CHECKING:
    from cme295lab.quantization.double_quantization import DoubleQuantized, double_quantize
    from cme295lab.quantization.errors import QuantizationError, quantization_error
    from cme295lab.quantization.files import load_four_bit, save_four_bit
    from cme295lab.quantization.four_bit import BLOCK_SIZES, FourBitTensor, quantize_four_bit, quantize_plainly
    from cme295lab.quantization.integers import (
        QuantizedTensor,
        absmax_quantize,
        pack_codes,
        unpack_codes,
        zero_point_quantize,
    )
    from cme295lab.quantization.linear4bit import Linear4bit
    from cme295lab.quantization.observers import LayerStatistics, TensorStatistics, observe, tensor_statistics
    from cme295lab.quantization.outliers import OUTLIER_THRESHOLD, int8_product, mixed_int8_linear, outlier_columns
    from cme295lab.quantization.quality import (
        QualityRow,
        WeightChange,
        mean_loss,
        perplexity,
        quality_against_bits,
        quantized_weights,
    )
    from cme295lab.quantization.quantized_models import LayerSummary, QuantizedModelSummary, quantize_model
    from cme295lab.quantization.schemes import (
        SCHEMES,
        fp4_scheme,
        gaussian_errors,
        integer_scheme,
        mx_scheme,
        nf4_scheme,
        nvfp4_scheme,
    )

_HOME = {
    "BLOCK_SIZES": "four_bit",
    "DoubleQuantized": "double_quantization",
    "FourBitTensor": "four_bit",
    "LayerStatistics": "observers",
    "LayerSummary": "quantized_models",
    "Linear4bit": "linear4bit",
    "OUTLIER_THRESHOLD": "outliers",
    "QualityRow": "quality",
    "QuantizationError": "errors",
    "QuantizedModelSummary": "quantized_models",
    "QuantizedTensor": "integers",
    "SCHEMES": "schemes",
    "TensorStatistics": "observers",
    "WeightChange": "quality",
    "absmax_quantize": "integers",
    "double_quantize": "double_quantization",
    "fp4_scheme": "schemes",
    "gaussian_errors": "schemes",
    "int8_product": "outliers",
    "integer_scheme": "schemes",
    "load_four_bit": "files",
    "mean_loss": "quality",
    "mixed_int8_linear": "outliers",
    "mx_scheme": "schemes",
    "nf4_scheme": "schemes",
    "nvfp4_scheme": "schemes",
    "observe": "observers",
    "outlier_columns": "outliers",
    "pack_codes": "integers",
    "perplexity": "quality",
    "quality_against_bits": "quality",
    "quantization_error": "errors",
    "quantize_four_bit": "four_bit",
    "quantize_model": "quantized_models",
    "quantize_plainly": "four_bit",
    "quantized_weights": "quality",
    "save_four_bit": "files",
    "tensor_statistics": "observers",
    "unpack_codes": "integers",
    "zero_point_quantize": "integers",
}
_MODULES = (
    "codebooks",
    "double_quantization",
    "errors",
    "files",
    "four_bit",
    "four_bit_fast",
    "four_bit_kernels",
    "four_bit_steps",
    "fp4",
    "integers",
    "large_pages",
    "linear4bit",
    "nf4",
    "observers",
    "outliers",
    "quality",
    "quantized_models",
    "schemes",
)

__all__ = [
    "QuantizedTensor",
    "absmax_quantize",
    "zero_point_quantize",
    "pack_codes",
    "unpack_codes",
    "QuantizationError",
    "quantization_error",
    "OUTLIER_THRESHOLD",
    "int8_product",
    "mixed_int8_linear",
    "outlier_columns",
    "LayerStatistics",
    "TensorStatistics",
    "observe",
    "tensor_statistics",
    "SCHEMES",
    "fp4_scheme",
    "gaussian_errors",
    "integer_scheme",
    "nf4_scheme",
    "mx_scheme",
    "nvfp4_scheme",
    "QualityRow",
    "WeightChange",
    "mean_loss",
    "perplexity",
    "quality_against_bits",
    "quantized_weights",
    "FourBitTensor",
    "quantize_four_bit",
    "quantize_plainly",
    "BLOCK_SIZES",
    "DoubleQuantized",
    "double_quantize",
    "load_four_bit",
    "save_four_bit",
    "Linear4bit",
    "LayerSummary",
    "QuantizedModelSummary",
    "quantize_model",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME, _MODULES)
