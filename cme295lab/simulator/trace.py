"""Switching the simulator on, and presenting what it counted."""

from __future__ import annotations

import contextlib
import html
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from cme295lab.hardware import Device, get_device
from cme295lab.simulator import frontend
from cme295lab.simulator.cost import AddressLog, CacheTraffic, HasCacheTraffic, Roofline, one_after_another
from cme295lab.simulator.debug import Check, Problem, Problems, Watch, unseen
from cme295lab.simulator.errors import SimulatorError
from cme295lab.simulator.launch import Settings, launch
from cme295lab.simulator.records import Launch, Step, TensorTraffic, launch_record, on_device, total_by_name
from cme295lab.simulator.report import Report
from cme295lab.simulator.report.facts import gather
from cme295lab.units import format_bytes, format_flops

__all__ = [
    "Launch", "Problem", "Problems", "Step", "Table", "TensorTraffic", "Trace", "Watch", "enabled", "is_enabled",
    "trace",
]  # fmt: skip


_TEXT_COLUMNS = 2  # the first ones hold names, the others numbers


@dataclass(frozen=True)
class Table:
    """Rows with the same keys, shown as text or HTML."""

    rows: list[dict[str, Any]]
    caption: str = ""

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        columns = list(self.rows[0]) if self.rows else []
        return columns, [[str(row[c]) for c in columns] for row in self.rows]

    def __str__(self) -> str:
        columns, cells = self._cells()
        widths = [max(len(r[i]) for r in [columns, *cells]) for i in range(len(columns))]
        lines = [
            "  ".join(
                v.rjust(w) if i >= _TEXT_COLUMNS else v.ljust(w) for i, (v, w) in enumerate(zip(r, widths, strict=True))
            )
            for r in [columns, *cells]
        ]
        return "\n".join([*([self.caption] if self.caption else []), *(line.rstrip() for line in lines)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        columns, cells = self._cells()

        def row(tag: str, values: list[str]) -> str:
            aligned = (
                f"<{tag} style='text-align:{'left' if i < _TEXT_COLUMNS else 'right'}'>" for i in range(len(values))
            )
            return "".join(f"{start}{html.escape(v)}</{tag}>" for start, v in zip(aligned, values, strict=True))

        body = "".join(f"<tr>{row('td', r)}</tr>" for r in cells)
        caption = f"<p>{html.escape(self.caption)}</p>" if self.caption else ""
        return f"{caption}<table><thead><tr>{row('th', columns)}</tr></thead><tbody>{body}</tbody></table>"


@dataclass(eq=False)
class Trace(HasCacheTraffic):
    """Everything that was launched inside a `simulator.trace()` block.

    Attributes:
        device: the GPU whose limits the numbers are compared with.
        launches: one record per launch, in order.
        record: whether steps are kept (see `Launch.walk`), and watched_names the variables whose values are.
    """

    device: Device
    launches: list[Launch] = field(default_factory=list)
    record: bool = False
    watched_names: frozenset[str] = frozenset()
    _blank: set[int] | None = field(default=None, repr=False)
    _check: Check | None = field(default=None, repr=False)
    _watches: list[Watch] = field(default_factory=list, repr=False)

    @property
    def tensors(self) -> dict[str, TensorTraffic]:
        """Traffic by tensor (kernel parameter) name, all launches together; see `launches` for each kernel."""
        return total_by_name(self.launches)

    @property
    def read_bytes(self) -> int:
        return sum(x.read_bytes for x in self.launches)

    @property
    def written_bytes(self) -> int:
        return sum(x.written_bytes for x in self.launches)

    @property
    def requested_bytes(self) -> int:
        """Bytes that all loads and stores of all programs ask for."""
        return self.read_bytes + self.written_bytes

    @property
    def distinct_bytes(self) -> int:
        """Compulsory traffic: each byte of each tensor once per launch."""
        return sum(x.distinct_bytes for x in self.launches)

    def _cache_traffic(self) -> CacheTraffic:
        return sum((x.cache().total for x in self.launches), CacheTraffic())

    def roofline(self, dtype: str | None = None) -> Roofline:
        """Lower bounds on the time of all launches, one after another, on the trace's device.

        Args:
            dtype: compute tl.dot in this format instead of that of its operands.
        """
        return one_after_another([x.roofline(self.device, dtype) for x in self.launches], self.device, dtype)

    @property
    def dot_flops(self) -> int:
        """Floating-point operations of tl.dot."""
        return sum(x.dot_flops for x in self.launches)

    @property
    def flops(self) -> int:
        """All floating-point operations."""
        return sum(x.flops for x in self.launches)

    @property
    def sram_peak_bytes(self) -> int:
        """On-chip bytes of one program, in the launch that needs most; an upper bound (see `Launch`)."""
        return max((x.sram_peak_bytes for x in self.launches), default=0)

    @property
    def arithmetic_intensity(self) -> float:
        """FLOPs per requested byte."""
        return self.flops / self.requested_bytes if self.requested_bytes else 0.0

    @property
    def seconds(self) -> float:
        """Time the simulator took."""
        return sum(x.seconds for x in self.launches)

    @property
    def problems(self) -> Problems:
        """Races and reads of undefined memory, see `simulator.debug`; empty is what one wants.

        Raises:
            SimulatorError: the trace was not made with check=True.
        """
        return self._checked().problems

    @property
    def notes(self) -> Problems:
        """Elements that several programs wrote without an order, but always with the same value."""
        return self._checked().notes

    def _checked(self) -> Check:
        if self._check is None:
            raise SimulatorError("nothing was checked: make the trace with simulator.trace(check=True)")
        self._check.refresh()
        return self._check

    def watch(
        self,
        program: tuple[int, ...] = (0, 0, 0),
        *,
        variables: Collection[str] | None = None,
        kernel: str | None = None,
        launch: int | None = None,
    ) -> Watch:
        """Watch one program of a launch that follows: what it assigns, loads and stores, line by line, with values.

        Args:
            program: its grid coordinates; those left out are 0.
            variables: show only assignments to these names.
            kernel: the name of the kernel to watch; by default that of the next launch.
            launch: which launch of this trace to watch, counted from 0; by default the next one (of that kernel).

        Returns:
            A view that is filled by the launch, to print or to look at its `steps`.

        Raises:
            SimulatorError: the trace's block is over; later, at the launch: there is no such program.
            ValueError: the launch has been, an argument is wrong, or the trace computes nothing.
        """
        if self._blank is not None:
            raise ValueError("compute=False leaves no values to watch or to check: leave it out")
        if self not in _open_traces:
            raise SimulatorError(
                "t.watch(...) came too late: call it inside the `with simulator.trace() as t:` block, before the launch"
            )
        if launch is not None and launch < len(self.launches):
            raise ValueError(f"launch {launch} has been: {len(self.launches)} are over; call t.watch before it")
        watch = Watch(program, variables, kernel, launch)
        self._watches.append(watch)
        return watch

    def report(self, compile: bool = True, device: str | Device | None = None) -> Report:
        """One view of everything: traffic, memory hierarchy, roofline, on-chip bytes, compile facts, source, problems.

        Args:
            compile: ask Triton's compiler about each kernel, too (about a second each); where it cannot, the report
                says why.
            device: the GPU for the cache model, the roofline and the compiler; by default the trace's.

        Returns:
            A report that shows itself in a notebook, prints as text, and has `to_dict()` and `to_json()`.
        """
        gpu = self.device if device is None else get_device(device)
        problems = None if self._check is None else self.problems
        return Report(gather(self.launches, gpu, compiled=compile, problems=problems))

    def table(self) -> Table:
        """Bytes per kernel and tensor. The rows hold formatted text; the numbers are in `launches[i].tensors`."""
        rows = [
            {
                "kernel": launch.kernel,
                "tensor": name,
                "dtype": t.dtype,
                "shape": "×".join(map(str, t.shape)),
                "read": format_bytes(t.read_bytes),
                "written": format_bytes(t.written_bytes),
                "distinct": format_bytes(t.distinct_bytes),
                "DRAM": format_bytes(t.dram_bytes),
            }
            for launch in self.launches
            for name, t in launch.tensors.items()
        ]
        return Table(rows, self.summary())

    def summary(self) -> str:
        """One line: bytes (those of DRAM by the cache model), FLOPs, intensity, on-chip peak."""
        held, available = (
            format_bytes(n, binary=True) for n in (self.sram_peak_bytes, self.device.on_chip_bytes_per_sm)
        )
        return (
            f"{len(self.launches)} launch{'es' if len(self.launches) != 1 else ''}: "
            f"{format_bytes(self.requested_bytes)} requested, "
            f"{format_bytes(self.distinct_bytes)} distinct, "
            f"{format_bytes(self.dram_bytes)} DRAM, "
            f"{format_flops(self.flops)}, {self.arithmetic_intensity:.1f} FLOP/byte; "
            f"one program holds up to {held} of {available} on chip ({self.device.name})"
            f"{self._findings()}"
        )

    def _findings(self) -> str:
        if self._check is None:
            return ""
        found, notes = len(self.problems), len(self.notes)
        said = f"; {found or 'no'} problem{'s' if found != 1 else ''}"
        return said + (f", {notes} note{'s' if notes != 1 else ''}" if notes else "")

    def __str__(self) -> str:
        return str(self.table()) if self.launches else f"empty trace ({self.device.name})"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.table()._repr_html_() if self.launches else f"<p>{html.escape(str(self))}</p>"


_open_traces: list[Trace] = []
_depth = 0


def is_enabled() -> bool:
    """Whether launches with CPU tensors run in the simulator at this moment."""
    return _depth > 0


def _common_blank() -> set[int] | None:
    """Where values are missing, if none of the open traces wants any."""
    blanks = [t._blank for t in _open_traces if t._blank is not None]
    return blanks[0] if blanks and len(blanks) == len(_open_traces) else None


def _run(kernel: Any, grid: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    recording = any(t.record for t in _open_traces)
    watch = frozenset().union(*(t.watched_names for t in _open_traces))
    log = AddressLog()
    checks = [t._check for t in _open_traces if t._check is not None]
    watches = tuple(w for t in _open_traces for w in t._watches if w.waits_for(len(t.launches)))
    observers = (log, *(o for c in checks for o in c.begin_launch()), *watches)
    settings = Settings(
        counting=bool(_open_traces),
        recording=recording,
        watch=watch,
        observers=observers,
        watchers=watches,
        blank=_common_blank(),
    )
    try:
        with unseen(checks):
            outcome = launch(kernel, grid, args, kwargs, settings)
    finally:
        for check in checks:
            check.end_launch()
    if _open_traces:
        record = launch_record(outcome, recorded=recording, log=log, device=_open_traces[-1].device)
        for open_trace in _open_traces:
            open_trace.launches.append(on_device(record, open_trace.device))


@contextlib.contextmanager
def enabled() -> Iterator[None]:
    """Inside the block, `kernel[grid](...)` on CPU tensors runs in the simulator. Everything is as before on exit.

    Raises:
        SimulatorError: Triton is not installed.
    """
    global _depth
    patched = frontend.launches_go_to(_run) if _depth == 0 else contextlib.nullcontext()
    with patched:
        _depth += 1
        try:
            yield
        finally:
            _depth -= 1


@contextlib.contextmanager
def trace(
    device: str | Device = "A100",
    *,
    record: bool = False,
    watch: Collection[str] = (),
    check: bool = False,
    compute: bool = True,
) -> Iterator[Trace]:
    """Run launches on CPU tensors in the simulator and count what they do.

    Args:
        device: the GPU to compare with, a name or a `hardware.Device`.
        record: keep every load and store in order, for `Launch.walk`; takes memory in proportion to the number of
            accesses.
        watch: names of kernel variables whose values are kept at every assignment (needs record=True).
        check: look for races and for reads of undefined memory, see `Trace.problems`; launches take several times as
            long.
        compute: with False floating-point numbers are not computed and not stored: outputs keep what they held, and
            counting takes a fraction of the time. An error says so if an address, a mask or a condition depends on one.

    Returns:
        A context manager that gives a `Trace`, filled while the block runs. Traces can be nested: each sees all
        launches inside it.

    Raises:
        ValueError: an unknown device, `watch` without `record`, or `watch` or `check` without `compute`.
        SimulatorError: Triton is not installed.
    """
    if watch and not record:
        raise ValueError(f"watch={list(watch)!r} needs record=True: values are kept as steps of a program")
    if isinstance(watch, str):
        raise ValueError(f"watch must be a collection of names, got the string {watch!r}: write watch=({watch!r},)")
    if not compute and (watch or check):
        raise ValueError("compute=False leaves no values to watch or to check: leave it out")
    new = Trace(
        get_device(device), record=record, watched_names=frozenset(watch), _blank=None if compute else set(),
        _check=Check() if check else None,
    )  # fmt: skip
    with enabled(), new._check.following() if new._check else contextlib.nullcontext():
        _open_traces.append(new)
        try:
            yield new
        finally:
            _open_traces.remove(new)
