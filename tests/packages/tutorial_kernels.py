"""The algorithms of Triton's own tutorials, written again: what people copy first."""

import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit
def add_kernel(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < n
    tl.store(out_ptr + offsets, tl.load(x_ptr + offsets, inside) + tl.load(y_ptr + offsets, inside), inside)


@triton.jit
def softmax_kernel(
    out_ptr, x_ptr, x_stride, out_stride, num_rows, num_columns, BLOCK: tl.constexpr, STAGES: tl.constexpr
):
    """Fewer programs than rows: each takes every num_programs-th row."""
    for row in tl.range(tl.program_id(0), num_rows, tl.num_programs(0), num_stages=STAGES):
        columns = tl.arange(0, BLOCK)
        inside = columns < num_columns
        x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=-float("inf"))
        exponential = tl.exp(x - tl.max(x, axis=0))
        tl.store(out_ptr + row * out_stride + columns, exponential / tl.sum(exponential, axis=0), mask=inside)


@triton.jit
def leaky_relu(x):
    return tl.where(x >= 0, x, 0.01 * x)


@triton.jit
def grouped_tile(pid, num_m, num_n, GROUP: tl.constexpr):
    """Programs in groups of GROUP rows of tiles, column by column: neighbours share tiles of both operands."""
    per_group = GROUP * num_n
    first = (pid // per_group) * GROUP
    rows = min(num_m - first, GROUP)
    return first + (pid % per_group) % rows, (pid % per_group) // rows


@triton.autotune(
    configs=[
        triton.Config({"BM": 32, "BN": 32, "BK": 16, "GROUP": 4}, num_stages=3, num_warps=4),
        triton.Config({"BM": 16, "BN": 64, "BK": 32, "GROUP": 2}, num_stages=4, num_warps=2),
    ],
    key=["m", "n", "k"],
)
@triton.jit
def matmul_kernel(
    a_ptr, b_ptr, c_ptr, m, n, k, a_m, a_k, b_k, b_n, c_m, c_n,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    tl.assume(a_m > 0)
    pid_m, pid_n = grouped_tile(tl.program_id(0), tl.cdiv(m, BM), tl.cdiv(n, BN), GROUP)
    rows = (pid_m * BM + tl.arange(0, BM)) % m
    columns = (pid_n * BN + tl.arange(0, BN)) % n
    depth = tl.arange(0, BK)
    a_ptrs = a_ptr + rows[:, None] * a_m + depth[None, :] * a_k
    b_ptrs = b_ptr + depth[:, None] * b_k + columns[None, :] * b_n
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for step in range(0, tl.cdiv(k, BK)):
        a = tl.load(a_ptrs, mask=depth[None, :] < k - step * BK, other=0.0)
        b = tl.load(b_ptrs, mask=depth[:, None] < k - step * BK, other=0.0)
        total = tl.dot(a, b, total)
        a_ptrs += BK * a_k
        b_ptrs += BK * b_k
    if ACTIVATION == "leaky_relu":
        total = leaky_relu(total)
    rows, columns = pid_m * BM + tl.arange(0, BM), pid_n * BN + tl.arange(0, BN)
    inside = (rows[:, None] < m) & (columns[None, :] < n)
    tl.store(c_ptr + rows[:, None] * c_m + columns[None, :] * c_n, total.to(c_ptr.dtype.element_ty), mask=inside)


@triton.jit
def dropout_kernel(x_ptr, out_ptr, n, p, seed, BLOCK: tl.constexpr):
    """The mask is not stored: the same seed makes it again."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < n
    keep = tl.rand(seed, offsets) > p
    x = tl.load(x_ptr + offsets, mask=inside)
    tl.store(out_ptr + offsets, tl.where(keep, x / (1 - p), 0.0), mask=inside)


@triton.jit
def layer_norm_kernel(x_ptr, y_ptr, w_ptr, b_ptr, mean_ptr, rstd_ptr, stride, n, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, n, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        total += tl.load(x_ptr + row * stride + columns, mask=columns < n, other=0.0).to(tl.float32)
    mean = tl.sum(total, axis=0) / n
    squares = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, n, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * stride + columns, mask=columns < n, other=0.0).to(tl.float32)
        x = tl.where(columns < n, x - mean, 0.0)
        squares += x * x
    rstd = 1 / tl.sqrt(tl.sum(squares, axis=0) / n + eps)
    tl.store(mean_ptr + row, mean)
    tl.store(rstd_ptr + row, rstd)
    for start in range(0, n, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < n
        w, b = tl.load(w_ptr + columns, mask=inside), tl.load(b_ptr + columns, mask=inside)
        x = tl.load(x_ptr + row * stride + columns, mask=inside, other=0.0).to(tl.float32)
        tl.store(y_ptr + row * stride + columns, (x - mean) * rstd * w + b, mask=inside)


@triton.jit
def layer_norm_backward_kernel(
    dx_ptr, dy_ptr, dw_ptr, db_ptr, x_ptr, w_ptr, mean_ptr, rstd_ptr, lock_ptr, stride, n,
    SLOTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows add their share of dw and db to one of SLOTS buffers, each behind a lock; the first one finds it empty."""
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < n
    x = tl.load(x_ptr + row * stride + columns, mask=inside, other=0).to(tl.float32)
    dy = tl.load(dy_ptr + row * stride + columns, mask=inside, other=0).to(tl.float32)
    w = tl.load(w_ptr + columns, mask=inside).to(tl.float32)
    mean, rstd = tl.load(mean_ptr + row), tl.load(rstd_ptr + row)
    normal = tl.where(inside, (x - mean) * rstd, 0.0)
    wdy = tl.where(inside, w * dy, 0.0)
    dx = (wdy - (normal * (tl.sum(normal * wdy, axis=0) / n) + tl.sum(wdy, axis=0) / n)) * rstd
    tl.store(dx_ptr + row * stride + columns, dx, mask=inside)
    slot = row % SLOTS
    lock_ptr += slot
    count_ptr = lock_ptr + SLOTS
    dw, db = (dy * normal).to(w_ptr.dtype.element_ty), dy.to(w_ptr.dtype.element_ty)
    dw_ptrs, db_ptrs = dw_ptr + slot * n + columns, db_ptr + slot * n + columns
    while tl.atomic_cas(lock_ptr, 0, 1) == 1:
        pass
    if tl.load(count_ptr) == 0:
        tl.atomic_xchg(count_ptr, 1)
    else:
        dw += tl.load(dw_ptrs, mask=inside)
        db += tl.load(db_ptrs, mask=inside)
    tl.store(dw_ptrs, dw, mask=inside)
    tl.store(db_ptrs, db, mask=inside)
    tl.debug_barrier()
    tl.atomic_xchg(lock_ptr, 0)


@triton.jit
def add_slots_kernel(slots_ptr, out_ptr, m, n, BM: tl.constexpr, BN: tl.constexpr):
    columns = tl.program_id(0) * BN + tl.arange(0, BN)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, m, BM):
        rows = start + tl.arange(0, BM)
        inside = (rows[:, None] < m) & (columns[None, :] < n)
        total += tl.load(slots_ptr + rows[:, None] * n + columns[None, :], mask=inside, other=0.0)
    tl.store(out_ptr + columns, tl.sum(total, axis=0), mask=columns < n)


@triton.jit
def attention_tiles(
    acc, total, largest, q, k_block, v_block, start_m, scale, start, stop, rows, BN: tl.constexpr, MASKED: tl.constexpr
):
    """Tiles of keys from start to stop, with an online softmax; k_block and v_block are block pointers."""
    k_block, v_block = tl.advance(k_block, (0, start)), tl.advance(v_block, (start, 0))
    for n in tl.range(start, stop, BN):
        n = tl.multiple_of(n, BN)
        scores = tl.dot(q, tl.load(k_block, boundary_check=(1,), padding_option="zero")) * scale
        if MASKED:
            scores = scores + tl.where(rows[:, None] >= (n + tl.arange(0, BN))[None, :], 0, -1.0e6)
        new = tl.maximum(largest, tl.max(scores, 1))
        p = tl.math.exp2(scores - new[:, None])
        factor = tl.math.exp2(largest - new)
        total = total * factor + tl.sum(p, 1)
        v = tl.load(v_block, boundary_check=(0,), padding_option="zero")
        acc = tl.dot(p.to(v.dtype), v, acc * factor[:, None])
        largest = new
        k_block, v_block = tl.advance(k_block, (0, BN)), tl.advance(v_block, (BN, 0))
    return acc, total, largest


@triton.jit
def attention_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, scale, stride_h, stride_s, length,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, STAGE: tl.constexpr,
):  # fmt: skip
    """Causal attention in two stages: tiles left of the diagonal without a mask, then the diagonal with one."""
    start_m, head = tl.program_id(0) * BM, tl.program_id(1)
    base = head.to(tl.int64) * stride_h
    q_block = tl.make_block_ptr(q_ptr + base, (length, D), (stride_s, 1), (start_m, 0), (BM, D), (1, 0))
    k_block = tl.make_block_ptr(k_ptr + base, (D, length), (1, stride_s), (0, 0), (D, BN), (0, 1))
    v_block = tl.make_block_ptr(v_ptr + base, (length, D), (stride_s, 1), (0, 0), (BN, D), (1, 0))
    out_block = tl.make_block_ptr(out_ptr + base, (length, D), (stride_s, 1), (start_m, 0), (BM, D), (1, 0))
    rows = start_m + tl.arange(0, BM)
    largest = tl.zeros([BM], dtype=tl.float32) - float("inf")
    total = tl.zeros([BM], dtype=tl.float32) + 1.0
    acc = tl.zeros([BM, D], dtype=tl.float32)
    q = tl.load(q_block, boundary_check=(0,), padding_option="zero")
    if STAGE & 1:
        acc, total, largest = attention_tiles(
            acc, total, largest, q, k_block, v_block, start_m, scale, 0, start_m, rows, BN, False
        )
    if STAGE & 2:
        acc, total, largest = attention_tiles(
            acc, total, largest, q, k_block, v_block, start_m, scale, start_m, start_m + BM, rows, BN, True
        )
    tl.store(lse_ptr + head * length + rows, largest + tl.math.log2(total), mask=rows < length)
    tl.store(out_block, (acc / total[:, None]).to(out_ptr.dtype.element_ty), boundary_check=(0,))


