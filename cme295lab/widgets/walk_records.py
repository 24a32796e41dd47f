"""A recorded launch of a flash-attention kernel, as the steps that a reader can follow. Pure records, no view.

`walk_records(launch)` reads the trace of every program (`launch.walk`) and says of each step which rows moved, which
tile of the score matrix the program is at, what the running softmax of a few rows is, and how many bytes have moved
so far. Nothing is computed from a formula here: all comes from what the kernel did.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Protocol

import numpy as np

RowRange = tuple[int, int]  # first row, and one past the last


class RecordedStep(Protocol):
    """What is needed of a step of the simulator's trace."""

    kind: str
    name: str
    line: int
    source: str
    first_element: int | None
    shape: tuple[int, ...]
    num_bytes: int
    value: Any


class RecordedLaunch(Protocol):
    """What is needed of a launch recorded by `simulator.trace(record=True)`."""

    kernel: str
    grid: tuple[int, int, int]
    constants: dict[str, Any]
    tensors: dict[str, Any]

    def walk(self, program: tuple[int, int, int]) -> Sequence[Any]:
        """Steps of one program, in order."""


@dataclass(frozen=True, kw_only=True)
class WatchedNames:
    """The kernel's names for the running softmax, which the trace must have watched.

    Attributes:
        row_max: running maximum of each row.
        row_sum: running sum of exponentials of each row.
        rescale: factor by which a step scales down what was accumulated.
        base_two: the kernel works with 2^x, so that its maxima are in units of log2; they are shown times ln 2.
    """

    row_max: str = "row_max"
    row_sum: str = "row_sum"
    rescale: str = "rescale"
    base_two: bool = True

    def __iter__(self) -> Iterator[str]:
        return iter((self.row_max, self.row_sum, self.rescale))


@dataclass(frozen=True, kw_only=True)
class WalkStep:
    """One step of one program.

    Attributes:
        kind: "load", "store", "atomic" or "assign".
        name: the tensor moved or the variable assigned.
        line, source: where in the kernel, and the text of that line.
        rows: rows of the tensor that moved, or None.
        num_bytes: bytes moved by this step.
        key_rows: keys of the tile that the program is at, None before the first and after the last.
        held: the tensors of which a loaded tile is in use: tiles of queries to the end, tiles of keys until the next.
        held_bytes: size of these tiles.
        stored: the tensors written so far.
        read_bytes, written_bytes: moved by this program so far, this step included.
        row_max, row_sum, rescale: running softmax of the sampled rows, None before it is set.
    """

    kind: str
    name: str
    line: int
    source: str
    rows: RowRange | None
    num_bytes: int
    key_rows: RowRange | None
    held: tuple[str, ...]
    held_bytes: int
    stored: tuple[str, ...]
    read_bytes: int
    written_bytes: int
    row_max: tuple[float, ...] | None
    row_sum: tuple[float, ...] | None
    rescale: tuple[float, ...] | None


@dataclass(frozen=True, kw_only=True)
class ProgramWalk:
    """One program of the grid: the queries it owns, the keys it visits, its steps.

    Attributes:
        program: its index in the grid.
        query_rows: rows of Q that it owns.
        sampled_rows: the rows of Q whose running softmax is shown.
        visited: key rows of the tiles, in the order of the visits.
        steps: what it did, in order.
        read_bytes_before, written_bytes_before: moved by the programs that stand before it in the grid.
    """

    program: tuple[int, int, int]
    query_rows: RowRange
    sampled_rows: tuple[int, ...]
    visited: tuple[RowRange, ...]
    steps: tuple[WalkStep, ...]
    read_bytes_before: int
    written_bytes_before: int


def walk_records(launch: RecordedLaunch, *, names: WatchedNames | None = None, num_rows: int = 4) -> list[ProgramWalk]:
    """Turn the trace of a flash-attention launch into one record per program.

    Args:
        launch: a launch recorded with `simulator.trace(record=True, watch=tuple(WatchedNames()))`, of a kernel that has
            tensors "q" and "k" and constants BLOCK_M and BLOCK_N.
        names: the kernel's variable names; those of `kernels/flash_attention.py` if None.
        num_rows: how many rows of each block of queries to sample, evenly spaced.

    Returns:
        The programs in the order of the grid (first index fastest).

    Raises:
        ValueError: if the launch is no such kernel, or `num_rows` is below 1.
    """
    names = names or WatchedNames()
    if num_rows < 1:
        raise ValueError(f"num_rows must be at least 1, got {num_rows}")
    missing = [name for name in ("q", "k") if name not in launch.tensors]
    missing += [name for name in ("BLOCK_M", "BLOCK_N") if name not in launch.constants]
    if missing:
        raise ValueError(
            f"kernel {launch.kernel!r} has no {', '.join(missing)}: pass the launch of a flash-attention forward"
        )
    grid_x, grid_y, grid_z = launch.grid
    walks: list[ProgramWalk] = []
    read = written = 0
    for z, y, x in product(range(grid_z), range(grid_y), range(grid_x)):
        walk = _walk_program(launch, (x, y, z), names, num_rows, read, written)
        walks.append(walk)
        read, written = read + walk.steps[-1].read_bytes, written + walk.steps[-1].written_bytes
    return walks


