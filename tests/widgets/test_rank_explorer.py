"""The rank explorer: published counts, bytes by hand, and spectra whose answer is known."""

import pytest
import torch

from cme295lab.widgets import RankExplorer, rank_scenario
from cme295lab.widgets.rank_scenario import RANKS, TARGETS, ranks_of, spectrum


@pytest.mark.parametrize(
    ("model", "rank", "targets", "expected"),
    [
        ("gpt-3", 1, "query + value", 4_718_592),  # LoRA, Table 4
        ("gpt-3", 4, "query + value", 18_874_368),
        ("gpt-3", 8, "query + value", 37_748_736),
        ("llama-2-7b", 8, "query + value", 4_194_304),
        ("llama-2-7b", 16, "all-linear", 39_976_960),
        ("llama-2-7b", 64, "all-linear", 159_907_840),
        ("llama-3-8b", 1, "mlp", 1_769_472),
        ("llama-3-8b", 1, "attention", 851_968),
        ("llama-3-8b", 1, "all-linear + head", 2_753_792),  # "LoRA Without Regret": 3M
        ("llama-3-8b", 256, "all-linear + head", 704_970_752),  # .70B
    ],
)
def test_counts_are_the_published_ones(model: str, rank: int, targets: str, expected: int) -> None:
    assert rank_scenario(model, rank=rank, targets=targets).num_trainable == expected


@pytest.mark.parametrize(("targets", "rank", "billions"), [("mlp", 256, 0.487), ("attention", 256, 0.252),
                                                           ("mlp", 128, 0.243)])  # fmt: skip
def test_rows_of_lora_without_regret_need_the_head(targets: str, rank: int, billions: float) -> None:
    part = rank_scenario("llama-3-8b", rank=rank, targets=targets).num_trainable
    both, linear = (rank_scenario("llama-3-8b", rank=rank, targets=name).num_trainable for name in TARGETS[:2:-1])
    assert (part + both - linear) / 1e9 == pytest.approx(billions, abs=5e-4)


def test_bytes_by_hand() -> None:
    scenario = rank_scenario("llama-2-7b", rank=8, targets="query + value")
    assert scenario.full.total == 16 * 6_738_415_616
    assert scenario.lora.total == 2 * 6_738_415_616 + 16 * 4_194_304
    assert scenario.file_bytes == 4 * 4_194_304
    assert scenario.share == pytest.approx(4_194_304 / 6_738_415_616)


def test_spectrum_of_known_matrices() -> None:
    found = spectrum(torch.diag(torch.tensor([1.0, 3.0, 2.0]))[:, :3])
    assert found.values.tolist() == pytest.approx([3, 2, 1])
    assert found.kept.tolist() == pytest.approx([0, 9 / 14, 13 / 14, 1])
    assert (found.kept_by(1), found.kept_by(512)) == pytest.approx((9 / 14, 1))
    assert (found.rank_for(0.6), found.rank_for(0.7), found.rank_for(0.99)) == (1, 2, 3)
    change = torch.randn(9, 30, generator=torch.Generator().manual_seed(3))
    u, s, v = torch.linalg.svd(change, full_matrices=False)
    for rank in (1, 4, 9):
        best = u[:, :rank] * s[:rank] @ v[:rank]
        lost = float((change - best).square().sum() / change.square().sum())
        assert spectrum(change).kept_by(rank) == pytest.approx(1 - lost, abs=1e-5)


def test_the_slider_has_the_ranks_of_the_model() -> None:
    explorer = RankExplorer(rank=512)
    explorer.controls["model"].value = "course-4m"  # its key projection has 128 outputs
    assert explorer.controls["rank"].value == 128
    assert [value for _, value in explorer.controls["rank"].options] == list(ranks_of("course-4m")) == list(RANKS[:8])
    assert (explorer.scenario.model, explorer.scenario.rank) == ("course-4m", 128)
    assert "course-4m, rank 128" in explorer._text.value
    explorer.controls["model"].value = "gpt-2"
    explorer.controls["rank"].value = 512
    explorer.controls["targets"].value = "mlp"
    assert f"{12 * 512 * (2 * (768 + 3072)):,} trainable" in explorer._text.value


def test_every_model_and_target_can_be_shown() -> None:
    for model in ("gpt-2", "course-moe", "llama-2-7b"):
        explorer = RankExplorer(torch.eye(4), model=model, rank=4)
        for targets in TARGETS:
            explorer.controls["targets"].value = targets
            bars = explorer.plot.data[1]
            assert tuple(bars.y) == ("full", "LoRA")
            assert bars.x[1] == pytest.approx(explorer.scenario.lora.weights / 1e9)
    assert "rank 4 on all-linear + head" in explorer.figure().alt_text
    assert "Rank 4 holds at best 100.0%" in explorer._text.value


def test_refuses_what_cannot_be_shown() -> None:
    with pytest.raises(ValueError, match="targets must be one of"):
        rank_scenario(targets="everything")
    with pytest.raises(ValueError, match="rank must be at most"):
        rank_scenario("course-4m", rank=512)
    with pytest.raises(ValueError, match="not all zero"):
        RankExplorer({"zero": torch.zeros(3, 3)})
    with pytest.raises(ValueError, match="at least one matrix"):
        RankExplorer({})
    with pytest.raises(ValueError, match="share must be"):
        spectrum(torch.eye(2)).rank_for(1.0)
