# %% [markdown]
# # Exercise: FlashAttention
#
# You write FlashAttention in four steps, each a small piece that the next one uses.
#
# | part | you write | points |
# |---|---|---|
# | 1 | merge two blocks of a softmax | 2 |
# | 2 | tiled attention in PyTorch | 4 |
# | 3 | the inner loop of the Triton kernel | 6 |
# | 4 | the bytes that move | 3 |
#
# Each part ends with a check. It says what is right, what is wrong and, where it can tell, why. Run it as often as you
# like. `checks.hint("flash_attention/1")` gives a hint, and `checks.hint("flash_attention/1", 2)` a bigger one.

# %% nbgrader={"grade":false,"grade_id":"setup","locked":true,"schema_version":3,"solution":false}
import math

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from cme295lab import simulator
from cme295lab.grading import checks

# %% [markdown]
# ## Part 1. Merge two softmax blocks
#
# A softmax needs the largest score and the sum of all exponentials: it seems to need the whole row at once. It does
# not. Of a block of scores $s_j$ with values $v_j$ (rows of $V$), keep only its **state**:
#
# $$m = \max_j s_j \qquad \ell = \sum_j e^{s_j - m} \qquad o = \sum_j e^{s_j - m}\, v_j$$
#
# The output of the softmax is $o / \ell$. The state of two blocks together follows from their two states, so a row can
# be processed block by block, forgetting the scores.

# %% [markdown]
# A small example: the scores $[1, 3 \mid 2, 5]$ in two blocks. The second maximum is larger. **Predict**: by what
# factor does the first block's sum shrink when it is measured from $m = 5$ instead of $m = 3$? The last line tells you
# whether you are right.

# %% nbgrader={"grade":false,"grade_id":"block_state","locked":true,"schema_version":3,"solution":false}
def block_state(scores, values):
    """The state (m, l, o) of a block: scores (rows, keys), values (keys, dim)."""
    m = scores.amax(-1)
    p = torch.exp(scores - m[:, None])
    return m, p.sum(-1), p @ values


scores = torch.tensor([[1.0, 3.0, 2.0, 5.0]], dtype=torch.float64)
values = torch.eye(2, dtype=torch.float64).repeat(2, 1)
for name, part in {"first": slice(0, 2), "second": slice(2, 4), "both": slice(0, 4)}.items():
    m, l, o = block_state(scores[:, part], values[part])
    print(f"{name:6}  m = {m.item():.0f}   l = {l.item():.10f}   o = {o[0].tolist()}")

# %% [markdown]
# Write `merge_blocks`. It gets the states of two blocks `a` and `b` and returns the state of both together, as if
# `block_state` had seen all the scores at once.

