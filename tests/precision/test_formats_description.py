"""The table of formats, what their codes are, and formats that cannot be."""

import math

import pytest
import torch

from cme295lab.precision import FORMATS, FloatFormat, all_values, decode, describe_code, get_format

TABLE = {  # exponent and mantissa bits, bias, max, min normal, min subnormal, epsilon
    "fp64": (11, 52, 1023, 1.7976931348623157e308, 2.2250738585072014e-308, 5e-324, 2.220446049250313e-16),
    "fp32": (8, 23, 127, 3.4028234663852886e38, 1.1754943508222875e-38, 1.401298464324817e-45, 2.0**-23),
    "tf32": (8, 10, 127, (2 - 2.0**-10) * 2.0**127, 2.0**-126, 2.0**-136, 2.0**-10),
    "fp16": (5, 10, 15, 65504.0, 6.103515625e-05, 5.960464477539063e-08, 2.0**-10),
    "bf16": (8, 7, 127, 3.3895313892515355e38, 2.0**-126, 9.183549615799121e-41, 0.0078125),
    "fp8_e4m3fn": (4, 3, 7, 448.0, 0.015625, 0.001953125, 0.125),
    "fp8_e5m2": (5, 2, 15, 57344.0, 2.0**-14, 1.52587890625e-05, 0.25),
    "fp6_e3m2": (3, 2, 3, 28.0, 0.25, 0.0625, 0.25),
    "fp6_e2m3": (2, 3, 1, 7.5, 1.0, 0.125, 0.125),
    "fp4_e2m1": (2, 1, 1, 6.0, 1.0, 0.5, 0.5),
}
COUNTS = {  # finite, infinite and NaN codes
    "fp16": (63488, 2, 2046),
    "bf16": (65280, 2, 254),
    "fp8_e4m3fn": (254, 0, 2),
    "fp8_e5m2": (248, 2, 6),
    "fp6_e3m2": (64, 0, 0),
    "fp6_e2m3": (64, 0, 0),
    "fp4_e2m1": (16, 0, 0),
    "e8m0": (255, 0, 1),
}
HALF = dict(name="mine", exponent_bits=5, mantissa_bits=10, bias=15, specials="ieee")


@pytest.mark.parametrize("name", TABLE)
def test_published_figures_of_each_format(name: str) -> None:
    format = FORMATS[name]
    assert (
        format.exponent_bits,
        format.mantissa_bits,
        format.bias,
        format.max,
        format.min_normal,
        format.min_subnormal,
        format.epsilon,
    ) == TABLE[name]
    assert format.name == name
    assert format.num_bits == 1 + format.exponent_bits + format.mantissa_bits
    assert format.num_codes == 2**format.num_bits
    assert format.min_positive == format.min_subnormal


def test_figures_of_the_scale() -> None:
    scale = FORMATS["e8m0"]
    assert (scale.num_bits, scale.max, scale.min_normal, scale.min_positive) == (8, 2.0**127, 2.0**-127, 2.0**-127)
    assert math.isnan(scale.min_subnormal)
    assert list(FORMATS) == [*TABLE, "e8m0"]


def test_tf32_takes_nineteen_bits() -> None:
    assert FORMATS["tf32"].num_bits == 19


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_finite_infinite_and_nan_codes(name: str) -> None:
    values = all_values(name)
    assert (int(values.isfinite().sum()), int(values.isinf().sum()), int(values.isnan().sum())) == COUNTS[name]
    assert float(values[values.isfinite()].max()) == FORMATS[name].max
    assert float(values[values > 0].min()) == FORMATS[name].min_positive


def test_e4m3_and_fp4_hold_the_values_that_are_known() -> None:
    values = all_values("fp8_e4m3fn")
    assert len({v for v in values.tolist() if not math.isnan(v)}) == 253  # of 254 codes: zero has two
    assert all_values("fp4_e2m1").tolist() == [
        *(0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0),
        *(-0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0),
    ]
    assert all_values("e8m0")[125:130].tolist() == [0.25, 0.5, 1.0, 2.0, 4.0]


