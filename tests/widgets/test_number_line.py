"""The number line shows the values that each small format has, and rounds to the nearest of them."""

import math

import numpy as np
import pytest

from cme295lab.widgets import NumberLine, number_line_figure, number_line_scenario, spacing_figure
from cme295lab.widgets.number_line_scenario import spacings

FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # OCP, table of e2m1


def test_fp4_in_view_is_the_published_table() -> None:
    (row,) = number_line_scenario(number=0.7, low=-7, high=7, formats=["fp4_e2m1"]).rows
    assert row.values == (*(-value for value in reversed(FP4[1:])), *FP4)
    assert (row.num_finite, row.rounded, row.below, row.above, row.gap) == (15, 0.5, 0.5, 1.0, 0.5)


@pytest.mark.parametrize("number", [-5.9, -0.26, 0.0, 0.1, 1.7, 3.4, 27.9])
def test_rounding_goes_to_the_nearest_of_the_values_in_view(number: float) -> None:
    for row in number_line_scenario(number=number, low=-1e5, high=1e5).rows:
        nearest = min(row.values, key=lambda value: abs(value - number))
        assert abs(row.rounded - number) == abs(nearest - number)
        assert len(row.values) == row.num_finite


def test_beyond_the_end_a_number_stays_at_the_largest_value() -> None:
    fp4, *_, fp8 = number_line_scenario(number=1e6, low=0, high=1).rows
    assert (fp4.rounded, fp8.rounded) == (6, 57344)
    assert math.isnan(fp4.gap)


@pytest.mark.parametrize(("name", "dtype"), [("fp16", np.float16), ("fp32", np.float32)])
def test_spacings_are_those_of_numpy(name: str, dtype: type) -> None:
    powers, gaps = spacings(name, low=1e-10, high=1e9)
    assert gaps == [float(np.spacing(dtype(power))) for power in powers]
    assert powers[-1] == (2.0**15 if name == "fp16" else 2.0**29)


def test_widget_follows_its_controls() -> None:
    line = NumberLine(number=100)
    assert line.scenario.number == 4
    line.controls["reach"].value = 2.0
    assert line.scenario.number == 1
    assert list(line.plot.data[0].x) == [-2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2]
    line.controls["number"].value = 120
    assert list(line.plot.data[-2].x) == [1.0, 1.25, 1.25, 1.25, 1.25]
    assert "number 1.2" in line._text.value
    line.controls["axis"].value = "logarithmic"
    assert line.plot.layout.xaxis.type == "log"
    assert min(line.plot.data[4].x) > 0
    assert line.figure().alt_text in repr(line)


def test_pictures_say_in_words_what_they_show() -> None:
    assert "fp4_e2m1 15 of 15, rounds to 1.5" in number_line_figure(number=1.7).alt_text
    assert "rounds" not in number_line_figure().alt_text
    spacing = spacing_figure(["fp16", "bf16"], low=0.5, high=4)
    assert spacing.alt_text == (
        "Distance to the next value. fp16 from 0.5 (next 0.000488 away) to 4 (0.00391); "
        "bf16 from 0.5 (next 0.00391 away) to 4 (0.0312)."
    )
    assert len(spacing.png()) < 100_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"low": 1, "high": 1}, "low must be smaller than high"),
        ({"low": 0, "high": 1, "formats": ["fp16"]}, "65,536 values; draw formats of at most 10 bits"),
        ({"low": 0, "high": 1, "formats": []}, "at least one format"),
        ({"low": 0, "high": 1, "formats": ["fp5"]}, "format must be one of"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        number_line_scenario(number=0.0, **arguments)
    with pytest.raises(ValueError, match="low and high must be positive"):
        spacings("fp16", low=0, high=1)
