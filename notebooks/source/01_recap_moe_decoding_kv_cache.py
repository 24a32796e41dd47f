# %% [markdown]
# # Recap: experts, decoding, and the cache
#
# A language model reads tokens and gives, for the next one, a number per word of its vocabulary. Three questions lie
# between that and an answer on a screen, and this lab asks them of models that run here:
#
# 1. A layer has many weights. Must every token go through all of them? *Mixture of experts.*
# 2. The model gives probabilities. Which token do we take? *Decoding.*
# 3. Each token depends on all before it. Must everything be computed again for each? *The KV cache.*

# %% tags=["parameters"]
profile = "full"  # "fast": less training, shorter texts

# %%
import statistics
import time
from dataclasses import replace

import torch

from cme295lab import memory, units
from cme295lab.pretraining.corpora import course_corpus
from cme295lab.pretraining.packing import MixtureDataset, PackedDataset
from cme295lab.pretraining.tokenizer import train_tokenizer
from cme295lab.transformer import DecoderLM, ModelConfig, StaticCache, decode_cost, load_pretrained, moe, preset
from cme295lab.transformer import pretrained_or_course
from cme295lab.transformer.decoding import Sampling, expected_tokens_per_step, generate, next_token_probabilities
from cme295lab.transformer.decoding import speculate

# %%
from cme295lab.widgets import BeamTree, DecodingPlayground, KvCacheExplorer, RoutingExplorer
from cme295lab.widgets import busiest_expert_figure, routing_text

# %% [markdown]
# ## 1. From dense to experts
#
# Two thirds of a Llama layer's weights are in its MLP. Make eight MLPs, *experts*, and let a small matrix, the
# *router*, choose two of them for each token. The layer then holds as much as eight and computes as much as two.
#
# Route four tokens by hand. The router gives each a number per expert; the two largest are chosen, and a softmax over
# these two says how their outputs are weighted, the *gates*.
#
# **Predict** from the numbers in the cell: which expert gets the most tokens?

# %% tags=["nbval-check-output"]
logits = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 3.0, 1.0, 0.5], [1.0, 0.5, 2.5, 2.0], [1.6, 1.4, -1.0, 0.0]])
best = logits.topk(2)
gates = best.values.softmax(-1)
for token in range(4):
    (a, b), (x, y) = best.indices[token].tolist(), gates[token].tolist()
    print(f"token {token}: {x:.3f} × expert {a} + {y:.3f} × expert {b}")
print("tokens of each expert:", best.indices.flatten().bincount(minlength=4).tolist())

# %% [markdown]
# A softmax over the chosen ones is the softmax over all of them, renormalised.
#
# Now a real layer of the library. Run *every* expert on *every* token, weight by the gates, with zero for those that
# were not chosen, and add: that must be what the sparse layer gives, which runs only the chosen ones.

# %%
config = ModelConfig(
    vocab_size=1024, num_layers=2, dim=64, num_heads=4, mlp_dim=96, max_seq=256, tied_head=True,
    num_experts=8, experts_per_token=2,
)
torch.manual_seed(0)
layer, x = moe.MoeMlp(config), torch.randn(1, 6, config.dim)
with torch.no_grad():
    routing = layer.route(x[0])
    weights = torch.zeros(6, 8).scatter(1, routing.experts, routing.gates)
    by_hand = sum(weights[:, e, None] * expert(x[0]) for e, expert in enumerate(layer.experts))
    print(f"largest difference {(layer(x)[0] - by_hand).abs().max():.1e}")
    print(f"experts that ran for token 0: {routing.experts[0].tolist()}, of {config.num_experts}")

# %% [markdown]
# Give all eight gates and run all eight experts, and the mixture is *dense*. The weights are the same, the arithmetic
# is not. Mixtral 8x7B: 46.7 billion parameters, of which a token meets 12.9. (Not 56: attention, embeddings and norms
# exist once.) What must be in memory is the first number in either case.

