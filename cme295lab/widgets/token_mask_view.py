"""The token-mask view: a conversation's tokens, whose they are, which carry loss, and how conversations share rows."""

from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby
from typing import Any

import ipywidgets

from cme295lab import palette
from cme295lab.finetuning.chat import TEMPLATE_NAMES, Message, as_messages
from cme295lab.finetuning.chat.messages import AnyMessage
from cme295lab.transformer.text import TextTokenizer
from cme295lab.widgets.controls import arrange, choice_menu, choice_slider, explorer_style, summary_table, watch
from cme295lab.widgets.picture import Picture
from cme295lab.widgets.token_mask_scenario import (
    TOO_LONG,
    MaskedToken,
    PackedRows,
    TokenMask,
    packed_rows,
    token_mask,
)

COLOURS = {
    "system": palette.VERMILLION, "user": palette.BLUE, "assistant": palette.GREEN, "template": palette.GREY,
    "padding": palette.GREY,
}  # fmt: skip
_VIEWS = ("one conversation", "packed rows")
_LIMITS = (24, 48, 64, 96, 128, 192, 256, 512)
_SHOWN_ROWS = 8
_STYLE = """
.tokenmask-tokens { line-height: 2.1; font-family: var(--jp-code-font-family, monospace); font-size: 12.5px; }
.tokenmask-tokens span.t { border: 1px solid transparent; border-radius: 3px; padding: 1px 2px; margin: 0 1px;
  color: var(--jp-content-font-color1, currentColor); white-space: pre; }
.tokenmask-tokens span.t.loss { font-weight: 700; text-decoration: underline; text-decoration-thickness: 2px;
  text-underline-offset: 3px; }
.tokenmask-tokens span.t.padding { opacity: 0.7; }
.tokenmask-tokens .d { border-left: 3px solid currentColor; margin-left: 4px; padding-left: 4px; }
.tokenmask-tokens .row { display: flex; gap: 14px; align-items: flex-start; margin: 8px 0; line-height: 1.8; }
.tokenmask-tokens .row > .who { min-width: 0; }
.tokenmask-error { color: var(--jp-error-color0, #b00020); font-weight: 600; }
.tokenmask-answer textarea { font-size: 13px; }
"""


