"""A decoder-only language model in plain PyTorch, for any `ModelConfig`.

    tokens ─ embedding ─ [ x + attention(norm(x)) ─ x + mlp(norm(x)) ] × num_layers ─ norm ─ head ─ logits

Written to be measured: what each operator keeps for the backward pass is known, and `cme295lab.memory` counts it.

- `model.layers` is a `ModuleList` of `Block`s, the units that are sharded and recomputed.
- `block.attention.core` is softmax(Q Kᵀ) V without the projections: what selective recomputation runs twice.
- "flash" attention is torch's `scaled_dot_product_attention`, which keeps one number per query (the log-sum-exp of its
  scores) and never the N × N probabilities, on a CPU, too. "standard" writes the matrices out and keeps them.
- `RMSNorm` has its backward pass written out, because autograd of the formula keeps three tensors where one suffices.
- Rotations, and the causal mask of "standard", are computed once in each forward pass and shared by all layers.

There is no key/value cache and no way to sample here: this is the model as it is trained.

Source: Vaswani et al. 2017; Touvron et al. 2023 (RMSNorm, SwiGLU, RoPE); Radford et al. 2019 (GPT-2).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from cme295lab.transformer.config import ModelConfig

AttentionKind = Literal["flash", "standard"]
INIT_STD = 0.02  # of every matrix; those that write into the residual stream are smaller by sqrt(2 num_layers)


class Positions(NamedTuple):
    """What depends on the positions of the tokens alone: made once in a forward pass, used by every layer.

    Attributes:
        cos, sin: rotations, (seq, head_dim); None with learned positions.
        mask: 0 where a query sees a key and -inf elsewhere, (seq, seq); None with flash attention.
    """

    cos: Tensor | None
    sin: Tensor | None
    mask: Tensor | None


class DecoderLM(nn.Module):
    """The model: token numbers in, logits of the next token out.

    Args:
        config: the shape.
        attention: "flash" or "standard".

    Raises:
        ValueError: if the kind of attention is unknown.
    """

    def __init__(self, config: ModelConfig, *, attention: AttentionKind = "flash") -> None:
        super().__init__()
        if attention not in get_args(AttentionKind):
            raise ValueError(f"attention must be 'flash' or 'standard', got {attention!r}")
        self.config = config
        self.attention_kind = attention
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.position_embedding = nn.Embedding(config.max_seq, config.dim) if config.position == "learned" else None
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(Block(config, attention=attention) for _ in range(config.num_layers))
        self.norm = _make_norm(config)
        self.head = nn.Linear(config.dim, config.vocab_size, bias=False)
        if config.tied_head:
            self.head.weight = self.embedding.weight
        self.apply(self._initialize)

    def _initialize(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding | nn.Linear):
            scale = (2 * self.config.num_layers) ** -0.5 if isinstance(module, ResidualLinear) else 1.0
            nn.init.normal_(module.weight, std=INIT_STD * scale)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq vocab"]:
        """The logits of the token that follows each position.

        Args:
            tokens: token numbers below vocab_size, (batch, seq).

        Raises:
            ValueError: if the sequence is longer than the config's max_seq.
        """
        num_positions = tokens.shape[1]
        if num_positions > self.config.max_seq:
            raise ValueError(f"tokens have {num_positions} positions, the model has max_seq {self.config.max_seq}")
        x = self.embedding(tokens)
        if self.position_embedding is not None:
            x = x + self.position_embedding(torch.arange(num_positions, device=tokens.device))
        x = self.dropout(x)
        positions = self.positions(num_positions, like=x)
        for layer in self.layers:
            x = layer(x, positions)
        return self.head(self.norm(x))

    def loss(self, tokens: Int[Tensor, "batch seq"], targets: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
        """Mean cross-entropy over the positions whose target is not -100, in fp32 at least.

        Args:
            tokens: token numbers, (batch, seq).
            targets: the token that follows each of them, or -100 where none is asked for, (batch, seq).
        """
        logits = self(tokens).flatten(0, 1)  # (batch × seq, vocab)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, targets.flatten())

    def positions(self, num_positions: int, *, like: Tensor) -> Positions:
        """Rotations and mask for so many positions, in the dtype and on the device of `like`."""
        mask = None
        if self.attention_kind == "standard":
            mask = torch.full((num_positions, num_positions), float("-inf"), dtype=like.dtype, device=like.device)
            mask = mask.triu_(diagonal=1)
        if self.config.position == "learned":
            return Positions(None, None, mask)
        wide = torch.promote_types(like.dtype, torch.float32)
        pair = torch.arange(0, self.config.head_dim, 2, dtype=wide, device=like.device)
        frequency = self.config.rope_theta ** -(pair / self.config.head_dim)  # (head_dim / 2,)
        angle = torch.outer(torch.arange(num_positions, dtype=wide, device=like.device), frequency).repeat(1, 2)
        return Positions(angle.cos().to(like.dtype), angle.sin().to(like.dtype), mask)


class Block(nn.Module):
    """One layer: attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(self, config: ModelConfig, *, attention: AttentionKind = "flash") -> None:
        super().__init__()
        self.attention_norm = _make_norm(config)
        self.attention = Attention(config, attention=attention)
        self.mlp_norm = _make_norm(config)
        self.mlp = SwiGluMlp(config) if config.mlp == "swiglu" else GeluMlp(config)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "batch seq dim"], positions: Positions) -> Float[Tensor, "batch seq dim"]:
        x = x + self.dropout(self.attention(self.attention_norm(x), positions))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class Attention(nn.Module):
    """Causal self-attention: projections, rotations, the core, and the projection back."""

    def __init__(self, config: ModelConfig, *, attention: AttentionKind) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.query = nn.Linear(config.dim, config.query_dim, bias=config.bias)
        self.key = nn.Linear(config.dim, config.kv_dim, bias=config.bias)
        self.value = nn.Linear(config.dim, config.kv_dim, bias=config.bias)
        self.core = FlashCore(config) if attention == "flash" else StandardCore(config)
        self.out = ResidualLinear(config.query_dim, config.dim, bias=config.bias)

    def forward(self, x: Float[Tensor, "batch seq dim"], positions: Positions) -> Float[Tensor, "batch seq dim"]:
        q, k, v = (project(x).unflatten(-1, (-1, self.head_dim)) for project in (self.query, self.key, self.value))
        if positions.cos is not None and positions.sin is not None:
            q, k = rotate(q, positions.cos, positions.sin), rotate(k, positions.cos, positions.sin)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # (batch, heads, seq, head_dim)
        return self.out(self.core(q, k, v, positions.mask).transpose(1, 2).flatten(2))


