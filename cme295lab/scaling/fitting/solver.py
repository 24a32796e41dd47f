"""All starts at once: Levenberg-Marquardt steps on thousands of laws, each a row of one array.

The objective has valleys, so one start is not enough: Hoffmann et al. take 4,500, a grid over the five constants. A
call of scipy for each takes the better part of a minute. Here all rows take each step together, and rows that fall
behind are given up (`screen`). A row's errors r and derivatives J give the 5 × 5 system

    (J' W J + λ diag(J' W J)) step = -J' pull(r)

with weights W = pull(r) / r (iteratively reweighted least squares, which turns Huber's loss into squares); λ falls
where a step helped and grows where it did not. The same code fits bootstrap samples: a row per sample, in which runs
count as often as they were drawn.

Source: Marquardt 1963; Huber 1981, "Robust Statistics", §7.8; the grid: Hoffmann et al. 2022, §D.3.
"""

from __future__ import annotations

import itertools

import numpy as np
from jaxtyping import Float

from cme295lab.scaling.fitting.objective import NUM_CONSTANTS, LogRuns

_CHUNK_NUMBERS = 4_000_000  # of the largest array, rows × runs × 5: 32 MB
_SMALLEST = 1e-30  # of a curvature, where a term has vanished
_PATIENCE = 12  # steps in a row that were refused or did next to nothing, while the damping grew
_ROUNDS = ((6, 1.0), (12, 0.2), (60, 0.04), (400, 0.01))  # steps, and the share of the starts that takes them


def start_grid() -> Float[np.ndarray, "4500 5"]:
    """The published starts: α, β in {0, .5, .. 2}, e in {-1, -.5, .. 1}, a, b in {0, 5, .. 25}."""
    exponents, entropies, scales = np.arange(0, 2.5, 0.5), np.arange(-1, 1.5, 0.5), np.arange(0.0, 30, 5)
    return np.array(list(itertools.product(scales, scales, entropies, exponents, exponents)))


def minimise_all(
    runs: LogRuns,
    starts: Float[np.ndarray, "laws 5"],
    *,
    weights: Float[np.ndarray, "laws runs"] | None = None,
    max_steps: int = 200,
    tolerance: float = 1e-12,
) -> tuple[Float[np.ndarray, "laws 5"], Float[np.ndarray, " laws"]]:
    """Walk from every start to the bottom of its valley.

    Args:
        runs: what to fit.
        starts: rows of (a, b, e, α, β).
        weights: how often each run counts, for each row; None counts each once.
        max_steps: after which a row stops wherever it is.
        tolerance: a row stops when no step in a dozen improved its objective by more than this share of it.

    Returns:
        Where each row ended, and its objective (the sum of Huber's losses).
    """
    constants, values = starts.astype(np.float64).copy(), np.empty(len(starts))
    rows = max(1, _CHUNK_NUMBERS // (NUM_CONSTANTS * len(runs.log_loss)))
    for first in range(0, len(starts), rows):
        part = slice(first, first + rows)
        counts = np.ones((1, len(runs.log_loss))) if weights is None else weights[part]
        counts = np.broadcast_to(counts, (len(constants[part]), len(runs.log_loss)))
        constants[part], values[part] = _walk(runs, constants[part], counts, max_steps, tolerance)
    return constants, values


def screen(
    runs: LogRuns, starts: Float[np.ndarray, "laws 5"]
) -> tuple[Float[np.ndarray, "ends 5"], Float[np.ndarray, " ends"]]:
    """The best ends of many starts, best first: all take a few steps, the best fifth some more, and so on.

    One start in a hundred, but no fewer than sixteen, walks to its end.

    Args:
        runs: what to fit.
        starts: rows of (a, b, e, α, β).

    Returns:
        Where those ended, and their objectives.
    """
    ends, values = starts, np.zeros(len(starts))
    for num_steps, share in _ROUNDS:
        kept = np.argsort(values, kind="stable")[: max(16, round(share * len(starts)))]
        ends, values = minimise_all(runs, ends[kept], max_steps=num_steps)
    order = np.argsort(values, kind="stable")
    return ends[order], values[order]


def _walk(
    runs: LogRuns, at: np.ndarray, counts: np.ndarray, max_steps: int, tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """All steps of one chunk of rows; a row that has arrived is left out of the next step."""
    at = at.copy()
    errors, derivatives = runs.errors(at)
    values = (counts * runs.huber(errors)).sum(axis=1)
    damping = np.full(len(at), 1e-2)
    small_steps = np.zeros(len(at), dtype=int)
    active = np.arange(len(at))
    for _ in range(max_steps):
        if not len(active):
            break
        step = _steps(errors[active], derivatives[active], counts[active], damping[active], runs.huber_delta)
        tried_errors, tried_derivatives = runs.errors(at[active] + step)
        tried = (counts[active] * runs.huber(tried_errors)).sum(axis=1)
        better = tried < values[active]  # a value that is NaN is not
        arrived = ~better | (values[active] - tried <= tolerance * values[active])
        moved = active[better]
        at[moved], values[moved] = at[moved] + step[better], tried[better]
        errors[moved], derivatives[moved] = tried_errors[better], tried_derivatives[better]
        damping[active] = np.clip(np.where(better, damping[active] / 4, damping[active] * 6), 1e-12, 1e12)
        small_steps[active] = np.where(arrived, small_steps[active] + 1, 0)
        active = active[small_steps[active] < _PATIENCE]
    return at, values


def _steps(
    errors: np.ndarray, derivatives: np.ndarray, counts: np.ndarray, damping: np.ndarray, huber_delta: float
) -> np.ndarray:
    """The damped step of each row."""
    weights = counts * np.minimum(1.0, huber_delta / np.maximum(np.abs(errors), 1e-300))
    curvature = np.swapaxes(derivatives, 1, 2) @ (derivatives * weights[..., None])  # (rows, 5, 5)
    slope = np.swapaxes(derivatives, 1, 2) @ (weights * errors)[..., None]  # (rows, 5, 1)
    diagonal = np.einsum("lcc->lc", curvature)
    floor = 1e-12 * diagonal.max(axis=1, keepdims=True) + _SMALLEST
    damped = curvature + (damping[:, None] * diagonal + floor)[..., None] * np.eye(NUM_CONSTANTS)
    return -np.linalg.solve(damped, slope)[..., 0]
