"""QLoRA's memory bars: published sizes, parts added by hand, and the view that shows them."""

from typing import Any

import pytest
import torch

from cme295lab.transformer import ModelConfig, preset
from cme295lab.widgets import QloraBars, codebook_figure, qlora_scenario
from cme295lab.widgets.qlora_scenario import BUDGETS, MODELS, PARTS, TARGETS


def test_65b_is_sixteen_times_less_than_in_full_and_its_weights_are_not() -> None:
    """FACTS of the paper: above 780 GB in full, below 48 GB; weights alone 16 / 4.127."""
    found = qlora_scenario()
    full, lora, qlora = found.bars
    assert full.num_bytes == 12 * 65_285_660_672 > 780e9
    assert 33.5e9 < qlora.num_bytes < 48e9
    assert [bar.fits for bar in found.bars] == [False, False, True]
    assert found.saving_against_full == full.num_bytes / qlora.num_bytes > 780 / 48
    assert found.saving_against_full == pytest.approx(found.memory.saving_against_full)
    assert found.saving_of_weights == pytest.approx(3.88, abs=0.005)
    assert found.saving_against_lora == lora.num_bytes / qlora.num_bytes < found.saving_of_weights


def test_parts_of_the_bars_by_hand() -> None:
    """A layer of 4 × 8² + 3 × 8 × 16 = 640 weights with three norms of 8, embedding and head of 10 × 8 each."""
    config = ModelConfig(name="tiny", vocab_size=10, num_layers=1, dim=8, num_heads=2, mlp_dim=16, max_seq=4)
    found = qlora_scenario(config, rank=2, targets="query and value", double_quant=False, state_format="bf16")
    full, lora, qlora = ({name: bar.parts[name] for name in PARTS if bar.parts[name]} for bar in found.bars)
    num_parameters, num_trained = 640 + 3 * 8 + 2 * 80, 2 * 2 * (8 + 8)
    weights = 2 * num_parameters
    small = {"adapters": 2 * num_trained, "gradients": 2 * num_trained, "Adam states": 4 * num_trained}
    assert full == {"weights, 16 bits": weights, "gradients": weights, "Adam states": 2 * weights}
    assert lora == {"weights, 16 bits": weights} | small
    blocks = 4 * 1 + 3 * 2  # matrices of 64 and of 128
    assert qlora == {"weights, 16 bits": 2 * (24 + 160), "codes, 4 bits": 320, "scales": 4 * blocks} | small
    assert found.bars[2].num_bytes == sum(qlora.values())


@pytest.mark.parametrize("name", ["gpt-2", "llama-3-8b", "mistral-7b", "course-moe", "course-draft"])
def test_any_kind_of_model_can_be_shown_with_any_targets(name: str) -> None:
    sizes = {targets: qlora_scenario(name, rank=4, targets=targets).bars[2].num_bytes for targets in TARGETS}
    assert max(sizes.values()) == sizes["all linear layers"]
    assert sizes["query and value"] < sizes["attention"]
    full, lora, qlora = qlora_scenario(name, rank=4).bars
    assert qlora.num_bytes < lora.num_bytes < full.num_bytes == 12 * MODELS[name].num_parameters


def test_choices_move_their_own_part_and_no_other() -> None:
    before = qlora_scenario("llama-2-7b").bars[2].parts
    for change, moved in (
        ({"double_quant": False}, {"scales"}), ({"block_size": 128}, {"scales"}), ({"state_format": "bf16"},
        {"Adam states"}), ({"rank": 128}, {"adapters", "gradients", "Adam states"}), ({"budget": "24 GB"}, set()),
    ):  # fmt: skip
        options: dict[str, Any] = dict(change)
        after = qlora_scenario("llama-2-7b", **options).bars[2].parts
        assert {part for part in PARTS if after[part] != before[part]} == moved, change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": "llama-9"}, "model must be one of course-draft"),
        ({"targets": "norms"}, "targets must be one of all linear layers"),
        ({"budget": "12 GB"}, "budget must be one of 24 GB"),
        ({"state_format": "int8"}, "state_format must be one of fp32, bf16"),
        ({"rank": 0}, "rank must be"),
        ({"model": "course-4m", "rank": 256}, "rank must be at most the shorter side"),
        ({"block_size": 0}, "block_size must be at least 1"),
    ],
    ids=["model", "targets", "budget", "state", "zero", "rank", "block"],
)
def test_impossible_scenarios_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        qlora_scenario(**change)


