"""A number among the values of small formats: which of them are in view, and to which it is rounded.

One pure function, `number_line_scenario`, and the record that it returns; beside it `spacings`, the gap between
neighbours over a format's whole range. The values are those of `cme295lab.precision.formats`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cme295lab.precision.formats import FloatFormat, all_values, get_format, neighbours, round_to

SMALL_FORMATS = ("fp4_e2m1", "fp6_e2m3", "fp6_e3m2", "fp8_e4m3fn", "fp8_e5m2")
_MOST_BITS = 10  # more values than that are a grey bar


@dataclass(frozen=True, kw_only=True)
class NumberLineRow:
    """One format's part of the picture.

    Attributes:
        format: its name.
        values: the format's values in view, ascending, each once.
        num_finite: how many different finite values it has in all.
        rounded: the value that the number is rounded to.
        below: the largest of its values that is not larger than the number; NaN if there is none.
        above: the smallest that is not smaller; NaN if there is none.
    """

    format: str
    values: tuple[float, ...]
    num_finite: int
    rounded: float
    below: float
    above: float

    @property
    def gap(self) -> float:
        """Distance of the two values that enclose the number; 0 if it is one of them."""
        return self.above - self.below


@dataclass(frozen=True, kw_only=True)
class NumberLineScenario:
    """A number, a part of the line, and what lies there."""

    number: float
    low: float
    high: float
    rows: tuple[NumberLineRow, ...]


def number_line_scenario(
    *, number: float, low: float, high: float, formats: Sequence[str] = SMALL_FORMATS
) -> NumberLineScenario:
    """Find the values of each format between two ends, and the one that a number is rounded to.

    Args:
        number: rounded to nearest even; beyond a format's largest value it stays there. NaN: no number is shown.
        low, high: ends of the view.
        formats: names of `FORMATS` of at most 10 bits.

    Raises:
        ValueError: if the ends are in disorder, there is no format, or one is too large to draw.
    """
    if not low < high:
        raise ValueError(f"low must be smaller than high, got {low} and {high}")
    if not formats:
        raise ValueError("formats must name at least one format")
    rows = tuple(_row(get_format(name), number, low, high) for name in formats)
    return NumberLineScenario(number=number, low=low, high=high, rows=rows)


def spacings(format: str, *, low: float, high: float) -> tuple[list[float], list[float]]:
    """Powers of two inside a format's range, and the distance from each to the next larger value.

    Between two powers of two the distance is the same, so these points are all there is to know.

    Args:
        format: a name of `FORMATS`.
        low, high: ends of the view, both positive.

    Returns:
        The powers of two, ascending, and the distances.

    Raises:
        ValueError: if the ends are in disorder or not positive.
    """
    if not 0 < low < high:
        raise ValueError(f"low and high must be positive and in order, got {low} and {high}")
    layout = get_format(format)
    smallest = layout.min_subnormal or layout.min_normal
    first, last = math.ceil(math.log2(max(low, smallest))), math.floor(math.log2(min(high, layout.max)))
    powers = [2.0**power for power in range(first, last + 1)]
    beyond = torch.tensor([math.nextafter(power, math.inf) for power in powers], dtype=torch.float64)
    above = neighbours(beyond, layout)[1].tolist()
    kept = [(power, value - power) for power, value in zip(powers, above, strict=True) if math.isfinite(value)]
    return [power for power, _ in kept], [gap for _, gap in kept]


def _row(layout: FloatFormat, number: float, low: float, high: float) -> NumberLineRow:
    if layout.num_bits > _MOST_BITS:
        raise ValueError(f"{layout.name} has {layout.num_codes:,} values; draw formats of at most {_MOST_BITS} bits")
    values = all_values(layout)
    finite = values[values.isfinite()].unique()  # +0 and -0 are one
    seen = finite[(finite >= low) & (finite <= high)].tolist()
    one = torch.tensor([number], dtype=torch.float64)
    below, above = (float(end[0]) for end in neighbours(one, layout))
    rounded = math.nan if math.isnan(number) else float(round_to(one, layout, saturate=True)[0])
    return NumberLineRow(format=layout.name, values=tuple(seen), num_finite=len(finite), rounded=rounded,
                         below=_finite_or_nan(below), above=_finite_or_nan(above))  # fmt: skip


def _finite_or_nan(value: float) -> float:
    return value if math.isfinite(value) else math.nan
