"""A compile report as text and as HTML."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cme295lab.units import format_bytes, format_flops

if TYPE_CHECKING:
    from cme295lab.simulator.compiler.report import CompileReport

UNWRAPPED = "white-space:pre;word-break:normal"  # notebooks wrap preformatted text otherwise
_LABEL = "text-align:left;vertical-align:top;opacity:.75;white-space:nowrap;padding:1px 14px 1px 0"
_MEANING = {"LDG": "to registers", "LDGSTS": "cp.async", "UTMALDG": "TMA", "UTMASTG": "TMA"}


def rows(report: CompileReport) -> list[tuple[str, str]]:
    """Label and text of each line of the report, without the warnings."""
    shared, limit = (
        format_bytes(n, binary=True) for n in (report.shared_bytes, report.device.max_shared_bytes_per_block)
    )
    others = ", ".join(f"{name} {n}" for name, n in report.ctas_by_resource.items())
    spilled = f"{report.spill_store_bytes} B stored, {report.spill_load_bytes} B loaded a thread"
    made = [
        ("registers", f"{report.registers} a thread"),
        ("spills", spilled if report.spill_store_bytes or report.spill_load_bytes else "none"),
        ("shared memory", f"{shared} of {limit} a block ({'fits' if report.fits else 'does not fit'})"),
        ("thread blocks per SM", f"{report.ctas_per_sm}, limited by {report.limited_by} (each alone: {others})"),
        ("occupancy", f"{100 * report.occupancy:.3g} %"),
        ("tensor cores", _counts(report.tensor_core_instructions) or "none"),
        ("global loads", _accesses(report.loads_by_width) or "none"),
        ("global stores", _accesses(report.stores_by_width) or "none"),
        ("on-chip memory", _counts(report.shared_memory_ops) or "not used"),
        ("instructions", f"{sum(report.instruction_mix.values())}: {_counts(report.instruction_mix)}"),
    ]
    return made + _loop_rows(report)


def _loop_rows(report: CompileReport) -> list[tuple[str, str]]:
    loop = report.main_loop
    if loop is None:
        return [("main loop", "none")]
    made = [("main loop", f"{loop.num_instructions} instructions: {_counts(loop.mix)}")]
    if loop.loads_by_width:
        loaded = f" ({format_bytes(loop.loaded_bytes, binary=True)} a pass)" if loop.loaded_bytes else ""
        made.append(("loads in the loop", f"{_accesses(loop.loads_by_width)}{loaded}"))
    flops = loop.flops_per_iteration
    if flops:
        several = f"; a pass does {loop.iterations} times this (unrolled, or warps repeat each other on a small tile)"
        unrolled = several if (loop.iterations or 1) > 1 else ""
        agrees = f" (tl.dot in the source: {format_flops(loop.source_dot_flops)})" if loop.source_dot_flops else ""
        made.append(
            (
                "products an iteration" if loop.tensor_core_flops else "fp32 an iteration",
                f"{format_flops(flops)}{agrees}{unrolled}",
            )
        )
    return made


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {name}" for name, n in counts.items())


def _accesses(counts: Mapping[str, int]) -> str:
    """ "8 LDGSTS (cp.async) of 16 B"."""
    texts = []
    for key, n in counts.items():
        opcode, _, width = key.partition(" ")
        meaning = f" ({_MEANING[opcode]})" if opcode in _MEANING else ""
        texts.append(f"{n} {opcode}{meaning}" + (f" of {width}" if width else ""))
    return ", ".join(texts)


def title(report: CompileReport) -> str:
    """The head line."""
    return (
        f"{report.kernel} for {report.device.name} (sm_{report.device.compute_capability}), "
        f"{_number(report.num_warps, 'warp')}, {_number(report.num_stages, 'stage')}"
    )


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count != 1 else ''}"


def as_text(report: CompileReport) -> str:
    """A table, and the warnings below it."""
    lines = rows(report)
    width = max(len(label) for label, _ in lines)
    notes = [f"  ! {w}" for w in report.warnings] or ["  nothing to complain about"]
    return "\n".join([title(report), *(f"  {label:<{width}}  {text}" for label, text in lines), *notes])


def as_html(report: CompileReport, *, code: bool = True) -> str:
    """A compact table, the warnings, and (with `code`) the assembly behind a fold."""
    body = "".join(
        f"<tr style='background:none'><td style='{_LABEL}'>{label}</td>"
        f"<td style='text-align:left;padding:1px 0'>{html.escape(text)}</td></tr>"
        for label, text in rows(report)
    )
    notes = "".join(f"<li>{html.escape(w)}</li>" for w in report.warnings)
    advice = (
        f"<div style='border-left:4px solid #D55E00;padding:2px 0 2px 10px;margin:6px 0'><b>Warnings</b>"
        f"<ul style='margin:0'>{notes}</ul></div>"
        if notes
        else ""
    )
    folds = ""
    if code:
        folds = "".join(
            f"<details><summary>{name}: {text.count(chr(10))} lines</summary><pre style='max-height:24em;overflow:auto;"
            f"font-size:11px;{UNWRAPPED}'>{html.escape(text)}</pre></details>"
            for name, text in (("SASS", report.sass), ("PTX", report.ptx))
        )
    return (
        f"<div style='max-width:920px;font-size:13px'><div style='font-weight:600'>{html.escape(title(report))}</div>"
        f"{advice}<table style='margin:4px 0;border-collapse:collapse;font-size:13px'>{body}</table>{folds}</div>"
    )
