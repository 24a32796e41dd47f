"""The exercise on scaling laws: right answers of several kinds are accepted, and mistakes are named."""

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize

from cme295lab import scaling
from cme295lab.grading import checks
from cme295lab.grading.result import Kind
from cme295lab.grading.scaling_fit import fitting, optimum, parabolas
from cme295lab.scaling import EPOCH
from tests.grading.students import Student, assert_refused, student, written

GIVEN = {
    "np": np, "itertools": itertools, "minimize": minimize, "scaling": scaling,
}  # fmt: skip

POLYFIT = "a, b, _ = np.polyfit(np.log(sizes), losses, 2)"
BOTTOM = "bottoms.append(np.exp(-b / (2 * a)))"
LINE = "slope, intercept = np.polyfit(np.log(budgets), np.log(bottoms), 1)"
FRONTIER = "return math.exp(intercept), slope"
RIGHT_FRONTIERS = [
    student("the solution"),
    student("logarithms to base 10", POLYFIT, POLYFIT.replace("np.log", "np.log10"), BOTTOM,
            "bottoms.append(10 ** (-b / (2 * a)))", LINE, LINE.replace("np.log", "np.log10"), FRONTIER,
            "return 10**intercept, slope"),
]  # fmt: skip
WRONG_FRONTIERS = [
    student("a parabola in N", POLYFIT, POLYFIT.replace("np.log(sizes)", "sizes"), BOTTOM,
            "bottoms.append(-b / (2 * a))", says="the parabola is one in N"),
    student("the best run", BOTTOM, "bottoms.append(sizes[np.argmin(losses)])", says="best size that was trained"),
    student("10 to a natural logarithm", FRONTIER, "return 10**intercept, slope", says="10 to its power was taken"),
    student("e to a logarithm of base 10", LINE, LINE.replace("np.log", "np.log10"), says="e to its power was taken"),
    student("the intercept itself", FRONTIER, "return intercept, slope", says="raise e to its power"),
    student("C against N", LINE, "slope, intercept = np.polyfit(np.log(bottoms), np.log(budgets), 1)",
            says="that is C as a power of N"),
    student("no logarithms", LINE, "slope, intercept = np.polyfit(budgets, bottoms, 1)", FRONTIER,
            "return intercept, slope", says="a straight line through N and C"),
    student("tokens", LINE, LINE.replace("bottoms", "np.array(budgets) / 6 / bottoms"),
            says="the number of tokens"),
    student("half of the bottom", BOTTOM, "bottoms.append(np.exp(-b / a))", says="the 2 is missing"),
    student("one number", FRONTIER, "return slope", kind=Kind.WRONG_SHAPE, says="return 2 numbers", at_most=0.0),
    student("not attempted", FRONTIER, "raise NotImplementedError()", kind=Kind.NOT_ATTEMPTED, at_most=0.0),
]  # fmt: skip

SIZE = "num_parameters = G * (flops / 6) ** a"
TOKENS = "num_tokens = (flops / 6) ** b / G"
RIGHT_OPTIMA = [
    student("the solution"),
    student("tokens from the budget", TOKENS, "num_tokens = flops / 6 / num_parameters"),
]
WRONG_OPTIMA = [
    student("no 6", "(flops / 6)", "flops", says="the 6 is forgotten"),
    student("no 6 in the tokens", TOKENS, "num_tokens = flops / num_parameters", says="6 is forgotten in the tokens"),
    student("no 6 in the size", SIZE, "num_parameters = G * flops ** a", TOKENS,
            "num_tokens = flops / 6 / num_parameters", says="6 is forgotten in the size"),
    student("alpha and beta swapped", "a = beta", "a = alpha", "b = alpha /", "b = beta /",
            says="alpha and beta are swapped in the exponents"),
    student("G upside down", "alpha * A / (beta * B)", "beta * B / (alpha * A)", says="G is upside down"),
    student("no G", "G = (alpha * A / (beta * B)) ** (1 / (alpha + beta))", "G = 1.0", says="G is missing"),
    student("no root", " ** (1 / (alpha + beta))", "", says="the exponent 1 / (alpha + beta) is missing"),
    student("swapped in G", "alpha * A / (beta * B)", "beta * A / (alpha * B)", says="in G, alpha and beta"),
    student("size and tokens swapped", "return num_parameters, num_tokens", "return num_tokens, num_parameters",
            says="size and tokens are swapped"),
    student("twenty tokens per parameter", SIZE, "num_parameters = (flops / 120) ** 0.5", TOKENS,
            "num_tokens = 20 * num_parameters", says="20 tokens per parameter"),
    student("no E", "loss = E + ", "loss = ", says="the loss lacks E"),
    student("a swapped loss", "num_parameters**alpha + B / num_tokens**beta",
            "num_parameters**beta + B / num_tokens**alpha", says="the loss has alpha and beta swapped"),
    student("a crash", "b = alpha / (alpha + beta)", "b = alpha / 0", kind=Kind.CRASHED, at_most=0.0),
]  # fmt: skip

