"""What the fits of scaling laws cost, and the minutes of the stored sweep.

Run alone: `python -m tests.benchmarks.scaling`. One thread. The fit of 240 made-up runs from 4,500 starts is timed
beside scipy's L-BFGS-B called for each of the starts; the latter takes about a minute, once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cme295lab.scaling import EPOCH, FitOptions, fit_parametric, load_sweep
from tests.benchmarks.timing import medians, seconds_of


@dataclass(frozen=True, kw_only=True)
class ScalingFigures:
    """Seconds, and whether both fits agree.

    Args:
        fit_s: from 4,500 starts, all at once.
        bootstrap_s: that and 1,000 bootstrap samples.
        scipy_s: scipy's L-BFGS-B from each start.
        objective_ratio: ours over scipy's; 1 if both find the same bottom.
        sweep_core_minutes: of all stored runs, as they were timed.
        sweep_runs: how many.
    """

    fit_s: float
    bootstrap_s: float
    scipy_s: float
    objective_ratio: float
    sweep_core_minutes: float
    sweep_runs: int


def scaling_figures(*, repeats: int = 5) -> ScalingFigures:
    """Measure."""
    rng = np.random.default_rng(0)
    size = np.exp(rng.uniform(np.log(5e7), np.log(1.6e10), 240))
    tokens = np.resize(np.geomspace(6e18, 3e21, 9), 240) / 6 / size
    loss = EPOCH.loss(size, tokens) * np.exp(rng.normal(0, 0.004, 240))
    fit_s, bootstrap_s = medians(
        lambda: fit_parametric(size, tokens, loss),
        lambda: fit_parametric(size, tokens, loss, num_bootstrap=1000),
        repeats=repeats,
    )
    found = []
    scipy_s = seconds_of(
        lambda: found.append(fit_parametric(size, tokens, loss, options=FitOptions(method="scipy"))),
    )
    sweep = load_sweep()
    return ScalingFigures(
        fit_s=fit_s,
        bootstrap_s=bootstrap_s,
        scipy_s=scipy_s,
        objective_ratio=fit_parametric(size, tokens, loss).objective / found[0].objective,
        sweep_core_minutes=sweep.seconds / 60,
        sweep_runs=len(sweep.records),
    )


def print_figures(figures: ScalingFigures) -> None:
    """A line each."""
    print(
        f"fit of 240 runs from 4,500 starts: {figures.fit_s:.2f} s ({figures.bootstrap_s:.2f} s with 1,000 bootstrap "
        f"samples); scipy from each start: {figures.scipy_s:.0f} s; objectives {figures.objective_ratio:.9f}"
    )
    print(f"stored sweep: {figures.sweep_runs} runs, {figures.sweep_core_minutes:.0f} core minutes")


if __name__ == "__main__":
    print_figures(scaling_figures())
