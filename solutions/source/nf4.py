# %% [markdown]
# # Exercise: Four bits for a weight
#
# Four bits make sixteen levels. Where should they lie? Weights of a network are nearly normally distributed, and NF4
# puts its levels where such numbers are frequent. You build it as QLoRA does: the table, the bytes, the way back, and
# the trick that makes the constants small.
#
# | part | you write | points |
# |---|---|---|
# | 1 | the table of levels | 3 |
# | 2 | from numbers to bytes | 5 |
# | 3 | from bytes to numbers | 4 |
# | 4 | double quantisation, and its bits | 4 |
#
# Each part ends with a check. It says what is right, what is wrong and, where it can tell, why. Run it as often as you
# like. `checks.hint("nf4/1")` gives a hint, and `checks.hint("nf4/1", 2)` a bigger one.

# %% nbgrader={"grade":false,"grade_id":"setup","locked":true,"schema_version":3,"solution":false}
from statistics import NormalDist

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from cme295lab.grading import checks

# %% [markdown]
# ## Part 1. Levels where the weights are
#
# The **quantile** of a probability $p$ is the number below which a share $p$ of all values lies. Equally spaced
# probabilities have quantiles that are close together where values are frequent.
#
# The quantile of 1 is infinite. So the probabilities begin at an **offset** just below it:
#
# $$ \delta = 1 - \frac{1}{2} \left( \frac{1}{2(2^k - 1)} + \frac{1}{2 \cdot 2^k} \right) $$
#
# For $k = 4$ bits this is 0.9677083. The levels are then:
#
# - above 0: the quantiles of $2^{k-1}$ equally spaced probabilities from $\delta$ towards $1/2$, but without $1/2$;
# - below 0: the same with $2^{k-1} - 1$ probabilities, and a minus;
# - 0 itself. In the end, all are sorted and divided by the largest.

# %% [markdown]
# A small example, $k = 2$: $\delta = 1 - (1/6 + 1/8)/2 = 0.854$.
#
# | | probabilities | quantiles |
# |---|---|---|
# | above 0 | 0.854, 0.677 | 1.054, 0.460 |
# | below 0 | 0.854 | -1.054 |
#
# Divided by 1.054: the four levels are $-1, 0, 0.436, 1$.
#
# **Predict**: why is there one level less below 0? What would be lost with as many on each side?

# %% nbgrader={"grade":false,"grade_id":"levels","locked":false,"schema_version":3,"solution":true}
def normal_float(bits: int) -> Tensor:
    """The levels of a normal float.

    Args:
        bits: k; 4 for NF4.

    Returns:
        float32 (2 ** bits,), ascending from -1 to 1.

    TASKS
    1. The offset.
    2. Probabilities and quantiles of both sides: NormalDist().inv_cdf(p).
    3. Add 0, sort, divide by the largest.
    """
    ### BEGIN SOLUTION
    half = 2 ** (bits - 1)
    offset = 1 - (1 / (2 * (2**bits - 1)) + 1 / (2 * 2**bits)) / 2
    above = [NormalDist().inv_cdf(p) for p in torch.linspace(offset, 0.5, half + 1).tolist()[:-1]]
    below = [-NormalDist().inv_cdf(p) for p in torch.linspace(offset, 0.5, half).tolist()[:-1]]
    levels = torch.tensor(sorted([*above, 0.0, *below]))
    return levels / levels.max()
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"levels_check","locked":true,"points":3,"schema_version":3,"solution":false}
result = checks.run("nf4/1", normal_float)
### BEGIN HIDDEN TESTS
result &= checks.run("nf4/1", normal_float, bits=5)
### END HIDDEN TESTS
result.award(3)

# %% [markdown]
# Once the check passes: the levels under the curve that they are made for, with sixteen of int4 below.

# %%
if result.passed:
    x = torch.linspace(-1.15, 1.15, 200)
    figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
    axes.plot(x, torch.exp(-((2.6 * x) ** 2) / 2), color="#999999")
    axes.plot(normal_float(4), torch.full((16,), 0.12), "|", color="#0072B2", markersize=16, label="NF4")
    axes.plot(torch.arange(-8, 8) / 8, torch.full((16,), -0.12), "|", color="#D55E00", markersize=16, label="int4")
    axes.set(xlabel="weight / largest of 64", yticks=[], ylim=(-0.3, 1.1))
    axes.legend(loc="upper right")
    plt.show()

