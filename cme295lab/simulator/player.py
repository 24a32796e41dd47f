"""Doing the steps of a tape, a chunk of programs at a time, in memory that is used over and over.

Before a step is done for the first chunk, everything is known that can be known: where its inputs are found, whose
place its result takes, what nobody needs any more afterwards. So results go to parts of one buffer (allotted as a
compiler allots registers) that the next chunk, tape and launch use again: fresh memory costs more than arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from cme295lab.simulator.tape import Step

_ALIGNMENT = 64
_KEPT_BYTES = 64 << 20  # buffers up to this size are kept for the next launch
_SHORTEST_LINE = 1 << 16  # elements; shorter chunks, for tiles to lie at equal distances, do not pay
_buffers: list[torch.Tensor] = []


def play(steps: list[Step], chunk_elements: int, kept: set[Step]) -> None:
    """Do the steps; `kept` are those whose results somebody needs afterwards, for all programs."""
    steps = _needed(steps, kept)
    if not steps:
        return
    num_rows = max(s.count for s in steps)
    chunks = _chunks(steps, num_rows, chunk_elements)
    plan = _Plan(steps, kept, chunks[0].stop)
    num_threads = min(torch.get_num_threads(), len(chunks))
    if num_threads == 1:
        plan.run(chunks)
    else:
        _run_in_threads(plan, chunks, num_threads)
    for step, operation in zip(steps, plan.operations, strict=True):
        step.inputs = ()
        step.tensor = operation.kept


def _needed(steps: list[Step], kept: set[Step]) -> list[Step]:
    """The steps that store something or lead to a value that is kept."""
    needed: set[Any] = set(kept)
    for step in reversed(steps):
        if step.stores is not None or step in needed:
            needed.add(step)
            needed.update(x for x in step.inputs if hasattr(x, "root"))
    return [s for s in steps if s in needed]


def _chunks(steps: list[Step], num_rows: int, chunk_elements: int) -> list[slice]:
    """Runs of programs whose largest block fits. Programs that share rows stay together, and if possible the tiles of
    a chunk lie at equal distances in memory."""
    largest = max(1, *(s.num_elements for s in steps), 1)
    length = max(1, min(num_rows, chunk_elements // largest))
    lines = [s.tiles_in_line for s in steps if s.tiles_in_line * largest >= _SHORTEST_LINE]
    length = min(length, *lines, num_rows)
    runs = {s.repeats for s in steps} | {x.repeats for s in steps for x in s.inputs if hasattr(x, "root")}
    while any(length % r and r % length for r in runs):
        length -= 1
    return [slice(i, min(i + length, num_rows)) for i in range(0, num_rows, length)]


def _run_in_threads(plan: _Plan, chunks: list[slice], num_threads: int) -> None:
    """Spread the chunks over threads of one core each; the first error ends all of them."""
    waiting = chunks[::-1]

    def next_chunks() -> Any:
        while waiting:
            yield waiting.pop()

    def work() -> None:
        try:
            plan.run(next_chunks())
        except BaseException:
            waiting.clear()
            raise

    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(num_threads) as pool:
            for done in [pool.submit(work) for _ in range(num_threads)]:
                done.result()
    finally:
        torch.set_num_threads(num_threads)


class _Operation:
    """A step, prepared: where its inputs are found, where its result goes, what is dropped afterwards."""

    __slots__ = ("function", "step", "sources", "kept", "place", "offset", "dropped", "copies")

    def __init__(self, step: Step, sources: list[int], kept: torch.Tensor | None) -> None:
        self.function: Callable[..., Any] = step.function
        self.step = step
        self.sources = sources
        self.kept = kept  # the whole result, of which a chunk fills its rows
        self.place: int | None = None  # number of the input whose memory the result takes
        self.offset: int | None = None  # or where in the buffer it goes
        self.dropped: list[int] = []
        self.copies = False  # the result must not stay in the user's memory, where it is about to be overwritten


class _Rows:
    """Rows of a value: `first` and `count` in programs, of which `repeats` share one."""

    __slots__ = ("first", "stop", "repeats")

    def __init__(self, first: int, count: int, repeats: int) -> None:
        self.first, self.stop, self.repeats = first, first + count, repeats

    def of(self, start: int, stop: int) -> slice:
        """The rows of programs start … stop - 1."""
        if self.repeats == 1:
            return slice(start - self.first, stop - self.first)
        return slice((start - self.first) // self.repeats, -((self.first - stop) // self.repeats))


class _Plan:
    """All steps, prepared for chunks of up to `chunk` programs.

    Values have places: first one for each step, then one for each constant.
    """

    def __init__(self, steps: list[Step], kept: set[Step], chunk: int) -> None:
        self.steps = steps
        self.chunk = chunk
        self.place: dict[Any, int] = {step: number for number, step in enumerate(steps)}
        self.template: list[Any] = [None] * len(steps)
        self.rows = [_Rows(s.first, s.count, s.repeats) for s in steps]
        self.constants: list[int] = []  # places of constants that differ between programs
        self.operations: list[_Operation] = []
        self.last_use: dict[Any, int] = {}
        self._places_of_constants: dict[tuple[int, int], int] = {}
        for number, step in enumerate(steps):
            whole = None
            if step in kept:
                whole = torch.empty((step.count // step.repeats, *step.size), dtype=step.dtype.torch)
            self.operations.append(_Operation(step, [self._source(x, step) for x in step.inputs], whole))
            for x in step.inputs:
                if hasattr(x, "root") and x in self.place:
                    self.last_use[x.root] = number
        self._allot(kept)
        self._copy_what_is_overwritten()

    def _source(self, x: Any, step: Step) -> int:
        """The place of an input."""
        if hasattr(x, "root"):
            if x in self.place:
                return self.place[x]
            tensor, rows = x.tensor, _Rows(x.first, x.count, x.repeats)
        else:
            tensor, rows = x, _Rows(step.first, step.count, 1)
        key = (id(tensor), rows.stop)
        if key not in self._places_of_constants:
            self._places_of_constants[key] = place = len(self.template)
            self.template.append(tensor)
            self.rows.append(rows)
            if isinstance(tensor, torch.Tensor) and tensor.shape[0] > 1:
                self.constants.append(place)
        return self._places_of_constants[key]

    def _allot(self, kept: set[Step]) -> None:
        """Decide where results go: over an input that nobody needs any more, or to a free part of the buffer."""
        free: dict[int, list[int]] = {}
        allotted: dict[Any, tuple[int, int]] = {}  # by step that owns memory: offset and bytes
        self.num_bytes = 0
        ending: dict[int, list[Any]] = {}
        for root, number in self.last_use.items():
            ending.setdefault(number, []).append(root)
        for number, (step, operation) in enumerate(zip(self.steps, self.operations, strict=True)):
            if step not in kept and not step.view and step.stores is None and not step.reads_in_place:
                operation.place = self._overwritten(step, number, allotted)
                if operation.place is not None:
                    allotted[step] = allotted.pop(step.inputs[operation.place])
                else:
                    size = self._num_bytes(step)
                    if not free.get(size):
                        free.setdefault(size, []).append(self.num_bytes)
                        self.num_bytes += size
                    operation.offset = free[size].pop()
                    allotted[step] = operation.offset, size
            for root in ending.get(number, ()):
                if root in allotted:
                    offset, size = allotted.pop(root)
                    free.setdefault(size, []).append(offset)
        for step in self.steps:
            if step.root in self.last_use:
                self.operations[self.last_use[step.root]].dropped.append(self.place[step])

    def _num_bytes(self, step: Step) -> int:
        needed = -(-self.chunk // step.repeats) * step.dtype.itemsize
        for n in step.size:
            needed *= n
        return -(-needed // _ALIGNMENT) * _ALIGNMENT

    def _overwritten(self, step: Step, number: int, allotted: dict[Any, tuple[int, int]]) -> int | None:
        """The input whose memory the result may take."""
        for i in step.overwrites:
            x = step.inputs[i]
            if (
                hasattr(x, "root")
                and x in allotted
                and x.size == step.size
                and x.dtype == step.dtype
                and x.repeats == step.repeats
                and x.first == step.first
                and self.last_use[x] == number
                and sum(getattr(y, "root", None) is x for y in step.inputs) == 1
            ):
                return i
        return None

    def _copy_what_is_overwritten(self) -> None:
        """A value that is a view of the user's memory, and needed after that has been written to, is copied."""
        stores = [(number, step.stores) for number, step in enumerate(self.steps) if step.stores is not None]
        for number, step in enumerate(self.steps):
            if stores and step.loads is not None:
                end = self.last_use.get(step, number)
                self.operations[number].copies = any(
                    memory == step.loads and number < at <= end for at, memory in stores
                )

    def run(self, chunks: Any) -> None:
        """Do all steps for each of the chunks, in one buffer."""
        buffer = _take_buffer(self.num_bytes)
        places = [None if o.offset is None else self._memory(buffer, o) for o in self.operations]
        for chunk in chunks:
            self._run_chunk(chunk.start, chunk.stop, places)
        if buffer.numel() <= _KEPT_BYTES:
            _buffers.append(buffer)

    def _memory(self, buffer: torch.Tensor, operation: _Operation) -> torch.Tensor:
        step, rows = operation.step, -(-self.chunk // operation.step.repeats)
        assert operation.offset is not None
        shape, dtype = (rows, *step.size), step.dtype.torch
        size = dtype.itemsize
        for n in shape:
            size *= n
        return buffer[operation.offset : operation.offset + size].view(dtype).view(shape)

    def _run_chunk(self, start: int, stop: int, places: list[torch.Tensor | None]) -> None:
        values, all_rows = self.template.copy(), self.rows
        for place in self.constants:
            rows = all_rows[place]
            values[place] = values[place][rows.of(max(start, rows.first), min(stop, rows.stop))]
        for number, operation in enumerate(self.operations):
            rows = all_rows[number]
            first, last = max(start, rows.first), min(stop, rows.stop)
            if first < last:
                values[number] = self._run(operation, start, first, last, stop, values, rows, places[number])
            for place in operation.dropped:
                values[place] = None

    def _run(
        self, operation: _Operation, start: int, first: int, last: int, stop: int, values: list[Any], rows: _Rows,
        memory: torch.Tensor | None,
    ) -> Any:  # fmt: skip
        arguments = []
        for source in operation.sources:
            value, available = values[source], self.rows[source]
            if (available.stop != rows.stop or available.first != rows.first) and getattr(value, "shape", (1,))[0] > 1:
                begin = max(start, available.first)
                if (begin, min(stop, available.stop)) != (first, last):
                    value = value[first - begin : last - begin]
            arguments.append(value)
        part = rows.of(first, last)
        kept, out = operation.kept, None
        if kept is not None:
            out = kept[part]
        elif operation.place is not None:
            out = arguments[operation.place]
        elif memory is not None:
            out = memory if memory.shape[0] == part.stop - part.start else memory[: part.stop - part.start]
        result = operation.function(part, out, *arguments)
        if kept is not None and result is not out:
            assert out is not None
            return out.copy_(result)
        return result.clone() if operation.copies else result


def _take_buffer(num_bytes: int) -> torch.Tensor:
    """Scratch memory, if possible what an earlier tape has used."""
    buffer = _buffers.pop() if _buffers else torch.empty(0, dtype=torch.uint8)
    return buffer if buffer.numel() >= num_bytes else torch.empty(num_bytes, dtype=torch.uint8)
