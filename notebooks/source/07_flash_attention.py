# %% [markdown]
# # FlashAttention
#
# Attention compares every token with every other: for $N$ tokens that is a matrix of $N^2$ scores. The usual way to
# compute it writes that matrix to the GPU's memory and reads it back, several times. FlashAttention computes the
# same numbers and never writes it. It does *more* arithmetic and is several times *faster*.
#
# How can more work take less time? That is the question of this lab. You will count every byte of both, take the
# softmax apart, and walk through the real Triton kernel tile by tile.

# %% tags=["parameters"]
profile = "full"  # "fast": smaller sizes, for a quick look

# %%
import inspect

import torch

from cme295lab import hardware, simulator, units
from cme295lab.attention import SoftmaxState, flash_attention, io, merge, standard_attention
from cme295lab.attention import standard_attention_kernels, tiled_attention
from cme295lab.widgets import RooflinePoint, TileWalk, TrafficExplorer
from cme295lab.widgets import block_size_map, memory_hierarchy, roofline, traffic_bars

HAS_COMPILER = simulator.frontend.available()  # Triton itself, which has packages for Linux only
torch.manual_seed(0)
print("ready" if HAS_COMPILER else "ready; no Triton here: kernels run in the simulator, compile reports are left out")

# %% [markdown]
# ## 1. Where the numbers live
#
# A GPU computes in its *streaming multiprocessors* (SMs). Each has a little memory of its own, called SRAM: L1 cache
# and shared memory. The large memory, HBM, is outside the chip's arithmetic, and everything has to pass through its
# interface. In between sits the L2 cache.

# %%
memory_hierarchy("A100")

# %% [markdown]
# **Predict**: the A100 can do 312 TFLOP/s in fp16. Multiply two numbers from HBM once and throw them away. What
# fraction of that speed do you reach?
#
# <details><summary>Answer</summary>
#
# One operation for 4 bytes read: 0.25 FLOP per byte. The *ridge point* below says that 153 are needed. You reach
# 1/612 of the peak: the arithmetic waits for memory.
# </details>

# %% tags=["nbval-check-output"]
print("GPU                memory    bandwidth  SRAM per SM  SRAM in all   ridge point")
for name in ("V100", "A100", "H100", "H200", "RTX 4090"):
    gpu = hardware.get_device(name)
    sizes = [gpu.memory_bytes, gpu.sram_bytes_per_sm, gpu.sram_bytes_per_sm * gpu.num_sms]
    memory, sram, total = (units.format_bytes(size, binary=True) for size in sizes)
    speed = units.format_rate(gpu.bandwidth_bytes_per_s, "B/s")
    ridge = f"{gpu.ridge_point('fp16'):.0f} FLOP/B"
    print(f"{gpu.name:16} {memory:>8} {speed:>12} {sram:>12} {total:>12} {ridge:>13}")

# %% [markdown]
# You will read that a GPU has "tens of megabytes of SRAM". That is the sum over all SMs. One program of a kernel
# runs on one SM and sees only that SM's share: 192 KiB on an A100, of which it may use 163 KiB as shared memory,
# next to 256 KiB of registers. This number will decide how large a tile can be.

# %% [markdown]
# ## 2. Standard attention, counted
#
# $$S = \tfrac{1}{\sqrt d}\, Q K^\top \qquad P = \mathrm{softmax}(S) \qquad O = P V$$
#
# Three steps, three kernels. Between them, $S$ and $P$ go to HBM. **Predict** the bytes for $N = 512$ tokens, $d =
# 64$, one head, 2 bytes per number: which is larger, $Q$, $K$, $V$ and $O$ together, or one score matrix?

# %% tags=["nbval-check-output"]
N, d = 512, 64
q, k, v = (torch.randn(1, 1, N, d).half() for _ in range(3))
with simulator.trace(device="A100") as standard:
    standard_attention_kernels(q, k, v)
display(standard)

