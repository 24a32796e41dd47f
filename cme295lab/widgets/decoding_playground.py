"""The decoding playground: type a prompt, reshape the real next-token distribution, append a token, draw continuations.

The model reads the prompt once; the sliders only reshape the logits that it gave. Continuations are drawn in a thread,
so that the sliders go on working meanwhile; they appear token by token.
"""

import html
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets
import plotly.graph_objects as go
import torch

from cme295lab import palette
from cme295lab.transformer.decoding import Sampling, generate
from cme295lab.widgets.controls import arrange, choice_slider, explorer_style, live_plot, watch
from cme295lab.widgets.decoding_scenario import NUM_BARS, DecodingScenario, decoding_scenario
from cme295lab.widgets.picture import Picture

_PALE_GREY = "#B9BEC4"  # behind another bar, on light and dark pages
_OFF = "off"  # a slider's value cannot be None
_CHOICES: dict[str, Sequence[tuple[str, Any]]] = {
    "temperature": [("0: greedy", 0.0), *((f"{n / 10:.1f}", n / 10) for n in range(1, 31))],
    "top_k": [(f"{k}", k) for k in (1, 2, 3, 5, 10, 20, 40, 100, 400)] + [("all", _OFF)],
    "top_p": [(f"{n / 20:.2f}", n / 20) for n in range(1, 20)] + [("0.99", 0.99), ("all", _OFF)],
    "min_p": [("none", _OFF)] + [(f"{p:g}", p) for p in (0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)],
}
_LABELS = {"temperature": "temperature", "top_k": "top-k", "top_p": "top-p", "min_p": "min-p"}
_LINE_END = "↵"  # a text field has one line


@dataclass
class Continuation:
    """A continuation as it grows: what it is called, and its text so far."""

    name: str
    text: str = ""


