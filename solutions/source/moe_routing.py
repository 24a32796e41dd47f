# %% [markdown]
# # Exercise: Send each token to some experts
#
# A mixture of experts has several MLPs in each layer, and a router that sends a token to a few of them. It has the
# parameters of all and the compute of few. You build the router, the way to the experts and back, and the loss that
# keeps all experts in use.
#
# | part | you write | points |
# |---|---|---|
# | 1 | the router: which experts, with which gates | 3 |
# | 2 | the mixture: dispatch within a capacity, and combine | 6 |
# | 3 | the load-balancing loss and the z loss | 5 |
#
# Each part ends with a check. It says what is right, what is wrong and, where it can tell, why. Run it as often as you
# like. `checks.hint("moe_routing/1")` gives a hint, and `checks.hint("moe_routing/1", 2)` a bigger one.

# %% nbgrader={"grade":false,"grade_id":"setup","locked":true,"schema_version":3,"solution":false}
import math

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from cme295lab.grading import checks

# %% [markdown]
# ## Part 1. Who gets the token
#
# The router gives a **logit** per expert. The $k$ largest are chosen, and their outputs are summed with weights that
# sum to 1, the **gates**:
#
# $$g = \mathrm{softmax}(\text{the } k \text{ chosen logits})$$
#
# A small example, logits $(2, 1, 0, -1)$ of four experts, $k = 2$: experts 0 and 1 are chosen, with gates 0.731 and
# 0.269. The softmax over all four has 0.644 and 0.237 there, which sum to 0.881 only.
#
# **Predict**: what are the gates for $k = 1$?

