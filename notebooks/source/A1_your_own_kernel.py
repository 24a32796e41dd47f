# %% [markdown]
# # Your own kernel
#
# Paste any Triton kernel into this notebook, from a tutorial, a paper's repository or your own project, and see what
# it costs: which bytes it asks for, which of them reach memory, how long a GPU needs at least, and what the compiler
# makes of it. No GPU is needed.
#
# Then come three kernels that give the right numbers and waste something: sectors, passes, the cache. Each time you
# predict, run, and look. At the end: a kernel that crashes, one that races, and one that you watch line by line.

# %% tags=["parameters"]
profile = "full"  # "fast": smaller sizes, for a quick look

# %%
import torch

from cme295lab import simulator, units
from cme295lab.widgets import CacheExplorer, traffic_bars

import triton  # on Linux; elsewhere cme295lab provides what the simulator needs of it
import triton.language as tl

torch.manual_seed(0)
HAS_COMPILER = simulator.frontend.available()

# %% [markdown]
# ## 1. Paste it here
#
# This is the gate of a SwiGLU layer, $y = x \cdot \sigma(x) \cdot g$, as many models compute it. Run the two cells as
# they are. Then replace the first one by your kernel and the launch in the second one by yours: tensors on the CPU,
# the grid in square brackets, as always. Autotuned kernels, helper functions and several launches in a row work too.

