# %% [markdown]
# # Training in 16 bits
#
# A GPU multiplies 16-bit numbers several times faster than 32-bit ones, and moves them in half the time. Train in 16
# bits as you would in 32, and the run may be lost: without an error, without a NaN, with a loss that goes down, only
# less.
#
# In this lab you lose such a run, find out which numbers went missing, and repair it with the three techniques of
# Micikevicius et al. (2018): master weights, loss scaling, sums in fp32. Notebook 08 is about the formats themselves.

# %% tags=["parameters"]
profile = "full"  # "fast": shorter runs, for a quick look

# %%
from functools import partial

import torch

from cme295lab import precision
from cme295lab.transformer import DecoderLM, load_pretrained, preset
from cme295lab.widgets import LossScaleExplorer, policy_losses, scale_trace

FULL = profile == "full"
print("ready")

# %% [markdown]
# ## 1. Three ways to lose a number
#
# **Predict** what each line prints. A weight of 1 in fp16, and a thousand updates of 0.0001 each:

# %% tags=["nbval-check-output"]
weight = torch.tensor(1.0, dtype=torch.float16)
for _ in range(1000):
    weight = weight - torch.tensor(1e-4, dtype=torch.float16)
print(f"after a thousand updates of 0.0001: {weight.item()}")
gap = precision.neighbours(torch.tensor(0.9999), "fp16")
print(f"fp16 has no number between {gap[0].item()} and {gap[1].item()}")

# %% [markdown]
# The update is smaller than half the gap between two neighbours, so the sum is rounded back to where it was: each time.
# In fp16 that happens as soon as a weight is more than $2^{11} = 2048$ times its update, in bf16 at $2^8 = 256$ times.
#
# A gradient of 0.00000001, and a sum of ten thousand ones:

# %% tags=["nbval-check-output"]
gradient = torch.tensor(1e-8)
for scale in (1, 256, 65536):
    held = (gradient * scale).half()
    print(f"1e-8 × {scale:6,} in fp16, divided again in fp32: {held.float().item() / scale:.4g}")
total = torch.tensor(0.0, dtype=torch.float16)
for _ in range(10_000):
    total = total + torch.tensor(1.0, dtype=torch.float16)
print(f"ten thousand ones, summed in fp16: {total.item()}")

# %% [markdown]
# Three losses, three remedies:
#
# | what is lost | remedy |
# |---|---|
# | small updates to large weights | *master weights*: the optimizer keeps the weights in fp32 |
# | small gradients | *loss scaling*: multiply the loss, hence all gradients, by $S$; divide in fp32 |
# | small terms of large sums | products of 16-bit numbers, *summed in fp32* |
#
# Tensor cores do the third by themselves. Softmax, norms and losses, which are sums as well, a framework runs in fp32:

# %% tags=["nbval-check-output"]
from cme295lab.precision.autocast import HIGH_OPERATORS, LOW_OPERATORS

print("16 bits:", ", ".join(sorted(LOW_OPERATORS)[:9]), "…")
print("fp32:   ", ", ".join(sorted(HIGH_OPERATORS)[:9]), "…")

# %% [markdown]
# `precision.autocast_like` looks every operator of a model up in these two tables, as `torch.autocast` does in its own.

# %% [markdown]
# ## 2. One model, five ways
#
# The course's smallest model (0.35 million parameters) on the same batches, with the same seed. fp16 on a CPU is
# emulated: tensors are true halves, products are computed in fp32 and rounded, which is what a tensor core does.
#
# Small runs forgive much. One thing makes large runs different and costs nothing to imitate: a batch of half
# a million tokens is a mean over that many, so each of its 1,024 micro-batches has gradients divided by 1,024. We
# compute one micro-batch, with gradients as small as there.

# %%
from cme295lab.pretraining.corpora import course_corpus
from cme295lab.pretraining.course_model import course_data, course_recipe, initialize_for_width

