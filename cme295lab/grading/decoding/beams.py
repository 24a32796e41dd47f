"""Part 3: beam search over a small made-up language, held against a plain implementation.

The plain implementation is right with every option at its default (a test holds it to the library), and the options are
the known mistakes. Several questions are asked at once, so that mistakes that agree on one differ on another.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from cme295lab.grading.exercise import Property
from cme295lab.grading.observe import Observation, refuse_function
from cme295lab.grading.observe_plainly import observe_plainly
from cme295lab.grading.result import Kind, Outcome

Answer = tuple[list[int], float]
Language = Callable[[list[int]], list[float]]

# The page's example: greedy begins with token 0 and ends up with less than beams do. Token 2 ends.
EXAMPLE = {(): (0.5, 0.4, 0.1), (0,): (0.4, 0.35, 0.25), (1,): (0.05, 0.05, 0.9)}


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A known mistake; the defaults make none.

    Args:
        cause: the mistake, in the words of the exercise.
        accumulate: whether log-probabilities are summed along a beam.
        logarithms: whether they are logarithms that are summed.
        compete: whether the continuations of all beams compete.
        first_ends: whether the first answer is returned.
        ends: whether the end token ends an answer.
        frees_place: whether a beam that ends leaves its place to another.
        any_rank: whether an answer may come from behind the best num_beams candidates.
        unfinished: whether beams that are alive at the end are answers.
        penalty: "gnmt", "none", "length", "times" (multiplied) or "upside down" (1 / alpha).
        counts_end: whether |Y| counts the end token.
        all_answers: whether every answer there is was looked at.
    """

    cause: str = ""
    accumulate: bool = True
    logarithms: bool = True
    compete: bool = True
    first_ends: bool = False
    ends: bool = True
    frees_place: bool = True
    any_rank: bool = False
    unfinished: bool = True
    penalty: str = "gnmt"
    counts_end: bool = True
    all_answers: bool = False


MISTAKES = (
    Mistake(cause="only the last log-probability of a beam counts: sum them along the beam", accumulate=False),
    Mistake(cause="probabilities are summed: sum their logarithms", logarithms=False),
    Mistake(
        cause="each beam is continued by its own best token: the continuations of all beams compete together",
        compete=False,
    ),
    Mistake(
        cause="the search stops at the first answer: others go on, and may end up better", first_ends=True
    ),
    Mistake(cause="the end token does not end anything: such a candidate is an answer and does not go on", ends=False),
    Mistake(
        cause="an answer takes a beam's place: num_beams candidates that do not end go on besides", frees_place=False
    ),
    Mistake(
        cause="candidates that end became answers though they are not among the best num_beams of their step",
        any_rank=True,
    ),
    Mistake(cause="beams that are alive after max_tokens are forgotten: they are answers, too", unfinished=False),
    Mistake(
        cause="answers of different lengths are compared without the length penalty, which favours the short",
        penalty="none",
    ),
    Mistake(cause="the sum is divided by |Y| itself: the divisor is ((5 + |Y|) / 6) ** alpha", penalty="length"),
    Mistake(cause="the penalty multiplies: log P is divided by it", penalty="times"),
    Mistake(cause="|Y| does not count the end token: it counts all new tokens", counts_end=False),
    Mistake(cause="that is the best of all answers: beam search with so few beams does not find it", all_answers=True),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Question:
    """One call of the student's function.

    Args:
        seed: of the language; None for the page's.
        num_beams, max_tokens, end_token, alpha: arguments.
    """

    seed: int | None
    num_beams: int
    max_tokens: int
    end_token: int | None = None
    alpha: float = 0.0

    def language(self, tokens: list[int]) -> list[float]:
        """Log-probabilities of the next token."""
        return list(_language(self.seed, tuple(tokens)))

    @property
    def arguments(self) -> dict[str, Any]:
        """What the student's function is called with, the language aside."""
        return {
            "num_beams": self.num_beams, "max_tokens": self.max_tokens, "end_token": self.end_token,
            "alpha": self.alpha,
        }  # fmt: skip

    @property
    def call(self) -> str:
        """The call, in words."""
        language = "the page's language" if self.seed is None else f"a language of 5 tokens, seed {self.seed}"
        return f"{language}; {', '.join(f'{name}={value!r}' for name, value in self.arguments.items())}"


@cache
def _language(seed: int | None, tokens: tuple[int, ...]) -> tuple[float, ...]:
    if seed is None:
        return tuple(math.log(value) for value in EXAMPLE.get(tokens, (0.3, 0.3, 0.4)))
    number = seed
    for token in tokens:
        number = (number * 31 + token + 1) % 1_000_003
    logits = 1.5 * torch.randn(5, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
    return tuple(logits.log_softmax(-1).tolist())


def search(question: Question, mistake: Mistake | None = None) -> Answer:
    """The answer, or what a mistake finds."""
    wrong = mistake or Mistake()
    if wrong.all_answers:
        return _best(_all_answers(question), question, wrong)
    beams: list[Answer] = [([], 0.0)]
    answers: list[Answer] = []
    for _ in range(question.max_tokens):
        candidates = _candidates(question, beams, wrong)
        beams = []
        for rank, (tokens, total) in enumerate(candidates):
            ends = wrong.ends and tokens[-1] == question.end_token
            if ends and (wrong.any_rank or rank < question.num_beams):
                answers.append((tokens, total))
            if not ends and (len(beams) if wrong.frees_place else rank) < question.num_beams:
                beams.append((tokens, total))
        if not beams or (wrong.first_ends and answers):
            break
    return _best(answers + beams if wrong.unfinished or not answers else answers, question, wrong)


def _candidates(question: Question, beams: Sequence[Answer], wrong: Mistake) -> list[Answer]:
    """Continuations of the beams, best first."""
    found: list[Answer] = []
    for tokens, total in beams:
        gains = question.language(tokens)
        values = gains if wrong.logarithms else [math.exp(gain) for gain in gains]
        own = [([*tokens, token], (total if wrong.accumulate else 0.0) + gain) for token, gain in enumerate(values)]
        # From the empty beginning, all beams must differ.
        found += own if wrong.compete or not tokens else [max(own, key=lambda answer: answer[1])]
    return sorted(found, key=lambda answer: -answer[1])


def _all_answers(question: Question) -> list[Answer]:
    found: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(len(question.language([]))), repeat=question.max_tokens):
        length = path.index(question.end_token) + 1 if question.end_token in path else question.max_tokens
        tokens = list(path[:length])
        found[path[:length]] = sum(question.language(tokens[:i])[token] for i, token in enumerate(tokens))
    return [(list(path), total) for path, total in found.items()]


def _best(answers: Sequence[Answer], question: Question, wrong: Mistake) -> Answer:
    def scored(answer: Answer) -> Answer:
        tokens, total = answer
        length = len(tokens)
        if not wrong.counts_end and tokens[-1] == question.end_token:
            length -= 1
        gnmt = ((5 + length) / 6) ** question.alpha
        divisor = {"gnmt": gnmt, "none": 1.0, "length": max(length, 1) ** question.alpha, "times": 1 / gnmt}
        return tokens, total / divisor[wrong.penalty]

    return max(map(scored, answers), key=lambda answer: answer[1])


def properties(*, seed: int = 0) -> list[Property]:
    """What must hold for `beam_search(next_log_probabilities, num_beams, max_tokens, end_token, alpha)`.

    Args:
        seed: of the languages.
    """
    greedy = [Question(seed=seed + i, num_beams=1, max_tokens=4) for i in range(4)]
    sums = [Question(seed=seed + i, num_beams=2 + i % 2, max_tokens=4) for i in range(8)]
    ends = [Question(seed=seed + i, num_beams=2 + i % 2, max_tokens=4, end_token=i % 5) for i in range(16)]
    penalties = [
        Question(seed=seed + i, num_beams=1 + (i + end) % 3, max_tokens=5, end_token=end, alpha=(0.6, 3.0)[i % 2])
        for i in range(9)
        for end in range(5)
    ]
    page = [Question(seed=None, num_beams=beams, max_tokens=2, end_token=2) for beams in (1, 2)]
    by_sum = "of answers of one length, the largest sum of log-probabilities wins"
    return [
        _property("the example of the page comes out", page),
        _property("one beam is greedy decoding", greedy),
        _property(by_sum, sums),
        _property("answers that end are kept while others go on", ends, needs=(by_sum,)),
        _property("answers of different lengths are compared after the length penalty", penalties, needs=(by_sum,)),
    ]


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "beam_search")


