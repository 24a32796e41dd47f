"""Pictures of lab 12: points are the numbers, errors bars of one seed have no length, words say what is seen."""

import math

import pytest
import torch

from cme295lab.finetuning.comparisons import Trial, TrialResult
from cme295lab.widgets import learning_rate_figure, spectra_figure, trials_figure


def result(label: str, learning_rate: float, *losses: float) -> TrialResult:
    return TrialResult(trial=Trial(label=label, learning_rate=learning_rate), num_trainable=1234, losses=losses)


def test_learning_rates_are_sorted_and_the_best_is_named() -> None:
    rows = [
        result("full", 1e-3, 0.5, 0.7), result("full", 1e-4, 1.0, 1.2), result("full", 1e-1, 0.4, math.inf),
        result("LoRA", 1e-2, 0.3),
    ]  # fmt: skip
    picture = learning_rate_figure(rows)
    (axes,) = picture.axes
    line = axes.containers[0].lines[0]
    assert list(line.get_xdata()) == [1e-4, 1e-3]
    assert list(line.get_ydata()) == pytest.approx([1.1, 0.6])
    assert "full 0.001 (loss 0.600); LoRA 0.01 (loss 0.300)" in picture.alt_text
    assert len(picture.png()) < 100_000


def test_trials_are_points_with_errors_and_seeds() -> None:
    picture = trials_figure([result("a", 1.0, 1.0, 3.0), result("b", 1.0, 5.0)], reference=result("full", 1.0, 2.5))
    (axes,) = picture.axes
    assert list(axes.containers[0].lines[0].get_xdata()) == [2.0]
    ends = [segment[:, 0].tolist() for container in axes.containers for segment in container.lines[2][0].get_segments()]
    assert ends == [[1.0, 3.0], [5.0, 5.0]]  # s / √n = √2 / √2 = 1
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a (1,234)", "b (1,234)"]
    assert picture.alt_text == "Loss on held-out data: a 2.000; b 5.000."
    assert len(picture.png()) < 100_000


def test_spectra_say_which_rank_holds_nine_tenths() -> None:
    picture = spectra_figure({"two": torch.diag(torch.tensor([1.0, 3.0])), "four": torch.eye(4)})
    left, right = picture.axes
    assert list(left.lines[0].get_ydata()) == pytest.approx([1, 1 / 3])
    assert list(right.lines[1].get_ydata()) == pytest.approx([0.25, 0.5, 0.75, 1])
    assert "two needs rank 1; four needs rank 4" in picture.alt_text
    assert len(picture.png()) < 100_000


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="results is empty"):
        learning_rate_figure([])
    with pytest.raises(ValueError, match="every run of a diverged"):
        learning_rate_figure([result("a", 1.0, math.inf)])
    with pytest.raises(ValueError, match="results is empty"):
        trials_figure([])
    with pytest.raises(ValueError, match="a diverged"):
        trials_figure([result("a", 1.0, math.inf)])
    with pytest.raises(ValueError, match="other than zero, got z"):
        spectra_figure({"z": torch.zeros(2, 2)})
