"""The number line: where the values of 4, 6 and 8 bits lie, and how far apart those of 16 bits are."""

import math
from collections.abc import Sequence
from typing import Any

import ipywidgets
import plotly.graph_objects as go

from cme295lab import palette
from cme295lab.widgets.controls import (
    arrange,
    choice_menu,
    choice_slider,
    explorer_style,
    live_plot,
    summary_table,
    watch,
)
from cme295lab.widgets.number_line_scenario import (
    SMALL_FORMATS,
    NumberLineScenario,
    number_line_scenario,
    spacings,
)
from cme295lab.widgets.picture import Picture

_REACHES = tuple(2.0**power for power in range(-4, 10))  # half the width of the view
_STEPS = 200  # of the number's slider, on each side of 0
_LOG_OCTAVES = 12  # of a logarithmic view
_AXES = ("linear", "logarithmic")


class NumberLine(ipywidgets.VBox):
    """Formats of 4, 6 and 8 bits below each other on one axis, and a number to drag along it.

    All figures come from `number_line_scenario`. Every control is in `controls` by name and may be set from Python.

    Args:
        number: where it stands at first, in hundredths of half the view: -200 to 200.
        reach: half the width of the view, a power of two from 1/16 to 512.
        axis: "linear" or "logarithmic" (then only positive values are seen).
        formats: names of `FORMATS` of at most 10 bits.

    Raises:
        ValueError: if a value is none that its control offers, or a format is too large to draw.
    """

    def __init__(
        self, *, number: int = 42, reach: float = 8.0, axis: str = "linear", formats: Sequence[str] = SMALL_FORMATS
    ) -> None:
        self.formats = tuple(formats)
        reaches = [(f"±{value:g}", value) for value in _REACHES]
        places = [(f"{place / _STEPS:+.3g}", place) for place in range(-_STEPS, _STEPS + 1)]
        self.controls: dict[str, Any] = {
            "number": choice_slider("line", "number", places, number, label="number", width="350px"),
            "reach": choice_slider("line", "reach", reaches, reach, label="view", width="240px", label_width="50px"),
            "axis": choice_menu("line", "axis", _AXES, axis, label="axis", width="180px", label_width="50px"),
        }
        self.controls["number"].readout = False  # the text below says it in full
        self._text = ipywidgets.HTML()
        self.plot = self._empty_plot()
        self._redraw()
        watch(self.controls, self._redraw)
        columns = (("number",), ("reach",), ("axis",))
        super().__init__([explorer_style("line"), arrange(self.controls, *columns), self._text, self.plot])
        self.add_class("line-explorer")

    @property
    def scenario(self) -> NumberLineScenario:
        """What the controls say, with all that follows."""
        reach, place = self.controls["reach"].value, self.controls["number"].value / _STEPS
        if self.controls["axis"].value == "linear":
            return number_line_scenario(number=reach * place, low=-reach, high=reach, formats=self.formats)
        low = reach * 2.0**-_LOG_OCTAVES  # the slider's two ends are those of the view here, too
        number = low * 2.0 ** (_LOG_OCTAVES * (place + 1) / 2)
        return number_line_scenario(number=number, low=low, high=reach, formats=self.formats)

    def figure(self) -> Picture:
        """The current view as a static picture, for pages where no kernel runs."""
        return draw_number_line(self.scenario, logarithmic=self.controls["axis"].value != "linear")

    def __repr__(self) -> str:
        """One line, as the widget's text alternative."""
        return f"NumberLine({summary(self.scenario)})"

    def _empty_plot(self) -> Any:
        plot = go.Figure()
        for place, name in enumerate(self.formats):
            ticks = {"symbol": "line-ns", "size": 15, "line": {"width": 1.5, "color": palette.BLUE}}
            plot.add_scatter(mode="markers", marker=ticks, name=name, y=[place], x=[None],
                             hovertemplate="%{x:.6g}", showlegend=False)  # fmt: skip
        star = {"symbol": "diamond", "size": 11, "color": palette.VERMILLION}
        plot.add_scatter(mode="markers", marker=star, name="rounded", showlegend=False, hovertemplate="%{x:.6g}")
        plot.add_scatter(mode="lines", line={"color": palette.ORANGE, "width": 2}, hoverinfo="skip", showlegend=False)
        plot.update_yaxes(tickvals=list(range(len(self.formats))), ticktext=list(self.formats), showgrid=False,
                          range=[len(self.formats) - 0.4, -0.6])  # fmt: skip
        margin = {"l": 95, "r": 10, "t": 8, "b": 35}
        return live_plot(plot, width=850, height=60 + 44 * len(self.formats), margin=margin)

    def _redraw(self, _: Any = None) -> None:
        scenario = self.scenario
        logarithmic = self.controls["axis"].value != "linear"
        ends = [scenario.low, scenario.high]
        ends = [math.log10(end) for end in ends] if logarithmic else ends
        margin = 0.02 * (ends[1] - ends[0])
        with self.plot.batch_update():
            self.plot.layout.xaxis.update(type="log" if logarithmic else "linear",
                                           range=[ends[0] - margin, ends[1] + margin])
            for place, row in enumerate(scenario.rows):
                self.plot.data[place].update(x=row.values, y=[place] * len(row.values))
            star, line = self.plot.data[len(scenario.rows) :]
            star.update(x=[row.rounded for row in scenario.rows], y=list(range(len(scenario.rows))))
            line.update(x=[scenario.number] * 2, y=[-0.6, len(scenario.rows) - 0.4])
        self._text.value = summary_html(scenario)


