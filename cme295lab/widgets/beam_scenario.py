"""The tree of a real beam search as points and lines to draw, with the greedy path next to it.

A column is a step; in it the candidates stand by rank, the most probable on top. So the upper `num_beams` of a column
go on, and a line that rises shows a beam that overtakes. The greedy path is found in the tree as far as the search kept
it; where it was dropped, its remaining tokens stand in a row of their own below.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cme295lab.transformer.decoder import DecoderLM
from cme295lab.transformer.decoding import BeamResult, beam_search, generate, length_penalty_divisor
from cme295lab.widgets.decoding_scenario import visible


@dataclass(frozen=True, kw_only=True)
class BeamPoint:
    """A candidate in the drawing.

    Attributes:
        column: its step.
        row: its rank among the candidates of that step, 0 on top.
        text: its token.
        log_probability: sum since the prompt.
        kept: whether it went on or became an answer.
        ends: whether it ends an answer.
        parent: index of the point that it continues; None behind the prompt.
        wins: whether it lies on the best answer.
        greedy: whether it lies on the greedy path.
    """

    column: int
    row: int
    text: str
    log_probability: float
    kept: bool
    ends: bool
    parent: int | None
    wins: bool
    greedy: bool


@dataclass(frozen=True, kw_only=True)
class BeamAnswer:
    """An answer of the search: its text, log-probability, score after the length penalty, and number of tokens."""

    text: str
    log_probability: float
    score: float
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class BeamScenario:
    """A beam search, ready to draw.

    Attributes:
        num_beams: beams kept alive.
        length_penalty: the exponent alpha.
        points: all candidates, and what is left of the greedy path where the search dropped it.
        answers: best first.
        greedy: the greedy answer; its score has the same penalty.
    """

    num_beams: int
    length_penalty: float
    points: tuple[BeamPoint, ...]
    answers: tuple[BeamAnswer, ...]
    greedy: BeamAnswer

    @property
    def num_columns(self) -> int:
        return 1 + max(point.column for point in self.points)

    @property
    def greedy_row(self) -> int:
        """The row below all candidates."""
        return 2 * self.num_beams

    @property
    def greedy_was_dropped(self) -> bool:
        """Whether the search dropped the greedy path on the way."""
        return any(point.greedy and point.row == self.greedy_row for point in self.points)


def beam_scenario(
    model: DecoderLM,
    prompt: Sequence[int],
    *,
    decode: Callable[[list[int]], str],
    num_beams: int = 3,
    length_penalty: float = 0.6,
    max_new_tokens: int = 8,
    end_token: int | None = None,
) -> BeamScenario:
    """Run beam search and greedy decoding, and lay the tree out.

    Args:
        model: any model.
        prompt: token numbers.
        decode: text of token numbers.
        num_beams: beams kept alive.
        length_penalty: exponent of GNMT's penalty.
        max_new_tokens: columns of the tree at most.
        end_token: ends an answer, for instance the full stop.

    Raises:
        ValueError: if the search refuses an option.
    """
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "end_token": end_token}
    result = beam_search(model, prompt, num_beams=num_beams, length_penalty=length_penalty, **options)
    greedy = generate(model, [list(prompt)], **options)
    sums = torch.tensor(greedy.log_probabilities[0], dtype=torch.float64).cumsum(0).tolist()
    return BeamScenario(
        num_beams=num_beams,
        length_penalty=length_penalty,
        points=tree_points(result, greedy.tokens[0], sums, num_beams=num_beams, decode=decode),
        answers=tuple(
            BeamAnswer(text=decode(beam.tokens), log_probability=beam.log_probability, score=beam.score,
                       num_tokens=len(beam.tokens))
            for beam in result.beams
        ),
        greedy=_greedy_answer(greedy.tokens[0], sums[-1], length_penalty, decode),
    )  # fmt: skip


def tree_points(
    result: BeamResult,
    greedy: Sequence[int],
    greedy_sums: Sequence[float],
    *,
    num_beams: int,
    decode: Callable[[list[int]], str],
) -> tuple[BeamPoint, ...]:
    """Lay a tree out: candidates by rank, then the rest of the greedy path.

    Args:
        result: of a beam search.
        greedy: tokens of the greedy answer.
        greedy_sums: sum of log-probabilities up to each of them.
        num_beams: beams kept alive.
        decode: text of token numbers.
    """
    winning = set(result.path(result.beams[0].node)) if result.beams else set()
    on_greedy = _greedy_nodes(result, greedy)
    rows: dict[int, int] = {}  # step -> candidates seen: they come in the order of their probability
    points = []
    for node in result.tree:
        row = rows.get(node.step, 0)
        rows[node.step] = row + 1
        points.append(BeamPoint(
            column=node.step, row=row, text=visible(decode([node.token])), log_probability=node.log_probability,
            kept=node.kept, ends=node.ends, parent=node.parent, wins=node.id in winning, greedy=node.id in on_greedy,
        ))  # fmt: skip
    parent = on_greedy[-1] if on_greedy else None
    for column in range(len(on_greedy), len(greedy)):
        points.append(BeamPoint(
            column=column, row=2 * num_beams, text=visible(decode([greedy[column]])), kept=False, greedy=True,
            log_probability=greedy_sums[column], ends=column + 1 == len(greedy), parent=parent, wins=False,
        ))  # fmt: skip
        parent = len(points) - 1
    return tuple(points)


def _greedy_nodes(result: BeamResult, greedy: Sequence[int]) -> list[int]:
    """Ids of the nodes of the tree that the greedy path goes through, from the first on."""
    found: list[int] = []
    children = {(node.parent, node.token): node.id for node in result.tree}
    for token in greedy:
        following = children.get((found[-1] if found else None, token))
        if following is None:
            break
        found.append(following)
    return found


def _greedy_answer(
    tokens: list[int], log_probability: float, length_penalty: float, decode: Callable[[list[int]], str]
) -> BeamAnswer:
    score = log_probability / length_penalty_divisor(len(tokens), length_penalty)
    return BeamAnswer(text=decode(tokens), log_probability=log_probability, score=score, num_tokens=len(tokens))
