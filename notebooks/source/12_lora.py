# %% [markdown]
# # LoRA: train a thousandth, keep the rest
#
# Full fine-tuning changes every weight, and keeps a gradient and two Adam states for each. LoRA leaves the weights
# alone and learns a *difference* of low rank beside them:
#
# $$y = W_0 x + \tfrac{\alpha}{r}\, B A x, \qquad A: r \times d_{in}, \quad B: d_{out} \times r$$
#
# You will count what that saves, measure which learning rate, rank and place are good, look at the spectrum of what
# full fine-tuning does, and run two tasks on one base in one batch.

# %% tags=["parameters"]
profile = "full"  # "fast": smaller sizes, for a quick look

# %%
import copy
import tempfile
from pathlib import Path

import torch

from cme295lab.finetuning import adapters, comparisons, lora, prefix, sft, tasks
from cme295lab.finetuning.chat import chat_template, encode_chats, pack_chats
from cme295lab.finetuning.instructions import instruction_data
from cme295lab.finetuning.spectra import mean_energy_kept, noise_like, weight_changes
from cme295lab.transformer import load_pretrained, preset
from cme295lab.widgets import AdapterSwitchboard, RankExplorer, learning_rate_figure, spectra_figure, trials_figure

# %%
FULL = profile == "full"
loaded = load_pretrained("course-4m")
base, tokenizer = loaded.model, loaded.tokenizer
template = chat_template("alpaca", bos_token="", eos_token="<|end|>")

# %% [markdown]
# ## 1. How many parameters?
#
# A matrix of $d_{out} \times d_{in}$ gets $r(d_{in} + d_{out})$. **Predict**: GPT-3 has 96 layers of width 12,288. With
# rank 1 on query and value, how many parameters are trained?

# %% tags=["nbval-check-output"]
for rank in (1, 4, 8):
    print(f"GPT-3, query and value, rank {rank}: {lora.num_lora_parameters('gpt-3', rank=rank):>12,}")
every = lora.num_lora_parameters("llama-2-7b", rank=16, targets="all-linear")
print(f"Llama-2-7B, all linear layers, rank 16: {every:,}")

# %% [markdown]
# 4.7 million of 175 billion: the first row of the paper's table.
#
# Numbers of parameters need their definition. A well-known comparison with Llama-3.1-8B lists 0.49B (MLPs, rank 256),
# 0.25B (attention, 256), 0.70B (all, 256) and 0.24B (MLPs, 128). **Find out** which matrix you have to add to each row
# to get these.

# %% tags=["nbval-check-output"]
attention, mlp = ("query", "key", "value", "out"), ("gate", "up", "down")
for name, targets, rank in (
    ("mlp", mlp, 256), ("attention", attention, 256), ("all", (*attention, *mlp), 256), ("mlp", mlp, 128)
):  # fmt: skip
    counts = [lora.num_lora_parameters("llama-3-8b", rank=rank, targets=t) / 1e9 for t in (targets, (*targets, "head"))]
    print(f"{name:10} rank {rank}: {counts[0]:.3f}B, with the head {counts[1]:.3f}B")

# %% [markdown]
# Now turn the rank yourself. Which rank makes LoRA as large as a tenth of the model? The lower picture is a made-up
# change of weights: what does a rank keep of it?

# %%
display(RankExplorer())

# %% [markdown]
# ## 2. The start is the base
#
# A is random and B is zero. **Predict**: what is the gradient of A in the first step, and what would happen if both
# were zero?

# %% tags=["nbval-check-output"]
model = copy.deepcopy(base)
tokens = torch.randint(4096, (2, 33), generator=torch.Generator().manual_seed(0))
torch.manual_seed(0)
print(lora.add_lora(model, rank=8, alpha=16, targets="all-linear"))
print("same logits as the base:", torch.equal(model(tokens), base(tokens)))
model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
gradients = {name: parameter.grad.norm() > 0 for name, parameter in lora.lora_parameters(model).items()}
print("A has a gradient:", any(has for name, has in gradients.items() if "lora_A" in name))
print("B has a gradient:", all(has for name, has in gradients.items() if "lora_B" in name))

# %% [markdown]
# A's gradient is $B^\top(\cdot)$, so zero at first; B moves, and then A. Were both zero, each would wait for the other
# for ever.
#
# ## 3. Which learning rate?
#
# The same base, data, steps and seeds: fine-tuning in full, and LoRA of rank 8 on all linear layers. **Predict** where
# each is best. "LoRA Without Regret" finds LoRA's best learning rate about ten times that of full fine-tuning.

