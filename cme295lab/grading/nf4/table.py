"""Part 1: the sixteen levels of NF4, from the quantiles of a normal distribution.

Any number of bits is asked for, so that the definition is written and not the published table.

Source: T. Dettmers et al., QLoRA: efficient finetuning of quantized LLMs, 2023, section 3 and appendix E.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from cme295lab.grading.compare import Expected, Hypothesis, judge_tensor
from cme295lab.grading.exercise import Property
from cme295lab.grading.observe import refuse_function
from cme295lab.grading.result import Kind, Outcome
from cme295lab.grading.steps import Step

_ALLOWED = 5e-6  # quantiles in float32, as torch.special.ndtri gives them, are off by a few 1e-7


def offset_of(bits: int) -> float:
    """The largest probability: the mean of those that 2^bits - 1 and 2^bits equal shares would give."""
    return 1 - (1 / (2 * (2**bits - 1)) + 1 / (2 * 2**bits)) / 2


def side(offset: float, count: int) -> list[float]:
    """`count` quantiles from that of the offset down to, but without, 1/2."""
    return [NormalDist().inv_cdf(offset + (0.5 - offset) * number / count) for number in range(count)]


def levels(bits: int = 4) -> Tensor:
    """The right levels, ascending, in float64."""
    half, offset = 2 ** (bits - 1), offset_of(bits)
    return normalised([*side(offset, half), 0.0, *(-x for x in side(offset, half - 1))])


def normalised(values: list[float]) -> Tensor:
    """Levels in order, of which the largest is 1."""
    found = torch.tensor(sorted(values), dtype=torch.float64)
    return found / found.abs().max()


def properties(*, bits: int = 3) -> list[Property]:
    """What must hold for `normal_float(bits) -> levels`.

    Args:
        bits: asked for besides 4, from 2 to 8.
    """
    four = "with 4 bits they are the levels of NF4"
    zero = _step(4)
    return [
        _step(4).as_property(four, weight=3),
        Step(position=None, inputs=zero.inputs, judge=judge_zero, where=zero.where).as_property(
            "0 is a level, exactly", needs=(four,)
        ),
        _step(bits).as_property("other numbers of bits follow the same rule", weight=2),
        _step(2).as_property("with 2 bits there are four levels"),
    ]


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "normal_float")


def _step(bits: int) -> Step:
    expected = Expected(
        name="levels", value=levels(bits), dtype=torch.float32, allowed=_ALLOWED,
        mistakes=[Hypothesis(cause, partial(output, bits)) for cause, output in mistakes()],
    )  # fmt: skip
    return Step(
        position=None, inputs={"bits": bits}, judge=lambda got: judge_tensor(got, expected), where=f"bits={bits}"
    )


def judge_zero(got: Any) -> Outcome:
    """Judge whether one level is 0, and not nearly."""
    if bool((got == 0).any()):
        return Outcome(name="")
    nearest = float(got.abs().min())
    cause = "put 0 among the levels by itself: a quantile of 1/2 may miss it, and weights that are 0 must stay 0"
    return Outcome(name="", kind=Kind.WRONG_VALUE, difference=f"the level nearest to 0 is {nearest:g}", cause=cause)


def mistakes() -> Iterator[tuple[str, Callable[[int], Tensor]]]:
    """Causes, and the levels that they give for a number of bits."""

    def both(bits: int, above: int, below: int, offset: float | None = None) -> list[float]:
        end = offset_of(bits) if offset is None else offset
        return [*side(end, above), *(-x for x in side(end, below))]

    def half(bits: int) -> int:
        return 2 ** (bits - 1)

    def with_offset(offset: Callable[[int], float]) -> Callable[[int], Tensor]:
        return lambda bits: normalised([*both(bits, half(bits), half(bits) - 1, offset(2**bits)), 0.0])

    yield "the levels are equally far apart: they are quantiles, close together where weights are frequent", (
        lambda bits: torch.linspace(-1, 1, 2**bits, dtype=torch.float64)
    )
    yield "there are as many levels below 0 as above, and no 0: below there is one less, for 0 to be a level", (
        lambda bits: normalised(both(bits, half(bits), half(bits)))
    )
    yield "the sides are exchanged: 2^(bits-1) levels lie above 0, one less below", (
        lambda bits: normalised([*both(bits, half(bits) - 1, half(bits)), 0.0])
    )
    yield "0 is there twice: 1/2 is left out on each side, as its quantile is 0", (
        lambda bits: normalised([*both(bits, half(bits) - 1, half(bits) - 1), 0.0, 0.0])
    )
    yield "the levels are not divided by the largest: they go from -1 to 1", (
        lambda bits: levels(bits) * side(offset_of(bits), 1)[0]
    )
    yield "the largest level is infinite: a probability of 1 has no quantile; begin at the offset", _infinite
    yield "the offset is 1 - 1/2^(bits+1): it is the mean of two, see the page", with_offset(lambda n: 1 - 1 / (2 * n))
    yield "the offset is 1 - 1/(2(2^bits - 1)): it is the mean of two, see the page", (
        with_offset(lambda n: 1 - 1 / (2 * (n - 1)))
    )
    yield "the offset is twice as far from 1 as it should be: halves of two shares, and the mean of both", (
        with_offset(lambda n: 1 - (1 / (n - 1) + 1 / n) / 2)
    )
    yield "the offset is that of 4 bits: it depends on their number", with_offset(lambda n: offset_of(4))
    yield "these are probabilities: take their quantiles, the inverse of the distribution function", _probabilities
    yield "the middles of 2^bits equal shares are used: then 0 is no level", (
        lambda bits: normalised([NormalDist().inv_cdf((number + 0.5) / 2**bits) for number in range(2**bits)])
    )
    yield "the order is descending: sort from -1 to 1", lambda bits: levels(bits).flip(0)
    for order in ((1, 0, -1), (-1, 0, 1), (1, -1, 0), (-1, 1, 0), (0, 1, -1), (0, -1, 1)):
        for outside_in in (True, False):
            yield "the levels are not sorted", partial(_unsorted, order, outside_in)


def _infinite(bits: int) -> Tensor:
    """inf / inf at the end, or at both, and 0 elsewhere."""
    found = torch.zeros(2**bits, dtype=torch.float64)
    found[0] = found[-1] = math.nan
    return found


def _probabilities(bits: int) -> Tensor:
    half, end = 2 ** (bits - 1), offset_of(bits) - 0.5
    above, below = ([end * (1 - number / count) for number in range(count)] for count in (half, half - 1))
    return normalised([*above, 0.0, *(-x for x in below)])


def _unsorted(order: tuple[int, ...], outside_in: bool, bits: int) -> Tensor:
    """Both sides and 0 as they come."""
    found = levels(bits)
    parts = {1: found[found > 0].flip(0), 0: found[found == 0], -1: found[found < 0]}
    return torch.cat([parts[sign] if outside_in else parts[sign].flip(0) for sign in order])
