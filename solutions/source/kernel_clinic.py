# %% [markdown]
# # Exercise: Kernel clinic
#
# Four kernels come to see you. Three are sick, one brings its report. Each part shows the symptoms first, counted by
# the simulator; you find the cause, write the cure, and measure again.
#
# | part | the patient | points |
# |---|---|---|
# | 1 | gives the right numbers, and wastes most of every memory transaction | 4 |
# | 2 | gives the right numbers sometimes: its programs race | 4 |
# | 3 | is healthy, but its blocks have the wrong size | 4 |
# | 4 | brings a report: you read it | 3 |
#
# Each part ends with a check. It says what is right, what is wrong and, where it can tell, why. Run it as often as you
# like. `checks.hint("kernel_clinic/1")` gives a hint, and `checks.hint("kernel_clinic/1", 2)` a bigger one.

# %% nbgrader={"grade":false,"grade_id":"setup","locked":true,"schema_version":3,"solution":false}
import torch

from cme295lab import hardware, simulator
from cme295lab.grading import checks
from cme295lab.kernels.matmul import matmul_kernel
from cme295lab.kernels.softmax import plain_softmax_kernel

import triton  # on Linux; elsewhere cme295lab provides what the simulator needs of it
import triton.language as tl

# %% [markdown]
# ## Part 1. Right, and wasteful
#
# A linear layer adds a bias $b$. Its gradient is a sum over the tokens: $db_j = \sum_i dy_{ij}$. In the kernel below,
# one program adds up one feature. It is correct.
#
# Memory does not deliver single numbers. It delivers **sectors** of 32 bytes: 16 neighbouring float16 numbers, whether
# you want one of them or all. *Sector efficiency* is the share that was asked for. **Predict** it for the `tl.load`
# below: `dy` has the shape (tokens, features), rows one after the other.

# %% nbgrader={"grade":false,"grade_id":"sick_bias_grad","locked":true,"schema_version":3,"solution":false}
@triton.jit
def sick_bias_grad(dy_ptr, db_ptr, num_tokens, num_features, BLOCK_T: tl.constexpr = 128):
    """db[j] = the sum of dy[:, j], one program per feature j."""
    feature = tl.program_id(0)
    acc = tl.zeros([BLOCK_T], tl.float32)
    for start in range(0, num_tokens, BLOCK_T):
        tokens = start + tl.arange(0, BLOCK_T)
        dy = tl.load(dy_ptr + tokens * num_features + feature, mask=tokens < num_tokens, other=0.0)
        acc += dy
    tl.store(db_ptr + feature, tl.sum(acc, 0))


def examine(kernel, grid, *arguments):
    """Launch a kernel in the simulator and print how it uses memory, line by line."""
    with simulator.trace(device="A100") as trace:
        kernel[grid](*arguments)
    print(f"{trace.launches[0].num_programs} programs")
    for access in trace.launches[0].accesses:
        print(f"{access.kind:6} {access.tensor:3} asked for {access.requested_bytes:>9,} B, "
              f"moved {access.moved_bytes:>10,} B: {access.sector_efficiency:.0%}   {access.source}")


dy, db = torch.randn(512, 1024).half(), torch.zeros(1024)
examine(sick_bias_grad, (1024,), dy, db, *dy.shape)

# %% [markdown]
# Now cure it. Write `bias_grad_kernel` and its grid so that neighbouring lanes of a block read neighbouring numbers,
# and write neighbouring numbers.
#
# - `dy` is float16 or float32, `db` is float32 and arrives filled with zeros.
# - Any number of tokens and features must work. Sums are made in float32.
# - Block sizes are yours: give them as defaults of `tl.constexpr` parameters, and use the same ones in the grid.
# - Read `dy` once. A kernel that moves whole sectors by reading everything several times is no cure.

