"""Few bits that share a scale: OCP's MX formats and NVIDIA's NVFP4.

Four bits hold fifteen numbers between -6 and 6. What makes them useful is a scale for each short block of neighbours:

    MX       blocks of 32, an e8m0 scale: a power of two, 2^(floor(log2 max|x|) - exponent of the largest element)
             x^ = element · scale                                     bits per value 4 + 8/32 = 4.25, 6.25 or 8.25
    NVFP4    blocks of 16, an e4m3 scale, and one fp32 scale for the tensor that brings the block scales into range
             x^ = element · block scale · tensor scale                bits per value 4 + 8/16 = 4.5, and 32 in all

A power of two costs nothing to multiply by, but it wastes up to half of the range: the largest value of a block ends
somewhere in the elements' highest binade, and what lies beyond their largest number is clamped (7 · scale becomes
6 · scale). A scale with a mantissa puts the largest value close to 6, at the price of more bits of scales.

Blocks lie along the last axis, so that a row of a matrix can be multiplied block by block; the last of a row may be
shorter, and is stored without padding. Elements are rounded to the nearest, ties to even, and clamp.

Decisions where the specification is silent: a block of zeros has the smallest scale (MX) or the scale 0 (NVFP4); an
NVFP4 scale that would round to 0 over values that are not all 0 becomes the smallest there is, which keeps some of
them; its tensor scale is rounded toward zero, so that nothing grows beyond the tensor's largest value. NaN and infinity
are refused: MX could mark a block as NaN, at the price of 31 good values. Quotients are float64, exact for MX and, as
far as rounding goes, for NVFP4 of inputs up to 32 bits.

Source: Rouhani et al. 2023, "OCP Microscaling Formats (MX) Specification v1.0", §5 and §6.3; NVIDIA 2025, "Pretraining
Large Language Models with NVFP4".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

from cme295lab.precision.formats.codes import decode, encode, neighbours
from cme295lab.precision.formats.description import FORMATS, FloatFormat

MX_ELEMENTS = ("fp8_e4m3fn", "fp8_e5m2", "fp6_e3m2", "fp6_e2m3", "fp4_e2m1")
MX_BLOCK_SIZE = 32
NVFP4_BLOCK_SIZE = 16
_TENSOR_SCALE_BYTES = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockScaled:
    """A tensor in blocks of few bits with a scale each.

    Args:
        codes: of the elements, one to a byte, in the tensor's shape; `packed` puts them together.
        scales: codes of the blocks' scales, (..., blocks along the last axis).
        tensor_scale: a further factor of everything, an fp32; None where the format has none.
        element: format of the elements.
        scale_format: format of the scales.
        block_size: values that share a scale.
        dtype: of the tensor that was quantised.
    """

    codes: UInt8[Tensor, "*shape"]
    scales: UInt8[Tensor, "*blocks"]
    tensor_scale: float | None
    element: FloatFormat
    scale_format: FloatFormat
    block_size: int
    dtype: torch.dtype

    @property
    def shape(self) -> torch.Size:
        """Of the tensor."""
        return self.codes.shape

    @property
    def num_bytes(self) -> int:
        """Bytes of packed elements, scales and tensor scale."""
        elements = -(-self.codes.numel() * self.element.num_bits // 8)
        return elements + self.scales.numel() + (0 if self.tensor_scale is None else _TENSOR_SCALE_BYTES)

    @property
    def bits_per_value(self) -> float:
        """Bits that are really stored for each value, scales among them."""
        return 8 * self.num_bytes / self.codes.numel()

    def scale_of_values(self) -> Float64[Tensor, "*shape"]:
        """The factor of each element: its block's scale, times the tensor's."""
        scales = decode(self.scales, self.scale_format) * (1.0 if self.tensor_scale is None else self.tensor_scale)
        return _spread(scales, self.codes.shape, self.block_size)

    def dequantize(self, dtype: torch.dtype | None = None) -> Float[Tensor, "*shape"]:
        """The values, rounded once, to `dtype`; left out, to the dtype that was quantised."""
        return (decode(self.codes, self.element) * self.scale_of_values()).to(dtype or self.dtype)

    def packed(self) -> UInt8[Tensor, " bytes"]:
        """Elements without gaps, the first in the lowest bits: two fp4 in a byte, four fp6 in three."""
        width = self.element.num_bits
        bits = (self.codes.reshape(-1, 1) >> torch.arange(width, device=self.codes.device)) & 1
        bits = torch.nn.functional.pad(bits.reshape(-1), (0, -bits.numel() % 8)).reshape(-1, 8)
        return (bits << torch.arange(8, device=bits.device)).sum(dim=1).to(torch.uint8)


def quantize_mx(
    x: Float[Tensor, "*shape"], element: str = "fp4_e2m1", block_size: int = MX_BLOCK_SIZE
) -> BlockScaled:
    """Quantise to an MX format.

    Args:
        x: any floating dtype; blocks lie along the last axis.
        element: one of `MX_ELEMENTS`.
        block_size: values that share a scale; the specification has 32.

    Raises:
        TypeError: if x is not of a floating dtype.
        ValueError: if x is empty, holds NaN or infinity, or values that no scale reaches; if the element is none of
            MX's, or the block size is not positive.

        >>> small = quantize_mx(torch.tensor([1.0, -2.0, 7.0, 0.3]))
        >>> small.dequantize().tolist(), small.scales.tolist()
        ([1.0, -2.0, 6.0, 0.5], [127])
    """
    if element not in MX_ELEMENTS:
        raise ValueError(f"element must be one of {', '.join(MX_ELEMENTS)}, got {element!r}")
    _check(x, block_size)
    chosen, scale_format = FORMATS[element], FORMATS["e8m0"]
    highest = 2.0 ** math.floor(math.log2(chosen.max))  # the elements' largest power of two
    values = x.detach().to(torch.float64)
    wanted = _block_maxima(values, block_size) / highest
    if float(wanted.max()) >= 2 * scale_format.max:
        raise ValueError(
            f"x holds values up to {float(values.abs().max()):g}, but the largest of MX {element} is "
            f"{chosen.max * scale_format.max:g}: scale x down first"
        )
    scales = encode(wanted.clamp(min=scale_format.min_positive), scale_format, rounding="zero")
    factors = _spread(decode(scales, scale_format), x.shape, block_size)
    return BlockScaled(
        codes=encode(values / factors, chosen, saturate=True).to(torch.uint8),
        scales=scales.to(torch.uint8),
        tensor_scale=None,
        element=chosen,
        scale_format=scale_format,
        block_size=block_size,
        dtype=x.dtype,
    )


def quantize_nvfp4(x: Float[Tensor, "*shape"]) -> BlockScaled:
    """Quantise to NVFP4: blocks of 16 along the last axis.

    The tensor scale is max|x| / (6 · 448), so that the block with the largest value gets the largest scale, 448.

    Raises:
        TypeError: if x is not of a floating dtype.
        ValueError: if x is empty, holds NaN or infinity, or values that no scale reaches.

        >>> quantize_nvfp4(torch.tensor([2688.0, 448.0, 200.0])).dequantize().tolist()
        [2688.0, 448.0, 224.0]
    """
    _check(x, NVFP4_BLOCK_SIZE)
    element, scale_format = FORMATS["fp4_e2m1"], FORMATS["fp8_e4m3fn"]
    values = x.detach().to(torch.float64)
    maxima = _block_maxima(values, NVFP4_BLOCK_SIZE)
    tensor_scale = _tensor_scale(float(maxima.max()) / (element.max * scale_format.max))
    wanted = maxima / (element.max * tensor_scale)
    scales = encode(wanted, scale_format)
    scales = torch.where((scales == 0) & (maxima > 0), 1, scales)  # code 1 is the smallest scale that is not 0
    factors = _spread(decode(scales, scale_format) * tensor_scale, x.shape, NVFP4_BLOCK_SIZE)
    elements = values / torch.where(factors == 0, 1.0, factors)
    return BlockScaled(
        codes=encode(elements, element, saturate=True).to(torch.uint8),
        scales=scales.to(torch.uint8),
        tensor_scale=tensor_scale,
        element=element,
        scale_format=scale_format,
        block_size=NVFP4_BLOCK_SIZE,
        dtype=x.dtype,
    )


def _tensor_scale(wanted: float) -> float:
    """The fp32 at or next below a scale, above it among subnormals, which are far apart; 1 for a tensor of zeros."""
    if wanted == 0:
        return 1.0
    fp32 = FORMATS["fp32"]
    if wanted > fp32.max:
        raise ValueError(f"x needs a tensor scale of {wanted:g}, but fp32 ends at {fp32.max:g}: scale x down first")
    below, above = neighbours(torch.tensor(wanted, dtype=torch.float64), fp32)
    return float(below if wanted >= fp32.min_normal else above)


def _block_maxima(values: Float64[Tensor, "*shape"], block_size: int) -> Float64[Tensor, "*blocks"]:
    """Largest size in each block along the last axis; a tensor without axes is a block of one."""
    sizes = values.abs() if values.ndim else values.abs().reshape(1)
    padded = torch.nn.functional.pad(sizes, (0, -sizes.shape[-1] % block_size))
    return padded.unflatten(-1, (-1, block_size)).amax(dim=-1)


def _spread(scales: Float64[Tensor, "*blocks"], shape: torch.Size, block_size: int) -> Float64[Tensor, "*shape"]:
    """Each block's scale for each of its values."""
    if not shape:
        return scales.reshape(())
    return scales.repeat_interleave(block_size, dim=-1)[..., : shape[-1]]


def _check(x: Tensor, block_size: int) -> None:
    if not x.is_floating_point():
        raise TypeError(f"x must be of a floating dtype, got {x.dtype}: convert it first, as x.float()")
    if isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 1:
        raise ValueError(f"block_size must be an int of at least 1, got {block_size!r}")
    if x.numel() == 0:
        raise ValueError(f"x is empty, shape {tuple(x.shape)}: there is no block to take a scale from")
    if not bool(x.isfinite().all()):
        raise ValueError(
            f"x holds {int(x.isnan().sum())} NaN and {int(x.isinf().sum())} infinite values of {x.numel()}: one of "
            "them would ruin its block; replace them, or find out where they come from"
        )
