"""The parametric fit: finds known constants, agrees with scipy from every start, and shows the early-stopping trap."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime

from cme295lab.scaling import (
    EARLY_STOPPING,
    EPOCH,
    ExtrapolationWarning,
    FitOptions,
    ParametricLaw,
    fit_parametric,
    optimal_allocation,
)
from cme295lab.scaling.fitting.objective import LogRuns, law_of
from cme295lab.scaling.fitting.solver import minimise_all, screen, start_grid

FEW = FitOptions(num_starts=90)


def made_up_runs(law: ParametricLaw = EPOCH, *, noise: float = 0.004, num_runs: int = 240, seed: int = 0):
    """Runs like those of Hoffmann et al.: nine budgets from 6e18 to 3e21, sizes from 50 million to 16 billion."""
    rng = np.random.default_rng(seed)
    flops = np.resize(np.geomspace(6e18, 3e21, 9), num_runs)
    size = np.exp(rng.uniform(np.log(5e7), np.log(1.6e10), num_runs))
    tokens = flops / 6 / size
    return size, tokens, law.loss(size, tokens) * np.exp(rng.normal(0, noise, num_runs))


def log_runs(size: np.ndarray, tokens: np.ndarray, loss: np.ndarray) -> LogRuns:
    return LogRuns(log_parameters=np.log(size), log_tokens=np.log(tokens), log_loss=np.log(loss))


@pytest.mark.parametrize("seed", [0, 1])
def test_gradient_equals_finite_differences(seed: int) -> None:
    runs = log_runs(*made_up_runs(num_runs=17, seed=seed))
    at = np.array([6.1, 7.5, 0.6, 0.34, 0.37]) + 0.03 * np.random.default_rng(seed).normal(size=5)
    _, gradient = runs.value_and_gradient(at)
    numeric = approx_fprime(at, lambda x: runs.value_and_gradient(x)[0], 1e-8)
    assert gradient == pytest.approx(numeric, rel=1e-4, abs=1e-7)


def test_objective_by_hand() -> None:
    """One run that is predicted right, one 0.0005 off (squared), one 0.01 off (linear)."""
    law = ParametricLaw(1.0, 1.0, 1.0, 1.0, 1.0)
    size, tokens = np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 4.0])
    runs = log_runs(size, tokens, law.loss(size, tokens) * np.exp([0, -0.0005, 0.01]))
    value, _ = runs.value_and_gradient(np.array([0.0, 0.0, 0.0, 1.0, 1.0]))
    assert value == pytest.approx(0.5 * 0.0005**2 + 1e-3 * (0.01 - 0.0005))


def test_exact_runs_give_the_constants_back() -> None:
    size, tokens, loss = made_up_runs(noise=0.0, num_runs=50)
    found = fit_parametric(size, tokens, loss, options=FEW)
    for name in ("E", "A", "B", "alpha", "beta"):
        assert getattr(found.law, name) == pytest.approx(getattr(EPOCH, name), rel=1e-3)
    assert found.objective < 1e-12


@settings(max_examples=8, deadline=None)
@given(
    st.floats(0.5, 3.0), st.floats(4, 8), st.floats(5, 9), st.floats(0.25, 0.6), st.floats(0.25, 0.6),
    st.integers(0, 2**16),
)  # fmt: skip
def test_any_law_is_recovered_from_exact_runs(e, a, b, alpha, beta, seed) -> None:
    law = ParametricLaw(e, float(np.exp(a)), float(np.exp(b)), alpha, beta)
    rng = np.random.default_rng(seed)
    size, tokens = np.exp(rng.uniform(10, 20, 40)), np.exp(rng.uniform(12, 22, 40))
    found = fit_parametric(size, tokens, law.loss(size, tokens), options=FEW).law
    assert (found.alpha, found.beta) == (pytest.approx(alpha, abs=2e-3), pytest.approx(beta, abs=2e-3))


def test_batched_fit_finds_the_optimum_that_scipy_finds() -> None:
    """The independent solver: L-BFGS-B with tight tolerances from every 75th start (`make bench` has all 4,500)."""
    size, tokens, loss = made_up_runs(num_runs=24)
    ours = fit_parametric(size, tokens, loss)
    scipys = fit_parametric(
        size, tokens, loss, options=FitOptions(method="scipy", num_starts=60, ftol=1e-12, gtol=1e-8)
    )
    assert ours.num_starts == 4500
    assert ours.objective <= scipys.objective * (1 + 1e-6)
    assert ours.law.a == pytest.approx(scipys.law.a, abs=1e-4)
    assert pytest.approx(scipys.law.E, abs=1e-3) == ours.law.E


def test_screening_reaches_what_all_starts_reach() -> None:
    """All starts walked to their end, against the few that screening keeps."""
    runs = log_runs(*made_up_runs(num_runs=24, seed=3))
    starts = start_grid()[::15]
    _, everyone = minimise_all(runs, starts, max_steps=400)
    _, kept = screen(runs, starts)
    assert len(kept) == 16
    assert kept[0] == pytest.approx(everyone.min(), rel=1e-8)


def test_start_grid_is_the_published_one() -> None:
    grid = start_grid()
    assert grid.shape == (4500, 5)
    assert [sorted(set(column)) for column in grid.T.tolist()] == [
        [0, 5, 10, 15, 20, 25], [0, 5, 10, 15, 20, 25], [-1, -0.5, 0, 0.5, 1], [0, 0.5, 1, 1.5, 2],
        [0, 0.5, 1, 1.5, 2],
    ]  # fmt: skip


def test_trap_scipys_own_tolerances_stop_early_and_the_answer_moves() -> None:
    """Known constants, 0.4 % of noise. Until the optimum: 18 tokens per parameter. Stopped early: 60."""
    size, tokens, loss = made_up_runs(seed=1)
    right, early = fit_parametric(size, tokens, loss, options=FEW), fit_parametric(
        size, tokens, loss, options=EARLY_STOPPING
    )
    assert early.objective > 1.5 * right.objective
    assert right.law.alpha == pytest.approx(EPOCH.alpha, abs=0.01)
    assert abs(early.law.alpha - EPOCH.alpha) > 0.05
    assert right.law.allocate(5.76e23).tokens_per_parameter == pytest.approx(18.4, abs=1.5)
    assert early.law.allocate(5.76e23).tokens_per_parameter > 40
    assert right.num_agreeing > 5
    assert early.num_agreeing < 5  # starts do not even agree with each other


def test_huber_shrugs_off_a_run_that_went_wrong() -> None:
    size, tokens, loss = made_up_runs(noise=0.001, num_runs=60)
    clean = fit_parametric(size, tokens, loss, options=FEW).law
    loss[7] *= 1.5
    robust = fit_parametric(size, tokens, loss, options=FEW).law
    squares = fit_parametric(size, tokens, loss, options=FitOptions(num_starts=90, huber_delta=10.0)).law
    assert robust.alpha == pytest.approx(clean.alpha, abs=0.005)
    assert abs(squares.alpha - clean.alpha) > 5 * abs(robust.alpha - clean.alpha)


def test_bootstrap_intervals_hold_the_truth_and_shrink_with_more_runs() -> None:
    few = fit_parametric(*made_up_runs(num_runs=60), options=FEW, num_bootstrap=200)
    many = fit_parametric(*made_up_runs(num_runs=600), options=FEW, num_bootstrap=200)
    wide, narrow = few.interval("a", percentiles=(5, 95)), many.interval("a", percentiles=(5, 95))
    assert wide[0] < EPOCH.a < wide[1]
    assert narrow[0] < EPOCH.a < narrow[1]
    assert 1.8 < (wide[1] - wide[0]) / (narrow[1] - narrow[0]) < 6  # sqrt(10) = 3.2
    sizes = many.interval(lambda law: law.allocate(1e21).num_parameters)
    assert sizes[0] < many.law.allocate(1e21).num_parameters < sizes[1]


def test_bootstrap_is_the_same_for_the_same_seed() -> None:
    runs = made_up_runs(num_runs=30)
    first, again, other = (
        fit_parametric(*runs, options=FEW, num_bootstrap=20, seed=seed).bootstrap for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_fit_knows_its_range_and_can_be_asked_for_an_allocation() -> None:
    found = fit_parametric(*made_up_runs(num_runs=40), options=FEW, name="made up")
    assert found.law.fitted_flops == (pytest.approx(6e18), pytest.approx(3e21))
    assert optimal_allocation(1e20, found) == found.optimal(1e20)
    assert found.loss(1e9, 2e10) == found.law.loss(1e9, 2e10)
    with pytest.warns(ExtrapolationWarning, match="made up was fitted to"):
        optimal_allocation(1e23, found)


SIZES, TOKENS = [1e7, 2e7, 4e7, 8e7, 1.6e8, 3.2e8], [1e9, 3e9, 2e9, 5e9, 4e9, 9e9]
LOSSES = EPOCH.loss(np.array(SIZES), np.array(TOKENS)).tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SIZES, TOKENS, LOSSES[:-1]), "must be of one length, got num_parameters 6, num_tokens 6, loss 5"),
        ((SIZES[:5], TOKENS[:5], LOSSES[:5]), "five constants need at least six runs, got 5"),
        ((SIZES, TOKENS, [*LOSSES[:-1], float("nan")]), "loss must be positive and finite for every run"),
        (([1e7] * 6, TOKENS, LOSSES), "num_parameters is 1e\\+07 in every run"),
        ((SIZES, [0.0, *TOKENS[1:]], LOSSES), "num_tokens must be positive"),
        (([SIZES], TOKENS, LOSSES), "one per run, got an array of shape"),
    ],
    ids=["lengths", "too few", "diverged", "one size", "no tokens", "table"],
)
def test_fit_refuses_runs_that_say_nothing(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_parametric(*arguments, options=FEW)


def test_fit_refuses_bad_options_and_words() -> None:
    with pytest.raises(TypeError, match="loss must be a list of numbers"):
        fit_parametric(SIZES, TOKENS, "low")
    with pytest.raises(ValueError, match="num_bootstrap must be an int of at least 0"):
        fit_parametric(SIZES, TOKENS, LOSSES, num_bootstrap=-1)
    with pytest.raises(ValueError, match="num_starts must be from 1 to 4500"):
        FitOptions(num_starts=5000)
    with pytest.raises(TypeError, match="num_starts must be an int"):
        FitOptions(num_starts=10.0)
    with pytest.raises(ValueError, match="method must be one of batched, scipy"):
        FitOptions(method="newton")
    with pytest.raises(ValueError, match="ftol must be a positive"):
        FitOptions(ftol=0.0)
    with pytest.raises(ValueError, match="there is no bootstrap"):
        fit_parametric(SIZES, TOKENS, LOSSES, options=FEW).interval("a")
    found = fit_parametric(*made_up_runs(num_runs=20), options=FEW, num_bootstrap=5)
    with pytest.raises(ValueError, match="what must be one of E, A"):
        found.interval("gamma")


def test_law_of_constants_refuses_exponents_that_are_not_positive() -> None:
    with pytest.raises(ValueError, match=r"alpha=-0\.1 and beta=0\.3, and both must be positive"):
        law_of(np.array([1.0, 1.0, 1.0, -0.1, 0.3]), name="x", fitted_flops=(1.0, 2.0))