# %% [markdown]
# ## Part 2. Two to a byte
#
# The flattened tensor is cut into **blocks** of 64. Each keeps its largest absolute value in float32, **absmax**, and
# is divided by it. Every number then gets the **code** of the nearest level, 0 to 15.
#
# Two codes share a byte. The first one fills its **high half**: $16 \cdot \text{first} + \text{second}$.
#
# A small example with a block of 4. Its absmax is 2:
#
# | x | 0.5 | -1 | 0.1 | 2 |
# |---|---|---|---|---|
# | x / 2 | 0.25 | -0.5 | 0.05 | 1 |
# | nearest level | 0.246 | -0.525 | 0.080 | 1 |
# | code | 10 | 2 | 8 | 15 |
#
# The bytes are $16 \cdot 10 + 2 = 162$ and $16 \cdot 8 + 15 = 143$.

# %% [markdown]
# **Predict**: how many bits does a weight take, its share of the absmax included?
#
# Mind three things:
#
# - The last block may be shorter. If the number of codes is odd, half of the last byte is free to hold anything.
# - The codes of a block of zeros are those of the level 0.
# - Weights often come in bfloat16. Then absmax is float32, too.

# %% nbgrader={"grade":false,"grade_id":"quantize","locked":false,"schema_version":3,"solution":true}
def nf4_quantize(x: Tensor, code: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """Bytes of two codes each, and a constant for each block.

    Args:
        x: float32 or bfloat16, of any shape.
        code: the sixteen levels, float32, ascending.
        block_size: numbers that share a constant.

    Returns:
        (packed, absmax): uint8 (bytes,) and float32 (blocks,).

    TASKS
    1. Blocks of the flattened x, and their absmax.
    2. Normalise, and find the nearest level.
    3. Pack the codes.
    """
    ### BEGIN SOLUTION
    flat = x.flatten().float()
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % block_size)).view(-1, block_size)
    absmax = blocks.abs().amax(dim=1)
    normalised = blocks / absmax.clamp(min=1e-30)[:, None]
    codes = (normalised[..., None] - code).abs().argmin(dim=-1).flatten()[: len(flat)]
    codes = torch.nn.functional.pad(codes, (0, len(flat) % 2))
    return (codes[0::2] * 16 + codes[1::2]).to(torch.uint8), absmax
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"quantize_check","locked":true,"points":5,"schema_version":3,"solution":false}
result = checks.run("nf4/2", nf4_quantize)
### BEGIN HIDDEN TESTS
result &= checks.run("nf4/2", nf4_quantize, seed=295, block_size=32, num_blocks=7, row=22)
### END HIDDEN TESTS
result.award(5)

# %% [markdown]
# ## Part 3. And back
#
# Take each byte apart, look the codes up, and multiply by the constant of their block. Multiply in float32, and convert
# at the end: otherwise level, constant and product are rounded one after the other.
#
# A small example: the bytes 162 and 143 with the absmax 2.
#
# | byte | high, low | levels | times 2 |
# |---|---|---|---|
# | 162 | 10, 2 | 0.246, -0.525 | 0.492, -1.050 |
# | 143 | 8, 15 | 0.080, 1 | 0.159, 2 |
#
# **Predict**: of $(0.5, -1, 0.1, 2)$, which came back worst? Why is it no surprise that 2 came back exactly?

# %% nbgrader={"grade":false,"grade_id":"dequantize","locked":false,"schema_version":3,"solution":true}
def nf4_dequantize(
    packed: Tensor, absmax: Tensor, code: Tensor, shape: tuple[int, ...], dtype: torch.dtype, block_size: int
) -> Tensor:
    """The numbers that the bytes stand for.

    Args:
        packed: uint8 (bytes,), the first of two codes in the high half.
        absmax: float32 (blocks,).
        code: the sixteen levels, float32.
        shape, dtype: of the result.
        block_size: numbers that share a constant.

    TASKS
    1. Two codes of each byte, in order.
    2. Level times constant.
    3. Shape and dtype.
    """
    ### BEGIN SOLUTION
    codes = torch.stack((packed >> 4, packed & 15), dim=1).flatten().long()
    codes = codes[: torch.Size(shape).numel()]
    constants = absmax.repeat_interleave(block_size)[: len(codes)]
    return (code[codes] * constants).view(shape).to(dtype)
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"dequantize_check","locked":true,"points":4,"schema_version":3,"solution":false}
result = checks.run("nf4/3", nf4_dequantize)
### BEGIN HIDDEN TESTS
result &= checks.run("nf4/3", nf4_dequantize, seed=295, block_size=32, num_blocks=7, row=23)
### END HIDDEN TESTS
result.award(4)

# %% [markdown]
# Once the check passes: the error of normal weights with the levels of NF4 and with equally spaced ones.

# %%
if result.passed:
    x = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    for name, code in (("NF4", normal_float(4)), ("equally spaced", torch.linspace(-1, 1, 16))):
        packed, absmax = nf4_quantize(x, code, 64)
        back = nf4_dequantize(packed, absmax, code, x.shape, x.dtype, 64)
        stored = 8 * (packed.numel() + 4 * absmax.numel()) / x.numel()
        print(f"{name}: mean squared error {(back - x).square().mean():.5f}, {stored} bits a weight")

