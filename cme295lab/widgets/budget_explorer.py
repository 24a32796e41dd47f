"""The 80 GB budget: choose a model and how it is trained, and see what fills the GPU, and what would make it fit."""

from dataclasses import replace
from typing import Any

import ipywidgets
import plotly.graph_objects as go

from cme295lab import palette
from cme295lab.hardware import DEVICES, get_device
from cme295lab.memory import POLICIES, Fix, ParallelConfig, TrainingSetting, cheapest_fix, get_policy
from cme295lab.transformer import PRESETS, ModelConfig, preset
from cme295lab.units import format_bytes
from cme295lab.widgets.budget import Budget
from cme295lab.widgets.budget_figure import budget_figure
from cme295lab.widgets.budget_text import STYLE, summary, view_html
from cme295lab.widgets.memory_colours import COLOURS
from cme295lab.widgets.picture import Picture

OWN = "my own"
_POWERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_CHOICES: dict[str, tuple[Any, ...]] = {
    "model": (*(name for name, config in PRESETS.items() if not config.num_experts), OWN),
    "device": tuple(DEVICES),
    "policy": tuple(POLICIES),
    "optimizer": ("sgd", "sgd-momentum", "adam", "adamw", "adam-8bit", "adafactor"),
    "attention": ("flash", "standard"),
    "recompute": ("none", "selective", "full"),
    "micro_batch": _POWERS[:8],
    "seq": tuple(128 * power for power in _POWERS),
    "data": _POWERS,
    "zero_stage": (0, 1, 2, 3),
    "tensor": _POWERS[:5],
    "pipeline": _POWERS[:7],
    "context": _POWERS[:5],
}
_LABELS = {
    "device": "GPU", "micro_batch": "micro-batch", "seq": "sequence", "data": "data ranks", "zero_stage": "ZeRO stage",
    "tensor": "tensor", "sequence_parallel": "sequence parallel", "offload_states": "states in CPU memory",
}  # fmt: skip
_SLIDERS = ("micro_batch", "seq", "data", "zero_stage", "tensor", "pipeline", "context")
_SWITCHES = ("sequence_parallel", "offload_states")
_PARALLEL = ("data", "zero_stage", "tensor", "pipeline", "context", "sequence_parallel")
_OWN_SIZES = ("num_layers", "dim", "num_heads", "num_kv_heads", "mlp_dim", "vocab_size")
_PLOT_WIDTH = 850


