"""The quantiser explorer: weights, the levels they are rounded to, and what an outlier does to both."""

import math
from collections.abc import Mapping
from typing import Any

import ipywidgets
import numpy as np
import torch
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from cme295lab import palette
from cme295lab.quantization import BLOCK_SIZES
from cme295lab.widgets.controls import (
    arrange,
    choice_menu,
    choice_slider,
    explorer_style,
    live_plot,
    summary_table,
    watch,
)
from cme295lab.widgets.picture import Picture
from cme295lab.widgets.quantizer_scenario import (
    GRANULARITIES,
    INTEGER_SCHEMES,
    SCHEMES,
    LevelGroup,
    QuantizerScenario,
    SchemePoint,
    compare_schemes,
    quantizer_scenario,
)

_OUTLIERS = (0, 5, 8, 12, 20, 35, 50)  # standard deviations
_NUM_BINS = 160
_STRIP_Y = {"all": 0.0, "typical": 1.0, "widest": 0.0}
_LOOKS = (  # of the comparison: start of the family's name, colour, plotly's symbol, matplotlib's
    ("absmax, one scale", palette.GREY, "circle-open", "o"),
    ("absmax, blocks", palette.BLUE, "circle", "o"),
    ("zero-point", palette.SKY, "square", "s"),
    ("nf4", palette.VERMILLION, "diamond", "D"),
    ("nf4 double", palette.VERMILLION, "diamond-open", "d"),
    ("fp4", palette.GREEN, "triangle-up", "^"),
    ("mxfp4", palette.PURPLE, "cross", "P"),
    ("nvfp4", palette.ORANGE, "x", "X"),
)


class QuantizerExplorer(ipywidgets.VBox):
    """Menus for the weights and the scheme, sliders for bits, block size and outliers; a histogram with its levels.

    All figures come from `quantizer_scenario` and `compare_schemes`. Every control is in `controls` by name and may be
    set from Python; one that a scheme does not ask for is greyed.

    Args:
        tensors: matrices of weights by name; normal random numbers if None.
        scheme: one of `SCHEMES`.
        bits: of the integer schemes.
        granularity: "tensor", "channel" or "block".
        block_size: weights to a scale.
        outlier: size of the planted outliers, in standard deviations.

    Raises:
        ValueError: if there is no tensor, one is not a matrix, or a value is none that its control offers.
    """

    def __init__(
        self,
        tensors: Mapping[str, Float[Tensor, "_ _"]] | None = None,
        *,
        scheme: str = "absmax",
        bits: int = 4,
        granularity: str = "block",
        block_size: int = 64,
        outlier: float = 0,
    ) -> None:
        self.tensors = {"normal": example_weights()} if tensors is None else dict(tensors)
        if not self.tensors or any(tensor.ndim != 2 for tensor in self.tensors.values()):
            shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
            raise ValueError(f"tensors must name one or more matrices, got {shapes}")
        outliers = [("none" if size == 0 else f"{size} σ", size) for size in _OUTLIERS]
        sizes = [(str(size), size) for size in BLOCK_SIZES]
        bit_choices = [(str(number), number) for number in range(2, 9)]
        names, first = list(self.tensors), next(iter(self.tensors))
        size: dict[str, Any] = {"width": "265px", "label_width": "76px"}  # three columns on a notebook's page
        self.controls: dict[str, Any] = {
            "weights": choice_menu("quantizer", "weights", names, first, label="weights", **size),
            "scheme": choice_menu("quantizer", "scheme", SCHEMES, scheme, label="scheme", **size),
            "granularity": choice_menu(
                "quantizer", "granularity", GRANULARITIES, granularity, label="scale per", **size
            ),
            "bits": choice_slider("quantizer", "bits", bit_choices, bits, label="bits", **size),
            "block_size": choice_slider("quantizer", "block_size", sizes, block_size, label="block size", **size),
            "outlier": choice_slider("quantizer", "outlier", outliers, outlier, label="outliers", **size),
        }
        self._compared: dict[tuple[Any, ...], list[SchemePoint]] = {}  # by what they depend on: bits do not change them
        self._text = ipywidgets.HTML()
        self.plot = _empty_plot()
        self._redraw()
        watch(self.controls, self._redraw)
        columns = (("weights", "outlier"), ("scheme", "bits"), ("granularity", "block_size"))
        super().__init__([explorer_style("quantizer"), arrange(self.controls, *columns), self._text, self.plot])
        self.add_class("quantizer-explorer")

    @property
    def scenario(self) -> QuantizerScenario:
        """What the controls say, with all that follows."""
        values = {name: control.value for name, control in self.controls.items()}
        return quantizer_scenario(self.tensors[values.pop("weights")], **values)

    @property
    def points(self) -> list[SchemePoint]:
        """All schemes on these weights."""
        key = tuple(self.controls[name].value for name in ("weights", "block_size", "outlier"))
        if key not in self._compared:
            self._compared[key] = compare_schemes(self.tensors[key[0]], block_size=key[1], outlier=key[2])
        return self._compared[key]

    def figure(self) -> Picture:
        """The current view as a static picture, for pages where no kernel runs."""
        return draw_quantizer(self.scenario, self.points)

    def __repr__(self) -> str:
        """One line, as the widget's text alternative."""
        return f"QuantizerExplorer({headline(self.scenario)})"

    def _redraw(self, _: Any = None) -> None:
        scenario = self.scenario
        whole = self.controls["scheme"].value in INTEGER_SCHEMES
        self.controls["bits"].disabled = self.controls["granularity"].disabled = not whole
        self.controls["block_size"].disabled = (
            scenario.granularity != "block" or scenario.block_size != self.controls["block_size"].value
        )
        centres, counts = histogram(scenario)
        with self.plot.batch_update():
            bars, levels, widest, here = self.plot.data[:4]
            bars.update(x=centres, y=counts, width=float(centres[1] - centres[0]))
            for trace, names in ((levels, ("all", "typical")), (widest, ("widest",))):
                shown = [group for group in scenario.groups if group.name in names]
                trace.update(x=[level for group in shown for level in group.levels],
                             y=[_STRIP_Y[group.name] for group in shown for _ in group.levels])  # fmt: skip
            here.update(x=[scenario.bits_per_weight], y=[scenario.error.signal_to_noise_db])
            for trace, (name, *_) in zip(self.plot.data[4:], _LOOKS, strict=True):
                found = _of_family(self.points, name)
                trace.update(x=[point.bits_per_weight for point in found],
                             y=[point.signal_to_noise_db for point in found])  # fmt: skip
            ticks = [group.name for group in scenario.groups]
            self.plot.layout.yaxis3.update(tickvals=[_STRIP_Y[name] for name in ticks], ticktext=ticks)
        self._text.value = summary_html(scenario)


