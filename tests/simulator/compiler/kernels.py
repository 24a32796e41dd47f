"""Kernels that are well made, and kernels with a fault each."""

import torch
import triton
import triton.language as tl

from cme295lab import simulator
from cme295lab.simulator import CompileReport


@triton.jit
def matmul_kernel(
    a_ptr, b_ptr, c_ptr, M, N, K, stride_ak,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    j = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    acc = tl.zeros([BM, BN], tl.float32)
    for start in range(0, K, BK):
        a = tl.load(a_ptr + i[:, None] * K + (start + k)[None, :] * stride_ak)
        b = tl.load(b_ptr + (start + k)[:, None] * N + j[None, :])
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    tl.store(c_ptr + i[:, None] * N + j[None, :], acc)


@triton.jit
def product_without_dot_kernel(a_ptr, b_ptr, c_ptr, M, N, K, BM: tl.constexpr, BN: tl.constexpr):
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    j = tl.program_id(1) * BN + tl.arange(0, BN)
    acc = tl.zeros([BM, BN], tl.float32)
    for k in range(0, K):
        acc += tl.load(a_ptr + i * K + k)[:, None] * tl.load(b_ptr + k * N + j)[None, :]
    tl.store(c_ptr + i[:, None] * N + j[None, :], acc)


@triton.jit
def transpose_kernel(x_ptr, y_ptr, M, N, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i[:, None] * N + j[None, :])
    tl.store(y_ptr + j[None, :] * M + i[:, None], x)


@triton.jit
def copy_kernel(x_ptr, out_ptr, flag, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + lane)
    if flag:
        tl.store(out_ptr + lane, x)


@triton.jit
def sum_columns_kernel(x_ptr, out_ptr, rows, cols, BLOCK: tl.constexpr):
    """A loop with no product in it, and one without work."""
    lane = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for row in range(0, rows):
        total += tl.load(x_ptr + row * cols + lane)
    tl.store(out_ptr + lane, total)


def empty(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    """A tensor without data."""
    return torch.empty(shape, dtype=dtype, device="meta")


def matmul_report(
    device: str = "A100", dtype: torch.dtype = torch.float16, *, block: int = 64, inner: int = 32, stride: int = 1,
    precision: str = "tf32", **options: int,
) -> CompileReport:  # fmt: skip
    """The tiled product, compiled."""
    a, c = empty(256, 256, dtype=dtype), empty(256, 256, dtype=torch.float32)
    return simulator.compile_report(
        matmul_kernel, a, a, c, 256, 256, 256, stride, device=device, BM=block, BN=block, BK=inner,
        PRECISION=precision, **options,
    )  # fmt: skip
