"""The bit explorer: click the bits of a number, and see what every other format makes of the same value."""

import math
from collections.abc import Callable
from typing import Any

import anywidget
import traitlets

from cme295lab import palette
from cme295lab.precision.formats import FORMATS, Number
from cme295lab.widgets.bit_scenario import (
    ROUNDINGS,
    BitScenario,
    FormatRow,
    bit_fields,
    bits_of_code,
    bits_of_number,
    flipped,
    interesting_numbers,
    read_number,
    significand,
)
from cme295lab.widgets.picture import Picture
from cme295lab.widgets.walk_files import walk_source, walk_style

COLOURS = {"sign": palette.VERMILLION, "exponent": palette.BLUE, "mantissa": palette.GREEN}
_MINUS = "\u2212"


class BitExplorer(anywidget.AnyWidget):
    """Bits to toggle, the formula that they stand for, and the same value in all formats.

    The browser says what was clicked; Python answers with a whole `scene` of texts, so that no rounding is left to
    JavaScript. Everything that can be clicked is a method here, too.

    Args:
        number: what to write.
        format: the format whose bits are shown large; a name of `FORMATS`.
        rounding: "nearest" (ties to even) or "zero".

    Raises:
        ValueError: if there is no such format or rounding.
    """

    _esm, _css = walk_source("bit_explorer.js"), walk_style("bit_explorer.css")
    scene = traitlets.Dict().tag(sync=True)

    def __init__(self, number: float = 0.1, *, format: str = "fp16", rounding: str = "nearest") -> None:
        self.scenario = bits_of_number(number, format, rounding=rounding)
        super().__init__(scene=scene_of(self.scenario))
        self.on_msg(self._hear)

    @property
    def value(self) -> float:
        """The value of the bits that are shown."""
        return self.scenario.chosen.value

    def set_number(self, number: float) -> None:
        """Write another number in the chosen format."""
        self._show(bits_of_number(number, self._format, rounding=self.scenario.rounding))

    def toggle(self, place: int) -> None:
        """Turn one bit over, counted from the highest.

        Raises:
            ValueError: if there is no such bit.
        """
        code = flipped(self.scenario.chosen, place)
        self._show(bits_of_code(code, self._format, rounding=self.scenario.rounding))

    def choose(self, format: str) -> None:
        """Write the same number in another format.

        Raises:
            ValueError: if there is no such format.
        """
        self._show(bits_of_number(self.scenario.asked, format, rounding=self.scenario.rounding))

    def set_rounding(self, rounding: str) -> None:
        """Round to nearest, or toward zero.

        Raises:
            ValueError: if it is neither.
        """
        self._show(bits_of_number(self.scenario.asked, self._format, rounding=rounding))

    def step(self, up: bool) -> None:
        """Go to the format's next larger value, or to its next smaller one; at the end, stay."""
        there = self.scenario.above if up else self.scenario.below
        if there is not None:
            self.set_number(there)

    def figure(self) -> Picture:
        """The number in all formats as a static picture, for pages where no kernel runs."""
        return draw_bits(self.scenario)

    def __repr__(self) -> str:
        """One line, as the widget's text alternative."""
        return f"BitExplorer({summary(self.scenario)})"

    @property
    def _format(self) -> str:
        return self.scenario.chosen.format.name

    def _show(self, scenario: BitScenario) -> None:
        self.scenario = scenario
        self.scene = scene_of(scenario)

    def _hear(self, _: Any, message: dict[str, Any], __: Any) -> None:
        """What was clicked or typed in the browser."""
        actions: dict[str, Callable[[Any], None]] = {
            "toggle": self.toggle, "format": self.choose, "rounding": self.set_rounding, "step": self.step,
            "type": lambda text: self.set_number(read_number(text)),
            "number": lambda name: self.set_number(interesting_numbers(self._format)[name]),
        }  # fmt: skip
        try:
            actions[message["action"]](message["value"])
        except ValueError as error:
            self.scene = self.scene | {"message": str(error)}


def scene_of(scenario: BitScenario) -> dict[str, Any]:
    """All that the browser shows, as texts."""
    chosen = scenario.chosen
    return {
        "format": chosen.format.name, "formats": list(FORMATS), "rounding": scenario.rounding,
        "roundings": list(ROUNDINGS), "asked": number_text(scenario.asked), "message": "",
        "numbers": list(interesting_numbers(chosen.format.name)),
        "fields": [vars(field) | {"note": _note(chosen, field.name)} for field in bit_fields(chosen)],
        "formula": formula(chosen), "value": number_text(chosen.value), "kind": chosen.kind,
        "error": _error_text(scenario.asked, chosen),
        "below": _next_text(scenario.below), "above": _next_text(scenario.above),
        "rows": [_row(scenario, number) for number in scenario.rows],
    }  # fmt: skip


