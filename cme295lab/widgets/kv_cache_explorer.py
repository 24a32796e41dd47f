"""The KV cache explorer: choose a model, a context and GPUs; see what the cache takes, what fits, how fast."""

from collections.abc import Sequence
from typing import Any

import ipywidgets
from plotly.subplots import make_subplots

from cme295lab import palette
from cme295lab.hardware import DEVICES, get_device
from cme295lab.transformer import PRESETS
from cme295lab.units import format_bytes, format_seconds
from cme295lab.widgets.controls import (
    arrange,
    choice_menu,
    choice_slider,
    explorer_style,
    live_plot,
    summary_table,
    watch,
)
from cme295lab.widgets.kv_cache_scenario import DTYPES, KvCacheScenario, kv_cache_scenario
from cme295lab.widgets.memory_colours import COLOURS
from cme295lab.widgets.picture import Picture

_CHOICES: dict[str, Sequence[tuple[str, int]]] = {
    "seq": [(f"{2**power:,}", 2**power) for power in range(7, 21)],
    "batch": [(f"{2**power}", 2**power) for power in range(0, 10)],
    "num_gpus": [(f"{n}", n) for n in (1, 2, 4, 8, 16)],
}
_LABELS = {"seq": "context", "batch": "sequences", "num_gpus": "GPUs"}


