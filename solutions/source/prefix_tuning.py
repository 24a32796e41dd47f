# %% [markdown]
# # Exercise: A prefix is all that is trained
#
# A frozen model can be steered by what stands before the text. Prefix tuning learns that part: not words, but keys
# and values in every layer. You write the attention that sees them, count what is trained, and build the MLP that
# makes the prefix in training and is thrown away afterwards.
#
# | part | you write | points |
# |---|---|---|
# | 1 | attention with a prefix | 6 |
# | 2 | parameters, counted | 3 |
# | 3 | an MLP that is dropped | 5 |
#
# Each part ends with a check. It says what is right, what is wrong and, where it can tell, why. Run it as often as you
# like. `checks.hint("prefix_tuning/1")` gives a hint, and `checks.hint("prefix_tuning/1", 2)` a bigger one.

# %% nbgrader={"grade":false,"grade_id":"setup","locked":true,"schema_version":3,"solution":false}
import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from cme295lab.grading import checks

# %% [markdown]
# ## Part 1. Keys and values in front
#
# A prefix of `length` positions has a key and a value for each head of each layer. They stand before those of the
# tokens:
#
# - A token sees **all of the prefix**, and the tokens up to itself.
# - One softmax runs over both. Scores are divided by $\sqrt{\text{dim}}$ of a head, as ever.
# - The prefix has **no queries**: nothing reads its output.
# - It has no batch dimension: all texts share it.
#
# A small example: one head, all queries 0, so that each visible key has the same weight. The prefix has one value, 6,
# and two tokens have the values 0 and 3. The first token gets $(6 + 0)/2 = 3$, the second $(6 + 0 + 3)/3 = 3$.
#
# **Predict**: how many entries of the scores are visible with 2 tokens and a prefix of 3?

# %% [markdown]
# Where do the tokens stand? There are two conventions, and a model that was tuned with one must be run with the same:
#
# | | positions of 3 tokens behind a prefix of 2 |
# |---|---|
# | **shifted**: the prefix takes positions, as a KV cache does | 2, 3, 4 |
# | not shifted: the prefix takes none | 0, 1, 2 |
#
# **Predict**: which of them leaves the model's distances between tokens as they were? Which takes positions away from
# a long text?

# %% nbgrader={"grade":false,"grade_id":"attention","locked":false,"schema_version":3,"solution":true}
def prefix_attention(q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor) -> Tensor:
    """Causal attention behind a prefix, (batch, heads, tokens, dim).

    Args:
        q, k, v: (batch, heads, tokens, dim).
        prefix_k, prefix_v: (heads, length, dim), which are trained; length may be 0.

    TASKS
    1. Keys and values of prefix and tokens.
    2. What does each token see?
    """
    ### BEGIN SOLUTION
    batch, _, tokens, dim = q.shape
    length = prefix_k.shape[1]
    keys = torch.cat((prefix_k.expand(batch, -1, -1, -1), k), dim=2)
    values = torch.cat((prefix_v.expand(batch, -1, -1, -1), v), dim=2)
    visible = torch.ones(tokens, length + tokens, dtype=torch.bool).tril(length)
    scores = q @ keys.transpose(2, 3) / dim**0.5
    return scores.masked_fill(~visible, -torch.inf).softmax(dim=-1) @ values
    ### END SOLUTION

def token_positions(num_tokens: int, prefix_length: int, shifted: bool) -> Tensor:
    """The tokens' positions, whole numbers (num_tokens,).

    TASK
    3. With and without a shift.
    """
    ### BEGIN SOLUTION
    return torch.arange(num_tokens) + (prefix_length if shifted else 0)
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"attention_check","locked":true,"points":6,"schema_version":3,"solution":false}
result = checks.run("prefix_tuning/1", (prefix_attention, token_positions))
### BEGIN HIDDEN TESTS
hidden = {"seed": 295, "heads": 2, "tokens": 5, "dim": 6, "length": 3}
result &= checks.run("prefix_tuning/1", (prefix_attention, token_positions), **hidden)
### END HIDDEN TESTS
result.award(6)

# %% [markdown]
# Once the check passes: with the value 1 in the prefix and 0 in the tokens, the output *is* the share of attention that
# the prefix gets.

