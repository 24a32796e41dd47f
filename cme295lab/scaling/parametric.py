"""The loss of a model as a formula of its size and its data, and what follows from that for a budget.

    L(N, D) = E + A / N^α + B / D^β

E is what no model can know (the entropy of the text), the second term what a model of finite size misses, the third
what finite data leaves untold. With C = 6 N D fixed, the derivative along the line of equal compute vanishes where

    N* = G (C/6)^a    D* = (C/6)^b / G    a = β/(α+β)    b = α/(α+β)    G = (α A / (β B))^(1/(α+β))

Three sets of constants, all for the same runs of Hoffmann et al.:

    CHINCHILLA_ROUNDED   as the paper prints them. At Gopher's budget they ask for 93 tokens per parameter, where the
                         paper itself trained with 20: an early stop of the fit does that, and the rounding.
    CHINCHILLA           with the digits in the source of the paper: 59 tokens per parameter.
    EPOCH                fitted again by Besiroglu et al. to points read off the paper's figure: 18 tokens per
                         parameter, which agrees with the paper's approaches 1 and 2.

Neither of the first two reproduces the paper's own Table A3 for approach 3.

    >>> [round(law.allocate(5.76e23).tokens_per_parameter, 1) for law in (CHINCHILLA_ROUNDED, CHINCHILLA, EPOCH)]
    [92.6, 58.9, 18.4]

Losses are in nats per token of MassiveText with a vocabulary of 32,000: for other data only the order transfers.

Source: Hoffmann et al. 2022, "Training Compute-Optimal Large Language Models", §3.3, eqs. 2 to 4; Besiroglu et al.
2024, "Chinchilla Scaling: A replication attempt".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from cme295lab.scaling.records import FLOPS_PER_PARAMETER_AND_TOKEN, Allocation, check_positive, warn_beyond

Numbers = float | np.ndarray
CHINCHILLA_FITTED_FLOPS = (6e18, 3e21)  # budgets of the runs, Hoffmann et al. 2022, Fig. 3


@dataclass(frozen=True)
class ParametricLaw:
    """L(N, D) = E + A / N^alpha + B / D^beta.

    Args:
        E: loss that remains with an infinite model and infinite data, in nats per token.
        A, alpha: of the term of the parameters.
        B, beta: of the term of the tokens.
        name: what to call it.
        fitted_flops: smallest and largest budget of the runs behind it; None if unknown.

    Raises:
        TypeError, ValueError: if a constant is not a positive number.
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    name: str = "this law"
    fitted_flops: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("E", "A", "B", "alpha", "beta"):
            check_positive(name, getattr(self, name))

    def loss(self, num_parameters: Numbers, num_tokens: Numbers) -> Any:
        """The predicted loss in nats per token, a number or an array as the arguments are.

        Args:
            num_parameters: N, positive.
            num_tokens: D, positive.

        Raises:
            ValueError: if one is not positive.
        """
        for name, value in (("num_parameters", num_parameters), ("num_tokens", num_tokens)):
            if not np.all(np.asarray(value) > 0):
                raise ValueError(f"{name} must be positive, got {value!r}")
        return self.E + self.A * num_parameters**-self.alpha + self.B * num_tokens**-self.beta

    @property
    def a(self) -> float:
        """How the best size grows: N* ~ C^a."""
        return self.beta / (self.alpha + self.beta)

    @property
    def b(self) -> float:
        """How the best number of tokens grows: D* ~ C^b; a + b = 1."""
        return self.alpha / (self.alpha + self.beta)

    @property
    def G(self) -> float:
        """Where the two balance: N* = G (C/6)^a."""
        return (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))

    def optimal(self, flops: float) -> Allocation:
        """The size and the tokens with the lowest loss for a budget.

        Args:
            flops: the budget, FLOP.

        Raises:
            TypeError, ValueError: if the budget is no positive number.

        Warns:
            ExtrapolationWarning: if the budget lies beyond the runs that the law was fitted to. `allocate` is silent.
        """
        allocation = self.allocate(flops)
        if self.fitted_flops is not None:
            warn_beyond(flops, self.fitted_flops, self.name)
        return allocation

    def allocate(self, flops: float) -> Allocation:
        """As `optimal`, without a word about extrapolation: for curves over many budgets."""
        check_positive("flops", flops)
        product = flops / FLOPS_PER_PARAMETER_AND_TOKEN
        size, tokens = self.G * product**self.a, product**self.b / self.G
        return Allocation(
            flops=flops, num_parameters=size, num_tokens=tokens, loss=self.loss(size, tokens), law=self.name
        )

    def tokens_for_loss(self, num_parameters: float, loss: float) -> float:
        """Tokens after which a model of this size reaches a loss; infinite if it never does.

        Raises:
            TypeError, ValueError: if an argument is no positive number.
        """
        check_positive("num_parameters", num_parameters)
        check_positive("loss", loss)
        left = loss - self.E - self.A * num_parameters**-self.alpha
        return float((self.B / left) ** (1 / self.beta)) if left > 0 else math.inf

    def flops_for_loss(self, loss: float) -> float:
        """The smallest budget that reaches a loss.

        On the frontier, A / N^α and B / D^β stand in the fixed ratio β : α, so the loss alone says how large N is.

        Raises:
            TypeError: if it is no number.
            ValueError: if the loss is not above E, which no budget reaches.
        """
        check_positive("loss", loss)
        if loss <= self.E:
            raise ValueError(f"loss must be above E = {self.E:.4g}, which no budget reaches; got {loss!r}")
        size = (self.A / ((loss - self.E) * self.a)) ** (1 / self.alpha)
        tokens = (self.B / ((loss - self.E) * self.b)) ** (1 / self.beta)
        return float(FLOPS_PER_PARAMETER_AND_TOKEN * size * tokens)


CHINCHILLA = ParametricLaw(
    math.exp(0.5267228), math.exp(6.0073404), math.exp(6.0179186), 0.33917084, 0.2849083,
    name="Chinchilla, approach 3", fitted_flops=CHINCHILLA_FITTED_FLOPS,
)  # fmt: skip
"""Hoffmann et al. 2022, with the digits that stand in the source of the paper (quoted by Besiroglu et al. 2024)."""

CHINCHILLA_ROUNDED = ParametricLaw(
    1.69, 406.4, 410.7, 0.34, 0.28, name="Chinchilla, approach 3, as printed", fitted_flops=CHINCHILLA_FITTED_FLOPS
)
"""Hoffmann et al. 2022, eq. 10, as printed."""

EPOCH = ParametricLaw(
    1.8172, 482.01, 2085.43, 0.3478, 0.3658, name="Epoch 2024", fitted_flops=CHINCHILLA_FITTED_FLOPS
)
"""Besiroglu et al. 2024: the same runs, fitted until the optimum."""
