"""A decoder-only language model in plain PyTorch, for any `ModelConfig`.

    tokens ─ embedding ─ [ x + attention(norm(x)) ─ x + mlp(norm(x)) ] × num_layers ─ norm ─ head ─ logits

Written to be measured: what each operator keeps for the backward pass is known, and `cme295lab.memory` counts it.

- `model.layers` is a `ModuleList` of `Block`s, the units that are sharded and recomputed.
- `block.attention.core` is softmax(Q Kᵀ) V without the projections: what selective recomputation runs twice.
- "flash" attention is torch's `scaled_dot_product_attention`, which keeps one number per query (the log-sum-exp of its
  scores) and never the N × N probabilities, on a CPU, too. "standard" writes the matrices out and keeps them.
- Rotations and masks are computed once in each forward pass and shared by all layers (`Positions`).
- With a `cache` (`cme295lab.transformer.kv_cache`) the tokens continue those that it holds. One new token at a time
  needs no mask: it may see everything, unless rows are padded.

Source: Vaswani et al. 2017; Touvron et al. 2023 (RMSNorm, SwiGLU, RoPE); Radford et al. 2019 (GPT-2).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cme295lab.transformer.config import ModelConfig, RopeScaling
from cme295lab.transformer.kv_cache import KVCache
from cme295lab.transformer.layers import Dropout, ResidualLinear, make_mlp, make_norm, rotate
from cme295lab.transformer.moe import MoeMlp

AttentionKind = Literal["flash", "standard"]
INIT_STD = 0.02  # of every matrix; those that write into the residual stream are smaller by sqrt(2 num_layers)


class Positions(NamedTuple):
    """What depends on the positions of the tokens alone: made once in a forward pass, used by every layer.

    Attributes:
        cos, sin: rotations, (seq, head_dim), or (batch, seq, head_dim) where rows differ; None with learned positions.
        mask: which keys a query sees, (seq, keys), or (batch, 1, seq, keys) where rows differ. For flash attention
            True where it does, and None where plain causality or no limit says it all; for standard attention 0 where
            it does and -inf elsewhere, and None where there is no limit.
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
        self.norm = make_norm(config)
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

    def forward(
        self,
        tokens: Int[Tensor, "batch seq"],
        *,
        positions: Int[Tensor, "batch seq"] | None = None,
        documents: Int[Tensor, "batch seq"] | None = None,
        cache: KVCache | None = None,
        num_logits: int | None = None,
    ) -> Float[Tensor, "batch num_logits vocab"]:
        """The logits of the token that follows each position.

        Args:
            tokens: token numbers below vocab_size, (batch, seq).
            positions: their position numbers, (batch, seq); None counts from 0, or on from what the cache holds.
            documents: which document each belongs to, (batch, seq): tokens see their own document alone. None means
                one document in each row.
            cache: keys and values of the tokens before; those of these tokens are added to it.
            num_logits: of how many positions, the last ones, logits are wanted; None means all.

        Raises:
            ValueError: if the sequence is longer than the config's max_seq or the cache, shapes do not fit together, a
                position or a token is out of range, or positions or documents are given with a cache.
        """
        index = self._check(tokens, positions, documents, cache, num_logits)
        x = self._embed(tokens)
        if self.position_embedding is not None:
            x = x + self.position_embedding(index)
        x = self.dropout(x)
        shared = self._shared(index, tokens.shape[1], documents, cache, like=x)
        for number, layer in enumerate(self.layers):
            x = layer(x, shared) if cache is None else layer(x, shared, cache=cache, number=number)
        if cache is not None:
            cache.advance(tokens.shape[1])
        if num_logits is not None:
            x = x[:, x.shape[1] - num_logits :]
        return self.head(self.norm(x))

    def loss(
        self,
        tokens: Int[Tensor, "batch seq"],
        targets: Int[Tensor, "batch seq"],
        *,
        positions: Int[Tensor, "batch seq"] | None = None,
        documents: Int[Tensor, "batch seq"] | None = None,
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy over the positions whose target is not -100, in fp32 at least.

        Args:
            tokens: token numbers, (batch, seq).
            targets: the token that follows each of them, or -100 where none is asked for, (batch, seq).
            positions, documents: as for `forward`.
        """
        logits = self(tokens, positions=positions, documents=documents).flatten(0, 1)  # (batch × seq, vocab)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, targets.flatten())

    def _embed(self, tokens: Tensor) -> Tensor:
        try:
            return self.embedding(tokens)  # type: ignore[no-any-return]
        except IndexError as error:  # a look at every token before would make a GPU wait
            wrong = tokens[(tokens < 0) | (tokens >= self.config.vocab_size)]
            raise ValueError(
                f"tokens must be 0 to vocab_size - 1 = {self.config.vocab_size - 1}, got {wrong[0].item()}"
            ) from error

    def positions(self, num_positions: int, *, like: Tensor) -> Positions:
        """Rotations and mask for so many positions from 0 on, in the dtype and on the device of `like`."""
        index = torch.arange(num_positions, device=like.device)
        return self._shared(index, num_positions, None, None, like=like)

    def _check(
        self,
        tokens: Tensor,
        positions: Tensor | None,
        documents: Tensor | None,
        cache: KVCache | None,
        num_logits: int | None,
    ) -> Tensor:
        """Refuse what does not fit; the position numbers, (seq,) or (batch, seq)."""
        batch, seq = tokens.shape
        if num_logits is not None and not 1 <= num_logits <= seq:
            raise ValueError(f"num_logits must be 1 to {seq}, the positions of tokens, or None; got {num_logits}")
        if cache is not None:
            if positions is not None or documents is not None:
                raise ValueError("positions and documents cannot be given with a cache: it counts positions itself")
            if batch != cache.batch_size:
                raise ValueError(f"tokens have {batch} rows, the cache {cache.batch_size}")
            cache.check_room(seq)
        elif seq > self.config.max_seq:
            raise ValueError(f"tokens have {seq} positions, the model has max_seq {self.config.max_seq}")
        for name, given in (("positions", positions), ("documents", documents)):
            if given is not None and given.shape != tokens.shape:
                raise ValueError(f"{name} must have the shape of tokens, {(batch, seq)}, got {tuple(given.shape)}")
        if positions is not None:
            if seq and not 0 <= int(positions.min()) <= int(positions.max()) < self.config.max_seq:
                raise ValueError(f"positions must be 0 to max_seq - 1 = {self.config.max_seq - 1}, got {positions}")
            return positions
        before = 0 if cache is None else cache.length
        index = torch.arange(before, before + seq, device=tokens.device)
        if cache is None or cache.left_padding is None:
            return index
        return (index - cache.left_padding[:, None]).clamp_(min=0)

    def _shared(
        self, index: Tensor, seq: int, documents: Tensor | None, cache: KVCache | None, *, like: Tensor
    ) -> Positions:
        sees = _visible(seq, documents, cache, like.device)
        mask: Tensor | None = sees
        if self.attention_kind == "standard":
            if sees is None and seq > 1:
                mask = torch.full((seq, seq), float("-inf"), dtype=like.dtype, device=like.device).triu_(diagonal=1)
            elif sees is not None:
                mask = torch.zeros(sees.shape, dtype=like.dtype, device=like.device).masked_fill_(~sees, float("-inf"))
        if self.config.position == "learned":
            return Positions(None, None, mask)
        wide = torch.promote_types(like.dtype, torch.float32)
        frequency = rope_frequencies(self.config, dtype=wide, device=like.device)  # (head_dim / 2,)
        angle = index.to(wide).unsqueeze(-1) * frequency
        angle = torch.cat((angle, angle), dim=-1)
        return Positions(angle.cos().to(like.dtype), angle.sin().to(like.dtype), mask)


def _visible(seq: int, documents: Tensor | None, cache: KVCache | None, device: torch.device) -> Tensor | None:
    """Which keys each query sees, (seq, keys) or (batch, 1, seq, keys); None if causality or no limit says it all."""
    before = 0 if cache is None else cache.length
    padding = None if cache is None else cache.left_padding
    if documents is None and padding is None and (before == 0 or seq == 1):
        return None
    query = torch.arange(before, before + seq, device=device)
    key = torch.arange(before + seq, device=device)
    sees: Bool[Tensor, "*batch seq keys"] = key <= query[:, None]
    if documents is not None:
        return (sees & (documents[:, :, None] == documents[:, None, :])).unsqueeze(1)
    if padding is not None:
        own = key == query[:, None]  # a padded position sees itself, or its softmax would be over nothing
        return (sees & ((key >= padding[:, None, None]) | own)).unsqueeze(1)
    return sees


def rope_frequencies(
    config: ModelConfig, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Float[Tensor, " pairs"]:
    """Radians by which each pair of a head turns from one position to the next: theta^(-2i / head_dim), or slower."""
    pair = torch.arange(0, config.head_dim, 2, dtype=dtype, device=device)
    frequency = config.rope_theta ** -(pair / config.head_dim)
    return frequency if config.rope_scaling is None else _stretched(frequency, config.rope_scaling)


def _stretched(frequency: Tensor, scaling: RopeScaling) -> Tensor:
    """Slow rotations slower by the factor, fast ones as they are, and in between a straight line."""
    turns = scaling.original_max_seq * frequency / (2 * math.pi)  # in the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequency * (kept + (1 - kept) / scaling.factor)


class Block(nn.Module):
    """One layer: attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(self, config: ModelConfig, *, attention: AttentionKind = "flash") -> None:
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, attention=attention)
        self.mlp_norm = make_norm(config)
        self.mlp = MoeMlp(config) if config.num_experts else make_mlp(config)
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "batch seq dim"],
        positions: Positions,
        *,
        cache: KVCache | None = None,
        number: int = 0,
    ) -> Float[Tensor, "batch seq dim"]:
        """One layer; `number` is its own, for the cache."""
        x = x + self.dropout(self.attention(self.attention_norm(x), positions, cache=cache, number=number))
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

    def forward(
        self,
        x: Float[Tensor, "batch seq dim"],
        positions: Positions,
        *,
        cache: KVCache | None = None,
        number: int = 0,
    ) -> Float[Tensor, "batch seq dim"]:
        q, k, v = (project(x).unflatten(-1, (-1, self.head_dim)) for project in (self.query, self.key, self.value))
        if positions.cos is not None and positions.sin is not None:
            q, k = rotate(q, positions.cos, positions.sin), rotate(k, positions.cos, positions.sin)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # (batch, heads, seq, head_dim)
        if cache is not None:
            k, v = cache.append(number, k, v)
        return self.out(self.core(q, k, v, positions.mask).transpose(1, 2).flatten(2))


