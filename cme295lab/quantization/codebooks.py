"""The tables of levels behind 4-bit and 8-bit codes, each built from its definition.

A code is a position in a table of levels between -1 and 1; a block's largest absolute value scales them. Three tables:

    NF4       16 levels at quantiles of the normal distribution, because weights are nearly normal: each level is used
              about as often as any other. Zero is a level, so one side has a level more: 8 positive, 7 negative.
    FP4       the 4-bit float of bitsandbytes: sign, 2 bits of exponent, 1 of mantissa. It is not the e2m1 of OCP: the
              smallest positive level is 1/192 here, 1/12 there, and the codes stand in another order.
    dynamic   256 levels for the scales of double quantisation. Seven decades, each with twice the levels of the decade
              below it, so that small scales are kept as well as large ones.

NF4's outermost quantile is `OFFSET` = 1 - (1/32 + 1/30)/2: the mean of where the last of 16 and of 15 equal bins has
its middle. It is the mean because the two sides have different numbers of levels.

The order of roundings is part of the format: quantiles are asked for at fp32 positions, and the division by the largest
is done in fp32. Otherwise the last bit of some levels differs from the table that everybody's files carry.

Source: Dettmers et al. 2023, "QLoRA", §3 and Appendix E; Dettmers 2015, "8-Bit Approximations for Parallelism in Deep
Learning" (dynamic).
"""

from __future__ import annotations

from functools import cache
from statistics import NormalDist
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

QuantType = Literal["nf4", "fp4"]
QUANT_TYPES: tuple[QuantType, ...] = get_args(QuantType)
OFFSET = 0.9677083
"""Quantile of NF4's outermost levels, with the seven digits that the published table was made from."""


def nf4_code(offset: float = OFFSET) -> Float[Tensor, " 16"]:
    """Build NF4's levels, lowest first.

    Positive levels are 8 quantiles from `offset` down to above one half; negative ones 7, mirrored; all are divided by
    the largest.

    Args:
        offset: quantile of the outermost levels, above 0.5 and below 1.

    Raises:
        ValueError: if it is outside.

    Source: QLoRA §3, equation 4.
    """
    if not 0.5 < offset < 1:
        raise ValueError(f"offset must be a quantile above 0.5 and below 1, got {offset}; NF4's is {OFFSET}")
    normal = NormalDist()

    def quantiles(num_levels: int) -> list[float]:
        positions = torch.linspace(offset, 0.5, num_levels + 1, dtype=torch.float32)[:-1]
        return [normal.inv_cdf(position) for position in positions.tolist()]

    levels = torch.tensor(sorted([-q for q in quantiles(7)] + [0.0] + quantiles(8)), dtype=torch.float32)
    return levels / levels.max()


def fp4_code() -> Float[Tensor, " 16"]:
    """Build FP4's levels in the order of their codes: sign bit first, then a scrambled exponent and mantissa.

    Codes 0 and 8 are both zero.
    """
    magnitudes = [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0]
    return torch.tensor(magnitudes + [0.0] + [-m for m in magnitudes[1:]], dtype=torch.float32) / 12.0


def dynamic_code() -> Float[Tensor, " 256"]:
    """Build the signed 8-bit dynamic table, lowest level first.

    Decade d of 0..6 spans 10^(d-7) to 10^(d-6) with 2^d levels on each side, at the middles of 2^d equal parts; zero
    and one complete the 256. There is no -1: the lowest level is about -0.993.

    Source: Dettmers 2015, §2.2; Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization", §1.3.
    """
    levels = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade + 1, dtype=torch.float32)
        middles = (edges[:-1] + edges[1:]) / 2.0
        scale = 10.0 ** (decade - 6)
        levels += (scale * middles).tolist() + (-scale * middles).tolist()
    return torch.tensor(sorted(levels), dtype=torch.float32)


def code_of(quant_type: QuantType) -> Float[Tensor, " 16"]:
    """Levels of a type, in the order of its codes; a new tensor at each call.

    Raises:
        ValueError: if there is no such type.
    """
    check_quant_type(quant_type)
    return nf4_code() if quant_type == "nf4" else fp4_code()


def check_quant_type(quant_type: str) -> None:
    """Refuse a type that is not one of `QUANT_TYPES`.

    Raises:
        ValueError: naming those there are.
    """
    if quant_type not in QUANT_TYPES:
        raise ValueError(f"quant_type must be one of {', '.join(map(repr, QUANT_TYPES))}, got {quant_type!r}")


def midpoints(code: Float[Tensor, " levels"]) -> tuple[Float[Tensor, " gaps"], Int[Tensor, " levels"]]:
    """Where one level ends and the next begins, and which code each level has.

    A value belongs to the level whose number is how many midpoints lie below it; exactly on a midpoint it belongs to
    the lower level. NF4's and dynamic codes are that number; FP4's are looked up in the second result, and as FP4 has
    zero twice, one of its midpoints is zero.

    Returns:
        Midpoints, lowest first, and the code of each level, lowest first.
    """
    # FP4's two zeros are told apart by position: without `stable` their order would be the sort's choice.
    levels, order = torch.sort(code, stable=True)
    return (levels[:-1] + levels[1:]) / 2, order


@cache
def dynamic_code_of_position() -> UInt8[Tensor, " positions"]:
    """Code of the level nearest to each of 65,536 evenly spaced positions from -1 to 1: one look-up per value.

    The second level of double quantisation is looked up at such positions, not compared with midpoints: a scale close
    to a midpoint may get the neighbour's code, and bytes that are compared with others' need the same neighbour.
    """
    positions = torch.arange(65536).float() * 2.0 / 65535.0 - 1.0
    between, _ = midpoints(dynamic_code())
    return torch.bucketize(positions, between).to(torch.uint8)
