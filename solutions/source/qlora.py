# %% [markdown]
# # Exercise: Train beside four bits
#
# A model in 4 bits is small, but it cannot be trained: an update is far smaller than the step from one level to the
# next. QLoRA freezes it and trains a thin adapter beside each matrix. You write the layer, count the bytes of a run,
# and move optimizer states in pages where memory runs short.
#
# | part | you write | points |
# |---|---|---|
# | 1 | a frozen 4-bit layer with an adapter | 6 |
# | 2 | the bytes of a run | 4 |
# | 3 | states in pages | 4 |
#
# Each part ends with a check. It says what is right, what is wrong and, where it can tell, why. Run it as often as you
# like. `checks.hint("qlora/1")` gives a hint, and `checks.hint("qlora/1", 2)` a bigger one.

# %% nbgrader={"grade":false,"grade_id":"setup","locked":true,"schema_version":3,"solution":false}
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from cme295lab.grading import checks
from cme295lab.quantization import nf4

# %% [markdown]
# ## Part 1. A frozen layer with an adapter
#
# $$ y = x W^\top + s \cdot (x A^\top) B^\top $$
#
# | | shape | stored in | trained |
# |---|---|---|---|
# | $W$ | (out, in) | 4 bits | no |
# | $A$ | (rank, in) | float32 | yes |
# | $B$ | (out, rank), 0 at first | float32 | yes |
# | $s$ | a number, $\alpha / r$ | | no |
#
# `weight.dequantize(dtype)` makes $W$ in full size from its 4 bits. The products run in the dtype of $x$ (bfloat16 in
# practice), and so is $y$.
#
# **Predict**: $W$ is frozen. Does the backward pass need it all the same? What for?

# %% [markdown]
# With the gradient $g$ of the output:
#
# | gradient of | is |
# |---|---|
# | $x$ | $g W + s \cdot (g B) A$ |
# | $A$ | $s \cdot (g B)^\top x$ |
# | $B$ | $s \cdot g^\top (x A^\top)$ |
#
# For the first line, autograd would keep $W$ in full size from the forward to the backward pass, in every layer at
# once: then 4 bits have saved nothing. So only the 4-bit weight is kept, and $W$ is **made twice**, once in each pass.
#
# A small example with $W = (2\ \ 1)$, $A = (1\ \ {-1})$, $B = (3)$, $s = 0.5$ and $x = (4\ \ 1)$:
# $y = 9 + 0.5 \cdot 3 \cdot 3 = 13.5$. With $g = 1$, the gradient of $x$ is $(2\ \ 1) + 1.5 \cdot (1\ \ {-1}) =
# (3.5\ \ {-0.5})$.

# %% [markdown]
# An `autograd.Function` has both passes: `forward(ctx, ...)` may store on `ctx` what `backward(ctx, g)` needs, and
# `backward` returns a value for each argument of `forward`, `None` where there is no gradient. The adapter needs none
# of this: plain PyTorch keeps only what is small.
#
# You may solve it in another way, too. The check looks at `qlora_linear` alone: its values, its gradients, and what is
# alive between the two passes.

# %% nbgrader={"grade":false,"grade_id":"linear","locked":false,"schema_version":3,"solution":true}
class FrozenProduct(torch.autograd.Function):
    """x W^T, with W dequantised in each pass."""

    @staticmethod
    def forward(ctx, x, weight):
        """TASK 1. The product; keep what backward needs, and nothing of W's full size."""
        ### BEGIN SOLUTION
        ctx.weight = weight
        return x @ weight.dequantize(x.dtype).T
        ### END SOLUTION

    @staticmethod
    def backward(ctx, g):
        """TASK 2. The gradients of forward's two arguments."""
        ### BEGIN SOLUTION
        return g @ ctx.weight.dequantize(g.dtype), None
        ### END SOLUTION

