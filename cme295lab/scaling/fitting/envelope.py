"""Approach 1: follow many training curves, and see which model is lowest at each budget.

A run of N parameters has spent 6 N D after D tokens: its training curve is a curve over compute. Take all sizes
together; at each of many budgets one of them is lowest. Its N and D, against the budget, follow power laws.

Two warnings come with the method. In the middle of a run the learning rate has not fallen yet, so the loss there is
higher than that of a run planned to end there: Hoffmann et al. train each size with four lengths of schedule, and so
should you; this mistake is the main reason why Kaplan et al. advise larger models. And where the smallest or the
largest model wins, the true winner may lie outside: such budgets are left out.

Source: Hoffmann et al. 2022, §3.1 and Fig. 2; 1,500 budgets, spaced evenly in the logarithm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from cme295lab.scaling.fitting.power_law import FittedFrontier, fit_power_law
from cme295lab.scaling.records import FLOPS_PER_PARAMETER_AND_TOKEN, Allocation, check_positive


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingCurve:
    """The loss of one run as it was trained.

    Args:
        num_parameters: of the model.
        num_tokens: seen so far, growing.
        loss: then, in nats per token; smooth it first if it is noisy.

    Raises:
        ValueError: if there are fewer than two points, tokens do not grow, or a number is not positive.
    """

    num_parameters: float
    num_tokens: Float[np.ndarray, " points"]
    loss: Float[np.ndarray, " points"]

    def __post_init__(self) -> None:
        check_positive("num_parameters", self.num_parameters)
        if len(self.num_tokens) != len(self.loss) or len(self.loss) < 2:
            raise ValueError(
                f"a curve needs as many losses as numbers of tokens, at least two; got {len(self.loss)} and "
                f"{len(self.num_tokens)}"
            )
        if not ((np.diff(self.num_tokens) > 0).all() and self.num_tokens[0] > 0 and (self.loss > 0).all()):
            raise ValueError("num_tokens must be positive and grow along a curve, and losses be positive")

    @property
    def flops(self) -> Float[np.ndarray, " points"]:
        """Compute spent so far, 6 N D."""
        return FLOPS_PER_PARAMETER_AND_TOKEN * self.num_parameters * self.num_tokens

    def loss_at(self, flops: Float[np.ndarray, " budgets"]) -> Float[np.ndarray, " budgets"]:
        """The loss at budgets, interpolated over log compute; infinite where the curve does not reach."""
        return np.interp(np.log(flops), np.log(self.flops), self.loss, left=np.inf, right=np.inf)


@dataclass(frozen=True, kw_only=True, eq=False)
class EnvelopeFit:
    """The lowest curve at each budget, and the power law through the winners.

    Args:
        flops: budgets at which an inner size wins.
        num_parameters, loss: of the winner.
        frontier: N* = coefficient × C^a.
    """

    flops: Float[np.ndarray, " budgets"]
    num_parameters: Float[np.ndarray, " budgets"]
    loss: Float[np.ndarray, " budgets"]
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


def fit_envelope(curves: Sequence[TrainingCurve], *, num_budgets: int = 1500) -> EnvelopeFit:
    """Approach 1 on training curves.

    Args:
        curves: of at least three sizes; several per size, with schedules of different length, are better.
        num_budgets: at which to look, spaced evenly in the logarithm.

    Raises:
        ValueError: if there are fewer than three sizes, or inner sizes win at fewer than two budgets or all with one
            size.
    """
    sizes = sorted({curve.num_parameters for curve in curves})
    if len(sizes) < 3:
        raise ValueError(f"an envelope needs curves of at least three sizes, got {len(sizes)}")
    if num_budgets < 2:
        raise ValueError(f"num_budgets must be at least 2, got {num_budgets}")
    first, last = min(curve.flops[0] for curve in curves), max(curve.flops[-1] for curve in curves)
    budgets = np.geomspace(first, last, num_budgets)
    losses = np.stack([curve.loss_at(budgets) for curve in curves])  # (curves, budgets)
    winner = losses.argmin(axis=0)
    size, lowest = np.array([curve.num_parameters for curve in curves])[winner], losses.min(axis=0)
    inner = np.isfinite(lowest) & (size > sizes[0]) & (size < sizes[-1])
    if len(np.unique(size[inner])) < 2:
        raise ValueError(
            "fewer than two sizes between the smallest and the largest are lowest anywhere: train more sizes, or longer"
        )
    coefficient, exponent = fit_power_law(budgets[inner], size[inner])
    frontier = FittedFrontier(
        coefficient=coefficient,
        a=exponent,
        fitted_flops=(float(budgets[inner].min()), float(budgets[inner].max())),
        name="the fit of the envelope",
    )
    return EnvelopeFit(flops=budgets[inner], num_parameters=size[inner], loss=lowest[inner], frontier=frontier)
