# %% [markdown]
# # Data parallelism and ZeRO
#
# One GPU holds the weights, the gradients and the optimizer's states of a model: 16 bytes per parameter. Take 64 GPUs,
# give each a part of the batch, and training is up to 64 times as fast. But each of the 64 still holds the same 16
# bytes per parameter, and a model that does not fit on one of them fits on none.
#
# Must all of them hold the same? In this lab you train one model on several real processes, count each byte that they
# send, take away what they hold twice, and see what that costs.

# %% tags=["parameters"]
profile = "full"  # "fast": a smaller model, for a quick look

# %%
import hashlib
import statistics
import tempfile
import time

import torch
import torch.distributed as dist
from torch import nn

from cme295lab import memory, units
from cme295lab.parallel import CommLedger, DataParallel, DistributedError, run_distributed
from cme295lab.parallel.communication import collectives, cost_model, step_time
from cme295lab.transformer import DecoderLM, preset
from cme295lab.widgets import RingWalk, ShardMap, TradeOffExplorer, parallel_figures

# %%
config = preset({"fast": "course-1m", "full": "course-4m"}[profile])
psi = config.num_parameters
print(f"a model of {psi:,} parameters")

# %% [markdown]
# ## 1. Several processes from one cell
#
# `run_distributed` starts real processes, *ranks*, and runs a function on each. They share no memory. All they have is
# messages, through `torch.distributed`: `all_reduce` adds up a tensor of all ranks and leaves each of them the sum.
# (Here messages go through gloo, on CPUs. With a GPU for each rank, the same cells run on nccl.)
#
# **Predict**: rank 0 brings 1, rank 1 brings 10, rank 2 brings 100. What does rank 1 have in the end?


# %%
def meet():
    """Runs on every rank."""
    rank = dist.get_rank()
    number = torch.tensor(10.0**rank)
    dist.all_reduce(number)
    print(f"I am {rank} of {dist.get_world_size()}; together we have {number:.0f}")
    return number.item()


results = run_distributed(meet, 3)

# %% [markdown]
# What ranks print comes with their number in front, in the order in which it arrives. What they return comes back as a
# list.
#
# A collective needs everybody. If one rank does not call it, because of an `if` for instance, the others wait. Without
# a time limit they wait for ever, and on a cluster nobody can tell from outside whether they work.


# %%
def forgetful():
    """Rank 3 has nothing to report, so it leaves."""
    loss = torch.ones(())
    if dist.get_rank() != 3:
        dist.all_reduce(loss)


try:
    run_distributed(forgetful, 4, timeout_s=3)
except DistributedError as error:
    print(error)

# %% [markdown]
# Remember this picture when a large job stands still: *some ranks wait in a collective, one is elsewhere*. Look for the
# one that is elsewhere.
#
# ## 2. A ring
#
# How does a sum get to everybody? All could send their vectors to rank 0, which adds them up and sends the sum back.
# With 64 ranks, rank 0 would receive 63 vectors and send 63, while the others idle.
#
# On a ring, every rank sends to its right neighbour only, a piece of the vector at a time. **Predict**: how many bytes
# does each of $N$ ranks send until all have the sum of $S$ bytes?

# %%
RingWalk(num_ranks=4, num_bytes=400e6)

# %% [markdown]
# First each piece goes round and is summed up on its way (*reduce-scatter*). After $N - 1$ steps every rank has one
# piece of the sum. Then the sums go round (*all-gather*). Here is the moment in between:

# %%
RingWalk(num_ranks=4, num_bytes=400e6).figure(step=3)

# %% [markdown]
# Each half sends $N - 1$ pieces of $S/N$ bytes: together
#
# $$2\,S\,\frac{N-1}{N}$$
#
# bytes per rank, less than $2S$ however many ranks there are. The ring of
# `cme295lab.parallel.communication.collectives` is made of sends and receives. Is it right, and is that what it sends?
# `CommLedger` counts.


