"""The operations of a `ModelConfig`, operator by operator, for one token.

A matrix product of (m, k) and (k, n) is m·k·n multiply-adds, 2·m·k·n FLOP. So a matrix of P parameters costs each
token 2P forward; backward needs the gradient of its input and of itself, two products of the same size: 4P. That is the
6 in 6ND. The attention core has no parameters, and is on top: each query meets T keys.

    operator             forward FLOP per token and layer, d = dim, q and k the widths of all queries and keys
    query, out           2dq each
    key, value           2dk each
    core: QKᵀ, times V   2qT each. Half of it is masked away: `causal=True` counts that half only
    MLP, f = mlp_dim     2 · 2df (GELU), 3 · 2df (SwiGLU)
    experts, K of E      K · 3 · 2df, and 2dE for the router: a token passes K experts, the others are idle
    head                 2dV, once; tied to the embedding or not: it is a product either way
    embedding            0: a look-up multiplies nothing

Norms, activations, softmax, rotations and the update are linear in d (a per cent of a per cent for a large model) and
are not counted, here or in the papers. Backward is exactly twice forward.

What is computed again: "selective" the core, "full" all layers (not the head). Flash attention never keeps the scores,
so its backward pass computes QKᵀ again in any case.

`tests/pretraining/test_flops.py` holds this against what PyTorch executes, to the last multiply-add.

Source: Hoffmann et al. 2022, App. F; Chowdhery et al. 2022 (PaLM), App. B; Korthikanti et al. 2022, App. A.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

from cme295lab.pretraining.flops.breakdown import FlopBreakdown, FlopRow, Part
from cme295lab.pretraining.flops.quantities import FlopCount, whole
from cme295lab.transformer.config import ModelConfig

Recompute = Literal["none", "selective", "full"]
AttentionKind = Literal["standard", "flash"]


def flops_per_token(
    config: ModelConfig,
    seq: int,
    *,
    causal: bool = False,
    include_embedding: bool = False,
    recompute: Recompute = "none",
    attention: AttentionKind = "standard",
) -> FlopBreakdown:
    """FLOP of training on one token of a sequence.

    Args:
        config: the model.
        seq: tokens of the sequence, T.
        causal: count the half of the scores that is not masked (FlashAttention's and Kaplan's way); by default all of
            them (PaLM's and Megatron's way).
        include_embedding: count the look-up as a product of a one-hot row with the table, 2dV, as Hoffmann et al. do.
        recompute: "none", "selective" (the core) or "full" (all layers).
        attention: "flash" counts the scores that its backward pass computes again.

    Returns:
        A table; `.total` are forward and backward, `.hardware_flops` with what is computed again.

    Raises:
        TypeError, ValueError: a sequence that is no positive integer or longer than the model's table of positions, or
            an unknown kind of recomputation or attention.

    Example:
        >>> from cme295lab.transformer import preset
        >>> flops_per_token(preset("llama-3-8b"), 8192).by_part()
        {'attention': 20937965568, 'mlp': 33822867456, 'head': 3152019456}
    """
    _check(config, seq, recompute, attention)
    layers = list(_layer_rows(config, seq, causal, recompute, attention))
    once = 2 * config.vocab_size * config.dim
    ends = [FlopRow(part="head", operator="head", forward=once, backward=2 * once, formula="2dV, once")]
    if include_embedding:
        ends.append(FlopRow(part="embedding", operator="embedding", forward=once, backward=2 * once,
                            formula="2dV, once, as a product"))  # fmt: skip
    notes = ["scores: the causal half" if causal else "scores: all, masked ones too"]
    if config.num_experts:
        notes.append(f"each token passes {config.experts_per_token} of {config.num_experts} experts; none is dropped")
    if recompute != "none":
        notes.append(f"recomputation: {recompute}")
    title = f"{config.name}, {seq:,} tokens: FLOP per token"
    return FlopBreakdown(title=title, rows=(*layers, *ends), notes=tuple(notes))


def training_flops(
    config: ModelConfig,
    num_tokens: int,
    seq: int,
    *,
    recompute: Recompute = "none",
    causal: bool = False,
    attention: AttentionKind = "standard",
) -> FlopCount:
    """FLOP that training on so many tokens executes, recomputation included.

    Args:
        config: the model.
        num_tokens: tokens in all, D.
        seq: tokens of a sequence.
        recompute, causal, attention: as in `flops_per_token`.

    Raises:
        TypeError, ValueError: as there, and for a number of tokens that is no positive integer.
    """
    per_token = flops_per_token(config, seq, causal=causal, recompute=recompute, attention=attention)
    return FlopCount(per_token.times(num_tokens).hardware_flops)


def matmul_parameters(config: ModelConfig) -> int:
    """Parameters that multiply each token: matrices of the layers it passes, and the head.

    Not among them: norms, biases, idle experts, the table of positions, and the token embedding, unless it is the head.
    Without attention's core, training takes exactly 6 times as many FLOP per token.

    Example:
        >>> from cme295lab.transformer import preset
        >>> gpt = preset("gpt-2")  # its head is the embedding: the table counts once
        >>> gpt.num_parameters - matmul_parameters(gpt)
        907776
    """
    matrices = sum(size for _, _, size, _ in _matrices(config))
    return config.num_layers * matrices + config.dim * config.vocab_size


def _matrices(config: ModelConfig) -> Iterator[tuple[Part, str, int, str]]:
    """Matrices that a token passes in one layer: part, operator, parameters, FLOP as a formula."""
    d, q, k, f = config.dim, config.query_dim, config.kv_dim, config.mlp_dim
    yield "attention", "query", d * q, "2dq"
    yield "attention", "key, value", 2 * d * k, "2 · 2dk"
    yield "attention", "out", q * d, "2dq"
    num_matrices = 3 if config.mlp == "swiglu" else 2
    if config.num_experts:
        active = config.experts_per_token
        yield "mlp", "router", d * config.num_experts, "2dE"
        yield "mlp", f"experts ({config.mlp})", active * num_matrices * d * f, f"{active} · {num_matrices} · 2df"
    else:
        yield "mlp", f"MLP ({config.mlp})", num_matrices * d * f, f"{num_matrices} · 2df"


def _layer_rows(
    config: ModelConfig, seq: int, causal: bool, recompute: Recompute, attention: AttentionKind
) -> Iterator[FlopRow]:
    layers = config.num_layers
    core = layers * config.query_dim * seq * (1 if causal else 2)  # of one of the two products
    formula = "2qT / 2" if causal else "2qT"
    for part, operator, size, text in _matrices(config):
        yield _row(part, operator, 2 * size * layers, text, again=recompute == "full")
        if operator == "key, value":
            again = recompute != "none"
            yield _row("attention", "scores QKᵀ", core, formula, again=again, twice=attention == "flash")
            yield _row("attention", "probabilities V", core, formula, again=again)


def _row(part: Part, operator: str, forward: int, formula: str, *, again: bool, twice: bool = False) -> FlopRow:
    """A row whose operator runs once more with recomputation, and once more in flash attention's backward pass."""
    return FlopRow(part=part, operator=operator, forward=forward, backward=2 * forward,
                   recomputed=(again + twice) * forward, formula=formula)  # fmt: skip


def _check(config: ModelConfig, seq: int, recompute: str, attention: str) -> None:
    whole("seq", seq)
    if config.position == "learned" and seq > config.max_seq:
        raise ValueError(f"seq must be at most {config.max_seq}, the positions that {config.name} has, got {seq}")
    for name, value, allowed in (
        ("recompute", recompute, get_args(Recompute)),
        ("attention", attention, get_args(AttentionKind)),
    ):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
