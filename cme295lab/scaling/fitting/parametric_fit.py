"""Approach 3: fit L(N, D) = E + A / N^α + B / D^β to runs, until the optimum.

The default walks from all 4,500 published starts at once (`solver`), then lets scipy's L-BFGS-B polish the best of
them, with tolerances that the size of the objective asks for. That takes about a second for 240 runs.

**The early-stopping trap.** The objective at its minimum is about 1e-3, summed over runs, and 1e-5 as their mean.
scipy's L-BFGS-B stops when a step improves it by less than ftol × max(|f|, 1), and ftol is 2.2e-9 by default: against
1e-5 that is coarse. It stops on the long flat floor of the valley, with constants that are far off while the objective
looks small. Besiroglu et al. show that the published constants, and their impossibly narrow intervals, come from such
a stop. On 240 runs made up from their constants, with 0.4 % of noise, the mean with scipy's own tolerances asks for 5
to 60 tokens per parameter at Gopher's budget, depending on the noise, where 18 are right. (The sum over runs fares
better: most of the starts stop early, too, but the best of them is right.) `EARLY_STOPPING` are those settings:

    fit_parametric(N, D, loss).law                              # until the optimum
    fit_parametric(N, D, loss, options=EARLY_STOPPING).law      # where scipy stops by itself

Source: Hoffmann et al. 2022, §3.3 and §D.3; Besiroglu et al. 2024, "Chinchilla Scaling: A replication attempt".
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize

from cme295lab.scaling.fitting.objective import NUM_CONSTANTS, LogRuns, law_of
from cme295lab.scaling.fitting.solver import minimise_all, screen, start_grid
from cme295lab.scaling.parametric import ParametricLaw
from cme295lab.scaling.records import FLOPS_PER_PARAMETER_AND_TOKEN, Allocation, check_positive

Method = Literal["batched", "scipy"]
Reduction = Literal["sum", "mean"]
_CONSTANT_NAMES = ("E", "A", "B", "alpha", "beta", "a", "b", "G")


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How to fit.

    Args:
        huber_delta: errors of log loss beyond this pull with constant force.
        method: "batched" walks from all starts at once and polishes the best; "scipy" calls L-BFGS-B for each start.
        num_starts: how many starts of the published grid, evenly spread; at most 4,500.
        num_polished: how many of the best ends scipy polishes ("batched" only).
        ftol, gtol: when L-BFGS-B stops.
        scale: the objective is multiplied by this before L-BFGS-B sees it.
        reduction: whether L-BFGS-B sees the sum over runs or their mean.

    Raises:
        TypeError, ValueError: if a value is out of range.
    """

    huber_delta: float = 1e-3
    method: Method = "batched"
    num_starts: int = 4500
    num_polished: int = 4
    ftol: float = 1e-15
    gtol: float = 1e-10
    scale: float = 1e3
    reduction: Reduction = "sum"

    def __post_init__(self) -> None:
        for name in ("huber_delta", "ftol", "gtol", "scale"):
            check_positive(name, getattr(self, name))
        for name, most in (("num_starts", 4500), ("num_polished", 4500)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be an int, got {value!r} of type {type(value).__name__}")
            if not 1 <= value <= most:
                raise ValueError(f"{name} must be from 1 to {most}, got {value}")
        for name, allowed in (("method", get_args(Method)), ("reduction", get_args(Reduction))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")


EARLY_STOPPING = FitOptions(
    method="scipy", num_starts=450, ftol=2.220446049250313e-09, gtol=1e-5, scale=1.0, reduction="mean"
)
"""scipy's own tolerances on an unscaled mean: it stops before the optimum. For demonstration; a tenth of the starts."""


@dataclass(frozen=True, kw_only=True)
class ParametricFit:
    """A fitted law, and how sure it is.

    Args:
        law: what was found; it warns beyond the compute of the runs.
        objective: the sum of Huber's losses at the end.
        rms_error: root mean square of the error of log loss: 0.01 is one per cent of the loss.
        num_runs: that were fitted.
        num_starts: that were walked from.
        num_agreeing: of those that walked to their end, how many ended at this optimum, to 1e-6 of the objective.
        bootstrap: laws of resampled runs, (samples, 5) as (a, b, e, α, β); no rows without a bootstrap.
    """

    law: ParametricLaw
    objective: float
    rms_error: float
    num_runs: int
    num_starts: int
    num_agreeing: int
    bootstrap: Float[np.ndarray, "samples 5"] = field(repr=False)

    def loss(self, num_parameters: Any, num_tokens: Any) -> Any:
        """What the law predicts; see `ParametricLaw.loss`."""
        return self.law.loss(num_parameters, num_tokens)

    def optimal(self, flops: float) -> Allocation:
        """How the law spends a budget; see `ParametricLaw.optimal`."""
        return self.law.optimal(flops)

    def interval(
        self, what: str | Callable[[ParametricLaw], float], *, percentiles: tuple[float, float] = (10, 90)
    ) -> tuple[float, float]:
        """Where the bootstrap has a constant, or anything else that follows from a law.

        Args:
            what: "E", "A", "B", "alpha", "beta", "a", "b", "G", or a function of a law, such as
                `lambda law: law.allocate(1e21).num_parameters`.
            percentiles: of the samples; Hoffmann et al. print the 10th and the 90th.

        Raises:
            ValueError: if the name is unknown, or the fit was made without a bootstrap.
        """
        if not len(self.bootstrap):
            raise ValueError("there is no bootstrap: fit with fit_parametric(..., num_bootstrap=1000)")
        if isinstance(what, str) and what not in _CONSTANT_NAMES:
            raise ValueError(f"what must be one of {', '.join(_CONSTANT_NAMES)} or a function, got {what!r}")
        value = operator.attrgetter(what) if isinstance(what, str) else what
        fitted = self.law.fitted_flops or (1.0, 1.0)
        values = [value(law_of(row, name="sample", fitted_flops=fitted)) for row in self.bootstrap]
        low, high = np.percentile(values, percentiles)
        return float(low), float(high)


def fit_parametric(
    num_parameters: Any,
    num_tokens: Any,
    loss: Any,
    *,
    options: FitOptions | None = None,
    num_bootstrap: int = 0,
    seed: int = 0,
    name: str = "this fit",
) -> ParametricFit:
    """Fit L(N, D) = E + A / N^α + B / D^β to runs.

    Args:
        num_parameters: N of each run, an array or a list.
        num_tokens: D of each run.
        loss: of each run, at its end, in nats per token.
        options: how to fit; None means until the optimum, from 4,500 starts.
        num_bootstrap: how many times to resample the runs, for intervals.
        seed: of the resampling.
        name: what to call the law.

    Returns:
        The law, its error and, if asked for, bootstrap samples.

    Raises:
        TypeError: if an argument is not a list of numbers.
        ValueError: if lengths differ, a number is not positive and finite, there are fewer than six runs, all sizes or
            all tokens are the same, or the best exponents are not positive.

        >>> truth = ParametricLaw(1.8, 480.0, 2000.0, 0.35, 0.37)
        >>> N, D = (grid.ravel() for grid in np.meshgrid(np.logspace(7, 10, 5), np.logspace(9, 12, 5)))
        >>> found = fit_parametric(N, D, truth.loss(N, D), options=FitOptions(num_starts=45)).law
        >>> round(found.alpha, 4), round(found.beta, 4), round(found.E, 4)
        (0.35, 0.37, 1.8)
    """
    options = options or FitOptions()
    size, tokens, target = _columns(num_parameters, num_tokens, loss)
    if not isinstance(num_bootstrap, int) or isinstance(num_bootstrap, bool) or num_bootstrap < 0:
        raise ValueError(f"num_bootstrap must be an int of at least 0, got {num_bootstrap!r}")
    runs = LogRuns(
        log_parameters=np.log(size), log_tokens=np.log(tokens), log_loss=np.log(target),
        huber_delta=options.huber_delta,
    )  # fmt: skip
    grid = start_grid()
    starts = grid[np.linspace(0, len(grid) - 1, options.num_starts).round().astype(int)]
    ends, values = _descend(runs, starts, options)
    best = int(np.nanargmin(values))
    flops = FLOPS_PER_PARAMETER_AND_TOKEN * size * tokens
    errors = runs.errors(ends[best][None])[0][0]
    return ParametricFit(
        law=law_of(ends[best], name=name, fitted_flops=(float(flops.min()), float(flops.max()))),
        objective=float(values[best]),
        rms_error=float(np.sqrt(np.mean(errors**2))),
        num_runs=len(size),
        num_starts=len(starts),
        num_agreeing=int((values <= values[best] * (1 + 1e-6) + 1e-18).sum()),
        bootstrap=_bootstrap(runs, ends[best], num_bootstrap, seed),
    )


def _descend(runs: LogRuns, starts: np.ndarray, options: FitOptions) -> tuple[np.ndarray, np.ndarray]:
    """Where starts end, and their objectives: all starts by scipy, or the best ones, polished by scipy."""
    if options.method == "scipy":
        found = [_lbfgs(runs, start, options) for start in starts]
        return np.array([end for end, _ in found]), np.array([value for _, value in found])
    ends, values = screen(runs, starts)
    for index in range(min(options.num_polished, len(ends))):
        polished, value = _lbfgs(runs, ends[index], options)
        if value < values[index]:
            ends[index], values[index] = polished, value
    return ends, values


def _lbfgs(runs: LogRuns, start: np.ndarray, options: FitOptions) -> tuple[np.ndarray, float]:
    """One call of scipy's L-BFGS-B; its end, and the unscaled sum there."""
    factor = options.scale / (len(runs.log_loss) if options.reduction == "mean" else 1)

    def scaled(constants: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = runs.value_and_gradient(constants)
        return factor * value, factor * gradient

    found = minimize(
        scaled, start, jac=True, method="L-BFGS-B",
        options={"ftol": options.ftol, "gtol": options.gtol, "maxiter": 15_000, "maxfun": 15_000},
    )  # fmt: skip
    return found.x, float(found.fun) / factor


def _bootstrap(runs: LogRuns, best: np.ndarray, num_samples: int, seed: int) -> Float[np.ndarray, "samples 5"]:
    """Laws of resampled runs, each from the optimum of all runs; a sample without positive exponents is left out."""
    if not num_samples:
        return np.empty((0, NUM_CONSTANTS))
    num_runs = len(runs.log_loss)
    counts = np.random.default_rng(seed).multinomial(num_runs, np.full(num_runs, 1 / num_runs), size=num_samples)
    ends, _ = minimise_all(runs, np.tile(best, (num_samples, 1)), weights=counts.astype(np.float64))
    return ends[(ends[:, 3:] > 0).all(axis=1)]


def _columns(*arguments: Any) -> list[np.ndarray]:
    """The arguments as arrays of positive numbers, all of one length."""
    names = ("num_parameters", "num_tokens", "loss")
    found = []
    for name, values in zip(names, arguments, strict=True):
        try:
            array = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{name} must be a list of numbers, got {values!r}") from error
        if array.ndim != 1:
            raise ValueError(f"{name} must be a list of numbers, one per run, got an array of shape {array.shape}")
        if not (np.isfinite(array).all() and (array > 0).all()):
            raise ValueError(f"{name} must be positive and finite for every run; a run that diverged must be left out")
        found.append(array)
    if len({len(array) for array in found}) > 1:
        lengths = ", ".join(f"{name} {len(array)}" for name, array in zip(names, found, strict=True))
        raise ValueError(f"num_parameters, num_tokens and loss must be of one length, got {lengths}")
    if len(found[0]) <= NUM_CONSTANTS:
        raise ValueError(f"five constants need at least six runs, got {len(found[0])}")
    for name, array in zip(names[:2], found[:2], strict=True):
        if np.ptp(np.log(array)) < 1e-9:
            raise ValueError(f"{name} is {array[0]:.4g} in every run: its exponent cannot be told from such runs")
    return found
