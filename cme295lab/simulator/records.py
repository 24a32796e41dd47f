"""What a launch did, as plain records: traffic per tensor, operations, on-chip bytes, and the steps of single
programs.

*Requested* bytes are what the loads and stores of all programs ask for (masked lanes excluded). *Distinct* bytes
count each byte of a
tensor once per launch: what must cross the HBM bus even with an unlimited cache. What a real cache lets through lies
    between the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from cme295lab.hardware import Device, get_device
from cme295lab.simulator.compiler.launched import Launched
from cme295lab.simulator.compiler.report import CompileReport
from cme295lab.simulator.cost import (
    AccessSummary,
    AddressLog,
    CacheReport,
    CacheTraffic,
    HasCacheTraffic,
    LaunchCost,
    Roofline,
    roofline,
)
from cme295lab.simulator.errors import SimulatorError
from cme295lab.simulator.indices import index_of
from cme295lab.simulator.launch import Outcome
from cme295lab.simulator.machine import AccessEvent, AssignEvent
from cme295lab.simulator.storage import Storage


@dataclass(frozen=True, kw_only=True)
class TensorTraffic(HasCacheTraffic):
    """Bytes that moved between one tensor and the programs.

    Attributes:
        name: the kernel's parameter name, lower case, without `_ptr`.
        dtype: Triton's name of the element type, such as "fp16".
        shape, strides: of the tensor, strides in elements.
        element_bytes: bytes of one element.
        read_bytes, written_bytes: requested by all programs together.
        distinct_read_bytes, distinct_written_bytes: each byte counted once per launch.
        num_loads, num_stores: load and store operations, one per program and execution.
        cache: what the cache model says of the tensor, worked out when it is called.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    element_bytes: int
    read_bytes: int = 0
    written_bytes: int = 0
    distinct_read_bytes: int = 0
    distinct_written_bytes: int = 0
    num_loads: int = 0
    num_stores: int = 0
    cache: Callable[[], CacheTraffic] = field(default=CacheTraffic, repr=False, compare=False)

    def _cache_traffic(self) -> CacheTraffic:
        return self.cache()

    @property
    def distinct_bytes(self) -> int:
        """Distinct bytes read plus distinct bytes written."""
        return self.distinct_read_bytes + self.distinct_written_bytes

    def index_of(self, element_offset: int) -> tuple[int, ...]:
        """Index of the element at an offset (in elements) from the tensor's first one."""
        return index_of(self.shape, self.strides, element_offset)

    def __add__(self, other: TensorTraffic) -> TensorTraffic:
        counts = (
            "read_bytes",
            "written_bytes",
            "distinct_read_bytes",
            "distinct_written_bytes",
            "num_loads",
            "num_stores",
        )
        first, second = self.cache, other.cache
        sums = {c: getattr(self, c) + getattr(other, c) for c in counts}
        return replace(self, **sums, cache=lambda: first() + second())


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing that one program did: a memory access, or an assignment to a watched variable.

    Attributes:
        kind: "load", "store", "atomic" or "assign".
        name: tensor, or variable.
        line, source: where in the kernel.
        first_element: offset (in elements) of the first active lane from the tensor's first element; None if no lane
            was active.
        shape: block shape.
        num_bytes: bytes moved.
        value: the new value of the variable.
    """

    kind: Literal["load", "store", "atomic", "assign"]
    name: str
    line: int
    source: str
    first_element: int | None = None
    shape: tuple[int, ...] = ()
    num_bytes: int = 0
    value: np.ndarray | None = None


@dataclass(kw_only=True)
class Launch(HasCacheTraffic):
    """One launch of a kernel, counted.

    Attributes:
        kernel: its name.
        grid: number of programs along the three axes.
        constants: values of the tl.constexpr parameters.
        config: the autotuner's configuration that was used, or None.
        tensors: traffic by parameter name.
        dot_flops: floating-point operations of tl.dot, a multiply-add counted as two.
        other_flops: other additions, multiplications, comparisons, … on float blocks.
        transcendental_ops: exponentials, logarithms, roots, …
        sram_peak_bytes: largest number of bytes of block values that one program needs at a time. An upper bound on
            what it keeps on chip (registers and shared memory together): a compiler may fuse operations and recompute
            instead of keeping.
        seconds: how long the simulator took.
        device: the GPU for which `dram_bytes` and `roofline()` are worked out, if no other is named.
        dot_flops_by_format: dot_flops by the format that a GPU computes them in ("fp16", "bf16", "tf32", "fp32", …).
        sram_by_line: like sram_peak_bytes, at each line (of the kernel, or of functions that it calls).
        cost: where the address log is.
        launched: the jit function and its arguments without data, for `compile_report`.
    """

    kernel: str
    grid: tuple[int, int, int]
    constants: dict[str, Any]
    config: str | None
    tensors: dict[str, TensorTraffic]
    dot_flops: int
    other_flops: int
    transcendental_ops: int
    sram_peak_bytes: int
    seconds: float
    events: list[AccessEvent | AssignEvent] = field(default_factory=list, repr=False)
    recorded: bool = False
    device: Device = field(default_factory=lambda: get_device("A100"), repr=False)
    dot_flops_by_format: dict[str, int] = field(default_factory=dict)
    sram_by_line: dict[int, int] = field(default_factory=dict, repr=False)
    cost: LaunchCost | None = field(default=None, repr=False, compare=False)
    launched: Launched | None = field(default=None, repr=False, compare=False)

    @property
    def accesses(self) -> list[AccessSummary]:
        """Each load, store and atomic in the source: how often, bytes requested, and bytes moved as sectors."""
        return self._cost().accesses

    def cache(
        self, device: str | Device | None = None, ctas_per_sm: int | None = None, l2_bytes: int | None = None
    ) -> CacheReport:
        """The launch through an L2 cache, which is cold when it begins; `cost.l2` and `cost.schedule` state the model.

        Args:
            device: the GPU whose SMs and L2 are modelled; by default the one of the trace.
            ctas_per_sm: programs that an SM runs at a time; by default what `sram_peak_bytes` leaves room for.
            l2_bytes: capacity of the cache instead of the device's.

        Raises:
            ValueError: a capacity or number below 1, or an unknown device.
        """
        return self._cost().cache(self.device if device is None else device, ctas_per_sm, l2_bytes)

    def roofline(self, device: str | Device | None = None, dtype: str | None = None) -> Roofline:
        """Lower bounds on the launch's time, by arithmetic and by main-memory traffic; see `cost.roofline`.

        Args:
            device: the GPU; by default the one of the trace.
            dtype: compute tl.dot in this format instead of that of its operands.
        """
        gpu = self.device if device is None else get_device(device)
        return roofline(gpu, self.dot_flops_by_format, self.flops, self.cache(gpu).dram_bytes, dtype)

    def _cache_traffic(self) -> CacheTraffic:
        return self.cache().total

    def compile_report(
        self, device: str | Device | None = None, num_warps: int | None = None, num_stages: int | None = None
    ) -> CompileReport:
        """What was launched, compiled for a GPU that need not be here; see `simulator.compile_report`.

        Args:
            device: the GPU; by default the one of the trace.
            num_warps, num_stages: by default those of the launch or of its autotuner, or else 4 and 3.

        Raises:
            SimulatorError: Triton is missing, or its compiler refuses the kernel.
        """
        if self.launched is None:
            raise SimulatorError("this record does not know what was launched: make it inside simulator.trace()")
        return self.launched.compile_report(self.device if device is None else device, num_warps, num_stages)

    def _cost(self) -> LaunchCost:
        if self.cost is None:
            raise SimulatorError("this launch has no address log: make it inside simulator.trace()")
        return self.cost

    @property
    def num_programs(self) -> int:
        x, y, z = self.grid
        return x * y * z

    @property
    def flops(self) -> int:
        """All floating-point operations: tl.dot, others, transcendental."""
        return self.dot_flops + self.other_flops + self.transcendental_ops

    @property
    def read_bytes(self) -> int:
        return sum(t.read_bytes for t in self.tensors.values())

    @property
    def written_bytes(self) -> int:
        return sum(t.written_bytes for t in self.tensors.values())

    @property
    def requested_bytes(self) -> int:
        """Bytes that all loads and stores ask for."""
        return self.read_bytes + self.written_bytes

    @property
    def distinct_bytes(self) -> int:
        """Compulsory traffic: each byte once."""
        return sum(t.distinct_bytes for t in self.tensors.values())

    def walk(self, program: tuple[int, int, int]) -> list[Step]:
        """What one program did, in order.

        Args:
            program: its grid coordinates.

        Raises:
            SimulatorError: the trace was not made with record=True.
            ValueError: there is no such program.
        """
        if not self.recorded:
            raise SimulatorError("this trace has no steps: make it with simulator.trace(record=True)")
        if len(program) != 3 or not all(0 <= p < n for p, n in zip(program, self.grid, strict=True)):
            raise ValueError(
                f"program {program} is not in the grid {self.grid}: give three coordinates, each below the grid's size"
            )
        number = program[0] + self.grid[0] * (program[1] + self.grid[1] * program[2])
        steps = []
        for event in self.events:
            rows = np.flatnonzero(event.programs == number)
            if len(rows):
                steps.append(_step(event, int(rows[0])))
        return steps


def _step(event: AccessEvent | AssignEvent, row: int) -> Step:
    if isinstance(event, AssignEvent):
        value = event.values[row if event.values.shape[0] > 1 else 0]
        return Step(
            kind="assign",
            name=event.variable,
            line=event.line,
            source=event.text,
            shape=tuple(value.shape),
            value=value,
        )
    first = int(event.first_elements[row])
    return Step(
        kind=event.kind,
        name=event.tensor,
        line=event.line,
        source=event.text,
        first_element=first if event.num_bytes[row] else None,
        shape=event.shape,
        num_bytes=int(event.num_bytes[row]),
    )


def traffic_of(storage: Storage, cache: Callable[[], CacheTraffic] = CacheTraffic) -> TensorTraffic:
    """The traffic that a launch's storage has counted."""
    size, tensor = storage.dtype.itemsize, storage.tensor
    return TensorTraffic(
        name=storage.name,
        dtype=str(storage.dtype),
        shape=tuple(tensor.shape),
        strides=tuple(tensor.stride()),
        element_bytes=size,
        read_bytes=storage.read_elements * size,
        written_bytes=storage.written_elements * size,
        distinct_read_bytes=storage.read.count() * size if storage.read_elements else 0,
        distinct_written_bytes=storage.written.count() * size if storage.written_elements else 0,
        num_loads=storage.loads,
        num_stores=storage.stores,
        cache=cache,
    )