# %% [markdown]
# The last column counts each byte once per kernel: what must cross the HBM bus even if the caches were perfect.
# Compare it with the formula. Read $Q$, $K$, write $S$; read $S$, write $P$; read $P$, $V$, write $O$: $4N^2 + 4Nd$
# numbers.

# %% tags=["nbval-check-output"]
formula = 2 * io.standard_forward_elements(N, d)
print(f"formula  {formula:>9,} bytes, of which {8 * N * N / formula:.0%} are S and P")
print(f"counted  {standard.distinct_bytes:>9,} bytes")
assert standard.distinct_bytes == formula

# %% [markdown]
# The score matrix is nearly everything, and it is only an intermediate result. If only the softmax did not need a
# whole row at once…

# %% [markdown]
# ## 3. A softmax in pieces
#
# For a row of scores $x$, softmax needs the largest score $m$ and the sum $\ell = \sum_j e^{x_j - m}$. Cut the row
# into two blocks. Each block has its own $m$ and $\ell$. To merge them, measure both sums from the larger maximum:
#
# $$m = \max(m_1, m_2) \qquad \ell = e^{m_1 - m}\,\ell_1 + e^{m_2 - m}\,\ell_2$$
#
# Take $x = [1, 3 \mid 2, 5]$ and do it by hand before you run the cell.

# %% tags=["nbval-check-output"]
x = torch.tensor([1.0, 3.0, 2.0, 5.0], dtype=torch.float64)
first, second = SoftmaxState.of(x[:2]), SoftmaxState.of(x[2:])
both = merge(first, second)
for name, state in (("first", first), ("second", second), ("merged", both)):
    m, l, lse = state.max.item(), state.sum.item(), state.lse.item()
    print(f"{name:7} m = {m:.0f}   l = {l:.10f}   m + log l = {lse:.10f}")
print(f"from the whole row: log-sum-exp = {torch.logsumexp(x, 0).item():.10f}")

# %% [markdown]
# The merge is exact, not an approximation. It works for the output too: an output that was accumulated with the old
# maximum is multiplied by the same factor $e^{m_1 - m}$. So a row can be processed block by block, keeping only
# three things: the maximum, the sum, and the output so far.

# %% [markdown]
# ## 4. Tiles
#
# Apply that to all rows at once. Take a tile of queries, stream the keys and values past it in tiles, and keep $m$,
# $\ell$ and the output for each row. `tiled_attention` is that algorithm in plain PyTorch; open it and read it, it
# is short. It gives the numbers of standard attention, also when the tiles do not divide the length.

# %% tags=["nbval-check-output"]
a, b, c = (torch.randn(2, 4, 200, 32, dtype=torch.float64) for _ in range(3))
for causal in (False, True):
    tiled = tiled_attention(a, b, c, causal=causal, block_m=64, block_n=32)
    error = (tiled - standard_attention(a, b, c, causal=causal)).abs().max().item()
    print(f"causal={causal!s:5}  equal to standard attention within 1e-12: {error < 1e-12}")

# %% [markdown]
# What does training have to keep until the backward pass? Standard attention keeps $P$. Tiled attention keeps one
# number per row, the *log-sum-exp* $m + \log \ell$, and recomputes $P$ from it when it is needed: $P = e^{S -
# \mathrm{LSE}}$. PyTorch tells us what it saves.

