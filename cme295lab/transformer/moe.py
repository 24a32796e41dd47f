"""Mixture of experts: several MLPs in place of one, and a router that sends each token to some of them.

    logits = W_r x        p = softmax(logits)        y = sum over the chosen e of g_e · expert_e(x)

The k experts of the highest p are chosen; their gates g are p, renormalised over the chosen (the softmax over the k
chosen logits, which is the same). With k = num_experts the mixture is dense: all experts compute, and nothing is saved.
With k < num_experts it is sparse: the parameters are those of all experts, the compute that of k.

A router left alone sends ever more tokens to the experts that happen to be ahead. Two losses hold it back:

    load balancing   E · Σ f_e P_e    f_e: share of tokens sent to e (no gradient)   P_e: mean probability of e
    z                mean of logsumexp(logits)², which keeps logits small

The first is 1 if all is even and E if everything goes to one expert; it is no bound, other values in between can be
below 1. Its gradient goes through P alone, since choosing is not differentiable.

On GPUs each expert has room for a fixed number of tokens, its capacity. Who comes too late is dropped there: the token
keeps its residual, and a gate that was spent on a full expert is lost. First choices of all tokens come before second
ones, and earlier tokens before later ones.

Source: Shazeer et al. 2017; Lepikhin et al. 2020, "GShard"; Fedus et al. 2021, "Switch Transformers", §2.2; Zoph et al.
2022, "ST-MoE", eq. 5; Jiang et al. 2024, "Mixtral of Experts". Not covered: balancing by biases (DeepSeek-V3).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cme295lab.transformer.config import ModelConfig
from cme295lab.transformer.layers import make_mlp


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Where the tokens of one forward pass went in one layer.

    Attributes:
        logits: of the router, (tokens, experts).
        probabilities: their softmax, (tokens, experts).
        experts: chosen experts of each token, the likeliest first, (tokens, k).
        gates: their weights, which sum to 1 before anything is dropped, (tokens, k).
        kept: False where an expert was full, (tokens, k).
    """

    logits: Float[Tensor, "tokens experts"]
    probabilities: Float[Tensor, "tokens experts"]
    experts: Int[Tensor, "tokens k"]
    gates: Float[Tensor, "tokens k"]
    kept: Bool[Tensor, "tokens k"]

    @property
    def num_experts(self) -> int:
        return self.logits.shape[1]

    @property
    def load(self) -> Int[Tensor, " experts"]:
        """Tokens that each expert computes."""
        return torch.bincount(self.experts[self.kept], minlength=self.num_experts)

    @property
    def num_dropped(self) -> int:
        """Choices for which there was no room."""
        return int((~self.kept).sum())


def expert_capacity(num_tokens: int, config: ModelConfig) -> int:
    """Tokens that an expert takes: an even share of all choices, times the capacity factor, rounded up.

    Args:
        num_tokens: tokens of a forward pass.
        config: of a mixture of experts with a capacity factor.

    Raises:
        ValueError: if the config has no capacity factor.

    Example (Switch Transformer, Fig. 3's formula):
        >>> from cme295lab.transformer import ModelConfig
        >>> shape = {"vocab_size": 9, "num_layers": 1, "dim": 8, "num_heads": 1, "mlp_dim": 8, "max_seq": 8}
        >>> expert_capacity(1024, ModelConfig(**shape, num_experts=8, experts_per_token=1, capacity_factor=1.25))
        160
    """
    if config.capacity_factor is None:
        raise ValueError("capacity_factor is None: this config's experts take all tokens that come")
    share = num_tokens * config.experts_per_token / config.num_experts
    return math.ceil(share * config.capacity_factor - 1e-9)


