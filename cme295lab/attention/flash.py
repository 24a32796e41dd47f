"""FlashAttention as an autograd operation: launches ``cme295lab.kernels.flash_attention`` on a GPU, or on a CPU in the
simulator.

What is kept for the backward pass is Q, K, V, O and one log-sum-exp per query: O(N) beyond the inputs, where standard
attention keeps N x N probabilities.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from cme295lab.attention.block_sizes import AttentionConfigs, LaunchConfig, choose_configs, next_block
from cme295lab.attention.standard import standard_attention
from cme295lab.attention.tiled import tiled_attention
from cme295lab.attention.validation import check_kernel_inputs
from cme295lab.simulator.placement import input_precision, place_to_run

Backend = Literal["auto", "triton", "tiled", "standard"]


def flash_attention(
    q: Float[Tensor, "batch heads len_q dim"],
    k: Float[Tensor, "batch kv_heads len_k dim"],
    v: Float[Tensor, "batch kv_heads len_k dim"],
    *,
    causal: bool = False,
    scale: float | None = None,
    backend: Backend = "auto",
    block_m: int | None = None,
    block_n: int | None = None,
) -> Float[Tensor, "batch heads len_q dim"]:
    """softmax(scale Q Kᵀ) V without a score matrix in memory, differentiable, with grouped-query heads.

    Args:
        q: (batch, query heads, len_q, dim), fp16, bf16 or fp32, dim 16 to 128, any strides.
        k: (batch, key/value heads, len_k, dim); query heads must be a multiple of key/value heads.
        v: the shape of k.
        causal: query i sees keys j <= i, counted from the top left, as in torch's scaled_dot_product_attention.
        scale: what Q Kᵀ is multiplied by, positive; None means 1 / sqrt(dim).
        backend: "triton" runs the kernels, on CUDA tensors or in the simulator. "tiled" and "standard" are the plain
            PyTorch versions and run anywhere, in any floating-point dtype. "auto" is "triton", and an error where that
            cannot run: nothing falls back.
        block_m: queries per tile, a power of two of at least 16; None looks it up in ``block_sizes``.
        block_n: keys per tile, likewise.

    Returns:
        The output, in q's shape, dtype and memory layout.

    Raises:
        ValueError: arguments that do not fit together, an unknown backend, or a device where the backend cannot run.

    Source: Dao, FlashAttention-2 (2023), Algorithms 1 and 2.
    """
    if backend == "standard":
        return standard_attention(q, k, v, causal=causal, scale=scale)
    if backend == "tiled":
        return tiled_attention(q, k, v, causal=causal, scale=scale, block_m=block_m or 64, block_n=block_n or 64)
    if backend not in ("auto", "triton"):
        raise ValueError(f"backend must be 'auto', 'triton', 'tiled' or 'standard', got {backend!r}")
    checked_scale = check_kernel_inputs(q, k, v, scale)
    configs = choose_configs(q.shape[3], q.element_size(), q.shape[2], k.shape[2], block_m, block_n)
    output: Tensor = _FlashAttention.apply(q, k, v, causal, checked_scale, configs)
    return output


class _FlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, configs: AttentionConfigs
    ) -> Tensor:
        o, lse = flash_forward(q, k, v, causal=causal, scale=scale, config=configs.forward)
        ctx.save_for_backward(q, k, v, o, lse)
        ctx.causal, ctx.scale, ctx.configs = causal, scale, configs
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, o, lse = ctx.saved_tensors
        delta = flash_delta(o, do, config=ctx.configs.query_grad)
        options = {"causal": ctx.causal, "scale": ctx.scale}
        dq = dk = dv = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            dk, dv = flash_key_value_grads(q, k, v, do, lse, delta, config=ctx.configs.key_value_grads, **options)
        if ctx.needs_input_grad[0]:
            dq = flash_query_grad(q, k, v, do, lse, delta, config=ctx.configs.query_grad, **options)
        return dq, dk, dv, None, None, None


def flash_forward(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, config: LaunchConfig
) -> tuple[Tensor, Tensor]:
    """Launch the forward kernel on checked inputs; O and the log-sum-exp, fp32 (batch, query heads, len_q)."""
    from cme295lab.kernels.flash_attention import forward_kernel

    batch, heads, len_q, _ = q.shape
    o = torch.empty_like(q)
    lse = torch.empty((batch, heads, len_q), device=q.device, dtype=torch.float32)
    grid = (-(-len_q // config.block_m), heads, batch)
    with place_to_run(q):
        forward_kernel[grid](
            q, k, v, o, lse, scale, len_q, k.shape[2],
            *q.stride(), *k.stride(), *v.stride(), *o.stride(),
            GROUP=heads // k.shape[1], CAUSAL=causal, **_dims(q), **_tiles(q, config),
        )  # fmt: skip
    return o, lse


def flash_delta(o: Tensor, do: Tensor, *, config: LaunchConfig) -> Tensor:
    """Launch the kernel for delta = rowsum(dO * O), fp32 (batch, query heads, len_q)."""
    from cme295lab.kernels.flash_attention import delta_kernel

    batch, heads, len_q, _ = o.shape
    delta = torch.empty((batch, heads, len_q), device=o.device, dtype=torch.float32)
    grid = (-(-len_q // config.block_m), heads, batch)
    with place_to_run(o):
        delta_kernel[grid](
            o, do, delta, len_q, *o.stride(), *do.stride(), BLOCK_M=config.block_m, num_warps=8, **_dims(o)
        )
    return delta


def flash_key_value_grads(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    do: Tensor,
    lse: Tensor,
    delta: Tensor,
    *,
    causal: bool,
    scale: float,
    config: LaunchConfig,
) -> tuple[Tensor, Tensor]:
    """Launch the kernel for dK and dV, each in the layout of its input."""
    from cme295lab.kernels.flash_attention import key_value_grads_kernel

    batch, kv_heads, len_k, _ = k.shape
    dk, dv = torch.empty_like(k), torch.empty_like(v)
    grid = (-(-len_k // config.block_n), kv_heads, batch)
    with place_to_run(q):
        key_value_grads_kernel[grid](
            q, k, v, do, lse, delta, dk, dv, scale, q.shape[2], len_k,
            *q.stride(), *k.stride(), *v.stride(), *do.stride(), *dk.stride(), *dv.stride(),
            GROUP=q.shape[1] // kv_heads, CAUSAL=causal, **_dims(q), **_tiles(q, config),
        )  # fmt: skip
    return dk, dv


def flash_query_grad(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    do: Tensor,
    lse: Tensor,
    delta: Tensor,
    *,
    causal: bool,
    scale: float,
    config: LaunchConfig,
) -> Tensor:
    """Launch the kernel for dQ, in the layout of q."""
    from cme295lab.kernels.flash_attention import query_grad_kernel

    batch, heads, len_q, _ = q.shape
    dq = torch.empty_like(q)
    grid = (-(-len_q // config.block_m), heads, batch)
    with place_to_run(q):
        query_grad_kernel[grid](
            q, k, v, do, lse, delta, dq, scale, len_q, k.shape[2],
            *q.stride(), *k.stride(), *v.stride(), *do.stride(), *dq.stride(),
            GROUP=heads // k.shape[1], CAUSAL=causal, **_dims(q), **_tiles(q, config),
        )  # fmt: skip
    return dq


def _dims(q: Tensor) -> dict[str, int]:
    return {"HEAD_DIM": q.shape[3], "BLOCK_D": next_block(q.shape[3])}


def _tiles(q: Tensor, config: LaunchConfig) -> dict[str, Any]:
    return {
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "PRECISION": input_precision(q.dtype),
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }
