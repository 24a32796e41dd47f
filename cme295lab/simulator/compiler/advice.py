"""What is wrong with a compiled kernel, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cme295lab.simulator.compiler.ir import Dot, SourceFacts
from cme295lab.simulator.compiler.lowered import Lowered
from cme295lab.units import format_bytes

if TYPE_CHECKING:
    from cme295lab.simulator.compiler.report import CompileReport

LOW_OCCUPANCY = 0.25  # below this there is advice
_WIDEST = 16  # bytes that a thread moves with one instruction
_NARROW = 8  # fewer than these deserve a word
_FEWEST_MULTIPLY_ADDS = 16  # in a loop, for it to look like a product written by hand
_WARP = 32


def warnings_for(report: CompileReport, facts: SourceFacts, accesses: Sequence[Lowered]) -> list[str]:
    """One sentence per problem: what it is, and what to do."""
    return [
        *_memory(report),
        *_spills(report),
        *_tensor_cores(report, facts),
        *_narrow(report, facts, accesses),
        *_pipeline(report),
    ]


def _memory(report: CompileReport) -> list[str]:
    limit, device = report.device.max_shared_bytes_per_block, report.device.name
    if not report.fits:
        needed, given = (format_bytes(n, binary=True) for n in (report.shared_bytes, limit))
        return [
            f"shared memory does not fit the device: {needed} needed, {given} a block on {device}: "
            f"take smaller tiles or fewer stages (num_stages={report.num_stages})"
        ]
    if report.occupancy < LOW_OCCUPANCY:
        share = f"{100 * report.occupancy:.3g} %"
        return [
            f"occupancy {share} limited by {report.limited_by}: {report.ctas_per_sm} thread block"
            f"{'s' if report.ctas_per_sm != 1 else ''} of {report.num_warps} warps on an SM; few warps hide little of "
            "the memory's latency"
        ]
    return []


def _spills(report: CompileReport) -> list[str]:
    if report.spill_store_bytes or report.spill_load_bytes:
        return [
            f"spills {report.spill_store_bytes} B (and loads {report.spill_load_bytes} B back) a thread: more values "
            f"than the {report.registers} registers hold; take smaller tiles or more warps "
            f"(num_warps={report.num_warps})"
        ]
    if report.stack_bytes:
        return [
            f"{report.stack_bytes} B of local memory a thread: an array is indexed by a value known only at run time"
        ]
    return []


def _tensor_cores(report: CompileReport, facts: SourceFacts) -> list[str]:
    if report.uses_tensor_cores:
        return []
    if facts.dots:
        return [f"no tensor cores: {_reason(facts.dots[0], report)}"]
    loop = report.main_loop
    multiply_adds = sum(i.base.startswith("FFMA") for i in loop.instructions) if loop else 0
    if facts.outer_products and multiply_adds >= _FEWEST_MULTIPLY_ADDS:
        return ["no tensor cores: the loop multiplies and adds tiles element by element; write the product as tl.dot"]
    return []


def _reason(dot: Dot, report: CompileReport) -> str:
    where = f"tl.dot{f' in line {dot.place[1]}' if dot.place else ''}"
    if dot.dtype == "f32" and dot.precision == "ieee":
        return (
            f'{where} on fp32 with input_precision "ieee" runs on the ordinary cores; "tf32" (10 bits of mantissa) or '
            "16-bit operands use tensor cores"
        )
    return f"the compiler found none for {where} on {dot.dtype} operands on {report.device.name}"


def _narrow(report: CompileReport, facts: SourceFacts, accesses: Sequence[Lowered]) -> list[str]:
    """Loads and stores that move fewer bytes a thread than the tile would give it."""
    found = []
    threads = report.num_warps * _WARP
    for tile in facts.tiles:
        widths = [a.width for a in accesses if a.kind == tile.kind and a.place == tile.place]
        possible = min(_WIDEST, tile.num_bytes // threads)
        if tile.place and widths and min(widths) < min(possible, _NARROW):
            text = report.line_text(tile.place)
            found.append(
                f"narrow: {tile.kind}s of {min(widths)} B per thread in line {tile.place[1]}"
                f"{f' ({text})' if text else ''}, where {possible} B are possible: the compiler does not know that "
                "neighbours in the tile are neighbours in memory, and aligned (a stride that is not 1, a size that is "
                "not divisible by 16), or tl.dot wants the tile transposed"
            )
    return list(dict.fromkeys(found))


def _pipeline(report: CompileReport) -> list[str]:
    loop = report.main_loop
    if loop is None or "tensor cores" not in loop.mix:
        return []
    waiting = loop.mix.get("global loads", 0)
    if waiting and not loop.mix.get("async copies") and not loop.mix.get("TMA"):
        return [
            "not pipelined: the main loop waits for its loads (no cp.async or TMA); take num_stages of 2 or more"
            f" (now {report.num_stages}), and loads of at least 4 B per thread"
        ]
    return []