def qlora_linear(x: Tensor, weight, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """The layer's output, (..., out), in the dtype of x.

    Args:
        x: (..., in), float32 or bfloat16.
        weight: (out, in) in 4 bits; weight.dequantize(dtype) is a tensor.
        A, B: float32 (rank, in) and (out, rank), which are trained.
        scale: of the adapter's output.

    TASK
    3. The base, and the adapter.
    """
    ### BEGIN SOLUTION
    return FrozenProduct.apply(x, weight) + scale * (x @ A.to(x.dtype).T @ B.to(x.dtype).T)
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"linear_check","locked":true,"points":6,"schema_version":3,"solution":false}
result = checks.run("qlora/1", qlora_linear)
### BEGIN HIDDEN TESTS
result &= checks.run("qlora/1", qlora_linear, seed=295, tokens=5, in_features=192, out_features=96, rank=3)
### END HIDDEN TESTS
result.award(6)

# %% [markdown]
# Once the check passes: a matrix in 4 bits has an error, and an adapter learns to make up for a part of it.

# %%
if result.passed:
    generator = torch.Generator().manual_seed(0)
    W, x = torch.randn(64, 256, generator=generator) / 16, torch.randn(128, 256, generator=generator)
    weight = nf4.quantize(W, double_quant=True)
    A = (torch.randn(8, 256, generator=generator) / 16).requires_grad_()
    B = torch.zeros(64, 8).requires_grad_()
    optimizer = torch.optim.Adam([A, B], lr=0.003)
    for step in range(201):
        loss = (qlora_linear(x, weight, A, B, 2.0) - x @ W.T).square().mean()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.5f}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

# %% [markdown]
# ## Part 2. The bytes of a run
#
# What is there as long as training runs, activations not counted:
#
# | parameters | full fine-tuning | QLoRA |
# |---|---|---|
# | matrices of the layers | 12 bytes each | 4 bits each, and constants |
# | all others (embeddings, norms) | 12 bytes each | 2 bytes each, frozen |
# | adapters | | 16 bytes each |
#
# - 12 bytes: weight and gradient in 16 bits, and Adam's two states in float32.
# - 16 bytes: weight, gradient and both states in float32.
# - Constants, with double quantisation: 8 bits are shared by the weights of a **block**, and 32 bits by those of a
#   **group** of blocks.
#
# Each matrix of each layer has an adapter, $A$ of (rank, in) and $B$ of (out, rank).

# %% [markdown]
# A small example: 2 layers with one matrix of (8, 4) each, 10 other parameters, rank 1.
#
# | | full | QLoRA, with 4.127 bits |
# |---|---|---|
# | 64 weights | 768 | 33.02 |
# | 10 others | 120 | 20 |
# | 2 adapters of 12 | | 384 |
#
# The adapters are the largest part here: the matrices are tiny. Llama-2 7B has matrices of (4096, 4096).
#
# **Predict**: with rank 64, how many percent of its weights are those of the adapters? How many gigabytes does it take
# to train them?

# %% nbgrader={"grade":false,"grade_id":"bytes","locked":false,"schema_version":3,"solution":true}
def full_bytes(num_layers: int, matrices: list[tuple[int, int]], num_other: int) -> float:
    """Bytes of full fine-tuning.

    Args:
        num_layers: each has these matrices.
        matrices: the shapes (out, in) in one layer.
        num_other: parameters elsewhere.

    TASK
    1. Count parameters and bytes.
    """
    ### BEGIN SOLUTION
    base = num_layers * sum(rows * columns for rows, columns in matrices)
    return 12 * (base + num_other)
    ### END SOLUTION

def qlora_bytes(
    num_layers: int, matrices: list[tuple[int, int]], num_other: int, rank: int, block_size: int, group_size: int
) -> float:
    """Bytes of a run with QLoRA; the first arguments are the same.

    Args:
        rank: of all adapters.
        block_size: weights of a block.
        group_size: blocks of a group.

    TASK
    2. Base, others, adapters.
    """
    ### BEGIN SOLUTION
    base = num_layers * sum(rows * columns for rows, columns in matrices)
    adapters = num_layers * sum(rank * (rows + columns) for rows, columns in matrices)
    bits = 4 + 8 / block_size + 32 / (block_size * group_size)
    return base * bits / 8 + 2 * num_other + 16 * adapters
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"bytes_check","locked":true,"points":4,"schema_version":3,"solution":false}
result = checks.run("qlora/2", (full_bytes, qlora_bytes))
### BEGIN HIDDEN TESTS
result &= checks.run("qlora/2", (full_bytes, qlora_bytes), rank=8, block_size=128, group_size=512)
### END HIDDEN TESTS
result.award(4)