class KvCacheExplorer(ipywidgets.VBox):
    """Menus for model, GPU and number format, sliders for context, batch and GPUs; bars of weights and cache.

    All figures come from `kv_cache_scenario`. Every control is in `controls` by name and may be set from Python.

    Args:
        model: a preset.
        seq: tokens of context in each sequence, a power of two from 128 to 1,048,576.
        batch: sequences, a power of two up to 512.
        dtype: "bf16", "fp16", "fp32" or "fp8", of weights and cache.
        device: GPU.
        num_gpus: 1, 2, 4, 8 or 16.

    Raises:
        ValueError: if a value is none of the controls', or the GPU is unknown.
    """

    def __init__(
        self, *, model: str = "llama-2-7b", seq: int = 4096, batch: int = 1, dtype: str = "bf16", device: str = "A100",
        num_gpus: int = 1,
    ) -> None:  # fmt: skip
        values = {"seq": seq, "batch": batch, "num_gpus": num_gpus}
        self.controls: dict[str, Any] = {
            "model": choice_menu("kv", "model", PRESETS, model, label="model", label_width="60px"),
            "device": choice_menu("kv", "device", DEVICES, get_device(device).name, label="GPU", label_width="60px"),
            "dtype": choice_menu("kv", "dtype", DTYPES, dtype, label="format", label_width="60px"),
        }
        self.controls |= {
            name: choice_slider("kv", name, _CHOICES[name], value, label=_LABELS[name])
            for name, value in values.items()
        }
        self._text = ipywidgets.HTML()
        self.plot = _empty_plot()
        self._redraw()
        watch(self.controls, self._redraw)
        controls = arrange(self.controls, ("model", "device"), ("dtype", "num_gpus"), ("seq", "batch"))
        super().__init__([explorer_style("kv"), controls, self._text, self.plot])
        self.add_class("kv-explorer")

    @property
    def scenario(self) -> KvCacheScenario:
        """What the controls say, with all the numbers that follow."""
        return kv_cache_scenario(**{name: control.value for name, control in self.controls.items()})

    def figure(self) -> Picture:
        """The current scenario as a static picture, for pages where no kernel runs."""
        scenario = self.scenario
        picture = Picture(summary(scenario), figsize=(9, 2.9))
        axes, tokens = picture.subplots(1, 2, width_ratios=(2, 1), sharey=True)
        names = [layout.label for layout in scenario.layouts]
        weights = [scenario.weight_bytes] * len(names)
        caches = [layout.cache_bytes for layout in scenario.layouts]
        axes.barh(names, weights, color=COLOURS["weight"], label="weights")
        bars = axes.barh(names, caches, left=weights, color=COLOURS["KV cache"], label="keys and values")
        axes.bar_label(bars, [format_bytes(cache, binary=True) for cache in caches], padding=4, fontsize=9)
        axes.axvline(scenario.capacity_bytes, color=palette.VERMILLION, linewidth=2)
        axes.xaxis.set_major_formatter(lambda value, _: format_bytes(value))
        axes.set_xlabel(f"bytes on {_gpus(scenario)} (line: capacity)")
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.legend(frameon=False, fontsize=9, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
        drawn = tokens.barh(names, [layout.bytes_per_token for layout in scenario.layouts], color=palette.SKY)
        tokens.bar_label(drawn, [f"{layout.bytes_per_token:,}" for layout in scenario.layouts], padding=4, fontsize=9)
        tokens.xaxis.set_major_formatter(lambda value, _: format_bytes(value))
        tokens.set_xlabel("bytes per token")
        tokens.margins(x=0.45)
        tokens.locator_params(axis="x", nbins=4)
        for one in (axes, tokens):
            one.spines[["top", "right"]].set_visible(False)
        return picture

    def __repr__(self) -> str:
        """One line, as the widget's text alternative."""
        return f"KvCacheExplorer({summary(self.scenario)})"

    def _redraw(self, _: Any = None) -> None:
        try:
            scenario = self.scenario
        except ValueError as error:
            self._text.value = f'<div class="kv-summary" role="status"><b>Not possible: {error}</b></div>'
            return
        at = list(range(len(scenario.layouts)))  # names as places would stay in the order of their first appearance
        caches = [layout.cache_bytes for layout in scenario.layouts]
        capacity = scenario.capacity_bytes
        with self.plot.batch_update():
            weight, cache, tokens = self.plot.data
            weight.y, weight.x = at, [scenario.weight_bytes] * len(at)
            cache.y, cache.x = at, caches
            cache.text = [format_bytes(size, binary=True) for size in caches]
            tokens.y, tokens.x = at, [layout.bytes_per_token for layout in scenario.layouts]
            tokens.text = [f"{layout.bytes_per_token:,} B" for layout in scenario.layouts]
            self.plot.layout.yaxis.update(
                tickvals=at, ticktext=[f"{layout.label} " for layout in scenario.layouts], range=[len(at) - 0.5, -0.5]
            )
            self.plot.layout.shapes[0].update(x0=capacity, x1=capacity)
            label = f"{_gpus(scenario)}: {format_bytes(capacity, binary=True)}"
            self.plot.layout.annotations[-1].update(x=capacity, text=label)
            self.plot.layout.xaxis.range = [0, 1.2 * max(capacity, scenario.weight_bytes + max(caches))]
            self.plot.layout.xaxis2.range = [0, 1.6 * max(tokens.x)]
        self._text.value = summary_html(scenario)


def summary(scenario: KvCacheScenario) -> str:
    """The scenario in one line of text."""
    layouts = "; ".join(
        f"{layout.label}: {layout.bytes_per_token:,} B per token, {format_bytes(layout.cache_bytes, binary=True)}"
        for layout in scenario.layouts
    )
    return (
        f"{scenario.config.name} on {_gpus(scenario)}, {scenario.batch} × {scenario.seq:,} tokens in {scenario.dtype}: "
        f"weights {format_bytes(scenario.weight_bytes)}. {layouts}. {_verdict(scenario)}."
    )


def summary_html(scenario: KvCacheScenario) -> str:
    """The verdict, and a line per kind of attention."""
    head = ("", "per token", "cache", "tokens that fit", "step at least", "tokens/s at most")
    rows = []
    for layout in scenario.layouts:
        fits = layout.fits
        rows.append([
            layout.label, f"{layout.bytes_per_token:,} B", format_bytes(layout.cache_bytes, binary=True),
            f"{layout.max_tokens:,}", format_seconds(layout.step_s) if fits else "does not fit",
            f"{scenario.batch / layout.step_s:,.0f}" if fits else "",
        ])  # fmt: skip
    return summary_table("kv", _verdict(scenario), head, rows)


def _verdict(scenario: KvCacheScenario) -> str:
    own = scenario.own
    total = scenario.weight_bytes + own.cache_bytes
    size, room = format_bytes(total), format_bytes(scenario.capacity_bytes)
    share = own.cache_bytes / total
    fits = "fits" if own.fits else "does not fit"
    beyond = "" if scenario.seq <= scenario.config.max_seq else f" (beyond its own {scenario.config.max_seq:,} tokens)"
    return f"{scenario.config.name}{beyond}: {size} of {room}, {share:.0%} of it cache: {fits}"


def _gpus(scenario: KvCacheScenario) -> str:
    return scenario.device.name if scenario.num_gpus == 1 else f"{scenario.num_gpus} × {scenario.device.name}"


def _empty_plot() -> Any:
    """Bars without numbers, and the line of the capacity; `_redraw` fills them in place."""
    plot = make_subplots(1, 2, shared_yaxes=True, column_widths=(0.68, 0.32), horizontal_spacing=0.04,
                         subplot_titles=("", "bytes per token"))  # fmt: skip
    plot.add_bar(x=[0], y=[0], orientation="h", name="weights", marker_color=COLOURS["weight"],
                 hovertemplate="weights: %{x:.3s}B<extra></extra>", row=1, col=1)  # fmt: skip
    plot.add_bar(x=[0], y=[0], orientation="h", name="keys and values", marker_color=COLOURS["KV cache"],
                 textposition="outside", cliponaxis=False, hoverinfo="skip", row=1, col=1)  # fmt: skip
    plot.add_bar(x=[0], y=[0], orientation="h", marker_color=palette.SKY, showlegend=False, textposition="outside",
                 cliponaxis=False, hoverinfo="skip", row=1, col=2)  # fmt: skip
    line = {"color": palette.VERMILLION, "width": 3}
    plot.add_shape(type="line", x0=0, x1=0, y0=0, y1=1, yref="paper", line=line)
    plot.add_annotation(x=0, y=1.12, yref="paper", text="", showarrow=False, xanchor="right")
    legend = {"orientation": "h", "y": -0.32, "x": 0.1, "traceorder": "normal"}
    widget = live_plot(plot, width=850, height=290, barmode="stack", bargap=0.4, legend=legend,
                       margin={"l": 130, "r": 10, "t": 40, "b": 40})  # fmt: skip
    widget.update_xaxes(tickformat="~s", ticksuffix="B", nticks=6)
    widget.update_yaxes(showgrid=False)
    widget.update_xaxes(title_text="bytes (line: capacity)", row=1, col=1)
    return widget
