"""The trade-off explorer: a slider for the link between GPUs, and for each ZeRO stage its memory and its step time."""

from typing import Any

import ipywidgets
from plotly.subplots import make_subplots

from cme295lab import palette
from cme295lab.hardware import DEVICES, get_device
from cme295lab.units import format_bytes, format_rate, format_seconds
from cme295lab.widgets.controls import (
    arrange,
    choice_menu,
    choice_slider,
    explorer_style,
    live_plot,
    nearest_choice,
    summary_table,
    watch,
)
from cme295lab.widgets.picture import Picture
from cme295lab.widgets.trade_off_scenario import TradeOff, trade_off

_NAMES = ("data parallel", "ZeRO-1", "ZeRO-2", "ZeRO-3")
_PARAMETERS = {"124 M": 124e6, "1.5 B": 1.5e9, "7.5 B": 7.5e9, "13 B": 13e9, "70 B": 70e9, "175 B": 175e9}
_LINKS = {  # bytes per second and direction, and what has about that bandwidth
    1.25e9: "10 Gb Ethernet", 3.125e9: "25 Gb Ethernet", 6.25e9: "", 12.5e9: "100 Gb Ethernet", 25e9: "InfiniBand HDR",
    50e9: "InfiniBand NDR", 100e9: "", 200e9: "", 300e9: "NVLink of an A100", 450e9: "NVLink of an H100",
    900e9: "NVLink of a B200",
}  # fmt: skip
_RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_TOKENS = tuple(512 * 2**power for power in range(8))
_OVERLAPS = (0.0, 0.5, 0.8, 0.9, 0.95, 1.0)
_PLOT_WIDTH = 880


class TradeOffExplorer(ipywidgets.VBox):
    """Sliders for a model, the number of GPUs and their link; for each ZeRO stage bytes per GPU and time per step.

    All figures come from `trade_off`. Every control is in `controls` by name and may be set from Python.

    Args:
        parameters: size of the model: "124 M", "1.5 B", "7.5 B", "13 B", "70 B" or "175 B".
        num_ranks: GPUs, a power of two up to 1,024.
        tokens_per_gpu: tokens per GPU and step, 512 to 65,536.
        link_bytes_per_s: bandwidth of a GPU's link in one direction; the nearest on the slider is taken.
        overlap: share of communication that may hide behind computing: 0, 0.5, 0.8, 0.9, 0.95 or 1.
        device: GPU.

    Raises:
        ValueError: if a value is none of the controls'.
    """

    def __init__(
        self,
        *,
        parameters: str = "7.5 B",
        num_ranks: int = 64,
        tokens_per_gpu: int = 4096,
        link_bytes_per_s: float = 50e9,
        overlap: float = 0.9,
        device: str = "A100",
    ) -> None:
        links = [(_link(rate), rate) for rate in _LINKS]
        link = nearest_choice(links, link_bytes_per_s)
        self.controls: dict[str, Any] = {
            "parameters": _dropdown("parameters", list(_PARAMETERS), parameters),
            "device": _dropdown("device", list(DEVICES), get_device(device).name),
            "num_ranks": _slider("num_ranks", [(f"{n:,}", n) for n in _RANKS], num_ranks),
            "tokens_per_gpu": _slider("tokens_per_gpu", [(f"{n:,}", n) for n in _TOKENS], tokens_per_gpu),
            "link_bytes_per_s": _slider("link_bytes_per_s", links, link, width="520px"),
            "overlap": _slider("overlap", [(f"{share:.0%}", share) for share in _OVERLAPS], overlap),
        }
        self._text = ipywidgets.HTML()
        self.plot = _empty_plot()
        self._redraw()
        watch(self.controls, self._redraw)
        columns = (("parameters", "device"), ("num_ranks", "tokens_per_gpu"), ("link_bytes_per_s", "overlap"))
        style = explorer_style("trade", _READOUT)
        super().__init__([style, arrange(self.controls, *columns), self._text, self.plot])
        self.add_class("trade-explorer")

    @property
    def scenario(self) -> TradeOff:
        """What the controls say, with all the numbers that follow."""
        values = {name: control.value for name, control in self.controls.items()}
        return trade_off(num_parameters=_PARAMETERS[values.pop("parameters")], **values)

    def figure(self) -> Picture:
        """The current scenario as a static picture, for pages where no kernel runs."""
        scenario = self.scenario
        picture = Picture(summary(scenario), figsize=(9, 3))
        memory, times = picture.subplots(1, 2)
        values = [cost.state_bytes for cost in scenario.stages]
        bars = memory.bar(_NAMES, values, color=palette.GREEN)
        memory.bar_label(bars, [format_bytes(value) for value in values], padding=2, fontsize=9)
        memory.axhline(scenario.device.memory_bytes, color=palette.VERMILLION, linewidth=1.5)
        memory.set_title(f"states per GPU; line: {scenario.device.name}", loc="left", fontsize=10)
        memory.yaxis.set_major_formatter(lambda value, _: format_bytes(value))
        compute = [cost.time.compute_s for cost in scenario.stages]
        times.bar(_NAMES, compute, color=palette.BLUE, label="computing")
        waiting = [cost.time.exposed_s for cost in scenario.stages]
        style: dict[str, Any] = {"color": palette.ORANGE, "label": "waiting for the link", "hatch": "//"}
        bars = times.bar(_NAMES, waiting, bottom=compute, **style)
        times.bar_label(bars, [format_seconds(c.time.step_s) for c in scenario.stages], padding=2, fontsize=9)
        times.set_title(f"time of a step at {format_rate(scenario.link_bytes_per_s, 'B/s')}", loc="left", fontsize=10)
        times.yaxis.set_major_formatter(lambda value, _: format_seconds(value))
        times.legend(frameon=False, fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.1))
        for axes in (memory, times):
            axes.spines[["top", "right"]].set_visible(False)
            axes.margins(y=0.15)
        return picture

    def __repr__(self) -> str:
        """One line, as the widget's text alternative."""
        return f"TradeOffExplorer({summary(self.scenario)})"

    def _redraw(self, _: Any = None) -> None:
        scenario = self.scenario
        states = [cost.state_bytes for cost in scenario.stages]
        with self.plot.batch_update():
            memory, computing, waiting = self.plot.data
            memory.y, memory.text = states, [format_bytes(value) for value in states]
            computing.y = [cost.time.compute_s for cost in scenario.stages]
            waiting.y = [cost.time.exposed_s for cost in scenario.stages]
            waiting.text = [format_seconds(cost.time.step_s) for cost in scenario.stages]
            capacity = scenario.device.memory_bytes
            self.plot.layout.shapes[0].update(y0=capacity, y1=capacity)
            self.plot.layout.yaxis.range = [0, 1.2 * max(states[0], capacity)]
            self.plot.layout.yaxis2.range = [0, 1.2 * max(cost.time.step_s for cost in scenario.stages)]
        self._text.value = summary_html(scenario)


