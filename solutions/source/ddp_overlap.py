# %% [markdown]
# # Exercise: Data parallelism that overlaps
#
# Every rank holds the whole model and sees its own part of the batch. After backward, all ranks must hold the same
# gradients. You write that in three steps: right, then fast, then complete.
#
# | part | you write | points |
# |---|---|---|
# | 1 | the mean over tokens, for batches of unequal size | 3 |
# | 2 | buckets that are sent while backward still runs | 6 |
# | 3 | gradient accumulation, and layers that a rank does not use | 5 |
#
# Each part ends with a check that runs your code on 2 or 3 real processes. It says what is right, what is wrong and,
# where it can tell, why. `checks.hint("ddp_overlap/1")` gives a hint, and `checks.hint("ddp_overlap/1", 2)` a bigger
# one.

# %% nbgrader={"grade":false,"grade_id":"setup","locked":true,"schema_version":3,"solution":false}
import contextlib

import matplotlib.pyplot as plt
import torch
import torch.distributed as dist
from torch import nn

from cme295lab.grading import checks
from cme295lab.parallel import CommLedger, run_distributed

# %% [markdown]
# ## Part 1. Every token counts the same
#
# The loss of a batch is the *mean* over its tokens. Two ranks: one has 1 token with gradient 9, the other 3 tokens with
# mean gradient 1. **Predict** the gradient that one process would compute on all 4 tokens. It is not the mean of 9
# and 1.

# %% nbgrader={"grade":false,"grade_id":"two_means","locked":true,"schema_version":3,"solution":false}
gradients, num_tokens = torch.tensor([9.0, 1.0]), torch.tensor([1.0, 3.0])
print("mean of the means:", gradients.mean().item())
print("mean of all tokens:", ((num_tokens * gradients).sum() / num_tokens.sum()).item())

# %% [markdown]
# Batches are unequal all the time: padding is not counted, and the last batch of an epoch is short.
#
# Write `average_gradients`. It is called on every rank after `backward`, when each `p.grad` is the gradient of the
# rank's own mean loss. `dist.all_reduce(tensor)` replaces a tensor by the sum over all ranks; use nothing else that
# communicates. The model's head shares its weight with the embedding: send each gradient once.

# %% nbgrader={"grade":false,"grade_id":"average_gradients","locked":false,"schema_version":3,"solution":true}
def average_gradients(model: nn.Module, num_tokens: int) -> None:
    """Replace every gradient by that of the mean loss over the tokens of all ranks.

    Args:
        model: after backward of the mean loss over this rank's tokens.
        num_tokens: of this rank.

    TASKS
    1. The number of all tokens.
    2. Each gradient: a mean, back to a sum, added up over the ranks, divided once.
    """
    ### BEGIN SOLUTION
    total = torch.tensor(float(num_tokens))
    dist.all_reduce(total)
    for parameter in model.parameters():
        parameter.grad *= num_tokens
        dist.all_reduce(parameter.grad)
        parameter.grad /= total
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"weighting_check","locked":true,"points":3,"schema_version":3,"solution":false}
result = checks.run("ddp_overlap/1", average_gradients)
### BEGIN HIDDEN TESTS
result &= checks.run("ddp_overlap/1", average_gradients, seed=295, num_tokens=(11, 2, 5))
### END HIDDEN TESTS
result.award(3)

# %% [markdown]
# ## Part 2. Send while backward runs
#
# Backward goes from the last layer to the first. When the last layer's gradient is ready, most of backward is still to
# come: the gradient could travel meanwhile. But a message costs a latency, however small it is, so gradients are
# collected in **buckets**.
#
# A **hook** tells you when a gradient is ready. **Predict** the order in which the three names are printed.

# %% nbgrader={"grade":false,"grade_id":"hooks","locked":true,"schema_version":3,"solution":false}
layers = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 1, bias=False))
for name, parameter in layers.named_parameters():
    parameter.register_post_accumulate_grad_hook(lambda p, name=name: print(name, "is ready", tuple(p.grad.shape)))
layers(torch.ones(2, 4)).sum().backward()

# %% [markdown]
# The picture below draws time from left to right: grey is backward, the colours are four buckets on the wire. Above,
# they are sent when backward has ended, and the step takes 8 units. Below, each is sent when it is full, and the step
# takes 5.

