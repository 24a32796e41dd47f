"""Rounding to a format: cases by hand, what holds for any input, and chance that is fair."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cme295lab.precision import FORMATS, all_values, describe, describe_code, encode, neighbours, round_to
from tests.precision.format_oracles import E4M3_UNSIGNED, TINY_VALUES

WITH_MANTISSA = [name for name in FORMATS if name != "e8m0"]
CASES = [
    ("fp16", 2049.0, 2048.0),  # a tie: why counting in fp16 stops at 2048
    ("fp16", 65519.0, 65504.0),
    ("fp16", 65520.0, math.inf),
    ("fp16", 0.1, 0.0999755859375),
    ("fp16", math.pi, 3.140625),
    ("fp16", 1 + 2.0**-11, 1.0),  # the lost update
    ("fp16", 1 + 2.0**-10, 1 + 2.0**-10),
    ("fp16", 2.0**-25, 0.0),
    ("fp16", 1.01 * 2.0**-25, 2.0**-24),
    ("bf16", 257.0, 256.0),
    ("bf16", 0.1, 0.10009765625),
    ("bf16", math.pi, 3.140625),
    ("fp8_e4m3fn", 0.1, 0.1015625),
    ("fp8_e4m3fn", 464.0, 448.0),
    ("fp8_e4m3fn", 465.0, math.nan),
    ("fp8_e5m2", 0.1, 0.09375),
    ("fp8_e5m2", 61439.0, 57344.0),
    ("fp8_e5m2", 61440.0, math.inf),
    ("fp6_e2m3", 9.0, 7.5),
    ("fp4_e2m1", 2.5, 2.0),
    ("fp4_e2m1", 0.75, 1.0),
    ("fp4_e2m1", 0.25, 0.0),
    ("tf32", 1 + 2.0**-11, 1.0),
    ("tf32", 1 + 3 * 2.0**-11, 1 + 2.0**-9),
]


@pytest.mark.parametrize(("name", "x", "expected"), CASES, ids=[f"{name}-{x:.8g}" for name, x, _ in CASES])
def test_rounding_by_hand(name: str, x: float, expected: float) -> None:
    for dtype in (torch.float32, torch.float64):
        for sign in (1.0, -1.0):
            rounded = round_to(torch.tensor([sign * x], dtype=dtype), name)
            assert rounded.dtype == dtype
            np.testing.assert_array_equal(rounded.numpy(), [sign * expected])
    np.testing.assert_array_equal(describe(x, name).value, expected)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20),
    st.sampled_from([*WITH_MANTISSA, TINY_VALUES]),
    st.sampled_from(["nearest", "zero"]),
)
def test_rounding_is_idempotent_monotone_and_the_nearest(numbers: list[float], format: str, rounding: str) -> None:
    x = torch.tensor(sorted(numbers), dtype=torch.float64)
    rounded = round_to(x, format, rounding=rounding, saturate=True)
    assert torch.equal(round_to(rounded, format, rounding=rounding), rounded)
    assert bool((rounded.diff() >= 0).all())
    lower, upper = neighbours(x, format)
    # Without saturation, infinity stands above the largest value
    assert bool(((rounded == lower) | (rounded == upper) | lower.isinf() | upper.isinf()).all())
    error, inside = (rounded - x).abs(), lower.isfinite() & upper.isfinite()
    if rounding == "nearest":
        assert bool((error <= (upper - lower) / 2)[inside].all())  # at most half a step
    else:
        assert bool((rounded.abs() <= x.abs()).all())
        assert bool((error <= upper - lower)[inside].all())


@settings(max_examples=100, deadline=None)
@given(st.floats(width=32, allow_nan=False), st.sampled_from(["bf16", "fp16", "fp8_e4m3fn", "fp8_e5m2", "e8m0"]))
def test_neighbours_are_those_of_the_sorted_list(x: float, name: str) -> None:
    values = all_values(name)
    values = np.unique(values[~values.isnan()].numpy())
    lower, upper = (float(v) for v in neighbours(torch.tensor(x), name))
    below, above = values[values <= x], values[values >= x]
    assert lower == (below[-1] if below.size else -math.inf)
    assert upper == (above[0] if above.size else math.inf)


def test_neighbours_by_hand() -> None:
    x = torch.tensor([0.1, -0.1, 448.0, 500.0, -500.0, 0.0, math.inf, math.nan])
    lower, upper = neighbours(x, "fp8_e4m3fn")
    assert lower[:7].tolist() == [0.09375, -0.1015625, 448.0, 448.0, -math.inf, 0.0, 448.0]
    assert upper[:7].tolist() == [0.1015625, -0.09375, 448.0, math.inf, -448.0, 0.0, math.inf]
    assert bool(lower[7].isnan() and upper[7].isnan())
    lower, upper = neighbours(torch.tensor([-3.0, 3.0, math.inf]), "bf16")
    assert lower.tolist() == [-3.0, 3.0, math.inf]
    assert upper.tolist() == [-3.0, 3.0, math.inf]
    lower, upper = neighbours(torch.tensor([-1.0, 0.3]), E4M3_UNSIGNED)
    assert lower.tolist() == [-math.inf, 0.28125]
    assert upper.tolist() == [0.0, 0.3125]


STOCHASTIC_CASES = [
    ("bf16", 1.001, "between two numbers"),
    ("fp16", -3.3 * 2.0**-24, "among subnormals"),
    ("fp16", 2.0**-30, "below the smallest"),
    ("fp8_e4m3fn", 0.0147, "below min normal"),
    ("fp8_e5m2", 2.0**-20, "below the smallest, fp8"),
    ("fp4_e2m1", -4.9, "in four bits"),
    ("e8m0", 1.4, "of a scale"),
    ("fp64", 0.1, "a value of the format"),
]


@pytest.mark.parametrize(
    ("name", "x"), [case[:2] for case in STOCHASTIC_CASES], ids=[case[2] for case in STOCHASTIC_CASES]
)
def test_stochastic_rounding_is_right_on_average(name: str, x: float) -> None:
    count = 100_000
    generator = torch.Generator().manual_seed(0)
    tensor = torch.full((count,), x, dtype=torch.float64)
    rounded = round_to(tensor, name, rounding="stochastic", generator=generator)
    lower, upper = (float(v) for v in neighbours(tensor[0], name))
    assert set(rounded.unique().tolist()) <= {lower, upper}
    share = (x - lower) / (upper - lower) if upper > lower else 0.0
    tolerance = 5 * math.sqrt(share * (1 - share) / count)  # five standard deviations
    assert float((rounded == upper).double().mean()) == pytest.approx(share if upper > lower else 1.0, abs=tolerance)
    assert float(rounded.mean()) == pytest.approx(x, abs=tolerance * (upper - lower) + 1e-12 * abs(x))


@pytest.mark.parametrize(
    ("name", "beyond"), [("fp16", 65536.0), ("fp8_e4m3fn", 480.0), ("fp8_e5m2", 65536.0), ("fp4_e2m1", 8.0)]
)
def test_stochastic_overflow_has_its_probability(name: str, beyond: float) -> None:
    """A quarter of the way from max to the value that a wider exponent would have next."""
    format, count = FORMATS[name], 100_000
    x = torch.full((count,), 0.75 * format.max + 0.25 * beyond)
    generator = torch.Generator().manual_seed(1)
    codes = encode(x, name, rounding="stochastic", generator=generator)
    if format.specials == "finite":
        assert codes.unique().tolist() == [format.max_code]
    else:
        assert codes.unique().tolist() == [format.max_code, format.max_code + 1]
        share = float((codes == format.max_code + 1).double().mean())
        assert share == pytest.approx(0.25, abs=5 * math.sqrt(0.25 * 0.75 / count))
    kept = encode(x, name, rounding="stochastic", generator=generator, saturate=True)
    assert kept.unique().tolist() == [format.max_code]
    at_max = encode(torch.full((1000,), format.max), name, rounding="stochastic", generator=generator)
    assert at_max.unique().tolist() == [format.max_code]


def test_probabilities_below_the_smallest_value_are_not_lost() -> None:
    """2^-10 of the smallest value of bf16, itself far below float32's normals: one in 1024 is kept."""
    count = 400_000
    x = torch.full((count,), 2.0**-143, dtype=torch.float32)
    rounded = round_to(x, "bf16", rounding="stochastic", generator=torch.Generator().manual_seed(2))
    share = float((rounded > 0).double().mean())
    assert share == pytest.approx(2.0**-10, abs=5 * math.sqrt(2.0**-10 / count))
    assert round_to(torch.full((1000,), 1e-300, dtype=torch.float64), "fp16", rounding="stochastic").sum() == 0


