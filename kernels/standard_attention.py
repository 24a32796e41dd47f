"""Standard attention in Triton, one kernel per line of its definition: every matrix goes to memory and is read back.

    forward    S = scale Q Kᵀ   (S += mask)   P = softmax(S)   (P~ = dropout(P))   O = P~ V
    backward   dV = P~ᵀ dO   dP~ = dO Vᵀ   (dP = dropout'(dP~))   dS = P * (dP - rowsum(P * dP))
               dQ = scale dS K   dK = scale dSᵀ Q

Each kernel is a reasonable one. What makes the whole slow is what lies between them: S, P, dP and dS have len_q x len_k
elements per head, and each crosses the memory bus several times. The kernels in ``flash_attention`` compute the same
without any of them.

Conventions are those of ``flash_attention``: (batch, heads, sequence, dim) with any strides, query head h reads
key/value head h // GROUP, causal is aligned at the top left. S, P, dP, dS and the dropout mask are contiguous (batch,
query heads, len_q, len_k); all but the mask, which takes a byte per element, have the inputs' dtype. Sums are fp32.

Grids: (tiles, heads, batch), tiles counted row by row; the softmax kernels: (groups of rows of all heads,).

Source: Dao et al., FlashAttention (2022), Algorithms 0 and 3.
"""

import triton
import triton.language as tl


@triton.jit
def tile_of_program(num_cols, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr):
    """The rows and columns of this program's tile."""
    tiles_per_row = tl.cdiv(num_cols, BLOCK_COLS)
    rows = tl.program_id(0) // tiles_per_row * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    cols = tl.program_id(0) % tiles_per_row * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    return rows.to(tl.int64), cols.to(tl.int64)