# %%
data_options = {"num_examples": 400, "num_held_out": 60} if FULL else {"num_examples": 24, "num_held_out": 12}


def packed(chats):
    found = encode_chats(chats, tokenizer, template, max_length=128, on_error="skip")
    return pack_chats(found.examples, seq=128, end_token=tokenizer.end_token)


def training_data(seed):
    return packed([example.messages for example in instruction_data(**data_options, seed=seed).train])


held_out = packed([example.messages for example in instruction_data(**data_options).in_distribution])

# %%
num_steps, rows_per_step, seeds = (20, 8, (0, 1)) if FULL else (1, 2, (0, 1))
options = {"num_steps": num_steps, "rows_per_step": rows_per_step, "seeds": seeds, "progress": False}

# %%
all_linear = {"rank": 8, "alpha": 32, "targets": "all-linear"}
rates = {"full": (3e-4, 1e-3, 3e-3, 1e-2), "LoRA": (1e-3, 3e-3, 1e-2, 3e-2)}
if not FULL:
    rates = {label: tried[1:3] for label, tried in rates.items()}
sweep = comparisons.learning_rate_sweep(
    base, training_data, held_out, learning_rates=rates,
    methods={"full": ("full", {}), "LoRA": ("lora", all_linear)}, **options,
)  # fmt: skip
display(learning_rate_figure(sweep))

# %%
best = comparisons.best_learning_rates(sweep)
for label, row in best.items():
    print(f"{label:5} best at {row.trial.learning_rate:g}: loss {row.mean:.3f} ± {row.standard_error:.3f}, "
          f"{row.num_trainable:,} trained, {row.seconds / len(seeds):.1f} s a run")
ratio = best["LoRA"].trial.learning_rate / best["full"].trial.learning_rate
print(f"LoRA's best rate is {ratio:.1f} times the other's")

# %% [markdown]
# On this model, after so few steps, the factor is about three and not ten, and LoRA ends behind. Both are lessons about
# *where* the rule was found: large models, with α = 32 and hundreds of steps. A model of 4 million parameters has less
# low-rank room than one of 8 billion. What carries over: too low a rate looks like "LoRA is bad".
#
# ## 4. Which rank?
#
# With $\alpha / r$ in front, one learning rate is meant to serve all ranks. **Predict** the shape of the curve.

# %%
ranks = (1, 4, 16, 64) if FULL else (1, 8)
by_rank = comparisons.rank_sweep(
    base, training_data, held_out, ranks=ranks, learning_rate=best["LoRA"].trial.learning_rate, **options
)
display(trials_figure(by_rank, reference=best["full"]))

# %% [markdown]
# A higher rank is better (the line is full fine-tuning), and one rate did serve from 1 to 64. Returns shrink: from 1
# to 4 helps more than from 4 to 64. "LoRA Without Regret" sees small ranks learn as fast as large ones until their
# capacity is used up, in long runs of large models; twenty steps of a small one cannot show that.
#
# ## 5. Which matrices?
#
# Attention only was the first paper's choice. Here are three places with (nearly) the same number of parameters.
# **Predict** the order.

# %%
places = {"attention": attention, "MLP": mlp, "all": "all-linear"}
by_place = comparisons.placement_comparison(
    base, training_data, held_out, places=places, num_parameters=150_000,
    learning_rate=best["LoRA"].trial.learning_rate, **options,
)  # fmt: skip
display(trials_figure(by_place))
for row in by_place:
    print(f"{row.trial.label:20} {row.num_trainable:,} parameters: {row.mean:.3f} ± {row.standard_error:.3f}")

# %% [markdown]
# MLPs beat attention at equal parameters, by more than the error bars; all layers are as good as MLPs within them. The
# paper on large models found the same order.
#
# ## 6. Is the change of low rank at all?
#
# LoRA *assumes* it. Full fine-tuning does not, so its change can be looked at: its singular values, beside those of
# noise of the same size, and of LoRA's own $\frac{\alpha}{r}BA$. **Predict** how much of it rank 8 keeps.

# %%
config = {"num_steps": 3 * num_steps if FULL else 2, "rows_per_step": rows_per_step, "keep_best": False}
trained = {}
for label, row in best.items():
    trained[label], trial = copy.deepcopy(base), row.trial
    settings = sft.SftConfig(
        learning_rate=trial.learning_rate, method=trial.method, method_options=trial.options, **config
    )
    sft.train_sft(trained[label], training_data(0), settings, progress=False)
