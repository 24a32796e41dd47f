# %% [markdown]
# # Exercise: Numbers in eight bits
#
# An int8 takes a byte, and knows 256 values. You write the quantisers that bring a tensor there and back, from one
# scale for everything to LLM.int8(), which multiplies in int8 and keeps the few numbers apart that would spoil it.
#
# | part | you write | points |
# |---|---|---|
# | 1 | absmax: one scale | 3 |
# | 2 | a scale and a zero point | 4 |
# | 3 | a scale for every block | 4 |
# | 4 | a matrix product in int8, with outliers apart | 5 |
#
# Each part ends with a check. It says what is right, what is wrong and, where it can tell, why. Run it as often as you
# like. `checks.hint("quantizers/1")` gives a hint, and `checks.hint("quantizers/1", 2)` a bigger one.

# %% nbgrader={"grade":false,"grade_id":"setup","locked":true,"schema_version":3,"solution":false}
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from cme295lab.grading import checks

# %% [markdown]
# ## Part 1. One step for all
#
# **Absmax** divides the range from $-\max|x|$ to $\max|x|$ into 254 equal steps. The width of a step is the **scale**:
#
# $$ s = \frac{\max |x|}{127}, \qquad q = \mathrm{round}(x / s), \qquad \hat x = q \cdot s $$
#
# A small example. Here $s = 3.1 / 127 = 0.0244$:
#
# | x | 1.2 | -0.5 | 3.1 | -2.4 | 0 |
# |---|---|---|---|---|---|
# | q | 49 | -20 | 127 | -98 | 0 |
# | x̂ | 1.196 | -0.488 | 3.1 | -2.392 | 0 |
#
# **Predict**: how far can x̂ be from x?
#
# If all numbers are 0, nothing may be divided by 0: take the scale 1.

