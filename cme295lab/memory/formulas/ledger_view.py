"""A ledger as text and as a table in a notebook."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from cme295lab.units import format_bytes

if TYPE_CHECKING:
    from cme295lab.memory.formulas.ledger import LedgerRow, MemoryLedger


def as_text(ledger: MemoryLedger) -> str:
    """A table, a class after the other, with the total at the end."""
    rows = [(row.name, format_bytes(row.num_bytes), row.formula) for row in ledger.rows]
    rows.append((f"peak (at: {ledger.moment})", format_bytes(ledger.total_bytes), ""))
    name_width, size_width = (max(len(row[column]) for row in rows) for column in (0, 1))
    lines = [ledger.title]
    lines += [f"  {name:<{name_width}}  {size:>{size_width}}  {formula}".rstrip() for name, size, formula in rows]
    return "\n".join(lines)


def as_html(ledger: MemoryLedger) -> str:
    """A table with a bar per line, that follows the notebook's light or dark theme."""
    largest = max(row.num_bytes for row in ledger.rows)
    lines = "".join(_line(row, 100 * row.num_bytes / largest) for row in ledger.rows)
    return _TABLE.format(
        title=html.escape(ledger.title), lines=lines, total=format_bytes(ledger.total_bytes),
        moment=html.escape(ledger.moment),
    )  # fmt: skip


def _line(row: LedgerRow, share: float) -> str:
    return _LINE.format(
        memory_class=html.escape(row.memory_class), name=html.escape(row.name), size=format_bytes(row.num_bytes),
        formula=html.escape(row.formula), source=html.escape(row.source), share=f"{share:.1f}",
    )  # fmt: skip


# Inline styles and inherited colours only: notebook pages strip <style> from outputs that they do not trust.
_TABLE = """\
<table style="border-collapse:collapse;font-size:13px"><caption style="text-align:left;font-weight:600;color:inherit">
{title}</caption>{lines}
<tr style="background:none;border-top:1px solid rgba(128,128,128,.6)"><td></td><td style="text-align:left">
peak (at: {moment})</td><td style="text-align:right;font-weight:600">{total}</td><td></td><td></td></tr></table>"""
_LINE = """\
<tr style="background:none"><td style="text-align:left;padding:1px 10px 1px 0;opacity:.7">{memory_class}</td>
<td style="text-align:left;padding:1px 10px 1px 0">{name}</td>
<td style="text-align:right;padding:1px 10px 1px 0;font-variant-numeric:tabular-nums">{size}</td>
<td style="padding:1px 10px 1px 0"><div style="width:110px"><div
style="height:8px;border-radius:2px;background:#0072b2;width:{share}%"></div></div></td>
<td style="text-align:left;padding:1px 0;opacity:.7" title="{source}">{formula}</td></tr>"""
