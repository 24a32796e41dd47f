"""Weights in 4 bits: to quantise them, to get them back, and to multiply by them without getting them back.

A matrix of N x K weights is cut, row by row, into blocks of BLOCK_SIZE values. A block has one fp32 scale, its largest
absolute value; a value has a 4-bit code, its position in a table of 16 levels, and two codes share a byte, the first in
the high half. NF4 and FP4 differ in the table alone, which comes in as an argument.

What costs time in a layer with few rows of input is reading the weights. The fused product reads the bytes and scales,
looks the levels up on chip, multiplies by the scale and rounds to the type of `x`, and hands the tile to the tensor
cores: 4.5 bits of traffic per weight instead of 16. Getting the weights back first would read 4.5, write and read 16.

Looking up is `tl.gather` on a flat tile. The compiler puts the table of 64 bytes into shared memory, where 16 words lie
in 16 banks, so that lanes never wait for each other. Loading from the table's address instead compiled to copies of 4
bytes each for every weight and to spilled registers, a gather along rows of a tile to four times the shuffles.

The bytes are those of bitsandbytes' CPU path, down to its roundings: scales act by their fp32 reciprocal, except in a
last block that is not full, whose values are divided; a value in the middle between two levels takes the lower one.

Source: Dettmers et al., QLoRA (2023), sections 2 and 3.
"""

import triton
import triton.language as tl


