"""The shard map: which piece of weights, gradients and optimizer state each rank holds, moment by moment."""

import textwrap
from html import escape
from typing import Any

import ipywidgets

from cme295lab import palette
from cme295lab.units import format_bytes
from cme295lab.widgets.picture import Picture
from cme295lab.widgets.shard_scenario import BYTES_PER_PARAMETER, KINDS, STAGES, ShardScenario, shard_scenario

COLOURS = {"weights": palette.BLUE, "gradients": palette.ORANGE, "optimizer state": palette.GREEN}
_RANKS = (1, 2, 3, 4, 8)
_STAGE_NAMES = {0: "plain data parallel", 1: "ZeRO-1", 2: "ZeRO-2", 3: "ZeRO-3"}
_PARAMETERS = {"124 M": 124e6, "1.5 B": 1.5e9, "7.5 B": 7.5e9, "70 B": 70e9, "405 B": 405e9}
_MAP_WIDTH, _STRIP, _GAP, _LEFT = 560, 11, 12, 60


class ShardMap(ipywidgets.VBox):
    """Walk through a training step under a ZeRO stage: every strip is the whole model, filled where a rank holds it.

    All figures come from `shard_scenario`. Every control is in `controls` by name and may be set from Python.

    Args:
        stage: 0 (plain data parallelism), 1, 2 or 3.
        num_ranks: processes: 1, 2, 3, 4 or 8.
        parameters: size of the model: "124 M", "1.5 B", "7.5 B", "70 B" or "405 B".
        moment: where in the step to begin.

    Raises:
        ValueError: if a value is none of the controls'.
    """

    def __init__(self, *, stage: int = 0, num_ranks: int = 4, parameters: str = "7.5 B", moment: int = 0) -> None:
        for name, value, allowed in (("stage", stage, STAGES), ("num_ranks", num_ranks, _RANKS),
                                     ("parameters", parameters, _PARAMETERS)):  # fmt: skip
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value!r}")
        last = len(shard_scenario(stage=stage, num_ranks=num_ranks).moments) - 1
        if not 0 <= moment <= last:
            raise ValueError(f"moment must be 0 to {last} for stage {stage}, got {moment}")
        stages = [(_STAGE_NAMES[number], number) for number in STAGES]
        self.controls: dict[str, Any] = {
            "stage": ipywidgets.ToggleButtons(options=stages, value=stage, style={"button_width": "auto"}),
            "num_ranks": ipywidgets.SelectionSlider(options=_RANKS, value=num_ranks, description="ranks"),
            "parameters": ipywidgets.Dropdown(options=list(_PARAMETERS), value=parameters, description="parameters"),
            "moment": ipywidgets.IntSlider(value=moment, min=0, max=last, description="moment", readout=False),
        }
        self.controls["parameters"].layout.width = "200px"
        self.controls["moment"].layout.width = "420px"
        for name, control in self.controls.items():
            control.add_class(f"shard-{name}")
            control.observe(self._redraw if name == "moment" else self._restart, "value")
        play = ipywidgets.Play(value=moment, min=0, max=last, interval=900)
        ipywidgets.link((play, "value"), (self.controls["moment"], "value"))
        ipywidgets.link((play, "max"), (self.controls["moment"], "max"))
        self._view = ipywidgets.HTML()
        self._redraw()
        first = ipywidgets.HBox([self.controls["stage"]])
        second = ipywidgets.HBox([self.controls["num_ranks"], self.controls["parameters"]])
        super().__init__([ipywidgets.HTML(_STYLE), first, second,
                          ipywidgets.HBox([play, self.controls["moment"]]), self._view])  # fmt: skip
        self.add_class("shard-map")

    @property
    def scenario(self) -> ShardScenario:
        """The training step that the controls choose."""
        return shard_scenario(stage=self.controls["stage"].value, num_ranks=self.controls["num_ranks"].value)

    @property
    def num_parameters(self) -> float:
        """Parameters of the model that the controls choose."""
        return _PARAMETERS[self.controls["parameters"].value]

    def figure(self) -> Picture:
        """The current moment as a static picture, for pages where no kernel runs."""
        scenario, number = self.scenario, self.controls["moment"].value
        moment = scenario.moments[number]
        picture = Picture(self._text(), figsize=(7.4, 0.9 + 0.62 * scenario.num_ranks))
        axes = picture.subplots()
        for rank, holdings in enumerate(moment.holdings):
            for row, kind in enumerate(KINDS):
                y = rank * 4 + row
                axes.barh(y, 1, 0.85, color=palette.PALE, alpha=0.4)
                for held in (h for h in holdings if h.kind == kind):
                    style: dict[str, Any] = {"color": COLOURS[kind], "hatch": "" if held.status == "kept" else "////"}
                    axes.barh(y, float(held.stop - held.start), 0.85, float(held.start), edgecolor="white", **style)
            size = format_bytes(float(moment.bytes_per_parameter(rank)) * self.num_parameters)
            axes.text(1.01, rank * 4 + 1, size, va="center", fontsize=9)
        axes.set_yticks([rank * 4 + 1 for rank in range(scenario.num_ranks)],
                        [f"rank {rank}" for rank in range(scenario.num_ranks)])  # fmt: skip
        axes.set(xlim=(0, 1.12), xticks=[0, 0.25, 0.5, 0.75, 1], xlabel="share of the model (four layers)")
        axes.invert_yaxis()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        handles = [axes.barh(0, 0, color=COLOURS[kind], label=kind) for kind in KINDS]
        axes.legend(handles=handles, ncols=3, frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1))
        title = textwrap.fill(f"{_STAGE_NAMES[scenario.stage]}. {moment.caption}", 100)
        axes.set_title(title, loc="left", fontsize=9, pad=24)
        return picture

    def __repr__(self) -> str:
        """One line, as the widget's text alternative."""
        return f"ShardMap({self._text()})"

    def _text(self) -> str:
        scenario = self.scenario
        moment = scenario.moments[self.controls["moment"].value]
        held = format_bytes(float(moment.bytes_per_parameter(0)) * self.num_parameters)
        return f"{_STAGE_NAMES[scenario.stage]} on {scenario.num_ranks} ranks. {moment.caption}. Each rank holds {held}"

    def _restart(self, _: Any = None) -> None:
        """Another step: the moments are others, so begin at its start."""
        slider = self.controls["moment"]
        with slider.hold_trait_notifications():
            slider.value, slider.max = 0, len(self.scenario.moments) - 1
        self._redraw()

    def _redraw(self, _: Any = None) -> None:
        self._view.value = view_html(self.scenario, self.controls["moment"].value, self.num_parameters)


