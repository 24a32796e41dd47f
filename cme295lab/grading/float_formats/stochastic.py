"""Part 3: rounding fp32 to bf16 at random, so that the mean is right.

What is judged is how often a number goes to the neighbour that is further from zero: a share of many draws, held
against the chance that is right and those that known mistakes give. The margin is six standard deviations, so that one
right answer in half a billion is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from cme295lab.grading.exercise import Once, Property
from cme295lab.grading.observe import Observation, refuse_function
from cme295lab.grading.observe_plainly import observe_plainly
from cme295lab.grading.result import Kind, Outcome

_SIGMAS = 6.0
_CALLS = 4
_LOW_BITS = 0xFFFF  # of fp32's 32, those that bf16 has not


_SHARED = "elements share a draw: draw a uniform number for each element, torch.rand(x.shape, generator=generator)"


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A wrong chance of going to the neighbour further from zero.

    Args:
        cause: the mistake, in the words of the exercise.
        chance: of the position between the neighbours, from 0 to 1, and whether the number is negative.
    """

    cause: str
    chance: Callable[[float, bool], float]


MISTAKES = (
    Mistake(cause="nothing is random: the bits are cut off", chance=lambda position, _: 0.0),
    Mistake(cause="nothing is random: every number is rounded up", chance=lambda position, _: 1.0),
    Mistake(cause="nothing is random: every number goes to the nearer neighbour",
            chance=lambda position, _: float(position > 0.5)),
    Mistake(cause="a coin is tossed: the chance must be larger for the nearer neighbour", chance=lambda *_: 0.5),
    Mistake(
        cause="the chance is the other way round: a number near its upper neighbour must mostly go up",
        chance=lambda position, _: 1.0 - position,
    ),
    Mistake(
        cause="for negative numbers the chance is the other way round: floor goes away from zero there",
        chance=lambda position, negative: 1.0 - position if negative else position,
    ),
    Mistake(cause="the chance is half of what it should be: the noise must reach a whole step",
            chance=lambda position, _: position / 2),
)  # fmt: skip


def properties(*, seed: int = 0, draws: int = 4000) -> list[Property]:
    """What must hold for `stochastic_round(x, generator) -> tensor`.

    Args:
        seed: of the generator, and of the numbers that bf16 has.
        draws: of each number, at least 2,000, in four calls.
    """
    maker = torch.Generator().manual_seed(seed)
    random = (torch.randn(40, generator=maker) * 100).bfloat16().float()
    exact = torch.cat((random, torch.tensor([0.0, 1.0, -1.0, 2.0**-14, 256.0])))
    positive = _between(1.0, torch.tensor([1 / 16, 1 / 4, 1 / 2, 3 / 4, 15 / 16]))
    others = torch.cat((_between(192.0, torch.tensor([0.3, 0.9])), _between(2.0**-9, torch.tensor([0.2, 0.6]))))
    neighbours = "each result is one of the two neighbours in bf16"
    mean = "the chance is the position between the neighbours, so the mean is x"
    shared = Once(partial(_observe, positive, draws, seed))
    make = partial(Property, observe=shared)
    numbers = f"{len(positive)} numbers from 1 to 1 + 2^-7, {draws:,} times each, generator seed {seed}"
    return [
        make(name=neighbours, judge=_judge_neighbours, where=numbers),
        Property(
            name="numbers that bf16 has stay as they are", observe=partial(_observe, exact, _CALLS, seed),
            judge=_judge_exact, where=f"{len(exact)} numbers of bf16, seed {seed}",
        ),
        make(name=mean, judge=_judge_chances, where=numbers, weight=3, needs=(neighbours,)),
        Property(
            name="it is so for negative numbers and at every size",
            observe=partial(_observe, torch.cat((-positive, others, -others)), draws, seed), judge=_judge_chances,
            where=f"numbers from 2^-9 to 193 and negative ones, {draws:,} times each, seed {seed}", weight=2,
            needs=(mean,),
        ),
        make(name="each element has a draw of its own", judge=_judge_independent, where=numbers, needs=(mean,)),
        Property(
            name="the generator decides: the same seed gives the same result", observe=partial(_observe_seeds, seed),
            judge=_judge_seeds, where="1,000 numbers, three generators, two of them with the same seed",
        ),
    ]  # fmt: skip


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "stochastic_round")


