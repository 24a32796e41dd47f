"""Training and validation text that have nothing in common, and a measure of how much they do.

A random split of documents leaks: two docstrings of a method and of the method that overrides it, the chapter on `if`
and the chapter on all statements that contains it. So families are split, not documents. Documents of one family stay
together, in all domains. Families that share passages are joined first (`link_families`): runs of words are hashed, one
in eight is kept, and two documents are linked if one of them has a good part of its runs in common with the other. That
finds a short text inside a long one, which similarity of whole texts does not.

Which side a family falls on is decided by a hash of its name, not by a random number: a document that is added or taken
away moves no other document, and what was once validation text never becomes training text.

The measure is the one that reports on models use for contamination: the share of the validation text's n-grams of words
that are also in the training text. It is not 0 on honest text (licences, idioms of code), and it is not small on
text that was generated from templates; both numbers belong in the report.

Source: n-gram overlap: Brown et al. 2020 (GPT-3), appendix C, with 13-grams.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from cme295lab.pretraining.corpora.clusters import clusters_of
from cme295lab.pretraining.corpora.document import Document
from cme295lab.pretraining.corpora.duplicates import shingles

SAMPLED_ONE_IN = 8
COMMON_IN = 50  # a run of words that more documents share is an idiom or a licence, not a passage


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How much of the validation text is in the training text.

    Attributes:
        ngram: words in a run.
        share: of the validation text's runs, those that are in the training text.
        num_runs: different runs in the validation text.
        worst: source and share of the documents with the most, at most five.
    """

    ngram: int
    share: float
    num_runs: int
    worst: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        worst = ", ".join(f"{source} {share:.0%}" for source, share in self.worst)
        return f"{self.share:.2%} of {self.num_runs:,} {self.ngram}-grams are in the training text; most: {worst}"


def link_families(documents: Sequence[Document], *, words: int = 8, smallest_share: float = 0.15) -> list[Document]:
    """Give documents that share passages the same family.

    Args:
        documents: of all domains together.
        words: in a run.
        smallest_share: two documents are linked if they share at least this part of the runs of one of them.

    Returns:
        The documents, with the families joined; a joined family has the name that comes first in the alphabet.
    """
    if not 0 < smallest_share <= 1:
        raise ValueError(f"smallest_share must be above 0 and at most 1, got {smallest_share}")
    names = sorted({document.family for document in documents})
    number_of = {name: number for number, name in enumerate(names)}
    links = (
        (number_of[documents[a].family], number_of[documents[b].family])
        for a, b in _sharing(documents, words, smallest_share)
    )
    joined = {names[number]: names[group[0]] for group in clusters_of(len(names), links) for number in group}
    return [replace(document, family=joined.get(document.family, document.family)) for document in documents]


def _sharing(documents: Sequence[Document], words: int, smallest_share: float) -> Iterable[tuple[int, int]]:
    samples = [_sample(document.text, words) for document in documents]
    holders: dict[int, list[int]] = defaultdict(list)
    for number, sample in enumerate(samples):
        for run in sample:
            holders[run].append(number)
    shared: Counter[tuple[int, int]] = Counter()
    for numbers in holders.values():
        if 1 < len(numbers) <= COMMON_IN:
            shared.update((a, b) for at, a in enumerate(numbers) for b in numbers[at + 1 :])
    for (a, b), count in shared.items():
        if count >= smallest_share * min(len(samples[a]), len(samples[b])):
            yield a, b


def _sample(text: str, words: int) -> frozenset[int]:
    return frozenset(run for run in shingles(text, words) if run % SAMPLED_ONE_IN == 0)


def split(
    documents: Iterable[Document], *, validation_share: float, seed: int = 0
) -> tuple[list[Document], list[Document]]:
    """Divide documents by a hash of their family.

    Args:
        documents: of any domain.
        validation_share: the part of all families to validate on, above 0 and below 1.
        seed: another seed, another division.

    Returns:
        Training and validation documents, in their order.

    Raises:
        ValueError: if `validation_share` is outside (0, 1).
    """
    if not 0 < validation_share < 1:
        raise ValueError(f"validation_share must be between 0 and 1, both excluded, got {validation_share}")
    sides: tuple[list[Document], list[Document]] = ([], [])
    for document in documents:
        sides[_fraction(document.family, seed) < validation_share].append(document)
    return sides


def _fraction(family: str, seed: int) -> float:
    return int.from_bytes(hashlib.sha256(f"{seed} {family}".encode()).digest()[:8], "big") / 2**64


def overlap(train: Iterable[Document], validation: Iterable[Document], *, ngram: int = 13) -> Overlap:
    """Measure how much of the validation text is in the training text.

    Args:
        train: documents to train on, of all domains.
        validation: documents to validate on.
        ngram: words in a run.

    Raises:
        ValueError: if `ngram` is not positive, or the validation text has no words.
    """
    if ngram < 1:
        raise ValueError(f"ngram must be positive, got {ngram}")
    known = {run for document in train for run in shingles(document.text, ngram)}
    validated = [(document.source, shingles(document.text, ngram)) for document in validation]
    runs = {run for _, own in validated for run in own}
    if not runs:
        raise ValueError("the validation text has no words: there is nothing to measure")
    shares = sorted(((len(own & known) / len(own), source) for source, own in validated if own), reverse=True)
    return Overlap(
        ngram=ngram,
        share=len(runs & known) / len(runs),
        num_runs=len(runs),
        worst=tuple((source, share) for share, source in shares[:5] if share),
    )
