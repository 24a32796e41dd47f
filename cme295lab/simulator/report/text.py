"""A report as plain text."""

from __future__ import annotations

from collections.abc import Sequence

from cme295lab.simulator.report.facts import Facts, KernelFacts, LineFacts, Traffic
from cme295lab.units import format_bytes, format_flops, format_rate

_SOURCE_WIDTH = 100
HEAD = ("tensor", "dtype", "shape", "requested", "through L2", "L2 hits", "DRAM read", "DRAM written", "distinct")
"""Columns of the table of tensors."""


def as_text(facts: Facts) -> str:
    """All sections, one below the other."""
    if not facts.kernels:
        return f"empty trace ({facts.device.name}): nothing was launched"
    parts = [head(facts), *(_kernel(facts, k) for k in facts.kernels)]
    if facts.problems is not None:
        parts.append(_problems(facts))
    return "\n\n".join(parts)


def head(facts: Facts) -> str:
    """The summary of all launches, in one line."""
    t = facts.traffic
    return (
        f"{_launches(facts.num_launches)} on {facts.device.name}: {format_bytes(t.requested_bytes)} requested, "
        f"{format_bytes(t.l2_bytes)} through L2, {format_bytes(t.dram_bytes)} DRAM, "
        f"{format_bytes(t.distinct_bytes)} distinct\n{facts.roofline}"
    )


def title(k: KernelFacts) -> str:
    """Name, grid, constants and how often."""
    constants = ", ".join(f"{n}={v}" for n, v in k.constants.items())
    times = f", {k.num_launches} launches summed" if k.num_launches > 1 else ""
    return f"{k.kernel}[{'×'.join(map(str, k.grid))}]" + (f" ({constants})" if constants else "") + times


def tensor_rows(k: KernelFacts) -> list[tuple[str, ...]]:
    """The table of tensors, with a last row for all together."""
    rows = [(t.name, t.dtype, "×".join(map(str, t.shape)), *_cells(t.traffic)) for t in k.tensors]
    return [*rows, ("all", "", "", *_cells(k.traffic))]


def _cells(t: Traffic) -> tuple[str, ...]:
    numbers = (t.requested_bytes, t.l2_bytes, t.l2_hit_bytes, t.dram_read_bytes, t.dram_written_bytes, t.distinct_bytes)
    return tuple(map(format_bytes, numbers))


def flops_text(k: KernelFacts) -> str:
    """FLOPs by kind."""
    return (
        f"{format_flops(k.flops)}: {format_flops(k.dot_flops)} in tl.dot, {format_flops(k.other_flops)} other, "
        f"{format_flops(k.transcendental_ops)} transcendental"
    )


def held_text(facts: Facts, k: KernelFacts) -> str:
    """On-chip bytes."""
    held, available = (format_bytes(n, binary=True) for n in (k.sram_peak_bytes, facts.device.on_chip_bytes_per_sm))
    return f"one program holds up to {held}; an SM has {available}"


def model_text(k: KernelFacts) -> str:
    """What the cache model assumes."""
    return f"cache model: cold at each launch, {k.programs_at_a_time} programs at a time ({k.ctas_per_sm} per SM)"


def efficiency_text(line: LineFacts) -> str:
    """ "25 %" of the bytes moved were asked for; "" for a line that moves nothing."""
    return "" if line.sector_efficiency is None else f"{100 * line.sector_efficiency:.3g} %"


def compiled_text(line: LineFacts) -> str:
    """ "4 × load 16 B": what one thread does."""
    return ", ".join(f"{n} × {what}" for what, n in (line.compiled or {}).items())


def _kernel(facts: Facts, k: KernelFacts) -> str:
    t = k.traffic
    hierarchy = (
        f"memory: SMs ← {format_bytes(t.l2_read_bytes)} ← L2 ({format_bytes(facts.device.l2_bytes, binary=True)}) ← "
        f"{format_bytes(t.dram_read_bytes)} ← DRAM at {format_rate(facts.device.bandwidth_bytes_per_s, 'B/s')}; "
        f"SMs → {format_bytes(t.l2_written_bytes)} → L2 → {format_bytes(t.dram_written_bytes)} → DRAM"
    )
    parts = [
        title(k), _table([HEAD, *tensor_rows(k)], 3), hierarchy, model_text(k), flops_text(k), held_text(facts, k),
        str(k.roofline), _listing(k), str(k.compiled) if k.compiled else k.compile_note,
    ]  # fmt: skip
    return "\n".join(p for p in parts if p)


def _listing(k: KernelFacts) -> str:
    busy = [x for x in k.lines if x.moved_bytes or x.sram_bytes]
    if not busy and not k.other_accesses:
        return ""
    rows: list[tuple[str, ...]] = [("line", "requested", "moved", "efficiency", "on chip", "source")]
    for x in busy:
        moved = (format_bytes(x.requested_bytes), format_bytes(x.moved_bytes)) if x.moved_bytes else ("", "")
        held = format_bytes(x.sram_bytes, binary=True) if x.sram_bytes else ""
        rows.append((str(x.line), *moved, efficiency_text(x), held, x.text.strip()[:_SOURCE_WIDTH]))
    others = [str(a) for a in k.other_accesses]
    return "\n".join([_table(rows, 0, last_left=True), *others])


def _problems(facts: Facts) -> str:
    assert facts.problems is not None
    if not facts.problems:
        return "no problems found: no races, no reads of undefined memory"
    return "\n".join(
        [
            f"{len(facts.problems)} problem{'s' if len(facts.problems) != 1 else ''}",
            *(f"  ! {p.message}" for p in facts.problems),
        ]
    )


def _launches(count: int) -> str:
    return f"{count} launch{'es' if count != 1 else ''}"


def _table(rows: Sequence[Sequence[str]], num_left: int, *, last_left: bool = False) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    left = {*range(num_left), *([len(widths) - 1] if last_left else [])}
    lines = (
        "  ".join(cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
        for row in rows
    )
    return "\n".join(f"  {line.rstrip()}" for line in lines)
