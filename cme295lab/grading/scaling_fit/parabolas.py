"""Part 1: the best size at each budget by a parabola in log N, and the power law through these sizes."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from cme295lab.grading.exercise import Property
from cme295lab.grading.observe import refuse_function
from cme295lab.grading.result import Outcome
from cme295lab.grading.scaling_fit.answers import Numbers, Question, answers_property
from cme295lab.scaling import Run, fit_isoflop
from cme295lab.scaling.parametric import ParametricLaw

_NAMES = ("coefficient", "exponent")
_EXACT = "parabolas that are exact give the power law back"
RunTuple = tuple[float, float, float]


def properties(*, seed: int = 0) -> list[Property]:
    """What must hold for `frontier(runs) -> (coefficient, exponent)`, runs of (flops, num_parameters, loss).

    Args:
        seed: of the budgets and sizes.
    """
    exact, real = exact_runs(seed), law_runs(seed)
    shuffled = [real[i] for i in np.random.default_rng(seed).permutation(len(real))]
    return [
        answers_property(_EXACT, [question(exact, "exact parabolas")]),
        answers_property("so it is for losses that follow a law", [question(real, "losses of a law")]),
        answers_property(
            "the order of the runs does not matter", [question(shuffled, "the same, shuffled")], needs=(_EXACT,)
        ),
    ]


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "frontier")


def exact_runs(seed: int) -> list[RunTuple]:
    """Three budgets; at each, losses on a parabola in log N whose bottom is 0.1 C^0.49."""
    shift = np.random.default_rng(seed).uniform(0.5, 2.0)
    runs = []
    for flops in (1e18, 1e19, 1e20):
        best = shift * 0.1 * flops**0.49
        for factor in (0.3, 0.7, 1.2, 4.0):
            loss = 3 - 0.1 * math.log10(flops / 1e18) + 0.04 * math.log(factor) ** 2
            runs.append((flops, best * factor, loss))
    return runs


def law_runs(seed: int) -> list[RunTuple]:
    """Four budgets and six sizes at each, not centred on the best, with losses of a law."""
    rng = np.random.default_rng([seed, 1])
    law = ParametricLaw(1.8, 450 * rng.uniform(0.8, 1.2), 2000 * rng.uniform(0.8, 1.2), 0.35, 0.37)
    runs = []
    for flops in (1e19, 4e19, 1.6e20, 6.4e20):
        best = law.allocate(flops).num_parameters
        for size in best * np.geomspace(0.25, 6.0, 6) * rng.uniform(0.9, 1.1, 6):
            runs.append((flops, float(size), float(law.loss(float(size), flops / 6 / float(size)))))
    return runs


def question(runs: list[RunTuple], what: str) -> Question:
    """The call, its answer, and what mistakes give."""
    fit = fit_isoflop(Run(num_parameters=n, num_tokens=c / 6 / n, loss=loss, flops=c) for c, n, loss in runs)
    return Question(
        call=f"frontier of {len(runs)} runs, {what}",
        arguments={"runs": list(runs)},
        names=_NAMES,
        want=(fit.frontier.coefficient, fit.frontier.a),
        mistakes=tuple(_mistakes(runs)),
        tolerance=1e-4,
    )


def _mistakes(runs: list[RunTuple]) -> list[tuple[str, Numbers]]:
    """What known mistakes give."""
    budgets = np.array(sorted({flops for flops, _, _ in runs}))
    groups = [np.array([(n, loss) for c, n, loss in runs if c == flops]) for flops in budgets]
    bottoms = np.array([_bottom(np.log(group[:, 0]), group[:, 1]) for group in groups])  # logarithms
    lopsided = np.array([_bottom(group[:, 0], group[:, 1]) for group in groups])
    tried = np.array([group[group[:, 1].argmin(), 0] for group in groups])
    slope, intercept = np.polyfit(np.log(budgets), bottoms, 1)
    backwards = np.polyfit(bottoms, np.log(budgets), 1)
    straight = np.polyfit(budgets, np.exp(bottoms), 1)
    tokens = np.polyfit(np.log(budgets), np.log(budgets / 6) - bottoms, 1)
    half = np.array([_bottom(np.log(group[:, 0]), group[:, 1], factor=1.0) for group in groups])
    found: list[tuple[str, Numbers]] = [
        ("that is the best size that was trained: take the bottom of the parabola, which lies between sizes",
         _power_law(budgets, np.log(tried))),
        ("coefficient: the intercept is a natural logarithm, and 10 to its power was taken",
         (_power(10.0, intercept), float(slope))),
        ("coefficient: the intercept is a logarithm to base 10, and e to its power was taken",
         (math.exp(intercept / math.log(10)), float(slope))),
        ("coefficient: that is the intercept, a logarithm: raise e to its power", (float(intercept), float(slope))),
        ("that is C as a power of N: fit log N against log C", (math.exp(backwards[1]), float(backwards[0]))),
        ("that is a straight line through N and C: a power law is one in their logarithms",
         (float(straight[1]), float(straight[0]))),
        ("that is the number of tokens: the size was asked for", (math.exp(tokens[1]), float(tokens[0]))),
        ("the bottom of a x² + b x + c lies at -b / (2 a): the 2 is missing", _power_law(budgets, half)),
    ]  # fmt: skip
    if (lopsided > 0).all():
        cause = "the parabola is one in N: it must be one in log N, where half and twice the size are equally far"
        found.insert(0, (cause, _power_law(budgets, np.log(lopsided))))
    return found


def _bottom(x: np.ndarray, y: np.ndarray, factor: float = 2.0) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a parabola in N is badly conditioned: that is the mistake
        square, slope, _ = np.polyfit(x, y, 2)
    return float(-slope / (factor * square))


def _power_law(budgets: np.ndarray, log_sizes: np.ndarray) -> Numbers:
    slope, intercept = np.polyfit(np.log(budgets), log_sizes, 1)
    return _power(math.e, float(intercept)), float(slope)


def _power(base: float, exponent: float) -> float:
    return math.inf if exponent * math.log(base) > 700 else base**exponent