HUBER = "np.sum(np.where(error <= 1e-3, error**2 / 2, 1e-3 * (error - 0.5e-3)))"
OPTIONS = 'options = {"ftol": 1e-13, "gtol": 1e-9, "maxfun": 15_000}'
CONSTANTS = "return math.exp(e), math.exp(a), math.exp(b), alpha, beta"
MINIMISE = 'minimize(objective, start, method="L-BFGS-B", options=options)'
RIGHT_FITS = [
    student("the solution"),
    student("the course's own", "### BEGIN SOLUTION",
            "options = scaling.FitOptions(num_starts=90)\n"
            "    law = scaling.fit_parametric(num_parameters, num_tokens, losses, options=options).law\n"
            "    return law.E, law.A, law.B, law.alpha, law.beta"),
]  # fmt: skip
WRONG_FITS = [
    student("scipy's tolerances on a mean", "1e6 * np.sum", "np.mean", OPTIONS, "options = {}",
            says="it stopped early"),
    student("ten steps", OPTIONS, 'options = {"maxiter": 10}', says=("it stopped early", "smaller ftol")),
    student("squares", HUBER, "np.sum(error**2)", says="squared error of log loss"),
    student("squares of the loss", "np.logaddexp.reduce(terms) - log_loss",
            "np.exp(np.logaddexp.reduce(terms)) - losses", HUBER, "np.sum(error**2)", "(0.3, 0.6)", "(0.3,)",
            says="squared error of the loss itself"),
    student("logarithms come back", CONSTANTS, "return e, a, b, alpha, beta", says="still logarithms"),
    student("powers of ten", CONSTANTS, "return 10**e, 10**a, 10**b, alpha, beta", says="powers of 10"),
    student("alpha and beta swapped", CONSTANTS, CONSTANTS.replace("alpha, beta", "beta, alpha"),
            says="alpha and beta are swapped"),
    student("terms swapped", "a - alpha * log_size, b - beta * log_tokens",
            "a - alpha * log_tokens, b - beta * log_size", says="the terms of size and tokens are swapped"),
    student("no E", ", np.full_like(log_size, e)]", "]", CONSTANTS, CONSTANTS.replace("math.exp(e)", "0.0"),
            says="E is missing"),
    student("another order", CONSTANTS, "return math.exp(a), math.exp(b), math.exp(e), alpha, beta",
            says="the order is E, A, B"),
    student("four numbers", CONSTANTS, "return math.exp(a), math.exp(b), alpha, beta", kind=Kind.WRONG_SHAPE,
            says="return 5 numbers", at_most=0.0),
]  # fmt: skip

