# %% [markdown]
# # Learning to say the next token
#
# A language model is trained on one task: say the next token. No labels, no teacher, only text. What text, cut into
# what tokens, for how many operations, at what price, and what does the model know afterwards?
#
# In this lab you build the whole line on your own machine: a corpus that is already there, a tokenizer, packed batches,
# a training run that you watch by domain, its operations and its bill. Then you ask the model what it has learned by
# heart.

# %% tags=["parameters"]
profile = "full"  # "fast": smaller sizes, for a quick look

# %%
import torch

from cme295lab import pretraining
from cme295lab.pretraining import corpora, flops
from cme295lab.pretraining.trainer import measure_peak
from cme295lab.transformer import DecoderLM, load_pretrained, preset
from cme295lab.transformer.decoding import Sampling, generate
from cme295lab.widgets import CostCalculator, MeasuredMixtures, MixtureExplorer
from cme295lab.widgets import few_labels_figure, loss_curves, memorisation_figure

FULL = profile == "full"
torch.manual_seed(0)
print("ready")

# %% [markdown]
# ## 1. What the model reads
#
# No download: Python comes with its language reference, with docstrings, and with its own source. Two generated parts
# are added, worked sums and short stories. Four domains, each with text to train on and text to be tested on.

# %%
corpus = corpora.course_corpus(profile)
print(corpus)

# %% [markdown]
# Raw text is not a corpus. Some files are tables that a program wrote, some are tests, some are copies. Every filter
# counts what it drops. **Predict**: which one drops the most?

# %%
print(corpus.reports["code"])

# %% [markdown]
# Copies matter twice. A text that is seen ten times is learned by heart (section 8), and a copy of a test text in the
# training text makes the test worthless. So near-duplicates are found by MinHash, and families of similar texts stay
# on one side of the split. How much do the two sides share, in runs of 13 words? (The stories are made from templates:
# their sentences recur, and the number says so.)

# %%
for domain in corpus.domains:
    print(f"{domain:11} {corpora.overlap(corpus.train[domain], corpus.validation[domain])}")

# %% [markdown]
# ## 2. Tokens
#
# Byte-level BPE starts from the 256 bytes and merges the pair that occurs most often, again and again. Here it is in
# plain Python, on a sentence small enough to follow.

# %% tags=["nbval-check-output"]
from cme295lab.pretraining.tokenizer import train_bpe

bpe = train_bpe(["low low low lower lowest newest newest widest"], vocab_size=268)
for left, right in bpe.merges[:8]:
    print(f"{left.decode()!r:6} + {right.decode()!r:6} → {(left + right).decode()!r}")
print([bpe.decode([token]) for token in bpe.encode("the lowest and the newest")])

# %% [markdown]
# The real vocabulary has 4,096 tokens and is learned by the same algorithm from a library, in Rust. What it has not
# seen, it spells out. **Predict** the order: English, code, German, Chinese: how many bytes does a token stand for?

# %%
tokenizer = load_pretrained("course-4m").tokenizer
from cme295lab.pretraining.tokenizer import SAMPLES, compression

texts = {name: [doc.text for doc in corpus.validation[name]] for name in corpus.domains}
for row in compression(tokenizer, {**texts, **SAMPLES}):
    print(row)

# %% [markdown]
# A language that the tokenizer was not made for pays twice: the same sentence costs more tokens, thus more compute and
# more of the context.
#
# ## 3. Packing
#
# A batch is a rectangle, texts are not. Padding every text to the longest wastes most of the rectangle. So documents
# are packed into rows; each keeps its own positions, and none sees its neighbours (a mask of blocks on the diagonal).

# %%
SEQ = 128
encoded = {name: [tokenizer.encode(doc.text) for doc in docs] for name, docs in corpus.train.items()}
held_out = {name: [tokenizer.encode(doc.text) for doc in docs] for name, docs in corpus.validation.items()}
options = {"seq": SEQ, "end_token": tokenizer.end_token}
for filling in ("one-per-row", "next-fit", "best-fit", "cut-to-fit"):
    data = pretraining.PackedDataset(encoded["arithmetic"], filling=filling, **options)
    print(f"{filling:12} {data.num_rows:6,} rows, {data.utilisation:.0%} of the positions used")