# %% [markdown]
# Once the check passes: LLaMA 65B. The paper says more than 780 GB in full, and less than 48 with QLoRA.

# %%
if result.passed:
    matrices = [(8192, 8192)] * 4 + [(22016, 8192)] * 2 + [(8192, 22016)]
    model = {"num_layers": 80, "matrices": matrices, "num_other": 2 * 32000 * 8192 + 161 * 8192}
    print(f"in full: {full_bytes(**model) / 1e9:.0f} GB")
    for rank in (8, 64, 256):
        print(f"rank {rank}: {qlora_bytes(**model, rank=rank, block_size=64, group_size=256) / 1e9:.1f} GB")

# %% [markdown]
# ## Part 3. States in pages
#
# A long sequence makes activations grow for one step, and memory runs out. A **paged optimizer** keeps its states in
# the CPU's memory, and pages of them on the GPU as far as the budget goes:
#
# - A page that is **used** must be on the GPU. If it is not, it is **read** ("in"). At first, none is there.
# - Without room for it, pages are **evicted** ("out") before, one after the other, until it fits. The one that was
#   **not used for longest** goes first.
# - States change with each use. So an evicted page is **written back**.
# - The budget may be filled to the last byte. What is on the GPU at the end stays there.

# %% [markdown]
# A small example with a budget of 5 bytes. The pages a and b have 2 bytes, c has 3:
#
# | use | a | b | a | c | b |
# |---|---|---|---|---|---|
# | moves | in a | in b | | out b, in c | out a, in b |
# | on the GPU, the last used at the end | a | a b | b a | a c | c b |
#
# Bytes moved: $2 + 2 + (2 + 3) + (2 + 2) = 13$.
#
# **Predict**: Adam uses all pages in order, in each step. All but one of them fit. How many moves are there in a step?

# %% nbgrader={"grade":false,"grade_id":"pages","locked":false,"schema_version":3,"solution":true}
def page_moves(
    uses: list[str], page_bytes: dict[str, int], budget_bytes: int
) -> tuple[list[tuple[str, str]], int]:
    """What moves between CPU and GPU.

    Args:
        uses: the pages, in the order of their uses.
        page_bytes: the size of each; none is larger than the budget.
        budget_bytes: room on the GPU.

    Returns:
        (moves, moved_bytes): ("in", page) and ("out", page) in order, and the bytes of all of them.

    TASKS
    1. A page that is there; one that is not, but fits; one that does not.
    2. The bytes.
    """
    ### BEGIN SOLUTION
    moves, present = [], []
    for page in uses:
        if page in present:
            present.remove(page)
        else:
            while sum(page_bytes[other] for other in present) + page_bytes[page] > budget_bytes:
                moves.append(("out", present.pop(0)))
            moves.append(("in", page))
        present.append(page)
    return moves, sum(page_bytes[page] for _, page in moves)
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"pages_check","locked":true,"points":4,"schema_version":3,"solution":false}
result = checks.run("qlora/3", page_moves)
### BEGIN HIDDEN TESTS
result &= checks.run("qlora/3", page_moves, seed=295, num_uses=80, size=7)
### END HIDDEN TESTS
result.award(4)

# %% [markdown]
# Once the check passes: ten steps of Adam over eight pages, with room for fewer and fewer.

# %%
if result.passed:
    pages = dict.fromkeys("abcdefgh", 1)
    rooms = range(1, 10)
    moved = [page_moves(list("abcdefgh") * 10, pages, room)[1] / 10 for room in rooms]
    figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
    axes.bar(rooms, moved, color="#0072B2")
    axes.set(xlabel="pages that fit", ylabel="pages moved a step", xticks=list(rooms))
    plt.show()

# %% [markdown]
# ## Summary
#
# - The 4-bit base is frozen; gradients run through it all the same. It is dequantised in both passes and never kept.
# - Adapters stay in float32 beside it: they are what is trained, and small.
# - Gradients and Adam's states exist for adapters alone: 12 bytes a parameter become about half a byte.
# - Pages help in spikes. If the states never fit, a walk over them in order moves every page in each step.
# - **To take away**: with evicting the page used *last*, how many moves would that walk make? When is it the better
#   rule?
