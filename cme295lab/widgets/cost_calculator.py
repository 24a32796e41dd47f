"""The cost calculator: a model, its tokens and some GPUs; hours, days, money, energy and CO2e as ranges.

The numbers are those of `cme295lab.pretraining.training_cost`; the right picture shows which assumption they hang on.
"""

from typing import Any

import ipywidgets
from plotly.subplots import make_subplots

from cme295lab import palette
from cme295lab.pretraining.cost import GRID_KG_PER_KWH, TDP_W, Assumption, TrainingCost, assumptions_for, training_cost
from cme295lab.scaling import training_flops
from cme295lab.units import format_flops
from cme295lab.widgets.controls import (
    arrange,
    choice_menu,
    choice_slider,
    explorer_style,
    live_plot,
    magnitudes,
    nearest_choice,
    short,
    summary_table,
    watch,
)
from cme295lab.widgets.picture import Picture

_SHARES = [(f"{percent} %", percent / 100) for percent in range(5, 75, 5)]
_GPUS = [(f"{2**power:,}", 2**power) for power in range(18)]
_RANGE = "not known: 0.03 to 0.8"
_GRIDS = {_RANGE: None, "hydro, nuclear: 0.03": 0.03, "mixed: 0.4": 0.4, "coal: 0.8": 0.8}
_NAMES = {
    "mfu": "MFU", "price_usd_per_gpu_hour": "price of an hour", "power_w": "power of a GPU", "pue": "PUE",
    "grid_kg_per_kwh": "CO2e of a kWh",
}  # fmt: skip


_PARAMETERS, _TOKENS = magnitudes(1e6, 7e12), magnitudes(1e8, 1e14)


class CostCalculator(ipywidgets.VBox):
    """Sliders for the model, its tokens, the GPUs, their utilization and the grid; ranges of what that costs.

    Compute is 6 × parameters × tokens. Every control is in `controls` by name and may be set from Python.

    Args:
        num_parameters: of the model; the nearest on the slider is taken.
        num_tokens: to train on; the nearest on the slider is taken.
        device: GPU.
        num_gpus: a power of two up to 131,072.
        mfu: model FLOPs utilization, 0.05 to 0.7 in steps of 0.05.

    Raises:
        ValueError: if a value is none of the controls'.
    """

    def __init__(
        self,
        *,
        num_parameters: float = 70e9,
        num_tokens: float = 1.5e12,
        device: str = "H100-SXM5",
        num_gpus: int = 2048,
        mfu: float = 0.4,
    ) -> None:
        size, tokens = nearest_choice(_PARAMETERS, num_parameters), nearest_choice(_TOKENS, num_tokens)
        self.controls: dict[str, Any] = {
            "num_parameters": _slider("num_parameters", _PARAMETERS, size, "parameters"),
            "num_tokens": _slider("num_tokens", _TOKENS, tokens, "tokens"),
            "num_gpus": _slider("num_gpus", _GPUS, num_gpus, "GPUs"),
            "mfu": _slider("mfu", _SHARES, mfu, "MFU"),
            "device": choice_menu("cost", "device", TDP_W, device, label="GPU", label_width="60px"),
            "grid": choice_menu("cost", "grid", _GRIDS, _RANGE, label="kg / kWh", width="260px", label_width="60px"),
        }
        self._text = ipywidgets.HTML()
        self.plot = _empty_plot()
        self._redraw()
        watch(self.controls, self._redraw)
        columns = (("num_parameters", "num_tokens"), ("num_gpus", "mfu"), ("device", "grid"))
        super().__init__([explorer_style("cost"), arrange(self.controls, *columns), self._text, self.plot])
        self.add_class("cost-explorer")

    @property
    def flops(self) -> float:
        """6 × parameters × tokens."""
        return training_flops(self.controls["num_parameters"].value, self.controls["num_tokens"].value)

    @property
    def cost(self) -> TrainingCost:
        """What the controls say, with all that follows."""
        device, grid = self.controls["device"].value, _GRIDS[self.controls["grid"].value]
        chosen = "chosen on the slider"
        assumed = assumptions_for(
            device,
            mfu=Assumption.exactly(self.controls["mfu"].value, "of the peak", chosen),
            grid_kg_per_kwh=GRID_KG_PER_KWH if grid is None else Assumption.exactly(grid, "kg CO2e per kWh", chosen),
        )
        dtype = "fp16" if device.startswith(("V100", "T4")) else "bf16"
        return training_cost(
            self.flops, device=device, num_gpus=self.controls["num_gpus"].value, dtype=dtype, assumptions=assumed
        )

    def figure(self) -> Picture:
        """The current choice as a static picture, for pages where no kernel runs."""
        cost = self.cost
        picture = Picture(summary(self.flops, cost), figsize=(9, 2.9))
        days, spread = picture.subplots(1, 2)
        counts, lasting = _days_by_gpus(cost)
        days.loglog(counts, lasting, color=palette.BLUE)
        days.plot(cost.num_gpus, cost.days.central, "o", color=palette.ORANGE, markersize=9)
        days.set_xlabel("GPUs")
        days.set_ylabel("days")
        for place, (name, low, high) in enumerate(spreads(cost)):
            spread.barh(place, high - low, left=low, color=palette.SKY)
            spread.text(high, place, f" {low:.2g} to {high:.2g} times" if high > low else " given", va="center", size=9)
            spread.text(0.012, place, name, va="center", size=9)
        spread.set(xscale="log", xlim=(0.01, 30), yticks=[], title="how far each assumption reaches")
        spread.invert_yaxis()
        for axes in (days, spread):
            axes.spines[["top", "right"]].set_visible(False)
        return picture

    def __repr__(self) -> str:
        """One line, as the widget's text alternative."""
        return f"CostCalculator({summary(self.flops, self.cost)})"

    def _redraw(self, _: Any = None) -> None:
        cost = self.cost
        counts, lasting = _days_by_gpus(cost)
        with self.plot.batch_update():
            line, here, bars = self.plot.data
            line.x, line.y = counts, lasting
            here.x, here.y = [cost.num_gpus], [cost.days.central]
            rows = spreads(cost)
            bars.x, bars.y = [high - low for _, low, high in rows], [name for name, _, _ in rows]
        bars.base = [low for _, low, _ in rows]  # not in the batch: it would be reset there for the lines
        self._text.value = summary_html(self.flops, cost)


