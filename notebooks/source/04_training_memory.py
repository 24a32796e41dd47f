# %% [markdown]
# # Where the 80 GB go
#
# Llama-3 8B has 8 billion parameters. In 16 bits its weights take 16 GB, and a large GPU has 80. Yet on one such GPU it
# cannot be trained the ordinary way, not even with a single sequence. What else is there, and how much of it is needed?
#
# In this lab you watch a training step byte by byte, then write each byte down as a formula, hold the two against each
# other, and use the formula to fit the large model into the 80 GB.

# %% tags=["parameters"]
profile = "full"  # "fast": smaller sizes, for a quick look

# %%
import torch

from cme295lab import memory, units
from cme295lab.memory import MemoryTimeline, apply_recompute, training_memory
from cme295lab.transformer import DecoderLM, preset
from cme295lab.widgets import BudgetExplorer, TimelineExplorer
from cme295lab.widgets import comparison_bars, peak_treemap, timeline_figure

GB = units.format_bytes
torch.manual_seed(0)
print("ready")

# %% [markdown]
# ## 1. A training step in slow motion
#
# A small model with the parts of Llama: embedding, blocks of attention and MLP, a head. One step of training with Adam
# in fp32. `MemoryTimeline` follows every tensor's storage from allocation to release.
#
# **Predict**, in multiples of the weights: how much is alive after the *first* step? And at its peak?

# %%
config = preset({"fast": "course-1m", "full": "course-4m"}[profile])
BATCH, SEQ = 4, {"fast": 64, "full": 256}[profile]
model = DecoderLM(config)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, foreach=False)
tokens, targets = torch.randint(config.vocab_size, (2, BATCH, SEQ))
print(f"{config.num_parameters:,} parameters, weights {GB(4 * config.num_parameters)}")

# %%
with MemoryTimeline(model=model, optimizer=optimizer) as first:
    with first.phase("forward"):
        loss = model.loss(tokens, targets)
    with first.phase("backward"):
        loss.backward()
    with first.phase("optimizer"):
        optimizer.step()
del loss
print(first)

# %%
display(timeline_figure(first))

# %% [markdown]
# Read the picture from left to right. The weights are there from the start. In the forward pass the **activations**
# pile up: everything that backward will need. In the backward pass they go, the last layer's first, and the
# **gradients** come. Then Adam makes its **states**, and they stay for good.
#
# At the end, weights, gradients and two states of Adam remain, each as large as the weights: 4 times 4 bytes, 16 bytes
# per parameter. That holds for every model trained in fp32 with Adam.

# %% tags=["nbval-check-output"]
alive = first.by_class()
for name in ("weight", "gradient", "optimizer state"):
    print(f"{name:16} {alive[name] / config.num_parameters:.2f} bytes per parameter")

# %% [markdown]
# (Slightly more than 8 for the states: Adam also counts its steps, 4 bytes for each tensor.)
#
# ## 2. What the peak is made of
#
# A peak decides whether training fits; what is alive at other times does not matter. At the peak, which module holds
# how much? Each rectangle is a storage; its size is its bytes.

# %%
display(peak_treemap(first))

# %% [markdown]
# The same to walk through: move the slider to any moment of the step, click a rectangle to look inside.

# %%
display(TimelineExplorer(first))

# %% [markdown]
# The largest piece is not in a layer. It is the output: for every token a number per word of the vocabulary, once as
# logits, once as log-probabilities, and once more as their gradient. In a small model with a large vocabulary that
# dominates. In a large model the layers do.

# %% [markdown]
# ## 3. The same by formula
#
# Weights, gradients and states are a matter of counting parameters. Activations need a closer look. What autograd keeps
# follows from derivatives: a product $XW$ keeps $X$ (for $dW = X^\top dY$), a softmax its output, an addition nothing.
# `training_memory` writes that down for each operator of the model.

# %%
ledger = training_memory(config, policy="fp32", micro_batch=BATCH, seq=SEQ, step="loop", gradients="freed")
display(ledger)

# %% [markdown]
# Each line names its formula: $s$ tokens in a sequence, $b$ sequences, $h$ width. Does it hold? `memory.compare` runs
# the step and lays both side by side. Weights, gradients and states agree to the byte, and so do the activations that
# are kept after the forward pass. The peak has temporaries in it, so there the formula may be a per cent off.

# %%
comparison = memory.compare(config, policy="fp32", micro_batch=BATCH, seq=SEQ)
print(comparison)
assert abs(comparison.error) < 0.02

# %% [markdown]
# ## 4. What costs what
#
# **Predict** before you run: which of these doubles the peak? Twice the batch; twice the sequence (with flash
# attention, and with standard attention); mixed precision; SGD instead of Adam; recomputation.

