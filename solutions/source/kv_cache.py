# %% [markdown]
# # Exercise: Keep keys and values
#
# A model that writes one token at a time reads the same beginning again and again. It need not: of what it has read,
# later tokens see keys and values alone. You count what it costs to keep them, write attention that goes on where it
# stopped, and a loop that reads each token once.
#
# | part | you write | points |
# |---|---|---|
# | 1 | the bytes of a cache | 2 |
# | 2 | attention with a cache | 6 |
# | 3 | generation that reads each token once | 4 |
#
# Each part ends with a check. It says what is right, what is wrong and, where it can tell, why. Run it as often as you
# like. `checks.hint("kv_cache/1")` gives a hint, and `checks.hint("kv_cache/1", 2)` a bigger one.

# %% nbgrader={"grade":false,"grade_id":"setup","locked":true,"schema_version":3,"solution":false}
import math
import time

import torch
from torch import Tensor

from cme295lab.grading import checks
from cme295lab.transformer import DecoderLM, StaticCache, preset

# %% [markdown]
# ## Part 1. What a token leaves behind
#
# In each layer a token leaves a **key** and a **value** for each key/value head: vectors of `head_dim` numbers. With
# grouped-query attention, several query heads share a key/value head.
#
# | | layers | heads | key/value heads | head_dim |
# |---|---|---|---|---|
# | Llama-2 7B | 32 | 32 | 32 | 128 |
# | Llama-3 8B | 32 | 32 | 8 | 128 |
#
# A small example, by hand: one layer, 2 heads that share 1 key/value head of 4 numbers, 2 bytes each. A token leaves
# $2 \cdot 4 \cdot 2 = 16$ bytes.
#
# **Predict**: Llama-2 7B in bf16 has 13.5 GB of weights. After how many tokens is its cache as large?

# %% nbgrader={"grade":false,"grade_id":"cache_bytes","locked":false,"schema_version":3,"solution":true}
def cache_bytes(
    num_layers: int, num_heads: int, num_kv_heads: int, head_dim: int, seq: int, batch: int, bytes_per_number: int
) -> float:
    """Bytes of the keys and values of a batch of sequences.

    Args:
        num_layers, num_heads, num_kv_heads, head_dim: of the model.
        seq: tokens of each sequence.
        batch: sequences.
        bytes_per_number: 2 for bf16.

    TASK
    1. Which of these matter?
    """
    ### BEGIN SOLUTION
    return 2 * num_layers * num_kv_heads * head_dim * seq * batch * bytes_per_number
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"bytes_check","locked":true,"points":2,"schema_version":3,"solution":false}
result = checks.run("kv_cache/1", cache_bytes)
### BEGIN HIDDEN TESTS
result &= checks.run("kv_cache/1", cache_bytes, grouped="llama-2-70b", seq=2048, batch=16)
### END HIDDEN TESTS
result.award(2)

# %% [markdown]
# Once the check passes: how many sequences fit beside the weights?

# %%
if result.passed:
    for name, weights_gb, kv_heads in (("Llama-2 7B", 13.5, 32), ("Llama-3 8B", 16.1, 8)):
        each = cache_bytes(32, 32, kv_heads, 128, seq=4096, batch=1, bytes_per_number=2) / 1e9
        print(f"{name}: {each:.2f} GB for 4096 tokens, {int((80 - weights_gb) / each)} sequences in 80 GB")

# %% [markdown]
# ## Part 2. Attention that goes on
#
# Tokens arrive in **chunks**: the prompt, then one at a time. The queries of a chunk look at all keys so far, those of
# earlier chunks among them.
#
# - **Positions go on.** If the cache holds 5 tokens, the first new one has position 5. `rotate(x, first)` rotates
#   queries or keys (heads, new, head_dim), whose first token has the position `first` (RoPE).
# - **The mask is causal over everything.** With 5 tokens held, the first query of a chunk sees 6 keys, the next one 7.
#
# `cache` is a dictionary. It is empty at first, and yours to fill.

# %% nbgrader={"grade":false,"grade_id":"rotate","locked":true,"schema_version":3,"solution":false}
def rotate(x: Tensor, first: int) -> Tensor:
    """RoPE for x (heads, seq, head_dim), whose first token has the position `first`."""
    half = x.shape[-1] // 2
    angle = torch.arange(first, first + x.shape[1])[:, None] / 100.0 ** (torch.arange(half) / half)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), dim=-1)

q, k = torch.randn(2, 1, 1, 4)
for first in (0, 7):
    score = (rotate(q, first + 3) * rotate(k, first)).sum()
    print(f"query at {first + 3:2}, key at {first}: {score:.4f}")

# %% [markdown]
# The same distance, the same score: only distances count. So a key may be rotated *once*, before it goes into the
# cache.
#
# A small example of the mask, with 2 tokens held and a chunk of 3 (1: visible):
#
# | | key 0 | key 1 | key 2 | key 3 | key 4 |
# |---|---|---|---|---|---|
# | query 0 (position 2) | 1 | 1 | 1 | 0 | 0 |
# | query 1 (position 3) | 1 | 1 | 1 | 1 | 0 |
# | query 2 (position 4) | 1 | 1 | 1 | 1 | 1 |
#
# **Predict**: which mask does a single new token need?

