"""Units are read and written correctly, at the edges of prefixes too."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cme295lab import units


@pytest.mark.parametrize(
    ("num_bytes", "binary", "expected"),
    [
        (0, False, "0 B"),
        (512, False, "512 B"),
        (40_265_318_400, False, "40.3 GB"),
        (2**30, False, "1.07 GB"),
        (80 * 2**30, True, "80 GiB"),
        (192 * 1024, True, "192 KiB"),
        (1023, True, "1023 B"),
        (1024, True, "1 KiB"),
        (999_499, False, "999 kB"),
        (999_500, False, "1 MB"),  # rounding carries into the next prefix
        (1_048_575, True, "1 MiB"),
        (-1_500, False, "-1.5 kB"),
        (4.5, False, "4.5 B"),
        (10**24, False, "1 YB"),
        (10**28, False, "10000 YB"),
    ],
)
def test_format_bytes_writes_the_shortest_text(num_bytes: float, binary: bool, expected: str) -> None:
    assert units.format_bytes(num_bytes, binary=binary) == expected


def test_format_bytes_keeps_the_digits_asked_for() -> None:
    assert units.format_bytes(1_234_567, digits=5) == "1.2346 MB"
    assert units.format_bytes(1_234_567, digits=1) == "1 MB"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192 KiB", 196_608),
        ("192 KB", 192_000),
        ("192 kB", 192_000),
        ("40.3GB", 40_300_000_000),
        (" 1_000 B ", 1000),
        ("64", 64),
        ("1e3 MiB", 1000 * 2**20),
        (".5 KiB", 512),
        ("2.3 B", 2),
    ],
)
def test_parse_bytes_reads_what_people_write(text: str, expected: int) -> None:
    assert units.parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text", ["", "GB", "12 Gb", "12 gb", "-1 GB", "1,5 GB", "nan", "inf GB", "1 GB 2", "1..2 GB", "0x10 B"]
)
def test_parse_bytes_names_the_text_and_the_units_when_it_cannot_read(text: str) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*KiB.*GB") as error:
        units.parse_bytes(text)
    assert repr(text) in str(error.value)


def test_parse_bytes_refuses_a_number() -> None:
    with pytest.raises(TypeError, match="must be a string"):
        units.parse_bytes(192)  # type: ignore[arg-type]


@given(st.integers(min_value=0, max_value=10**20), st.booleans(), st.integers(min_value=2, max_value=9))
def test_parse_bytes_returns_what_format_bytes_wrote(num_bytes: int, binary: bool, digits: int) -> None:
    read_back = units.parse_bytes(units.format_bytes(num_bytes, binary=binary, digits=digits))
    # half a unit in the last digit, and half a byte because parse_bytes returns whole bytes
    assert math.isclose(read_back, num_bytes, rel_tol=0.5 * 10.0 ** (1 - digits) * 1.001, abs_tol=0.5)


@given(st.floats(min_value=1e-3, max_value=1e27))
def test_no_format_writes_an_exponent_or_a_trailing_zero(value: float) -> None:
    for text in (units.format_bytes(value), units.format_flops(value), units.format_rate(value, "B/s")):
        number = text.split()[0]
        assert "e" not in number
        assert not (("." in number) and number.endswith(("0", ".")))


def test_format_flops_and_rates_use_decimal_prefixes() -> None:
    assert units.format_flops(66.6e9) == "66.6 GFLOP"
    assert units.format_flops(3.14e23) == "314 ZFLOP"
    assert units.format_rate(2.039e12, "B/s") == "2.04 TB/s"
    assert units.format_rate(989.4e12, "FLOP/s", digits=4) == "989.4 TFLOP/s"


@pytest.mark.parametrize("unit", ["B", "", "/s", "FLOP"])
def test_format_rate_refuses_a_unit_that_is_no_rate(unit: str) -> None:
    with pytest.raises(ValueError, match="unit must be a rate"):
        units.format_rate(1.0, unit)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0 s"),
        (0.0073, "7.3 ms"),
        (1e-6, "1 µs"),
        (3.3e-9, "3.3 ns"),
        (2e-15, "0.002 ps"),
        (0.99999, "1 s"),
        (0.001, "1 ms"),
        (59.4, "59.4 s"),
        (90, "1.5 min"),
        (7200, "2 h"),
        (33.9 * 86_400, "33.9 days"),
        (-0.002, "-2 ms"),
    ],
)
def test_format_seconds_chooses_a_readable_unit(seconds: float, expected: str) -> None:
    assert units.format_seconds(seconds) == expected


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_formats_refuse_numbers_that_are_not_finite(value: float) -> None:
    for write in (units.format_bytes, units.format_flops, units.format_seconds, lambda x: units.format_rate(x, "B/s")):
        with pytest.raises(ValueError, match="finite"):
            write(value)


def test_digits_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="digits must be at least 1"):
        units.format_bytes(10, digits=0)


def test_constants_are_powers_of_1000_and_1024() -> None:
    assert (units.KB, units.GB, units.PB) == (10**3, 10**9, 10**15)
    assert (units.KiB, units.GiB, units.PiB) == (2**10, 2**30, 2**50)
