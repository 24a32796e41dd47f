"""What every writer of conversations uses: a draft, two worlds of words, and the phrases around a request.

A writer is a function of a random generator and of the world: "usual" is what the model is trained on, "shifted" is
what it never sees, with other phrasings, other words, other topics and larger numbers. The two worlds share the tasks
and nothing else that can be listed: no phrasing of a request and no phrase around it is in both. What the answers of
both worlds share is their form, which is what fine-tuning is to teach.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

World = Literal["usual", "shifted"]
WORLDS: tuple[World, World] = ("usual", "shifted")

BEFORE: Mapping[World, tuple[str, ...]] = {
    "usual": ("", "", "", "", "", "Hello! ", "Hi. ", "I have a question. ", "You can help me. ", "Good morning. "),
    "shifted": ("", "", "", "Hey there, one thing: ", "So: ", "I wonder about something. ", "Quick one. "),
}
AFTER: Mapping[World, tuple[str, ...]] = {
    "usual": ("", "", "", "", "", "", " Thank you!", " Thanks.", " Thank you very much."),
    "shifted": ("", "", "", "", " Cheers!", " Much obliged.", " I am curious."),
}
SYSTEM: Mapping[World, tuple[str, ...]] = {
    "usual": (
        "You are a helpful assistant.",
        "Answer in short, clear sentences.",
        "You are a patient teacher.",
        "You are a friendly helper for children.",
    ),
    "shifted": ("Be brief and kind.", "You help people who visit a library.", "You write plain English."),
}
_Item = TypeVar("_Item")
_SLOT = re.compile(r"{(\w+)}")
# At the start of a line, after a full stop, after a quotation that ends; but not in '"Where is it?" she asked.'
_SENTENCE_START = re.compile(r'(^"?|\n"?|[.!?] "?|\." )([a-z])')


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A conversation before it gets the phrases around it.

    Attributes:
        turns: question, answer, question, answer ...
        family: what it must not share with an evaluation item.
        facts: what the answers have to agree with; tests compare. Not kept in examples.
    """

    turns: tuple[str, ...]
    family: str
    facts: Mapping[str, str] = field(default_factory=dict)


Writer = Callable[[random.Random, World], Draft]


def fill(rng: random.Random, pattern: str, words: Mapping[str, str | Sequence[str]]) -> str:
    """Fill the slots of a pattern; a list gives one of its members, anew for each slot.

    Args:
        rng: where the choices come from.
        pattern: text with slots in braces.
        words: for each slot a text, or several to choose from.
    """
    return _SLOT.sub(lambda slot: _word(rng, words[slot[1]]), pattern)


def _word(rng: random.Random, given: str | Sequence[str]) -> str:
    return given if isinstance(given, str) else rng.choice(given)


def sentences(text: str) -> str:
    """Give each sentence a capital letter at its start; a name or a quotation may come first."""
    return _SENTENCE_START.sub(lambda match: match[1] + match[2].upper(), text)


def one_of(rng: random.Random, world: World, choices: Mapping[World, Sequence[_Item]]) -> _Item:
    """One of the world's choices."""
    return rng.choice(choices[world])


def polite(rng: random.Random, world: World, request: str) -> str:
    """The request with or without a phrase before and after it."""
    return one_of(rng, world, BEFORE) + request + one_of(rng, world, AFTER)


def with_article(noun: str) -> str:
    """The noun after "a" or "an"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
