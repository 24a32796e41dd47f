"""Learning a vocabulary: the most common pair of tokens becomes a token, again and again.

The plain way counts all pairs of all words before each merge. It is ten lines, and its time is the number of merges
times the size of the text. But a merge changes only the words that hold the pair. The incremental way keeps three
things up to date instead: how often each pair occurs, in which words, and a heap with the most common on top. Counts on
the heap get stale; an entry that no longer tells the true count is thrown away when it surfaces, because each change of
a count has put a new entry there.

Words that occur often are stored once, with a count. A pair that overlaps itself ("aaa" holds "aa" twice) is counted
at each place, though only one of them can be merged.

Ties go to the pair with the smaller numbers, the left one first. Without a rule, a vocabulary would depend on the order
of a hash table. Both rules are those of the `tokenizers` library (read in its source, held by tests), so its merges are
equal. Where two merges would give the same bytes ("a" + "bc" and "ab" + "c"), the library gives both one number and
this gives two; we know of no text where that happens.

Source: Sennrich et al. 2016, algorithm 1, and section 3.2 on the efficient version.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from cme295lab.pretraining.tokenizer.bpe import BYTE_ORDER, NUM_BYTES, Bpe, merged
from cme295lab.pretraining.tokenizer.pretokenization import pieces
from cme295lab.pretraining.tokenizer.requests import END_TOKEN, check_reached, check_request, checked_texts

Pair = tuple[int, int]


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    special_tokens: Sequence[str] = (END_TOKEN,),
    *,
    method: Literal["incremental", "naive"] = "incremental",
) -> Bpe:
    """Learn a byte-level BPE vocabulary in plain Python; `train_tokenizer` learns the same, faster.

    Args:
        texts: what to learn from; read once.
        vocab_size: tokens in all: special ones, the 256 bytes, and merges.
        special_tokens: texts that are one token each.
        method: "naive" recounts all pairs before each merge, "incremental" keeps counts up to date.

    Returns:
        The vocabulary; the same by either method, for texts in any order.

    Raises:
        TypeError: if `texts` or `special_tokens` is one string, or holds something else than strings.
        ValueError: if the vocabulary has no room for all bytes, there is too little text to fill it, or the method is
            unknown.

    Example:
        >>> train_bpe(["low lower lowest"] * 3, 262).merges
        ((b'l', b'o'), (b'lo', b'w'), (b' ', b'low'), (b' low', b'e'), (b's', b't'))
    """
    size, special = check_request(vocab_size, special_tokens)
    if method not in _METHODS:
        raise ValueError(f"method must be one of {', '.join(_METHODS)}, got {method!r}")
    first_merge = len(special) + NUM_BYTES
    number_of = {byte: len(special) + place for place, byte in enumerate(BYTE_ORDER)}
    counts = Counter(piece for text in checked_texts(texts) for piece in pieces(text))
    words = [[number_of[byte] for byte in piece.encode()] for piece in counts]
    pairs = _METHODS[method](words, list(counts.values()), first_merge, size - first_merge)
    check_reached(size, first_merge + len(pairs))
    return Bpe(pairs=tuple(pairs), special_tokens=special)


def _naive(words: list[list[int]], counts: Sequence[int], first_merge: int, num_merges: int) -> list[Pair]:
    pairs: list[Pair] = []
    for new in range(first_merge, first_merge + num_merges):
        totals: Counter[Pair] = Counter()
        for word, count in zip(words, counts):
            for pair in itertools.pairwise(word):
                totals[pair] += count
        if not totals:
            break
        best = min(totals, key=lambda pair: (-totals[pair], pair))
        pairs.append(best)
        words = [merged(word, best, new) for word in words]
    return pairs


def _incremental(words: list[list[int]], counts: Sequence[int], first_merge: int, num_merges: int) -> list[Pair]:
    totals: Counter[Pair] = Counter()
    words_with: dict[Pair, set[int]] = defaultdict(set)  # and perhaps words that lost the pair to another merge
    for number, word in enumerate(words):
        for pair in itertools.pairwise(word):
            totals[pair] += counts[number]
            words_with[pair].add(number)
    heap = [(-total, pair) for pair, total in totals.items()]
    heapq.heapify(heap)
    pairs: list[Pair] = []
    while heap and len(pairs) < num_merges:
        negative_total, best = heapq.heappop(heap)
        if -negative_total != totals[best] or not totals[best]:
            continue  # stale
        new = first_merge + len(pairs)
        pairs.append(best)
        changes: Counter[Pair] = Counter()
        for number in words_with.pop(best):
            before, count = words[number], counts[number]
            words[number] = after = merged(before, best, new)
            for pair in itertools.pairwise(before):
                changes[pair] -= count
            for pair in itertools.pairwise(after):
                changes[pair] += count
                words_with[pair].add(number)
        for pair, change in changes.items():
            if change:
                totals[pair] += change
                heapq.heappush(heap, (-totals[pair], pair))
    return pairs


_METHODS: dict[str, Callable[[list[list[int]], Sequence[int], int, int], list[Pair]]] = {
    "incremental": _incremental, "naive": _naive
}  # fmt: skip
