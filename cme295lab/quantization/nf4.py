"""NF4, the 4-bit NormalFloat: 16 levels that normally distributed weights use about equally often.

Weights of a trained layer are nearly normal, and a block of 64 divided by its largest value is so, too. Levels at
quantiles of the normal distribution spend the 16 codes where the weights are. How levels are made of quantiles is in
`codebooks.nf4_code`, how tensors are quantised with them in `four_bit`.

    >>> import torch
    >>> from cme295lab.quantization import nf4
    >>> tensor = nf4.quantize(torch.randn(4096, 64), block_size=64)
    >>> tensor.bits_per_parameter
    4.5

Source: Dettmers et al. 2023, "QLoRA", §3 and Appendix E (the table).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from cme295lab.quantization.codebooks import nf4_code
from cme295lab.quantization.four_bit import FourBitTensor, quantize_four_bit

CODE: Float[Tensor, " 16"] = torch.tensor(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    dtype=torch.float32,
)
"""The 16 levels as published, lowest first: code 0 is -1, code 7 is zero, code 15 is 1."""


def code() -> Float[Tensor, " 16"]:
    """Build the levels from their definition; they equal `CODE` bit by bit."""
    return nf4_code()


def quantize(
    w: Float[Tensor, "*shape"], *, block_size: int = 64, double_quant: bool = False, allow_non_finite: bool = False
) -> FourBitTensor:
    """Quantise a tensor to NF4.

    Args:
        w: any shape, fp32, fp16 or bf16; its gradient is not followed.
        block_size: values to a scale: 32, 64, 128, ..., 4096.
        double_quant: whether to store the scales in 8 bits: 4.127 bits per value instead of 4.5.
        allow_non_finite: whether to let NaN and infinity through, which spoil their blocks, instead of refusing them.

    Raises:
        TypeError: if `w` is of another dtype.
        ValueError: if `w` is empty or holds NaN or infinity, or `block_size` is not one of those.
    """
    return quantize_four_bit(
        w, quant_type="nf4", block_size=block_size, double_quant=double_quant, allow_non_finite=allow_non_finite
    )