@dataclass
class _State:
    """What is known of a program while its steps are read."""

    key_rows: RowRange | None = None
    query_tiles: dict[str, int] = field(default_factory=dict)
    key_tiles: dict[str, int] = field(default_factory=dict)
    stored: tuple[str, ...] = ()
    values: dict[str, tuple[int, Any]] = field(default_factory=dict)  # line and value of the last assignment
    read_bytes: int = 0
    written_bytes: int = 0
    softmax: dict[str, tuple[float, ...]] = field(default_factory=dict)


def _walk_program(
    launch: RecordedLaunch, program: tuple[int, int, int], names: WatchedNames, num_rows: int, read: int, written: int
) -> ProgramWalk:
    recorded = launch.walk(program)
    query_rows = next((_rows(launch, step) for step in recorded if step.kind == "load" and step.name == "q"), None)
    if query_rows is None:
        raise ValueError(f"program {program} of kernel {launch.kernel!r} loads no q: record a flash-attention forward")
    first, last = query_rows
    block_m = int(launch.constants["BLOCK_M"])
    spaced = sorted({round(i * (block_m - 1) / max(num_rows - 1, 1)) for i in range(num_rows)})
    samples = [row for row in spaced if first + row < last]  # the last block may be ragged
    state, steps = _State(), []
    visited: list[RowRange] = []
    for step in recorded:
        if _hands_back(state, step):
            continue
        rows = _rows(launch, step)
        if step.kind == "load" and step.name == "k" and rows is not None:
            state.key_rows, state.key_tiles = rows, {}
            visited.append(rows)
        _advance(state, step, names, samples)
        steps.append(_step(state, step, names, rows))
    return ProgramWalk(
        program=program,
        query_rows=query_rows,
        sampled_rows=tuple(first + row for row in samples),
        visited=tuple(visited),
        steps=tuple(steps),
        read_bytes_before=read,
        written_bytes_before=written,
    )


def _rows(launch: RecordedLaunch, step: RecordedStep) -> RowRange | None:
    """Which rows of its tensor a step moved: the tensor's axis that the block's first axis runs along."""
    if step.kind == "assign" or step.first_element is None or not step.shape:
        return None
    tensor = launch.tensors[step.name]
    axis = len(tensor.shape) - len(step.shape)
    first = tensor.index_of(step.first_element)[axis]
    return first, min(first + step.shape[0], tensor.shape[axis])


def _advance(state: _State, step: RecordedStep, names: WatchedNames, samples: Sequence[int]) -> None:
    if step.kind in ("load", "atomic"):
        state.read_bytes += step.num_bytes
    if step.kind in ("store", "atomic"):
        state.written_bytes += step.num_bytes
        state.stored = (*state.stored, step.name)
        state.key_rows, state.key_tiles = None, {}  # the loop over the keys is over
    if step.kind == "load":
        tiles = state.query_tiles if state.key_rows is None else state.key_tiles
        tiles[step.name] = step.num_bytes
    if step.kind == "assign":
        state.values[step.name] = (step.line, step.value)
    if step.kind == "assign" and step.name in tuple(names):
        unit = math.log(2) if names.base_two and step.name == names.row_max else 1.0
        state.softmax[step.name] = tuple(float(step.value[row]) * unit for row in samples)


def _hands_back(state: _State, step: RecordedStep) -> bool:
    """Whether a step only gives a variable the value it has, as when a helper function returns what it has updated."""
    line, value = state.values.get(step.name, (step.line, None))
    others = [at for name, (at, _) in state.values.items() if name != step.name]
    return step.kind == "assign" and line != step.line and step.line in others and np.array_equal(value, step.value)


def _step(state: _State, step: RecordedStep, names: WatchedNames, rows: RowRange | None) -> WalkStep:
    return WalkStep(
        kind=step.kind,
        name=step.name,
        line=step.line,
        source=step.source.strip(),
        rows=rows,
        num_bytes=step.num_bytes,
        key_rows=state.key_rows,
        held=(*state.query_tiles, *state.key_tiles),
        held_bytes=sum(state.query_tiles.values()) + sum(state.key_tiles.values()),
        stored=state.stored,
        read_bytes=state.read_bytes,
        written_bytes=state.written_bytes,
        row_max=state.softmax.get(names.row_max),
        row_sum=state.softmax.get(names.row_sum),
        rescale=state.softmax.get(names.rescale),
    )
