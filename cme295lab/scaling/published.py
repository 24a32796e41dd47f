"""Published tables: models with their tokens, and what Hoffmann et al. say a model of some size needs.

`FRONTIER_TABLES` are the paper's Tables 3 and A3: for each size the budget for which it is the best size, and the
tokens. Approach 1 (Table 3) follows training curves, approach 2 cuts the runs at equal compute, approach 3 is the
parametric fit. Each table is very nearly a power law, which `table_frontier` fits, so that other budgets can be asked.

Two places in which the paper disagrees with itself, so that nobody tests against them:

- Table A3, 175B, approach 3, prints 1.26e24 FLOP. 6 × 175e9 × 12.0e12 is 1.26e25, and so is the trend: a misprint. The
  table here has 1.26e25.
- §3.4 says 4.41e24 FLOP for 175B; its own Table 3 says 3.85e24. The table is used.

Source: Hoffmann et al. 2022, "Training Compute-Optimal Large Language Models", Tables 2, 3, A2 and A3; the models:
Brown et al. 2020; Rae et al. 2021; Hoffmann et al. 2022; Touvron et al. 2023a, 2023b; Grattafiori et al. 2024.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np

from cme295lab.scaling.records import FLOPS_PER_PARAMETER_AND_TOKEN, Allocation, check_positive, training_flops

Approach = Literal["chinchilla-1", "chinchilla-2", "chinchilla-3-table"]
GOPHER_FLOPS = 5.76e23  # the budget of Gopher as Hoffmann et al. count it; not 6 × 280e9 × 300e9 = 5.04e23


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """A model and what it was trained on.

    Args:
        name: as its makers call it.
        num_parameters: as published, rounded.
        num_tokens: of pretraining.
        year: of publication.
    """

    name: str
    num_parameters: float
    num_tokens: float
    year: int

    @property
    def tokens_per_parameter(self) -> float:
        return self.num_tokens / self.num_parameters

    @property
    def flops(self) -> float:
        """Training compute, 6 N D, in FLOP."""
        return training_flops(self.num_parameters, self.num_tokens)


def _model(name: str, billions: float, trillions: float, year: int) -> PublishedModel:
    return PublishedModel(name=name, num_parameters=billions * 1e9, num_tokens=trillions * 1e12, year=year)


PUBLISHED_MODELS: tuple[PublishedModel, ...] = (
    _model("GPT-3", 175, 0.3, 2020),
    _model("Gopher", 280, 0.3, 2021),
    _model("Chinchilla", 70, 1.4, 2022),
    _model("Llama 1 7B", 7, 1.0, 2023),
    _model("Llama 2 7B", 7, 2.0, 2023),
    _model("Llama 2 70B", 70, 2.0, 2023),
    _model("Llama 3 8B", 8, 15.0, 2024),
    _model("Llama 3 70B", 70, 15.0, 2024),
    _model("Llama 3.1 405B", 405, 15.6, 2024),
)
"""Dense models whose tokens are published, in order of publication."""


def published_model(name: str) -> PublishedModel:
    """One of them, by name.

    Raises:
        ValueError: if there is none of that name.
    """
    for model in PUBLISHED_MODELS:
        if model.name == name:
            return model
    raise ValueError(f"unknown model {name!r}; known: {', '.join(model.name for model in PUBLISHED_MODELS)}")


@dataclass(frozen=True, kw_only=True)
class Exponents:
    """N* ~ C^a and D* ~ C^b, with the 10th to 90th percentiles of a bootstrap where there is one."""

    a: float
    b: float
    a_interval: tuple[float, float] | None = None
    b_interval: tuple[float, float] | None = None


PUBLISHED_EXPONENTS: Mapping[str, Exponents] = MappingProxyType(
    {
        "chinchilla-1": Exponents(a=0.50, b=0.50, a_interval=(0.488, 0.502), b_interval=(0.501, 0.512)),
        "chinchilla-2": Exponents(a=0.49, b=0.51, a_interval=(0.462, 0.534), b_interval=(0.483, 0.529)),
        "chinchilla-3": Exponents(a=0.46, b=0.54, a_interval=(0.454, 0.455), b_interval=(0.542, 0.543)),
        "kaplan": Exponents(a=0.73, b=0.27),
        "c4": Exponents(a=0.50, b=0.50),  # approach 2 on other data, Table A2
        "github": Exponents(a=0.53, b=0.47),
    }
)
"""Hoffmann et al. 2022, Tables 2 and A2. The interval of approach 3 is so narrow that it misses its own estimate."""

# Parameters; then FLOP and tokens by approach 1, 2 and 3. The first two columns are Table 3, the others Table A3.
_ROWS = (
    (400e6, 1.92e19, 8.0e9, 1.84e19, 7.7e9, 2.21e19, 9.2e9),
    (1e9, 1.21e20, 20.2e9, 1.20e20, 20.0e9, 1.62e20, 27.1e9),
    (10e9, 1.23e22, 205.1e9, 1.32e22, 219.5e9, 2.46e22, 410.1e9),
    (67e9, 5.76e23, 1.5e12, 6.88e23, 1.7e12, 1.71e24, 4.1e12),
    (175e9, 3.85e24, 3.7e12, 4.54e24, 4.3e12, 1.26e25, 12.0e12),  # printed as 1.26e24: see above
    (280e9, 9.90e24, 5.9e12, 1.18e25, 7.1e12, 3.52e25, 20.1e12),
    (520e9, 3.43e25, 11.0e12, 4.19e25, 13.4e12, 1.36e26, 43.5e12),
    (1e12, 1.27e26, 21.2e12, 1.59e26, 26.5e12, 5.65e26, 94.1e12),
    (10e12, 1.30e28, 216.2e12, 1.75e28, 292.0e12, 8.55e28, 1425.5e12),
)
FRONTIER_TABLES: Mapping[str, tuple[Allocation, ...]] = MappingProxyType(
    {
        law: tuple(
            Allocation(flops=row[1 + 2 * i], num_parameters=row[0], num_tokens=row[2 + 2 * i], law=law) for row in _ROWS
        )
        for i, law in enumerate(("chinchilla-1", "chinchilla-2", "chinchilla-3-table"))
    }
)
"""By approach: for each size, the budget for which it is the best size and the tokens to train it on."""


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """The best size by a power law: N* = coefficient × C^a; the tokens are what the budget leaves, C / (6 N).

    Args:
        coefficient: parameters at a budget of 1 FLOP.
        a: exponent.
        name: of the law.
    """

    coefficient: float
    a: float
    name: str = "this frontier"

    @property
    def b(self) -> float:
        """Exponent of the tokens."""
        return 1 - self.a

    def allocate(self, flops: float) -> Allocation:
        """The best size and tokens for a budget in FLOP.

        Raises:
            TypeError, ValueError: if the budget is no positive number.
        """
        check_positive("flops", flops)
        size = self.coefficient * flops**self.a
        tokens = flops / (FLOPS_PER_PARAMETER_AND_TOKEN * size)
        return Allocation(flops=flops, num_parameters=size, num_tokens=tokens, law=self.name)


@functools.cache
def table_frontier(approach: Approach) -> Frontier:
    """The power law through a published table: least squares of log N against log C.

    Raises:
        ValueError: if there is no such table.

        >>> [round(table_frontier(law).a, 4) for law in FRONTIER_TABLES]
        [0.4981, 0.4899, 0.4587]
    """
    if approach not in FRONTIER_TABLES:
        raise ValueError(f"approach must be one of {', '.join(FRONTIER_TABLES)}, got {approach!r}")
    rows = FRONTIER_TABLES[approach]
    slope, intercept = np.polyfit(
        np.log([row.flops for row in rows]), np.log([row.num_parameters for row in rows]), 1
    )
    number = approach.split("-")[1]
    suffix = ", table" if approach.endswith("table") else ""
    return Frontier(
        coefficient=float(np.exp(intercept)), a=float(slope), name=f"Chinchilla, approach {number}{suffix}"
    )
