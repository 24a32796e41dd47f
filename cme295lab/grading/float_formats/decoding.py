"""Part 1: from bits to the number that they mean."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from cme295lab.grading.exercise import Property
from cme295lab.grading.float_formats.answers import Direction, Question, is_same_number
from cme295lab.grading.float_formats.formats import BF16, E5M2, FP16, FP32, PAGE, Format, Mistake, decode_with
from cme295lab.grading.observe import refuse_function
from cme295lab.grading.result import Outcome

MISTAKES = (
    # The special ones come first: on what they are about, a general one may look the same.
    Mistake(cause="the sign of zero is lost: sign bit 1 and all else 0 is -0.0. Multiply by -1.0, do not subtract",
            sign="zero"),
    Mistake(
        cause="the largest exponent is taken for a normal one: it means inf if the mantissa is 0, and NaN if not",
        specials="finite",
    ),
    Mistake(cause="NaN is lost: with the largest exponent, a mantissa that is not 0 means NaN", specials="all inf"),
    Mistake(cause="inf is lost: with the largest exponent, a mantissa of 0 means inf", specials="all nan"),
    Mistake(cause="subnormals are flushed to zero: with exponent 0 the number is fraction * 2^(1 - bias)",
            subnormals="flushed"),
    Mistake(
        cause="subnormals come out half as large: their power is 1 - bias, that of exponent 1, not 0 - bias",
        subnormals="exponent",
    ),
    Mistake(
        cause="subnormals have no implicit one: with exponent 0 the number is fraction * 2^(1 - bias), and zero is one",
        subnormals="normal",
    ),
    Mistake(cause="the implicit one is missing: a normal number is 1 + fraction", implicit_one=False),
    Mistake(cause="the mantissa is not divided: the fraction is mantissa / 2^mantissa_bits", fraction="whole"),
    Mistake(cause="the fraction is half of what it should be: mantissa / 2^mantissa_bits", fraction="half"),
    Mistake(
        cause="the fields are swapped: from the left they are sign, exponent, mantissa; the mantissa has the last bits",
        swapped=True,
    ),
    Mistake(cause="the sign bit has no effect", sign="ignored"),
    Mistake(cause="the sign is inverted: a sign bit of 1 means negative", sign="inverted"),
    Mistake(cause="the bias is forgotten: the power is exponent - bias", bias="none"),
    Mistake(cause="the bias is 2^(exponent_bits - 1) - 1, yours is one more", bias="one more"),
    Mistake(cause="the bias is 127 in formats with 8 exponent bits alone: 2^(exponent_bits - 1) - 1", bias="127"),
)  # fmt: skip

DIRECTION = Direction(
    function="decode",
    answer=decode_with,
    is_same=is_same_number,
    show_argument=lambda code, kind: f"0b{code:0{1 + sum(kind)}b}",
    show_answer=lambda value, kind: f"{value!r}",
    is_whole=False,
    mistakes=MISTAKES,
)


def properties(*, seed: int = 0, exponent_bits: int = 4, mantissa_bits: int = 3) -> list[Property]:
    """What must hold for `decode(code, exponent_bits, mantissa_bits) -> number`.

    Args:
        seed: draws the codes.
        exponent_bits, mantissa_bits: of one more format beside the page's and the well-known ones.
    """
    draw, other = random.Random(seed), Format(exponent_bits, mantissa_bits)
    every = (PAGE, FP16, BF16, FP32, E5M2, other)

    def normals(kind: Format, count: int) -> list[int]:
        return [draw.randrange(kind.smallest_normal, kind.infinity) for _ in range(count)]

    page, others = "normal numbers of the page's six bits come out", "normal numbers of other formats come out"
    ask = DIRECTION.property
    return [
        ask(page, _ask(PAGE, [0b010110, 0b001100, *normals(PAGE, 6), 0b000100, 0b011011])),
        ask(others, [question for kind in every[1:] for question in _ask(kind, normals(kind, 6))], weight=2),
        ask(
            "a sign bit of 1 makes a number negative",
            [question for kind in every for question in _ask(kind, [code | kind.sign for code in normals(kind, 3)])],
        ),
        ask(
            "exponent 0 means zero and subnormal numbers",
            [question for kind in every for question in _ask(kind, _subnormals(kind, draw))], weight=2, needs=(page,),
        ),
        ask(
            "the largest exponent means infinity, and NaN",
            [
                question
                for kind in every
                for question in _ask(kind, [kind.infinity, kind.infinity | kind.sign, kind.infinity + 1, kind.sign - 1])
            ], needs=(page,),
        ),
        ask("zero keeps its sign", [question for kind in every for question in _ask(kind, [kind.sign])]),
    ]  # fmt: skip


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "decode")


def _ask(kind: Format, codes: Iterable[int]) -> list[Question]:
    return [Question(argument=code, kind=kind) for code in codes]


def _subnormals(kind: Format, draw: random.Random) -> list[int]:
    largest = kind.smallest_normal - 1
    return [1, largest, draw.randint(1, largest), draw.randint(1, largest) | kind.sign, 0]