# %% [markdown]
# ## Part 4. The constants' constants
#
# A float32 for 64 weights costs half a bit each. **Double quantisation** quantises the constants, too. They are all
# positive, so their *mean* (one number for the whole tensor) is subtracted first. What is left lies on both sides of 0,
# and fits int8 with absmax, a float32 **scale** for each *group* of 256 constants.
#
# A small example with a group of 4:
#
# | constants | 2.0 | 2.5 | 3.1 | 2.8 |
# |---|---|---|---|---|
# | minus the mean, 2.6 | -0.6 | -0.1 | 0.5 | 0.2 |
# | code, the scale is 0.6/127 | -127 | -21 | 106 | 42 |
# | restored | 2.0 | 2.501 | 3.101 | 2.798 |
#
# **Predict**: how much larger is a step if the mean is not subtracted?

# %% [markdown]
# How you store it is up to you, as long as it is a tuple of tensors: the check counts their bytes.
#
# The bits of a weight: 4 for its code. A constant in 8 bits is shared by the weights of a block, and a scale in 32 bits
# by those of all blocks of a group. The mean does not count.
#
# **Predict**: with blocks of 64 and groups of 256, how many bits is that? How many gigabytes does it save for 65
# billion weights?

# %% nbgrader={"grade":false,"grade_id":"double","locked":false,"schema_version":3,"solution":true}
def compress_constants(absmax: Tensor, group_size: int) -> tuple[Tensor, ...]:
    """Constants of blocks, float32 (blocks,), in 8 bits each; the last group may be shorter.

    TASK
    1. The mean; a scale for each group; codes. Mind a group in which all are the mean.
    """
    ### BEGIN SOLUTION
    mean = absmax.mean()
    groups = torch.nn.functional.pad(absmax - mean, (0, -len(absmax) % group_size)).view(-1, group_size)
    scales = (groups.abs().amax(dim=1) / 127).clamp(min=1e-30)
    codes = (groups / scales[:, None]).round().to(torch.int8).flatten()[: len(absmax)]
    return codes, scales, mean
    ### END SOLUTION

def restore_constants(stored: tuple[Tensor, ...], group_size: int) -> Tensor:
    """The constants, float32 (blocks,).

    TASK
    2. The way back.
    """
    ### BEGIN SOLUTION
    codes, scales, mean = stored
    return codes * scales.repeat_interleave(group_size)[: len(codes)] + mean
    ### END SOLUTION

def bits_per_parameter(block_size: int, group_size: int | None) -> float:
    """Bits of a weight, constants included; with group_size None they are in float32.

    TASK
    3. Count them.
    """
    ### BEGIN SOLUTION
    if group_size is None:
        return 4 + 32 / block_size
    return 4 + 8 / block_size + 32 / (block_size * group_size)
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"double_check","locked":true,"points":4,"schema_version":3,"solution":false}
result = checks.run("nf4/4", (compress_constants, restore_constants, bits_per_parameter))
### BEGIN HIDDEN TESTS
double = (compress_constants, restore_constants, bits_per_parameter)
result &= checks.run("nf4/4", double, seed=295, group_size=48, num_groups=5, block_size=128, formula=512)
### END HIDDEN TESTS
result.award(4)

# %% [markdown]
# Once the check passes: a model of 65 billion weights, and what the second rounding does to the error.

# %%
if result.passed:
    for name, bits in (("bf16", 16), ("NF4", bits_per_parameter(64, None)), ("twice", bits_per_parameter(64, 256))):
        print(f"{name}: {bits:.4g} bits a weight, {65 * bits / 8:.1f} GB")
    x = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    code = normal_float(4)
    packed, absmax = nf4_quantize(x, code, 64)
    twice = restore_constants(compress_constants(absmax, 256), 256)
    for name, constants in (("float32 constants", absmax), ("8-bit constants", twice)):
        back = nf4_dequantize(packed, constants, code, x.shape, x.dtype, 64)
        print(f"{name}: mean squared error {(back - x).square().mean():.6f}")

# %% [markdown]
# ## Summary
#
# - NF4's levels are quantiles of a normal distribution: close together where weights are frequent.
# - 0 is a level, at the price of one level less below it. Padding and pruned weights stay exactly 0.
# - A weight takes 4 bits and its share of a constant: 4.5 with float32, 4.127 with double quantisation.
# - The bytes are of no use for computing: they are unpacked, block by block, before every product.
# - **To take away**: the levels are made for normal weights. What would you measure to see if yours are?
