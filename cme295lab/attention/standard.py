"""Attention as it is defined: every matrix in full, plain PyTorch. The slow version that the others must agree with."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cme295lab.attention.validation import check_inputs


def standard_attention(
    q: Float[Tensor, "batch heads len_q dim"],
    k: Float[Tensor, "batch kv_heads len_k dim"],
    v: Float[Tensor, "batch kv_heads len_k dim"],
    *,
    causal: bool = False,
    scale: float | None = None,
) -> Float[Tensor, "batch heads len_q dim"]:
    """softmax(scale Q Kᵀ) V, with the N x N scores and probabilities held in memory.

    Scores and softmax are computed in fp32 for fp16 and bf16 inputs, and in the inputs' own dtype for fp32 and fp64.

    Args:
        q: (batch, query heads, len_q, dim), floating point.
        k: (batch, key/value heads, len_k, dim); query heads must be a multiple of key/value heads.
        v: the shape of k.
        causal: query i sees keys j <= i, counted from the top left.
        scale: what Q Kᵀ is multiplied by, positive; None means 1 / sqrt(dim).

    Returns:
        The output, in q's shape and dtype.

    Raises:
        ValueError: arguments that do not fit together.

    Source: Vaswani et al., Attention Is All You Need (2017), eq. 1.
    """
    scale = check_inputs(q, k, v, scale)
    compute_dtype = torch.promote_types(q.dtype, torch.float32)
    group = q.shape[1] // k.shape[1]
    k = k.repeat_interleave(group, dim=1).to(compute_dtype)  # (batch, query heads, len_k, dim)
    v = v.repeat_interleave(group, dim=1)

    s = scale * (q.to(compute_dtype) @ k.transpose(-2, -1))  # (batch, query heads, len_q, len_k)
    if causal:
        s = s.masked_fill(~causal_mask(s.shape[-2], s.shape[-1], device=s.device), float("-inf"))
    p = s.softmax(dim=-1)
    return (p @ v.to(compute_dtype)).to(q.dtype)


def causal_mask(len_q: int, len_k: int, *, device: torch.device | None = None) -> Bool[Tensor, "len_q len_k"]:
    """True where query i sees key j, that is where j <= i: (len_q, len_k), aligned at the top left."""
    return torch.ones(len_q, len_k, dtype=torch.bool, device=device).tril()
