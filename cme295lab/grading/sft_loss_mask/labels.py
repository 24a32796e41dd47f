"""Part 1: inputs and labels of a conversation, turn by turn, with a label where the assistant speaks.

Conversations are made of numbers, so that neither a tokenizer nor a template stands between the page and the answer.
Users write tokens that assistants write as well, and even the assistant's header: who speaks is known from the turn.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cme295lab.grading.compare import Expected, Hypothesis, judge_tensor
from cme295lab.grading.exercise import Property
from cme295lab.grading.observe import refuse_function
from cme295lab.grading.result import Outcome
from cme295lab.grading.steps import Step, judge_tuple

Turn = tuple[str, list[int]]
HEADERS = {"system": [1, 5], "user": [1, 6], "assistant": [1, 7]}
END_OF_TURN = 2
EXAMPLE: tuple[Turn, ...] = (("user", [21, 22]), ("assistant", [31, 32]))


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """Which tokens get a label, and where; the defaults make no mistake.

    Args:
        cause: the mistake, in the words of the exercise.
        speakers: whose content counts.
        header: whether the header of their turns counts.
        end: whose end of turn counts: the "speakers"', "all" or "none".
        which: of their turns: "all", "first", "last", or the first and all that "follows".
        found: by "turn", by "value" (tokens that some assistant writes) or by "search" for the header.
        label_shift, mask_shift: how far on the label, and what says if it counts, is read.
        ignored: what stands where nothing counts.
    """

    cause: str = ""
    speakers: tuple[str, ...] = ("assistant",)
    header: bool = False
    end: str = "speakers"
    which: str = "all"
    found: str = "turn"
    label_shift: int = 1
    mask_shift: int = 1
    ignored: int = -100


_EVERYBODY = ("system", "user", "assistant")
RIGHT = Mistake()
MISTAKES = (
    Mistake(cause="every token has a label, the prompt's, too: only what the assistant says counts",
            speakers=_EVERYBODY, header=True),
    Mistake(cause="the user's words have labels, too: only what the assistant says counts",
            speakers=("user", "assistant")),
    Mistake(cause="everybody's words have labels: only what the assistant says counts", speakers=_EVERYBODY),
    Mistake(cause="the system's words have labels, too: only what the assistant says counts",
            speakers=("system", "assistant")),
    Mistake(cause="it is the other way round: the assistant's tokens are ignored, and all others have labels",
            speakers=("system", "user"), header=True),
    Mistake(cause="it is the other way round: the assistant's tokens are ignored, and all others' words have labels",
            speakers=("system", "user")),
    Mistake(cause="the assistant's header has labels: the template writes it, not the model", header=True),
    Mistake(cause="the end of turn has no label: the model would never learn to stop", end="none"),
    Mistake(cause="every end of turn has a label: the user's and the system's are not the assistant's", end="all"),
    Mistake(cause="only the last answer has labels: each of the assistant's turns counts", which="last"),
    Mistake(cause="only the first answer has labels: each of the assistant's turns counts", which="first"),
    Mistake(cause="all that follows the first answer's beginning has labels: the user's later turns, too",
            which="follows"),
    Mistake(cause="tokens are told by their value: the user may write the same ones", found="value"),
    Mistake(cause="answers are found by searching for the header: the user may write that, too. Go turn by turn",
            found="search"),
    Mistake(cause="labels are not shifted: place i must predict token i + 1, so it would learn to copy",
            label_shift=0, mask_shift=0),
    Mistake(cause="the mask is one place late: labels are shifted and the mask is not, so the first token of each "
            "answer has none", mask_shift=0),
    Mistake(cause="the mask is one place early: it is shifted twice, so the last header token has a label and the end "
            "of turn has none", mask_shift=2),
    Mistake(cause="the mask is shifted, and labels are not: place i must predict token i + 1", label_shift=0),
    Mistake(cause="labels are shifted twice: place i must predict token i + 1, not i + 2", label_shift=2, mask_shift=2),
    Mistake(cause="labels are shifted the wrong way: place i must predict token i + 1, not i - 1", label_shift=-1,
            mask_shift=-1),
    *(Mistake(cause=f"{number} stands where nothing counts: a token may have that number. Use -100", ignored=number)
      for number in (0, -1, END_OF_TURN)),
)  # fmt: skip


def properties(*, seed: int = 0, num_turns: int = 3) -> list[Property]:
    """What must hold for `inputs_and_labels(turns, headers, end_of_turn) -> (inputs, labels)`.

    Args:
        seed: of the random conversations.
        num_turns: of the assistant, above 1.
    """
    long = conversation(seed, num_turns)
    looks_like_it = (("user", [1, 7, 41, 42]), ("assistant", [51, 52]), ("user", [51, 1, 7, 52]), ("assistant", [41]))
    one = "the page's example comes out"
    several = "every answer has labels, nothing else"
    return [
        _property(one, EXAMPLE, "the page's example"),
        _property(several, long, f"system, and {num_turns} questions and answers, seed {seed}", weight=3),
        _property("a user who writes the assistant's tokens gets no labels", looks_like_it,
                  "a user who writes the assistant's header", needs=(several,)),
        _property("a conversation may end with a question", (*long, ("user", [61, 62, 63])),
                  f"one question more, seed {seed}", needs=(several,)),
        _property("an empty answer still ends its turn", (*long[:2], ("assistant", []), ("assistant", [71])),
                  "two answers in a row, one of them empty", needs=(several,)),
        _property("other headers and another end of turn can be used", long, "headers of 1, 2 and 4 tokens", end=90,
                  headers={"system": [91], "user": [92, 93], "assistant": [94, 95, 96, 97]}, needs=(several,)),
    ]  # fmt: skip


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "inputs_and_labels")


def conversation(seed: int, num_turns: int) -> tuple[Turn, ...]:
    """A system's words, then questions and answers; no two tokens next to each other are the same."""
    draw = random.Random(seed)

    def words() -> list[int]:
        return draw.sample(range(10, 60), draw.randint(2, 5))

    asked = [turn for _ in range(num_turns) for turn in (("user", words()), ("assistant", words()))]
    return (("system", words()), *asked)


