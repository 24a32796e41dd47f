"""Part 4: the size that reaches a loss for the least compute over its life, training and serving."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cme295lab.grading.exercise import Property
from cme295lab.grading.observe import Observation, observe_call, refuse_function
from cme295lab.grading.result import Kind, Outcome
from cme295lab.grading.scaling_fit.answers import Numbers, numbers_of
from cme295lab.grading.scaling_fit.optimum import constants
from cme295lab.scaling.parametric import EPOCH, ParametricLaw
from cme295lab.scaling.serving import cheapest_to_serve

_NAMES = ("num_parameters", "num_tokens")
_TIME_LIMIT_S = 20.0
_SIZE_TOLERANCE, _LOSS_TOLERANCE = 0.03, 1e-3
_SERVED = "with much to serve, the size is the cheapest"


@dataclass(frozen=True, kw_only=True)
class Task:
    """A loss to reach and tokens to serve."""

    loss: float
    served_tokens: float
    law: ParametricLaw = EPOCH

    @property
    def call(self) -> str:
        """In words."""
        return f"cheapest({self.loss:g}, {self.served_tokens:g}, the constants of {self.law.name})"


def properties(*, loss: float = 2.0, served: float = 1e13) -> list[Property]:
    """What must hold for `cheapest(loss, served_tokens, E, A, B, alpha, beta) -> (num_parameters, num_tokens)`.

    Args:
        loss: to reach, nats per token.
        served: tokens.
    """
    other = ParametricLaw(1.7, 400.0, 600.0, 0.33, 0.31, name="another law")
    return [
        _property("with nothing to serve, it is the compute-optimal size", Task(loss=loss, served_tokens=0.0)),
        _property(_SERVED, Task(loss=loss, served_tokens=served), weight=2),
        _property("so it is with a little to serve", Task(loss=loss + 0.3, served_tokens=served / 100)),
        _property("so it is for another law", Task(loss=loss, served_tokens=served, law=other)),
    ]


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "cheapest")


def _property(name: str, task: Task, weight: float = 1.0) -> Property:
    def observe(student: Callable[..., Any]) -> Observation:
        arguments = {"loss": task.loss, "served_tokens": task.served_tokens, **constants(task.law)}
        return observe_call(lambda: student(**arguments), {}, _TIME_LIMIT_S)

    return Property(
        name=name, observe=observe, judge=lambda seen: judge(task, seen.outputs["result"]), where=task.call,
        weight=weight,
    )  # fmt: skip


def judge(task: Task, got: Any) -> Outcome:
    """Judge a size and its tokens: does it reach the loss, and is it the cheapest?"""
    numbers = numbers_of(got, _NAMES)
    if isinstance(numbers, Outcome):
        return numbers
    if min(numbers) <= 0:
        return Outcome(name="", kind=Kind.WRONG_VALUE, cause=f"sizes and tokens are positive, got {numbers}")
    plan = cheapest_to_serve(task.loss, task.served_tokens, task.law)
    size, tokens = numbers
    reached = float(task.law.loss(size, tokens))
    if abs(reached - task.loss) > _LOSS_TOLERANCE:
        difference = f"{size:.3g} parameters on {tokens:.3g} tokens reach {reached:.4f}, asked for is {task.loss:g}"
        return Outcome(name="", kind=Kind.WRONG_VALUE, difference=difference, cause=_wrong_loss(task, numbers))
    if math.isclose(size, plan.num_parameters, rel_tol=_SIZE_TOLERANCE):
        return Outcome(name="")
    difference = f"num_parameters: expected {plan.num_parameters:.4g}, got {size:.4g}"
    causes = (cause for cause, value in _sizes(task) if math.isclose(size, value, rel_tol=_SIZE_TOLERANCE))
    cause = next(causes, "") or (
        "this size costs more: try sizes that lie a per cent apart, and keep the cheapest"
        if math.isclose(size, plan.num_parameters, rel_tol=0.5)
        else ""
    )
    return Outcome(name="", kind=Kind.WRONG_VALUE, difference=difference, cause=cause)


def _sizes(task: Task) -> Iterator[tuple[str, float]]:
    """What known mistakes give."""
    served, law = task.served_tokens, task.law
    best = cheapest_to_serve(task.loss, 0, law).num_parameters
    if served:
        yield "that is the compute-optimal size: what serving costs is left out", best
        third = cheapest_to_serve(task.loss, served, law, serving_cost_ratio=3.0).num_parameters
        yield "a token that is served costs 2 N, one that is trained on 6 N: a third", third
        ninth = cheapest_to_serve(task.loss, served, law, serving_cost_ratio=1 / 3).num_parameters
        yield "a token that is trained on costs 6 N, one that is served 2 N", ninth
        once = cheapest_to_serve(task.loss, served, law, serving_cost_ratio=0.5).num_parameters
        yield "a token that is served costs 2 N: a multiplication and an addition per parameter", once
    smallest = (law.A / (task.loss - law.E)) ** (1 / law.alpha)
    yield "that is the smallest size that reaches the loss at all: its training is left out", smallest


def _wrong_loss(task: Task, numbers: Numbers) -> str:
    size, tokens = numbers
    if abs(float(task.law.loss(tokens, size)) - task.loss) <= _LOSS_TOLERANCE:
        return "size and tokens are swapped"
    if math.isclose(tokens, 20 * size, rel_tol=0.01):
        return "20 tokens per parameter do not reach the loss: solve L(N, D) = loss for D"
    law, left = task.law, task.loss - task.law.A * size**-task.law.alpha
    if left > 0 and math.isclose(tokens, (law.B / left) ** (1 / law.beta), rel_tol=0.01):
        return "E is forgotten where D is solved for: B / D^beta = loss - E - A / N^alpha"
    left -= law.E
    if left > 0 and math.isclose(tokens, (law.B / left) ** law.beta, rel_tol=0.01):
        return "B / D^beta = x gives D = (B / x)^(1 / beta): the exponent is upside down"
    return "solve L(N, D) = loss for D"
