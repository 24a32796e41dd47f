"""One conversation to learn from: messages, what kind of task it is, and what shall not be split.

A family is what a conversation must not share with an evaluation item: the same sum, the same plot with the same hero,
the same function. It is for whoever writes the data to say what that is, so it stands beside the messages, and is kept
in files. Everything that compares conversations compares `normalised` text, in which case, punctuation and spacing do
not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from cme295lab.finetuning.chat.messages import AnyMessage, Message, as_messages
from cme295lab.pretraining.corpora.document import Document

_INK = re.compile(r"\w+|[-+*/%<>=]")  # signs count: 7 - 2 is not 7 + 2


@dataclass(frozen=True, kw_only=True)
class Example:
    """A conversation of a kind.

    Attributes:
        messages: of which the last one is the assistant's.
        kind: of task, such as "poem".
        family: conversations of one family stay together in a split; by default a conversation is its own.

    Raises:
        TypeError: if the kind is no string, or for what `as_messages` refuses.
        ValueError: if the kind is empty, the last message is not the assistant's, or a message is refused.
    """

    messages: tuple[Message, ...]
    kind: str
    family: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "messages", tuple(as_messages(self.messages)))
        for name, value in (("kind", self.kind), ("family", self.family)):
            if not isinstance(value, str):
                raise TypeError(f"{name} must be a string, got {type(value).__name__}")
        if not self.kind:
            raise ValueError("kind is empty: say what kind of task it is, such as 'poem'")
        if self.messages[-1].role != "assistant":
            raise ValueError(f"the last message must be the assistant's, got one of the {self.messages[-1].role}")
        if not self.family:
            object.__setattr__(self, "family", f"{self.kind}#{normalised(self.text)}")

    @property
    def prompt(self) -> str:
        """What the user says first."""
        return next((message.content for message in self.messages if message.role == "user"), "")

    @property
    def answer(self) -> str:
        """What the assistant says last."""
        return self.messages[-1].content

    @property
    def num_turns(self) -> int:
        """Answers of the assistant."""
        return sum(message.role == "assistant" for message in self.messages)

    @property
    def text(self) -> str:
        """Questions and answers as one text; a system message is left out, since many conversations share it."""
        return "\n".join(message.content for message in self.messages if message.role != "system")

    def as_document(self, source: str) -> Document:
        """The conversation as a document, for the corpus's filters and its search for duplicates.

        Args:
            source: what reports call it.
        """
        return Document(self.text, self.kind, source, family=self.family)


def conversation(*turns: str, system: str = "") -> tuple[Message, ...]:
    """Messages of user and assistant in turn.

    Args:
        turns: question, answer, question, answer ...
        system: what the system message says; empty for none.

    Example:
        >>> [message.role for message in conversation("Hello?", "Hello!")]
        ['user', 'assistant']
    """
    if not turns or len(turns) % 2:
        raise ValueError(f"turns must be questions and answers, as many of each, got {len(turns)} texts")
    opening: list[AnyMessage] = [Message("system", system)] if system else []
    roles: tuple[AnyMessage, ...] = tuple(
        Message("assistant" if number % 2 else "user", turn) for number, turn in enumerate(turns)
    )
    return tuple(as_messages([*opening, *roles]))


def normalised(text: str) -> str:
    """The text's words and signs of arithmetic, in small letters, with one space between.

    Example:
        >>> normalised("What's  7 - 2?")
        'what s 7 - 2'
    """
    return " ".join(_INK.findall(text.lower()))


def normalised_prompts(examples: Iterable[Example]) -> set[str]:
    """The first questions, normalised."""
    return {normalised(example.prompt) for example in examples}