class MoeMlp(nn.Module):
    """The MLP of a block as a mixture of experts.

    Args:
        config: with num_experts of at least 1.

    Attributes:
        router: from a token to a logit per expert.
        experts: the MLPs.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if not config.num_experts:
            raise ValueError("config.num_experts must be at least 1 for a mixture of experts, got 0")
        self.config = config
        self.router = nn.Linear(config.dim, config.num_experts, bias=False)
        self.experts = nn.ModuleList(make_mlp(config) for _ in range(config.num_experts))
        self.recorder: list[Routing] | None = None

    def forward(self, x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq dim"]:
        tokens = x.flatten(0, 1)  # (tokens, dim)
        routing = self.route(tokens)
        if self.recorder is not None:
            self.recorder.append(routing)
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            row, choice = torch.where((routing.experts == number) & routing.kept)
            if len(row):
                gate = routing.gates[row, choice].to(tokens.dtype)
                out = out.index_add(0, row, gate[:, None] * expert(tokens[row]))
        return out.view_as(x)

    def route(self, tokens: Float[Tensor, "tokens dim"]) -> Routing:
        """Choose experts for tokens; probabilities are computed in fp32 at least."""
        logits = self.router(tokens)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        probabilities = logits.softmax(dim=-1)
        chosen, experts = probabilities.topk(self.config.experts_per_token, dim=-1)
        return Routing(
            logits=logits,
            probabilities=probabilities,
            experts=experts,
            gates=chosen / chosen.sum(dim=-1, keepdim=True),
            kept=self._within_capacity(experts),
        )

    def _within_capacity(self, experts: Int[Tensor, "tokens k"]) -> Bool[Tensor, "tokens k"]:
        """Which choices find room: by choice first, then by token."""
        if self.config.capacity_factor is None:
            return torch.ones_like(experts, dtype=torch.bool)
        queue = experts.T.flatten()  # all first choices, then all second ones
        asked = torch.nn.functional.one_hot(queue, self.config.num_experts)
        place = asked.cumsum(dim=0).gather(1, queue[:, None]).squeeze(1)  # 1 for the first that comes to an expert
        room = expert_capacity(len(experts), self.config)
        return (place <= room).view(experts.T.shape).T


@contextmanager
def record_routing(model: nn.Module) -> Iterator[list[Routing]]:
    """Collect the routing of every mixture of experts in a model, layer by layer, while the block runs.

    Args:
        model: any module with `MoeMlp`s in it.

    Raises:
        ValueError: if it has none.
    """
    mixtures = [module for module in model.modules() if isinstance(module, MoeMlp)]
    if not mixtures:
        raise ValueError("model has no mixture of experts: its config has num_experts=0")
    routings: list[Routing] = []
    before = [mixture.recorder for mixture in mixtures]
    for mixture in mixtures:
        mixture.recorder = routings
    try:
        yield routings
    finally:
        for mixture, recorder in zip(mixtures, before, strict=True):
            mixture.recorder = recorder


def load_balancing_loss(routing: Routing, k: int | None = 1) -> Float[Tensor, ""]:
    """E · Σ f_e P_e: 1 if tokens and probabilities are spread evenly.

    GShard writes (1 / E) Σ (c_e / S) m_e, with c_e first choices among S tokens: the same sum, divided by E².

    Args:
        routing: of a layer.
        k: how many choices of each token count as sent; 1 as in Switch, None for all (then f is a share of choices).

    Raises:
        ValueError: if there are not so many choices.

    Source: Fedus et al. 2021, eqs. 4 to 6.
    """
    most = routing.experts.shape[1]
    count = most if k is None else k
    if not 1 <= count <= most:
        raise ValueError(f"k must be 1 to {most}, the experts of a token, got {k}")
    sent = torch.bincount(routing.experts[:, :count].flatten(), minlength=routing.num_experts)
    share = sent.to(routing.probabilities.dtype) / sent.sum()
    return routing.num_experts * (share * routing.probabilities.mean(dim=0)).sum()


def router_z_loss(routing: Routing) -> Float[Tensor, ""]:
    """Mean of logsumexp(logits)²: keeps the router's logits small, where rounding does not choose experts.

    Source: Zoph et al. 2022, "ST-MoE", eq. 5.
    """
    return routing.logits.logsumexp(dim=-1).square().mean()


def auxiliary_loss(routings: Sequence[Routing], *, balance: float = 0.01, z: float = 0.001) -> Float[Tensor, ""]:
    """What training adds to the loss: both losses, weighted, averaged over layers; all choices count as sent.

    Args:
        routings: of all layers.
        balance: weight of load balancing.
        z: weight of the z loss.

    Raises:
        ValueError: if there is no routing.
    """
    if not routings:
        raise ValueError("routings is empty: record them with record_routing(model) around the forward pass")
    parts = [balance * load_balancing_loss(routing, None) + z * router_z_loss(routing) for routing in routings]
    return torch.stack(parts).mean()