# %%
def run_ring(num_elements):
    """Our ring against torch's all-reduce, on whole numbers: they add up alike in any order."""
    ours = torch.arange(num_elements, dtype=torch.float32) * (dist.get_rank() + 1)
    theirs = ours.clone()
    with CommLedger() as ledger:
        collectives.ring_all_reduce(ours)
    dist.all_reduce(theirs)
    return torch.equal(ours, theirs), ledger.sent_bytes


# %% tags=["nbval-check-output"]
print("ranks  equal to torch's  sent per rank    formula")
for num_ranks in (2, 3, 4, 8):
    is_equal, sent = run_distributed(run_ring, num_ranks, 240_000)[0]
    formula = cost_model.wire_bytes("all_reduce", 4 * 240_000, num_ranks)
    counted, expected = (units.format_bytes(size) for size in (sent, formula))
    print(f"{num_ranks:5}  {is_equal!s:16}  {counted:>13}  {expected:>9}")
    assert sent == formula

# %% [markdown]
# ## 3. Data parallelism by hand
#
# Every rank has the whole model and a part of the batch. It computes gradients, all ranks average them, and each takes
# the same optimizer step. The models stay equal without anybody comparing them.
#
# That is one all-reduce and one division per parameter:


# %%
def gradients_of(inputs, targets):
    """Gradients of the mean loss of a small model."""
    torch.manual_seed(0)  # the same weights everywhere
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    nn.functional.mse_loss(model(inputs), targets).backward()
    return [parameter.grad for parameter in model.parameters()]


# %%
def parallel_gradients(inputs, targets):
    """The same on several ranks, each with its part of the batch."""
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    gradients = gradients_of(inputs.chunk(num_ranks)[rank], targets.chunk(num_ranks)[rank])
    for gradient in gradients:
        dist.all_reduce(gradient)
        gradient /= num_ranks
    return gradients


# %% tags=["nbval-check-output"]
inputs, targets = torch.randn(12, 8), torch.randn(12, 4)
alone = gradients_of(inputs, targets)
for rank, found in enumerate(run_distributed(parallel_gradients, 4, inputs, targets)):
    same = all(torch.allclose(mine, his, rtol=1e-5, atol=1e-7) for mine, his in zip(found, alone))
    print(f"rank {rank}: the gradients of one process with the whole batch: {same}")

# %% [markdown]
# (Not bit for bit: the sums are taken in another order.)
#
# This works because each rank has three examples of the twelve. Language models have batches in which tokens are masked
# or padded, so that ranks have *different numbers of tokens*.
#
# **Predict**: rank 0 has 2 tokens with loss 1.0 each, rank 1 has 6 tokens with loss 3.0 each. What is the mean loss,
# and what does averaging over the ranks give?


# %%
from cme295lab.parallel import token_scale


def mean_gradient(is_weighted):
    """The gradient of the mean loss with respect to a factor w = 1, which is the mean loss itself."""
    token_losses = (torch.full((2,), 1.0), torch.full((6,), 3.0))[dist.get_rank()]
    w = torch.ones((), requires_grad=True)
    losses = w * token_losses
    loss = losses.sum() * token_scale(len(losses)) if is_weighted else losses.mean()
    loss.backward()
    dist.all_reduce(w.grad)
    return w.grad.item() / dist.get_world_size()


# %% tags=["nbval-check-output"]
print("mean of the ranks' means", run_distributed(mean_gradient, 2, False)[0])
print("mean over the tokens    ", run_distributed(mean_gradient, 2, True)[0])

# %% [markdown]
# $(2 \cdot 1 + 6 \cdot 3) / 8 = 2.5$, not 2. "Data parallelism averages the gradients" is right only if all ranks count
# equally many tokens. Otherwise each rank multiplies the *sum* of its losses by $N / (\text{tokens of all ranks})$, and
# then averages. `token_scale` is that factor. The price is one number on the wire.

# %% [markdown]
# ## 4. Send while you compute
#
# The loop above has two faults. It sends a message per parameter, and each has its latency. And it waits with all of
# them until the backward pass is over, so that the wire is idle first, and the processor after.
#
# - **flat** mends the first: all gradients in one vector, one message.
# - **bucketed** mends both: backward finishes the *last* layer's gradients first. Collect some megabytes of them in a
#   bucket, and send it while backward works on the layers before.
#
# `DataParallel` has all three. A ledger that looks at the clock shows when each message starts:


# %%
class Clock(CommLedger):
    """A ledger that notes when each call is made, too."""

    def observe(self, call, group):
        self.when = [*getattr(self, "when", ()), time.perf_counter()]
        super().observe(call, group)


def loss_of(model, step, num_sequences=4, seq=64):
    """The mean loss of this rank's part of a batch; the whole batch is the same for any number of ranks."""
    generator = torch.Generator().manual_seed(step)
    batch = torch.randint(config.vocab_size, (2, num_sequences, seq), generator=generator)
    tokens, targets = batch.chunk(dist.get_world_size(), dim=1)[dist.get_rank()]
    return nn.functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())


# %%
def watch_backward(strategy):
    """One backward pass under a strategy, with the times of what happens."""
    model, ready = DecoderLM(config), []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda _: ready.append(time.perf_counter()))
    model = DataParallel(model, strategy=strategy, bucket_bytes=psi)  # a bucket is a quarter of the model
    loss_of(model, 0).backward()  # once to warm up
    model.zero_grad()
    ready.clear()
    loss = loss_of(model, 1, num_sequences=8, seq=128)
    dist.barrier()
    start = time.perf_counter()
    with Clock() as clock:
        loss.backward()
    return start, time.perf_counter(), ready, clock


# %%
traces, clocks = [], {}
for strategy in ("naive", "flat", "bucketed"):
    start, end, ready, clock = run_distributed(watch_backward, 2, strategy)[0]
    sends = [(when - start, call.payload_bytes) for when, call in zip(clock.when, clock.calls)]
    times = {"gradients_s": [when - start for when in ready], "sends": sends, "end_s": end - start}
    traces.append(parallel_figures.BackwardTrace(label=strategy, **times))
    clocks[strategy] = clock
display(parallel_figures.backward_traces(traces))

# %% [markdown]
# Blue marks are gradients, triangles are messages, larger ones with more bytes. "Naive" and "flat" have all their
# messages in the grey part, where there is nothing left to compute. "Bucketed" has started most of them before: what it
# still has to wait for is the rest of the last ones.
#
# The last is the embedding's: backward comes to it at the very end. Nothing is left behind which it could hide, so
# overlap never hides everything.


# %%
for strategy, clock in clocks.items():
    print(f"{strategy:9} {len(clock.calls):3} messages, {units.format_bytes(clock.sent_bytes)} sent per rank")
    assert clock.sent_bytes == cost_model.wire_bytes("all_reduce", 4 * psi, num_ranks=2)

# %% [markdown]
# The same bytes, in 38 messages, in one, or in a few. Does it pay? Each strategy takes a step in turn, so that all see
# the same machine. The medians:


# %%
def time_steps(num_turns):
    """Median seconds of a backward pass under each strategy."""
    models = {name: DataParallel(DecoderLM(config), strategy=name) for name in ("naive", "flat", "bucketed")}
    seconds = {name: [] for name in models}
    for turn in range(num_turns):
        for name, model in models.items():
            loss = loss_of(model, turn)
            dist.barrier()
            start = time.perf_counter()
            loss.backward()
            seconds[name].append(time.perf_counter() - start)
            model.zero_grad()
    return {name: statistics.median(values[2:]) for name, values in seconds.items()}


# %%
medians = run_distributed(time_steps, 2, {"fast": 6, "full": 22}[profile], timeout_s=200)[0]
for name, seconds in medians.items():
    print(f"{name:9} {1e3 * seconds:6.1f} ms,  {seconds / medians['naive']:.2f} of naive")

# %% [markdown]
# Here both ranks are on one computer, and a message between them is a copy in memory, done by the same processors that
# compute. So there is little to hide, and the order may change from run to run. Over a network it is another matter
# (section 7).

# %% [markdown]
# A last saving: if a step is made of several micro-batches, gradients need to be averaged only once. In `no_sync`,
# backward passes add up on their own rank and send nothing.


