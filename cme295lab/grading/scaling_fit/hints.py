"""Hints to the exercises, from a nudge to nearly the answer."""

HINTS: dict[str, tuple[str, ...]] = {
    "scaling_fit/1": (
        "Put the runs of equal flops together. At each budget, where is the bottom of the parabola? Then a straight "
        "line through (log budget, log size).",
        "np.polyfit(np.log(sizes), losses, 2) gives (a, b, c) of a x² + b x + c with x = log N. The bottom is at "
        "x = -b / (2 a), so the size there is exp(-b / (2 a)).",
        "slope, intercept = np.polyfit(np.log(budgets), np.log(bottoms), 1); return math.exp(intercept), slope. "
        "Natural logarithms everywhere.",
    ),
    "scaling_fit/2": (
        "With D = C / (6 N), the loss is a function of N alone. Set its derivative to zero.",
        "alpha A / N^alpha = beta B / D^beta at the optimum. With N D = C / 6 that gives N = G (C / 6)^a with "
        "a = beta / (alpha + beta).",
        "G = (alpha * A / (beta * B)) ** (1 / (alpha + beta)); N = G * (C / 6) ** (beta / (alpha + beta)); "
        "D = C / (6 * N); loss = E + A / N**alpha + B / D**beta.",
    ),
    "scaling_fit/3": (
        "Three separate matters: what an error is (of the log of the loss), how it counts (Huber), and when the "
        "search is over (not when scipy thinks so).",
        "np.logaddexp.reduce([a - alpha log N, b - beta log D, e]) is the log of the predicted loss. Let "
        "scipy.optimize.minimize search over (a, b, e, alpha, beta) from a few dozen starts, and keep the lowest. The "
        "objective is about 1e-3 at its bottom, and L-BFGS-B stops when a step gains less than 2e-9: that is far too "
        "early for a mean.",
        "Multiply the objective by 1e6 and pass options={'ftol': 1e-13, 'maxfun': 15000}. Starts: all of a, b in "
        "(5, 10), e in (0, 0.5), alpha, beta in (0.3, 0.6). Return exp(e), exp(a), exp(b), alpha, beta.",
    ),
    "scaling_fit/4": (
        "For each size there is exactly one number of tokens that reaches the loss. Which size is the cheapest then?",
        "B / D^beta = loss - E - A / N^alpha. Sizes for which the right side is not positive never reach the loss.",
        "for N in np.geomspace(1e7, 1e13, 3000): left = loss - E - A / N**alpha; if left > 0: D = (B / left) ** (1 / "
        "beta); cost = 6 * N * D + 2 * N * served_tokens; keep the cheapest.",
    ),
}
