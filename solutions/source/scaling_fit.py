# %% [markdown]
# # Exercise: How large, and for how long?
#
# You have a budget of compute and one attempt. How large should the model be, and how much text should it read? Small
# runs answer, if they are read with care.
#
# | part | you write | points |
# |---|---|---|
# | 1 | the best size at each budget, and the power law through them | 3 |
# | 2 | the best size and tokens for a budget, in closed form | 3 |
# | 3 | a fit of the loss to runs, until the optimum | 5 |
# | 4 | the cheapest size once the model also has to answer | 4 |
#
# Each part ends with a check. It says what is right, what is wrong and, where it can tell, why. Run it as often as you
# like. `checks.hint("scaling_fit/1")` gives a hint, and `checks.hint("scaling_fit/1", 2)` a bigger one.

# %% nbgrader={"grade":false,"grade_id":"setup","locked":true,"schema_version":3,"solution":false}
import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import minimize

from cme295lab import scaling
from cme295lab.grading import checks

# %% [markdown]
# ## Part 1. Valleys at equal compute
#
# Training $N$ parameters on $D$ tokens takes $C = 6ND$ FLOP. At a fixed $C$ a small model reads much and a large one
# little. Too small, and the model is full; too large, and it has seen nothing. Near the best size the loss is a
# **parabola in $\log N$**.
#
# **Predict**: why in $\log N$, and not in $N$? Look at the figure: how far to the left and to the right of the best
# size is the loss equally high?

# %% nbgrader={"grade":false,"grade_id":"draw_valley","locked":true,"schema_version":3,"solution":false}
sizes = np.geomspace(3e8, 3e10, 60)
losses = scaling.EPOCH.loss(sizes, 1e21 / 6 / sizes)
fig, panels = plt.subplots(1, 2, figsize=(7, 2), sharey=True)
for panel, scale in zip(panels, ("linear", "log")):
    panel.plot(sizes, losses, color="#0072B2")
    panel.set(xscale=scale, xlabel=f"parameters, {scale} axis")
panels[0].set_ylabel("loss at 1e21 FLOP")
plt.show()

# %% [markdown]
# *The picture: on the left a steep fall and a long, slow rise; on the right a symmetric valley.*
#
# A run is a tuple `(flops, num_parameters, loss)`; runs of one budget have exactly the same `flops`. Write `frontier`:
#
# 1. For each budget fit a parabola in $\log N$ (`np.polyfit` with degree 2), and take the size at its bottom. A
#    parabola $ax^2 + bx + c$ has it at $x = -b / 2a$.
# 2. Through these, fit the power law $N^* = k\,C^a$: a straight line between $\log C$ and $\log N^*$.
#
# A small example, by hand: bottoms at $10^8$ and $10^9$ parameters for $10^{18}$ and $10^{20}$ FLOP give $a = 1/2$ and
# $k = 10^8 / 10^9 = 0.1$.

# %% nbgrader={"grade":false,"grade_id":"frontier","locked":false,"schema_version":3,"solution":true}
def frontier(runs: list[tuple[float, float, float]]) -> tuple[float, float]:
    """The power law of the best size, N = coefficient * flops ** exponent.

    Args:
        runs: (flops, num_parameters, loss), in any order.

    Returns:
        (coefficient, exponent).

    TASKS
    1. The runs of each budget, and the bottom of their parabola.
    2. A straight line through the logarithms.
    """
    ### BEGIN SOLUTION
    budgets = sorted({flops for flops, _, _ in runs})
    bottoms = []
    for budget in budgets:
        sizes = np.array([size for flops, size, _ in runs if flops == budget])
        losses = [loss for flops, _, loss in runs if flops == budget]
        a, b, _ = np.polyfit(np.log(sizes), losses, 2)
        bottoms.append(np.exp(-b / (2 * a)))
    slope, intercept = np.polyfit(np.log(budgets), np.log(bottoms), 1)
    return math.exp(intercept), slope
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"frontier_check","locked":true,"points":3,"schema_version":3,"solution":false}
result = checks.run("scaling_fit/1", frontier)
### BEGIN HIDDEN TESTS
result &= checks.run("scaling_fit/1", frontier, seed=295)
### END HIDDEN TESTS
result.award(3)

# %% [markdown]
# Once the check passes: the course's own sweep, some two dozen models from 33 thousand to 3 million parameters that
# were trained on a laptop.

# %% nbgrader={"grade":false,"grade_id":"own_sweep","locked":true,"schema_version":3,"solution":false}
if result.passed:
    curves = scaling.fit_isoflop(scaling.load_sweep().runs).curves
    coefficient, exponent = frontier([(c.flops, run.num_parameters, run.loss) for c in curves for run in c.runs])
    print(f"N* = {coefficient:.3g} C^{exponent:.2f}")