# %% nbgrader={"grade":false,"grade_id":"overlap_picture","locked":true,"schema_version":3,"solution":false}
fig, axes = plt.subplots(figsize=(6, 2.2))
colours = ["#0072B2", "#E69F00", "#009E73", "#CC79A7"]
for row, first in enumerate((4, 1)):
    axes.barh(3 * row, 4, color="#7F868D")
    axes.barh([3 * row + 1] * 4, 1, left=range(first, first + 4), color=colours, edgecolor="white")
axes.set(yticks=[0, 1, 3, 4], yticklabels=["backward", "afterwards", "backward", "overlapping"], xlabel="time")
axes.invert_yaxis()
plt.show()

# %% [markdown]
# Write the class `OverlappedGradients`. A step looks like this:
#
# `averaged = OverlappedGradients(model, bucket_bytes)`, once; then in every step `loss.backward()`,
# `averaged.finish()`, and every `p.grad` is the **mean** over the ranks (batches are of equal size here).
#
# - A bucket holds whole gradients, about `bucket_bytes` of them; one larger gradient is a bucket of its own.
# - Its all-reduce starts in the hook of its last gradient: `handle = dist.all_reduce(flat, async_op=True)` returns at
#   once, and `handle.wait()` ends when the sum is there. A hook that waits stops backward.
# - The ranks must call the same collectives in the same order.
# - `ready` and `send` are a suggestion: rename or delete them as you like. `finish` must stay.

# %% nbgrader={"grade":false,"grade_id":"overlapped_gradients","locked":false,"schema_version":3,"solution":true}
class OverlappedGradients:
    """Averages a model's gradients over the ranks, in buckets, while backward runs."""

    def __init__(self, model: nn.Module, bucket_bytes: int) -> None:
        """Put every parameter into a bucket, and register the hooks.

        TASKS
        1. Buckets, from the last parameter to the first; a tied weight is in one of them, once.
        2. A hook for each parameter.
        """
        ### BEGIN SOLUTION
        self.model = model
        self.buckets, filled = [[]], 0
        for parameter in reversed(list(model.parameters())):
            num_bytes = parameter.numel() * parameter.element_size()
            if self.buckets[-1] and filled + num_bytes > bucket_bytes:
                self.buckets.append([])
                filled = 0
            self.buckets[-1].append(parameter)
            filled += num_bytes
        self.bucket_of = {p: index for index, bucket in enumerate(self.buckets) for p in bucket}
        self.missing, self.sent = [len(bucket) for bucket in self.buckets], []
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(self.ready)
        ### END SOLUTION

    def ready(self, parameter: nn.Parameter) -> None:
        """Called in backward when a gradient is complete.

        TASKS
        3. Is its bucket complete, and are those before it? Then send it.
        """
        ### BEGIN SOLUTION
        self.missing[self.bucket_of[parameter]] -= 1
        while len(self.sent) < len(self.buckets) and self.missing[len(self.sent)] == 0:
            self.send(self.buckets[len(self.sent)])
        ### END SOLUTION

    def send(self, bucket: list[nn.Parameter]) -> None:
        """Called for a bucket whose gradients are complete.

        TASKS
        4. One flat tensor of them; start its all-reduce, and keep both.
        """
        ### BEGIN SOLUTION
        flat = torch.cat([parameter.grad.flatten() for parameter in bucket])
        self.sent.append((flat, dist.all_reduce(flat, async_op=True)))
        ### END SOLUTION

    def finish(self) -> None:
        """Called after backward; when it returns, every gradient is the mean over the ranks.

        TASKS
        5. Wait for each bucket, divide, copy the pieces back; get ready for the next step.
        """
        ### BEGIN SOLUTION
        for bucket, (flat, handle) in zip(self.buckets, self.sent):
            handle.wait()
            flat /= dist.get_world_size()
            for parameter, piece in zip(bucket, flat.split([p.numel() for p in bucket])):
                parameter.grad.copy_(piece.view_as(parameter))
        self.missing, self.sent = [len(bucket) for bucket in self.buckets], []
        ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"overlap_check","locked":true,"points":6,"schema_version":3,"solution":false}
