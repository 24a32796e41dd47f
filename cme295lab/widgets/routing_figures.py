"""The load of a mixture's experts over training, with and without balancing, as a static picture."""

from collections.abc import Mapping, Sequence

from cme295lab import palette
from cme295lab.widgets.picture import Picture

_COLOURS = (palette.VERMILLION, palette.ORANGE, palette.SKY, palette.BLUE, palette.GREEN)


def busiest_expert_figure(shares: Mapping[float, Sequence[float]], *, num_experts: int) -> Picture:
    """The share of the tokens that the most wanted expert gets, at each training step.

    Args:
        shares: load-balancing coefficient -> share at each step, in (0, 1].
        num_experts: for the fair share.

    Raises:
        ValueError: if there are no curves, or more than five.
    """
    if not 1 <= len(shares) <= len(_COLOURS):
        raise ValueError(f"shares must hold 1 to {len(_COLOURS)} curves, got {len(shares)}")
    last = "; ".join(f"{coefficient:g}: {values[-1]:.0%}" for coefficient, values in shares.items())
    text = f"Share of the most wanted of {num_experts} experts over training; at the end, by coefficient, {last}."
    picture = Picture(text, figsize=(8, 2.8))
    axes = picture.subplots()
    for (coefficient, values), colour in zip(sorted(shares.items()), _COLOURS, strict=False):
        axes.plot(range(1, len(values) + 1), values, color=colour, label=f"coefficient {coefficient:g}")
    axes.axhline(1 / num_experts, color=palette.GREY, linestyle="--", label="fair share")
    axes.set_ylim(0, min(1, 1.3 * max(max(values) for values in shares.values())))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel("training step")
    axes.set_ylabel("tokens of the most\nwanted expert")
    axes.legend(frameon=False, fontsize=9, ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    return picture
