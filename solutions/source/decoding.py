# %% [markdown]
# # Exercise: From probabilities to text
#
# A model says how likely each next token is. Which one do you write down? You build the ways that are in use: sharpen
# and cut the distribution, search for the most likely answer, and let a small model do most of the work.
#
# | part | you write | points |
# |---|---|---|
# | 1 | temperature and top-k | 3 |
# | 2 | top-p | 4 |
# | 3 | beam search with a length penalty | 5 |
# | 4 | the acceptance rule of speculative decoding | 5 |
#
# Each part ends with a check. It says what is right, what is wrong and, where it can tell, why. Run it as often as you
# like. `checks.hint("decoding/1")` gives a hint, and `checks.hint("decoding/1", 2)` a bigger one.

# %% nbgrader={"grade":false,"grade_id":"setup","locked":true,"schema_version":3,"solution":false}
import math

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from cme295lab.grading import checks

# %% [markdown]
# ## Part 1. Sharper, and fewer
#
# **Temperature** divides the logits: $\mathrm{softmax}(z / T)$. **Top-k** keeps the $k$ largest and draws from them
# alone: their probabilities are renormalised, all others are 0.
#
# A small example, $z = (2, 1, 0, -1)$:
#
# | | token 0 | token 1 | token 2 | token 3 |
# |---|---|---|---|---|
# | $T = 1$ | 0.644 | 0.237 | 0.087 | 0.032 |
# | $T = 1/2$ | 0.865 | 0.117 | 0.016 | 0.002 |
# | $T = 1/2$, $k = 2$ | 0.881 | 0.119 | 0 | 0 |
#
# **Predict**: what is left for $T \to 0$, and for $T \to \infty$?
#
# Write both in one function. Of tokens that tie for the last place any may be kept, but exactly $k$ are; a $k$ beyond
# the vocabulary keeps all.

# %% nbgrader={"grade":false,"grade_id":"top_k","locked":false,"schema_version":3,"solution":true}
def top_k_probabilities(logits: Tensor, temperature: float, top_k: int) -> Tensor:
    """The distribution after temperature and top-k.

    Args:
        logits: (batch, vocab).
        temperature: T.
        top_k: tokens that are kept in each row.

    Returns:
        Probabilities, (batch, vocab).

    TASKS
    1. Divide by the temperature.
    2. Which k tokens of each row are kept? The others get the logit -inf.
    """
    ### BEGIN SOLUTION
    z = logits / temperature
    kept = z.topk(min(top_k, z.shape[-1]), dim=-1).indices
    cut = torch.full_like(z, -math.inf).scatter(-1, kept, z.gather(-1, kept))
    return cut.softmax(-1)
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"top_k_check","locked":true,"points":3,"schema_version":3,"solution":false}
result = checks.run("decoding/1", top_k_probabilities)
### BEGIN HIDDEN TESTS
result &= checks.run("decoding/1", top_k_probabilities, seed=295, rows=9, vocab=31, top_k=7)
### END HIDDEN TESTS
result.award(3)

# %% [markdown]
# ## Part 2. As many as it takes
#
# A fixed $k$ is too many after "The capital of France is" and too few after "I like". **Top-p** keeps the *smallest
# set* of tokens whose probabilities sum to at least $p$, the most likely ones first. The token that crosses $p$ belongs
# to it, so at least one token is always kept.
#
# The example again, $(0.644, 0.237, 0.087, 0.032)$: with $p = 0.6$ one token is enough. With $p = 0.7$ one is not, two
# are: $(0.731, 0.269, 0, 0)$ is left.
#
# **Predict**: how many tokens does $p = 0.95$ keep?
#
# In a real vocabulary tokens are not sorted. Sort, find out which ranks are kept, and go *back* to the order of the
# vocabulary.

# %% nbgrader={"grade":false,"grade_id":"top_p","locked":false,"schema_version":3,"solution":true}
def top_p_probabilities(logits: Tensor, top_p: float) -> Tensor:
    """The distribution after top-p.

    Args:
        logits: (batch, vocab).
        top_p: p, in (0, 1].

    Returns:
        Probabilities, (batch, vocab), in the order of the vocabulary.

    TASKS
    1. Sort each row's probabilities; which ranks are kept?
    2. Which tokens are these? Renormalise.
    """
    ### BEGIN SOLUTION
    ranked, order = logits.softmax(-1).sort(-1, descending=True)
    kept_ranks = ranked.cumsum(-1) - ranked < top_p
    kept = torch.zeros_like(kept_ranks).scatter(-1, order, kept_ranks)
    return logits.masked_fill(~kept, -math.inf).softmax(-1)
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"top_p_check","locked":true,"points":4,"schema_version":3,"solution":false}
result = checks.run("decoding/2", top_p_probabilities)
### BEGIN HIDDEN TESTS
result &= checks.run("decoding/2", top_p_probabilities, seed=295, rows=9, vocab=31, top_p=0.8)
### END HIDDEN TESTS
result.award(4)

