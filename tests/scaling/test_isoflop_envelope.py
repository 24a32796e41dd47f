"""Approaches 1 and 2 on made-up runs: the exponents that the law behind them has."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cme295lab.scaling import (
    EPOCH,
    ExtrapolationWarning,
    ParametricLaw,
    Run,
    TrainingCurve,
    fit_envelope,
    fit_isoflop,
)
from cme295lab.scaling.fitting.isoflop import fit_parabola, group_by_budget
from cme295lab.scaling.fitting.power_law import fit_power_law

BUDGETS = np.geomspace(6e18, 3e21, 9)


def runs_of(law: ParametricLaw, budgets=BUDGETS, *, num_sizes: int = 9, spread: float = 8.0) -> list[Run]:
    """Sizes around the best one of each budget."""
    found = []
    for flops in budgets:
        best = law.allocate(float(flops)).num_parameters
        for size in (best * np.geomspace(1 / spread, spread, num_sizes)).tolist():
            loss = float(law.loss(size, flops / 6 / size))
            found.append(Run(num_parameters=size, num_tokens=flops / 6 / size, loss=loss))
    return found


@settings(max_examples=8, deadline=None)
@given(st.floats(0.25, 0.5), st.floats(0.25, 0.5), st.integers(5, 11))
def test_isoflop_finds_the_exponent_of_the_law(alpha: float, beta: float, num_sizes: int) -> None:
    law = ParametricLaw(1.8, 480.0, 2000.0, alpha, beta)
    fit = fit_isoflop(runs_of(law, num_sizes=num_sizes, spread=3))
    assert fit.a == pytest.approx(law.a, abs=0.01)
    assert fit.a + fit.b == pytest.approx(1)
    assert len(fit.curves) == 9
    for curve, flops in zip(fit.curves, BUDGETS, strict=True):
        assert curve.flops == pytest.approx(flops)
        assert curve.num_parameters == pytest.approx(law.allocate(flops).num_parameters, rel=0.1)


def test_parabola_through_three_points_by_hand() -> None:
    """Losses 3 + (log2 N - 20)² / 10 at N = 2^19, 2^20, 2^22."""
    runs = tuple(
        Run(num_parameters=2.0**k, num_tokens=2.0 ** (40 - k), loss=3 + (k - 20) ** 2 / 10) for k in (22, 19, 20)
    )
    curve = fit_parabola(runs)
    assert curve.num_parameters == pytest.approx(2**20)
    assert curve.loss == pytest.approx(3)
    assert curve.curvature == pytest.approx(0.1 / math.log(2) ** 2)
    assert curve.num_tokens == pytest.approx(2**20)
    assert curve.loss_at(np.array([2.0**21])) == pytest.approx([3.1])
    assert curve.bracketed
    assert [run.num_parameters for run in curve.runs] == [2.0**19, 2.0**20, 2.0**22]


def test_runs_whose_compute_is_nearly_equal_are_one_budget() -> None:
    shapes = ((1e6, 1e8), (2e6, 5.1e7), (1e6, 3e8), (4e6, 2.45e7))
    runs = [Run(num_parameters=n, num_tokens=d, loss=3.0) for n, d in shapes]
    groups = group_by_budget(runs)
    assert [[run.num_parameters for run in group] for group in groups] == [[1e6, 2e6, 4e6], [1e6]]


def test_bottom_beyond_the_models_is_left_out_of_the_power_law() -> None:
    runs = runs_of(EPOCH, BUDGETS[:4])
    lopsided = [run for run in runs_of(EPOCH, [1e22]) if run.num_parameters > 1.5 * EPOCH.allocate(1e22).num_parameters]
    fit = fit_isoflop([*runs, *lopsided])
    assert [curve.bracketed for curve in fit.curves] == [True] * 4 + [False]
    assert fit.a == fit_isoflop(runs).a
    with pytest.warns(ExtrapolationWarning, match="the fit of parabolas"):
        fit.optimal(1e22)


def test_isoflop_refuses_budgets_without_a_bottom() -> None:
    with pytest.raises(ValueError, match="needs at least three sizes, the budget of"):
        fit_isoflop([Run(num_parameters=n, num_tokens=1e20 / n, loss=3.0) for n in (1e8, 1e9)])
    hill = [Run(num_parameters=2.0**k, num_tokens=2.0 ** (40 - k), loss=3 - (k - 20) ** 2 / 10) for k in (19, 20, 21)]
    with pytest.raises(ValueError, match="the loss has no bottom among the sizes"):
        fit_isoflop(hill)
    with pytest.raises(ValueError, match="in 1 of 1 budgets"):
        fit_isoflop(runs_of(EPOCH, BUDGETS[:1]))


def curves_of(law: ParametricLaw, *, num_sizes: int = 25) -> list[TrainingCurve]:
    """Runs whose every point is as low as a run planned to end there: no schedule to spoil the middle."""
    tokens = np.geomspace(1e8, 1e12, 400)
    return [
        TrainingCurve(num_parameters=size, num_tokens=tokens, loss=law.loss(size, tokens))
        for size in np.geomspace(5e7, 2e10, num_sizes).tolist()
    ]


def test_envelope_finds_the_exponent_of_the_law() -> None:
    fit = fit_envelope(curves_of(EPOCH))
    assert fit.a == pytest.approx(EPOCH.a, abs=0.02)
    low, high = fit.frontier.fitted_flops
    middle = math.sqrt(low * high)
    assert fit.optimal(middle).num_parameters == pytest.approx(EPOCH.allocate(middle).num_parameters, rel=0.1)
    assert (fit.loss >= EPOCH.E).all()
    assert set(fit.num_parameters) <= {curve.num_parameters for curve in curves_of(EPOCH)[1:-1]}


def test_envelope_of_runs_with_one_long_schedule_advises_larger_models() -> None:
    """Before its learning rate falls a run is worse than one planned to end there: here by up to 0.1 nats."""
    spoiled = [
        TrainingCurve(
            num_parameters=curve.num_parameters,
            num_tokens=curve.num_tokens,
            loss=curve.loss + 0.1 * (1 - np.log(curve.num_tokens / 1e8) / np.log(1e4)),
        )
        for curve in curves_of(EPOCH)
    ]
    flops = 1e20
    right, wrong = (fit_envelope(curves).optimal(flops) for curves in (curves_of(EPOCH), spoiled))
    assert wrong.num_parameters != pytest.approx(right.num_parameters, rel=0.1)


def test_curve_is_interpolated_over_log_compute_and_ends_where_it_ends() -> None:
    curve = TrainingCurve(num_parameters=1e6, num_tokens=np.array([1e6, 1e8]), loss=np.array([4.0, 3.0]))
    assert curve.flops.tolist() == [6e12, 6e14]
    assert curve.loss_at(np.array([6e12, 6e13, 6e14, 7e14])).tolist() == [4.0, 3.5, 3.0, math.inf]


def test_envelope_refuses_what_it_cannot_use() -> None:
    with pytest.raises(ValueError, match="curves of at least three sizes, got 2"):
        fit_envelope(curves_of(EPOCH)[:2])
    with pytest.raises(ValueError, match="num_budgets must be at least 2"):
        fit_envelope(curves_of(EPOCH), num_budgets=1)
    with pytest.raises(ValueError, match="fewer than two sizes between the smallest and the largest"):
        fit_envelope(curves_of(EPOCH)[::12])
    with pytest.raises(ValueError, match="as many losses as numbers of tokens"):
        TrainingCurve(num_parameters=1e6, num_tokens=np.array([1.0, 2.0]), loss=np.array([3.0]))
    with pytest.raises(ValueError, match="grow along a curve"):
        TrainingCurve(num_parameters=1e6, num_tokens=np.array([2.0, 1.0]), loss=np.array([3.0, 2.0]))


def test_power_law_refuses_what_has_no_logarithm_or_one_point() -> None:
    with pytest.raises(ValueError, match="positive points only"):
        fit_power_law(np.array([1.0, 2.0]), np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"at least two different x, got \[2\.0\]"):
        fit_power_law(np.array([2.0, 2.0]), np.array([1.0, 1.0]))
