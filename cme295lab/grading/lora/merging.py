"""Part 2: an adapter goes into the base's weight, and comes out again; the layer is the check's own.

So a mistake in the student's layer is none here. What was asked for is looked at afterwards: the weight, whether it is
still the frozen parameter, A and B, and the flag.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cme295lab.grading.compare import Expected, Hypothesis, judge_tensor
from cme295lab.grading.exercise import Once, Property
from cme295lab.grading.observe import Observation
from cme295lab.grading.observe_plainly import observe_plainly
from cme295lab.grading.result import Kind, Outcome
from cme295lab.grading.steps import refuse_functions

FUNCTIONS = ("merge", "unmerge")
_ALLOWED = 1e-5


class Adapted(nn.Module):
    """The layer that students merge."""

    def __init__(self, weight: Tensor, bias: Tensor, a: Tensor, b: Tensor, scale: float) -> None:
        super().__init__()
        self.base = nn.Linear(weight.shape[1], weight.shape[0])
        self.base.weight = nn.Parameter(weight.clone(), requires_grad=False)
        self.base.bias = nn.Parameter(bias.clone(), requires_grad=False)
        self.A, self.B = nn.Parameter(a.clone()), nn.Parameter(b.clone())
        self.scale, self.merged = scale, False
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        """The base's output, and the adapter's where it is not merged."""
        output: Tensor = self.base(x)
        return output if self.merged else output + self.scale * (self.dropout(x) @ self.A.T @ self.B.T)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A layer, and which functions are called on it.

    Args:
        seed: of its numbers.
        sizes: (out_features, in_features, rank).
        scale: of the adapter.
        begins_merged: whether the layer is merged, rightly, at the start.
        calls: positions of the functions.
    """

    seed: int
    sizes: tuple[int, int, int]
    scale: float
    begins_merged: bool = False
    calls: tuple[int, ...] = (0,)

    @property
    def where(self) -> str:
        """The calls in words."""
        out_features, in_features, rank = self.sizes
        calls = ", then ".join(f"{FUNCTIONS[position]}(layer)" for position in self.calls)
        state = "a merged layer" if self.begins_merged else "a layer that is not merged"
        return f"{calls}, on {state}: weight {(out_features, in_features)}, rank {rank}, scale {self.scale:g}"

    def numbers(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weight, bias, A and B."""
        out_features, in_features, rank = self.sizes
        generator = torch.Generator().manual_seed(self.seed)
        shapes = ((out_features, in_features), (out_features,), (rank, in_features), (out_features, rank))
        weight, bias, a, b = (torch.randn(shape, generator=generator) for shape in shapes)
        return weight, bias, a, b

    def product(self) -> Tensor:
        """What merging adds, in float64."""
        *_, a, b = self.numbers()
        return self.scale * (b.double() @ a.double())

    def layer(self) -> Adapted:
        """A fresh layer, in training mode."""
        layer = Adapted(*self.numbers(), self.scale)
        if self.begins_merged:
            layer.base.weight.data += self.product().float()
            layer.merged = True
        return layer

    @property
    def ends_merged(self) -> bool:
        """Whether the layer must be merged in the end."""
        return self.calls[-1] == 0


@dataclass(frozen=True, kw_only=True)
class After:
    """The layer after the calls, and the weight that comes out without dropout."""

    layer: Adapted
    weight_in_eval: Tensor


def properties(
    *, seed: int = 0, sizes: tuple[int, int, int] = (6, 9, 3), scale: float = 2.5
) -> list[Property]:
    """What must hold for `merge(layer)` and `unmerge(layer)`.

    Args:
        seed: of the layer's numbers.
        sizes: (out_features, in_features, rank).
        scale: of the adapter; not 1.
    """  # fmt: skip
    make = partial(Case, seed=seed, sizes=sizes, scale=scale)
    there, back = make(), make(begins_merged=True, calls=(1,))
    merges, unmerges = "merging adds the scaled product to the weight", "unmerging takes it out again"
    once = Once(partial(observe, there))
    of_weight = partial(_property, judge=judge_weight)
    return [
        of_weight(merges, there, weight=3, observation=once),
        _property("the merged weight is frozen, as before", there, judge=judge_frozen, observation=once,
                  needs=(merges,)),
        _property("merging leaves A, B and the bias, and says that it was done", there, judge=judge_rest,
                  observation=once, needs=(merges,)),
        of_weight("merging twice merges once", make(calls=(0, 0)), needs=(merges,)),
        of_weight(unmerges, back, weight=2),
        _property("unmerging leaves the rest as it is, and says that it was done", back, judge=judge_rest,
                  needs=(unmerges,)),
        of_weight("unmerging what is not merged changes nothing", make(calls=(1,)), needs=(unmerges,)),
        of_weight("there and back, there and back", make(calls=(0, 1, 0, 1)), needs=(merges, unmerges)),
    ]  # fmt: skip


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_functions(student, FUNCTIONS)


def _property(
    name: str, case: Case, *, judge: Callable[[Case, Observation], Outcome], weight: float = 1.0,
    needs: tuple[str, ...] = (), observation: Callable[[Any], Observation] | None = None,
) -> Property:  # fmt: skip
    return Property(name=name, observe=observation or partial(observe, case), judge=partial(judge, case),
                    where=case.where, weight=weight, needs=needs)  # fmt: skip


def observe(case: Case, student: tuple[Callable[..., Any], ...]) -> Observation:
    """Call the functions on a fresh layer in training mode, and on another in evaluation mode."""

    def run() -> After:
        layer, quiet = case.layer(), case.layer().eval()
        for one in (layer, quiet):
            for position in case.calls:
                student[position](one)
        return After(layer=layer, weight_in_eval=quiet.base.weight.detach())

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed)
        return observe_plainly(run, {})


def judge_weight(case: Case, seen: Observation) -> Outcome:
    """Judge the weight of the base."""
    after: After = seen.outputs["result"]
    weight, add = case.numbers()[0].double(), case.product()
    value = weight + add if case.ends_merged else weight
    mistakes = [Hypothesis(cause, lambda w=wrong: w) for cause, wrong in _wrong_weights(case)]  # type: ignore[misc]
    expected = Expected(name="layer.base.weight", value=value, dtype=torch.float32, allowed=_ALLOWED * case.scale,
                        mistakes=mistakes)  # fmt: skip
    outcome = judge_tensor(after.layer.base.weight.detach(), expected)
    if outcome.kind is Kind.WRONG_VALUE and judge_tensor(after.weight_in_eval, expected).passed:
        cause = "dropout is in the merged weight: it belongs to training, on x; merge the whole product"
        return Outcome(name="", kind=Kind.WRONG_VALUE, difference=outcome.difference, cause=cause)
    return outcome


def _wrong_weights(case: Case) -> Iterator[tuple[str, Tensor]]:
    """Causes, and the weight that each leaves."""
    weight, add = case.numbers()[0].double(), case.product()
    plain, scale = add / case.scale, case.scale
    before = weight + add if case.begins_merged else weight
    if case.calls in ((0,), (1,)) and case.ends_merged != case.begins_merged:
        yield "the weight of the layer is as it was: change layer.base.weight itself, not a copy", before
        yield "the product replaces the weight: it is added", add
        yield "the weight is zero: only the product is added or taken out", torch.zeros_like(weight)
    sign = 1.0 if case.calls[0] == 0 else -1.0
    times = len(case.calls) if len(set(case.calls)) == 1 else 1
    yield "the product is added without the scale", before + sign * plain * times
    yield "the product is divided by the scale: multiply", before + sign * times * plain / scale
    yield "the scale is taken twice", before + sign * times * plain * scale**2
    yield "the weight is multiplied by the scale as well: only the product is", scale * (before + sign * plain)
    if case.calls == (0, 0):
        yield "the product is in it twice: look at layer.merged first", weight + 2 * add
    if case.calls == (0,):
        yield "the product is subtracted: merging adds it", weight - add
    if case.calls == (1,):
        yield "the product is added once more: unmerging subtracts it", before + add
        yield "the product is taken out although it was not in it: look at layer.merged first", weight - add


def judge_frozen(case: Case, seen: Observation) -> Outcome:
    """Judge whether the weight is still a frozen parameter."""
    weight = seen.outputs["result"].layer.base.weight
    cause = ""
    if weight.grad_fn is not None or not weight.is_leaf:
        cause = "the merged weight hangs in the graph of A and B: write it inside torch.no_grad()"
    elif not isinstance(weight, nn.Parameter):
        cause = "the merged weight is no nn.Parameter any more: write into layer.base.weight in place"
    elif weight.requires_grad:
        cause = "the merged weight is trained: a new nn.Parameter is, unless requires_grad=False. Write in place"
    return Outcome(name="", kind=Kind.WRONG_VALUE, cause=cause) if cause else Outcome(name="")


def judge_rest(case: Case, seen: Observation) -> Outcome:
    """Judge A, B, the bias and the flag."""
    layer = seen.outputs["result"].layer
    if layer.merged is not case.ends_merged:
        cause = f"layer.merged is {layer.merged}, and must be {case.ends_merged}: forward looks at it"
        return Outcome(name="", kind=Kind.WRONG_VALUE, cause=cause)
    _, bias, a, b = case.numbers()
    parts = (("A", getattr(layer, "A", None), a), ("B", getattr(layer, "B", None), b))
    for name, got, want in (*parts, ("the bias", layer.base.bias, bias)):
        if not isinstance(got, Tensor):
            cause = f"{name} is gone: it is needed for unmerging"
            return Outcome(name="", kind=Kind.WRONG_VALUE, cause=cause)
        if not torch.equal(got.detach(), want):
            cause = f"{name} has changed: only the weight and layer.merged do"
            return Outcome(name="", kind=Kind.WRONG_VALUE, cause=cause)
        if name in "AB" and not got.requires_grad:
            cause = f"{name} is frozen now: it is trained on after unmerging"
            return Outcome(name="", kind=Kind.WRONG_VALUE, cause=cause)
    return Outcome(name="")
