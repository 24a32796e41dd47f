"""Doing the steps of a tape, a chunk of programs at a time, in memory that is used over and over.

Before a step is done for the first chunk, everything is known that can be known: where its inputs are found, whose
place its result takes, what nobody needs any more afterwards. So results go to parts of one buffer (allotted as a
compiler allots registers) that the next chunk, tape and launch use again: fresh memory costs more than arithmetic.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cme295lab.simulator.steps import Step

if TYPE_CHECKING:
    from cme295lab.simulator.tiles_in_memory import Tiles

_ALIGNMENT = 64
_KEPT_BYTES = 64 << 20  # buffers up to this size are kept for the next launch
_buffers: list[torch.Tensor] = []


def play(steps: list[Step], chunk_elements: int, *, finish: bool) -> None:
    """Do the steps; what somebody still needs is written out for all programs, unless finish=True says that only
    stores count."""
    steps = _needed(steps, finish)
    if not steps:
        return
    num_rows = max([s.count for s in steps])
    num_threads = torch.get_num_threads()
    if num_threads > 1 and not _programs_are_apart(steps):
        num_threads = 1
    chunks = _chunks(steps, num_rows, chunk_elements, num_threads)
    plan = _Plan(steps, chunks)
    if num_threads == 1 or len(chunks) == 1:
        plan.run(chunks)
    else:
        _run_in_threads(plan, chunks, num_threads)
    for step in steps:
        step.inputs = ()
        step.number = -1


def _needed(steps: list[Step], finish: bool) -> list[Step]:
    """The steps that store something or lead to a value that is kept; what is kept gets its memory."""
    for step in steps:
        step.is_needed = step.stores is not None
        if not finish and step.is_wanted():
            step.is_needed = True
            step.tensor = torch.empty((step.count // step.repeats, *step.size), dtype=step.held)
    for step in reversed(steps):
        if step.is_needed:
            for x in step.inputs:
                if x.__class__ is Step:
                    x.is_needed = True
    return [s for s in steps if s.is_needed]


@functools.lru_cache(maxsize=1024)
def _product(size: tuple[int, ...]) -> int:
    return math.prod(size)


def _chunks(steps: list[Step], num_rows: int, chunk_elements: int, num_threads: int) -> list[slice]:
    """Runs of programs whose largest block fits, at least one for each thread; programs that share rows stay
    together."""
    largest = max(1, *[_product(s.size) // s.repeats for s in steps])
    length = max(1, min(-(-num_rows // num_threads), chunk_elements // largest))
    runs = {s.repeats for s in steps} | {x.repeats for s in steps for x in s.inputs if x.__class__ is Step}
    while any(length % r and r % length for r in runs):
        length -= 1
    return [slice(i, min(i + length, num_rows)) for i in range(0, num_rows, length)]


def _programs_are_apart(steps: list[Step]) -> bool:
    """Whether no program writes what another one reads or writes, so that the order of programs cannot matter."""
    written: dict[int, list[Tiles]] = {}
    for step in steps:
        if step.stores is not None and step.tiles is not None:
            written.setdefault(step.stores, []).append(step.tiles)
    for step in steps:
        if step.loads in written and not any(step.tiles.lie_as(t) for t in written[step.loads] if step.tiles):
            return False
    return all(_are_disjoint([t.runs() for t in tiles]) for tiles in written.values())


def _are_disjoint(runs: list[tuple[np.ndarray, int]]) -> bool:
    """Whether no two runs of memory have a byte in common."""
    first = np.concatenate([starts for starts, _ in runs])
    stop = np.concatenate([starts + length for starts, length in runs])
    order = np.argsort(first)
    return bool((first[order][1:] >= stop[order][:-1]).all())


def _run_in_threads(plan: _Plan, chunks: list[slice], num_threads: int) -> None:
    """Spread the chunks over threads of one core each; the first error ends all of them."""
    waiting = chunks[::-1]

    def next_chunks() -> Iterable[slice]:
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
            for done in [pool.submit(work) for _ in range(min(num_threads, len(chunks)))]:
                done.result()
    finally:
        torch.set_num_threads(num_threads)


class _Span:
    """The part of a value that is in a chunk: its programs, lo … hi - 1, and its rows."""

    __slots__ = ("rows", "num_rows", "lo", "hi")

    def __init__(self, programs: tuple[int, int, int], chunk: slice) -> None:
        first, stop, repeats = programs
        self.lo, self.hi = max(first, chunk.start), min(stop, chunk.stop)
        self.rows = slice((self.lo - first) // repeats, -((first - self.hi) // repeats))
        self.num_rows = self.rows.stop - self.rows.start


class _Plan:
    """All steps, prepared for chunks of up to `chunk` programs.

    Values have places: first one for each step, then one for each constant. Values for the same programs have the
    same span.
    """

    def __init__(self, steps: list[Step], chunks: list[slice]) -> None:
        self.steps = steps
        self.chunk = chunks[0].stop
        self.template: list[Any] = [None] * len(steps)
        self.constants: list[tuple[int, int]] = []  # place and span of those that differ between programs
        self.programs: dict[tuple[int, int, int], int] = {}  # first, last + 1, how many share a row: number of the span
        self._places: dict[tuple[int, int], int] = {}
        for number, step in enumerate(steps):
            step.number = step.last_use = number
            step.dropped = []
            step.is_copied = False
            step.span = span = self._span(step.first, step.first + step.count, step.repeats)
            step.sources, step.narrowed = [], []
            for x in step.inputs:
                if x.__class__ is Step and x.number >= 0:
                    step.sources.append(x.number)
                    x.root.last_use = number
                    if x.span != span and x.count != step.count:
                        step.narrowed.append((len(step.sources) - 1, x.span))
                else:
                    step.sources.append(self._constant(x, step))
        self._allot()
        self._copy_what_is_overwritten()

    def _span(self, first: int, stop: int, repeats: int) -> int:
        return self.programs.setdefault((first, stop, repeats), len(self.programs))

    def _constant(self, x: Any, step: Step) -> int:
        """The place of an input that is a number, a tensor, or a step that has been done before."""
        first, stop, repeats = step.first, step.first + step.count, 1
        if x.__class__ is Step:
            x, first, stop, repeats = x.tensor, x.first, x.first + x.count, x.repeats
        key = (id(x), stop)
        place = self._places.get(key)
        if place is None:
            self._places[key] = place = len(self.template)
            self.template.append(x)
            if isinstance(x, torch.Tensor) and x.shape[0] > 1:
                self.constants.append((place, self._span(first, stop, repeats)))
        if stop != step.first + step.count:
            step.narrowed.append((len(step.sources), self._span(first, stop, repeats)))
        return place

    def _allot(self) -> None:
        """Decide where results go: over an input that nobody needs any more, or to a free part of the buffer."""
        free: dict[int, list[int]] = {}  # by bytes: offsets in the buffer
        used: dict[Step, tuple[int, int]] = {}  # offset and bytes, by the step that the memory belongs to
        self.num_bytes = 0
        steps = self.steps
        for step in steps:
            if step.root.number >= 0:
                steps[step.root.last_use].dropped.append(step.number)
        for step in steps:
            step.place = step.offset = None
            if step.tensor is None and not step.view and not step.reads_in_place and step.stores is None:
                step.place = self._overwritten(step, used) if step.overwrites else None
                if step.place is not None:
                    used[step] = used.pop(step.inputs[step.place])
                else:
                    used[step] = step.offset, _ = self._new_place(step, free)
            for number in step.dropped:
                if steps[number] in used:
                    offset, size = used.pop(steps[number])
                    free[size].append(offset)

    def _new_place(self, step: Step, free: dict[int, list[int]]) -> tuple[int, int]:
        """Room for a result: offset in the buffer, and bytes."""
        size = -(-self.chunk // step.repeats) * _product(step.size) * step.dtype.itemsize
        size = -(-size // _ALIGNMENT) * _ALIGNMENT
        if free.get(size):
            return free[size].pop(), size
        free.setdefault(size, [])
        self.num_bytes += size
        return self.num_bytes - size, size

    def _overwritten(self, step: Step, used: dict[Step, tuple[int, int]]) -> int | None:
        """The input whose memory the result may take."""
        for i in step.overwrites:
            x = step.inputs[i]
            if (
                x.__class__ is Step
                and x.last_use == step.number
                and x in used
                and x.size == step.size
                and x.dtype is step.dtype
                and x.repeats == step.repeats
                and x.first == step.first
                and [y.root for y in step.inputs if y.__class__ is Step].count(x) == 1
            ):
                return i
        return None

    def _copy_what_is_overwritten(self) -> None:
        """A value that is a view of the user's memory, and needed after that has been written to, is copied."""
        stores = [(number, step.stores) for number, step in enumerate(self.steps) if step.stores is not None]
        for number, step in enumerate(self.steps):
            if stores and step.reads_in_place:
                step.is_copied = any(m == step.loads and number < at <= step.last_use for at, m in stores)

    def run(self, chunks: Iterable[slice]) -> None:
        """Do all steps for each of the chunks, in one buffer."""
        buffer = _take_buffer(self.num_bytes)
        memory = [None if s.offset is None else self._memory(buffer, s, s.offset) for s in self.steps]
        for chunk in chunks:
            self._run_chunk([_Span(p, chunk) for p in self.programs], memory)
        if buffer.numel() <= _KEPT_BYTES:
            _buffers.append(buffer)

    def _memory(self, buffer: torch.Tensor, step: Step, offset: int) -> torch.Tensor:
        shape, dtype = (-(-self.chunk // step.repeats), *step.size), step.held
        return buffer[offset : offset + _product(shape) * dtype.itemsize].view(dtype).view(shape)

    def _run_chunk(self, spans: list[_Span], memory: list[torch.Tensor | None]) -> None:
        values = self.template.copy()
        for place, number in self.constants:
            values[place] = values[place][spans[number].rows]
        for number, step in enumerate(self.steps):
            span = spans[step.span]
            if span.lo < span.hi:
                arguments = [values[s] for s in step.sources]
                for i, other in step.narrowed:
                    outer = spans[other]
                    if outer.lo != span.lo or outer.hi != span.hi:
                        arguments[i] = arguments[i][span.lo - outer.lo : span.hi - outer.lo]
                out = memory[number]
                if out is not None:
                    if out.shape[0] != span.num_rows:
                        out = out[: span.num_rows]
                elif step.place is not None:
                    out = arguments[step.place]
                elif step.tensor is not None:
                    out = step.tensor[span.rows]
                values[number] = self._value(step, span.rows, out, arguments)
            for place in step.dropped:
                values[place] = None

    def _value(self, step: Step, rows: slice, out: torch.Tensor | None, arguments: list[Any]) -> Any:
        if step.is_plain:
            return step.function(*arguments, out=out)
        value = step.function(rows, out, *arguments)
        if value is not out and step.tensor is not None:
            assert out is not None
            return out.copy_(value)
        return value.clone() if step.is_copied else value


def _take_buffer(num_bytes: int) -> torch.Tensor:
    """Scratch memory, if possible what an earlier tape has used."""
    buffer = _buffers.pop() if _buffers else torch.empty(0, dtype=torch.uint8)
    return buffer if buffer.numel() >= num_bytes else torch.empty(num_bytes, dtype=torch.uint8)