# %% tags=["nbval-check-output"]
small = pretraining.PackedDataset([[5, 6, 7], [8, 9]], seq=8, end_token=0)
row = small.batch(step=0, rows=1)
for name in ("tokens", "targets", "documents", "positions"):
    print(f"{name:10} {getattr(row, name)[0].tolist()}")

# %% [markdown]
# `-100` marks positions where nothing is asked: the end of a document, because the next token belongs to another text.
#
# ## 4. A training run
#
# One million parameters, the four domains in equal shares. **Predict** before you run: which domain will be the
# easiest to foretell, which the hardest? (The loss of pure guessing is $\ln 4096 = 8.3$.)

# %%
train = {name: pretraining.PackedDataset(docs, **options) for name, docs in encoded.items()}
test = {name: pretraining.PackedDataset(docs, **options) for name, docs in held_out.items()}
STEPS, ROWS = (300, 16) if FULL else (20, 8)
settings = pretraining.TrainConfig(
    num_steps=STEPS, rows_per_step=ROWS, micro_rows=8, seq=SEQ, learning_rate=4e-3, warmup_steps=STEPS // 10,
    evaluate_every=STEPS // 10, evaluation_rows=32 if FULL else 4,
)
peak = measure_peak()
model = DecoderLM(preset("course-1m"))
mixture = pretraining.MixtureDataset(train, dict.fromkeys(train, 1.0))
trainer = pretraining.Trainer(model, mixture, settings, validation=test, peak=peak, progress=False)
run = trainer.run()

# %%
curves = {name: [(e["step"], e["losses"][name]) for e in run.evaluations] for name in test}
display(loss_curves(curves))

# %% [markdown]
# Worked sums are the easiest: most of their text follows from rules. The stories come from templates, so they follow.
# Code has its keywords and its indentation, English has neither. A loss in nats per token can only be compared between
# models with the same tokenizer.
#
# ### Micro-batches, and the mean of means
#
# The step above was cut into micro-batches of 8 rows, whose gradients are added. Their losses must be weighted by the
# number of tokens that they predict. **Predict**: 2 tokens with loss 1 and 6 tokens with loss 3; what is the mean?

# %% tags=["nbval-check-output"]
losses, counts = torch.tensor([1.0, 3.0]), torch.tensor([2, 6])
print(f"mean of the means: {losses.mean():.1f}, mean over tokens: {(losses * counts).sum() / counts.sum():.1f}")

# %% [markdown]
# The mean of means was a real bug, in several libraries, found in October 2024. Packed rows with masks have unequal
# counts all the time.
#
# ## 5. Four minutes more
#
# The course ships a model of 3.7 million parameters that was trained the same way, for longer; `python -m
# cme295lab.pretraining.course_model` trains it anew. Here it continues three beginnings.

# %%
shipped = load_pretrained("course-4m")
for prompt in ("Once upon a time there was", "def read_file(path):\n", "Work out 47 + 25.\n"):
    tokens = generate(
        shipped.model, [shipped.tokenizer.encode(prompt)], max_new_tokens=48, seed=1,
        sampling=Sampling(temperature=0.7, top_p=0.9), end_token=shipped.tokenizer.end_token,
    ).tokens[0]
    print(prompt + shipped.tokenizer.decode(tokens), end="\n" + 72 * "-" + "\n")

# %% [markdown]
# It has grammar, indentation and the form of a sum. What it says is often wrong. That is pretraining: it learns what
# text looks like, and facts only as far as they help.
#
# ## 6. What to mix
#
# More code in the mixture makes a better programmer, up to a point, and a worse story teller. Five tiny models, each
# trained with another share of code, the rest divided evenly:

# %%
SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)
found = {name: [] for name in train}
for share in SHARES:
    weights = {name: share if name == "code" else (1 - share) / 3 for name in train}
    torch.manual_seed(0)
    tiny = pretraining.Trainer(
        DecoderLM(preset("course-draft")), pretraining.MixtureDataset(train, weights), validation=test, progress=False,
        config=pretraining.TrainConfig(num_steps=120 if FULL else 5, rows_per_step=8, seq=SEQ, learning_rate=8e-3,
                                       warmup_steps=2, evaluation_rows=32 if FULL else 4),
    )
    for name, loss in tiny.run().evaluations[-1]["losses"].items():
        found[name].append(loss)

