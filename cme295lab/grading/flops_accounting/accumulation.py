"""Part 3: the gradient of a large batch from micro-batches of unequal numbers of tokens.

The student's function gets a model and micro-batches, and leaves gradients on the model. The truth is one pass over all
of it in float64. The model notes when it is called and when backward comes back through it: a step that keeps all
micro-batches alive at once gives the right gradient and needs the memory of the large batch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cme295lab.grading.compare import Expected, Hypothesis, allowed_error, judge_tensor
from cme295lab.grading.exercise import Once, Property
from cme295lab.grading.observe import (
    Observation,
    TimeLimitReached,
    quiet,
    refuse_function,
    student_error,
    time_limit,
)
from cme295lab.grading.result import Kind, Outcome

VOCABULARY, WIDTH = 23, 12
_TIME_LIMIT_S = 10.0
_EQUAL = "micro-batches of equal numbers of tokens give the gradient of the large batch"
_UNEQUAL = "every token counts the same, whatever micro-batch it is in"


class WatchedModel(nn.Module):
    """Predicts a token from the one before, and notes each call ("forward") and each way back ("backward").

    Args:
        seed: of its weights.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(VOCABULARY, WIDTH)
            self.middle = nn.Linear(WIDTH, WIDTH)
            self.head = nn.Linear(WIDTH, VOCABULARY)
        self.events: list[str] = []
        self.rows: list[int] = []

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits, (rows, seq, vocabulary)."""
        self.rows.append(len(tokens))
        logits: Tensor = self.head(torch.tanh(self.middle(self.embedding(tokens))))
        if logits.requires_grad:
            self.events.append("forward")
            logits.register_hook(lambda gradient: self.events.append("backward"))  # type: ignore[no-untyped-call]
        return logits


@dataclass(frozen=True, kw_only=True)
class Case:
    """A step of several micro-batches.

    Args:
        seed: of weights and tokens.
        targets: for each micro-batch, for each of its rows, how many positions have a target; the rest have -100.
        seq: positions of a row.
        has_old_gradients: whether the model still holds those of a step before.
    """

    seed: int
    targets: tuple[tuple[int, ...], ...]
    seq: int = 8
    has_old_gradients: bool = False

    @property
    def text(self) -> str:
        """The input in words."""
        counts = ", ".join(str(sum(rows)) for rows in self.targets)
        old = ", with gradients of the step before" if self.has_old_gradients else ""
        return f"{len(self.targets)} micro-batches with {counts} targets, rows of {self.seq}, seed {self.seed}{old}"

    @property
    def counts(self) -> list[int]:
        """Targets of each micro-batch."""
        return [sum(rows) for rows in self.targets]

    def micro_batches(self) -> list[tuple[Tensor, Tensor]]:
        """Tokens and targets, (rows, seq) each."""
        generator = torch.Generator().manual_seed(self.seed)
        made = []
        for rows in self.targets:
            tokens, targets = torch.randint(VOCABULARY, (2, len(rows), self.seq), generator=generator)
            for row, count in zip(targets, rows):
                row[count:] = -100
            made.append((tokens, targets))
        return made

    def model(self) -> WatchedModel:
        """The model; with gradients of the step before, if there are."""
        model = WatchedModel(self.seed)
        if self.has_old_gradients:
            for number, parameter in enumerate(model.parameters()):
                parameter.grad = torch.full_like(parameter, 0.25 + number)
        return model


@dataclass(frozen=True)
class Sums:
    """What one micro-batch adds: its loss and gradient, summed over its targets, in float64."""

    loss: float
    gradient: Tensor


@functools.lru_cache(maxsize=32)
def sums_of(case: Case) -> tuple[Sums, ...]:
    """The sums of all micro-batches."""
    found = []
    for tokens, targets in case.micro_batches():
        model = WatchedModel(case.seed).double()
        loss = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), reduction="sum")
        loss.backward()  # type: ignore[no-untyped-call]
        found.append(Sums(loss.item(), flat_gradient(model)))
    return tuple(found)


def flat_gradient(model: nn.Module) -> Tensor:
    """All gradients as one vector; zeros where there is none."""
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return torch.cat([part.flatten() for part in parts])


def weighted(case: Case, weights: Sequence[float]) -> Sums:
    """The sum over micro-batches, each times its weight."""
    sums = sums_of(case)
    gradient = torch.stack([weight * part.gradient for weight, part in zip(weights, sums)]).sum(0)
    return Sums(sum(weight * part.loss for weight, part in zip(weights, sums)), gradient)


def right(case: Case) -> Sums:
    """The mean over all targets."""
    return weighted(case, [1 / sum(case.counts)] * len(case.counts))


def properties(*, seed: int = 0, counts: tuple[tuple[int, ...], ...] = ((2,), (6, 8), (1, 3, 8))) -> list[Property]:
    """What must hold for `accumulate(model, micro_batches) -> loss`.

    Args:
        seed: of weights and tokens.
        counts: targets of each row of each micro-batch, at most 8.
    """
    equal = Case(seed=seed, targets=((8, 8), (8, 8), (8, 8)))
    unequal = Case(seed=seed + 1, targets=counts)
    empty = Case(seed=seed + 2, targets=((5, 4), (0, 0), (7,)))
    old = replace(unequal, has_old_gradients=True)
    on_equal, on_unequal, on_empty, on_old = (Once(functools.partial(observe, case=c))
                                              for c in (equal, unequal, empty, old))  # fmt: skip
    needs = (_EQUAL,)
    return [
        _property(_EQUAL, equal, on_equal, judge_gradient),
        _property(_UNEQUAL, unequal, on_unequal, judge_gradient, weight=3, needs=needs),
        _property("the loss that comes back is the mean over all tokens", unequal, on_unequal, judge_loss, needs=needs),
        _property("a micro-batch without a target adds nothing", empty, on_empty, judge_both, needs=(_EQUAL, _UNEQUAL)),
        _property("gradients of the step before are gone", old, on_old, judge_gradient, needs=(_EQUAL, _UNEQUAL)),
        _property("one micro-batch is in memory at a time", unequal, on_unequal, judge_memory, needs=needs),
    ]  # fmt: skip


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "accumulate")


def _property(
    name: str, case: Case, once: Once, judge: Callable[[Case, Observation], Outcome], *, weight: float = 1.0,
    needs: tuple[str, ...] = (),
) -> Property:  # fmt: skip
    return Property(name=name, observe=once, judge=functools.partial(judge, case), where=case.text, weight=weight,
                    needs=needs)  # fmt: skip


def observe(student: Callable[..., Any], case: Case) -> Observation:
    """Run one step of the student's."""
    model = case.model()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    try:
        with quiet(), time_limit(_TIME_LIMIT_S):
            loss = student(model, case.micro_batches())
    except (Exception, TimeLimitReached) as error:
        return Observation(error=student_error(error, _TIME_LIMIT_S))
    moved = any(not torch.equal(old, new) for old, new in zip(before, model.parameters()))
    outputs: Mapping[str, Any] = {
        "loss": loss.item() if isinstance(loss, Tensor) and loss.numel() == 1 else loss,
        "gradient": flat_gradient(model).detach().clone(),
        "events": tuple(model.events),
        "rows": tuple(model.rows),
        "moved": moved,
    }
    return Observation(outputs=outputs)