def view_html(scenario: ShardScenario, number: int, num_parameters: float) -> str:
    """A moment as HTML: caption, map, and the bytes per rank.

    Args:
        scenario: the training step.
        number: which moment.
        num_parameters: parameters of the model.
    """
    moment = scenario.moments[number]
    rows = "".join(_rank_svg(scenario, number, rank) for rank in range(scenario.num_ranks))
    height = scenario.num_ranks * (3 * _STRIP + _GAP) + 4
    svg = (
        f'<svg viewBox="0 0 {_LEFT + _MAP_WIDTH + 4} {height}" role="img" aria-label="{escape(moment.caption)}" '
        f'style="width:100%;max-width:{_LEFT + _MAP_WIDTH}px"><defs><pattern id="shard-hatch" width="6" height="6" '
        'patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><line x1="0" y1="0" x2="0" y2="6" stroke="white" '
        f'stroke-width="3"/></pattern></defs>{rows}</svg>'
    )
    legend = "".join(f'<span><i style="background:{COLOURS[kind]}"></i>{kind}</span>' for kind in KINDS)
    legend += '<span><i class="shard-brief"></i>for a moment: gathered, or not yet reduced</span>'
    return (
        f'<div class="shard-view"><div class="shard-caption" role="status">{number + 1} of {len(scenario.moments)}. '
        f"{escape(moment.caption)}</div>{svg}<div class='shard-legend'>{legend}</div>"
        f"{_table(scenario, number, num_parameters)}</div>"
    )


def _rank_svg(scenario: ShardScenario, number: int, rank: int) -> str:
    top = rank * (3 * _STRIP + _GAP) + 2
    parts = [f'<text x="0" y="{top + 1.5 * _STRIP + 4}">rank {rank}</text>']
    for row, kind in enumerate(KINDS):
        y = top + row * _STRIP
        parts.append(f'<rect class="shard-empty" x="{_LEFT}" y="{y}" width="{_MAP_WIDTH}" height="{_STRIP - 2}"/>')
        for held in (h for h in scenario.moments[number].holdings[rank] if h.kind == kind):
            at = f'x="{_LEFT + float(held.start) * _MAP_WIDTH:.2f}" y="{y}" height="{_STRIP - 2}"'
            at += f' width="{float(held.stop - held.start) * _MAP_WIDTH - 0.6:.2f}"'
            parts.append(f'<rect class="shard-held" data-kind="{kind}" {at} fill="{COLOURS[kind]}"/>')
            if held.status != "kept":
                parts.append(f'<rect {at} fill="url(#shard-hatch)" fill-opacity="0.6"/>')
    return "".join(parts)


def _table(scenario: ShardScenario, number: int, num_parameters: float) -> str:
    """Bytes of rank 0 now, at the step's peak, and what it has sent (2 bytes per number)."""
    moment = scenario.moments[number]

    def size(bytes_per_parameter: Any) -> str:
        return format_bytes(float(bytes_per_parameter) * num_parameters)

    cells = [(kind, size(moment.held(0, kind) * BYTES_PER_PARAMETER[kind])) for kind in KINDS]
    cells.append(("each rank holds now", size(moment.bytes_per_parameter(0))))
    cells.append(("at most in this step", size(scenario.peak)))
    cells += [("sent so far", size(2 * moment.sent)), ("in the whole step", size(2 * scenario.sent))]
    head = "".join(f"<th>{name}</th>" for name, _ in cells)
    body = "".join(f"<td>{value}</td>" for _, value in cells)
    return f'<table class="shard-table"><tr>{head}</tr><tr>{body}</tr></table>'


_STYLE = """<style>
.shard-map { max-width: 900px; }
.shard-map .widget-html-content { white-space: normal; }
.shard-view { --shard-text: var(--jp-content-font-color1, currentColor); color: var(--shard-text); font-size: 13px; }
.shard-view svg text { fill: var(--shard-text); font-size: 12px; }
.shard-caption { font-size: 15px; font-weight: 600; min-height: 26px; }
.shard-empty { fill: rgba(127, 134, 141, 0.18); }
.shard-legend { display: flex; flex-wrap: wrap; gap: 2px 16px; }
.shard-legend i { display: inline-block; width: 12px; height: 10px; margin-right: 5px; }
.shard-legend .shard-brief { background: repeating-linear-gradient(-45deg, #7F868D 0 2px, transparent 2px 5px); }
.shard-table { margin-top: 6px; border-collapse: collapse; font-variant-numeric: tabular-nums; }
.shard-table th { font-weight: 400; opacity: 0.75; }
.shard-table th, .shard-table td { padding: 1px 16px 1px 0; text-align: left; background: none; }
</style>"""
