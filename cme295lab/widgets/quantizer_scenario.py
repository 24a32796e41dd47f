"""A weight tensor through a quantiser: where the levels lie, what is lost, and what every other scheme would lose.

Pure functions, `quantizer_scenario` and `compare_schemes`, and the records that they return. Quantisers and errors are
those of `cme295lab.quantization` and `cme295lab.precision.block_formats`; here outliers are planted, two groups that
share a scale are picked to be looked at, and their levels are listed.

What is lost is measured on the ordinary weights only. Planted outliers are large, so they would add to the signal, and
a ratio of signal to noise would look better the more they spoil.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cme295lab.precision.block_formats import quantize_mx, quantize_nvfp4
from cme295lab.precision.formats import all_values
from cme295lab.quantization import (
    BLOCK_SIZES,
    QuantizationError,
    absmax_quantize,
    fp4,
    nf4,
    quantization_error,
    zero_point_quantize,
)
from cme295lab.quantization.integers import Granularity

INTEGER_SCHEMES = ("absmax", "zero-point")
FOUR_BIT_SCHEMES = ("nf4", "nf4 double", "fp4")
BLOCK_SCHEMES = {"mxfp4": 32, "nvfp4": 16}  # and their block sizes, which are part of the format
SCHEMES = (*INTEGER_SCHEMES, *FOUR_BIT_SCHEMES, *BLOCK_SCHEMES)
GRANULARITIES: tuple[Granularity, ...] = ("tensor", "channel", "block")
COMPARED_BITS = (2, 3, 4, 5, 6, 8)
WEIGHTS_PER_OUTLIER = 4096


@dataclass(frozen=True, kw_only=True)
class LevelGroup:
    """Weights that share a scale, and the values that they can be rounded to.

    Attributes:
        name: "all", "typical" (its largest weight is the median one) or "widest" (it holds the largest weight of all).
        first, last: which weights, in the order of memory; `last` is not one of them.
        levels: ascending.
    """

    name: str
    first: int
    last: int
    levels: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizerScenario:
    """Weights, and what came back.

    Attributes:
        weights: with the planted outliers.
        restored: quantised, and back.
        planted: which weights are planted outliers.
        scheme: one of `SCHEMES`.
        bits: of a code.
        granularity: what shares a scale.
        block_size: weights to a scale, where that is a block.
        bits_per_weight: codes and constants.
        error: of the ordinary weights.
        share_lost: how many of the ordinary weights became exactly 0, from 0 to 1.
        groups: one or two that share a scale.
    """

    weights: Float[Tensor, "rows columns"]
    restored: Float[Tensor, "rows columns"]
    planted: Bool[Tensor, "rows columns"]
    scheme: str
    bits: int
    granularity: str
    block_size: int | None
    bits_per_weight: float
    error: QuantizationError
    share_lost: float
    groups: tuple[LevelGroup, ...]


@dataclass(frozen=True, kw_only=True)
class SchemePoint:
    """What a scheme takes and gives.

    Attributes:
        family: schemes that are drawn alike, such as "absmax, blocks of 64".
        bits_per_weight: codes and constants.
        signal_to_noise_db: of the ordinary weights.
    """

    family: str
    bits_per_weight: float
    signal_to_noise_db: float


@dataclass(frozen=True, eq=False)
class _Quantized:
    restored: Tensor
    bits_per_weight: float
    group_size: int
    levels: Callable[[int], Tensor]  # of a group, by its number


def plant_outliers(
    weights: Float[Tensor, "rows columns"], size: float, *, seed: int = 0
) -> tuple[Float[Tensor, "rows columns"], Bool[Tensor, "rows columns"]]:
    """Make one weight in 4,096 a large one.

    Args:
        weights: stay as they are; a copy is changed.
        size: of the outliers, in standard deviations of the weights; 0 plants none.
        seed: of their places; every second is negative.

    Returns:
        The weights, and which of them were planted.

    Raises:
        ValueError: if the size is negative.
    """
    if size < 0:
        raise ValueError(f"size must be 0 or more, got {size}")
    planted = torch.zeros(weights.numel(), dtype=torch.bool)
    changed = weights.detach().float().flatten().clone()
    if size:
        count = max(1, weights.numel() // WEIGHTS_PER_OUTLIER)
        places = torch.randperm(weights.numel(), generator=torch.Generator().manual_seed(seed))[:count]
        signs = 1 - 2 * (torch.arange(count) % 2)
        changed[places] = size * weights.detach().float().std() * signs
        planted[places] = True
    return changed.view(weights.shape), planted.view(weights.shape)


def quantizer_scenario(
    weights: Float[Tensor, "rows columns"],
    *,
    scheme: str = "absmax",
    bits: int = 4,
    granularity: str = "block",
    block_size: int = 64,
    outlier: float = 0.0,
) -> QuantizerScenario:
    """Quantise a matrix, and take it back.

    Args:
        weights: two axes; a row is a channel.
        scheme: one of `SCHEMES`.
        bits: of the integers, 2 to 8; the other schemes have 4.
        granularity: "tensor", "channel" or "block", for the integers; the other schemes have blocks.
        block_size: weights to a scale, for blocks; mxfp4 has 32 and nvfp4 16, whatever is said here.
        outlier: size of the planted outliers, in standard deviations; 0 plants none.

    Raises:
        ValueError: if a setting is none of those allowed.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    sharing = next((one for one in GRANULARITIES if one == granularity), None)
    if sharing is None:
        raise ValueError(f"granularity must be one of {', '.join(GRANULARITIES)}, got {granularity!r}")
    if scheme not in INTEGER_SCHEMES:
        bits, sharing, block_size = 4, "block", BLOCK_SCHEMES.get(scheme, block_size)
    changed, planted = plant_outliers(weights, outlier)
    done = _quantize(changed, scheme, bits, sharing, block_size)
    return QuantizerScenario(
        weights=changed,
        restored=done.restored,
        planted=planted,
        scheme=scheme,
        bits=bits,
        granularity=sharing,
        block_size=block_size if sharing == "block" else None,
        bits_per_weight=done.bits_per_weight,
        error=quantization_error(changed[~planted], done.restored[~planted]),
        share_lost=float((done.restored[~planted] == 0).float().mean()),
        groups=_groups(changed, done),
    )


