"""Comparisons: each number is that of a run done by hand, and the sweeps ask for what they say."""

import copy
import math
import statistics

import pytest
import torch

from cme295lab.finetuning import comparisons
from cme295lab.finetuning.chat import ChatExample, pack_chats
from cme295lab.finetuning.comparisons import (
    Trial,
    TrialResult,
    best_learning_rates,
    compare,
    learning_rate_sweep,
    placement_comparison,
    rank_sweep,
    ranks_at_equal_parameters,
)
from cme295lab.finetuning.lora import num_lora_parameters
from cme295lab.finetuning.sft import SftConfig, train_sft
from cme295lab.transformer import DecoderLM, ModelConfig

QUICK = {"num_steps": 3, "rows_per_step": 2, "progress": False}
MLP = ("gate", "up", "down")
ATTENTION = ("query", "key", "value", "out")


def tiny_model():
    torch.manual_seed(0)
    return DecoderLM(ModelConfig(vocab_size=12, num_layers=1, dim=8, num_heads=2, mlp_dim=24, max_seq=6))


def chats(seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(1, 12, (6, 6), generator=generator).tolist()
    return pack_chats([ChatExample(row, [False] * 3 + [True] * 3) for row in rows], seq=6, end_token=0, seed=seed)


def result(label, learning_rate, *losses):
    return TrialResult(trial=Trial(label=label, learning_rate=learning_rate), num_trainable=1, losses=losses)


def test_losses_are_those_of_runs_by_hand_and_the_base_stays() -> None:
    base, before = tiny_model(), tiny_model().state_dict()
    trials = [
        Trial(label="lora", learning_rate=0.05, options={"rank": 2}),
        Trial(label="full", learning_rate=0.01, method="full"),
    ]
    found = compare(base, trials, chats, chats(9), seeds=(3, 5), score=lambda model: float(model.training), **QUICK)
    for trial, row in zip(trials, found, strict=True):
        for seed, loss in zip((3, 5), row.losses, strict=True):
            model = copy.deepcopy(base)
            config = SftConfig(
                num_steps=3, rows_per_step=2, learning_rate=trial.learning_rate, method=trial.method,
                method_options=trial.options, seed=seed,
            )  # fmt: skip
            run = train_sft(model, chats(seed), config, evaluation={"x": chats(9)}, progress=False)
            assert loss == run.losses_of("x")[3] != run.losses_of("x")[0]
    assert found[0].num_trainable == 2 * 2 * (8 + 8)
    assert found[1].num_trainable == sum(parameter.numel() for parameter in base.parameters())
    assert len(found[0].scores) == 2
    for name, value in base.state_dict().items():
        assert torch.equal(value, before[name])


def test_mean_and_standard_error_by_hand() -> None:
    row = result("a", 1.0, 1.0, 2.0, 6.0)
    assert row.mean == pytest.approx(3)
    assert row.standard_error == pytest.approx(math.sqrt((4 + 1 + 9) / 2 / 3))
    assert row.standard_error == pytest.approx(statistics.stdev([1, 2, 6]) / math.sqrt(3))
    assert math.isnan(result("a", 1.0, 1.0).standard_error)
    assert math.isnan(result("a", 1.0, 1.0, math.inf).standard_error)
    assert math.isnan(row.mean_score)


def test_the_best_rate_of_each_label() -> None:
    rows = [result("a", 1.0, 3.0), result("a", 2.0, 2.0), result("a", 3.0, math.inf), result("b", 1.0, 9.0)]
    best = best_learning_rates(rows)
    assert {label: row.trial.learning_rate for label, row in best.items()} == {"a": 2.0, "b": 1.0}


def test_a_run_that_diverges_is_a_result() -> None:
    found = learning_rate_sweep(
        tiny_model(), chats, chats(9), learning_rates={"full": [1e30, 1e-3]}, methods={"full": ("full", {})},
        seeds=(0,), score=lambda model: 1.0, **QUICK,
    )  # fmt: skip
    assert [row.trial.learning_rate for row in found] == [1e30, 1e-3]
    assert found[0].mean == math.inf
    assert math.isnan(found[0].scores[0])
    assert math.isfinite(found[1].mean)
    assert found[1].mean_score == 1.0


def test_ranks_differ_in_rank_alone() -> None:
    found = rank_sweep(tiny_model(), chats, chats(9), ranks=(1, 3), learning_rate=0.01, seeds=(0,), **QUICK)
    assert [dict(row.trial.options) for row in found] == [
        {"rank": 1, "alpha": 32.0, "targets": "all-linear"}, {"rank": 3, "alpha": 32.0, "targets": "all-linear"},
    ]  # fmt: skip
    assert found[1].num_trainable == 3 * found[0].num_trainable == num_lora_parameters(
        tiny_model(), rank=3, targets="all-linear"
    )


def test_places_have_nearly_equal_parameters() -> None:
    model = tiny_model()  # attention: four 8 x 8, 64 at rank 1; MLP: three 8 x 24, 96
    places = {"attention": ATTENTION, "MLP": MLP}
    assert ranks_at_equal_parameters(model, places, 192) == {"attention": 3, "MLP": 2}
    found = placement_comparison(
        model, chats, chats(9), places=places, num_parameters=192, learning_rate=0.01, seeds=(0,), **QUICK
    )
    assert [row.num_trainable for row in found] == [192, 192]
    assert [row.trial.label for row in found] == ["attention, rank 3", "MLP, rank 2"]
    with pytest.raises(ValueError, match="MLP has 96 parameters at rank 1, more than 40"):
        ranks_at_equal_parameters(model, places, 40)
    with pytest.raises(ValueError, match="rank must be at most"):
        ranks_at_equal_parameters(model, places, 10_000)


def test_interrupted_sweeps_give_what_is_complete(monkeypatch) -> None:
    runs, real = [], comparisons.train_sft

    def interrupted(*args, **options):
        runs.append(1)
        if len(runs) in (4, 5):
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(comparisons, "train_sft", interrupted)
    trials = [Trial(label="a", learning_rate=rate, options={"rank": 1}) for rate in (0.1, 0.2, 0.3)]
    found = compare(tiny_model(), trials, chats, chats(9), seeds=(0, 1), **QUICK)
    assert [row.trial.learning_rate for row in found] == [0.1]
    with pytest.raises(KeyboardInterrupt):
        compare(tiny_model(), trials, chats, chats(9), seeds=(0, 1), **QUICK)


def test_bad_input_is_refused() -> None:
    one = Trial(label="a", learning_rate=0.1)
    with pytest.raises(ValueError, match="trials must be given"):
        compare(tiny_model(), [], chats, chats(9), **QUICK)
    with pytest.raises(ValueError, match="each label and learning rate once"):
        compare(tiny_model(), [one, one], chats, chats(9), **QUICK)
    with pytest.raises(ValueError, match="seeds must be given, each once"):
        compare(tiny_model(), [one], chats, chats(9), seeds=(1, 1), **QUICK)
    with pytest.raises(ValueError, match="learning_rates are for a, and methods are b"):
        learning_rate_sweep(
            tiny_model(), chats, chats(9), learning_rates={"a": [1.0]}, methods={"b": ("full", {})}, num_steps=1
        )