class FlashCore(nn.Module):
    """softmax(Q Kᵀ / sqrt(head_dim)) V by torch's fused kernel; keeps Q, K, V, the output and a number per query."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dropout_probability = config.dropout

    def forward(
        self,
        q: Float[Tensor, "batch heads seq head_dim"],
        k: Float[Tensor, "batch kv_heads keys head_dim"],
        v: Float[Tensor, "batch kv_heads keys head_dim"],
        mask: Tensor | None = None,  # None: causal, or one query that sees all keys
    ) -> Float[Tensor, "batch heads seq head_dim"]:
        dropout = self.dropout_probability if self.training else 0.0
        if dropout and q.device.type == "cpu":
            raise ValueError(
                f"dropout {dropout} with attention='flash': torch has no such kernel on the CPU, and would hold the "
                f"N × N matrices without a word; use attention='standard', or a config with dropout=0"
            )
        if mask is None and q.shape[2] == 1 and k.shape[2] > 1 and q.shape[1] > k.shape[1]:
            # One token: the queries that share a key/value head are rows of one small attention problem.
            shared = q.view(q.shape[0], k.shape[1], -1, q.shape[3])
            return F.scaled_dot_product_attention(shared, k, v, dropout_p=dropout).view_as(q)
        causal = mask is None and q.shape[2] == k.shape[2]
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, dropout_p=dropout, enable_gqa=True)


class StandardCore(nn.Module):
    """softmax(Q Kᵀ / sqrt(head_dim)) V with each matrix in memory, in the dtype of Q; keeps the probabilities."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.group = config.num_heads // config.num_kv_heads
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        q: Float[Tensor, "batch heads seq head_dim"],
        k: Float[Tensor, "batch kv_heads keys head_dim"],
        v: Float[Tensor, "batch kv_heads keys head_dim"],
        mask: Float[Tensor, "*batch seq keys"] | None,
    ) -> Float[Tensor, "batch heads seq head_dim"]:
        k, v = k.repeat_interleave(self.group, dim=1), v.repeat_interleave(self.group, dim=1)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (batch, heads, seq, keys)
        if mask is not None:
            scores = scores + mask
        return self.dropout(scores.softmax(dim=-1)) @ v
