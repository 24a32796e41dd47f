"""QLoRA's memory bars: choose a model and adapters; see what three ways of fine-tuning keep, and which fit a GPU."""

from typing import Any

import ipywidgets
import plotly.graph_objects as go

from cme295lab import palette
from cme295lab.quantization import BLOCK_SIZES
from cme295lab.units import format_bytes
from cme295lab.widgets.controls import (
    arrange,
    choice_menu,
    choice_slider,
    explorer_style,
    live_plot,
    summary_table,
    watch,
)
from cme295lab.widgets.memory_colours import COLOURS
from cme295lab.widgets.picture import Picture
from cme295lab.widgets.qlora_scenario import (
    BUDGETS,
    MODELS,
    PARTS,
    STATE_FORMATS,
    TARGETS,
    QloraScenario,
    qlora_scenario,
)

_RANKS = [(f"{2**power}", 2**power) for power in range(9)]
_SCALES = {"in 8 bits (double)": True, "in fp32": False}
_METHODS = {"full": "full, 16 bits", "LoRA": "LoRA, 16-bit base", "QLoRA": "QLoRA, 4-bit base"}
_FAR = 4  # a budget this many times longer than all bars is named, and not drawn
_PART_COLOURS = {
    "weights, 16 bits": COLOURS["weight"], "codes, 4 bits": palette.SKY, "scales": palette.GREY,
    "adapters": palette.PURPLE, "gradients": COLOURS["gradient"], "Adam states": COLOURS["optimizer state"],
}  # fmt: skip


class QloraBars(ipywidgets.VBox):
    """Menus for model, adapters, formats and GPU, sliders for rank and block size; a bar for each way of fine-tuning.

    All figures come from `qlora_scenario`. Every control is in `controls` by name and may be set from Python. What is
    not possible is said, and the picture stays as it was.

    Args:
        model: a preset, or "llama-65b".
        rank: of the adapters, a power of two up to 256.
        targets: "all linear layers", "query and value", "attention" or "MLP".
        block_size: weights to a scale.
        double_quant: whether scales are in 8 bits.
        state_format: of Adam's states, "fp32" or "bf16".
        budget: "24 GB", "48 GB" or "80 GB".

    Raises:
        ValueError: if a value is none of its control's, or the rank is larger than the model's matrices.
    """

    def __init__(
        self, model: str = "llama-65b", *, rank: int = 64, targets: str = "all linear layers", block_size: int = 64,
        double_quant: bool = True, state_format: str = "fp32", budget: str = "48 GB",
    ) -> None:  # fmt: skip
        if not isinstance(double_quant, bool):
            raise ValueError(f"double_quant must be True or False, got {double_quant!r}")
        scales = next(name for name, value in _SCALES.items() if value == double_quant)
        sizes = [(str(size), size) for size in BLOCK_SIZES]
        size: dict[str, Any] = {"width": "265px", "label_width": "76px"}  # three columns on a notebook's page
        self.controls: dict[str, Any] = {
            "model": choice_menu("qlora", "model", MODELS, model, label="model", **size),
            "budget": choice_menu("qlora", "budget", BUDGETS, budget, label="GPU", **size),
            "targets": choice_menu("qlora", "targets", TARGETS, targets, label="adapters", **size),
            "rank": choice_slider("qlora", "rank", _RANKS, rank, label="rank", **size),
            "scales": choice_menu("qlora", "scales", _SCALES, scales, label="scales", **size),
            "block_size": choice_slider("qlora", "block_size", sizes, block_size, label="block size", **size),
            "state_format": choice_menu("qlora", "state_format", STATE_FORMATS, state_format, label="Adam", **size),
        }
        self._text = ipywidgets.HTML()
        self.plot = _empty_plot()
        self._show(self.scenario)
        watch(self.controls, self._redraw)
        columns = (("model", "budget"), ("targets", "rank"), ("scales", "block_size"), ("state_format",))
        super().__init__([explorer_style("qlora"), arrange(self.controls, *columns), self._text, self.plot])
        self.add_class("qlora-explorer")

    @property
    def scenario(self) -> QloraScenario:
        """What the controls say, with all that follows.

        Raises:
            ValueError: if the rank is larger than a side of the model's matrices.
        """
        values = {name: control.value for name, control in self.controls.items()}
        return qlora_scenario(double_quant=_SCALES[values.pop("scales")], **values)

    def figure(self) -> Picture:
        """The current view as a static picture, for pages where no kernel runs."""
        return draw_bars(self.scenario)

    def __repr__(self) -> str:
        """One line, as the widget's text alternative."""
        try:
            return f"QloraBars({headline(self.scenario)})"
        except ValueError as error:
            return f"QloraBars(not possible: {error})"

    def _redraw(self, _: Any = None) -> None:
        try:
            scenario = self.scenario
        except ValueError as error:
            self._text.value = summary_table("qlora", f"Not possible: {error}", (), ())
            return
        self._show(scenario)

    def _show(self, scenario: QloraScenario) -> None:
        budget, far = scenario.budget_bytes, _is_far(scenario)
        with self.plot.batch_update():
            for trace, part in zip(self.plot.data[:-1], PARTS, strict=True):
                trace.x = [bar.parts[part] for bar in scenario.bars]
            ends = self.plot.data[-1]
            ends.x = [bar.num_bytes for bar in scenario.bars]
            ends.text = [f"  {format_bytes(bar.num_bytes)}" for bar in scenario.bars]
            self.plot.layout.xaxis.range = [0, _axis_end(scenario)]
            self.plot.layout.shapes[0].update(x0=budget, x1=budget, visible=not far)
            self.plot.layout.annotations[0].update(
                x=_axis_end(scenario) if far else budget, text=_budget_text(scenario), xanchor=_side(scenario)
            )
        self._text.value = summary_html(scenario)


