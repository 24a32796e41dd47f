"""What both trainers ask of their arguments, so that they refuse the same things in the same words."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence

from cme295lab.pretraining.tokenizer.bpe import NUM_BYTES

END_TOKEN = "<|end|>"


def check_request(vocab_size: int, special_tokens: Sequence[str]) -> tuple[int, tuple[str, ...]]:
    """Check what a vocabulary is to hold.

    Args:
        vocab_size: tokens in all: special ones, the 256 bytes, and merges.
        special_tokens: texts that are one token each.

    Returns:
        Both, as an int and a tuple.

    Raises:
        TypeError: if `special_tokens` is one string, or holds something else than strings.
        ValueError: if the vocabulary has no room for all bytes, or special tokens are empty or given twice.
    """
    if isinstance(special_tokens, str) or not all(isinstance(token, str) for token in special_tokens):
        raise TypeError(f"special_tokens must be a sequence of strings, got {special_tokens!r}")
    special = tuple(special_tokens)
    if "" in special or len(set(special)) < len(special):
        raise ValueError(f"special_tokens must be different and not empty, got {special}")
    size, smallest = operator.index(vocab_size), NUM_BYTES + len(special)
    if size < smallest:
        raise ValueError(
            f"vocab_size must be at least {smallest} ({NUM_BYTES} bytes and {len(special)} special tokens), got {size}"
        )
    return size, special


def checked_texts(texts: Iterable[str]) -> Iterator[str]:
    """Pass texts on, one by one.

    Raises:
        TypeError: if `texts` is one string, or one of them is no string.
        ValueError: if there is no text, all are empty, or one has half a surrogate pair, which is no character.
    """
    if isinstance(texts, str | bytes):
        raise TypeError(f"texts must be several strings, got one of type {type(texts).__name__}: put it into a list")
    anything = False
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"text {number} must be a string, got {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text {number} has half a surrogate pair, {text[error.start]!r}, at {error.start}: it is no character "
                f"and has no bytes; read the text again with the right encoding"
            ) from error
        anything = anything or bool(text)
        yield text
    if not anything:
        raise ValueError("texts are empty: there is nothing to learn a vocabulary from")


def check_reached(vocab_size: int, reached: int) -> None:
    """Refuse a vocabulary that ended early because every word already is one token."""
    if reached < vocab_size:
        raise ValueError(
            f"vocab_size is {vocab_size}, but the texts only have pairs for {reached} tokens: "
            f"give more text, or vocab_size={reached}"
        )
