"""Pictures of 16-bit training say in words what they show, and refuse what they cannot draw."""

import math

import pytest

from cme295lab.precision.mixed_precision import StepRecord
from cme295lab.widgets import policy_losses, scale_trace


def records(*losses: float, scale: float = 1.0, skipped: tuple[int, ...] = ()) -> list[StepRecord]:
    return [
        StepRecord(step=step, loss=loss, scale=scale / 2**step, skipped=step in skipped, gradient_norm=1.0)
        for step, loss in enumerate(losses, 1)
    ]


def test_losses_and_distances_are_drawn_for_each_policy() -> None:
    picture = policy_losses({"fp32": records(8, 7, 6), "pure-fp16": records(8, 7.5), "bf16-mixed": records(8, 7, 6.25)})
    losses, distances = picture.axes
    assert [line.get_label() for line in losses.lines] == ["fp32", "pure-fp16", "bf16-mixed"]
    assert list(losses.lines[0].get_ydata()) == [8, 7.5, 7]  # running means
    assert list(distances.lines[0].get_ydata()) == [1e-6, 0.25]  # no distance is drawn at the lowest place of the axis
    assert list(distances.lines[1].get_ydata()) == pytest.approx([1e-6, 1e-6, 0.25 / 3])
    assert "pure-fp16 7.500 after 2 steps" in picture.alt_text
    assert len(picture.png()) < 120_000


def test_a_mean_reaches_eight_steps_back() -> None:
    picture = policy_losses({"fp32": records(*[9.0] * 8, 1.0)})
    assert list(picture.axes[0].lines[0].get_ydata()) == [9.0] * 8 + [8.0]


def test_scale_and_skipped_steps_are_drawn() -> None:
    picture = scale_trace(records(8, 7, 6, 5, scale=2.0**10, skipped=(1, 3)))
    (axes,) = picture.axes
    assert list(axes.lines[0].get_ydata()) == [9, 8, 7, 6]
    assert list(axes.lines[1].get_xdata()) == [1, 3]
    assert picture.alt_text == "Loss scale over 4 steps: from 2^9 to 2^6, 2 of them skipped."


def test_a_loss_that_is_not_a_number_can_be_drawn() -> None:
    picture = policy_losses({"fp32": records(8, 7), "pure-fp16": records(8, math.nan)})
    assert "pure-fp16 nan after 2 steps" in picture.alt_text
    assert len(picture.png()) < 120_000


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="reference must be one of bf16-mixed, got 'fp32'"):
        policy_losses({"bf16-mixed": records(1)})
    with pytest.raises(ValueError, match="there is none for pure-fp16"):
        policy_losses({"fp32": records(1), "pure-fp16": []})
    with pytest.raises(ValueError, match="records is empty"):
        scale_trace([])