# %% nbgrader={"grade":false,"grade_id":"merge_blocks","locked":false,"schema_version":3,"solution":true}
def merge_blocks(
    m_a: Tensor, l_a: Tensor, o_a: Tensor, m_b: Tensor, l_b: Tensor, o_b: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the softmax states of two blocks of keys.

    Args:
        m_a, m_b: largest score of each row, (rows,).
        l_a, l_b: sum of exp(score - m) of each row, (rows,).
        o_a, o_b: sum of exp(score - m) * value of each row, (rows, dim); not divided by l.

    Returns:
        (m, l, o) of both blocks together.

    TASKS
    1. The new maximum m of each row.
    2. The two factors that bring what was measured from m_a, and from m_b, to the new m.
    3. The new l and o.
    """
    ### BEGIN SOLUTION
    m = torch.maximum(m_a, m_b)
    weight_a = torch.exp(m_a - m)
    weight_b = torch.exp(m_b - m)
    l = weight_a * l_a + weight_b * l_b
    o = weight_a[:, None] * o_a + weight_b[:, None] * o_b
    return m, l, o
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"merge_check","locked":true,"points":2,"schema_version":3,"solution":false}
result = checks.run("flash_attention/1", merge_blocks)
### BEGIN HIDDEN TESTS
result &= checks.run("flash_attention/1", merge_blocks, seed=295, rows=5, dim=7)
result &= checks.run("flash_attention/1", merge_blocks, seed=296, rows=33, dim=2, dtype=torch.float32)
### END HIDDEN TESTS
result.award(2)

# %% [markdown]
# ## Part 2. Tiled attention in PyTorch
#
# Attention is $O = \mathrm{softmax}\left(QK^\top / \sqrt{d}\right)V$. For $N$ queries and keys the score matrix has
# $N \times N$ numbers: at $N = 65{,}536$ and 2 bytes each, that is 8.6 GB for *one* head. So cut it into **tiles** of
# `block_size` queries by `block_size` keys and never hold more than one:
#
# - for each tile of queries, start with the empty state $m = -\infty$, $\ell = 0$, $o = 0$;
# - for each tile of keys, compute the scores of this tile alone, and merge it into the state (Part 1);
# - after the last tile, divide: $o / \ell$.
#
# With a **causal** mask, query $i$ sees keys $0$ to $i$: some tiles are whole, some are cut by the diagonal, some are
# empty.

# %% nbgrader={"grade":false,"grade_id":"tiles_picture","locked":true,"schema_version":3,"solution":false}
size, block = 10, 4  # the last tile of each row and column is short
visible = torch.arange(size) <= torch.arange(size)[:, None]
fig, axes = plt.subplots(figsize=(3, 3))
axes.imshow(visible, cmap="Blues", vmin=0, vmax=2)
for edge in range(0, size, block):
    axes.axhline(edge - 0.5, color="black")
    axes.axvline(edge - 0.5, color="black")
axes.set(xlabel="key", ylabel="query", title="causal scores in tiles of 4")
plt.show()

# %% [markdown]
# *The picture: a 10 × 10 matrix cut into tiles of 4. Blue is what a query sees. The tiles on the diagonal are blue in
# part, those above it are white, and the last tile of each row and column is only 2 wide.*
#
# Half precision: accumulate in float32 (`x.float()`), and return the dtype of `q`. The check also measures your
# memory: no $N \times N$ matrix, not even a boolean mask.

# %% nbgrader={"grade":false,"grade_id":"tiled_attention","locked":false,"schema_version":3,"solution":true}
def tiled_attention(
    q: Tensor, k: Tensor, v: Tensor, causal: bool = False, block_size: int = 64
) -> Tensor:
    """softmax(q kᵀ / sqrt(dim)) v, one tile of scores at a time.

    Args:
        q, k, v: (batch, heads, seq, dim), float32, float16 or bfloat16.
        causal: whether query i sees keys 0 to i only.
        block_size: queries, and keys, in a tile; it need not divide seq.

    Returns:
        The output, with the shape and the dtype of q.

    TASKS
    1. Loop over the tiles of queries; each starts with the empty state, in float32.
    2. Loop over the tiles of keys: scaled scores, the causal mask of this tile, its state, the merge.
    3. Divide once per tile of queries, and store the result in the dtype of q.
    """
    ### BEGIN SOLUTION
    seq, dim = q.shape[-2:]
    scale = 1 / math.sqrt(dim)
    output = torch.empty_like(q)
    for start_m in range(0, seq, block_size):
        q_tile = q[..., start_m : start_m + block_size, :].float()
        rows = torch.arange(start_m, start_m + q_tile.shape[-2])
        m = torch.full(q_tile.shape[:-1], -math.inf)
        l = torch.zeros(q_tile.shape[:-1])
        o = torch.zeros(q_tile.shape)
        last = start_m + q_tile.shape[-2] if causal else seq
        for start_n in range(0, last, block_size):
            k_tile = k[..., start_n : start_n + block_size, :].float()
            v_tile = v[..., start_n : start_n + block_size, :].float()
            scores = q_tile @ k_tile.mT * scale
            if causal:
                columns = torch.arange(start_n, start_n + k_tile.shape[-2])
                scores = scores.masked_fill(columns > rows[:, None], -math.inf)
            m_new = torch.maximum(m, scores.amax(-1))
            p = torch.exp(scores - m_new[..., None])
            rescale = torch.exp(m - m_new)
            l = l * rescale + p.sum(-1)
            o = o * rescale[..., None] + p @ v_tile
            m = m_new
        output[..., start_m : start_m + block_size, :] = o / l[..., None]
    return output
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"tiled_check","locked":true,"points":4,"schema_version":3,"solution":false}
result = checks.run("flash_attention/2", tiled_attention)
### BEGIN HIDDEN TESTS
result &= checks.run("flash_attention/2", tiled_attention, seed=295, heads=3, dim=8, ragged=101)
result &= checks.run("flash_attention/2", tiled_attention, seed=296, heads=1, dim=32, dtype=torch.bfloat16)
### END HIDDEN TESTS
result.award(4)

# %% [markdown]
# ## Part 3. The inner loop of the kernel
#
# The same algorithm as a Triton kernel. The grid has one **program** per tile of `BLOCK_M` queries and head: your
# outer loop has become the grid. A program loads its tile of Q once, then walks over K and V, `BLOCK_N` keys at a
# time. The scores, the state and the accumulator live on the chip and never reach HBM.
#
# Memory is addressed by hand. Row $i$ of a head starts $i \cdot d$ elements after the head does, so a block of pointers
# is `k_ptr + head_start + columns[:, None] * HEAD_DIM + dims[None, :]`. A `mask=` keeps a load inside the tensor;
# `other=` is what the masked elements become.

# %% [markdown]
# | in PyTorch | in Triton |
# |---|---|
# | `a @ b.mT` | `tl.dot(a, tl.trans(b))`, accumulated in float32 |
# | `x.masked_fill(~keep, -inf)` | `tl.where(keep, x, -float("inf"))` |
# | `x.amax(-1)`, `x.sum(-1)` | `tl.max(x, 1)`, `tl.sum(x, 1)` |
# | `torch.maximum(a, b)`, `torch.exp(x)` | `tl.maximum(a, b)`, `tl.exp(x)` |
# | `p.to(v.dtype)` | `p.to(v.dtype)`: both operands of a `tl.dot` have the same dtype |
#
# Without a GPU the course's simulator runs the kernel. On a GPU the same kernel runs unchanged. Triton's compiler has
# packages for Linux only: elsewhere the check leaves out whether a GPU would accept your kernel.

# %% nbgrader={"grade":false,"grade_id":"flash_forward_kernel","locked":false,"schema_version":3,"solution":true}
import triton
import triton.language as tl


@triton.jit
def flash_forward_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, scale, seq_len,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr,
):
    """One tile of BLOCK_M queries of one head. q, k, v, o: (heads, seq_len, HEAD_DIM); lse: (heads, seq_len)."""
    head = tl.program_id(1)
    start_m = tl.program_id(0) * BLOCK_M
    rows = start_m + tl.arange(0, BLOCK_M)
    dims = tl.arange(0, HEAD_DIM)
    head_start = head * seq_len * HEAD_DIM
    row_offsets = head_start + rows[:, None] * HEAD_DIM + dims[None, :]
    row_exists = rows < seq_len

    q = tl.load(q_ptr + row_offsets, mask=row_exists[:, None], other=0.0)
    m = tl.full([BLOCK_M], -float("inf"), tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)

    last_key = tl.minimum(start_m + BLOCK_M, seq_len) if CAUSAL else seq_len
    for start_n in range(0, last_key, BLOCK_N):
        columns = start_n + tl.arange(0, BLOCK_N)
        # TASKS
        # 1. Load k and v, (BLOCK_N, HEAD_DIM) each; columns beyond seq_len do not exist.
        # 2. The scaled scores s, (BLOCK_M, BLOCK_N); -inf where a column does not exist or, if CAUSAL, follows the row.
        # 3. The new maximum, p = exp(s - new maximum), and the factor that rescales what was accumulated so far.
        # 4. The new l and acc, in float32, and m for the next block.
        ### BEGIN SOLUTION
        column_offsets = head_start + columns[:, None] * HEAD_DIM + dims[None, :]
        column_exists = columns < seq_len
        k = tl.load(k_ptr + column_offsets, mask=column_exists[:, None], other=0.0)
        v = tl.load(v_ptr + column_offsets, mask=column_exists[:, None], other=0.0)
        s = tl.dot(q, tl.trans(k)) * scale
        visible = column_exists[None, :]
        if CAUSAL:
            visible = visible & (columns[None, :] <= rows[:, None])
        s = tl.where(visible, s, -float("inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        p = tl.exp(s - m_new[:, None])
        rescale = tl.exp(m - m_new)
        l = l * rescale + tl.sum(p, 1)
        acc = acc * rescale[:, None] + tl.dot(p.to(v.dtype), v)
        m = m_new
        ### END SOLUTION

    tl.store(o_ptr + row_offsets, acc / l[:, None], mask=row_exists[:, None])
    tl.store(lse_ptr + head * seq_len + rows, m + tl.log(l), mask=row_exists)

# %% nbgrader={"grade":true,"grade_id":"kernel_check","locked":true,"points":6,"schema_version":3,"solution":false}
result = checks.run("flash_attention/3", flash_forward_kernel)
### BEGIN HIDDEN TESTS
others = {"seed": 295, "heads": 3, "dim": 16, "dtype": torch.float16, "ragged": 77}
result &= checks.run("flash_attention/3", flash_forward_kernel, **others)
result &= checks.run("flash_attention/3", flash_forward_kernel, seed=296, heads=1, dim=64, dtype=torch.bfloat16)
### END HIDDEN TESTS
result.award(6)

# %% [markdown]
# Once the check passes, run your kernel and look at what it moved. `K` and `V` are read more often than once: which
# number of the grid says how often?

# %% nbgrader={"grade":false,"grade_id":"run_the_kernel","locked":true,"schema_version":3,"solution":false}
def flash_forward(q, k, v, causal=False, block_m=64, block_n=64):
    """Launch your kernel on (heads, seq, dim) tensors: CUDA tensors as they are, others inside the simulator."""
    heads, seq, dim = q.shape
    o, lse = torch.empty_like(q), torch.empty(heads, seq, device=q.device)
    grid = (triton.cdiv(seq, block_m), heads)
    constants = {"HEAD_DIM": dim, "BLOCK_M": block_m, "BLOCK_N": block_n, "CAUSAL": causal}
    flash_forward_kernel[grid](q, k, v, o, lse, dim**-0.5, seq, **constants)
    return o, lse

# %%
if result.passed:
    with simulator.trace(device="A100") as trace:
        flash_forward(*torch.randn(3, 4, 512, 64, generator=torch.manual_seed(0)).half())
    print(trace.table())

# %% [markdown]
# ## Part 4. Count the traffic
#
# Now predict those numbers. One head, $N$ queries and keys, head dimension $d$, no mask, $e$ bytes an element.
#
# **Standard attention** is three kernels, each of which reads its inputs from HBM and writes its output there:
# $S = QK^\top$, then $P = \mathrm{softmax}(S)$, then $O = PV$. Count every element of every input and output of a
# kernel once.
#
# **FlashAttention** (Part 3) is one kernel. Count what its programs ask for: $Q$, $K$, $V$ in, $O$ and the log-sum-exp
# out. The log-sum-exp is float32 (4 bytes) whatever $e$ is.

# %% [markdown]
# A small example, at $N = 4$, $d = 2$, $e = 2$: writing $S$ costs $4 \cdot 4 \cdot 2 = 32$ bytes, reading $Q$ costs
# $4 \cdot 2 \cdot 2 = 16$ bytes. With tiles of 2 queries there are 2 programs, and each reads all of $K$:
# $2 \cdot 16 = 32$ bytes.
#
# Your formulas must also hold for lengths that the tile does not divide: masked elements are not read.

# %% nbgrader={"grade":false,"grade_id":"traffic","locked":false,"schema_version":3,"solution":true}
def standard_forward_bytes(seq: int, dim: int, element_bytes: int = 2) -> int:
    """Bytes between HBM and the chip for standard attention, one head.

    TASKS
    1. Add up the inputs and outputs of the three kernels.
    """
    ### BEGIN SOLUTION
    scores = seq * seq  # S, and P
    matrix = seq * dim  # Q, K, V, O
    return (2 * matrix + scores + scores + scores + scores + matrix + matrix) * element_bytes
    ### END SOLUTION


def flash_forward_bytes(seq: int, dim: int, block_m: int, block_n: int, element_bytes: int = 2) -> int:
    """Bytes between HBM and the chip for the kernel of Part 3, one head, not causal.

    TASKS
    1. How many programs does the head have? How often is each tensor read or written?
    2. Add them up. Is there an argument that you do not need?
    """
    ### BEGIN SOLUTION
    num_programs = math.ceil(seq / block_m)
    elements = seq * dim + num_programs * 2 * seq * dim + seq * dim  # Q, then K and V, then O
    return elements * element_bytes + seq * 4  # the log-sum-exp
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"traffic_check","locked":true,"points":3,"schema_version":3,"solution":false}
result = checks.run("flash_attention/4", (standard_forward_bytes, flash_forward_bytes))
### BEGIN HIDDEN TESTS
result &= checks.run("flash_attention/4", (standard_forward_bytes, flash_forward_bytes), seq=320, ragged=210, dim=32)
### END HIDDEN TESTS
result.award(3)

# %% [markdown]
# ## Summary
#
# - A softmax can be computed block by block: keep $(m, \ell, o)$ and rescale when the maximum moves.
# - Attention therefore needs only $O(N)$ extra memory, and its result is still exact.
# - The kernel trades reads for writes: it reads K and V again for every tile of queries, and never writes a score.
# - **To take away**: your two formulas meet at some `block_m`. Where, for $N = 4096$ and $d = 64$? And what keeps
#   `block_m` from growing for ever?