# %%
BASE = {"policy": "fp32", "micro_batch": BATCH, "seq": SEQ}
settings = {
    "base": BASE,
    "twice the batch": BASE | {"micro_batch": 2 * BATCH},
    "twice the sequence": BASE | {"seq": 2 * SEQ},
    "the same, standard attention": BASE | {"seq": 2 * SEQ, "attention": "standard"},
    "SGD": BASE | {"optimizer": "sgd"},
    "bf16, fp32 masters": BASE | {"policy": "bf16-mixed"},
    "each layer recomputed": BASE | {"recompute": "full"},
}
measured = {name: memory.compare(config, **options) for name, options in settings.items()}

# %%
display(comparison_bars(measured))

# %%
print(f"{'':30} {'formula':>9} {'measured':>9}   off   of the base")
base = measured["base"].measured_peak_bytes
for name, found in measured.items():
    peak = found.measured_peak_bytes
    print(f"{name:30} {GB(found.ledger.total_bytes):>9} {GB(peak):>9} {found.error:6.1%} {peak / base:6.2f}")
assert all(abs(found.error) < 0.02 for found in measured.values())

# %% [markdown]
# - **A batch** costs activations, and only those.
# - **A sequence** costs the same as a batch with as many tokens, *if* attention is flash attention. Standard attention
#   keeps $N \times N$ matrices: twice the length, four times those.
# - **SGD** saves Adam's 8 bytes per parameter.
# - **Mixed precision** does *not* save weights, gradients and states: 2 + 2 + 4 (a 32-bit master copy) + 8 bytes are 16
#   again. You will often read otherwise. What it saves is activations, and traffic.
# - **Recomputation** trades activations for time; see section 6.

# %% tags=["nbval-check-output"]
print("bytes per parameter     weight  gradient  master  Adam's m, v   sum")
for name in ("fp32", "bf16-mixed", "bf16-mixed-fp32-gradients", "bf16-fp32-states", "bf16-pure"):
    p = memory.get_policy(name)
    parts = [p.weight_bytes, p.gradient_bytes, p.master_bytes, 2 * p.state_bytes]
    print("{:26} {:3} {:9} {:7} {:12} {:5}".format(name, *parts, sum(parts)))
    assert sum(parts) == memory.bytes_per_parameter(name, "adamw")

# %% [markdown]
# The fourth line is the "780 GB" that QLoRA compares itself with: full 16-bit fine-tuning of 65 billion parameters at
# 12 bytes each. The third is what you get if gradients are added up in fp32 over several micro-batches.

# %% [markdown]
# ## 5. Activations of a large model, published
#
# Korthikanti et al. (2022) count the activations of a layer of GPT with 16-bit numbers, dropout and standard attention:
#
# $$s\,b\,h\left(34 + 5\,\frac{a\,s}{h}\right)\ \text{bytes}$$
#
# with $a$ heads. The second term is attention's $N \times N$ matrices. For GPT-3 that term alone is 80, so 70 % of the
# activations. Recompute only these, and 70 % of the memory goes for a few per cent of compute: *selective*
# recomputation. FlashAttention does exactly this inside its kernel.

# %% tags=["nbval-check-output"]
from cme295lab.memory.formulas.korthikanti import layer_bytes

print("MiB per layer    none     TP  TP+SP  TP+SP, selective   full")
for name, batch in (("megatron-22b", 4), ("megatron-175b", 1)):
    ways = [{}, {"tensor": 8}, {"tensor": 8, "sequence_parallel": True}]
    ways += [ways[-1] | {"recompute": "selective"}, {"recompute": "full"}]
    sizes = [layer_bytes(preset(name), seq=2048, micro_batch=batch, **way) for way in ways]
    values = [float(size / units.MiB) for size in sizes]
    print("{:14} {:6.0f} {:6.0f} {:6.0f} {:17.0f} {:6.0f}".format(name, *values))

# %% [markdown]
# ## 6. Recomputation, written out
#
# Keep only the input of each layer; in the backward pass run the layer's forward again, then go backward through it.
# `memory.checkpoint` is that in some forty lines; open it and read it. The gradients do not change by a single bit,
# dropout included, because the random numbers are drawn again from the same state.
#
# **Predict** the price: a backward pass costs twice a forward pass. How much longer is a step that runs every
# forward twice?

# %%
from torch.utils.flop_counter import FlopCounterMode


def step_with(kind, **options):
    """Activations at their peak, FLOPs, and gradients of one step with standard attention."""
    torch.manual_seed(0)
    model = DecoderLM(config, attention="standard")
    apply_recompute(model, kind, **options)
    with MemoryTimeline(model=model) as timeline, FlopCounterMode(display=False) as flops:
        model.loss(tokens, targets).backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    return timeline.peak_bytes_of({"activation"}), flops.get_total_flops(), gradients

