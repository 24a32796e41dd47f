"""Stochastic rounding is right on average, lands on neighbours alone, and repeats with its generator."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cme295lab.precision.stochastic import StochasticFormat, stochastic_round_

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
FORMATS = get_args(StochasticFormat)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def neighbours(value: float, dtype: torch.dtype) -> tuple[float, float]:
    """The numbers of a dtype on both sides of a value: from rounding to nearest, one step on."""
    x = torch.tensor(value)
    near = x.to(dtype)
    towards = math.inf if near.float() < x else -math.inf
    other = torch.nextafter(near, torch.tensor(towards, dtype=dtype))
    low, high = sorted((near.item(), other.item()))
    return (low, high) if near.float() != x else (near.item(), near.item())


@settings(max_examples=60, deadline=None)
@given(value=st.floats(-70000, 70000, width=32), seed=st.integers(0, 2**31))
@pytest.mark.parametrize("format", FORMATS)
def test_result_is_one_of_the_two_neighbours(format: StochasticFormat, value: float, seed: int) -> None:
    rounded = stochastic_round_(torch.full((64,), value), format, generator=seeded(seed))
    assert set(rounded.tolist()) <= set(neighbours(value, DTYPES[format]))
    assert torch.equal(rounded.to(DTYPES[format]).float(), rounded)


CASES = [
    ("bf16", 1.001), ("bf16", -1.001), ("bf16", 3.14159), ("bf16", 1e-30), ("bf16", 3e-39), ("bf16", 2.0**40 + 2.0**30),
    ("fp16", 1.0001), ("fp16", -0.33333), ("fp16", 1234.3), ("fp16", 5e-5), ("fp16", 1e-6), ("fp16", -1e-8),
    ("fp16", 2.0**-14 - 2.0**-26),
]  # fmt: skip


@pytest.mark.parametrize(("format", "value"), CASES, ids=[f"{f}-{v:g}" for f, v in CASES])
def test_mean_is_the_value(format: StochasticFormat, value: float) -> None:
    """The share of values that went up is binomial: within five of its standard deviations of what it should be."""
    count = 200_000
    exact = torch.tensor(value).item()
    low, high = neighbours(value, DTYPES[format])
    rounded = stochastic_round_(torch.full((count,), value), format, generator=seeded())
    expected = (exact - low) / (high - low)
    share = (rounded == high).double().mean().item()
    assert 0 < expected < 1
    assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / count)


def test_thousand_small_updates_arrive_on_average() -> None:
    """1 + 1000 × 0.001: to nearest it stays 1 in bf16; at random it is 2 within the noise of 2,000 runs."""
    nearest = torch.ones(1, dtype=torch.bfloat16)
    weights = torch.ones(2000)
    generator = seeded()
    for _ in range(1000):
        nearest += 0.001
        stochastic_round_(weights.add_(0.001), "bf16", generator=generator)
    assert nearest.item() == 1.0
    assert abs(weights.mean().item() - 2.0) < 0.01
    assert weights.std().item() > 0.01  # the price


@pytest.mark.parametrize("format", FORMATS)
def test_numbers_of_the_format_never_move(format: StochasticFormat) -> None:
    """All 65,536 patterns of it, zeros with their signs, infinities and NaN among them."""
    exact = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(DTYPES[format]).float()
    rounded = stochastic_round_(exact.clone(), format, generator=seeded())
    assert torch.equal(rounded.isnan(), exact.isnan())
    kept = ~exact.isnan()
    assert torch.equal(rounded[kept].view(torch.int32), exact[kept].view(torch.int32))


@pytest.mark.parametrize("format", FORMATS)
def test_infinities_and_nan_stay(format: StochasticFormat) -> None:
    quiet, low_bits = torch.tensor(math.nan), torch.tensor(0x7F800001, dtype=torch.int32).view(torch.float32)
    x = torch.stack([torch.tensor(math.inf), torch.tensor(-math.inf), quiet, low_bits]).repeat(50)
    rounded = stochastic_round_(x, format, generator=seeded()).view(50, 4)
    assert torch.equal(rounded[:, :2], torch.tensor([math.inf, -math.inf]).expand(50, 2))
    assert rounded[:, 2:].to(DTYPES[format]).isnan().all()


def test_last_gap_of_fp16_ends_in_infinity() -> None:
    rounded = stochastic_round_(torch.full((100_000,), -65512.0), "fp16", generator=seeded())
    assert set(rounded.tolist()) == {-65504.0, -math.inf}
    assert abs((rounded == -math.inf).double().mean().item() - 8 / 32) < 0.01
    assert stochastic_round_(torch.tensor([70000.0, 1e38]), "fp16").tolist() == [math.inf, math.inf]


def test_generator_repeats_and_is_needed_for_it() -> None:
    x = torch.randn(37, 5)
    first, second = (stochastic_round_(x.clone(), "bf16", generator=seeded(3)) for _ in range(2))
    other = stochastic_round_(x.clone(), "bf16", generator=seeded(4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_it_is_in_place_in_memory_that_is_not_contiguous() -> None:
    base = torch.randn(6, 4)
    before = base.clone()
    view = base.t()[1:3]
    returned = stochastic_round_(view, "bf16", generator=seeded())
    assert returned is view
    assert torch.equal(base[:, 1:3].bfloat16().float(), base[:, 1:3])
    assert torch.equal(base[:, [0, 3]], before[:, [0, 3]])
    assert stochastic_round_(torch.zeros(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int32], ids=str)
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"x must be torch.float32, got {dtype}"):
        stochastic_round_(torch.ones(2, dtype=dtype))


def test_other_formats_are_refused() -> None:
    with pytest.raises(ValueError, match="'bf16' or 'fp16', got 'fp8'"):
        stochastic_round_(torch.ones(2), "fp8")  # type: ignore[arg-type]
