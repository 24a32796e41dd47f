"""One budget of compute, and what each scaling law would buy with it.

One pure function, `frontier_scenario`, and the record it returns: the allocation of every law, the loss along the line
of equal compute, and the smaller model that is cheaper once it also has to answer. The laws are those of
`cme295lab.scaling`; here they are only put side by side.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from jaxtyping import Float

from cme295lab.scaling import (
    CHINCHILLA,
    CHINCHILLA_ROUNDED,
    EPOCH,
    LAW_NAMES,
    Allocation,
    ExtrapolationWarning,
    ParametricLaw,
    compare_laws,
)
from cme295lab.scaling.serving import ServingPlan, cheapest_to_serve

CONSTANTS: Mapping[str, ParametricLaw] = MappingProxyType(
    {"Epoch 2024": EPOCH, "Chinchilla": CHINCHILLA, "Chinchilla, as printed": CHINCHILLA_ROUNDED}
)
RULE_OF_THUMB = 20  # tokens per parameter
_SIZES = np.logspace(6, 13, 141)


@dataclass(frozen=True, kw_only=True)
class FrontierScenario:
    """A budget, and what follows from it.

    Attributes:
        flops: the budget.
        constants: which constants L(N, D) has; `law` has them.
        served_tokens: tokens that the model is to write or read once it is trained.
        allocations: by law, and by the rule of thumb of 20 tokens per parameter.
        optimum: where the loss is lowest for this budget.
        serving: the model that reaches the optimum's loss with the least compute for training and serving.
        sizes, losses: the loss of models of many sizes that all cost the budget; nats per token.
    """

    flops: float
    constants: str
    law: ParametricLaw
    served_tokens: float
    allocations: Mapping[str, Allocation]
    optimum: Allocation
    serving: ServingPlan
    sizes: Float[np.ndarray, " sizes"]
    losses: Float[np.ndarray, " sizes"]


def frontier_scenario(
    *, flops: float, constants: str = "Epoch 2024", served_tokens: float = 0.0
) -> FrontierScenario:
    """What a budget buys.

    Args:
        flops: the budget, FLOP.
        constants: a key of `CONSTANTS`.
        served_tokens: tokens that the model will process in its life.

    Raises:
        ValueError: if the constants are unknown, the budget not positive, or the tokens negative.
    """
    if constants not in CONSTANTS:
        raise ValueError(f"constants must be one of {', '.join(CONSTANTS)}, got {constants!r}")
    if served_tokens < 0:
        raise ValueError(f"served_tokens must not be negative, got {served_tokens}")
    law = CONSTANTS[constants]
    with warnings.catch_warnings():  # every budget but a few lies beyond the runs of some law; the view says so
        warnings.simplefilter("ignore", ExtrapolationWarning)
        allocations = {str(name): found for name, found in compare_laws(flops, LAW_NAMES).items()}
    size = math.sqrt(flops / 6 / RULE_OF_THUMB)
    allocations["20 per parameter"] = Allocation(flops=flops, num_parameters=size, num_tokens=RULE_OF_THUMB * size)
    optimum = law.allocate(flops)
    return FrontierScenario(
        flops=flops, constants=constants, law=law, served_tokens=served_tokens, allocations=allocations,
        optimum=optimum, serving=cheapest_to_serve(float(optimum.loss or 0), served_tokens, law), sizes=_SIZES,
        losses=law.loss(_SIZES, flops / (6 * _SIZES)),
    )  # fmt: skip


def frontiers() -> dict[str, tuple[Float[np.ndarray, " budgets"], Float[np.ndarray, " budgets"]]]:
    """By law: the best sizes and tokens over budgets from 1e16 to 1e29 FLOP, to draw as lines."""
    budgets = np.logspace(16, 29, 27)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)
        found = [compare_laws(float(budget), LAW_NAMES) for budget in budgets]
    return {
        str(law): (
            np.array([each[law].num_parameters for each in found]),
            np.array([each[law].num_tokens for each in found]),
        )
        for law in LAW_NAMES
    }