def number_line_figure(
    formats: Sequence[str] = SMALL_FORMATS, *, low: float = -6.0, high: float = 6.0, number: float = math.nan
) -> Picture:
    """The values of small formats between two ends, a row each.

    Args:
        formats: names of `FORMATS` of at most 10 bits.
        low, high: ends of the view.
        number: if given, it is drawn, too, with what each format rounds it to.

    Raises:
        ValueError: if the ends are in disorder or a format is too large to draw.
    """
    return draw_number_line(number_line_scenario(number=number, low=low, high=high, formats=formats))


def spacing_figure(
    formats: Sequence[str] = ("fp32", "fp16", "bf16", "fp8_e4m3fn", "fp4_e2m1"),
    *, low: float = 2.0**-30, high: float = 2.0**20,
) -> Picture:  # fmt: skip
    """The distance between neighbours over the value, both on logarithmic axes: range against precision.

    Args:
        formats: names of `FORMATS`.
        low, high: ends of the view, both positive.

    Raises:
        ValueError: if the ends are in disorder or not positive.
    """
    said, lines = [], []
    for name in formats:
        powers, gaps = spacings(name, low=low, high=high)
        if powers:
            lines.append((name, powers, gaps))
            said.append(f"{name} from {powers[0]:.3g} (next {gaps[0]:.3g} away) to {powers[-1]:.3g} ({gaps[-1]:.3g})")
    picture = Picture("Distance to the next value. " + "; ".join(said) + ".", figsize=(7.4, 3.8))
    axes = picture.subplots()
    looks = zip(lines, (palette.GREY, palette.BLUE, palette.ORANGE, palette.GREEN, palette.VERMILLION, palette.PURPLE),
                "o^sDvP", strict=False)  # fmt: skip
    for (name, powers, gaps), colour, marker in looks:
        axes.step([*powers, 2 * powers[-1]], [*gaps, gaps[-1]], where="post", color=colour, label=name,
                  marker=marker, markevery=5, markersize=5)  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="value", ylabel="distance to the next larger value")
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return picture


def draw_number_line(scenario: NumberLineScenario, *, logarithmic: bool = False) -> Picture:
    """Ticks at the values of each format; the number as a line, what it is rounded to as diamonds."""
    picture = Picture(summary(scenario), figsize=(9.4, 0.5 * len(scenario.rows) + 0.7))
    axes = picture.subplots()
    for place, row in enumerate(scenario.rows):
        axes.plot(row.values, [place] * len(row.values), "|", color=palette.BLUE, markersize=15)
        if not math.isnan(scenario.number):
            axes.plot(row.rounded, place, "D", color=palette.VERMILLION, markersize=6)
    if not math.isnan(scenario.number):
        axes.axvline(scenario.number, color=palette.ORANGE)
    if logarithmic:
        axes.set_xscale("log", base=2)
    axes.set(ylim=(len(scenario.rows) - 0.5, -0.5), yticks=range(len(scenario.rows)))
    axes.set_yticklabels([row.format for row in scenario.rows])
    axes.spines[["top", "right", "left"]].set_visible(False)
    return picture


def summary(scenario: NumberLineScenario) -> str:
    """The rows in one line of text."""
    rows = "; ".join(
        f"{row.format} {len(row.values)} of {row.num_finite}"
        + ("" if math.isnan(scenario.number) else f", rounds to {row.rounded:.6g}")
        for row in scenario.rows
    )
    number = "" if math.isnan(scenario.number) else f"{scenario.number:.6g}; "
    return f"{number}values from {scenario.low:.4g} to {scenario.high:.4g}: {rows}."


def summary_html(scenario: NumberLineScenario) -> str:
    """The number, and a line per format."""
    rows = [
        [row.format, f"{row.rounded:.6g}", f"{row.rounded - scenario.number:+.2g}",
         f"{row.gap:.3g}" if math.isfinite(row.gap) else "beyond", f"{len(row.values)} of {row.num_finite}"]
        for row in scenario.rows
    ]  # fmt: skip
    head = ("format", "rounded to", "error", "neighbours apart", "values in view")
    return summary_table("line", f"number {scenario.number:.6g}", head, rows)
