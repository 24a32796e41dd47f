"""From text to token numbers: byte-level byte-pair encoding, to read and to use.

Read ``pieces`` (text is cut into words first, and no token reaches across two), ``training`` (which pairs of tokens
become a token: recounted each time, and kept up to date), ``bpe`` (encoding and decoding with what was learned), and
``library`` (the same with the `tokenizers` library, in Rust, which the course trains with). Tests hold the plain and
the library's version together: same merges, same numbers. ``compression`` says how many bytes a token stands for, by
domain and by language.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cme295lab._lazy import lazy_names

if TYPE_CHECKING:
    from cme295lab.pretraining.tokenizer.library import END_TOKEN, train_tokenizer

_HOME: dict[str, str] = {
    "END_TOKEN": "library",
    "train_tokenizer": "library",
}
_MODULES = ("library",)

__all__: list[str] = [
    "train_tokenizer",
    "END_TOKEN",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME, _MODULES)
