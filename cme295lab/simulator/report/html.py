"""A report as HTML: inline styles and SVG, no scripts, no files from elsewhere; colours follow the page."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape

from cme295lab import palette
from cme295lab.simulator.compiler.views import UNWRAPPED
from cme295lab.simulator.compiler.views import as_html as compile_html
from cme295lab.simulator.report import diagrams
from cme295lab.simulator.report.facts import Facts, KernelFacts, LineFacts
from cme295lab.simulator.report.text import (
    HEAD,
    compiled_text,
    efficiency_text,
    flops_text,
    head,
    held_text,
    model_text,
    tensor_rows,
    title,
)
from cme295lab.units import format_bytes

_LOW_EFFICIENCY = 0.5
_BAR = 6  # characters of the longest bar
_BORDER = "1px solid var(--jp-border-color2, rgba(128,128,128,.4))"
_MONOSPACE = "font-family:var(--jp-code-font-family, ui-monospace, monospace);font-size:12px"
_NUMBER = "text-align:right;padding:1px 8px;white-space:nowrap;font-variant-numeric:tabular-nums"
_WORD = "text-align:left;padding:1px 8px;white-space:nowrap"


def page(facts: Facts, *, code: bool = False) -> str:
    """The whole report.

    Args:
        facts: what it says.
        code: with machine code and PTX, folded.
    """
    if not facts.kernels:
        return f"<p>empty trace ({escape(facts.device.name)}): nothing was launched</p>"
    parts = [_summary(facts)]
    if facts.problems is not None:
        parts.append(_problems(facts))
    parts += [_kernel(facts, k, number, code) for number, k in enumerate(facts.kernels, 1)]
    return f"<div style='max-width:980px;font-size:13px;line-height:1.45'>{''.join(parts)}</div>"


def _summary(facts: Facts) -> str:
    words = "".join(f"<div>{escape(row)}</div>" for row in head(facts).splitlines())
    legend = ""
    if len(facts.kernels) > 1:
        items = "".join(f"<li>{escape(title(k))}</li>" for k in facts.kernels)
        legend = f"<ol style='margin:4px 0'>{items}</ol>{diagrams.roofline_chart(facts.device, facts.kernels)}"
    return f"<div style='font-size:14px'>{words}</div>{legend}"


def _problems(facts: Facts) -> str:
    assert facts.problems is not None
    if not facts.problems:
        return _note(palette.GREEN, "No problems found", "no races, no reads of undefined memory")
    count = len(facts.problems)
    items = "".join(
        f"<li><pre style='margin:0;white-space:pre-wrap;{_MONOSPACE}'>{escape(p.message)}</pre></li>"
        for p in facts.problems
    )
    words = f"<ol style='margin:4px 0'>{items}</ol>"
    return _note(palette.VERMILLION, f"{count} problem{'s' if count != 1 else ''}", words, escaped=True)


def _note(colour: str, name: str, words: str, *, escaped: bool = False) -> str:
    body = words if escaped else escape(words)
    return (
        f"<div style='border-left:4px solid {colour};padding:2px 0 2px 10px;margin:8px 0'>"
        f"<b>{escape(name)}</b>: {body}</div>"
    )


def _kernel(facts: Facts, k: KernelFacts, number: int, code: bool) -> str:
    counter = f"{number}. " if len(facts.kernels) > 1 else ""
    charts = [
        _chart("Roofline", diagrams.roofline_chart(facts.device, [k])),
        _chart("On chip, line by line", diagrams.on_chip_chart(k.lines, facts.device.on_chip_bytes_per_sm)),
    ]
    compiled = compile_html(k.compiled, code=code) if k.compiled else f"<p>{escape(k.compile_note)}</p>"
    config = f"<div>autotuner's configuration: {escape(k.config)}</div>" if k.config else ""
    return (
        f"<section style='border-top:{_BORDER};margin-top:14px;padding-top:8px'>"
        f"<div style='font-size:15px;font-weight:600;overflow-wrap:anywhere'>{counter}{escape(title(k))}</div>{config}"
        f"{_tensors(k)}{diagrams.hierarchy(facts.device, k)}"
        f"<div style='opacity:.75'>{escape(model_text(k))}</div>"
        f"<div>{escape(flops_text(k))}; {escape(held_text(facts, k))}</div>"
        f"<div>{escape(str(k.roofline))}</div>"
        f"<div style='display:flex;flex-wrap:wrap;gap:8px 24px'>{''.join(charts)}</div>"
        f"{_listing(k)}{_others(k)}{_heading('Compiled')}{compiled}</section>"
    )


def _heading(words: str) -> str:
    return f"<div style='font-weight:600;margin:10px 0 2px'>{escape(words)}</div>"


def _chart(name: str, drawn: str) -> str:
    return f"<div style='flex:1 1 320px;max-width:440px'>{_heading(name)}{drawn}</div>" if drawn else ""


def _row(cells: Iterable[str], num_words: int, tag: str = "td", style: str = "") -> str:
    made = (
        f"<{tag} style='{_WORD if n < num_words else _NUMBER}'>{escape(cell)}</{tag}>" for n, cell in enumerate(cells)
    )
    return f"<tr style='background:none{style}'>{''.join(made)}</tr>"


def _tensors(k: KernelFacts) -> str:
    *rows, total = tensor_rows(k)
    body = "".join(_row(r, 3) for r in rows) + _row(total, 3, style=f";border-top:{_BORDER};font-weight:600")
    return (
        "<div style='overflow-x:auto'><table style='border-collapse:collapse;margin:6px 0;font-size:13px'>"
        f"<thead>{_row(HEAD, 3, 'th')}</thead><tbody>{body}</tbody></table></div>"
    )


def _listing(k: KernelFacts) -> str:
    """The source as preformatted text: cells of a table would need a style each."""
    shown = _from_first_fact(k.lines)
    if not shown:
        return ""
    widest = max((x.sram_bytes or 0 for x in shown), default=0)
    names = f"{'line':>5}{'requested':>11}{'moved':>10}{'efficiency':>12}{'on chip':>11}{'':<{_BAR + 2}}"
    width = max(len("compiled"), *(len(compiled_text(x)) for x in shown)) + 2
    rows = "\n".join(_line(x, widest, width) for x in shown)
    return (
        f"<details open><summary style='font-weight:600;margin-top:8px'>Source ({escape(k.file)}): bytes requested and "
        "moved by all programs, on-chip bytes of one program, accesses of one thread</summary>"
        f"<pre style='max-height:36em;overflow:auto;margin:4px 0;line-height:1.35;{UNWRAPPED};{_MONOSPACE}'>"
        f"<b>{names}{'compiled':<{width}}source</b>\n{rows}</pre></details>"
    )


def _from_first_fact(lines: list[LineFacts]) -> list[LineFacts]:
    """Each function from the first line that does something: signatures and docstrings say nothing here."""
    begun: set[str] = set()
    shown = []
    for x in lines:
        if x.moved_bytes or x.sram_bytes or x.compiled:
            begun.add(x.function)
        if x.function in begun or x.text.startswith("def "):
            shown.append(x)
    return shown


def _line(x: LineFacts, widest: int, width: int) -> str:
    requested, moved = (format_bytes(x.requested_bytes), format_bytes(x.moved_bytes)) if x.moved_bytes else ("", "")
    efficiency = f"{efficiency_text(x):>12}"
    if x.sector_efficiency is not None and x.sector_efficiency < _LOW_EFFICIENCY:
        efficiency = f"<b style='border-bottom:2px solid {palette.VERMILLION}'>{efficiency}</b>"
    held = format_bytes(x.sram_bytes, binary=True) if x.sram_bytes else ""
    bar = "█" * math.ceil(_BAR * (x.sram_bytes or 0) / widest) if widest else ""
    filled = f"<span style='color:{palette.SKY}'>{bar}</span>" if bar else ""
    return (
        f"{x.line:>5}{requested:>11}{moved:>10}{efficiency}{held:>11} {filled}{' ' * (_BAR + 1 - len(bar))}"
        f"{escape(compiled_text(x)):<{width}}{escape(x.text)}"
    )


def _others(k: KernelFacts) -> str:
    if not k.other_accesses:
        return ""
    items = "".join(f"<li>{escape(str(a))}</li>" for a in k.other_accesses)
    return f"{_heading('Accesses in other files')}<ul style='margin:0'>{items}</ul>"
