"""A power law through points: y = coefficient × x^exponent is a straight line in logarithms."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from cme295lab.scaling.published import Frontier
from cme295lab.scaling.records import Allocation, warn_beyond


@dataclass(frozen=True, kw_only=True)
class FittedFrontier(Frontier):
    """A frontier that was fitted to some budgets.

    Args:
        coefficient, a, name: as of any `Frontier`.
        fitted_flops: smallest and largest budget of the fit.
    """

    fitted_flops: tuple[float, float]

    def optimal(self, flops: float) -> Allocation:
        """The best size and tokens for a budget, FLOP.

        Raises:
            TypeError, ValueError: if the budget is no positive number.

        Warns:
            ExtrapolationWarning: if the budget lies beyond those of the fit.
        """
        found = self.allocate(flops)
        warn_beyond(flops, self.fitted_flops, self.name)
        return found


def fit_power_law(x: Float[np.ndarray, " points"], y: Float[np.ndarray, " points"]) -> tuple[float, float]:
    """(coefficient, exponent) of y = coefficient × x^exponent: least squares of log y against log x.

    Raises:
        ValueError: if there are fewer than two different x, or a number is not positive.

        >>> coefficient, exponent = fit_power_law(np.array([1.0, 10.0, 100.0]), np.array([3.0, 30.0, 300.0]))
        >>> round(coefficient, 6), round(exponent, 6)
        (3.0, 1.0)
    """
    if not ((x > 0).all() and (y > 0).all()):
        raise ValueError("a power law goes through positive points only; some x or y is not positive")
    if len(np.unique(x)) < 2:
        raise ValueError(f"a power law needs at least two different x, got {np.unique(x).tolist()}")
    exponent, intercept = np.polyfit(np.log(x), np.log(y), 1)
    return math.exp(intercept), float(exponent)