def test_view_shows_the_scenario_and_follows_its_controls() -> None:
    bars = QloraBars()
    for trace, part in zip(bars.plot.data, PARTS, strict=False):
        assert (trace.name, list(trace.x)) == (part, [bar.parts[part] for bar in bars.scenario.bars])
    assert [text.strip() for text in bars.plot.data[-1].text] == ["783 GB", "140 GB", "44.1 GB"]
    assert "17.78 times less than fine-tuning in full" in bars._text.value
    assert "3.88 times less than 16" in bars._text.value
    bars.controls["scales"].value = "in fp32"
    assert "4.500 bits, 3.56 times" in bars._text.value
    bars.controls["budget"].value = "24 GB"
    assert "none fits 24 GB" in bars._text.value
    assert bars.plot.layout.shapes[0].x0 == BUDGETS["24 GB"]
    bars.controls["model"].value = "llama-2-7b"
    assert "LoRA and QLoRA fit 24 GB" in bars._text.value
    bars.controls["model"].value = "gpt-2"
    assert "all fit" in bars._text.value
    assert bars.plot.layout.shapes[0].visible is False
    assert "far beyond" in bars.plot.layout.annotations[0].text
    assert bars.scenario.bars[0].num_bytes == 12 * preset("gpt-2").num_parameters


def test_view_says_what_is_not_possible_and_keeps_its_picture() -> None:
    bars = QloraBars("course-4m", rank=64)
    bars.controls["rank"].value = 256
    shown = list(bars.plot.data[-1].text)
    assert "Not possible: rank must be at most the shorter side of layers.0.attention.key" in bars._text.value
    assert "not possible: rank" in repr(bars)
    bars.controls["rank"].value = 128
    assert "Not possible" not in bars._text.value
    assert list(bars.plot.data[-1].text) != shown


@pytest.mark.parametrize(("model", "budget"), [("llama-65b", "48 GB"), ("course-4m", "80 GB")])
def test_picture_says_in_words_what_it_shows(model: str, budget: str) -> None:
    bars = QloraBars(model, rank=16, budget=budget)
    picture = bars.figure()
    assert picture.alt_text.startswith(repr(bars).removeprefix("QloraBars(").removesuffix(")"))
    assert "times less than fine-tuning in full" in picture.alt_text
    assert len(picture.png()) < 100_000


def test_view_refuses_odd_values() -> None:
    with pytest.raises(ValueError, match="rank must be one of"):
        QloraBars(rank=5)
    with pytest.raises(ValueError, match="double_quant must be True or False"):
        QloraBars(double_quant="yes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shorter side"):
        QloraBars("course-4m", rank=256)


def test_codebook_figure_counts_the_weights_of_each_level() -> None:
    """Blocks of 32 ones and 31 zeros and −1: a scale of 1, and three of the sixteen levels."""
    weights = torch.tensor([1.0] * 32 + [0.0] * 31 + [-1.0]).repeat(3)
    picture = codebook_figure(weights)
    heights = [patch.get_height() for patch in picture.axes[1].patches]  # type: ignore[attr-defined]
    assert heights == pytest.approx([100 / 64] + [0] * 6 + [100 * 31 / 64] + [0] * 7 + [50])
    assert "1.6%, 0.0%" in picture.alt_text
    with pytest.raises(ValueError, match="at least one number"):
        codebook_figure(torch.empty(0))
