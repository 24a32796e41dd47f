"""FlashAttention-2 in Triton: attention that never writes the score matrix to memory.

Forward. A program owns BLOCK_M query rows. Their Q tile stays on chip while BLOCK_N keys and values at a time stream
past. For each block it keeps, per row, the largest score so far (row_max), the sum of exponentials (row_sum) and the
output before its division (acc); when the maximum grows, what was accumulated is scaled down. One division at the end
gives O, and LSE = row_max + log(row_sum) is all that the backward pass needs to recompute any probability:
P = exp(S - LSE).

Backward. delta = rowsum(dO * O), then two kernels, each of which recomputes P block by block:

    dV = Pᵀ dO      dP = dO Vᵀ      dS = P * (dP - delta)      dK = scale dSᵀ Q      dQ = scale dS K

One owns BLOCK_N keys and walks over the queries (dK, dV), the other owns BLOCK_M queries and walks over the keys (dQ):
no two programs write the same number, so nothing is atomic and the result is the same in every run.

What makes it fast as well as right:
- blocks that every row of the tile sees whole run in a loop without a mask; only blocks that the diagonal or the end of
  the sequence cuts run in the masked loop;
- exp2 instead of exp, with log2(e) folded into the scale, which makes the exponent one fused multiply-add;
- products run on tensor cores in the inputs' dtype and are summed in fp32.

Conventions. Tensors are (batch, heads, sequence, dim) with any strides. Query head h reads key/value head h // GROUP.
Causal means that query i sees keys j <= i, counted from the top left, as in torch's scaled_dot_product_attention. LSE
is a natural logarithm, fp32, contiguous (batch, heads, len_q); so is delta. A head dim that is not a power of two is
padded on chip to BLOCK_D; dim_mask and dim_pad are then the loads' mask and filling, and None (nothing to mask)
otherwise. Offsets that grow with the tensor are 64 bits wide.

Source: Dao, FlashAttention-2 (2023), Algorithms 1 and 2; Dao et al., FlashAttention (2022), Appendix B.
"""

import triton
import triton.language as tl


@triton.jit
def attend_block(acc, row_max, row_sum, s, v, scale_log2, PRECISION: tl.constexpr):
    """Merge one block of raw scores and its values into the running softmax of each row."""
    new_max = tl.maximum(row_max, tl.max(s, 1) * scale_log2)  # (BLOCK_M,)
    p = tl.exp2(s * scale_log2 - new_max[:, None])  # (BLOCK_M, BLOCK_N)
    rescale = tl.exp2(row_max - new_max)  # (BLOCK_M,) 1 where the maximum stood
    row_sum = row_sum * rescale + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * rescale[:, None], input_precision=PRECISION)  # (BLOCK_M, BLOCK_D)
    return acc, new_max, row_sum