def example_weights() -> Float[Tensor, "256 256"]:
    """Normal random numbers, as small as weights are."""
    return torch.randn(256, 256, generator=torch.Generator().manual_seed(0)) * 0.02


def histogram(scenario: QuantizerScenario) -> tuple[Any, Any]:
    """Centres of the bins, from the smallest weight to the largest, and how many weights are in each."""
    counts, edges = np.histogram(scenario.weights.numpy(), bins=_NUM_BINS)
    return (edges[1:] + edges[:-1]) / 2, counts


def draw_quantizer(scenario: QuantizerScenario, points: list[SchemePoint]) -> Picture:
    """Histogram over the levels of one or two groups; beside it, all schemes."""
    picture = Picture(headline(scenario) + ".", figsize=(9.4, 3.8))
    grid = picture.add_gridspec(2, 2, width_ratios=(1.4, 1), height_ratios=(3, 1))
    top, strip, compared = (picture.add_subplot(grid[place]) for place in ((0, 0), (1, 0), (slice(None), 1)))
    centres, counts = histogram(scenario)
    top.bar(centres, counts, centres[1] - centres[0], color=palette.SKY)
    top.set(yscale="log", ylabel="weights", xticklabels=[], ylim=(0.7, None))
    for group in scenario.groups:
        strip.plot(group.levels, [_STRIP_Y[group.name]] * len(group.levels), "|", markersize=13, color=_colour(group))
    strip.set(yticks=[_STRIP_Y[group.name] for group in scenario.groups], ylim=(-0.6, 1.6), xlim=top.get_xlim())
    strip.set(yticklabels=[group.name for group in scenario.groups], xlabel="weight; below: levels")
    for name, colour, _, marker in _LOOKS:
        found = _of_family(points, name)
        filled = colour if "double" not in name and "one" not in name else "none"
        compared.plot([point.bits_per_weight for point in found], [point.signal_to_noise_db for point in found],
                      marker=marker, markerfacecolor=filled, color=colour, label=name, markersize=5)  # fmt: skip
    compared.plot(scenario.bits_per_weight, scenario.error.signal_to_noise_db, "o", markersize=14, fillstyle="none",
                  color="black")  # fmt: skip
    compared.set(xlabel="bits per weight", ylabel="signal to noise, dB")
    compared.legend(frameon=False, fontsize=7)
    for axes in (top, strip, compared):
        axes.spines[["top", "right"]].set_visible(False)
    return picture


