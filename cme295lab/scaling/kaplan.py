"""The scaling laws of Kaplan et al. 2020: loss against size, data, compute, steps; and what they advise to buy.

    L(N) = (Nc/N)^0.076    L(D) = (Dc/D)^0.095    L(C) = (Cc/C)^0.057    L(Cmin) = (Cc/Cmin)^0.050
    L(N, D) = [(Nc/N)^(αN/αD) + Dc/D]^αD          L(N, S) = (Nc/N)^αN + (Sc/S)^αS          Bcrit = B* / L^(1/αB)

Notation against the paper: N counts parameters without embeddings (12 layers × width² for an MLP of 4 × width); compute
is in FLOP here and in PF-days (8.64e19 FLOP) there; losses are in nats per token of WebText2. C is what a run of fixed,
too small batch costs; Cmin is what the same loss would cost at a batch far below the critical one. Training *at* the
critical batch takes twice the steps and twice the compute of the minimum, hence the factor 2 in `allocate`.

Why it disagrees with Chinchilla: one learning-rate schedule for all lengths of training, small models, and embeddings
left out. The exponents 0.73 and 0.27 are fits; the laws above imply 0.68 and 0.32 or so, not the same numbers.

Source: Kaplan et al. 2020, "Scaling Laws for Neural Language Models", eqs. 1.1 to 1.8 and Tables 4 to 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cme295lab.scaling.records import FLOPS_PER_PARAMETER_AND_TOKEN, PF_DAY_FLOPS, Allocation, check_positive

Numbers = float | np.ndarray
# At most 1.5 billion parameters on 23 billion tokens; at least the smallest runs in Fig. 1, 1e-8 PF-days or so.
KAPLAN_FITTED_FLOPS = (1e-8 * PF_DAY_FLOPS, 2.1e20)


@dataclass(frozen=True)
class PowerLaw:
    """loss = (scale / x)^exponent.

    Args:
        scale: where the loss would be 1, in the unit of x.
        exponent: how fast it falls.

        >>> round(LOSS_BY_PARAMETERS(1.5e9), 4), round(LOSS_BY_PARAMETERS.factor(2), 4)
        (2.3036, 0.9487)
    """

    scale: float
    exponent: float

    def __call__(self, x: Numbers) -> Any:
        """The loss in nats per token.

        Raises:
            ValueError: if x is not positive.
        """
        if not np.all(np.asarray(x) > 0):
            raise ValueError(f"a power law needs a positive number, got {x!r}")
        return (self.scale / x) ** self.exponent

    def factor(self, times: float) -> float:
        """What the loss is multiplied by when x is multiplied by `times`."""
        check_positive("times", times)
        return float(times**-self.exponent)


LOSS_BY_PARAMETERS = PowerLaw(8.8e13, 0.076)
"""L(N): trained to convergence on enough data; N without embeddings."""

LOSS_BY_TOKENS = PowerLaw(5.4e13, 0.095)
"""L(D): a large model on D tokens, stopped early."""

LOSS_BY_COMPUTE = PowerLaw(1.6e7 * PF_DAY_FLOPS, 0.057)
"""L(C) in FLOP, at a fixed batch: the naive law."""

LOSS_BY_MIN_COMPUTE = PowerLaw(3.1e8 * PF_DAY_FLOPS, 0.050)
"""L(Cmin) in FLOP, at batches far below the critical one."""

ALPHA_N, ALPHA_D, ALPHA_S, ALPHA_B = 0.076, 0.103, 0.76, 0.21
CRITICAL_BATCH_TOKENS = 2.1e8  # B*
STEPS_SCALE = 2.1e3  # Sc
_JOINT_PARAMETERS, _JOINT_TOKENS = 6.4e13, 1.8e13  # Table 4: of the fit of L(N, D)
_STEPS_PARAMETERS, _STEPS_ALPHA_N = 6.5e13, 0.077  # of the fit of L(N, S)


def joint_loss(num_parameters: Numbers, num_tokens: Numbers) -> Any:
    """L(N, D), nats per token: the loss of a model of N parameters (no embeddings) on D tokens, stopped early."""
    return ((_JOINT_PARAMETERS / num_parameters) ** (ALPHA_N / ALPHA_D) + _JOINT_TOKENS / num_tokens) ** ALPHA_D


def loss_after_steps(num_parameters: Numbers, num_steps: Numbers) -> Any:
    """L(N, S), nats per token: after S steps of batches far above the critical one, with endless data."""
    return (_STEPS_PARAMETERS / num_parameters) ** _STEPS_ALPHA_N + (STEPS_SCALE / num_steps) ** ALPHA_S


def critical_batch_tokens(loss: Numbers) -> Any:
    """Tokens of a batch that costs twice the minimal steps and twice the minimal compute, at a loss.

        >>> f"{critical_batch_tokens(3.0):.2e}"
        '1.12e+06'
    """
    return CRITICAL_BATCH_TOKENS / loss ** (1 / ALPHA_B)


def efficient_parameters(min_flops: Numbers) -> Any:
    """N = 1.3e9 Cmin^0.73, Cmin in PF-days; without embeddings."""
    return 1.3e9 * (min_flops / PF_DAY_FLOPS) ** 0.73


def efficient_batch_tokens(min_flops: Numbers) -> Any:
    """B = 2.0e6 Cmin^0.24 tokens."""
    return 2.0e6 * (min_flops / PF_DAY_FLOPS) ** 0.24


def efficient_steps(min_flops: Numbers) -> Any:
    """S = 5.4e3 Cmin^0.03: nearly the same number of steps for any budget."""
    return 5.4e3 * (min_flops / PF_DAY_FLOPS) ** 0.03


def efficient_tokens(min_flops: Numbers) -> Any:
    """D = 2e10 Cmin^0.27: twice B × S, since training at the critical batch takes twice the steps."""
    return 2e10 * (min_flops / PF_DAY_FLOPS) ** 0.27


def predicted_compute_exponent() -> float:
    """The exponent of L(Cmin) that L(N), L(S) and Bcrit imply: 1 / (1/αS + 1/αB + 1/αN) = 0.052; the fit says 0.050."""
    return 1 / (1 / ALPHA_S + 1 / ALPHA_B + 1 / ALPHA_N)


def converged_gap() -> float:
    """How far above its converged loss a model should stop: αN / αS, 10 %."""
    return ALPHA_N / ALPHA_S


def allocate(flops: float) -> Allocation:
    """What Kaplan et al. would train with a budget.

    The budget is spent at the critical batch, which costs twice the minimum: Cmin = C / 2. The tokens are C / (6 N), so
    that the budget is kept; the paper's own D, `efficient_tokens`, is a tenth less.

    Args:
        flops: the budget, FLOP.

    Raises:
        TypeError, ValueError: if the budget is no positive number.

    Source: as Hoffmann et al. 2022, §D.4, read it: 4.68 billion parameters at 1e21 FLOP.

        >>> round(allocate(1e21).num_parameters / 1e9, 2)
        4.68
    """
    check_positive("flops", flops)
    size = float(efficient_parameters(flops / 2))
    tokens = flops / (FLOPS_PER_PARAMETER_AND_TOKEN * size)
    loss = float(LOSS_BY_MIN_COMPUTE(flops / 2))
    return Allocation(flops=flops, num_parameters=size, num_tokens=tokens, loss=loss, law="Kaplan 2020")
