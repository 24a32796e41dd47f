# %% [markdown]
# # QLoRA: learn beside four bits
#
# Fine-tuning a model of 65 billion parameters in full takes more than 780 GB. QLoRA does it on one GPU of 48 GB.
# "Sixteen times less memory", people say. Less than what?
#
# You will take that number apart, look at the sixteen levels and at scales that are quantised themselves, train beside
# a 4-bit base and beside the base as it was, and see why an adapter cannot be merged into four bits. NF4 itself is in
# lab 08, LoRA in lab 12.

# %% tags=["parameters"]
profile = "full"  # "fast": smaller sizes, for a quick look

# %%
import copy
import statistics

import matplotlib.pyplot as plt
import torch

# %%
from cme295lab.finetuning import lora
from cme295lab.finetuning.chat import chat_template, encode_chats, pack_chats
from cme295lab.finetuning.instructions import instruction_data
from cme295lab.finetuning.qlora import PagedAdamW, measured_bytes, qlora_memory, qlora_model
from cme295lab.finetuning.sft import SftConfig, train_sft
from cme295lab.pretraining.trainer.evaluation import evaluate
from cme295lab.quantization import Linear4bit, nf4
from cme295lab.transformer import load_pretrained
from cme295lab.units import format_bytes
from cme295lab.widgets import QloraBars, codebook_figure, qlora_scenario

# %% [markdown]
# ## 1. Sixteen times less than what?
#
# **Predict**, for 65 billion parameters: how many bytes does each parameter take in full fine-tuning with 16-bit
# weights and gradients and fp32 Adam states? How much would be left if *only* the weights shrank to 4 bits? And if only
# the gradients and states went away (LoRA)?
#
# Then find the largest model that QLoRA fits into 24 GB, and one where LoRA fits as well. What does rank 256 change?

# %%
display(QloraBars("llama-65b"))

# %%
display(QloraBars("llama-65b").figure())

# %% tags=["nbval-check-output"]
for model, budget in (("llama-65b", "48 GB"), ("llama-2-7b", "24 GB")):
    found = qlora_scenario(model, budget=budget)
    for bar in found.bars:
        print(f"{model:10} {bar.method:5} {bar.num_bytes / 1e9:6.1f} GB, {'fits' if bar.fits else 'not in'} {budget}")
    print(f"{'':10} against full {found.saving_against_full:.2f}, against LoRA {found.saving_against_lora:.2f}, "
          f"weights alone {found.saving_of_weights:.2f} times less")
print(f"the paper's two numbers: 780 / 48 = {780 / 48:.2f}")

# %% [markdown]
# So 16 is a ratio of two *ways of training*. Most of it is LoRA's doing: frozen weights have no gradients and no
# states. Four bits shrink a weight by 3.88 times, from 16 to 4.127 bits. Both are needed: LoRA alone leaves 65B at 140
# GB.
#
# The bars are model states. Activations come on top; 4 bits do not make them smaller.
#
# ## 2. Sixteen levels among weights
#
# NF4's levels are quantiles of the normal distribution: between two of them lies about the same probability.
# **Predict**: does each level get 1/16 of the weights of a real model?

# %%
loaded = load_pretrained("course-4m")
weights = torch.cat([layer.mlp.down.weight.detach().flatten() for layer in loaded.model.layers])
normal = torch.randn(weights.numel(), generator=torch.Generator().manual_seed(0))
display(codebook_figure(normal))
display(codebook_figure(weights))

# %% [markdown]
# Not quite, not even for normal numbers (above): a block is divided by its own largest weight, so exactly one weight of
# 64 lands on an end, and the outer levels wait for others in vain. The weights of course-4m (below) look the same:
# training has hardly moved them from normal, and that is why one fixed codebook serves all layers.
#
# ## 3. Scales, quantised too
#
# A block of 64 has one scale. In fp32 that is 32 / 64 = 0.5 bits per weight. **Predict** what is left if scales are 8
# bits, and groups of 256 of them share one fp32 constant.

# %% tags=["nbval-check-output"]
matrix = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
for name, double_quant in (("fp32 scales", False), ("double", True)):
    layer = Linear4bit(1024, 1024, bias=False, double_quant=double_quant)
    layer.weight = nf4.quantize(matrix, double_quant=double_quant)
    counted = measured_bytes(layer, [])
    mse = (layer.weight.dequantize() - matrix).square().mean().item()
    print(f"{name:11} codes {8 * counted.codes / matrix.numel():.3f} + scales {8 * counted.scales / matrix.numel():.3f}"
          f" bits per weight, MSE {mse:.4f}")
plain, double = (qlora_memory("llama-2-70b", double_quant=choice).bytes.scales for choice in (False, True))
print(f"for llama-2-70b: {(plain - double) / 1e9:.2f} GB less")

