"""The decoding playground without a browser: a prompt is read once, sliders only reshape, draws are the model's."""

from typing import Any
from unittest.mock import patch

import pytest
import torch

from cme295lab.transformer.decoding import Sampling, generate
from cme295lab.widgets import decoding_playground
from cme295lab.widgets.decoding_playground import DecodingPlayground
from tests.widgets.fake_language_model import FakePretrained, fake_pretrained


@pytest.fixture
def letters() -> FakePretrained:
    return fake_pretrained()


@pytest.fixture
def playground(letters: FakePretrained) -> DecodingPlayground:
    return DecodingPlayground(letters, prompt="the cat", max_new_tokens=6)


def test_bars_are_the_models_distribution(playground: DecodingPlayground, letters: FakePretrained) -> None:
    with torch.no_grad():
        expected = letters.model(torch.tensor([letters.tokenizer.encode("the cat")]))[0, -1].softmax(-1)
    best = expected.sort(descending=True)
    before, after, labels = playground.plot.data
    assert list(before.x) == pytest.approx(best.values[:20].tolist(), abs=1e-6)
    assert list(after.x) == pytest.approx(list(before.x))
    shown = [letters.tokenizer.token_text(token).replace(" ", "␣").replace("\n", "↵") for token in best.indices[:20]]
    assert [text.strip() for text in playground.plot.layout.yaxis.ticktext] == [
        text.replace("<", "&lt;") for text in shown
    ]
    assert labels.text[0] == f"{best.values[0]:.1%}"


def test_sliders_reshape_and_do_not_ask_the_model(playground: DecodingPlayground) -> None:
    before = list(playground.plot.data[1].x)
    with patch.object(playground.pretrained.model, "forward", side_effect=AssertionError("the model was asked")):
        playground.controls["temperature"].value = 0.5
        sharper = list(playground.plot.data[1].x)
        playground.controls["top_k"].value = 3
        cut = list(playground.plot.data[1].x)
        playground.controls["temperature"].value = 0.0
    assert sharper[0] > before[0]
    assert sum(cut) == pytest.approx(1)
    assert [value > 0 for value in cut] == [True] * 3 + [False] * 17
    assert list(playground.plot.data[1].x) == [1.0] + [0.0] * 19
    assert playground.plot.data[2].text[5] == "cut off"
    assert playground.sampling is None
    assert "1 of 30" in playground._text.value


def test_every_slider_reaches_the_sampling(playground: DecodingPlayground) -> None:
    for name, value in {"temperature": 1.5, "top_k": 10, "top_p": 0.9, "min_p": 0.05}.items():
        playground.controls[name].value = value
    assert playground.sampling == Sampling(temperature=1.5, top_k=10, top_p=0.9, min_p=0.05)
    for name in ("top_k", "top_p", "min_p"):
        playground.controls[name].value = "off"
    assert playground.sampling == Sampling(temperature=1.5)


def test_a_token_is_appended_by_click_and_by_menu_and_taken_back(playground: DecodingPlayground) -> None:
    clicked = playground.scenario.chances[4].token
    playground._clicked(None, type("Points", (), {"point_inds": [4]}), None)
    text = "the cat" + playground.pretrained.tokenizer.decode([clicked])
    assert playground.prompt.value == text.replace("\n", "↵")
    assert playground._choose_from.value == playground.scenario.chances[0].token
    playground._choose_from.index = 2
    playground.controls["temperature"].value = 0.5  # the choice outlives a slider
    chosen = playground.scenario.chances[2].token
    playground._buttons["append"].click()
    assert playground.tokens[-2:] == [clicked, chosen]
    for _ in range(2):
        playground._buttons["undo"].click()
    assert playground.prompt.value == "the cat"


def test_a_line_end_stays_one(playground: DecodingPlayground) -> None:
    end = playground.pretrained.tokenizer.encode("\n")[0]
    playground.append(end)
    assert playground.prompt.value == "the cat↵"
    playground.prompt.value = "the cat↵on"
    assert playground.tokens == playground.pretrained.tokenizer.encode("the cat\non")


def test_continuations_are_those_of_generate(playground: DecodingPlayground, letters: FakePretrained) -> None:
    playground.controls["temperature"].value = 1.2
    playground.sample()
    playground.wait()
    prompt = letters.tokenizer.encode("the cat")
    greedy = generate(letters.model, [prompt], max_new_tokens=6, end_token=0)
    drawn = generate(
        letters.model, [prompt] * 3, max_new_tokens=6, end_token=0, sampling=Sampling(temperature=1.2), seed=1
    )
    expected = [letters.tokenizer.decode(row) for row in [*greedy.content, *drawn.content]]
    assert [item.text for item in playground.continuations] == expected
    assert [item.name for item in playground.continuations] == ["greedy", "sample 1", "sample 2", "sample 3"]
    for item in playground.continuations:
        assert item.text.split("\n")[0].replace("<", "&lt;") in playground._drawn.value
    assert not playground._buttons["sample"].disabled
    playground.sample()  # another draw gives others
    playground.wait()
    again = [item.text for item in playground.continuations]
    assert again[0] == expected[0]
    assert again[1:] != expected[1:]


def test_greedy_draws_nothing(playground: DecodingPlayground) -> None:
    playground.controls["temperature"].value = 0.0
    playground.sample()
    playground.wait()
    assert [item.name for item in playground.continuations] == ["greedy"]


def test_what_goes_wrong_while_drawing_is_shown(playground: DecodingPlayground) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise ValueError("logits are not finite <numbers>")

    with patch.object(decoding_playground, "generate", fails):
        playground.sample()
        playground.wait()
    assert "logits are not finite &lt;numbers&gt;" in playground._drawn.value
    assert not playground._buttons["sample"].disabled


def test_prompts_that_cannot_be_read_are_refused_and_change_nothing(playground: DecodingPlayground) -> None:
    shown = list(playground.plot.data[0].x)
    playground.prompt.value = "a" * 60  # 64 positions, of which a continuation needs 6
    assert "1 to 58 tokens, got 60" in playground._text.value
    assert list(playground.plot.data[0].x) == shown
    playground.prompt.value = "a"
    assert "tokens can be drawn" in playground._text.value
    with pytest.raises(ValueError, match="1 to 58 tokens, got 0"):
        DecodingPlayground(playground.pretrained, prompt="", max_new_tokens=6)
    with pytest.raises(ValueError, match="top_k must be one of"):
        DecodingPlayground(playground.pretrained, prompt="a", top_k=7)


def test_the_static_picture_says_what_the_widget_shows(playground: DecodingPlayground) -> None:
    playground.controls["top_p"].value = 0.5
    picture = playground.figure()
    assert picture.alt_text in repr(playground)
    assert "top-p 0.5" in picture.alt_text
    assert len(picture.png()) < 100_000
