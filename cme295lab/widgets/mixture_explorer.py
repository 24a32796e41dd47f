"""The mixture explorer: a slider for each domain's weight; tokens, epochs, and the losses of models trained so."""

from collections.abc import Mapping
from typing import Any

import ipywidgets
from plotly.subplots import make_subplots

from cme295lab import palette
from cme295lab.widgets.controls import arrange, choice_slider, explorer_style, live_plot, summary_table, watch
from cme295lab.widgets.mixture_scenario import MANY_EPOCHS, MeasuredMixtures, MixtureScenario, mixture_scenario
from cme295lab.widgets.picture import Picture

DOMAIN_COLOURS = (palette.BLUE, palette.ORANGE, palette.GREEN, palette.PURPLE, palette.SKY, palette.VERMILLION)
_STEPS = [(f"{n / 20:.0%}", n / 20) for n in range(21)]
_BUDGETS = [(f"{n:g} M", int(n * 1e6)) for n in (0.5, 1, 2, 5, 10, 20, 50, 100, 200)]


class MixtureExplorer(ipywidgets.VBox):
    """Sliders for the weights of the domains and for the tokens of the run.

    Weights are relative: only their proportions count. All figures come from `mixture_scenario`; every control is in
    `controls` by name (the domains, and "num_tokens") and may be set from Python.

    Args:
        sizes: tokens that there are of each domain, up to six.
        weights: of each domain, multiples of 0.05 up to 1; all equal by default.
        num_tokens: tokens of the run: 0.5, 1, 2, 5, 10, 20, 50, 100 or 200 million.
        measured: losses of models trained at several mixtures.

    Raises:
        ValueError: if a value is none of the sliders', or there are more than six domains.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        *,
        weights: Mapping[str, float] | None = None,
        num_tokens: int = 5_000_000,
        measured: MeasuredMixtures | None = None,
    ) -> None:
        if not 1 <= len(sizes) <= len(DOMAIN_COLOURS):
            raise ValueError(f"sizes must name 1 to {len(DOMAIN_COLOURS)} domains, got {len(sizes)}")
        self.sizes, self.measured = dict(sizes), measured
        start = dict.fromkeys(sizes, 0.5) | dict(weights or {})
        self.controls: dict[str, Any] = {
            domain: choice_slider("mixture", domain, _STEPS, weight, label=domain, width="270px")
            for domain, weight in start.items()
        }
        self.controls["num_tokens"] = choice_slider(
            "mixture", "num_tokens", _BUDGETS, num_tokens, label="tokens", width="280px"
        )
        self._text = ipywidgets.HTML()
        self.plot = self._empty_plot()
        self._redraw()
        watch(self.controls, self._redraw)
        names = list(sizes)
        columns = [names[0::2], names[1::2], ["num_tokens"]]
        style = explorer_style("mixture")
        super().__init__([style, arrange(self.controls, *columns), self._text, self.plot])
        self.add_class("mixture-explorer")

    @property
    def scenario(self) -> MixtureScenario:
        """What the sliders say, with all that follows. All weights at zero count as all equal."""
        weights = {domain: float(self.controls[domain].value) for domain in self.sizes}
        if not any(weights.values()):
            weights = dict.fromkeys(weights, 1.0)
        budget = self.controls["num_tokens"].value
        return mixture_scenario(sizes=self.sizes, weights=weights, num_tokens=budget, measured=self.measured)

    def figure(self) -> Picture:
        """The current mixture as a static picture, for pages where no kernel runs."""
        scenario = self.scenario
        picture = Picture(summary(scenario), figsize=(9, 3.2))
        bars, lines = picture.subplots(1, 2)
        names = [item.domain for item in scenario.domains]
        drawn = bars.bar(names, [item.epochs for item in scenario.domains], color=DOMAIN_COLOURS[: len(names)])
        bars.bar_label(drawn, [f"{item.share:.0%}" for item in scenario.domains], padding=2, fontsize=9)
        bars.axhline(MANY_EPOCHS, color=palette.GREY, linestyle="--")
        bars.set_ylabel("times the text is seen")
        if self.measured:
            for name, colour in zip(self.sizes, DOMAIN_COLOURS, strict=False):
                if name in self.measured.losses:
                    lines.plot(self.measured.shares, self.measured.losses[name], "o-", color=colour, label=name)
            lines.axvline(scenario.share(self.measured.domain), color=palette.GREY)
            lines.set_xlabel(f"share of {self.measured.domain}")
            lines.set_ylabel("loss on each domain, nats per token")
            lines.legend(frameon=False, fontsize=9)
        else:
            lines.set_axis_off()
        for axes in (bars, lines):
            axes.spines[["top", "right"]].set_visible(False)
            axes.margins(y=0.15)
        return picture

    def __repr__(self) -> str:
        """One line, as the widget's text alternative."""
        return f"MixtureExplorer({summary(self.scenario)})"

    def _redraw(self, _: Any = None) -> None:
        scenario = self.scenario
        with self.plot.batch_update():
            bars = self.plot.data[0]
            bars.y = [item.epochs for item in scenario.domains]
            bars.text = [f"{item.share:.0%}" for item in scenario.domains]
            self.plot.layout.yaxis.range = [0, 1.25 * max(MANY_EPOCHS, *bars.y)]
            if self.measured:
                share = scenario.share(self.measured.domain)
                self.plot.layout.shapes[1].update(x0=share, x1=share)
        if self.measured:  # not in the batch: there, plotly resets the x of the bars
            losses = [item.loss for item in scenario.domains if item.loss is not None]
            self.plot.data[-1].update(x=[share] * len(losses), y=losses)
        self._text.value = summary_html(scenario)

    def _empty_plot(self) -> Any:
        names = list(self.sizes)
        colours = DOMAIN_COLOURS[: len(names)]
        measured = self.measured
        second = f"loss on each domain, by share of {measured.domain}" if measured else ""
        plot = make_subplots(1, 2, horizontal_spacing=0.12, subplot_titles=("times the text is seen", second))
        plot.add_bar(x=names, y=[0] * len(names), marker_color=colours, textposition="outside", showlegend=False,
                     hoverinfo="skip", row=1, col=1)  # fmt: skip
        dash = {"color": palette.GREY, "dash": "dash", "width": 1.5}
        end = len(names) - 0.5
        plot.add_shape(type="line", x0=-0.5, x1=end, y0=MANY_EPOCHS, y1=MANY_EPOCHS, line=dash, row=1, col=1)
        if measured:
            values = [loss for losses in measured.losses.values() for loss in losses]
            low, high = min(values) - 0.2, max(values) + 0.2
            for name, colour in zip(names, colours, strict=True):
                if name in measured.losses:
                    plot.add_scatter(x=measured.shares, y=measured.losses[name], name=name, mode="lines+markers",
                                     marker_color=colour, line_color=colour, row=1, col=2)  # fmt: skip
            line = {"color": palette.GREY, "width": 2}
            plot.add_shape(type="line", x0=0, x1=0, y0=low, y1=high, line=line, row=1, col=2)
            marker = {"size": 13, "symbol": "circle-open", "color": palette.GREY, "line": {"width": 2}}
            plot.add_scatter(x=[], y=[], mode="markers", marker=marker, showlegend=False, hoverinfo="skip",
                             row=1, col=2)  # fmt: skip
            plot.update_xaxes(tickformat=".0%", row=1, col=2)
            plot.update_yaxes(title_text="nats per token", range=[low, high], row=1, col=2)
        else:
            plot.update_xaxes(visible=False, row=1, col=2)
            plot.update_yaxes(visible=False, row=1, col=2)
        return live_plot(plot, width=850, height=300, bargap=0.4, legend={"orientation": "h", "y": -0.18, "x": 0.55})


def summary(scenario: MixtureScenario) -> str:
    """The mixture in one line of text."""
    parts = "; ".join(f"{item.domain} {item.share:.0%}, seen {item.epochs:.2g} times" for item in scenario.domains)
    return f"{scenario.num_tokens / 1e6:g} M tokens: {parts}. {advice(scenario)}"


def advice(scenario: MixtureScenario) -> str:
    """What is repeated too often."""
    often = [item.domain for item in scenario.domains if item.repeats_too_often]
    if not often:
        return f"No text is seen more than {MANY_EPOCHS:g} times"
    return f"Seen more than {MANY_EPOCHS:g} times, where repeating pays less and less: {', '.join(often)}"


def summary_html(scenario: MixtureScenario) -> str:
    """The advice, and a line per domain."""
    head = ("", "share", "tokens drawn", "times seen", "loss, nats per token")
    rows = [
        [item.domain, f"{item.share:.1%}", f"{item.num_tokens / 1e6:.2f} M", f"{item.epochs:.2f}",
         "" if item.loss is None else f"{item.loss:.3f}"]
        for item in scenario.domains
    ]  # fmt: skip
    return summary_table("mixture", advice(scenario), head, rows)
