"""Training a vocabulary: all pairs counted before each merge, counts kept up to date, and the `tokenizers` library.

Run alone: `python -m tests.benchmarks.pretraining`. One thread; the three learn the same merges from the same text, are
called in turn, and medians are compared. The naive way takes time in proportion to the number of merges, so its
vocabulary is small; the larger one leaves it out.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from cme295lab.pretraining.corpora import course_corpus
from cme295lab.pretraining.tokenizer import train_bpe, train_tokenizer
from tests.benchmarks.timing import medians


@dataclass(frozen=True, kw_only=True)
class BpeTraining:
    """Seconds that a vocabulary takes.

    Args:
        text: what it is learned from.
        num_bytes: of the text.
        vocab_size: tokens.
        incremental_s: plain Python, counts kept up to date.
        library_s: the `tokenizers` library.
        naive_s: plain Python, recounted before each merge; None if that would take too long.
    """

    text: str
    num_bytes: int
    vocab_size: int
    incremental_s: float
    library_s: float
    naive_s: float | None

    def __str__(self) -> str:
        naive = ""
        if self.naive_s is not None:
            naive = f"naive {self.naive_s:7.2f} s ({self.naive_s / self.incremental_s:.1f}x), "
        return (
            f"BPE, {self.text}, {self.num_bytes / 1e6:.1f} MB, vocabulary {self.vocab_size}: {naive}"
            f"incremental {self.incremental_s:6.2f} s, tokenizers {self.library_s:6.2f} s"
        )


def bpe_training(text: str, texts: list[str], vocab_size: int, *, naive: bool, repeats: int) -> BpeTraining:
    """Time the trainers on one text."""
    runs: list[Callable[[], object]] = [
        lambda: train_bpe(texts, vocab_size),
        lambda: train_tokenizer(texts, vocab_size),
    ]
    if naive:
        runs.append(lambda: train_bpe(texts, vocab_size, method="naive"))
    seconds = medians(*runs, repeats=repeats)
    return BpeTraining(
        text=text,
        num_bytes=sum(len(text.encode()) for text in texts),
        vocab_size=vocab_size,
        incremental_s=seconds[0],
        library_s=seconds[1],
        naive_s=seconds[2] if naive else None,
    )


def bpe_rows() -> list[BpeTraining]:
    """The rows of the benchmark: one where all three are timed, and the course's own vocabulary."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    fast, full = (
        [document.text for documents in course_corpus(profile).train.values() for document in documents]
        for profile in ("fast", "full")
    )
    return [
        bpe_training("fast corpus", fast, 512, naive=True, repeats=1),
        bpe_training("full corpus", full, 4096, naive=False, repeats=3),
    ]


if __name__ == "__main__":
    for row in bpe_rows():
        print(row)
