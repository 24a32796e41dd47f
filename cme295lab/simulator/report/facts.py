"""What a report says, as plain records: gathered from a trace once, shown as text, HTML or JSON.

Launches of a kernel with the same constants, grid and tensors are one entry, and their bytes are summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cme295lab.hardware import Device
from cme295lab.simulator import frontend
from cme295lab.simulator.compiler import CompileReport
from cme295lab.simulator.cost import AccessSummary, CacheReport, CacheTraffic, Roofline, one_after_another
from cme295lab.simulator.debug import Problem
from cme295lab.simulator.errors import SimulatorError
from cme295lab.simulator.records import Launch
from cme295lab.simulator.source import KernelSource, kernel_source


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes at each level of the memory hierarchy.

    Attributes:
        requested_read_bytes, requested_written_bytes: what programs ask for.
        l2_read_bytes, l2_written_bytes: whole sectors that loads (with atomics) and stores move between SMs and L2.
        l2_hit_bytes: of these, in sectors that L2 held already.
        dram_read_bytes, dram_written_bytes: between L2 and DRAM.
        distinct_bytes: each byte once per launch: what must cross the DRAM bus even with an unlimited cache.
    """

    requested_read_bytes: int = 0
    requested_written_bytes: int = 0
    l2_read_bytes: int = 0
    l2_written_bytes: int = 0
    l2_hit_bytes: int = 0
    dram_read_bytes: int = 0
    dram_written_bytes: int = 0
    distinct_bytes: int = 0

    @property
    def requested_bytes(self) -> int:
        return self.requested_read_bytes + self.requested_written_bytes

    @property
    def l2_bytes(self) -> int:
        return self.l2_read_bytes + self.l2_written_bytes

    @property
    def dram_bytes(self) -> int:
        return self.dram_read_bytes + self.dram_written_bytes

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(**{name: value + getattr(other, name) for name, value in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class TensorFacts:
    """A parameter of a kernel, and its traffic."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    traffic: Traffic


@dataclass(frozen=True, kw_only=True)
class LineFacts:
    """A line of source.

    Attributes:
        line, text: where it stands, and what it says.
        function: the jit function that it belongs to.
        requested_bytes, moved_bytes: of its loads, stores and atomics; moved are whole sectors.
        sram_bytes: block bytes that one program holds there; None where nothing was computed.
        compiled: accesses of one thread, as compiled: {"load 16 B": 4}.
    """

    line: int
    text: str
    function: str
    requested_bytes: int = 0
    moved_bytes: int = 0
    sram_bytes: int | None = None
    compiled: dict[str, int] | None = None

    @property
    def sector_efficiency(self) -> float | None:
        """Requested over moved bytes; None for a line that moves nothing."""
        return self.requested_bytes / self.moved_bytes if self.moved_bytes else None


@dataclass(frozen=True, kw_only=True)
class KernelFacts:
    """Launches of one kernel that are alike.

    Attributes:
        kernel, file: its name, and the file that it is in.
        num_launches, grid, constants, config: how it was launched.
        tensors, traffic: bytes by tensor, and all together.
        dot_flops, other_flops, transcendental_ops, sram_peak_bytes: as in `Launch`, the first three summed.
        programs_at_a_time, ctas_per_sm: what the cache model assumes.
        roofline: time bounds of all these launches.
        lines: the source, line by line; `other_accesses` are those in files that are not shown.
        compiled: the compile report, or None; compile_note says why there is none.
    """

    kernel: str
    file: str
    num_launches: int
    grid: tuple[int, int, int]
    constants: dict[str, str]
    config: str | None
    tensors: list[TensorFacts]
    traffic: Traffic
    dot_flops: int
    other_flops: int
    transcendental_ops: int
    sram_peak_bytes: int
    programs_at_a_time: int
    ctas_per_sm: int
    roofline: Roofline
    lines: list[LineFacts]
    other_accesses: list[AccessSummary]
    compiled: CompileReport | None
    compile_note: str

    @property
    def flops(self) -> int:
        return self.dot_flops + self.other_flops + self.transcendental_ops


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Everything that a report shows: the device, the kernels, all launches together, what a check found.

    `problems` is None if the trace did not check.
    """

    device: Device
    num_launches: int
    kernels: list[KernelFacts]
    traffic: Traffic
    sram_peak_bytes: int
    roofline: Roofline
    problems: list[Problem] | None


def gather(launches: Sequence[Launch], device: Device, *, compiled: bool, problems: Sequence[Problem] | None) -> Facts:
    """Work out all that a report says.

    Args:
        launches: of a trace.
        device: the GPU for the cache model, the roofline and the compiler.
        compiled: whether to compile the kernels, too.
        problems: what a check found; None without one.
    """
    groups: dict[Any, list[Launch]] = {}
    for launch in launches:
        groups.setdefault(_likeness(launch), []).append(launch)
    kernels = [_kernel(group, device, compiled) for group in groups.values()]
    return Facts(
        device=device,
        num_launches=len(launches),
        kernels=kernels,
        traffic=sum((k.traffic for k in kernels), Traffic()),
        sram_peak_bytes=max((k.sram_peak_bytes for k in kernels), default=0),
        roofline=one_after_another([x.roofline(device) for x in launches], device),
        problems=None if problems is None else list(problems),
    )


def _likeness(launch: Launch) -> Any:
    tensors = tuple((n, t.dtype, t.shape, t.strides) for n, t in launch.tensors.items())
    options = tuple(launch.launched.options.items()) if launch.launched else ()
    return launch.kernel, _source_key(launch), launch.grid, repr(launch.constants), launch.config, tensors, options


def _source_key(launch: Launch) -> Any:
    return frontend.kernel_function(launch.launched.kernel) if launch.launched else None


def _kernel(group: list[Launch], device: Device, compiled: bool) -> KernelFacts:
    first = group[0]
    caches = [launch.cache(device) for launch in group]
    tensors = [_tensor(name, group, caches) for name in first.tensors]
    report, note = _compile(first, device) if compiled else (None, "not compiled: asked for without")
    lines, others = _lines(group, report)
    return KernelFacts(
        kernel=first.kernel, file=_sources(first)[0].file if first.launched else "",
        num_launches=len(group), grid=first.grid, constants={n: str(v) for n, v in first.constants.items()},
        config=first.config, tensors=tensors, traffic=sum((t.traffic for t in tensors), Traffic()),
        dot_flops=sum(x.dot_flops for x in group), other_flops=sum(x.other_flops for x in group),
        transcendental_ops=sum(x.transcendental_ops for x in group),
        sram_peak_bytes=max(x.sram_peak_bytes for x in group),
        programs_at_a_time=min(caches[0].num_slots, first.num_programs), ctas_per_sm=caches[0].ctas_per_sm,
        roofline=one_after_another([x.roofline(device) for x in group], device),
        lines=lines, other_accesses=others, compiled=report, compile_note=note,
    )  # fmt: skip


def _compile(launch: Launch, device: Device) -> tuple[CompileReport | None, str]:
    try:
        return launch.compile_report(device), ""
    except SimulatorError as error:
        return None, f"not compiled: {error.message}"


def _tensor(name: str, group: list[Launch], caches: list[CacheReport]) -> TensorFacts:
    first = group[0].tensors[name]
    cached = sum((c.tensors[name] for c in caches), CacheTraffic())
    stored = sum(a.moved_bytes for x in group for a in x.accesses if a.tensor == name and a.kind == "store")
    return TensorFacts(
        name=name, dtype=first.dtype, shape=first.shape,
        traffic=Traffic(
            requested_read_bytes=sum(x.tensors[name].read_bytes for x in group),
            requested_written_bytes=sum(x.tensors[name].written_bytes for x in group),
            l2_read_bytes=cached.sector_bytes - stored, l2_written_bytes=stored, l2_hit_bytes=cached.l2_hit_bytes,
            dram_read_bytes=cached.dram_read_bytes, dram_written_bytes=cached.dram_written_bytes,
            distinct_bytes=sum(x.tensors[name].distinct_bytes for x in group),
        ),
    )  # fmt: skip


def _sources(launch: Launch) -> list[KernelSource]:
    """The kernel and the jit functions of the same file that it calls, in the order in which they are called."""
    if launch.launched is None:
        return []
    waiting = [frontend.kernel_function(launch.launched.kernel)]
    found: list[KernelSource] = []
    while waiting:
        source = kernel_source(waiting.pop(0))
        if source in found or (found and source.file != found[0].file):
            continue
        found.append(source)
        waiting += [frontend.kernel_function(f) for f in source.called_functions if frontend.is_own_kernel(f)]
    return found


def _lines(group: list[Launch], report: CompileReport | None) -> tuple[list[LineFacts], list[AccessSummary]]:
    """The source with what its lines do, and the accesses that are in none of them."""
    sources = _sources(group[0])
    shown = {(s.file, s.first_line + n) for s in sources for n in range(len(s.lines))}
    requested: dict[int, int] = {}
    moved: dict[int, int] = {}
    others = []
    for access in (a for launch in group for a in launch.accesses):
        if (access.file, access.line) in shown:
            requested[access.line] = requested.get(access.line, 0) + access.requested_bytes
            moved[access.line] = moved.get(access.line, 0) + access.moved_bytes
        else:
            others.append(access)
    held: dict[int, int] = {}
    for launch in group:
        for line, num_bytes in launch.sram_by_line.items():
            held[line] = max(held.get(line, 0), num_bytes)
    lines = [
        LineFacts(
            line=number, text=text, function=source.name, requested_bytes=requested.get(number, 0),
            moved_bytes=moved.get(number, 0), sram_bytes=held.get(number),
            compiled=report.accesses_by_line.get(number) if report else None,
        )
        for source in sources
        for number, text in enumerate(_dedented(source), source.first_line)
    ]  # fmt: skip
    return lines, others


def _dedented(source: KernelSource) -> list[str]:
    indent = min((len(x) - len(x.lstrip()) for x in source.lines if x.strip()), default=0)
    return [x[indent:].rstrip() for x in source.lines]