# %%
def accumulate(num_silent):
    """Bytes sent for four micro-batches, of which some are silent."""
    model = DataParallel(DecoderLM(config))
    with CommLedger() as ledger:
        with model.no_sync():
            for step in range(num_silent):
                loss_of(model, step).backward()
        for step in range(num_silent, 4):
            loss_of(model, step).backward()
    return ledger.sent_bytes


# %% tags=["nbval-check-output"]
for num_silent in (0, 3):
    sent = run_distributed(accumulate, 2, num_silent)[0] / (4 * psi)
    print(f"{num_silent} of 4 micro-batches silent: each rank sends {sent:.2f} times the gradients")

# %% [markdown]
# ## 5. Take away what is there N times
#
# All ranks hold the same weights, the same averaged gradients, the same states of Adam. They even compute the same
# update, each for itself. ZeRO, the *Zero Redundancy Optimizer*, gives each rank a *shard* of it: one of $N$ equal
# parts.
#
# | stage | sharded | who has the rest when it is needed |
# |---|---|---|
# | 1 | optimizer states | nobody needs it: each rank updates its shard of the weights, then all gather them |
# | 2 | and gradients | nobody: a gradient is summed up where its weights are updated |
# | 3 | and weights | the others: a layer is gathered before it computes, and freed after |

# %% [markdown]
# Walk through a step. Every strip is the whole model, filled where the rank holds it. **Predict** before you choose
# ZeRO-3: how often does each rank receive the weights in a step?

# %%
ShardMap(stage=1, num_ranks=4)

# %% [markdown]
# The same moment of the backward pass in stages 1 and 3. Hatched is what is there for a moment only: in stage 3 that
# includes one layer's weights.

# %%
display(ShardMap(stage=1, moment=6).figure())
display(ShardMap(stage=3, moment=9).figure())

# %% [markdown]
# ## 6. Live, on four processes
#
# Now for real. The same model under each strategy, four ranks, Adam in fp32. A `MemoryTimeline` looks at every tensor
# of each rank, a `CommLedger` at every message.


# %%
from cme295lab.parallel import FullyShardedModel, ZeroOptimizer


def make(strategy):
    """The same model under a strategy: what to call, and its optimizer."""
    torch.manual_seed(0)
    model, options = DecoderLM(config), {"lr": 1e-3, "foreach": False}
    if strategy == "data parallel":
        return DataParallel(model), torch.optim.Adam(model.parameters(), **options)
    stage = int(strategy[-1])
    if stage == 3:
        model = FullyShardedModel(model)
    return model, ZeroOptimizer(model, torch.optim.Adam, stage=stage, **options)


# %%
def fingerprint(state_dict):
    """A hash of all weights: equal if and only if every bit is."""
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in state_dict.values())).hexdigest()


# %%
def train(strategy, num_steps=3):
    """Train, and watch the last step; what is held is looked at before the optimizer's step."""
    model, optimizer = make(strategy)
    for step in range(num_steps):
        with memory.MemoryTimeline(model=model, optimizer=optimizer) as timeline, CommLedger() as ledger:
            loss_of(model, step).backward()
            timeline.mark([shard.gradient for shard in getattr(optimizer, "shards", ())], "gradient")
            time.sleep(0.1)  # gloo lets go of the last message's tensors a moment after it has arrived
            held = timeline.by_class()
            optimizer.step()
            optimizer.zero_grad()
    return held, timeline.peak_bytes, ledger, fingerprint(model.state_dict())


# %%
strategies = ("data parallel", "ZeRO-1", "ZeRO-2", "ZeRO-3")
runs = {strategy: run_distributed(train, 4, strategy, timeout_s=200) for strategy in strategies}

