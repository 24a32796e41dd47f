"""How much of each domain to read.

Domains have the sizes they happen to have. Drawing in proportion to size drowns the small ones; drawing all equally
repeats them until they are learned by heart. A temperature moves between the two: weights are sizes to the power 1/T.
T = 1 keeps the proportions, a large T makes all equal.

Source: Devlin et al. 2018 (multilingual BERT, exponent 0.7) and Raffel et al. 2020 (T5, section 3.5.2: temperature).
"""

from __future__ import annotations

import math
from collections.abc import Mapping


def temperature_weights(sizes: Mapping[str, float], temperature: float) -> dict[str, float]:
    """Shares of domains, sizes to the power 1/temperature.

    Args:
        sizes: of each domain, positive; tokens or bytes.
        temperature: 1 keeps the proportions, infinity makes all equal.

    Returns:
        Shares that sum to 1.

    Raises:
        ValueError: if there is no domain, a size is not positive, or the temperature is below 1.

    Example:
        >>> temperature_weights({"code": 900, "english": 100}, 2.0)
        {'code': 0.75, 'english': 0.25}
    """
    if not sizes or min(sizes.values()) <= 0:
        raise ValueError(f"sizes must be positive, and there must be one, got {dict(sizes)}")
    if not temperature >= 1:
        raise ValueError(
            f"temperature must be at least 1 (below, large domains would get more than their share), got {temperature}"
        )
    largest = max(sizes.values())  # divided out: a power of the ratio cannot overflow
    powers = {domain: math.pow(size / largest, 1 / temperature) for domain, size in sizes.items()}
    return mixture_weights(powers)


def mixture_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """Scale weights to shares that sum to 1.

    Args:
        weights: of each domain, not negative, at least one positive.

    Raises:
        ValueError: if a weight is negative or not finite, or none is positive.
    """
    total = math.fsum(weights.values())
    if not 0 < total < math.inf or min(weights.values()) < 0:
        raise ValueError(f"weights must be finite and not negative, and one must be positive, got {dict(weights)}")
    return {domain: weight / total for domain, weight in weights.items()}