# %% [markdown]
# ## Part 2. Spend a budget
#
# Hoffmann et al. describe the loss of *any* run with five constants:
#
# $$L(N, D) = E + \frac{A}{N^\alpha} + \frac{B}{D^\beta}$$
#
# $E$ is what no model can know. With $C = 6ND$ fixed, put $D = C / 6N$ into $L$ and set the derivative by $N$ to zero:
# the best size is $N^* = G\,(C/6)^a$, the best number of tokens $D^* = (C/6)^b / G$.
#
# **Find** $G$, $a$ and $b$ on paper. What must $a + b$ be? If $\alpha < \beta$, which of the two grows faster with the
# budget?

# %% nbgrader={"grade":false,"grade_id":"allocate","locked":false,"schema_version":3,"solution":true}
def allocate(
    flops: float, E: float, A: float, B: float, alpha: float, beta: float
) -> tuple[float, float, float]:
    """The best size and tokens for a budget, and the loss that the law predicts for them.

    Returns:
        (num_parameters, num_tokens, loss).

    TASKS
    1. The exponents and G.
    2. Size, tokens, loss.
    """
    ### BEGIN SOLUTION
    a = beta / (alpha + beta)
    b = alpha / (alpha + beta)
    G = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
    num_parameters = G * (flops / 6) ** a
    num_tokens = (flops / 6) ** b / G
    loss = E + A / num_parameters**alpha + B / num_tokens**beta
    return num_parameters, num_tokens, loss
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"allocate_check","locked":true,"points":3,"schema_version":3,"solution":false}
result = checks.run("scaling_fit/2", allocate)
### BEGIN HIDDEN TESTS
result &= checks.run("scaling_fit/2", allocate, flops=3.8e25, alpha=0.45, beta=0.2)
### END HIDDEN TESTS
result.award(3)

# %% [markdown]
# Once the check passes: three sets of constants, all for the *same* runs, at the budget of Gopher. The first two are
# as Hoffmann et al. print them and with all their digits; the third is a later fit of the same runs.
#
# **Predict**: how many tokens per parameter does each ask for?

# %% nbgrader={"grade":false,"grade_id":"three_constants","locked":true,"schema_version":3,"solution":false}
if result.passed:
    for law in (scaling.CHINCHILLA_ROUNDED, scaling.CHINCHILLA, scaling.EPOCH):
        size, tokens, loss = allocate(5.76e23, law.E, law.A, law.B, law.alpha, law.beta)
        print(f"{law.name:34} {size / 1e9:5.1f}B, {tokens / size:5.1f} tokens per parameter, loss {loss:.3f}")

# %% [markdown]
# Hoffmann et al. trained with 20 tokens per parameter, as their other two methods say. Their fit says 59 or 93: it had
# stopped before its optimum. You will not.
#
# ## Part 3. Fit until the optimum
#
# Three decisions make the fit:
#
# - **What is an error?** $r = \log \hat L - \log L$: one per cent is one per cent at any loss. With $a = \log A$,
#   $b = \log B$, $e = \log E$ the prediction is
#   $\log \hat L = \mathrm{logsumexp}(a - \alpha \log N,\; b - \beta \log D,\; e)$.
# - **How does it count?** By Huber's loss: $r^2 / 2$ up to $\delta = 10^{-3}$, and $\delta(|r| - \delta / 2)$ beyond. A
#   run that went wrong pulls, but not with the square of its error.
# - **When is the search over?** `minimize` stops when a step gains less than `ftol` (2e-9) times the objective *or*
#   *one*, whichever is larger.

# %% [markdown]
# **Predict**: at the optimum this objective, summed over 60 runs, is about 0.0005; as a mean it is 0.00001. What does
# an `ftol` of 2e-9 mean for either?
#
# Write `fit_law`. There are several valleys: start from a few dozen places and keep the lowest end. L-BFGS-B without a
# gradient does (it needs some seconds), and `np.logaddexp.reduce` is a log-sum-exp. Three of the runs that the check
# uses went wrong; it does not say which.