class DecodingPlayground(ipywidgets.VBox):
    """A prompt, sliders for the sampling, bars of the likeliest tokens before and after, and continuations.

    A click on a bar appends its token to the prompt, as does the menu below the bars. Every control is in `controls` by
    name and may be set from Python; `prompt` is the text field.

    Args:
        pretrained: a model with its tokenizer (`.model`, `.tokenizer`, `.name`), as `load_pretrained` gives it; None
            for SmolLM2 if it has been fetched, else the course's own model.
        prompt: text to begin with.
        temperature: 0 (greedy), or 0.1 to 3.0 in tenths.
        top_k: 1, 2, 3, 5, 10, 20, 40, 100 or 400; None keeps all.
        top_p: 0.05 to 0.95 in twentieths, or 0.99; None keeps all.
        min_p: 0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3 or 0.5; None keeps all.
        num_continuations: how many are drawn at a time, next to the greedy one.
        max_new_tokens: length of a continuation.

    Raises:
        ValueError: if a value is none of the sliders', or the prompt is empty or too long for the model.
    """

    def __init__(
        self,
        pretrained: Any = None,
        *,
        prompt: str = "The capital of France is",
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        num_continuations: int = 3,
        max_new_tokens: int = 24,
    ) -> None:
        self.pretrained = default_model() if pretrained is None else pretrained
        self.num_continuations, self.max_new_tokens = num_continuations, max_new_tokens
        values = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
        self.controls: dict[str, Any] = {
            name: choice_slider("decoding", name, _CHOICES[name], _OFF if value is None else value,
                                label=_LABELS[name], width="330px")
            for name, value in values.items()
        }  # fmt: skip
        self.prompt: Any = ipywidgets.Text(
            description="prompt", continuous_update=False, layout={"width": "830px"},
            style={"description_width": "60px"},
        )  # fmt: skip
        self.prompt.add_class("decoding-prompt")
        self.plot = _empty_plot()
        for trace in self.plot.data[:2]:
            trace.on_click(self._clicked)
        self._text, self._drawn = ipywidgets.HTML(), ipywidgets.HTML()
        self._choose_from: Any = ipywidgets.Dropdown(description="next", layout={"width": "230px"},
                                                     style={"description_width": "60px"})  # fmt: skip
        self._choose_from.add_class("decoding-next")
        self._buttons = self._make_buttons()
        self._loading = False
        self._num_draws = 0
        self._worker: threading.Thread | None = None
        self.continuations: list[Continuation] = []
        self._read(self.pretrained.tokenizer.encode(prompt))
        self.prompt.observe(self._typed, "value")
        watch(self.controls, self._redraw)
        sliders = arrange(self.controls, ("temperature", "top_k"), ("top_p", "min_p"))
        row = ipywidgets.HBox([self._choose_from, *self._buttons.values()])
        style = explorer_style("decoding", _STYLE)
        super().__init__([style, self.prompt, sliders, self._text, self.plot, row, self._drawn])
        self.add_class("decoding-explorer")

    @property
    def sampling(self) -> Sampling | None:
        """What the sliders say; None (greedy) for temperature 0."""
        values: dict[str, Any] = {name: None if c.value == _OFF else c.value for name, c in self.controls.items()}
        return Sampling(**values) if values["temperature"] else None

    @property
    def scenario(self) -> DecodingScenario:
        """The distribution behind the prompt, and what the sliders make of it."""
        return decoding_scenario(self._logits, self.sampling, token_text=self._token_text)

    @property
    def tokens(self) -> list[int]:
        """The prompt as token numbers."""
        return list(self._tokens)

    def append(self, token: int) -> None:
        """Append a token to the prompt; the model reads it."""
        self._read([*self._tokens, token])

    def sample(self) -> None:
        """Draw continuations in the background; a call while some are drawn does nothing."""
        if self._worker is not None and self._worker.is_alive():
            return
        self._buttons["sample"].disabled = True
        names = ["greedy"] + ([f"sample {n + 1}" for n in range(self.num_continuations)] if self.sampling else [])
        self.continuations = [Continuation(name) for name in names]
        self._num_draws += 1
        work = (self.tokens, self.sampling, self._num_draws)
        self._worker = threading.Thread(target=self._draw, args=work, daemon=True)
        self._worker.start()

    def wait(self) -> None:
        """Wait until the continuations are there."""
        if self._worker is not None:
            self._worker.join()

    def figure(self) -> Picture:
        """The current distribution as a static picture, for pages where no kernel runs."""
        scenario = self.scenario
        picture = Picture(summary(scenario, self.prompt.value), figsize=(8.5, 5.2))
        axes = picture.subplots()
        at = list(range(len(scenario.chances)))
        name = f"drawn from: {describe(scenario.sampling)}"
        axes.barh(at, [chance.before for chance in scenario.chances], 0.8, color=_PALE_GREY, label="the model's own")
        axes.barh(at, [chance.after for chance in scenario.chances], 0.4, color=palette.BLUE, label=name)
        for y, x, text in zip(at, *_labels(scenario), strict=True):
            axes.annotate(text, (x, y), (4, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set_yticks(at, [chance.text.replace("$", r"\$") for chance in scenario.chances], fontsize=9)
        axes.invert_yaxis()
        axes.margins(x=0.1, y=0.01)
        axes.set_xlabel("probability of the next token")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right")
        axes.set_title(f"{self.prompt.value} …", loc="left", fontsize=11)
        return picture

    def __repr__(self) -> str:
        """One line, as the widget's text alternative."""
        return f"DecodingPlayground({summary(self.scenario, self.prompt.value)})"

    def _token_text(self, token: int) -> str:
        return str(self.pretrained.tokenizer.token_text(token))

    def _read(self, tokens: list[int]) -> None:
        """Let the model read a prompt; nothing changes if it is refused."""
        model = self.pretrained.model
        longest = model.config.max_seq - self.max_new_tokens
        if not 1 <= len(tokens) <= longest:
            raise ValueError(f"the prompt must have 1 to {longest} tokens, got {len(tokens)}")
        with torch.no_grad():
            device = model.embedding.weight.device
            self._logits = model(torch.tensor([tokens], device=device), num_logits=1)[0, -1].float().cpu()
        self._tokens = tokens
        self._loading = True
        self.prompt.value = self.pretrained.tokenizer.decode(tokens).replace("\n", _LINE_END)
        self._loading = False
        chances = self.scenario.chances
        self._choose_from.options = [(f"{chance.text}  {chance.before:.1%}", chance.token) for chance in chances]
        self._choose_from.index = None  # the menu shows nothing unless its index changes
        self._choose_from.index = 0
        self._redraw()

    def _typed(self, change: dict[str, Any]) -> None:
        if self._loading:
            return
        try:
            self._read(self.pretrained.tokenizer.encode(change["new"].replace(_LINE_END, "\n")))
        except ValueError as error:
            self._text.value = f'<div class="decoding-summary" role="status"><b>{html.escape(str(error))}</b></div>'

    def _clicked(self, _: Any, points: Any, __: Any) -> None:
        if points.point_inds:
            self.append(self.scenario.chances[points.point_inds[0]].token)

    def _redraw(self, _: Any = None) -> None:
        scenario = self.scenario
        chances = scenario.chances
        at = list(range(len(chances)))
        with self.plot.batch_update():
            before, after, labels = self.plot.data
            before.y, before.x = at, [chance.before for chance in chances]
            after.y, after.x = at, [chance.after for chance in chances]
            labels.y = at
            labels.x, labels.text = _labels(scenario)
            self.plot.layout.yaxis.update(tickvals=at, ticktext=[f"{html.escape(c.text)} " for c in chances])
            longest = max(max(chance.before, chance.after) for chance in chances)
            self.plot.layout.xaxis.range = [0, 1.12 * longest]
        self._text.value = summary_html(scenario, self.pretrained.name)

    def _make_buttons(self) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name, text, action in (
            ("append", "append it", lambda _: self.append(self._choose_from.value)),
            ("undo", "take back the last token", lambda _: self._take_back()),
            ("sample", "continue", lambda _: self.sample()),
        ):
            made[name] = ipywidgets.Button(description=text, layout={"width": "max-content"})
            made[name].add_class(f"decoding-{name}")
            made[name].on_click(action)
        return made

    def _take_back(self) -> None:
        if len(self._tokens) > 1:
            self._read(self._tokens[:-1])

    def _draw(self, tokens: list[int], sampling: Sampling | None, seed: int) -> None:
        """Runs in a thread of its own: the greedy continuation, then the drawn ones side by side."""
        try:
            self._continue([tokens], None, seed, self.continuations[:1])
            if sampling is not None:
                drawn = self.continuations[1:]
                self._continue([tokens] * len(drawn), sampling, seed, drawn)
        except (ValueError, RuntimeError) as error:
            self._drawn.value = f'<div class="decoding-summary" role="status">{html.escape(str(error))}</div>'
        finally:
            self._buttons["sample"].disabled = False

    def _continue(
        self, prompts: list[list[int]], sampling: Sampling | None, seed: int, into: list[Continuation]
    ) -> None:
        tokenizer = self.pretrained.tokenizer
        new: list[list[int]] = [[] for _ in prompts]

        def show(row: int, token: int) -> None:
            new[row].append(token)
            into[row].text = tokenizer.decode(new[row])
            if row == len(prompts) - 1:
                self._drawn.value = continuations_html(self.continuations)

        done = generate(
            self.pretrained.model, prompts, max_new_tokens=self.max_new_tokens, sampling=sampling, seed=seed,
            end_token=tokenizer.end_token, on_token=show,
        )  # fmt: skip
        for continuation, row in zip(into, done.content, strict=True):
            continuation.text = tokenizer.decode(row)
        self._drawn.value = continuations_html(self.continuations)


def describe(sampling: Sampling | None) -> str:
    """The steps in a few words."""
    if sampling is None:
        return "greedy"
    parts = [f"temperature {sampling.temperature:g}"]
    for name in ("top_k", "top_p", "min_p"):
        if getattr(sampling, name) is not None:
            parts.append(f"{_LABELS[name]} {getattr(sampling, name):g}")
    return ", ".join(parts)


def summary(scenario: DecodingScenario, prompt: str) -> str:
    """The distribution in one line of text."""
    best = ", ".join(f"{c.text} {c.before:.1%} to {c.after:.1%}" for c in scenario.chances[:5])
    return (
        f"After {prompt!r}, with {describe(scenario.sampling)}: {scenario.num_kept:,} of {scenario.vocab_size:,} "
        f"tokens kept, entropy {scenario.entropy_before_nats:.2f} to {scenario.entropy_after_nats:.2f} nats. {best}."
    )


def summary_html(scenario: DecodingScenario, name: str) -> str:
    """The headline and a line about what the bars leave out."""
    kept = f"{scenario.num_kept:,} of {scenario.vocab_size:,} tokens can be drawn"
    rest = (
        f"{html.escape(name)}, {describe(scenario.sampling)}. Entropy {scenario.entropy_before_nats:.2f} → "
        f"<span class='decoding-entropy'>{scenario.entropy_after_nats:.2f}</span> nats. All tokens without a bar "
        f"together: {scenario.rest_before:.1%} → {scenario.rest_after:.1%}."
    )
    return f'<div class="decoding-summary" role="status"><b>{kept}</b><br>{rest}</div>'


def continuations_html(continuations: Sequence[Continuation]) -> str:
    """The continuations side by side."""
    heads = "".join(f"<th>{html.escape(item.name)}</th>" for item in continuations)
    cells = "".join(f"<td>{html.escape(item.text).replace(chr(10), '<br>')}</td>" for item in continuations)
    return f'<div class="decoding-summary decoding-drawn"><table><tr>{heads}</tr><tr>{cells}</tr></table></div>'


def _labels(scenario: DecodingScenario) -> tuple[list[float], list[str]]:
    """Where the label of each token begins, behind its longer bar, and what it says."""
    chances = scenario.chances
    texts = [f"{chance.after:.1%}" if chance.kept else "cut off" for chance in chances]
    return [max(chance.before, chance.after) for chance in chances], texts


_STYLE = """
.decoding-drawn table { table-layout: fixed; width: 830px; }
.decoding-drawn td, .decoding-drawn th { text-align: left !important; vertical-align: top; overflow-wrap: anywhere; }
.decoding-explorer .bars { cursor: pointer; }
"""


def _empty_plot() -> Any:
    """Two bars for each token, without numbers; `_redraw` fills them in place."""
    plot = go.Figure()
    zeros = [0.0] * NUM_BARS
    for name, colour, width in (("the model's own", _PALE_GREY, 0.8), ("drawn from", palette.BLUE, 0.4)):
        plot.add_bar(x=zeros, orientation="h", marker_color=colour, name=name, width=width,
                     hovertemplate=f"%{{x:.3%}}: {name}<extra></extra>")  # fmt: skip
    plot.add_scatter(x=zeros, mode="text", textposition="middle right", showlegend=False, hoverinfo="skip",
                     cliponaxis=False)  # fmt: skip
    legend = {"x": 0.99, "y": 0.02, "xanchor": "right", "bgcolor": "rgba(0,0,0,0)"}
    widget = live_plot(plot, width=850, height=500, barmode="overlay", legend=legend,
                       margin={"l": 110, "r": 10, "t": 10, "b": 40})  # fmt: skip
    widget.update_xaxes(title_text="probability of the next token (click a bar to append it)", tickformat=".3~p")
    widget.update_yaxes(autorange="reversed", showgrid=False)
    return widget


def default_model() -> Any:
    """SmolLM2 if it has been fetched, else the course's own model."""
    from cme295lab.transformer.pretrained import pretrained_or_course

    return pretrained_or_course()
