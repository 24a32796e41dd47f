"""How far a law is from a set of runs: Huber's loss of the error of log loss, and its gradient.

With a = log A, b = log B, e = log E, a law predicts the logarithm of the loss as a log-sum-exp,

    log L = LSE(a - α log N, b - β log D, e),

so that all five numbers are free of sign constraints and of similar size. Each error r of log L counts r²/2 up to δ
and δ (|r| - δ/2) beyond: with δ = 1e-3, an error of more than 0.1 % pulls with constant force, as outliers should.

Source: Hoffmann et al. 2022, §3.3, eq. 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from cme295lab.scaling.parametric import ParametricLaw

NUM_CONSTANTS = 5  # a, b, e, alpha, beta: the order everywhere in this room


@dataclass(frozen=True, kw_only=True)
class LogRuns:
    """Runs as logarithms, and how they are judged.

    Args:
        log_parameters, log_tokens, log_loss: natural logarithms, an entry per run.
        huber_delta: errors of log loss beyond this pull with constant force.
    """

    log_parameters: Float[np.ndarray, " runs"]
    log_tokens: Float[np.ndarray, " runs"]
    log_loss: Float[np.ndarray, " runs"]
    huber_delta: float = 1e-3

    def parts(self, constants: np.ndarray) -> np.ndarray:
        """Logarithms of the three terms of the loss, (laws, runs, 3), of laws (laws, 5)."""
        a, b, e, alpha, beta = (constants[:, i, None] for i in range(NUM_CONSTANTS))
        rest = np.broadcast_to(e, (len(constants), len(self.log_loss)))
        return np.stack((a - alpha * self.log_parameters, b - beta * self.log_tokens, rest), axis=-1)

    def errors(self, constants: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Errors of log loss, (laws, runs), and their derivatives by the five constants, (laws, runs, 5).

        The derivative by a term's logarithm is the term's share of the loss; α and β multiply -log N and -log D.
        """
        parts = self.parts(constants)
        largest = parts.max(axis=-1, keepdims=True)
        terms = np.exp(parts - largest)
        total = terms.sum(axis=-1, keepdims=True)
        errors = largest[..., 0] + np.log(total[..., 0]) - self.log_loss
        shares = terms / total
        by_alpha = -shares[..., :1] * self.log_parameters[None, :, None]
        by_beta = -shares[..., 1:2] * self.log_tokens[None, :, None]
        return errors, np.concatenate((shares, by_alpha, by_beta), axis=-1)

    def huber(self, errors: np.ndarray) -> np.ndarray:
        """Huber's loss of each error."""
        size = np.abs(errors)
        return np.where(size <= self.huber_delta, 0.5 * size**2, self.huber_delta * (size - 0.5 * self.huber_delta))

    def pull(self, errors: np.ndarray) -> np.ndarray:
        """The derivative of Huber's loss: the error itself, but no more than δ."""
        return np.clip(errors, -self.huber_delta, self.huber_delta)

    def value_and_gradient(self, constants: np.ndarray) -> tuple[float, np.ndarray]:
        """The sum over runs, and its gradient, (5,): what scipy minimises, thousands of times."""
        errors, derivatives = self.errors(constants[None])
        return float(self.huber(errors).sum()), self.pull(errors[0]) @ derivatives[0]


def law_of(constants: Float[np.ndarray, " 5"], *, name: str, fitted_flops: tuple[float, float]) -> ParametricLaw:
    """The law with such constants (a, b, e, α, β).

    Raises:
        ValueError: if an exponent is not positive: the runs do not show that more parameters, or more tokens, help.
    """
    a, b, e, alpha, beta = (float(value) for value in constants)
    if not (alpha > 0 and beta > 0):
        raise ValueError(
            f"the best fit has alpha={alpha:.3g} and beta={beta:.3g}, and both must be positive: in these runs the "
            f"loss does not fall with size and with tokens; add runs that differ more in both"
        )
    return ParametricLaw(math.exp(e), math.exp(a), math.exp(b), alpha, beta, name=name, fitted_flops=fitted_flops)
