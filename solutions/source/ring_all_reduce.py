# %% [markdown]
# # Exercise: The ring
#
# Data parallelism needs one operation: the mean of all ranks' gradients, on every rank. You build it from messages
# between neighbours, as every large training run does.
#
# | part | you write | points |
# |---|---|---|
# | 1 | half of it: every rank ends with one chunk of the sum | 4 |
# | 2 | the mean on every rank, for tensors of any shape | 5 |
# | 3 | what it costs, and when a tree is faster | 4 |
#
# Each part ends with a check that runs your code on 1 to 4 real processes. It says what is right, what is wrong and,
# where it can tell, why. Run it as often as you like. `checks.hint("ring_all_reduce/1")` gives a hint, and
# `checks.hint("ring_all_reduce/1", 2)` a bigger one.

# %% nbgrader={"grade":false,"grade_id":"setup","locked":true,"schema_version":3,"solution":false}
import math

import matplotlib.pyplot as plt
import torch
import torch.distributed as dist
from torch import Tensor

from cme295lab.grading import checks
from cme295lab.parallel import run_distributed

# %% [markdown]
# ## Part 1. Half a ring: reduce-scatter
#
# The ranks stand in a ring. Each can send to the next one, `(rank + 1) % num_ranks`, and receives from the one before.
# A small example of messages: every rank passes its number on. `isend` and `irecv` start a message and return at once;
# `wait()` ends when it is through.
#
# **Predict** what rank 0 prints. Then: what would happen if `isend` and `irecv` were `send` and `recv`, which return
# only when the message is through?

# %% nbgrader={"grade":false,"grade_id":"pass_it_on","locked":true,"schema_version":3,"solution":false}
def pass_it_on():
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    mine, received = torch.tensor([float(rank)]), torch.empty(1)
    sending = dist.isend(mine, (rank + 1) % num_ranks)
    receiving = dist.irecv(received, (rank - 1) % num_ranks)
    sending.wait()
    receiving.wait()
    return f"rank {rank} sends {mine.item():.0f} and receives {received.item():.0f}"


run_distributed(pass_it_on, 3)

# %% [markdown]
# Each rank has a tensor of $N$ **chunks**. *Reduce-scatter*: rank $r$ ends with the sum of all chunks number $r$. On a
# ring, every chunk makes a journey of $N - 1$ steps. It starts on the rank *after* its destination; on each rank it is
# added to that rank's own part, and sent on. In every step, every link carries one chunk.

# %% nbgrader={"grade":false,"grade_id":"journey_picture","locked":true,"schema_version":3,"solution":false}
colours = ["#0072B2", "#E69F00", "#009E73", "#CC79A7"]
fig, axes = plt.subplots(figsize=(5, 2.4))
for chunk, colour in enumerate(colours):
    ranks = [(chunk + 1 + step) % 4 for step in range(4)]
    for step, rank in enumerate(ranks):
        axes.text(step, rank, f"chunk {chunk}", ha="center", va="center", color=colour)
    for step in range(3):
        arrow = {"arrowstyle": "->", "color": colour, "shrinkA": 18, "shrinkB": 18}
        axes.annotate("", (step + 1, ranks[step + 1]), (step, ranks[step]), arrowprops=arrow)
axes.set(xlim=(-0.5, 3.5), ylim=(3.5, -0.5), xlabel="step", ylabel="rank", xticks=range(4), yticks=range(4))
plt.show()

# %% [markdown]
# *The picture: rank over step. An arrow from each rank to the next one carries a chunk. Chunk 0 starts on rank 1 and
# reaches rank 0 after three steps; the last column shows that rank r then holds chunk r.*
#
# Write `ring_reduce_scatter`. Use messages to the next rank only, no collective. The argument stays as it is: the
# caller still needs it.

