"""The beam tree: candidates by step and rank, the winning beam and the greedy path, sliders for beams and penalty."""

import html
from typing import Any

import ipywidgets
import numpy as np
import plotly.graph_objects as go

from cme295lab import palette
from cme295lab.widgets.beam_scenario import BeamPoint, BeamScenario, beam_scenario
from cme295lab.widgets.controls import arrange, choice_slider, explorer_style, live_plot, summary_table, watch
from cme295lab.widgets.decoding_playground import default_model
from cme295lab.widgets.picture import Picture

_BEAMS = [(f"{n}", n) for n in range(1, 7)]
_PENALTIES = [(f"{n / 5:.1f}", n / 5) for n in range(0, 16)]
_STEPS = [(f"{n}", n) for n in range(2, 13)]
_KINDS = {  # name in the legend -> colour, dash, width
    "dropped": (palette.PALE, "solid", 1.0),
    "kept": (palette.SKY, "solid", 1.6),
    "best answer": (palette.GREEN, "solid", 5.0),
    "greedy path": (palette.ORANGE, "dash", 2.5),
}


class BeamTree(ipywidgets.VBox):
    """The tree of a beam search of a real model, with sliders for the beams, the length penalty and the steps.

    All figures come from `beam_scenario`; what was searched once is kept. Every control is in `controls` by name and
    may be set from Python; `prompt` is the text field.

    Args:
        pretrained: a model with its tokenizer, as `load_pretrained` gives it; None for SmolLM2 if it has been fetched,
            else the course's own model.
        prompt: text that is continued.
        num_beams: 1 to 6.
        length_penalty: exponent of GNMT's penalty, 0 to 3 in fifths.
        max_new_tokens: steps of the search, 2 to 12.
        end: text whose last token ends an answer; empty for the model's own end token.

    Raises:
        ValueError: if a value is none of the sliders', or the prompt is empty or too long for the model.
    """

    def __init__(
        self,
        pretrained: Any = None,
        *,
        prompt: str = "The capital of France is",
        num_beams: int = 3,
        length_penalty: float = 0.6,
        max_new_tokens: int = 8,
        end: str = ".",
    ) -> None:
        self.pretrained = default_model() if pretrained is None else pretrained
        tokenizer = self.pretrained.tokenizer
        self.end_token = tokenizer.encode(end)[-1] if end else tokenizer.end_token
        self.controls: dict[str, Any] = {
            "num_beams": choice_slider("beam", "num_beams", _BEAMS, num_beams, label="beams"),
            "length_penalty": choice_slider("beam", "length_penalty", _PENALTIES, length_penalty,
                                            label="length penalty", label_width="100px"),
            "max_new_tokens": choice_slider("beam", "max_new_tokens", _STEPS, max_new_tokens, label="steps"),
        }  # fmt: skip
        self.prompt: Any = ipywidgets.Text(
            value=prompt, description="prompt", continuous_update=False, layout={"width": "830px"},
            style={"description_width": "60px"},
        )  # fmt: skip
        self.prompt.add_class("beam-prompt")
        self._text = ipywidgets.HTML()
        self._known: dict[tuple[Any, ...], BeamScenario] = {}
        self.plot = _empty_plot()
        self._draw(self.scenario)
        watch(self.controls | {"prompt": self.prompt}, self._changed)
        sliders = arrange(self.controls, ("num_beams",), ("length_penalty",), ("max_new_tokens",))
        super().__init__([explorer_style("beam"), self.prompt, sliders, self._text, self.plot])
        self.add_class("beam-explorer")

    @property
    def scenario(self) -> BeamScenario:
        """The search that the controls ask for."""
        values = {name: control.value for name, control in self.controls.items()}
        key = (self.prompt.value, *values.values())
        if key not in self._known:
            tokenizer = self.pretrained.tokenizer
            prompt = tokenizer.encode(self.prompt.value)
            self._known[key] = beam_scenario(
                self.pretrained.model, prompt, decode=tokenizer.decode, end_token=self.end_token, **values
            )
        return self._known[key]

    def figure(self) -> Picture:
        """The current tree as a static picture, for pages where no kernel runs."""
        scenario = self.scenario
        num_rows = scenario.greedy_row + scenario.greedy_was_dropped
        height = 0.9 + 0.32 * num_rows
        picture = Picture(summary(scenario, self.prompt.value), figsize=(9, height))
        axes = picture.subplots()
        for name, (colour, dash, width) in _KINDS.items():
            x, y = (np.array(line, dtype=float) for line in _lines(scenario, name))
            axes.plot(x, y, color=colour, linestyle="--" if dash == "dash" else "-", linewidth=width, label=name,
                      zorder=1 + list(_KINDS).index(name))  # fmt: skip
        for point in scenario.points:
            box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": _colour(point), "linewidth": 1.4}
            colour = "black" if point.kept or point.greedy else palette.GREY
            style: dict[str, Any] = {"color": colour, "bbox": box, "zorder": 9}
            text = f"{point.text} {point.log_probability:.1f}".replace("$", r"\$")
            axes.text(point.column + 1, point.row + 1, text, ha="center", va="center", fontsize=7.5, **style)
        axes.axhline(scenario.num_beams + 0.5, color=palette.GREY, linewidth=0.8, linestyle=":")
        axes.set(xlim=(0.3, scenario.num_columns + 0.6), ylim=(num_rows + 0.6, 0.4))
        axes.set_xticks(range(1, scenario.num_columns + 1))
        axes.set_xlabel("new token, with the sum of log-probabilities in nats")
        axes.set_ylabel("rank")
        axes.set_yticks(range(1, scenario.greedy_row + 1))
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.legend(frameon=False, ncols=4, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.14))
        return picture

    def __repr__(self) -> str:
        """One line, as the widget's text alternative."""
        return f"BeamTree({summary(self.scenario, self.prompt.value)})"

    def _changed(self, _: Any = None) -> None:
        try:
            scenario = self.scenario
        except ValueError as error:
            self._text.value = f'<div class="beam-summary" role="status"><b>{html.escape(str(error))}</b></div>'
        else:
            self._draw(scenario)

    def _draw(self, scenario: BeamScenario) -> None:
        with self.plot.batch_update():
            for trace in self.plot.data[:-1]:
                trace.x, trace.y = _lines(scenario, trace.name)
            labels = self.plot.data[-1]
            points = scenario.points
            labels.x, labels.y = [point.column + 1 for point in points], [point.row + 1 for point in points]
            labels.text = [f"{html.escape(point.text)} {point.log_probability:.1f}" for point in points]
            labels.marker.color = [_colour(point) for point in points]
            labels.hovertext = [_hover(point) for point in points]
            self.plot.layout.xaxis.range = [0.4, scenario.num_columns + 0.6]
            self.plot.layout.yaxis.range = [scenario.greedy_row + 1.9, 0.3]
            self.plot.layout.yaxis.tickvals = list(range(1, scenario.greedy_row + 1))
            border = scenario.num_beams + 0.75
            self.plot.layout.shapes[0].update(y0=border, y1=border)
        self._text.value = summary_html(scenario)