@triton.jit
def quantize_kernel(
    x_ptr, midpoints_ptr, packed_ptr, absmax_ptr,
    num_values, num_bytes, code_of_position,
    BLOCK_SIZE: tl.constexpr, NUM_BLOCKS: tl.constexpr,
):  # fmt: skip
    """Scales and packed codes of x, NUM_BLOCKS blocks per program. Grid: (cdiv(blocks, NUM_BLOCKS),).

    midpoints: the 15 middles between neighbouring levels, lowest first. code_of_position: the codes of the 16 levels,
    lowest level in the lowest 4 bits, in one 64-bit number.
    """
    blocks = tl.program_id(0).to(tl.int64) * NUM_BLOCKS + tl.arange(0, NUM_BLOCKS)
    offs = blocks[:, None] * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)[None, :]
    x = tl.load(x_ptr + offs, mask=offs < num_values, other=0.0).to(tl.float32)  # (NUM_BLOCKS, BLOCK_SIZE)
    absmax = tl.max(tl.abs(x), 1)
    # A maximum may pass over NaN: then nobody would see it.
    absmax = tl.where(tl.max((x != x).to(tl.int32), 1) > 0, float("nan"), absmax)
    smallest = tl.full([NUM_BLOCKS], 1e-38, tl.float32)  # the reciprocal of zero would be infinite
    divisor = tl.maximum(absmax, smallest)
    is_whole = (blocks + 1) * BLOCK_SIZE <= num_values
    reciprocal = tl.div_rn(tl.full([NUM_BLOCKS], 1.0, tl.float32), divisor)
    divisors = tl.broadcast_to(divisor[:, None], [NUM_BLOCKS, BLOCK_SIZE])
    scaled = tl.where(is_whole[:, None], x * reciprocal[:, None], tl.div_rn(x, divisors))

    position = tl.zeros([NUM_BLOCKS, BLOCK_SIZE], tl.int32)
    for i in tl.static_range(15):
        position += (scaled > tl.load(midpoints_ptr + i)).to(tl.int32)
    codes = ((code_of_position >> (position * 4).to(tl.int64)) & 15).to(tl.int32)
    high, low = tl.split(tl.reshape(codes, [NUM_BLOCKS, BLOCK_SIZE // 2, 2]))
    byte_offs = blocks[:, None] * (BLOCK_SIZE // 2) + tl.arange(0, BLOCK_SIZE // 2)[None, :]
    tl.store(packed_ptr + byte_offs, (high * 16 + low).to(tl.uint8), mask=byte_offs < num_bytes)
    tl.store(absmax_ptr + blocks, tl.where(is_whole, absmax, divisor), mask=blocks * BLOCK_SIZE < num_values)


@triton.jit
def dequantize_kernel(
    packed_ptr, absmax_ptr, code_ptr, out_ptr,
    num_values, num_bytes,
    BLOCK_SIZE: tl.constexpr, NUM_BLOCKS: tl.constexpr,
):  # fmt: skip
    """out = level * scale, formed in fp32 and rounded once. Grid: (cdiv(blocks, NUM_BLOCKS),)."""
    blocks = tl.program_id(0).to(tl.int64) * NUM_BLOCKS + tl.arange(0, NUM_BLOCKS)
    byte_offs = blocks[:, None] * (BLOCK_SIZE // 2) + tl.arange(0, BLOCK_SIZE // 2)[None, :]
    packed = tl.load(packed_ptr + byte_offs, mask=byte_offs < num_bytes, other=0).to(tl.int32)
    absmax = tl.load(absmax_ptr + blocks, mask=blocks * BLOCK_SIZE < num_values, other=0.0)
    codes = tl.interleave(packed >> 4, packed & 15)  # (NUM_BLOCKS, BLOCK_SIZE)
    out = look_up(code_ptr, codes, NUM_BLOCKS, BLOCK_SIZE) * absmax[:, None]
    offs = blocks[:, None] * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)[None, :]
    tl.store(out_ptr + offs, out.to(out_ptr.dtype.element_ty), mask=offs < num_values)


@triton.jit
def dequantize_matmul_kernel(
    x_ptr, packed_ptr, absmax_ptr, code_ptr, bias_ptr, y_ptr,
    num_rows, num_cols, inner,
    stride_xm, stride_xk, stride_ym, stride_yn,
    BLOCK_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr, WHOLE_BLOCKS: tl.constexpr, HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y = x W^T + bias for x of (num_rows, inner) and W of (num_cols, inner) in 4 bits. Grid: (tiles of y,).

    WHOLE_BLOCKS says that a row of W is a number of whole blocks: each byte is then read once per tile, and a scale
    once per row of it, where BLOCK_K divides BLOCK_SIZE. Otherwise blocks and bytes go on from row to row, and every
    weight fetches its own byte and scale.
    """
    row_tile, col_tile = tile_of_program(num_rows, num_cols, BLOCK_M, BLOCK_N, GROUP_M)
    rows = (row_tile * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    cols = (col_tile * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    offs_k = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + rows[:, None] * stride_xm + offs_k[None, :] * stride_xk
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in tl.range(0, inner, BLOCK_K):
        if WHOLE_BLOCKS:  # BLOCK_K divides inner
            x = tl.load(x_ptrs, mask=rows[:, None] < num_rows, other=0.0)  # (BLOCK_M, BLOCK_K)
            levels, absmax = rows_of_weights(
                packed_ptr, absmax_ptr, code_ptr, cols, start, num_cols, inner, BLOCK_SIZE, BLOCK_N, BLOCK_K
            )
        else:
            in_k = start + offs_k[None, :] < inner
            x = tl.load(x_ptrs, mask=(rows[:, None] < num_rows) & in_k, other=0.0)
            levels, absmax = single_weights(
                packed_ptr, absmax_ptr, code_ptr, cols, start, num_cols, inner, BLOCK_SIZE, BLOCK_N, BLOCK_K
            )
        w = (levels * absmax).to(x_ptr.dtype.element_ty)  # (BLOCK_N, BLOCK_K)
        acc = tl.dot(x, tl.trans(w), acc, input_precision=PRECISION)
        x_ptrs += BLOCK_K * stride_xk

    if HAS_BIAS:
        acc += tl.load(bias_ptr + cols, mask=cols < num_cols, other=0.0).to(tl.float32)[None, :]
    y_ptrs = y_ptr + rows[:, None] * stride_ym + cols[None, :] * stride_yn
    inside = (rows[:, None] < num_rows) & (cols[None, :] < num_cols)
    tl.store(y_ptrs, acc.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def tile_of_program(num_rows, num_cols, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """Which tile of y this program computes: down GROUP_M tiles, then the next column (see `matmul`)."""
    tiles_down = tl.cdiv(num_rows, BLOCK_M)
    tiles_per_group = GROUP_M * tl.cdiv(num_cols, BLOCK_N)
    first_row = tl.program_id(0) // tiles_per_group * GROUP_M
    rows_in_group = tl.minimum(tiles_down - first_row, GROUP_M)
    within_group = tl.program_id(0) % tiles_per_group
    return first_row + within_group % rows_in_group, within_group // rows_in_group


@triton.jit
def rows_of_weights(
    packed_ptr, absmax_ptr, code_ptr, cols, start, num_cols, inner,
    BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Levels (BLOCK_N, BLOCK_K) and scales (BLOCK_N, 1) from `start`, where each row lies within one block."""
    offs = cols[:, None] * (inner // 2) + start // 2 + tl.arange(0, BLOCK_K // 2)[None, :]
    packed = tl.load(packed_ptr + offs, mask=cols[:, None] < num_cols, other=0).to(tl.int32)
    absmax = tl.load(
        absmax_ptr + cols * (inner // BLOCK_SIZE) + start // BLOCK_SIZE, mask=cols < num_cols, other=0.0
    )
    codes = tl.interleave(packed >> 4, packed & 15)
    return look_up(code_ptr, codes, BLOCK_N, BLOCK_K), absmax[:, None]


@triton.jit
def single_weights(
    packed_ptr, absmax_ptr, code_ptr, cols, start, num_cols, inner,
    BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Levels and scales, both (BLOCK_N, BLOCK_K), from `start`, wherever blocks begin and whichever half of a byte."""
    offs_k = start + tl.arange(0, BLOCK_K)[None, :]
    inside = (cols[:, None] < num_cols) & (offs_k < inner)
    flat = cols[:, None] * inner + offs_k
    packed = tl.load(packed_ptr + flat // 2, mask=inside, other=0).to(tl.int32)
    absmax = tl.load(absmax_ptr + flat // BLOCK_SIZE, mask=inside, other=0.0)
    codes = tl.where(flat % 2 == 0, packed >> 4, packed & 15)
    return look_up(code_ptr, codes, BLOCK_N, BLOCK_K), absmax


@triton.jit
def look_up(code_ptr, codes, NUM_ROWS: tl.constexpr, NUM_COLS: tl.constexpr):
    """Levels of a tile of codes: a gather from the table of 16, which must be as flat as the table is."""
    code = tl.load(code_ptr + tl.arange(0, 16))
    return tl.reshape(tl.gather(code, tl.reshape(codes, [NUM_ROWS * NUM_COLS]), 0), [NUM_ROWS, NUM_COLS])
