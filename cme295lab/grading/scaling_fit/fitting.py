"""Part 3: the five constants of a law from runs, judged by how much lower the objective could still be.

The right answer is not a list of constants but the bottom of Huber's loss in log space. The check computes that bottom
itself. Where the student's constants lie higher, it asks why: are they the bottom of another objective? Are they logs,
or swapped? Does the objective fall when the descent goes on from them, to the bottom or into another valley?
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from cme295lab.grading.exercise import Once, Property
from cme295lab.grading.observe import Observation, observe_call, refuse_function
from cme295lab.grading.result import Kind, Outcome
from cme295lab.grading.scaling_fit.answers import Numbers, numbers_of
from cme295lab.scaling import FitOptions, fit_parametric
from cme295lab.scaling.fitting.objective import LogRuns
from cme295lab.scaling.fitting.solver import minimise_all
from cme295lab.scaling.parametric import EPOCH, ParametricLaw

_NAMES = ("E", "A", "B", "alpha", "beta")
_TIME_LIMIT_S = 60.0
_EXACT_ERROR = 2e-4  # of log loss, on runs that a law gives without noise
_ABOVE_BOTTOM = 1.01  # how high the objective may lie
_SAME = 0.02  # relative: constants that are those of a known mistake
_EXACT = "runs without noise are predicted"
_NOISY = "with noise and runs that went wrong, the objective is at its bottom"


@dataclass(frozen=True, eq=False)
class Task:
    """Runs to fit.

    Args:
        num_parameters, num_tokens, losses: a number per run.
        what: they are, in words.
    """

    num_parameters: np.ndarray
    num_tokens: np.ndarray
    losses: np.ndarray
    what: str

    @property
    def log_runs(self) -> LogRuns:
        """For the course's own objective."""
        return LogRuns(
            log_parameters=np.log(self.num_parameters), log_tokens=np.log(self.num_tokens), log_loss=np.log(self.losses)
        )

    @functools.cached_property
    def best(self) -> Numbers:
        """The constants at the bottom."""
        options = FitOptions(num_starts=450)
        law = fit_parametric(self.num_parameters, self.num_tokens, self.losses, options=options).law
        return constants_of(law)


def constants_of(law: ParametricLaw) -> Numbers:
    """E, A, B, alpha, beta."""
    return law.E, law.A, law.B, law.alpha, law.beta


def make_task(seed: int, *, noise: float) -> Task:
    """Sixty runs like those of Hoffmann et al.; with noise, three of them went wrong."""
    rng = np.random.default_rng([seed, 3])
    size = np.exp(rng.uniform(np.log(5e7), np.log(1.6e10), 60))
    tokens = rng.choice(np.geomspace(6e18, 3e21, 9), 60) / 6 / size
    law = ParametricLaw(EPOCH.E * rng.uniform(0.9, 1.1), EPOCH.A, EPOCH.B, EPOCH.alpha, EPOCH.beta)
    losses = law.loss(size, tokens) * np.exp(rng.normal(0, noise, 60))
    if noise:
        losses[[7, 23, 41]] *= 1.15
    return Task(size, tokens, losses, f"60 runs{' with noise, seed' if noise else ', seed'} {seed}")


def properties(*, seed: int = 0) -> list[Property]:
    """What must hold for `fit_law(num_parameters, num_tokens, losses) -> (E, A, B, alpha, beta)`.

    Args:
        seed: of the runs.
    """
    exact, noisy = make_task(seed, noise=0.0), make_task(seed, noise=0.003)
    once = Once(lambda student: _observe(student, noisy))
    return [
        Property(
            name=_EXACT,
            observe=lambda student: _observe(student, exact),
            judge=lambda seen: judge_exact(exact, seen.outputs["result"]),
            where=exact.what,
        ),
        Property(
            name=_NOISY,
            observe=once,
            judge=lambda seen: judge_noisy(noisy, seen.outputs["result"]),
            where=noisy.what,
            weight=2,
        ),
        Property(
            name="the law reaches 300 times beyond the runs",
            observe=once,
            judge=lambda seen: judge_far(noisy, seen.outputs["result"]),
            where=noisy.what,
        ),
    ]


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "fit_law")


def _observe(student: Callable[..., Any], task: Task) -> Observation:
    arguments = (task.num_parameters.copy(), task.num_tokens.copy(), task.losses.copy())
    return observe_call(lambda: _plain(student(*arguments)), {}, _TIME_LIMIT_S)


def _plain(got: Any) -> Any:
    return tuple(got) if isinstance(got, np.ndarray) else got


def theta_of(numbers: Numbers) -> np.ndarray | None:
    """(a, b, e, α, β) for the course's objective; None where a logarithm does not exist."""
    e, a, b, alpha, beta = numbers
    if min(e, a, b) < 0 or max(abs(alpha), abs(beta)) > 100:
        return None
    logs = [math.log(max(value, 1e-12)) for value in (a, b, e)]  # E = 0 is a very small E
    return np.array([*logs, alpha, beta])


def objective(task: Task, numbers: Numbers) -> float:
    """Huber's loss of errors of log loss, summed; infinite where the constants make no law."""
    theta = theta_of(numbers)
    return math.inf if theta is None else task.log_runs.value_and_gradient(theta)[0]


