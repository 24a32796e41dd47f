"""The routing explorer: which experts take which tokens, for models trained with more or less load balancing."""

import html
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ipywidgets
from plotly.subplots import make_subplots

from cme295lab import palette
from cme295lab.transformer import DecoderLM
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
from cme295lab.widgets.routing_scenario import RoutingScenario, RoutingText, gate_matrix, routing_scenario

DOMAIN_COLOURS = (palette.BLUE, palette.ORANGE, palette.GREEN, palette.PURPLE, palette.SKY)
_CAPACITIES = [(f"{factor:g}", factor) for factor in (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0)] + [("no limit", "none")]
_GATES: list[tuple[float, str]] = [(0.0, "#E8F1F8"), (1.0, "#004C78")]
_DENSE = "all: dense"


class RoutingExplorer(ipywidgets.VBox):
    """A slider over models trained with different load-balancing coefficients, one for the capacity, a menu for k.

    All figures come from `routing_scenario`, which runs the model; every control is in `controls` by name and may be
    set from Python.

    Args:
        models: load-balancing coefficient -> the model that was trained with it; all of one shape.
        text: what they read.
        coefficient: which to begin with; the smallest by default.
        experts_per_token: k; that of the models by default.
        capacity_factor: 0.5, 0.75, 1, 1.25, 1.5, 2 or 4; None for no limit.
        layer: from 0.

    Raises:
        ValueError: if there are no models, their shapes differ, they have no experts, or a value is none of the
            controls'.
    """

    def __init__(
        self,
        models: Mapping[float, DecoderLM],
        text: RoutingText,
        *,
        coefficient: float | None = None,
        experts_per_token: int | None = None,
        capacity_factor: float | None = 1.25,
        layer: int = 0,
    ) -> None:
        self.models = dict(sorted(models.items()))
        configs = {model.config for model in self.models.values()}
        if len(configs) != 1 or not next(iter(configs)).num_experts:
            raise ValueError(f"models must be mixtures of experts of one shape, got {len(configs)} shapes")
        self.config = configs.pop()
        if len(text.domain_names) > len(DOMAIN_COLOURS):
            raise ValueError(f"text must have at most {len(DOMAIN_COLOURS)} domains, got {len(text.domain_names)}")
        self.text = text
        k = self.config.experts_per_token if experts_per_token is None else experts_per_token
        coefficients = [(f"{value:g}", value) for value in self.models]
        first = next(iter(self.models)) if coefficient is None else coefficient
        self.controls: dict[str, Any] = {
            "coefficient": choice_slider("routing", "coefficient", coefficients, first, label="load balancing",
                                         label_width="100px"),
            "capacity_factor": choice_slider("routing", "capacity_factor", _CAPACITIES,
                                             "none" if capacity_factor is None else capacity_factor,
                                             label="capacity factor", label_width="100px"),
            "experts_per_token": choice_menu("routing", "experts_per_token", self._k_names(), self._k_name(k),
                                             label="experts per token", label_width="120px"),
            "layer": choice_menu("routing", "layer", [f"{n}" for n in range(self.config.num_layers)], f"{layer}",
                                 label="layer", label_width="120px"),
        }  # fmt: skip
        self._text = ipywidgets.HTML()
        self.plot = self._empty_plot()
        self._redraw()
        watch(self.controls, self._redraw)
        controls = arrange(self.controls, ("coefficient", "capacity_factor"), ("experts_per_token", "layer"))
        super().__init__([explorer_style("routing"), controls, self._text, self.plot])
        self.add_class("routing-explorer")

    @property
    def scenario(self) -> RoutingScenario:
        """What the controls say, run on the model."""
        factor, k = self.controls["capacity_factor"].value, self.controls["experts_per_token"].value
        return routing_scenario(
            self.models[self.controls["coefficient"].value],
            self.text,
            experts_per_token=self.config.num_experts if k == _DENSE else int(k),
            capacity_factor=None if factor == "none" else factor,
            layer=int(self.controls["layer"].value),
        )

    def figure(self) -> Picture:
        """The current routing as a static picture, for pages where no kernel runs."""
        scenario = self.scenario
        picture = Picture(self._summary(scenario), figsize=(9.5, 3.9))
        tokens, bars = picture.subplots(1, 2, width_ratios=(2.6, 1), sharey=True)
        draw_routing(tokens, bars, scenario, self.text)
        picture.suptitle(_headline(scenario), fontsize=10)
        return picture

    def __repr__(self) -> str:
        """One line, as the widget's text alternative."""
        return f"RoutingExplorer({self._summary(self.scenario)})"

    def _k_names(self) -> list[str]:
        return [f"{k}" for k in range(1, self.config.num_experts)] + [_DENSE]

    def _k_name(self, k: int) -> str:
        return _DENSE if k == self.config.num_experts else f"{k}"

    def _summary(self, scenario: RoutingScenario) -> str:
        return (
            f"Load balancing {self.controls['coefficient'].value:g}, {scenario.config.experts_per_token} of "
            f"{scenario.num_experts} experts per token, capacity {_capacity_text(scenario)}: {_headline(scenario)}"
        )

    def _redraw(self, _: Any = None) -> None:
        scenario = self.scenario
        experts = list(range(scenario.num_experts))
        x, y = _dropped(scenario)
        with self.plot.batch_update():
            gates, crosses, _, *bars, lost = self.plot.data
            # None and not NaN, which JSON cannot say.
            gates.z = [[None if gate != gate else gate for gate in row] for row in gate_matrix(scenario).tolist()]
            crosses.x, crosses.y = x, y
            for bar, domain in zip(bars[: len(self.text.domain_names)], self.text.domain_names, strict=True):
                bar.x, bar.y = scenario.load(domain=domain), experts
            lost.x, lost.y = [count or None for count in scenario.load(kept=False)], experts
            limit = len(scenario.tokens) if scenario.capacity is None else scenario.capacity
            self.plot.layout.shapes[0].update(x0=limit, x1=limit, visible=scenario.capacity is not None)
            wanted = [a + b for a, b in zip(scenario.load(), scenario.load(kept=False), strict=True)]
            self.plot.layout.xaxis2.range = [0, 1.08 * max(*wanted, scenario.capacity or 0)]
        self._text.value = self._summary_html(scenario)

    def _summary_html(self, scenario: RoutingScenario) -> str:
        config = scenario.config
        rows = [
            [name, f"{k} of {config.num_experts}", f"{changed.num_parameters:,}", f"{changed.num_active_parameters:,}",
             f"{changed.num_active_parameters / changed.num_parameters:.0%}"]
            for name, k in (("sparse", self.config.experts_per_token), ("dense", config.num_experts))
            for changed in [replace(config, experts_per_token=k)]
        ]  # fmt: skip
        head = ("", "experts per token", "parameters", "active for a token", "")
        table = summary_table("routing", html.escape(_headline(scenario)), head, rows)
        losses = (
            f"Cross-entropy on this text {scenario.loss:.3f} nats per token; Switch's balance loss "
            f"{scenario.balance_loss:.2f} (uniform 1, one expert for all {scenario.num_experts})."
        )
        return table.replace("</div>", f"{losses}</div>")

    def _empty_plot(self) -> Any:
        names, num_experts, num_tokens = self.text.domain_names, self.config.num_experts, len(self.text.tokens)
        colours = dict(zip(names, DOMAIN_COLOURS, strict=False))
        plot = make_subplots(1, 2, shared_yaxes=True, column_widths=(0.68, 0.32), horizontal_spacing=0.03,
                             subplot_titles=("gate of each token (× dropped)", "assignments per expert"))  # fmt: skip
        words = [f"{html.escape(text)} ({name})" for text, name in zip(self.text.texts, self.text.domains, strict=True)]
        plot.add_heatmap(z=[[None]], colorscale=_GATES, zmin=0, zmax=1, ygap=2, showscale=False,
                         text=[words] * num_experts, row=1, col=1,
                         hovertemplate="%{text}: gate %{z:.2f} of expert %{y}<extra></extra>")  # fmt: skip
        plot.add_scatter(x=[], y=[], mode="markers", hoverinfo="skip", showlegend=False,
                         marker={"symbol": "x", "size": 7, "color": palette.VERMILLION}, row=1, col=1)  # fmt: skip
        strip = [colours[domain] for domain in self.text.domains]
        plot.add_scatter(x=list(range(num_tokens)), y=[-1] * num_tokens, mode="markers", showlegend=False,
                         text=words, hovertemplate="%{text}<extra></extra>",
                         marker={"symbol": "square", "size": 9, "color": strip}, row=1, col=1)  # fmt: skip
        for name in names:
            plot.add_bar(x=[], y=[], orientation="h", name=name, marker_color=colours[name], hoverinfo="skip",
                         row=1, col=2)  # fmt: skip
        plot.add_bar(x=[], y=[], orientation="h", name="dropped", hoverinfo="skip", row=1, col=2,
                     marker={"color": "rgba(0,0,0,0)", "line": {"color": palette.VERMILLION, "width": 2}})  # fmt: skip
        line = {"color": palette.VERMILLION, "width": 2, "dash": "dash"}
        plot.add_shape(type="line", x0=0, x1=0, y0=-0.6, y1=num_experts - 0.4, line=line, row=1, col=2)
        plot.update_xaxes(title_text="token of the text", showgrid=False, row=1, col=1)
        plot.update_xaxes(title_text="tokens (dashed: capacity)", row=1, col=2)
        height = 190 + 26 * num_experts
        widget = live_plot(plot, width=850, height=height, barmode="stack", bargap=0.25,
                           legend={"orientation": "h", "y": -0.22, "x": 0.1, "traceorder": "normal"})  # fmt: skip
        ticks = [-1, *range(num_experts)]
        widget.update_yaxes(tickvals=ticks, ticktext=["text", *(f"expert {e}" for e in range(num_experts))],
                            showgrid=False, range=[-1.6, num_experts - 0.4])  # fmt: skip
        widget.layout.margin.l = 70
        return widget


