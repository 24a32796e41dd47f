"""The tile walk: a recorded run of the real flash-attention kernel, step by step, tile by tile."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import anywidget
import traitlets

from cme295lab.hardware import Device, get_device
from cme295lab.units import format_bytes
from cme295lab.widgets.picture import Picture
from cme295lab.widgets.walk_figure import draw_walk
from cme295lab.widgets.walk_files import walk_source, walk_style
from cme295lab.widgets.walk_records import (
    ProgramWalk,
    RecordedLaunch,
    RowRange,
    WalkStep,
    WatchedNames,
    walk_records,
)
from cme295lab.widgets.working_set import working_set

_MAX_STEPS = 6000  # about 2 MB in the browser
_numbers = itertools.count(1)


class TileWalk(anywidget.AnyWidget):
    """Step through the programs of a flash-attention launch and see what each loads, keeps, rescales and stores.

    All steps are sent to the browser once, so stepping answers at once and needs no kernel. `program` and `step` (both
    from 0) follow the controls and may be set from Python.

    Args:
        seq: number of queries and keys of the run, when no launch is given.
        head_dim: width of the head.
        block_m: rows of Q per program.
        block_n: rows of K and V per step.
        causal: hide later keys.
        seed: seed of the random q, k and v.
        device: GPU whose on-chip memory the meters refer to.
        launch: a recorded launch to show in place of a run of its own.
        names: the variable names of that launch's kernel; None for the course's kernel.

    Raises:
        ValueError: if a size is out of range, the launch is no flash-attention forward or has more than 6,000 steps.

    Attributes:
        records: the steps as typed records, one `ProgramWalk` per program.
    """

    _esm, _css = walk_source("tile_walk.js"), walk_style("tile_walk.css")
    walk = traitlets.Dict().tag(sync=True)
    program = traitlets.Int(0).tag(sync=True)
    step = traitlets.Int(0).tag(sync=True)

    def __init__(
        self,
        *,
        seq: int = 128,
        head_dim: int = 32,
        block_m: int = 32,
        block_n: int = 32,
        causal: bool = True,
        seed: int = 0,
        device: str | Device = "A100",
        launch: RecordedLaunch | None = None,
        names: WatchedNames | None = None,
    ) -> None:
        self.device = get_device(device)
        if launch is None:
            working_set(block_m=block_m, block_n=block_n, head_dim=head_dim)  # refuses impossible sizes by name
            launch = record_launch(seq, head_dim, block_m, block_n, causal, seed, self.device)
        self.launch = launch
        self.names = names or WatchedNames()
        self.records = walk_records(launch, names=self.names)
        num_steps = sum(len(record.steps) for record in self.records)
        if num_steps > _MAX_STEPS:
            raise ValueError(
                f"this launch has {num_steps} steps, more than the {_MAX_STEPS} that a page can hold: "
                "record a shorter sequence, fewer heads or larger blocks"
            )
        super().__init__(walk=_payload(launch, self.records, self.names, self.device))

    @classmethod
    def from_trace(
        cls, trace_or_launch: Any, *, device: str | Device | None = None, names: WatchedNames | None = None
    ) -> "TileWalk":
        """Show a launch that was recorded with `simulator.trace(record=True, watch=tuple(WatchedNames()))`.

        Args:
            trace_or_launch: a trace, of which the first launch that loads q and k in blocks is taken, or a launch.
            device: GPU for the meters; that of the trace, or an A100, if None.
            names: the variable names of the kernel; None for the course's kernel.

        Raises:
            ValueError: if there is no such launch.
        """
        launches = getattr(trace_or_launch, "launches", None)
        if launches is None:
            return cls(launch=trace_or_launch, device=device or "A100", names=names)
        for launch in launches:
            if {"q", "k"} <= set(launch.tensors) and {"BLOCK_M", "BLOCK_N"} <= set(launch.constants):
                return cls(launch=launch, device=device or trace_or_launch.device, names=names)
        kernels = ", ".join(launch.kernel for launch in launches) or "none"
        raise ValueError(f"the trace holds no flash-attention launch; its launches: {kernels}")

    @traitlets.validate("program")
    def _check_program(self, proposal: Any) -> int:
        return _in_range("program", proposal["value"], len(self.walk["programs"]))

    @traitlets.validate("step")
    def _check_step(self, proposal: Any) -> int:
        most = max(len(program["steps"]) for program in self.walk["programs"])
        return _in_range("step", proposal["value"], most)

    def figure(self, program: int | None = None, step: int | None = None) -> Picture:
        """One step as a static picture, for pages where no kernel runs.

        Args:
            program: which program, from 0; None for the last, the one with the most tiles.
            step: which of its steps, from 0; None for the rescaling of its second tile.

        Raises:
            ValueError: if there is no such program or step.
        """
        number = _in_range("program", len(self.records) - 1 if program is None else program, len(self.records))
        record = self.records[number]
        if step is None:
            rescaling = [i for i, one in enumerate(record.steps) if one.name == self.names.rescale]
            step = rescaling[min(len(rescaling), 2) - 1] if rescaling else 0
        shown = record.steps[_in_range("step", step, len(record.steps))]
        columns = (shown.row_max, shown.row_sum, shown.rescale)
        numbers = [
            [str(query), *("–" if column is None else _number(column[i]) for column in columns)]
            for i, query in enumerate(record.sampled_rows)
        ]
        return draw_walk(self.records, number, step, caption=caption(shown, self.names), numbers=numbers)

    def __repr__(self) -> str:
        """One line, as the widget's text alternative."""
        return f"TileWalk({self.launch.kernel}, {len(self.records)} programs, {self.walk['summary']})"


