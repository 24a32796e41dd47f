"""Which matrices are meant, and how many parameters that makes: published counts, and plan against model."""

import pytest
import torch
from torch import nn

from cme295lab.finetuning import lora
from cme295lab.quantization import quantize_model
from cme295lab.transformer.config import ModelConfig
from cme295lab.transformer.decoder import DecoderLM
from tests.finetuning.test_lora_combining import MOE
from tests.finetuning.tuned_models import LEARNED, ROPE, model_of

MLP, ATTENTION = ("gate", "up", "down"), ("query", "key", "value", "out")
QV = ("query", "value")
PUBLISHED = [
    ("gpt-3", 1, QV, 4_718_592), ("gpt-3", 4, QV, 18_874_368), ("gpt-3", 8, QV, 37_748_736),
    ("llama-2-7b", 8, QV, 4_194_304), ("llama-2-7b", 16, "all-linear", 39_976_960),
    ("llama-2-7b", 64, "all-linear", 159_907_840),
    ("llama-3-8b", 1, MLP, 1_769_472), ("llama-3-8b", 1, ATTENTION, 851_968), ("llama-3-8b", 1, ("head",), 132_352),
    ("llama-3-8b", 1, ("all-linear", "head"), 2_753_792),
]  # fmt: skip


@pytest.mark.parametrize(("name", "rank", "targets", "count"), PUBLISHED)
def test_published_counts(name: str, rank: int, targets: tuple[str, ...] | str, count: int) -> None:
    assert lora.num_lora_parameters(name, rank=rank, targets=targets) == count


@pytest.mark.parametrize(
    ("targets", "rank", "billions"),
    [((*MLP, "head"), 256, 0.487), ((*ATTENTION, "head"), 256, 0.252), (("all-linear", "head"), 256, 0.705),
     ((*MLP, "head"), 128, 0.243)],
)  # fmt: skip
def test_counts_of_lora_without_regret_have_the_head_in_them(
    targets: tuple[str, ...], rank: int, billions: float
) -> None:
    assert round(lora.num_lora_parameters("llama-3-8b", rank=rank, targets=targets) / 1e9, 3) == billions


@pytest.mark.parametrize("targets", ["all-linear", QV, ("all-linear", "head"), ("embedding", "mlp.down"), ("head",)])
@pytest.mark.parametrize("config", [ROPE, LEARNED], ids=["rope-gqa", "tied"])
def test_plan_model_and_summary_agree(config: ModelConfig, targets: tuple[str, ...] | str) -> None:
    model = DecoderLM(config)
    num_base = sum(p.numel() for p in model.parameters())
    planned = lora.num_lora_parameters(config, rank=3, targets=targets)
    assert lora.num_lora_parameters(model, rank=3, targets=targets) == planned
    summary = lora.add_lora(model, rank=3, targets=targets)
    assert summary.num_trainable == planned == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (summary.num_base, summary.num_parameters) == (num_base, num_base + planned)
    shapes = {row.path: tuple(model.get_submodule(row.path).weight.shape) for row in summary.rows}
    assert {row.path: row.shape for row in summary.rows} == shapes
    assert planned == sum(3 * sum(shape) for shape in shapes.values())
    assert f"adapter 'default': {planned:,} parameters" in str(summary)


def test_routers_are_left_out_unless_named() -> None:
    def chosen(targets: tuple[str, ...] | str) -> set[str]:
        model = DecoderLM(MOE)
        summary = lora.add_lora(model, rank=2, targets=targets)
        assert summary.num_trainable == lora.num_lora_parameters(MOE, rank=2, targets=targets)
        return {row.path for row in summary.rows}

    everything = chosen("all-linear")
    assert len([path for path in everything if ".experts." in path]) == 2 * 3 * 3
    assert not any("router" in path or path == "head" for path in everything)
    assert chosen(("all-linear", "router")) - everything == {
        path for path, _ in DecoderLM(MOE).named_modules() if path.endswith(".router")
    }


def test_a_base_in_four_bits_counts_the_same() -> None:
    model = model_of().float()
    num_base = sum(p.numel() for p in model.parameters())
    quantize_model(model, "nf4", skip=("head",), compute_dtype=torch.float32)
    summary = lora.add_lora(model, rank=3, targets="all-linear")
    assert summary.num_trainable == lora.num_lora_parameters(ROPE, rank=3, targets="all-linear")
    assert summary.num_base == num_base


def test_names_are_compared_from_dot_to_dot() -> None:
    class Twin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.warmup = nn.Linear(2, 3), nn.Linear(2, 3)
            self.inner = nn.ModuleDict({"up": nn.Linear(3, 2), "lm_head": nn.Linear(2, 3)})

    known = [row.path for row in lora.add_lora(Twin(), rank=1, targets=("up",)).rows]
    assert known == ["up", "inner.up"]
    assert [row.path for row in lora.add_lora(Twin(), rank=1, targets=("inner.up",)).rows] == ["inner.up"]
    everything = [row.path for row in lora.add_lora(Twin(), rank=1, targets="all-linear").rows]
    assert everything == ["up", "warmup", "inner.up"]


@pytest.mark.parametrize("rank", [0, True, 1.5, 25])
def test_impossible_ranks_are_refused_in_a_plan(rank: int) -> None:
    with pytest.raises(ValueError, match="rank must be"):
        lora.num_lora_parameters(ROPE, rank=rank)


def test_a_plan_says_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="did you mean 'query'"):
        lora.num_lora_parameters(ROPE, rank=1, targets=("querry",))
    with pytest.raises(TypeError, match="'all-linear' or names in a tuple"):
        lora.num_lora_parameters(ROPE, rank=1, targets="query")