def tokens_of(
    turns: tuple[Turn, ...], headers: Mapping[str, list[int]] = HEADERS, end: int = END_OF_TURN
) -> list[int]:
    """All tokens of a conversation."""
    return [token for role, content in turns for token in (*headers[role], *content, end)]


def labels_with(
    mistake: Mistake, turns: tuple[Turn, ...], headers: Mapping[str, list[int]] = HEADERS, end: int = END_OF_TURN
) -> Tensor:
    """The labels, one less than there are tokens."""
    tokens = tokens_of(turns, headers, end)
    counted = _counted(mistake, turns, headers, end)

    def label(place: int) -> int:
        says, told = place + mistake.mask_shift, place + mistake.label_shift
        fits = 0 <= says < len(tokens) and 0 <= told < len(tokens)
        return tokens[told] if fits and counted[says] else mistake.ignored

    return torch.tensor([label(place) for place in range(len(tokens) - 1)])


def _counted(mistake: Mistake, turns: tuple[Turn, ...], headers: Mapping[str, list[int]], end: int) -> list[bool]:
    """Whether each token counts."""
    tokens = tokens_of(turns, headers, end)
    if mistake.found == "value":
        written = {token for role, content in turns if role == "assistant" for token in (*content, end)}
        return [token in written for token in tokens]
    if mistake.found == "search":
        return _searched(tokens, headers["assistant"], end)
    numbers = [number for number, (role, _) in enumerate(turns) if role in mistake.speakers]
    chosen = {"first": numbers[:1], "last": numbers[-1:]}.get(mistake.which, numbers)
    counted: list[bool] = []
    for number, (role, content) in enumerate(turns):
        follows = mistake.which == "follows" and bool(numbers) and number > numbers[0]
        speaks = number in chosen
        counted += [follows or (speaks and mistake.header)] * len(headers[role]) + [follows or speaks] * len(content)
        counted.append(follows or {"all": True, "none": False}.get(mistake.end, speaks))
    return counted


def _searched(tokens: list[int], header: list[int], end: int) -> list[bool]:
    counted, inside = [], False
    for place, token in enumerate(tokens):
        inside = inside or tokens[max(place - len(header), 0) : place] == header
        counted.append(inside)
        inside = inside and token != end
    return counted


def _property(
    name: str, turns: tuple[Turn, ...], where: str, *, weight: float = 1.0, needs: tuple[str, ...] = (),
    headers: Mapping[str, list[int]] = HEADERS, end: int = END_OF_TURN,
) -> Property:  # fmt: skip
    tokens = torch.tensor(tokens_of(turns, headers, end))
    labels = partial(labels_with, turns=turns, headers=headers, end=end)
    inputs_mistakes = [
        Hypothesis("inputs lack the first token: they lack the last one, which has nothing to predict",
                   lambda: tokens[1:]),
        Hypothesis("inputs are masked: the model reads all tokens, only labels are -100",
                   lambda: labels(Mistake(label_shift=0, mask_shift=0))),
        Hypothesis("inputs are masked: the model reads all tokens, only labels are -100",
                   lambda: torch.where(labels(RIGHT) == -100, -100, tokens[:-1])),
        Hypothesis("these are the labels: return (inputs, labels)", lambda: labels(RIGHT)),
    ]  # fmt: skip
    judges = {
        "inputs": partial(_judge, name="inputs", value=tokens[:-1], mistakes=inputs_mistakes),
        "labels": partial(_judge, name="labels", value=labels(RIGHT),
                          mistakes=[Hypothesis(m.cause, partial(labels, m)) for m in MISTAKES]),
    }  # fmt: skip

    def judge(got: Any) -> Outcome:
        return judge_tuple(got, ("inputs", "labels"), judges)

    inputs = {
        "turns": [(role, list(content)) for role, content in turns], "headers": {**headers}, "end_of_turn": end,
    }  # fmt: skip
    return Step(position=None, inputs=inputs, judge=judge, where=f"{where}; {len(tokens)} tokens").as_property(
        name, weight=weight, needs=needs
    )


def _judge(got: Any, *, name: str, value: Tensor, mistakes: list[Hypothesis]) -> Outcome:
    return judge_tensor(got, Expected(name=name, value=value, dtype=torch.int64, allowed=0.0, mistakes=mistakes))
