"""Approach 2: at equal compute, the loss is a parabola of the logarithm of the size; its bottoms follow a power law.

Train models of many sizes, each for as many tokens as the budget leaves: C = 6 N D. A model that is too small runs out
of capacity, one that is too large out of data; in between lies the best. Near its bottom the curve is a parabola in
log N (in N itself it is lopsided: half the size costs as much as twice the size). Each budget gives the size at its
bottom, and N* ~ C^a is fitted through these.

Far from the bottom the curve is no parabola any more: `window` leaves out what lies further than a factor from the best
run.

A bottom that lies beyond the smallest or the largest model trained is a guess: `bracketed` says so, and the power law
leaves it out.

Source: Hoffmann et al. 2022, §3.2 and Fig. 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cme295lab.scaling.fitting.power_law import FittedFrontier, fit_power_law
from cme295lab.scaling.records import FLOPS_PER_PARAMETER_AND_TOKEN, Allocation, Run, columns

_SAME_BUDGET = 1.15  # runs whose compute differs by less belong to one budget: sizes and steps are whole numbers


@dataclass(frozen=True, kw_only=True)
class IsoFlopCurve:
    """The runs of one budget, and the parabola through them: loss + curvature × (log N - log N*)².

    Args:
        flops: the budget, the geometric mean of the runs'.
        num_parameters: at the bottom.
        loss: at the bottom, nats per token.
        curvature: how fast the loss rises, in nats per squared natural logarithm of the size.
        runs: that it goes through, by size.
    """

    flops: float
    num_parameters: float
    loss: float
    curvature: float
    runs: tuple[Run, ...]

    @property
    def num_tokens(self) -> float:
        """At the bottom: what the budget leaves."""
        return self.flops / (FLOPS_PER_PARAMETER_AND_TOKEN * self.num_parameters)

    @property
    def bracketed(self) -> bool:
        """Whether the bottom lies between the smallest and the largest model."""
        return self.runs[0].num_parameters < self.num_parameters < self.runs[-1].num_parameters

    def loss_at(self, num_parameters: Any) -> Any:
        """The parabola, at a size or an array of sizes."""
        return self.loss + self.curvature * np.log(num_parameters / self.num_parameters) ** 2


@dataclass(frozen=True, kw_only=True)
class IsoFlopFit:
    """Parabolas of all budgets, and the power law through their bottoms.

    Args:
        curves: one per budget, by budget.
        frontier: N* = coefficient × C^a.
    """

    curves: tuple[IsoFlopCurve, ...]
    frontier: FittedFrontier

    @property
    def a(self) -> float:
        """N* ~ C^a."""
        return self.frontier.a

    @property
    def b(self) -> float:
        """D* ~ C^b."""
        return self.frontier.b

    def optimal(self, flops: float) -> Allocation:
        """How to spend a budget; see `FittedFrontier.optimal`."""
        return self.frontier.optimal(flops)


def group_by_budget(runs: Iterable[Run]) -> list[tuple[Run, ...]]:
    """Runs of about equal compute together, budgets in order, and sizes in order within each."""
    ordered = sorted(runs, key=lambda run: run.flops)
    groups: list[list[Run]] = []
    for run in ordered:
        if groups and run.flops <= _SAME_BUDGET * groups[-1][0].flops:
            groups[-1].append(run)
        else:
            groups.append([run])
    return [tuple(sorted(group, key=lambda run: run.num_parameters)) for group in groups]


def fit_parabola(runs: tuple[Run, ...]) -> IsoFlopCurve:
    """The parabola in log N through runs of equal compute.

    Raises:
        ValueError: if there are fewer than three sizes, or the parabola has no bottom.
    """
    size, _, loss = columns(runs)
    flops = math.exp(np.mean([math.log(run.flops) for run in runs]))
    if len(np.unique(size)) < 3:
        raise ValueError(
            f"a parabola needs at least three sizes, the budget of {flops:.3g} FLOP has {len(np.unique(size))}"
        )
    middle = float(np.log(size).mean())  # the square of a logarithm around 20 would lose digits
    square, slope, constant = np.polyfit(np.log(size) - middle, loss, 2)
    if square <= 0:
        raise ValueError(
            f"at {flops:.3g} FLOP the loss has no bottom among the sizes {size.min():.3g} to {size.max():.3g}: train "
            f"smaller and larger models with this budget"
        )
    return IsoFlopCurve(
        flops=flops,
        num_parameters=math.exp(middle - slope / (2 * square)),
        loss=float(constant - slope**2 / (4 * square)),
        curvature=float(square),
        runs=tuple(sorted(runs, key=lambda run: run.num_parameters)),
    )


def _near_best(runs: tuple[Run, ...], window: float | None) -> tuple[Run, ...]:
    """The runs whose size is within a factor of the best one's."""
    if window is None:
        return runs
    if not window > 1:
        raise ValueError(f"window must be a factor above 1, or None for all sizes; got {window!r}")
    best = min(runs, key=lambda run: run.loss).num_parameters
    return tuple(run for run in runs if best / window <= run.num_parameters <= best * window)


def fit_isoflop(runs: Iterable[Run], *, window: float | None = None) -> IsoFlopFit:
    """Approach 2 on runs: a parabola for each budget, and the power law through the bottoms.

    Args:
        runs: of at least two budgets, each with at least three sizes.
        window: use only sizes within this factor of the budget's best run; None uses all.

    Raises:
        ValueError: if the window is no factor above 1, a budget has fewer than three sizes or no bottom, or fewer than
            two budgets have their bottom between the smallest and the largest of their models.

        >>> from cme295lab.scaling.parametric import EPOCH
        >>> sizes = (5e8, 1e9, 2e9, 4e9, 8e9)
        >>> runs = [Run(num_parameters=n, num_tokens=c / 6 / n, loss=EPOCH.loss(n, c / 6 / n), flops=c)
        ...         for c in (3e20, 1e21, 3e21) for n in sizes]
        >>> fit = fit_isoflop(runs)
        >>> round(fit.a, 2), len(fit.curves), f"{fit.curves[1].num_parameters:.1e}"
        (0.51, 3, '2.8e+09')
    """
    curves = tuple(fit_parabola(_near_best(group, window)) for group in group_by_budget(runs))
    inside = [curve for curve in curves if curve.bracketed]
    if len(inside) < 2:
        raise ValueError(
            f"the bottom lies between the smallest and the largest model in {len(inside)} of {len(curves)} budgets "
            f"and a power law needs two: train more sizes"
        )
    budgets = np.array([curve.flops for curve in inside])
    coefficient, exponent = fit_power_law(budgets, np.array([curve.num_parameters for curve in inside]))
    frontier = FittedFrontier(
        coefficient=coefficient,
        a=exponent,
        fitted_flops=(float(budgets.min()), float(budgets.max())),
        name="the fit of parabolas",
    )
    return IsoFlopFit(curves=curves, frontier=frontier)
