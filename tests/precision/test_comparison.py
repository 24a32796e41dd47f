"""Policies beside each other: what large batches and small learning rates take from each."""

import math

import pytest
import torch
from torch import Tensor, nn

from cme295lab.precision.comparison import MAIN_POLICIES, compare_policies
from cme295lab.precision.policies import POLICIES
from tests.precision.models import OneWeight, PlainModel, losses, tiny_batches


def test_small_gradients_of_a_large_batch_need_scaling() -> None:
    """One of 2^14 micro-batches: without scaling fp16 falls behind; with it, and in bf16, nothing is lost."""
    results = compare_policies(PlainModel, tiny_batches(20), learning_rate=1e-2, micro_batches=2**14)
    assert tuple(results) == MAIN_POLICIES
    reference = losses(results["fp32"])
    behind = {name: sum(losses(records)[-5:]) / 5 - sum(reference[-5:]) / 5 for name, records in results.items()}
    assert abs(behind["fp16-mixed"]) < 0.002
    assert abs(behind["bf16-mixed"]) < 0.01
    assert behind["fp16-master"] > 0.05
    assert behind["pure-fp16"] > 0.05


def test_small_learning_rates_need_masters() -> None:
    """At the end of a schedule, bf16 weights hardly move, fp16 weights a little; rounding at random helps."""
    names = ("fp32", "bf16-fp32-states", "pure-fp16", "bf16-stochastic", "bf16-mixed", "fp16-mixed")
    results = compare_policies(PlainModel, tiny_batches(1) * 30, names, learning_rate=4e-5)
    gains = {name: losses(records)[0] - losses(records)[-1] for name, records in results.items()}
    assert gains["fp32"] > 0.02
    relative = {name: gain / gains["fp32"] for name, gain in gains.items()}
    assert relative["bf16-fp32-states"] < 0.5
    assert relative["bf16-fp32-states"] < relative["pure-fp16"] < 0.95
    for name in ("bf16-stochastic", "bf16-mixed", "fp16-mixed"):
        assert relative[name] == pytest.approx(1.0, abs=0.1)


def test_micro_batches_change_nothing_in_fp32() -> None:
    alone, of_many = (
        compare_policies(PlainModel, tiny_batches(6), ["fp32"], micro_batches=count, clip_norm=0.3)["fp32"]
        for count in (1, 1024)
    )
    assert losses(of_many) == pytest.approx(losses(alone), rel=1e-6)
    assert [r.gradient_norm for r in of_many] == pytest.approx([r.gradient_norm for r in alone], rel=1e-5)


def test_comparison_repeats_and_leaves_random_numbers_alone() -> None:
    def noisy(model: nn.Module, batch: Tensor) -> Tensor:
        result: Tensor = nn.functional.dropout(model(batch), 0.5).square().mean()
        return result

    policies = {"mine": POLICIES["bf16-stochastic"]}
    runs = []
    for seed in (5, 6):
        torch.manual_seed(seed)
        expected = torch.rand(2)
        torch.manual_seed(seed)
        runs.append(
            compare_policies(lambda: nn.Linear(3, 3), [torch.ones(2, 3)], policies, num_steps=4, loss=noisy, seed=3)
        )
        assert torch.equal(torch.rand(2), expected)
    assert runs[0] == runs[1]
    assert [record.step for record in runs[0]["mine"]] == [1, 2, 3, 4]


def test_comparison_ends_where_training_cannot_go_on() -> None:
    """1e5 is beyond fp16: no scale helps a loss of inf, and without scaling nobody asks."""

    def by_factor(model: nn.Module, batch: float) -> Tensor:
        result: Tensor = model.loss(batch)  # type: ignore[operator]
        return result

    results = compare_policies(
        OneWeight, [1.0, 6e4, 1e5, 1.0, 1.0], ["fp32", "fp16-master", "fp16-mixed"], loss=by_factor
    )
    assert len(results["fp32"]) == 5
    assert [math.isfinite(loss) for loss in losses(results["fp16-master"])] == [True, True, False]
    assert [record.skipped for record in results["fp16-mixed"]] == [True, True]


def test_learning_rate_may_be_changed_between_steps() -> None:
    results = compare_policies(
        OneWeight, [(1.0,)], ["fp32"], num_steps=3, learning_rate=lambda step: 0.5 if step == 1 else 0.0
    )
    assert losses(results["fp32"]) == pytest.approx([1.0, 1.0, 0.5])


def test_comparisons_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="batches is empty"):
        compare_policies(OneWeight, [])
    with pytest.raises(ValueError, match="num_steps must be an int of at least 1, got 0"):
        compare_policies(OneWeight, [(1.0,)], num_steps=0)
    with pytest.raises(ValueError, match=r"micro_batches must be an int of at least 1, got 0\.5"):
        compare_policies(OneWeight, [(1.0,)], micro_batches=0.5)  # type: ignore[arg-type]
