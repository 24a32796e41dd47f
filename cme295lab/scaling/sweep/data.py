"""What the sweep reads: the course's corpus as one stream of tokens, and a stretch of other documents to be judged on.

The text ships with Python, so another version of Python has other text: `fingerprint` tells, and losses are comparable
only where it is the same. Documents stand in the order of a hash of their text: as good as random, and a document more
or less leaves all others where they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from cme295lab.pretraining.corpora import course_corpus
from cme295lab.pretraining.corpora.document import Document
from cme295lab.pretraining.tokenizer.library import train_tokenizer
from cme295lab.scaling.sweep.models import VOCAB_SIZE
from cme295lab.transformer.text import TextTokenizer

VALIDATION_TOKENS = 65_536
_FROM_EACH = 512  # tokens of a document for validation: many documents, so that none decides
_EVERY = 7  # documents from which the vocabulary is learned: one in so many is enough for 512 tokens


@dataclass(frozen=True, kw_only=True, eq=False)
class SweepData:
    """Two streams of tokens.

    Args:
        train, validation: token numbers, with an end token after each document.
        bytes_per_token: of the validation text, to turn nats per token into bits per byte.
    """

    train: Int[np.ndarray, " train"]
    validation: Int[np.ndarray, " validation"]
    bytes_per_token: float

    @property
    def fingerprint(self) -> str:
        """Equal if and only if the tokens are."""
        digest = hashlib.sha256()
        for stream in (self.train, self.validation):
            digest.update(stream.astype("<i4").tobytes())
        return digest.hexdigest()[:16]

    @property
    def facts(self) -> dict[str, object]:
        """What is stored with the results."""
        return {
            "train_tokens": len(self.train),
            "validation_tokens": len(self.validation),
            "vocab_size": VOCAB_SIZE,
            "bytes_per_token": round(self.bytes_per_token, 4),
            "fingerprint": self.fingerprint,
        }


def sweep_data() -> SweepData:
    """The course's corpus, tokenised: all domains, in an order that is always the same."""
    corpus = course_corpus("full")
    documents = _shuffled(corpus.train)
    tokenizer = train_tokenizer((document.text for document in documents[::_EVERY]), VOCAB_SIZE)
    validation = _stream(tokenizer, _shuffled(corpus.validation), from_each=_FROM_EACH)[:VALIDATION_TOKENS]
    num_bytes = len(tokenizer.decode(validation.tolist()).encode())
    return SweepData(
        train=_stream(tokenizer, documents),
        validation=validation,
        bytes_per_token=num_bytes / len(validation),
    )


def _shuffled(parts: Mapping[str, list[Document]]) -> list[Document]:
    documents = [document for domain in sorted(parts) for document in parts[domain]]
    return sorted(documents, key=lambda document: hashlib.sha256(document.text.encode()).digest())


def _stream(
    tokenizer: TextTokenizer, documents: list[Document], *, from_each: int | None = None
) -> Int[np.ndarray, " tokens"]:
    """All documents, or the first tokens of each, with an end token after each."""
    end = tokenizer.end_token
    parts = [np.array([*tokenizer.encode(document.text)[:from_each], end], dtype=np.int32) for document in documents]
    return np.concatenate(parts)
