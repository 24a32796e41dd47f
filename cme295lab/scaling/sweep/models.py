"""The sizes of the sweep, and how the learning rate follows from the size.

Eleven models of the course's own architecture from 33 thousand to 3.3 million parameters, each about 1.6 times the one
before. The vocabulary is small (512 byte pairs), or the embedding of a 30-thousand-parameter model would be all of it;
the head is tied to it. N counts everything, the embedding once: it is a matrix of the head, so it computes, and
C = 6 N D holds. Without it (`embeddings=False` where runs are asked for) the same runs give other exponents, because
the embedding is half of the smallest model and a twenty-fifth of the largest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cme295lab.transformer.config import ModelConfig

VOCAB_SIZE = 512
SEQ = 128  # tokens of a row
_LADDER = (
    (28, 2, 2), (40, 2, 2), (48, 2, 3), (56, 3, 4), (64, 3, 4), (80, 3, 5), (96, 4, 6), (128, 4, 4), (160, 4, 5),
    (192, 4, 6), (256, 4, 8),
)  # fmt: skip  # width, layers, heads


def _config(dim: int, num_layers: int, num_heads: int) -> ModelConfig:
    return ModelConfig(
        name=f"{dim}x{num_layers}",
        vocab_size=VOCAB_SIZE,
        num_layers=num_layers,
        dim=dim,
        num_heads=num_heads,
        mlp_dim=8 * round(dim / 3),  # a SwiGLU of 8/3 times the width has as many parameters as a plain MLP of 4 times
        max_seq=SEQ,
        tied_head=True,
    )


SWEEP_MODELS: tuple[ModelConfig, ...] = tuple(_config(*shape) for shape in _LADDER)
"""By size."""


def sweep_model(name: str) -> ModelConfig:
    """One of them, by name such as "64x3": width and layers.

    Raises:
        ValueError: if there is none of that name.
    """
    for config in SWEEP_MODELS:
        if config.name == name:
            return config
    raise ValueError(f"unknown model {name!r}; the sweep has {', '.join(config.name for config in SWEEP_MODELS)}")


def model_for_size(num_parameters: float) -> ModelConfig:
    """The model nearest to a size, of the ladder's proportions but any width that is a multiple of 16.

    Raises:
        ValueError: if the size lies below the smallest of the sweep.
    """
    smallest = SWEEP_MODELS[0].num_parameters
    if not num_parameters >= smallest:
        raise ValueError(f"num_parameters must be at least {smallest:,}, the sweep's smallest; got {num_parameters}")
    num_layers = 2 if num_parameters < 110_000 else 3 if num_parameters < 340_000 else 4
    shapes = [(dim, num_layers, dim // 32 if dim >= 128 and dim % 32 == 0 else dim // 16) for dim in range(32, 513, 16)]
    configs = [_config(*shape) for shape in shapes]
    return min(configs, key=lambda config: abs(math.log(config.num_parameters / num_parameters)))


@dataclass(frozen=True, kw_only=True)
class LearningRateRule:
    """Peak learning rate = coefficient × N^exponent.

    Args:
        coefficient: at one parameter.
        exponent: negative: larger models want smaller steps.
    """

    coefficient: float
    exponent: float

    def __call__(self, num_parameters: float) -> float:
        """The peak learning rate of a model of N parameters, embedding included."""
        return float(self.coefficient * num_parameters**self.exponent)


def best_learning_rate(learning_rates: Sequence[float], losses: Sequence[float]) -> float:
    """The bottom of the parabola in log learning rate through the best trial and its two neighbours.

    Raises:
        ValueError: if there are fewer than three trials, or the best of them is the first or the last.
    """
    order = np.argsort(learning_rates)
    rates, values = np.log(np.asarray(learning_rates)[order]), np.asarray(losses)[order]
    best = int(values.argmin())
    if len(rates) < 3 or best in (0, len(rates) - 1):
        tried = ", ".join(f"{rate:.3g}" for rate in np.exp(rates))
        raise ValueError(f"the best learning rate is at the edge of those tried ({tried}): try more on that side")
    around = slice(best - 1, best + 2)
    square, slope, _ = np.polyfit(rates[around] - rates[best], values[around], 2)
    return float(np.exp(rates[best] - slope / (2 * square)))
