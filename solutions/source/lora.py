# %% [markdown]
# # Exercise: A thin road beside the wide one
#
# LoRA leaves a model's weights as they are and learns a small correction beside each. What is trained is often
# less than a percent of the model; afterwards it goes into the weights and costs nothing, or stays beside them, one for
# each customer.
# You build the layer, merge it, count it, and serve two adapters from one base.
#
# | part | you write | points |
# |---|---|---|
# | 1 | a linear layer with an adapter | 5 |
# | 2 | merging, and its undoing | 4 |
# | 3 | how much there is to train | 2 |
# | 4 | an adapter for each example of a batch | 4 |
#
# Each part ends with a check. It says what is right, what is wrong and, where it can tell, why. Run it as often as you
# like. `checks.hint("lora/1")` gives a hint, and `checks.hint("lora/1", 2)` a bigger one.

# %% nbgrader={"grade":false,"grade_id":"setup","locked":true,"schema_version":3,"solution":false}
import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from cme295lab.grading import checks

# %% [markdown]
# ## Part 1. A correction that is learned
#
# A linear layer computes $W x + b$. With an adapter it computes
#
# $$ W x + b + \frac{\alpha}{r} B A x $$
#
# - $A$ is $r \times$ in: it makes $r$ numbers of $x$. $B$ is out $\times\, r$. The **rank** $r$ is small.
# - $A$ begins *random*, $B$ begins at *zero*.
# - $W$ and $b$ are **frozen**: nothing but $A$ and $B$ is trained.
#
# A small example: $x = (1, 2)$, $A = (3, 1)$, $B = (2, 0)^T$, $\alpha = 4$ and $r = 1$. $A x = 5$, $B A x = (10, 0)^T$,
# and the adapter adds $(40, 0)^T$.

# %% [markdown]
# **Predict**: after one step of training from the start, which of $A$ and $B$ has changed? And which would if both
# began at zero?
#
# Mind three things:
#
# - `nn.Module` finds an `nn.Parameter` that is an attribute. A plain tensor it does not find.
# - Dropout, where there is some, lies on the way to $A$ alone: $B A\, \mathrm{dropout}(x)$.
# - $x$ may have any number of dimensions before the last.

