"""The loss-scale scenario against gradients whose fate is known, and the explorer's pictures of it."""

import pytest
import torch

from cme295lab.widgets import LossScaleExplorer, loss_scale_scenario
from cme295lab.widgets.loss_scale_explorer import bars, headline, zones

GRADIENTS = {
    "small": torch.tensor([2.0**-30, -(2.0**-26), 2.0**-25, 2.0**-20]),  # to zero but for the last
    "large": torch.tensor([0.0, 1.0, -3.0, 0.5]),
}


def test_shares_follow_the_scale() -> None:
    found = loss_scale_scenario(gradients=GRADIENTS)
    assert (found.row.num_values, found.row.num_zero, found.row.num_flushed, found.row.num_subnormal) == (8, 1, 3, 1)
    assert not found.step_is_skipped
    scaled = loss_scale_scenario(gradients=GRADIENTS, power=6)  # 2^-30 is 2^-24 then, 2^-20 is the first normal number
    assert (scaled.row.num_flushed, scaled.row.num_subnormal, scaled.unscaled.num_flushed) == (0, 3, 3)
    assert scaled.histogram.exponents[0] == -24


@pytest.mark.parametrize(("power", "skipped"), [(14, False), (15, True)])
def test_largest_power_is_the_last_without_an_overflow(power: int, skipped: bool) -> None:
    found = loss_scale_scenario(gradients=GRADIENTS, power=power)  # 3 · 2^14 = 49,152; 3 · 2^15 is beyond 65,504
    assert found.largest_power == 14
    assert found.step_is_skipped is skipped
    assert found.row.num_overflowed == int(skipped)


@pytest.mark.parametrize(
    ("format", "edges"),
    [("fp16", (-25, -14, 16)), ("bf16", (-134, -126, 128)), ("fp8_e5m2", (-17, -14, 16)), ("fp8_e4m3fn", (-10, -6, 9))],
)
def test_edges_are_those_of_the_published_table(format: str, edges: tuple[int, int, int]) -> None:
    found = loss_scale_scenario(gradients=GRADIENTS, format=format)
    assert (found.flush_exponent, found.normal_exponent, found.overflow_exponent) == edges


def test_one_tensor_and_zero_gradients() -> None:
    alone = loss_scale_scenario(gradients=GRADIENTS, tensor="large")
    assert (alone.row.num_values, alone.row.num_flushed) == (4, 0)
    nothing = loss_scale_scenario(gradients={"zero": torch.zeros(3)})
    assert nothing.largest_power is None
    assert "no scale changes that" in headline(nothing)
    with pytest.raises(ValueError, match=r"tensor must be 'all tensors' or one of small, large; got 'midle'"):
        loss_scale_scenario(gradients=GRADIENTS, tensor="midle")


def test_explorer_moves_bars_and_keeps_the_range() -> None:
    explorer = LossScaleExplorer(GRADIENTS)
    plot = explorer.plot
    before, range_before = list(plot.data[0].x), [(shape.x0, shape.x1) for shape in plot.layout.shapes]
    assert range_before == [(-48, -25), (-25, -14), (-14, 16), (16, 24)]
    explorer.controls["power"].value = 3
    assert list(plot.data[0].x) == [middle + 3 for middle in before]
    assert sum(plot.data[0].y) == pytest.approx(100 * 7 / 8)  # a zero has no place in it
    assert [(shape.x0, shape.x1) for shape in plot.layout.shapes] == range_before
    explorer.controls["format"].value = "bf16"
    assert [(shape.x0, shape.x1) for shape in plot.layout.shapes] == zones(explorer.scenario)
    assert "0.00% of the gradients are lost to zero" in explorer._text.value
    explorer.controls["format"].value = "fp16"
    explorer.controls["power"].value = 20
    assert "3 values are infinite: the step is skipped" in explorer._text.value
    picture = explorer.figure()
    assert picture.alt_text in repr(explorer)
    assert len(picture.png()) < 100_000


def test_what_lies_outside_the_picture_is_in_its_outermost_bars() -> None:
    found = loss_scale_scenario(gradients={"tiny": torch.tensor([2.0**-100, 2.0**-48, 2.0**100, 1.0])})
    assert dict(zip(*bars(found))) == {-47.5: 50.0, 0.5: 25.0, 23.5: 25.0}


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="power must be one of"):
        LossScaleExplorer(GRADIENTS, power=99)
    with pytest.raises(ValueError, match="call backward"):
        LossScaleExplorer(torch.nn.Linear(2, 2))