@triton.jit
def forward_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr,
    scale, len_q, len_k,
    stride_qb, stride_qh, stride_qm, stride_qd,
    stride_kb, stride_kh, stride_kn, stride_kd,
    stride_vb, stride_vh, stride_vn, stride_vd,
    stride_ob, stride_oh, stride_om, stride_od,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """O = softmax(scale Q Kᵀ) V and its log-sum-exp. Grid: (blocks of queries, query heads, batch)."""
    start_m = tl.program_id(0) * BLOCK_M
    head = tl.program_id(1).to(tl.int64)  # 64 bits: offsets into large tensors exceed 2^31
    batch = tl.program_id(2).to(tl.int64)
    kv_head = head // GROUP

    offs_m = start_m + tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, BLOCK_D)
    in_dim = offs_d[None, :] < HEAD_DIM
    dim_mask = in_dim if HEAD_DIM < BLOCK_D else None
    dim_pad: tl.constexpr = 0.0 if HEAD_DIM < BLOCK_D else None

    q_ptr += batch * stride_qb + head * stride_qh
    k_ptr += batch * stride_kb + kv_head * stride_kh
    v_ptr += batch * stride_vb + kv_head * stride_vh
    o_ptr += batch * stride_ob + head * stride_oh
    rows = offs_m[:, None].to(tl.int64)
    q_ptrs = q_ptr + rows * stride_qm + offs_d[None, :] * stride_qd
    k_ptrs = k_ptr + offs_n[:, None] * stride_kn + offs_d[None, :] * stride_kd
    v_ptrs = v_ptr + offs_n[:, None] * stride_vn + offs_d[None, :] * stride_vd
    o_ptrs = o_ptr + rows * stride_om + offs_d[None, :] * stride_od

    q = tl.load(q_ptrs, mask=(offs_m[:, None] < len_q) & in_dim, other=0.0)  # (BLOCK_M, BLOCK_D)
    row_max = tl.full([BLOCK_M], -float("inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    scale_log2 = scale * 1.4426950408889634  # log2(e): exp(scale * s) = exp2(scale_log2 * s)

    visible = len_k  # keys that some row of this tile sees
    unmasked = len_k // BLOCK_N * BLOCK_N  # keys in the blocks that every row sees whole
    if CAUSAL:
        visible = tl.minimum(len_k, start_m + BLOCK_M)
        unmasked = tl.minimum(len_k, start_m) // BLOCK_N * BLOCK_N

    for _ in tl.range(0, unmasked, BLOCK_N):
        k = tl.load(k_ptrs, mask=dim_mask, other=dim_pad)  # (BLOCK_N, BLOCK_D)
        v = tl.load(v_ptrs, mask=dim_mask, other=dim_pad)  # (BLOCK_N, BLOCK_D)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # (BLOCK_M, BLOCK_N), not scaled yet
        acc, row_max, row_sum = attend_block(acc, row_max, row_sum, s, v, scale_log2, PRECISION)
        k_ptrs += BLOCK_N * stride_kn
        v_ptrs += BLOCK_N * stride_vn

    for start_n in tl.range(unmasked, visible, BLOCK_N):  # the diagonal, and the sequence's end
        cols = start_n + offs_n
        k = tl.load(k_ptrs, mask=(cols[:, None] < len_k) & in_dim, other=0.0)
        v = tl.load(v_ptrs, mask=(cols[:, None] < len_k) & in_dim, other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        keep = cols[None, :] < len_k
        if CAUSAL:
            keep = keep & (cols[None, :] <= offs_m[:, None])
        s = tl.where(keep, s, -float("inf"))
        acc, row_max, row_sum = attend_block(acc, row_max, row_sum, s, v, scale_log2, PRECISION)
        k_ptrs += BLOCK_N * stride_kn
        v_ptrs += BLOCK_N * stride_vn

    o = acc / row_sum[:, None]
    lse = (row_max + tl.log2(row_sum)) * 0.6931471805599453  # ln(2): back to the natural logarithm
    lse_ptrs = lse_ptr + (batch * tl.num_programs(1) + head) * len_q + offs_m
    tl.store(o_ptrs, o.to(o_ptr.dtype.element_ty), mask=(offs_m[:, None] < len_q) & in_dim)
    tl.store(lse_ptrs, lse, mask=offs_m < len_q)


@triton.jit
def delta_kernel(
    o_ptr, do_ptr, delta_ptr,
    len_q,
    stride_ob, stride_oh, stride_om, stride_od,
    stride_dob, stride_doh, stride_dom, stride_dod,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """delta = rowsum(dO * O), which the softmax's gradient subtracts. Grid: (blocks of queries, query heads, batch)."""
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D)
    rows = offs_m[:, None].to(tl.int64)
    inside = (offs_m[:, None] < len_q) & (offs_d[None, :] < HEAD_DIM)

    o_ptrs = o_ptr + batch * stride_ob + head * stride_oh + rows * stride_om + offs_d[None, :] * stride_od
    do_ptrs = do_ptr + batch * stride_dob + head * stride_doh + rows * stride_dom + offs_d[None, :] * stride_dod
    o = tl.load(o_ptrs, mask=inside, other=0.0).to(tl.float32)  # (BLOCK_M, BLOCK_D)
    do = tl.load(do_ptrs, mask=inside, other=0.0).to(tl.float32)  # (BLOCK_M, BLOCK_D)
    delta = tl.sum(o * do, 1)  # (BLOCK_M,)
    tl.store(delta_ptr + (batch * tl.num_programs(1) + head) * len_q + offs_m, delta, mask=offs_m < len_q)


@triton.jit
def key_value_grads_block(
    dk, dv, k, v, q_ptrs, do_ptrs, lse_ptrs, delta_ptrs,
    start_m, cols, len_q, scale_log2, stride_qm, stride_dom, in_dim, dim_mask, dim_pad: tl.constexpr,
    BLOCK_M: tl.constexpr, CAUSAL: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add what BLOCK_M queries contribute to dK and dV. Scores have one row per key here: Pᵀ and dSᵀ are needed."""
    rows = start_m + tl.arange(0, BLOCK_M)
    shift = tl.cast(start_m, tl.int64)
    if MASKED:
        q = tl.load(q_ptrs + shift * stride_qm, mask=(rows[:, None] < len_q) & in_dim, other=0.0)
        do = tl.load(do_ptrs + shift * stride_dom, mask=(rows[:, None] < len_q) & in_dim, other=0.0)
        lse = tl.load(lse_ptrs + start_m, mask=rows < len_q, other=0.0)
        delta = tl.load(delta_ptrs + start_m, mask=rows < len_q, other=0.0)
    else:
        q = tl.load(q_ptrs + shift * stride_qm, mask=dim_mask, other=dim_pad)  # (BLOCK_M, BLOCK_D)
        do = tl.load(do_ptrs + shift * stride_dom, mask=dim_mask, other=dim_pad)  # (BLOCK_M, BLOCK_D)
        lse = tl.load(lse_ptrs + start_m)  # (BLOCK_M,)
        delta = tl.load(delta_ptrs + start_m)  # (BLOCK_M,)

    s_t = tl.dot(k, tl.trans(q), input_precision=PRECISION)  # (BLOCK_N, BLOCK_M)
    p_t = tl.exp2(s_t * scale_log2 - lse[None, :] * 1.4426950408889634)  # recomputed, not read
    if MASKED and CAUSAL:
        p_t = tl.where(cols[:, None] <= rows[None, :], p_t, 0.0)
    dv = tl.dot(p_t.to(do.dtype), do, dv, input_precision=PRECISION)  # (BLOCK_N, BLOCK_D)
    dp_t = tl.dot(v, tl.trans(do), input_precision=PRECISION)  # (BLOCK_N, BLOCK_M)
    ds_t = p_t * (dp_t - delta[None, :])
    dk = tl.dot(ds_t.to(q.dtype), q, dk, input_precision=PRECISION)  # (BLOCK_N, BLOCK_D); times scale at the end
    return dk, dv


@triton.jit
def key_value_grads_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr,
    scale, len_q, len_k,
    stride_qb, stride_qh, stride_qm, stride_qd,
    stride_kb, stride_kh, stride_kn, stride_kd,
    stride_vb, stride_vh, stride_vn, stride_vd,
    stride_dob, stride_doh, stride_dom, stride_dod,
    stride_dkb, stride_dkh, stride_dkn, stride_dkd,
    stride_dvb, stride_dvh, stride_dvn, stride_dvd,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dK and dV of BLOCK_N keys, summed over the GROUP query heads that read them.

    Grid: (blocks of keys, key/value heads, batch).
    """
    start_n = tl.program_id(0) * BLOCK_N
    kv_head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)

    offs_m = tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D)
    cols = start_n + tl.arange(0, BLOCK_N)
    keys = cols[:, None].to(tl.int64)
    in_dim = offs_d[None, :] < HEAD_DIM
    dim_mask = in_dim if HEAD_DIM < BLOCK_D else None
    dim_pad: tl.constexpr = 0.0 if HEAD_DIM < BLOCK_D else None
    inside = (cols[:, None] < len_k) & in_dim

    k_ptrs = k_ptr + batch * stride_kb + kv_head * stride_kh + keys * stride_kn + offs_d[None, :] * stride_kd
    v_ptrs = v_ptr + batch * stride_vb + kv_head * stride_vh + keys * stride_vn + offs_d[None, :] * stride_vd
    k = tl.load(k_ptrs, mask=inside, other=0.0)  # (BLOCK_N, BLOCK_D)
    v = tl.load(v_ptrs, mask=inside, other=0.0)  # (BLOCK_N, BLOCK_D)
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    scale_log2 = scale * 1.4426950408889634

    whole = len_q // BLOCK_M * BLOCK_M  # queries in whole blocks
    first = 0  # no earlier query sees any of these keys
    unmasked = 0  # from here to `whole`, every query sees all of them
    if CAUSAL:
        first = start_n // BLOCK_M * BLOCK_M
        unmasked = tl.minimum(tl.cdiv(start_n + BLOCK_N, BLOCK_M) * BLOCK_M, whole)

    for head in tl.range(kv_head * GROUP, kv_head * GROUP + GROUP):
        head_q_ptr = q_ptr + batch * stride_qb + head * stride_qh
        head_do_ptr = do_ptr + batch * stride_dob + head * stride_doh
        q_ptrs = head_q_ptr + offs_m[:, None] * stride_qm + offs_d[None, :] * stride_qd
        do_ptrs = head_do_ptr + offs_m[:, None] * stride_dom + offs_d[None, :] * stride_dod
        first_row = (batch * tl.num_programs(1) * GROUP + head) * len_q
        lse_ptrs = lse_ptr + first_row + offs_m
        delta_ptrs = delta_ptr + first_row + offs_m
        # What the diagonal cuts, [first, unmasked), then what the sequence's end cuts, [whole, len_q).
        for block in tl.range(first, unmasked + len_q - tl.maximum(first, whole), BLOCK_M):
            dk, dv = key_value_grads_block(
                dk, dv, k, v, q_ptrs, do_ptrs, lse_ptrs, delta_ptrs,
                tl.where(block < unmasked, block, block - unmasked + whole), cols, len_q,
                scale_log2, stride_qm, stride_dom, in_dim, dim_mask, dim_pad, BLOCK_M, CAUSAL, True, PRECISION,
            )  # fmt: skip
        for start_m in tl.range(unmasked, whole, BLOCK_M):
            dk, dv = key_value_grads_block(
                dk, dv, k, v, q_ptrs, do_ptrs, lse_ptrs, delta_ptrs,
                start_m, cols, len_q,
                scale_log2, stride_qm, stride_dom, in_dim, dim_mask, dim_pad, BLOCK_M, CAUSAL, False, PRECISION,
            )  # fmt: skip

    dk_ptrs = dk_ptr + batch * stride_dkb + kv_head * stride_dkh + keys * stride_dkn + offs_d[None, :] * stride_dkd
    dv_ptrs = dv_ptr + batch * stride_dvb + kv_head * stride_dvh + keys * stride_dvn + offs_d[None, :] * stride_dvd
    tl.store(dk_ptrs, (dk * scale).to(dk_ptr.dtype.element_ty), mask=inside)
    tl.store(dv_ptrs, dv.to(dv_ptr.dtype.element_ty), mask=inside)


@triton.jit
def query_grad_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, dq_ptr,
    scale, len_q, len_k,
    stride_qb, stride_qh, stride_qm, stride_qd,
    stride_kb, stride_kh, stride_kn, stride_kd,
    stride_vb, stride_vh, stride_vn, stride_vd,
    stride_dob, stride_doh, stride_dom, stride_dod,
    stride_dqb, stride_dqh, stride_dqm, stride_dqd,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dQ of BLOCK_M queries, which walk over the keys as in the forward pass. Grid: as forward_kernel."""
    start_m = tl.program_id(0) * BLOCK_M
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    kv_head = head // GROUP

    offs_m = start_m + tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, BLOCK_D)
    rows = offs_m[:, None].to(tl.int64)
    in_dim = offs_d[None, :] < HEAD_DIM
    dim_mask = in_dim if HEAD_DIM < BLOCK_D else None
    dim_pad: tl.constexpr = 0.0 if HEAD_DIM < BLOCK_D else None
    inside = (offs_m[:, None] < len_q) & in_dim

    q_ptrs = q_ptr + batch * stride_qb + head * stride_qh + rows * stride_qm + offs_d[None, :] * stride_qd
    do_ptrs = do_ptr + batch * stride_dob + head * stride_doh + rows * stride_dom + offs_d[None, :] * stride_dod
    k_ptr += batch * stride_kb + kv_head * stride_kh
    v_ptr += batch * stride_vb + kv_head * stride_vh
    k_ptrs = k_ptr + offs_n[:, None] * stride_kn + offs_d[None, :] * stride_kd
    v_ptrs = v_ptr + offs_n[:, None] * stride_vn + offs_d[None, :] * stride_vd
    per_row = (batch * tl.num_programs(1) + head) * len_q + offs_m
    q = tl.load(q_ptrs, mask=inside, other=0.0)  # (BLOCK_M, BLOCK_D)
    do = tl.load(do_ptrs, mask=inside, other=0.0)  # (BLOCK_M, BLOCK_D)
    lse_log2 = tl.load(lse_ptr + per_row, mask=offs_m < len_q, other=0.0) * 1.4426950408889634
    delta = tl.load(delta_ptr + per_row, mask=offs_m < len_q, other=0.0)  # (BLOCK_M,)
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    scale_log2 = scale * 1.4426950408889634

    visible = len_k  # keys that some row of this tile sees
    unmasked = len_k // BLOCK_N * BLOCK_N  # keys in the blocks that every row sees whole
    if CAUSAL:
        visible = tl.minimum(len_k, start_m + BLOCK_M)
        unmasked = tl.minimum(len_k, start_m) // BLOCK_N * BLOCK_N

    for _ in tl.range(0, unmasked, BLOCK_N):
        k = tl.load(k_ptrs, mask=dim_mask, other=dim_pad)  # (BLOCK_N, BLOCK_D)
        v = tl.load(v_ptrs, mask=dim_mask, other=dim_pad)  # (BLOCK_N, BLOCK_D)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # (BLOCK_M, BLOCK_N)
        p = tl.exp2(s * scale_log2 - lse_log2[:, None])
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)  # (BLOCK_M, BLOCK_N)
        ds = p * (dp - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)  # (BLOCK_M, BLOCK_D); times scale at the end
        k_ptrs += BLOCK_N * stride_kn
        v_ptrs += BLOCK_N * stride_vn

    for start_n in tl.range(unmasked, visible, BLOCK_N):  # the diagonal, and the sequence's end
        cols = start_n + offs_n
        k = tl.load(k_ptrs, mask=(cols[:, None] < len_k) & in_dim, other=0.0)
        v = tl.load(v_ptrs, mask=(cols[:, None] < len_k) & in_dim, other=0.0)
        keep = cols[None, :] < len_k
        if CAUSAL:
            keep = keep & (cols[None, :] <= offs_m[:, None])
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        p = tl.where(keep, tl.exp2(s * scale_log2 - lse_log2[:, None]), 0.0)
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        ds = p * (dp - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
        k_ptrs += BLOCK_N * stride_kn
        v_ptrs += BLOCK_N * stride_vn

    dq_ptrs = dq_ptr + batch * stride_dqb + head * stride_dqh + rows * stride_dqm + offs_d[None, :] * stride_dqd
    tl.store(dq_ptrs, (dq * scale).to(dq_ptr.dtype.element_ty), mask=inside)
