# %% [markdown]
# # Exercise: What training costs
#
# One number decides how long a training run takes, what it costs and how much power it draws: its floating-point
# operations. You count them, find out what share of a GPU's peak they reach, add gradients up so that the count of
# tokens is right, and write the bill.
#
# | part | you write | points |
# |---|---|---|
# | 1 | parameters, exactly, and 6ND | 3 |
# | 2 | attention's share, and MFU | 4 |
# | 3 | gradients of micro-batches, weighted by tokens | 4 |
# | 4 | days, dollars, megawatt-hours | 3 |
#
# Each part ends with a check. It says what is right, what is wrong and, where it can tell, why. Run it as often as you
# like. `checks.hint("flops_accounting/1")` gives a hint, and `checks.hint("flops_accounting/1", 2)` a bigger one.

# %% nbgrader={"grade":false,"grade_id":"setup","locked":true,"schema_version":3,"solution":false}
import matplotlib.pyplot as plt
import torch.nn.functional as F
from torch import Tensor, nn

from cme295lab.grading import checks
from cme295lab.pretraining import flops_per_token
from cme295lab.transformer import preset

# %% [markdown]
# ## Part 1. Six times N times D
#
# **FLOP** is a count, **FLOP/s** a rate. ("FLOPs" and "FLOPS" are one letter apart; write the slash.) This part is
# about a count.
#
# A matrix with $P$ parameters multiplies each token: $P$ multiplications and $P$ additions, $2P$ FLOP. Backward needs
# two products of that size: the gradient of the input, and of the matrix. So training takes $6P$ for each token, and
# $C \approx 6ND$ for $N$ parameters and $D$ tokens.
#
# **Predict**: GPT-3 has $N = 1.75 \cdot 10^{11}$ and saw $D = 3 \cdot 10^{11}$ tokens. Which power of 10 is $C$?

# %% [markdown]
# $N$ must be right. A Llama-like model has, in each of $L$ layers:
#
# - attention: queries and output of $d \times d$, keys and values of $d \times d_{kv}$. A head is $d$ / `num_heads`
#   wide, and there are `num_kv_heads` of them for keys and values;
# - an MLP of three matrices, $d \times$ `mlp_dim`;
# - two norms, a vector of $d$ each.
#
# Once: the embedding, $V \times d$; a last norm; and the head, $V \times d$. A **tied** head *is* the embedding.
#
# A small example: $V=10, L=1, d=4$, one head, `mlp_dim` 8, tied: $40 + (64 + 96 + 8) + 4 = 212$.
#
# Count all of them, norms too.

# %% nbgrader={"grade":false,"grade_id":"training_flops","locked":false,"schema_version":3,"solution":true}
def training_flops(
    vocab_size: int, num_layers: int, dim: int, num_heads: int, num_kv_heads: int, mlp_dim: int, tied: bool,
    num_tokens: int,
) -> float:
    """FLOP of training by 6ND.

    TASKS
    1. N: all parameters.
    2. 6ND.
    """
    ### BEGIN SOLUTION
    kv_dim = dim // num_heads * num_kv_heads
    attention = 2 * dim * dim + 2 * dim * kv_dim
    layer = attention + 3 * dim * mlp_dim + 2 * dim
    tables = vocab_size * dim * (1 if tied else 2)
    num_parameters = tables + num_layers * layer + dim
    return 6.0 * num_parameters * num_tokens
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"flops_check","locked":true,"points":3,"schema_version":3,"solution":false}
result = checks.run("flops_accounting/1", training_flops)
### BEGIN HIDDEN TESTS
result &= checks.run("flops_accounting/1", training_flops, dim=64, num_layers=5, billions=3)
### END HIDDEN TESTS
result.award(3)

# %% [markdown]
# Once the check passes: Llama-3 405B on 15.6 trillion tokens. The paper says $3.8 \cdot 10^{25}$.

# %% nbgrader={"grade":false,"grade_id":"llama","locked":true,"schema_version":3,"solution":false}
if result.passed:
    compute = training_flops(128_256, 126, 16_384, 128, 8, 53_248, False, 15_600_000_000_000)
    print(f"{compute:.2e} FLOP: {compute / 989.4e12 / 86_400 / 365:,.0f} years of one H100 at its peak")

# %% [markdown]
# ## Part 2. A share of the peak
#
# Attention multiplies, too, without parameters: $QK^\top$ and the product with $V$. For a token, each costs
# `attention_dim` multiply-adds for every position it meets. (`attention_dim` is the width of all query heads together.)
# Forward and backward, over all layers, that is $12 \cdot L \cdot$ `attention_dim` $\cdot T$ FLOP for each token.
#
# *Convention*: this counts all $T$ positions, as the PaLM paper does, although a causal mask hides half of them. Other
# papers count that half. A share of the peak means nothing until it says which.
#
# **Predict**: at which context does attention take as much as Llama-3 8B's parameters? Then run the cell.

