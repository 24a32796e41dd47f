"""Standard attention as separate Triton kernels that write S and P to memory: what flash attention is counted against.

Runs wherever ``flash_attention`` runs: on CUDA tensors, or on CPU tensors in the simulator. Its compulsory traffic
(each byte once per kernel) is that of ``io.STANDARD_STEPS``: with additive mask and dropout 18 NN + 12 ND bytes,
forward and backward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from cme295lab.attention.block_sizes import next_block
from cme295lab.attention.validation import check_kernel_inputs
from cme295lab.simulator.placement import input_precision, place_to_run

MAX_LEN_K = 65536  # the softmax kernels hold a whole row on chip
_BLOCK = 64  # tile of the products, and depth of each step of a sum
_SOFTMAX_TILE = 8192  # elements of a tile of the softmax kernels


def standard_attention_kernels(
    q: Float[Tensor, "batch heads len_q dim"],
    k: Float[Tensor, "batch kv_heads len_k dim"],
    v: Float[Tensor, "batch kv_heads len_k dim"],
    *,
    causal: bool = False,
    scale: float | None = None,
    additive_mask: bool = False,
    dropout_p: float = 0.0,
    seed: int = 0,
) -> Float[Tensor, "batch heads len_q dim"]:
    """softmax(scale Q Kᵀ) V by one kernel per step, differentiable; S, P and their gradients go through memory in q's
    dtype.

    Args:
        q: (batch, query heads, len_q, dim), fp16, bf16 or fp32, dim 16 to 128, any strides.
        k: (batch, key/value heads, len_k, dim); query heads must be a multiple of key/value heads.
        v: the shape of k.
        causal: query i sees keys j <= i, counted from the top left.
        scale: what Q Kᵀ is multiplied by, positive; None means 1 / sqrt(dim).
        additive_mask: add the mask in a pass of its own over S (zeros if not causal), as frameworks did, not in the
            kernel that makes S.
        dropout_p: probability of dropping an element of P, in [0, 1); 0 runs no dropout kernels.
        seed: of the dropout; the same seed drops the same elements.

    Returns:
        The output, in q's shape, dtype and memory layout.

    Raises:
        ValueError: arguments that do not fit together, more than 65,536 keys, or a device where no kernel can run.

    Source: Dao et al., FlashAttention (2022), Algorithms 0 and 3.
    """
    checked_scale = check_kernel_inputs(q, k, v, scale)
    if k.shape[2] > MAX_LEN_K:
        raise ValueError(
            f"k must have at most {MAX_LEN_K} keys, got {k.shape[2]}: a row of scores must fit on chip; "
            f"use flash_attention"
        )
    if not (math.isfinite(dropout_p) and 0.0 <= dropout_p < 1.0):
        raise ValueError(f"dropout_p must be at least 0 and below 1, got {dropout_p!r}")
    options = _Options(
        causal=causal, scale=checked_scale, additive_mask=additive_mask, dropout_p=float(dropout_p), seed=seed
    )
    output: Tensor = _StandardAttention.apply(q, k, v, options)
    return output


@dataclass(frozen=True, kw_only=True)
class _Options:
    causal: bool
    scale: float
    additive_mask: bool
    dropout_p: float
    seed: int


class _StandardAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, options: _Options) -> Tensor:
        with place_to_run(q):
            s = _scores(q, k, options)
            p = _softmax(s)
            del s
            dropped, keep = _dropout(p, options)
            o = _output(dropped, v, torch.empty_like(q))
        ctx.save_for_backward(q, k, v, p, dropped, keep)
        ctx.options = options
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, p, dropped, keep = ctx.saved_tensors
        dq = dk = dv = None
        with place_to_run(q):
            if ctx.needs_input_grad[2]:
                dv = _value_grad(dropped, do, v)
            if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
                ds = _score_grad(p, keep, do, v, ctx.options)
                if ctx.needs_input_grad[0]:
                    dq = _query_grad(ds, q, k, ctx.options.scale)
                if ctx.needs_input_grad[1]:
                    dk = _key_grad(ds, q, k, ctx.options.scale)
        return dq, dk, dv, None


def _scores(q: Tensor, k: Tensor, options: _Options) -> Tensor:
    from cme295lab.kernels import standard_attention as kernels

    batch, heads, len_q, head_dim = q.shape
    s = torch.empty((batch, heads, len_q, k.shape[2]), dtype=q.dtype, device=q.device)
    kernels.scores_kernel[_score_grid(s)](
        q, k, s, options.scale, len_q, k.shape[2], *q.stride(), *k.stride(),
        GROUP=heads // k.shape[1], HEAD_DIM=head_dim, CAUSAL=options.causal and not options.additive_mask,
        BLOCK_M=_BLOCK, BLOCK_N=_BLOCK, BLOCK_K=min(_BLOCK, next_block(head_dim)), PRECISION=input_precision(q.dtype),
    )  # fmt: skip
    if options.additive_mask:
        kernels.mask_kernel[_score_grid(s)](s, len_q, k.shape[2], CAUSAL=options.causal, BLOCK_M=_BLOCK, BLOCK_N=_BLOCK)
    return s


def _softmax(s: Tensor) -> Tensor:
    from cme295lab.kernels.standard_attention import softmax_kernel

    p = torch.empty_like(s)
    grid, num_rows, tile = _row_tiles(s)
    softmax_kernel[grid](s, p, num_rows, s.shape[3], **tile)
    return p


def _dropout(p: Tensor, options: _Options) -> tuple[Tensor, Tensor | None]:
    """P~ and the mask of kept elements; without dropout P itself and None."""
    from cme295lab.kernels.standard_attention import dropout_kernel

    if options.dropout_p == 0.0:
        return p, None
    dropped, keep = torch.empty_like(p), torch.empty_like(p, dtype=torch.uint8)
    dropout_kernel[_score_grid(p)](
        p, dropped, keep, options.dropout_p, options.seed, p.shape[2], p.shape[3], BLOCK_M=_BLOCK, BLOCK_N=_BLOCK
    )
    return dropped, keep


def _output(p: Tensor, v: Tensor, o: Tensor) -> Tensor:
    from cme295lab.kernels.standard_attention import output_kernel

    grid = (-(-p.shape[2] // _BLOCK), p.shape[1], p.shape[0])
    output_kernel[grid](
        p, v, o, p.shape[2], p.shape[3], *v.stride(), *o.stride(),
        GROUP=p.shape[1] // v.shape[1], BLOCK_M=_BLOCK, **_product(v),
    )  # fmt: skip
    return o


def _value_grad(p: Tensor, do: Tensor, v: Tensor) -> Tensor:
    from cme295lab.kernels.standard_attention import value_grad_kernel

    dv = torch.empty_like(v)
    value_grad_kernel[_key_grid(v)](
        p, do, dv, p.shape[2], p.shape[3], *do.stride(), *dv.stride(),
        GROUP=p.shape[1] // v.shape[1], BLOCK_N=_BLOCK, **_product(v),
    )  # fmt: skip
    return dv


def _score_grad(p: Tensor, keep: Tensor | None, do: Tensor, v: Tensor, options: _Options) -> Tensor:
    """dS, by way of dP~ and dP, all in one buffer."""
    from cme295lab.kernels import standard_attention as kernels

    dp = torch.empty_like(p)
    len_q, len_k = p.shape[2:]
    kernels.probability_grad_kernel[_score_grid(p)](
        do, v, dp, len_q, len_k, *do.stride(), *v.stride(),
        GROUP=p.shape[1] // v.shape[1], HEAD_DIM=v.shape[3],
        BLOCK_M=_BLOCK, BLOCK_N=_BLOCK, BLOCK_K=min(_BLOCK, next_block(v.shape[3])), PRECISION=input_precision(v.dtype),
    )  # fmt: skip
    if keep is not None:
        kernels.dropout_backward_kernel[_score_grid(p)](
            dp, keep, options.dropout_p, len_q, len_k, BLOCK_M=_BLOCK, BLOCK_N=_BLOCK
        )
    grid, num_rows, tile = _row_tiles(p)
    kernels.softmax_backward_kernel[grid](p, dp, dp, num_rows, len_k, **tile)
    return dp


def _query_grad(ds: Tensor, q: Tensor, k: Tensor, scale: float) -> Tensor:
    from cme295lab.kernels.standard_attention import query_grad_kernel

    dq = torch.empty_like(q)
    grid = (-(-q.shape[2] // _BLOCK), q.shape[1], q.shape[0])
    query_grad_kernel[grid](
        ds, k, dq, scale, q.shape[2], k.shape[2], *k.stride(), *dq.stride(),
        GROUP=q.shape[1] // k.shape[1], BLOCK_M=_BLOCK, **_product(k),
    )  # fmt: skip
    return dq


def _key_grad(ds: Tensor, q: Tensor, k: Tensor, scale: float) -> Tensor:
    from cme295lab.kernels.standard_attention import key_grad_kernel

    dk = torch.empty_like(k)
    key_grad_kernel[_key_grid(k)](
        ds, q, dk, scale, q.shape[2], k.shape[2], *q.stride(), *dk.stride(),
        GROUP=q.shape[1] // k.shape[1], BLOCK_N=_BLOCK, **_product(k),
    )  # fmt: skip
    return dk


def _score_grid(s: Tensor) -> tuple[int, int, int]:
    batch, heads, len_q, len_k = s.shape
    return -(-len_q // _BLOCK) * -(-len_k // _BLOCK), heads, batch


def _key_grid(k: Tensor) -> tuple[int, int, int]:
    batch, kv_heads, len_k, _ = k.shape
    return -(-len_k // _BLOCK), kv_heads, batch


def _row_tiles(s: Tensor) -> tuple[tuple[int], int, dict[str, int]]:
    """Grid, number of rows and tile of the softmax kernels: a program takes whole rows, as many as make a fair tile."""
    block_cols = next_block(s.shape[3])
    block_rows = max(1, _SOFTMAX_TILE // block_cols)
    num_rows = s.shape[0] * s.shape[1] * s.shape[2]
    tile = {"BLOCK_ROWS": block_rows, "BLOCK_COLS": block_cols, "num_warps": 8}
    return (-(-num_rows // block_rows),), num_rows, tile


def _product(v: Tensor) -> dict[str, Any]:
    return {
        "HEAD_DIM": v.shape[3],
        "BLOCK_D": next_block(v.shape[3]),
        "BLOCK_K": _BLOCK,
        "PRECISION": input_precision(v.dtype),
    }
