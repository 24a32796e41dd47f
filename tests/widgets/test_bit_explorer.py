"""The bit explorer shows the bits, values and neighbours that NumPy finds, and answers what is clicked."""

import json
import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cme295lab.widgets import BitExplorer, bits_of_code, bits_of_number
from cme295lab.widgets.bit_explorer import number_text
from cme295lab.widgets.bit_scenario import bit_fields, flipped, interesting_numbers, read_number, significand

# Published values of 0.1: NumPy and PyTorch for 16 bits, the FP8 paper's formats for 8.
TENTH = {"fp32": 0.10000000149011612, "fp16": 0.0999755859375, "bf16": 0.10009765625, "fp8_e4m3fn": 0.1015625,
         "fp8_e5m2": 0.09375, "fp4_e2m1": 0.0}  # fmt: skip


def half(code: int) -> float:
    return float(np.array([code], dtype=np.uint16).view(np.float16)[0])


def click(explorer: BitExplorer, action: str, value: object) -> None:
    explorer._handle_custom_msg({"action": action, "value": value}, [])


def shown(explorer: BitExplorer, name: str) -> dict[str, object]:
    return next(row for row in explorer.scene["rows"] if row["name"] == name)


def test_a_tenth_in_every_format_is_what_is_published() -> None:
    scenario = bits_of_number(0.1, "bf16")
    values = {row.format.name: row.number.value for row in scenario.rows if row.number}
    assert {name: values[name] for name in TENTH} == TENTH
    assert [row.format.num_bits for row in scenario.rows] == sorted(f.format.num_bits for f in scenario.rows)[::-1]
    assert (scenario.below, scenario.above) == (0.099609375, 0.1005859375)


@pytest.mark.parametrize("code", [*range(0, 1 << 16, 4111), 1, 0x3FF, 0x400, 0x7BFF, 0x7C00, 0x7C01, 0xFBFF, 0xFFFF])
def test_fp16_codes_mean_what_numpy_says_and_stand_beside_its_neighbours(code: int) -> None:
    scenario, value = bits_of_code(code), half(code)
    assert scenario.chosen.code == code
    assert "".join(field.bits for field in bit_fields(scenario.chosen)) == f"{code:016b}"
    assert scenario.chosen.value == value or math.isnan(value)
    if math.isfinite(value):
        power, factor = significand(scenario.chosen)
        assert (-1) ** scenario.chosen.sign * 2.0**power * factor == value
        for found, end in ((scenario.below, -np.inf), (scenario.above, np.inf)):
            with np.errstate(over="ignore"):
                expected = float(np.nextafter(np.float16(value), np.float16(end)))
            assert found == (expected if math.isfinite(expected) else None)
    else:
        assert (scenario.below, scenario.above) == (None, None)


def test_fp64_has_its_sign_bit_on_the_left() -> None:
    one = struct.unpack("<Q", struct.pack("<d", 1.0))[0]
    scenario = bits_of_code(one | 1 << 63, "fp64")
    assert scenario.chosen.value == -1
    assert flipped(scenario.chosen, 0) == one
    assert [field.first for field in bit_fields(scenario.chosen)] == [0, 1, 12]


def test_a_format_without_sign_or_mantissa_has_one_field() -> None:
    scenario = bits_of_number(0.25, "e8m0")
    assert [(field.name, field.bits, field.first) for field in bit_fields(scenario.chosen)] == [
        ("exponent", f"{125:08b}", 0)
    ]
    assert significand(scenario.chosen) == (-2, 1.0)


def test_clicking_bits_changes_the_value_and_all_rows() -> None:
    explorer = BitExplorer(1.0)
    click(explorer, "toggle", 1)  # the highest bit of the exponent: all ones now
    assert explorer.value == math.inf
    assert explorer.scene["kind"] == "infinity"
    assert shown(explorer, "fp4_e2m1")["value"] == "no ∞"
    assert shown(explorer, "bf16")["value"] == "∞"
    click(explorer, "toggle", 15)
    assert explorer.scene["kind"] == "nan"
    assert shown(explorer, "fp16")["fields"][2]["bits"] == "0000000001", "this NaN, not another"
    click(explorer, "toggle", 15)
    click(explorer, "toggle", 1)
    click(explorer, "toggle", 0)
    assert explorer.value == -1
    assert explorer.scene["formula"][1] == ("1", "sup sign")
    assert shown(explorer, "e8m0")["value"] == "no zero, no sign"


