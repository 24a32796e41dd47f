"""What one program does, line by line, with the values that it assigns, loads and stores.

    with simulator.trace() as t:
        w = t.watch(program=(3, 1))
        add_kernel[grid](...)
    w                      # in a notebook: a table; print(w) for text
    w.values("acc")        # what a variable was, turn by turn

Only the watched program's row of each value is copied.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from cme295lab.simulator.addresses import Access
from cme295lab.simulator.broadcasting import lifted
from cme295lab.simulator.debug.problem import Program, shown_index
from cme295lab.simulator.errors import SimulatorError
from cme295lab.simulator.indices import index_of
from cme295lab.simulator.machine import AccessKind, Machine
from cme295lab.simulator.records import Step
from cme295lab.simulator.storage import Storage, values_of
from cme295lab.simulator.values import Block, Pointer, as_numpy

_CORNER = 4  # numbers shown along each of the last two axes
_VERBS = {"load": "loads", "store": "stores", "atomic": "atomic on", "assign": ""}


@dataclass(frozen=True, kw_only=True)
class WatchedStep(Step):
    """A step of the watched program, with its place and values.

    Attributes:
        function, file: where the line is (the kernel, or a function that it calls).
        turn: the how-manieth time this line runs, from 1.
        statement: steps of one run of one line have the same number.
        dtype: element type; "" for compile-time values.
        index: of the first active lane, in the tensor; of pointers too.
        lanes: active lanes of an access.
        value: what was assigned, or what the active lanes load or store (all lanes: in the block's shape).
    """

    function: str
    file: str
    turn: int
    statement: int
    dtype: str = ""
    index: tuple[int, ...] | None = None
    lanes: int = 0

    @property
    def numbers(self) -> str:
        """A corner of the values, and their range."""
        return "" if self.value is None else _numbers(self.value)

    @property
    def what(self) -> str:
        """The step in words, without its values."""
        size = shown_index(self.shape) if self.shape else ""
        if self.kind == "assign":
            where = f" -> {self._element()}" if self.index is not None else ""
            return f"{self.name}: {self.dtype}{size}{where}" if self.dtype else self.name
        total = int(np.prod(self.shape, dtype=np.int64))
        if not self.lanes:
            return f"{_VERBS[self.kind]} nothing of {self.name}: all {total:,} lanes are masked out"
        masked = f" (mask: {self.lanes:,} of {total:,} lanes)" if self.lanes < total else ""
        return (
            f"{_VERBS[self.kind]} {self._element()} and on: {self.dtype}{size}, {self.num_bytes:,} B{masked}"
            if total > 1 else f"{_VERBS[self.kind]} {self._element()}: {self.dtype}, {self.num_bytes:,} B"
        )  # fmt: skip

    def _element(self) -> str:
        name = self.name if self.kind != "assign" else self.source_tensor
        return f"{name}{shown_index(self.index or ())}"

    source_tensor: str = ""


class Watch:
    """One program of one launch; `steps` is filled while the launch runs."""

    def __init__(
        self, program: tuple[int, ...], variables: Collection[str] | None, kernel: str | None, launch: int | None
    ) -> None:
        if isinstance(variables, str):
            raise ValueError(f"variables must be a collection of names, got the string {variables!r}: write "
                             f"variables=({variables!r},)")  # fmt: skip
        given = program if isinstance(program, tuple | list) else (program,)
        if not 1 <= len(given) <= 3 or not all(isinstance(p, int) and p >= 0 for p in given):
            raise ValueError(
                f"program must be one to three grid coordinates, such as (3, 1), got {program!r}; those left out are 0"
            )
        x, y, z = (*given, 0, 0)[:3]
        self.program: Program = (x, y, z)
        self.kernel = kernel
        self.launch = launch
        self.grid: Program | None = None
        self._variables = None if variables is None else frozenset(variables)
        self._steps: list[WatchedStep] = []
        self._number = -1  # position of the program in the grid, once the launch has begun
        self._turns: Counter[tuple[int, int]] = Counter()
        self._turn_of: tuple[int, int] = (-1, 0)  # the statement that runs, and its turn

    @property
    def steps(self) -> list[WatchedStep]:
        """What the program did, in order.

        Raises:
            SimulatorError: no launch has been watched.
        """
        if self.grid is None:
            which = f" of {self.kernel}" if self.kernel else ""
            raise SimulatorError(
                f"nothing was watched: no launch{which} came after t.watch(...); call t.watch inside the "
                "`with simulator.trace()` block, before the launch"
            )
        return self._steps

    def values(self, variable: str) -> list[np.ndarray]:
        """The values that a variable was given, in order.

        Raises:
            ValueError: the program did not assign to it.
        """
        found = [s.value for s in self.steps if s.kind == "assign" and s.name == variable and s.value is not None]
        if not found:
            names = dict.fromkeys(s.name for s in self.steps if s.kind == "assign" and s.value is not None)
            raise ValueError(f"variable {variable!r} got no value in this program; assigned were {', '.join(names)}")
        return found

    # ---- seen by the launch

    def waits_for(self, launch: int) -> bool:
        """Whether the `launch`-th launch of the trace may be the one to watch."""
        return self.grid is None and self.launch in (None, launch)

    def begin(self, m: Machine) -> None:
        """A launch is about to run that may be the one to watch: its kernel decides."""
        if self.kernel is not None and m.kernel_name != self.kernel:
            return
        (x, y, z), (gx, gy, gz) = self.program, m.grid
        if x >= gx or y >= gy or z >= gz:
            raise SimulatorError(
                f"t.watch(program={self.program}): kernel {m.kernel_name} was launched with grid {m.grid}, so there is "
                f"no such program; the last one is {(gx - 1, gy - 1, gz - 1)}. Choose another program, or name the "
                "launch to watch with kernel=... or launch=..."
            )
        self.grid, self.kernel = m.grid, m.kernel_name
        self._number = x + gx * (y + gy * z)

    def _row(self, m: Machine) -> int | None:
        if self._number < 0:
            return None
        position = self._number - m.first_program
        found = np.flatnonzero(m.active.ids == position)
        return int(found[0]) if len(found) else None

    def assigned(self, m: Machine, name: str, value: Any) -> None:
        """A variable got a value."""
        if self._variables is not None and name not in self._variables:
            return
        row = self._row(m)
        if row is None:
            return
        if isinstance(value, Pointer):
            offset = _row_of(value, m, row).reshape(-1)
            element = int(offset[0]) if offset.size else 0
            self._add(
                m, "assign", name, shape=value.shape, dtype=str(value.pointer_type), source_tensor=value.storage.name,
                index=_index(value.storage, element),
            )  # fmt: skip
        elif isinstance(value, Block):
            numbers = np.array(np.broadcast_to(_row_of(value, m, row), value.shape))
            self._add(m, "assign", name, shape=value.shape, dtype=str(value.dtype), value=numbers)
        elif isinstance(value, bool | int | float):
            self._add(m, "assign", name, value=np.asarray(value))

    def access(self, m: Machine, access: Access, kind: AccessKind) -> None:
        """A load, store or atomic."""
        row = self._row(m)
        if row is None or self._variables is not None:
            return
        storage = access.pointer.storage
        element = np.broadcast_to(_row_of(access.pointer, m, row, rank=len(access.shape)), access.shape)
        lanes = _lanes_of(access, row)
        touched = element[lanes]
        value = None
        if touched.size and kind != "atomic":
            words = storage.raw[touched]
            if access.stored is not None:
                stored = access.stored[row if access.stored.shape[0] > 1 else 0]
                words = np.broadcast_to(stored, access.shape)[lanes]
            value = np.array(as_numpy(values_of(np.ascontiguousarray(words), storage.dtype)))
            value = value.reshape(access.shape) if lanes.all() else value
        self._add(
            m, kind, storage.name, shape=access.shape, dtype=str(storage.dtype), lanes=int(touched.size), value=value,
            num_bytes=int(touched.size) * storage.dtype.itemsize,
            first_element=int(touched[0]) - storage.first_element if touched.size else None,
            index=_index(storage, int(touched[0])) if touched.size else None,
        )  # fmt: skip

    def _add(self, m: Machine, kind: Any, name: str, **facts: Any) -> None:
        assert m.source is not None
        if self._turn_of[0] != m.statement:
            line = (id(m.source), m.line)
            self._turns[line] += 1
            self._turn_of = (m.statement, self._turns[line])
        place = m.source.place(m.line)
        self._steps.append(
            WatchedStep(
                kind=kind, name=name, line=place.line, source=place.source.strip(), function=place.kernel,
                file=place.file, turn=self._turn_of[1], statement=m.statement, **facts,
            )
        )  # fmt: skip

    # ---- shown

    def _title(self) -> str:
        steps = self.steps
        return f"program {self.program} of kernel {self.kernel}, grid {self.grid}: {len(steps):,} steps"

    def _lines(self) -> Iterator[tuple[str, str, list[WatchedStep]]]:
        """Each run of a line: label, source, steps."""
        repeated = {line for line, n in self._turns.items() if n > 1}
        again = {line for _, line in repeated}
        for _, group in groupby(self.steps, key=lambda s: s.statement):
            steps = list(group)
            first = steps[0]
            inner = f"{first.function}, " if first.function != self.kernel else ""
            turn = f", turn {first.turn}" if first.line in again else ""
            yield f"{inner}line {first.line}{turn}", first.source, steps

    def __str__(self) -> str:
        if self.grid is None:
            which = f" of kernel {self.kernel}" if self.kernel else ""
            return f"program {self.program}{which}: no launch has been watched yet"
        lines = [self._title()]
        for label, source, steps in self._lines():
            lines.append(f"{label}: {source}")
            lines += [f"    {s.what}{_gap(s.numbers)}{s.numbers}" for s in steps]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        if self.grid is None:
            return f"<p>{html.escape(str(self))}</p>"
        rows = []
        for label, source, steps in self._lines():
            what = "<br>".join(html.escape(s.what) for s in steps)
            numbers = "<br>".join(html.escape(s.numbers) for s in steps)
            rows.append(
                f"<tr><td style='text-align:left'>{html.escape(label)}</td>"
                f"<td style='text-align:left'><code>{html.escape(source)}</code></td>"
                f"<td style='text-align:left'>{what}</td><td style='text-align:left'>{numbers}</td></tr>"
            )
        head = "<tr><th>where</th><th>source</th><th>what</th><th>values</th></tr>"
        return f"<p>{html.escape(self._title())}</p><table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"


def _row_of(value: Block, m: Machine, row: int, rank: int | None = None) -> np.ndarray:
    """The watched program's part of a value; axes that are the same everywhere have length 1."""
    parts = [
        as_numpy(t[row : row + 1] if t.shape[0] > 1 else t)
        for t in (lifted(t, len(value.shape) if rank is None else rank) for t in value.terms(m.active))
    ]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    if not isinstance(value, Pointer) and len(parts) > 1:
        total = total.astype(value.dtype.numpy)
    return total[0]


def _lanes_of(access: Access, row: int) -> np.ndarray:
    """Which lanes of the watched program take part."""
    if access.prefix is not None:
        if access.rows is None:
            return np.zeros(access.shape, bool)
        axis = access.rows.axis - 1
        lane = np.arange(access.shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(access.shape))])
        return np.broadcast_to(lane < access.prefix, access.shape)
    if access.mask is None:
        return np.ones(access.shape, bool)
    return np.broadcast_to(access.mask[row if access.mask.shape[0] > 1 else 0], access.shape)


def _index(storage: Storage, element: int) -> tuple[int, ...]:
    return index_of(storage.tensor.shape, storage.tensor.stride(), element - storage.first_element)


def _numbers(value: np.ndarray) -> str:
    """A corner of the numbers; beyond a few, their range too."""
    if value.ndim == 0:
        return f"= {_number(value.item())}"
    corner = value[(0,) * max(0, value.ndim - 2)]
    rows = corner.reshape(-1, corner.shape[-1])[:_CORNER]
    text = [
        "[" + " ".join(_number(v) for v in row[:_CORNER].tolist()) + (" …]" if len(row) > _CORNER else "]")
        for row in rows
    ]
    shown = text[0] if value.ndim == 1 else "[" + " ".join(text) + (" …]" if value.shape[-2] > _CORNER else "]")
    if value.size <= _CORNER:
        return f"= {shown}"
    low, high = (_number(f(value).item()) for f in (np.min, np.max))
    return f"{low} … {high}  {shown}"


def _gap(numbers: str) -> str:
    return "" if not numbers else " " if numbers.startswith("=") else "  "


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
