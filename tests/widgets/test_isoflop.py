"""Iso-FLOP curves of runs made by a known law: the fit finds it, larger budgets held back or not."""

import math

import pytest

from cme295lab.scaling import Run
from cme295lab.widgets import IsoFlopExplorer, isoflop_scenario

BUDGETS = (1e12, 3e12, 1e13, 3e13)


def best_size(flops: float) -> float:
    return 30 * (flops / 1e10) ** 0.5 * 1000


def made_by_a_law(
    budgets: tuple[float, ...] = BUDGETS, factors: tuple[float, ...] = (0.25, 0.5, 1, 2, 4)
) -> list[Run]:
    """The loss is a parabola around the best size, which grows as the square root of the budget."""
    runs = []
    for flops in budgets:
        for factor in factors:
            size = factor * best_size(flops)
            loss = 3 + (1e12 / flops) ** 0.1 + 0.05 * math.log(factor) ** 2
            runs.append(Run(num_parameters=size, num_tokens=flops / 6 / size, loss=loss))
    return runs


def test_fit_finds_the_law_and_holds_the_larger_budgets_back() -> None:
    found = isoflop_scenario(runs=made_by_a_law(), num_budgets=2, flops=1e14)
    assert found.fit.a == pytest.approx(0.5)
    assert found.prediction.num_parameters == pytest.approx(best_size(1e14))
    assert [curve.flops for curve in found.held_back] == pytest.approx([1e13, 3e13])
    assert found.reach == pytest.approx(1e14 / 3e12)


def test_explorer_follows_its_sliders_and_never_fits_the_outcome() -> None:
    outcome = Run(num_parameters=9e6, num_tokens=1e14 / 6 / 9e6, loss=2.9)
    explorer = IsoFlopExplorer(made_by_a_law(), outcome=outcome)
    assert explorer.controls["flops"].value == pytest.approx(1e14)
    assert explorer.scenario.fit.a == pytest.approx(0.5)
    assert explorer.scenario.held_back == ()
    explorer.controls["num_budgets"].value = 3
    unseen = explorer.plot.data[3 * len(BUDGETS) + 2]
    assert list(unseen.x) == pytest.approx([3e13])
    assert "held back" in explorer._text.value
    star = explorer.plot.data[3 * len(BUDGETS) + 3]
    assert list(star.y) == pytest.approx([best_size(1e14)])
    picture = explorer.figure()
    assert "Trained afterwards: 9 M parameters, loss 2.900" in picture.alt_text
    assert picture.alt_text in repr(explorer)
    assert len(picture.png()) < 100_000


def test_bottom_beyond_the_runs_is_called_a_guess_and_two_sizes_are_left_out() -> None:
    runs = [*made_by_a_law((1e12, 1e13)), *made_by_a_law((3e13,), (0.5, 2))]
    explorer = IsoFlopExplorer(runs)
    assert len(explorer.groups) == 2
    assert "a guess" not in explorer._text.value
    explorer = IsoFlopExplorer([*runs, *made_by_a_law((1e14,), (1 / 16, 1 / 8, 1 / 4))])
    assert explorer._text.value.count("a guess") == 1


def test_too_few_budgets_are_refused() -> None:
    with pytest.raises(ValueError, match="2 budgets of 3 sizes"):
        IsoFlopExplorer(made_by_a_law((1e12,)))
    with pytest.raises(ValueError, match="num_budgets must be 2 to 4"):
        isoflop_scenario(runs=made_by_a_law(), num_budgets=5, flops=1e14)
