"""One number, bit by bit, in one format and rounded to all the others: what the bit explorer shows.

Two pure functions, `bits_of_number` and `bits_of_code`, and the record they return. Codes, rounding and values are
those of `cme295lab.precision.formats`; here they are only cut into fields and put into words. `read_number` turns what
a student types ("1 + 2^-11") into a number: sums, products and powers are how the interesting values are best said.
"""

import ast
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from cme295lab.precision.formats import (
    FORMATS,
    FloatFormat,
    Number,
    Rounding,
    describe,
    describe_code,
    get_format,
    neighbours,
)

ROUNDINGS: tuple[Rounding, ...] = ("nearest", "zero")
_MAX_TEXT = 60  # characters of a typed number
_OPERATORS: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.Pow: math.pow,
}  # fmt: skip
_NAMES = {"pi": math.pi, "e": math.e, "inf": math.inf, "nan": math.nan}


@dataclass(frozen=True, kw_only=True)
class BitField:
    """Neighbouring bits of a code that mean one thing.

    Attributes:
        name: "sign", "exponent" or "mantissa".
        bits: as "0" and "1", the highest first.
        first: place of the first, counted from the code's highest bit.
    """

    name: str
    bits: str
    first: int


@dataclass(frozen=True, kw_only=True)
class FormatRow:
    """What one format makes of a number.

    Attributes:
        format: the format.
        number: the value that it has next to it, taken apart; None if it has no code for the number.
        refusal: why not; empty otherwise.
    """

    format: FloatFormat
    number: Number | None
    refusal: str = ""


@dataclass(frozen=True, kw_only=True)
class BitScenario:
    """A number in one format, and the same number in every format.

    Attributes:
        asked: the number that was to be written.
        rounding: "nearest" or "zero".
        chosen: what the chosen format makes of it.
        rows: a line per format, the one with the most bits first.
        below: the format's next smaller value; None at its end, and beside a NaN.
        above: its next larger value; None likewise.
    """

    asked: float
    rounding: str
    chosen: Number
    rows: tuple[FormatRow, ...]
    below: float | None
    above: float | None


def bits_of_number(asked: float, format: str = "fp16", *, rounding: str = "nearest") -> BitScenario:
    """Write a number in a format.

    Args:
        asked: the number.
        format: a name of `FORMATS`.
        rounding: "nearest" (ties to even) or "zero".

    Raises:
        ValueError: if there is no such format or rounding, or the format has no code for the number.
    """
    return _scenario(asked, rounding, describe(asked, get_format(format), _checked(rounding)))


def bits_of_code(code: int, format: str = "fp16", *, rounding: str = "nearest") -> BitScenario:
    """Read a code of a format; the other formats then round its value.

    Args:
        code: from 0; its bits are those of the format.
        format: a name of `FORMATS`.
        rounding: how the others round, "nearest" or "zero".

    Raises:
        ValueError: if the format has no such code, or there is no such format or rounding.
    """
    chosen = describe_code(code, get_format(format))
    scenario = _scenario(chosen.value, rounding, chosen)
    # Of several codes that mean NaN, the row shows the one at hand.
    rows = (replace(row, number=chosen) if row.format == chosen.format else row for row in scenario.rows)
    return replace(scenario, rows=tuple(rows))


def bit_fields(number: Number) -> tuple[BitField, ...]:
    """The fields of a number's code that have any bits, the highest first."""
    layout = number.format
    bits = number.bits.replace(" ", "")
    widths = (("sign", int(layout.signed)), ("exponent", layout.exponent_bits), ("mantissa", layout.mantissa_bits))
    fields, first = [], 0
    for name, width in widths:
        if width:
            fields.append(BitField(name=name, bits=bits[first : first + width], first=first))
        first += width
    return tuple(fields)