# %% nbgrader={"grade":false,"grade_id":"absmax","locked":false,"schema_version":3,"solution":true}
def absmax_quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and their scale.

    Args:
        x: float32, of any shape.

    Returns:
        (codes, scale): int8 of x's shape, from -127 to 127, and one number.

    TASKS
    1. The scale; mind x = 0.
    2. The codes: round, then convert.
    """
    ### BEGIN SOLUTION
    scale = x.abs().max() / 127
    if scale == 0:
        scale = torch.ones_like(scale)
    return (x / scale).round().to(torch.int8), scale
    ### END SOLUTION

def absmax_dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """What the codes stand for: float32, of their shape.

    TASK
    3. Codes times scale.
    """
    ### BEGIN SOLUTION
    return codes * scale
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"absmax_check","locked":true,"points":3,"schema_version":3,"solution":false}
result = checks.run("quantizers/1", (absmax_quantize, absmax_dequantize))
### BEGIN HIDDEN TESTS
result &= checks.run("quantizers/1", (absmax_quantize, absmax_dequantize), seed=295, size=203, rows=5)
### END HIDDEN TESTS
result.award(3)

# %% [markdown]
# ## Part 2. Where zero lies
#
# After a ReLU no number is negative, and absmax leaves half of its codes unused. A **zero point** moves the codes, so
# that the smallest number gets $-128$ and the largest $127$:
#
# $$ s = \frac{\max x - \min x}{255}, \quad z = -\mathrm{round}\left(\frac{\min x}{s}\right) - 128, \quad
# q = \mathrm{clamp}\left(\mathrm{round}\left(\frac{x}{s}\right) + z\right), \quad \hat x = (q - z) \cdot s $$
#
# A small example, with $s = 4.3 / 255 = 0.01686$ and $z = 24 - 128 = -104$:
#
# | x | 0.1 | 1.5 | 2 | 3.9 | -0.4 |
# |---|---|---|---|---|---|
# | q | -98 | -15 | 15 | 127 | -128 |
# | x̂ | 0.101 | 1.501 | 2.007 | 3.895 | -0.405 |
#
# **Predict**: which number comes back exactly, whatever the range?

# %% [markdown]
# The range is often measured on some data and used for other data (**calibration**). So three functions: one that makes
# scale and zero point of a range, and two that use them. Three things to mind:
#
# - New numbers may lie beyond the range: they get the first or the last code.
# - $q - z$ can be 255, and an int8 ends at 127.
# - If smallest and largest are the same, any scale and zero point will do with which this number comes back.

# %% nbgrader={"grade":false,"grade_id":"affine","locked":false,"schema_version":3,"solution":true}
def affine_range(smallest: float, largest: float) -> tuple[float, int]:
    """(scale, zero_point) of a range; the zero point is a whole number, and not always within int8.

    TASK
    1. The two formulas, and the case smallest = largest.
    """
    ### BEGIN SOLUTION
    if smallest == largest:
        return abs(largest) or 1.0, 0
    scale = (largest - smallest) / 255
    return scale, -round(smallest / scale) - 128
    ### END SOLUTION

def affine_quantize(x: Tensor, scale: float, zero_point: int) -> Tensor:
    """Codes of x: int8, of its shape, from -128 to 127.

    TASK
    2. Divide, round, move, clamp, convert.
    """
    ### BEGIN SOLUTION
    return ((x / scale).round() + zero_point).clamp(-128, 127).to(torch.int8)
    ### END SOLUTION

def affine_dequantize(codes: Tensor, scale: float, zero_point: int) -> Tensor:
    """What the codes stand for: float32, of their shape.

    TASK
    3. The way back.
    """
    ### BEGIN SOLUTION
    return (codes.float() - zero_point) * scale
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"affine_check","locked":true,"points":4,"schema_version":3,"solution":false}
result = checks.run("quantizers/2", (affine_range, affine_quantize, affine_dequantize))
### BEGIN HIDDEN TESTS
affine = (affine_range, affine_quantize, affine_dequantize)
result &= checks.run("quantizers/2", affine, seed=295, size=203, smallest=17.0)
### END HIDDEN TESTS
result.award(4)

# %% [markdown]
# Once the check passes: what a zero point is worth, after a ReLU and before.

# %%
if result.passed:
    before = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    for name, x in (("before the ReLU", before), ("after", before.relu())):
        scale, zero_point = affine_range(x.min().item(), x.max().item())
        affine = affine_dequantize(affine_quantize(x, scale, zero_point), scale, zero_point)
        absmax = absmax_dequantize(*absmax_quantize(x))
        errors = [float((y - x).square().mean()) for y in (absmax, affine)]
        print(f"{name}: mean squared error {errors[0]:.2g} with absmax, {errors[1]:.2g} with a zero point")

# %% [markdown]
# ## Part 3. A step for every block
#
# One large number makes the step wide for all. In **blocks** it spoils only its own: flatten the tensor row by row, cut
# it into blocks of `block_size` numbers, and give each its absmax scale. The last block may be shorter.
#
# A small example with blocks of 4:
#
# | | block 0 | | | | block 1 | |
# |---|---|---|---|---|---|---|
# | x | 0.3 | -1 | 0.6 | 0.1 | 20 | -50 |
# | q | 38 | -127 | 76 | 13 | 51 | -127 |
# | scale | 1/127 | | | | 50/127 | |
#
# **Predict**: what are the codes of block 0 with one scale for all six?
#
# A block of zeros gets the scale 1.

# %% nbgrader={"grade":false,"grade_id":"blockwise","locked":false,"schema_version":3,"solution":true}
def blockwise_quantize(x: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """Codes, and a scale for each block.

    Args:
        x: float32, of any shape.
        block_size: numbers that share a scale.

    Returns:
        (codes, scales): int8 of x's shape, and float32 (blocks,).

    TASKS
    1. Blocks of the flattened x; mind the last one.
    2. Scales; mind blocks of zeros.
    3. Codes, in x's shape.
    """
    ### BEGIN SOLUTION
    flat = x.flatten()
    filled = torch.nn.functional.pad(flat, (0, -len(flat) % block_size)).view(-1, block_size)
    scales = filled.abs().amax(dim=1) / 127
    scales[scales == 0] = 1
    codes = (filled / scales[:, None]).round().to(torch.int8)
    return codes.flatten()[: len(flat)].view(x.shape), scales
    ### END SOLUTION

def blockwise_dequantize(codes: Tensor, scales: Tensor, block_size: int) -> Tensor:
    """What the codes stand for: float32, of their shape.

    TASK
    4. Each code times the scale of its block.
    """
    ### BEGIN SOLUTION
    return codes * scales.repeat_interleave(block_size)[: codes.numel()].view(codes.shape)
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"blockwise_check","locked":true,"points":4,"schema_version":3,"solution":false}
result = checks.run("quantizers/3", (blockwise_quantize, blockwise_dequantize))
### BEGIN HIDDEN TESTS
blockwise = (blockwise_quantize, blockwise_dequantize)
result &= checks.run("quantizers/3", blockwise, seed=295, block_size=6, num_blocks=13, row=17)
### END HIDDEN TESTS
result.award(4)

# %% [markdown]
# Once the check passes: the error of weights among which a few are 20 times too large, and what the scales cost.

# %%
if result.passed:
    x = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    x[::64, 100] = 20.0
    sizes = [16, 64, 256, 1024, 4096, 65536]
    errors = [
        float((blockwise_dequantize(*blockwise_quantize(x, size), size) - x).square().mean().sqrt()) for size in sizes
    ]
    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    axes.loglog(sizes, errors, "o-", color="#0072B2")
    for size, error in zip(sizes, errors):
        axes.annotate(f"{8 + 32 / size:.3g} bits", (size, error), textcoords="offset points", xytext=(4, -12))
    axes.margins(0.15)
    axes.set(xlabel="numbers of a block", ylabel="root mean square error")
    plt.show()

# %% [markdown]
# ## Part 4. All but the outliers
#
# In large language models, a few features of the activations are 20 times larger than the rest, in almost every token.
# **LLM.int8()** finds them ($|x| \ge 6$ anywhere in a column), multiplies these columns in floating point, and the rest
# in int8.
#
# For the rest, each *row* of $X$ has a scale $s_i$, and each *column* of $W$ has a scale $t_j$. They stand outside of
# the sum, so that the sum itself is one of whole numbers:
#
# $$ (XW)_{ij} \approx s_i \, t_j \sum_k q_{ik} \, p_{kj} $$
#
# **Predict**: why would a scale for each *column* of $X$ be of no use here?

# %% [markdown]
# A small example, whose last feature is an outlier:
#
# $$ X = \begin{pmatrix} 1.1 & -2 & 8 \\ 0.5 & 0.2 & -1 \end{pmatrix} \quad
# W = \begin{pmatrix} 1 & -1.2 \\ 0.4 & 2 \\ 0.9 & -0.5 \end{pmatrix} $$
#
# Row 0 without it is $(1.1, -2)$: scale $2/127$, codes $(70, -127)$. Column 0 of the weights has the scale $1/127$ and
# the codes $(127, 51)$. Their product is $70 \cdot 127 - 127 \cdot 51 = 2413$, and
#
# $$ 2413 \cdot \tfrac{2}{127} \cdot \tfrac{1}{127} + 8 \cdot 0.9 = 7.4992 \qquad (\text{exact: } 7.5) $$

# %% nbgrader={"grade":false,"grade_id":"mixed","locked":false,"schema_version":3,"solution":true}
def mixed_int8_matmul(x: Tensor, weight: Tensor, threshold: float) -> Tensor:
    """x times weight, in int8 but for the features that hold an outlier.

    Args:
        x: float32 (tokens, features).
        weight: float32 (features, outputs).
        threshold: a feature with |x| >= threshold in any token is multiplied in float32.

    Returns:
        float32 (tokens, outputs).

    TASKS
    1. Which features hold an outlier?
    2. Scales and codes of the rest.
    3. The product of the codes; mind how large it gets. Scale it.
    4. Add the product of the outliers.
    """
    ### BEGIN SOLUTION
    outlier = (x.abs() >= threshold).any(dim=0)
    rest = x.masked_fill(outlier, 0.0)
    row = (rest.abs().amax(dim=1, keepdim=True) / 127).clamp(min=1e-12)
    column = (weight.abs().amax(dim=0, keepdim=True) / 127).clamp(min=1e-12)
    codes, weight_codes = ((part / scale).round().int() for part, scale in ((rest, row), (weight, column)))
    return (codes @ weight_codes) * row * column + x[:, outlier] @ weight[outlier]
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"mixed_check","locked":true,"points":5,"schema_version":3,"solution":false}
result = checks.run("quantizers/4", mixed_int8_matmul)
### BEGIN HIDDEN TESTS
hidden = {"tokens": 9, "features": 21, "outputs": 9, "threshold": 4.5}
result &= checks.run("quantizers/4", mixed_int8_matmul, seed=295, **hidden)
### END HIDDEN TESTS
result.award(5)

# %% [markdown]
# Once the check passes: the error of a layer with and without outliers apart, as they grow.

# %%
if result.passed:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(64, 256, generator=generator), torch.randn(256, 256, generator=generator) / 16
    for size in (1, 5, 20, 60):
        grown = x.clone()
        grown[:, 7] *= size
        exact = grown @ weight
        errors = [
            float((mixed_int8_matmul(grown, weight, threshold) - exact).norm() / exact.norm())
            for threshold in (1e9, 6.0)
        ]
        print(f"one feature {size:2} times as large: {errors[0]:.2%} off in int8, {errors[1]:.2%} with outliers apart")

# %% [markdown]
# ## Summary
#
# - A scale is the width of a step, and the error is at most half of it. Everything else is about keeping it small.
# - A zero point uses all codes where numbers lie on one side. It is whole, so that 0 stays 0.
# - In blocks, a large number spoils only its neighbours. A float32 scale for 64 numbers costs half a bit each.
# - Scales of rows and columns can be taken out of a sum, and the sum is then one of whole numbers, in int32.
# - Outliers sit in few features. Kept apart, they cost little, and the rest fits 8 bits.
# - **To take away**: weights are quantised once, activations in every step. Which of the four would you use for which?
