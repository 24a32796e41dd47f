"""Byte-pair encoding, in plain Python: a vocabulary, and text to numbers and back.

A vocabulary is a list of merges. Each says: where these two tokens stand side by side, put this new one. It starts from
the 256 bytes, so there is no unknown character, in any language: what was never merged stays bytes. Encoding a piece of
text applies merges in the order in which they were learned, always the earliest that is possible anywhere:

    l o w e r      (merges: l+o, lo+w, e+r)
    lo w e r
    low e r
    low er

Numbers are given in this order: special tokens, the 256 bytes, merges. The bytes are in the order in which files of
the Hugging Face format list them: first those that print ("!" is the first), then the others. Ties between merges are
broken by number, so this order decides which vocabulary comes out; it is the `tokenizers` library's order, and both
give every text the same numbers.

A special token is no text: it is written as its own number, and nothing merges with it.

Source: Sennrich et al. 2016 (byte-pair encoding for words), Radford et al. 2019 (on bytes).
"""

from __future__ import annotations

import functools
import itertools
import operator
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cme295lab.pretraining.tokenizer.pretokenization import pieces

NUM_BYTES = 256
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
BYTE_ORDER = (*_PRINTABLE, *(byte for byte in range(NUM_BYTES) if byte not in _PRINTABLE))


@dataclass(frozen=True, kw_only=True)
class Bpe:
    """A byte-level vocabulary; `train_bpe` makes one.

    Attributes:
        pairs: for each merge, the numbers of its two tokens.
        special_tokens: texts that are one token each; they have the first numbers.

    Raises:
        ValueError: if a pair holds a number that does not exist before it.
    """

    pairs: tuple[tuple[int, int], ...]
    special_tokens: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        first = len(self.special_tokens)
        known = first + NUM_BYTES
        for number, pair in enumerate(self.pairs):
            if not all(first <= member < known + number for member in pair):
                raise ValueError(f"pair {number} is {pair}, but only tokens {first} to {known + number - 1} exist yet")

    @functools.cached_property
    def vocabulary(self) -> tuple[bytes, ...]:
        """The bytes of each token, by its number."""
        tokens = [token.encode() for token in self.special_tokens]
        tokens += [bytes([byte]) for byte in BYTE_ORDER]
        for left, right in self.pairs:
            tokens.append(tokens[left] + tokens[right])
        return tuple(tokens)

    @property
    def merges(self) -> tuple[tuple[bytes, bytes], ...]:
        """For each merge, the bytes of its two tokens."""
        return tuple((self.vocabulary[left], self.vocabulary[right]) for left, right in self.pairs)

    @property
    def vocab_size(self) -> int:
        """Special tokens, bytes and merges."""
        return len(self.special_tokens) + NUM_BYTES + len(self.pairs)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """The numbers of a text.

        Args:
            text: any string.
            special: whether "<|end|>" in the text is the special token; False reads it as text like any other, which
                is right for text from strangers.

        Raises:
            TypeError: if it is no string.
            ValueError: if it holds half a surrogate pair, which has no bytes.
        """
        if not isinstance(text, str):
            raise TypeError(f"text must be a string, got {type(text).__name__}; for bytes there is encode_bytes")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text has half a surrogate pair, {text[error.start]!r}, at {error.start}: it is no character and has "
                f"no bytes"
            ) from error
        return self._encode(text, special)

    def encode_bytes(self, data: bytes) -> list[int]:
        """The numbers of any bytes, UTF-8 or not; special tokens are not looked for."""
        return self._encode(data.decode("utf-8", "surrogateescape"), special=False)

    def _encode(self, text: str, special: bool) -> list[int]:
        known: dict[str, list[int]] = {}  # most pieces of a text come again
        numbers: list[int] = []
        for part, is_special in self._parts(text) if special else [(text, False)]:
            if is_special:
                numbers.append(self.special_tokens.index(part))
                continue
            for piece in pieces(part):
                if piece not in known:
                    known[piece] = self._merge(piece.encode("utf-8", "surrogateescape"))
                numbers += known[piece]
        return numbers

    def _parts(self, text: str) -> Iterator[tuple[str, bool]]:
        """Text between special tokens, and these; of two that begin at the same place, the longer."""
        if not self.special_tokens:
            yield text, False
            return
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        for number, part in enumerate(re.split(f"({'|'.join(map(re.escape, longest_first))})", text)):
            yield part, number % 2 == 1

    def _merge(self, data: bytes) -> list[int]:
        tokens = [self._byte_numbers[byte] for byte in data]
        while len(tokens) > 1:
            pair = min(itertools.pairwise(tokens), key=lambda pair: self._ranks.get(pair, len(self.pairs)))
            if pair not in self._ranks:
                break
            tokens = merged(tokens, pair, len(self.special_tokens) + NUM_BYTES + self._ranks[pair])
        return tokens

    @functools.cached_property
    def _ranks(self) -> dict[tuple[int, int], int]:
        return {pair: rank for rank, pair in enumerate(self.pairs)}

    @functools.cached_property
    def _byte_numbers(self) -> dict[int, int]:
        return {byte: len(self.special_tokens) + place for place, byte in enumerate(BYTE_ORDER)}

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of tokens.

        Raises:
            ValueError: if a number is not in the vocabulary.
        """
        numbers = [operator.index(number) for number in ids]
        for place, number in enumerate(numbers):
            if not 0 <= number < self.vocab_size:
                raise ValueError(
                    f"ids holds {number} at {place}, which is no token: the vocabulary has 0 to {self.vocab_size - 1}"
                )
        return b"".join(self.vocabulary[number] for number in numbers)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens; bytes that are no UTF-8, such as half of a character, become the replacement character.

        Raises:
            ValueError: if a number is not in the vocabulary.
        """
        return self.decode_bytes(ids).decode("utf-8", "replace")


def merged(tokens: Sequence[int], pair: tuple[int, int], new: int) -> list[int]:
    """Put `new` wherever the pair stands, from left to right.

    Example:
        >>> merged([1, 1, 1, 2], (1, 1), 9)
        [9, 1, 2]
    """
    result: list[int] = []
    at = 0
    while at < len(tokens):
        if at + 1 < len(tokens) and (tokens[at], tokens[at + 1]) == pair:
            result.append(new)
            at += 2
        else:
            result.append(tokens[at])
            at += 1
    return result