# %% nbgrader={"grade":false,"grade_id":"fit_law","locked":false,"schema_version":3,"solution":true}
def fit_law(
    num_parameters: np.ndarray, num_tokens: np.ndarray, losses: np.ndarray
) -> tuple[float, float, float, float, float]:
    """The constants of the law that fits runs best.

    Args:
        num_parameters, num_tokens, losses: a number per run.

    Returns:
        (E, A, B, alpha, beta).

    TASKS
    1. The objective: the sum of Huber's losses, as a function of (a, b, e, alpha, beta).
    2. Minimise it from several starts, with tolerances that fit its size.
    """
    ### BEGIN SOLUTION
    log_size, log_tokens, log_loss = np.log(num_parameters), np.log(num_tokens), np.log(losses)

    def objective(theta):
        a, b, e, alpha, beta = theta
        terms = [a - alpha * log_size, b - beta * log_tokens, np.full_like(log_size, e)]
        error = np.abs(np.logaddexp.reduce(terms) - log_loss)
        return 1e6 * np.sum(np.where(error <= 1e-3, error**2 / 2, 1e-3 * (error - 0.5e-3)))

    starts = itertools.product((5, 10), (5, 10), (0.5,), (0.3, 0.6), (0.3, 0.6))
    options = {"ftol": 1e-13, "gtol": 1e-9, "maxfun": 15_000}
    ends = [minimize(objective, start, method="L-BFGS-B", options=options) for start in starts]
    a, b, e, alpha, beta = min(ends, key=lambda end: end.fun).x
    return math.exp(e), math.exp(a), math.exp(b), alpha, beta
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"fit_check","locked":true,"points":5,"schema_version":3,"solution":false}
result = checks.run("scaling_fit/3", fit_law)
### BEGIN HIDDEN TESTS
result &= checks.run("scaling_fit/3", fit_law, seed=295)
### END HIDDEN TESTS
result.award(5)

# %% [markdown]
# Once the check passes: your fit of the course's own sweep. The course's fit, from 4,500 starts, stands beside it.

# %% nbgrader={"grade":false,"grade_id":"fit_own_sweep","locked":true,"schema_version":3,"solution":false}
if result.passed:
    runs = scaling.columns(scaling.load_sweep().runs)
    ours = scaling.fit_parametric(*runs).law
    print("yours ", " ".join(f"{value:8.3g}" for value in fit_law(*runs)))
    print("course", " ".join(f"{value:8.3g}" for value in (ours.E, ours.A, ours.B, ours.alpha, ours.beta)))

# %% [markdown]
# ## Part 4. Made to be served
#
# Llama 3 8B read 15 trillion tokens: 1,875 per parameter, not 20. That is no mistake. A model that answers costs
# $2N$ FLOP for each token that it reads or writes, for the rest of its life. A *smaller* model that is trained *longer*
# reaches the same loss.
#
# For a loss and $T$ tokens to be served, find the size and its tokens that minimise
#
# $$6ND + 2NT \quad\text{where}\quad L(N, D) = \text{loss}.$$
#
# **Predict**: with $T = 0$, which size is it? And in which direction does it move as $T$ grows?
#
# Three per cent of the right size are near enough: trying many sizes does.

# %% nbgrader={"grade":false,"grade_id":"cheapest","locked":false,"schema_version":3,"solution":true}
def cheapest(
    loss: float, served_tokens: float, E: float, A: float, B: float, alpha: float, beta: float
) -> tuple[float, float]:
    """The size, and its tokens of training, that reach a loss for the least compute over the model's life.

    Returns:
        (num_parameters, num_tokens).

    TASKS
    1. For a size, the tokens after which it reaches the loss; some sizes never do.
    2. The size for which training and serving together cost least.
    """
    ### BEGIN SOLUTION
    best = (math.inf, 0.0, 0.0)
    for num_parameters in np.geomspace(1e6, 1e14, 4000):
        left = loss - E - A / num_parameters**alpha
        if left > 0:
            num_tokens = (B / left) ** (1 / beta)
            cost = 6 * num_parameters * num_tokens + 2 * num_parameters * served_tokens
            best = min(best, (cost, num_parameters, num_tokens))
    return best[1], best[2]
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"cheapest_check","locked":true,"points":4,"schema_version":3,"solution":false}
result = checks.run("scaling_fit/4", cheapest)
### BEGIN HIDDEN TESTS
result &= checks.run("scaling_fit/4", cheapest, loss=2.15, served=3e12)
### END HIDDEN TESTS
result.award(4)

# %% [markdown]
# Once the check passes: the loss of Llama 3 8B, and what would have been the cheapest way to it.

# %% nbgrader={"grade":false,"grade_id":"llama","locked":true,"schema_version":3,"solution":false}
if result.passed:
    law = scaling.EPOCH
    target = law.loss(8e9, 15e12)
    for served in (0, 1e13, 1e14, 2e14):
        size, tokens = cheapest(target, served, law.E, law.A, law.B, law.alpha, law.beta)
        print(f"{served:7.0e} tokens served: {size / 1e9:5.1f}B, {tokens / size:6.0f} tokens per parameter")

# %% [markdown]
# ## Summary
#
# - At equal compute the loss is a parabola in $\log N$; its bottoms follow a power law with an exponent near 1/2.
# - Five constants say the best size for any budget; rounding or a fit that stops early moves it by a factor of two.
# - An objective of 0.001 needs a tolerance far below the default. Starts that disagree are the symptom.
# - Compute-optimal is not cheapest: what is served often is trained long.
# - **To take away**: all of these laws extrapolate. By which factor does yours, and which run would test it?
