"""Part 2: from a number to the code of the nearest one, ties to even."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from typing import Any

from cme295lab.grading.exercise import Property
from cme295lab.grading.float_formats.answers import Direction, Question, is_same_code
from cme295lab.grading.float_formats.formats import (
    BF16,
    E5M2,
    FP16,
    PAGE,
    RIGHT,
    Format,
    Mistake,
    decode_with,
    encode_with,
    middle,
)
from cme295lab.grading.observe import refuse_function
from cme295lab.grading.result import Outcome

_TIES = "of two codes that are equally near, take the even one (last bit 0)"
_ONE_MORE = (
    "the exponent field is one too large: the bias is 2^(exponent_bits - 1) - 1, and the leading one is implicit: it "
    "must be taken off before the mantissa is put in"
)
MISTAKES = (
    # The special ones come first: on what they are about, a general one may look the same.
    Mistake(cause="the sign of zero is lost: -0.0 < 0 is false, math.copysign(1, x) tells", sign="zero"),
    Mistake(
        cause="math.frexp(0) has the power 0: zero needs a case of its own, or the smallest power", zero="frexp"
    ),
    Mistake(cause="inf is lost: it stays inf, exponent all ones and mantissa 0", infinity="max"),
    Mistake(cause="inf became NaN: its mantissa is 0", infinity="nan"),
    Mistake(cause="NaN is lost, it became inf: its mantissa must not be 0", nan="inf"),
    Mistake(cause="NaN is lost, it became zero: exponent all ones, mantissa not 0", nan="zero"),
    Mistake(
        cause="subnormals are flushed to zero: below the smallest normal number the power stays 1 - bias, and the "
        "leading one goes",
        subnormals="flushed",
    ),
    Mistake(
        cause="subnormals come out twice as large: their power is 1 - bias, that of exponent 1, not 0 - bias",
        subnormals="exponent",
    ),
    Mistake(cause="numbers that are too large become the largest number: they become inf", overflow="max"),
    Mistake(
        cause="inf begins too early: a number above the largest one still rounds to it, up to halfway to the next "
        "power of two",
        overflow="early",
    ),
    Mistake(cause="overflow is not checked: a code that reaches the largest exponent is inf", overflow="none"),
    Mistake(
        cause="ties are rounded away from zero: " + _TIES,
        rounding="away",
    ),
    Mistake(cause="ties are rounded up, toward +inf: " + _TIES,
            rounding="up"),
    Mistake(cause="ties are rounded toward zero: " + _TIES,
            rounding="down"),
    Mistake(
        cause="the number is rounded twice: first to fp32, which makes a tie of what was none. Start from the float64",
        first="fp32",
    ),
    Mistake(
        cause="a subnormal is rounded twice: first to all mantissa bits, then to those that it has. Choose the power "
        "first, then round once",
        first="normal",
    ),
    Mistake(
        cause="a mantissa that rounds up to 2 must raise the exponent: the carry is lost, the number halved",
        carry=False,
    ),
    Mistake(cause="bits are cut off: round to the nearest instead", rounding="zero"),
    Mistake(cause="everything is rounded away from zero: round to the nearest instead", rounding="ceil"),
    Mistake(cause=_ONE_MORE,
            implicit_one=False),
    Mistake(cause="the sign is lost: set the sign bit of negative numbers", sign="ignored"),
    Mistake(cause="the sign is inverted: a sign bit of 1 means negative", sign="inverted"),
    Mistake(cause="the bias is forgotten: the exponent field is the power + bias", bias="none"),
    Mistake(cause=_ONE_MORE, bias="one more"),
    Mistake(cause="the bias is 127 in formats with 8 exponent bits alone: 2^(exponent_bits - 1) - 1", bias="127"),
)  # fmt: skip

DIRECTION = Direction(
    function="encode",
    answer=encode_with,
    is_same=is_same_code,
    show_argument=lambda number, kind: f"{number!r}",
    show_answer=lambda code, kind: kind.bits(code) if 0 <= code < 2 * kind.sign else f"{code}, which is no code",
    is_whole=True,
    mistakes=MISTAKES,
)


def properties(*, seed: int = 0, exponent_bits: int = 4, mantissa_bits: int = 3) -> list[Property]:
    """What must hold for `encode(x, exponent_bits, mantissa_bits) -> code`.

    Args:
        seed: draws the numbers.
        exponent_bits, mantissa_bits: of one more format beside the page's and the well-known ones.
    """
    every = (PAGE, FP16, BF16, E5M2, Format(exponent_bits, mantissa_bits))

    def asked(numbers: Any) -> list[Question]:
        return [question for kind in every for question in _ask(kind, numbers(kind, random.Random(seed)))]

    exact, nearest = "numbers that the format has get their own code", "of two codes the nearer one is taken"
    ask = DIRECTION.property
    return [
        ask(exact, asked(_exact)),
        ask(nearest, asked(_between)),
        ask("ties go to the even code", asked(_ties), weight=2, needs=(nearest,)),
        ask("small numbers become subnormal, or zero", asked(_small), weight=2, needs=(exact,)),
        ask("large numbers become infinite, from halfway on", asked(_large), needs=(exact,)),
        ask("it is rounded once", asked(_once), needs=(nearest,)),
        ask("infinity stays infinity", [q for kind in every for q in _ask(kind, (math.inf, -math.inf))]),
        ask("NaN stays NaN", [q for kind in every for q in _ask(kind, (math.nan,))]),
        ask("zero keeps its sign", [q for kind in every for q in _ask(kind, (-0.0, 0.0))]),
    ]  # fmt: skip


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "encode")


def _ask(kind: Format, numbers: Iterable[float]) -> list[Question]:
    return [Question(argument=number, kind=kind) for number in numbers]


def _value(code: int, kind: Format) -> float:
    return decode_with(RIGHT, code, kind)


def _normal(kind: Format, draw: random.Random, last_bits: int | None = None) -> int:
    """A normal code below the largest two, perhaps with its last two bits given."""
    code = draw.randrange(kind.smallest_normal, kind.infinity - 4)
    return code if last_bits is None else code & ~3 | last_bits


def _full(kind: Format, draw: random.Random) -> int:
    """A normal code whose mantissa is all ones, so that the next one has the next exponent."""
    return draw.randrange(1, kind.top - 1) << kind.mantissa_bits | (kind.smallest_normal - 1)


def _exact(kind: Format, draw: random.Random) -> list[float]:
    values = [_value(_normal(kind, draw), kind) for _ in range(8)]
    return [1.0, *values[:4], *(-value for value in values[4:])]


def _between(kind: Format, draw: random.Random) -> list[float]:
    """A quarter and three quarters of the way to the next code."""
    found = []
    for code in (_normal(kind, draw, 0), _normal(kind, draw, 1), _full(kind, draw)):
        low, high = _value(code, kind), _value(code + 1, kind)
        found += [low + (high - low) / 4, low + 3 * (high - low) / 4, -(low + 3 * (high - low) / 4)]
    return found


def _ties(kind: Format, draw: random.Random) -> list[float]:
    even, odd = middle(_normal(kind, draw, 0), kind), middle(_normal(kind, draw, 1), kind)
    return [even, odd, -even, -odd, middle(_full(kind, draw), kind)]


def _small(kind: Format, draw: random.Random) -> list[float]:
    least, largest = _value(1, kind), kind.smallest_normal - 1
    inside = _value(draw.randint(1, largest), kind)
    return [
        _value(largest, kind), inside, -inside, least, 0.75 * least, 0.5 * least, 0.25 * least, 1.5 * least,
        -2.5 * least, middle(largest, kind), 1e-300,
    ]  # fmt: skip


def _large(kind: Format, draw: random.Random) -> list[float]:
    largest, begins = _value(kind.infinity - 1, kind), middle(kind.infinity - 1, kind)
    return [largest, largest + 0.9 * (begins - largest), begins, -begins, 2 * begins, -1e300]


def _once(kind: Format, draw: random.Random) -> list[float]:
    """Beside a tie, so near that a rounding before the real one makes it a tie that goes to the wrong side."""
    up, down = middle(_normal(kind, draw, 0), kind), middle(_normal(kind, draw, 1), kind)
    subnormal = (1.5 - 2.0 ** -(kind.mantissa_bits + 3)) * _value(1, kind)
    return [up * (1 + 2**-30), -down * (1 - 2**-30), subnormal]