def record_launch(
    seq: int, head_dim: int, block_m: int, block_n: int, causal: bool, seed: int, device: Device
) -> RecordedLaunch:
    """Run the course's kernel in the simulator on random fp16 inputs of one head and return its recorded launch."""
    if seq < 1:
        raise ValueError(f"seq must be at least 1, got {seq}")
    import torch  # here, because the view itself needs no tensors

    from cme295lab import simulator
    from cme295lab.attention import flash_attention

    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, 1, seq, head_dim, generator=generator).half() for _ in range(3))
    with simulator.trace(device=device, record=True, watch=tuple(WatchedNames())) as trace:
        flash_attention(q, k, v, causal=causal, block_m=block_m, block_n=block_n)
    return trace.launches[0]


def _in_range(name: str, value: int, count: int) -> int:
    if not 0 <= value < count:
        raise ValueError(f"{name} must be from 0 to {count - 1}, got {value}")
    return value


def _payload(
    launch: RecordedLaunch, records: Sequence[ProgramWalk], names: WatchedNames, device: Device
) -> dict[str, Any]:
    """What the browser gets: plain lists and texts, so that no unit or rounding is left to JavaScript."""
    sources = sorted({step.source for record in records for step in record.steps})
    constants = launch.constants
    on_chip = working_set(
        block_m=int(constants["BLOCK_M"]), block_n=int(constants["BLOCK_N"]), head_dim=launch.tensors["q"].shape[-1]
    )
    last = records[-1]
    read = last.read_bytes_before + last.steps[-1].read_bytes
    written = last.written_bytes_before + last.steps[-1].written_bytes
    peak = getattr(launch, "sram_peak_bytes", None)
    causal = bool(constants.get("CAUSAL", False))
    return {
        "id": next(_numbers),
        "num_queries": launch.tensors["q"].shape[-2],
        "num_keys": launch.tensors["k"].shape[-2],
        "query_blocks": sorted({record.query_rows for record in records}),
        "key_blocks": sorted({keys for record in records for keys in record.visited}),
        "causal": causal,
        "sources": sources,
        "programs": [_program(records, index, sources, names, device) for index in range(len(records))],
        "meters": [
            {"label": "HBM read", "className": "tw-read"},
            {"label": "HBM written", "className": "tw-written"},
            {"label": "tiles in SRAM", "className": "tw-chip"},
        ],
        "summary": f"{format_bytes(read)} read, {format_bytes(written)} written",
        "notes": [
            f"Scores, output, m and l take another {format_bytes(on_chip.accumulator_bytes, binary=True)} of registers"
            f" ({format_bytes(device.register_bytes_per_sm, binary=True)} per SM of the {device.name})."
            + (
                f" All that is alive at once, counted in the run: at most {format_bytes(peak, binary=True)}."
                if peak
                else ""
            )
        ],
    }


def _program(
    records: Sequence[ProgramWalk], index: int, sources: list[str], names: WatchedNames, device: Device
) -> dict[str, Any]:
    record, last = records[index], records[-1]
    total = (
        last.read_bytes_before + last.steps[-1].read_bytes + last.written_bytes_before + last.steps[-1].written_bytes
    )
    capacity = device.max_shared_bytes_per_block
    steps = []
    for step in record.steps:
        read, written = record.read_bytes_before + step.read_bytes, record.written_bytes_before + step.written_bytes
        held = f"{format_bytes(step.held_bytes, binary=True)} of {format_bytes(capacity, binary=True)}"
        steps.append({
            "kind": step.kind, "name": step.name, "line": step.line, "source": sources.index(step.source),
            "caption": caption(step, names), "rows": step.rows, "key_rows": step.key_rows, "loaded": step.held,
            "stored": step.stored, "finished": bool(step.stored),
            "row_max": [_number(value) for value in step.row_max or ()],
            "row_sum": [_number(value) for value in step.row_sum or ()],
            "rescale": [(min(max(value, 0.0), 1.0), _number(value)) for value in step.rescale or ()],
            "meters": [
                (read / total, f"{format_bytes(step.read_bytes)}, all programs {format_bytes(read)}"),
                (written / total, f"{format_bytes(step.written_bytes)}, all programs {format_bytes(written)}"),
                (min(step.held_bytes / capacity, 1.0), held),
            ],
        })  # fmt: skip
    return {
        "index": index, "label": f"{index + 1} of {len(records)}", "plane": str(record.program[1:]), "steps": steps,
        "query_rows": record.query_rows, "sampled_rows": record.sampled_rows, "visited": record.visited,
    }  # fmt: skip


def caption(step: WalkStep, names: WatchedNames) -> str:
    """What a step does, in words."""
    if step.kind in ("load", "store", "atomic"):
        verb, where = {"load": ("Load", "from"), "store": ("Store", "to"), "atomic": ("Add to", "in")}[step.kind]
        return f"{verb} {step.name.upper()} {_span(step.rows)} {where} HBM: {format_bytes(step.num_bytes)}"
    if step.name == names.rescale:
        return "Compute the rescaling factor α"
    meaning = {names.row_max: "running maximum m", names.row_sum: "running sum l"}.get(step.name, step.name)
    return f"{'Start' if step.rescale is None else 'Update'} the {meaning}"


def _span(rows: RowRange | None) -> str:
    if rows is None:
        return "(no rows)"
    return f"rows {rows[0]} to {rows[1] - 1}"


def _number(value: float) -> str:
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.3f}".replace("-", "−")
