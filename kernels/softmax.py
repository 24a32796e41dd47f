"""Softmax over the rows of a matrix: plain, fused, for rows that fit on chip, and online, for rows of any length.

A softmax needs a row three times: for its maximum, for the sum of its exponentials, and to divide. The plain kernel
reads it from memory for each. The fused kernel reads it once and keeps it on chip. The online kernel reads it twice,
because it finds maximum and sum in a single pass: whenever the maximum grows, the sum so far is scaled down.

Source: Milakov and Gimelshein, Online normalizer calculation for softmax (2018), Algorithm 3.
"""

import triton
import triton.language as tl


@triton.jit
def plain_softmax_kernel(x_ptr, y_ptr, num_cols, stride_xm, stride_xn, stride_ym, stride_yn, BLOCK_N: tl.constexpr):
    """y = softmax(x) for one row, BLOCK_N elements at a time, in three passes over it. Grid: (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    offs_n = tl.arange(0, BLOCK_N)
    maxima = tl.full([BLOCK_N], -float("inf"), tl.float32)
    for start in tl.range(0, num_cols, BLOCK_N):
        cols = (start + offs_n).to(tl.int64)
        x = tl.load(x_ptr + row * stride_xm + cols * stride_xn, mask=cols < num_cols, other=-float("inf"))
        maxima = tl.maximum(maxima, x.to(tl.float32))
    row_max = tl.max(maxima, 0)
    sums = tl.zeros([BLOCK_N], tl.float32)
    for start in tl.range(0, num_cols, BLOCK_N):
        cols = (start + offs_n).to(tl.int64)
        x = tl.load(x_ptr + row * stride_xm + cols * stride_xn, mask=cols < num_cols, other=-float("inf"))
        sums += tl.exp(x.to(tl.float32) - row_max)
    row_sum = tl.sum(sums, 0)
    for start in tl.range(0, num_cols, BLOCK_N):
        cols = (start + offs_n).to(tl.int64)
        x = tl.load(x_ptr + row * stride_xm + cols * stride_xn, mask=cols < num_cols, other=0.0)
        y = tl.exp(x.to(tl.float32) - row_max) / row_sum
        tl.store(y_ptr + row * stride_ym + cols * stride_yn, y.to(y_ptr.dtype.element_ty), mask=cols < num_cols)


@triton.jit
def softmax_kernel(x_ptr, y_ptr, num_cols, stride_xm, stride_xn, stride_ym, stride_yn, BLOCK_N: tl.constexpr):
    """y = softmax(x) for one row, held whole: BLOCK_N is num_cols rounded up to a power of two. Grid: (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK_N)
    inside = cols < num_cols
    x = tl.load(x_ptr + row * stride_xm + cols * stride_xn, mask=inside, other=-float("inf"))  # (BLOCK_N,)
    x = x.to(tl.float32)
    y = tl.exp(x - tl.max(x, 0))  # padding: exp(-inf) = 0
    y = y / tl.sum(y, 0)
    tl.store(y_ptr + row * stride_ym + cols * stride_yn, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def online_softmax_kernel(x_ptr, y_ptr, num_cols, stride_xm, stride_xn, stride_ym, stride_yn, BLOCK_N: tl.constexpr):
    """y = softmax(x) for one row, BLOCK_N elements at a time. Grid: (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    offs_n = tl.arange(0, BLOCK_N)
    row_max = -float("inf")
    row_sum = 0.0
    for start in tl.range(0, num_cols, BLOCK_N):
        cols = (start + offs_n).to(tl.int64)
        x = tl.load(x_ptr + row * stride_xm + cols * stride_xn, mask=cols < num_cols, other=-float("inf"))
        x = x.to(tl.float32)
        new_max = tl.maximum(row_max, tl.max(x, 0))
        # A row may begin with -inf (masked) and exp(-inf - -inf) is NaN: measure from 0 until something is finite.
        shift = tl.where(new_max == -float("inf"), 0.0, new_max)
        row_sum = row_sum * tl.exp(row_max - shift) + tl.sum(tl.exp(x - shift), 0)
        row_max = new_max
    for start in tl.range(0, num_cols, BLOCK_N):
        cols = (start + offs_n).to(tl.int64)
        x = tl.load(x_ptr + row * stride_xm + cols * stride_xn, mask=cols < num_cols, other=0.0)
        y = tl.exp(x.to(tl.float32) - row_max) / row_sum
        tl.store(y_ptr + row * stride_ym + cols * stride_yn, y.to(y_ptr.dtype.element_ty), mask=cols < num_cols)
