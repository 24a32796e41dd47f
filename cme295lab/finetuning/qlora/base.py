"""A frozen base in 4 bits: what adapters learn beside.

    y = x · dequantise(codes, scales)ᵀ + b

Nothing of the base learns, its biases, norms and embeddings included, so the backward pass computes gradients for the
inputs of its layers alone: what lies below needs them. Storage is 4 bits, computing is not. A weight is dequantised to
`compute_dtype` for its product and forgotten (`quantization.linear4bit`).

The output head stays as it is, as it does in the paper's code: in 4 bits it would save little and change every logit.

Source: Dettmers et al. 2023, "QLoRA", §3, equation 5.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from cme295lab.finetuning.lora.targets import HEADS
from cme295lab.quantization.quantized_models import QuantizedModelSummary, quantize_model


def freeze_in_four_bits(
    model: nn.Module,
    *,
    block_size: int = 64,
    double_quant: bool = True,
    skip: Sequence[str] | None = None,
    compute_dtype: torch.dtype = torch.bfloat16,
) -> QuantizedModelSummary:
    """Freeze a model and put its linear layers into NF4, in place.

    Args:
        model: holds `nn.Linear` layers.
        block_size: weights to a scale.
        double_quant: whether scales are in 8 bits.
        skip: linear layers that are not quantised, by names or the last parts of names; None means the output head, if
            there is one called "head" or "lm_head".
        compute_dtype: dtype of the products with quantised weights: fp32, fp16 or bf16.

    Raises:
        TypeError: if a weight or `compute_dtype` is none of these dtypes.
        ValueError: if there is nothing to quantise, a name in `skip` names no layer, a weight holds NaN or infinity, or
            a setting is not one of those allowed. The model is then as it was.
    """
    summary = quantize_model(
        model, "nf4", block_size=block_size, double_quant=double_quant, compute_dtype=compute_dtype,
        skip=output_heads(model) if skip is None else skip,
    )  # fmt: skip
    model.requires_grad_(False)
    return summary


def output_heads(model: nn.Module) -> tuple[str, ...]:
    """Names of a model's linear layers that are called as output heads are."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return tuple(name for name in linear if name.rpartition(".")[2] in HEADS)
