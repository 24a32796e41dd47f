"""How a conversation is written as one text: ChatML, Llama-3, Llama-2, Alpaca, or a user's own Jinja template.

A model reads text, so somebody has to decide how "the user said, the assistant said" looks in it. Nothing about the
formats below is deep, but a model is tuned to one of them to the last space, and answers badly in any other:

    ChatML    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nHello<|im_end|>\\n
    Llama-3   <|begin_of_text|><|start_header_id|>user<|end_header_id|>\\n\\nHi<|eot_id|> ...
    Llama-2   <s>[INST] <<SYS>>\\nscene\\n<</SYS>>\\n\\nHi [/INST] Hello </s>
    Alpaca    <s>Below is an instruction ...\\n\\n### Instruction:\\nHi\\n\\n### Response:\\nHello</s>\\n\\n

A template does two things: `render` gives the text, and `segments` the same text in pieces, of which each is the
assistant's or not. The assistant's pieces are what it has to say itself when a prompt ends where its turn begins: the
answer and the **end of turn**, without which it would never stop. A header such as "<|im_start|>assistant" is not; the
prompt brings it (`add_generation_prompt`).

The published templates are written out here as the few lines of Python that they are. Templates of other models come
as Jinja text, in their tokenizer's files: see ``jinja_template``.

The template writes the token that begins a text. Whoever turns the text into tokens must not add another
(`TextTokenizer.encode(..., special=False)`), as `encode_chat` does it.

Source: ChatML: OpenAI 2023; Llama-2 and Llama-3: Meta's reference code and model cards; Alpaca: Taori et al. 2023, with
the line break after "### Response:" that those who came after them use, and turns as further instructions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from cme295lab.finetuning.chat.messages import AnyMessage, Message, as_messages

ALPACA_SCENE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)


class Segment(NamedTuple):
    """A piece of a rendered conversation: its text, and whether the assistant says it."""

    text: str
    is_assistant: bool


class ChatTemplate(ABC):
    """How a conversation is written as one text.

    Attributes:
        name: such as "chatml".
        end_of_turn: what the assistant says when it is done.
        control_tokens: texts that have to be one token each, the end of turn among them.
    """

    name: str
    end_of_turn: str
    control_tokens: tuple[str, ...]

    @abstractmethod
    def segments(self, messages: Iterable[AnyMessage]) -> list[Segment]:
        """The conversation as one text, in pieces: which of them the assistant says.

        Args:
            messages: of the conversation, `Message`s or dicts.

        Raises:
            TypeError, ValueError: if the messages are no conversation, or none that this template can write.
        """

    @abstractmethod
    def render(self, messages: Iterable[AnyMessage], add_generation_prompt: bool = False) -> str:
        """The conversation as one text.

        Args:
            messages: of the conversation, `Message`s or dicts.
            add_generation_prompt: whether to end with what stands before an answer, so that one follows.

        Raises:
            TypeError, ValueError: if the messages are no conversation, or none that this template can write.
        """

    def __repr__(self) -> str:
        return f"<chat template {self.name}, end of turn {self.end_of_turn!r}>"


class _Written(ChatTemplate):
    """A template that is written in Python: its pieces come one after the other."""

    generation_prompt: str

    @abstractmethod
    def _pieces(self, messages: list[Message]) -> Iterator[Segment]:
        """Pieces in their order; empty ones are left out later."""

    def segments(self, messages: Iterable[AnyMessage]) -> list[Segment]:
        return [piece for piece in self._pieces(as_messages(messages)) if piece.text]

    def render(self, messages: Iterable[AnyMessage], add_generation_prompt: bool = False) -> str:
        text = "".join(piece.text for piece in self.segments(messages))
        return text + self.generation_prompt if add_generation_prompt else text


class ChatML(_Written):
    """`<|im_start|>role`, a line break, what was said, `<|im_end|>`, a line break."""

    name = "chatml"
    end_of_turn = "<|im_end|>"
    control_tokens = ("<|im_start|>", "<|im_end|>")
    generation_prompt = "<|im_start|>assistant\n"

    def _pieces(self, messages: list[Message]) -> Iterator[Segment]:
        for role, content in _pairs(messages):
            yield Segment(f"<|im_start|>{role}\n", False)
            yield Segment(content + self.end_of_turn, role == "assistant")
            yield Segment("\n", False)  # after the turn: nobody waits for it


class Llama3(_Written):
    """The role between two header tokens, an empty line, what was said without white space around it, `<|eot_id|>`."""

    name = "llama-3"
    end_of_turn = "<|eot_id|>"
    generation_prompt = "<|start_header_id|>assistant<|end_header_id|>\n\n"

    def __init__(self, bos_token: str = "<|begin_of_text|>") -> None:
        self.bos_token = bos_token
        known = (bos_token, "<|start_header_id|>", "<|end_header_id|>", self.end_of_turn)
        self.control_tokens = tuple(token for token in known if token)

    def _pieces(self, messages: list[Message]) -> Iterator[Segment]:
        yield Segment(self.bos_token, False)
        for role, content in _pairs(messages):
            yield Segment(f"<|start_header_id|>{role}<|end_header_id|>\n\n", False)
            yield Segment(content.strip() + self.end_of_turn, role == "assistant")


class Llama2(_Written):
    """A question between `[INST]` and `[/INST]`, the scene in front of the first; every answer ends the text.

    "[INST]" is plain text, several tokens long. An answer begins with the space after "[/INST]": the prompt ends before
    it, so the assistant has to say it.
    """

    name = "llama-2"
    generation_prompt = ""

    def __init__(self, bos_token: str = "<s>", eos_token: str = "</s>") -> None:
        self.bos_token, self.end_of_turn = bos_token, _end_of_turn(self.name, eos_token)
        self.control_tokens = tuple(token for token in (bos_token, eos_token) if token)

    def _pieces(self, messages: list[Message]) -> Iterator[Segment]:
        scene, turns = _scene_and_turns(self.name, messages)
        before = "" if scene is None else f"<<SYS>>\n{scene}\n<</SYS>>\n\n"
        for role, content in _pairs(turns):
            if role == "user":
                yield Segment(f"{self.bos_token}[INST] {(before + content).strip()} [/INST]", False)
                before = ""
            else:
                yield Segment(f" {content.strip()} {self.end_of_turn}", True)


class Alpaca(_Written):
    """Headings instead of control tokens: "### Instruction:", "### Response:"; an answer ends the text.

    A system message takes the place of the usual first sentence. The layout with an input is an instruction that
    contains the heading "### Input:" (`read_conversations(..., input_separator="\\n\\n### Input:\\n")`).
    """

    name = "alpaca"
    generation_prompt = "### Response:\n"

    def __init__(self, bos_token: str = "<s>", eos_token: str = "</s>") -> None:
        self.bos_token, self.end_of_turn = bos_token, _end_of_turn(self.name, eos_token)
        self.control_tokens = tuple(token for token in (bos_token, eos_token) if token)

    def _pieces(self, messages: list[Message]) -> Iterator[Segment]:
        scene, turns = _scene_and_turns(self.name, messages)
        yield Segment(f"{self.bos_token}{ALPACA_SCENE if scene is None else scene}\n\n", False)
        for role, content in _pairs(turns):
            if role == "user":
                yield Segment(f"### Instruction:\n{content}\n\n", False)
            else:
                yield Segment(self.generation_prompt, False)
                yield Segment(content + self.end_of_turn, True)
                yield Segment("\n\n", False)


def _pairs(messages: list[Message]) -> Iterator[tuple[str, str]]:
    return ((message.role, message.content) for message in messages)


def _scene_and_turns(name: str, messages: list[Message]) -> tuple[str | None, list[Message]]:
    """Split off the system message, and insist on turns: these formats have no other way to tell who speaks."""
    scene = messages[0].content if messages[0].role == "system" else None
    turns = messages[0 if scene is None else 1 :]
    for number, message in enumerate(turns):
        expected = "assistant" if number % 2 else "user"
        if message.role != expected:
            raise ValueError(
                f"{name} needs user and assistant in turns, the user first; turn {number} is of the {message.role}: "
                f"join what one of them says in a row, or take another template"
            )
    if not turns:
        raise ValueError(f"{name} needs a message of the user: it writes the system message into it")
    return scene, turns


def _end_of_turn(name: str, eos_token: str) -> str:
    if not eos_token.strip():
        raise ValueError(f"{name} without an end of turn: give the token that ends a text as eos_token, a model "
                         f"that never sees one never stops")  # fmt: skip
    return eos_token


@dataclass(frozen=True)
class _Maker:
    """A published template, and which of the two tokens it can be given."""

    template: type[ChatTemplate]
    tokens: tuple[str, ...]


_PUBLISHED: dict[str, _Maker] = {
    "chatml": _Maker(ChatML, ()),
    "llama-3": _Maker(Llama3, ("bos_token",)),
    "llama-2": _Maker(Llama2, ("bos_token", "eos_token")),
    "alpaca": _Maker(Alpaca, ("bos_token", "eos_token")),
}
TEMPLATE_NAMES = tuple(_PUBLISHED)


def chat_template(template: str, *, bos_token: str | None = None, eos_token: str | None = None) -> ChatTemplate:
    """A published template by its name, or a user's own.

    Args:
        template: "chatml", "llama-3", "llama-2", "alpaca"; or a Jinja template, as tokenizers' files hold it.
        bos_token: begins a text ("" for none); None: what the published template has. A Jinja template that names it
            has to be given it.
        eos_token: likewise, ends a text.

    Raises:
        TypeError: if one of them is no string.
        ValueError: if the name is unknown, the template has no use for a token that is given, it lacks one, its Jinja
            is wrong, or no end of turn is found in what it writes.

    Example:
        >>> chatml = chat_template("chatml")
        >>> chatml.render([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
        '<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n'
    """
    given = {"bos_token": bos_token, "eos_token": eos_token}
    for name, value in {"template": template, **given}.items():
        if not isinstance(value, str) and not (value is None and name in given):
            raise TypeError(f"{name} must be a string, got {type(value).__name__}")
    tokens = {name: value for name, value in given.items() if value is not None}
    if template not in _PUBLISHED:
        if "{%" not in template and "{{" not in template:
            raise ValueError(f"template must be one of {', '.join(TEMPLATE_NAMES)}, or Jinja text; got {template!r}")
        from cme295lab.finetuning.chat.jinja_template import JinjaTemplate

        return JinjaTemplate(template, **tokens)
    maker = _PUBLISHED[template]
    for name in tokens:
        if name not in maker.tokens:
            raise ValueError(f"the template {template!r} writes no {name}: leave it out")
    return maker.template(**tokens)
