"""The four steps of 4-bit quantisation, each as plainly as it can be said.

`four_bit` strings them together, and holds `four_bit_fast` against them. What looks like a detail here is a rule: the
bytes are those of bitsandbytes' CPU path, and others read them.

    - A scale's reciprocal is rounded to fp32 and then multiplies. Dividing by the scale gives other codes now and then.
    - Only a last block that is not full is divided by its scale, and its scale is at least 1e-38.
    - A value exactly between two levels takes the lower one.
    - An odd number of values is filled up with a zero.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from cme295lab.quantization.codebooks import QuantType, code_of, midpoints

SMALLEST_SCALE = 1e-38
"""Reciprocals are taken of at least this: that of zero would be infinite."""


def scale_blocks(
    values: Float[Tensor, " values"], block_size: int
) -> tuple[Float[Tensor, " values"], Float[Tensor, " blocks"]]:
    """Steps 1 and 2: values between -1 and 1, and the scale of each block."""
    num_whole = values.numel() // block_size * block_size
    blocks, rest = values[:num_whole].float().view(-1, block_size), values[num_whole:].float()
    absmax = blocks.abs().amax(dim=1)
    scaled = (blocks * (1.0 / absmax.clamp(min=SMALLEST_SCALE)).unsqueeze(1)).flatten()
    if rest.numel() > 0:
        last = rest.abs().amax().clamp(min=SMALLEST_SCALE).unsqueeze(0)
        scaled, absmax = torch.cat((scaled, rest / last)), torch.cat((absmax, last))
    return scaled.clamp_(-1, 1), absmax


def nearest_codes(scaled: Float[Tensor, " values"], quant_type: QuantType) -> UInt8[Tensor, " values"]:
    """Step 3: how many midpoints lie below a value is the number of its level."""
    between, code_of_level = midpoints(code_of(quant_type).to(scaled.device))
    return code_of_level.to(torch.uint8)[torch.bucketize(scaled, between)]


def pack(codes: UInt8[Tensor, " values"]) -> UInt8[Tensor, " bytes"]:
    """Step 4: two codes to a byte, the first in the high half; an even number of codes."""
    return (codes[0::2] << 4) | codes[1::2]


def unpack(packed: UInt8[Tensor, " bytes"]) -> UInt8[Tensor, " values"]:
    """The codes of each byte, high half first."""
    return torch.stack((packed >> 4, packed & 0x0F), dim=1).flatten()


def quantize_values_plainly(
    values: Float[Tensor, " values"], quant_type: QuantType, block_size: int
) -> tuple[UInt8[Tensor, " bytes"], Float[Tensor, " blocks"]]:
    """All steps: packed codes and scales of a flat tensor."""
    scaled, absmax = scale_blocks(values, block_size)
    if scaled.numel() % 2 == 1:
        scaled = torch.nn.functional.pad(scaled, (0, 1))
    return pack(nearest_codes(scaled, quant_type)), absmax
