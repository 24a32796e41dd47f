"""The traffic explorer: move a slider and see what attention costs in bytes, and where it stands under a GPU's roof."""

from collections.abc import Sequence
from typing import Any

import ipywidgets
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from cme295lab import palette
from cme295lab.hardware import DEVICES, Device, get_device
from cme295lab.units import KiB, format_bytes, format_rate
from cme295lab.widgets.controls import choice_menu, choice_slider
from cme295lab.widgets.figures import RooflinePoint, draw_bars, draw_roofline, roofline_text
from cme295lab.widgets.picture import Picture
from cme295lab.widgets.traffic_scenario import TrafficScenario, traffic_scenario
from cme295lab.widgets.traffic_text import STYLE, headline, summary_html, summary_text
from cme295lab.widgets.working_set import ELEMENT_BYTES

_CHOICES: dict[str, Sequence[int]] = {
    "seq": [2**power for power in range(6, 18)],
    "head_dim": [16, 32, 64, 128, 256],
    "num_heads": [2**power for power in range(13)],
    "block_m": [16, 32, 64, 128, 256],
    "block_n": [16, 32, 64, 128, 256],
    "sram_kib": [32, 48, 64, 96, 128, 160, 192, 224, 256, 384, 512],
}
_LABELS = {
    "seq": "sequence N", "head_dim": "head dim d", "num_heads": "B × heads", "block_m": "BLOCK_M",
    "block_n": "BLOCK_N", "sram_kib": "SRAM, KiB", "dtype": "dtype", "device": "GPU", "causal": "causal",
    "backward": "and backward", "log": "log scale",
}  # fmt: skip
_COLOURS = {"standard": palette.VERMILLION, "flash": palette.BLUE}
_BAR_COLOURS = (palette.VERMILLION, palette.BLUE, palette.PURPLE, palette.GREY)