# %% tags=["nbval-check-output"]
mixtral = preset("mixtral-8x7b")
dense = replace(mixtral, experts_per_token=mixtral.num_experts)
for name, c in (("sparse, 2 of 8", mixtral), ("dense, 8 of 8", dense), ("mistral-7b", preset("mistral-7b"))):
    print(f"{name:14} {c.num_parameters:>14,} parameters, {c.num_active_parameters:>14,} active for a token")

# %% [markdown]
# ## 2. Capacity, and tokens that are dropped
#
# Experts live on different GPUs, and a GPU's share of the work must be known beforehand. So each expert has a
# *capacity*: an even share of the tokens, times a factor. A token that finds its expert full is *dropped* there: it
# keeps its residual and skips that MLP. (You may read that the load is shared "among the CPUs". It is among GPUs.)
#
# **Predict**: 1,024 tokens, 8 experts, one per token, factor 1.25. What is the capacity?

# %% tags=["nbval-check-output"]
for factor in (1.0, 1.25, 2.0):
    switch = replace(config, experts_per_token=1, capacity_factor=factor)
    print(f"capacity factor {factor:4}: {moe.expert_capacity(1024, switch)} tokens")

# %% [markdown]
# A small factor drops tokens, a large one wastes memory and waits. And without help the load is anything but even.
#
# ## 3. Favourites
#
# An expert that is chosen a little more often learns more, and is then chosen more often. *Switch*'s remedy is a loss
# that grows when the tokens sent to an expert, $f_e$, and the probability it is given, $P_e$, are large for the same
# expert:
#
# $$E \sum_e f_e\, P_e$$
#
# **Predict** its value if all is even, and if one expert gets everything.

# %% tags=["nbval-check-output"]
cases = {
    "even": [[0.9, 0.1], [0.1, 0.9]] * 2,
    "one for all": [[1.0, 0.0]] * 4,
    "three barely": [[0.51, 0.49]] * 3 + [[0.0, 1.0]],
}
for name, rows in cases.items():
    p = torch.tensor(rows)
    f = p.argmax(-1).bincount(minlength=2) / len(p)
    means, loss = p.mean(0), 2 * (f * p.mean(0)).sum()
    print(f"{name:13} f = {f.tolist()}, P = ({means[0]:.2f}, {means[1]:.2f}), loss {loss:.2f}")

# %% [markdown]
# Even is 1, collapse is the number of experts. But 1 is not the smallest value, as the third case shows: $f$ counts
# choices, $P$ averages beliefs, and the two may disagree.
#
# Now train: a small mixture on four kinds of text that are on this machine anyway (English documentation, code, sums,
# stories), once for each coefficient of that loss.

# %%
corpus = course_corpus("fast")
texts = {domain: [document.text for document in documents] for domain, documents in corpus.train.items()}
small_tokenizer = train_tokenizer([text for domain in texts.values() for text in domain], config.vocab_size)
packed = {
    domain: PackedDataset(small_tokenizer.encode_batch(part), seq=128, end_token=small_tokenizer.end_token)
    for domain, part in texts.items()
}
data = MixtureDataset(packed, weights=dict.fromkeys(packed, 1.0))
print({domain: f"{part.num_tokens:,} tokens" for domain, part in packed.items()})

# %%
STEPS = {"fast": 12, "full": 120}[profile]

# %%
def train(coefficient):
    """A mixture trained with that much load balancing, and the share of its most wanted expert at each step."""
    torch.manual_seed(0)
    model, shares = DecoderLM(config), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(STEPS):
        batch = data.batch(step, rows=8)
        with moe.record_routing(model) as routings:
            loss = model.loss(batch.tokens, batch.targets, positions=batch.positions, documents=batch.documents)
        shares.append(max(float(r.load.max() / r.load.sum()) for r in routings))
        optimizer.zero_grad()
        (loss + moe.auxiliary_loss(routings, balance=coefficient, z=0.0)).backward()
        optimizer.step()
    return model.eval(), shares

# %%
trained = {coefficient: train(coefficient) for coefficient in (0.0, 0.01, 0.1)}
shares = {coefficient: values for coefficient, (_, values) in trained.items()}
display(busiest_expert_figure(shares, num_experts=config.num_experts))

