"""Text in, token numbers out, and back: a thin layer over the `tokenizers` library.

A `tokenizers.Tokenizer` does the work; it is fast and knows every published format. `TextTokenizer` adds what a decoder
needs and the library leaves open:

- which token ends a text (`end_token`), kept in a file of its own beside the vocabulary, as `transformers` does it:

      tokenizer.json           vocabulary, merges, normalisation: everything the library needs
      tokenizer_config.json    {"eos_token": "<|end|>", ...}

- an error for a number that is not in the vocabulary; the library would leave it out of the text without a word;
- no truncation and no padding: some published files have them switched on, and a long text would lose its end.

Text that contains a special token, such as "<|im_start|>", is read as that token: chats are written so. Do not pass
text from strangers where that matters.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, SupportsIndex

from tokenizers import Tokenizer

FILE_NAME = "tokenizer.json"
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what the library writes for bytes that are no UTF-8


class TextTokenizer:
    """Encodes text as token numbers and decodes it.

    Args:
        tokenizer: of the `tokenizers` library.
        end_token: the token that ends a text, by its number or its text; None for none.

    Raises:
        TypeError: if it is no such tokenizer, or the end token neither number nor text.
        ValueError: if the end token is not in the vocabulary.
    """

    def __init__(self, tokenizer: Tokenizer, *, end_token: int | str | None = None) -> None:
        if not isinstance(tokenizer, Tokenizer):
            raise TypeError(
                f"tokenizer must be a tokenizers.Tokenizer, got {type(tokenizer).__name__}; "
                f"of a fast tokenizer of `transformers`, give its backend_tokenizer"
            )
        self.tokenizer = tokenizer
        self._end_token = self._number_of(end_token)

    def _number_of(self, end_token: int | str | None) -> int | None:
        if end_token is None:
            return None
        if isinstance(end_token, str):
            number = self.tokenizer.token_to_id(end_token)
            if number is None:
                raise ValueError(f"end_token {end_token!r} is not among the {self.vocab_size} tokens of the vocabulary")
            return number
        if isinstance(end_token, bool) or not isinstance(end_token, int):
            raise TypeError(f"end_token must be a token number, a token's text or None, got {end_token!r}")
        self._check([end_token], "end_token")
        return end_token

    @cached_property
    def _numbers(self) -> frozenset[int]:
        return frozenset(self.tokenizer.get_vocab(with_added_tokens=True).values())

    @property
    def vocab_size(self) -> int:
        """One more than the largest token number: what a model's `vocab_size` must be at least."""
        return max(self._numbers, default=-1) + 1

    @property
    def end_token(self) -> int | None:
        """Number of the token that ends a text; None if there is none."""
        return self._end_token

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """The tokens of a text.

        Args:
            text: any string.
            special: whether the tokens that this vocabulary puts around a text are added (a Llama-2 vocabulary
                begins with "<s>"; the course's own and SmolLM2's add none).

        Raises:
            TypeError: if it is no string.
        """
        if not isinstance(text, str):
            raise TypeError(f"text must be a string, got {type(text).__name__}: use encode_batch for several texts")
        return self.tokenizer.encode(text, add_special_tokens=special).ids

    def encode_batch(self, texts: Iterable[str], *, special: bool = True) -> list[list[int]]:
        """The tokens of several texts; as `encode` one by one, but on all cores."""
        texts = list(texts)
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("texts must be strings, all of them")
        return [encoding.ids for encoding in self.tokenizer.encode_batch(texts, add_special_tokens=special)]

    def decode(self, ids: Iterable[SupportsIndex], *, skip_special: bool = False) -> str:
        """The text of tokens.

        Args:
            ids: token numbers, a list or a tensor of one dimension.
            skip_special: leave special tokens out, such as the end token.

        Raises:
            ValueError: if a number is not in the vocabulary.
        """
        numbers = [operator.index(number) for number in ids]
        self._check(numbers, "ids")
        return self.tokenizer.decode(numbers, skip_special_tokens=skip_special)

    def token_text(self, id: SupportsIndex) -> str:
        """A token as people can read it: its text, or its bytes as \\xe2 where they are only part of a character."""
        text = self.decode([id])
        if text and _REPLACEMENT not in text:
            return text
        raw = self.tokenizer.id_to_token(operator.index(id)) or ""
        if raw and all(letter in _BYTES for letter in raw):
            return "".join(f"\\x{_BYTES[letter]:02x}" for letter in raw)
        return raw

    def _check(self, numbers: Sequence[int], name: str) -> None:
        for number in numbers:
            if number not in self._numbers:
                raise ValueError(
                    f"{name} has token {number}, which is not in the vocabulary: its {len(self._numbers)} tokens go "
                    f"up to {self.vocab_size - 1}. Do the tokens come from a model with another tokenizer?"
                )

    def save(self, path: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which `load` and `transformers` read.

        Args:
            path: a folder, made if it does not exist; or a file that ends in .json, with the other beside it.
        """
        file = _file_of(Path(path))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(self.tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
        end = None if self.end_token is None else self.tokenizer.id_to_token(self.end_token)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, "eos_token": end}
        _config_of(file).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> TextTokenizer:
        """Read a tokenizer that `save` or `transformers` wrote.

        Args:
            path: a folder with tokenizer.json, or the file. The end token is read from tokenizer_config.json beside
                it; without that file there is none.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if one of the files is damaged, or the end token is not in the vocabulary.
        """
        file = _file_of(Path(path))
        if not file.is_file():
            raise FileNotFoundError(f"there is no tokenizer at {file}: give a folder with {FILE_NAME}, or the file")
        try:
            tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises plain Exception for whatever it cannot read
            raise ValueError(f"{file} is not a tokenizer that the `tokenizers` library reads: {error}") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return cls(tokenizer, end_token=_end_token(_config_of(file)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TextTokenizer):
            return NotImplemented
        return self.end_token == other.end_token and self.tokenizer.to_str() == other.tokenizer.to_str()

    __hash__ = None  # type: ignore[assignment]  # it holds a tokenizer, which can be changed

    def __repr__(self) -> str:
        return f"TextTokenizer({self.vocab_size} tokens, end_token={self.end_token})"


def _file_of(path: Path) -> Path:
    return path if path.suffix == ".json" else path / FILE_NAME


def _config_of(file: Path) -> Path:
    return file.with_name(f"{file.stem}_config.json")


def _end_token(file: Path) -> str | None:
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        end: Any = config.get("eos_token")
        end = end["content"] if isinstance(end, dict) else end  # older files keep a token with its options
    except (ValueError, AttributeError, KeyError) as error:
        raise ValueError(f"{file} is damaged: {type(error).__name__}: {error}") from error
    if end is not None and not isinstance(end, str):
        raise ValueError(f"{file} is damaged: eos_token is {end!r}, not the text of a token")
    return end


def _byte_alphabet() -> dict[str, int]:
    """Letter -> byte. Byte-level vocabularies write a byte that prints as itself, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_alphabet()