def headline(scenario: QuantizerScenario) -> str:
    """The scheme, its price and its loss."""
    name = scenario.scheme if scenario.scheme not in INTEGER_SCHEMES else f"{scenario.scheme}, {scenario.bits} bits"
    sharing = {"tensor": "one scale", "channel": "a scale per row", "block": f"blocks of {scenario.block_size}"}
    return (
        f"{name}, {sharing[scenario.granularity]}: {scenario.bits_per_weight:.3f} bits per weight, "
        f"{decibels(scenario.error.signal_to_noise_db)} signal to noise"
    )


def summary_html(scenario: QuantizerScenario) -> str:
    """The headline, and what was lost."""
    std = float(scenario.weights[~scenario.planted].std())
    groups = "; ".join(f"{group.name} {_range(group)}" for group in scenario.groups)
    error = scenario.error
    row = [f"{error.mse:.3g}", f"{error.rmse / std:.2%} of σ", f"{error.max_abs / std:.3g} σ",
           f"{scenario.share_lost:.1%}", f"{int(scenario.planted.sum())}", groups]  # fmt: skip
    head = ("MSE", "error, typical", "error, worst", "became 0", "outliers", "levels from, to")
    return summary_table("quantizer", headline(scenario), head, [row])


def decibels(value: float) -> str:
    """A ratio of signal to noise."""
    return f"{value:.1f} dB" if math.isfinite(value) else "∞ dB"


def _range(group: LevelGroup) -> str:
    return f"{group.levels[0]:.3g} … {group.levels[-1]:.3g}"


def _colour(group: LevelGroup) -> str:
    return palette.VERMILLION if group.name == "widest" else palette.BLUE


def _of_family(points: list[SchemePoint], name: str) -> list[SchemePoint]:
    """Points whose family is the name, or begins with it up to a comma."""
    return [point for point in points if point.family == name or point.family.startswith(f"{name},")]


def _empty_plot() -> Any:
    places = [[{}, {"rowspan": 2}], [{}, None]]
    plot = make_subplots(2, 2, column_widths=(0.58, 0.42), row_heights=(0.76, 0.24), horizontal_spacing=0.1,
                         vertical_spacing=0.06, shared_xaxes=True, specs=places)  # fmt: skip
    plot.add_bar(marker={"color": palette.SKY, "line": {"width": 0}}, showlegend=False, row=1, col=1,
                 hovertemplate="%{y:,} weights at %{x:.4f}<extra></extra>")  # fmt: skip
    for name, colour in (("typical", palette.BLUE), ("widest", palette.VERMILLION)):
        ticks = {"symbol": "line-ns", "size": 14, "line": {"width": 1.3, "color": colour}}
        plot.add_scatter(mode="markers", marker=ticks, name=f"levels, {name}", showlegend=False,
                         hovertemplate="%{x:.5f}", row=2, col=1)  # fmt: skip
    ring = {"symbol": "circle-open", "size": 17, "color": palette.GREY, "line": {"width": 3}}
    plot.add_scatter(mode="markers", marker=ring, name="chosen", showlegend=False, hoverinfo="skip", row=1, col=2)
    for name, colour, symbol, _ in _LOOKS:
        marker, line = {"symbol": symbol, "size": 8, "color": colour}, {"width": 1, "color": colour}
        plot.add_scatter(mode="lines+markers", marker=marker, line=line, name=name,
                         hovertemplate="%{x:.3f} bits: %{y:.1f} dB", row=1, col=2)  # fmt: skip
    plot.update_yaxes(type="log", title_text="weights", row=1, col=1, dtick=1)
    plot.update_yaxes(range=[-0.6, 1.6], showgrid=False, row=2, col=1)
    plot.update_xaxes(title_text="weight; below: levels of a group", row=2, col=1)
    plot.update_xaxes(title_text="bits per weight", row=1, col=2)
    plot.update_yaxes(title_text="signal to noise, dB", row=1, col=2)
    margin, legend = {"l": 60, "r": 10, "t": 10, "b": 40}, {"font": {"size": 10}, "x": 0.65, "y": 1}
    return live_plot(plot, width=850, height=400, margin=margin, bargap=0, legend=legend)