NUM_STEPS = 150 if FULL else 12
config = preset("course-draft")
tokenizer = load_pretrained("course-draft").tokenizer
data, _ = course_data(course_corpus("fast"), tokenizer, course_recipe("course-draft"))
batches = []
for step in range(NUM_STEPS):
    batch = data.batch(step, rows=4)
    batches.append((batch.tokens[:, :128], batch.targets[:, :128]))
print(f"{NUM_STEPS} batches of {batches[0][0].numel()} tokens; {config.num_parameters:,} parameters")

# %% [markdown]
# **Predict** which of the five will end like fp32, and which technique the others lack:
#
# `pure-fp16` has none of the first two; `fp16-master` has master weights; `fp16-mixed` scales the loss, too;
# `bf16-mixed` has masters and no scaling.

# %%
def new_model():
    return initialize_for_width(DecoderLM(config), seed=0)


def warm_up(step):
    return 2e-3 * min(1, (step + 1) / 10)


results = precision.compare_policies(
    new_model, batches, learning_rate=warm_up, micro_batches=1024
)
for name, records in results.items():
    print(f"{name:12} loss {records[0].loss:.3f} → {records[-1].loss:.3f}, {sum(r.skipped for r in records)} skipped")

# %%
display(policy_losses(results))

# %% [markdown]
# Nothing crashed, and no NaN appeared. Both runs without loss scaling learned at first: from the gradients that were
# large enough. Then what is left of the gradients points elsewhere, and the loss rises. Without the run in fp32 beside
# it one would look for the fault in the learning rate.
#
# With scaling, fp16 lies on top of fp32, and bf16 does so without scaling. Master weights alone made no difference, and
# that is no accident: the learning rate is high, so updates are large. Their turn comes in section 4.

# %% [markdown]
# ## 3. Which gradients?
#
# The gradients of the same model, measured in fp32, over the range of fp16. Drag the loss scale. **Predict** first:
# at which scale is nothing flushed, and at which does the first value overflow?

# %%
model = new_model()
(model.loss(*batches[0]) / 1024).backward()
explorer = LossScaleExplorer(model)
display(explorer)

# %% tags=["picture"]
display(explorer.figure())

# %%
print(precision.underflow_report(model, ("fp16", "bf16"), loss_scale=1.0).merged(depth=1))
print()
print(precision.underflow_report(model, ("fp16", "bf16"), loss_scale=65536.0).merged(depth=1))

# %% [markdown]
# bf16 has the exponents of fp32: the whole picture fits with room to spare, at any scale. That is why nobody scales
# losses for bf16. It pays with digits: 8 bits of accuracy where fp16 has 11.
#
# The published figures are as drastic: in a detection network 67 % of the activations' gradients were zero in fp16, and
# a factor of 8 was enough; a language model needed 128; others 32 thousand.
#
# ### Who chooses the scale?
#
# Nobody has to. *Dynamic* scaling starts high. Is a gradient infinite, the step is skipped and the scale halved; after
# $N$ clean steps it is doubled:

# %%
scaling = precision.LossScaling(initial_scale=2.0**34, growth_interval=10)
policy = precision.PrecisionPolicy(compute="fp16", master_weights=True, loss_scaling=scaling)
run = precision.compare_policies(
    new_model, batches, {"dynamic": policy}, learning_rate=warm_up, micro_batches=1024
)["dynamic"]
display(scale_trace(run))
print(f"{sum(record.skipped for record in run)} of {len(run)} steps skipped, final loss {run[-1].loss:.3f}")

# %% [markdown]
# A skipped step costs its computation, no more: weights and moments stay untouched. Torch's `GradScaler` begins at
# 65,536 and doubles after 2,000 clean steps; ours goes through the same states.
#
# The order matters. **Predict**: gradients are scaled by 65,536 and clipped to a norm of 1 *before* they are divided.
# What is the norm of what the optimizer sees?

