"""What a launch costs in memory traffic: per load instruction (coalescing), and per tensor through the cache."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cme295lab.hardware import Device, get_device
from cme295lab.simulator.cost.l2 import Atoms, Sectors, find_atoms, replay
from cme295lab.simulator.cost.log import AddressLog
from cme295lab.simulator.cost.schedule import ctas_that_fit, in_order
from cme295lab.simulator.cost.sectors import LINE_BYTES, SECTOR_BYTES, Touches, find_touches
from cme295lab.simulator.machine import AccessKind
from cme295lab.units import format_bytes


@dataclass(frozen=True, kw_only=True)
class AccessSummary:
    """One load, store or atomic of a kernel's source, over all programs.

    Attributes:
        kind, tensor: what it does, to which tensor.
        file, line, source: where it stands (in the function that contains it, if that is called by the kernel).
        executions: how often programs executed it.
        requested_bytes: of its active lanes.
        moved_bytes: 32 for each sector of each request; see `sectors` for the rules.
    """

    kind: AccessKind
    tensor: str
    file: str
    line: int
    source: str
    executions: int
    requested_bytes: int
    moved_bytes: int

    @property
    def sector_efficiency(self) -> float:
        """Requested over moved bytes: 1 if every byte of every sector is wanted, above 1 where lanes share one."""
        return self.requested_bytes / self.moved_bytes if self.moved_bytes else 1.0

    def __str__(self) -> str:
        return (
            f"{self.file}:{self.line}  {self.kind} {self.tensor}: {format_bytes(self.requested_bytes)} requested, "
            f"{format_bytes(self.moved_bytes)} moved ({self.sector_efficiency:.1%})  {self.source}"
        )


@dataclass(frozen=True, kw_only=True)
class CacheTraffic:
    """Bytes of one tensor at each level.

    Attributes:
        sector_bytes: reach the L2 cache, as whole sectors; an atomic counts once.
        l2_hit_bytes: of these, in sectors that were there already.
        dram_read_bytes: read from main memory, where loads and atomics did not find their sector.
        dram_written_bytes: written back to it, each dirty sector when its line is evicted or the launch ends.
    """

    sector_bytes: int = 0
    l2_hit_bytes: int = 0
    dram_read_bytes: int = 0
    dram_written_bytes: int = 0

    @property
    def dram_bytes(self) -> int:
        """Bytes that cross the main memory's bus."""
        return self.dram_read_bytes + self.dram_written_bytes

    def __add__(self, other: CacheTraffic) -> CacheTraffic:
        return CacheTraffic(
            sector_bytes=self.sector_bytes + other.sector_bytes,
            l2_hit_bytes=self.l2_hit_bytes + other.l2_hit_bytes,
            dram_read_bytes=self.dram_read_bytes + other.dram_read_bytes,
            dram_written_bytes=self.dram_written_bytes + other.dram_written_bytes,
        )


class HasCacheTraffic(ABC):
    """The figures of a `CacheTraffic` as attributes of whatever has one."""

    @abstractmethod
    def _cache_traffic(self) -> CacheTraffic:
        """What it has."""

    @property
    def sector_bytes(self) -> int:
        """Bytes that reach the L2 cache, as whole sectors of 32 bytes."""
        return self._cache_traffic().sector_bytes

    @property
    def l2_hit_bytes(self) -> int:
        """Bytes that reach the L2 cache, in sectors that it holds already."""
        return self._cache_traffic().l2_hit_bytes

    @property
    def dram_bytes(self) -> int:
        """Bytes that cross the main memory's bus, by the cache model of `cost.l2` with its default settings."""
        return self._cache_traffic().dram_bytes

    @property
    def dram_read_bytes(self) -> int:
        return self._cache_traffic().dram_read_bytes

    @property
    def dram_written_bytes(self) -> int:
        return self._cache_traffic().dram_written_bytes


@dataclass(frozen=True, kw_only=True)
class CacheReport(HasCacheTraffic):
    """A launch seen through the L2 cache of a GPU; `cost.l2` and `cost.schedule` state the model.

    Attributes:
        device: its name.
        ctas_per_sm: programs that an SM runs at a time.
        num_slots: programs that the GPU runs at a time.
        l2_bytes: capacity of the cache.
        tensors: traffic by parameter name.
        line_sample: 1, or R if one of R lines was followed and the figures are R times that (see `cost.l2`).
    """

    device: str
    ctas_per_sm: int
    num_slots: int
    l2_bytes: int
    tensors: Mapping[str, CacheTraffic]
    line_sample: int = 1

    @property
    def total(self) -> CacheTraffic:
        """All tensors together."""
        return sum(self.tensors.values(), CacheTraffic())

    def _cache_traffic(self) -> CacheTraffic:
        return self.total

    @property
    def hit_rate(self) -> float:
        """Share of the bytes that reach L2 which it held already."""
        total = self.total
        return total.l2_hit_bytes / total.sector_bytes if total.sector_bytes else 0.0

    def __str__(self) -> str:
        sample = f", one of {self.line_sample} lines followed" if self.line_sample > 1 else ""
        head = (
            f"{self.device}: L2 of {format_bytes(self.l2_bytes, binary=True)}, {self.num_slots} programs at a time "
            f"({self.ctas_per_sm} per SM){sample}; {self.hit_rate:.1%} hits, "
            f"{format_bytes(self.dram_bytes)} from and to DRAM"
        )
        width = max((len(name) for name in self.tensors), default=0)
        rows = [
            f"  {name:<{width}}  {format_bytes(t.sector_bytes):>8} in sectors  {format_bytes(t.l2_hit_bytes):>8} hit  "
            f"{format_bytes(t.dram_read_bytes):>8} read  {format_bytes(t.dram_written_bytes):>8} written back"
            for name, t in self.tensors.items()
        ]
        return "\n".join([head, *rows])


class LaunchCost:
    """The costs of one launch, worked out from its address log when they are first asked for."""

    def __init__(self, log: AddressLog, tensors: list[str], num_programs: int, sram_peak_bytes: int) -> None:
        self._log = log
        self._names = tensors
        self._num_programs = num_programs
        self._sram_peak_bytes = sram_peak_bytes
        self._reports: dict[tuple[int, int], dict[int, Sectors]] = {}

    @functools.cached_property
    def _touches(self) -> Touches:
        return find_touches(self._log, self._num_programs)

    @functools.cached_property
    def _atoms(self) -> Atoms:
        return find_atoms(self._touches)

    @functools.cached_property
    def _moved(self) -> np.ndarray:
        """Sectors moved by each instruction."""
        return self._per_instruction(self._touches.footprints.moved)

    def _per_instruction(self, of_footprint: np.ndarray) -> np.ndarray:
        touches = self._touches
        sums = np.zeros(len(self._log.instructions), np.int64)
        np.add.at(sums, touches.instruction, of_footprint[touches.footprint])
        return sums

    @functools.cached_property
    def accesses(self) -> list[AccessSummary]:
        """Each load, store and atomic of the source, by tensor-argument and line."""
        lanes, touches = self._per_instruction(self._touches.footprints.lanes), self._touches
        return [
            AccessSummary(
                kind=i.kind, tensor=i.tensor, file=i.file, line=i.line, source=i.source,
                executions=int(touches.executions[n]),
                requested_bytes=int(lanes[n]) * self._log.memories[i.tensor].element_bytes,
                moved_bytes=int(self._moved[n]) * SECTOR_BYTES,
            )
            for n, i in enumerate(self._log.instructions)
        ]  # fmt: skip

    def cache(self, device: str | Device, ctas_per_sm: int | None = None, l2_bytes: int | None = None) -> CacheReport:
        """The launch through the L2 cache of a device, or one of another size; see `Launch.cache`."""
        gpu = get_device(device)
        for name, value in (("ctas_per_sm", ctas_per_sm), ("l2_bytes", l2_bytes)):
            if value is not None and not value >= 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        ctas = ctas_that_fit(gpu, self._sram_peak_bytes) if ctas_per_sm is None else ctas_per_sm
        size = gpu.l2_bytes if l2_bytes is None else l2_bytes
        slots = ctas * gpu.num_sms
        sectors = self._replay(slots, size // LINE_BYTES)
        tensors = {name: self._traffic(number, sectors) for number, name in enumerate(self._names)}
        return CacheReport(
            device=gpu.name, ctas_per_sm=ctas, num_slots=slots, l2_bytes=size, tensors=tensors,
            line_sample=self._atoms.line_sample,
        )  # fmt: skip

    def _replay(self, slots: int, capacity_lines: int) -> dict[int, Sectors]:
        found = self._reports.get((slots, capacity_lines))
        if found is None:
            touches, instructions = self._touches, self._log.instructions
            order = in_order(touches.program, touches.turn, touches.num_accesses, slots)
            found = self._reports[slots, capacity_lines] = replay(
                self._atoms, order, [i.kind for i in instructions], touches.instruction,
                [self._names.index(i.tensor) for i in instructions], capacity_lines,
            )  # fmt: skip
        return found

    def _traffic(self, number: int, sectors: dict[int, Sectors]) -> CacheTraffic:
        mine = [n for n, i in enumerate(self._log.instructions) if i.tensor == self._names[number]]
        moved, found = int(self._moved[mine].sum()), sectors.get(number, Sectors())
        return CacheTraffic(
            sector_bytes=moved * SECTOR_BYTES,
            l2_hit_bytes=max(0, moved - found.read - found.allocated) * SECTOR_BYTES,  # a sample may be off
            dram_read_bytes=found.read * SECTOR_BYTES,
            dram_written_bytes=found.written * SECTOR_BYTES,
        )
