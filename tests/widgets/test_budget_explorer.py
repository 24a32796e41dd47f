"""The 80 GB budget: what it shows is the ledger's, a link carries all of it, and the impossible is said, not drawn."""

import json
from dataclasses import replace

import pytest

from cme295lab.hardware import get_device
from cme295lab.memory import TrainingSetting, cheapest_fix, get_policy, training_memory
from cme295lab.transformer import ModelConfig, preset
from cme295lab.units import format_bytes
from cme295lab.widgets import Budget, BudgetExplorer
from cme295lab.widgets.budget_explorer import OWN
from cme295lab.widgets.memory_colours import COLOURS


def budget_of(device: str = "H100", **options: object) -> Budget:
    setting = training_memory(**options).setting
    assert setting is not None
    return Budget(setting=setting, device=get_device(device))


def shown_bars(explorer: BudgetExplorer) -> list[float]:
    """The sum of the stacked pieces of each bar."""
    return [sum(column) for column in zip(*(trace.x for trace in explorer.plot.data), strict=True)]


def test_budget_explorer_shows_the_ledger_and_the_cheapest_change() -> None:
    explorer = BudgetExplorer()
    expected = training_memory("llama-3-8b", seq=8192)
    fix = cheapest_fix(expected.setting, "H100")
    assert fix.changes
    assert shown_bars(explorer) == [expected.total_bytes, fix.ledger.total_bytes]
    assert explorer.plot.layout.shapes[0].x0 == get_device("H100").memory_bytes
    assert {trace.name: trace.x[0] for trace in explorer.plot.data if trace.x[0]} == expected.by_class()
    for part in (str(expected.fits("H100"))[1:], fix.changes[0].name, format_bytes(expected.total_bytes)):
        assert part in explorer._text.value
    explorer._button.click()
    assert explorer.budget.setting == fix.ledger.setting
    assert shown_bars(explorer) == [fix.ledger.total_bytes]
    assert explorer._button.layout.display == "none"


def test_budget_explorer_follows_every_control() -> None:
    explorer = BudgetExplorer(budget_of(config="gpt-2", seq=1024))
    changes = {
        "model": "llama-3-70b", "device": "B200", "policy": "bf16-pure", "optimizer": "adafactor", "seq": 2048,
        "attention": "standard", "recompute": "selective", "micro_batch": 2, "data": 64, "zero_stage": 2, "tensor": 8,
        "pipeline": 4, "context": 2, "sequence_parallel": True, "offload_states": True,
    }  # fmt: skip
    for name, value in changes.items():
        explorer.controls[name].value = value
    setting = explorer.budget.setting
    assert (setting.config, setting.policy) == (preset("llama-3-70b"), get_policy("bf16-pure"))
    found = {name: getattr(setting, name, None) for name in changes} | vars(setting.parallel)
    assert {n: found[n] for n in changes if n not in ("model", "device", "policy")} == {
        n: v for n, v in changes.items() if n not in ("model", "device", "policy")
    }
    assert explorer.budget.device == get_device("B200")
    assert shown_bars(explorer)[0] == explorer.budget.ledger.total_bytes


def test_budget_explorer_takes_a_model_of_ones_own() -> None:
    explorer = BudgetExplorer(budget_of(config="llama-2-7b", seq=2048))
    explorer.controls["model"].value = OWN
    assert explorer._own_row.layout.display == "flex"
    before = explorer.budget.ledger.total_bytes
    explorer.own["num_layers"].value = 16
    config = explorer.budget.setting.config
    assert (config.num_layers, config.dim, config.mlp) == (16, 4096, "swiglu")
    assert explorer.budget.ledger.total_bytes < before
    assert BudgetExplorer(explorer.share.value).controls["model"].value == OWN


def test_budget_link_carries_everything_both_ways() -> None:
    own = ModelConfig(vocab_size=1000, num_layers=3, dim=64, num_heads=4, mlp_dim=100, max_seq=512, mlp="gelu")
    for budget in (
        budget_of(config="llama-3-8b", optimizer="adam-8bit", fragmentation=0.05),
        budget_of("T4", config=own, seq=512, policy="fp32"),
    ):
        assert Budget.read(budget.to_json()) == budget
        assert Budget.read(budget.fragment) == budget
        assert Budget.read("https://example.org/lab/tree/04.ipynb" + budget.fragment) == budget
    assert json.loads(budget_of(config="gpt-2").to_json())["setting"]["config"] == "gpt-2"


def test_pasting_a_link_loads_it_and_a_damaged_one_is_refused() -> None:
    explorer, other = BudgetExplorer(), budget_of("A100", config="gpt-3", seq=2048, recompute="full")
    explorer.share.value = "see " + other.fragment
    assert explorer.budget == other
    assert explorer.controls["model"].value == "gpt-3"
    explorer.share.value = other.fragment[:40]
    assert "Not loaded" in explorer._text.value
    assert explorer.budget == other


def test_impossible_setting_is_said_and_the_last_possible_one_kept() -> None:
    explorer = BudgetExplorer(budget_of(config="gpt-2-xl", seq=1024))
    explorer.controls["tensor"].value = 8  # 25 heads
    assert "Not possible: tensor=8 does not divide num_heads=25" in explorer._text.value
    assert explorer.budget.setting.parallel.tensor == 1
    explorer.controls["model"].value = "llama-2-7b"
    assert explorer.budget.setting.parallel.tensor == 8
    assert "Not possible" not in explorer._text.value


def test_budget_figure_says_what_it_shows() -> None:
    explorer = BudgetExplorer(budget_of(config="megatron-7.5b", seq=2048))
    picture = explorer.figure()
    assert picture.alt_text in repr(explorer)
    assert str(explorer.budget.verdict) in picture.alt_text
    assert len(picture.png()) < 100_000
    assert set(explorer.budget.ledger.by_class()) <= set(COLOURS)


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "neither JSON nor a link"), ("[1]", "a budget is"), ("#budget=%%%", "damaged or incomplete|neither JSON"),
     ('{"device": "H100", "setting": {"config": "gpt-5", "policy": "fp32", "seq": 1}}', "unknown model"),
     ('{"device": "H100", "setting": {"config": "gpt-2"}}', "not a budget"),
     ('{"device": "H1000", "setting": {"config": "gpt-2", "policy": "fp32", "seq": 1}}', "H1000")],
)  # fmt: skip
def test_budget_refuses_text_that_carries_none(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Budget.read(text)


def test_budget_explorer_refuses_what_its_controls_lack() -> None:
    budget = budget_of(config="llama-2-7b", seq=2048)
    odd = replace(budget, setting=TrainingSetting.from_dict(budget.setting.to_dict() | {"micro_batch": 3}))
    with pytest.raises(ValueError, match="micro_batch must be one of 1, 2, 4"):
        BudgetExplorer(odd)
