"""The iso-FLOP explorer: parabolas through training runs of equal compute, and what they say of a larger budget."""

from collections.abc import Sequence
from typing import Any

import ipywidgets
import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from plotly.subplots import make_subplots

from cme295lab import palette
from cme295lab.scaling import Run
from cme295lab.units import format_flops
from cme295lab.widgets.controls import arrange, choice_slider, explorer_style, live_plot, short, summary_table, watch
from cme295lab.widgets.isoflop_scenario import MIN_BUDGETS, IsoFlopScenario, budgets_of, isoflop_scenario
from cme295lab.widgets.picture import Picture

_FURTHEST = 1000  # how many times the largest budget may be asked about


class IsoFlopExplorer(ipywidgets.VBox):
    """Sliders for how many budgets are used and which is asked about; parabolas, and the line through their bottoms.

    All figures come from `isoflop_scenario`. Every control is in `controls` by name and may be set from Python.

    Args:
        runs: of several sizes at each of several budgets.
        outcome: a run at a larger budget that was trained to test the prediction; it is drawn, never fitted.
        num_budgets: how many budgets are used; all by default.

    Raises:
        ValueError: if there are fewer than two budgets of three sizes, or the number is none of the slider's.
    """

    def __init__(self, runs: Sequence[Run], *, outcome: Run | None = None, num_budgets: int | None = None) -> None:
        self.runs, self.outcome = tuple(runs), outcome
        self.groups = budgets_of(runs)
        if len(self.groups) < MIN_BUDGETS:
            raise ValueError(f"runs must have {MIN_BUDGETS} budgets of 3 sizes or more, got {len(self.groups)}")
        counts = [(f"{n} of {len(self.groups)}", n) for n in range(MIN_BUDGETS, len(self.groups) + 1)]
        largest = self.groups[-1][0].flops
        asked = outcome.flops if outcome else 4 * largest
        targets = sorted({asked, *(largest * factor for factor in (1, 2, 5, 10, 30, 100, 300, _FURTHEST))})
        options = [(format_flops(target, digits=2), target) for target in targets]
        self.controls: dict[str, Any] = {
            "num_budgets": choice_slider("isoflop", "num_budgets", counts, num_budgets or len(counts) + 1,
                                         label="budgets used", width="330px", label_width="100px"),
            "flops": choice_slider("isoflop", "flops", options, asked, label="asked about", width="380px",
                                   label_width="100px"),
        }  # fmt: skip
        self._text = ipywidgets.HTML()
        self.plot = self._empty_plot()
        self._redraw()
        watch(self.controls, self._redraw)
        columns = (("num_budgets",), ("flops",))
        super().__init__([explorer_style("isoflop"), arrange(self.controls, *columns), self._text, self.plot])
        self.add_class("isoflop-explorer")

    @property
    def scenario(self) -> IsoFlopScenario:
        """What the sliders say, with all that follows."""
        values = {name: control.value for name, control in self.controls.items()}
        return isoflop_scenario(runs=self.runs, **values)

    def figure(self) -> Picture:
        """The current fit as a static picture, for pages where no kernel runs."""
        scenario = self.scenario
        picture = Picture(summary(scenario, self.outcome), figsize=(9.4, 3.6))
        curves, bottoms = picture.subplots(1, 2, width_ratios=(1.3, 1))
        for curve, colour in zip((*scenario.fit.curves, *scenario.held_back), _colours(len(self.groups)), strict=True):
            sizes = _sizes(curve.runs)
            used = curve in scenario.fit.curves
            curves.plot([run.num_parameters for run in curve.runs], [run.loss for run in curve.runs], "o",
                        color=colour, label=format_flops(curve.flops, digits=2))  # fmt: skip
            curves.plot(sizes, curve.loss_at(sizes), "-" if used else ":", color=colour)
            curves.plot(curve.num_parameters, curve.loss, "D", color=colour, markeredgecolor="black")
            bottoms.plot(curve.flops, curve.num_parameters, "D" if used else "d", color=colour, markeredgecolor="black")
        curves.set(xscale="log", xlabel="parameters", ylabel="loss, nats per token")
        curves.legend(frameon=False, fontsize=8)
        budgets, sizes = self._line(scenario)
        bottoms.plot(budgets, sizes, color=palette.GREY)
        asked = scenario.prediction
        bottoms.plot(asked.flops, asked.num_parameters, "*", color=palette.ORANGE, markersize=14)
        if self.outcome:
            curves.plot(self.outcome.num_parameters, self.outcome.loss, "X", color=palette.VERMILLION, markersize=9)
            bottoms.plot(self.outcome.flops, self.outcome.num_parameters, "X", color=palette.VERMILLION, markersize=9)
        bottoms.set(xscale="log", yscale="log", xlabel="compute, FLOP", ylabel="best size, parameters")
        for axes in (curves, bottoms):
            axes.spines[["top", "right"]].set_visible(False)
        return picture

    def __repr__(self) -> str:
        """One line, as the widget's text alternative."""
        return f"IsoFlopExplorer({summary(self.scenario, self.outcome)})"

    def _line(self, scenario: IsoFlopScenario) -> tuple[Any, Any]:
        """The power law, from the smallest budget to beyond the one that is asked about."""
        low, high = self.groups[0][0].flops / 2, max(self.groups[-1][0].flops, scenario.prediction.flops) * 2
        budgets = np.logspace(np.log10(low), np.log10(high), 9)
        return budgets, scenario.fit.frontier.coefficient * budgets**scenario.fit.a

    def _redraw(self, _: Any = None) -> None:
        scenario = self.scenario
        count = len(self.groups)
        with self.plot.batch_update():  # all of these have x and y: in a batch, plotly resets what one lacks
            for place, curve in enumerate((*scenario.fit.curves, *scenario.held_back)):
                sizes = _sizes(curve.runs)
                self.plot.data[count + place].update(x=sizes, y=curve.loss_at(sizes))
                self.plot.data[2 * count + place].update(x=[curve.num_parameters], y=[curve.loss])
            used = [curve.flops for curve in scenario.fit.curves], [c.num_parameters for c in scenario.fit.curves]
            held = [curve.flops for curve in scenario.held_back], [c.num_parameters for c in scenario.held_back]
            line, seen, unseen, star = self.plot.data[3 * count : 3 * count + 4]
            line.x, line.y = self._line(scenario)
            seen.x, seen.y = used
            unseen.x, unseen.y = held
            star.x, star.y = [scenario.prediction.flops], [scenario.prediction.num_parameters]
        self._text.value = summary_html(scenario, self.outcome)

    def _empty_plot(self) -> Any:
        titles = ("loss at equal compute", "bottoms of the parabolas")
        plot = make_subplots(1, 2, column_widths=(0.58, 0.42), horizontal_spacing=0.12, subplot_titles=titles)
        colours = _colours(len(self.groups))
        for group, colour in zip(self.groups, colours, strict=True):
            plot.add_scatter(x=[run.num_parameters for run in group], y=[run.loss for run in group], mode="markers",
                             marker={"color": colour, "size": 8}, name=format_flops(group[0].flops, digits=2),
                             hovertemplate="%{x:,} parameters: %{y:.3f} nats", row=1, col=1)  # fmt: skip
        for colour in colours:
            plot.add_scatter(mode="lines", line={"color": colour, "width": 1.5}, hoverinfo="skip", showlegend=False,
                             row=1, col=1)  # fmt: skip
        edge = {"width": 1.5, "color": palette.GREY}
        for colour in colours:
            marker = {"color": colour, "size": 11, "symbol": "diamond", "line": edge}
            plot.add_scatter(mode="markers", marker=marker, hoverinfo="skip", showlegend=False, row=1, col=1)
        plot.add_scatter(mode="lines", line_color=palette.GREY, hoverinfo="skip", showlegend=False, row=1, col=2)
        looks = (("diamond", 11, palette.BLUE, "used"), ("diamond-open", 11, palette.BLUE, "held back"),
                 ("star", 16, palette.ORANGE, "asked about"))  # fmt: skip
        for symbol, size, colour, name in looks:
            marker = {"symbol": symbol, "size": size, "color": colour, "line": edge if name == "used" else None}
            plot.add_scatter(x=[None], y=[None], mode="markers", marker=marker, name=name,
                             hovertemplate="%{x:.3s}FLOP: %{y:.3s}", row=1, col=2)  # fmt: skip
        if self.outcome:
            marker = {"symbol": "x", "size": 10, "color": palette.VERMILLION}
            for column, x, y in ((1, self.outcome.num_parameters, self.outcome.loss),
                                 (2, self.outcome.flops, self.outcome.num_parameters)):  # fmt: skip
                plot.add_scatter(x=[x], y=[y], mode="markers", marker=marker, name="trained afterwards",
                                 showlegend=column == 2, row=1, col=column)  # fmt: skip
        plot.update_xaxes(type="log", title_text="parameters", exponentformat="SI", nticks=6, row=1, col=1)
        plot.update_xaxes(type="log", title_text="compute, FLOP", exponentformat="power", nticks=6, row=1, col=2)
        plot.update_yaxes(title_text="loss, nats per token", row=1, col=1)
        plot.update_yaxes(type="log", title_text="best size, parameters", exponentformat="SI", nticks=6, row=1, col=2)
        return live_plot(plot, width=850, height=400, legend={"orientation": "h", "y": -0.2, "font": {"size": 11}})


