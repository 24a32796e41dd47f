"""The tree of a beam search: laid out by hand, against all answers there are, and the view that shows it."""

import math

import pytest
import torch

from cme295lab.transformer.decoding import Beam, BeamNode, BeamResult, length_penalty_divisor
from cme295lab.widgets.beam_scenario import beam_scenario, tree_points
from cme295lab.widgets.beam_tree import BeamTree
from tests.widgets.fake_language_model import ALPHABET, FakePretrained, fake_pretrained


@pytest.fixture(scope="module")
def letters() -> FakePretrained:
    return fake_pretrained()


def node(id: int, parent: int | None, step: int, token: int, log_probability: float, kept: bool) -> BeamNode:
    return BeamNode(id=id, parent=parent, step=step, token=token, log_probability=log_probability, kept=kept,
                    ends=step == 1)  # fmt: skip


TREE = [
    # Two beams: "a" leads at first, "b" overtakes; the greedy path a, c is dropped in the second step.
    node(0, None, 0, 1, -0.6, True),
    node(1, None, 0, 2, -0.9, True),
    node(2, None, 0, 3, -2.5, False),
    node(3, 1, 1, 4, -1.0, True),
    node(4, 1, 1, 5, -1.4, True),
    node(5, 0, 1, 6, -2.2, False),
]


def decode(tokens: list[int]) -> str:
    return "".join(ALPHABET[token] for token in tokens)


def test_a_tree_is_laid_out_by_hand() -> None:
    best = Beam(tokens=[2, 4], log_probability=-1.0, score=-1.0, node=3)
    result = BeamResult(beams=[best], tree=TREE)
    points = tree_points(result, [1, 6], [-0.6, -2.2], num_beams=2, decode=decode)
    assert [(point.column, point.row, point.text) for point in points] == [
        (0, 0, "a"), (0, 1, "b"), (0, 2, "c"), (1, 0, "d"), (1, 1, "e"), (1, 2, "f"),
    ]  # fmt: skip
    assert [point.wins for point in points] == [False, True, False, True, False, False]
    assert [point.greedy for point in points] == [True, False, False, False, False, True]
    assert [point.parent for point in points] == [None, None, None, 1, 1, 0]


def test_what_is_left_of_a_dropped_greedy_path_stands_below() -> None:
    result = BeamResult(beams=[Beam(tokens=[2, 4], log_probability=-1.0, score=-1.0, node=3)], tree=TREE)
    points = tree_points(result, [1, 7, 8], [-0.6, -1.7, -3.0], num_beams=2, decode=decode)
    below = points[len(TREE) :]
    assert [(point.column, point.row, point.parent, point.log_probability) for point in below] == [
        (1, 4, 0, -1.7), (2, 4, 6, -3.0),
    ]  # fmt: skip
    assert all(point.greedy and not point.kept for point in below)


def test_enough_beams_find_the_best_of_all_answers(letters: FakePretrained) -> None:
    """Two tokens, and as many beams as there are letters: the best of all 900 pairs."""
    prompt = letters.tokenizer.encode("the cat")
    found = beam_scenario(letters.model, prompt, decode=decode, num_beams=30, length_penalty=0.0, max_new_tokens=2)
    pairs = torch.tensor([[*prompt, first, second] for first in range(30) for second in range(30)])
    with torch.no_grad():
        logs = letters.model(pairs).log_softmax(-1)
    at = len(prompt)
    sums = logs[:, at - 1].gather(1, pairs[:, at, None]) + logs[:, at].gather(1, pairs[:, at + 1, None])
    best = int(sums.argmax())
    assert found.answers[0].text == decode(pairs[best, at:].tolist())
    assert found.answers[0].log_probability == pytest.approx(float(sums.max()), abs=1e-4)


@pytest.mark.parametrize("num_beams", [1, 2, 5])
def test_a_column_keeps_no_more_than_the_beams_and_falls_in_probability(
    letters: FakePretrained, num_beams: int
) -> None:
    prompt = letters.tokenizer.encode("on a mat")
    found = beam_scenario(letters.model, prompt, decode=decode, num_beams=num_beams, max_new_tokens=5)
    assert found.num_columns == 5
    for column in range(5):
        tree = [point for point in found.points if point.column == column and point.row < found.greedy_row]
        assert len(tree) == 2 * num_beams
        assert sum(point.kept for point in tree) == num_beams
        logs = [point.log_probability for point in tree]
        assert logs == sorted(logs, reverse=True)
    for point in found.points:
        assert point.parent is None or found.points[point.parent].column == point.column - 1
    assert sum(point.wins for point in found.points) == sum(point.greedy for point in found.points) == 5
    assert found.answers[0].score >= found.answers[-1].score


def test_one_beam_is_greedy(letters: FakePretrained) -> None:
    prompt = letters.tokenizer.encode("abc")
    found = beam_scenario(letters.model, prompt, decode=decode, num_beams=1, max_new_tokens=6)
    assert found.answers[0].text == found.greedy.text
    assert found.answers[0].log_probability == pytest.approx(found.greedy.log_probability, abs=1e-4)
    assert not found.greedy_was_dropped
    assert [point.greedy for point in found.points] == [point.wins for point in found.points]


def test_the_penalty_divides_and_the_end_token_ends(letters: FakePretrained) -> None:
    prompt = letters.tokenizer.encode("abc")
    for end_token in range(len(ALPHABET)):
        options = {"num_beams": 3, "max_new_tokens": 6, "end_token": end_token}
        found = beam_scenario(letters.model, prompt, decode=decode, length_penalty=1.4, **options)  # type: ignore[arg-type]
        for answer in [*found.answers, found.greedy]:
            divisor = length_penalty_divisor(answer.num_tokens, 1.4)
            assert answer.score == pytest.approx(answer.log_probability / divisor)
            assert len(answer.text) == answer.num_tokens
            assert ALPHABET[end_token] not in answer.text[:-1]
            assert answer.num_tokens == 6 or answer.text.endswith(ALPHABET[end_token])
            assert math.isfinite(answer.log_probability)


def test_view_shows_the_search_and_follows_its_sliders(letters: FakePretrained) -> None:
    tree = BeamTree(letters, prompt="the cat", num_beams=2, max_new_tokens=4)
    assert len(tree.plot.data[-1].x) == len(tree.scenario.points)
    before = list(tree.plot.data[-1].text)
    tree.controls["num_beams"].value = 4
    after = list(tree.plot.data[-1].text)
    assert len(after) == len(tree.scenario.points) > len(before)
    best = tree.scenario.answers[0]
    assert best.text in tree._text.value
    assert f"{best.score:.2f}" in tree._text.value
    green = next(trace for trace in tree.plot.data if trace.name == "best answer")
    assert len(green.x) == 3 * best.num_tokens  # start, end and a gap for each token
    picture = tree.figure()
    assert picture.alt_text in repr(tree)
    assert len(picture.png()) < 100_000


def test_view_keeps_its_picture_when_a_prompt_is_refused(letters: FakePretrained) -> None:
    tree = BeamTree(letters, prompt="the cat", max_new_tokens=4)
    shown = list(tree.plot.data[-1].text)
    tree.prompt.value = "a" * 100
    assert list(tree.plot.data[-1].text) == shown
    assert "64" in tree._text.value  # the model's longest context
    tree.prompt.value = "a"
    assert list(tree.plot.data[-1].text) != shown
    with pytest.raises(ValueError, match="num_beams must be one of"):
        BeamTree(letters, num_beams=9)
