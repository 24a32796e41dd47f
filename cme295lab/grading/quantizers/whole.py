"""Part 1: absmax: one scale for a whole tensor, codes from -127 to 127."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cme295lab.grading.compare import Expected, Hypothesis, allowed_error, judge_tensor
from cme295lab.grading.exercise import Once, Property
from cme295lab.grading.observe import Observation
from cme295lab.grading.observe_plainly import observe_plainly
from cme295lab.grading.quantizers.rounding import RIGHT, Rounding, clear_of_ties, codes_of, hypotheses, scale_of
from cme295lab.grading.result import Kind, Outcome
from cme295lab.grading.steps import Step, judge_number, judge_tuple, number_of, refuse_functions

FUNCTIONS = ("absmax_quantize", "absmax_dequantize")
_PARTS = ("codes", "scale")
ZERO_SCALE = (
    "max|x| is 0, so x / scale is 0 / 0 = NaN, and what int8 makes of that is luck: where all numbers are 0, choose a "
    "scale that can be divided by, such as 1"
)
_EXAMPLE = torch.tensor([1.2, -0.5, 3.1, -2.4, 0.0])


def properties(*, seed: int = 0, size: int = 96, rows: int = 7) -> list[Property]:
    """What must hold for `absmax_quantize(x) -> (codes, scale)` and `absmax_dequantize(codes, scale) -> x`.

    Args:
        seed: seeds the random numbers.
        size: numbers of the vector.
        rows: of the matrix, whose columns are nine.
    """
    vector, matrix = _random(seed, size), _random(seed + 1, rows * 9).view(rows, 9)
    quantized = Once(partial(observe_first, {"x": vector}))
    scale = "the scale is max|x| / 127"
    return [
        _quantize(vector, _words(vector, seed), "scale").as_property(scale, observe=quantized),
        _quantize(vector, _words(vector, seed), "codes").as_property(
            "every code is the nearest", observe=quantized, weight=2
        ),
        _quantize(matrix, _words(matrix, seed + 1)).as_property("a matrix has one scale and keeps its shape"),
        dequantize_step(vector, seed).as_property("codes come back as numbers", weight=2),
        zeros_property("zeros come back as zeros"),
        # Last, as all of these: five numbers cannot tell mistakes apart, and the first failure is the one explained.
        _quantize(_EXAMPLE, "the page's example").as_property("the example of the page comes out"),
    ]


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_functions(student, FUNCTIONS)


def observe_first(inputs: dict[str, Any], student: Any) -> Observation:
    """Call the first function of the tuple."""
    return observe_plainly(student[0], inputs)


def _random(seed: int, size: int) -> Tensor:
    """Numbers of which the farthest from zero is negative."""
    x = 3 * torch.randn(size, generator=torch.Generator().manual_seed(seed))
    x[size // 3] = -1.4 * x.abs().max()
    return clear_of_ties(x, scale_of(x.double()))


def _words(x: Tensor, seed: int) -> str:
    return f"x of shape {tuple(x.shape)}, float32, seed {seed}"


def quantized(x: Tensor, mistake: Rounding = RIGHT) -> tuple[Tensor, Tensor]:
    """Codes and scale, in float64."""
    flat = x.double().flatten()
    scale = scale_of(flat, mistake)
    return codes_of(flat, scale, mistake).view(x.shape), scale.squeeze()


def judge_codes(got: Any, want: Tensor, mistakes: list[Hypothesis], name: str = "codes") -> Outcome:
    """Judge codes: int8, of the right shape, each one exact."""
    if isinstance(got, Tensor) and got.shape == want.shape and got.dtype != torch.int8:
        cause = f"{name} must be int8, a byte a number; yours are {str(got.dtype).removeprefix('torch.')}"
        return Outcome(name="", kind=Kind.WRONG_SHAPE, cause=cause)
    return judge_tensor(got, Expected(name=name, value=want, dtype=torch.int8, allowed=0.0, mistakes=mistakes))


def _quantize(x: Tensor, where: str, *parts: str) -> Step:
    """The first function on x; the parts of its result that are judged."""
    codes, scale = quantized(x)

    def judge_scale(got: Any) -> Outcome:
        inverse = Hypothesis("that is 127 / max|x|, the inverse: x is codes times scale", lambda: 1 / scale)
        largest = Hypothesis("that is max|x|: the scale is one step, a 127th of it", lambda: 127 * scale)
        found = [inverse, largest, *hypotheses(lambda mistake: quantized(x, mistake)[1])]
        return judge_number(
            got, Expected(name="scale", value=scale, dtype=x.dtype, allowed=1e-6 * float(scale), mistakes=found)
        )  # fmt: skip

    judges: dict[str, Callable[[Any], Outcome]] = {
        "scale": judge_scale,
        "codes": lambda got: judge_codes(got, codes, hypotheses(lambda mistake: quantized(x, mistake)[0])),
    }
    judged = {name: judge for name, judge in judges.items() if name in (parts or _PARTS)}
    return Step(position=0, inputs={"x": x}, judge=lambda got: judge_tuple(got, _PARTS, judged), where=where)


def dequantize_step(x: Tensor, seed: int) -> Step:
    """The second function, on right codes and a right scale."""
    codes64, scale64 = quantized(x)
    codes, scale = codes64.to(torch.int8), scale64.float()
    mistakes = [
        Hypothesis("the codes are divided by the scale: they are multiplied", lambda: codes64 / scale64),
        Hypothesis("the scale is applied twice", lambda: codes64 * scale64**2),
        Hypothesis("there is a factor 1/127 too much: the scale holds it already", lambda: codes64 * scale64 / 127),
        Hypothesis("there is a factor 127 too much: the scale is a step, not max|x|", lambda: codes64 * scale64 * 127),
        Hypothesis("the codes come back as they are: multiply by the scale", lambda: codes64),
        Hypothesis("that is 1 / (codes times scale)", lambda: 1 / (codes64 * scale64)),
    ]
    expected = Expected(
        name="the result", value=codes64 * scale.double(), dtype=torch.float32,
        allowed=allowed_error(torch.float32, float(x.abs().max())) / 16, mistakes=mistakes,
    )  # fmt: skip
    return Step(
        position=1, inputs={"codes": codes, "scale": scale}, judge=lambda got: judge_tensor(got, expected),
        where=f"the codes and the scale of {_words(x, seed)}",
    )  # fmt: skip


def zeros_property(name: str) -> Property:
    """Zeros there and back, by both functions of the student's, with a scale that can be divided by."""
    zeros = torch.zeros(6)

    def observe(student: tuple[Callable[..., Any], Callable[..., Any]]) -> Observation:
        return observe_plainly(lambda x: (found := student[0](x), student[1](*found)), {"x": zeros})

    def judge(seen: Observation) -> Outcome:
        pair, back = seen.outputs["result"]
        outcome = judge_tensor(back, Expected(name="the result", value=zeros, dtype=torch.float32, allowed=0.0))
        scale = number_of(pair[1])
        if scale is not None and scale > 0 and math.isfinite(scale):
            return outcome
        return Outcome(name="", kind=Kind.WRONG_VALUE, difference=f"the scale is {pair[1]}", cause=ZERO_SCALE)

    return Property(name=name, observe=observe, judge=judge, where="x of 6 zeros, there and back")
