"""The operations of a model as a table: a row per operator, what forward, backward and recomputation take.

`model_flops` are what the mathematics asks for, `hardware_flops` what the GPU executes: they differ by what is computed
a second time. MFU is about the first, HFU about the second.
"""

from __future__ import annotations

import html
from dataclasses import dataclass, field, replace
from typing import Literal

from cme295lab.pretraining.flops.quantities import FlopCount, whole
from cme295lab.units import format_flops

Part = Literal["attention", "mlp", "head", "embedding"]
"""Of the model; "attention" is its projections and its core."""


@dataclass(frozen=True, kw_only=True)
class FlopRow:
    """Operations of one operator, all layers together; a multiply-add is two.

    Attributes:
        part: of the model.
        operator: what is multiplied.
        forward: FLOP of the forward pass.
        backward: FLOP of the backward pass: gradients of both factors, so twice as many.
        recomputed: FLOP that are executed once more in the backward pass.
        formula: of the forward pass, for one token and layer.
    """

    part: Part
    operator: str
    forward: int
    backward: int
    recomputed: int = 0
    formula: str = ""

    @property
    def model_flops(self) -> int:
        """Forward and backward."""
        return self.forward + self.backward

    @property
    def hardware_flops(self) -> int:
        """Forward, backward and what is computed again."""
        return self.model_flops + self.recomputed


@dataclass(frozen=True, kw_only=True)
class FlopBreakdown:
    """Operations of a model, by operator; it draws itself.

    Attributes:
        title: of the table.
        rows: an operator each.
        num_tokens: tokens that they are for.
        notes: what was counted, and how.
    """

    title: str
    rows: tuple[FlopRow, ...]
    num_tokens: int = 1
    notes: tuple[str, ...] = field(default=())

    @property
    def forward(self) -> int:
        """FLOP of the forward pass."""
        return sum(row.forward for row in self.rows)

    @property
    def backward(self) -> int:
        """FLOP of the backward pass, without recomputation."""
        return sum(row.backward for row in self.rows)

    @property
    def recomputed(self) -> int:
        """FLOP that are executed once more."""
        return sum(row.recomputed for row in self.rows)

    @property
    def model_flops(self) -> int:
        """Forward and backward: what MFU counts."""
        return self.forward + self.backward

    @property
    def hardware_flops(self) -> int:
        """All that is executed: what HFU counts."""
        return self.model_flops + self.recomputed

    @property
    def total(self) -> int:
        """The same as `model_flops`, exactly."""
        return self.model_flops

    def by_part(self) -> dict[str, int]:
        """Model FLOP of attention, MLP, head and embedding; parts without any are left out."""
        parts: dict[str, int] = {}
        for row in self.rows:
            parts[row.part] = parts.get(row.part, 0) + row.model_flops
        return {part: num_flops for part, num_flops in parts.items() if num_flops}

    def times(self, num_tokens: int) -> FlopBreakdown:
        """The same for so many times the tokens.

        Raises:
            TypeError, ValueError: if that is no positive integer.
        """
        n = whole("num_tokens", num_tokens)
        rows = tuple(
            replace(row, forward=n * row.forward, backward=n * row.backward, recomputed=n * row.recomputed)
            for row in self.rows
        )
        return replace(self, rows=rows, num_tokens=n * self.num_tokens)

    def __str__(self) -> str:
        return "\n".join([self.title, *self._lines(), *(f"  {note}" for note in self.notes)])

    def _lines(self) -> list[str]:
        cells = [("", "forward", "backward", "again", "formula"), *(_cells(row) for row in self.rows)]
        cells.append(_cells(self._sum()))
        widths = [max(len(row[column]) for row in cells) for column in range(4)]
        return [
            f"  {name:<{widths[0]}}"
            + "".join(f"  {text:>{width}}" for text, width in zip(numbers, widths[1:], strict=True))
            + (f"  {formula}" if formula else "")
            for name, *numbers, formula in cells
        ]

    def _sum(self) -> FlopRow:
        name = f"all: {FlopCount(self.hardware_flops)}"
        return FlopRow(part="head", operator=name, forward=self.forward, backward=self.backward,
                       recomputed=self.recomputed)  # fmt: skip

    def _repr_html_(self) -> str:
        """A table with a bar per row, that follows the notebook's light or dark theme."""
        largest = max(row.hardware_flops for row in self.rows)
        lines = "".join(_html_line(row, 100 * row.hardware_flops / largest) for row in self.rows)
        notes = "<br>".join(html.escape(note) for note in self.notes)
        return _TABLE.format(title=html.escape(self.title), lines=lines, notes=notes, **_texts(self._sum()))


def _cells(row: FlopRow) -> tuple[str, ...]:
    texts = _texts(row)
    return row.operator, texts["forward"], texts["backward"], texts["recomputed"], row.formula


def _texts(row: FlopRow) -> dict[str, str]:
    texts = {name: format_flops(getattr(row, name)) for name in ("forward", "backward", "recomputed")}
    return {**texts, "operator": html.escape(row.operator), "formula": html.escape(row.formula)}


def _html_line(row: FlopRow, share: float) -> str:
    return _LINE.format(part=row.part, share=f"{share:.1f}", **_texts(row))


# Inline styles and inherited colours only: notebook pages strip <style> from outputs that they do not trust.
_TABLE = """\
<table style="border-collapse:collapse;font-size:13px"><caption style="text-align:left;font-weight:600;color:inherit">
{title}</caption>
<tr style="background:none"><th></th><th></th><th style="text-align:right">forward</th><th style="text-align:right">
backward</th><th style="text-align:right">again</th><th></th><th></th></tr>{lines}
<tr style="background:none;border-top:1px solid rgba(128,128,128,.6)"><td></td><td style="text-align:left">{operator}
</td><td style="text-align:right">{forward}</td><td style="text-align:right">{backward}</td>
<td style="text-align:right">{recomputed}</td><td></td><td style="text-align:left;opacity:.7">{notes}</td></tr></table>
"""
_NUMBER = "text-align:right;padding:1px 10px 1px 0;font-variant-numeric:tabular-nums"
_LINE = f"""\
<tr style="background:none"><td style="text-align:left;padding:1px 10px 1px 0;opacity:.7">{{part}}</td>
<td style="text-align:left;padding:1px 10px 1px 0">{{operator}}</td>
<td style="{_NUMBER}">{{forward}}</td><td style="{_NUMBER}">{{backward}}</td><td style="{_NUMBER}">{{recomputed}}</td>
<td style="padding:1px 10px 1px 0"><div style="width:110px"><div
style="height:8px;border-radius:2px;background:#0072b2;width:{{share}}%"></div></div></td>
<td style="text-align:left;padding:1px 0;opacity:.7">{{formula}}</td></tr>"""
