"""The frontier explorer: a slider for the budget, on a map of sizes and tokens with the models that were built."""

from typing import Any

import ipywidgets
import numpy as np
from plotly.subplots import make_subplots

from cme295lab import palette
from cme295lab.scaling import PUBLISHED_MODELS
from cme295lab.units import format_flops
from cme295lab.widgets.controls import (
    arrange,
    choice_menu,
    choice_slider,
    explorer_style,
    live_plot,
    nearest_choice,
    short,
    summary_table,
    watch,
)
from cme295lab.widgets.frontier_scenario import CONSTANTS, FrontierScenario, frontier_scenario, frontiers
from cme295lab.widgets.picture import Picture

_BUDGETS = [(f"{step}e{power}", step * 10.0**power) for power in range(17, 28) for step in (1, 2, 5)][:-2]
_SERVED = [("none", 0.0)] + [(short(value), value) for value in (1e10, 1e11, 1e12, 3e12, 1e13, 3e13, 1e14, 1e15)]
_NAMES = {
    "kaplan": "Kaplan 2020", "chinchilla-1": "Chinchilla, approach 1", "chinchilla-2": "Chinchilla, approach 2",
    "chinchilla-3": "Chinchilla, approach 3", "chinchilla-3-table": "the same, as tabulated", "epoch": "Epoch 2024",
    "20 per parameter": "20 tokens per parameter",
}  # fmt: skip
_LINES = {"kaplan": (palette.VERMILLION, "dash"), "chinchilla-1": (palette.BLUE, "solid"),
          "chinchilla-3": (palette.PURPLE, "dot"), "epoch": (palette.GREEN, "dashdot")}  # fmt: skip
_DASHES = {"dash": "--", "solid": "-", "dot": ":", "dashdot": "-."}
_X, _Y = (1e7, 1e13), (1e9, 5e14)  # parameters and tokens in view
_PLACES = {  # where a name does not cover its neighbour's
    "GPT-3": "middle left", "Gopher": "middle right", "Chinchilla": "bottom right", "Llama 1 7B": "middle left",
    "Llama 2 7B": "middle left", "Llama 2 70B": "middle left", "Llama 3.1 405B": "middle right",
}  # fmt: skip
_LEVELS = (1.9, 0.2, 3.5)  # of the contours of loss: first, step, last