class TrafficExplorer(ipywidgets.VBox):
    """Sliders for the sizes of an attention call; bars of its bytes, its place in the roofline, and whether it fits.

    All figures come from `traffic_scenario`; the same arguments give the same numbers without a widget. Every control
    is in `controls` by name and may be set from Python.

    Args:
        seq: sequence length N.
        head_dim: width d of a head.
        num_heads: heads times batch: independent attention problems.
        block_m: rows of Q per program.
        block_n: rows of K and V per step.
        device: GPU.
        dtype: "fp16", "bf16" or "fp32".
        causal: query i sees keys up to i only.
        backward: count the backward pass too.

    Raises:
        ValueError: if a value is none of the slider's, or the GPU is unknown.
    """

    def __init__(
        self,
        *,
        seq: int = 1024,
        head_dim: int = 64,
        num_heads: int = 1024,
        block_m: int = 128,
        block_n: int = 64,
        device: str | Device = "A100",
        dtype: str = "fp16",
        causal: bool = False,
        backward: bool = False,
    ) -> None:
        gpu = get_device(device)
        sizes = {"seq": seq, "head_dim": head_dim, "num_heads": num_heads, "block_m": block_m, "block_n": block_n}
        self.controls: dict[str, Any] = {name: _slider(name, value) for name, value in sizes.items()}
        self.controls["sram_kib"] = _slider("sram_kib", gpu.sram_bytes_per_sm // KiB)
        self.controls |= {
            "device": _dropdown("device", DEVICES, gpu.name),
            "dtype": _dropdown("dtype", _dtypes(gpu), dtype),
            "causal": _checkbox("causal", causal),
            "backward": _checkbox("backward", backward),
            "log": _checkbox("log", False),
        }
        self._text = ipywidgets.HTML()
        self.plot = _empty_plot()
        self._redraw()
        for name, control in self.controls.items():
            control.observe(self._device_changed if name == "device" else self._redraw, "value")
        super().__init__([*self._layout()])
        self.add_class("traffic-explorer")

    @property
    def scenario(self) -> TrafficScenario:
        """What the controls say, with all the numbers that follow."""
        values = {name: control.value for name, control in self.controls.items() if name != "log"}
        return traffic_scenario(sram_bytes=values.pop("sram_kib") * KiB, **values)

    def figure(self) -> Picture:
        """The current scenario as a static picture, for pages where no kernel runs."""
        scenario = self.scenario
        costs = {"standard": scenario.standard, "flash": scenario.flash}
        points = [RooflinePoint(label=name, flops=cost.flops, num_bytes=cost.num_bytes) for name, cost in costs.items()]
        text = roofline_text(points, scenario.device, scenario.dtype)
        picture = Picture(f"{summary_text(scenario)} {text}", figsize=(9.6, 3.5))
        bars, roof = picture.subplots(1, 2, width_ratios=(0.9, 1))
        draw_bars(bars, {"HBM traffic": scenario.bars}, list(scenario.bars))
        for bar, colour in zip(bars.patches, _BAR_COLOURS, strict=True):
            bar.set_color(colour)
        bars.set_title(headline(scenario), loc="left", fontsize=11)
        bars.locator_params(axis="x", nbins=4)
        draw_roofline(roof, points, scenario.device, scenario.dtype)
        return picture

    def __repr__(self) -> str:
        """One line, as the widget's text alternative."""
        return f"TrafficExplorer({summary_text(self.scenario)})"

    def _layout(self) -> list[Any]:
        def column(names: Sequence[str], width: str) -> Any:
            return ipywidgets.VBox([self.controls[name] for name in names], layout=ipywidgets.Layout(width=width))

        call = column(("seq", "head_dim", "num_heads"), "282px")
        chip = column(("block_m", "block_n", "sram_kib"), "282px")
        machine = column(("device", "dtype"), "205px")
        switches = ipywidgets.HBox([self.controls[name] for name in ("causal", "backward", "log")])
        row = ipywidgets.Layout(display="flex", flex_flow="row wrap")
        controls = ipywidgets.Box([call, chip, ipywidgets.VBox([machine, switches])], layout=row)
        return [ipywidgets.HTML(STYLE), controls, self._text, self.plot]

    def _device_changed(self, change: dict[str, Any]) -> None:
        gpu = get_device(change["new"])
        dtype = self.controls["dtype"]
        kept = dtype.value if dtype.value in _dtypes(gpu) else "fp16"
        with self.hold_trait_notifications():
            dtype.options, dtype.value = _dtypes(gpu), kept
            self.controls["sram_kib"].value = gpu.sram_bytes_per_sm // KiB
        self._redraw()

    def _redraw(self, _: Any = None) -> None:
        scenario = self.scenario
        bars = scenario.bars
        with self.plot.batch_update():
            bar, roof, ridge, standard, flash = self.plot.data
            bar.x, bar.text = list(bars.values()), [format_bytes(value) for value in bars.values()]
            peak, bandwidth = scenario.device.peak(scenario.dtype), scenario.device.bandwidth_bytes_per_s
            at = scenario.device.ridge_point(scenario.dtype)
            low, high = _ROOFLINE_RANGE
            roof.x, roof.y = [low, at, high], [low * bandwidth, peak, peak]
            ridge.x, ridge.y, ridge.text = [at], [peak], [f"ridge {at:.0f} FLOP/B"]
            for point, cost in ((standard, scenario.standard), (flash, scenario.flash)):
                point.x, point.y = [cost.intensity], [min(peak, cost.intensity * bandwidth)]
                point.text = [f"{cost.intensity:.3g}"]
            self.plot.layout.xaxis.type = "log" if self.controls["log"].value else "linear"
            self.plot.layout.annotations[
                1
            ].text = f"Roofline: {format_rate(peak, 'FLOP/s')}, {format_rate(bandwidth, 'B/s')}"
        self._text.value = summary_html(scenario)


_PLOT_WIDTH = 860  # pixels; left to plotly it would be 700 at first and change with the window's size
_ROOFLINE_RANGE = (0.5, 20_000.0)  # FLOP per byte; wide enough for every setting of the sliders


def _slider(name: str, value: int) -> Any:
    options = [(f"{choice:,}", choice) for choice in _CHOICES[name]]
    return choice_slider("traffic", name, options, value, label=_LABELS[name], width="274px")


def _dropdown(name: str, options: Any, value: str) -> Any:
    look = {"width": "195px", "label_width": "45px"}
    return choice_menu("traffic", name, options, value, label=_LABELS[name], **look)


def _checkbox(name: str, value: bool) -> Any:
    box = ipywidgets.Checkbox(value=value, description=_LABELS[name], indent=False)
    box.layout.width, box.layout.margin = "auto", "0 8px 0 0"
    box.add_class(f"traffic-{name}")
    return box


def _dtypes(device: Device) -> list[str]:
    return [dtype for dtype in ELEMENT_BYTES if dtype in device.peak_flops_per_s]


def _empty_plot() -> Any:
    """The two charts without numbers; `_redraw` fills them in place."""
    plot = make_subplots(1, 2, column_widths=(0.5, 0.5), horizontal_spacing=0.14, subplot_titles=("HBM traffic", " "))
    names = TrafficScenario.BAR_NAMES
    at = list(range(len(names)))
    plot.add_bar(y=at, x=at, orientation="h", marker_color=_BAR_COLOURS, textposition="outside", cliponaxis=False,
                 hoverinfo="skip", row=1, col=1)  # fmt: skip
    line = {"color": palette.GREY, "width": 2.5}
    plot.add_scatter(mode="lines", line=line, hoverinfo="skip", row=1, col=2)
    plot.add_scatter(mode="markers+text", marker={"color": palette.GREY, "size": 7}, textposition="top center",
                     hoverinfo="skip", row=1, col=2)  # fmt: skip
    for name, symbol in (("standard", "circle"), ("flash", "square")):
        marker = {"color": _COLOURS[name], "size": 13, "symbol": symbol, "line": {"width": 1.5, "color": "white"}}
        plot.add_scatter(mode="markers+text", marker=marker, name=name, textposition="bottom center",
                         hovertemplate="%{x:.3g} FLOP/B, %{y:.3s}FLOP/s<extra>" + name + "</extra>",
                         row=1, col=2)  # fmt: skip
    grid = {"gridcolor": "rgba(127,134,141,0.3)", "zerolinecolor": "rgba(127,134,141,0.6)"}
    plot.update_xaxes(rangemode="tozero", tickformat="~s", ticksuffix="B", row=1, col=1)
    plot.update_yaxes(autorange="reversed", tickvals=at, ticktext=[f"{name} " for name in names], row=1, col=1)
    plot.update_xaxes(type="log", range=[-0.3, 4.3], title_text="FLOP per byte of HBM traffic", row=1, col=2,
                      tickvals=[1, 10, 100, 1000, 10000], ticktext=["1", "10", "100", "1,000", "10,000"])  # fmt: skip
    plot.update_yaxes(type="log", range=[11, 15.8], title_text="attainable FLOP/s", row=1, col=2,
                      tickvals=[1e11, 1e12, 1e13, 1e14, 1e15],
                      ticktext=["100 G", "1 T", "10 T", "100 T", "1 P"])  # fmt: skip
    plot.update_xaxes(**grid)
    plot.update_yaxes(**grid)
    plot.update_yaxes(showgrid=False, zeroline=False, row=1, col=1)
    plot.update_traces(showlegend=False)
    clear = "rgba(0,0,0,0)"
    plot.update_layout(height=300, margin={"l": 10, "r": 20, "t": 40, "b": 45}, width=_PLOT_WIDTH, bargap=0.35,
                       paper_bgcolor=clear, plot_bgcolor=clear, font={"size": 12, "family": "system-ui, sans-serif"},
                       uirevision="same")  # fmt: skip
    widget = go.FigureWidget(plot)
    widget._config = {"displayModeBar": False}
    return widget
