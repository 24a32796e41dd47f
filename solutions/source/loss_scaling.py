# %% [markdown]
# # Exercise: Train in 16 bits
#
# A model in fp16 takes half the memory, and loses what is smaller than fp16's smallest number: gradients, and updates.
# Three measures make up for it (Micikevicius et al. 2018): the loss is scaled, fp32 masters hold the weights, and
# sums run in fp32. You build the first two.
#
# | part | you write | points |
# |---|---|---|
# | 1 | the largest scale that fits, and what is lost | 4 |
# | 2 | a scale that finds itself | 4 |
# | 3 | a training step with masters | 7 |
#
# Each part ends with a check. It says what is right, what is wrong and, where it can tell, why. Run it as often as you
# like. `checks.hint("loss_scaling/1")` gives a hint, and `checks.hint("loss_scaling/1", 2)` a bigger one.

# %% nbgrader={"grade":false,"grade_id":"setup","locked":true,"schema_version":3,"solution":false}
import math

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from cme295lab.grading import checks

# %% [markdown]
# ## Part 1. Into the range of fp16
#
# fp16 reaches from $2^{-24} \approx 6 \cdot 10^{-8}$ to 65504. Gradients are small: many of them round to 0 while the
# upper end stays empty. If the loss is multiplied by a **scale** $c$, so is each gradient, and all of them move up.
#
# - $c$ is a power of two: then nothing but the exponent changes.
# - Nothing may overflow: $c \cdot \max |g| < 65504$.
#
# By hand: gradients $0,\ 3 \cdot 10^{-8},\ -2 \cdot 10^{-5},\ 0.003$. As $65504 / 0.003 \approx 2.18 \cdot 10^7$, the
# largest scale is $2^{24} \approx 1.68 \cdot 10^7$. How many are **lost**, with the scale 1? Only
# what was not 0 and becomes 0 counts. $3 \cdot 10^{-8}$ is just more than half of $2^{-24}$ and rounds up to it: none.
#
# **Predict**: which gradients become 0 at a scale of 1: those below $2^{-24}$, or below $2^{-25}$?

# %% nbgrader={"grade":false,"grade_id":"largest_scale","locked":false,"schema_version":3,"solution":true}
def largest_scale(gradients: list[Tensor]) -> float:
    """The largest power of two by which no gradient reaches 65504.

    Args:
        gradients: fp32 tensors of any shapes; at least one number is not 0.

    TASK
    1. Which number decides? Which power of two fits?
    """
    ### BEGIN SOLUTION
    largest = max(float(gradient.abs().max()) for gradient in gradients)
    return 2.0 ** math.floor(math.log2(65504 / largest))
    ### END SOLUTION

# %% nbgrader={"grade":false,"grade_id":"num_lost","locked":false,"schema_version":3,"solution":true}
def num_lost(gradients: list[Tensor], scale: float) -> int:
    """How many numbers that are not 0 become 0 in fp16.

    Args:
        gradients: fp32 tensors of any shapes.
        scale: they are multiplied by it before they are stored in fp16.

    TASK
    1. Scale, store, compare.
    """
    ### BEGIN SOLUTION
    lost = [((gradient * scale).half() == 0) & (gradient != 0) for gradient in gradients]
    return sum(int(mask.sum()) for mask in lost)
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"scale_check","locked":true,"points":4,"schema_version":3,"solution":false}
result = checks.run("loss_scaling/1", (largest_scale, num_lost))
### BEGIN HIDDEN TESTS
result &= checks.run("loss_scaling/1", (largest_scale, num_lost), seed=295, size=3e-6)
### END HIDDEN TESTS
result.award(4)

# %% [markdown]
# Once the check passes: gradients over a wide range, and what each scale loses.

# %%
if result.passed:
    spread = torch.randn(2, 100_000, generator=torch.Generator().manual_seed(0))
    gradients = [1e-6 * spread[0] * 8 ** spread[1]]
    print(f"largest scale: 2^{math.log2(largest_scale(gradients)):.0f}")
    for power in (0, 3, 7, 12, 15):
        print(f"scale 2^{power:<2}: {num_lost(gradients, 2.0**power) / 1000:6.2f} % lost")