# %%
if result.passed:
    figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 64, 1, 40, 16, generator=generator)
    for length, color in ((1, "#56B4E9"), (5, "#0072B2"), (20, "#D55E00")):
        prefix_k = torch.randn(1, length, 16, generator=generator)
        share = prefix_attention(q, k, torch.zeros_like(k), prefix_k, torch.ones_like(prefix_k))
        axes.plot(share.mean((0, 1, 3)), color=color, label=f"prefix of {length}")
    axes.set(xlabel="token", ylabel="share of the prefix", ylim=(0, 1))
    axes.legend()
    plt.show()

# %% [markdown]
# *The picture, if your function is right: three curves fall from left to right. The longer the prefix, the higher its
# curve.*
#
# ## Part 2. Few parameters, counted
#
# What each method trains:
#
# | method | trained |
# |---|---|
# | prefix tuning | keys and values of `length` positions in each layer, of all key/value heads |
# | prompt tuning | embeddings of `length` positions, before the first layer only |
# | adapters (Houlsby) | in each layer two networks: from `dim` down to `bottleneck`, up again, each with a bias |
# | prefix tuning, while it is trained | see below |
#
# In training, an MLP makes the prefix. Embeddings of (length, dim) go into one hidden layer, from `dim` to `hidden`,
# and from there to the keys and values of all layers, $2 \cdot L \cdot \text{dim}$ numbers. Both matrices have a bias.

# %% [markdown]
# A small example with 2 layers, 2 heads of 2 numbers (so dim is 4), all of them with keys and values, a length of 3, a
# bottleneck of 1 and a hidden width of 5:
#
# | | |
# |---|---|
# | prefix | $2 \cdot 2 \cdot 3 \cdot 4 = 48$ |
# | prompt | $3 \cdot 4 = 12$ |
# | adapters | $2 \cdot 2 \cdot (2 \cdot 4 \cdot 1 + 4 + 1) = 52$ |
# | in training | $12 + 25 + 96 = 133$ |
#
# **Predict**: GPT-2 medium has 355 million parameters, 24 layers and a width of 1024. How many percent is a prefix of
# 10? And how many the MLP that makes it, with a hidden width of 512?

# %% nbgrader={"grade":false,"grade_id":"counts","locked":false,"schema_version":3,"solution":true}
def prefix_parameters(num_layers: int, length: int, num_heads: int, num_kv_heads: int, head_dim: int) -> int:
    """TASK 1. A prefix; `num_heads` have queries, `num_kv_heads` have keys and values."""
    ### BEGIN SOLUTION
    return 2 * num_layers * length * num_kv_heads * head_dim
    ### END SOLUTION

def prompt_parameters(length: int, dim: int) -> int:
    """TASK 2. Prompt tuning."""
    ### BEGIN SOLUTION
    return length * dim
    ### END SOLUTION

def adapter_parameters(num_layers: int, dim: int, bottleneck: int) -> int:
    """TASK 3. Adapters."""
    ### BEGIN SOLUTION
    return 2 * num_layers * (2 * dim * bottleneck + dim + bottleneck)
    ### END SOLUTION

def training_parameters(num_layers: int, length: int, dim: int, hidden: int) -> int:
    """TASK 4. Embeddings and MLP, while a prefix is trained."""
    ### BEGIN SOLUTION
    return length * dim + (dim + 1) * hidden + (hidden + 1) * 2 * num_layers * dim
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"counts_check","locked":true,"points":3,"schema_version":3,"solution":false}
counts = (prefix_parameters, prompt_parameters, adapter_parameters, training_parameters)
result = checks.run("prefix_tuning/2", counts)
### BEGIN HIDDEN TESTS
result &= checks.run("prefix_tuning/2", counts, length=100, bottleneck=8)
### END HIDDEN TESTS
result.award(3)

# %% [markdown]
# Once the check passes: what each of them trains of GPT-2 medium.

# %%
if result.passed:
    rows = {
        "prefix of 10": prefix_parameters(24, 10, 16, 16, 64),
        "prompt of 10": prompt_parameters(10, 1024),
        "adapters of 64": adapter_parameters(24, 1024, 64),
        "the prefix's MLP": training_parameters(24, 10, 1024, 512),
    }
    for name, number in rows.items():
        print(f"{name:17} {number:>10,}  {number / 355e6:7.3%}")

