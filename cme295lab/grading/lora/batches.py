"""Part 4: a batch in which each example has an adapter of its own, on one base; or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cme295lab.grading.compare import Expected, Hypothesis, judge_tensor
from cme295lab.grading.exercise import Property
from cme295lab.grading.observe import Observation, refuse_function
from cme295lab.grading.observe_plainly import observe_plainly
from cme295lab.grading.result import Kind, Outcome
from cme295lab.grading.steps import Step

NAME = "batched_lora"
_ALLOWED = 2e-4


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """Which adapter an example gets; the defaults make no mistake.

    Args:
        cause: the mistake, in the words of the exercise.
        adapter: from the example's own number and the list of all, the numbers of A, B and scale; None for no adapter.
        together: "one" adapter for an example, the "sum" of all, or their "mean".
        scaled: whether the product is scaled.
        base: whether the base's output is in it: "all", "adapted" examples only, or "none".
    """

    cause: str = ""
    adapter: Callable[[int, list[int]], tuple[int, int, int] | None] = lambda i, all: (
        None if all[i] < 0 else (all[i], all[i], all[i])
    )
    together: str = "one"
    scaled: bool = True
    base: str = "all"


RIGHT = Mistake()
MISTAKES = (
    Mistake(cause="all examples get the first one's adapter: each has its own", adapter=lambda i, all: (all[0],) * 3),
    Mistake(cause="all examples get adapter 0: each has its own", adapter=lambda i, all: (0, 0, 0)),
    Mistake(cause="-1 takes the last adapter: Python counts from the end. It means no adapter",
            adapter=lambda i, all: (all[i],) * 3),
    Mistake(cause="-1 gets adapter 0: it means no adapter", adapter=lambda i, all: (max(all[i], 0),) * 3),
    Mistake(cause="the adapters of all are added up: each example has one", together="sum"),
    Mistake(cause="the mean of all adapters is taken: each example has one", together="mean"),
    Mistake(cause="the scale is missing", scaled=False),
    Mistake(cause="all adapters get the first one's scale",
            adapter=lambda i, all: None if all[i] < 0 else (all[i], all[i], 0)),
    Mistake(cause="all adapters get the last one's scale",
            adapter=lambda i, all: None if all[i] < 0 else (all[i], all[i], -1)),
    Mistake(cause="A is adapter 0's for all, B is the example's own",
            adapter=lambda i, all: None if all[i] < 0 else (0, all[i], all[i])),
    Mistake(cause="B is adapter 0's for all, A is the example's own",
            adapter=lambda i, all: None if all[i] < 0 else (all[i], 0, all[i])),
    Mistake(cause="the base's output is missing", base="none"),
    Mistake(cause="an example without adapter gets nothing: it gets the base's output", base="adapted"),
    Mistake(cause="adapters go by the place in the batch: use `adapter`", adapter=lambda i, all: (i,) * 3),
    Mistake(cause="no adapter is used", adapter=lambda i, all: None),
)  # fmt: skip


def properties(
    *, seed: int = 0, num_adapters: int = 2, sizes: tuple[int, int, int] = (6, 9, 3), length: int = 4
) -> list[Property]:
    """What must hold for `batched_lora(x, weight, A, B, scales, adapter)`.

    Args:
        seed: of all numbers.
        num_adapters: of them, above 1.
        sizes: (out_features, in_features, rank).
        length: tokens of an example.
    """
    last = num_adapters - 1
    mixed, bare = [last, 0, last, *range(num_adapters), 0], [0, -1, last, -1, last]
    make = partial(random_inputs, seed, num_adapters, sizes, length)
    whole = "each example gets its own adapter"
    return [
        _step(make([last, last, last])).as_property("one adapter for all"),
        _step(make(mixed)).as_property(whole, weight=3),
        _step(make(bare)).as_property("-1 is the base alone", weight=2, needs=(whole,)),
        _step(make([-1, -1])).as_property("a batch may have no adapter at all", needs=(whole,)),
        _gradients("gradients reach each adapter from its own examples", make(mixed), needs=(whole,)),
    ]


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, NAME)


def random_inputs(
    seed: int, num_adapters: int, sizes: tuple[int, int, int], length: int, adapter: list[int]
) -> dict[str, Tensor]:
    """The arguments of a call."""
    out_features, in_features, rank = sizes
    generator = torch.Generator().manual_seed(seed)
    normal = partial(torch.randn, generator=generator)
    return {
        "x": normal(len(adapter), length, in_features), "weight": normal(out_features, in_features),
        "A": normal(num_adapters, rank, in_features), "B": normal(num_adapters, out_features, rank),
        "scales": torch.arange(num_adapters) * 0.75 + 0.5, "adapter": torch.tensor(adapter),
    }  # fmt: skip


def output_with(mistake: Mistake, inputs: Mapping[str, Tensor]) -> Tensor:
    """The output, example by example, in float64."""
    x, weight, a, b, scales = (inputs[name].double() for name in ("x", "weight", "A", "B", "scales"))
    every = inputs["adapter"].tolist()
    rows = []
    for i, example in enumerate(x):
        row = example @ weight.T
        if mistake.base == "none" or (mistake.base == "adapted" and every[i] < 0):
            row = torch.zeros_like(row)
        for which, share in _chosen(mistake, i, every, len(a)):
            first, second, scale = (number % len(a) for number in which)
            factor = share * float(scales[scale]) if mistake.scaled else share
            row = row + factor * (example @ a[first].T @ b[second].T)
        rows.append(row)
    return torch.stack(rows)


def _chosen(mistake: Mistake, i: int, every: list[int], count: int) -> Iterator[tuple[tuple[int, int, int], float]]:
    """The adapters of an example, and their shares."""
    if mistake.together != "one":
        for number in range(count):
            yield (number, number, number), 1.0 if mistake.together == "sum" else 1 / count
        return
    which = mistake.adapter(i, every)
    if which is not None:
        yield which, 1.0


def _step(inputs: dict[str, Tensor]) -> Step:
    value = output_with(RIGHT, inputs)
    mistakes = [Hypothesis(m.cause, partial(output_with, m, inputs)) for m in MISTAKES]
    order = inputs["adapter"].argsort(stable=True)
    mistakes.append(Hypothesis("the examples come back sorted by adapter: put them back into their order",
                               lambda: value[order]))  # fmt: skip
    expected = Expected(name="the result", value=value, dtype=torch.float32, allowed=_ALLOWED, mistakes=mistakes)
    return Step(position=None, inputs=inputs, judge=lambda got: judge_tensor(got, expected), where=_where(inputs))


def _where(inputs: Mapping[str, Tensor]) -> str:
    return f"adapter={inputs['adapter'].tolist()}, {len(inputs['A'])} adapters, x {tuple(inputs['x'].shape)}"


def _gradients(name: str, inputs: dict[str, Tensor], *, needs: tuple[str, ...]) -> Property:
    """The property that several adapters can be trained in one batch."""

    def gradients(output: Tensor, a: Tensor, b: Tensor) -> list[Tensor]:
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(7))
        found = torch.autograd.grad((output * weights).sum(), (a, b), allow_unused=True)
        return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip((a, b), found, strict=True)]

    def observe(student: Any) -> Observation:
        def run() -> list[Tensor] | None:
            copies = {name: value.clone() for name, value in inputs.items()}
            a, b = copies["A"].requires_grad_(), copies["B"].requires_grad_()
            output = student(**copies)
            return gradients(output, a, b) if output.requires_grad else None

        return observe_plainly(run, {})

    def judge(seen: Observation) -> Outcome:
        got = seen.outputs["result"]
        if got is None:
            cause = "no gradient reaches A and B: detach(), no_grad(), numpy or torch.tensor() cuts it off"
            return Outcome(name="", kind=Kind.WRONG_VALUE, cause=cause)
        wide = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
        wide["A"].requires_grad_(), wide["B"].requires_grad_()
        right = gradients(output_with(RIGHT, wide), wide["A"], wide["B"])
        for which, one in zip("AB", got, strict=True):
            if not bool((one != 0).any()):
                cause = f"no gradient reaches {which}: detach(), .data, no_grad() or numpy cuts it off"
                return Outcome(name="", kind=Kind.WRONG_VALUE, cause=cause)
        outcomes = (
            judge_tensor(one, Expected(name=f"the gradient of {which}", value=value, dtype=torch.float32,
                                       allowed=1e-4 * float(value.abs().max())))
            for which, one, value in zip("AB", got, right, strict=True)
        )  # fmt: skip
        return next((outcome for outcome in outcomes if not outcome.passed), Outcome(name=""))

    return Property(name=name, observe=observe, judge=judge, where=_where(inputs), needs=needs)
