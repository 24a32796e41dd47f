"""The adapter switchboard: type a message, and see what each adapter on one base answers to it."""

import html
from collections.abc import Sequence
from typing import Any

import ipywidgets
import plotly.graph_objects as go
from torch import nn

from cme295lab import palette
from cme295lab.finetuning import lora
from cme295lab.finetuning.chat import ChatTemplate
from cme295lab.finetuning.tasks import LABELS
from cme295lab.transformer.text import TextTokenizer
from cme295lab.units import format_bytes, format_seconds
from cme295lab.widgets.adapter_switchboard_scenario import (
    BASE,
    WEIGHTED,
    SwitchboardScenario,
    switchboard_scenario,
)
from cme295lab.widgets.controls import explorer_style, live_plot, summary_table, watch
from cme295lab.widgets.picture import Picture

_COLOURS = (palette.VERMILLION, palette.SKY, palette.GREEN, palette.PURPLE, palette.ORANGE, palette.BLUE, palette.GREY)


class AdapterSwitchboard(ipywidgets.VBox):
    """A message, a switch for each adapter, and bars of what each of them answers; all in one batch.

    The sum is w of the first adapter and 1 - w of the second. Every control is in `controls` by name and may be set
    from Python: "text", "none", a switch for each adapter, "weighted-sum", and "weight". With all switches off the
    base is asked.

    Args:
        model: tokens -> logits, with two or more LoRA adapters.
        tokenizer, template: those that the adapters were trained with.
        text: to begin with.
        weight: of the first adapter in the sum, 0 to 1 in twentieths.
        labels: what may be answered.

    Raises:
        ValueError: if there are fewer than two adapters, the weight is out of range, or for what
            `switchboard_scenario` refuses.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: TextTokenizer,
        template: ChatTemplate,
        *,
        text: str = "You have won a great prize!",
        weight: float = 0.5,
        labels: Sequence[str] = LABELS,
    ) -> None:
        names = list(lora.adapter_names(model))
        if len(names) < 2:
            raise ValueError(f"the model must have two adapters or more, has {', '.join(names) or 'none'}")
        if not 0 <= weight <= 1:
            raise ValueError(f"weight must be from 0 to 1, got {weight}")
        self.model, self.tokenizer, self.template, self.labels = model, tokenizer, template, tuple(labels)
        self.names = names
        field: Any = ipywidgets.Text(value=text, description="message", continuous_update=False,
                                     layout={"width": "830px"}, style={"description_width": "76px"})  # fmt: skip
        self.controls: dict[str, Any] = {"text": field}
        for name in (BASE, *names, WEIGHTED):
            switch: Any = ipywidgets.ToggleButton(value=True, description=name, layout={"width": "auto"})
            self.controls[name] = switch
        slider: Any = ipywidgets.FloatSlider(value=weight, min=0, max=1, step=0.05, continuous_update=False,
                                             description=f"{names[0]} in sum", layout={"width": "330px"},
                                             style={"description_width": "110px"})  # fmt: skip
        self.controls["weight"] = slider
        for name, control in self.controls.items():
            control.add_class(f"switchboard-{name}")
        self._text = ipywidgets.HTML()
        self.plot = _empty_plot(self.labels)
        self.scenario = self._ask()
        self._show()
        watch(self.controls, self._redraw)
        switches = ipywidgets.HBox([self.controls[name] for name in (BASE, *names, WEIGHTED)])
        super().__init__([explorer_style("switchboard"), field, ipywidgets.HBox([switches, slider]), self._text,
                          self.plot])  # fmt: skip
        self.add_class("switchboard-explorer")

    def figure(self) -> Picture:
        """The current view as a static picture, for pages where no kernel runs."""
        return draw_switchboard(self.scenario)

    def __repr__(self) -> str:
        """One line, as the widget's text alternative."""
        return f"AdapterSwitchboard({headline(self.scenario)})"

    def _ask(self) -> SwitchboardScenario:
        on = [name for name in (BASE, *self.names) if self.controls[name].value]
        first, second, share = *self.names[:2], self.controls["weight"].value
        weights = {first: share, second: 1 - share} if self.controls[WEIGHTED].value else None
        asked = [None if name == BASE else name for name in on or ([] if weights else [BASE])]
        return switchboard_scenario(self.model, self.controls["text"].value, self.tokenizer, self.template,
                                    adapters=asked, weights=weights, labels=self.labels)  # fmt: skip

    def _redraw(self, _: Any = None) -> None:
        self.controls["weight"].disabled = not self.controls[WEIGHTED].value
        try:
            self.scenario = self._ask()
        except ValueError as error:  # what was typed is empty, too long, or has a control token
            self._text.value = summary_table("switchboard", html.escape(str(error)), (), ())
            return
        self._show()

    def _show(self) -> None:
        with self.plot.batch_update():
            for trace, label in zip(self.plot.data, self.labels, strict=True):
                answers = self.scenario.answers
                trace.update(x=[answer.probabilities[label] for answer in answers.values()], y=list(answers))
        self._text.value = summary_html(self.scenario)


def headline(scenario: SwitchboardScenario) -> str:
    """Who answers what."""
    return "; ".join(
        f"{name}: {answer.label} ({answer.probabilities[answer.label]:.0%})"
        for name, answer in scenario.answers.items()
    )


def summary_html(scenario: SwitchboardScenario) -> str:
    """The headline, probabilities, bytes, and what the batch took."""
    head = ("adapter", *scenario.labels, "says one of these", "bytes to switch")
    rows = []
    for name, answer in scenario.answers.items():
        shares = (f"{answer.probabilities[label]:.1%}" for label in scenario.labels)
        size = scenario.adapter_bytes.get(name)
        rows.append((name, *shares, f"{answer.coverage:.1%}", "–" if size is None else format_bytes(size)))
    table = summary_table("switchboard", headline(scenario), head, rows)
    return (
        f'{table}<div class="switchboard-summary">One batch of {scenario.num_rows} rows in '
        f"{format_seconds(scenario.seconds)}; the base, {format_bytes(scenario.base_bytes)}, stays.</div>"
    )


def draw_switchboard(scenario: SwitchboardScenario) -> Picture:
    """A bar for each adapter, divided among the labels."""
    picture = Picture(f"{scenario.text!r}. {headline(scenario)}.", figsize=(8, 2.6))
    axes = picture.subplots()
    names = list(scenario.answers)
    left = [0.0] * len(names)
    for number, label in enumerate(scenario.labels):
        widths = [scenario.answers[name].probabilities[label] for name in names]
        axes.barh(names, widths, left=left, color=_COLOURS[number % len(_COLOURS)], label=label)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="probability among the labels", title=scenario.text)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    return picture


def _empty_plot(labels: Sequence[str]) -> Any:
    plot = go.Figure()
    for number, label in enumerate(labels):
        look = {"color": _COLOURS[number % len(_COLOURS)], "line": {"width": 0}}
        plot.add_bar(orientation="h", name=label, marker=look, hovertemplate="%{y}: %{x:.1%}")
    plot.update_xaxes(range=[0, 1], title_text="probability among the labels")
    plot.update_yaxes(autorange="reversed")
    margin = {"l": 110, "r": 10, "t": 10, "b": 40}
    return live_plot(plot, width=850, height=250, barmode="stack", margin=margin)