# %% tags=["nbval-check-output"]
print("bytes per parameter   weight  gradient   state      sum   formula")
for stage, (strategy, ranks) in enumerate(runs.items()):
    for rank in (0, 3):
        held = ranks[rank][0]
        parts = [held[name] / psi for name in ("weight", "gradient", "optimizer state")]
        formula = memory.zero_model_state_bytes(psi, 4, stage, policy="fp32") / psi
        row = [*parts, sum(parts), formula]
        print("{:13} rank {} {:8.2f} {:9.2f} {:7.2f} {:8.2f} {:9.2f}".format(strategy, rank, *row))
        assert abs(sum(parts) - formula) < 0.001

# %% [markdown]
# The formula to two decimals. (What is left is padding, where sizes do not divide by four, and Adam's step counters.)
#
# Now the wire. **Predict** for stages 1, 2 and 3: more than plain data parallelism, less, or as much?

# %% tags=["nbval-check-output"]
print("sent per rank and step, in Ψ    gradients  weights     sum  formula")
for stage, (strategy, ranks) in enumerate(runs.items()):
    tags = {name: traffic.sent_bytes / (4 * psi) for name, traffic in ranks[0][2].by_tag().items()}
    gradients, weights = tags["gradients"], tags.get("weights", 0.0)
    formula = (3 if stage == 3 else 2) * (4 - 1) / 4
    print(f"{strategy:29} {gradients:11.2f} {weights:8.2f} {gradients + weights:7.2f} {formula:8.2f}")
    assert abs(gradients + weights - formula) < 0.001

# %% [markdown]
# Stages 1 and 2 cost **no** byte more than plain data parallelism. An all-reduce is a reduce-scatter and an all-gather;
# they stop after the first half, update, and send weights instead of gradients in the second. Only stage 3 pays: it
# gathers the weights twice, for forward and for backward, $3\Psi$ instead of $2\Psi$.
#
# And the result? Adam does not care in which piece a number lies. If all weights of all runs are equal bit for bit,
# there is one fingerprint:

# %% tags=["nbval-check-output"]
fingerprints = {found for ranks in runs.values() for *_, found in ranks}
print("different weights after 3 steps, of 4 strategies on 4 ranks each:", len(fingerprints))
assert len(fingerprints) == 1

# %%
kept = ("weight", "gradient", "optimizer state")
held = {strategy: {name: ranks[0][0][name] for name in kept} for strategy, ranks in runs.items()}
sent = {
    strategy: {tag: t.sent_bytes for tag, t in ranks[0][2].by_tag().items() if tag != "scalars"}
    for strategy, ranks in runs.items()
}
formula = [memory.zero_model_state_bytes(psi, 4, stage, policy="fp32") for stage in range(4)]
display(parallel_figures.rank_bars(held, sent, formula_bytes=formula))

# %% [markdown]
# A peak decides whether training fits, and it has more in it: activations, buckets on their way, and in stage 3 the
# layers that are gathered at the moment.

# %%
for strategy, ranks in runs.items():
    peaks = [peak / (4 * psi) for _, peak, *_ in ranks]
    print(f"{strategy:13} peak {max(peaks):.2f} times the weights")

# %% [markdown]
# ## 7. When communication hurts
#
# How long does a message take? In the simplest model a latency and a time per byte: for a ring of $p$ ranks
#
# $$T = 2(p-1)\,\alpha + 2\,\frac{p-1}{p}\,\frac{n}{\text{bandwidth}}$$
#
# A tree needs only about $2 \log_2 p$ steps, but sends the whole vector in each. **Predict**: 64 GPUs; which is faster
# for a gradient of 1 GB, which for the single number of a loss?

# %%
link = cost_model.get_link("InfiniBand NDR")
sizes = [4.0 * 4**power for power in range(16)]
lines = {
    f"{algorithm}, {num_ranks} ranks": {
        size: cost_model.collective_time_s("all_reduce", size, num_ranks, link, algorithm) for size in sizes
    }
    for num_ranks in (8, 64)
    for algorithm in ("ring", "tree")
}
crossing = cost_model.crossover_bytes(64, link)
display(parallel_figures.time_lines(lines, title=f"an all-reduce over {link.name}", mark_bytes=crossing))