# %% tags=["nbval-check-output"]
gradients = torch.tensor([3.0, 4.0])  # norm 5
for order in ("clip, then unscale", "unscale, then clip"):
    scaled = gradients * 65536
    if order.startswith("clip"):
        seen = scaled / scaled.norm() / 65536
    else:
        seen = scaled / 65536 / (scaled / 65536).norm()
    print(f"{order}: norm {seen.norm().item():.3g}")

# %% [markdown]
# A loss that is not finite by itself is another matter: no scale helps, and halving for ever would only hide it. So we
# stop, and say why:

# %% tags=["nbval-check-output"]
scaler = precision.LossScaler()
try:
    scaler.scale_loss(torch.tensor(float("nan")))
except precision.LossNeverFinite as error:
    print(error)

# %% [markdown]
# ## 4. Small updates
#
# Fine-tuning, and the end of every schedule, has small learning rates. Here the shipped model, already trained, learns
# to tell stories with a learning rate of 0.00003. Adam moves each weight by about that much in a step, whatever the
# gradient. **Predict**: how large may a weight be, at most, so that bf16 takes notice? (256 × 0.00003.)

# %%
from cme295lab.pretraining import PackedDataset

told = [document.text for document in course_corpus("fast").train["stories"]]
packed = PackedDataset(tokenizer.encode_batch(told), seq=64, end_token=tokenizer.end_token)
stories = [(batch.tokens, batch.targets) for batch in (packed.batch(step, rows=8) for step in range(NUM_STEPS))]


def trained_model():
    return load_pretrained("course-draft").model


names = ("fp32", "bf16-fp32-states", "pure-fp16", "bf16-stochastic", "bf16-mixed")
small = precision.compare_policies(trained_model, stories, names, learning_rate=3e-5)
display(policy_losses(small))

# %%
before = {name: weight.clone() for name, weight in trained_model().named_parameters()}
for name in ("bf16-mixed", "bf16-fp32-states", "bf16-stochastic"):
    training = precision.MixedPrecisionTraining(trained_model(), name, learning_rate=3e-5)
    for batch in stories[:20]:
        training.step(partial(training.model.loss, *batch))
    weights = training.masters or dict(training.model.named_parameters())
    moved = sum((weights[key].float() != value.bfloat16().float()).sum().item() for key, value in before.items())
    print(f"{name:16} {moved / sum(value.numel() for value in before.values()):.1%} of the weights moved")

# %% [markdown]
# Weights in bf16 alone (`bf16-fp32-states`) stand still, almost all of them; those in fp16 have eight times finer gaps
# and move a little. Two remedies:
#
# - *masters*: 4 more bytes per parameter, exact;
# - *stochastic rounding*: no byte more. An update of a tenth of the gap is made in one of ten steps. Noisy, and right
#   on average.

# %% tags=["nbval-check-output"]
weight = torch.full((10_000,), 1.0)
generator = torch.Generator().manual_seed(0)
for _ in range(100):
    precision.stochastic_round_(weight.add_(1e-3), "bf16", generator=generator)
print("a hundred updates of 0.001, each rounded at random:")
print(f"mean {weight.mean().item():.3f}, spread {weight.std().item():.3f}")

# %% [markdown]
# ## 5. What is saved
#
# "Mixed precision halves the memory": of what? **Predict** the bytes per parameter of weights, gradients, masters and
# Adam's moments under each policy. Then count the storages:

# %% tags=["nbval-check-output"]
for name in ("fp32", "fp16-mixed", "bf16-mixed", "bf16-stochastic"):
    training = precision.MixedPrecisionTraining(new_model(), name)
    training.step(partial(training.model.loss, *batches[0]))
    held = training.state_bytes()
    print(f"{name:16} weights {held.weights / held.num_parameters:.0f} + gradients "
          f"{held.gradients / held.num_parameters:.0f} + masters {held.masters / held.num_parameters:.0f} + moments "
          f"{held.moments / held.num_parameters:.0f} = {held.per_parameter:.0f} B per parameter")