# %% nbgrader={"grade":false,"grade_id":"contexts","locked":true,"schema_version":3,"solution":false}
llama = preset("llama-3-8b")
for seq in (2048, 8192, 32_768, 131_072):
    table = flops_per_token(llama, seq)
    core = sum(row.model_flops for row in table.rows if row.operator.startswith(("scores", "prob")))
    print(f"{seq:8,} tokens: {table.total / 1e9:6.1f} GFLOP per token, {core / table.total:4.0%} of it in attention")

# %% [markdown]
# **MFU**, model FLOPs utilization, is what the *model* needs per second over what the GPUs could do:
#
# $$\mathrm{MFU} = \frac{\text{tokens/s} \cdot (6N + 12 L\, a\, T)}{\text{GPUs} \cdot \text{peak}}$$
#
# **HFU**, hardware FLOPs utilization, has in its numerator what the GPUs *execute*. With full recomputation the forward
# pass runs twice: four passes, where the model needs three (count both terms as computed again).
#
# The **peak** is that of a dense product. Data sheets of newer GPUs often print the rate "with sparsity", which is
# twice as large: the H100's "1,979 TFLOP/s" are 989.

# %% nbgrader={"grade":false,"grade_id":"utilization","locked":false,"schema_version":3,"solution":true}
def utilization(
    num_parameters: int, num_layers: int, attention_dim: int, seq: int, tokens_per_s: float, num_gpus: int,
    sheet_tflops: float, with_sparsity: bool, recompute: str, hardware: bool,
) -> float:
    """MFU or HFU, as a share.

    Args:
        tokens_per_s: of all GPUs together.
        sheet_tflops: the data sheet's TFLOP/s of one GPU.
        with_sparsity: whether that figure is with sparsity.
        recompute: "none" or "full".
        hardware: False for MFU, True for HFU.
    """
    ### BEGIN SOLUTION
    flops = 6 * num_parameters + 12 * num_layers * attention_dim * seq
    if hardware and recompute == "full":
        flops *= 4 / 3
    peak = sheet_tflops * 1e12
    if with_sparsity:
        peak /= 2
    return flops * tokens_per_s / (num_gpus * peak)
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"mfu_check","locked":true,"points":4,"schema_version":3,"solution":false}
result = checks.run("flops_accounting/2", utilization)
### BEGIN HIDDEN TESTS
result &= checks.run("flops_accounting/2", utilization, gpus=3072, tokens=98_765, seq=4096)
### END HIDDEN TESTS
result.award(4)

# %% [markdown]
# ## Part 3. Every token counts once
#
# A batch of millions of tokens does not fit. It is computed in micro-batches whose gradients add up in `.grad`. But a
# loss is a *mean*, and micro-batches have different numbers of tokens with a target (others are padding or prompts;
# their target is $-100$).
#
# A small example: 2 tokens with a loss of 1.0 each in one micro-batch, 6 tokens of 3.0 in another.
#
# **Predict**: what is the mean loss of the batch? And the mean of the two means?
#
# It is $(2 \cdot 1 + 6 \cdot 3) / 8 = 2.5$, not 2. Libraries in wide use computed the latter until October 2024.

# %% [markdown]
# Write `accumulate`. After it, each parameter's `.grad` must hold the gradient of the mean loss over all tokens of all
# micro-batches that have a target, and it returns that loss. What must hold:
#
# - gradients of the step before do not remain;
# - a micro-batch without any target adds nothing;
# - one micro-batch is in memory at a time, forward and backward;
# - the weights stay as they are: the update is the optimizer's.

# %% nbgrader={"grade":false,"grade_id":"accumulate","locked":false,"schema_version":3,"solution":true}
def accumulate(model: nn.Module, micro_batches: list[tuple[Tensor, Tensor]]) -> float:
    """Leave the gradient of the mean loss over all targets in the parameters' .grad.

    Args:
        model: from tokens (rows, seq) to logits (rows, seq, vocabulary).
        micro_batches: tokens and targets, (rows, seq) each; -100 where there is no target.

    Returns:
        The mean loss over all targets.

    TASKS
    1. How many targets are there in all?
    2. For each micro-batch: what is its part of the mean?
    """
    ### BEGIN SOLUTION
    model.zero_grad()
    total = sum(int((targets != -100).sum()) for _, targets in micro_batches)
    mean = 0.0
    for tokens, targets in micro_batches:
        logits = model(tokens).flatten(0, 1)
        loss = F.cross_entropy(logits, targets.flatten(), ignore_index=-100, reduction="sum") / total
        loss.backward()
        mean += loss.item()
    return mean
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"accumulate_check","locked":true,"points":4,"schema_version":3,"solution":false}
result = checks.run("flops_accounting/3", accumulate)
### BEGIN HIDDEN TESTS
result &= checks.run("flops_accounting/3", accumulate, seed=295, counts=((8, 8, 1), (3,), (7, 2), (4, 4, 4, 1)))
### END HIDDEN TESTS
result.award(4)

