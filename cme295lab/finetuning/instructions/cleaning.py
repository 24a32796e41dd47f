"""What is left out of instruction data, with counts: bad answers, near copies, and whatever is in the evaluation.

Four steps, each counted. Filters look at one conversation: answers that say nothing, repeat themselves, repeat the
question, or are too long. A conversation whose first question is an evaluation item's, in other punctuation perhaps, is
left out, and so is one that is nearly the same as an evaluation item as a whole. Last, near copies among those that
remain are left out, but for the first.

Near copies are found by the corpus's tool (`similar_pairs`). What is done with the pairs differs: in a corpus, texts in
a chain of pairs are one cluster, of which one text remains. Generated conversations form long chains, because they
share sentences, and one cluster would swallow a kind. Here a conversation goes only if it is like one that was kept.

A filter that sees nothing to drop is no failure: generated answers are mostly clean, and the filters are for data from
elsewhere too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cme295lab.finetuning.instructions.example import Example, normalised, normalised_prompts
from cme295lab.pretraining.corpora.document import Document
from cme295lab.pretraining.corpora.duplicates import similar_pairs
from cme295lab.pretraining.corpora.quality import (
    Filter,
    FilterReport,
    apply_filters,
    length_outside,
    not_printable,
    too_many_repeated_lines,
    too_many_symbols,
)

NEAR_COPY = 0.8  # Jaccard similarity of runs of five words
WORDS_IN_A_RUN = 5
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n")


@dataclass(frozen=True)
class ConversationDocument(Document):
    """A conversation as a document, so that the corpus's filters can look at it.

    Attributes:
        example: the conversation; the text is that of its questions and answers.
    """

    example: Example | None = None


@dataclass(frozen=True, kw_only=True)
class CleaningReport:
    """What came in and what was left out; prints as a table.

    Attributes:
        filters: by reason.
        num_same_question: with the first question of an evaluation item.
        num_like_evaluation: nearly the same as an evaluation item.
        num_near_copies: nearly the same as an earlier conversation that was kept.
        num_kept: the rest.
    """

    filters: FilterReport
    num_same_question: int
    num_like_evaluation: int
    num_near_copies: int
    num_kept: int

    def __str__(self) -> str:
        rows = [
            ("question is in the evaluation", self.num_same_question),
            ("nearly the same as in the evaluation", self.num_like_evaluation),
            ("near copies", self.num_near_copies),
            ("left", self.num_kept),
        ]
        return "\n".join([str(self.filters), *(f"{name:<40} {number:>8,}" for name, number in rows)])


def answer_repeats_question(largest_share: float = 0.9) -> Filter:
    """Drop conversations in which a last answer has this share, or more, of the last question's words in a row.

    Args:
        largest_share: of the answer's words, those that are a copy of the question's beginning.
    """
    if not 0 < largest_share <= 1:
        raise ValueError(f"largest_share must be above 0 and at most 1, got {largest_share}")

    def drops(example: Example) -> bool:
        asked = next((normalised(m.content).split() for m in reversed(example.messages) if m.role == "user"), [])
        answered = normalised(example.answer).split()
        same = 0
        while same < min(len(asked), len(answered)) and asked[same] == answered[same]:
            same += 1
        return same >= largest_share * max(1, len(answered))

    return Filter(name="answer repeats the question", drops=_of_examples(drops))


def says_a_sentence_twice() -> Filter:
    """Drop conversations in which an answer has the same sentence of at least four words twice."""

    def drops(example: Example) -> bool:
        for message in example.messages:
            if message.role == "assistant":
                said = [s for s in map(normalised, _SENTENCE_END.split(message.content)) if s.count(" ") >= 3]
                if len(set(said)) < len(said):
                    return True
        return False

    return Filter(name="a sentence comes twice in an answer", drops=_of_examples(drops))


def fewer_words_than(number: int) -> Filter:
    """Drop conversations in which all answers together have fewer words."""
    if number < 1:
        raise ValueError(f"number must be positive, got {number}")

    def drops(example: Example) -> bool:
        return sum(len(m.content.split()) for m in example.messages if m.role == "assistant") < number

    return Filter(name=f"fewer than {number} words of answer", drops=_of_examples(drops))


def _of_examples(drops: Callable[[Example], bool]) -> Callable[[Document], bool]:
    """A filter of conversations as a filter of documents."""

    def of_document(document: Document) -> bool:
        if not isinstance(document, ConversationDocument) or document.example is None:
            raise TypeError(f"this filter looks at conversations, got a plain {type(document).__name__}")
        return drops(document.example)

    return of_document


FILTERS = (
    length_outside(20, 1200),
    not_printable(0.0),
    too_many_symbols(0.45),
    too_many_repeated_lines(0.3),
    fewer_words_than(2),
    says_a_sentence_twice(),
    answer_repeats_question(),
)


def clean(
    examples: Sequence[Example],
    *,
    evaluation: Sequence[Example] = (),
    filters: Sequence[Filter] = FILTERS,
    near_copy: float = NEAR_COPY,
) -> tuple[list[Example], CleaningReport]:
    """Leave out bad answers, whatever is in the evaluation, and near copies.

    Args:
        examples: to train on.
        evaluation: items that must not be among them, nor anything like them.
        filters: the corpus's filters, or those of this module.
        near_copy: similarity from which two conversations are nearly the same, above 0 and at most 1.

    Returns:
        The examples kept, in their order, and the report.

    Raises:
        ValueError: if `near_copy` is outside (0, 1], or two filters have one name.
    """
    documents = [
        ConversationDocument(e.text, e.kind, f"{e.kind}/{number}", family=e.family, example=e)
        for number, e in enumerate(examples)
    ]
    passed, filtered = apply_filters(documents, filters)
    questions = normalised_prompts(evaluation)
    fresh = [
        d.example
        for d in passed
        if isinstance(d, ConversationDocument) and d.example and normalised(d.example.prompt) not in questions
    ]
    like_evaluation, copies = _near(fresh, evaluation, near_copy)
    kept = [e for number, e in enumerate(fresh) if number not in like_evaluation and number not in copies]
    report = CleaningReport(
        filters=filtered,
        num_same_question=len(passed) - len(fresh),
        num_like_evaluation=len(like_evaluation),
        num_near_copies=len(copies),
        num_kept=len(kept),
    )
    return kept, report


def _near(examples: Sequence[Example], evaluation: Sequence[Example], near_copy: float) -> tuple[set[int], set[int]]:
    """Numbers of examples that are like an evaluation item, and of those like an earlier example that is kept."""
    start = len(evaluation)
    pairs = similar_pairs([e.text for e in (*evaluation, *examples)], threshold=near_copy, words=WORDS_IN_A_RUN)
    like_evaluation = {pair.second - start for pair in pairs if pair.first < start <= pair.second}
    copies: set[int] = set()
    for pair in pairs:  # in the order of the first one, so whether that was kept is known
        first, second = pair.first - start, pair.second - start
        if first >= 0 and first not in copies and first not in like_evaluation and second not in like_evaluation:
            copies.add(second)
    return like_evaluation, copies