# %% [markdown]
# The curve shows the worst layer. A token makes two different choices, so half of all is the most that one expert can
# get. Without balancing that is where it soon goes: one expert is among the two of nearly *every* token, and others are
# hardly ever chosen; they hold memory and learn nothing. A coefficient of 0.01 spreads the load, though not evenly in
# so few steps.
#
# See where each token of an unseen text goes. Questions: do experts divide the text by *domain*, or by something else?
# How many tokens are dropped at a capacity factor of 1, with and without balancing? What happens with k = 8, the dense
# mixture?

# %%
parts = [(domain, documents[0].text[:80]) for domain, documents in corpus.validation.items()]
unseen = routing_text(parts, small_tokenizer)
models = {coefficient: model for coefficient, (model, _) in trained.items()}
routing_explorer = RoutingExplorer(models, unseen, layer=1)
display(routing_explorer)

# %% [markdown]
# Two settings of it as pictures, for where no kernel runs: without balancing, and with.

# %%
display(routing_explorer.figure())
routing_explorer.controls["coefficient"].value = 0.01
display(routing_explorer.figure())

# %% [markdown]
# ## 4. The next token
#
# From here on a model that was trained for longer: SmolLM2 with 135 million parameters if it has been fetched
# (`cme295lab fetch smollm2`), else the course's own small one. It reads a prompt once and gives a distribution over
# its whole vocabulary.

# %%
pretrained = pretrained_or_course()
print(pretrained.source)
tokenizer = pretrained.tokenizer
PROMPT = "Once upon a time, there was a"
prompt = tokenizer.encode(PROMPT)
with torch.no_grad():
    next_logits = pretrained.model(torch.tensor([prompt]), num_logits=1)[:, -1]
best = next_logits.softmax(-1)[0].topk(6)
for probability, token in zip(best.values.tolist(), best.indices.tolist()):
    print(f"{probability:6.1%}  {tokenizer.token_text(token)!r}")

# %% [markdown]
# What is drawn from is seldom this distribution itself. **Temperature** divides the logits: below 1 it sharpens,
# above 1 it flattens, and the ranking stays. **Top-k** keeps the $k$ likeliest tokens. **Top-p** keeps the smallest
# set that has at least probability $p$, the token that crosses $p$ included. **Min-p** keeps what has at least that
# fraction of the likeliest token's probability.
#
# Three tokens with logits 2, 1 and 0, by hand. **Predict**: to which distribution does temperature 0 lead? And
# temperature ∞?

# %% tags=["nbval-check-output"]
hand = torch.tensor([[2.0, 1.0, 0.0]])
for temperature in (0.5, 1.0, 2.0):
    p = next_token_probabilities(hand, Sampling(temperature=temperature))[0]
    print(f"T = {temperature}: " + ", ".join(f"{x:.4f}" for x in p), f" entropy {torch.special.entr(p).sum():.4f} nats")
five = torch.tensor([[0.4, 0.3, 0.15, 0.1, 0.05]]).log()
for cut in ({"top_k": 2}, {"top_p": 0.8}, {"min_p": 0.2}):
    print(cut, "keeps", ", ".join(f"{x:.3f}" for x in next_token_probabilities(five, Sampling(**cut))[0]))

# %% [markdown]
# (0.4 + 0.3 is not yet 0.8; the third token crosses it, and stays.)
#
# Now the real distribution. Move the sliders, click a bar to append its token, let it continue. Questions to answer
# with it: after which prompt does the model have hardly any doubt? What does top-p 0.9 keep there, and what after a
# prompt where anything may follow? What does top-k 20 keep in both?

# %%
playground = DecodingPlayground(pretrained, prompt=PROMPT, temperature=0.8, top_p=0.9)
display(playground)

# %% [markdown]
# One setting of it as a picture, for where no kernel runs:

# %%
display(playground.figure())

# %% [markdown]
# ## 5. One answer, many ways
#
# *Greedy* decoding takes the likeliest token each time. **Predict**: what happens if a small model goes on like that
# for long? We measure it: the share of its four-token sequences that had come before. The prompt is from a
# documentation, where anything may follow.

# %%
LENGTH = {"fast": 40, "full": 120}[profile]
doubtful = tokenizer.encode("The value of")


