"""Three questions to ask of any instruction data: how varied, how long, and is the evaluation in the training?

Variety is counted: different questions, different answers, and the share of runs of three words that occur once only.
Generated text scores high on the first two and low on the third, because sentences are shared; natural text would be
high on all. Lengths are in tokens of a given tokenizer, of questions and answers without the template's signs. Leakage
is looked for in four ways: families, questions and whole conversations that are the same once normalised, near copies,
and the corpus's overlap of runs of words.
"""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from cme295lab.finetuning.instructions.cleaning import NEAR_COPY, WORDS_IN_A_RUN
from cme295lab.finetuning.instructions.example import Example, normalised, normalised_prompts
from cme295lab.pretraining.corpora.duplicates import similar_pairs
from cme295lab.pretraining.corpora.splitting import Overlap, overlap

ALL = "all"  # the row of all kinds together


@dataclass(frozen=True, kw_only=True)
class Variety:
    """How varied the examples of a kind are.

    Attributes:
        num_examples: conversations.
        num_questions: different first questions, normalised.
        num_answers: different last answers, normalised.
        num_several_turns: conversations with more than one answer.
        num_words: different words in all of it.
        rare_runs: of the different runs of three words, the share that occurs in one conversation only.
    """

    num_examples: int
    num_questions: int
    num_answers: int
    num_several_turns: int
    num_words: int
    rare_runs: float

    def __str__(self) -> str:
        return (
            f"{self.num_examples:>7,} {self.num_questions:>9,} {self.num_answers:>8,} {self.num_several_turns:>8,} "
            f"{self.num_words:>7,} {self.rare_runs:>6.0%}"
        )


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """How long the conversations of a kind are, in tokens.

    Attributes:
        num_examples: conversations.
        median: half are no longer.
        ninety_percent: nine in ten are no longer.
        longest: of all.
        share_above: longer than the limit that was asked about.
    """

    num_examples: int
    median: int
    ninety_percent: int
    longest: int
    share_above: float

    def __str__(self) -> str:
        counts = f"{self.num_examples:>7,} {self.median:>7,} {self.ninety_percent:>5,} {self.longest:>8,}"
        return f"{counts} {self.share_above:>6.1%}"


@dataclass(frozen=True, kw_only=True)
class Leakage:
    """What of an evaluation is in the training examples; all numbers are evaluation items but the last.

    Attributes:
        num_items: evaluated.
        num_same_family: that share a family.
        num_same_question: whose first question is one of the training examples'.
        num_same_text: that are in the training examples as a whole.
        num_near_copies: that are nearly the same as a training example.
        runs: how many runs of words are shared, and by which items.
    """

    num_items: int
    num_same_family: int
    num_same_question: int
    num_same_text: int
    num_near_copies: int
    runs: Overlap

    @property
    def is_clean(self) -> bool:
        """Whether no item is in the training examples, in any of the four ways that are counted."""
        return not (self.num_same_family or self.num_same_question or self.num_same_text or self.num_near_copies)

    def __str__(self) -> str:
        return (
            f"of {self.num_items:,} items {self.num_same_family:,} share a family, {self.num_same_question:,} a "
            f"question, {self.num_same_text:,} are the same, {self.num_near_copies:,} nearly; {self.runs}"
        )


def variety(examples: Iterable[Example]) -> dict[str, Variety]:
    """Count what is different in each kind, and in all of them together (under "all").

    Args:
        examples: at least one.

    Raises:
        ValueError: if there is no example.
    """
    return {kind: _variety(members) for kind, members in _by_kind(examples).items()}


def token_lengths(
    examples: Iterable[Example], encode: Callable[[str], Sequence[int]], *, limit: int = 200
) -> dict[str, Lengths]:
    """Measure the lengths of each kind, and of all together (under "all").

    Args:
        examples: at least one.
        encode: text to tokens.
        limit: a length to ask about, in tokens.

    Raises:
        ValueError: if there is no example, or the limit is not positive.
    """
    if limit < 1:
        raise ValueError(f"limit must be positive, got {limit}")
    return {
        kind: _lengths(sorted(len(encode(example.text)) for example in members), limit)
        for kind, members in _by_kind(examples).items()
    }


def leakage(train: Sequence[Example], evaluation: Sequence[Example], *, ngram: int = 13) -> Leakage:
    """Look for evaluation items among the training examples.

    Args:
        train: examples to train on.
        evaluation: examples to evaluate on, at least one.
        ngram: words in a run, for the overlap.

    Raises:
        ValueError: if there is nothing to evaluate on.
    """
    families = {example.family for example in train}
    questions = normalised_prompts(train)
    texts = {normalised(example.text) for example in train}
    start = len(evaluation)
    pairs = similar_pairs([e.text for e in (*evaluation, *train)], threshold=NEAR_COPY, words=WORDS_IN_A_RUN)
    return Leakage(
        num_items=len(evaluation),
        num_same_family=sum(example.family in families for example in evaluation),
        num_same_question=sum(normalised(example.prompt) in questions for example in evaluation),
        num_same_text=sum(normalised(example.text) in texts for example in evaluation),
        num_near_copies=len({pair.first for pair in pairs if pair.first < start <= pair.second}),
        runs=overlap(
            [example.as_document(f"train/{number}") for number, example in enumerate(train)],
            [example.as_document(f"{example.kind}/{number}") for number, example in enumerate(evaluation)],
            ngram=ngram,
        ),
    )


def as_table(rows: Mapping[str, Variety] | Mapping[str, Lengths]) -> str:
    """Rows of `variety` or of `token_lengths` as text, with a headline."""
    varied = isinstance(next(iter(rows.values())), Variety)
    head = "questions  answers  several   words   rare" if varied else " median   90%  longest  above"
    return "\n".join([f"{'kind':<12} {'number':>7} {head}", *(f"{kind:<12} {row}" for kind, row in rows.items())])


def _by_kind(examples: Iterable[Example]) -> dict[str, list[Example]]:
    found: dict[str, list[Example]] = defaultdict(list)
    everything = list(examples)
    if not everything:
        raise ValueError("there is no example: there is nothing to measure")
    for example in everything:
        found[example.kind].append(example)
    return {**{kind: found[kind] for kind in sorted(found)}, ALL: everything}


def _variety(examples: Sequence[Example]) -> Variety:
    holders: Counter[int] = Counter()
    words: set[str] = set()
    for example in examples:
        found = normalised(example.text).split()
        words.update(found)
        runs = {zlib.crc32(" ".join(run).encode()) for run in zip(found, found[1:], found[2:])}
        holders.update(runs)
    return Variety(
        num_examples=len(examples),
        num_questions=len(normalised_prompts(examples)),
        num_answers=len({normalised(example.answer) for example in examples}),
        num_several_turns=sum(example.num_turns > 1 for example in examples),
        num_words=len(words),
        rare_runs=sum(count == 1 for count in holders.values()) / max(1, len(holders)),
    )


def _lengths(lengths: Sequence[int], limit: int) -> Lengths:
    """Of sorted lengths; a quantile is the smallest length that so many do not exceed."""
    number = len(lengths)
    return Lengths(
        num_examples=number,
        median=lengths[(number - 1) // 2],
        ninety_percent=lengths[-(-9 * number // 10) - 1],
        longest=lengths[-1],
        share_above=sum(length > limit for length in lengths) / number,
    )
