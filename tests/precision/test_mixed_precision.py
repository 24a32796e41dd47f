"""Training in 16 bits: as good as fp32 with all techniques, and worse in the way that each of them is there for."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cme295lab import memory
from cme295lab.precision.autocast import autocast_like
from cme295lab.precision.loss_scaling import LossNeverFinite, LossScaling
from cme295lab.precision.mixed_precision import MixedPrecisionTraining, ModelStateBytes, StepRecord
from cme295lab.precision.policies import POLICIES, PrecisionPolicy
from tests.precision.models import OneWeight, PlainModel, losses, tiny_batches, tiny_model

HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32


def train(policy: str, num_steps: int = 20) -> list[StepRecord]:
    model = PlainModel()
    training = MixedPrecisionTraining(model, policy, learning_rate=1e-2, generator=torch.Generator().manual_seed(0))
    return [training.step(lambda batch=batch: model.loss(*batch)) for batch in tiny_batches(num_steps)]


# The whole step against torch


def test_fp32_is_torch_adamw_but_for_rounding() -> None:
    model, theirs = PlainModel(), PlainModel()
    training = MixedPrecisionTraining(model, "fp32", learning_rate=3e-3, weight_decay=0.1, clip_norm=0.25)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    for batch in tiny_batches(10):
        record = training.step(lambda batch=batch: model.loss(*batch))
        optimizer.zero_grad()
        loss = theirs.loss(*batch)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), 0.25)
        optimizer.step()
        assert record.loss == pytest.approx(loss.item(), rel=1e-5)
        assert record.gradient_norm == pytest.approx(norm.item(), rel=1e-4)
        assert record.gradient_norm > 0.25  # so that clipping did something
    for mine, other in zip(model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)


def test_bf16_losses_are_those_of_torch_autocast_with_fp32_adamw() -> None:
    """20 steps of a decoder: with fp32 weights under our casts, the same but for the order of sums.

    With 16-bit weights what layers add to is bf16 as well, which rounds by 2^-9 each time: a few hundredths of a loss
    that falls by more than a half.
    """
    batches = tiny_batches(20)
    theirs = losses_with_fp32_weights(torch.autocast("cpu", torch.bfloat16), batches)
    same_casts = losses_with_fp32_weights(autocast_like("bf16-mixed"), batches)
    model = tiny_model()
    training = MixedPrecisionTraining(model, "bf16-mixed", learning_rate=1e-2)
    narrow = [training.step(lambda batch=batch: model.loss(*batch)).loss for batch in batches]
    assert theirs[0] - theirs[-1] > 0.5
    assert max(abs(a - b) for a, b in zip(same_casts, theirs, strict=True)) < 1e-3
    assert max(abs(a - b) for a, b in zip(narrow, theirs, strict=True)) < 0.04


def losses_with_fp32_weights(context: Any, batches: list[tuple[Tensor, Tensor]]) -> list[float]:
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    values = []
    for batch in batches:
        optimizer.zero_grad()
        with context:
            loss = model.loss(*batch)
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return values


@pytest.mark.parametrize(
    ("name", "tolerance"), [("fp16-mixed", 0.002), ("bf16-mixed", 0.01), ("bf16-stochastic", 0.02)]
)
def test_sound_policies_train_as_fp32_does(name: str, tolerance: float) -> None:
    reference, records = losses(train("fp32")), train(name)
    assert not any(record.skipped for record in records)
    assert reference[0] - reference[-1] > 1.0
    assert max(abs(a - b) for a, b in zip(losses(records), reference, strict=True)) < tolerance


# What breaks without each technique


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fp32", 0.9), ("fp16-master", 0.9), ("fp16-mixed", 0.9), ("bf16-mixed", 0.9), ("pure-fp16", 1.0),
        ("bf16-fp32-states", 1.0),
    ],
)  # fmt: skip
def test_thousand_updates_of_1e_4_are_lost_without_masters(name: str, expected: float) -> None:
    """The step of AdamW is the learning rate where all gradients are alike. Below 1, fp16's numbers are 2^-11 apart:
    1 - 1e-4 rounds to 1, a thousand times."""
    model = OneWeight()
    training = MixedPrecisionTraining(model, name, learning_rate=1e-4)
    for _ in range(1000):
        training.step(lambda: model.loss(1.0))
    assert model.weight.item() == pytest.approx(expected, abs=2e-3)
    assert (expected != 1.0) or model.weight.item() == 1.0


def test_stochastic_rounding_makes_the_updates_on_average() -> None:
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(2000))
    generator = torch.Generator().manual_seed(0)
    training = MixedPrecisionTraining(model, "bf16-stochastic", learning_rate=1e-4, generator=generator)
    for _ in range(300):
        training.step(lambda: model.weight.sum())
    assert model.weight.dtype == BRAIN
    assert model.weight.float().mean().item() == pytest.approx(1 - 300 * 1e-4, abs=2e-3)
    assert not training.masters


@pytest.mark.parametrize(("exponent", "moves"), [(10, True), (11, True), (12, False), (13, False)])
def test_update_is_lost_where_the_weight_is_more_than_2048_times_as_large(exponent: int, moves: bool) -> None:
    """At 1 + 2^-10, which is odd: half the gap of 2^-10 goes up to an even number, less than that does not."""
    start = 1 + 2.0**-10
    model = OneWeight(start)
    MixedPrecisionTraining(model, "pure-fp16", learning_rate=2.0**-exponent, eps=1e-30).step(lambda: model.loss(-1.0))
    assert (model.weight.item() > start) is moves


def scaled(initial_scale: float) -> PrecisionPolicy:
    return PrecisionPolicy(compute="fp16", master_weights=True, loss_scaling=LossScaling(initial_scale=initial_scale))


@pytest.mark.parametrize(
    ("policy", "gradient", "kept", "skipped"),
    [
        ("fp16-master", 1e-8, False, False),
        (scaled(256.0), 1e-8, True, False),
        ("bf16-mixed", 1e-8, True, False),
        (scaled(256.0), 2.0, True, False),
        (scaled(65536.0), 2.0, False, True),
    ],
    ids=["unscaled", "scaled-by-256", "bf16", "large-at-256", "large-at-65536"],
)
def test_small_gradients_vanish_without_scale_and_large_ones_overflow_with_too_much(
    policy: str | PrecisionPolicy, gradient: float, kept: bool, skipped: bool
) -> None:
    model = OneWeight()
    training = MixedPrecisionTraining(model, policy, learning_rate=2.0**-5, eps=1e-12)
    record = training.step(lambda: model.loss(gradient))
    assert record.skipped is skipped
    assert math.isfinite(record.gradient_norm) is not skipped
    if not skipped:
        assert record.gradient_norm == pytest.approx(gradient if kept else 0.0, rel=0.02)
    assert model.weight.item() == (1 - 2.0**-5 if kept else 1.0)


def test_skipped_steps_change_nothing_but_the_scale() -> None:
    model = OneWeight()
    training = MixedPrecisionTraining(model, scaled(2.0**18), learning_rate=0.125, weight_decay=0.5)
    records = [training.step(lambda: model.loss(1.0)) for _ in range(5)]
    assert [(record.scale, record.skipped) for record in records] == [
        (2.0**18, True), (2.0**17, True), (2.0**16, True), (2.0**15, False), (2.0**15, False),
    ]  # fmt: skip
    assert training.step_count == 2
    expected = 1.0
    for _ in range(2):
        expected = expected * (1 - 0.125 * 0.5) - 0.125
    assert training.masters["weight"].item() == pytest.approx(expected, rel=1e-6)
    assert model.weight.item() == training.masters["weight"].half().item()


def test_gradients_are_unscaled_before_they_are_clipped() -> None:
    """The same run with and without scaling: a norm of 3 clipped to 1.5 either way."""
    results = []
    for policy in ("fp16-master", "fp16-mixed"):
        model = nn.Linear(2, 1, bias=False)
        nn.init.ones_(model.weight)
        training = MixedPrecisionTraining(model, policy, clip_norm=1.5, eps=1.0)  # so that Adam sees the size
        record = training.step(lambda model=model: model(torch.tensor([[0.0, 3.0]])).sum() / 8)
        results.append((record.gradient_norm, training.masters["weight"]))
    assert results[0][0] == results[1][0] == 0.375
    assert torch.equal(results[0][1], results[1][1])


def test_clipping_limits_what_adam_sees() -> None:
    weights = []
    for clip in (None, 1.0):
        model = OneWeight()
        training = MixedPrecisionTraining(model, "fp32", learning_rate=1.0, betas=(0.0, 0.0), eps=1.0, clip_norm=clip)
        training.step(lambda model=model: model.loss(3.0))
        weights.append(model.weight.item())
    assert weights == pytest.approx([1 - 3 / 4, 1 - 1 / 2])


def test_overflow_without_scaling_is_not_caught() -> None:
    model = OneWeight()
    training = MixedPrecisionTraining(model, "fp16-master")
    record = training.step(lambda: model.loss(1e6))
    assert not record.skipped
    assert math.isnan(model.weight.item())


def test_loss_that_is_never_finite_stops() -> None:
    model = OneWeight()
    training = MixedPrecisionTraining(model, "fp16-mixed")
    with pytest.raises(LossNeverFinite, match="before it is scaled"):
        training.step(lambda: model.loss(math.inf))
    for _ in range(31):
        training.step(lambda: (model.weight - 1).abs().sqrt().sum())  # 0 times a slope of 1 / 0
    with pytest.raises(LossNeverFinite, match="32 steps in a row"):
        training.step(lambda: (model.weight - 1).abs().sqrt().sum())
    assert model.weight.item() == 1.0


def test_sums_of_fp16_lose_what_fp32_sums_keep() -> None:
    """A row of 4096 ones times weights of one: the loss is 2048 with 16-bit sums, and so it stays."""
    for fp32_accumulation, expected in ((True, 4096), (False, 2048)):
        model = nn.Linear(4096, 1, bias=False)
        nn.init.ones_(model.weight)
        policy = PrecisionPolicy(compute="fp16", fp32_accumulation=fp32_accumulation)
        record = MixedPrecisionTraining(model, policy).step(lambda model=model: model(torch.ones(1, 4096)).sum())
        assert record.loss == expected


# What it costs


@pytest.mark.parametrize("name", sorted(set(POLICIES) & set(memory.POLICIES)))
def test_a_name_that_the_ledger_knows_means_the_same_bytes(name: str) -> None:
    model, stored = PlainModel(), memory.get_policy(name)
    training = MixedPrecisionTraining(model, name)
    (batch,) = tiny_batches(1)
    training.step(lambda: model.loss(*batch))
    held, count = training.state_bytes(), sum(p.numel() for p in model.parameters())
    assert (held.weights, held.gradients) == (stored.weight_bytes * count, stored.gradient_bytes * count)
    assert (held.masters, held.moments) == (stored.master_bytes * count, 2 * stored.state_bytes * count)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("fp32", (4, 4, 0, 8)), ("pure-fp16", (2, 2, 0, 8)), ("fp16-master", (2, 2, 4, 8)),
        ("fp16-mixed", (2, 2, 4, 8)), ("bf16-mixed", (2, 2, 4, 8)), ("bf16-fp32-states", (2, 2, 0, 8)),
        ("bf16-stochastic", (2, 2, 0, 8)),
    ],
)  # fmt: skip
def test_bytes_per_parameter_are_counted_from_storages(name: str, parts: tuple[int, ...]) -> None:
    """16 with masters and 16 in fp32; 12 without masters."""
    model = PlainModel()
    training = MixedPrecisionTraining(model, name)
    (batch,) = tiny_batches(1)
    training.step(lambda: model.loss(*batch))
    count = sum(p.numel() for p in model.parameters())
    expected = ModelStateBytes(
        weights=parts[0] * count, gradients=parts[1] * count, masters=parts[2] * count, moments=parts[3] * count,
        num_parameters=count,
    )  # fmt: skip
    assert training.state_bytes() == expected
    assert training.state_bytes().per_parameter == sum(parts)


def test_weights_are_the_masters_rounded_and_stay_tied() -> None:
    model = tiny_model()
    before = copy.deepcopy(model)
    training = MixedPrecisionTraining(model, "fp16-mixed")
    for name, parameter in before.named_parameters():
        assert torch.equal(training.masters[name], parameter)
    for batch in tiny_batches(3):
        training.step(lambda batch=batch: model.loss(*batch))
    assert model.head.weight is model.embedding.weight
    for name, parameter in model.named_parameters():
        assert parameter.dtype == HALF
        assert torch.equal(parameter, training.masters[name].half())
        assert not torch.equal(training.masters[name], before.get_parameter(name))


def test_frozen_parameters_are_cast_and_buffers_are_not() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model[0].requires_grad_(False)
    frozen = model[0].weight.detach().clone()
    training = MixedPrecisionTraining(model, "bf16-mixed")
    training.step(lambda: model(torch.randn(8, 3)).square().mean())
    assert torch.equal(model[0].weight, frozen.bfloat16())
    assert "0.weight" not in training.masters
    assert model[1].running_mean.dtype == SINGLE
    assert training.state_bytes().num_parameters == 4 + 4 + 4 + 1


def test_parameters_without_a_gradient_count_as_zero() -> None:
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    before = model[1].weight.detach().half()
    training = MixedPrecisionTraining(model, "fp16-mixed")
    training.step(lambda: model[0](torch.ones(1, 2)).sum())
    assert torch.equal(model[1].weight, before)


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": -1.0}, "learning_rate must be a number that is not negative"),
        ({"weight_decay": math.nan}, "weight_decay must be"),
        ({"betas": (0.9, 1.0)}, "betas must be two numbers"),
        ({"eps": 0.0}, "eps must be a positive number"),
        ({"clip_norm": 0.0}, "clip_norm must be positive, or None"),
    ],
    ids=["rate", "decay", "betas", "eps", "clip"],
)
def test_bad_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixedPrecisionTraining(OneWeight(), "fp32", **options)  # type: ignore[arg-type]


def test_models_that_cannot_be_trained_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing to train"):
        MixedPrecisionTraining(nn.Linear(2, 2).requires_grad_(False), "fp32")
    with pytest.raises(TypeError, match=r"'weight' must be torch.float32, got torch.bfloat16"):
        MixedPrecisionTraining(OneWeight().bfloat16(), "bf16-mixed")
    with pytest.raises(ValueError, match="no policy is called 'bf16'"):
        MixedPrecisionTraining(OneWeight(), "bf16")
