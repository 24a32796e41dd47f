"""Double quantisation: the scales of 4-bit blocks, quantised themselves.

A scale in fp32 for 64 weights costs half a bit per weight. There are many of them and they are alike, so they can be
stored in 8 bits: the mean is taken off (scales are positive, codes are signed), what is left is cut into blocks of 256,
and each block keeps one fp32 constant.

    bits per weight    32/64 = 0.5    becomes    8/64 + 32/(64 · 256) = 0.127

The steps are those of bitsandbytes, so that bytes can be exchanged: multiply by the reciprocal of the block's largest
absolute value, move -1..1 to the nearest of 65,536 positions, look the code up (`codebooks.dynamic_code_of_position`).

    absmax ── minus mean ── / largest of 256 ── position ── code (8 bits)
              offset        nested_absmax

Source: Dettmers et al. 2023, "QLoRA", §3 "Double Quantization".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from cme295lab.quantization.codebooks import dynamic_code, dynamic_code_of_position

NESTED_BLOCK_SIZE = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class DoubleQuantized:
    """Scales in 8 bits.

    Args:
        codes: one per scale.
        nested_absmax: one fp32 constant for each `block_size` codes.
        offset: mean of the scales, fp32, no dimension.
        block_size: codes to a constant.
    """

    codes: UInt8[Tensor, " scales"]
    nested_absmax: Float[Tensor, " groups"]
    offset: Float[Tensor, ""]
    block_size: int = NESTED_BLOCK_SIZE

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise ValueError(f"block_size must be at least 1, got {self.block_size}")
        groups = -(-self.codes.numel() // self.block_size)
        if self.nested_absmax.numel() != groups:
            raise ValueError(
                f"{self.codes.numel()} codes in blocks of {self.block_size} need {groups} constants, got "
                f"{self.nested_absmax.numel()} in nested_absmax"
            )

    @property
    def code(self) -> Float[Tensor, " 256"]:
        """The table of levels: a constant of the format, not stored here."""
        return dynamic_code().to(self.codes.device)

    @property
    def num_bytes(self) -> int:
        """Bytes of codes, constants and offset."""
        return self.codes.nbytes + self.nested_absmax.nbytes + self.offset.nbytes

    def dequantize(self) -> Float[Tensor, " scales"]:
        """The scales in fp32: level × constant of its block + offset."""
        levels = self.code[self.codes.int()]
        constants = self.nested_absmax.repeat_interleave(self.block_size)[: self.codes.numel()]
        return levels.mul_(constants).add_(self.offset)

    def to(self, device: torch.device | str) -> DoubleQuantized:
        """The same on another device."""
        return self._each(lambda part: part.to(device))

    def clone(self) -> DoubleQuantized:
        """The same in memory of its own."""
        return self._each(Tensor.clone)

    def _each(self, fn: Callable[[Tensor], Tensor]) -> DoubleQuantized:
        codes, nested_absmax, offset = map(fn, (self.codes, self.nested_absmax, self.offset))
        return replace(self, codes=codes, nested_absmax=nested_absmax, offset=offset)


def double_quantize(absmax: Float[Tensor, " scales"]) -> DoubleQuantized:
    """Quantise fp32 scales to 8 bits.

    Args:
        absmax: scales, finite.

    Raises:
        TypeError: if they are not fp32.
        ValueError: if there are none.
    """
    if absmax.dtype != torch.float32:
        raise TypeError(f"absmax must be torch.float32, got {absmax.dtype}")
    if absmax.numel() == 0:
        raise ValueError("absmax is empty: there is nothing to quantise")
    offset = absmax.mean()
    centred = absmax - offset
    num_padding = -centred.numel() % NESTED_BLOCK_SIZE
    blocks = torch.nn.functional.pad(centred, (0, num_padding)).view(-1, NESTED_BLOCK_SIZE)
    nested_absmax = blocks.abs().amax(dim=1)
    # A block of zeros (one scale alone equals its mean) has no reciprocal: 0 × inf is NaN, which becomes position 0,
    # whose level times the constant 0 is 0 again.
    scaled = blocks * (1.0 / nested_absmax).unsqueeze(1)
    positions = ((scaled + 1.0) * 32767.5 + 0.5).clamp_(0, 65535).nan_to_num_(nan=0.0)
    codes = dynamic_code_of_position().to(absmax.device)[positions.int()]
    return DoubleQuantized(codes=codes.flatten()[: absmax.numel()].clone(), nested_absmax=nested_absmax, offset=offset)