# %% nbgrader={"grade":false,"grade_id":"bias_grad","locked":false,"schema_version":3,"solution":true}
@triton.jit
def bias_grad_kernel(
    dy_ptr, db_ptr, num_tokens, num_features,
    BLOCK_T: tl.constexpr = 32, BLOCK_F: tl.constexpr = 64,
):
    """db[j] = the sum of dy[:, j]. dy: (num_tokens, num_features); db: (num_features,), float32, zeros."""
    # TASKS
    # 1. Which features are this program's? A block of neighbours, not one.
    # 2. Walk over the tokens and load blocks whose lanes run along the features.
    # 3. Add in float32, and store a whole block.
    ### BEGIN SOLUTION
    features = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
    exists = features < num_features
    acc = tl.zeros([BLOCK_F], tl.float32)
    for start in range(0, num_tokens, BLOCK_T):
        tokens = start + tl.arange(0, BLOCK_T)
        offsets = tokens[:, None] * num_features + features[None, :]
        inside = (tokens[:, None] < num_tokens) & exists[None, :]
        dy = tl.load(dy_ptr + offsets, mask=inside, other=0.0)
        acc += tl.sum(dy.to(tl.float32), 0)
    tl.store(db_ptr + features, acc, mask=exists)
    ### END SOLUTION


def bias_grad_grid(num_tokens, num_features):
    """The grid of the launch: a tuple of one to three numbers of programs."""
    ### BEGIN SOLUTION
    return (triton.cdiv(num_features, 64),)
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"coalescing_check","locked":true,"points":4,"schema_version":3,"solution":false}
result = checks.run("kernel_clinic/1", (bias_grad_kernel, bias_grad_grid))
### BEGIN HIDDEN TESTS
result &= checks.run("kernel_clinic/1", (bias_grad_kernel, bias_grad_grid), seed=295, tokens=640, features=256)
### END HIDDEN TESTS
result.award(4)

# %% [markdown]
# Once the check passes, compare the two. The bytes asked for are the same; what moves is not.

# %% nbgrader={"grade":false,"grade_id":"compare_bias_grad","locked":true,"schema_version":3,"solution":false}
if result.passed:
    examine(bias_grad_kernel, bias_grad_grid(*dy.shape), dy, db.zero_(), *dy.shape)

# %% [markdown]
# ## Part 2. Right, sometimes
#
# An embedding table $W$ has a row per word. Forward: token $i$ takes row $\mathrm{id}_i$. Backward: the gradient of a
# row is the sum over all tokens that took it, $dW_r = \sum_{i:\ \mathrm{id}_i = r} dy_i$.
#
# The kernel below has a program per token. It is tested with four different words, and passes. **Predict**: what
# happens when a word occurs twice?

# %% nbgrader={"grade":false,"grade_id":"sick_embedding_grad","locked":true,"schema_version":3,"solution":false}
@triton.jit
def sick_embedding_grad(ids_ptr, dy_ptr, dw_ptr, num_tokens, num_rows, dim, BLOCK_D: tl.constexpr = 128):
    """dw[ids[i]] += dy[i], one program per token i."""
    token = tl.program_id(0)
    row = tl.load(ids_ptr + token)
    columns = tl.arange(0, BLOCK_D)
    dy = tl.load(dy_ptr + token * dim + columns, mask=columns < dim)
    dw = tl.load(dw_ptr + row * dim + columns, mask=columns < dim)
    tl.store(dw_ptr + row * dim + columns, dw + dy, mask=columns < dim)


for ids in ([0, 1, 2, 3], [2, 0, 2, 2]):
    ids, dy, dw = torch.tensor(ids), torch.ones(4, 8), torch.zeros(4, 8)
    with simulator.trace(check=True) as trace:
        sick_embedding_grad[(4,)](ids, dy, dw, 4, 4, 8)
    print("ids", ids.tolist(), "  gradient of each row", dw[:, 0].tolist(), "  problems", len(trace.problems))
print(trace.problems[0].message.partition("\n  fix:")[0])

# %% [markdown]
# Three tokens took row 2, and its gradient is 1 instead of 3: all three programs read the old value, and the last one
# to write won. On a GPU it is worse: the outcome changes from run to run, and a test may pass for months.
#
# Write `embedding_grad_kernel` and its grid without a race. `ids` is int64, `dy` and `dw` are float32, `dw` arrives
# filled with zeros, and `dim` is at most 128. One program that does all the work would have nobody to race with; that
# is no cure: the work must stay divided among many.