# %% tags=["nbval-check-output"]
bf16_gradients = 2 * 6.738e9  # bytes, of a 7B model
links = {"NVLink in a node": (8, cost_model.nvlink("H100")), "InfiniBand": (1024, "InfiniBand NDR")}
for name, (num_ranks, link) in links.items():
    seconds = cost_model.collective_time_s("all_reduce", bf16_gradients, num_ranks, link)
    time_and_size = f"{units.format_seconds(seconds)} for {units.format_bytes(bf16_gradients)}"
    print(f"{name:17} {num_ranks:5} ranks: {time_and_size}")

# %% [markdown]
# Is half a second much? It depends on what there is to compute meanwhile. A backward pass takes $4\Psi T$ operations
# for $T$ tokens on a GPU, and in 16 bits an all-reduce sends nearly $4\Psi$ bytes. The size of the model cancels:
#
# $$T > \frac{\text{FLOP/s}}{\text{bytes/s}}$$
#
# tokens per GPU, and the gradients can hide behind the backward pass. For an A100 that reaches 40 % of its peak:

# %% tags=["nbval-check-output"]
flops_per_s = 0.4 * 312e12
print("link               tokens per GPU   share of the step that computes, at 4,096 tokens")
for name in ("Ethernet 10G", "Ethernet 100G", "InfiniBand NDR"):
    link = cost_model.get_link(name)
    shares = []
    for stage in (0, 3):
        options = {"compute_s": 6 * 7.5e9 * 4096 / flops_per_s, "gradient_bytes": 2 * 7.5e9, "num_ranks": 64}
        step = step_time.training_step_time(link=link, stage=stage, **options)
        shares.append(f"{step.efficiency:4.0%}")
    tokens = flops_per_s / link.bandwidth_bytes_per_s
    print(f"{name:16} {tokens:16,.0f}   data parallel {shares[0]}, ZeRO-3 {shares[1]}")

# %% [markdown]
# Move the sliders. From which link on does ZeRO-3 cost nothing? What happens with fewer tokens per GPU, which is what
# you get if you add GPUs and keep the batch?

# %%
TradeOffExplorer()

# %% [markdown]
# The same model over a slow and over a fast link:

# %%
for bandwidth in (1.25e9, 50e9):
    display(TradeOffExplorer(link_bytes_per_s=bandwidth).figure())

# %% [markdown]
# ## 8. A 7.5B model on 64 GPUs
#
# The ZeRO paper ([Rajbhandari et al. 2020](https://arxiv.org/abs/1910.02054)) opens with this example. In mixed
# precision, weights and gradients take 2 bytes each, Adam with its fp32 master weights $K = 12$:
#
# | | per GPU | limit for many GPUs |
# |---|---|---|
# | plain | $(2 + 2 + K)\,\Psi$ | |
# | ZeRO-1 | $(2 + 2)\,\Psi + K\Psi/N$ | 4 times less |
# | ZeRO-2 | $2\,\Psi + (2 + K)\,\Psi/N$ | 8 times less |
# | ZeRO-3 | $(2 + 2 + K)\,\Psi/N$ | $N$ times less |
#
# **Predict** the first and the last for $\Psi = 7.5 \cdot 10^9$, $N = 64$.

# %%
psi_paper, num_gpus = 7_500_000_000, 64
states = {}
for stage, strategy in enumerate(strategies):
    weights, gradients, rest = (num_gpus if stage >= first else 1 for first in (3, 2, 1))  # divided by
    parts = {"weight": 2 / weights, "gradient": 2 / gradients, "optimizer state": 12 / rest}
    states[strategy] = {name: psi_paper * num_bytes for name, num_bytes in parts.items()}
    assert sum(states[strategy].values()) == memory.zero_model_state_bytes(psi_paper, num_gpus, stage)
display(parallel_figures.held_bars(states, title="7.5B parameters on 64 GPUs"))

