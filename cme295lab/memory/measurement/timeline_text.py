"""A timeline as text and as a card in a notebook: the peak, when it was, what it was made of."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from cme295lab.units import format_bytes

if TYPE_CHECKING:
    from cme295lab.memory.measurement.results import TimelineResults

_NUM_LARGEST = 5


def timeline_text(timeline: TimelineResults) -> str:
    """Peak, its classes and its largest storages, a line each."""
    rows = [("by class", *row) for row in _class_rows(timeline)] + [("largest", *row) for row in _largest(timeline)]
    width = max((len(name) for _, name, _ in rows), default=0)
    return "\n".join(
        [_headline(timeline), *(f"  {kind:<8}  {name:<{width}}  {format_bytes(size):>8}" for kind, name, size in rows)]
    )


def timeline_html(timeline: TimelineResults) -> str:
    """The same with a bar per line, that follows the notebook's light or dark theme."""
    whole = max(timeline.peak_bytes, 1)
    lines = "".join(
        _LINE.format(name=html.escape(name), size=format_bytes(size), share=f"{100 * size / whole:.1f}", kind=kind)
        for kind, rows in (("by class", _class_rows(timeline)), ("largest", _largest(timeline)))
        for name, size in rows
    )
    return _TABLE.format(title=html.escape(_headline(timeline)), lines=lines)


def _headline(timeline: TimelineResults) -> str:
    if timeline.peak_event < 0:
        return "MemoryTimeline: no tensor was seen"
    phase = timeline.events[timeline.peak_event].phase
    return (
        f"MemoryTimeline: peak {format_bytes(timeline.peak_bytes)} ({timeline.peak_bytes:,} bytes; phase: {phase}), "
        f"alive at the end {format_bytes(timeline.live_bytes)}"
    )


def _class_rows(timeline: TimelineResults) -> list[tuple[str, int]]:
    return list(timeline.peak.items())


def _largest(timeline: TimelineResults) -> list[tuple[str, int]]:
    """What holds most at the peak."""
    event = timeline.peak_event
    alive = sorted(timeline.alive_at(event).items(), key=lambda item: -item[1])
    return [(record.label(event), num_bytes) for record, num_bytes in alive[:_NUM_LARGEST] if num_bytes]


# Inline styles and inherited colours only: notebook pages strip <style> from outputs that they do not trust.
_TABLE = """\
<table style="border-collapse:collapse;font-size:13px"><caption style="text-align:left;font-weight:600;color:inherit">
{title}</caption>{lines}</table>"""
_LINE = """\
<tr style="background:none"><td style="text-align:left;padding:1px 10px 1px 0;opacity:.7">{kind}</td>
<td style="text-align:left;padding:1px 10px 1px 0">{name}</td>
<td style="text-align:right;padding:1px 10px 1px 0;font-variant-numeric:tabular-nums">{size}</td>
<td style="padding:1px 0"><div style="width:160px"><div
style="height:8px;border-radius:2px;background:#0072b2;width:{share}%"></div></div></td></tr>"""