def headline(scenario: IsoFlopScenario) -> str:
    """The exponent, and the prediction."""
    asked = scenario.prediction
    far = f", {scenario.reach:.2g} times the largest budget used" if scenario.reach > 1.15 else ""
    return (
        f"N* ~ C^{scenario.fit.a:.2f}; with {format_flops(asked.flops, digits=2)}{far}: {short(asked.num_parameters)} "
        f"parameters, {asked.tokens_per_parameter:.3g} tokens for each"
    )


def summary(scenario: IsoFlopScenario, outcome: Run | None) -> str:
    """The fit in one line of text."""
    rows = "; ".join(
        f"{format_flops(curve.flops, digits=2)} {short(curve.num_parameters)} parameters, loss {curve.loss:.3f}"
        for curve in (*scenario.fit.curves, *scenario.held_back)
    )
    text = f"{headline(scenario)}. Bottoms: {rows}."
    if outcome:
        text += f" Trained afterwards: {short(outcome.num_parameters)} parameters, loss {outcome.loss:.3f}."
    return text


def summary_html(scenario: IsoFlopScenario, outcome: Run | None) -> str:
    """The headline, and a line per budget."""
    rows = []
    for curve in (*scenario.fit.curves, *scenario.held_back):
        used = "used" if curve in scenario.fit.curves else "held back"
        inside = "between the runs" if curve.bracketed else "beyond the runs: a guess"
        ratio = f"{curve.num_tokens / curve.num_parameters:,.3g}"
        size = f"{curve.num_parameters:,.0f}"
        rows.append([format_flops(curve.flops, digits=2), used, size, ratio, f"{curve.loss:.3f}", inside])
    if outcome:
        ratio, size = f"{outcome.num_tokens / outcome.num_parameters:,.3g}", f"{outcome.num_parameters:,.0f}"
        compute = format_flops(outcome.flops, digits=2)
        rows.append([compute, "trained afterwards", size, ratio, f"{outcome.loss:.3f}", ""])
    head = ("compute", "", "best size", "tokens per parameter", "loss there", "bottom")
    return summary_table("isoflop", headline(scenario), head, rows)


def _sizes(runs: Sequence[Run]) -> Any:
    """Sizes at which a parabola is drawn."""
    low, high = (np.log10(run.num_parameters) for run in (runs[0], runs[-1]))
    return np.logspace(low - 0.1, high + 0.1, 31)


def _colours(count: int) -> list[str]:
    """From dark to light with the budget: told apart by lightness, too."""
    return [to_hex(colormaps["viridis"](0.85 * place / max(count - 1, 1))) for place in range(count)]
