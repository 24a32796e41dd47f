"""Quantities as people write them: bytes, FLOPs, rates and seconds, printed and parsed.

Two families of prefixes are kept apart. Decimal ones (kB, MB, GB: powers of 1000) are what papers and bandwidth figures
use. Binary ones (KiB, MiB, GiB: powers of 1024) are what memories are built of: the "192 KB" of SRAM in a
data sheet are 192 KiB. No other module knows a prefix: numbers travel as plain bytes, FLOPs and seconds.

    >>> format_bytes(40_265_318_400), format_bytes(80 * GiB, binary=True), parse_bytes("192 KiB")
    ('40.3 GB', '80 GiB', 196608)
"""

import math
import re
from decimal import Decimal

KB, MB, GB, TB, PB = (10 ** (3 * power) for power in range(1, 6))
KiB, MiB, GiB, TiB, PiB = (2 ** (10 * power) for power in range(1, 6))

_LARGE_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")  # SI: kilo is a small k, the others are capitals
_SMALL_PREFIXES = ("", "m", "µ", "n", "p")
_BINARY_PREFIXES = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_BYTE_FACTORS: dict[str, int] = (
    {f"{prefix}B": 1024**power for power, prefix in enumerate(_BINARY_PREFIXES)}
    | {f"{prefix}B": 1000**power for power, prefix in enumerate(_LARGE_PREFIXES[:7])}
    | {"KB": 1000}  # wrong by the SI, but everywhere
)
_QUANTITY = re.compile(r"\s*(?P<number>[+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(?P<unit>[A-Za-z]*)\s*")


def format_bytes(num_bytes: float, binary: bool = False, digits: int = 3) -> str:
    """Write a number of bytes with the prefix that leaves the fewest digits.

    Args:
        num_bytes: bytes; a difference may be negative, an average fractional.
        binary: count in KiB, MiB, GiB (powers of 1024) and not in kB, MB, GB.
        digits: significant digits to keep.

    Returns:
        Text such as "40.3 GB", or "80 GiB" with `binary`.

    Raises:
        ValueError: if the number is not finite or `digits` is below 1.

        >>> format_bytes(733_184 * 2), format_bytes(196_608, binary=True), format_bytes(999_999)
        ('1.47 MB', '192 KiB', '1 MB')
    """
    if binary:
        return _scaled(num_bytes, "B", 1024, _BINARY_PREFIXES, digits)
    return _scaled(num_bytes, "B", 1000, _LARGE_PREFIXES, digits)


def parse_bytes(text: str) -> int:
    """Read a number of bytes written by hand.

    Args:
        text: a number and a unit, such as "192 KiB", "1.5GB" or "64 B"; no unit means bytes.

    Returns:
        Bytes, rounded to the nearest whole one.

    Raises:
        TypeError: if `text` is no string.
        ValueError: if it is not a non-negative number with a unit of bytes ("Gb" would be bits).

        >>> parse_bytes("192 KiB"), parse_bytes("192 KB"), parse_bytes("40.3 GB")
        (196608, 192000, 40300000000)
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a string such as '192 KiB', got {text!r} of type {type(text).__name__}")
    match = _QUANTITY.fullmatch(text)
    unit = (match["unit"] or "B") if match else ""
    if match is None or unit not in _BYTE_FACTORS or match["number"].startswith("-"):
        allowed = ", ".join(_BYTE_FACTORS)
        raise ValueError(
            f"cannot read {text!r} as a number of bytes: write a number >= 0 and one of the units {allowed}"
        )
    # Decimal arithmetic: 40.3 * 10**9 is exact, as a float it is not.
    return int((Decimal(match["number"].replace("_", "")) * _BYTE_FACTORS[unit]).to_integral_value())


def format_flops(num_flops: float, digits: int = 3) -> str:
    """Write a count of floating-point operations (a multiply-add is two): "66.6 GFLOP"."""
    return _scaled(num_flops, "FLOP", 1000, _LARGE_PREFIXES, digits)


def format_rate(rate: float, unit: str, digits: int = 3) -> str:
    """Write a rate with a decimal prefix.

    Args:
        rate: the rate in `unit`.
        unit: a unit without prefix that ends in "/s", such as "B/s", "FLOP/s" or "token/s".
        digits: significant digits to keep.

    Returns:
        Text such as "2.04 TB/s".

    Raises:
        ValueError: if the unit is no rate, or the number is not finite.

        >>> format_rate(2.039e12, "B/s"), format_rate(312e12, "FLOP/s")
        ('2.04 TB/s', '312 TFLOP/s')
    """
    if not unit.endswith("/s") or unit == "/s":
        raise ValueError(f"unit must be a rate without prefix, such as 'B/s' or 'FLOP/s', got {unit!r}")
    return _scaled(rate, unit, 1000, _LARGE_PREFIXES, digits)


def format_seconds(seconds: float, digits: int = 3) -> str:
    """Write a duration: ps to s below a minute ("7.3 ms"), then min, h and days ("33.9 days").

    >>> format_seconds(0.0073), format_seconds(90), format_seconds(2_928_960)
    ('7.3 ms', '1.5 min', '33.9 days')
    """
    size = abs(_finite(seconds))
    for limit, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if size >= limit:
            return f"{_significant(seconds / limit, digits)} {unit}"
    if size >= 1 or size == 0:
        return f"{_significant(seconds, digits)} s"
    power = min(math.ceil(-math.log10(size) / 3), len(_SMALL_PREFIXES) - 1)
    text = _significant(seconds * 1000**power, digits)
    if abs(float(text)) >= 1000:  # 0.9999999 s reads better as 1 s
        power, text = power - 1, _significant(seconds * 1000 ** (power - 1), digits)
    return f"{text} {_SMALL_PREFIXES[power]}s"


def _scaled(value: float, unit: str, base: int, prefixes: tuple[str, ...], digits: int) -> str:
    size, power = abs(_finite(value)), 0
    while power + 1 < len(prefixes) and size >= base ** (power + 1):
        power += 1
    text = _significant(value / base**power, digits)
    if abs(float(text)) >= base and power + 1 < len(prefixes):  # rounding carried: 999,999 B is 1 MB, not 1000 kB
        power += 1
        text = _significant(value / base**power, digits)
    return f"{text} {prefixes[power]}{unit}"


def _significant(value: float, digits: int) -> str:
    """Round to significant digits, without exponent or trailing zeros; digits before the point are never dropped."""
    if digits < 1:
        raise ValueError(f"digits must be at least 1, got {digits}")
    whole_digits = math.floor(math.log10(abs(value))) + 1 if value else 1
    text = f"{value:.{max(digits - whole_digits, 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"a quantity must be a finite number, got {value}")
    return value
