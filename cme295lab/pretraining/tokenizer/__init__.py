"""From text to token numbers: byte-level byte-pair encoding, to read and to use.

Read ``pretokenization`` (text is cut into words first, and no token reaches across two), ``bpe`` (a vocabulary; text to
numbers and back), ``training`` (which pairs become a token: recounted each time, and kept up to date), and ``library``
(the same with the `tokenizers` library, in Rust, which the course trains with). Tests hold the plain and the library's
version together: same merges, same numbers. ``bytes_per_token`` says how many bytes a token stands for, by domain and
by language. ``requests`` is what both trainers refuse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cme295lab._lazy import lazy_names

if TYPE_CHECKING:
    from cme295lab.pretraining.tokenizer.bpe import Bpe
    from cme295lab.pretraining.tokenizer.bytes_per_token import SAMPLES, Compression, compression
    from cme295lab.pretraining.tokenizer.library import train_tokenizer
    from cme295lab.pretraining.tokenizer.pretokenization import pieces
    from cme295lab.pretraining.tokenizer.requests import END_TOKEN
    from cme295lab.pretraining.tokenizer.training import train_bpe

_HOME: dict[str, str] = {
    "Bpe": "bpe",
    "Compression": "bytes_per_token",
    "END_TOKEN": "requests",
    "SAMPLES": "bytes_per_token",
    "compression": "bytes_per_token",
    "pieces": "pretokenization",
    "train_bpe": "training",
    "train_tokenizer": "library",
}
_MODULES = ("bpe", "library", "requests", "training")

__all__: list[str] = [
    "pieces",
    "Bpe",
    "train_bpe",
    "train_tokenizer",
    "END_TOKEN",
    "compression",
    "Compression",
    "SAMPLES",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME, _MODULES)
