"""How many bytes a token stands for: by domain, and by language.

A vocabulary is good at what it was learned from. One that has seen English spends several times as many tokens on the
same sentence in Chinese, where it falls back on bytes, three to a character. Tokens are what training, context and
inference are paid in, so this is a price list. Bytes per token are not comparable between scripts, as a Chinese
character is three bytes and a whole syllable: `SAMPLES` says the same thing in each language, so its tokens are.

Losses of models with different vocabularies cannot be compared per token, either; per byte they can:
loss per byte = loss per token / bytes per token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

# The same four sentences in three languages; then the other domains of the course
SAMPLES: dict[str, str] = {
    "English": (
        "A model reads a text and guesses the next word. It is wrong at first, and a little less wrong each time. "
        "After many books it writes sentences that sound right. Whether they are true is another question."
    ),
    "German": (
        "Ein Modell liest einen Text und errät das nächste Wort. Zuerst liegt es falsch, und jedes Mal ein wenig "
        "weniger. Nach vielen Büchern schreibt es Sätze, die richtig klingen. Ob sie wahr sind, ist eine andere Frage."
    ),
    "Chinese": (
        "模型读一段文字，猜下一个词。它起初会猜错，每次错得少一点。"
        "读了很多书以后，它写出的句子听起来很通顺。至于是不是真的，那是另一个问题。"
    ),
    "Python": (
        "def mean(values):\n    total = 0.0\n    for value in values:\n        total += value\n"
        '    if not values:\n        raise ValueError("values must not be empty")\n    return total / len(values)\n'
    ),
    "arithmetic": "ones: 7 + 8 = 15, write 5, carry 1\ntens: 4 + 3 + 1 = 8, write 8\n47 + 38 = 85\n",
}  # fmt: skip


@runtime_checkable
class Encoder(Protocol):
    """Whatever encodes text: a `Bpe`, a `TextTokenizer`."""

    def encode(self, text: str) -> list[int]:
        """The numbers of a text."""
        ...


@dataclass(frozen=True, kw_only=True)
class Compression:
    """What a vocabulary makes of one kind of text.

    Attributes:
        name: what kind.
        num_bytes: of the text in UTF-8.
        num_characters: of the text.
        num_tokens: that it is encoded with.
    """

    name: str
    num_bytes: int
    num_characters: int
    num_tokens: int

    @property
    def bytes_per_token(self) -> float:
        """More is better: the text is shorter for the model."""
        return self.num_bytes / self.num_tokens

    @property
    def characters_per_token(self) -> float:
        """The same in characters."""
        return self.num_characters / self.num_tokens

    def __str__(self) -> str:
        return (
            f"{self.name:<12} {self.num_bytes:>10,} bytes {self.num_tokens:>9,} tokens "
            f"{self.bytes_per_token:5.2f} bytes and {self.characters_per_token:5.2f} characters per token"
        )


def compression(tokenizer: Encoder, texts: Mapping[str, str | Iterable[str]]) -> list[Compression]:
    """Measure a vocabulary on several kinds of text.

    Args:
        tokenizer: a `Bpe` or a `TextTokenizer`.
        texts: by kind, one text or several.

    Returns:
        A row for each kind, in their order.

    Raises:
        ValueError: if there is no text of some kind.
    """
    rows = []
    for name, some in texts.items():
        several = [some] if isinstance(some, str) else list(some)
        if not any(several):
            raise ValueError(f"texts has no text of {name!r}: there is nothing to measure")
        rows.append(
            Compression(
                name=name,
                num_bytes=sum(len(text.encode()) for text in several),
                num_characters=sum(map(len, several)),
                num_tokens=sum(len(tokenizer.encode(text)) for text in several),
            )
        )
    return rows
