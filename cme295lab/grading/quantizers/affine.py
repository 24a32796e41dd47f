"""Part 2: a scale and a zero point, so that all 256 codes are used where numbers are not symmetric around 0.

The range is fitted on one tensor and used for another (calibration), which is why codes must be clamped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cme295lab.grading.compare import Expected, Hypothesis, allowed_error, judge_tensor
from cme295lab.grading.exercise import Property
from cme295lab.grading.observe import Observation
from cme295lab.grading.observe_plainly import observe_plainly
from cme295lab.grading.quantizers.rounding import Rounding, clear_of_ties, codes_of
from cme295lab.grading.quantizers.whole import judge_codes
from cme295lab.grading.result import Kind, Outcome
from cme295lab.grading.steps import Step, judge_tuple, number_of, refuse_functions

FUNCTIONS = ("affine_range", "affine_quantize", "affine_dequantize")
Range = tuple[float, float]
_EXAMPLE = torch.tensor([0.1, 1.5, 2.0, 3.9, -0.4])
_CONSTANTS = (0.0, 2.5, -0.7)


def properties(*, seed: int = 0, size: int = 96, smallest: float = 5.0) -> list[Property]:
    """What must hold for the three functions of the page.

    Args:
        seed: seeds the random numbers and ranges.
        size: numbers of the vector.
        smallest: of the range that does not hold 0.
    """
    ranges = random_ranges(seed)
    scale, zero = right_range(*ranges[0])
    beside = right_range(smallest, smallest + 1)
    inside = _random(seed, size, ranges[0], 0.0)
    beyond = _random(seed + 1, size, ranges[0], 0.6)
    apart = _random(seed + 2, size, (smallest, smallest + 1), 0.0)
    parameters, codes = "scale and zero point follow from the range", "every code is the nearest"
    return [
        _ranges("the range of the page's example gives its scale and zero point", [(-0.4, 3.9)]),
        _ranges(parameters, ranges, weight=2),
        _quantize(_EXAMPLE, right_range(-0.4, 3.9), "the page's example").as_property("the page's codes come out"),
        _quantize(inside, (scale, zero), f"numbers of the range, seed {seed}").as_property(codes),
        _quantize(beyond, (scale, zero), f"numbers beyond the range, seed {seed + 1}").as_property(
            "numbers beyond the range get the first or the last code", needs=(codes,)
        ),
        _dequantize((scale, zero)).as_property("codes come back as numbers", weight=2),
        _ranges("a range without 0 has its zero point outside of int8", [(smallest, smallest + 1), (-9.0, -8.45)],
                needs=(parameters,)),
        _quantize(apart, beside, f"numbers between {smallest:g} and {smallest + 1:g}").as_property(
            "numbers far from 0 have codes, too", needs=(codes,)
        ),
        _constants("a constant tensor comes back"),
    ]  # fmt: skip


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_functions(student, FUNCTIONS)


def right_range(smallest: float, largest: float) -> tuple[float, int]:
    """Scale and zero point."""
    scale = (largest - smallest) / 255
    return scale, -round(smallest / scale) - 128


def random_ranges(seed: int, count: int = 4) -> list[Range]:
    """Ranges around 0 whose zero points are clear of ties; that of the first one is not the same cut off."""
    generator = torch.Generator().manual_seed(seed)
    found: list[Range] = []
    while len(found) < count:
        below, above = (3 * torch.rand(2, generator=generator) + 0.1).tolist()
        steps = 255 * below / (below + above)
        part = steps - math.floor(steps)
        if 0.6 < part < 0.9 or (found and 0.1 < part < 0.4):
            found.append((-below, above))
    return found


def _random(seed: int, size: int, within: Range, beyond: float) -> Tensor:
    """Numbers of a range, from end to end, or up to a share of its width beyond it."""
    smallest, largest = within
    scale, _ = right_range(smallest, largest)
    share = torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    share[:2] = torch.tensor([0.0, 1.0])
    x = smallest - beyond * (largest - smallest) + share * (1 + 2 * beyond) * (largest - smallest)
    return clear_of_ties(x.float(), scale)


def _ranges(name: str, ranges: Sequence[Range], *, weight: float = 1.0, needs: tuple[str, ...] = ()) -> Property:
    """The property that the first function answers some ranges right."""

    def observe(student: Any) -> Observation:
        return observe_plainly(lambda: [student[0](smallest=a, largest=b) for a, b in ranges], {})

    where = "; ".join(f"affine_range(smallest={a:.4g}, largest={b:.4g})" for a, b in ranges)
    return Property(name=name, observe=observe, judge=lambda seen: judge_ranges(ranges, seen.outputs["result"]),
                    where=where, weight=weight, needs=needs)  # fmt: skip


def judge_ranges(ranges: Sequence[Range], answers: Sequence[Any]) -> Outcome:
    """Judge scales and zero points, all ranges together: a mistake is named if it explains each of them."""
    pairs = []
    for answer in answers:
        if not isinstance(answer, tuple | list) or len(answer) != 2 or None in (found := [*map(number_of, answer)]):
            cause = "return (scale, zero_point), two numbers"
            return Outcome(name="", kind=Kind.WRONG_SHAPE, cause=cause)
        pairs.append(found)
    got = torch.tensor(pairs, dtype=torch.float64).T
    want = _answers(ranges, right_range)
    for row, name, allowed in ((0, "scale", 1e-6 * float(want[0].min())), (1, "zero_point", 1e-6)):
        mistakes = [Hypothesis(cause, partial(_row, ranges, wrong, row)) for cause, wrong in _wrong_ranges()]
        outcome = judge_tensor(
            got[row], Expected(name=name, value=want[row], dtype=torch.float64, allowed=allowed, mistakes=mistakes)
        )  # fmt: skip
        if not outcome.passed:
            return outcome
    return Outcome(name="")


def _answers(ranges: Sequence[Range], function: Callable[[float, float], tuple[float, float]]) -> Tensor:
    return torch.tensor([function(a, b) for a, b in ranges], dtype=torch.float64).T


def _row(ranges: Sequence[Range], wrong: Callable[[float, float], tuple[float, float]], row: int) -> Tensor:
    return _answers(ranges, wrong)[row]


def _wrong_ranges() -> Iterator[tuple[str, Callable[[float, float], tuple[float, float]]]]:
    """Causes, and what they make of a range."""

    def width(a: float, b: float) -> float:
        return (b - a) / 255

    yield "256 codes have 255 steps between them: scale = (largest - smallest) / 255", lambda a, b: ((b - a) / 256, 0)
    yield "254 steps leave codes unused: scale = (largest - smallest) / 255", lambda a, b: ((b - a) / 254, 0)
    yield "127 steps are half of the codes: scale = (largest - smallest) / 255", lambda a, b: ((b - a) / 127, 0)
    yield "that is the scale of absmax: here the range is not symmetric", lambda a, b: (max(-a, b) / 127, 0)
    yield "that is the inverse of the scale: one step is (largest - smallest) / 255", lambda a, b: (255 / (b - a), 0)
    yield "the range is not divided by 255: the scale is one step", lambda a, b: (b - a, 0)
    yield "that is largest + smallest: the width is the difference", lambda a, b: ((b + a) / 255, 0)
    yield (
        "the zero point is not rounded: it is a code, and only a whole one brings 0 back as exactly 0",
        lambda a, b: (width(a, b), -a / width(a, b) - 128),
    )
    for cut in (int, math.floor, math.ceil):
        yield (
            "the zero point is cut off, not rounded: int() drops what is behind the point",
            lambda a, b, cut=cut: (width(a, b), -cut(a / width(a, b)) - 128),  # type: ignore[misc]
        )
    yield "the zero point's sign is wrong: 0 lies above the smallest number", lambda a, b: (
        width(a, b), round(a / width(a, b)) - 128,
    )  # fmt: skip
    yield "the sign of 128 is wrong: the smallest number has the code -128", lambda a, b: (
        width(a, b), -round(a / width(a, b)) + 128,
    )  # fmt: skip
    yield "that is the zero point of codes from 0 to 255: int8 begins at -128", lambda a, b: (
        width(a, b), -round(a / width(a, b)),
    )  # fmt: skip
    yield "that is for codes from -127: the smallest number has the code -128", lambda a, b: (
        width(a, b), -round(a / width(a, b)) - 127,
    )  # fmt: skip
    yield "the zero point is 0: then the range is not used", lambda a, b: (width(a, b), 0)
    yield (
        "the zero point is clamped to int8: it is no code here, as no number of the range is 0; keep it as it is",
        lambda a, b: (width(a, b), min(max(right_range(a, b)[1], -128), 127)),
    )
    yield (
        "the zero point has wrapped around in int8: it is no code here, keep it as a Python number",
        lambda a, b: (width(a, b), (right_range(a, b)[1] + 128) % 256 - 128),
    )


def _quantize(x: Tensor, parameters: tuple[float, int], where: str) -> Step:
    """The second function, on numbers and the right scale and zero point."""
    scale, zero = parameters
    clamped = Rounding(low=-128)

    def steps(mistake: Rounding, zero_point: float = zero) -> Tensor:
        return codes_of(x.double(), scale, mistake, zero_point)

    def early() -> Tensor:
        """Clamped before the zero point is added."""
        return (codes_of(x.double(), scale, clamped) + zero + 128) % 256 - 128

    beyond = "numbers beyond the range have wrapped around to the other end: clamp to -128 ... 127 before int8"
    mistakes = [
        Hypothesis(beyond, lambda: steps(Rounding())),
        Hypothesis("codes end at -128: -127 is where absmax stops", lambda: steps(Rounding(low=-127))),
        Hypothesis("codes are clamped before the zero point is added: clamp the sum", lambda: early()),
        Hypothesis("negative codes are cut off: int8 goes from -128 to 127", lambda: steps(Rounding(low=0))),
    ]  # fmt: skip
    for low in (-128, None):
        mistakes += [
            Hypothesis("the zero point is subtracted: it is added here, and subtracted on the way back",
                       partial(steps, Rounding(low=low), -zero)),
            Hypothesis("the zero point is missing: add it after rounding", partial(steps, Rounding(low=low), 0.0)),
            Hypothesis("the numbers are cut off, not rounded",
                       partial(steps, Rounding(low=low, rounding="zero"))),
            Hypothesis("the numbers are cut off, not rounded", lambda low=low: _cut(x, scale, zero, low)),  # type: ignore[misc]
            Hypothesis("the numbers are rounded down: round to the nearest",
                       partial(steps, Rounding(low=low, rounding="down"))),
            Hypothesis("the numbers are rounded up: round to the nearest",
                       partial(steps, Rounding(low=low, rounding="up"))),
            Hypothesis("the numbers are multiplied by the scale: they are divided",
                       partial(codes_of, x.double(), 1 / scale, Rounding(low=low), zero)),
        ]  # fmt: skip
    inputs = {"x": x, "scale": scale, "zero_point": zero}
    return Step(
        position=1, inputs=inputs, judge=lambda got: judge_codes(got, steps(clamped), mistakes),
        where=f"{where}; x of shape {tuple(x.shape)}, scale {scale:.4g}, zero_point {zero}",
    )  # fmt: skip


def _cut(x: Tensor, scale: float, zero: int, low: float | None) -> Tensor:
    """x / scale + zero cut off as a whole."""
    codes = (x.double() / scale + zero).trunc()
    return codes.clamp(low, 127) if low is not None else (codes + 128) % 256 - 128


def _dequantize(parameters: tuple[float, int]) -> Step:
    """The third function, on every code."""
    scale, zero = parameters
    codes = torch.arange(-128, 128).to(torch.int8)
    wide = codes.double()
    mistakes = [
        Hypothesis("codes minus zero point has left int8 and wrapped around: make the codes wider first, .float()",
                   lambda: ((wide - zero + 128) % 256 - 128) * scale),
        Hypothesis("the zero point is added: it is subtracted on the way back", lambda: (wide + zero) * scale),
        Hypothesis("the zero point is added in int8: subtract it, from wider codes",
                   lambda: ((wide + zero + 128) % 256 - 128) * scale),
        Hypothesis("the zero point is subtracted after scaling: it is a code, so subtract it from codes",
                   lambda: wide * scale - zero),
        Hypothesis("the zero point is not subtracted", lambda: wide * scale),
        Hypothesis("codes are divided by the scale: they are multiplied", lambda: (wide - zero) / scale),
        Hypothesis("the scale is missing: codes minus zero point are steps", lambda: wide - zero),
    ]  # fmt: skip
    expected = Expected(
        name="the result", value=(wide - zero) * scale, dtype=torch.float32,
        allowed=allowed_error(torch.float32, 256 * scale) / 4, mistakes=mistakes,
    )  # fmt: skip
    return Step(
        position=2, inputs={"codes": codes, "scale": scale, "zero_point": zero},
        judge=lambda got: judge_tensor(got, expected),
        where=f"all codes from -128 to 127, scale {scale:.4g}, zero_point {zero}",
    )  # fmt: skip


def _constants(name: str) -> Property:
    """Constant tensors there and back, by the student's three functions: how, is free."""

    def there_and_back(student: Any, value: float) -> Any:
        scale, zero = student[0](smallest=value, largest=value)
        codes = student[1](x=torch.full((5,), value), scale=scale, zero_point=zero)
        return student[2](codes=codes, scale=scale, zero_point=zero)

    def observe(student: Any) -> Observation:
        seen = observe_plainly(lambda: tuple(there_and_back(student, value) for value in _CONSTANTS), {})
        if seen.error is not None and "ZeroDivisionError" in seen.error.text:
            return Observation(outputs={"result": seen.error.text})
        return seen

    def judge(seen: Observation) -> Outcome:
        got = seen.outputs["result"]
        cause = "largest - smallest is 0 here: choose a scale and a zero point with which the one number comes back"
        if isinstance(got, str):
            return Outcome(name="", kind=Kind.WRONG_VALUE, difference=got, cause=cause)
        parts = [f"of {value:g}" for value in _CONSTANTS]
        judges = {part: partial(_judge_constant, value, cause) for part, value in zip(parts, _CONSTANTS)}
        return judge_tuple(got, parts, judges)

    where = f"five times the same number: {', '.join(f'{value:g}' for value in _CONSTANTS)}"
    return Property(name=name, observe=observe, judge=judge, where=where)


def _judge_constant(value: float, cause: str, got: Any) -> Outcome:
    want = torch.full((5,), value)
    outcome = judge_tensor(
        got, Expected(name=f"the result for {value:g}", value=want, dtype=torch.float32, allowed=1e-5 * abs(value))
    )  # fmt: skip
    if outcome.kind is not Kind.WRONG_VALUE:
        return outcome
    return Outcome(name="", kind=outcome.kind, difference=outcome.difference, cause=cause)
