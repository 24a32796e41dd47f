"""Ways to store a weight, as functions that can be compared: w -> (ŵ, bits per weight).

A scheme takes a weight and returns what would be read back, and what storing it costs for each number, constants among
them, counted from the bytes that the scheme really keeps. `quality` replaces a model's weights by such a ŵ; anything of
this form will do, your own too:

    def halves(w):
        return w.half().to(w.dtype), 16.0

`SCHEMES` holds those of this course under the names that tables and widgets print.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from cme295lab.precision.block_formats import BlockScaled, quantize_mx, quantize_nvfp4
from cme295lab.quantization import fp4, nf4
from cme295lab.quantization.four_bit import FourBitTensor
from cme295lab.quantization.integers import Granularity, absmax_quantize, zero_point_quantize

Scheme = Callable[[Tensor], tuple[Tensor, float]]

BLOCK_SIZE = 64
"""Values per block in `SCHEMES`."""


def original(w: Tensor) -> tuple[Tensor, float]:
    """The weight as it is."""
    return w, 8.0 * w.element_size()


def integer_scheme(
    bits: int, *, zero_point: bool = False, granularity: Granularity = "block", block_size: int = BLOCK_SIZE
) -> Scheme:
    """Make a scheme of absmax or zero-point integers.

    Args:
        bits: per code, 2 to 8.
        zero_point: asymmetric, instead of absmax.
        granularity: what shares a scale: "tensor", "channel" (an output of an nn.Linear) or "block".
        block_size: values per block; used for blocks alone.
    """
    quantize = zero_point_quantize if zero_point else absmax_quantize

    def scheme(w: Tensor) -> tuple[Tensor, float]:
        size = block_size if granularity == "block" else None
        quantized = quantize(w, bits=bits, granularity=granularity, block_size=size)
        return quantized.dequantize(), quantized.bits_per_value

    return scheme


def nf4_scheme(*, double_quant: bool = False, block_size: int = BLOCK_SIZE) -> Scheme:
    """Make a scheme of NF4, with or without double quantisation."""
    return lambda w: _read_back(nf4.quantize(w, block_size=block_size, double_quant=double_quant))


def fp4_scheme(*, double_quant: bool = False, block_size: int = BLOCK_SIZE) -> Scheme:
    """Make a scheme of bitsandbytes' FP4, which is not the e2m1 of the OCP formats."""
    return lambda w: _read_back(fp4.quantize(w, block_size=block_size, double_quant=double_quant))


def mx_scheme(element: str = "fp4_e2m1") -> Scheme:
    """Make a scheme of an OCP MX format: blocks of 32 along a row, a power of two as their scale.

    Args:
        element: a name of `cme295lab.precision.block_formats.MX_ELEMENTS`.
    """
    return lambda w: _read_blocks_back(quantize_mx(w, element))


def nvfp4_scheme() -> Scheme:
    """Make a scheme of NVFP4: blocks of 16 along a row, an 8-bit scale each and one for the tensor."""
    return lambda w: _read_blocks_back(quantize_nvfp4(w))


def _read_back(tensor: FourBitTensor) -> tuple[Tensor, float]:
    return tensor.dequantize(), tensor.bits_per_parameter


def _read_blocks_back(blocks: BlockScaled) -> tuple[Tensor, float]:
    return blocks.dequantize(), blocks.bits_per_value


def _integer_schemes() -> dict[str, Scheme]:
    """Two kinds, three granularities, four numbers of bits."""
    labels: dict[Granularity, str] = {"tensor": "tensor", "channel": "channel", "block": f"block {BLOCK_SIZE}"}
    return {
        f"int{bits} {'zero-point' if zero_point else 'absmax'}, {label}": integer_scheme(
            bits, zero_point=zero_point, granularity=granularity
        )
        for bits in (8, 4, 3, 2)
        for zero_point in (False, True)
        for granularity, label in labels.items()
    }


SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {
        "original": original,
        **_integer_schemes(),
        "nf4": nf4_scheme(),
        "nf4, double": nf4_scheme(double_quant=True),
        "fp4": fp4_scheme(),
        "nvfp4": nvfp4_scheme(),
        "mxfp4": mx_scheme("fp4_e2m1"),
        "mxfp6": mx_scheme("fp6_e2m3"),
        "mxfp8": mx_scheme("fp8_e4m3fn"),
    }
)
"""Name -> scheme: "original", "int8 absmax, tensor", "int4 zero-point, block 64", "nf4", "nf4, double", "mxfp4", ..."""


def gaussian_errors(
    schemes: Mapping[str, Scheme] = SCHEMES, *, num_values: int = 2**20, row_length: int = 1024, seed: int = 0
) -> dict[str, float]:
    """Measure the mean squared error of schemes on values from N(0, 1), which trained weights resemble.

    Args:
        schemes: name -> scheme.
        num_values: how many values, a multiple of `row_length`; with a million, blocks of 64 are known to about 0.3 %.
        row_length: of the (num_values / row_length, row_length) weight that the schemes are given.
        seed: of the values.

    Returns:
        name -> mean squared error.

    Raises:
        ValueError: if `num_values` is no positive multiple of `row_length`.
    """
    if row_length < 1 or num_values < 1 or num_values % row_length:
        raise ValueError(f"num_values must be a positive multiple of row_length {row_length}, got {num_values}")
    w = torch.randn(num_values // row_length, row_length, generator=torch.Generator().manual_seed(seed))
    return {name: float((scheme(w)[0].double() - w.double()).square().mean()) for name, scheme in schemes.items()}
