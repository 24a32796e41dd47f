"""The rank explorer: what an adapter of a rank costs beside full fine-tuning, and what it can hold."""

from collections.abc import Mapping
from typing import Any

import ipywidgets
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from cme295lab import palette
from cme295lab.transformer.presets import PRESETS
from cme295lab.units import format_bytes
from cme295lab.widgets.controls import (
    arrange,
    choice_menu,
    choice_slider,
    explorer_style,
    live_plot,
    short,
    summary_table,
    watch,
)
from cme295lab.widgets.picture import Picture
from cme295lab.widgets.rank_scenario import (
    TARGETS,
    RankScenario,
    Spectrum,
    TrainingBytes,
    example_change,
    rank_scenario,
    ranks_of,
    spectrum,
)

_PARTS = (  # of the bars: attribute, name, colour
    ("frozen", "frozen weights", palette.GREY),
    ("weights", "trained weights", palette.BLUE),
    ("gradients", "gradients", palette.ORANGE),
    ("masters", "fp32 masters", palette.SKY),
    ("states", "Adam's states", palette.VERMILLION),
)
_BARS = ("full", "LoRA")


class RankExplorer(ipywidgets.VBox):
    """Menus for model and targets, a slider for the rank; bytes beside full fine-tuning, and the spectrum of a change.

    Every control is in `controls` by name and may be set from Python. The slider has the ranks that the model's
    matrices are large enough for.

    Args:
        changes: a change of weights dW, or several by name; a made-up one if None, which says so.
        model: name of a preset.
        rank: of every matrix, a power of two.
        targets: one of `rank_scenario.TARGETS`.

    Raises:
        ValueError: if there is no change, one is no finite matrix or all zero, or a control does not offer a value.
    """

    def __init__(
        self,
        changes: Float[Tensor, "_ _"] | Mapping[str, Float[Tensor, "_ _"]] | None = None,
        *,
        model: str = "llama-3-8b",
        rank: int = 16,
        targets: str = "all-linear",
    ) -> None:
        given = example_change() if changes is None else {"dW": changes} if isinstance(changes, Tensor) else changes
        if not given:
            raise ValueError("changes must name at least one matrix, got none")
        self.spectra = {name: spectrum(change) for name, change in given.items()}
        size: dict[str, Any] = {"width": "300px", "label_width": "76px"}
        menu = choice_menu("rank", "model", PRESETS, model, label="model", **size)
        ranks = [(str(number), number) for number in ranks_of(model)]
        self.controls: dict[str, Any] = {
            "model": menu,
            "rank": choice_slider("rank", "rank", ranks, rank, label="rank", **size),
            "targets": choice_menu("rank", "targets", TARGETS, targets, label="targets", **size),
            "change": choice_menu("rank", "change", self.spectra, next(iter(self.spectra)), label="dW of", **size),
        }
        self._text = ipywidgets.HTML()
        self.plot = _empty_plot()
        self._redraw()
        menu.observe(self._offer_ranks, "value")  # before the redraw, which needs a rank that fits
        watch(self.controls, self._redraw)
        columns = arrange(self.controls, ("model", "targets"), ("rank", "change"))
        super().__init__([explorer_style("rank"), columns, self._text, self.plot])
        self.add_class("rank-explorer")

    @property
    def scenario(self) -> RankScenario:
        """What the controls say, counted."""
        values = {name: self.controls[name].value for name in ("model", "rank", "targets")}
        return rank_scenario(values.pop("model"), **values)

    @property
    def spectrum(self) -> Spectrum:
        """Of the chosen change."""
        return self.spectra[self.controls["change"].value]

    def figure(self) -> Picture:
        """The current view as a static picture, for pages where no kernel runs."""
        return draw_rank(self.scenario, self.spectrum, self.controls["change"].value)

    def __repr__(self) -> str:
        """One line, as the widget's text alternative."""
        return f"RankExplorer({headline(self.scenario)})"

    def _offer_ranks(self, _: Any) -> None:
        slider = self.controls["rank"]
        ranks = ranks_of(self.controls["model"].value)
        wanted = min(slider.value, max(ranks))
        with slider.hold_trait_notifications():
            slider.options, slider.value = [(str(number), number) for number in ranks], wanted

    def _redraw(self, _: Any = None) -> None:
        rank = self.controls["rank"].value
        if rank > max(ranks_of(self.controls["model"].value)):
            return  # the model has changed; its ranks come next, and draw
        scenario, found = self.scenario, self.spectrum
        with self.plot.batch_update():
            for trace, (part, *_) in zip(self.plot.data[: len(_PARTS)], _PARTS, strict=True):
                sizes = [getattr(scenario.full, part) / 1e9, getattr(scenario.lora, part) / 1e9]
                trace.update(x=sizes, y=_BARS)  # with y from the start, and no x, the axis would count them
            numbers = list(range(1, len(found.values) + 1))
            values, kept, here = self.plot.data[len(_PARTS) :]
            values.update(x=numbers, y=(found.values / found.values[0]).tolist())
            kept.update(x=numbers, y=found.kept[1:].tolist())
            here.update(x=[rank], y=[found.kept_by(rank)])
        self._text.value = summary_html(scenario, found)