# %% [markdown]
# ## Part 4. Days, dollars, megawatt-hours
#
# Time is a count over a rate. Write the units next to each number and see that they cancel:
#
# $$\frac{\text{FLOP}}{\text{GPUs} \cdot \text{FLOP/s}} = \text{s}$$
#
# Mind what the rate counts. Papers often report what a GPU *executes*. With full recomputation that is 8 FLOP per
# parameter and token, where the model needs 6; then the count must be $8ND$. (Attention is left out here.)
#
# **Predict**: does GPT-3 take days, weeks or months on 1,024 A100s, at 140 TFLOP/s with full recomputation?

# %% [markdown]
# A GPU-hour has a price; a GPU draws power; and a data centre takes **PUE** times what its servers take, for cooling
# and losses. A megawatt-hour is $10^6$ watts for an hour.
#
# A small example: 2 GPUs of 500 W for 10 days at PUE 1.5 take $2 \cdot 500 \cdot 240 \cdot 1.5 = 360{,}000$ Wh, that
# is 0.36 MWh.
#
# Write all three.

# %% nbgrader={"grade":false,"grade_id":"bill","locked":false,"schema_version":3,"solution":true}
def training_days(
    num_parameters: int, num_tokens: int, num_gpus: int, tflops_per_gpu: float, recompute: str
) -> float:
    """Days of training; tflops_per_gpu is what one GPU executes, in TFLOP/s; recompute is "none" or "full"."""
    ### BEGIN SOLUTION
    factor = 8 if recompute == "full" else 6
    seconds = factor * num_parameters * num_tokens / (num_gpus * tflops_per_gpu * 1e12)
    return seconds / 86_400
    ### END SOLUTION


def price_usd(days: float, num_gpus: int, usd_per_gpu_hour: float) -> float:
    """US dollars for all GPUs."""
    ### BEGIN SOLUTION
    return days * 24 * num_gpus * usd_per_gpu_hour
    ### END SOLUTION


def energy_mwh(days: float, num_gpus: int, watts_per_gpu: float, pue: float) -> float:
    """Megawatt-hours that the data centre takes."""
    ### BEGIN SOLUTION
    return days * 24 * num_gpus * watts_per_gpu * pue / 1e6
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"bill_check","locked":true,"points":3,"schema_version":3,"solution":false}
result = checks.run("flops_accounting/4", (training_days, price_usd, energy_mwh))
### BEGIN HIDDEN TESTS
hidden = {"gpus": 3072, "billions": 1008, "tokens_billions": 450, "tflops": 163}
result &= checks.run("flops_accounting/4", (training_days, price_usd, energy_mwh), **hidden)
### END HIDDEN TESTS
result.award(3)

# %% [markdown]
# Once the check passes: what would GPT-3 cost on more GPUs? The price of a GPU-hour, 2 dollars, is an assumption.

# %% nbgrader={"grade":false,"grade_id":"draw_days","locked":true,"schema_version":3,"solution":false}
if result.passed:
    counts = [256, 512, 1024, 2048, 4096]
    days = [training_days(175_000_000_000, 300_000_000_000, n, 140, "full") for n in counts]
    fig, axes = plt.subplots(figsize=(5, 2.2))
    axes.loglog(counts, days, "o-", color="#0072B2")
    for n, d in zip(counts, days):
        axes.annotate(f"{d:.0f} days, ${price_usd(d, n, 2) / 1e6:.1f}M", (n, d), fontsize=8)
    axes.set(xlabel="A100s", ylabel="days", xlim=(200, 14_000))
    plt.show()

# %% [markdown]
# *The picture, if your formulas are right: a straight line on logarithmic axes. Twice the GPUs, half the days, the same
# price. It is too good: with more GPUs each one waits longer for the others, and MFU falls.*
#
# ## Summary
#
# - Training takes 6 FLOP per parameter and token; a tied table counts once; attention comes on top, in proportion to
#   the context.
# - MFU counts what the model needs, HFU what is executed. The peak is the dense one.
# - A mean over micro-batches is weighted by their tokens.
# - A count over a rate is a time. Say what the rate counts.
# - **To take away**: a run reports 60% HFU and another 50% MFU. Which one trains faster, if the first one recomputes
#   everything?
