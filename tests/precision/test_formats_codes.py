"""Codes of values and values of codes, against NumPy, PyTorch, ml_dtypes and rational arithmetic."""

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cme295lab.precision import FORMATS, FloatFormat, all_values, code_dtype, decode, encode
from cme295lab.precision.formats import codes as codes_module
from tests.precision.format_oracles import (
    E3M4_IEEE,
    E4M3_IEEE,
    E4M3_UNSIGNED,
    FINE_VALUES,
    LARGE_VALUES,
    LIBRARY_DTYPES,
    TINY_VALUES,
    exact_rounding,
    library_codes,
    library_values,
    random_patterns,
)

TORCH_DTYPES = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
WITH_MANTISSA = [name for name in FORMATS if name != "e8m0"]
UNUSUAL = [E4M3_IEEE, TINY_VALUES, LARGE_VALUES]


@pytest.mark.parametrize("name", LIBRARY_DTYPES)
def test_every_pattern_decodes_as_in_numpy_and_ml_dtypes(name: str) -> None:
    expected = library_values(LIBRARY_DTYPES[name], FORMATS[name].num_codes)
    values = all_values(name).numpy()
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(np.signbit(values)[~np.isnan(values)], np.signbit(expected)[~np.isnan(expected)])


@pytest.mark.parametrize("name", TORCH_DTYPES)
def test_every_pattern_decodes_as_in_torch(name: str) -> None:
    patterns = torch.arange(FORMATS[name].num_codes)
    narrow = patterns.to(torch.int16 if FORMATS[name].num_bits == 16 else torch.uint8)
    expected = narrow.view(TORCH_DTYPES[name]).to(torch.float64)
    unsigned = narrow.view(torch.uint16) if FORMATS[name].num_bits == 16 else narrow
    for codes in (patterns, unsigned):
        torch.testing.assert_close(decode(codes, name), expected, rtol=0, atol=0, equal_nan=True)
    twice = decode(torch.cat([unsigned, unsigned]), name)  # more than there are codes: looked up
    torch.testing.assert_close(twice, expected.repeat(2), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", LIBRARY_DTYPES)
def test_every_value_encodes_to_its_own_code(name: str) -> None:
    values = all_values(name)
    numbers = ~values.isnan()
    for dtype in (torch.float32, torch.float64):
        found = encode(values.to(dtype)[numbers], name)
        assert found.dtype == torch.int32
        assert found.tolist() == torch.arange(FORMATS[name].num_codes)[numbers].tolist()


@pytest.mark.parametrize("name", ["fp32", "fp64"])
def test_wide_formats_are_the_bits_of_torch(name: str) -> None:
    floats = random_patterns(100_000, seed=1)
    assert encode(floats, "fp32").dtype == torch.int64
    numbers = floats[~floats.isnan()]
    bits = numbers.view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    if name == "fp64":
        numbers = torch.from_numpy(np.random.default_rng(2).integers(-(2**63), 2**63, 100_000)).view(torch.float64)
        numbers = numbers[~numbers.isnan()]
        bits = numbers.view(torch.int64)
    assert torch.equal(encode(numbers, name), bits)
    assert torch.equal(decode(bits, name), numbers.to(torch.float64))
    assert math.isnan(float(decode(encode(torch.tensor(math.nan), name), name)))


def assert_same_codes_as_the_library(name: str, x: torch.Tensor) -> None:
    if FORMATS[name].specials == "finite":
        x = x[x.isfinite()]  # ml_dtypes turns NaN into zero and infinity into max; here both are refused
    if FORMATS[name].specials == "scale":
        x = x[(x >= 2.0**-126) | x.isnan()]  # ml_dtypes has NaN for the rest of them, or the wrong neighbour
    expected = library_codes(x.numpy(), LIBRARY_DTYPES[name])
    found = encode(x, name).numpy()
    if name == "fp16":  # NumPy keeps some of a NaN's payload
        unknown = x.isnan().numpy()
        assert all((found[unknown] & 0x7FFF) == 0x7E00)
        found, expected = found[~unknown], expected[~unknown]
    wrong = np.flatnonzero(found != expected)
    assert wrong.size == 0, f"{wrong.size} differ, the first at {x[wrong[0]]!r}: {found[wrong[0]]} {expected[wrong[0]]}"


@pytest.mark.parametrize("name", LIBRARY_DTYPES)
def test_ten_million_floats_encode_as_in_the_library(name: str) -> None:
    for seed in range(20):
        assert_same_codes_as_the_library(name, random_patterns(500_000, seed=100 + seed))
    moderate = torch.randn(200_000) * torch.exp2(torch.randn(200_000) * 4)  # most random patterns are far out of range
    assert_same_codes_as_the_library(name, moderate)


@pytest.mark.parametrize("name", TORCH_DTYPES)
def test_floats_encode_as_in_torch(name: str) -> None:
    x = random_patterns(500_000, seed=4)
    x = x[~x.isnan()]
    if name == "fp8_e4m3fn":
        x = x[x.abs() <= 464]  # PyTorch saturates above, we say NaN as ml_dtypes does
    narrow = x.to(TORCH_DTYPES[name])
    as_int = narrow.view(torch.int16 if narrow.itemsize == 2 else torch.uint8).to(torch.int32)
    assert torch.equal(encode(x, name), as_int & (FORMATS[name].num_codes - 1))


@pytest.mark.parametrize("name", LIBRARY_DTYPES)
def test_values_at_and_beside_every_midpoint(name: str) -> None:
    """Where rounding is decided: the middle between two neighbours, and the floats next to it, in float64, too."""
    values = np.unique(all_values(name)[all_values(name).isfinite()].numpy())
    middles = ((values[1:] + values[:-1]) / 2).astype(np.float32)
    x = np.concatenate([middles, np.nextafter(middles, np.float32(np.inf)), np.nextafter(middles, np.float32(-np.inf))])
    x = x[x >= 2.0**-126] if name == "e8m0" else x
    assert_same_codes_as_the_library(name, torch.from_numpy(x))
    assert torch.equal(encode(torch.from_numpy(x).double(), name), encode(torch.from_numpy(x), name))


@pytest.mark.parametrize(
    ("format", "dtype"),
    [(E4M3_IEEE, ml_dtypes.float8_e4m3), (E3M4_IEEE, ml_dtypes.float8_e3m4)],
    ids=["e4m3", "e3m4"],
)
def test_formats_of_your_own_are_as_good(format: FloatFormat, dtype: type) -> None:
    x = torch.cat([random_patterns(100_000, seed=5), torch.randn(100_000) * 8])
    np.testing.assert_array_equal(encode(x, format).numpy(), library_codes(x.numpy(), dtype))
    np.testing.assert_array_equal(all_values(format).numpy(), library_values(dtype, 256))


@pytest.mark.parametrize("format", [*WITH_MANTISSA, FINE_VALUES, *UNUSUAL], ids=lambda f: getattr(f, "name", f))
@pytest.mark.parametrize("rounding", ["nearest", "zero"])
def test_rounding_is_that_of_rational_arithmetic(format: str | FloatFormat, rounding: str) -> None:
    chosen = FORMATS[format] if isinstance(format, str) else format
    rng = np.random.default_rng(6)
    spread = np.ldexp(rng.uniform(1, 2, 700), rng.integers(-1074, 1024, 700)) * rng.choice([-1, 1], 700)
    inside = max(-1060.0, math.log2(chosen.min_positive) - 4), min(1023.0, math.log2(chosen.max) + 2)
    near = np.exp2(rng.uniform(*inside, 700)) * rng.choice([-1, 1], 700)
    coarse = torch.from_numpy(near).float().double().numpy()
    for dtype, x in ((torch.float64, np.concatenate([spread, near])), (torch.float32, coarse[np.isfinite(coarse)])):
        found = decode(encode(torch.tensor(x, dtype=dtype), chosen, rounding=rounding), chosen).numpy()
        expected = np.array([exact_rounding(v, chosen, toward_zero=rounding == "zero") for v in x.tolist()])
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(np.signbit(found), np.signbit(x))


@pytest.mark.parametrize("format", UNUSUAL, ids=lambda f: f.name)
def test_ties_and_infinity_of_unusual_formats(format: FloatFormat) -> None:
    values = all_values(format)
    numbers = values[values.isfinite()].unique()
    middles = ((numbers[1:] + numbers[:-1]) / 2)[:: 1 + len(numbers) // 3000]
    expected = [exact_rounding(v, format) for v in middles.tolist()]
    assert decode(encode(middles, format), format).tolist() == expected
    for dtype in (torch.float32, torch.float64):
        ends = torch.tensor([math.inf, -math.inf, math.nan], dtype=dtype)
        for rounding in ("nearest", "zero", "stochastic"):
            found = decode(encode(ends, format, rounding=rounding), format)
            assert found[:2].tolist() == [math.inf, -math.inf]
            assert bool(found[2].isnan())


def test_float64_is_rounded_once() -> None:
    """A little above the middle between two fp16s; float32 would round it to the middle, and fp16 then down."""
    x = torch.tensor([1 + 2.0**-11 + 2.0**-40, 1 + 3 * 2.0**-11 - 2.0**-40], dtype=torch.float64)
    up, down = 1 + 2.0**-10, 1 + 2.0**-10
    assert decode(encode(x, "fp16"), "fp16").tolist() == [up, down]
    assert decode(encode(x.float(), "fp16"), "fp16").tolist() == [1.0, 1 + 2.0**-9]
    rng = np.random.default_rng(7)
    middles = (1 + (2 * rng.integers(0, 1024, 5000) + 1) * 2.0**-11) * np.exp2(rng.integers(-26, 17, 5000))
    close = middles * (1 + rng.choice([-1, 0, 1], 5000) * 2.0**-45)
    np.testing.assert_array_equal(encode(torch.from_numpy(close), "fp16").numpy(), library_codes(close, np.float16))


@settings(max_examples=150, deadline=None)
@given(st.floats(), st.sampled_from(WITH_MANTISSA))
def test_any_float_saturates_to_the_largest_value(x: float, name: str) -> None:
    format = FORMATS[name]
    if math.isnan(x):
        return
    tensor = torch.tensor(x, dtype=torch.float64)
    value = float(decode(encode(tensor, name, saturate=True), name))
    nearest = format.max if math.isinf(x) else exact_rounding(abs(x), format)
    assert value == math.copysign(nearest if math.isfinite(nearest) else format.max, x)


def test_overflow_is_what_the_format_says() -> None:
    x = torch.tensor([464.0, 465.0, math.inf, -465.0])
    assert encode(x, "fp8_e4m3fn").tolist() == [0x7E, 0x7F, 0x7F, 0xFF]
    assert encode(x, "fp8_e4m3fn", saturate=True).tolist() == [0x7E, 0x7E, 0x7E, 0xFE]
    assert encode(x, "fp8_e4m3fn", rounding="zero").tolist() == [0x7E, 0x7E, 0x7F, 0xFE]
    y = torch.tensor([61439.0, 61440.0, -math.inf])
    assert encode(y, "fp8_e5m2").tolist() == [0x7B, 0x7C, 0xFC]
    assert encode(y, "fp8_e5m2", saturate=True).tolist() == [0x7B, 0x7B, 0xFB]
    assert encode(y, "fp8_e5m2", rounding="zero").tolist() == [0x7B, 0x7B, 0xFC]
    assert encode(torch.tensor([7.0, -1e30]), "fp4_e2m1").tolist() == [7, 15]
    assert encode(torch.tensor([-math.inf]), "fp6_e2m3", saturate=True).tolist() == [0x3F]


@pytest.mark.parametrize("name", [name for name, format in FORMATS.items() if format.nan_code is not None])
@pytest.mark.parametrize("rounding", ["nearest", "zero", "stochastic"])
def test_nan_stays_nan(name: str, rounding: str) -> None:
    x = torch.tensor([1.0, math.nan, 2.0, math.inf])
    for saturate in (False, True):
        values = decode(encode(x, name, rounding=rounding, saturate=saturate), name)
        assert values[:3].isnan().tolist() == [False, True, False]
        assert not saturate or float(values[3]) == FORMATS[name].max


def test_scales_are_powers_of_two() -> None:
    x = torch.tensor([1.0, 1.49, 1.5, 2.99, 3.0, 2.0**-127, 2.0**-140, 2.0**127, 1.5 * 2.0**127, math.inf, math.nan])
    assert encode(x, "e8m0").tolist() == [127, 127, 128, 128, 129, 0, 0, 254, 255, 255, 255]
    assert encode(x, "e8m0", rounding="zero").tolist() == [127, 127, 127, 128, 128, 0, 0, 254, 254, 255, 255]
    assert encode(x, "e8m0", saturate=True).tolist()[-3:] == [254, 254, 255]
    below = torch.tensor([1.4 * 2.0**-127, 1.6 * 2.0**-127], dtype=torch.float64)
    assert encode(below, "e8m0").tolist() == [0, 1]
    power = torch.exp2(torch.arange(-127.0, 128.0, dtype=torch.float64))
    assert encode(power, "e8m0").tolist() == list(range(255))


def test_a_format_without_sign() -> None:
    x = torch.tensor([0.0, -0.0, 0.3, 448.0])
    assert encode(x, E4M3_UNSIGNED).tolist() == encode(x.abs(), "fp8_e4m3fn").tolist()
    assert all_values(E4M3_UNSIGNED)[:127].tolist() == all_values("fp8_e4m3fn")[:127].tolist()
    with pytest.raises(ValueError, match=r"x holds -0\.5, but e4m3 without sign has no sign"):
        encode(torch.tensor([1.0, -0.5]), E4M3_UNSIGNED)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (5, 7)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_shapes_and_dtypes(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape).to(dtype)
    for name in WITH_MANTISSA:
        found = encode(x, name)
        assert found.shape == shape
        assert found.dtype == code_dtype(name) == (torch.int32 if FORMATS[name].num_bits < 32 else torch.int64)
        assert torch.equal(found, encode(x.double(), name))
        assert decode(found, name).shape == shape


def test_strides_gradients_narrow_inputs_and_lengths_beyond_a_chunk() -> None:
    x = torch.randn(11, 13, requires_grad=True)
    assert torch.equal(encode(x.t()[::2], "bf16"), encode(x.detach(), "bf16").t()[::2])
    eight = torch.tensor([0.5, 3.0, -448.0]).to(torch.float8_e4m3fn)
    assert decode(encode(eight, "fp16"), "fp16").tolist() == [0.5, 3.0, -448.0]
    long = torch.randn(codes_module.CHUNK_VALUES + 3)
    assert torch.equal(encode(long, "fp8_e5m2")[-5:], encode(long[-5:], "fp8_e5m2"))
    assert torch.equal(encode(long, "fp8_e5m2"), long.to(torch.float8_e5m2).view(torch.uint8).to(torch.int32))


def test_what_has_no_code_is_refused() -> None:
    with pytest.raises(ValueError, match=r"x holds NaN \(2 of 3 values\), fp4_e2m1 has no code for it"):
        encode(torch.tensor([math.nan, 1.0, math.nan]), "fp4_e2m1")
    with pytest.raises(ValueError, match="x holds NaN"):
        encode(torch.tensor([math.nan]), "fp6_e3m2", saturate=True)
    with pytest.raises(ValueError, match=r"infinity \(1 of 2 values\), fp6_e2m3 .*: saturate=True makes it 7.5"):
        encode(torch.tensor([1.0, -math.inf]), "fp6_e2m3")
    for value in (0.0, -0.0, -2.0):
        with pytest.raises(ValueError, match="e8m0 is a scale, with neither zero nor sign"):
            encode(torch.tensor([1.0, value]), "e8m0")
    with pytest.raises(TypeError, match=r"floating dtype, got torch.int64: convert it first"):
        encode(torch.tensor([1]), "fp16")
    with pytest.raises(TypeError, match=r"torch.complex64"):
        encode(torch.tensor([1j]), "fp16")
    with pytest.raises(ValueError, match="rounding must be one of"):
        encode(torch.tensor([1.0]), "fp16", rounding="up")
    with pytest.raises(ValueError, match="a generator is for"):
        encode(torch.tensor([1.0]), "fp16", generator=torch.Generator())
