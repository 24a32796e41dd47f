"""Linear attention in plain PyTorch, one position after another: what fla's chunked kernels must agree with.

All of them are one recurrence over a state S of K x V numbers per head:

    S_t = diag(decay_t) S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T,        o_t = scale * S_t^T q_t

decay = 1: linear attention; one number per head: retention; one per position: simple GLA; one per key: GLA.
a = -beta k, b = k (applied after the decay): the delta rule.
"""

from __future__ import annotations

import torch
from torch import Tensor


def recurrence(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, decay: Tensor | None = None, decay_v: Tensor | None = None,
    a: Tensor | None = None, b: Tensor | None = None, state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Outputs (batch, length, heads, V) and the last state (batch, heads, K, V).

    Args:
        q, k: (batch, length, heads, K). v: (batch, length, heads, V).
        decay: logarithms, (batch, length, heads) or (batch, length, heads, K).
        decay_v: logarithms, (batch, length, heads, V).
        a, b: (batch, length, heads, K).
        state: the first state.
    """
    batch, length, heads, width = k.shape
    state = k.new_zeros(batch, heads, width, v.shape[-1]) if state is None else state
    outputs = []
    for t in range(length):
        old = state
        if decay is not None:
            factor = decay[:, t].exp()
            state = state * (factor[..., None] if factor.ndim == 3 else factor[..., None, None])
        if decay_v is not None:
            state = state * decay_v[:, t].exp()[..., None, :]
        if a is not None and b is not None:
            state = state + b[:, t, :, :, None] * (a[:, t, :, :, None] * old).sum(-2, keepdim=True)
        state = state + k[:, t, :, :, None] * v[:, t, :, None, :]
        outputs.append((q[:, t, :, :, None] * scale * state).sum(-2))
    return torch.stack(outputs, 1), state


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, *, scale: float, decay: Tensor | None = None,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """S <- decay S, then S <- S + beta k (v - S^T k)^T: what k leads to is replaced by v."""
    batch, length, heads, width = k.shape
    state = k.new_zeros(batch, heads, width, v.shape[-1]) if state is None else state
    outputs = []
    for t in range(length):
        if decay is not None:
            factor = decay[:, t].exp()
            state = state * (factor[..., None] if factor.ndim == 3 else factor[..., None, None])
        key, strength = k[:, t, :, :, None], beta[:, t]
        strength = strength[..., None, :] if strength.ndim == 3 else strength[..., None, None]
        state = state + key * strength * (v[:, t, :, None, :] - (key * state).sum(-2, keepdim=True))
        outputs.append((q[:, t, :, :, None] * scale * state).sum(-2))
    return torch.stack(outputs, 1), state