# %%
@triton.jit
def gate_kernel(x_ptr, g_ptr, y_ptr, length, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < length
    x = tl.load(x_ptr + offsets, mask=inside).to(tl.float32)
    g = tl.load(g_ptr + offsets, mask=inside).to(tl.float32)
    tl.store(y_ptr + offsets, x * tl.sigmoid(x) * g, mask=inside)

# %%
x, g = torch.randn(2, 100_000).half()
y = torch.empty_like(x)

with simulator.trace(device="A100") as t:
    gate_kernel[(triton.cdiv(x.numel(), 1024),)](x, g, y, x.numel(), BLOCK=1024)

expected = torch.nn.functional.silu(x.float()) * g.float()
print("largest error:", f"{(y.float() - expected).abs().max().item():.4f}")
t.report()

# %% [markdown]
# How to read it:
#
# | part | question |
# |---|---|
# | traffic | what do all programs together ask for (*requested*), and what is it with each byte once (*distinct*)? |
# | hierarchy | how many bytes cross each arrow: from the programs to L2 in whole sectors, from L2 to DRAM? |
# | on-chip memory | what does one program hold at the same time, line by line? |
# | roofline | is it limited by memory or by arithmetic, and how long does it take at least? |
# | compiler | registers, spills, tensor cores, what the main loop consists of (with Triton's compiler only) |
# | source | which line moves the bytes? |
#
# The same as numbers: `t.tensors["x"].read_bytes`, `t.dram_bytes`, `t.roofline().time_s`, `t.report().to_dict()`.

# %% [markdown]
# ## 2. Whole sectors: a transpose
#
# Memory delivers **sectors** of 32 bytes. Threads that run side by side share them if they touch neighbouring
# addresses; that is called *coalescing*. Here is a transpose of a float16 matrix: a program reads a row, and writes it
# as a column.
#
# **Predict**: of the bytes that move for the `tl.store`, which share was asked for?

# %%
@triton.jit
def transpose_by_rows(x_ptr, y_ptr, num_rows, num_cols, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    for start in range(0, num_cols, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * num_cols + cols, mask=cols < num_cols)
        tl.store(y_ptr + cols * num_rows + row, x, mask=cols < num_cols)


def count(kernel, grid, *arguments, **constants):
    """Launch a kernel in the simulator and return what was counted."""
    with simulator.trace(device="A100") as t:
        kernel[grid](*arguments, **constants)
    return t.launches[0]

# %% tags=["nbval-check-output"]
def print_accesses(launch):
    """Each load and store: bytes asked for, bytes of the sectors that move."""
    for a in launch.accesses:
        asked, moved = units.format_bytes(a.requested_bytes), units.format_bytes(a.moved_bytes)
        print(f"{a.kind:5} {asked:>6} asked {moved:>7} moved {a.sector_efficiency:>4.0%} {a.source}")


N = 512
x = torch.randn(N, N).half()
y = torch.empty_like(x)
by_rows = count(transpose_by_rows, (N,), x, y, N, N, BLOCK=256)
assert torch.equal(y, x.T)
print_accesses(by_rows)

# %% [markdown]
# Neighbouring lanes write to neighbouring *rows* of `y`, 1,024 bytes apart. Each of the 16 numbers that share a sector
# comes from another program: 2 bytes of 32 are used, 1/16.
#
# The cure: a program takes a square tile. It loads the tile along the rows of `x`, transposes it on the chip, and
# stores it along the rows of `y`.

# %%
@triton.jit
def transpose_by_tiles(x_ptr, y_ptr, num_rows, num_cols, BLOCK: tl.constexpr):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (rows[:, None] < num_rows) & (cols[None, :] < num_cols)
    x = tl.load(x_ptr + rows[:, None] * num_cols + cols[None, :], mask=inside)
    y_ptrs = y_ptr + cols[:, None] * num_rows + rows[None, :]
    tl.store(y_ptrs, tl.trans(x), mask=tl.trans(inside))

# %% tags=["nbval-check-output"]
by_tiles = count(transpose_by_tiles, (N // 64, N // 64), x, y, N, N, BLOCK=64)
assert torch.equal(y, x.T)
print_accesses(by_tiles)

# %%
launches = {"by rows": by_rows, "by tiles": by_tiles}
bars = {
    "asked for": {name: launch.requested_bytes for name, launch in launches.items()},
    "to and from L2": {name: launch.sector_bytes for name, launch in launches.items()},
    "to and from DRAM": {name: launch.dram_bytes for name, launch in launches.items()},
}
traffic_bars(bars, title=f"Transpose of a {N} × {N} float16 matrix", axis="bytes")

# %% [markdown]
# Three levels, three answers. *Asked for*: the same. *Between the programs and L2*: the rows need 8.5 times more.
# *DRAM*: the same again, because L2 collects the 16 pieces of a sector before it writes it back.
#
# A count of requested bytes sees no difference, nor does a count of DRAM bytes. The line with 6 % does.

# %% [markdown]
# ## 3. Passes: a softmax that reads three times
#
# A row's softmax needs its maximum, then the sum of exponentials, then the quotients. The kernel below walks over the
# row for each of them. The second one keeps the whole row on the chip.
#
# **Predict**, for float32: how many bytes per element does each kernel ask for? And how many reach DRAM?

# %%
@triton.jit
def softmax_three_passes(x_ptr, y_ptr, num_cols, BLOCK: tl.constexpr):
    x_ptr += tl.program_id(0) * num_cols
    y_ptr += tl.program_id(0) * num_cols
    cols = tl.arange(0, BLOCK)
    largest = tl.full([BLOCK], -float("inf"), tl.float32)
    for start in range(0, num_cols, BLOCK):
        largest = tl.maximum(largest, tl.load(x_ptr + start + cols))
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, num_cols, BLOCK):
        total += tl.exp(tl.load(x_ptr + start + cols) - tl.max(largest, 0))
    for start in range(0, num_cols, BLOCK):
        y = tl.exp(tl.load(x_ptr + start + cols) - tl.max(largest, 0)) / tl.sum(total, 0)
        tl.store(y_ptr + start + cols, y)

# %%
@triton.jit
def softmax_one_pass(x_ptr, y_ptr, num_cols, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * num_cols + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets)
    weights = tl.exp(x - tl.max(x, 0))
    tl.store(y_ptr + offsets, weights / tl.sum(weights, 0))

# %% tags=["nbval-check-output"]
x = torch.randn(512, 4096)
y = torch.empty_like(x)
passes = {}
for name, kernel in (("three passes", softmax_three_passes), ("one pass", softmax_one_pass)):
    block = 1024 if name == "three passes" else 4096
    passes[name] = launch = count(kernel, (512,), x, y, 4096, BLOCK=block)
    assert torch.allclose(y, x.softmax(-1), atol=1e-6)
    requested, dram = launch.requested_bytes / x.numel(), launch.dram_bytes / x.numel()
    held = units.format_bytes(launch.sram_peak_bytes, binary=True)
    print(f"{name:12} {requested:4.0f} B asked, {dram:.0f} B of DRAM per element; a program holds {held}")

# %% [markdown]
# 16 bytes against 8 are asked for, yet DRAM sees 8 from both. `x` has 8 MiB, and the A100's L2 has 40: the second and
# third pass find everything there. **Predict**: below which size of L2 does that end?

# %%
sizes = [2**power for power in range(1, 6)]
swept = {
    name: {f"L2 of {size} MiB": launch.cache(l2_bytes=size * units.MiB).dram_bytes for size in sizes}
    for name, launch in passes.items()
}
traffic_bars(swept, title="Softmax of 512 rows of 4,096 float32 numbers: DRAM bytes", axis="bytes")

# %% [markdown]
# The cache must hold what is read again before it is read again: the rows of **all programs that run at the same
# time**. Here all 512 rows fit on the GPU at once, 8 MiB. With less, every pass goes to DRAM: twice the bytes, and
# twice the time, since a softmax waits for memory.
#
# So L2 hides a second pass on short rows, and stops hiding it on long ones: on an A100, 16 programs per SM and rows of
# 16,384 float32 numbers are 108 MiB. The kernel with one pass does not depend on luck.

# %% [markdown]
# ## 4. Order: a matrix product, grouped
#
# A tiled product computes $C$ tile by tile. In which order? Row by row is the obvious one. Triton's tutorial goes down
# the columns of a *group* of rows instead.
#
# **Predict**: does the order change the bytes that are asked for? The FLOPs? The bytes from DRAM?

# %%
@triton.jit
def matmul(a_ptr, b_ptr, c_ptr, n, inner, BLOCK: tl.constexpr, GROUP: tl.constexpr):
    tiles = n // BLOCK
    group, within = tl.program_id(0) // (GROUP * tiles), tl.program_id(0) % (GROUP * tiles)
    rows = (group * GROUP + within % GROUP) * BLOCK + tl.arange(0, BLOCK)
    cols = within // GROUP * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros([BLOCK, BLOCK], tl.float32)
    for start in range(0, inner, BLOCK):
        k = start + tl.arange(0, BLOCK)
        a = tl.load(a_ptr + rows[:, None] * inner + k[None, :])
        b = tl.load(b_ptr + k[:, None] * n + cols[None, :])
        acc = tl.dot(a, b, acc)
    tl.store(c_ptr + rows[:, None] * n + cols[None, :], acc.to(tl.float16))

# %% [markdown]
# To see a difference, $A$ and $B$ must not fit into L2. On an A100 that begins at 3,240 × 3,240, too much for a CPU to
# multiply for fun. So we shrink both: smaller matrices, and an A100 whose L2 has 1 MiB instead of 40. It runs one
# program per SM, 108 at a time, as a kernel with large tiles would.

# %%
N, INNER = {"fast": (2048, 128), "full": (4096, 256)}[profile]
a, b = torch.randn(N, INNER).half(), torch.randn(INNER, N).half()
c = torch.empty(N, N).half()
print(f"{N} × {INNER} times {INNER} × {N}\n\norder         asked for        FLOP    DRAM, A and B")
ordered = {}
for group in (1, 2, 4, 8, 16):
    launch = count(matmul, ((N // 64) ** 2,), a, b, c, N, INNER, BLOCK=64, GROUP=group)
    small = launch.cache("A100", ctas_per_sm=1, l2_bytes=units.MiB)
    ordered[f"groups of {group}"] = read = small.dram_read_bytes
    asked, done = units.format_bytes(launch.requested_bytes), units.format_flops(launch.dot_flops)
    print(f"groups of {group:<3} {asked:>9} {done:>12} {units.format_bytes(read):>14}")

# %%
bars = {"from DRAM": ordered, "A and B once": dict.fromkeys(ordered, 2 * 2 * N * INNER)}
traffic_bars(bars, title="A and B, by order of the programs", axis="bytes read")

# %% [markdown]
# Programs that run at the same time share what they read. 108 programs in a row of 64 tiles need 2 rows of $A$ and
# **all** of $B$. In groups of 8 they form a block of 8 by 14 tiles, and need 8 rows of $A$ and 14 columns of $B$: 22
# strips instead of 66.
#
# Requested bytes and FLOPs do not know about order. Only the cache model sees it, and a GPU.

# %% [markdown]
# ## 5. Explore the cache
#
# The same product, for any order. The maps show how often each tile of $A$ and $B$ was read from DRAM, and which
# programs found their tiles in L2. Use the mouse or the arrow keys.
#
# Try to answer: which group is best for 108 programs, and which for 432? From which L2 on does the order stop to
# matter? Can a larger group be worse?

# %%
CacheExplorer()

# %% [markdown]
# One setting as a picture, for where no kernel runs:

# %%
CacheExplorer(group=8, l2_mib=2).figure()

# %% [markdown]
# ## 6. When it goes wrong
#
# **Out of bounds.** The softmax of section 3 has no masks: it wants rows that are a multiple of `BLOCK`. Give it rows
# of 1,000. On a GPU the last program reads what lies behind the tensor, silently.

# %% tags=["nbval-check-output"]
x = torch.randn(4, 1000)
try:
    count(softmax_three_passes, (4,), x, torch.empty_like(x), 1000, BLOCK=1024)
except simulator.OutOfBoundsError as error:
    print(error.message)
    print(f"--> line {error.line} of {error.place.kernel}: {error.place.source.strip()}")

# %% [markdown]
# Read the message from the left: program (3, 0, 0), the last row; lane 1,000 of its block; element 4,000 of a tensor
# whose last one is 3,999. The programs before it read into the *next* row, which is inside the tensor: wrong numbers,
# and no error. A mask `cols < num_cols` cures both.

# %% [markdown]
# **A race.** Count how often each token occurs. Two programs may hold the same token. `check=True` looks for accesses
# that no order protects.

# %%
@triton.jit
def histogram(token_ptr, count_ptr, length, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tokens = tl.load(token_ptr + index, mask=index < length, other=0)
    old = tl.load(count_ptr + tokens, mask=index < length)
    tl.store(count_ptr + tokens, old + 1, mask=index < length)

# %% tags=["nbval-check-output"]
tokens, counts = torch.tensor([0, 1, 2, 3] * 4), torch.zeros(4, dtype=torch.int32)
with simulator.trace(check=True) as t:
    histogram[(4,)](tokens, counts, 16, BLOCK=4)
print("counted", counts.tolist(), "instead of", torch.bincount(tokens).tolist())
for problem in t.problems:
    print(f"\n{problem.kind} on {problem.tensor}{list(problem.index)} between programs {problem.programs}")
    print("at:", problem.source.strip())

# %% [markdown]
# Both programs load the same count, add one, and store: one of the additions is lost. Here every fourth token belongs
# to another program, so all counts are wrong; with luck, a test would not have noticed. `print(t.problems)` says it
# in full, with a cure: `tl.atomic_add(count_ptr + tokens, 1)` does the three steps as one.

# %% [markdown]
# **A look inside.** `t.watch(program=...)` shows every line that one program executed, and the values it saw. Is the
# maximum subtracted? What does the mask leave out?

# %% tags=["nbval-check-output"]
@triton.jit
def small_softmax(x_ptr, y_ptr, num_cols, BLOCK: tl.constexpr):
    cols = tl.arange(0, BLOCK)
    start = tl.program_id(0) * num_cols
    x = tl.load(x_ptr + start + cols, mask=cols < num_cols, other=-float("inf"))
    weights = tl.exp(x - tl.max(x, 0))
    tl.store(y_ptr + start + cols, weights / tl.sum(weights, 0), mask=cols < num_cols)


scores = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [5.0, 5.0, 6.0]])
with simulator.trace() as t:
    inside = t.watch(program=2)
    small_softmax[(3,)](scores, torch.empty(3, 3), 3, BLOCK=4)
print(inside)

# %% [markdown]
# ## 7. What the compiler says
#
# The simulator counts what the *source* asks for. What the machine does is the compiler's decision: registers, spills,
# tensor cores, how wide a load is. Triton's compiler needs no GPU, only Linux; elsewhere this section stays empty.
#
# **Predict**: the matrix product of section 4 on an A100 and an H100. Do both use the same matrix instruction?

# %%
if HAS_COMPILER:
    for gpu in ("A100", "H100"):
        display(simulator.compile_report(matmul, a, b, c, N, INNER, device=gpu, BLOCK=64, GROUP=8))
else:
    print("No Triton compiler for this system: use Linux, WSL 2 or a container for this section")

# %% [markdown]
# An A100's warps multiply 16 × 8 × 16 numbers with one `HMMA`. On an H100 four warps do a whole tile together
# (`HGMMA`), straight from shared memory. The last line of a report says what is wrong.
#
# **Predict**: tiles of 128 ask for half the bytes of tiles of 64. What do they do to the registers? An accumulator has
# 128 × 128 numbers of 4 bytes, a program 128 threads, a thread at most 255 registers of 4 bytes.

# %%
if HAS_COMPILER:
    for block, warps in ((16, 4), (128, 4), (128, 8)):
        options = {"device": "A100", "num_warps": warps, "BLOCK": block, "GROUP": 8}
        report = simulator.compile_report(matmul, a, b, c, N, INNER, **options)
        shared = units.format_bytes(report.shared_bytes, binary=True)
        print(f"tiles of {block}, {warps} warps: {report.registers} registers, ", end="")
        print(f"{report.spill_bytes} B spilled, {shared} shared, {report.ctas_per_sm} per SM")
        for warning in report.warnings:
            print("  -", warning)

# %% [markdown]
# With 4 warps the accumulator alone takes 128 registers of each thread, and with the tiles of $A$ and $B$ they run
# out: values are spilled to memory. With 8 warps each thread has half as much to keep. Requested bytes and FLOPs are
# those of the source, whatever the compiler does; only this report tells the two apart.

# %% [markdown]
# ## 8. What the model does not know
#
# - **Order and time.** Programs advance in step. A GPU promises no order, hides latencies, and runs some programs
#   ahead.
# - **L1.** A sector that a program asks for twice is counted twice on its way from L2.
# - **The cache's own rules.** The model forgets what was not used for longest, exactly. A GPU approximates that.
# - **What happened before.** The cache is empty when a launch begins.
# - **The roofline is a bound**, not a prediction: launch overheads, gaps and bank conflicts come on top.
#
# Assumptions and what of the language is covered: [the simulator's page](../docs/simulator.md).

# %% [markdown]
# ## Summary
#
# | waste | who sees it | cure |
# |---|---|---|
# | parts of sectors | `launch.accesses`: a line's efficiency | lanes along the axis whose elements are neighbours |
# | passes | requested against distinct bytes; DRAM bytes if L2 is small | keep the row on the chip |
# | order | only DRAM bytes | programs that run together share their tiles |
# | registers, tensor cores | only the compile report | tiles that fit |
#
# **Your turn**: [the kernel clinic](../exercises/kernel_clinic/kernel_clinic.ipynb). Cure a wasteful kernel and one
# that races, find the best blocks, and read a report. Then come back and paste your own kernel into section 1.