changes = weight_changes(base, trained["full"])
path = "layers.2.mlp.down"
low_rank = lora.delta_weights(trained["LoRA"])
display(spectra_figure({"full fine-tuning": changes[path], "LoRA, rank 8": low_rank[path],
                        "noise": noise_like(changes[path])}))  # fmt: skip

# %%
downs = {name: change for name, change in changes.items() if name.endswith("down")}
noise = {name: noise_like(change) for name, change in downs.items()}
for rank in (1, 8, 64):
    kept = [100 * mean_energy_kept(found, rank) for found in (downs, noise)]
    print(f"rank {rank:2} keeps {kept[0]:3.0f} % of the change's energy, {kept[1]:3.0f} % of noise's")

# %% [markdown]
# The change of full fine-tuning is far from noise, and far from rank 8, too: that keeps about a quarter of its energy.
# LoRA does not find the best rank-8 part of that change; it looks for *another* solution of low rank.
#
# ## 7. Merging
#
# $W_0 + \frac{\alpha}{r}BA$ is a matrix of the old shape, so an adapter can move into the weights: no extra product, no
# extra time. And out again, bit for bit, because the old weights are kept.

# %% tags=["nbval-check-output"]
model = trained["LoRA"].eval()
with torch.no_grad():
    beside = model(tokens)
    lora.merge(model)
    merged = model(tokens)
    lora.unmerge(model)
    print("merged, the outputs are the same to 1e-3:", torch.allclose(merged, beside, atol=1e-3))
    print("unmerged, bit for bit:", torch.equal(model(tokens), beside))

# %% [markdown]
# ## 8. One base, many tasks
#
# Two small tasks: is a message spam, is a remark positive? Each gets its adapter; the question is not part of the
# prompt, so the *adapter* decides what is answered. Both hang on one base.

# %%
many = copy.deepcopy(base)
found = {}
for task, steps in (("spam", 40), ("sentiment", 150)):
    data = tasks.task_data(task, num_examples=600 if FULL else 60, num_held_out=60 if FULL else 8)
    rows = packed([tasks.to_messages(example) for example in data.train])
    torch.manual_seed(0)
    lora.add_lora(many, rank=8, alpha=16, targets="all-linear", adapter=task)
    settings = sft.SftConfig(num_steps=steps if FULL else 1, rows_per_step=rows_per_step, learning_rate=3e-3,
                             method="as-marked", keep_best=False)  # fmt: skip
    sft.train_sft(many, rows, settings, progress=False)
    found[task] = data

# %%
print("share of right answers  base  spam adapter  sentiment adapter")
for task, data in found.items():
    for split in ("held_out", "shifted"):
        line = f"{task:10} {split:11}"
        for name in (None, "spam", "sentiment"):
            lora.set_adapter(many, name)
            line += f"{tasks.accuracy(many, getattr(data, split), tokenizer, template):10.2f}"
        print(line)

# %% [markdown]
# The base answers neither. Each adapter answers its own task and only that; all four labels compete, so the wrong
# adapter is at zero. Spam has telling words and survives new ones (the shifted split). Sentiment turns on negation,
# and on new patterns it is no better than a coin.
#
# Requests for both may share a batch: the base's products are computed once for all rows, the low-rank parts by row.
# **Try** the switchboard with texts of your own. What does the sum of two adapters answer?

# %%
display(AdapterSwitchboard(many.eval(), tokenizer, template))

# %% [markdown]
# ## 9. Other ways to train little
#
# *Adapters* are small MLPs inside the layers. *Prefix tuning* puts trained keys and values in front of the sequence in
# every layer, *prompt tuning* trained vectors in front of the first. All cost time at inference, since none can be
# merged. Here they learn the spam task; two seeds choose the data and the start.

# %%
spam = found["spam"]
unseen = packed([tasks.to_messages(example) for example in spam.held_out])


def spam_data(seed):
    data = tasks.task_data("spam", num_examples=500 if FULL else 60, num_held_out=8, seed=seed)
    return packed([tasks.to_messages(example) for example in data.train])


# %%
methods = (("full", "full", {}, 1e-3), ("LoRA", "lora", {"rank": 8, "targets": "all-linear"}, 3e-3),
           ("adapters", "adapters", {"bottleneck": 16}, 3e-3), ("prefix", "prefix", {"length": 10}, 3e-3),
           ("prompt", "prompt", {"length": 20}, 3e-2))  # fmt: skip
