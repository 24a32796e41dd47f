"""The underflow report counts what a cast would do, without casting."""

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cme295lab.precision.underflow import (
    UnderflowReport,
    UnderflowRow,
    gradient_statistics,
    log2_histogram,
    underflow_report,
)

CASTS = {
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp8_e4m3fn": ml_dtypes.float8_e4m3fn,
}


def counts(row: UnderflowRow) -> tuple[int, ...]:
    return row.num_zero, row.num_flushed, row.num_subnormal, row.num_overflowed, row.num_not_finite


def one(values: Tensor | list[float], format: str, loss_scale: float = 1.0) -> tuple[int, ...]:
    gradient = values if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.float64)
    (row,) = underflow_report({"g": gradient}, (format,), loss_scale=loss_scale).rows
    return counts(row)


def by_casting(values: Tensor, format: str, scale: float) -> tuple[int, ...]:
    """What numpy and ml_dtypes do to the same values."""
    exact = values.numpy() * np.float32(scale)  # a power of two
    with np.errstate(over="ignore", invalid="ignore"):
        cast = exact.astype(CASTS[format]).astype(np.float32)
    tiny = float(ml_dtypes.finfo(CASTS[format]).smallest_normal)
    finite = np.isfinite(exact)
    zero, small = finite & (exact == 0), finite & (cast == 0)
    return (
        int(zero.sum()),
        int((small & ~zero).sum()),
        int((finite & ~small & (np.abs(cast) < tiny)).sum()),
        int((finite & ~np.isfinite(cast)).sum()),
        int((~finite).sum()),
    )