# %% [markdown]
# **16 bytes, either way.** What is saved are the activations (half of them), the traffic, and the bytes on the wire
# between GPUs. For a model of 7 billion parameters, with the ledger of notebook 04:

# %% tags=["nbval-check-output"]
from cme295lab.memory import training_memory
from cme295lab.units import format_bytes

for policy in ("fp32", "bf16-mixed"):
    sizes = training_memory("llama-2-7b", seq=4096, policy=policy).by_class()
    print(f"{policy:11}", ", ".join(f"{name} {format_bytes(size)}" for name, size in sizes.items()))

# %% [markdown]
# ## 6. One pass instead of twelve
#
# An AdamW step hardly computes, it moves bytes. Operation by operation, as eager PyTorch runs it, every intermediate
# result goes to memory and back. A fused kernel reads everything once, and writes the 16-bit weight while it is at it.
# The simulator counts both:

# %% tags=["nbval-check-output"]
from cme295lab import simulator
from cme295lab.precision.adamw import adamw_step_fused, adamw_step_reference, adamw_step_unfused

size, ends = 10_000, []
options = {"learning_rate": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
for step in (adamw_step_reference, adamw_step_unfused, adamw_step_fused):
    torch.manual_seed(0)
    master, gradient = torch.randn(size), torch.randn(size).bfloat16()
    moments, weight16 = (torch.zeros(size), torch.zeros(size)), master.bfloat16()
    with simulator.trace(device="A100") as trace:
        step(master, gradient, *moments, weight16, step=1, **options)
    ends.append(master)
    moved = sum(t.read_bytes + t.written_bytes for t in trace.tensors.values())
    print(f"{step.__name__:22} {moved / size:6.1f} B per parameter" if moved else f"{step.__name__}: no kernel")
print("the same bits:", all(torch.equal(ends[0], end) for end in ends))

# %% [markdown]
# ## 7. And the speed?
#
# On this machine, measured now, one product of square matrices in each format. fp16 is left out on a CPU: it has no
# units for it and converts element by element, some fifty times slower.

# %%
import time

device = "cuda" if torch.cuda.is_available() else "cpu"


def tera_flops(dtype, size=1024):
    a, b = torch.randn(size, size, device=device).to(dtype), torch.randn(size, size, device=device).to(dtype)
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        (a @ b).sum().item()  # .item() waits for a GPU
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / sorted(seconds)[2] / 1e12


# %%
for dtype in (torch.float32, torch.bfloat16, *([torch.float16] if device == "cuda" else [])):
    print(f"{device} {str(dtype)[6:]:9} {tera_flops(dtype):.2f} TFLOP/s")

# %% [markdown]
# A CPU without bf16 units shows no gain, or a loss. What data sheets promise for GPUs (dense; many marketing figures
# count zeros in "sparse" matrices and are twice as high):

# %% tags=["nbval-check-output"]
from cme295lab.hardware import get_device

for name in ("V100", "A100", "H100"):
    peaks = get_device(name).peak_flops_per_s
    print(f"{name:5}", ", ".join(f"{kind} {peaks[kind] / 1e12:.0f}" for kind in ("fp32", "tf32", "fp16", "bf16", "fp8")
                                if kind in peaks), "TFLOP/s")  # fmt: skip

# %% [markdown]
# The V100, for which loss scaling was invented, has no bf16. With the A100 most training moved to bf16, and loss
# scaling went out of use, until fp8, whose range is narrower still: there every tensor has a scale of its own.
#
# ## Exercise
#
# `exercises/loss_scaling`: choose a scale, write the dynamic scaler, and the whole training step in the right order.
#
# ## Sources
#
# Micikevicius et al. 2018, *Mixed Precision Training*. Kalamkar et al. 2019, *A Study of BFLOAT16 for Deep Learning
# Training*. Gupta et al. 2015, *Deep Learning with Limited Numerical Precision*.