class BudgetExplorer(ipywidgets.VBox):
    """Sliders and menus for a training step; bars of what a GPU holds at its peak, against the GPU's capacity.

    All figures come from `cme295lab.memory`. Every control is in `controls` by name and may be set from Python;
    `budget` is the whole state. The field "share" holds it as the end of a link; paste such a link, or the JSON, there.

    Args:
        budget: what to begin with: a `Budget`, or a link or JSON that carries one; None for Llama-3 8B on an H100.

    Raises:
        ValueError: if the text carries no budget, or a value is none of the controls'.
    """

    def __init__(self, budget: Budget | str | None = None) -> None:
        start = Budget.read(budget) if isinstance(budget, str) else budget or default_budget()
        self.controls: dict[str, Any] = {name: _choice(name, options) for name, options in _CHOICES.items()}
        self.controls |= {name: _switch(name) for name in _SWITCHES}
        self.own: dict[str, Any] = {name: _number(name) for name in _OWN_SIZES}
        self._button = ipywidgets.Button(description="make this change", layout={"width": "max-content"})
        self._button.add_class("budget-fix")
        self._button.on_click(self._make_change)
        self.share = ipywidgets.Text(description="share", continuous_update=False, layout={"width": "560px"})
        self.share.add_class("budget-share")
        self._text = ipywidgets.HTML()
        self.plot = _empty_plot()
        self._own_row = ipywidgets.Box(list(self.own.values()), layout={"display": "none", "flex_flow": "row wrap"})
        self._loading = False
        self.budget = start
        for name, control in (self.controls | self.own).items():
            control.observe(self._model_changed if name == "model" else self._changed, "value")
        self.share.observe(self._pasted, "value")
        super().__init__([ipywidgets.HTML(STYLE), *self._layout(), self._own_row, self._text, self._button, self.plot,
                          self.share])  # fmt: skip
        self.add_class("budget-explorer")

    @property
    def budget(self) -> Budget:
        """What is shown: the last setting of the controls that is possible."""
        return self._shown

    @budget.setter
    def budget(self, budget: Budget) -> None:
        values = _control_values(budget)
        for name, value in values.items():
            if name in _CHOICES and value not in _CHOICES[name]:
                allowed = ", ".join(map(str, _CHOICES[name]))
                raise ValueError(f"{name} must be one of {allowed}, got {value!r}")
        self._loading = True
        try:
            for name, value in values.items():
                self.controls[name].value = value
            for name, control in self.own.items():
                control.value = getattr(budget.setting.config, name)
        finally:
            self._loading = False
        self._kept, self._kinds = budget.setting, budget.setting.config
        self._show(budget)

    def figure(self) -> Picture:
        """The current budget as a static picture, for pages where no kernel runs."""
        names, rows = _bars(self._shown, self._fix)
        verdict = str(self._shown.verdict)
        return budget_figure(summary(self._shown), verdict, names, rows, self._shown.device)

    def __repr__(self) -> str:
        """One line, as the widget's text alternative."""
        return f"BudgetExplorer({summary(self._shown)})"

    def _layout(self) -> list[Any]:
        def column(*names: str) -> Any:
            return ipywidgets.VBox([self.controls[name] for name in names])

        row = ipywidgets.Layout(display="flex", flex_flow="row wrap")
        return [
            ipywidgets.Box([column("model", "device", "policy"), column("optimizer", "attention", "recompute"),
                            column("micro_batch", "seq", "offload_states")], layout=row),
            ipywidgets.Box([column("data", "zero_stage"), column("tensor", "sequence_parallel"),
                            column("pipeline", "context")], layout=row),
        ]  # fmt: skip

    def _model_changed(self, change: dict[str, Any]) -> None:
        """A preset brings its own longest sequence, and the numbers from which one's own model starts."""
        if self._loading:
            return
        if change["new"] != OWN:
            config = preset(change["new"])
            self._loading = True
            for name, control in self.own.items():
                control.value = getattr(config, name)
            self.controls["seq"].value = max(c for c in _CHOICES["seq"] if c <= config.max_seq)
            self._loading = False
            self._kinds = config
        self._changed()

    def _changed(self, _: Any = None) -> None:
        if self._loading:
            return
        self._own_row.layout.display = "flex" if self.controls["model"].value == OWN else "none"
        try:
            self._show(self._read_controls())
        except (TypeError, ValueError) as error:
            self._button.layout.display = "none"
            self._text.value = f'<div class="budget-view budget-impossible" role="status">Not possible: {error}</div>'

    def _read_controls(self) -> Budget:
        values = {name: control.value for name, control in self.controls.items()}
        config = self._own_model() if values["model"] == OWN else preset(values["model"])
        setting = replace(
            self._kept, config=config, policy=get_policy(values["policy"]),
            parallel=replace(self._kept.parallel, **{name: values[name] for name in _PARALLEL}),
            **{name: values[name] for name in ("micro_batch", "seq", "optimizer", "attention", "recompute",
                                               "offload_states")},
        )  # fmt: skip
        return Budget(setting=setting, device=get_device(values["device"]))

    def _own_model(self) -> ModelConfig:
        sizes = {name: control.value for name, control in self.own.items()}
        kinds = self._kinds.to_dict() | {"name": OWN}
        del kinds["head_dim"]  # it follows from the new sizes
        return ModelConfig.from_dict(kinds | sizes)

    def _show(self, budget: Budget) -> None:
        self._shown, self._fix = budget, cheapest_fix(budget.setting, budget.device)
        names, rows = _bars(budget, self._fix)
        capacity = budget.device.memory_bytes
        longest = max(capacity, *(sum(row[number] for row in rows.values()) for number in range(len(names))))
        with self.plot.batch_update():
            for trace in self.plot.data:
                trace.x, trace.y, trace.showlegend = rows[trace.name], names, any(rows[trace.name])
            self.plot.layout.shapes[0].update(x0=capacity, x1=capacity)
            text = f"{budget.device.name}: {format_bytes(capacity, binary=True)}"
            self.plot.layout.annotations[0].update(x=capacity, text=text)
            self.plot.layout.xaxis.range = [0, 1.08 * longest]
        self._text.value = view_html(budget, self._fix)
        self._button.layout.display = "block" if self._fix.changes and self._fix else "none"
        self._loading = True
        self.share.value = budget.fragment
        self._loading = False

    def _make_change(self, _: Any) -> None:
        setting = self._fix.ledger.setting
        if setting is not None:
            self.budget = replace(self._shown, setting=setting)

    def _pasted(self, change: dict[str, Any]) -> None:
        if self._loading:
            return
        try:
            self.budget = Budget.read(change["new"])
        except ValueError as error:
            self._text.value = f'<div class="budget-view budget-impossible" role="status">Not loaded: {error}</div>'