@pytest.mark.parametrize("format", CASTS)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), centre=st.integers(-60, 20), power=st.integers(-4, 16))
def test_counts_are_those_of_a_cast(format: str, seed: int, centre: int, power: int) -> None:
    """Sizes over forty binades, with exact halves and powers of two among them, and a few zeros, inf and NaN."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.exp2(torch.randint(centre - 20, centre + 20, (400,), generator=generator).float())
    mantissa = 1 + torch.randint(0, 16, (400,), generator=generator) / 16
    values = size * mantissa * (torch.randint(0, 2, (400,), generator=generator) * 2 - 1)
    values[:7] = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 0.0, 0.0])
    assert one(values, format, 2.0**power) == by_casting(values, format, 2.0**power)


LIMITS = [
    ("fp16", 2.0**-25, 2.0**-14 - 2.0**-25, 65520.0, True),
    ("bf16", 2.0**-134, 2.0**-126 - 2.0**-134, 2.0**128 - 2.0**119, True),
    ("fp8_e5m2", 2.0**-17, 2.0**-14 - 2.0**-17, 61440.0, True),
    ("fp8_e4m3fn", 2.0**-10, 2.0**-6 - 2.0**-10, 464.0, False),
    ("fp4_e2m1", 0.25, 0.75, 7.0, True),
]


@pytest.mark.parametrize(
    ("format", "zero", "normal", "overflow", "tie_overflows"), LIMITS, ids=[limit[0] for limit in LIMITS]
)
def test_limits_are_where_ties_are(
    format: str, zero: float, normal: float, overflow: float, tie_overflows: bool
) -> None:
    """One step of fp64 on either side of each limit, and the limit itself: ties go to the even neighbour."""
    above, below = (lambda x: math.nextafter(x, math.inf)), (lambda x: math.nextafter(x, 0.0))
    assert one([zero, below(zero)], format) == (0, 2, 0, 0, 0)
    assert one([above(zero), below(normal)], format) == (0, 0, 2, 0, 0)
    assert one([normal, below(overflow)], format) == (0, 0, 0, 0, 0)
    assert one([-overflow], format) == (0, 0, 0, int(tie_overflows), 0)
    assert one([above(overflow), -above(overflow)], format) == (0, 0, 0, 2, 0)


def test_scale_moves_a_gradient_out_of_the_dark_and_into_overflow() -> None:
    """1e-8 vanishes in fp16 and is kept at 256, as a subnormal number; 1.5 is infinite at 65536."""
    assert one([1e-8, 1.5], "fp16") == (0, 1, 0, 0, 0)
    assert one([1e-8, 1.5], "fp16", 256.0) == (0, 0, 1, 0, 0)
    assert one([1e-8, 1.5], "fp16", 65536.0) == (0, 0, 0, 1, 0)
    assert one([1e-8, 1.5], "bf16", 65536.0) == (0, 0, 0, 0, 0)


def small_model() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2), nn.Linear(4, 4))
    (model[:3](torch.ones(1, 3)).sum() * 1e-6).backward()
    return model


def test_report_of_a_model_has_its_layers_by_name() -> None:
    model = small_model()  # the last layer has no gradient
    report = underflow_report(model, ("fp16", "bf16"))
    assert [(row.name, row.format) for row in report.rows][:3] == [
        ("0.weight", "fp16"), ("0.weight", "bf16"), ("0.bias", "fp16"),
    ]  # fmt: skip
    assert {row.name for row in report.rows} == {"0.weight", "0.bias", "2.weight", "2.bias"}
    bias = next(row for row in report.rows if (row.name, row.format) == ("2.bias", "fp16"))
    assert (bias.num_values, bias.subnormal, bias.flushed) == (2, 1.0, 0.0)
    layers = report.merged(1)
    assert [(row.name, row.format, row.num_values) for row in layers.rows] == [
        ("0", "fp16", 20), ("0", "bf16", 20), ("2", "fp16", 12), ("2", "bf16", 12),
    ]  # fmt: skip
    assert report.totals()["fp16"].num_values == 32
    assert counts(report.totals()["fp16"]) == tuple(
        sum(column) for column in zip(*(counts(row) for row in report.rows if row.format == "fp16"))
    )


def test_report_prints_as_a_table() -> None:
    report = underflow_report({"w": torch.tensor([0.0, 1e-9, 1e-6, 1.0])}, ("fp16", "bf16"))
    lines = str(report).splitlines()
    assert lines[0] == "gradients times a loss scale of 1"
    assert [line.split() for line in lines[1:]] == [
        ["tensor", "format", "values", "zero", "flushed", "subnormal", "overflow", "not", "finite"],
        ["w", "fp16", "4", "25.00%", "25.00%", "25.00%", "-", "-"],
        ["w", "bf16", "4", "25.00%", "-", "-", "-", "-"],
        ["all", "fp16", "4", "25.00%", "25.00%", "25.00%", "-", "-"],
        ["all", "bf16", "4", "25.00%", "-", "-", "-", "-"],
    ]


def test_tensors_without_values_count_nothing() -> None:
    (row,) = underflow_report({"none": torch.zeros(0, 3)}, ("fp16",)).rows
    assert counts(row) == (0, 0, 0, 0, 0)
    assert row.zero == row.flushed == 0.0
    assert log2_histogram(torch.zeros(0)).exponents == ()
    assert UnderflowReport(rows=(), loss_scale=1.0).totals() == {}


def test_gradients_are_not_changed() -> None:
    gradient = torch.tensor([-1e-8, 2.0])
    underflow_report([("g", gradient)], loss_scale=1024.0)
    assert torch.equal(gradient, torch.tensor([-1e-8, 2.0]))


def test_histogram_puts_powers_of_two_at_the_bottom_of_their_binade() -> None:
    values = torch.tensor([1.0, 1.99, -2.0, 2.0**-149, 0.0, math.inf, math.nan])
    histogram = log2_histogram({"a": values[:3], "b": values[3:]})
    assert histogram.exponents == tuple(range(-149, 2))
    assert {e: n for e, n in zip(histogram.exponents, histogram.counts) if n} == {0: 2, 1: 1, -149: 1}
    assert (histogram.num_values, histogram.num_zero, histogram.num_not_finite) == (7, 1, 2)


@pytest.mark.parametrize("seed", range(5))
def test_histogram_agrees_with_the_report_and_moves_with_the_scale(seed: int) -> None:
    values = torch.randn(301, generator=torch.Generator().manual_seed(seed)) * 10.0 ** -seed
    plain, scaled = log2_histogram(values), log2_histogram(values, loss_scale=4096.0)
    assert scaled.counts == plain.counts
    assert [e - 12 for e in scaled.exponents] == list(plain.exponents)
    assert sum(plain.counts) + plain.num_zero == 301
    expected = torch.histc(values.abs().log2().floor(), bins=len(plain.counts), min=plain.exponents[0] - 0.5,
                           max=plain.exponents[-1] + 0.5)  # fmt: skip
    assert list(plain.counts) == expected.int().tolist()


def test_statistics_by_hand() -> None:
    (row,) = gradient_statistics({"g": torch.tensor([0.0, -3.0, 4.0, math.inf, math.nan])})
    assert (row.num_values, row.num_zero, row.num_not_finite) == (5, 1, 2)
    assert (row.largest, row.smallest) == (4.0, 3.0)
    assert row.root_mean_square == pytest.approx(math.sqrt(25 / 3))
    (empty,) = gradient_statistics({"g": torch.tensor([0.0])})
    assert (empty.largest, empty.smallest, empty.root_mean_square) == (0.0, 0.0, 0.0)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="no gradients: call backward"):
        underflow_report(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="there are no gradients"):
        gradient_statistics([])
    with pytest.raises(TypeError, match=r"gradient of 'g' must be a floating-point tensor, got torch.int64"):
        underflow_report({"g": torch.tensor([1])})
    with pytest.raises(TypeError, match="gradient of 'g' must be a floating-point tensor, got float"):
        underflow_report({"g": 1.0})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="e8m0 has no zero"):
        underflow_report({"g": torch.ones(1)}, ("e8m0",))
    with pytest.raises(ValueError, match="depth must be at least 1"):
        underflow_report({"g": torch.ones(1)}).merged(0)
    for scale in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="loss_scale must be a positive number"):
            underflow_report({"g": torch.ones(1)}, loss_scale=scale)
        with pytest.raises(ValueError, match="loss_scale must be a positive number"):
            log2_histogram(torch.ones(1), loss_scale=scale)