# %%
def saved_bytes(attention, length):
    """Bytes that autograd keeps for the backward pass, beyond q, k, v and the output."""
    qkv = [torch.randn(1, 1, length, 64, requires_grad=True) for _ in range(3)]
    kept = {}

    def note(t):
        kept[t.data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        output = attention(*qkv)
    known = {t.data_ptr() for t in (*qkv, output)}
    return sum(size for where, size in kept.items() if where not in known)

# %% tags=["nbval-check-output"]
print("   N     standard        tiled")
for length in (256, 512, 1024):
    kept = [saved_bytes(f, length) for f in (standard_attention, tiled_attention)]
    print("{:>4} {:>12} {:>12}".format(length, *map(units.format_bytes, kept)))

# %% [markdown]
# Twice the length: nearly four times the memory on the left (the rest is copies of $K$ and $V$), twice on the
# right. This, $O(N)$ instead of $O(N^2)$ memory, is why long contexts became possible. The arithmetic is still
# $O(N^2 d)$: FlashAttention does not make attention linear.

# %% [markdown]
# ## 5. The kernel, line by line
#
# In plain PyTorch each tile still makes a trip to memory for every operation. In a Triton kernel the tile stays on
# the chip. This is the heart of `kernels/flash_attention.py`, the part that runs for every tile of keys:

# %%
import triton
import triton.language as tl

from cme295lab.kernels import flash_attention as kernels

print(inspect.getsource(kernels.attend_block.fn))

# %% [markdown]
# | line | what happens |
# |---|---|
# | `new_max` | the largest score so far, per row; `scale_log2` folds $1/\sqrt d$ and $\log_2 e$ into one factor |
# | `p` | $e^{s - m}$, written with `exp2`, the exponential that the hardware has |
# | `rescale` | $e^{m_{old} - m}$: 1 for every row whose maximum stood |
# | `row_sum` | what was summed before is brought to the new maximum, then the tile is added |
# | `acc` | the same for the output; the product with $V$ runs on tensor cores and is summed in fp32 |
#
# Note what is *not* there: a division. The output is divided by `row_sum` once, at the end.

# %% [markdown]
# Around it is a loop that loads one tile of $K$ and $V$ after the other. There are two: whole tiles need no mask;
# only the tiles cut by the causal diagonal, or by the end of the sequence, run the second loop with its mask.

# %%
source = inspect.getsource(kernels.forward_kernel.fn)
print(source[source.index("    for ") : source.index("    o = acc")])

# %% [markdown]
# ## 6. Walk through the tiles
#
# The simulator runs this kernel on your CPU, all its programs at once, and can record every step. Below is a
# recorded run with 128 tokens and tiles of 32. Move the slider, or use the arrow keys.
#
# Watch three things: which tiles are never touched, when the rescaling factor is not 1, and how few bytes are on the
# chip at any time.

# %%
walk = TileWalk(seq=128, head_dim=32, block_m=32, block_n=32, causal=True)
display(walk)

# %% [markdown]
# One step of this walk as a picture, for where no kernel runs:

# %%
display(walk.figure())

# %% [markdown]
# ## 7. Its traffic
#
# A program reads its queries once, but **all** keys and values: with $T_r$ tiles of queries, $K$ and $V$ are read
# $T_r$ times. So "read everything from HBM once" is not what happens. Counted in numbers that move:
#
# $$\underbrace{2Nd}_{Q,\,O} + \underbrace{2\, T_r N d}_{K,\,V} + \underbrace{N}_{\mathrm{LSE}}$$
#
# **Predict**: $N = 512$, $d = 64$, tiles of 128 queries. How many times less than the $4N^2 + 4Nd$ of standard
# attention?

# %% tags=["nbval-check-output"]
with simulator.trace(device="A100") as flash:
    flash_attention(q, k, v, block_m=128, block_n=64)
display(flash)
formula_2 = 2 * io.flash2_forward_elements(N, d, 128) + 2 * N  # the log-sum-exp has 4 bytes
print(f"formula {formula_2:,} bytes, counted {flash.requested_bytes:,}")
print(f"standard attention: {formula / formula_2:.1f} times more")

# %% [markdown]
# Now with the backward pass. On paper it needs five products, one to recompute $S$, where standard attention needs
# four. Our two kernels, one for $dK$ and $dV$ and one for $dQ$, do seven: each recomputes $S$ and $dP$, so that no
# two programs ever write the same number.

# %%
def count(attention, length, **options):
    """Forward and backward of one head, counted."""
    qkv = [torch.randn(1, 1, length, 64).half().requires_grad_() for _ in range(3)]
    with simulator.trace(device="A100") as t:
        output = attention(*qkv, **options)
        output.backward(torch.randn_like(output))
    return t

# %%
LENGTH = {"fast": 256, "full": 1024}[profile]
standard, flash = count(standard_attention_kernels, LENGTH), count(flash_attention, LENGTH)
print(f"flash attention, one head, N = {LENGTH}\n\nkernel                     requested      products")
for launch in flash.launches:
    moved, done = units.format_bytes(launch.requested_bytes), units.format_flops(launch.dot_flops)
    print(f"{launch.kernel:24} {moved:>11} {done:>13}")
on_paper = io.attention_flops(LENGTH, 64), io.attention_flops(LENGTH, 64, backward=True)
print("on paper: 4N²d = {} forward, {} with backward".format(*map(units.format_flops, on_paper)))

# %%
sram = 192 * 1024 // 2  # numbers of 2 bytes that an A100's SRAM holds
numbers = {
    "standard": io.standard_forward_elements(LENGTH, 64) + io.standard_backward_elements(LENGTH, 64),
    "flash": io.flash2_forward_elements(LENGTH, 64, 128)
    + io.flash2_backward_elements(LENGTH, 64, 128, 128),
    "N²d²/M": io.lower_bound_elements(LENGTH, 64, sram),
}
bars = {"formula": {name: 2 * n for name, n in numbers.items()}}
bars["counted"] = {"standard": standard.distinct_bytes, "flash": flash.requested_bytes}
traffic_bars(bars, title=f"forward and backward, one head, N = {LENGTH}")

# %% [markdown]
# Formula and count agree; what little flash has more is its statistics, which the formula counts as 2-byte numbers
# and the kernels keep in fp32.
#
# The last bar belongs to a theorem. With room for $M$ numbers in SRAM, no exact algorithm moves fewer than *order*
# $N^2 d^2 / M$ numbers for every $M$. The constant is open, so compare how the bars *grow*, not how long they are.
# Standard attention moves order $N^2$, whatever $M$ is. FlashAttention moves order $N^2 d / B$ with $B$ queries per
# tile; with as many as fit, $B$ is of order $M / d$, and the bound is reached.

# %% [markdown]
# ## 8. What reaches HBM
#
# $K$ and $V$ are asked for $T_r$ times. How much of that reaches HBM is the L2 cache's decision; the simulator replays
# every access through a model of it. On an A100, 40 MiB of L2 and 108 SMs make it easy for this small input. So take a
# model of a GPU, 8 SMs with one program each, and one head of 2,048 tokens: 32 tiles of queries, 8 at a time.
#
# **Predict**, without a mask: how often is $K$ read from HBM if L2 is large? And if it is tiny?

# %%
import dataclasses

long = [torch.randn(1, 1, 2048, 64).half() for _ in range(3)]
small_gpu = dataclasses.replace(hardware.get_device("A100"), name="8 SMs", num_sms=8)
read = {}
for name, causal in (("full", False), ("causal", True)):
    with simulator.trace() as t:
        flash_attention(*long, causal=causal, block_m=64, block_n=64)
    launch = t.launches[0]
    read[name] = {"asked for": launch.tensors["k"].read_bytes}
    for kib in (64, 128, 256, 1024):
        cache = launch.cache(small_gpu, ctas_per_sm=1, l2_bytes=kib * units.KiB)
        read[name][f"L2 {kib} KiB"] = cache.tensors["k"].dram_read_bytes

# %% tags=["nbval-check-output"]
for where in read["full"]:
    times = (f"{name} {read[name][where] / long[1].nbytes:5.1f}" for name in read)
    print(f"K, {where:11} in times its size:  {'   '.join(times)}")

# %% [markdown]
# Without a mask the 8 programs walk through $K$ in step: one of them fetches a tile, the other seven find it, however
# small the cache. Each of the four waves reads $K$ once; only a cache that holds all of $K$ and $V$, 512 KiB, saves
# that too.
#
# With the mask, programs have different lengths. One that ends early makes room for one that begins at the first key,
# and soon every program is somewhere else. Then the cache must hold most of $K$ and $V$, or every program reads for
# itself.
#
# (The model lets programs advance in step. A GPU promises no order.)

# %% [markdown]
# ## 9. How large a tile?
#
# Larger tiles of queries read $K$ and $V$ less often. **Predict**: what stops us from taking one tile for
# everything?
#
# Each cell of the pictures is a launch, counted. Whether it fits is asked of Triton's compiler, which needs no GPU
# (but Linux):
# the shared memory of one program against what the GPU gives it, 163 KiB on an A100 and 227 KiB on an H100. The
# frame marks the least traffic that fits.

# %%
x = torch.randn(1, 1, 512, 128).half()


def count_tiles(block_m, block_n):
    """A counted forward launch with these tiles."""
    with simulator.trace(device="A100") as t:
        flash_attention(x, x, x, block_m=block_m, block_n=block_n)
    return t

# %%
def compile_tiles(block_m, block_n, device):
    """The same kernel, compiled for a GPU that need not be here."""
    return simulator.compile_report(
        kernels.forward_kernel, x, x, x, x, x.float(), 0.1, 512, 512, *x.stride() * 4,
        device=device, num_warps=8, num_stages=2, BLOCK_M=block_m, BLOCK_N=block_n,
        GROUP=1, HEAD_DIM=128, BLOCK_D=128, CAUSAL=False, PRECISION="tf32",
    )  # fmt: skip

# %%
SIDES = {"fast": (32, 256), "full": (32, 64, 128, 256)}[profile]
tiles = {(m, n): count_tiles(m, n) for m in SIDES for n in SIDES}
moved = {blocks: t.requested_bytes for blocks, t in tiles.items()}
compiled = {}
for gpu in ("A100", "H100") if HAS_COMPILER else ():
    compiled[gpu] = {blocks: compile_tiles(*blocks, gpu) for blocks in tiles}
    fits = {blocks: kernel.fits for blocks, kernel in compiled[gpu].items()}
    display(block_size_map(moved, fits, title=f"{gpu}: one head, N = 512, d = 128"))
if not compiled:
    display(block_size_map(moved, dict.fromkeys(moved, True), title="bytes; no compiler says what fits"))

# %% [markdown]
# The traffic depends on BLOCK_M only: it says how often $K$ and $V$ are read. So why not always 256 queries?

# %%
print("BLOCK_M × BLOCK_N     held     A100: shared   spilled     H100: shared   spilled")
for (m, n), t in tiles.items():
    if m in (n, 2 * n):
        row = f"{m:>7} × {n:<7} {units.format_bytes(t.sram_peak_bytes, binary=True):>8}"
        for kernel in (found[m, n] for found in compiled.values()):
            shared = units.format_bytes(kernel.shared_bytes, binary=True)
            row += f"{shared:>17} {kernel.spill_bytes:>7} B"
        print(row)

# %% [markdown]
# "Held" adds up all blocks that a program has alive at the same time: an upper bound for registers and shared memory
# together. The tile of scores alone has BLOCK_M × BLOCK_N numbers of 4 bytes. What goes to shared memory is the
# compiler's decision; an H100's matrix instructions take their tiles from there, so it needs more.
#
# A thread has at most 255 registers. Where they do not suffice, values are *spilled* to memory (bytes per thread),
# in every step of the loop: that costs more than the traffic saved. The library's default for this head dimension is
# 128 × 64: it hardly spills, and fits on smaller GPUs too.

# %% [markdown]
# ## 10. What the compiler makes of it
#
# The same source becomes different machine code on each GPU. The *main loop* runs once per tile of keys: what is it
# made of? Our kernel has two loops, and only tiles that the diagonal cuts pay for the mask. Here is the obvious
# version with one loop that masks every tile:

# %%
@triton.jit
def mask_every_tile(q_ptr, k_ptr, v_ptr, o_ptr, scale, length, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    rows, dims = tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, D)[None, :]
    q = tl.load(q_ptr + rows[:, None] * D + dims, mask=rows[:, None] < length, other=0.0)
    row_max, row_sum = tl.full([M], -float("inf"), tl.float32), tl.zeros([M], tl.float32)
    acc = tl.zeros([M, D], tl.float32)
    for start in tl.range(0, tl.minimum(length, (tl.program_id(0) + 1) * M), N):
        cols = start + tl.arange(0, N)
        k = tl.load(k_ptr + cols[:, None] * D + dims, mask=cols[:, None] < length, other=0.0)
        v = tl.load(v_ptr + cols[:, None] * D + dims, mask=cols[:, None] < length, other=0.0)
        keep = (cols[None, :] < length) & (cols[None, :] <= rows[:, None])
        s = tl.where(keep, tl.dot(q, tl.trans(k)), -float("inf"))
        acc, row_max, row_sum = kernels.attend_block(acc, row_max, row_sum, s, v, scale * 1.442695, "tf32")
    tl.store(o_ptr + rows[:, None] * D + dims, acc / row_sum[:, None], mask=rows[:, None] < length)

# %% [markdown]
# **Predict**: both do the same products. By how much does the mask lengthen the loop?

# %%
h = torch.randn(1, 1, 512, 64).half()
ours = (kernels.forward_kernel, h, h, h, h, h.float(), 0.125, 512, 512, *h.stride() * 4)
naive = (mask_every_tile, h, h, h, h, 0.125, 512)
tile = {"BLOCK_M": 128, "BLOCK_N": 64, "GROUP": 1, "HEAD_DIM": 64, "BLOCK_D": 64}
reports = {}
for gpu in ("A100", "H100", "B200") if HAS_COMPILER else ():
    reports[f"{gpu} ours"] = simulator.compile_report(
        *ours, device=gpu, num_warps=8, **tile, CAUSAL=True, PRECISION="tf32"
    )
    reports[f"{gpu} one loop"] = simulator.compile_report(*naive, device=gpu, num_warps=8, D=64, M=128, N=64)

# %%
print("                registers  spilled  matrix instruction   main loop   fp32   integer   products")
for name, r in reports.items():
    loop, kind = r.main_loop, next(iter(r.tensor_core_instructions))
    fp32, integer = loop.mix["fp32"], loop.mix["integers and addresses"]
    done = units.format_flops(loop.flops_per_iteration)
    print(f"{name:14} {r.registers:>10} {r.spill_bytes:>7} B  {kind:<20} {loop.num_instructions:>9}", end="")
    print(f" {fp32:>6} {integer:>9} {done:>10}")

# %% [markdown]
# The products of an iteration are those of the source, 4 · 128 · 64 · 64 FLOP, on every GPU. On an A100 a warp
# multiplies small pieces from registers (`HMMA`); an H100 and a B200 do a tile with a few instructions from shared
# memory.
#
# One loop has about half as many instructions again: the comparisons of `keep`, and the masks of the loads. The tensor
# cores wait for them, in every tile, although only the last two of a row of tiles need a mask. That is what the second
# loop in our kernel is for. Most of what is left in `fp32` is the softmax: exponents, maxima, sums.

# %% [markdown]
# ## 11. More work, less time
#
# FlashAttention recomputes, so it does more arithmetic. Place both on the A100's *roofline*: a computation of $F$
# operations and $B$ bytes takes at least $\max(F / \mathrm{peak},\ B / \mathrm{bandwidth})$.

# %%
points = [
    RooflinePoint(label=name, flops=t.dot_flops, num_bytes=t.distinct_bytes)
    for name, t in (("standard", standard), ("flash", flash))
]
display(roofline(points, "A100", "fp16"))

# %%
a100 = hardware.get_device("A100")
peak, bandwidth = a100.peak_flops_per_s["fp16"], a100.bandwidth_bytes_per_s
best = {}
for name, t in (("standard", standard), ("flash", flash)):
    arithmetic, memory = t.dot_flops / peak, t.distinct_bytes / bandwidth
    best[name] = max(arithmetic, memory)
    limit = "memory" if memory > arithmetic else "arithmetic"
    products, hbm = units.format_seconds(arithmetic), units.format_seconds(memory)
    print(f"{name:9} products {products:>8}   HBM {hbm:>8}   waits for {limit}")
print(f"flash does {flash.dot_flops / standard.dot_flops:.2f} times the products", end="")
print(f" and is at best {best['standard'] / best['flash']:.1f} times faster")

# %% [markdown]
# Standard attention waits for HBM; its tensor cores idle. The recomputation fills time that was lost anyway, and
# removes the bytes that everybody was waiting for. That is the whole trick: **the scarce resource is not
# arithmetic**.
#
# The bound counts products only, at full speed, and perfect caches. Real kernels reach a part of it: exponentials
# are slow, and pipelines have gaps.

# %% [markdown]
# ## 12. The paper's table
#
# The FlashAttention paper ([Dao et al. 2022](https://arxiv.org/abs/2205.14135), Figure 2) reports, for GPT-2 medium
# (batch 64, 16 heads, $N = 1024$, $d = 64$, forward and backward, on an A100):
#
# | | standard | flash |
# |---|---|---|
# | GFLOPs | 66.6 | 75.2 |
# | HBM reads and writes, GB | 40.3 | 4.4 |
# | milliseconds | 41.7 | 7.3 |
#
# Let us count it: all 1,024 heads, both ways, in the simulator, four sequences at a time so that the score matrices
# fit in a laptop's memory. No address depends on a computed number, so at full size the arithmetic is left out
# (`compute=False`): seconds instead of minutes. The fast profile computes a single sequence, and the library's tests
# hold the two ways of counting together.

# %%
BATCH = {"fast": 1, "full": 64}[profile]
from cme295lab.attention.paper_table import run_paper_table

table = run_paper_table(batch=BATCH, slice_size=4, compute=profile == "fast")
took = sum(run.seconds for run in table.values())
launches = sum(run.num_launches for run in table.values())
print(f"batch {BATCH}: {launches} launches in {units.format_seconds(took)}")

# %%
print(f"batch {BATCH}, counted      standard      flash     ratio")
for label, count_of, show in (
    ("HBM, each byte once", "compulsory_bytes", units.format_bytes),
    ("bytes requested", "requested_bytes", units.format_bytes),
    ("operations", "flops", units.format_flops),
):
    values = [getattr(table[name], count_of) for name in ("standard", "flash")]
    print(f"{label:20} {show(values[0]):>12} {show(values[1]):>10} {values[0] / values[1]:>9.2f}")

# %% [markdown]
# The paper does not say how its bytes were counted. Here is an accounting of its two algorithms, at full size, that
# arrives at its numbers:

# %% tags=["nbval-check-output"]
accounting = io.paper_table_bytes(batch=64)
for label, num_bytes in (
    ("standard, every matrix written and read", accounting.standard_bytes),
    ("flash, Algorithms 1 and 4, 192 KiB of SRAM", accounting.flash_bytes),
    ("the same, with the zeros written at first", accounting.flash_initialised_bytes),
):
    print(f"{label:44} {num_bytes / 1e9:.2f} GB")

# %%
on_paper = io.paper_table_bytes(batch=BATCH)
bars = {"on paper": {"standard": on_paper.standard_bytes, "flash": on_paper.flash_initialised_bytes}}
bars["counted, each byte once"] = {name: run.compulsory_bytes for name, run in table.items()}
bars["counted, requested"] = {name: run.requested_bytes for name, run in table.items()}
traffic_bars(bars, title=f"forward and backward, batch {BATCH}, 16 heads, N = 1024, d = 64")

# %% [markdown]
# **Standard.** The count is the paper's number. The accounting: a mask and dropout in passes of their own, dropout
# with a mask of one byte. With $NN$ and $ND$ the bytes of all $N \times N$ and $N \times d$ matrices: $18\,NN +
# 12\,ND$.
#
# **Flash.** Our kernels must move 2.3 GB and request 8.0; caches decide what lies between. The paper's algorithm
# walks the other way round: keys outside, so that $Q$ and $O$ are read and written again for every tile of keys.
# With 192 KiB of SRAM that is 4.1 GB, or 4.4 with the first zeros: between our two counts. This match is not the
# only one possible.

# %% [markdown]
# **Operations.** The paper's ratio, 75.2 / 66.6, says that recomputing costs 13 %. The absolute numbers cannot be
# reproduced: the products alone of 1,024 heads are 12 times more. Ours come out higher, too, because the two
# backward kernels recompute twice.
#
# **Time.** 41.7 to 7.3 ms is 5.7 times, for 9.2 times fewer bytes: once the bytes are gone, something else is the
# limit.

# %% [markdown]
# ## 13. Explore
#
# Change the length, the head dimension, the tiles, the SRAM, the GPU. Try to answer: from which length on does
# FlashAttention pay? What happens to it when the SRAM shrinks? On which GPU is standard attention worst off?

# %%
TrafficExplorer()

# %% [markdown]
# One setting as a picture, for where no kernel runs:

# %%
TrafficExplorer(seq=4096, causal=True).figure()

# %% [markdown]
# ## 14. On a GPU
#
# The same functions launch the same kernels on CUDA tensors. If this machine has such a device, the cell times them
# and computes the bandwidth they reached: the bytes that *must* move, divided by the time.

# %%
if torch.cuda.is_available() and HAS_COMPILER:
    from triton.testing import do_bench

    x = torch.randn(4, 16, 2048, 64, device="cuda", dtype=torch.float16)
    must_move = {
        standard_attention_kernels: 4 * 16 * 2 * io.standard_forward_elements(2048, 64),
        flash_attention: 4 * x.numel() * 2,
    }
    for attention, num_bytes in must_move.items():
        ms = do_bench(lambda f=attention: f(x, x, x))
        print(f"{attention.__name__}: {ms:.3f} ms, {units.format_rate(num_bytes / ms * 1e3, 'B/s')}")
else:
    print("No CUDA device here: nothing was timed. All counts above are the simulator's.")

# %% [markdown]
# ## Often said, and not quite right
#
# | said | counted |
# |---|---|
# | "FlashAttention reads everything from HBM only once" | $K$ and $V$ are read once per tile of queries (section 7) |
# | "40 against 4 GB, ten times less traffic" | 40.3 against 4.4 GB: 9.2 times (section 12) |
# | "it solves the quadratic cost of attention" | the *memory* is linear; the arithmetic stays $O(N^2 d)$ |
# | "a GPU has tens of MB of SRAM" | all SMs together; a program sees 192 KiB on an A100 (section 1) |
# | "it is an approximation" | it is exact, up to rounding (section 4) |
# | "version 2 adapted it to newer GPUs" | it reordered the loops on the *same* GPU; version 3 is for Hopper |

# %% [markdown]
# ## Summary
#
# - Attention is limited by the bytes of the score matrix, not by arithmetic.
# - A softmax can be merged block by block, exactly; so the scores never have to leave the chip.
# - Forward: $Q$ tile stays, $K$ and $V$ stream past. Backward: recompute $P$ from the log-sum-exp.
# - Extra memory $O(N)$; traffic $O(N^2 d^2 / M)$, which is optimal up to a constant; more arithmetic, less time.
#
# **Your turn**: [the exercise](../exercises/flash_attention/flash_attention.ipynb). You merge two blocks, write
# tiled attention, the inner loop of the Triton kernel, and count its traffic. Each part is checked for what it
# computes *and* for what it moves.