def _property(name: str, questions: Sequence[Question], needs: tuple[str, ...] = ()) -> Property:
    def observe(student: Callable[..., Any]) -> Observation:
        return observe_plainly(lambda: [student(asked.language, **asked.arguments) for asked in questions], {})

    def judge(seen: Observation) -> Outcome:
        return judge_answers(questions, seen.outputs["result"])

    return Property(name=name, observe=observe, judge=judge, where=questions[0].call, needs=needs)


def judge_answers(questions: Sequence[Question], answers: Sequence[Any]) -> Outcome:
    """Judge the answers in order; the first wrong one is reported, with the cause that fits most of them."""
    for question, got in zip(questions, answers):
        if not _is_answer(got, len(question.language([]))):
            cause = f"return (tokens, score): a list of token numbers and a number; got {got!r}"
            return Outcome(name="", kind=Kind.WRONG_SHAPE, where=question.call, cause=cause)
    for question, got in zip(questions, answers):
        want = search(question)
        if not _same(got, want):
            difference = f"expected {_text(want)}, got {_text(got)}"
            cause = explain(questions, answers)
            return Outcome(name="", kind=Kind.WRONG_VALUE, where=question.call, difference=difference, cause=cause)
    return Outcome(name="")


def explain(questions: Sequence[Question], answers: Sequence[Any]) -> str:
    """The mistake that gives all these answers, right and wrong ones; an empty string if there is none."""
    for mistake in MISTAKES:
        if all(_same(got, search(question, mistake)) for question, got in zip(questions, answers)):
            return mistake.cause
    if not all(_same(got, _scored(question, list(got[0]))) for question, got in zip(questions, answers)):
        return "the score is not that of the tokens: log P(Y) / ((5 + |Y|) / 6) ** alpha"
    return ""


def _scored(question: Question, tokens: list[int]) -> Answer:
    """These tokens, with their score."""
    total = sum(question.language(tokens[:i])[token] for i, token in enumerate(tokens))
    return _best([(tokens, total)], question, Mistake())


def _is_answer(got: Any, vocab_size: int) -> bool:
    if not isinstance(got, tuple | list) or len(got) != 2 or not isinstance(got[0], tuple | list):
        return False
    return all(token in range(vocab_size) for token in got[0]) and isinstance(got[1], int | float)


def _same(got: Any, want: Answer) -> bool:
    return list(got[0]) == want[0] and math.isclose(got[1], want[1], rel_tol=1e-5, abs_tol=1e-9)


def _text(answer: Any) -> str:
    return f"tokens {list(answer[0])} with score {answer[1]:.6g}"