COST = "cost = 6 * num_parameters * num_tokens + 2 * num_parameters * served_tokens"
SOLVE = "num_tokens = (B / left) ** (1 / beta)"
GRID = "np.geomspace(1e6, 1e14, 4000)"
RIGHT_PLANS = [
    student("the solution"),
    student("the course's own", "### BEGIN SOLUTION",
            "plan = scaling.cheapest_to_serve(loss, served_tokens, scaling.ParametricLaw(E, A, B, alpha, beta))\n"
            "    return plan.num_parameters, plan.num_tokens"),
]  # fmt: skip
WRONG_PLANS = [
    student("serving left out", COST, "cost = 6 * num_parameters * num_tokens", says="serving costs is left out"),
    student("serving costs 6", COST, COST.replace("2 *", "6 *"), says="costs 2 N, one that is trained on 6 N"),
    student("training costs 2", COST, COST.replace("6 *", "2 *"), says="costs 2 N, one that is trained on 6 N"),
    student("serving costs 1", COST, COST.replace("2 *", "1 *"), says="a multiplication and an addition"),
    student("training left out", COST, "cost = 2 * num_parameters * served_tokens + num_parameters",
            says="its training is left out"),
    student("E forgotten", "left = loss - E -", "left = loss -", says="E is forgotten where D is solved for"),
    student("the exponent upside down", SOLVE, "num_tokens = (B / left) ** beta", says="upside down"),
    student("twenty tokens", "return best[1], best[2]", "return best[1], 20 * best[1]", says="do not reach the loss"),
    student("swapped", "return best[1], best[2]", "return best[2], best[1]", says="size and tokens are swapped"),
    student("a coarse grid", GRID, "np.geomspace(1e6, 1e14, 60)", says="a per cent apart"),
    student("the size alone", "return best[1], best[2]", "return best[1]", kind=Kind.WRONG_SHAPE, at_most=0.0),
]  # fmt: skip

PARTS = {
    "1": ("frontier", "frontier", RIGHT_FRONTIERS, WRONG_FRONTIERS, {"seed": 295}),
    "2": ("allocate", "allocate", RIGHT_OPTIMA, WRONG_OPTIMA, {"flops": 3.8e25, "alpha": 0.45, "beta": 0.2}),
    "3": ("fit_law", "fit_law", RIGHT_FITS, WRONG_FITS, {"seed": 295}),
    "4": ("cheapest", "cheapest", RIGHT_PLANS, WRONG_PLANS, {"loss": 2.15, "served": 3e12}),
}
ACCEPTED = [(part, made) for part, (_, _, right, _, _) in PARTS.items() for made in right]
REJECTED = [(part, made) for part, (_, _, _, wrong, _) in PARTS.items() for made in wrong]


FEW_STARTS = ("(5, 10), (5, 10), (0.5,), (0.3, 0.6)", "(5,), (5, 10), (0.5,), (0.3,)")  # which the mistakes do not need


def function_of(part: str, made: Student):
    cell, name, _, right, _ = PARTS[part]
    few = [FEW_STARTS] if part == "3" and made not in right else []
    return written("scaling_fit", cell, *few, *made.changes, given=GIVEN)[name]


@pytest.mark.parametrize(("part", "made"), ACCEPTED, ids=str)
def test_scaling_checks_accept_right_answers(part: str, made: Student) -> None:
    for options in ({}, PARTS[part][4]):
        result = checks.run(f"scaling_fit/{part}", function_of(part, made), **options)
        assert result.passed, result.message


@pytest.mark.parametrize(("part", "made"), REJECTED, ids=str)
def test_scaling_checks_name_the_mistake(part: str, made: Student) -> None:
    result = checks.run(f"scaling_fit/{part}", function_of(part, made))
    assert_refused(result, made)


def test_a_law_that_stopped_early_fails_where_it_is_extrapolated() -> None:
    """The constants of a real early stop: the objective is too high, and the loss at 1e24 FLOP is off."""
    (early,) = (made for made in WRONG_FITS if made.name == "scipy's tolerances on a mean")
    result = checks.run("scaling_fit/3", function_of("3", early))
    failed = [outcome.name for outcome in result.outcomes if not outcome.passed]
    assert "the law reaches 300 times beyond the runs" in failed
    assert "going on from your constants, the objective falls from" in result.message


def test_every_listed_mistake_gives_a_wrong_answer() -> None:
    """A cause that only ever gives the right numbers could never be named."""
    questions = [
        parabolas.question(parabolas.exact_runs(0), "exact"), parabolas.question(parabolas.law_runs(0), "law"),
        optimum.question(5.76e23, EPOCH),
    ]  # fmt: skip
    for question in questions:
        for cause, numbers in question.mistakes:
            assert numbers != pytest.approx(question.want, rel=question.tolerance), cause


def test_task_of_the_fit_is_the_same_for_the_same_seed_and_has_three_bad_runs() -> None:
    first, again = (fitting.make_task(5, noise=0.003) for _ in range(2))
    assert np.array_equal(first.losses, again.losses)
    errors = np.abs(first.log_runs.errors(fitting.theta_of(first.best)[None])[0][0])
    assert np.flatnonzero(errors > 0.1).tolist() == [7, 23, 41]
