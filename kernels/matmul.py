"""Matrix product C = A B in tiles: the kernel that all others are made of.

A program computes one tile of C. It walks along the inner dimension, loads a tile of A and a tile of B, and adds their
product to an fp32 accumulator that never leaves the chip. Each step does BLOCK_M * BLOCK_N * BLOCK_K multiply-adds for
(BLOCK_M + BLOCK_N) * BLOCK_K loads, so larger tiles mean less traffic, until they no longer fit.

Programs that run at the same time should share what they read, through the L2 cache. Hence the order: GROUP_M rows of
tiles form a group, and programs go down the columns of a group, so that a wave of them is nearly square instead of one
long row.
"""

import triton
import triton.language as tl


@triton.jit
def matmul_kernel(
    a_ptr, b_ptr, c_ptr,
    num_rows, num_cols, inner,
    stride_am, stride_ak, stride_bk, stride_bn, stride_cm, stride_cn,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """C = A B for A of (num_rows, inner) and B of (inner, num_cols). Grid: (tiles of C,)."""
    tiles_down = tl.cdiv(num_rows, BLOCK_M)
    tiles_across = tl.cdiv(num_cols, BLOCK_N)
    tiles_per_group = GROUP_M * tiles_across
    first_row = tl.program_id(0) // tiles_per_group * GROUP_M  # of tiles, of this program's group
    rows_in_group = tl.minimum(tiles_down - first_row, GROUP_M)  # the last group may be smaller
    within_group = tl.program_id(0) % tiles_per_group
    tile_row = first_row + within_group % rows_in_group
    tile_col = within_group // rows_in_group

    rows = (tile_row * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    cols = (tile_col * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    offs_k = tl.arange(0, BLOCK_K)
    a_ptrs = a_ptr + rows[:, None] * stride_am + offs_k[None, :] * stride_ak
    b_ptrs = b_ptr + offs_k[:, None] * stride_bk + cols[None, :] * stride_bn
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in tl.range(0, inner, BLOCK_K):
        in_k = start + offs_k < inner
        a = tl.load(a_ptrs, mask=(rows[:, None] < num_rows) & in_k[None, :], other=0.0)  # (BLOCK_M, BLOCK_K)
        b = tl.load(b_ptrs, mask=in_k[:, None] & (cols[None, :] < num_cols), other=0.0)  # (BLOCK_K, BLOCK_N)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
        a_ptrs += BLOCK_K * stride_ak
        b_ptrs += BLOCK_K * stride_bk

    c_ptrs = c_ptr + rows[:, None] * stride_cm + cols[None, :] * stride_cn
    inside = (rows[:, None] < num_rows) & (cols[None, :] < num_cols)
    tl.store(c_ptrs, acc.to(c_ptr.dtype.element_ty), mask=inside)
