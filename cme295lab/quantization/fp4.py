"""FP4, the 4-bit float of bitsandbytes: a sign bit, and eight magnitudes.

The magnitudes are 0, 1/192, 1/6, 1/4, 1/3, 1/2, 2/3 and 1. Two things to know before comparing it with others. It is
not OCP's e2m1 (`cme295lab.precision`), whose smallest positive value is 1/12 of its largest and whose codes are in
order. And zero has two codes: nearest to zero, a value above it gets code 8, "minus zero", and one below it code 0, as
bitsandbytes does on a CPU. Levels are the same, bytes are not, so the rule is kept.

How the table is made is in `codebooks.fp4_code`, how tensors are quantised with it in `four_bit`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from cme295lab.quantization.codebooks import fp4_code
from cme295lab.quantization.four_bit import FourBitTensor, quantize_four_bit

CODE: Float[Tensor, " 16"] = torch.tensor(
    [
        0.0,
        0.0052083334885537624,
        0.6666666865348816,
        1.0,
        0.3333333432674408,
        0.5,
        0.1666666716337204,
        0.25,
        0.0,
        -0.0052083334885537624,
        -0.6666666865348816,
        -1.0,
        -0.3333333432674408,
        -0.5,
        -0.1666666716337204,
        -0.25,
    ],
    dtype=torch.float32,
)
"""The 16 levels in the order of their codes: 0, 1/192, 2/3, 1, 1/3, 1/2, 1/6, 1/4, then the same with a minus."""


def code() -> Float[Tensor, " 16"]:
    """Build the levels from their definition; they equal `CODE` bit by bit."""
    return fp4_code()


def quantize(
    w: Float[Tensor, "*shape"], *, block_size: int = 64, double_quant: bool = False, allow_non_finite: bool = False
) -> FourBitTensor:
    """Quantise a tensor to FP4.

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
        w, quant_type="fp4", block_size=block_size, double_quant=double_quant, allow_non_finite=allow_non_finite
    )