# %% [markdown]
# ## Part 2. A scale that finds itself
#
# Gradients change while a model learns, and the right scale with them. **Dynamic loss scaling** starts high and lets
# the gradients decide:
#
# - A gradient is **inf or NaN**: the step is skipped, the scale **halved**, and the count of clean steps starts again
#   at 0.
# - A clean step is counted. After `growth_interval` clean steps **in a row** the scale **doubles**, and the count
#   starts again at 0.
#
# An example with `growth_interval=2` and the scale 8:
#
# | step | 1 | 2 | 3 | 4 | 5 | 6 |
# |---|---|---|---|---|---|---|
# | gradients | clean | clean | inf | clean | inf | clean |
# | scale after it | 8 | 16 | 8 | 8 | 4 | 4 |
# | clean steps after it | 1 | 0 | 0 | 1 | 0 | 1 |
#
# **Predict**: the scale is best at $2^{12}$ and grows every 2000 steps. Which share of steps is skipped?

# %% nbgrader={"grade":false,"grade_id":"update","locked":false,"schema_version":3,"solution":true}
def update(scale: float, clean_steps: int, found_inf: bool, growth_interval: int) -> tuple[float, int]:
    """The scale for the next step.

    Args:
        scale: of the step that was made.
        clean_steps: in a row, before that step; 0 at first.
        found_inf: whether a gradient of that step was inf or NaN.
        growth_interval: clean steps in a row after which the scale doubles.

    Returns:
        (scale, clean_steps), for the next step.

    TASKS
    1. After a step with inf.
    2. After a clean step: is it the last of a row?
    """
    ### BEGIN SOLUTION
    if found_inf:
        return scale / 2, 0
    if clean_steps + 1 == growth_interval:
        return scale * 2, 0
    return scale, clean_steps + 1
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"update_check","locked":true,"points":4,"schema_version":3,"solution":false}
result = checks.run("loss_scaling/2", update)
### BEGIN HIDDEN TESTS
result &= checks.run("loss_scaling/2", update, seed=295, interval=7)
### END HIDDEN TESTS
result.award(4)

# %% [markdown]
# Once the check passes: gradients that shrink, and a scale that follows.

# %% nbgrader={"grade":false,"grade_id":"draw_scale","locked":true,"schema_version":3,"solution":false}
if result.passed:
    scale, clean, scales, skipped = 2.0**16, 0, [], []
    largest = [50 * 0.99**step for step in range(600)]
    for step, gradient in enumerate(largest):
        overflow = gradient * scale >= 65504
        skipped += [step] if overflow else []
        scale, clean = update(scale, clean, overflow, growth_interval=20)
        scales.append(scale)
    fig, axis = plt.subplots(figsize=(7, 2.6))
    axis.plot([65504 / gradient for gradient in largest], color="#BBBBBB", label="largest that fits")
    axis.plot(scales, color="#0072B2", label="scale")
    axis.plot(skipped, [scales[step] for step in skipped], "x", color="#D55E00", label="skipped step")
    axis.set(yscale="log", xlabel="step", ylabel="scale")
    axis.legend()
    plt.show()

# %% [markdown]
# *The picture, if your function is right: a grey line rises. A blue staircase falls below it within the first steps and
# then climbs along under it; now and then it steps over the line and back, with an orange cross there.*
#
# ## Part 3. A step with masters
#
# A weight of 1 and an update of 0.0001: in fp16 the sum is 1, as the next number is 1.001. So the optimizer updates
# **masters** in fp32. The forward pass uses their 16-bit copies, the `weights`.
#
# | | forward, backward | optimizer |
# |---|---|---|
# | reads | weights (fp16) | gradients in fp32, divided by the scale |
# | writes | gradients (fp16), times the scale | masters (fp32), and from them the weights |