# %% nbgrader={"grade":false,"grade_id":"ring_reduce_scatter","locked":false,"schema_version":3,"solution":true}
def ring_reduce_scatter(tensor: Tensor) -> Tensor:
    """The sum over the ranks of chunk `rank` of their tensors.

    Args:
        tensor: (num_ranks * k,), float32; as long on every rank.

    Returns:
        (k,): chunk `rank` of the sum, a new tensor.

    TASKS
    1. Cut a copy into chunks: which one is sent first?
    2. num_ranks - 1 steps: start both messages, wait for both, add what came.
    3. Return the chunk that is complete.
    """
    ### BEGIN SOLUTION
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    chunks = tensor.clone().view(num_ranks, -1)
    received = torch.empty_like(chunks[0])
    for step in range(num_ranks - 1):
        sending = dist.isend(chunks[(rank - 1 - step) % num_ranks], (rank + 1) % num_ranks)
        receiving = dist.irecv(received, (rank - 1) % num_ranks)
        sending.wait()
        receiving.wait()
        chunks[(rank - 2 - step) % num_ranks] += received
    return chunks[rank].clone()
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"scatter_check","locked":true,"points":4,"schema_version":3,"solution":false}
result = checks.run("ring_all_reduce/1", ring_reduce_scatter)
### BEGIN HIDDEN TESTS
result &= checks.run("ring_all_reduce/1", ring_reduce_scatter, seed=295, chunk=7)
### END HIDDEN TESTS
result.award(4)

# %% [markdown]
# ## Part 2. The mean, everywhere
#
# After Part 1, each rank has one finished chunk. The second half, *all-gather*, passes the finished chunks round the
# ring once more: now nothing is added, and what arrives takes its place.
#
# Write `ring_mean`: every rank gets the **mean** of all tensors. Gradients come in all shapes, so
#
# - the number of elements need not be divisible by the number of ranks, and may even be smaller;
# - all ranks must end with the same bits: models that differ by one rounding drift apart;
# - one rank alone works, too.
#
# Predict the traffic: how many bytes does a rank send for a tensor of $S$ bytes? The check counts them.

# %% nbgrader={"grade":false,"grade_id":"ring_mean","locked":false,"schema_version":3,"solution":true}
def ring_mean(tensor: Tensor) -> Tensor:
    """The mean of all ranks' tensors, on every rank.

    Args:
        tensor: any shape, float32; the same shape on every rank.

    Returns:
        The mean, a new tensor of the same shape.

    TASKS
    1. Make the number of elements divisible: pad with zeros.
    2. The first half is Part 1. Divide once.
    3. The second half: num_ranks - 1 steps in which finished chunks are passed on.
    4. Remove the padding, restore the shape.
    """
    ### BEGIN SOLUTION
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    flat = torch.nn.functional.pad(tensor.flatten(), (0, -tensor.numel() % num_ranks))
    chunks = torch.empty_like(flat).view(num_ranks, -1)
    chunks[rank] = ring_reduce_scatter(flat) / num_ranks
    for step in range(num_ranks - 1):
        sending = dist.isend(chunks[(rank - step) % num_ranks], (rank + 1) % num_ranks)
        receiving = dist.irecv(chunks[(rank - 1 - step) % num_ranks], (rank - 1) % num_ranks)
        sending.wait()
        receiving.wait()
    return chunks.flatten()[: tensor.numel()].view(tensor.shape)
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"mean_check","locked":true,"points":5,"schema_version":3,"solution":false}
result = checks.run("ring_all_reduce/2", ring_mean)
### BEGIN HIDDEN TESTS
result &= checks.run("ring_all_reduce/2", ring_mean, seed=295, columns=5, ragged=13)
### END HIDDEN TESTS
result.award(5)

# %% [markdown]
# ## Part 3. What it costs, and when a tree wins
#
# A message of $n$ bytes takes $\alpha + n / \beta$: a latency $\alpha$, and its bytes over the bandwidth $\beta$. All
# links work at the same time; adding costs nothing.
#
# - **Ring**: both halves, $N - 1$ steps each, one chunk of $n / N$ bytes in each step.
# - **Tree**: in each round, pairs of ranks meet, and one sends its *whole* tensor to the other, which adds it. After
#   $\lceil \log_2 N \rceil$ rounds one rank has the sum; as many rounds bring it back to all.