# %% nbgrader={"grade":false,"grade_id":"layer","locked":false,"schema_version":3,"solution":true}
class LoRALinear(nn.Module):
    """A frozen linear layer with an adapter that is trained.

    Args:
        base: the layer, with or without bias.
        rank: r.
        alpha: the adapter's product is multiplied by alpha / rank.
        dropout: probability with which a number of the adapter's input is dropped in training.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float = 0.0) -> None:
        """TASK 1. Freeze the base; make A, B and the dropout."""
        super().__init__()
        ### BEGIN SOLUTION
        self.base = base
        for parameter in base.parameters():
            parameter.requires_grad_(False)
        self.A = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.B = nn.Parameter(torch.zeros(base.out_features, rank))
        self.dropout = nn.Dropout(dropout)
        self.scale = alpha / rank
        ### END SOLUTION

    def forward(self, x: Tensor) -> Tensor:
        """TASK 2. The base's output and the adapter's; float32 (..., in_features) to (..., out_features)."""
        ### BEGIN SOLUTION
        return self.base(x) + self.scale * (self.dropout(x) @ self.A.T @ self.B.T)
        ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"layer_check","locked":true,"points":5,"schema_version":3,"solution":false}
result = checks.run("lora/1", LoRALinear)
### BEGIN HIDDEN TESTS
result &= checks.run("lora/1", LoRALinear, seed=295, in_features=9, out_features=12, rank=5, alpha=12.0)
### END HIDDEN TESTS
result.award(5)

# %% [markdown]
# Once the check passes: a base that is off by a matrix of rank 4, and adapters of rank 1, 4 and 8 that make up for it.

# %%
if result.passed:
    torch.manual_seed(0)
    x, off = torch.randn(256, 32), torch.randn(24, 4) @ torch.randn(4, 32) / 8
    figure, axes = plt.subplots(figsize=(5, 2.6), layout="constrained")
    for rank, colour in ((1, "#D55E00"), (4, "#0072B2"), (8, "#009E73")):
        layer, losses = LoRALinear(nn.Linear(32, 24), rank, 2.0 * rank), []
        wanted = layer(x).detach() + x @ off.T
        optimizer = torch.optim.Adam([p for p in layer.parameters() if p.requires_grad], lr=0.02)
        for _ in range(150):
            losses.append((layer(x) - wanted).square().mean())
            optimizer.zero_grad(), losses[-1].backward(), optimizer.step()
        axes.semilogy([loss.item() for loss in losses], color=colour, label=f"rank {rank}")
    axes.set(xlabel="step", ylabel="mean squared error"), axes.legend()
    plt.show()

# %% [markdown]
# ## Part 2. Into the weight, and out again
#
# $W x + s B A x = (W + s B A)\, x$, where $s$ is the scale. So a trained adapter can be **merged** into the weight: the
# model is as fast as before. **Unmerging** takes it out again, to train on or to merge another one.
#
# The check brings layers of its own. They have
#
# - `layer.base`, an `nn.Linear` whose weight is frozen;
# - `layer.A` (rank, in), `layer.B` (out, rank) and the number `layer.scale`;
# - `layer.dropout`, for training;
# - `layer.merged`: where it is True, `layer(x)` is `layer.base(x)` alone.
#
# A small example: $W = (1, 1)$, $s = 2$, $B = 3$ and $A = (1, 0)$. Merged: $(1, 1) + 2 \cdot 3 \cdot (1, 0) = (7, 1)$.

# %% [markdown]
# **Predict**: in bfloat16, would unmerging give back the same $W$, bit by bit?
#
# Mind three things:
#
# - Both functions change the layer itself, its weight and `merged`, and return nothing.
# - Merging what is merged changes nothing. Nor does unmerging what is not.
# - The weight stays a frozen parameter, without a graph. $A$ and $B$ stay as they are.

# %% nbgrader={"grade":false,"grade_id":"merge","locked":false,"schema_version":3,"solution":true}
def merge(layer: nn.Module) -> None:
    """Put the adapter into layer.base.weight, unless it is in it.

    TASK
    1. The product, the weight, the flag.
    """
    ### BEGIN SOLUTION
    if not layer.merged:
        with torch.no_grad():
            layer.base.weight += layer.scale * layer.B @ layer.A
        layer.merged = True
    ### END SOLUTION

def unmerge(layer: nn.Module) -> None:
    """Take the adapter out of layer.base.weight, if it is in it.

    TASK
    2. The way back.
    """
    ### BEGIN SOLUTION
    if layer.merged:
        with torch.no_grad():
            layer.base.weight -= layer.scale * layer.B @ layer.A
        layer.merged = False
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"merge_check","locked":true,"points":4,"schema_version":3,"solution":false}
result = checks.run("lora/2", (merge, unmerge))
### BEGIN HIDDEN TESTS
result &= checks.run("lora/2", (merge, unmerge), seed=295, sizes=(8, 5, 2), scale=0.75)
### END HIDDEN TESTS
result.award(4)

# %% [markdown]
# ## Part 3. What there is to train
#
# A model has the same matrices in each of its blocks. Some or all of them get an adapter of one rank.
#
# A small example: one matrix with out = 3 and in = 4, rank 2, one block. $A$ has $2 \cdot 4$ numbers and $B$ has
# $3 \cdot 2$: 14 together. The matrix itself has 12: with such a rank nothing is saved.
#
# **Predict**: Llama 2 7B has, in each of 32 blocks, four matrices of 4096 by 4096 and three of 11008 by 4096. How many
# percent of its 6.7 billion parameters is an adapter of rank 16 on all of them?

# %% nbgrader={"grade":false,"grade_id":"count","locked":false,"schema_version":3,"solution":true}
def num_lora_parameters(shapes: list[tuple[int, int]], rank: int, num_layers: int) -> int:
    """How many numbers are trained.

    Args:
        shapes: (out_features, in_features) of the matrices of a block that get an adapter.
        rank: of each adapter.
        num_layers: blocks of the model.

    TASK
    1. A and B of each matrix, in each block.
    """
    ### BEGIN SOLUTION
    return num_layers * sum(rank * (out_features + in_features) for out_features, in_features in shapes)
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"count_check","locked":true,"points":2,"schema_version":3,"solution":false}
result = checks.run("lora/3", num_lora_parameters)
### BEGIN HIDDEN TESTS
result &= checks.run("lora/3", num_lora_parameters, rank=24, num_layers=80)
### END HIDDEN TESTS
result.award(2)

# %% [markdown]
# Once the check passes: what training Llama 2 7B asks for. Weights in 16 bits; gradient, master and two moments in
# float32 for each parameter that is trained.

# %%
if result.passed:
    shapes = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]
    print(f"everything: {(2 + 16) * 6.74:.0f} GB")
    for rank in (1, 16, 256):
        count = num_lora_parameters(shapes, rank, 32)
        print(f"rank {rank}: {count / 6.74e9:.2%} trained, {2 * 6.74 + 16 * count / 1e9:.1f} GB")

# %% [markdown]
# ## Part 4. One base, many adapters
#
# A server holds one base and an adapter for each customer. A batch has examples of several: none of them is merged, and
# the base's product is computed for all at once. Example $i$ gets
#
# $$ W x_i + s_k B_k A_k x_i \quad \text{with} \quad k = \mathrm{adapter}_i $$
#
# A small example: with `adapter = [1, 0, -1]`, the first example uses adapter 1, the second one adapter 0, and the
# third one the base alone: **-1** means no adapter.
#
# **Predict**: what does `A[-1]` give in PyTorch, and why would nobody notice?

# %% nbgrader={"grade":false,"grade_id":"batch","locked":false,"schema_version":3,"solution":true}
def batched_lora(x: Tensor, weight: Tensor, A: Tensor, B: Tensor, scales: Tensor, adapter: Tensor) -> Tensor:
    """The output of a linear layer, with an adapter for each example.

    Args:
        x: float32 (batch, length, in).
        weight: float32 (out, in), the base's.
        A: float32 (adapters, rank, in).
        B: float32 (adapters, out, rank).
        scales: float32 (adapters,).
        adapter: int64 (batch,), the number of each example's adapter; -1 for none.

    Returns:
        float32 (batch, length, out), in the order of x, with gradients for A and B.

    TASKS
    1. The base, for all.
    2. Each example's A, B and scale; mind -1.
    """
    ### BEGIN SOLUTION
    index = adapter.clamp(min=0)
    scale = torch.where(adapter < 0, 0.0, scales[index])
    added = x @ A[index].mT @ B[index].mT
    return x @ weight.T + scale[:, None, None] * added
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"batch_check","locked":true,"points":4,"schema_version":3,"solution":false}
result = checks.run("lora/4", batched_lora)
### BEGIN HIDDEN TESTS
result &= checks.run("lora/4", batched_lora, seed=295, num_adapters=4, sizes=(5, 8, 2), length=3)
### END HIDDEN TESTS
result.award(4)

# %% [markdown]
# Once the check passes: the arithmetic that an adapter adds to a product with a matrix of 4096 by 4096.

# %%
if result.passed:
    for rank in (1, 16, 256):
        print(f"rank {rank}: {rank * (4096 + 4096) / 4096**2:.2%} more multiplications")

# %% [markdown]
# ## Summary
#
# - At the start an adapter adds nothing: $B$ is zero. $A$ is random, so that $B$ has a gradient.
# - Merged, it costs nothing. Unmerged, one base serves many adapters.
# - It trains $r \cdot (\mathrm{in} + \mathrm{out})$ numbers a matrix. The memory that is saved is that of gradients and
#   optimizer states; the weights stay.
# - **To take away**: the rank limits what can be learned. How would you find out that it is too small?
