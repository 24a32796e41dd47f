"""Where a mixture of experts sends the tokens of a text, as typed records, read off a real forward pass.

A model that was trained with some number of experts per token can be run with another, and with any capacity: the
weights are the same. So the same trained model is asked "what if": sparse or dense, dropping much or nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from cme295lab.transformer import DecoderLM, ModelConfig
from cme295lab.transformer.moe import Routing, expert_capacity, load_balancing_loss, record_routing


@dataclass(frozen=True, kw_only=True)
class RoutingText:
    """A text of several domains, as tokens.

    Attributes:
        tokens: token numbers.
        texts: the text of each, to be shown.
        domains: the domain of each.
    """

    tokens: tuple[int, ...]
    texts: tuple[str, ...]
    domains: tuple[str, ...]

    def __post_init__(self) -> None:
        if not len(self.tokens) == len(self.texts) == len(self.domains) >= 2:
            raise ValueError(
                f"tokens, texts and domains must be equally many, at least 2, got {len(self.tokens)}, "
                f"{len(self.texts)} and {len(self.domains)}"
            )

    @property
    def domain_names(self) -> tuple[str, ...]:
        """The domains in the order in which they come."""
        return tuple(dict.fromkeys(self.domains))


@dataclass(frozen=True, kw_only=True)
class RoutedToken:
    """A token and the experts that it was sent to, the likeliest first; `kept` is False where one was full."""

    text: str
    domain: str
    experts: tuple[int, ...]
    gates: tuple[float, ...]
    kept: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True)
class RoutingScenario:
    """A layer's routing of a text.

    Attributes:
        config: of the model as it was run.
        layer: which layer, from 0.
        tokens: what became of each token.
        capacity: tokens that an expert takes; None for no limit.
        balance_loss: Switch's loss of this layer on this text; 1 for uniform routing, num_experts for collapse.
        loss: cross-entropy of the model on this text, nats per token.
    """

    config: ModelConfig
    layer: int
    tokens: tuple[RoutedToken, ...]
    capacity: int | None
    balance_loss: float
    loss: float

    @property
    def num_experts(self) -> int:
        return self.config.num_experts

    def load(self, *, domain: str | None = None, kept: bool = True) -> list[int]:
        """Assignments of each expert, those that it took or those that were dropped, of one domain or of all."""
        counts = [0] * self.num_experts
        for token in self.tokens:
            if domain in (None, token.domain):
                for expert, was_kept in zip(token.experts, token.kept, strict=True):
                    counts[expert] += was_kept == kept
        return counts

    @property
    def num_assignments(self) -> int:
        return sum(len(token.experts) for token in self.tokens)

    @property
    def num_dropped(self) -> int:
        """Assignments to an expert that was full."""
        return sum(self.load(kept=False))

    @property
    def busiest_share(self) -> float:
        """Share of all assignments that go to the most wanted expert; 1 / num_experts if all are wanted equally."""
        wanted = [a + b for a, b in zip(self.load(), self.load(kept=False), strict=True)]
        return max(wanted) / self.num_assignments


def routing_scenario(
    model: DecoderLM,
    text: RoutingText,
    *,
    experts_per_token: int,
    capacity_factor: float | None,
    layer: int = 0,
) -> RoutingScenario:
    """Run a model on a text and read off where its tokens go.

    Args:
        model: a mixture of experts.
        text: what it reads, as one sequence.
        experts_per_token: k; num_experts makes the mixture dense.
        capacity_factor: of the experts' capacity; None for no limit.
        layer: which layer to look at, from 0.

    Raises:
        ValueError: if the model has no experts, or no such layer.
    """
    if not model.config.num_experts:
        raise ValueError("model must be a mixture of experts, got one with num_experts=0")
    if not 0 <= layer < model.config.num_layers:
        raise ValueError(f"layer must be 0 to {model.config.num_layers - 1}, got {layer}")
    config = replace(model.config, experts_per_token=experts_per_token, capacity_factor=capacity_factor)
    with torch.device("meta"):
        changed = DecoderLM(config)
    changed.load_state_dict(model.state_dict(), assign=True)  # the same weights, without a copy
    changed.eval()
    tokens = torch.tensor([text.tokens])
    with torch.no_grad(), record_routing(changed) as routings:
        logits = changed(tokens)
    routing = routings[layer]
    return RoutingScenario(
        config=config,
        layer=layer,
        tokens=_routed(routing, text),
        capacity=_capacity(config, len(text.tokens)),
        balance_loss=float(load_balancing_loss(routing)),
        loss=float(F.cross_entropy(logits[0, :-1], tokens[0, 1:])),
    )


def gate_matrix(scenario: RoutingScenario) -> np.ndarray:
    """Gates, (experts, tokens); NaN where a token does not go, or was dropped."""
    gates = np.full((scenario.num_experts, len(scenario.tokens)), np.nan)
    for column, token in enumerate(scenario.tokens):
        for expert, gate, kept in zip(token.experts, token.gates, token.kept, strict=True):
            if kept:
                gates[expert, column] = gate
    return gates


def _routed(routing: Routing, text: RoutingText) -> tuple[RoutedToken, ...]:
    rows = zip(text.texts, text.domains, routing.experts.tolist(), routing.gates.tolist(), routing.kept.tolist(),
               strict=True)  # fmt: skip
    return tuple(
        RoutedToken(text=name, domain=domain, experts=tuple(experts), gates=tuple(gates), kept=tuple(kept))
        for name, domain, experts, gates, kept in rows
    )


def _capacity(config: ModelConfig, num_tokens: int) -> int | None:
    if config.capacity_factor is None:
        return None
    return expert_capacity(num_tokens, config)


def routing_text(parts: Sequence[tuple[str, str]], tokenizer: Any) -> RoutingText:
    """Texts of several domains as one `RoutingText`.

    Args:
        parts: (domain, text) each.
        tokenizer: a `TextTokenizer`.
    """
    numbers, texts, domains = [], [], []
    for domain, part in parts:
        for token in tokenizer.encode(part):
            numbers.append(token)
            texts.append(tokenizer.token_text(token))
            domains.append(domain)
    return RoutingText(tokens=tuple(numbers), texts=tuple(texts), domains=tuple(domains))