def draw_routing(tokens: Any, bars: Any, scenario: RoutingScenario, text: RoutingText) -> None:
    """The heatmap of gates and the bars of loads with matplotlib, on two axes that share their experts."""
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("gates", _GATES)
    extent = (-0.5, len(scenario.tokens) - 0.5, -0.5, scenario.num_experts - 0.5)
    tokens.imshow(gate_matrix(scenario), cmap=shades, vmin=0, vmax=1, aspect="auto", origin="lower", extent=extent,
                  interpolation="nearest")  # fmt: skip
    x, y = _dropped(scenario)
    tokens.plot(x, y, "x", color=palette.VERMILLION, markersize=4)
    left = [0] * scenario.num_experts
    for domain, colour in zip(text.domain_names, DOMAIN_COLOURS, strict=False):
        at = [number for number, name in enumerate(text.domains) if name == domain]
        tokens.bar(at, 0.6, 1, -1.2, color=colour)
        load = scenario.load(domain=domain)
        bars.barh(range(scenario.num_experts), load, left=left, color=colour, label=domain)
        left = [a + b for a, b in zip(left, load, strict=True)]
    lost = [count or float("nan") for count in scenario.load(kept=False)]  # no outline of a bar without length
    bars.barh(range(scenario.num_experts), lost, left=left, color="none", edgecolor=palette.VERMILLION,
              linewidth=1.5, label="dropped" if scenario.num_dropped else None)  # fmt: skip
    if scenario.capacity is not None:
        bars.axvline(scenario.capacity, color=palette.VERMILLION, linestyle="--")
    tokens.set_yticks([-0.9, *range(scenario.num_experts)], ["text", *map(str, range(scenario.num_experts))])
    tokens.set_ylabel("expert")
    tokens.set_xlabel("token of the text")
    bars.set_xlabel("tokens of each expert")
    bars.legend(frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.45, -0.2), columnspacing=1)
    for axes in (tokens, bars):
        axes.spines[["top", "right"]].set_visible(False)


def _headline(scenario: RoutingScenario) -> str:
    fair = 1 / scenario.num_experts
    dropped = f"{scenario.num_dropped} of {scenario.num_assignments} assignments dropped"
    return f"The most wanted expert gets {scenario.busiest_share:.0%} of the text (fair: {fair:.1%}); {dropped}"


def _capacity_text(scenario: RoutingScenario) -> str:
    return "without limit" if scenario.capacity is None else f"{scenario.capacity} tokens"


def _dropped(scenario: RoutingScenario) -> tuple[list[int], list[int]]:
    found = [
        (column, expert)
        for column, token in enumerate(scenario.tokens)
        for expert, kept in zip(token.experts, token.kept, strict=True)
        if not kept
    ]
    return [column for column, _ in found], [expert for _, expert in found]