# %% [markdown]
# ## Part 3. The MLP that is dropped
#
# Trained directly, a prefix learns badly: Li and Liang found it sensitive to the learning rate and the first values.
# So its numbers are **reparametrised**: embeddings and an MLP are trained, and the prefix is what comes out. Nothing
# of a text goes in. So once training ends, the prefix is a constant: it is computed once and kept, and the MLP is
# dropped.
#
# `mlp(embeddings)` has a row for each position. In a row, layer after layer has its keys and then its values, each of
# them head after head. Attention wants (num_layers, 2, num_heads, length, head_dim), keys at 0 and values at 1.

# %% [markdown]
# A small example with one layer, one head of 2 numbers, and 2 positions:
#
# | | row |
# |---|---|
# | position 0 | 1, 2, 3, 4 |
# | position 1 | 5, 6, 7, 8 |
#
# The keys are (1, 2) and (5, 6), the values (3, 4) and (7, 8).
#
# **Predict**: `mlp(embeddings).view(1, 2, 1, 2, 2)` has the right shape. What are its keys?
#
# Three functions:
#
# - `make_prefix`: used in each step of training.
# - `keep_prefix`: what is stored in the end. It must not hang on the MLP, which could not be freed then.
# - `trainable`: freezes the base model, so that autograd makes no gradients for it, and returns what the optimizer
#   gets.

# %% nbgrader={"grade":false,"grade_id":"encoder","locked":false,"schema_version":3,"solution":true}
def make_prefix(embeddings: Tensor, mlp: nn.Module, num_layers: int, num_heads: int) -> Tensor:
    """TASK 1. The prefix, (num_layers, 2, num_heads, length, head_dim).

    Args:
        embeddings: (length, dim).
        mlp: from (length, dim) to (length, 2 * num_layers * dim).
        num_layers, num_heads: of the base model.
    """
    ### BEGIN SOLUTION
    rows = mlp(embeddings)
    return rows.view(len(rows), num_layers, 2, num_heads, -1).permute(1, 2, 3, 0, 4)
    ### END SOLUTION

def keep_prefix(embeddings: Tensor, mlp: nn.Module, num_layers: int, num_heads: int) -> Tensor:
    """TASK 2. The same numbers, and nothing of the MLP."""
    ### BEGIN SOLUTION
    return make_prefix(embeddings, mlp, num_layers, num_heads).detach().clone()
    ### END SOLUTION

def trainable(base: nn.Module, embeddings: nn.Parameter, mlp: nn.Module) -> list[nn.Parameter]:
    """TASK 3. Freeze the base; return the parameters that are trained."""
    ### BEGIN SOLUTION
    base.requires_grad_(False)
    return [embeddings, *mlp.parameters()]
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"encoder_check","locked":true,"points":5,"schema_version":3,"solution":false}
result = checks.run("prefix_tuning/3", (make_prefix, keep_prefix, trainable))
### BEGIN HIDDEN TESTS
functions = (make_prefix, keep_prefix, trainable)
result &= checks.run("prefix_tuning/3", functions, seed=295, num_layers=2, num_heads=3, head_dim=4, length=6)
### END HIDDEN TESTS
result.award(5)

# %% [markdown]
# Once the check passes: a prefix for four layers, before and after the MLP is dropped.

# %%
if result.passed:
    torch.manual_seed(0)
    embeddings = nn.Parameter(torch.randn(10, 64))
    mlp = nn.Sequential(nn.Linear(64, 512), nn.Tanh(), nn.Linear(512, 2 * 4 * 64))
    kept = keep_prefix(embeddings, mlp, 4, 4)
    numbers = sum(parameter.numel() for parameter in trainable(nn.Linear(64, 64), embeddings, mlp))
    print(f"trained: {numbers:,} numbers, kept: {kept.numel():,}")
    print("the same prefix:", torch.equal(kept, make_prefix(embeddings, mlp, 4, 4)))

# %% [markdown]
# ## Summary
#
# - A prefix is keys and values: visible to every token, without queries, in one softmax with the rest.
# - Tokens behind it may be shifted or not. A tuned prefix works with the convention that it was tuned with.
# - $2 L l d$ numbers are stored for a task: 0.14 % of GPT-2 medium for a prefix of 10.
# - An MLP makes the prefix in training, and is dropped: it depends on no text.
# - **To take away**: LoRA can be merged into the weights and costs nothing at inference. What does a prefix of 100
#   cost, in memory and in time?