# %% nbgrader={"grade":false,"grade_id":"route","locked":false,"schema_version":3,"solution":true}
def route(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The experts of each token, and their gates.

    Args:
        logits: of the router, (tokens, experts).
        k: experts of each token.

    Returns:
        (gates, experts), both (tokens, k): weights that sum to 1, and numbers of experts.

    TASKS
    1. Which k experts?
    2. Gates of them alone.
    """
    ### BEGIN SOLUTION
    best, experts = logits.topk(k, dim=-1)
    return best.softmax(dim=-1), experts
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"route_check","locked":true,"points":3,"schema_version":3,"solution":false}
result = checks.run("moe_routing/1", route)
### BEGIN HIDDEN TESTS
result &= checks.run("moe_routing/1", route, seed=295, tokens=14, experts=9, k=4)
### END HIDDEN TESTS
result.award(3)

# %% [markdown]
# ## Part 2. There and back, as far as there is room
#
# On a GPU an expert has room for a fixed number of tokens, its **capacity**: an even share of all choices, times a
# factor, rounded up.
#
# $$\text{capacity} = \left\lceil \text{factor} \cdot \frac{\text{tokens} \cdot k}{\text{experts}} \right\rceil$$
#
# Who comes too late is **dropped** by that expert: the token gets nothing from it, and the gate is lost. (The residual
# stream carries the token on.) The queue of an expert: *first* choices of all tokens, in the order of the tokens; then
# second choices, and so on.
#
# **Predict**: with 1024 tokens, 8 experts, $k = 1$ and a factor of 1.25, what is the capacity?

# %% [markdown]
# A small example: three tokens, two experts, $k = 2$, factor 2/3, so the capacity is 2.
#
# | token | first choice | second choice |
# |---|---|---|
# | 0 | expert 1 | expert 0 |
# | 1 | expert 0 | expert 1 |
# | 2 | expert 1 | expert 0 (no room left) |
#
# Expert 1 takes tokens 0 and 2, which chose it first; token 1, its second choice, is dropped. Expert 0 takes token 1 as
# its first choice, then token 0; token 2 is dropped.
#
# Each expert computes *its own tokens only*, all in one call. Otherwise a mixture saves nothing. The check counts rows.

# %% nbgrader={"grade":false,"grade_id":"mixture","locked":false,"schema_version":3,"solution":true}
def mixture(x: Tensor, gates: Tensor, chosen: Tensor, experts: list, capacity_factor: float) -> Tensor:
    """The weighted sum of what each token's experts compute, as far as they have room.

    Args:
        x: tokens, (tokens, dim).
        gates, chosen: weights and numbers of each token's experts, (tokens, k).
        experts: functions from (rows, dim) to (rows, dim).
        capacity_factor: in multiples of an even share.

    Returns:
        (tokens, dim); zero where everything was dropped.

    TASKS
    1. The capacity.
    2. For each expert: who is in its queue, and who of them has room?
    3. Call it once with those, and add what comes back, times the gates, at their places.
    """
    ### BEGIN SOLUTION
    num_tokens, k = chosen.shape
    capacity = math.ceil(capacity_factor * num_tokens * k / len(experts))
    y = torch.zeros_like(x)
    for number, expert in enumerate(experts):
        choices, tokens = torch.where(chosen.t() == number)
        choices, tokens = choices[:capacity], tokens[:capacity]
        if len(tokens):
            y.index_add_(0, tokens, gates[tokens, choices, None] * expert(x[tokens]))
    return y
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"mixture_check","locked":true,"points":6,"schema_version":3,"solution":false}
result = checks.run("moe_routing/2", mixture)
### BEGIN HIDDEN TESTS
result &= checks.run("moe_routing/2", mixture, seed=295, tokens=23, dim=5, experts=5, k=3, capacity_factor=0.7)
### END HIDDEN TESTS
result.award(6)

# %% [markdown]
# Once the check passes: what share of all choices is dropped, if the router has favourites?

# %% nbgrader={"grade":false,"grade_id":"draw_drops","locked":true,"schema_version":3,"solution":false}
def dropped_share(logits, factor, k=2):
    """Counted with experts that return ones."""
    gates, chosen = route(logits, k)
    ones = [torch.ones_like] * logits.shape[1]
    even = torch.full_like(gates, 1 / k)
    return 1 - mixture(torch.zeros(len(logits), 1), even, chosen, ones, factor).mean().item()

if result.passed:
    factors, noise = [0.5, 0.75, 1.0, 1.25, 1.5, 2.0], torch.randn(2000, 8)
    for name, favour in (("no favourites", 0.0), ("favourites", 1.5)):
        logits = noise + favour * torch.linspace(-1, 1, 8)
        plt.plot(factors, [100 * dropped_share(logits, factor) for factor in factors], "o-", label=name)
    plt.gca().set(xlabel="capacity factor", ylabel="dropped choices, %")
    plt.legend()
    plt.show()

# %% [markdown]
# *The picture, if your function is right: without favourites nearly nothing is dropped from a factor of 1 on; with
# favourites it takes 2 and more.*
#
# ## Part 3. Keep all experts in use
#
# An expert that gets more tokens learns more, and gets more tokens. The **load-balancing loss** works against that:
#
# $$L_\text{balance} = E \sum_e f_e \, P_e$$
#
# $f_e$ is the share of all choices (tokens times $k$) that went to expert $e$: counted, so without a gradient. $P_e$ is
# the mean probability of $e$: the softmax over *all* logits, averaged over the tokens. With even use the loss is 1,
# with one expert for all tokens it is $E$.
#
# **Predict**: if expert 3 gets too much, in which direction does the gradient move its logits?

# %% [markdown]
# The **z loss** keeps logits small, so that rounding does not decide between experts:
#
# $$L_z = \frac{1}{T} \sum_t \Big(\log \sum_e \exp z_{te}\Big)^2$$
#
# A small example: two experts, logits $(0, 0)$ for every token. Then $\log(1 + 1) = 0.693$, and $L_z = 0.480$.
#
# Write both, weighted.

# %% nbgrader={"grade":false,"grade_id":"auxiliary_loss","locked":false,"schema_version":3,"solution":true}
def auxiliary_loss(logits: Tensor, chosen: Tensor, balance: float, z: float) -> Tensor:
    """What training adds to the loss.

    Args:
        logits: of the router, (tokens, experts).
        chosen: numbers of each token's experts, (tokens, k).
        balance, z: weights of the two losses.

    Returns:
        balance · L_balance + z · L_z, a tensor without dimensions.

    TASKS
    1. f: the share of choices of each expert.
    2. P: the mean probability of each expert, through which the gradient goes.
    3. The z loss.
    """
    ### BEGIN SOLUTION
    num_experts = logits.shape[1]
    f = torch.bincount(chosen.flatten(), minlength=num_experts) / chosen.numel()
    P = logits.softmax(dim=-1).mean(dim=0)
    z_loss = logits.logsumexp(dim=-1).square().mean()
    return balance * num_experts * (f * P).sum() + z * z_loss
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"loss_check","locked":true,"points":5,"schema_version":3,"solution":false}
result = checks.run("moe_routing/3", auxiliary_loss)
### BEGIN HIDDEN TESTS
result &= checks.run("moe_routing/3", auxiliary_loss, seed=295, tokens=17, experts=7, k=3)
### END HIDDEN TESTS
result.award(5)

# %% [markdown]
# Once the check passes: a router with favourites, trained with this loss alone.

# %% nbgrader={"grade":false,"grade_id":"draw_balance","locked":true,"schema_version":3,"solution":false}
if result.passed:
    torch.manual_seed(0)
    x = torch.randn(512, 16) + 1.0
    router = torch.nn.Linear(16, 8, bias=False)
    optimizer = torch.optim.Adam(router.parameters(), lr=0.02)
    for step in range(61):
        logits = router(x)
        chosen = logits.topk(2).indices
        if step % 20 == 0:
            print(f"step {step:2}: tokens per expert", torch.bincount(chosen.flatten(), minlength=8).tolist())
        optimizer.zero_grad()
        auxiliary_loss(logits, chosen, balance=1.0, z=0.01).backward()
        optimizer.step()

# %% [markdown]
# ## Summary
#
# - Gates are a softmax over the *chosen* logits: they sum to 1, whatever $k$ is.
# - A mixture pays for the rows that its experts compute, not for its parameters. Gather, compute, scatter back.
# - A capacity makes shapes fixed and drops tokens; the residual stream carries them on.
# - Counting has no gradient. The balance loss multiplies counts with something that has one.
# - **To take away**: Mixtral has 46.7 billion parameters, of which a token passes 12.9 billion. Which of the two
#   numbers decides how much memory you need, and which how long a token takes?
