"""The same text twice, or nearly: found without comparing everything with everything.

A text that a model reads ten times, it learns by heart; a text in training and in validation makes the validation loss
a lie. Exact copies are found by their hash. For near copies, a text is a set of shingles: all runs of a few words. Two
texts are as similar as their sets (Jaccard: shared shingles over all shingles). Comparing n texts pairwise takes n²
comparisons; MinHash keeps, of each set, the smallest value under each of many hash functions, and the share of equal
minima estimates the similarity. Cut into bands, equal bands are equal dictionary keys (locality-sensitive hashing), so
candidates are found by look-up. Each candidate pair is then compared exactly: no document is dropped by chance. A near
copy may be missed by chance, the less likely the more similar it is. `similar_pairs_by_comparison` is the plain
version, pair by pair; a test holds the two together.

Similarity is not transitive: if A is like B and B like C, all three are one cluster, though A and C may differ more.

What is not covered: a short text inside a long one. Their sets are not similar, yet validating on one and training on
the other is a leak: `splitting` links those.

Source: Broder 1997 (MinHash); Lee et al. 2022, "Deduplicating Training Data Makes Language Models Better". MinHash and
its index are the `datasketch` library's.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from datasketch import MinHash, MinHashLSH

from cme295lab.pretraining.corpora.clusters import clusters_of
from cme295lab.pretraining.corpora.document import Document

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True)
class SimilarPair:
    """Two documents of which one is a copy of the other, more or less.

    Attributes:
        first: the earlier one's number.
        second: the later one's number.
        similarity: Jaccard, of their shingles; 1 for equal sets.
    """

    first: int
    second: int
    similarity: float


@dataclass(frozen=True, kw_only=True)
class DuplicateReport:
    """What was dropped as a copy; prints as text.

    Attributes:
        num_documents: that came in.
        num_exact: dropped because an earlier document has the same text.
        num_near: dropped because an earlier document of their cluster is kept.
        examples: sources of a near copy and of a document like it, with their similarity.
    """

    num_documents: int
    num_exact: int
    num_near: int
    examples: tuple[tuple[str, str, float], ...]

    def __str__(self) -> str:
        kept = self.num_documents - self.num_exact - self.num_near
        dropped = f"{self.num_exact:,} copies, {self.num_near:,} near copies"
        lines = [f"{self.num_documents:,} read, {dropped}, {kept:,} kept"]
        lines += [f"  {copy} is like {original} ({similarity:.2f})" for copy, original, similarity in self.examples]
        return "\n".join(lines)


def remove_duplicates(
    documents: Iterable[Document], *, threshold: float = 0.8, words: int = 5, num_hashes: int = 128, seed: int = 0
) -> tuple[list[Document], DuplicateReport]:
    """Keep the first of all documents with the same text, and the first of each cluster of near copies.

    Args:
        documents: any number.
        threshold: similarity from which two documents are near copies, above 0 and at most 1.
        words: in a shingle.
        num_hashes: of each document; more miss fewer pairs.
        seed: of the hash functions.

    Returns:
        The documents kept, in their order, and a report.

    Raises:
        ValueError: if `threshold` is outside (0, 1], or `words` or `num_hashes` is too small.
    """
    seen: set[str] = set()
    documents = list(documents)
    unique = [document for document in documents if not (document.text in seen or seen.add(document.text))]  # type: ignore[func-returns-value]
    pairs = similar_pairs(
        [document.text for document in unique], threshold=threshold, words=words, num_hashes=num_hashes, seed=seed
    )
    clusters = clusters_of(len(unique), ((pair.first, pair.second) for pair in pairs))
    copies = {number for cluster in clusters for number in cluster[1:]}
    report = DuplicateReport(
        num_documents=len(documents),
        num_exact=len(documents) - len(unique),
        num_near=len(copies),
        examples=tuple(
            (unique[pair.second].source, unique[pair.first].source, pair.similarity) for pair in pairs[:5]
        ),
    )
    return [document for number, document in enumerate(unique) if number not in copies], report


def similar_pairs(
    texts: Sequence[str], *, threshold: float = 0.8, words: int = 5, num_hashes: int = 128, seed: int = 0
) -> list[SimilarPair]:
    """All pairs of texts with at least this similarity, up to what the index misses by chance.

    Args:
        texts: to compare with each other.
        threshold: similarity, above 0 and at most 1.
        words: in a shingle.
        num_hashes: of each text.
        seed: of the hash functions.
    """
    _check(threshold, words)
    if num_hashes < 16:
        raise ValueError(f"num_hashes must be at least 16, or most pairs are missed, got {num_hashes}")
    sets = [shingles(text, words) for text in texts]
    # Bands are chosen for a lower threshold than asked for: candidates are compared exactly, so finding too many costs
    # only time, while a pair that is not found is lost.
    index = MinHashLSH(threshold=0.9 * threshold, num_perm=num_hashes, weights=(0.1, 0.9))
    blank = MinHash(num_perm=num_hashes, seed=seed, hashfunc=int)
    pairs = []
    for number, members in enumerate(sets):
        if not members:
            continue
        sketch = blank.copy()
        sketch.update_batch(list(members))
        for other in sorted(index.query(sketch)):
            similarity = jaccard(sets[other], members)
            if similarity >= threshold:
                pairs.append(SimilarPair(first=other, second=number, similarity=similarity))
        index.insert(number, sketch, check_duplication=False)
    return sorted(pairs, key=lambda pair: (pair.first, pair.second))


def similar_pairs_by_comparison(texts: Sequence[str], *, threshold: float = 0.8, words: int = 5) -> list[SimilarPair]:
    """All pairs of texts with at least this similarity, each pair compared: exact, and slow."""
    _check(threshold, words)
    sets = [shingles(text, words) for text in texts]
    compared = (
        SimilarPair(first=a, second=b, similarity=jaccard(sets[a], sets[b]))
        for a, b in itertools.combinations(range(len(sets)), 2)
        if sets[a] and sets[b]
    )
    return [pair for pair in compared if pair.similarity >= threshold]


def shingles(text: str, words: int) -> frozenset[int]:
    """Hashes of all runs of `words` words, without regard to case; a shorter text is one run; no words, no runs."""
    found = _WORD.findall(text.lower())
    if not found:
        return frozenset()
    runs = zip(*(found[start:] for start in range(words))) if len(found) >= words else [tuple(found)]
    return frozenset(zlib.crc32(" ".join(run).encode()) for run in runs)


def jaccard(a: frozenset[int], b: frozenset[int]) -> float:
    """Shared members over all members."""
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def _check(threshold: float, words: int) -> None:
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be above 0 and at most 1, got {threshold}")
    if words < 1:
        raise ValueError(f"words must be positive, got {words}")