# %% [markdown]
# A small example, at $N = 4$: the ring needs 6 steps of a quarter of the tensor, the tree 4 rounds of all of it.
# **Predict**: which of the two is faster for a gigabyte, and which one for a kilobyte?

# %% nbgrader={"grade":false,"grade_id":"costs","locked":false,"schema_version":3,"solution":true}
def ring_sent_bytes(num_bytes: int, num_ranks: int) -> float:
    """Bytes that one rank sends in an all-reduce on a ring; num_ranks divides the tensor.

    TASKS
    1. Steps, times the bytes of a step. The check counts them on real ranks.
    """
    ### BEGIN SOLUTION
    return 2 * (num_ranks - 1) * num_bytes / num_ranks
    ### END SOLUTION


def ring_time_s(num_bytes: int, num_ranks: int, latency_s: float, bytes_per_s: float) -> float:
    """Seconds of an all-reduce on a ring.

    TASKS
    1. Steps, times the time of a step.
    """
    ### BEGIN SOLUTION
    return 2 * (num_ranks - 1) * (latency_s + num_bytes / num_ranks / bytes_per_s)
    ### END SOLUTION


def tree_time_s(num_bytes: int, num_ranks: int, latency_s: float, bytes_per_s: float) -> float:
    """Seconds of an all-reduce on a tree.

    TASKS
    1. Rounds up and down, times the time of a round.
    """
    ### BEGIN SOLUTION
    return 2 * math.ceil(math.log2(num_ranks)) * (latency_s + num_bytes / bytes_per_s)
    ### END SOLUTION


def break_even_bytes(num_ranks: int, latency_s: float, bytes_per_s: float) -> float:
    """Bytes of the tensor for which ring and tree take equally long; num_ranks is at least 4.

    TASKS
    1. Set the two times equal, and solve for num_bytes.
    """
    ### BEGIN SOLUTION
    rounds, steps = math.ceil(math.log2(num_ranks)), num_ranks - 1
    return latency_s * bytes_per_s * (steps - rounds) / (rounds - steps / num_ranks)
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"cost_check","locked":true,"points":4,"schema_version":3,"solution":false}
result = checks.run("ring_all_reduce/3", (ring_sent_bytes, ring_time_s, tree_time_s, break_even_bytes))
### BEGIN HIDDEN TESTS
result &= checks.run("ring_all_reduce/3", (ring_sent_bytes, ring_time_s, tree_time_s, break_even_bytes), scale=2)
### END HIDDEN TESTS
result.award(4)

# %% [markdown]
# Once the check passes, draw your formulas: 64 ranks, 5 µs of latency, 50 GB/s.

# %%
if result.passed:
    link = {"num_ranks": 64, "latency_s": 5e-6, "bytes_per_s": 50e9}
    sizes = torch.logspace(3, 10, 50).tolist()
    fig, axes = plt.subplots(figsize=(5, 3))
    axes.loglog(sizes, [1e3 * ring_time_s(size, **link) for size in sizes], color="#0072B2", label="ring")
    axes.loglog(sizes, [1e3 * tree_time_s(size, **link) for size in sizes], color="#D55E00", label="tree", ls="--")
    axes.axvline(break_even_bytes(**link), color="#7F868D", ls=":", label="equal")
    axes.set(xlabel="bytes of the tensor", ylabel="time (ms)", title="all-reduce on 64 ranks")
    axes.legend()
    plt.show()

# %% [markdown]
# *The picture, if your formulas are right: two curves, flat for small tensors, straight lines for large ones. The tree
# starts lower, the ring ends lower; they cross at a few megabytes.*
#
# ## Summary
#
# - An all-reduce is a reduce-scatter and an all-gather. On a ring each rank sends $2 S (N - 1) / N$ bytes: hardly more
#   than $2 S$, however many ranks there are.
# - That is why ZeRO can shard for free: it uses the two halves by themselves.
# - The ring's latency grows with $N$, the tree's with $\log N$: small tensors want trees, or to be collected in
#   buckets.
# - **To take away**: what does a single slow link do to the ring, and what to the tree?
