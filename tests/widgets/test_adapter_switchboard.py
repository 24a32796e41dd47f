"""The switchboard: one batch gives what each adapter gives alone, and the sum what the summed weights give."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from cme295lab.finetuning import lora
from cme295lab.finetuning.chat import chat_template
from cme295lab.finetuning.tasks import LABELS, classify
from cme295lab.transformer.pretrained import load_pretrained
from cme295lab.widgets import AdapterSwitchboard, switchboard_scenario

ALPACA = chat_template("alpaca", bos_token="", eos_token="<|end|>")
TEXT = "You have won a red bike!"


@pytest.fixture(scope="module")
def loaded() -> Any:
    """The course's model with two adapters that have not learned, but do something."""
    pretrained = load_pretrained("course-4m")
    for number, name in enumerate(("spam", "sentiment")):
        lora.add_lora(pretrained.model, rank=2 + number, adapter=name)
        generator = torch.Generator().manual_seed(number)
        for key, parameter in lora.lora_parameters(pretrained.model, name).items():
            if "lora_B" in key:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    return pretrained


def probabilities_alone(model: nn.Module, loaded: Any) -> dict[str, float]:
    return dict(classify(model, [TEXT], loaded.tokenizer, ALPACA)[0].probabilities)


def test_every_row_is_what_its_adapter_answers_alone(loaded: Any) -> None:
    model = loaded.model
    lora.set_adapter(model, "spam")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    weights = {"spam": 0.75, "sentiment": 0.25}
    scenario = switchboard_scenario(model, TEXT, loaded.tokenizer, ALPACA, weights=weights)
    assert list(scenario.answers) == ["none", "spam", "sentiment", "weighted-sum"]
    assert scenario.num_rows == 4 * len(LABELS)
    alone = {}
    for name in (None, "spam", "sentiment"):
        lora.set_adapter(model, name)
        alone[name or "none"] = probabilities_alone(model, loaded)
    lora.set_adapter(model, "spam")
    summed = copy.deepcopy(model)
    changes = {name: lora.delta_weights(model, name) for name in weights}
    lora.remove_lora(summed)
    for path in changes["spam"]:
        layer = summed.get_submodule(path)
        assert isinstance(layer, nn.Linear)
        layer.weight.data += 0.75 * changes["spam"][path] + 0.25 * changes["sentiment"][path]
    alone["weighted-sum"] = probabilities_alone(summed, loaded)
    for name, expected in alone.items():
        assert scenario.answers[name].probabilities == pytest.approx(expected, abs=1e-5), name
    assert len({round(found["spam"], 4) for found in alone.values()}) == 4  # all four differ
    after = dict(model.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in after)
    assert (lora.active_adapter(model), lora.adapter_names(model)) == ("spam", ("spam", "sentiment"))


def test_bytes_by_hand(loaded: Any) -> None:
    scenario = switchboard_scenario(loaded.model, TEXT, loaded.tokenizer, ALPACA)
    per_rank = 4 * 4 * (256 + 256 + 256 + 128)  # fp32, layers, query and value
    assert scenario.adapter_bytes == {"spam": 2 * per_rank, "sentiment": 3 * per_rank}
    assert scenario.base_bytes == 4 * load_pretrained("course-4m").model.config.num_parameters


def test_switches_text_and_slider_change_what_is_asked(loaded: Any) -> None:
    board = AdapterSwitchboard(loaded.model, loaded.tokenizer, ALPACA, text=TEXT, weight=1.0)
    spam, both = (board.scenario.answers[name].probabilities for name in ("spam", "weighted-sum"))
    assert both == pytest.approx(spam, abs=1e-5)
    board.controls["weight"].value = 0.0
    answers = board.scenario.answers
    assert answers["weighted-sum"].probabilities == pytest.approx(answers["sentiment"].probabilities, abs=1e-5)
    for name in ("none", "sentiment", "weighted-sum"):
        board.controls[name].value = False
    assert list(board.scenario.answers) == ["spam"]
    assert board.controls["weight"].disabled
    assert list(board.plot.data[0].x) == [board.scenario.answers["spam"].probabilities["spam"]]
    board.controls["spam"].value = False
    assert list(board.scenario.answers) == ["none"]
    board.controls["text"].value = "The soup was <b>good</b>."
    assert board.scenario.text == "The soup was <b>good</b>."
    assert board.figure().alt_text.startswith("'The soup was <b>good</b>.'. none: ")
    before = board._text.value
    board.controls["text"].value = "bad <|end|>"  # a control token is refused, in words
    assert "&lt;|end|&gt;" in board._text.value
    assert board._text.value != before
    assert lora.adapter_names(loaded.model) == ("spam", "sentiment")


def test_refuses_what_cannot_be_asked(loaded: Any) -> None:
    ask = (loaded.tokenizer, ALPACA)
    with pytest.raises(ValueError, match="text is empty"):
        switchboard_scenario(loaded.model, "  ", *ask)
    with pytest.raises(ValueError, match="named once each"):
        switchboard_scenario(loaded.model, TEXT, *ask, adapters=["spam", "spam"])
    with pytest.raises(ValueError, match="there is no adapter 'topic'"):
        switchboard_scenario(loaded.model, TEXT, *ask, adapters=["topic"], weights={"spam": 1.0})
    with pytest.raises(ValueError, match="nothing would be asked"):
        switchboard_scenario(loaded.model, TEXT, *ask, adapters=[])
    assert lora.adapter_names(loaded.model) == ("spam", "sentiment")  # the sum is off again
    with pytest.raises(ValueError, match="weight must be"):
        AdapterSwitchboard(loaded.model, *ask, weight=2)
    one = load_pretrained("course-4m").model
    lora.add_lora(one, rank=1, adapter="spam")
    with pytest.raises(ValueError, match="two adapters or more, has spam"):
        AdapterSwitchboard(one, *ask)
