"""A power law through points: y = coefficient × x^exponent is a straight line in logarithms."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from cme295lab.scaling.records import FLOPS_PER_PARAMETER_AND_TOKEN, Allocation, check_positive, warn_beyond


@dataclass(frozen=True, kw_only=True)
class FittedFrontier:
    """The best size for a budget, N* = coefficient × C^a, fitted to some budgets; the tokens are what is left.

    Args:
        coefficient: parameters at 1 FLOP.
        a: exponent of the size.
        fitted_flops: smallest and largest budget of the fit.
        name: of the method.
    """

    coefficient: float
    a: float
    fitted_flops: tuple[float, float]
    name: str

    @property
    def b(self) -> float:
        """Exponent of the tokens, 1 - a."""
        return 1 - self.a

    def optimal(self, flops: float) -> Allocation:
        """The best size and tokens for a budget, FLOP.

        Raises:
            TypeError, ValueError: if the budget is no positive number.

        Warns:
            ExtrapolationWarning: if the budget lies beyond those of the fit.
        """
        check_positive("flops", flops)
        warn_beyond(flops, self.fitted_flops, self.name)
        size = self.coefficient * flops**self.a
        tokens = flops / (FLOPS_PER_PARAMETER_AND_TOKEN * size)
        return Allocation(flops=flops, num_parameters=size, num_tokens=tokens, law=self.name)


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