def headline(scenario: RankScenario) -> str:
    """The adapter's size, and its share of the model."""
    return (
        f"{scenario.model}, rank {scenario.rank} on {scenario.targets}: {scenario.num_trainable:,} trainable "
        f"parameters, {scenario.share:.3%} of {short(scenario.num_parameters)}"
    )


def summary_html(scenario: RankScenario, found: Spectrum) -> str:
    """The headline, bytes of both ways, and what the rank holds of the change."""
    head = ("", "frozen", "trained weights", "gradients", "masters", "Adam", "in all", "file")
    rows = [
        _row("full fine-tuning", scenario.full, scenario.full.weights),
        _row("LoRA", scenario.lora, scenario.file_bytes),
    ]
    table = summary_table("rank", headline(scenario), head, rows)
    return f'{table}<div class="rank-summary">{held(scenario.rank, found)}</div>'


def held(rank: int, found: Spectrum) -> str:
    """How much of a change a rank holds."""
    return (
        f"Rank {rank} holds at best {found.kept_by(rank):.1%} of the squares of this dW; 90% take rank "
        f"{found.rank_for(0.9)} of {len(found.values)}."
    )


def draw_rank(scenario: RankScenario, found: Spectrum, name: str) -> Picture:
    """Bars of bytes; beside them the spectrum, and what ranks hold of it."""
    picture = Picture(f"{headline(scenario)}. {held(scenario.rank, found)}", figsize=(9.4, 3.4))
    bars, curve = picture.subplots(1, 2, width_ratios=(1.2, 1))
    left = [0.0, 0.0]
    for part, label, colour in _PARTS:
        widths = [getattr(way, part) / 1e9 for way in (scenario.full, scenario.lora)]
        bars.barh(_BARS, widths, left=left, color=colour, label=label)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    bars.set(xlabel="GB of model states")
    bars.legend(frameon=False, fontsize=7)
    numbers = range(1, len(found.values) + 1)
    curve.plot(numbers, (found.values / found.values[0]).tolist(), color=palette.GREY, label="singular value / largest")
    curve.plot(numbers, found.kept[1:].tolist(), color=palette.GREEN, label="share of squares kept")
    curve.plot([scenario.rank], [found.kept_by(scenario.rank)], "o", color="black")
    curve.set(xscale="log", xlabel="rank", title=name)
    curve.legend(frameon=False, fontsize=7)
    for axes in (bars, curve):
        axes.spines[["top", "right"]].set_visible(False)
    return picture


def _row(name: str, way: TrainingBytes, file_bytes: int) -> tuple[str, ...]:
    parts = (way.frozen, way.weights, way.gradients, way.masters, way.states, way.total, file_bytes)
    return (name, *(format_bytes(part) if part else "–" for part in parts))


def _empty_plot() -> Any:
    plot = make_subplots(1, 2, column_widths=(0.55, 0.45), horizontal_spacing=0.12)
    for _, name, colour in _PARTS:
        plot.add_bar(orientation="h", name=name, marker={"color": colour, "line": {"width": 0}},
                     hovertemplate="%{x:.3f} GB", row=1, col=1)  # fmt: skip
    for name, colour in (("singular value / largest", palette.GREY), ("share of squares kept", palette.GREEN)):
        plot.add_scatter(mode="lines", line={"color": colour}, name=name, hovertemplate="%{x}: %{y:.3f}", row=1, col=2)
    dot = {"size": 11, "color": palette.PURPLE}
    plot.add_scatter(mode="markers", marker=dot, name="this rank", hovertemplate="%{x}: %{y:.1%}", row=1, col=2)
    plot.update_xaxes(title_text="GB of model states", row=1, col=1)
    plot.update_xaxes(title_text="rank", type="log", row=1, col=2)
    plot.update_yaxes(type="category", row=1, col=1)
    legend = {"font": {"size": 10}, "orientation": "h", "y": -0.25}
    return live_plot(plot, width=850, height=340, barmode="stack", legend=legend, margin={"l": 50, "r": 10, "t": 10})
