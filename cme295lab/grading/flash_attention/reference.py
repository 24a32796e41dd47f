"""The truth that attention exercises are judged against: the whole score matrix, in float64."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def exact_attention(
    q: Float[Tensor, "*lead rows dim"],
    k: Float[Tensor, "*lead cols dim"],
    v: Float[Tensor, "*lead cols dim"],
    causal: bool,
) -> tuple[Float[Tensor, "*lead rows dim"], Float[Tensor, "*lead rows"]]:
    """softmax(q kᵀ / sqrt(dim)) v and the log-sum-exp of its scaled scores.

    Args:
        q: queries, any floating dtype.
        k: keys.
        v: values.
        causal: whether query i sees keys 0 to i only.

    Returns:
        The output and the log-sum-exp, float64.
    """
    q, k, v = q.double(), k.double(), v.double()
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if causal:
        later = torch.arange(k.shape[-2]) > torch.arange(q.shape[-2])[:, None]
        scores = scores.masked_fill(later, -math.inf)
    return scores.softmax(-1) @ v, scores.logsumexp(-1)