# %%
measured = MeasuredMixtures(domain="code", shares=SHARES, losses={name: tuple(v) for name, v in found.items()})
display(MixtureExplorer({name: data.num_tokens for name, data in train.items()}, measured=measured))

# %% [markdown]
# The bars say how often each text is seen. Up to about four times, repeated text is nearly as good as new
# (Muennighoff et al. 2023); after that it pays less and less.
#
# ## 7. FLOPs, FLOP/s, and what they cost
#
# A **FLOP** is one operation; a **FLOP/s** is a speed, and so is "FLOPS". A multiply-add counts as two. Each parameter
# of a matrix takes part in one multiply-add per token in the forward pass, and in two in the backward pass: 6 FLOP per
# parameter and token, and something for attention.

# %%
table = flops.flops_per_token(preset("course-4m"), SEQ)
print(table)
print(f"6N would be {6 * preset('course-4m').num_parameters:,}")

# %% [markdown]
# The share of the machine's peak that these operations make up is the *model FLOPs utilization*, MFU. The peak of your
# machine was measured with large products before the run above. GPU clusters reach 30 to 55 %.

# %%
last = run.records[len(run.records) // 2 :]
mean_mfu = sum(record["mfu"] for record in last) / len(last)
print(f"peak here {peak}; {last[-1]['tokens_per_s']:,.0f} tokens/s; MFU {mean_mfu:.0%}")

# %% tags=["nbval-check-output"]
palm = flops.palm_flops_per_token(540_350_000_000, num_layers=118, num_heads=48, head_dim=256, seq=2048)
print(f"PaLM 540B: MFU {flops.mfu(palm, tokens_per_s=238_300, peak=275e12, num_gpus=6144):.1%} (published 46.2 %)")
for name, size, tokens, gpus, rate in (("GPT-3", 175e9, 300e9, 1024, 140e12), ("1T", 1.008e12, 450e9, 3072, 163e12)):
    days = flops.training_time_s(8 * size * tokens, flops_per_s_per_gpu=rate, num_gpus=gpus) / 86_400
    print(f"{name:5} on {gpus:,} A100s: {days:.1f} days, all layers computed twice (8 FLOP instead of 6)")

# %% [markdown]
# Published: 34 and 84 days. From operations to money, energy and CO2e it takes assumptions, and each of them has a
# range. Choose a model; see which assumption the bill hangs on.

# %%
display(CostCalculator())

# %%
display(CostCalculator(num_parameters=400e9, num_tokens=15e12, num_gpus=16384).figure())

# %% tags=["nbval-check-output"]
print(pretraining.cost.llama_3_405b())

# %% [markdown]
# ## 8. What it knows by heart
#
# Text that is repeated is learned by heart, and can be asked out again: names, numbers, licences. To measure it, plant
# *canaries*: random secrets in the training text, some once, some many times. The **exposure** of a canary is how far
# up it stands among all secrets it might have been: $\log_2$(number of candidates) − $\log_2$(its rank).

# %%
from cme295lab.pretraining.memorization import memorization_experiment

memory = memorization_experiment((1, 4, 16, 64))
for canary in memory.canaries[:: len(memory.canaries) // 5]:
    said = "says it" if canary.extracted else "does not"
    print(f"{canary.text:36} planted {canary.repetitions:2} times: {canary.exposure_bits:4.1f} bits; the model {said}")
print({count: f"{share:.0%}" for count, share in memory.extracted.items()}, "extracted")

# %%
display(memorisation_figure(memory.exposure_bits, most_bits=memory.most_bits))

# %% [markdown]
# Once or never is hardly any difference; often enough, and the secret is the likeliest of all candidates: the model
# says it when it is asked. Removing duplicates is the first protection. How much of what the shipped model writes is
# copied from its training text, in runs of 8 tokens?

# %%
from cme295lab.pretraining.memorization import VerbatimIndex

index = VerbatimIndex([tokens for docs in encoded.values() for tokens in docs])
for prompt in ("Once upon a time", "import os\n", "The"):
    sample = generate(shipped.model, [shipped.tokenizer.encode(prompt)], max_new_tokens=40 if FULL else 12, seed=3,
                      sampling=Sampling(temperature=0.8)).tokens[0]  # fmt: skip
    span = index.longest_span(sample)
    copied = shipped.tokenizer.decode(sample[span.start : span.start + span.length])
    print(f"{prompt!r}: {index.share_of_ngrams(sample, 8):.0%} of 8-grams; longest {span.length} tokens: {copied!r}")

# %% [markdown]
# ## 9. What it cannot know
#
# A knowledge cutoff is the date of the newest text, not the end of training, and not the release of the model. Here is
# a model whose world ends with 2021: it reads which feature came with which version of Python, up to that date.

# %%
from datetime import date

history, cutoff = corpora.python_history(), date(2021, 12, 31)
before = [tokenizer.encode(doc.text) for doc in corpora.published_until(history, cutoff)]
after = [tokenizer.encode(doc.text) for doc in corpora.published_after(history, cutoff)]
torch.manual_seed(0)
historian = DecoderLM(preset("course-draft"))
settings = pretraining.TrainConfig(num_steps=250 if FULL else 20, rows_per_step=8, seq=SEQ, learning_rate=6e-3,
                                   warmup_steps=10)  # fmt: skip
facts = {"known": pretraining.PackedDataset(before, **options), "later": pretraining.PackedDataset(after, **options)}
log = pretraining.Trainer(historian, facts["known"], settings, validation=facts, progress=False).run()
print({name: round(loss, 2) for name, loss in log.evaluations[-1]["losses"].items()}, "nats per token")

# %%
for feature in ("the pathlib module", "data classes", "the tomllib module", "template strings"):
    question = f"Question: which version of Python brought {feature}? Answer:"
    answer = generate(historian, [tokenizer.encode(question)], max_new_tokens=8, end_token=tokenizer.end_token)
    print(question, tokenizer.decode(answer.tokens[0]))

# %% [markdown]
# The first two it has read. The last two came in 2022 and 2025: it does not say "I don't know", it names a version
# that it knows, with the same confidence. A model answers from before its cutoff, even about after it.
#
# (The lecture's example: the model released in August 2025 with a cutoff of 30 September 2024 is GPT-5. GPT-4 is of
# March 2023, with a cutoff of September 2021.)

# %% [markdown]
# ## 10. What it is good for besides
#
# The base model was never taught what spam is. Give it 16, 64 or 128 labelled examples, a head of one matrix, and
# compare with a model of the same shape that starts from nothing. **Predict**: from how many labels on is
# pretraining no longer needed?

# %%
from cme295lab.pretraining import transfer

records = {}
labels, seeds = ((16, 64, 128), (0, 1, 2)) if FULL else ((8, 16), (0, 1))
few = transfer.TransferOptions(num_labels=labels, seeds=seeds, num_test=100)
for task in ("spam", "sentiment"):
    records[task] = transfer.few_label_experiment(shipped.model, shipped.tokenizer, task=task, options=few)
    print(f"{task}\n{transfer.table(records[task])}\n")

# %%
for task, found in records.items():
    display(few_labels_figure(transfer.accuracies(found), chance=0.5, title=task))

# %% [markdown]
# The bars are standard errors over three seeds, each of which draws other examples. On spam the pretrained model is
# ahead from 64 labels on, by some 5 points; with 16 all three guess, or nearly. On sentiment little is won: it has
# read a reference manual and children's stories, hardly an opinion. Transfer brings what was in the text, and this
# model is small; with a large one that has read the web, a few dozen labels are often enough.

# %% [markdown]
# ## What to remember
#
# - Pretraining is next-token prediction on a mixture; filters, copies and the split decide what a test means.
# - A tokenizer fits some languages better than others, and the others pay in tokens.
# - Average the loss over tokens, not over micro-batches.
# - FLOPs are counted (6 per parameter and token, and attention); FLOP/s are reached. MFU is their quotient, against the
#   dense peak of the format that is multiplied in.
# - Energy, money and CO2e are assumptions times a nearly certain count: state the range.
# - What is repeated is learned by heart. What came after the cutoff is not there, and the model does not notice.

# %% [markdown]
# ## Your turn
#
# `exercises/flops_accounting/flops_accounting.ipynb`: count parameters and operations, attention and MFU; accumulate
# gradients over unequal micro-batches; and put a price on a run.