class TokenMaskView(ipywidgets.VBox):
    """Menus for conversation and template, a box for the last answer, a limit; the tokens below, or packed rows.

    A token that carries loss is bold and underlined, so no colour has to be told apart. What cannot be written is said
    in place of the tokens. Every control is in `controls` by name and may be set from Python.

    Args:
        tokenizer: a vocabulary; the templates' control tokens are added to copies of it.
        conversations: name -> messages, the last of each the assistant's.
        template: one of `TEMPLATE_NAMES`.

    Raises:
        ValueError: if there is no conversation, one does not end with an answer, or the template is unknown.
    """

    def __init__(
        self, tokenizer: TextTokenizer, conversations: dict[str, Iterable[AnyMessage]], *, template: str = "chatml"
    ) -> None:
        self.tokenizer = tokenizer
        self.conversations = {name: as_messages(messages) for name, messages in conversations.items()}
        if not self.conversations:
            raise ValueError("conversations must have at least one, got none")
        for name, messages in self.conversations.items():
            if messages[-1].role != "assistant":
                raise ValueError(f"conversation {name!r} must end with an answer, its last message is {messages[-1]}")
        first = next(iter(self.conversations))
        limits = [*((str(limit), limit) for limit in _LIMITS), ("none", 0)]
        answer: Any = ipywidgets.Textarea(
            value=self.conversations[first][-1].content, description="last answer", rows=4,
            style={"description_width": "86px"}, layout={"width": "620px"},
        )  # fmt: skip
        answer.add_class("tokenmask-answer")
        self.controls: dict[str, Any] = {
            "conversation": choice_menu("tokenmask", "conversation", self.conversations, first, label="conversation"),
            "template": choice_menu("tokenmask", "template", TEMPLATE_NAMES, template, label="template"),
            "limit": choice_slider("tokenmask", "limit", limits, 0, label="max length"),
            "too_long": choice_menu("tokenmask", "too_long", TOO_LONG, TOO_LONG[0], label="if longer"),
            "view": choice_menu("tokenmask", "view", _VIEWS, _VIEWS[0], label="show"),
            "answer": answer,
        }
        self._text = ipywidgets.HTML()
        self._redraw()
        self.controls["conversation"].observe(self._offer_answer, "value")
        watch(self.controls, self._redraw)
        columns = arrange(self.controls, ("conversation", "template"), ("limit", "too_long"), ("view",))
        super().__init__([explorer_style("tokenmask", _STYLE), columns, answer, self._text])
        self.add_class("tokenmask-explorer")

    @property
    def messages(self) -> list[Message]:
        """The chosen conversation with the answer as it was edited.

        Raises:
            ValueError: if the answer is empty.
        """
        before = self.conversations[self.controls["conversation"].value][:-1]
        return [*before, Message("assistant", self.controls["answer"].value)]

    @property
    def scenario(self) -> TokenMask:
        """The chosen conversation as tokens.

        Raises:
            ValueError: if it cannot be written.
        """
        rule = {"max_length": self.controls["limit"].value or None, "on_too_long": self.controls["too_long"].value}
        return token_mask(self.messages, self.tokenizer, self.controls["template"].value, **rule)

    @property
    def packed(self) -> PackedRows:
        """All conversations in rows, the chosen one with the edited answer.

        Raises:
            ValueError: if none can be written.
        """
        chosen = self.controls["conversation"].value
        all_of_them = [self.messages if name == chosen else given for name, given in self.conversations.items()]
        rule = {"seq": self.controls["limit"].value or None, "on_too_long": self.controls["too_long"].value}
        return packed_rows(all_of_them, self.tokenizer, self.controls["template"].value, **rule)

    @property
    def problem(self) -> str:
        """Why nothing can be shown; empty if something is."""
        try:
            _ = self.packed if self.controls["view"].value == _VIEWS[1] else self.scenario
        except (TypeError, ValueError) as error:
            return str(error)
        return ""

    def figure(self) -> Picture:
        """The chosen conversation as a static picture, for pages where no kernel runs."""
        return draw_tokens(self.scenario)

    def __repr__(self) -> str:
        """One line, as the widget's text alternative."""
        return f"TokenMaskView({self.problem or headline(self.scenario)})"

    def _offer_answer(self, _: Any) -> None:
        self.controls["answer"].value = self.conversations[self.controls["conversation"].value][-1].content

    def _redraw(self, _: Any = None) -> None:
        try:
            if self.controls["view"].value == _VIEWS[1]:
                self._text.value = rows_html(self.packed)
            else:
                self._text.value = tokens_html(self.scenario)
        except (TypeError, ValueError) as error:
            self._text.value = (
                f'<div class="tokenmask-summary" role="alert"><span class="tokenmask-error">'
                f"Cannot be written: {escape(str(error))}</span></div>"
            )


def headline(mask: TokenMask) -> str:
    """One sentence: how many tokens, and how many of them carry loss."""
    dropped = f"; {mask.num_dropped_messages} messages left out at the beginning" if mask.num_dropped_messages else ""
    share = mask.num_targets / len(mask.tokens)
    return f"{mask.template}: {len(mask.tokens)} tokens, {mask.num_targets} carry loss ({share:.0%}){dropped}"


def packed_headline(packed: PackedRows) -> str:
    """One sentence: how full the rows are."""
    left_out = f"; {len(packed.left_out)} left out, too long" if packed.left_out else ""
    return (
        f"{packed.template}: {packed.num_conversations} conversations in {len(packed.rows)} rows of {packed.seq}, "
        f"{packed.utilisation:.0%} full, {packed.target_share:.0%} carry loss{left_out}"
    )


def tokens_html(mask: TokenMask) -> str:
    """A conversation: the sentence, counts by role, the tokens."""
    roles = [role for role in COLOURS if any(token.role == role for token in mask.tokens)]
    rows = []
    for role in roles:
        of_role = [token for token in mask.tokens if token.role == role]
        swatch = f'<span style="border-bottom:4px solid {COLOURS[role]}">{role}</span>'
        rows.append((swatch, str(len(of_role)), str(sum(token.carries_loss for token in of_role))))
    head = ("whose", "tokens", "with loss (bold, underlined)")
    table = summary_table("tokenmask", escape(headline(mask)), head, rows)
    return f'{table}<div class="tokenmask-tokens">{_spans(mask.tokens)}</div>'


