# %% [markdown]
# # Exercise: ZeRO, by hand
#
# Data parallelism repeats everything on every rank: weights, gradients, optimizer states. ZeRO divides them instead.
# You build the two ends of it, on real processes.
#
# | part | you write | points |
# |---|---|---|
# | 1 | the shard of a rank, and the way back | 3 |
# | 2 | stage 1: an optimizer that keeps states for its shard alone | 5 |
# | 3 | stage 3: a layer whose weight is whole only while it is needed | 6 |
#
# Each part ends with a check that measures what your code holds and counts what it sends. Run it as often as you like.
# `checks.hint("zero_sharding/1")` gives a hint, and `checks.hint("zero_sharding/1", 2)` a bigger one.

# %% nbgrader={"grade":false,"grade_id":"setup","locked":true,"schema_version":3,"solution":false}
import matplotlib.pyplot as plt
import torch
import torch.distributed as dist
from torch import Tensor, nn

from cme295lab.grading import checks
from cme295lab.parallel import run_distributed

# %% [markdown]
# ## Part 1. Equal shards
#
# Collectives want equal pieces, whatever the shapes are. So all tensors are laid one after the other into a row; zeros
# fill it up until the number of ranks divides it; rank $r$ gets the $r$-th of $N$ equal pieces.

# %% nbgrader={"grade":false,"grade_id":"shards_picture","locked":true,"schema_version":3,"solution":false}
fig, axes = plt.subplots(figsize=(6, 1.5))
parts = {"weight, 3 × 3": (0, 9), "bias, 3": (9, 3), "2 × 1": (12, 2), "zeros": (14, 2)}
for (name, (start, length)), colour in zip(parts.items(), ("#56B4E9", "#E69F00", "#009E73", "#DDDDDD")):
    axes.barh(0, length, left=start, color=colour, edgecolor="white")
    axes.text(start + length / 2, 0, name, ha="center", va="center", fontsize=8)
for rank in range(4):
    axes.text(4 * rank + 2, -0.75, f"rank {rank}", ha="center")
    axes.axvline(4 * rank + 4, color="black")
axes.set(xlim=(0, 16), ylim=(-1, 0.5), yticks=[], xticks=range(0, 17, 4), xlabel="element of the row")
plt.show()

# %% [markdown]
# *The picture: 14 elements of three tensors in a row, and two zeros. Four ranks get four elements each. The cuts go
# through the middle of tensors.*
#
# **Predict**: with 14 elements and 5 ranks, how long is a shard, and how many zeros are there?
#
# Write both ways. One thing to watch: a slice of a tensor is a *view*, which keeps all of the tensor in memory. Then
# nothing is saved.

# %% nbgrader={"grade":false,"grade_id":"shards","locked":false,"schema_version":3,"solution":true}
def shard_of(tensors: list[Tensor], rank: int, num_ranks: int) -> Tensor:
    """A rank's shard of some tensors: flat, as long as all others, padded with zeros at the end of the row.

    TASKS
    1. Lay the tensors into one row, and pad it.
    2. Return the rank's piece, with memory of its own.
    """
    ### BEGIN SOLUTION
    row = torch.cat([tensor.detach().flatten() for tensor in tensors])
    row = nn.functional.pad(row, (0, -row.numel() % num_ranks))
    return row.view(num_ranks, -1)[rank].clone()
    ### END SOLUTION


def unflatten(row: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """The pieces of a row, padding left out, with the shapes of the tensors.

    TASKS
    1. Cut the row into pieces, and give each its shape.
    """
    ### BEGIN SOLUTION
    sizes = [tensor.numel() for tensor in tensors]
    pieces = row[: sum(sizes)].split(sizes)
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors)]
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"shards_check","locked":true,"points":3,"schema_version":3,"solution":false}
result = checks.run("zero_sharding/1", (shard_of, unflatten))
### BEGIN HIDDEN TESTS
result &= checks.run("zero_sharding/1", (shard_of, unflatten), seed=295, extra=3)
### END HIDDEN TESTS
result.award(3)

# %% [markdown]
# ## Part 2. An optimizer that remembers its shard
#
# Two collectives do the work. A small example: every rank has a row of four numbers; *reduce-scatter* leaves each rank
# the sum of its piece; *all-gather* puts pieces together. **Predict** what rank 1 prints.

# %% nbgrader={"grade":false,"grade_id":"two_collectives","locked":true,"schema_version":3,"solution":false}
def two_collectives():
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    row, piece = torch.arange(4.0) + 10 * rank, torch.empty(2)
    dist.reduce_scatter(piece, list(row.chunk(num_ranks)))
    summed = piece.tolist()
    dist.all_gather(list(row.chunk(num_ranks)), piece / num_ranks)  # writes into the row: its chunks are views
    return f"rank {rank}: the sum of my piece is {summed}, the mean of all is {row.tolist()}"

print("\n".join(run_distributed(two_collectives, 2)))

# %% [markdown]
# Write `ShardedOptimizer`. All weights and gradients stay on every rank, but the states are divided:
#
# - it creates `optimizer_class([...], **options)` for one parameter, the rank's shard;
# - `step()` comes after backward. It must end where one process would that has the batches of all ranks: gradients are
#   **averaged** over the ranks;
# - a rank sends $2 (N - 1) / N$ times the parameters, as plain data parallelism does;
# - between two steps, a rank holds the weights, its shard, and the shard's states. Nothing else;
# - a parameter may be tied (`model.parameters()` gives it once), and on some ranks it may have **no gradient**.