def spreads(cost: TrainingCost) -> list[tuple[str, float, float]]:
    """How far each assumption reaches, relative to its central value: name, low, high."""
    found = {name: getattr(cost.assumptions, name) for name in _NAMES}
    return [(_NAMES[name], item.low / item.central, item.high / item.central) for name, item in found.items()]


def summary(flops: float, cost: TrainingCost) -> str:
    """The cost in one line of text."""
    price, carbon = cost.price_usd, cost.co2e_kg
    return (
        f"{format_flops(flops)} on {cost.num_gpus:,} GPUs: {cost.gpu_hours.central:,.3g} GPU-hours, "
        f"{cost.days.central:,.3g} days, {price.low:,.2g} to {price.high:,.2g} USD, {carbon.low / 1e3:,.2g} to "
        f"{carbon.high / 1e3:,.2g} t CO2e"
    )


def summary_html(flops: float, cost: TrainingCost) -> str:
    """A headline, and a line per quantity."""
    price = _number(cost.price_usd.central)
    headline = f"{cost.days.central:,.3g} days, {price} USD (central) for {format_flops(flops)}"
    rows = [[name, *(_number(value) for value in (item.low, item.central, item.high))] for name, item in cost.rows()]
    return summary_table("cost", headline, ("", "low", "central", "high"), rows)


def _number(value: float) -> str:
    return short(value) if value >= 1e6 else f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _days_by_gpus(cost: TrainingCost) -> tuple[list[int], list[float]]:
    counts = [count for _, count in _GPUS]
    return counts, [cost.gpu_hours.central / 24 / count for count in counts]


def _slider(name: str, options: list[tuple[str, Any]], value: Any, label: str) -> Any:
    return choice_slider("cost", name, options, value, label=label, width="285px")


def _empty_plot() -> Any:
    titles = ("days, if MFU stays", "how far each assumption reaches")
    plot = make_subplots(1, 2, horizontal_spacing=0.22, subplot_titles=titles)
    plot.add_scatter(mode="lines", line_color=palette.BLUE, hovertemplate="%{x:,} GPUs: %{y:.3g} days<extra></extra>",
                     row=1, col=1)  # fmt: skip
    marker = {"size": 13, "color": palette.ORANGE, "line": {"width": 1.5, "color": "white"}}
    plot.add_scatter(mode="markers", marker=marker, hoverinfo="skip", row=1, col=1)
    plot.add_bar(orientation="h", marker_color=palette.SKY, hoverinfo="skip", row=1, col=2)
    plot.update_xaxes(type="log", title_text="GPUs", row=1, col=1)
    plot.update_yaxes(type="log", title_text="days", row=1, col=1, tickformat="~g")
    plot.update_xaxes(range=[0, 3.4], title_text="times the central value", row=1, col=2)
    plot.update_yaxes(autorange="reversed", row=1, col=2)
    return live_plot(plot, width=850, height=280, showlegend=False)