def test_e4m3_of_the_ieee_kind_ends_at_240() -> None:
    format = FloatFormat(name="e4m3", exponent_bits=4, mantissa_bits=3, bias=7, specials="ieee")
    assert format.max == 240.0


def test_a_format_without_mantissa_has_no_subnormals() -> None:
    """FP4 as E3M0, which the QLoRA paper tries: zero and seven powers of two."""
    format = FloatFormat(name="e3m0", exponent_bits=3, mantissa_bits=0, bias=3, specials="finite")
    assert all_values(format)[:8].tolist() == [0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0]
    assert math.isnan(format.min_subnormal)
    assert format.min_positive == format.min_normal == 0.25


@pytest.mark.parametrize("name", FORMATS)
def test_codes_of_special_values_mean_them(name: str) -> None:
    format = FORMATS[name]
    assert describe_code(format.max_code, format).value == format.max
    if format.infinity_code is not None:
        assert describe_code(format.infinity_code, format).value == math.inf
    if format.nan_code is not None:
        assert math.isnan(describe_code(format.nan_code, format).value)
    if format.signed:
        assert math.copysign(1, describe_code(format.sign_bit, format).value) == -1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"exponent_bits": 0}, "exponent_bits of format 'mine' must be at least 1, got 0"),
        ({"exponent_bits": -3}, "exponent_bits .* at least 1"),
        ({"exponent_bits": 1}, "needs exponent_bits of at least 2"),
        ({"mantissa_bits": -1}, "mantissa_bits of format 'mine' must not be negative, got -1"),
        ({"mantissa_bits": 0}, "tell infinity from NaN by the mantissa"),
        ({"mantissa_bits": 53}, "at most 52, float64's own, got 53"),
        ({"exponent_bits": 12, "mantissa_bits": 52}, "has 65 bits, more than 64"),
        ({"exponent_bits": 11, "bias": 0}, "exponents 1 to 2046, but float64 holds -1022 to 1023"),
        ({"exponent_bits": 11, "bias": 1024}, "exponents -1023 to 1022"),
        ({"bias": -2000}, "bias -2000 of format 'mine'"),
        ({"specials": "fnuz"}, "specials of format 'mine' must be one of"),
        ({"specials": "scale"}, "say signed=False and mantissa_bits=0"),
        ({"specials": "nan-only", "exponent_bits": 1, "mantissa_bits": 0}, "would hold no number but one"),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_impossible_formats_are_refused(changed: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FloatFormat(**{**HALF, **changed})


@pytest.mark.parametrize("field", ["exponent_bits", "mantissa_bits", "bias"])
@pytest.mark.parametrize("value", [2.5, True, "5", None])
def test_counts_must_be_whole_numbers(field: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"{field} of format 'mine' must be an int"):
        FloatFormat(**{**HALF, field: value})


def test_formats_are_found_by_name_or_given() -> None:
    mine = FloatFormat(**HALF)
    assert get_format(mine) is mine
    assert get_format("bf16") is FORMATS["bf16"]
    with pytest.raises(ValueError, match=r"one of fp64, fp32, tf32, .*, or a FloatFormat, got 'bfloat16'"):
        get_format("bfloat16")
    with pytest.raises(TypeError, match="must be a name or a FloatFormat, got dtype"):
        get_format(torch.float16)


def test_codes_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match=r"fp4_e2m1 must be 0 to 15, got 3 to 16"):
        decode(torch.tensor([3, 16]), "fp4_e2m1")
    with pytest.raises(ValueError, match=r"need `& 0xffff`"):
        decode(torch.tensor([-1.0]).to(torch.bfloat16).view(torch.int16), "bf16")
    with pytest.raises(TypeError, match=r"codes must be integers, got torch\.float32"):
        decode(torch.tensor([1.0]), "fp16")
    with pytest.raises(TypeError, match=r"torch\.bool"):
        decode(torch.tensor([True]), "fp16")
    with pytest.raises(ValueError, match=r"tf32 has 2\^19 codes"):
        all_values("tf32")
    for code in (-1, 256, True, 1.0):
        with pytest.raises(ValueError, match="must be an int of 0 to 255"):
            describe_code(code, "fp8_e5m2")