# %% nbgrader={"grade":false,"grade_id":"cached_attention","locked":false,"schema_version":3,"solution":true}
def cached_attention(q: Tensor, k: Tensor, v: Tensor, cache: dict, rotate) -> Tensor:
    """softmax(Q Kᵀ / sqrt(head_dim)) V of new tokens, over all tokens so far.

    Args:
        q, k, v: of the new tokens, not rotated, (heads, new, head_dim).
        cache: what earlier calls have put into it.
        rotate: rotate(x, first), as above.

    Returns:
        (heads, new, head_dim).

    TASKS
    1. At which position do the new tokens start? Rotate.
    2. Join keys and values to those of the cache, and keep them.
    3. Scores, the mask, softmax, values.
    """
    ### BEGIN SOLUTION
    held = cache["k"].shape[1] if cache else 0
    q, k = rotate(q, held), rotate(k, held)
    if cache:
        k, v = torch.cat((cache["k"], k), dim=1), torch.cat((cache["v"], v), dim=1)
    cache["k"], cache["v"] = k, v
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    sees = torch.arange(k.shape[1]) <= held + torch.arange(q.shape[1])[:, None]
    return scores.masked_fill(~sees, -math.inf).softmax(dim=-1) @ v
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"attention_check","locked":true,"points":6,"schema_version":3,"solution":false}
result = checks.run("kv_cache/2", cached_attention)
### BEGIN HIDDEN TESTS
result &= checks.run("kv_cache/2", cached_attention, seed=295, heads=3, head_dim=8, seq=14)
### END HIDDEN TESTS
result.award(6)

# %% [markdown]
# ## Part 3. Read each token once
#
# `model(tokens, cache)` reads a list of tokens, which continue what the cache holds, and returns a row of logits for
# each: what follows it. `new_cache()` makes an empty cache.
#
# Write greedy generation. The largest of the *last* row of logits is the next token. The prompt is read in one call
# (**prefill**); after that each call reads one token (**decode**).
#
# **Predict**: for a prompt of 100 tokens and 100 new ones, how many tokens does the model read with a cache, and how
# many without?

# %% nbgrader={"grade":false,"grade_id":"generate","locked":false,"schema_version":3,"solution":true}
def generate(model, new_cache, prompt: list[int], num_tokens: int, end_token: int | None) -> list[int]:
    """The tokens that the model writes after a prompt.

    Args:
        model: model(tokens, cache) gives logits, (tokens, vocab).
        new_cache: makes an empty cache.
        prompt: at least one token.
        num_tokens: at most so many are written.
        end_token: the text ends with it, if it comes; None if there is none.

    Returns:
        The new tokens, the end token among them.

    TASKS
    1. Read the prompt.
    2. Choose a token, keep it, read it.
    """
    ### BEGIN SOLUTION
    cache, written = new_cache(), []
    unread = prompt
    while len(written) < num_tokens:
        logits = model(unread, cache)
        written.append(int(logits[-1].argmax()))
        unread = written[-1:]
        if written[-1] == end_token:
            break
    return written
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"generate_check","locked":true,"points":4,"schema_version":3,"solution":false}
result = checks.run("kv_cache/3", generate)
### BEGIN HIDDEN TESTS
result &= checks.run("kv_cache/3", generate, seed=295, prompt=5, num_tokens=15)
### END HIDDEN TESTS
result.award(4)

# %% [markdown]
# Once the check passes: the course's own decoder, with and without.

# %% nbgrader={"grade":false,"grade_id":"draw_times","locked":true,"schema_version":3,"solution":false}
decoder = DecoderLM(preset("course-1m")).eval()
total = 0

@torch.no_grad()
def read(tokens, cache=None):
    """The model of this exercise: the course's decoder, which counts."""
    global total
    total += len(tokens)
    return decoder(torch.tensor([tokens]), cache=cache)[0]

def full_cache():
    return StaticCache(decoder.config, batch_size=1, max_seq=256)

# %%
if result.passed:
    prompt = list(range(100, 150))
    for name, model in (("with a cache", read), ("without", None)):
        total, start, text = 0, time.perf_counter(), list(prompt)
        if model is None:
            for _ in range(60):
                text.append(int(read(text)[-1].argmax()))
        else:
            text += generate(read, full_cache, prompt, 60, None)
        print(f"{name}: {total} tokens read, {time.perf_counter() - start:.2f} s")

# %% [markdown]
# ## Summary
#
# - A token leaves $2 \cdot$ layers $\cdot$ key/value heads $\cdot$ head_dim numbers. Query heads leave nothing.
# - Positions and the mask go on where the cache stopped. A single new token needs no mask.
# - With a cache, $T$ tokens are read once; without, $T^2 / 2$ times.
# - What is saved in compute is paid in memory, and in reading that memory for every token.
# - **To take away**: a rejected draft of 4 tokens is in the cache. What must be undone, and what not?