# %%
kept, work, gradients = step_with("none")
ways = {"none": {}, "selective": {}, "full": {}, "full, inputs in CPU memory": {"offload": True}}
for name, options in ways.items():
    activations, flops, found = step_with(name.partition(",")[0], **options)
    same = all(torch.equal(a, b) for a, b in zip(gradients, found))
    print(f"{name:27} activations {GB(activations):>8}, FLOPs {flops / work:5.3f}, equal gradients: {same}")
    extra = memory.recomputed_flops(config, name.partition(",")[0], batch=BATCH, seq=SEQ)
    assert same
    assert flops == work + extra

# %% [markdown]
# The FLOPs are those of the formula, exactly. A third more would be the answer for "full" if layers were everything;
# here the head, which is not recomputed, is a large part of the work.
#
# What is left under "full" is the input of each layer, one layer's activations while it is recomputed, and the output's
# log-probabilities. The inputs can be sent to the CPU's memory, too; on a GPU that costs a trip over PCIe each way.

# %% [markdown]
# ## 7. Fit Llama-3 8B into 80 GB
#
# Now the large model, by formula. One sequence of 8,192 tokens, mixed precision, Adam.

# %% tags=["nbval-check-output"]
llama = training_memory("llama-3-8b", seq=8192)
for name, size in llama.by_class().items():
    print(f"{name:16} {GB(size):>8}")
print(llama.fits("H100"))

# %% [markdown]
# The states alone, 16 bytes for each of 8 billion parameters, are 128 GB. No batch is small enough: recomputation and
# a shorter sequence reduce activations, and those are not the problem.
#
# **Predict** the cheapest way out, then ask.

# %% tags=["nbval-check-output"]
print(llama.cheapest_fix("H100"))
alone = memory.cheapest_fix(llama.setting, "H100", more_gpus=False)
print("on one GPU:", alone)

# %% [markdown]
# With more GPUs, each of them need not hold everything: that is ZeRO, the next notebook. On one GPU only a detour
# helps: states in the CPU's memory, at the price of sending gradients and weights over PCIe in every step.
#
# (A GPU with "80 GB" has 80 GiB, 85.9 GB. The runtime itself takes some hundred MB of it, which no ledger sees.)
#
# Play with it. What is the longest sequence on 8 GPUs with ZeRO-3? Which change do you need for Llama-3 70B? The field
# at the bottom is a link to what you see.

# %%
explorer = BudgetExplorer()
display(explorer)

# %% [markdown]
# One setting of it as a picture, for where no kernel runs:

# %%
display(explorer.figure())

# %% [markdown]
# ## 8. How large can it get?

# %% tags=["nbval-check-output"]
over_8 = memory.ParallelConfig(data=8, zero_stage=3)
sharded = training_memory("llama-3-8b", seq=8192, recompute="full", parallel=over_8)
print("8 GPUs, ZeRO-3, full recomputation:", sharded.fits("H100"))
for what in ("micro_batch", "seq"):
    print(f"  largest {what} that fits: {sharded.largest_fitting(what, device='H100'):,}")
for gpu in ("T4", "RTX 4090", "A100-40GB-SXM", "H100", "B200"):
    small = training_memory("gpt-2", seq=1024)
    print(f"{gpu:14} alone trains, at 1,024 tokens, up to {small.largest_fitting('model', device=gpu)}")

# %% [markdown]
# Generation is another matter: no gradients, no states, but a cache of keys and values that grows with every token of
# every conversation. Llama-3 8B has 8 key/value heads for 32 query heads, which makes the cache a quarter as large.

# %% tags=["nbval-check-output"]
for name in ("llama-2-7b", "llama-3-8b", "llama-2-70b"):
    per_token = memory.kv_cache_bytes(name, seq=1)
    full = memory.kv_cache_bytes(name)
    print(f"{name:12} {per_token:>8,} bytes a token, {units.format_bytes(full, binary=True)} for a full context")

# %% [markdown]
# ## Summary
#
# - Training with Adam takes 16 bytes per parameter before the first token, in fp32 and in mixed precision alike.
# - Activations grow with tokens and layers; standard attention adds a term quadratic in the sequence, flash attention
#   does not.
# - The peak counts. It is usually at the loss, when all activations are there.
# - Recomputation buys activations with up to a third more compute, and changes no bit of the result.
# - Formula and measurement agree: states to the byte, the peak within 2 %.
#
# Exercise: `exercises/training_memory/training_memory.ipynb`. Next: [05, data parallelism and
# ZeRO](05_data_parallel_zero.ipynb).