def judge_gradient(case: Case, seen: Observation) -> Outcome:
    """Judge the gradients that are left on the model."""
    if seen.outputs["moved"]:
        cause = "the weights have changed: leave the update to the optimizer, and only the gradients on the model"
        return Outcome(name="", kind=Kind.WRONG_VALUE, cause=cause)
    want, got = right(case), seen.outputs["gradient"]
    if not got.any():
        cause = "no parameter has a gradient: is backward() called, and nothing cleared afterwards?"
        return Outcome(name="", kind=Kind.WRONG_VALUE, cause=cause)
    mistakes = [
        Hypothesis(cause, functools.partial(lambda sums: sums.gradient, sums)) for cause, sums in _mistakes(case)
    ]
    if case.has_old_gradients:
        cause = "the gradients of the step before are still in the sum: clear them before the first micro-batch"
        old = flat_gradient(case.model()).double()
        mistakes.append(Hypothesis(cause, lambda: want.gradient + old))
    return judge_tensor(
        got,
        Expected(
            name="gradient", value=want.gradient, dtype=torch.float32,
            allowed=allowed_error(torch.float32, float(want.gradient.abs().max())), mistakes=mistakes,
        ),
    )  # fmt: skip


def judge_loss(case: Case, seen: Observation) -> Outcome:
    """Judge the number that comes back."""
    want, got = right(case).loss, seen.outputs["loss"]
    if isinstance(got, bool) or not isinstance(got, int | float):
        cause = f"return the loss as a number, not {type(got).__name__}"
        return Outcome(name="", kind=Kind.WRONG_SHAPE, cause=cause)
    if math.isclose(got, want, rel_tol=1e-5):
        return Outcome(name="")
    difference = f"expected a loss of {want:.6g}, got {got:.6g}"
    if math.isnan(got) and 0 in case.counts:
        cause = "the mean over no target is 0 / 0: take the sum over the targets, and divide by the number of all"
        return Outcome(name="", kind=Kind.WRONG_VALUE, difference=difference, cause=cause)
    causes = (cause for cause, sums in _mistakes(case) if math.isclose(got, sums.loss, rel_tol=1e-5))
    return Outcome(name="", kind=Kind.WRONG_VALUE, difference=difference, cause=next(causes, ""))