# %% [markdown]
# Once the check passes: the same $p$, after a sure model and an unsure one.

# %% nbgrader={"grade":false,"grade_id":"draw_top_p","locked":true,"schema_version":3,"solution":false}
if result.passed:
    logits = torch.linspace(3, -3, 15)[None] * torch.tensor([[0.3], [2.0]])
    fig, axes = plt.subplots(1, 2, figsize=(8, 2.2), sharey=True)
    for row, name in enumerate(("unsure", "sure")):
        axes[row].bar(range(15), logits[row].softmax(-1), color="#BBBBBB", label="the model")
        axes[row].plot(range(15), top_p_probabilities(logits, 0.8)[row], "o", color="#0072B2", label="top-p 0.8")
        axes[row].set(title=name, xlabel="token")
    axes[0].set(ylabel="probability")
    axes[1].legend()
    plt.show()

# %% [markdown]
# *The picture, if your function is right: bars of falling height, twice. On the left, blue dots are above zero for most
# tokens; on the right, for the first two alone.*
#
# ## Part 3. Several answers side by side
#
# Greedy decoding takes the best token and never regrets it. **Beam search** keeps the `num_beams` best beginnings
# alive. Here is a language in which that matters; token 2 ends an answer.

# %% nbgrader={"grade":false,"grade_id":"language","locked":true,"schema_version":3,"solution":false}
def page_language(tokens: list[int]) -> list[float]:
    """Log-probabilities of the next token after these."""
    table = {(): (0.5, 0.4, 0.1), (0,): (0.4, 0.35, 0.25), (1,): (0.05, 0.05, 0.9)}
    return [math.log(p) for p in table.get(tuple(tokens), (0.3, 0.3, 0.4))]

for first in (0, 1):
    best = max(range(3), key=lambda token: page_language([first])[token])
    total = page_language([])[first] + page_language([first])[best]
    print(f"{first} and then its best, {best}: probability {math.exp(total):.2f}")

# %% [markdown]
# The rules. A beam is a list of tokens and the **sum** of their log-probabilities. In each of `max_tokens` steps, all
# continuations of all beams compete by that sum:
#
# 1. A candidate that ends (its last token is `end_token`) is an **answer** if it is among the best `num_beams`
#    candidates of its step; it does not go on.
# 2. The best `num_beams` candidates that do *not* end go on.
#
# After the last step, beams that are still alive are answers, too.

# %% [markdown]
# Longer answers are less likely, if only because they are longer. So answers are compared by
#
# $$\text{score}(Y) = \frac{\log P(Y)}{\left(\frac{5 + |Y|}{6}\right)^{\alpha}}$$
#
# where $|Y|$ counts the new tokens, the end token among them. (GNMT used $\alpha = 0.6$; for $|Y| = 10$ the divisor is
# 1.733, for 20 it is 2.354.)
#
# **Predict**: which answers does a larger $\alpha$ favour? Both the sum and the score are negative.
#
# Write the search; it returns the answer with the best score.

# %% nbgrader={"grade":false,"grade_id":"beam_search","locked":false,"schema_version":3,"solution":true}
def beam_search(next_log_probabilities, num_beams: int, max_tokens: int, end_token: int | None, alpha: float):
    """The answer with the best score that beam search finds.

    Args:
        next_log_probabilities: gives the log-probability of each next token after a list of tokens.
        num_beams: beginnings that are kept alive.
        max_tokens: steps.
        end_token: ends an answer; None if nothing does.
        alpha: of the length penalty.

    Returns:
        (tokens, score).

    TASKS
    1. All candidates of a step, best first.
    2. Which of them are answers, which go on?
    3. Of all answers, the one with the best score.
    """
    ### BEGIN SOLUTION
    beams, answers = [([], 0.0)], []
    for _ in range(max_tokens):
        candidates = [
            ([*tokens, token], total + gain)
            for tokens, total in beams
            for token, gain in enumerate(next_log_probabilities(tokens))
        ]
        candidates.sort(key=lambda candidate: candidate[1], reverse=True)
        beams = [candidate for candidate in candidates if candidate[0][-1] != end_token][:num_beams]
        answers += [candidate for candidate in candidates[:num_beams] if candidate[0][-1] == end_token]
    answers += beams
    scored = [(tokens, total / ((5 + len(tokens)) / 6) ** alpha) for tokens, total in answers]
    return max(scored, key=lambda answer: answer[1])
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"beam_check","locked":true,"points":5,"schema_version":3,"solution":false}
result = checks.run("decoding/3", beam_search)
### BEGIN HIDDEN TESTS
result &= checks.run("decoding/3", beam_search, seed=295)
### END HIDDEN TESTS
result.award(5)

