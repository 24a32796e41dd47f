"""What a mixture of domains means for a training run: tokens drawn from each, and how often each is repeated.

One pure function, `mixture_scenario`, and the record it returns. Losses are not predicted: they come from runs that
were trained at several mixtures, and between two of these a straight line is drawn.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

# Text is nearly as good as new up to here: Muennighoff et al. 2023, "Scaling Data-Constrained Language Models".
MANY_EPOCHS = 4.0


@dataclass(frozen=True, kw_only=True)
class DomainShare:
    """One domain of a mixture.

    Attributes:
        domain: its name.
        share: of all tokens drawn.
        num_tokens: tokens drawn.
        epochs: how often its text is seen.
        loss: measured validation loss at this mixture, in nats per token, or None outside what was measured.
    """

    domain: str
    share: float
    num_tokens: float
    epochs: float
    loss: float | None

    @property
    def repeats_too_often(self) -> bool:
        """Whether its text is seen more often than new text is worth."""
        return self.epochs > MANY_EPOCHS


@dataclass(frozen=True, kw_only=True)
class MixtureScenario:
    """All domains of a mixture.

    Attributes:
        num_tokens: tokens of the run.
        domains: one record each, in the order of the weights.
    """

    num_tokens: int
    domains: tuple[DomainShare, ...]

    def share(self, domain: str) -> float:
        """The share of one domain."""
        return next(item.share for item in self.domains if item.domain == domain)


@dataclass(frozen=True, kw_only=True)
class MeasuredMixtures:
    """Losses of models trained at several shares of one domain, the others keeping their proportions.

    Attributes:
        domain: whose share was varied.
        shares: in rising order.
        losses: by domain, as many as shares.

    Raises:
        ValueError: if shares do not rise, or a domain has another number of losses.
    """

    domain: str
    shares: tuple[float, ...]
    losses: Mapping[str, tuple[float, ...]]

    def __post_init__(self) -> None:
        if any(a >= b for a, b in zip(self.shares, self.shares[1:])):
            raise ValueError(f"shares must rise, got {self.shares}")
        for domain, losses in self.losses.items():
            if len(losses) != len(self.shares):
                raise ValueError(f"losses of {domain!r} must be {len(self.shares)}, one per share, got {len(losses)}")

    def loss_at(self, domain: str, share: float) -> float | None:
        """The loss of a domain between the measured shares, or None outside them."""
        if domain not in self.losses or not self.shares[0] <= share <= self.shares[-1]:
            return None
        return float(np.interp(share, self.shares, self.losses[domain]))


def mixture_scenario(
    *,
    sizes: Mapping[str, int],
    weights: Mapping[str, float],
    num_tokens: int,
    measured: MeasuredMixtures | None = None,
) -> MixtureScenario:
    """Divide a run's tokens among domains.

    Args:
        sizes: tokens that there are of each domain.
        weights: of each domain, not all zero; they need not sum to 1.
        num_tokens: tokens of the run.
        measured: losses of runs at several mixtures.

    Raises:
        ValueError: if domains differ, a size is not positive, or weights are negative or all zero.
    """
    if set(sizes) != set(weights):
        raise ValueError(f"weights must name the domains {', '.join(sizes)}, got {', '.join(weights)}")
    if min(sizes.values()) < 1 or num_tokens < 1:
        raise ValueError(f"sizes and num_tokens must be positive, got {dict(sizes)} and {num_tokens}")
    total = sum(weights.values())
    if min(weights.values()) < 0 or total <= 0:
        raise ValueError(f"weights must not be negative, and one must be positive, got {dict(weights)}")
    shares = {domain: weight / total for domain, weight in weights.items()}
    varied = shares[measured.domain] if measured else 0.0
    return MixtureScenario(
        num_tokens=num_tokens,
        domains=tuple(
            DomainShare(
                domain=domain, share=share, num_tokens=share * num_tokens, epochs=share * num_tokens / sizes[domain],
                loss=measured.loss_at(domain, varied) if measured else None,
            )
            for domain, share in shares.items()
        ),
    )  # fmt: skip