def launch_record(outcome: Outcome, *, recorded: bool, log: AddressLog, device: Device) -> Launch:
    """The record of a finished launch; it keeps no tensor alive."""
    c, (x, y, z) = outcome.counters, outcome.grid
    cost = LaunchCost(log, [s.name for s in outcome.storages], x * y * z, c.sram_peak_bytes)
    return Launch(
        kernel=outcome.source.name,
        grid=outcome.grid,
        constants=outcome.constants,
        config=outcome.config,
        tensors={s.name: traffic_of(s, _traffic_on(device, cost, s.name)) for s in outcome.storages},
        dot_flops=c.dot_flops,
        other_flops=c.other_flops,
        transcendental_ops=c.transcendental_ops,
        sram_peak_bytes=c.sram_peak_bytes,
        seconds=outcome.seconds,
        events=c.events,
        recorded=recorded,
        device=device,
        dot_flops_by_format=c.dot_flops_by_format,
        sram_by_line=c.sram_by_line,
        cost=cost,
        launched=Launched.of(outcome.kernel, outcome.arguments, outcome.options),
    )


def on_device(launch: Launch, device: Device) -> Launch:
    """The same record, with the costs of another device."""
    cost = launch.cost
    if device == launch.device or cost is None:
        return launch
    tensors = {n: replace(t, cache=_traffic_on(device, cost, n)) for n, t in launch.tensors.items()}
    return replace(launch, device=device, tensors=tensors)


def _traffic_on(device: Device, cost: LaunchCost, name: str) -> Callable[[], CacheTraffic]:
    return lambda: cost.cache(device).tensors[name]


def total_by_name(launches: Iterable[Launch]) -> dict[str, TensorTraffic]:
    """Traffic per tensor name, over several launches."""
    total: dict[str, TensorTraffic] = {}
    for launch in launches:
        for name, traffic in launch.tensors.items():
            total[name] = total[name] + traffic if name in total else traffic
    return total
