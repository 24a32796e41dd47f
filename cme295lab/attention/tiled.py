"""FlashAttention's algorithm in plain PyTorch: two loops over tiles, forward and backward, nothing of size N x N ever
held.

The same walk as the Triton kernels in ``cme295lab.kernels.flash_attention``, with batch and heads handled by PyTorch,
in any floating-point dtype (so that gradcheck can judge it in fp64). Read it first; the kernels are this, tile by tile,
on a GPU.

Query heads that share a key/value head are laid out as one more dimension: q is (batch, kv_heads, group, len_q, dim),
and k and v are (batch, kv_heads, 1, len_k, dim).

Source: Dao, FlashAttention-2 (2023), Algorithms 1 and 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from cme295lab.attention.validation import check_block_size, check_inputs


def tiled_attention(
    q: Float[Tensor, "batch heads len_q dim"],
    k: Float[Tensor, "batch kv_heads len_k dim"],
    v: Float[Tensor, "batch kv_heads len_k dim"],
    *,
    causal: bool = False,
    scale: float | None = None,
    block_m: int = 64,
    block_n: int = 64,
) -> Float[Tensor, "batch heads len_q dim"]:
    """softmax(scale Q Kᵀ) V tile by tile, differentiable, with O(N) memory beyond inputs and output.

    Args:
        q: (batch, query heads, len_q, dim), floating point. fp16 and bf16 are computed in fp32.
        k: (batch, key/value heads, len_k, dim); query heads must be a multiple of key/value heads.
        v: the shape of k.
        causal: query i sees keys j <= i, counted from the top left.
        scale: what Q Kᵀ is multiplied by, positive; None means 1 / sqrt(dim).
        block_m: queries per tile, a power of two of at least 16, as for the kernels.
        block_n: keys per tile, likewise. Neither need divide its sequence.

    Returns:
        The output, in q's shape and dtype.

    Raises:
        ValueError: arguments that do not fit together.
    """
    checked_scale = check_inputs(q, k, v, scale)
    check_block_size("block_m", block_m)
    check_block_size("block_n", block_n)
    output: Tensor = _TiledAttention.apply(q, k, v, causal, checked_scale, block_m, block_n)
    return output


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, block_m: int, block_n: int
    ) -> Tensor:
        o, lse = tiled_forward(q, k, v, causal=causal, scale=scale, block_m=block_m, block_n=block_n)
        ctx.save_for_backward(q, k, v, o, lse)
        ctx.options = {"causal": causal, "scale": scale, "block_m": block_m, "block_n": block_n}
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, o, lse = ctx.saved_tensors
        return *tiled_backward(q, k, v, o, lse, do, **ctx.options), None, None, None, None


def tiled_forward(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, block_m: int, block_n: int
) -> tuple[Tensor, Tensor]:
    """O and the natural log-sum-exp of every row of scores, (batch, query heads, len_q), on checked inputs."""
    compute_dtype = torch.promote_types(q.dtype, torch.float32)
    o = torch.empty_like(q)
    lse = torch.empty(q.shape[:3], dtype=compute_dtype, device=q.device)
    grouped_q, grouped_o, grouped_lse = (_group_heads(x, k.shape[1]) for x in (q, o, lse.unsqueeze(-1)))
    for rows in _tiles(q.shape[2], block_m):
        q_tile = grouped_q[..., rows, :].to(compute_dtype)  # (batch, kv_heads, group, block_m, dim)
        row_max = q_tile.new_full((*q_tile.shape[:-1], 1), float("-inf"))  # m
        row_sum = torch.zeros_like(row_max)  # l
        acc = torch.zeros_like(q_tile)  # O, not divided by l yet
        for cols in _visible_tiles(rows, k.shape[2], block_n, causal):
            k_tile = k[:, :, None, cols].to(compute_dtype)  # (batch, kv_heads, 1, block_n, dim)
            v_tile = v[:, :, None, cols].to(compute_dtype)
            s = _scores(q_tile, k_tile, rows, cols, causal, scale)  # (batch, kv_heads, group, block_m, block_n)
            new_max = torch.maximum(row_max, s.amax(dim=-1, keepdim=True))
            p = torch.exp(s - new_max)
            rescale = torch.exp(row_max - new_max)
            row_sum = row_sum * rescale + p.sum(dim=-1, keepdim=True)
            acc = acc * rescale + p @ v_tile
            row_max = new_max
        grouped_o[..., rows, :] = (acc / row_sum).to(o.dtype)
        grouped_lse[..., rows, :] = row_max + torch.log(row_sum)
    return o, lse


def tiled_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    do: Tensor,
    *,
    causal: bool,
    scale: float,
    block_m: int,
    block_n: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """dQ, dK and dV; every tile of probabilities is computed once more, from the scores and the log-sum-exp."""
    compute_dtype = lse.dtype
    dq = torch.zeros(q.shape, dtype=compute_dtype, device=q.device)
    dk = torch.zeros(k.shape, dtype=compute_dtype, device=k.device)
    dv = torch.zeros(v.shape, dtype=compute_dtype, device=v.device)
    delta = (do.to(compute_dtype) * o.to(compute_dtype)).sum(dim=-1)  # (batch, query heads, len_q)
    grouped = [_group_heads(x, k.shape[1]) for x in (q, do, lse.unsqueeze(-1), delta.unsqueeze(-1), dq)]
    for rows in _tiles(q.shape[2], block_m):
        q_tile, do_tile, lse_tile, delta_tile, dq_tile = (x[..., rows, :] for x in grouped)
        q_tile, do_tile = q_tile.to(compute_dtype), do_tile.to(compute_dtype)
        for cols in _visible_tiles(rows, k.shape[2], block_n, causal):
            k_tile = k[:, :, None, cols].to(compute_dtype)
            v_tile = v[:, :, None, cols].to(compute_dtype)
            s = _scores(q_tile, k_tile, rows, cols, causal, scale)
            p = torch.exp(s - lse_tile)  # (batch, kv_heads, group, block_m, block_n)
            dp = do_tile @ v_tile.transpose(-2, -1)
            ds = p * (dp - delta_tile)
            dv[:, :, cols] += (p.transpose(-2, -1) @ do_tile).sum(
                dim=2
            )  # the group's heads share k and v: their gradients add
            dk[:, :, cols] += (ds.transpose(-2, -1) @ q_tile).sum(dim=2) * scale
            dq_tile += (ds @ k_tile) * scale
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _group_heads(x: Tensor, kv_heads: int) -> Tensor:
    """(batch, query heads, ...) seen as (batch, kv_heads, group, ...), without a copy."""
    return x.unflatten(1, (kv_heads, x.shape[1] // kv_heads))


def _tiles(length: int, block: int) -> Iterator[slice]:
    for start in range(0, length, block):
        yield slice(start, min(start + block, length))


def _visible_tiles(rows: slice, len_k: int, block_n: int, causal: bool) -> Iterator[slice]:
    """The tiles of keys that at least one of these rows sees."""
    yield from _tiles(min(len_k, rows.stop) if causal else len_k, block_n)


def _scores(q_tile: Tensor, k_tile: Tensor, rows: slice, cols: slice, causal: bool, scale: float) -> Tensor:
    s = scale * (q_tile @ k_tile.transpose(-2, -1))
    if causal and cols.stop - 1 > rows.start:  # the diagonal cuts this tile
        i = torch.arange(rows.start, rows.stop, device=s.device)
        j = torch.arange(cols.start, cols.stop, device=s.device)
        s = s.masked_fill(j[None, :] > i[:, None], float("-inf"))
    return s
