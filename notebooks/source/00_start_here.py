# %% [markdown]
# # Start here
#
# This course is about how large language models are trained. You read a short text, change a real implementation,
# run it, and see what it costs: bytes, floating-point operations, memory. Everything that is claimed is executed and
# counted on your machine, with or without a GPU.
#
# Five minutes on this page and you have met the tool that makes that possible: a simulator that runs GPU kernels on
# a CPU and counts what they do.

# %% [markdown]
# **How to read a notebook.** Run a cell with Shift+Enter. Where it says *predict*, stop and decide on an answer first:
# a surprise is what you will remember. Then change a number and run the cell again. Nothing can break; *Kernel →
# Restart* begins afresh.

# %% tags=["parameters"]
profile = "full"  # "fast": smaller sizes, for a quick look

# %%
import torch

from cme295lab import hardware, simulator

# %% [markdown]
# ## What you have
#
# If this machine has an NVIDIA GPU, its data sheet appears below. If not, you get the A100's: the GPU on which most
# of the papers in this course were measured.
#
# `cme295lab doctor`, in a terminal, says more about your installation.

# %%
here = hardware.device_at_hand()
print("CUDA device found" if here else "No CUDA device: kernels run in the simulator. The data sheet of an A100:")
here or hardware.get_device("A100")

# %% [markdown]
# A GPU is a set of limits. It can do so many operations per second and move so many bytes per second; a computation
# is held up by one or the other. **Predict**: an A100 does 312 trillion 16-bit operations and moves 2.04 trillion
# bytes per second. How many operations must a kernel do with each byte before arithmetic becomes the limit? The
# next cell divides one by the other; the result is called the *ridge point*.

# %% tags=["nbval-check-output"]
a100 = hardware.get_device("A100")
print(f"{a100.ridge_point('fp16'):.0f} FLOP per byte")

# %% [markdown]
# ## Your first kernel
#
# GPU code in this course is written in [Triton](https://triton-lang.org). A *kernel* is a function that describes
# what **one program** does; a launch runs many programs, each on its own block of the data.
#
# This kernel adds two vectors. Program number `pid` takes `BLOCK` elements. The `mask` keeps the last program from
# touching elements behind the end.
#
# Triton has packages for Linux only. Elsewhere `import triton` gives the course's stand-in, once `cme295lab` has been
# imported: kernels run in the simulator all the same, and only compile reports and GPUs need the real one.

# %%
import triton
import triton.language as tl


@triton.jit
def add_kernel(x_ptr, y_ptr, o_ptr, length, BLOCK: tl.constexpr):
    pid = tl.program_id(0)
    offsets = pid * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < length
    x = tl.load(x_ptr + offsets, mask=mask)
    y = tl.load(y_ptr + offsets, mask=mask)
    tl.store(o_ptr + offsets, x + y, mask=mask)

# %% [markdown]
# Launch it inside `simulator.trace`: the simulator runs the same, unmodified kernel on the CPU, all programs at
# once. **Predict** before you run the cell: how many bytes does adding two vectors of 100,000 float32 numbers read
# and write?

# %% tags=["nbval-check-output"]
length = 100_000
x, y, o = torch.rand(length), torch.rand(length), torch.empty(length)
grid = (triton.cdiv(length, 1024),)
with simulator.trace(device="A100") as t:
    add_kernel[grid](x, y, o, length, BLOCK=1024)
print("programs:", t.launches[0].num_programs, "  equal to x + y:", torch.equal(o, x + y))
display(t)

# %% [markdown]
# Read the table like this:
#
# - **read**, **written**: what all programs together ask the memory for. Masked elements do not count.
# - **distinct**: each byte once. A cache can save the difference between the two; here nothing is read twice.
# - **DRAM**: what a model of the GPU's cache lets through to its main memory, which lies between the two.
# - **FLOP/byte**: the intensity. Compare it with the ridge point above. One addition per 12 bytes is far below it: this
#   kernel waits for memory, on any GPU.
# - **holds on chip**: the blocks that one program keeps at the same time. They must fit where it runs.

# %% [markdown]
# ## When it goes wrong
#
# Remove the mask, and the last program reaches behind the end. A GPU may say nothing and return garbage. The
# simulator names the line, the program and the element.

# %% tags=["nbval-check-output"]
@triton.jit
def careless_kernel(x_ptr, o_ptr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(o_ptr + offsets, tl.load(x_ptr + offsets) * 2)

try:
    with simulator.enabled():
        careless_kernel[grid](x, o, BLOCK=1024)
except simulator.OutOfBoundsError as error:
    print(error.message)
    print(f"--> line {error.line} of {error.place.kernel}'s cell: {error.place.source.strip()}")

# %% [markdown]
# **Try it**: put a mask into `careless_kernel`, or change `BLOCK` to 4096 in the launch above and see which of the
# numbers change.
#
# ## Where to go
#
# | notebook | question |
# |---|---|
# | [07 FlashAttention](07_flash_attention.ipynb) | Why does attention wait for memory, and how can a kernel avoid it? |
# | [A1 Your own kernel](A1_your_own_kernel.ipynb) | Paste any kernel: what does it cost, and what does it waste? |
#
# More labs follow: pretraining, scaling laws, training memory, ZeRO, quantisation, LoRA and QLoRA. Each notebook
# ends with exercises that grade themselves; they are in [exercises/](../exercises).
#
# If something does not work, `cme295lab doctor` in a terminal names the problem and the fix.