def rows_html(packed: PackedRows) -> str:
    """Packed rows: the sentence, and for each row who sees whom beside its tokens."""
    table = summary_table("tokenmask", escape(packed_headline(packed)), (), ())
    parts = []
    for number, row in enumerate(packed.rows[:_SHOWN_ROWS]):
        documents = "".join(
            f'<span class="d" title="conversation {document} of the row">{_spans(list(tokens))}</span>'
            for document, tokens in groupby(row, key=lambda token: token.document)
        )
        who = _mask_svg(packed.documents(number), packed.seq)
        parts.append(f'<div class="row">{who}<div class="who">{documents}</div></div>')
    more = len(packed.rows) - _SHOWN_ROWS
    note = f"<div>and {more} rows more</div>" if more > 0 else ""
    return f'{table}<div class="tokenmask-tokens">{"".join(parts)}{note}</div>'


def _spans(tokens: Sequence[MaskedToken]) -> str:
    if tokens and tokens[0].role == "padding":  # nothing of it differs
        return f'<span class="t padding">{len(tokens)} × padding</span>'
    return "".join(map(_span, tokens))


def _span(token: MaskedToken) -> str:
    shown = escape(token.text.replace("\n", "↵").replace(" ", "␣"))
    classes = f"t {token.role}{' loss' if token.carries_loss else ''}"
    said = f"{token.role}, {'loss' if token.carries_loss else 'no loss'}, position {token.position}, number {token.id}"
    colour = COLOURS[token.role]
    after = "<br>" if token.text.endswith("\n") else "<wbr>"
    style = f"background:{colour}33;border-color:{colour}"
    return f'<span class="{classes}" style="{style}" title="{said}">{shown}</span>{after}'


def _mask_svg(lengths: Sequence[int], seq: int) -> str:
    """Attention within a row: a triangle for each conversation, nothing between them."""
    size, start, parts = 90, 0.0, []
    for length in lengths:
        side = length / seq * size
        parts.append(
            f'<polygon points="{start:.1f},{start:.1f} {start:.1f},{start + side:.1f} '
            f'{start + side:.1f},{start + side:.1f}" fill="{palette.SKY}"/>'
        )
        start += side
    said = f"attention: {len(lengths)} triangles, of {', '.join(map(str, lengths))} tokens; none sees another"
    return (
        f'<svg width="{size}" height="{size}" viewBox="0 0 {size} {size}" role="img" aria-label="{said}" '
        f'style="flex:none"><title>{said}</title><rect width="{size}" height="{size}" fill="none" '
        f'stroke="{palette.GREY}"/>{"".join(parts)}</svg>'
    )


def draw_tokens(mask: TokenMask, *, per_line: int = 96) -> Picture:
    """A conversation's tokens as a picture: coloured by role, those with loss bold with a line below."""
    lines: list[list[MaskedToken]] = [[]]
    used = 0
    for token in mask.tokens:
        width = len(_plain(token)) + 1
        if used + width > per_line:
            lines.append([])
            used = 0
        lines[-1].append(token)
        used += width
        if token.text.endswith("\n"):
            lines.append([])
            used = 0
    lines = [line for line in lines if line]
    picture = Picture(f"{headline(mask)}.", figsize=(9.2, 0.32 * len(lines) + 0.5))
    axes = picture.subplots()
    axes.set_xlim(0, per_line)
    axes.set_ylim(len(lines), -0.8)
    axes.axis("off")
    axes.set_title(headline(mask), fontsize=10, loc="left")
    for y, line in enumerate(lines):
        x = 0.0
        for token in line:
            text = _plain(token)
            axes.text(
                x + 0.2, y, text, family="monospace", fontsize=8, va="center", parse_math=False,
                weight="bold" if token.carries_loss else "normal",
                bbox={"facecolor": f"{COLOURS[token.role]}33", "edgecolor": "none", "pad": 1},
            )  # fmt: skip
            if token.carries_loss:
                axes.plot([x, x + len(text)], [y + 0.38] * 2, color=COLOURS[token.role], linewidth=1.5)
            x += len(text) + 1
    return picture


def _plain(token: MaskedToken) -> str:
    return token.text.replace("\n", "↵").replace(" ", "␣")