# %% [markdown]
# Once the check passes: greedy decoding, and two beams.

# %%
if result.passed:
    for num_beams in (1, 2):
        tokens, score = beam_search(page_language, num_beams, max_tokens=2, end_token=2, alpha=0.0)
        print(f"{num_beams} beams: {tokens} with probability {math.exp(score):.2f}")

# %% [markdown]
# ## Part 4. Propose, and check
#
# Reading the weights for one token costs a large model nearly as much as for five. So a small **draft** proposes $g$
# tokens, and the large **target** reads them all in one pass. That gives its distributions `p[0]` … `p[g]`: of the
# token at each proposal's place, and of the one behind the last. The draft drew proposal $i$ from `q[i]`.
#
# From left to right, with a uniform number $u$ for each:
#
# - **accept** proposal $x$ if $u < p(x) / q(x)$;
# - at the **first rejection** draw a token from $\max(p - q, 0)$, renormalised, instead; the step ends;
# - if **all** are accepted, draw one more token from `p[g]`.

# %% [markdown]
# An example with one proposal, $p = (0.5, 0.3, 0.2)$ and $q = (0.2, 0.2, 0.6)$:
#
# | proposal | accepted with probability | |
# |---|---|---|
# | 0 or 1 | 1 | $p \ge q$ |
# | 2 | 0.2 / 0.6 = 1/3 | the draft likes it too much |
#
# A rejection has probability 0.6 · 2/3 = 0.4. Then the draw is from $(0.3, 0.1, 0) / 0.4$. In all, token 0 comes out
# with probability 0.2 · 1 + 0.4 · 0.75 = **0.5**, which is $p(0)$.
#
# **Predict**: how likely would token 2 be, if the draw after a rejection were from $p$ itself?
#
# Write the step. `draw(probabilities)` returns a token; use it and `uniforms` for all that is random, so that a seed
# repeats the run.

# %% nbgrader={"grade":false,"grade_id":"speculative_step","locked":false,"schema_version":3,"solution":true}
def speculative_step(p: Tensor, q: Tensor, proposals: list[int], uniforms: Tensor, draw) -> list[int]:
    """The tokens that one pass of the target gives.

    Args:
        p: the target's distributions, (g + 1, vocab).
        q: the draft's, (g, vocab).
        proposals: g tokens; proposal i was drawn from q[i].
        uniforms: g numbers in [0, 1).
        draw: draw(probabilities) is a token, an int, drawn from probabilities (vocab,).

    Returns:
        The proposals that were accepted, and the token that was drawn.

    TASKS
    1. Which is the first proposal that is rejected?
    2. What is the last token drawn from?
    """
    ### BEGIN SOLUTION
    for i, x in enumerate(proposals):
        if uniforms[i] >= p[i, x] / q[i, x]:
            missing = (p[i] - q[i]).clamp(min=0)
            return [*proposals[:i], draw(missing / missing.sum())]
    return [*proposals, draw(p[-1])]
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"speculative_check","locked":true,"points":5,"schema_version":3,"solution":false}
result = checks.run("decoding/4", speculative_step)
### BEGIN HIDDEN TESTS
result &= checks.run("decoding/4", speculative_step, seed=295, vocab=11, num_draft=6)
### END HIDDEN TESTS
result.award(5)

# %% [markdown]
# Once the check passes: a draft that errs, four thousand times, and what comes out.

# %% nbgrader={"grade":false,"grade_id":"draw_speculation","locked":true,"schema_version":3,"solution":false}
def first_tokens(p, q, num, seed=0):
    """The first token of many steps with one proposal each."""
    generator = torch.Generator().manual_seed(seed)
    def draw(probabilities):
        return int(torch.multinomial(probabilities, 1, generator=generator))
    uniforms = torch.rand(num, 1, generator=generator)
    return [speculative_step(torch.stack((p, p)), q[None], [draw(q)], u, draw)[0] for u in uniforms]

if result.passed:
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    shares = torch.tensor(first_tokens(p, q, 4000)).bincount(minlength=3) / 4000
    for name, values in (("draft q", q), ("target p", p), ("came out", shares)):
        print(f"{name:9}", "  ".join(f"{value:.2f}" for value in values))

# %% [markdown]
# ## Summary
#
# - Temperature divides logits; top-k and top-p set logits to $-\infty$ *before* softmax, which renormalises.
# - Top-p keeps the token that crosses $p$. Sorting is easy, going back is where mistakes are made.
# - Beams compete by sums of log-probabilities; answers of different lengths need a penalty.
# - Speculative decoding changes the speed and nothing else: $\min(p, q) + \max(p - q, 0) = p$.
# - **To take away**: with an acceptance rate $a$ a step gives $(1 - a^{g+1}) / (1 - a)$ tokens. When is a larger $g$
#   not worth it?