# %% nbgrader={"grade":false,"grade_id":"embedding_grad","locked":false,"schema_version":3,"solution":true}
@triton.jit
def embedding_grad_kernel(ids_ptr, dy_ptr, dw_ptr, num_tokens, num_rows, dim, BLOCK_D: tl.constexpr = 128):
    """dw[ids[i]] += dy[i]. ids: (num_tokens,); dy: (num_tokens, dim); dw: (num_rows, dim), zeros."""
    # TASKS
    # 1. Decide who may write a row of dw: everybody, safely, or only one program.
    # 2. Write the kernel.
    ### BEGIN SOLUTION
    token = tl.program_id(0)
    row = tl.load(ids_ptr + token)
    columns = tl.arange(0, BLOCK_D)
    dy = tl.load(dy_ptr + token * dim + columns, mask=columns < dim)
    tl.atomic_add(dw_ptr + row * dim + columns, dy, mask=columns < dim)
    ### END SOLUTION


def embedding_grad_grid(num_tokens, num_rows, dim):
    """The grid of the launch: a tuple of one to three numbers of programs."""
    ### BEGIN SOLUTION
    return (num_tokens,)
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"race_check","locked":true,"points":4,"schema_version":3,"solution":false}
result = checks.run("kernel_clinic/2", (embedding_grad_kernel, embedding_grad_grid))
### BEGIN HIDDEN TESTS
others = {"seed": 295, "tokens": 45, "rows": 7, "dim": 100}
result &= checks.run("kernel_clinic/2", (embedding_grad_kernel, embedding_grad_grid), **others)
### END HIDDEN TESTS
result.award(4)

# %% [markdown]
# ## Part 3. Blocks of the right size
#
# The course's matrix product computes a tile of `BLOCK_M` × `BLOCK_N` results per program. It reads $A$ once per
# column of tiles and $B$ once per row of tiles, so larger tiles ask for fewer bytes. They also need more room on the
# chip.
#
# `measure` launches it and counts both. **Predict** before you run the cell: of the three settings, which one asks for
# the fewest bytes, and which one needs the most room?

# %% nbgrader={"grade":false,"grade_id":"measure","locked":true,"schema_version":3,"solution":false}
SIDES = (16, 32, 64, 128, 256)  # what BLOCK_M and BLOCK_N may be


def measure(num_rows, num_cols, inner, block_m, block_n):
    """Requested bytes of a float16 product, and the on-chip bytes of one program."""
    a, b = torch.zeros(num_rows, inner).half(), torch.zeros(inner, num_cols).half()
    c = torch.empty(num_rows, num_cols).half()
    blocks = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": 32, "GROUP_M": 1, "PRECISION": "ieee"}
    grid = (triton.cdiv(num_rows, block_m) * triton.cdiv(num_cols, block_n),)
    with simulator.trace() as trace:
        matmul_kernel[grid](a, b, c, num_rows, num_cols, inner, *a.stride(), *b.stride(), *c.stride(), **blocks)
    return trace.requested_bytes, trace.sram_peak_bytes


for blocks in ((32, 32), (128, 32), (256, 256)):
    requested, held = measure(512, 128, 64, *blocks)
    print(blocks, f"{requested:>9,} bytes requested, {held / 1024:>6.1f} KiB held by one program")

# %% [markdown]
# Write `choose_blocks`: among all `BLOCK_M` and `BLOCK_N` from `SIDES`, the pair that fits into `limit_bytes` on the
# chip and asks for the fewest bytes. Shapes are not always square, and tiles do not always divide them.
#
# You may measure every pair, derive a formula, or mix both. The check takes your answer, launches it, and compares
# with every other pair that fits.