def _between(low: float, positions: Tensor) -> Tensor:
    """fp32 numbers at these positions between a number of bf16 and the next."""
    step = 2.0 ** (math.floor(math.log2(low)) - 7)
    return low + step * positions.mul(2**10).round() / 2**10


def neighbours(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of fp32 numbers: the numbers of bf16 toward zero and away from it, and the position between them; in fp32.

    The oracle is the bit pattern: bf16 is the upper half of fp32's bits.
    """
    bits = x.contiguous().view(torch.int32)
    low = bits & ~_LOW_BITS
    high = torch.where(bits == low, low, low + _LOW_BITS + 1)
    position = (bits & _LOW_BITS).double() / (_LOW_BITS + 1)
    return low.view(torch.float32), high.view(torch.float32), position


def _observe(numbers: Tensor, draws: int, seed: int, student: Callable[..., Any]) -> Observation:
    """Round all numbers at once, as a matrix with a row for each draw; in a few calls with a generator each."""
    x = numbers.repeat(draws // _CALLS, 1)

    def call(x: Tensor) -> Any:
        return [student(x, torch.Generator().manual_seed(seed + number)) for number in range(_CALLS)]

    seen = observe_plainly(call, {"x": x})
    if seen.error is not None or seen.changed_inputs:
        return seen
    results = seen.outputs["result"]
    refusal = next(filter(None, (_refuse_result(result, x) for result in results)), None)
    joined = torch.cat(results) if refusal is None else None
    return Observation(outputs={"refusal": refusal, "result": joined, "x": x.repeat(_CALLS, 1)})


def _refuse_result(got: Any, x: Tensor) -> Outcome | None:
    """Why this is no result; None if it is one."""
    if not isinstance(got, Tensor):
        cause = f"return a tensor, not {type(got).__name__}"
    elif got.shape != x.shape:
        cause = f"the result must have the shape of x, {tuple(x.shape)}, yours has {tuple(got.shape)}"
    elif got.dtype != torch.bfloat16:
        cause = f"the result must be bfloat16, yours is {str(got.dtype).removeprefix('torch.')}"
    else:
        return None
    return Outcome(name="", kind=Kind.WRONG_SHAPE, cause=cause)


def _judge_exact(seen: Observation) -> Outcome:
    if (refusal := seen.outputs["refusal"]) is not None:
        return cast(Outcome, refusal)
    got, x = seen.outputs["result"].float()[0], seen.outputs["x"][0]
    wrong = got != x
    if not wrong.any():
        return Outcome(name="")
    index = int(wrong.nonzero()[0])
    difference = f"expected {float(x[index]):.8g}, got {float(got[index]):.8g}; {int(wrong.sum())} of {len(x)} changed"
    cause = "a number that bf16 has is between nothing: its position is 0, and so is the chance that it moves"
    if bool(got.isnan().any()):
        cause = "NaN came out: for x = 0 a logarithm is -inf"
    return Outcome(name="", kind=Kind.WRONG_VALUE, difference=difference, cause=cause)


def _judge_neighbours(seen: Observation) -> Outcome:
    if (refusal := seen.outputs["refusal"]) is not None:
        return cast(Outcome, refusal)
    got, x = seen.outputs["result"].float(), seen.outputs["x"]
    low, high, position = neighbours(x)
    wrong = (got != low) & (got != high)
    if not wrong.any():
        return Outcome(name="")
    row, column = (int(i) for i in wrong.nonzero()[0])
    pair = f"{float(low[row, column]):.8g} or {float(high[row, column]):.8g}"
    difference = f"expected {pair} for {float(x[row, column]):.8g}, got {float(got[row, column]):.8g}"
    beyond = got == high + (high - low)
    if bool((wrong == beyond).all()) and not bool((got == low)[:, position[0] >= 0.5].any()):
        cause = "noise of a whole step is added, and then it is rounded to the nearest: cut off instead, or take noise "
        cause += "from -1/2 to 1/2 step"
    else:
        cause = "a number moved past its neighbours: is the step that of bf16, 2^-7 for numbers from 1 to 2, and "
        cause += " the noise never more than one?"
    return Outcome(name="", kind=Kind.WRONG_VALUE, difference=difference, cause=cause)


def _judge_chances(seen: Observation) -> Outcome:
    if (outcome := _judge_neighbours(seen)).kind is not Kind.PASSED:
        return outcome
    x = seen.outputs["x"]
    low, high, position = neighbours(x)
    draws = len(x)
    share = (seen.outputs["result"].float() == high).double().mean(0).tolist()
    positions, negative = position[0].tolist(), (x[0] < 0).tolist()

    def fits(chance: Callable[[float, bool], float]) -> list[bool]:
        wanted = [chance(*pair) for pair in zip(positions, negative, strict=True)]
        return [abs(s - p) <= _SIGMAS * math.sqrt(p * (1 - p) / draws) + 1e-9 for s, p in zip(share, wanted)]

    right = fits(lambda position, _: position)
    if all(right):
        return Outcome(name="")
    worst = right.index(False)
    value, mean = float(x[0, worst]), seen.outputs["result"][:, worst].double().mean()
    difference = (
        f"{value:.8g} lies at {positions[worst]:.4g} of the way from {float(low[0, worst]):.8g} to "
        f"{float(high[0, worst]):.8g}; it went there in {share[worst]:.2%} of {draws:,} draws, the mean is {mean:.8g}"
    )
    cause = next((mistake.cause for mistake in MISTAKES if all(fits(mistake.chance))), "")
    if not cause and all((s * _CALLS).is_integer() for s in share):
        cause = _SHARED
    return Outcome(name="", kind=Kind.WRONG_VALUE, difference=difference, cause=cause)


def _judge_independent(seen: Observation) -> Outcome:
    """Where a row shares one draw, or a column does, whole rows or columns move together."""
    x, got = seen.outputs["x"], seen.outputs["result"].float()
    _, high, position = neighbours(x)
    moved = (got == high).double()
    quarter, three = (int((position[0] - at).abs().argmin()) for at in (0.25, 0.75))
    both = float((moved[:, quarter] * moved[:, three]).mean())
    wanted, draws = 0.25 * 0.75, len(x)
    if abs(both - wanted) <= _SIGMAS * math.sqrt(wanted * (1 - wanted) / draws):
        return Outcome(name="")
    difference = f"numbers with the chances 1/4 and 3/4 moved together in {both:.2%} of draws, expected {wanted:.2%}"
    return Outcome(name="", kind=Kind.WRONG_VALUE, difference=difference, cause=_SHARED)


def _observe_seeds(seed: int, student: Callable[..., Any]) -> Observation:
    x = _between(1.0, torch.linspace(0.05, 0.95, 1000))

    def call(x: Tensor) -> Any:
        results = [student(x, torch.Generator().manual_seed(number)) for number in (seed, seed, seed + 1)]
        used = torch.Generator().manual_seed(seed)
        student(x, used)
        return [*results, student(x, used)]

    seen = observe_plainly(call, {"x": x})
    return seen if seen.error is not None or seen.changed_inputs else Observation(outputs={**seen.outputs, "x": x})


def _judge_seeds(seen: Observation) -> Outcome:
    first, again, other, following = seen.outputs["result"]
    if (refusal := _refuse_result(first, seen.outputs["x"])) is not None:
        return refusal
    if not torch.equal(first, again):
        cause = "the same seed gives another result: draw from the generator that is handed over, generator=generator"
    elif torch.equal(first, following) and not torch.equal(first, other):
        cause = "a second call with the same generator gives the same again: draw from it, do not seed another from it"
    elif torch.equal(first, other):
        cause = "another seed gives the same result: nothing is drawn from the generator that is handed over"
    else:
        return Outcome(name="")
    return Outcome(name="", kind=Kind.WRONG_VALUE, cause=cause)
