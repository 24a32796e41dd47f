"""When a model also has to answer: the size that costs least over its whole life.

Training takes 6 N D FLOP; every token that is read or written later takes 2 N more. A smaller model that is trained
longer reaches the same loss, costs more to train and less to serve. For a loss that is asked for and T tokens that will
be served, the cheapest size minimises

    6 N D(N) + 2 N T,    where D(N) is the number of tokens after which N parameters reach the loss.

At the minimum the derivative vanishes. Along the line of equal loss dD/dN = -(α A / N^(α+1)) / (β B / D^(β+1)), so

    T = 3 D (r - 1)    with    r = α A D^β / (β B N^α),

and read from right to left that says how many tokens a model that was trained "too long" must serve to have been worth
it (`worthwhile_served_tokens`). r = 1 is Chinchilla's optimum: nothing is served.

Llama 3 8B saw 15 trillion tokens, 1,875 per parameter, 94 times Chinchilla's 20. By the law of Besiroglu et al. 34
billion parameters on 0.64 trillion tokens reach the same loss for a fifth of the training. The small model is the
cheapest way there if it serves some 190 trillion tokens (70 to 90 by the two sets of Chinchilla's constants): it is not
"closer to the optimal ratio", it is made to be served. Every law extrapolates there; take orders of magnitude.

Not counted: that serving runs at a lower share of the peak than training, and costs memory (a KV cache) besides FLOP;
`serving_cost_ratio` stands for both.

Source: Sardana et al. 2024, "Beyond Chinchilla-Optimal: Accounting for Inference in Language Model Scaling Laws";
Grattafiori et al. 2024, "The Llama 3 Herd of Models": its small models are trained much longer than compute-optimal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.optimize import minimize_scalar

from cme295lab.scaling.parametric import ParametricLaw
from cme295lab.scaling.records import Allocation, check_positive, training_flops

SERVING_FLOPS_PER_PARAMETER_AND_TOKEN = 2.0  # a forward pass
_LARGEST_FACTOR = 1e4  # between the compute-optimal size and the smallest one looked at


@dataclass(frozen=True, kw_only=True)
class ServingPlan:
    """A model for a loss and a number of tokens to serve.

    Args:
        loss: that it reaches, nats per token.
        num_parameters, num_tokens: of the model, and of its training.
        served_tokens: that it will read or write.
        training_flops, serving_flops: over its life; serving is weighted by the ratio of costs.
        compute_optimal: the model that reaches the same loss with the least training.
        compute_optimal_flops: of that model's training and serving.
    """

    loss: float
    num_parameters: float
    num_tokens: float
    served_tokens: float
    training_flops: float
    serving_flops: float
    compute_optimal: Allocation
    compute_optimal_flops: float

    @property
    def total_flops(self) -> float:
        """Training and serving."""
        return self.training_flops + self.serving_flops

    @property
    def tokens_per_parameter(self) -> float:
        """Of training."""
        return self.num_tokens / self.num_parameters

    @property
    def saving(self) -> float:
        """The share of all compute that is saved against the compute-optimal model."""
        return 1 - self.total_flops / self.compute_optimal_flops


def lifetime_flops(
    num_parameters: float, num_tokens: float, served_tokens: float, *, serving_cost_ratio: float = 1.0
) -> float:
    """FLOP of training, 6 N D, and of serving, 2 N per token.

    Args:
        num_parameters: N.
        num_tokens: D, of training.
        served_tokens: read or written afterwards; may be 0.
        serving_cost_ratio: what a FLOP of serving costs, in FLOP of training.
    """
    serving = SERVING_FLOPS_PER_PARAMETER_AND_TOKEN * num_parameters * served_tokens
    return training_flops(num_parameters, num_tokens) + serving_cost_ratio * serving


def cheapest_to_serve(
    loss: float, served_tokens: float, law: ParametricLaw, *, serving_cost_ratio: float = 1.0
) -> ServingPlan:
    """The size that reaches a loss and serves so many tokens for the least compute in all.

    Args:
        loss: that is asked for, nats per token, above the law's E.
        served_tokens: over the model's life; 0 gives the compute-optimal size.
        law: of the loss.
        serving_cost_ratio: what a FLOP of serving costs, in FLOP of training; above 1 if serving keeps the hardware
            less busy.

    Returns:
        The plan, and the compute-optimal model beside it.

    Raises:
        TypeError, ValueError: if a number is out of range, or no budget reaches the loss.

        >>> from cme295lab.scaling.parametric import EPOCH
        >>> plan = cheapest_to_serve(2.0, 1e13, EPOCH)
        >>> f"{plan.num_parameters:.2g} instead of {plan.compute_optimal.num_parameters:.2g}, {plan.saving:.0%} saved"
        '2e+10 instead of 4.7e+10, 36% saved'
    """
    check_positive("serving_cost_ratio", serving_cost_ratio)
    if served_tokens != 0:
        check_positive("served_tokens", served_tokens)
    best = law.allocate(law.flops_for_loss(loss))  # refuses a loss that cannot be reached

    def total(log_size: float) -> float:
        size = math.exp(log_size)
        tokens = law.tokens_for_loss(size, loss)
        return lifetime_flops(size, tokens, served_tokens, serving_cost_ratio=serving_cost_ratio)

    # Convex in log N: N D(N) is convex and 2 N T grows. The smallest size that can reach the loss bounds it below.
    limit = (law.A / (loss - law.E)) ** (1 / law.alpha)
    low = math.log(max(limit * (1 + 1e-9), best.num_parameters / _LARGEST_FACTOR))
    found = minimize_scalar(total, bounds=(low, math.log(best.num_parameters) + 1), method="bounded",
                            options={"xatol": 1e-9})  # fmt: skip
    size = best.num_parameters if served_tokens == 0 else math.exp(found.x)
    tokens = law.tokens_for_loss(size, loss)
    return ServingPlan(
        loss=loss,
        num_parameters=size,
        num_tokens=tokens,
        served_tokens=served_tokens,
        training_flops=training_flops(size, tokens),
        serving_flops=lifetime_flops(size, tokens, served_tokens, serving_cost_ratio=serving_cost_ratio)
        - training_flops(size, tokens),
        compute_optimal=best,
        compute_optimal_flops=lifetime_flops(
            best.num_parameters, best.num_tokens, served_tokens, serving_cost_ratio=serving_cost_ratio
        ),
    )


def worthwhile_served_tokens(
    num_parameters: float, num_tokens: float, law: ParametricLaw, *, serving_cost_ratio: float = 1.0
) -> float:
    """Tokens that a model must serve for its size to be the cheapest way to its loss: 3 D (r - 1).

    Args:
        num_parameters, num_tokens: of the model and its training.
        law: of the loss.
        serving_cost_ratio: what a FLOP of serving costs, in FLOP of training.

    Returns:
        Tokens; negative for a model that is larger than the compute-optimal one, which no amount of serving justifies.

    Raises:
        TypeError, ValueError: if a number is not positive.

        >>> from cme295lab.scaling.parametric import EPOCH
        >>> f"{worthwhile_served_tokens(8e9, 15e12, EPOCH):.2g}"  # Llama 3 8B
        '1.9e+14'
    """
    for name, value in (("num_parameters", num_parameters), ("num_tokens", num_tokens)):
        check_positive(name, value)
    check_positive("serving_cost_ratio", serving_cost_ratio)
    by_size = law.alpha * law.A * num_parameters**-law.alpha
    by_tokens = law.beta * law.B * num_tokens**-law.beta
    return 3 * num_tokens * (by_size / by_tokens - 1) / serving_cost_ratio