def summary(scenario: TradeOff) -> str:
    """The scenario in one line of text."""
    stages = "; ".join(
        f"{name} {format_bytes(cost.state_bytes)} per GPU, {format_seconds(cost.time.step_s)} per step"
        for name, cost in zip(_NAMES, scenario.stages, strict=True)
    )
    return (
        f"{scenario.num_parameters:.3g} parameters on {scenario.num_ranks} {scenario.device.name}, "
        f"{format_rate(scenario.link_bytes_per_s, 'B/s')} each way: {stages}. {advice(scenario)}"
    )


def advice(scenario: TradeOff) -> str:
    """Which stage to take, and what stage 3 costs."""
    best = scenario.cheapest_that_fits
    plain, full = scenario.stages[0].time.step_s, scenario.stages[3].time.step_s
    cost = f"ZeRO-3 takes {full / plain - 1:.1%} longer than plain data parallelism"
    if best is None:
        return f"No stage fits: more GPUs, or another kind of parallelism. {cost}."
    return f"The fastest that fits is {_NAMES[best.stage]}. {cost}."


def summary_html(scenario: TradeOff) -> str:
    """The advice, and a line per stage."""
    rows = [
        [name, format_bytes(cost.state_bytes), format_bytes(cost.time.sent_bytes),
         format_seconds(cost.time.communication_s), format_seconds(cost.time.exposed_s),
         format_seconds(cost.time.step_s), f"{cost.time.efficiency:.1%}"]
        for name, cost in zip(_NAMES, scenario.stages, strict=True)
    ]  # fmt: skip
    head = ("", "states per GPU", "sent per step", "communication", "not hidden", "step", "computing")
    return summary_table("trade", advice(scenario), head, rows)


def _link(rate: float) -> str:
    text = format_rate(rate, "B/s")
    return f"{text}: {_LINKS[rate]}" if _LINKS[rate] else text


_LABELS = {"parameters": "parameters", "device": "GPU", "num_ranks": "GPUs", "tokens_per_gpu": "tokens / GPU",
           "link_bytes_per_s": "link", "overlap": "overlap"}  # fmt: skip


def _slider(name: str, options: list[tuple[str, Any]], value: Any, width: str = "300px") -> Any:
    return choice_slider("trade", name, options, value, label=_LABELS[name], width=width)


def _dropdown(name: str, options: list[str], value: str) -> Any:
    return choice_menu("trade", name, options, value, label=_LABELS[name])


_READOUT = """.trade-explorer .trade-link_bytes_per_s .widget-readout {
  max-width: none; min-width: 190px; text-align: left;
}
"""


def _empty_plot() -> Any:
    """Both charts without numbers; `_redraw` fills them in place."""
    plot = make_subplots(1, 2, horizontal_spacing=0.12, subplot_titles=("states per GPU", "time of a step"))
    zeros = [0] * len(_NAMES)
    plot.add_bar(x=_NAMES, y=zeros, name="states", marker_color=palette.GREEN, textposition="outside", row=1, col=1)
    plot.add_bar(x=_NAMES, y=zeros, name="computing", marker_color=palette.BLUE, row=1, col=2)
    plot.add_bar(x=_NAMES, y=zeros, name="waiting for the link", marker_color=palette.ORANGE, textposition="outside",
                 marker_pattern_shape="/", row=1, col=2)  # fmt: skip
    line = {"color": palette.VERMILLION, "width": 2}
    plot.add_shape(type="line", x0=-0.5, x1=3.5, y0=0, y1=0, line=line, row=1, col=1)
    plot.update_yaxes(tickformat="~s")
    plot.update_yaxes(ticksuffix="B", row=1, col=1)
    plot.update_yaxes(ticksuffix="s", row=1, col=2)
    return live_plot(plot, width=_PLOT_WIDTH, height=290, barmode="stack", bargap=0.35, legend={"orientation": "h"},
                     margin={"l": 50, "r": 10, "t": 30, "b": 30})  # fmt: skip