def summary(scenario: BeamScenario, prompt: str) -> str:
    """The search in one line of text."""
    best = scenario.answers[0]
    return (
        f"After {prompt!r}, {scenario.num_beams} beams, length penalty {scenario.length_penalty:g}: best answer "
        f"{best.text!r} with log-probability {best.log_probability:.2f} and score {best.score:.2f}; greedy "
        f"{scenario.greedy.text!r} with {scenario.greedy.log_probability:.2f}. {_verdict(scenario)}."
    )


def summary_html(scenario: BeamScenario) -> str:
    """The verdict, and a line per answer."""
    named = [(f"answer {number + 1}", answer) for number, answer in enumerate(scenario.answers)]
    rows = [
        [html.escape(answer.text), name, f"{answer.num_tokens}", f"{answer.log_probability:.2f}", f"{answer.score:.2f}"]
        for name, answer in [*named, ("greedy", scenario.greedy)]
    ]
    head = ("", "", "tokens", "log-probability, nats", "score")
    return summary_table("beam", _verdict(scenario), head, rows)


def _verdict(scenario: BeamScenario) -> str:
    best, greedy = scenario.answers[0], scenario.greedy
    if best.text == greedy.text:
        return "The best answer is the greedy one"
    gain = best.score - greedy.score
    dropped = ", which the search dropped on the way" if scenario.greedy_was_dropped else ""
    return f"The best answer's score is {gain:.2f} above that of the greedy one{dropped}"


def _kind(point: BeamPoint) -> str:
    if point.wins:
        return "best answer"
    if point.greedy:
        return "greedy path"
    return "kept" if point.kept else "dropped"


def _colour(point: BeamPoint) -> str:
    return _KINDS[_kind(point)][0]


def _lines(scenario: BeamScenario, name: str) -> tuple[list[float | None], list[float | None]]:
    """Line pieces from parents to the points of a kind, parted by None; the greedy path also where another has it."""
    x: list[float | None] = []
    y: list[float | None] = []
    for point in scenario.points:
        belongs = point.greedy if name == "greedy path" else _kind(point) == name
        if not belongs:
            continue
        start = (-0.6, 0) if point.parent is None else _place(scenario.points[point.parent])
        x += [start[0] + 1, point.column + 1, None]
        y += [start[1] + 1, point.row + 1, None]
    return x, y


def _place(point: BeamPoint) -> tuple[float, float]:
    return point.column, point.row


def _hover(point: BeamPoint) -> str:
    fate = "ends an answer" if point.ends and point.kept else "goes on" if point.kept else "dropped"
    return f"{html.escape(point.text)}<br>log-probability {point.log_probability:.3f}<br>{fate}"


def _empty_plot() -> Any:
    """Lines by kind and the candidates, without numbers; `_draw` fills them in place."""
    plot = go.Figure()
    for name, (colour, dash, width) in _KINDS.items():
        plot.add_scatter(x=[None], y=[None], mode="lines", name=name, hoverinfo="skip",
                         line={"color": colour, "dash": dash, "width": width})  # fmt: skip
    plot.add_scatter(x=[None], y=[None], mode="markers+text", textposition="bottom center", textfont_size=10.5,
                     marker={"size": 9, "line": {"width": 1, "color": palette.GREY}}, showlegend=False,
                     hovertemplate="%{hovertext}<extra></extra>", hovertext=[""])  # fmt: skip
    plot.add_shape(type="line", x0=0, x1=1, xref="paper", y0=0, y1=0,
                   line={"color": palette.GREY, "dash": "dot", "width": 1})  # fmt: skip
    widget = live_plot(plot, width=850, height=500, legend={"orientation": "h", "y": 1.09, "x": 0.2})
    widget.update_xaxes(title_text="new token, with the sum of log-probabilities in nats", dtick=1, showgrid=False)
    widget.update_yaxes(title_text="rank of the candidate", showgrid=False)
    return widget
