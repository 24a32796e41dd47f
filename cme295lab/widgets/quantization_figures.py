"""A model's perplexity against the bits of its weights, and NF4's levels among weights, as static pictures."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from cme295lab import palette
from cme295lab.quantization import nf4
from cme295lab.widgets.picture import Picture

_RUINED = 3.0  # times the best perplexity: above this the axis ends, and an arrow says how much it is
_NAMED = 1.05  # times the best: from here on there is room for names beside the points
_LOOKS = {"original": (palette.GREY, "o"), "nf4": (palette.VERMILLION, "D"), "fp4": (palette.GREEN, "^"),
          "mxfp4": (palette.PURPLE, "P"), "nvfp4": (palette.ORANGE, "X")}  # fmt: skip


class Measured(Protocol):
    """A row of `cme295lab.quantization.quality_against_bits`."""

    @property
    def scheme(self) -> str: ...
    @property
    def bits_per_weight(self) -> float: ...
    @property
    def perplexity(self) -> float: ...


def quality_figure(rows: Sequence[Measured]) -> Picture:
    """Perplexity over bits per weight, a point for each scheme.

    Args:
        rows: of `quality_against_bits`.

    Raises:
        ValueError: if there is none.
    """
    if not rows:
        raise ValueError("rows must hold at least one scheme that was measured")
    best = min(row.perplexity for row in rows)
    said = "; ".join(f"{row.scheme} {row.bits_per_weight:.2f} bits {row.perplexity:.4g}" for row in rows)
    picture = Picture(f"Perplexity against bits per weight. {said}.", figsize=(8.4, 3.9))
    axes = picture.subplots()
    for row in rows:
        colour, marker = _LOOKS.get(row.scheme.split(",")[0], (palette.BLUE, "s"))
        height = min(row.perplexity / best, _RUINED)
        label = f"{row.scheme}: {row.perplexity / best:.3g} ×"
        filled, above = ("none", 1) if "tensor" in row.scheme else ("full", -9)  # one scale for many, or for few
        axes.plot(row.bits_per_weight, height, marker, color=colour, label=label, markersize=8, fillstyle=filled)
        if height > _NAMED:
            place = row.bits_per_weight, height
            axes.annotate(row.scheme, place, (8, above), textcoords="offset points", fontsize=8)
        if height == _RUINED:
            axes.annotate("", (row.bits_per_weight, _RUINED * 1.08), (row.bits_per_weight, _RUINED * 1.01),
                          arrowprops={"arrowstyle": "->", "color": colour}, annotation_clip=False)  # fmt: skip
    axes.axhline(1, color=palette.PALE, zorder=0)
    axes.set(xscale="log", yscale="log", xlabel="bits per weight", ylabel="perplexity, times the best")
    axes.set_xticks([2, 3, 4, 6, 8, 16, 32], labels=["2", "3", "4", "6", "8", "16", "32"], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_yticks([1, 1.25, 1.5, 2, 3], labels=["1", "1.25", "1.5", "2", "3"], minor=False)
    axes.set_yticks([], minor=True)
    worst = max(row.perplexity for row in rows) / best
    axes.set_ylim(0.97, 1.12 * min(max(worst, 1.25), _RUINED))
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    return picture


def codebook_figure(weights: Tensor, *, block_size: int = 64) -> Picture:
    """NF4's levels among weights that are divided by the largest of their block, and how many weights each level gets.

    Args:
        weights: quantised in blocks of `block_size`, in their order.
        block_size: weights to a scale.

    Raises:
        ValueError: if there is no weight, or `block_size` is none of those allowed.
    """
    if not weights.numel():
        raise ValueError("weights must hold at least one number")
    quantized = nf4.quantize(weights, block_size=block_size)
    levels = nf4.CODE.tolist()
    codes = torch.stack((quantized.packed >> 4, quantized.packed & 15)).flatten()[: weights.numel()].long()
    shares = (torch.bincount(codes, minlength=16) / codes.numel()).tolist()
    assert isinstance(quantized.absmax, Tensor)
    scales = quantized.absmax.repeat_interleave(block_size)[: weights.numel()].clamp_min(torch.finfo().tiny)
    said = ", ".join(f"{share:.1%}" for share in shares)
    picture = Picture(f"NF4's sixteen levels, blocks of {block_size}; from the lowest level on, shares of the weights: "
                      f"{said}; equal would be 6.2%.", figsize=(9, 3))  # fmt: skip
    density, bars = picture.subplots(1, 2, width_ratios=(1.4, 1))
    density.hist((weights.flatten() / scales).numpy(), bins=121, range=(-1, 1), density=True, color=palette.SKY)
    density.vlines(levels, 0, density.get_ylim()[1], color=palette.VERMILLION, linewidth=1)
    density.set(xlabel="weight / largest of its block; lines: levels", ylabel="density")
    bars.bar(range(16), [100 * share for share in shares], color=palette.BLUE)
    bars.axhline(100 / 16, color=palette.GREY, linewidth=1)
    bars.set(xlabel="level, from the lowest (line: equal shares)", ylabel="% of the weights")
    for axes in (density, bars):
        axes.spines[["top", "right"]].set_visible(False)
    return picture