def draw_bars(scenario: QloraScenario) -> Picture:
    """A bar for each way of fine-tuning, and the budget."""
    picture = Picture(f"{headline(scenario)} {ratios(scenario)}", figsize=(9, 2.7))
    axes = picture.subplots()
    names = [_METHODS[bar.method] for bar in scenario.bars]
    left = [0] * len(names)
    for part in PARTS:
        sizes = [bar.parts[part] for bar in scenario.bars]
        axes.barh(names, sizes, left=left, color=_PART_COLOURS[part], label=part)
        left = [start + size for start, size in zip(left, sizes, strict=True)]
    for place, total in enumerate(left):
        axes.text(total, place, f"  {format_bytes(total)}", va="center", fontsize=9)
    if not _is_far(scenario):
        axes.axvline(scenario.budget_bytes, color=palette.VERMILLION, linewidth=2)
    axes.set_xlim(0, _axis_end(scenario))
    axes.xaxis.set_major_formatter(lambda value, _: format_bytes(value))
    axes.set_xlabel(f"model states ({_budget_text(scenario)})")
    axes.invert_yaxis()
    axes.legend(frameon=False, fontsize=8, ncols=len(PARTS), loc="lower center", bbox_to_anchor=(0.45, 1.0))
    axes.spines[["top", "right"]].set_visible(False)
    return picture


def headline(scenario: QloraScenario) -> str:
    """The three sizes, and which of them fit."""
    sizes = ", ".join(
        f"{_METHODS[bar.method].split(',')[0]} {format_bytes(bar.num_bytes)}" for bar in scenario.bars
    )  # fmt: skip
    fitting = [bar.method for bar in scenario.bars if bar.fits]
    who = "none fits" if not fitting else f"{' and '.join(fitting)} fit{'s' if len(fitting) == 1 else ''}"
    who = "all fit" if len(fitting) == len(scenario.bars) else who
    return f"{scenario.memory.name}: {sizes}; {who} {format_bytes(scenario.budget_bytes)}."


def ratios(scenario: QloraScenario) -> str:
    """The two ratios that are both called QLoRA's saving, and the one against LoRA."""
    return (
        f"QLoRA keeps {scenario.saving_against_full:.2f} times less than fine-tuning in full and "
        f"{scenario.saving_against_lora:.2f} times less than LoRA; a quantised weight takes "
        f"{scenario.memory.bits_per_weight:.3f} bits, {scenario.saving_of_weights:.2f} times less than 16."
    )


def summary_html(scenario: QloraScenario) -> str:
    """The headline, a line per bar, and the ratios."""
    rows = [
        [_METHODS[bar.method], *(_size(bar.parts[part]) for part in PARTS), format_bytes(bar.num_bytes),
         "fits" if bar.fits else "does not fit"]
        for bar in scenario.bars
    ]  # fmt: skip
    table = summary_table("qlora", headline(scenario), ("", *PARTS, "together", ""), rows)
    return f'{table}<div class="qlora-summary qlora-ratios">{ratios(scenario)}</div>'


def _size(num_bytes: int) -> str:
    return format_bytes(num_bytes) if num_bytes else "–"


def _is_far(scenario: QloraScenario) -> bool:
    return scenario.budget_bytes > _FAR * _longest(scenario)


def _longest(scenario: QloraScenario) -> int:
    return max(bar.num_bytes for bar in scenario.bars)


def _axis_end(scenario: QloraScenario) -> float:
    return 1.18 * max(_longest(scenario), 0 if _is_far(scenario) else scenario.budget_bytes)


def _budget_text(scenario: QloraScenario) -> str:
    budget = format_bytes(scenario.budget_bytes)
    return f"a GPU's {budget}: far beyond" if _is_far(scenario) else f"line: a GPU's {budget}"


def _side(scenario: QloraScenario) -> str:
    return "right" if _is_far(scenario) or scenario.budget_bytes > _axis_end(scenario) / 2 else "left"


def _empty_plot() -> Any:
    """Bars without numbers, their ends, and the line of the budget; `_show` fills them in place."""
    plot = go.Figure()
    names = list(_METHODS.values())
    for part in PARTS:
        plot.add_bar(x=[0] * len(names), y=names, orientation="h", name=part, marker_color=_PART_COLOURS[part],
                     hovertemplate=f"{part}: %{{x:.3s}}B<extra></extra>")  # fmt: skip
    plot.add_scatter(x=[0] * len(names), y=names, mode="text", textposition="middle right", showlegend=False,
                     hoverinfo="skip", cliponaxis=False)  # fmt: skip
    plot.add_shape(type="line", x0=0, x1=0, y0=0, y1=1, yref="paper", line={"color": palette.VERMILLION, "width": 3})
    plot.add_annotation(x=0, y=1.13, yref="paper", text="", showarrow=False, xanchor="left")
    legend = {"orientation": "h", "y": -0.3, "x": 0, "traceorder": "normal"}
    widget = live_plot(plot, width=850, height=280, barmode="stack", bargap=0.4, legend=legend,
                       margin={"l": 130, "r": 20, "t": 30, "b": 40})  # fmt: skip
    widget.update_xaxes(tickformat="~s", ticksuffix="B", nticks=7, title_text="model states")
    widget.update_yaxes(showgrid=False, autorange="reversed")
    return widget