def judge_both(case: Case, seen: Observation) -> Outcome:
    """Judge the gradients, and then the loss."""
    gradients = judge_gradient(case, seen)
    return judge_loss(case, seen) if gradients.passed else gradients


def judge_memory(case: Case, seen: Observation) -> Outcome:
    """Judge whether the activations of one micro-batch are gone before the next one comes."""
    most = max(len(rows) for rows in case.targets)
    if max(seen.outputs["rows"], default=0) > most:
        cause = "the micro-batches are put together: that takes the memory of the large batch, which does not fit"
        difference = f"the model gets {max(seen.outputs['rows'])} rows at once; the largest micro-batch has {most}"
        return Outcome(name="", kind=Kind.TOO_MUCH_MEMORY, difference=difference, cause=cause)
    alive = largest = 0
    for event in seen.outputs["events"]:
        alive += 1 if event == "forward" else -1
        largest = max(largest, alive)
    if largest <= 1:
        return Outcome(name="")
    cause = "backward comes after the loop: the activations of all micro-batches wait for it. Call it in the loop"
    difference = f"the activations of {largest} micro-batches are kept at the same time"
    return Outcome(name="", kind=Kind.TOO_MUCH_MEMORY, difference=difference, cause=cause)


def _mistakes(case: Case) -> Iterator[tuple[str, Sums]]:
    """What known mistakes give."""
    counts, number, total = case.counts, len(case.counts), sum(case.counts)
    means = [1 / count if count else 0.0 for count in counts]
    cause = (
        "this is the mean of the micro-batches' means: a token among few counts more than a token among many. Divide "
        "each sum by the number of all targets"
    )
    yield cause, weighted(case, [mean / number for mean in means])
    cause = "the micro-batches' means are added up, and divided by nothing: a step of several would be too long"
    yield cause, weighted(case, means)
    yield "the losses are summed: divide by the number of all targets", weighted(case, [1.0] * number)
    last = [0.0] * (number - 1)
    cause = "only the last micro-batch is left: the gradients are cleared within the loop"
    for weight in (1 / total, means[-1], means[-1] / number):
        yield cause, weighted(case, [*last, weight])
    cause = "only the first micro-batch counts: does the loop end after it?"
    for weight in (1 / total, means[0], means[0] / number):
        yield cause, weighted(case, [weight, *last])
    positions = [len(rows) * case.seq for rows in case.targets]
    cause = "positions without a target (-100) are counted: they add nothing to the loss, so they must not divide it"
    yield cause, weighted(case, [1 / sum(positions)] * number)
    cause = "the micro-batches are weighted by their rows or positions: those without a target (-100) do not count"
    yield cause, weighted(case, [mean * there / sum(positions) for mean, there in zip(means, positions)])
    cause = "weighted by targets, and then divided by the number of micro-batches as well"
    yield cause, weighted(case, [1 / total / number] * number)