def formula(number: Number) -> list[tuple[str, str]]:
    """The value as (text, class) pieces: (−1)^s · 2^(e − bias) · 1.m, in the colours of the fields."""
    if number.kind == "nan":
        return [("all ones in the exponent" if number.format.specials == "ieee" else "all bits one", "exponent"),
                (": not a number", "")]  # fmt: skip
    sign = [(f"({_MINUS}1)", ""), (str(number.sign), "sup sign"), (" · ", "")] if number.format.signed else []
    if number.kind == "infinity":
        return [*sign, ("∞", "exponent")]
    power, factor = significand(number)
    field = "1" if number.kind in ("subnormal", "zero") else str(number.exponent)
    pieces = [*sign, ("2", ""), (f"{field}{_MINUS}{number.format.bias}", "sup exponent")]
    if number.format.mantissa_bits:
        pieces += [(" · ", ""), (number_text(factor), "mantissa")]
    shown = number_text(2.0**power) if power > -1000 else f"2^{power}"
    pieces += [(f" = {_MINUS if number.sign else ''}{shown}", "")]
    return [*pieces, (f" · {number_text(factor)}", "")] if number.format.mantissa_bits else pieces


def summary(scenario: BitScenario) -> str:
    """What the formats make of the number, in one line."""
    rows = "; ".join(f"{row.format.name} {_value_text(row)}" for row in scenario.rows)
    bits = " ".join(field.bits for field in bit_fields(scenario.chosen))
    return f"{number_text(scenario.asked)} in {scenario.chosen.format.name}: {bits}. {rows}."


def draw_bits(scenario: BitScenario) -> Picture:
    """Rows of coloured bits, the value and the relative error beside them."""
    picture = Picture(summary(scenario), figsize=(9.4, 0.3 * len(scenario.rows) + 0.5))
    axes = picture.subplots()
    axes.set(xlim=(-9, 106), ylim=(len(scenario.rows), -1.2))
    axes.set_axis_off()
    for text, x, side in ((f"{number_text(scenario.asked)} in", -1, "right"), ("value", 66, "left"),
                          ("relative error", 106, "right")):  # fmt: skip
        axes.text(x, -0.75, text, ha=side, va="center", fontsize=8, color=palette.GREY)
    for place, row in enumerate(scenario.rows):
        weight = "bold" if row.format == scenario.chosen.format else "normal"
        axes.text(-1, place, row.format.name, ha="right", va="center", fontsize=8, weight=weight)
        axes.text(66, place, _value_text(row), va="center", fontsize=8)
        if row.number is None:
            continue
        for field in bit_fields(row.number):
            for offset, bit in enumerate(field.bits):
                look = {"facecolor": COLOURS[field.name], "alpha": 1.0 if bit == "1" else 0.22}
                axes.add_patch(_square(field.first + offset, place, **look))
        axes.text(106, place, _relative_text(scenario.asked, row.number), ha="right", va="center", fontsize=8)
    return picture


def number_text(value: float) -> str:
    """The shortest decimal that names this number, with a true minus sign."""
    if math.isnan(value):
        return "NaN"
    text = "∞" if math.isinf(value) else repr(abs(float(value))).removesuffix(".0")
    sign = _MINUS if math.copysign(1, value) < 0 else ""
    return sign + text.replace("e-", f"e{_MINUS}").replace("e+", "e")


def _square(x: float, y: float, **look: Any) -> Any:
    from matplotlib.patches import Rectangle  # here: it is needed for pictures only

    return Rectangle((x + 0.06, y - 0.36), 0.88, 0.72, linewidth=0, **look)


def _row(scenario: BitScenario, row: FormatRow) -> dict[str, Any]:
    if row.number is None:
        return {"name": row.format.name, "fields": [], "value": row.refusal, "error": "", "relative": ""}
    return {
        "name": row.format.name,
        "fields": [{"name": field.name, "bits": field.bits} for field in bit_fields(row.number)],
        "value": _value_text(row), "error": _error_text(scenario.asked, row.number),
        "relative": _relative_text(scenario.asked, row.number),
    }  # fmt: skip


def _value_text(row: FormatRow) -> str:
    return row.refusal if row.number is None else number_text(row.number.value)


def _note(number: Number, field: str) -> str:
    """What a field says."""
    if field == "sign":
        return "minus" if number.sign else "plus"
    if field == "exponent":
        said = {"zero": "zero", "subnormal": "subnormal", "infinity": "∞", "nan": "NaN"}.get(number.kind)
        return f"{number.exponent}" + (f": {said}" if said else f" {_MINUS} {number.format.bias}")
    return f"{number.mantissa} / {1 << number.format.mantissa_bits}"


def _error_text(asked: float, number: Number) -> str:
    if number.format.name == "fp64":  # a typed 0.1 is already rounded to 64 bits
        return "reference"
    if math.isnan(number.error):
        return "" if number.value == asked or math.isnan(asked) else "lost"
    return f"{number.error:+.2e}".replace("-", _MINUS) if number.error else "exact"


def _relative_text(asked: float, number: Number) -> str:
    if asked == 0 or number.format.name == "fp64" or math.isnan(number.error):
        return ""
    return f"{abs(number.error / asked):.2g}" if number.error else "0"


def _next_text(value: float | None) -> str:
    return "" if value is None else number_text(value)