# %% [markdown]
# `loss_of(weights)` is the forward pass and returns the loss in fp32; `backward()` leaves gradients in `weight.grad`.
# The `optimizer` holds the masters: it reads `master.grad`.
#
# - What is too small for fp16 is saved by the scale, and must not be lost when the scale goes out again.
# - A gradient with **inf or NaN** in any tensor: neither masters, weights nor the optimizer change. Return `True`.
# - The norm of **all** gradients together is clipped to `max_norm`, as `torch.nn.utils.clip_grad_norm_` does it.
# - Each call starts from gradients of its own. Weights keep their place in memory: `weight.copy_(master)`, in
#   `torch.no_grad()`.
#
# **Predict**: Adam divides by the gradients' own size, so a forgotten division by the scale hardly shows. With which
# optimizer does it, and where else?

# %% nbgrader={"grade":false,"grade_id":"mixed_step","locked":false,"schema_version":3,"solution":true}
def mixed_step(loss_of, masters: list[Tensor], weights: list[Tensor], optimizer, scale: float, max_norm: float) -> bool:
    """One training step.

    Args:
        loss_of: loss_of(weights) is the loss, fp32.
        masters: fp32.
        weights: the same in fp16; they require gradients.
        optimizer: of the masters.
        scale: of the loss.
        max_norm: the gradients' norm is clipped to it.

    Returns:
        Whether the step was skipped.

    TASKS
    1. Forward, backward.
    2. The true gradients, in fp32. Are all of them finite?
    3. Clip, update the masters, write the weights.
    """
    ### BEGIN SOLUTION
    (loss_of(weights) * scale).backward()
    for master, weight in zip(masters, weights):
        master.grad = weight.grad.float() / scale
        weight.grad = None
    if not all(master.grad.isfinite().all() for master in masters):
        return True
    torch.nn.utils.clip_grad_norm_(masters, max_norm)
    optimizer.step()
    with torch.no_grad():
        for master, weight in zip(masters, weights):
            weight.copy_(master)
    return False
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"step_check","locked":true,"points":7,"schema_version":3,"solution":false}
result = checks.run("loss_scaling/3", mixed_step)
### BEGIN HIDDEN TESTS
result &= checks.run("loss_scaling/3", mixed_step, seed=295, scale=256.0)
### END HIDDEN TESTS
result.award(7)

# %% [markdown]
# Once the check passes: a regression whose loss is tiny. Its gradients fall below fp16's range. With your step and
# your scale they do not.

# %% nbgrader={"grade":false,"grade_id":"draw_training","locked":true,"schema_version":3,"solution":false}
x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
y = x @ torch.linspace(-1, 1, 8)

def loss_of(weights):
    """The loss of a linear model: its mean squared error, times 1e-8."""
    return 1e-8 * (x @ weights[0].float() - y).square().mean()

def train(step, dynamic):
    """The losses of 200 steps of Adam."""
    masters, losses, scale, clean = [torch.zeros(8)], [], 2.0**16 if dynamic else 1.0, 0
    weights = [masters[0].half().requires_grad_()]
    optimizer = torch.optim.Adam(masters, lr=0.02, eps=1e-15)
    for _ in range(200):
        skipped = step(loss_of, masters, weights, optimizer, scale, 1.0)
        if dynamic:
            scale, clean = update(scale, clean, skipped, growth_interval=20)
        losses.append(1e8 * float(loss_of(weights).detach()))
    return losses, scale

# %%
if result.passed:
    for name, dynamic in (("scale 1", False), ("dynamic scale", True)):
        losses, scale = train(mixed_step, dynamic)
        print(f"{name:14} loss {losses[0]:.3f} -> {losses[-1]:.6f}, last scale 2^{math.log2(scale):.0f}")

# %% [markdown]
# ## Summary
#
# - A scale moves gradients into fp16's range. It is a power of two, and $c \cdot \max|g| < 65504$.
# - A dynamic scale pays for its search with a skipped step now and then. bf16 has the range of fp32 and needs none.
# - The order of a step: scale, backward, to fp32, unscale, check, clip, update, copy. Each other order is wrong
#   somewhere, and often only in rare steps.
# - Masters hold what 16 bits cannot: updates below half a step of the weight.
# - **To take away**: with masters and Adam's two moments, how many bytes does a parameter take in fp16, and how many in
#   plain fp32? What is saved, then?