result = checks.run("ddp_overlap/2", OverlappedGradients)
### BEGIN HIDDEN TESTS
others = {"seed": 295, "bucket_bytes": 2300, "larger_bucket_bytes": 3200, "num_tokens": 9}
result &= checks.run("ddp_overlap/2", OverlappedGradients, **others)
### END HIDDEN TESTS
result.award(6)

# %% [markdown]
# Once the check passes, look at what your class sends. One of the rows is a gradient that is larger than a bucket.

# %% nbgrader={"grade":false,"grade_id":"look_at_buckets","locked":true,"schema_version":3,"solution":false}
def step_of_a_model(averager, bucket_bytes):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 256))
    averaged = averager(model, bucket_bytes)
    with CommLedger() as ledger:
        model(torch.randn(8, 64)).square().mean().backward()
        averaged.finish()
    return [f"{call.collective} of {call.payload_bytes:,} bytes" for call in ledger.calls]


if result.passed:
    print("\n".join(run_distributed(step_of_a_model, 2, OverlappedGradients, 20_000)[0]))

# %% [markdown]
# ## Part 3. Accumulate in silence, and leave nobody out
#
# A batch that does not fit is cut into **micro-batches**, whose gradients add up in `p.grad`. Nothing needs to be sent
# before the last one: the mean of sums is the sum of means. So a step is
#
# `with averaged.no_sync(): (loss_1 / 2).backward()`, then `(loss_2 / 2).backward()`, then `averaged.finish()`.
#
# The second trap: a layer that one rank's batch does not use, such as an expert that none of its tokens chose. There
# is no gradient there, its hook is never called, and its `p.grad` is `None`. **Predict** what your class of Part 2 does
# on that rank, and what the other ranks do meanwhile.

# %% [markdown]
# Write `AccumulatedGradients`. It may inherit from your class, as below, or stand by itself. A rank without a gradient
# counts with zeros, and gets the mean like all the others. In the last micro-batch, buckets must still be sent while
# backward runs.

# %% nbgrader={"grade":false,"grade_id":"accumulated_gradients","locked":false,"schema_version":3,"solution":true}
class AccumulatedGradients(OverlappedGradients):
    """Averages gradients over the ranks: only when it is due, and whatever a rank has used."""

    is_silent = False

    @contextlib.contextmanager
    def no_sync(self):
        """Within this context, backward adds up gradients and sends nothing.

        TASKS
        1. Be silent up to the end of the context, however it ends.
        """
        ### BEGIN SOLUTION
        self.is_silent = True
        try:
            yield
        finally:
            self.is_silent = False
        ### END SOLUTION

    def ready(self, parameter: nn.Parameter) -> None:
        """Called in backward when a gradient is complete.

        TASKS
        2. Do nothing, or what Part 2 does.
        """
        ### BEGIN SOLUTION
        if not self.is_silent:
            super().ready(parameter)
        ### END SOLUTION

    def finish(self) -> None:
        """Called after the last backward; when it returns, every gradient is the mean over the ranks.

        TASKS
        3. Send what has not been sent, in the order of the buckets, with zeros for a missing gradient.
        4. Go on as in Part 2.
        """
        ### BEGIN SOLUTION
        for parameter in self.model.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in self.buckets[len(self.sent) :]:
            self.send(bucket)
        super().finish()
        ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"accumulate_check","locked":true,"points":5,"schema_version":3,"solution":false}
result = checks.run("ddp_overlap/3", AccumulatedGradients)
### BEGIN HIDDEN TESTS
others = {"seed": 295, "bucket_bytes": 2300, "num_micro_batches": 2}
result &= checks.run("ddp_overlap/3", AccumulatedGradients, **others)
### END HIDDEN TESTS
result.award(5)

# %% [markdown]
# ## Summary
#
# - The mean of the ranks' means is wrong as soon as batches are unequal: weight by tokens.
# - Gradients are ready from the last layer to the first. Buckets are filled in that order and sent at once; a step then
#   takes hardly longer than backward, as long as the wire keeps up.
# - Every rank calls the same collectives in the same order, whatever its batch was. A rank that has nothing to say
#   sends zeros.
# - **To take away**: with buckets of 1 byte, and with one bucket for everything, a step is slower. Why, in each case?
