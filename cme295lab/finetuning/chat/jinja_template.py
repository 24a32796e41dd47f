"""A chat template that somebody else wrote, in Jinja: rendered in a sandbox, and searched for the assistant's text.

Tokenizers come with a program that writes a conversation as text. It is code from a stranger: Jinja's sandbox keeps it
from the attributes that lead out of a template, and from changing what it is given.

A template says nothing about loss. Which part of the text is the assistant's is found in one of two ways:

1. **Marks.** A template with `{% generation %} ... {% endgeneration %}` says so itself: what is written in between
   carries loss, exactly.
2. **Differences of prefixes.** Without marks, the conversation is rendered up to each answer, once with the generation
   prompt instead of the answer and once with the answer. What the second has more than the first is what the assistant
   has to say; white space after the end of turn is not.

       messages[:1], generation prompt    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n
       messages[:2]                       <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nHello<|im_end|>\\n
       the assistant's                                                                        Hello<|im_end|>

The second way needs a template that only ever appends. One that rewrites what came before (leaves out the reasoning of
earlier turns, say) has no such prefixes, and one without a generation prompt leaves open who writes the header. Both
are refused, with the advice to mark the answers: a mask that is guessed would train on the wrong tokens in silence.

The end of turn is what the template writes after an answer. It is looked for once, in a conversation of four messages,
when the template is made, and has to be the same after every answer.

What is not covered: tools and documents (a template is told that there are none); `strftime_now`, since a text should
not depend on the day (templates ask whether it is there, and write a fixed date if not); and a template that means
harm by taking time or memory without end, which the sandbox does not stop.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cme295lab.finetuning.chat.messages import AnyMessage, Message, as_messages
from cme295lab.finetuning.chat.templates import ChatTemplate, Segment

_OPEN, _CLOSE = "\ue000<\ue001", "\ue001>\ue000"  # around an answer, while it is in a text; private characters
_PROBE = [Message("user", "Ping?"), Message("assistant", "Pong."), Message("user", "And?"), Message("assistant", "So.")]
_ADVICE = "put {% generation %} and {% endgeneration %} around the answer and its end of turn in the template"


class JinjaTemplate(ChatTemplate):
    """A chat template in Jinja, as tokenizers' files hold it.

    Args:
        source: the template. It sees `messages`, `add_generation_prompt`, `bos_token`, `eos_token`, and
            `raise_exception(message)`.
        bos_token, eos_token: needed if the template names them.

    Attributes:
        has_marks: whether it says itself what the assistant writes.

    Raises:
        ValueError: if the Jinja is wrong, a token is missing, no end of turn is found, or it cannot be told what the
            assistant writes.
    """

    name = "jinja"

    def __init__(self, source: str, *, bos_token: str | None = None, eos_token: str | None = None) -> None:
        self.source = source
        self._variables = {"bos_token": bos_token, "eos_token": eos_token}
        environment = _environment()
        try:
            tree = environment.parse(source)
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise ValueError(f"template: line {error.lineno} is not Jinja that can be read: {error.message}") from error
        self.has_marks = any(node.name == "_generation" for node in tree.find_all(nodes.ExtensionAttribute))
        self._require(meta.find_undeclared_variables(tree))
        self.end_of_turn = ""
        self.end_of_turn = self._find_end_of_turn()
        self.control_tokens = (self.end_of_turn,)

    def _require(self, names: set[str]) -> None:
        for name, value in self._variables.items():
            if name in names and value is None:
                raise ValueError(f"the template writes {name}: give it (as the tokenizer's files have it), or \"\"")

    def render(self, messages: Iterable[AnyMessage], add_generation_prompt: bool = False) -> str:
        text = self._marked_text(as_messages(messages), add_generation_prompt)
        return text.replace(_OPEN, "").replace(_CLOSE, "")

    def segments(self, messages: Iterable[AnyMessage]) -> list[Segment]:
        checked = as_messages(messages)
        pieces = self._between_marks(checked) if self.has_marks else self._differences(checked)
        return [piece for piece in pieces if piece.text]

    def _marked_text(self, messages: list[Message], add_generation_prompt: bool) -> str:
        """What the template writes, with marks around what it marks."""
        for number, message in enumerate(messages):
            if _OPEN in message.content or _CLOSE in message.content:
                raise ValueError(f"message {number} contains the private characters that mark an answer in a text")
        given = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self._template.render(
                messages=given, add_generation_prompt=add_generation_prompt, tools=None, documents=None,
                **{name: value for name, value in self._variables.items() if value is not None},
            )  # fmt: skip
        except TemplateError as error:
            raise ValueError(f"the template refuses this conversation: {error}") from error
        except Exception as error:  # it is somebody's program: anything can go wrong in it
            raise ValueError(f"the template fails: {type(error).__name__}: {error}") from error

    def _between_marks(self, messages: list[Message]) -> list[Segment]:
        pieces = []
        before, *marked = self._marked_text(messages, False).split(_OPEN)
        pieces.append(Segment(before, False))
        answers = [message.content.strip() for message in messages if message.role == "assistant"]
        if len(marked) != len(answers):
            raise ValueError(f"the template marks {len(marked)} answers of {len(answers)}: {_ADVICE}")
        for answer, piece in zip(answers, marked):
            spoken, _, after = piece.partition(_CLOSE)
            _, found, end = spoken.rpartition(answer)
            if not found:
                raise ValueError(f"the template changes the answer {_short(answer)}: between its marks is {spoken!r}")
            self._check_end(end, answer)
            pieces += [Segment(spoken, True), Segment(after, False)]
        return pieces

    def _differences(self, messages: list[Message]) -> list[Segment]:
        text = self.render(messages)
        pieces, done = [], 0
        for number, message in enumerate(messages):
            if message.role == "assistant":
                start = len(self._prefix(text, messages[:number], add_generation_prompt=True))
                stop = len(self._prefix(text, messages[: number + 1], add_generation_prompt=False))
                spoken = text[start:stop]
                answer = message.content.strip()
                if not spoken.lstrip().startswith(answer):
                    raise ValueError(
                        f"it cannot be told what the assistant writes: after the generation prompt, the template has "
                        f"{_short(spoken)} where the answer is {_short(answer)}; {_ADVICE}"
                    )
                self._check_end(spoken.lstrip()[len(answer) :], answer)
                stop = start + len(spoken.rstrip())
                pieces += [Segment(text[done:start], False), Segment(text[start:stop], True)]
                done = stop
        return [*pieces, Segment(text[done:], False)]

    def _prefix(self, text: str, messages: list[Message], *, add_generation_prompt: bool) -> str:
        prefix = self.render(messages, add_generation_prompt) if messages or add_generation_prompt else ""
        if not text.startswith(prefix):
            raise ValueError(
                f"it cannot be told what the assistant writes: after {len(messages)} messages"
                f"{' and the generation prompt' if add_generation_prompt else ''}, the template writes "
                f"...{prefix[-60:]!r}, which the whole conversation does not begin with; {_ADVICE}"
            )
        return prefix

    def _check_end(self, end: str, answer: str) -> None:
        if not end.strip():
            raise ValueError(
                f"the template has no end of turn after the answer {_short(answer)}: a model that never sees one never "
                f"stops. Write one, such as eos_token, and with marks, inside of them"
            )
        if self.end_of_turn and end.strip() != self.end_of_turn:
            raise ValueError(
                f"the template ends the answer {_short(answer)} with {end.strip()!r}, and others with "
                f"{self.end_of_turn!r}: every answer needs the same end of turn"
            )

    def _find_end_of_turn(self) -> str:
        spoken = [piece.text for piece in self.segments(_PROBE) if piece.is_assistant]
        ends = {text.rpartition(message.content)[2].strip() for text, message in zip(spoken, _PROBE[1::2])}
        if len(ends) != 1:
            raise ValueError(f"every answer needs the same end of turn, the template writes {sorted(ends)}")
        return ends.pop()


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}`: puts the marks around what stands in between."""

    tags = {"generation"}  # noqa: RUF012  # that is how Jinja asks for it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_generation"), [], [], body).set_lineno(line)

    def _generation(self, caller: Callable[[], str]) -> str:
        return f"{_OPEN}{caller()}{_CLOSE}"


def _environment() -> ImmutableSandboxedEnvironment:
    """White space as `transformers` treats it, and the few functions that published templates call."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)  # Jinja's own would write < as \\u003c


def _raise(message: str) -> None:
    raise TemplateError(message)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