class FrontierExplorer(ipywidgets.VBox):
    """Sliders for the budget and for what the model must serve; the map of sizes and tokens, and the loss along it.

    All figures come from `frontier_scenario`. Every control is in `controls` by name and may be set from Python.

    Args:
        flops: the budget, FLOP; the nearest on the slider is taken (1e17 to 1e27).
        constants: of L(N, D): "Epoch 2024", "Chinchilla" or "Chinchilla, as printed".
        served_tokens: tokens that the model will process in its life: 0, 1e10 to 1e15.

    Raises:
        ValueError: if a value is none of the controls'.
    """

    def __init__(
        self, *, flops: float = 5e23, constants: str = "Epoch 2024", served_tokens: float = 0.0
    ) -> None:
        budget = nearest_choice(_BUDGETS, flops)
        menu = choice_menu("frontier", "constants", CONSTANTS, constants, label="constants", width="270px")
        self.controls: dict[str, Any] = {
            "flops": choice_slider("frontier", "flops", _BUDGETS, budget, label="FLOP", width="400px",
                                   label_width="100px"),
            "served_tokens": choice_slider(
                "frontier", "served_tokens", _SERVED, served_tokens, label="serves tokens", width="400px",
                label_width="100px",
            ),
            "constants": menu,
        }  # fmt: skip
        self._text = ipywidgets.HTML()
        self._drawn = ""
        self.plot = _empty_plot()
        self._redraw()
        watch(self.controls, self._redraw)
        columns = (("flops", "served_tokens"), ("constants",))
        super().__init__([explorer_style("frontier"), arrange(self.controls, *columns), self._text, self.plot])
        self.add_class("frontier-explorer")

    @property
    def scenario(self) -> FrontierScenario:
        """What the controls say, with all that follows."""
        return frontier_scenario(**{name: control.value for name, control in self.controls.items()})

    def figure(self) -> Picture:
        """The current budget as a static picture, for pages where no kernel runs."""
        scenario = self.scenario
        picture = Picture(summary(scenario), figsize=(9.4, 4.2))
        where, along = picture.subplots(1, 2, width_ratios=(1.6, 1))
        for name, (sizes, tokens) in frontiers().items():
            if name in _LINES:
                colour, dash = _LINES[name]
                where.plot(sizes, tokens, color=colour, linestyle=_DASHES[dash], label=_NAMES[name])
        where.plot(scenario.sizes, scenario.flops / (6 * scenario.sizes), color=palette.GREY)
        for model in PUBLISHED_MODELS:
            where.plot(model.num_parameters, model.num_tokens, "o", color="#444444", markersize=4)
            side = _PLACES.get(model.name, "top center")
            align = "right" if "left" in side else "left" if "right" in side else "center"
            height = {"top": "bottom", "middle": "center", "bottom": "top"}[side.split()[0]]
            where.text(model.num_parameters, model.num_tokens, f"  {model.name}  ", fontsize=7, ha=align, va=height)
        where.set(xscale="log", yscale="log", xlim=_X, ylim=_Y, xlabel="parameters", ylabel="tokens")
        where.legend(frameon=False, fontsize=8, loc="lower right")
        along.plot(scenario.sizes, scenario.losses, color=palette.GREY)
        along.set(xscale="log", ylim=_loss_range(scenario), xlabel="parameters, at equal compute", ylabel="loss, nats")
        for axes in (where, along):
            axes.spines[["top", "right"]].set_visible(False)
        marks = ((scenario.optimum, "*", palette.ORANGE), (scenario.serving, "d", palette.SKY))
        for found, marker, colour in marks:
            where.plot(found.num_parameters, found.num_tokens, marker, color=colour, markersize=12)
            along.plot(found.num_parameters, found.loss, marker, color=colour, markersize=12)
        return picture

    def __repr__(self) -> str:
        """One line, as the widget's text alternative."""
        return f"FrontierExplorer({summary(self.scenario)})"

    def _redraw(self, _: Any = None) -> None:
        scenario = self.scenario
        contour, budget, mark, serving, along, best, cheaper = (self.plot.data[i] for i in (0, 1, 2, 3, 4, 5, 6))
        if self._drawn != scenario.constants:
            self._drawn = scenario.constants
            grid = np.meshgrid(contour.x, contour.y)
            contour.z = scenario.law.loss(*grid)
        optimum, served = scenario.optimum, scenario.serving
        with self.plot.batch_update():  # every one of these has x and y: in a batch, plotly resets what one lacks
            budget.x, budget.y = scenario.sizes, scenario.flops / (6 * scenario.sizes)
            mark.x, mark.y = [optimum.num_parameters], [optimum.num_tokens]
            serving.x, serving.y = [served.num_parameters], [served.num_tokens]
            along.x, along.y = scenario.sizes, scenario.losses
            best.x, best.y = [optimum.num_parameters], [optimum.loss]
            cheaper.x, cheaper.y = [served.num_parameters], [served.loss]
            self.plot.layout.yaxis2.range = _loss_range(scenario)
        self._text.value = summary_html(scenario)


def headline(scenario: FrontierScenario) -> str:
    """The optimum, and what serving makes of it."""
    best, served = scenario.optimum, scenario.serving
    text = f"{short(best.num_parameters)} parameters on {short(best.num_tokens)} tokens, loss {best.loss:.3f}"
    if not scenario.served_tokens:
        return text
    return (
        f"{text}; with {short(scenario.served_tokens)} tokens to serve better {short(served.num_parameters)} on "
        f"{short(served.num_tokens)}: same loss, {served.saving:.0%} less compute in all"
    )


def summary(scenario: FrontierScenario) -> str:
    """The scenario in one line of text."""
    rows = "; ".join(
        f"{_NAMES[law]} {short(item.num_parameters)} parameters on {short(item.num_tokens)} tokens"
        for law, item in scenario.allocations.items()
    )
    return f"{format_flops(scenario.flops)}, {scenario.constants}: {headline(scenario)}. Laws: {rows}."