@triton.jit
def add_product(
    acc, a_ptr, b_ptr, rows, cols, num_rows, num_cols, inner, stride_am, stride_ak, stride_bk, stride_bn,
    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """acc + A[rows, :] B[:, cols], for A of (num_rows, inner) and B of (inner, num_cols)."""
    for start in tl.range(0, inner, BLOCK_K):
        ks = (start + tl.arange(0, BLOCK_K)).to(tl.int64)
        a_ptrs = a_ptr + rows[:, None] * stride_am + ks[None, :] * stride_ak
        b_ptrs = b_ptr + ks[:, None] * stride_bk + cols[None, :] * stride_bn
        a = tl.load(a_ptrs, mask=(rows[:, None] < num_rows) & (ks[None, :] < inner), other=0.0)  # (BLOCK_ROWS, BLOCK_K)
        b = tl.load(b_ptrs, mask=(ks[:, None] < inner) & (cols[None, :] < num_cols), other=0.0)  # (BLOCK_K, BLOCK_COLS)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    return acc


@triton.jit
def scores_kernel(
    q_ptr, k_ptr, s_ptr,
    scale, len_q, len_k,
    stride_qb, stride_qh, stride_qm, stride_qd,
    stride_kb, stride_kh, stride_kn, stride_kd,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """S = scale Q Kᵀ, with -inf where the causal mask hides a key. Tiles of BLOCK_M queries and BLOCK_N keys."""
    rows, cols = tile_of_program(len_k, BLOCK_M, BLOCK_N)
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    q_ptr += batch * stride_qb + head * stride_qh
    k_ptr += batch * stride_kb + head // GROUP * stride_kh
    s_ptr += (batch * tl.num_programs(1) + head) * len_q * len_k

    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    acc = add_product(
        acc, q_ptr, k_ptr, rows, cols, len_q, len_k, HEAD_DIM,
        stride_qm, stride_qd, stride_kd, stride_kn, BLOCK_K, PRECISION,
    )  # fmt: skip
    s = acc * scale
    if CAUSAL:
        s = tl.where(cols[None, :] <= rows[:, None], s, -float("inf"))
    inside = (rows[:, None] < len_q) & (cols[None, :] < len_k)
    tl.store(s_ptr + rows[:, None] * len_k + cols[None, :], s.to(s_ptr.dtype.element_ty), mask=inside)


@triton.jit
def mask_kernel(s_ptr, len_q, len_k, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """S += mask: 0, or -inf for a hidden key. It is computed from the indices, not read from memory."""
    rows, cols = tile_of_program(len_k, BLOCK_M, BLOCK_N)
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    s_ptrs = s_ptr + (batch * tl.num_programs(1) + head) * len_q * len_k + rows[:, None] * len_k + cols[None, :]
    inside = (rows[:, None] < len_q) & (cols[None, :] < len_k)
    s = tl.load(s_ptrs, mask=inside, other=0.0)
    if CAUSAL:
        s = tl.where(cols[None, :] <= rows[:, None], s, -float("inf"))
    tl.store(s_ptrs, s, mask=inside)


@triton.jit
def softmax_kernel(s_ptr, p_ptr, num_rows, num_cols, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr):
    """P = softmax(S) along rows, which are whole on chip: BLOCK_COLS is num_cols rounded up to a power of two."""
    rows = (tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    cols = tl.arange(0, BLOCK_COLS)
    offsets = rows[:, None] * num_cols + cols[None, :]
    inside = (rows[:, None] < num_rows) & (cols[None, :] < num_cols)
    s = tl.load(s_ptr + offsets, mask=inside, other=-float("inf")).to(tl.float32)
    p = tl.exp(s - tl.max(s, 1)[:, None])  # (BLOCK_ROWS, BLOCK_COLS)
    p = p / tl.sum(p, 1)[:, None]
    tl.store(p_ptr + offsets, p.to(p_ptr.dtype.element_ty), mask=inside)


@triton.jit
def drop(p_ptr, dropped_ptr, keep_ptr, offsets, inside, random, dropout_p):
    """Keep an element if its random number says so, scaled so that the mean stays; store what was kept, a byte each."""
    p = tl.load(p_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    keep = random >= dropout_p
    dropped = tl.where(keep, p / (1.0 - dropout_p), 0.0)
    tl.store(dropped_ptr + offsets, dropped.to(dropped_ptr.dtype.element_ty), mask=inside)
    tl.store(keep_ptr + offsets, keep.to(tl.uint8), mask=inside)


@triton.jit
def dropout_kernel(
    p_ptr, dropped_ptr, keep_ptr, dropout_p, seed, len_q, len_k, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """P~ = dropout(P) and the mask of what was kept.

    The random generator works on counters and gives four numbers at a time: one each for four runs of columns.
    """
    RUN: tl.constexpr = BLOCK_N // 4
    tiles_per_row = tl.cdiv(len_k, BLOCK_N)
    rows = (tl.program_id(0) // tiles_per_row * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    cols = (tl.program_id(0) % tiles_per_row * BLOCK_N + tl.arange(0, RUN))[None, :]
    matrix = tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    first = matrix * len_q * len_k
    offsets = first + rows.to(tl.int64) * len_k + cols
    r0, r1, r2, r3 = tl.rand4x(seed + matrix, rows * len_k + cols, n_rounds=7)  # a stream per matrix
    drop(p_ptr, dropped_ptr, keep_ptr, offsets, (rows < len_q) & (cols < len_k), r0, dropout_p)
    drop(p_ptr, dropped_ptr, keep_ptr, offsets + RUN, (rows < len_q) & (cols + RUN < len_k), r1, dropout_p)
    drop(p_ptr, dropped_ptr, keep_ptr, offsets + 2 * RUN, (rows < len_q) & (cols + 2 * RUN < len_k), r2, dropout_p)
    drop(p_ptr, dropped_ptr, keep_ptr, offsets + 3 * RUN, (rows < len_q) & (cols + 3 * RUN < len_k), r3, dropout_p)


@triton.jit
def output_kernel(
    p_ptr, v_ptr, o_ptr,
    len_q, len_k,
    stride_vb, stride_vh, stride_vn, stride_vd,
    stride_ob, stride_oh, stride_om, stride_od,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """O = P V. Tiles of BLOCK_M queries, all dims."""
    rows, dims = tile_of_program(HEAD_DIM, BLOCK_M, BLOCK_D)
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    p_ptr += (batch * tl.num_programs(1) + head) * len_q * len_k
    v_ptr += batch * stride_vb + head // GROUP * stride_vh
    o_ptrs = o_ptr + batch * stride_ob + head * stride_oh + rows[:, None] * stride_om + dims[None, :] * stride_od

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    acc = add_product(
        acc, p_ptr, v_ptr, rows, dims, len_q, HEAD_DIM, len_k,
        len_k, 1, stride_vn, stride_vd, BLOCK_K, PRECISION,
    )  # fmt: skip
    tl.store(o_ptrs, acc.to(o_ptr.dtype.element_ty), mask=(rows[:, None] < len_q) & (dims[None, :] < HEAD_DIM))


@triton.jit
def value_grad_kernel(
    p_ptr, do_ptr, dv_ptr,
    len_q, len_k,
    stride_dob, stride_doh, stride_dom, stride_dod,
    stride_dvb, stride_dvh, stride_dvn, stride_dvd,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dV = Pᵀ dO, summed over the GROUP query heads that read V. Heads of the grid are key/value heads."""
    keys, dims = tile_of_program(HEAD_DIM, BLOCK_N, BLOCK_D)
    kv_head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    dv_ptr += batch * stride_dvb + kv_head * stride_dvh
    dv_ptrs = dv_ptr + keys[:, None] * stride_dvn + dims[None, :] * stride_dvd

    acc = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for head in tl.range(kv_head * GROUP, kv_head * GROUP + GROUP):
        head_p_ptr = p_ptr + (batch * tl.num_programs(1) * GROUP + head) * len_q * len_k
        head_do_ptr = do_ptr + batch * stride_dob + head * stride_doh
        acc = add_product(
            acc, head_p_ptr, head_do_ptr, keys, dims, len_k, HEAD_DIM, len_q,
            1, len_k, stride_dom, stride_dod, BLOCK_K, PRECISION,
        )  # fmt: skip
    tl.store(dv_ptrs, acc.to(dv_ptr.dtype.element_ty), mask=(keys[:, None] < len_k) & (dims[None, :] < HEAD_DIM))


@triton.jit
def probability_grad_kernel(
    do_ptr, v_ptr, dp_ptr,
    len_q, len_k,
    stride_dob, stride_doh, stride_dom, stride_dod,
    stride_vb, stride_vh, stride_vn, stride_vd,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dP = dO Vᵀ. Tiles of BLOCK_M queries and BLOCK_N keys."""
    rows, cols = tile_of_program(len_k, BLOCK_M, BLOCK_N)
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    do_ptr += batch * stride_dob + head * stride_doh
    v_ptr += batch * stride_vb + head // GROUP * stride_vh
    dp_ptr += (batch * tl.num_programs(1) + head) * len_q * len_k

    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    acc = add_product(
        acc, do_ptr, v_ptr, rows, cols, len_q, len_k, HEAD_DIM,
        stride_dom, stride_dod, stride_vd, stride_vn, BLOCK_K, PRECISION,
    )  # fmt: skip
    inside = (rows[:, None] < len_q) & (cols[None, :] < len_k)
    tl.store(dp_ptr + rows[:, None] * len_k + cols[None, :], acc.to(dp_ptr.dtype.element_ty), mask=inside)


@triton.jit
def dropout_backward_kernel(dp_ptr, keep_ptr, dropout_p, len_q, len_k, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """dP = dP~ * mask / (1 - dropout_p), in place."""
    rows, cols = tile_of_program(len_k, BLOCK_M, BLOCK_N)
    matrix = tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    offsets = matrix * len_q * len_k + rows[:, None] * len_k + cols[None, :]
    inside = (rows[:, None] < len_q) & (cols[None, :] < len_k)
    dp = tl.load(dp_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    keep = tl.load(keep_ptr + offsets, mask=inside, other=0)
    dp = tl.where(keep != 0, dp / (1.0 - dropout_p), 0.0)
    tl.store(dp_ptr + offsets, dp.to(dp_ptr.dtype.element_ty), mask=inside)


@triton.jit
def softmax_backward_kernel(
    p_ptr, dp_ptr, ds_ptr, num_rows, num_cols, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr
):  # fmt: skip
    """dS = P * (dP - rowsum(P * dP)), rows whole on chip. ds_ptr may be dp_ptr."""
    rows = (tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    cols = tl.arange(0, BLOCK_COLS)
    offsets = rows[:, None] * num_cols + cols[None, :]
    inside = (rows[:, None] < num_rows) & (cols[None, :] < num_cols)
    p = tl.load(p_ptr + offsets, mask=inside, other=0.0).to(tl.float32)  # (BLOCK_ROWS, BLOCK_COLS)
    dp = tl.load(dp_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    ds = p * (dp - tl.sum(p * dp, 1)[:, None])
    tl.store(ds_ptr + offsets, ds.to(ds_ptr.dtype.element_ty), mask=inside)


@triton.jit
def query_grad_kernel(
    ds_ptr, k_ptr, dq_ptr,
    scale, len_q, len_k,
    stride_kb, stride_kh, stride_kn, stride_kd,
    stride_dqb, stride_dqh, stride_dqm, stride_dqd,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dQ = scale dS K. Tiles of BLOCK_M queries, all dims."""
    rows, dims = tile_of_program(HEAD_DIM, BLOCK_M, BLOCK_D)
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    ds_ptr += (batch * tl.num_programs(1) + head) * len_q * len_k
    k_ptr += batch * stride_kb + head // GROUP * stride_kh
    dq_ptrs = dq_ptr + batch * stride_dqb + head * stride_dqh + rows[:, None] * stride_dqm + dims[None, :] * stride_dqd

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    acc = add_product(
        acc, ds_ptr, k_ptr, rows, dims, len_q, HEAD_DIM, len_k,
        len_k, 1, stride_kn, stride_kd, BLOCK_K, PRECISION,
    )  # fmt: skip
    inside = (rows[:, None] < len_q) & (dims[None, :] < HEAD_DIM)
    tl.store(dq_ptrs, (acc * scale).to(dq_ptr.dtype.element_ty), mask=inside)


@triton.jit
def key_grad_kernel(
    ds_ptr, q_ptr, dk_ptr,
    scale, len_q, len_k,
    stride_qb, stride_qh, stride_qm, stride_qd,
    stride_dkb, stride_dkh, stride_dkn, stride_dkd,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dK = scale dSᵀ Q, summed over the GROUP query heads that read K. Heads of the grid are key/value heads."""
    keys, dims = tile_of_program(HEAD_DIM, BLOCK_N, BLOCK_D)
    kv_head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    dk_ptr += batch * stride_dkb + kv_head * stride_dkh
    dk_ptrs = dk_ptr + keys[:, None] * stride_dkn + dims[None, :] * stride_dkd

    acc = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for head in tl.range(kv_head * GROUP, kv_head * GROUP + GROUP):
        head_ds_ptr = ds_ptr + (batch * tl.num_programs(1) * GROUP + head) * len_q * len_k
        head_q_ptr = q_ptr + batch * stride_qb + head * stride_qh
        acc = add_product(
            acc, head_ds_ptr, head_q_ptr, keys, dims, len_k, HEAD_DIM, len_q,
            1, len_k, stride_qm, stride_qd, BLOCK_K, PRECISION,
        )  # fmt: skip
    inside = (keys[:, None] < len_k) & (dims[None, :] < HEAD_DIM)
    tl.store(dk_ptrs, (acc * scale).to(dk_ptr.dtype.element_ty), mask=inside)
