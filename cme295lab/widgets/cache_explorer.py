"""The cache explorer: change the order of programs, or the cache, and see which tiles are found in L2."""

from collections.abc import Sequence
from typing import Any

import ipywidgets
import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from cme295lab import palette
from cme295lab.hardware import DEVICES, get_device
from cme295lab.units import KiB, format_bytes
from cme295lab.widgets.cache_scenario import INNER_TILES, CacheScenario, cache_scenario
from cme295lab.widgets.controls import arrange, choice_menu, choice_slider, watch
from cme295lab.widgets.picture import Picture

_CHOICES: dict[str, Sequence[int]] = {
    "tiles": [8, 12, 16, 20, 24, 28, 32],
    "group": [1, 2, 3, 4, 6, 8, 12, 16, 32],
    "ctas_per_sm": [1, 2, 3, 4],
    "l2_kib": [128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536],
}
_LABELS = {
    "tiles": "tiles of C", "group": "group", "ctas_per_sm": "CTAs per SM", "l2_kib": "L2 cache", "device": "GPU",
    "show": "C shows",
}  # fmt: skip
_SHOW = {"found in L2": "hits", "which run together": "start"}
_BARS = ("asked for", "found in L2", "read from DRAM", "A and B once")
_BAR_COLOURS = (palette.GREY, palette.SKY, palette.VERMILLION, palette.PALE)
_MOST_READS = 8  # where the colour of the maps of A and B ends
# White and pale at what costs nothing; a map's other end differs in lightness too, for readers without its colour.
_READS = [[0.0, "#FFF7E6"], [0.15, palette.ORANGE], [1.0, "#7A2E00"]]
_HITS = [[0.0, "#F2F4F6"], [1.0, palette.BLUE]]
_HITS_HOVER = "row %{y}, column %{x}: %{z:.0%} found in L2<extra>C</extra>"
_STARTS_HOVER = "row %{y}, column %{x}: starts in wave %{z}<extra>C</extra>"
_STARTS = [[0.0, palette.BLUE], [0.5, palette.SKY], [1.0, "#F2F4F6"]]