# %% tags=["nbval-check-output"]
print("GB     7.5B parameters           128B parameters            1T parameters")
print("GPUs   ZeRO-1  ZeRO-2  ZeRO-3    ZeRO-1   ZeRO-2   ZeRO-3     ZeRO-1     ZeRO-2     ZeRO-3")
for num_ranks in (1, 4, 16, 64, 256, 1024):
    row = f"{num_ranks:4} "
    for num_parameters, width in ((7_500_000_000, 8), (128_000_000_000, 9), (1_000_000_000_000, 11)):
        for stage in (1, 2, 3):
            row += f"{memory.zero_model_state_bytes(num_parameters, num_ranks, stage) / 1e9:{width},.2f}"
    print(row)

# %% [markdown]
# That is the paper's Table 1 (which cuts its digits off). A trillion parameters fit on 1,024 GPUs of 16 GB each, as far
# as states are concerned. Activations come on top: ZeRO does not shard them.
#
# ## 9. Stop, and go on with other ranks
#
# A run of weeks is interrupted, and the next time there may be fewer GPUs. Then a rank's file fits nobody. A checkpoint
# of `save_sharded` says which elements of which parameter each file holds, so any number of ranks, and any stage, can
# read it.


# %%
from cme295lab.parallel import consolidate, load_sharded, save_sharded


def take_steps(model, optimizer, steps):
    """Train on the batches of some steps; return the mean loss of the last one."""
    for step in steps:
        loss = loss_of(model, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    loss = loss.detach()
    dist.all_reduce(loss)
    return loss.item() / dist.get_world_size()


# %%
def save_and_go_on(folder):
    """Three steps, a checkpoint, two steps more."""
    model, optimizer = make("ZeRO-3")
    take_steps(model, optimizer, range(3))
    save_sharded(folder, optimizer, step=3)
    return take_steps(model, optimizer, range(3, 5))


def resume(folder):
    """The two steps more, on other ranks and in another stage."""
    model, optimizer = make("ZeRO-1")
    first = load_sharded(folder, optimizer).step
    return take_steps(model, optimizer, range(first, 5))


# %%
with tempfile.TemporaryDirectory() as folder:
    before = run_distributed(save_and_go_on, 4, folder)[0]
    after = run_distributed(resume, 2, folder)[0]
    plain = DecoderLM(config)
    plain.load_state_dict(consolidate(folder))
print(f"loss after 5 steps: 4 ranks of ZeRO-3 all the way {before:.5f}, resumed on 2 ranks of ZeRO-1 {after:.5f}")
is_equal = {fingerprint(plain.state_dict())} == fingerprints
print("the plain model, alone, has the weights of step 3 bit for bit:", is_equal)

# %% [markdown]
# The two losses differ in their last digits at most: two ranks add up four sequences in another order than four do.
#
# ## Often said, and not quite right
#
# | said | counted |
# |---|---|
# | "Zero Redundancy Optimization" | Zero Redundancy **Optimizer** |
# | "the ranks *share* the optimizer states" | they **shard** them: each has a part that nobody else has |
# | "ZeRO costs communication" | stages 1 and 2 cost none; only stage 3 sends 1.5 times as much (section 6) |
# | "data parallelism averages gradients" | only with equally many tokens per rank; else weight by tokens (section 3) |
# | "communication is hidden behind backward" | all but the last bucket, if there are enough tokens (sections 4 and 7) |
# | "ZeRO-3 divides the memory by N" | of the states; activations and gathered layers stay (section 6) |

# %% [markdown]
# ## Summary
#
# - A ring all-reduce sends $2S(N-1)/N$ bytes per rank, whatever $N$; it is a reduce-scatter and an all-gather.
# - Buckets are sent while backward runs. Enough tokens per GPU, and most of the communication hides.
# - ZeRO shards states (1), gradients (2), weights (3): 4, 8, $N$ times less memory for states.
# - Stages 1 and 2 are free, stage 3 sends 1.5 times the bytes. All of them end at the same weights, bit for bit.
#
# **Your turn**: write [the ring](../exercises/ring_all_reduce/ring_all_reduce.ipynb), then
# [data parallelism that overlaps](../exercises/ddp_overlap/ddp_overlap.ipynb), then
# [ZeRO](../exercises/zero_sharding/zero_sharding.ipynb). Your code runs on real ranks; what it computes, holds and
# sends is checked.