class ResidualLinear(nn.Linear):
    """A linear layer whose output is added to the residual stream: it starts smaller, as there are 2 per layer."""


class FlashCore(nn.Module):
    """softmax(Q Kᵀ / sqrt(head_dim)) V by torch's fused kernel; keeps Q, K, V, the output and a number per query."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dropout_probability = config.dropout

    def forward(
        self,
        q: Float[Tensor, "batch heads seq head_dim"],
        k: Float[Tensor, "batch kv_heads seq head_dim"],
        v: Float[Tensor, "batch kv_heads seq head_dim"],
        mask: Tensor | None = None,  # causal by itself
    ) -> Float[Tensor, "batch heads seq head_dim"]:
        dropout = self.dropout_probability if self.training else 0.0
        if dropout and q.device.type == "cpu":
            raise ValueError(
                f"dropout {dropout} with attention='flash': torch has no such kernel on the CPU, and would hold the "
                f"N × N matrices without a word; use attention='standard', or a config with dropout=0"
            )
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout, enable_gqa=True)


class StandardCore(nn.Module):
    """softmax(Q Kᵀ / sqrt(head_dim)) V with each matrix in memory, in the dtype of Q; keeps the probabilities."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.group = config.num_heads // config.num_kv_heads
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        q: Float[Tensor, "batch heads seq head_dim"],
        k: Float[Tensor, "batch kv_heads seq head_dim"],
        v: Float[Tensor, "batch kv_heads seq head_dim"],
        mask: Float[Tensor, "seq seq"],
    ) -> Float[Tensor, "batch heads seq head_dim"]:
        k, v = k.repeat_interleave(self.group, dim=1), v.repeat_interleave(self.group, dim=1)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + mask  # (batch, heads, seq, seq)
        return self.dropout(scores.softmax(dim=-1)) @ v


class SwiGluMlp(nn.Module):
    """down(silu(gate x) × up x)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.dim, config.mlp_dim, bias=config.bias)
        self.up = nn.Linear(config.dim, config.mlp_dim, bias=config.bias)
        self.down = ResidualLinear(config.mlp_dim, config.dim, bias=config.bias)

    def forward(self, x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq dim"]:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class GeluMlp(nn.Module):
    """down(gelu(up x)), with the tanh form of GELU that GPT-2 has."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.dim, config.mlp_dim, bias=config.bias)
        self.down = ResidualLinear(config.mlp_dim, config.dim, bias=config.bias)

    def forward(self, x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq dim"]:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) × weight, computed in fp32 at least.

    Source: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization".
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return _RmsNorm.apply(x, self.weight, self.eps)


class _RmsNorm(torch.autograd.Function):
    """Keeps its input and one number per token. With n = x r and r = 1 / sqrt(mean(x²) + eps):

    dx = r (g - n mean(g n)) where g = dy × weight, and dweight = sum over tokens of dy × n.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, inverse)
        return (wide * inverse * weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        normed = x.to(inverse.dtype) * inverse
        dy = gradients[0].to(inverse.dtype)
        dweight = (dy * normed).flatten(0, -2).sum(0).to(weight.dtype)
        g = dy * weight
        dx = g.sub_(normed.mul_((g * normed).mean(-1, keepdim=True))).mul_(inverse)  # in place: no more temporaries
        return dx.to(x.dtype), dweight, None


class Dropout(nn.Module):
    """Zero with some probability, and scale the rest; keeps one byte per element, on a CPU, too.

    (torch's own keeps the mask in the dtype of its input on a CPU, in one byte on a GPU.)
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.probability:
            return x
        return torch.native_dropout(x, self.probability, True)[0]


def rotate(
    x: Float[Tensor, "batch seq heads head_dim"], cos: Float[Tensor, "seq head_dim"], sin: Float[Tensor, "seq head_dim"]
) -> Float[Tensor, "batch seq heads head_dim"]:
    """Rotate the pairs (i, i + head_dim / 2) of every head by the angles of its position.

    Source: Su et al. 2021, "RoFormer", eq. 34, with the two halves of a head as the pairs, as in Llama checkpoints.
    """
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return x * cos[:, None] + turned * sin[:, None]


def _make_norm(config: ModelConfig) -> nn.Module:
    if config.norm == "layernorm":
        return nn.LayerNorm(config.dim, eps=config.norm_eps)
    return RMSNorm(config.dim, config.norm_eps)
