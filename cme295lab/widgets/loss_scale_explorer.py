"""The loss-scale explorer: a histogram of a model's gradients that a slider pushes through a format's range."""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import ipywidgets
import plotly.graph_objects as go
from torch import Tensor, nn

from cme295lab import palette
from cme295lab.precision.underflow import named_gradients
from cme295lab.widgets.controls import (
    arrange,
    choice_menu,
    choice_slider,
    explorer_style,
    live_plot,
    summary_table,
    watch,
)
from cme295lab.widgets.loss_scale_scenario import ALL_TENSORS, FORMATS, LossScaleScenario, loss_scale_scenario
from cme295lab.widgets.picture import Picture

_POWERS = range(-4, 33)
_LOWEST, _HIGHEST = -48, 24  # binades that the picture shows
_ZONES = (("flushed to zero", palette.VERMILLION), ("subnormal: digits lost", palette.ORANGE),
          ("kept", palette.GREEN), ("infinite", palette.VERMILLION))  # fmt: skip


class LossScaleExplorer(ipywidgets.VBox):
    """A slider for the loss scale, menus for the format and the tensor; bars move, the format's range stays.

    All figures come from `loss_scale_scenario`. Every control is in `controls` by name and may be set from Python.

    Args:
        gradients: a model after `backward()`, or name -> gradient; fp32, not scaled.
        format: "fp16", "bf16", "fp8_e5m2" or "fp8_e4m3fn".
        power: k of the loss scale 2^k.

    Raises:
        ValueError: if there are no gradients, or a value is none of the choices.
    """

    def __init__(
        self, gradients: nn.Module | Mapping[str, Tensor], *, format: str = "fp16", power: int = 0
    ) -> None:
        self.gradients = {name: gradient.clone() for name, gradient in named_gradients(gradients)}
        scales = [(f"2^{k} = {2.0**k:,.10g}", k) for k in _POWERS]
        self.controls: dict[str, Any] = {
            "power": choice_slider("lossscale", "power", scales, power, label="loss scale", width="460px"),
            "format": choice_menu("lossscale", "format", FORMATS, format, label="format"),
            "tensor": choice_menu("lossscale", "tensor", (ALL_TENSORS, *self.gradients), ALL_TENSORS,
                                  label="gradients of", width="360px"),
        }  # fmt: skip
        self._text = ipywidgets.HTML()
        self.plot = self._empty_plot()
        self._redraw()
        watch(self.controls, self._redraw)
        columns = (("power", "tensor"), ("format",))
        super().__init__([explorer_style("lossscale"), arrange(self.controls, *columns), self._text, self.plot])
        self.add_class("lossscale-explorer")

    @property
    def scenario(self) -> LossScaleScenario:
        """What the controls say, with all that follows."""
        values = {name: control.value for name, control in self.controls.items()}
        return loss_scale_scenario(gradients=self.gradients, **values)

    def figure(self) -> Picture:
        """The current state as a static picture, for pages where no kernel runs."""
        scenario = self.scenario
        picture = Picture(summary(scenario), figsize=(8.5, 3.2))
        axes = picture.subplots(1, 1)
        axes.bar(*bars(scenario), color=palette.BLUE, width=0.9)
        for (name, colour), (low, high) in zip(_ZONES, zones(scenario), strict=True):
            axes.axvspan(low, high, color=colour, alpha=0.14, linewidth=0)
            if high - low > 5:
                axes.text((low + high) / 2, 1.01, name, transform=axes.get_xaxis_transform(), ha="center", fontsize=8)
        axes.set(xlim=(_LOWEST, _HIGHEST), xlabel="log₂ |loss scale × gradient|", ylabel="share of values, %")
        axes.spines[["top", "right"]].set_visible(False)
        return picture

    def __repr__(self) -> str:
        """One line, as the widget's text alternative."""
        return f"LossScaleExplorer({summary(self.scenario)})"

    def _redraw(self, _: Any = None) -> None:
        scenario = self.scenario
        with self.plot.batch_update():
            self.plot.data[0].x, self.plot.data[0].y = bars(scenario)
            for shape, note, (low, high) in zip(
                self.plot.layout.shapes, self.plot.layout.annotations, zones(scenario), strict=True
            ):
                shape.x0, shape.x1 = low, high
                note.x, note.visible = (low + high) / 2, high - low > 5
        self._text.value = summary_html(scenario)

    def _empty_plot(self) -> Any:
        plot = go.Figure()
        plot.add_bar(marker_color=palette.BLUE, hovertemplate="2^%{x} and above: %{y:.2f} %<extra></extra>")
        for name, colour in _ZONES:
            plot.add_vrect(x0=0, x1=1, fillcolor=colour, opacity=0.14, line_width=0, layer="below")
            plot.add_annotation(x=0, y=1.07, yref="paper", text=name, showarrow=False, font={"size": 11})
        plot.update_xaxes(title_text="log₂ |loss scale × gradient|", range=(_LOWEST, _HIGHEST), dtick=8)
        plot.update_yaxes(title_text="share of values, %", rangemode="tozero")
        return live_plot(plot, width=850, height=340, showlegend=False, bargap=0.1)


def bars(scenario: LossScaleScenario) -> tuple[list[float], list[float]]:
    """Middle of each binade, and the share of all values in it, per cent; what lies outside is in the outermost."""
    shares: dict[int, float] = {}
    histogram = scenario.histogram
    for exponent, count in zip(histogram.exponents, histogram.counts, strict=True):
        if not count:
            continue
        shown = min(max(exponent, _LOWEST), _HIGHEST - 1)
        shares[shown] = shares.get(shown, 0.0) + 100 * count / histogram.num_values
    return [exponent + 0.5 for exponent in shares], list(shares.values())


def zones(scenario: LossScaleScenario) -> list[tuple[float, float]]:
    """From where to where each zone reaches, in powers of two, within the picture."""
    inner = (scenario.flush_exponent, scenario.normal_exponent, scenario.overflow_exponent)
    edges = [_LOWEST, *(min(max(edge, _LOWEST), _HIGHEST) for edge in inner), _HIGHEST]
    return list(pairwise(edges))


def headline(scenario: LossScaleScenario) -> str:
    """What a training step would make of it."""
    if scenario.largest_power is None:
        return "All gradients are zero: no scale changes that"
    if scenario.step_is_skipped:
        return f"{scenario.row.num_overflowed:,} values are infinite: the step is skipped and the scale halved"
    room = scenario.largest_power - round(math.log2(scenario.loss_scale))
    return f"{scenario.row.flushed:.2%} of the gradients are lost to zero; room for {room} more doublings"


def summary(scenario: LossScaleScenario) -> str:
    """The state in one line of text."""
    row = scenario.row
    return (
        f"{scenario.format.name}, loss scale {scenario.loss_scale:,.10g}: {row.flushed:.2%} flushed to zero, "
        f"{row.subnormal:.2%} subnormal, {row.overflowed:.2%} infinite, {row.zero:.2%} zero at any scale"
    )


def summary_html(scenario: LossScaleScenario) -> str:
    """The headline, and the shares beside those without scaling."""
    head = ("", "zero already", "flushed to zero", "subnormal", "infinite")
    rows = []
    for name, row in (("loss scale 1", scenario.unscaled), (f"{scenario.loss_scale:,.10g}", scenario.row)):
        shares = (row.zero, row.flushed, row.subnormal, row.overflowed)
        rows.append((name, *(f"{share:.3%}" for share in shares)))
    return summary_table("lossscale", headline(scenario), head, rows)