class CacheExplorer(ipywidgets.VBox):
    """Sliders for the order of a matrix product's programs and for the cache; bars of bytes and maps of the tiles.

    All figures come from `cache_scenario`. Every control is in `controls` by name and may be set from Python.

    Args:
        tiles: tiles of 128 along each side of C.
        group: rows of tiles in a group; 1 is row by row.
        ctas_per_sm: programs that an SM runs at a time.
        l2_mib: capacity of the L2 cache in MiB.
        device: GPU, for its number of SMs.

    Raises:
        ValueError: if a value is none of the slider's, or the GPU is unknown.
    """

    def __init__(
        self, *, tiles: int = 32, group: int = 1, ctas_per_sm: int = 1, l2_mib: float = 2, device: str = "A100"
    ) -> None:
        values = {"tiles": tiles, "group": group, "ctas_per_sm": ctas_per_sm, "l2_kib": round(l2_mib * 1024)}
        self.controls: dict[str, Any] = {name: _slider(name, value) for name, value in values.items()}
        gpu = get_device(device).name
        self.controls["device"] = _dropdown("device", list(DEVICES), gpu)
        self.controls["show"] = _dropdown("show", list(_SHOW), "found in L2")
        self._text = ipywidgets.HTML()
        self.plot = _empty_plot()
        self._look: dict[str, Any] = {}
        self._redraw()
        watch(self.controls, self._redraw)
        controls = arrange(self.controls, ("tiles", "group"), ("ctas_per_sm", "l2_kib"), ("device", "show"))
        super().__init__([ipywidgets.HTML(_STYLE), controls, self._text, self.plot])
        self.add_class("cache-explorer")

    @property
    def scenario(self) -> CacheScenario:
        """What the controls say, with all the numbers that follow."""
        values = {name: control.value for name, control in self.controls.items() if name != "show"}
        return cache_scenario(l2_bytes=values.pop("l2_kib") * KiB, **values)

    def figure(self) -> Picture:
        """The current scenario as a static picture, for pages where no kernel runs."""
        scenario = self.scenario
        picture = Picture(summary(scenario), figsize=(9.6, 4.2))
        grid = picture.add_gridspec(2, 3, width_ratios=(1.5, 0.45, 1.6), height_ratios=(0.45, 1.6))
        bars = picture.add_subplot(grid[:, 0])
        values = _bar_values(scenario)
        drawn = bars.barh(range(len(values)), values, color=_BAR_COLOURS)
        bars.bar_label(drawn, [format_bytes(value) for value in values], padding=4, fontsize=9)
        bars.set_yticks(range(len(values)), _BARS)
        bars.invert_yaxis()
        bars.margins(x=0.3)
        bars.xaxis.set_visible(False)
        bars.spines[["top", "right", "bottom"]].set_visible(False)
        bars.set_title(f"{_order(scenario)}, L2 of {format_bytes(scenario.l2_bytes, binary=True)}", loc="left", size=11)
        reads = (_READS, (1, _MOST_READS))
        _draw_map(picture.add_subplot(grid[0, 2]), scenario.b_reads, "B: reads of each tile from DRAM", *reads)
        _draw_map(picture.add_subplot(grid[1, 1]), scenario.a_reads, "A: reads", *reads)
        _draw_map(picture.add_subplot(grid[1, 2]), scenario.hit_share, "C: share found in L2", _HITS, (0, 1))
        return picture

    def __repr__(self) -> str:
        """One line, as the widget's text alternative."""
        return f"CacheExplorer({summary(self.scenario)})"

    def _redraw(self, _: Any = None) -> None:
        scenario, shows_hits = self.scenario, _SHOW[self.controls["show"].value] == "hits"
        values = _bar_values(scenario)
        self._colour_c(shows_hits, scenario)
        with self.plot.batch_update():
            bar, a, b, c = self.plot.data
            bar.x, bar.text = values, [format_bytes(value) for value in values]
            a.z, b.z = scenario.a_reads, scenario.b_reads
            c.z = scenario.hit_share if shows_hits else scenario.start
        self._text.value = summary_html(scenario)

    def _colour_c(self, shows_hits: bool, scenario: CacheScenario) -> None:
        """Colours of the map of C. Not within a batch of updates: there, plotly resets what other maps have set."""
        look = {"zmin": 0, "zmax": 1, "colorscale": _HITS, "hovertemplate": _HITS_HOVER}
        if not shows_hits:
            look |= {"zmax": max(int(scenario.start.max()), 1), "colorscale": _STARTS, "hovertemplate": _STARTS_HOVER}
        if look != self._look:
            self._look = look
            self.plot.data[3].update(look)
            self.plot.layout.annotations[3].text = "C: share found in L2" if shows_hits else "C: wave by wave"


def summary(scenario: CacheScenario) -> str:
    """The scenario in one line of text."""
    return (
        f"{scenario.size} × {INNER_TILES * 128} times {INNER_TILES * 128} × {scenario.size} in float16, "
        f"{_order(scenario)}, {scenario.num_running} programs at a time, "
        f"L2 of {format_bytes(scenario.l2_bytes, binary=True)}: {format_bytes(scenario.requested_bytes)} of A and B "
        f"asked for, {format_bytes(scenario.dram_read_bytes)} read from DRAM, {_times(scenario)} A and B once."
    )


def summary_html(scenario: CacheScenario) -> str:
    """The headline, and what the programs that run together need."""
    rows, columns = scenario.first_wave
    share = scenario.hit_bytes / scenario.requested_bytes
    return (
        f'<div class="cache-summary" role="status"><b>{format_bytes(scenario.dram_read_bytes)} from DRAM, '
        f"{_times(scenario)} A and B once</b><br>"
        f"{share:.1%} of what is asked for is found in L2. The first {min(scenario.num_running, scenario.tiles**2)} "
        f"programs run together; they need {rows} rows of tiles of A and {columns} columns of tiles of B.</div>"
    )


def _times(scenario: CacheScenario) -> str:
    return f"{scenario.dram_read_bytes / scenario.distinct_bytes:.2f} times"


def _order(scenario: CacheScenario) -> str:
    return "row by row" if scenario.group == 1 else f"groups of {scenario.group} rows"


def _bar_values(scenario: CacheScenario) -> list[int]:
    return [scenario.requested_bytes, scenario.hit_bytes, scenario.dram_read_bytes, scenario.distinct_bytes]


def _draw_map(axes: Any, values: np.ndarray, title: str, colours: list[list[Any]], limits: tuple[float, float]) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list(title, [(at, colour) for at, colour in colours])
    image = axes.pcolormesh(values, cmap=shades, vmin=limits[0], vmax=limits[1], edgecolors="white", linewidth=0.4)
    axes.invert_yaxis()
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    if not title.startswith("A"):
        ticks = [1, 4, 8] if title.startswith("B") else [0, 0.5, 1]
        axes.figure.colorbar(image, ax=axes, ticks=ticks)