def test_stochastic_rounding_repeats_with_its_generator() -> None:
    x = torch.randn(1000)
    first, second, other = (
        encode(x, "bf16", rounding="stochastic", generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_round_to_keeps_the_dtype_or_says_that_it_cannot() -> None:
    x = torch.tensor([0.1, 3.0, 70000.0], requires_grad=True)
    assert round_to(x, "fp64").tolist() == x.tolist()
    assert not round_to(x, "fp16").requires_grad
    assert round_to(x.detach().to(torch.bfloat16), "fp16")[2] == math.inf
    with pytest.raises(ValueError, match=r"65504.0 of fp16 is no value of torch.bfloat16, x's dtype: give x.float"):
        round_to(x.detach().to(torch.bfloat16), "fp16", saturate=True)
    with pytest.raises(TypeError, match="floating dtype"):
        round_to(torch.arange(3), "fp16")


def test_many_values_are_looked_up_and_are_the_same() -> None:
    """More values than codes: a table is made, and the answers must not change."""
    x = torch.randn(70_001) * 100
    for name in ("bf16", "fp8_e4m3fn", "fp4_e2m1"):
        few = torch.cat([round_to(part, name) for part in x[:2000].split(10)])
        torch.testing.assert_close(round_to(x, name)[:2000], few, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(round_to(x, "bf16"), x.bfloat16().float())
    small = x.to(torch.bfloat16)
    assert torch.equal(round_to(small, "fp16"), small.half().bfloat16())
    small[69_000] = 1e5
    with pytest.raises(ValueError, match=r"65504.0 of fp16 is no value of torch.bfloat16"):
        round_to(small, "fp16", saturate=True)


def test_describe_takes_a_number_apart() -> None:
    number = describe(-1.5, "fp16")
    assert (number.sign, number.exponent, number.mantissa, number.kind) == (1, 15, 512, "normal")
    assert (number.bits, number.code, number.value, number.error) == ("1 01111 1000000000", 0xBE00, -1.5, 0.0)
    assert describe(0.1, "fp8_e4m3fn").error == pytest.approx(0.0015625)
    assert describe(0.1, "fp8_e4m3fn", "zero").value == 0.09375
    assert describe(0.1, "fp8_e4m3fn", "zero").error < 0
    assert describe(3e-7, "fp16").kind == "subnormal"
    assert describe(0.0, "fp16").kind == "zero"
    assert describe(1e9, "fp16").kind == "infinity"
    assert math.isnan(describe(1e9, "fp16").error)
    assert describe(1e9, "fp16", saturate=True).value == 65504.0
    assert describe(1e9, "fp8_e4m3fn").kind == "nan"
    assert describe(1e9, "fp4_e2m1").value == 6.0
    assert describe(4, "e8m0").bits == "10000001"
    assert describe(2.0**-127, "e8m0").kind == "normal"
    minus_one = describe(-1.0, "fp64")
    assert (minus_one.sign, minus_one.code) == (1, 0xBFF0000000000000)
    with pytest.raises(ValueError, match="no code for it"):
        describe(math.nan, "fp4_e2m1")


@pytest.mark.parametrize("name", ["fp8_e4m3fn", "fp8_e5m2", "fp6_e3m2", "fp4_e2m1", "e8m0"])
def test_describe_and_describe_code_are_each_others_way_back(name: str) -> None:
    format = FORMATS[name]
    for code in range(format.num_codes):
        number = describe_code(code, name)
        assert int(number.bits.replace(" ", ""), 2) == code
        if number.kind != "nan":
            assert describe(number.value, format).code == code
        fields = number.sign << (format.num_bits - 1) | number.exponent << format.mantissa_bits | number.mantissa
        assert fields == code