def default_budget() -> Budget:
    """Llama-3 8B in mixed precision on one H100: what notebook 04 begins with."""
    setting = TrainingSetting(
        config=preset("llama-3-8b"), policy=get_policy("bf16-mixed"), parallel=ParallelConfig(), micro_batch=1, seq=8192
    )
    return Budget(setting=setting, device=get_device("H100"))


def _control_values(budget: Budget) -> dict[str, Any]:
    """What each control must say for this budget."""
    setting = budget.setting
    known = PRESETS.get(setting.config.name) == setting.config
    values: dict[str, Any] = {"model": setting.config.name if known else OWN, "device": budget.device.name}
    values["policy"] = setting.policy.name
    for name in ("optimizer", "attention", "recompute", "micro_batch", "seq", "offload_states"):
        values[name] = getattr(setting, name)
    return values | {name: getattr(setting.parallel, name) for name in _PARALLEL}


def _bars(budget: Budget, fix: Fix) -> tuple[list[str], dict[str, list[float]]]:
    """Names of the bars, and for each class of memory its bytes in each bar."""
    ledgers = {"this setting ": budget.ledger}
    if fix.changes:
        ledgers["with the change "] = fix.ledger
    rows = {kind: [float(ledger.by_class().get(kind, 0)) for ledger in ledgers.values()] for kind in COLOURS}
    return list(ledgers), rows


def _choice(name: str, options: tuple[Any, ...]) -> Any:
    label = _LABELS.get(name, name)
    if name in _SLIDERS:
        control: Any = ipywidgets.SelectionSlider(
            options=[(f"{option:,}", option) for option in options], description=label,
            style={"description_width": "80px"},
        )  # fmt: skip
    else:
        control = ipywidgets.Dropdown(options=options, description=label, style={"description_width": "80px"})
    control.layout.width = "285px"
    control.add_class(f"budget-{name}")
    return control


def _switch(name: str) -> Any:
    control = ipywidgets.Checkbox(description=_LABELS[name], indent=False)
    control.layout.width, control.layout.margin = "200px", "2px 2px 2px 84px"
    control.add_class(f"budget-{name}")
    return control


def _number(name: str) -> Any:
    control = ipywidgets.BoundedIntText(min=1, max=10**7, description=name, style={"description_width": "90px"})
    control.layout.width = "200px"
    control.add_class(f"budget-own-{name}")
    return control


def _empty_plot() -> Any:
    """The bars without numbers, and the line of the capacity; `_show` fills them in place."""
    plot = go.Figure()
    for kind, colour in COLOURS.items():
        plot.add_bar(x=[0], y=[""], name=kind, orientation="h", marker_color=colour,
                     hovertemplate=f"{kind}: %{{x:.3s}}B<extra></extra>")  # fmt: skip
    plot.add_shape(type="line", x0=0, x1=0, y0=0, y1=1, yref="paper", line={"color": palette.VERMILLION, "width": 3})
    plot.add_annotation(x=0, y=1.12, yref="paper", text="", showarrow=False, xanchor="right",
                        font={"color": palette.VERMILLION})  # fmt: skip
    clear, grid = "rgba(0,0,0,0)", "rgba(127,134,141,0.3)"
    plot.update_layout(barmode="stack", height=270, width=_PLOT_WIDTH, margin={"l": 110, "r": 20, "t": 40, "b": 40},
                       paper_bgcolor=clear, plot_bgcolor=clear, font={"size": 12, "family": "system-ui, sans-serif"},
                       bargap=0.35, uirevision="same",
                       legend={"orientation": "h", "y": -0.25, "traceorder": "normal"})  # fmt: skip
    plot.update_xaxes(tickformat="~s", ticksuffix="B", gridcolor=grid)
    plot.update_yaxes(autorange="reversed", showgrid=False)
    widget = go.FigureWidget(plot)
    widget._config = {"displayModeBar": False}
    return widget