_STYLE = """<style>
.cache-explorer { --cache-text: var(--jp-content-font-color1, currentColor); max-width: 980px; }
.cache-explorer .main-svg text { fill: var(--cache-text) !important; }
.cache-explorer .widget-html-content { white-space: normal; }
.cache-explorer .cache-summary { color: var(--cache-text); font-size: 13px; line-height: 1.45; }
.cache-explorer .cache-summary b { font-size: 17px; font-weight: 600; }
</style>"""


def _text_of(name: str, choice: int) -> str:
    if name == "l2_kib":
        return format_bytes(choice * KiB, binary=True)
    if name == "group":
        return "1 row" if choice == 1 else f"{choice} rows"
    return f"{choice} × {choice}" if name == "tiles" else f"{choice}"


def _slider(name: str, value: int) -> Any:
    options = [(_text_of(name, choice), choice) for choice in _CHOICES[name]]
    return choice_slider("cache", name, options, value, label=_LABELS[name], width="310px", label_width="82px")


def _dropdown(name: str, options: list[str], value: str) -> Any:
    return choice_menu("cache", name, options, value, label=_LABELS[name], label_width="60px")


_PLOT_WIDTH, _PLOT_HEIGHT = 900, 430  # pixels; left to plotly they would change with the window's size


def _empty_plot() -> Any:
    """Bars and maps without numbers; `_redraw` fills them in place."""
    plot = make_subplots(
        2, 3, column_widths=(0.42, 0.12, 0.46), row_heights=(0.2, 0.8), horizontal_spacing=0.03, vertical_spacing=0.1,
        specs=[[{"rowspan": 2}, None, {}], [None, {}, {}]],
        subplot_titles=("bytes of A and B", "B: reads of each tile from DRAM", "A: reads", "C: share found in L2"),
    )  # fmt: skip
    at = list(range(len(_BARS)))
    plot.add_bar(y=at, x=at, orientation="h", marker_color=_BAR_COLOURS, textposition="outside", cliponaxis=False,
                 hoverinfo="skip", row=1, col=1)  # fmt: skip
    reads = {"colorscale": _READS, "zmin": 1, "zmax": _MOST_READS, "xgap": 1, "ygap": 1}
    hover = "row %{y}, column %{x}: read %{z} times<extra>"
    plot.add_heatmap(z=[[1]], **reads, showscale=False, hovertemplate=hover + "A</extra>", row=2, col=2)
    plot.add_heatmap(z=[[1]], **reads, hovertemplate=hover + "B</extra>", row=1, col=3,
                     colorbar={"len": 0.32, "y": 0.93, "thickness": 10, "tickvals": [1, 4, 8],
                               "ticktext": ["1×", "4×", "8× +"]})  # fmt: skip
    plot.add_heatmap(z=[[1]], xgap=1, ygap=1, showscale=False, row=2, col=3)
    plot.update_xaxes(rangemode="tozero", tickformat="~s", ticksuffix="B", nticks=5, row=1, col=1,
                      gridcolor="rgba(127,134,141,0.3)", zerolinecolor="rgba(127,134,141,0.6)")  # fmt: skip
    plot.update_yaxes(autorange="reversed", tickvals=at, ticktext=[f"{name} " for name in _BARS], row=1, col=1)
    for row, col in ((1, 3), (2, 2), (2, 3)):
        plot.update_xaxes(showticklabels=False, showgrid=False, zeroline=False, row=row, col=col)
        plot.update_yaxes(showticklabels=False, showgrid=False, zeroline=False, autorange="reversed", row=row, col=col)
    clear = "rgba(0,0,0,0)"
    plot.update_annotations(font_size=12)
    plot.update_layout(height=_PLOT_HEIGHT, width=_PLOT_WIDTH, margin={"l": 10, "r": 10, "t": 40, "b": 30}, bargap=0.45,
                       paper_bgcolor=clear, plot_bgcolor=clear, font={"size": 12, "family": "system-ui, sans-serif"},
                       uirevision="same", showlegend=False)  # fmt: skip
    widget = go.FigureWidget(plot)
    widget._config = {"displayModeBar": False}
    return widget