def flipped(number: Number, place: int) -> int:
    """The code with one bit turned over.

    Args:
        number: with its code.
        place: of the bit, counted from the highest.

    Raises:
        ValueError: if the code has no such bit.
    """
    width = number.format.num_bits
    if not 0 <= place < width:
        raise ValueError(f"place must be from 0 to {width - 1} for {number.format.name}, got {place}")
    return number.code ^ 1 << width - 1 - place


def significand(number: Number) -> tuple[int, float]:
    """The power of two and the factor before it: value = ± 2^power · factor, for a number that is finite.

    The factor is 1.m for a normal number; a subnormal one has the power of the smallest normal one and the factor 0.m.
    """
    layout = number.format
    fraction = number.mantissa / (1 << layout.mantissa_bits)
    if number.kind in ("subnormal", "zero"):  # a scale has neither
        return 1 - layout.bias, fraction
    return number.exponent - layout.bias, 1 + fraction


def interesting_numbers(format: str) -> dict[str, float]:
    """Numbers to try, by the text of their button: five that are the same for all, and the format's ends."""
    layout = get_format(format)
    fixed = {"0.1": 0.1, "2049": 2049.0, "1+2^-11": 1 + 2**-11, "65504": 65504.0, "65520": 65520.0}
    ends = {"max": layout.max, "min normal": layout.min_normal, "min subnormal": layout.min_subnormal}
    return fixed | {name: value for name, value in ends.items() if not math.isnan(value)} | {"NaN": math.nan}


def read_number(text: str) -> float:
    """A typed number: decimal or hexadecimal, with + - * / ^ and brackets; pi, e, inf and nan are known.

    Raises:
        ValueError: if it is none, is too long, or is beyond what 64 bits hold.
    """
    cleaned = text.strip().replace("^", "**").replace("−", "-")
    if not cleaned or len(cleaned) > _MAX_TEXT:
        raise ValueError(f"type a number of 1 to {_MAX_TEXT} characters, got {len(cleaned)}")
    try:
        return _evaluate(ast.parse(cleaned, mode="eval").body)
    except (SyntaxError, ZeroDivisionError, OverflowError, RecursionError, ValueError) as error:
        raise ValueError(f"cannot read {text!r} as a number ({error}); try 0.1, 1e-8 or 1 + 2^-11") from error


def _evaluate(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return float(node.value)
    if isinstance(node, ast.Name) and node.id.lower() in _NAMES:
        return _NAMES[node.id.lower()]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _evaluate(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_evaluate(node.left), _evaluate(node.right))
    raise ValueError("only numbers, + - * / ^ and brackets")


def _checked(rounding: str) -> Rounding:
    for name in ROUNDINGS:
        if name == rounding:
            return name
    raise ValueError(f"rounding must be one of {', '.join(ROUNDINGS)}, got {rounding!r}")


def _scenario(asked: float, rounding: str, chosen: Number) -> BitScenario:
    layouts = sorted(FORMATS.values(), key=lambda layout: -layout.num_bits)
    rows = tuple(_row(asked, layout, _checked(rounding)) for layout in layouts)
    below = above = None
    if math.isfinite(chosen.value):
        below, above = (_next(chosen.value, chosen.format, towards) for towards in (-math.inf, math.inf))
    return BitScenario(asked=asked, rounding=rounding, chosen=chosen, rows=rows, below=below, above=above)


def _row(asked: float, layout: FloatFormat, rounding: Rounding) -> FormatRow:
    try:
        return FormatRow(format=layout, number=describe(asked, layout, rounding))
    except ValueError:
        refusal = "no NaN" if math.isnan(asked) else "no ∞" if math.isinf(asked) else "no zero, no sign"
        return FormatRow(format=layout, number=None, refusal=refusal)


def _next(value: float, layout: FloatFormat, towards: float) -> float | None:
    """The format's finite value next to one of its own, or None where there is none."""
    just_beyond = torch.tensor([math.nextafter(value, towards)], dtype=torch.float64)
    found = float(neighbours(just_beyond, layout)[int(towards > 0)][0])
    return found if math.isfinite(found) else None