results = comparisons.compare(
    base, [comparisons.Trial(label=label, method=method, options=its, learning_rate=rate)
           for label, method, its, rate in methods],
    spam_data, unseen, score=lambda model: tasks.accuracy(model, spam.held_out, tokenizer, template),
    **{**options, "num_steps": 30 if FULL else 1},
)  # fmt: skip

# %%
print("method        trained  states MB  loss            right")
for row in results:
    print(f"{row.trial.label:9} {row.num_trainable:11,} {16 * row.num_trainable / 1e6:10.2f}  "
          f"{row.mean:.3f} ± {row.standard_error:.3f}  {row.mean_score:.2f}")

# %% tags=["nbval-check-output"]
of_gpt_3 = adapters.num_adapter_parameters(dim=12288, bottleneck=1, num_layers=96)
print(f"GPT-3, adapters of width 1, two per layer: {of_gpt_3:,}")
print(f"GPT-2 medium, a prefix of 10: {prefix.num_prefix_parameters(preset('gpt-2-medium'), 10):,}")

# %% [markdown]
# Memory and quality go the same way here, but for the prefix, whose many numbers are mostly the network that makes
# it in training: what is kept is $2 L l d$. A prompt of 5,120 numbers barely moves a model of this size; its paper
# says the same, and that the gap closes at 10 billion parameters.
#
# ## 10. Files
#
# An adapter is two small files, in the format of the PEFT library: what you train here loads there, and the other way
# round. A fingerprint in the file says which base it belongs to.

# %% tags=["nbval-check-output"]
with tempfile.TemporaryDirectory() as folder:
    place = lora.save_adapter(folder, many, "spam")
    print({file.name: f"{file.stat().st_size / 1e6:.2f} MB" for file in sorted(Path(place).iterdir())
           if file.suffix == ".safetensors"})  # fmt: skip
    fresh = copy.deepcopy(base).eval()
    lora.load_adapter(folder, fresh, "spam")
    lora.set_adapter(many, "spam")
    print("loaded, the outputs are equal:", torch.equal(fresh(tokens), many(tokens)))
    with torch.no_grad():
        fresh = copy.deepcopy(base)
        fresh.embedding.weight[0] += 1
    try:
        lora.load_adapter(folder, fresh, "spam")
    except ValueError as error:
        print(str(error).partition("was trained")[1], str(error).partition("was trained")[2].partition(":")[0].strip())

# %% [markdown]
# ## 11. The same calls, a larger model
#
# With SmolLM2 (135 million parameters, `cme295lab fetch smollm2`) a step of 512 tokens takes some seconds on a CPU, and
# 1.8 % of the parameters learn. Its chat template is ChatML.

# %%
from cme295lab.transformer.pretrained import pretrained_or_course

larger = pretrained_or_course() if FULL else None
if larger is None or larger.model.config.name == base.config.name:
    print("left out: a full run after `cme295lab fetch smollm2` has this section")
else:
    chats = [example.messages for example in instruction_data(**data_options).train]
    fitting = encode_chats(chats, larger.tokenizer, chat_template("chatml"), max_length=256, on_error="skip")
    rows = pack_chats(fitting.examples, seq=256, end_token=larger.tokenizer.end_token)
    settings = sft.SftConfig(num_steps=20, rows_per_step=2, learning_rate=1e-3, method="lora",
                             method_options={"rank": 8, "targets": "all-linear"}, keep_best=False)  # fmt: skip
    run = sft.train_sft(larger.model, rows, settings)
    print(f"{lora.summarize(larger.model).num_trainable:,} parameters; losses", [round(x, 2) for x in run.losses])

# %% [markdown]
# ## What to remember
#
# - LoRA saves gradients and optimizer states, not the base. An adapter has $r(d_{in} + d_{out})$ numbers per matrix.
# - B starts at zero, A does not. $\alpha / r$ belongs to the adapter: merging without it is a different model.
# - LoRA wants a larger learning rate than full fine-tuning. How much larger depends: measure it.
# - Put it on all linear layers, the MLPs above all.
# - Merged, it costs nothing. Unmerged, many tasks share one base and even one batch.

# %% [markdown]
# ## Exercises
#
# `exercises/lora`: the layer, merging, counting, adapters in one batch. `exercises/prefix_tuning`: attention behind a
# prefix, parameters, the network that is dropped.
#
# ## Sources
#
# Hu et al. 2022, *LoRA*. Kalajdzievski 2023 (rsLoRA). Schulman et al. 2025, *LoRA Without Regret*. Houlsby et al. 2019
# (adapters). Li and Liang 2021 (prefix tuning).