# %% nbgrader={"grade":false,"grade_id":"choose_blocks","locked":false,"schema_version":3,"solution":true}
def choose_blocks(num_rows: int, num_cols: int, inner: int, limit_bytes: int) -> tuple[int, int]:
    """The block sizes that move least among those that fit.

    Args:
        num_rows, num_cols: the shape of C.
        inner: columns of A, and rows of B; a multiple of 32.
        limit_bytes: what one program may hold on the chip (`measure` counts it).

    Returns:
        (BLOCK_M, BLOCK_N), each one of SIDES.

    TASKS
    1. Which pairs fit?
    2. Which of them asks for the fewest bytes?
    """
    ### BEGIN SOLUTION
    best = None
    for block_m in SIDES:
        for block_n in SIDES:
            requested, held = measure(num_rows, num_cols, inner, block_m, block_n)
            if held <= limit_bytes and (best is None or requested < best[0]):
                best = requested, block_m, block_n
    return best[1:]
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"blocks_check","locked":true,"points":4,"schema_version":3,"solution":false}
result = checks.run("kernel_clinic/3", choose_blocks)
### BEGIN HIDDEN TESTS
result &= checks.run("kernel_clinic/3", choose_blocks, seed=295)
### END HIDDEN TESTS
result.award(4)

# %% [markdown]
# An A100 has 192 KiB of SRAM and 256 KiB of registers per SM. Two programs side by side keep it busier than one, but
# each has half the room. What does that cost in bytes?

# %%
if result.passed:
    room = hardware.get_device("A100").on_chip_bytes_per_sm
    for programs in (1, 2, 4, 8):
        blocks = choose_blocks(1024, 1024, 64, room // programs)
        print(f"{programs} per SM: blocks {blocks}, {measure(1024, 1024, 64, *blocks)[0] / 1e6:.1f} MB requested")

# %% [markdown]
# ## Part 4. Read a report
#
# A colleague sends you a report of a softmax, and five questions. All answers are in the report, or one division away.

# %% nbgrader={"grade":false,"grade_id":"the_report","locked":true,"schema_version":3,"solution":false}
x, y = torch.randn(256, 4096, generator=torch.manual_seed(0)), torch.zeros(256, 4096)
with simulator.trace(device="A100") as trace:
    plain_softmax_kernel[(256,)](x, y, 4096, *x.stride(), *y.stride(), BLOCK_N=1024)
trace.report(compile=False)

# %% [markdown]
# 1. `programs`: how many programs does the launch have?
# 2. `times_read`: how often is each number of `x` requested?
# 3. `dram_share`: which share of the requested bytes reaches DRAM on an A100 (0 to 1; within 0.02 counts as right)?
# 4. `bound`: what limits it on an A100, `"memory"` or `"compute"`?
# 5. `saved_bytes`: how many *requested* bytes would a kernel save that reads each row once?

# %% nbgrader={"grade":false,"grade_id":"answers","locked":false,"schema_version":3,"solution":true}
def answers() -> dict[str, object]:
    """Your answers: {"programs": ..., "times_read": ..., "dram_share": ..., "bound": ..., "saved_bytes": ...}.

    TASKS
    1. Return the dictionary. A figure rounded as in the report is exact enough.
    """
    ### BEGIN SOLUTION
    read, distinct = trace.tensors["x"].read_bytes, trace.tensors["x"].distinct_read_bytes
    return {
        "programs": trace.launches[0].num_programs,
        "times_read": read / distinct,
        "dram_share": trace.dram_bytes / trace.requested_bytes,
        "bound": trace.roofline().bound,
        "saved_bytes": read - distinct,
    }
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"report_check","locked":true,"points":3,"schema_version":3,"solution":false}
result = checks.run("kernel_clinic/4", answers)
result.award(3)

# %% [markdown]
# ## Summary
#
# - Memory moves sectors. Let the lanes of a block run along the axis whose elements are neighbours.
# - Two programs may not write the same address, or read what another writes, without atomics. Let one program own it,
#   or use `tl.atomic_add`.
# - Larger blocks ask for fewer bytes and need more room. Count both, then choose.
# - **To take away**: which of the three cures would a test of the *values* alone have missed?