def judge_exact(task: Task, got: Any) -> Outcome:
    """Without noise the right constants are known, and the errors vanish."""
    numbers = numbers_of(got, _NAMES)
    if isinstance(numbers, Outcome):
        return numbers
    theta = theta_of(numbers)
    worst = math.inf if theta is None else float(np.abs(task.log_runs.errors(theta[None])[0]).max())
    if worst <= 10 * _EXACT_ERROR and objective(task, numbers) <= len(task.losses) * _EXACT_ERROR**2 / 2:
        return Outcome(name="")
    difference = f"the worst predicted loss is {worst:.2%} off"
    return Outcome(name="", kind=Kind.WRONG_VALUE, difference=difference, cause=explain(task, numbers))


def judge_noisy(task: Task, got: Any) -> Outcome:
    """The objective must be at its bottom."""
    numbers = numbers_of(got, _NAMES)
    if isinstance(numbers, Outcome):
        return numbers
    bottom, here = objective(task, task.best), objective(task, numbers)
    if here <= _ABOVE_BOTTOM * bottom:
        return Outcome(name="")
    difference = f"the objective is {here:.4g} with your constants, and {bottom:.4g} at its bottom"
    return Outcome(name="", kind=Kind.WRONG_VALUE, difference=difference, cause=explain(task, numbers))


def judge_far(task: Task, got: Any) -> Outcome:
    """The loss that is predicted at 1e24 FLOP and 20 tokens per parameter, against that of the right fit."""
    numbers = numbers_of(got, _NAMES)
    if isinstance(numbers, Outcome):
        return numbers
    size = math.sqrt(1e24 / 120)
    here, want = (predicted(law, size, 20 * size) for law in (numbers, task.best))
    if math.isclose(here, want, rel_tol=0.005):
        return Outcome(name="")
    difference = f"at 1e24 FLOP the right fit predicts {want:.4f}, yours {here:.4f}"
    return Outcome(name="", kind=Kind.WRONG_VALUE, difference=difference, cause=explain(task, numbers))


def predicted(numbers: Numbers, size: float, tokens: float) -> float:
    """E + A / N^α + B / D^β; infinite where that overflows."""
    e, a, b, alpha, beta = numbers
    try:
        return e + a * size**-alpha + b * tokens**-beta
    except OverflowError:
        return math.inf


def explain(task: Task, numbers: Numbers) -> str:
    """The likely cause of constants that are not at the bottom."""
    for cause, repaired in _repairs(numbers):
        if objective(task, repaired) <= 1.05 * objective(task, task.best) + 1e-6:
            return cause
    if numbers[0] < 1e-3:
        return "E is missing or nearly zero: the loss does not fall to nothing with endless size and data"
    for cause, other in _other_objectives(task):
        if all(math.isclose(a, b, rel_tol=_SAME) for a, b in zip(numbers[3:], other[3:], strict=True)):
            return cause
    return _descend(task, numbers)


def _repairs(numbers: Numbers) -> Iterator[tuple[str, Numbers]]:
    """Answers that become right when they are read in another way."""
    e, a, b, alpha, beta = numbers
    if max(e, a, b) < 100:
        cause = "E, A and B are still logarithms: return their exponentials"
        yield cause, (math.exp(e), math.exp(a), math.exp(b), alpha, beta)
    if min(e, a, b) > 0:
        cause = "E, A and B are powers of 10 of natural logarithms: raise e to them"
        yield cause, (*(math.exp(math.log10(x)) for x in (e, a, b)), alpha, beta)
    yield "alpha and beta are swapped", (e, a, b, beta, alpha)
    yield "the terms of size and tokens are swapped: A and alpha belong to the parameters", (e, b, a, beta, alpha)
    yield "the order is E, A, B, alpha, beta", (b, e, a, alpha, beta)
    yield "the exponents have the wrong sign: the loss is E + A / N^alpha + B / D^beta", (e, a, b, -alpha, -beta)


def _other_objectives(task: Task) -> Iterator[tuple[str, Numbers]]:
    """Bottoms of objectives that are not asked for."""
    squares = fit_parametric(
        task.num_parameters, task.num_tokens, task.losses, options=FitOptions(num_starts=90, huber_delta=10.0)
    ).law
    cause = "that minimises the squared error of log loss: three runs that went wrong pull it. Use Huber's loss"
    yield cause, constants_of(squares)
    cause = "that minimises the squared error of the loss itself: take errors of log loss, and Huber's loss of them"
    yield cause, _linear_squares(task)


def _linear_squares(task: Task) -> Numbers:
    """The bottom of the squared error of the loss."""

    def errors(theta: np.ndarray) -> np.ndarray:
        return np.exp(task.log_runs.parts(theta[None])[0]).sum(axis=1) - task.losses

    start = theta_of(task.best)
    assert start is not None
    a, b, e, alpha, beta = least_squares(errors, start, x_scale="jac", xtol=1e-12, ftol=1e-12).x
    return math.exp(e), math.exp(a), math.exp(b), float(alpha), float(beta)


def _descend(task: Task, numbers: Numbers) -> str:
    """Go on from the student's constants: to the bottom, or into another valley?"""
    theta = theta_of(numbers)
    if theta is None:
        return ""
    _, values = minimise_all(task.log_runs, theta[None], max_steps=2000)
    here, bottom = objective(task, numbers), objective(task, task.best)
    if values[0] <= 1.05 * bottom + 1e-6:
        return (
            f"it stopped early: going on from your constants, the objective falls from {here:.3g} to {values[0]:.3g}. "
            f"An objective this small needs a smaller ftol, or a larger scale: multiply it by 1e6"
        )
    return "it ended in another valley: start from more places, and keep the lowest"