def repeated(tokens):
    """Share of the four-token sequences that came before."""
    seen = [tuple(tokens[i : i + 4]) for i in range(len(tokens) - 3)]
    return 1 - len(set(seen)) / max(len(seen), 1)


ways = {
    "greedy": None, "greedy, penalty 1.3": Sampling(repetition_penalty=1.3, top_k=1),
    "T = 0.7": Sampling(temperature=0.7), "T = 1": Sampling(), "T = 1, top-p 0.9": Sampling(top_p=0.9),
    "T = 1.5": Sampling(temperature=1.5),
}

# %%
for name, sampling in ways.items():
    made = generate(pretrained.model, [doubtful] * 4, max_new_tokens=LENGTH, sampling=sampling, seed=0)
    loops = statistics.mean(repeated(row) for row in made.tokens)
    likely = statistics.mean(x for row in made.log_probabilities for x in row)
    print(f"{name:20} repeated {loops:4.0%}, log-probability per token {likely:6.2f}")
    print("    The value of" + tokenizer.decode(made.tokens[0][:28]).replace("\n", " "))

# %% [markdown]
# - Greedy text is the likeliest token by token, and falls into loops: what has just been said makes itself likelier.
#   The repetition penalty breaks them.
# - A high temperature draws from the tail, where thousands of unlikely tokens together are likely. Text falls apart
#   although each token was "allowed".
# - Truncation cuts that tail off and leaves the head's proportions alone. Top-k cuts at the same rank everywhere, top-p
#   and min-p cut late where the model is in doubt and early where it is sure.

# %% [markdown]
# ## 6. Beam search
#
# The likeliest *next* token need not begin the likeliest *answer*. Beam search keeps several beginnings alive and
# compares them by the sum of their log-probabilities. A longer answer has a smaller sum, so answers of different
# lengths are compared after division by $((5 + |Y|)/6)^\alpha$, the length penalty.
#
# Below, a column is a new token; its candidates stand by rank, and the upper ones go on. An answer ends at a full
# stop. **Predict**: what does $\alpha$ = 0 favour, and what $\alpha$ = 3?

# %%
tree = BeamTree(pretrained, prompt=PROMPT + " girl who", num_beams=4, max_new_tokens=10)
display(tree)

# %%
display(tree.figure())

# %% [markdown]
# Where one right answer is sought (translation, speech), beams help. In open text the likeliest answer is a dull one;
# there people sample.

# %% [markdown]
# ## 7. A draft that proposes
#
# To give one token, all weights are read. To *check* five tokens, they are read once, too. So a small draft model
# proposes a few tokens, and the large one checks them in a single pass: accept $x$ with probability $\min(1,
# p(x)/q(x))$, at the first rejection draw from what $p$ has more than $q$. The result has exactly the large model's
# distribution.
#
# If a proposal is accepted with probability $a$ and $g$ are made, a pass gives $\frac{1 - a^{g+1}}{1 - a}$ tokens.
# **Predict** for $a$ = 0.8 and $g$ = 4.

# %% tags=["nbval-check-output"]
for a in (0.5, 0.8, 0.95):
    print(f"a = {a}: " + ", ".join(f"g = {g}: {expected_tokens_per_step(a, g):.2f}" for g in (1, 2, 4, 8)))

# %%
target, draft = load_pretrained("course-4m"), load_pretrained("course-draft")
start = target.tokenizer.encode(PROMPT)
RUNS, NEW = {"fast": (2, 40), "full": (8, 150)}[profile]
print("proposals   accepted   tokens per pass of the large model: measured   by formula")
for g in (1, 2, 4, 8):
    runs = [
        speculate(target.model, draft.model, start, max_new_tokens=NEW, num_draft=g, sampling=Sampling(), seed=seed)
        for seed in range(RUNS)
    ]
    looked_at = sum(min(a + 1, p) for run in runs for a, p in zip(run.accepted, run.proposed))
    rate = sum(sum(run.accepted) for run in runs) / looked_at
    measured = sum(len(run.tokens) for run in runs) / sum(run.num_steps for run in runs)
    print(f"{g:9} {rate:10.1%} {measured:43.2f} {expected_tokens_per_step(rate, g):12.2f}")