def summary_html(scenario: FrontierScenario) -> str:
    """The headline, and a line per law."""
    best = scenario.optimum.loss or 0.0
    rows = []
    for law, item in scenario.allocations.items():
        worse = float(scenario.law.loss(item.num_parameters, item.num_tokens)) - best
        ratio = f"{item.tokens_per_parameter:,.3g}"
        rows.append([_NAMES[law], short(item.num_parameters), short(item.num_tokens), ratio, f"+{worse:.3f}"])
    head = ("", "parameters", "tokens", "tokens per parameter", f"loss by {scenario.constants}, above the best")
    return summary_table("frontier", headline(scenario), head, rows)


def _loss_range(scenario: FrontierScenario) -> list[float]:
    best = scenario.optimum.loss or 0.0
    return [best - 0.05, best + 0.7]


def _empty_plot() -> Any:
    """The map and the curve without a budget; `_redraw` fills them in place."""
    titles = ("loss by size and tokens", "along the line of equal compute")
    plot = make_subplots(1, 2, column_widths=(0.64, 0.36), horizontal_spacing=0.11, subplot_titles=titles)
    x, y = (np.logspace(np.log10(low), np.log10(high), 33) for low, high in (_X, _Y))
    first, step, last = _LEVELS
    plot.add_contour(
        x=x, y=y, z=np.ones((len(y), len(x))), showscale=False, hoverinfo="skip",
        contours={"coloring": "lines", "showlabels": True, "start": first, "end": last, "size": step,
                  "labelfont": {"size": 10, "color": palette.GREY}},
        colorscale=[[0, palette.PALE], [1, palette.PALE]], line={"width": 1}, row=1, col=1,
    )  # fmt: skip
    star = {"size": 17, "symbol": "star", "color": palette.ORANGE, "line": {"width": 1, "color": "white"}}
    diamond = {"size": 12, "symbol": "diamond", "color": palette.SKY, "line": {"width": 1, "color": "white"}}
    hover = "%{x:.3s} parameters, %{y:.3s} tokens<extra></extra>"
    plot.add_scatter(mode="lines", line_color=palette.GREY, name="this budget", hoverinfo="skip", row=1, col=1)
    plot.add_scatter(mode="markers", marker=star, name="lowest loss", hovertemplate=hover, row=1, col=1)
    plot.add_scatter(mode="markers", marker=diamond, name="with serving", hovertemplate=hover, row=1, col=1)
    plot.add_scatter(mode="lines", line_color=palette.GREY, showlegend=False, row=1, col=2,
                     hovertemplate="%{x:.3s} parameters: %{y:.3f} nats<extra></extra>")  # fmt: skip
    for marker in (star, diamond):
        plot.add_scatter(mode="markers", marker=marker, showlegend=False, hoverinfo="skip", row=1, col=2)
    for name, (sizes, tokens) in frontiers().items():
        if name in _LINES:
            colour, dash = _LINES[name]
            plot.add_scatter(x=sizes, y=tokens, mode="lines", line={"color": colour, "dash": dash, "width": 1.5},
                             name=_NAMES[name], hoverinfo="skip", row=1, col=1)  # fmt: skip
    plot.add_scatter(
        x=[model.num_parameters for model in PUBLISHED_MODELS], y=[model.num_tokens for model in PUBLISHED_MODELS],
        text=[model.name for model in PUBLISHED_MODELS], mode="markers+text",
        textposition=[_PLACES.get(model.name, "top center") for model in PUBLISHED_MODELS],
        textfont={"size": 10}, marker={"size": 7, "color": palette.GREY}, showlegend=False, hovertemplate=hover,
        row=1, col=1,
    )  # fmt: skip
    for axis, (low, high) in (("xaxis", _X), ("yaxis", _Y), ("xaxis2", _X)):
        plot.layout[axis].update(type="log", range=[np.log10(low), np.log10(high)], exponentformat="B", dtick=1)
    plot.layout.xaxis2.range = [6, 13]
    plot.update_xaxes(title_text="parameters")
    plot.update_yaxes(title_text="tokens", row=1, col=1)
    plot.update_yaxes(title_text="loss, nats per token", row=1, col=2)
    return live_plot(plot, width=850, height=440, legend={"orientation": "h", "y": -0.16, "font": {"size": 11}})