def compare_schemes(
    weights: Float[Tensor, "rows columns"], *, block_size: int = 64, outlier: float = 0.0
) -> list[SchemePoint]:
    """What each scheme takes and gives on the same weights.

    Args:
        weights: two axes.
        block_size: weights to a scale, for schemes that leave it open; one of `BLOCK_SIZES`.
        outlier: size of the planted outliers, in standard deviations.

    Raises:
        ValueError: if the block size is none of those allowed, or the size is negative.
    """
    if block_size not in BLOCK_SIZES:
        raise ValueError(f"block_size must be one of {', '.join(map(str, BLOCK_SIZES))}, got {block_size}")
    changed, planted = plant_outliers(weights, outlier)
    runs: list[tuple[str, str, int, Granularity]]
    runs = [("absmax, one scale", "absmax", bits, "tensor") for bits in COMPARED_BITS]
    runs += [(f"{scheme}, blocks", scheme, bits, "block") for scheme in INTEGER_SCHEMES for bits in COMPARED_BITS]
    runs += [(scheme, scheme, 4, "block") for scheme in (*FOUR_BIT_SCHEMES, *BLOCK_SCHEMES)]
    points = []
    for family, scheme, bits, granularity in runs:
        done = _quantize(changed, scheme, bits, granularity, BLOCK_SCHEMES.get(scheme, block_size))
        error = quantization_error(changed[~planted], done.restored[~planted])
        points.append(SchemePoint(family=family, bits_per_weight=done.bits_per_weight,
                                  signal_to_noise_db=error.signal_to_noise_db))  # fmt: skip
    return points


def _quantize(weights: Tensor, scheme: str, bits: int, sharing: Granularity, block_size: int) -> _Quantized:
    if scheme in INTEGER_SCHEMES:
        return _quantize_to_integers(weights, scheme, bits, sharing, block_size)
    if scheme in FOUR_BIT_SCHEMES:
        kind = fp4 if scheme == "fp4" else nf4
        four = kind.quantize(weights, block_size=block_size, double_quant="double" in scheme)
        code, scales = four.code.sort().values, four.scales()
        return _Quantized(four.dequantize(), four.bits_per_parameter, block_size, lambda group: code * scales[group])
    flat = weights.flatten()  # blocks in the order of memory, as the other schemes have them
    blocks = quantize_mx(flat) if scheme == "mxfp4" else quantize_nvfp4(flat)
    element, factors = all_values(blocks.element).unique(), blocks.scale_of_values()[:: blocks.block_size]
    restored = blocks.dequantize().view(weights.shape)
    return _Quantized(restored, blocks.bits_per_value, block_size, lambda group: element * factors[group])


def _quantize_to_integers(weights: Tensor, scheme: str, bits: int, sharing: Granularity, block_size: int) -> _Quantized:
    quantize = absmax_quantize if scheme == "absmax" else zero_point_quantize
    done = quantize(weights, bits=bits, granularity=sharing, block_size=block_size if sharing == "block" else None)
    smallest = -(2 ** (bits - 1)) + (scheme == "absmax")
    codes = torch.arange(smallest, 2 ** (bits - 1))
    scales = done.scale.reshape(-1)
    zeros = torch.zeros_like(scales) if done.zero_point is None else done.zero_point.reshape(-1)
    sizes = {"tensor": weights.numel(), "channel": weights.shape[1], "block": block_size}
    return _Quantized(
        done.dequantize(),
        done.bits_per_value,
        sizes[sharing],
        lambda group: (codes - zeros[group]) * scales[group],
    )


def _groups(weights: Tensor, done: _Quantized) -> tuple[LevelGroup, ...]:
    flat = weights.flatten().abs()
    if done.group_size >= len(flat):
        return (_group("all", 0, flat, done),)
    missing = -len(flat) % done.group_size
    largest = torch.nn.functional.pad(flat, (0, missing)).view(-1, done.group_size).amax(1)
    typical = int(largest.argsort()[len(largest) // 2])
    return _group("typical", typical, flat, done), _group("widest", int(largest.argmax()), flat, done)


def _group(name: str, number: int, flat: Tensor, done: _Quantized) -> LevelGroup:
    first = number * done.group_size
    levels = tuple(done.levels(number).double().tolist())
    return LevelGroup(name=name, first=first, last=min(first + done.group_size, len(flat)), levels=levels)