# %% [markdown]
# The formula takes acceptances for independent. They are not quite: easy stretches and hard ones come in runs.
#
# A pass saved is not yet time saved, because the draft costs, too. Measured, in turns:

# %%
ROUNDS = {"fast": 1, "full": 3}[profile]


def seconds(work):
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def median_seconds(ways):
    """Each way in turn, several times: the median of each."""
    rounds = [{name: seconds(work) for name, work in ways.items()} for _ in range(ROUNDS)]
    return {name: statistics.median(found[name] for found in rounds) for name in ways}

# %%
options = {"max_new_tokens": NEW, "sampling": Sampling(), "seed": 0}
ways = {
    "alone": lambda: generate(target.model, [start], **options),
    "with a draft": lambda: speculate(target.model, draft.model, start, num_draft=2, **options),
}
for name, took in median_seconds(ways).items():
    print(f"{name:13} {NEW / took:6.1f} tokens/s")

# %% [markdown]
# With $c$ the cost of a draft's pass in units of the target's, the gain is the tokens per pass divided by $1 + g c$. In
# models this small a pass is mostly overhead and $c$ is far from the ratio of their sizes, 1 to 11; on a busy machine
# there may be no gain at all. Between large models a pass takes as long as reading the weights.

# %% [markdown]
# ## 8. Keys and values, kept
#
# Each new token attends to all before it: to their *keys* and *values*. These do not change when text is added. So
# keep them, and a new token costs one position's work instead of all positions' work again. **Predict**: does a cache
# change the answer?

# %%
model = pretrained.model
text = tokenizer.encode(PROMPT + " little dog. The dog liked to play with a red ball in the garden, every day.")
cache = StaticCache(model.config, batch_size=1, max_seq=len(text))
with torch.no_grad():
    at_once = model(torch.tensor([text]))[0]
    steps = [model(torch.tensor([[token]]), cache=cache)[0, -1] for token in text]
difference = (torch.stack(steps) - at_once).abs().max()
same = torch.equal(torch.stack(steps).argmax(-1), at_once.argmax(-1))
print(f"{len(text)} tokens one by one: largest difference of a logit {difference:.1e}, the same choices: {same}")
assert same

# %% [markdown]
# Not by one choice. (The last bits differ: sums are made in another order.)
#
# What it saves is measured here, on this machine, in turns. **Predict**: by how much is generating 100 tokens faster
# with a cache?

# %%
NUM_NEW = {"fast": 24, "full": 100}[profile]
kinds = {
    str(kind): (lambda kind=kind: generate(model, [prompt], max_new_tokens=NUM_NEW, cache=kind))
    for kind in ("static", "growing", None)
}
for kind, took in median_seconds(kinds).items():
    print(f"cache {kind:8} {NUM_NEW / took:7.1f} tokens/s")

# %% [markdown]
# **Prefill and decode** are two different jobs. In *prefill* the whole prompt is read in one pass: each weight that is
# read works for all its tokens, so arithmetic is the limit. In *decode* there is one token: the same weights are read
# for a single multiplication each, and memory is the limit. Several conversations at a time, a *batch*, share that
# reading.

# %%
LONG = {"fast": 64, "full": 256}[profile]
ids = torch.randint(model.config.vocab_size, (1, LONG))


def read(batch, at_a_time):
    cache = StaticCache(model.config, batch_size=batch, max_seq=LONG)
    with torch.no_grad():
        for part in ids[:, :LONG].expand(batch, -1).split(at_a_time, dim=1):
            model(part, cache=cache, num_logits=1)


cases = {"prefill, all at once": (1, LONG), "decode, one by one": (1, 1), "decode, 8 conversations": (8, 1)}
for name, took in median_seconds({name: (lambda c=c: read(*c)) for name, c in cases.items()}).items():
    print(f"{name:24} {took / LONG / cases[name][0] * 1e3:7.2f} ms per token")

# %% [markdown]
# ## 9. What the cache takes
#
# Per token: a key and a value, in each layer, for each key/value head. $2 \cdot L \cdot n_{kv} \cdot d_{head}$
# numbers. The formula against the tensors that our cache holds:

# %%
c = model.config
formula = 2 * c.num_layers * c.num_kv_heads * c.head_dim * 4 * 100
held = StaticCache(c, batch_size=1, max_seq=100).num_bytes
print(f"{c.name}, 100 tokens in fp32: formula {formula:,} bytes, held {held:,} bytes")
assert held == formula

# %% [markdown]
# **Predict**: Llama-2 7B in 16 bits, a full context of 4,096 tokens. How does that compare with the 13.5 GB of its
# weights? And for a batch of 32?

# %% tags=["nbval-check-output"]
print("model           bytes per token   full context")
for name in ("llama-2-7b", "llama-2-13b", "llama-2-70b", "llama-3-8b", "llama-3-70b"):
    full = units.format_bytes(memory.kv_cache_bytes(name), binary=True)
    print(f"{name:14} {memory.kv_cache_bytes(name, seq=1):>16,}   {full:>9} for {preset(name).max_seq:,} tokens")
print(f"{'DeepSeek-V3':14} {(512 + 64) * 61 * 2:>16,}")

# %% [markdown]
# Three ways to make it smaller, and all are in this table:
#
# - **GQA**: several query heads share a key/value head. Llama-2 70B has 8 for 64, an eighth of the cache.
# - **MLA**: DeepSeek-V3 keeps one compressed vector of 512 numbers and a rotated one of 64 per layer, whatever the
#   number of heads (128), and expands them when it attends.
# - **Fewer bits** per number.
#
# For one token of each conversation, all weights and the whole cache must be read. So no GPU can be faster than
# (weights + cache) / bandwidth.

# %% tags=["nbval-check-output"]
llama = preset("llama-2-7b")
for batch, context in ((1, 0), (1, 4096), (8, 4096), (32, 4096)):
    step = decode_cost(llama, context=context, batch_size=batch, device="A100")
    at_least, at_most = step.lower_bound_s * 1e3, step.tokens_per_s
    print(f"batch {batch:2}, context {context:5,}: at least {at_least:5.2f} ms a step, at most {at_most:4.0f} tokens/s")

# %% [markdown]
# Change everything. On which GPU does Llama-3 70B fit, and how many? From which context on is the cache larger than
# the weights? What does a batch cost, and what does it bring?

# %%
explorer = KvCacheExplorer(model="llama-3-8b", seq=8192, batch=16, device="H100")
display(explorer)

# %%
display(explorer.figure())

# %% [markdown]
# ## Often said, and not quite right
#
# | said | counted |
# |---|---|
# | "experts share the load among the CPUs" | among GPUs: each holds some of the experts (section 2) |
# | "Mixtral 8x7B has 56 billion parameters" | 46.7: attention, embeddings and norms exist once (section 1) |
# | "a mixture of experts saves memory" | it saves arithmetic; all experts must be in memory |
# | "the balance loss is at least 1" | 1 is uniform routing, but less is possible (section 3) |
# | "temperature 0 is a division by zero" | it is the limit: greedy decoding, asked for as such |
# | "speculative decoding changes the answers a little" | the distribution is exactly the same (section 7) |
# | "a cache makes long contexts cheap" | it saves computing; its bytes grow with every token (section 9) |

# %% [markdown]
# ## Summary
#
# - A router sends each token to a few experts: many parameters, little arithmetic. Left alone it has favourites; a
#   balance loss spreads the load, and a capacity bounds what one expert must take.
# - Decoding reshapes one distribution: temperature for sharpness, top-k, top-p and min-p for the tail. Beams look
#   ahead; a draft saves passes of the large model.
# - A cache of keys and values makes a token cost one position. It is $2 L n_{kv} d_{head}$ numbers per token, and
#   decode cannot be faster than reading it and the weights.
#
# **Your turn**: [routing](../exercises/moe_routing/moe_routing.ipynb), [decoding](../exercises/decoding/decoding.ipynb)
# and [the cache](../exercises/kv_cache/kv_cache.ipynb). Next: [02, pretraining](02_pretraining.ipynb).