@triton.jit
def asin_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + offsets, libdevice.asin(tl.load(x_ptr + offsets, offsets < n)), offsets < n)


@triton.jit
def grouped_gemm_kernel(
    a_table, b_table, c_table, sizes_ptr, strides_ptr, groups, PROGRAMS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Products of different sizes in one launch; matrices come as a table of addresses."""
    tile = tl.program_id(0)
    done = 0
    for g in range(groups):
        m, n, k = tl.load(sizes_ptr + g * 3), tl.load(sizes_ptr + g * 3 + 1), tl.load(sizes_ptr + g * 3 + 2)
        num_m, num_n = tl.cdiv(m, BM), tl.cdiv(n, BN)
        tiles = num_m * num_n
        while tile >= done and tile < done + tiles:
            stride_a, stride_b = tl.load(strides_ptr + g * 3), tl.load(strides_ptr + g * 3 + 1)
            stride_c = tl.load(strides_ptr + g * 3 + 2)
            a_ptr = tl.load(a_table + g).to(tl.pointer_type(tl.float16))
            b_ptr = tl.load(b_table + g).to(tl.pointer_type(tl.float16))
            c_ptr = tl.load(c_table + g).to(tl.pointer_type(tl.float16))
            here = tile - done
            rows = (here // num_n) * BM + tl.arange(0, BM)
            columns = (here % num_n) * BN + tl.arange(0, BN)
            total = tl.zeros((BM, BN), dtype=tl.float32)
            for start in range(0, k, BK):
                depth = start + tl.arange(0, BK)
                a_mask = (rows[:, None] < m) & (depth[None, :] < k)
                b_mask = (depth[:, None] < k) & (columns[None, :] < n)
                a = tl.load(a_ptr + rows[:, None] * stride_a + depth[None, :], mask=a_mask, other=0.0)
                b = tl.load(b_ptr + depth[:, None] * stride_b + columns[None, :], mask=b_mask, other=0.0)
                total += tl.dot(a, b)
            c_mask = (rows[:, None] < m) & (columns[None, :] < n)
            tl.store(c_ptr + rows[:, None] * stride_c + columns[None, :], total.to(tl.float16), mask=c_mask)
            tile += PROGRAMS
        done += tiles


@triton.jit
def persistent_matmul_kernel(
    a_ptr, b_ptr, c_ptr, m, n, k, PROGRAMS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """As many programs as multiprocessors; each takes tile after tile, through tensor descriptors. b is n x k."""
    a_tiles = tl.make_tensor_descriptor(a_ptr, shape=[m, k], strides=[k, 1], block_shape=[BM, BK])
    b_tiles = tl.make_tensor_descriptor(b_ptr, shape=[n, k], strides=[k, 1], block_shape=[BN, BK])
    c_tiles = tl.make_tensor_descriptor(c_ptr, shape=[m, n], strides=[n, 1], block_shape=[BM, BN // 2])
    num_m, num_n = tl.cdiv(m, BM), tl.cdiv(n, BN)
    for tile in tl.range(tl.program_id(0), num_m * num_n, PROGRAMS, flatten=True):
        pid_m, pid_n = grouped_tile(tile, num_m, num_n, GROUP)
        total = tl.zeros((BM, BN), dtype=tl.float32)
        for step in range(tl.cdiv(k, BK)):
            total = tl.dot(a_tiles.load([pid_m * BM, step * BK]), b_tiles.load([pid_n * BN, step * BK]).T, total)
        halves = tl.permute(tl.reshape(total, (BM, 2, BN // 2)), (0, 2, 1))
        left, right = tl.split(halves)
        c_tiles.store([pid_m * BM, pid_n * BN], left.to(c_ptr.dtype.element_ty))
        c_tiles.store([pid_m * BM, pid_n * BN + BN // 2], right.to(c_ptr.dtype.element_ty))


@triton.jit
def block_scaled_matmul_kernel(
    a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, c_ptr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """One tile of a product of fp8 numbers, 32 of which share a power of two."""
    rows, columns, depth = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    a = tl.load(a_ptr + rows[:, None] * K + depth[None, :])
    b = tl.load(b_ptr + depth[:, None] * N + columns[None, :])
    scales = tl.arange(0, K // 32)
    a_scale = tl.load(a_scale_ptr + rows[:, None] * (K // 32) + scales[None, :])
    b_scale = tl.load(b_scale_ptr + columns[:, None] * (K // 32) + scales[None, :])
    c = tl.dot_scaled(a, a_scale, "e4m3", b, b_scale, "e4m3")
    tl.store(c_ptr + rows[:, None] * N + columns[None, :], c)