def test_what_is_typed_is_rounded_and_the_error_is_that_of_the_typed_number() -> None:
    explorer = BitExplorer(format="bf16")
    click(explorer, "type", "1 + 2^-11")
    assert explorer.value == 1
    assert explorer.scene["error"] == "−4.88e−04"
    assert shown(explorer, "fp16")["value"] == "1"
    assert shown(explorer, "tf32")["value"] == "1"
    assert shown(explorer, "fp32")["error"] == "exact"
    click(explorer, "format", "fp32")
    assert explorer.value == 1 + 2**-11, "the number that was typed, not what bf16 made of it"
    click(explorer, "type", "65519")
    click(explorer, "format", "fp16")
    assert explorer.value == 65504
    click(explorer, "number", "65520")
    assert explorer.value == math.inf
    click(explorer, "rounding", "zero")
    assert explorer.value == 65504


def test_stepping_goes_to_the_next_value_and_stays_at_the_end() -> None:
    explorer = BitExplorer(4.0, format="fp4_e2m1")
    values = []
    for _ in range(3):
        click(explorer, "step", False)
        values.append(explorer.value)
    assert values == [3, 2, 1.5]
    click(explorer, "number", "max")
    click(explorer, "step", True)
    assert explorer.value == 6
    assert explorer.scene["above"] == ""


@pytest.mark.parametrize(
    ("action", "value", "message"),
    [
        ("type", "zwölf", "cannot read 'zwölf'"),
        ("type", "1/0", "cannot read '1/0'"),
        ("type", "9^9^9", "cannot read"),
        ("type", "().__class__", "only numbers"),
        ("type", "7" * 61, "1 to 60 characters"),
        ("toggle", 16, "place must be from 0 to 15"),
        ("format", "fp12", "format must be one of"),
        ("rounding", "up", "rounding must be one of"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(action: str, value: object, message: str) -> None:
    explorer = BitExplorer(3.0)
    before = explorer.scene
    click(explorer, action, value)
    assert message in explorer.scene["message"]
    assert explorer.scene | {"message": ""} == before
    click(explorer, "toggle", 0)
    assert explorer.scene["message"] == ""


def test_a_number_that_the_chosen_format_lacks_is_refused() -> None:
    explorer = BitExplorer(1.0, format="fp4_e2m1")
    click(explorer, "number", "NaN")
    assert "NaN" in explorer.scene["message"]
    assert explorer.value == 1
    with pytest.raises(ValueError, match=r"code of fp4_e2m1 must be .* 0 to 15"):
        bits_of_code(16, "fp4_e2m1")


@given(st.floats(allow_nan=False))
def test_numbers_are_read_as_python_writes_them_and_shown_so_that_they_can_be_read(number: float) -> None:
    assert read_number(repr(number)) == number
    assert read_number(number_text(number).replace("∞", "inf")) == number


def test_interesting_numbers_end_where_the_format_does() -> None:
    numbers = interesting_numbers("fp8_e4m3fn")
    assert (numbers["max"], numbers["min normal"], numbers["min subnormal"]) == (448, 2**-6, 2**-9)
    assert "min subnormal" not in interesting_numbers("e8m0")


def test_scene_is_plain_json_and_the_picture_small() -> None:
    explorer = BitExplorer(math.nan)
    assert len(json.dumps(explorer.scene, allow_nan=False)) < 8_000
    picture = BitExplorer(0.1).figure()
    assert len(picture.png()) < 60_000
    assert "fp8_e4m3fn 0.1015625" in picture.alt_text
    assert picture.alt_text in repr(BitExplorer(0.1))
