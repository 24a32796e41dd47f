"""Matrix products whose running sum is kept in 16 bits: what fp32 accumulation is there to avoid.

A matrix product of inner size K adds K products to a sum. Kept in fp16, the sum is rounded K times, and once it is
2048 times as large as a product, nothing that is added changes it any more: 4,096 ones make 2048. In bf16 it takes 256.
So hardware that multiplies 16-bit numbers adds them in fp32 and rounds the end of it.

No CPU and no GPU library offers the wrong way, so it is emulated: the sum is taken along K, `chunk` products at a time,
and rounded after each. The backward pass is two such products itself, and sums over tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def matmul_in_16_bits(
    a: Float[Tensor, "*batch_a rows inner"],
    b: Float[Tensor, "*batch_b inner columns"],
    *,
    dtype: torch.dtype,
    chunk: int = 1,
) -> Float[Tensor, "*batch rows columns"]:
    """a b with a running sum of 16 bits, forward and backward.

        >>> ones = torch.ones(1, 4096)
        >>> matmul_in_16_bits(ones, ones.t(), dtype=torch.float16).item()
        2048.0

    Args:
        a, b: matrices, or batches of them that broadcast; rounded to `dtype` first.
        dtype: torch.float16 or torch.bfloat16.
        chunk: products that are added in fp32 before the sum is rounded again.

    Returns:
        The product, in `dtype`.

    Raises:
        ValueError: if the chunk is not positive, the dtype another one, or the inner sizes differ.
    """
    _check(dtype, chunk)
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise ValueError(
            f"a and b must be matrices whose inner sizes agree, got shapes {tuple(a.shape)} and {tuple(b.shape)}"
        )
    product: Tensor = _MatmulIn16Bits.apply(a.to(dtype), b.to(dtype), chunk)
    return product


def sum_in_16_bits(
    x: Float[Tensor, "*shape"],
    dim: int | tuple[int, ...] | None = None,
    *,
    dtype: torch.dtype,
    keepdim: bool = False,
    chunk: int = 1,
) -> Float[Tensor, "*sums"]:
    """The sum of values, or of those along some dimensions, with a running sum of 16 bits.

    Args:
        x: values; rounded to `dtype` first.
        dim: what to sum over, None for all.
        dtype: torch.float16 or torch.bfloat16.
        keepdim: keep summed dimensions with size 1.
        chunk: values that are added in fp32 before the sum is rounded again.

    Returns:
        The sums, in `dtype`.

    Raises:
        ValueError: if the chunk is not positive, or the dtype another one.
    """
    _check(dtype, chunk)
    if dim is None or dim == ():
        dims = tuple(range(x.ndim))
    else:
        dims = tuple(axis % x.ndim for axis in ((dim,) if isinstance(dim, int) else dim))
    kept = [axis for axis in range(x.ndim) if axis not in dims]
    rows = x.permute(*kept, *dims).reshape([x.shape[axis] for axis in kept] + [-1]).unsqueeze(-2)  # (*kept, 1, values)
    sums = matmul_in_16_bits(rows, rows.new_ones(rows.shape[-1], 1), dtype=dtype, chunk=chunk)[..., 0, 0]
    return sums.reshape([1 if axis in dims else x.shape[axis] for axis in range(x.ndim)]) if keepdim else sums


class _MatmulIn16Bits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, chunk: int) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.chunk = chunk
        return _accumulate(a, b, chunk)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        a, b = ctx.saved_tensors
        if b.ndim == 2:  # a matrix for all rows of a batch: its gradient is one sum over all of them
            rows, gradient = a.flatten(0, -2), gradients[0].flatten(0, -2)
            by_row = _accumulate(gradient, b.t(), ctx.chunk).view(a.shape)
            return by_row, _accumulate(rows.t(), gradient, ctx.chunk), None
        gradient = gradients[0]
        by_a = _accumulate(gradient, b.transpose(-2, -1), ctx.chunk)
        by_b = _accumulate(a.transpose(-2, -1), gradient, ctx.chunk)
        return by_a.sum_to_size(a.shape), by_b.sum_to_size(b.shape), None


def _accumulate(a: Tensor, b: Tensor, chunk: int) -> Tensor:
    """The product, with its sum rounded to the dtype of `a` after each chunk."""
    wide_a, wide_b = a.float(), b.float()
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    total = a.new_zeros((*batch, a.shape[-2], b.shape[-1]))
    for start in range(0, a.shape[-1], chunk):
        part = wide_a[..., start : start + chunk] @ wide_b[..., start : start + chunk, :]
        total = part.add_(total).to(a.dtype)  # an fp32 sum of 16-bit numbers, rounded
    return total


def _check(dtype: torch.dtype, chunk: int) -> None:
    if dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(f"dtype must be torch.float16 or torch.bfloat16, got {dtype}")
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"chunk must be an int of at least 1, got {chunk!r}")