# %% [markdown]
# Counted from the storages, to the byte: 0.5 becomes 8/64 + 32/(64 · 256) = 0.127, and the error stays.
#
# ## 4. Gradients through a frozen base
#
# $$y = x\,\mathrm{dequantise}(W)^\top + \tfrac{\alpha}{r}\,x A^\top B^\top$$
#
# $W$ does not learn, but the backward pass needs it: layers below get their gradient through it. It is made from its 4
# bits once more, used, forgotten. **Predict**: are these gradients approximations?

# %%
def loss_and_gradients(model, tokens):
    model.zero_grad()
    loss = model.loss(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


four = copy.deepcopy(loaded.model)
torch.manual_seed(0)
summary = qlora_model(four, rank=8, alpha=16, compute_dtype=torch.float32)
wide = copy.deepcopy(loaded.model)
lora.add_lora(wide, rank=8, alpha=16, targets="all-linear")
for name, parameter in lora.lora_parameters(four).items():
    parameter.data += 0.02 * torch.randn(parameter.shape)  # B is no longer zero, as after some training
    wide.get_parameter(name).data.copy_(parameter.data)

# %%
for path, layer in four.named_modules():
    if isinstance(layer, Linear4bit):
        wide.get_submodule(path).weight.data = layer.weight.dequantize(torch.float32)
tokens = torch.randint(4096, (2, 65), generator=torch.Generator().manual_seed(0))
(loss_4, found), (loss_32, expected) = (loss_and_gradients(model, tokens) for model in (four, wide))
worst = max((found[name] - expected[name]).abs().max() / expected[name].abs().max().clamp_min(1e-12) for name in found)
print(f"losses {loss_4:.6f} and {loss_32:.6f}; gradients differ by {worst:.1e} of the largest at most")
print("only adapters have gradients:", set(found) == set(lora.lora_parameters(four)) == set(expected))

# %% [markdown]
# They are exact: the gradients of *this* base, whose weights happen to be rounded. Nothing "learns in 4 bits". The
# error is all in the base, made once, and the adapter sees it from the first step on: it may learn to make up for it.
#
# ## 5. The bytes, counted
#
# The formula knows shapes alone. Beside it stands what is allocated, after a step of training.

# %% tags=["nbval-check-output"]
print(summary.memory)
optimizer = PagedAdamW(four.named_parameters(), budget_bytes=100_000, lr=1e-3)
optimizer.step()
counted = measured_bytes(four, lora.lora_parameters(four).values(), optimizer)
assert counted == summary.memory.bytes
print(f"measured in training: {counted.total:,} bytes, by the formula {summary.memory.bytes.total:,}")

# %% [markdown]
# A small model saves less: half of course-4m is embedding and head, which keep their format (fp32 here). Its layers
# alone shrink as those of a large model do.
#
# ## 6. What does it cost in quality?
#
# The same instruction data, adapters and steps; the base is as it was, or in NF4. What varies is the seed, of A's start
# and of the order of the data. **Predict**: who wins, and by more than seeds differ? (A CPU is slow in bf16, so
# products are in fp32 here.)

# %%
num_examples, num_held_out, seq = {"fast": (60, 12, 128), "full": (1200, 120, 256)}[profile]
data = instruction_data(num_examples=num_examples, num_held_out=num_held_out)
template = chat_template("alpaca", bos_token="", eos_token="<|end|>")


def packed(examples):
    chats = [example.messages for example in examples]
    found = encode_chats(chats, loaded.tokenizer, template, max_length=seq, on_error="skip")
    return pack_chats(found.examples, seq=seq, end_token=loaded.tokenizer.end_token)


train, held_out = packed(data.train), packed(data.in_distribution)

# %%
num_steps, rows, seeds = {"fast": (2, 2, 2), "full": (40, 8, 3)}[profile]
models, losses = {}, {"16-bit base": [], "NF4 base": []}
for seed in range(seeds):
    for name in losses:
        model = copy.deepcopy(loaded.model)
        torch.manual_seed(seed)
        if name == "NF4 base":
            qlora_model(model, rank=8, alpha=16, compute_dtype=torch.float32)
        else:
            lora.add_lora(model, rank=8, alpha=16, targets="all-linear")
        config = SftConfig(num_steps=num_steps, rows_per_step=rows, learning_rate=2e-3, method="as-marked", seed=seed)
        run = train_sft(model, train, config, evaluation={"held out": held_out}, progress=False)
        losses[name].append(tuple(run.losses_of("held out").values()))
        models[name] = model

# %%
print("held-out loss   before   after, mean ± standard deviation over seeds")
for name, pairs in losses.items():
    after = [pair[-1] for pair in pairs]
    print(f"{name:12} {pairs[0][0]:9.3f} {statistics.mean(after):9.4f} ± {statistics.stdev(after):.4f}")
gaps = [rounded[-1] - whole[-1] for whole, rounded in zip(*losses.values(), strict=True)]
print(f"NF4 − 16-bit, same seed: {statistics.mean(gaps):+.4f} ± {statistics.stdev(gaps):.4f}")
figure, axes = plt.subplots(figsize=(6, 2.2))
for place, pairs in enumerate(losses.values()):
    after = [pair[-1] for pair in pairs]
    axes.errorbar(statistics.mean(after), place, xerr=statistics.stdev(after), fmt="o", capsize=5)
    axes.plot(after, [place] * len(after), "|", color="grey")
axes.set(yticks=(0, 1), yticklabels=list(losses), ylim=(-0.5, 1.5), xlabel="held-out loss, nats per token")
plt.show()

# %% [markdown]
# Rounding cost the base 0.01 nats before training. After it nothing is left: the two differ by less than a tenth of
# what seeds do, and at one seed by 0.001 on average, either way. The adapter has learned around the rounded base, as it
# did in the paper at sizes a thousand times larger.
#
# ## 7. States in pages
#
# Adam's states are 8 bytes per trained number, and idle between steps. QLoRA lets them wait in the CPU's memory and
# brings them in page by page: not to save memory always, but to survive a *spike*, such as one long sequence.
# **Predict**: half of the states fit. What share of them must a step copy in and out?

# %% tags=["nbval-check-output"]
states = summary.memory.bytes.states
for order in ("forward", "alternating"):
    for share in (1.0, 0.5, 0.1):
        paged = PagedAdamW(list(four.named_parameters()), budget_bytes=int(share * states), lr=1e-3, order=order)
        for _ in range(4):
            before = copy.copy(paged.counts)
            paged.step()
        moved = (paged.counts - before).bytes_moved
        print(f"{order:11} budget {share:4.0%}: at most {format_bytes(paged.peak_device_bytes):>7} on the device, "
              f"{format_bytes(moved):>7} moved in a step")

# %% [markdown]
# A step goes once through all parameters, the worst case for "least recently used": forward again and again, each page
# has just left when it is needed, and all of the states move in and out. Every second step backwards, and what fits
# stays. The result is the same to the bit.
#
# ## 8. No merge into four bits
#
# LoRA's $W + \frac{\alpha}{r} BA$ costs nothing at inference, once merged. In 4 bits the sum must be rounded to levels
# again. **Predict**: which is larger, the update or the rounding error?

# %% tags=["nbval-check-output"]
tuned = models["NF4 base"]
try:
    lora.merge(tuned)
except ValueError as error:
    print(error)

# %%
merged, again = (copy.deepcopy(loaded.model).eval() for _ in range(2))
updates, errors = [], []
for path, update in lora.delta_weights(tuned).items():
    base = tuned.get_submodule(path).weight.dequantize(torch.float32)
    total = (base + update).detach()
    rounded = nf4.quantize(total, double_quant=True).dequantize(torch.float32)
    merged.get_submodule(path).weight.data, again.get_submodule(path).weight.data = total, rounded
    updates.append(update.norm().item())
    errors.append((rounded - total).norm().item())
print(f"size of an update {statistics.mean(updates):.2f}, of the rounding error {statistics.mean(errors):.2f} (norms)")
for name, model in (("adapter beside 4 bits", tuned), ("merged, in 32 bits", merged), ("merged, in NF4", again)):
    print(f"{name:22} held-out loss {evaluate(model, held_out):.4f}")

# %% [markdown]
# The update is hardly larger than the error that rounding adds: in NF4 the merged model gives part of what was learned
# back. In 16 or 32 bits the merged model and the adapter beside its base agree. But note *which* base: the dequantised
# one, because the adapter was learned beside that.
#
# ## 9. What this lab leaves out
#
# - **Speed.** Weights are dequantised for each product: QLoRA saves memory and costs time.
# - Adapters that *start* from the rounding error (LoftQ), and training with rounding in the loop (QAT).
# - The scores of the paper: LoRA on all layers beside NF4 matched 16-bit fine-tuning there.

# %% [markdown]
# ## What to remember
#
# - "16 times" is 780 GB against 48: full fine-tuning against QLoRA. A weight shrinks 3.88 times; LoRA does the rest.
# - Double quantisation: constants cost 0.127 bits per weight in place of 0.5, at the same error.
# - Only storage is 4 bits. Gradients are the exact ones of the rounded base.
# - Serve the adapter beside the base, or merge into 16 bits. Merging into 4 bits rounds the base anew.
#
# ## Your turn
#
# `exercises/qlora/qlora.ipynb`: a frozen 4-bit layer with an adapter, the bytes of a run, states in pages.