# %% nbgrader={"grade":false,"grade_id":"sharded_optimizer","locked":false,"schema_version":3,"solution":true}
class ShardedOptimizer:
    """ZeRO, stage 1: every rank updates one shard, and keeps the optimizer's states for it alone.

    TASKS
    1. __init__: the parameters, this rank's shard of them, and an optimizer for it.
    2. step: the shard of the mean gradient, the optimizer's step, and all shards back into the model.
    """

    def __init__(self, model: nn.Module, optimizer_class, **options):
        ### BEGIN SOLUTION
        self.parameters = list(model.parameters())
        self.shard = nn.Parameter(shard_of(self.parameters, dist.get_rank(), dist.get_world_size()))
        self.optimizer = optimizer_class([self.shard], **options)
        ### END SOLUTION

    @torch.no_grad()
    def step(self):
        ### BEGIN SOLUTION
        num_ranks = dist.get_world_size()
        row = torch.zeros(num_ranks * self.shard.numel())
        for piece, parameter in zip(unflatten(row, self.parameters), self.parameters):
            if parameter.grad is not None:
                piece.copy_(parameter.grad)
        self.shard.grad = torch.empty_like(self.shard)
        dist.reduce_scatter(self.shard.grad, list(row.chunk(num_ranks)))
        self.shard.grad /= num_ranks
        self.optimizer.step()
        self.shard.grad = None
        dist.all_gather(list(row.chunk(num_ranks)), self.shard.detach())
        for piece, parameter in zip(unflatten(row, self.parameters), self.parameters):
            parameter.copy_(piece)
        ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"optimizer_check","locked":true,"points":5,"schema_version":3,"solution":false}
result = checks.run("zero_sharding/2", ShardedOptimizer)
### BEGIN HIDDEN TESTS
result &= checks.run("zero_sharding/2", ShardedOptimizer, seed=295, num_tokens=9)
### END HIDDEN TESTS
result.award(5)

# %% [markdown]
# ## Part 3. Weights that come and go
#
# In stage 3 a rank holds a shard of every weight. Before a layer computes, its weight is gathered; afterwards it is
# thrown away, and gathered **again** in backward. The gradient of the whole weight is reduce-scattered at once.
#
# For $y = xW^\top$ and the gradient $g$ of $y$: the gradient of $x$ is $gW$, that of $W$ is $g^\top x$.
#
# **Predict** before you write: how often does each weight travel in a step? And why does a plain
# `nn.functional.linear(x, weight)` keep every gathered weight until backward, even if your code forgets it?

# %% [markdown]
# Write `ShardedLinear`:
#
# - `ShardedLinear(weight)` gets the whole weight, the same on each rank, and keeps `self.shard`, an `nn.Parameter`: the
#   rank's shard of it (Part 1). There is no bias;
# - its output is that of the whole weight, and so is the gradient of `x`;
# - `shard.grad` becomes the shard of the gradient, averaged over the ranks. If two layers share the weight, autograd
#   adds up;
# - whole weights are alive one layer at a time, and none between forward and backward;
# - a rank sends $3 (N - 1) / N$ times the weights in a step.

# %% nbgrader={"grade":false,"grade_id":"sharded_linear","locked":false,"schema_version":3,"solution":true}
def gather_weight(shard: Tensor, shape: torch.Size) -> Tensor:
    """The whole weight, from the shards of all ranks."""
    ### BEGIN SOLUTION
    row = torch.empty(dist.get_world_size() * shard.numel())
    dist.all_gather(list(row.chunk(dist.get_world_size())), shard.detach())
    return row[: shape.numel()].view(shape)
    ### END SOLUTION


class GatheredLinear(torch.autograd.Function):
    """y = x W^T, with W gathered for the forward and again for the backward pass.

    TASKS
    1. forward: gather, compute, save what backward needs (not the weight).
    2. backward: gather again; the gradient of x, and the shard of the mean gradient of the weight.
    """

    @staticmethod
    def forward(ctx, x, shard, shape):
        ### BEGIN SOLUTION
        ctx.save_for_backward(x, shard)
        ctx.shape = shape
        return x @ gather_weight(shard, shape).T
        ### END SOLUTION

    @staticmethod
    def backward(ctx, grad):
        ### BEGIN SOLUTION
        x, shard = ctx.saved_tensors
        grad_x = grad @ gather_weight(shard, ctx.shape)
        row = torch.zeros(dist.get_world_size() * shard.numel())
        torch.mm(grad.T, x, out=row[: ctx.shape.numel()].view(ctx.shape))
        own = torch.empty_like(shard)
        dist.reduce_scatter(own, list(row.chunk(dist.get_world_size())))
        return grad_x, own / dist.get_world_size(), None
        ### END SOLUTION


class ShardedLinear(nn.Module):
    """A linear layer without bias that holds a shard of its weight."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.shape = weight.shape
        self.shard = nn.Parameter(shard_of([weight], dist.get_rank(), dist.get_world_size()))

    def forward(self, x: Tensor) -> Tensor:
        return GatheredLinear.apply(x, self.shard, self.shape)

# %% nbgrader={"grade":true,"grade_id":"linear_check","locked":true,"points":6,"schema_version":3,"solution":false}
result = checks.run("zero_sharding/3", ShardedLinear)
### BEGIN HIDDEN TESTS
result &= checks.run("zero_sharding/3", ShardedLinear, seed=295, narrow=18, wide=31, num_layers=12)
### END HIDDEN TESTS
result.award(6)

# %% [markdown]
# ## Summary
#
# - A shard is a piece of a padded row: equal pieces, whatever the shapes.
# - Stage 1 sends what data parallelism sends, and divides the largest part of the memory. Its two collectives are the
#   two halves of an all-reduce.
# - Stage 3 divides everything, and sends half as much again: the weights travel twice, the gradients once.
# - Values alone prove nothing here: an optimizer that shards nothing is right, too. Bytes tell.
# - **To take away**: what would have to change in Part 2 to make it stage 2?
