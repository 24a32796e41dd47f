"""Plain records that laws, fits and the sweep exchange: a training run, a table of runs, and how to spend a budget.

Units everywhere in this room: parameters and tokens are counts, compute is in FLOP (a multiply-add is two), a loss is
in nats per token. Training compute is 6 × parameters × tokens unless a run says otherwise.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

FLOPS_PER_PARAMETER_AND_TOKEN = 6.0  # 2 forward, 4 backward
PF_DAY_FLOPS = 1e15 * 86_400  # one PFLOP/s for a day
Column = Float[np.ndarray, " runs"]


class ExtrapolationWarning(UserWarning):
    """A law is asked beyond the runs that it was fitted to."""


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """How to spend a budget of compute.

    Args:
        flops: the budget, FLOP.
        num_parameters: of the model that it should train; a real number, as laws give it.
        num_tokens: to train it on.
        loss: that the law predicts, in nats per token; None where the law predicts none.
        law: whose advice this is.
    """

    flops: float
    num_parameters: float
    num_tokens: float
    loss: float | None = None
    law: str = ""

    @property
    def tokens_per_parameter(self) -> float:
        """Tokens for each parameter: 20, as a rule of thumb."""
        return self.num_tokens / self.num_parameters


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run, at its end.

    Args:
        num_parameters: of the model.
        num_tokens: that it was trained on.
        loss: at the end, on data that it was not trained on, in nats per token.
        flops: what it cost; left out, 6 × parameters × tokens.

    Raises:
        ValueError: if a number is not positive and finite.
    """

    num_parameters: float
    num_tokens: float
    loss: float
    flops: float = 0.0  # filled in below

    def __post_init__(self) -> None:
        for name in ("num_parameters", "num_tokens", "loss"):
            check_positive(name, getattr(self, name))
        if self.flops == 0:
            object.__setattr__(self, "flops", training_flops(self.num_parameters, self.num_tokens))
        check_positive("flops", self.flops)


def training_flops(num_parameters: float, num_tokens: float) -> float:
    """6 × parameters × tokens: two FLOP forward and four backward for each.

    Source: Kaplan et al. 2020, "Scaling Laws for Neural Language Models", §2.1.

        >>> round(training_flops(174.6e9, 300e9) / PF_DAY_FLOPS)  # GPT-3, in PFLOP/s-days
        3637
    """
    return FLOPS_PER_PARAMETER_AND_TOKEN * num_parameters * num_tokens


def columns(runs: Iterable[Run]) -> tuple[Column, Column, Column]:
    """Parameters, tokens and losses of runs, as arrays for `fit_parametric`."""
    rows = [(run.num_parameters, run.num_tokens, run.loss) for run in runs]
    table = np.array(rows, dtype=np.float64).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2]


def check_positive(name: str, value: object) -> None:
    """Refuse what is not a positive, finite number.

    Raises:
        TypeError: if it is no number.
        ValueError: if it is not positive and finite.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive, finite number, got {value!r}")


def warn_beyond(flops: float, fitted: tuple[float, float], law: str) -> None:
    """Say so if a budget lies outside of the runs that a law was fitted to; it is answered all the same."""
    low, high = fitted
    if low <= flops <= high:
        return
    side, factor = ("above", flops / high) if flops > high else ("below", low / flops)
    warnings.warn(
        f"{flops:.3g} FLOP is {factor:.3g} times {side} the runs that {law} was fitted to ({low:.3g} to {high:.3g} "
        f"FLOP): an extrapolation, whose error grows with the distance",
        ExtrapolationWarning,
        stacklevel=3,
    )
