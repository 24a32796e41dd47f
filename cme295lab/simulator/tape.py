"""Floating-point work of a batch: written down while the kernel is interpreted, done later, some programs at a time.

Interpreting a statement costs the same for one program as for a thousand, so a batch should be large; but a pass over
a large block moves data that no cache holds. So the two are taken apart. Operations on floats of many programs become
`Step`s on a tape. When somebody needs a value (or the batch ends) the tape is played: for a chunk of programs whose
blocks fit the cache, all steps one after the other, then for the next chunk. Only values that are still needed
afterwards are written out for all programs, and chunks are spread over PyTorch's threads.

Everything that decides something happens while the step is written down: types, shapes, bounds, counts, errors.
"""

from __future__ import annotations

import math
import weakref

import torch

from cme295lab.simulator.errors import SimulatorError
from cme295lab.simulator.player import play
from cme295lab.simulator.programs import Array, ProgramSet, Selector
from cme295lab.simulator.steps import Step
from cme295lab.simulator.values import Block

CHUNK_ELEMENTS = 1 << 20  # of the largest block in a chunk; smaller ones stay in the cache but cost more calls


class PendingBlock(Block):
    """A block whose numbers are computed when somebody asks for them."""

    __slots__ = ("step", "tape", "_arrays", "__weakref__")
    _arrays: list[Array]

    def __init__(self, step: Step, tape: Tape, shape: tuple[int, ...], programs: ProgramSet) -> None:
        self._arrays = []
        self.dtype = step.dtype
        self.shape = shape
        self.programs = programs
        self.temporary = not step.view
        self.expiring = False
        self.exposed = True
        self.is_view = step.view
        self.num_elements = math.prod(shape)
        self.block_bytes = 0 if step.view or not shape else self.num_elements * step.dtype.itemsize
        self._narrowed = None
        self.step = step
        self.tape = tape
        if step.blocks is None:
            step.blocks = [weakref.ref(self)]
        else:
            step.blocks.append(weakref.ref(self))

    @property
    def arrays(self) -> list[Array]:  # type: ignore[override]
        """One row per program."""
        if not self._arrays:
            if not self.tape.computes:
                raise SimulatorError(
                    "trace(compute=False) computes no floating-point numbers, but an address, a condition or an "
                    "operation that cannot wait needs one here: leave compute=False out"
                )
            if self.step.tensor is None:
                self.tape.play()
            assert self.step.tensor is not None
            tensor = spread(self.step.tensor, self.step.repeats)[: len(self.programs)]
            self._arrays = [tensor if self.dtype.is_float else tensor.numpy().view(self.dtype.numpy)]
        return self._arrays

    @arrays.setter
    def arrays(self, value: list[Array]) -> None:
        self._arrays = value

    def restricted(self, programs: ProgramSet, selector: Selector, *, copy: bool = False) -> Block:
        step = self.step
        if not self.tape.computes:
            return PendingBlock(step, self.tape, self.shape, programs)
        if step.tensor is not None or step.repeats > 1 or not isinstance(selector, slice):
            return super().restricted(programs, selector, copy=copy)
        if copy:
            rest = slice(selector.start, selector.stop)
            step = Step(_copied, [step], step.size, step.dtype)
            self.tape.append(step, self.programs, rest)
        elif selector.start:
            return super().restricted(programs, selector)
        block = PendingBlock(step, self.tape, self.shape, programs)
        block.temporary = False
        return block


def _copied(rows: slice, out: torch.Tensor | None, data: torch.Tensor) -> torch.Tensor:
    return data.clone() if out is None else out.copy_(data)


def spread(tensor: torch.Tensor, repeats: int) -> torch.Tensor:
    """Rows that `repeats` programs share, once for each of them."""
    return tensor if repeats == 1 else tensor.repeat_interleave(repeats, 0)


class Tape:
    """The steps that have been written down and not done yet: all for the same programs, or for fewer and fewer of
    them, always the first ones."""

    computes = True

    def __init__(self, chunk_elements: int) -> None:
        self.chunk_elements = chunk_elements
        self.steps: list[Step] = []
        self.times_played = 0
        self.programs: ProgramSet | None = None
        self._loaded: set[int] = set()
        self._stored: set[int] = set()

    def append(self, step: Step, programs: ProgramSet, rows: slice | None = None) -> Step:
        """Write a step down, for programs or for some rows of them; steps for others are done first."""
        if self.programs is not programs.first_of:
            self.play()
            self.programs = programs.first_of
        if rows is None:
            step.first, step.count = 0, programs.size
        else:
            step.first, step.count = rows.start, rows.stop - rows.start
        self.steps.append(step)
        if step.loads is not None:
            self._loaded.add(step.loads)
        if step.stores is not None:
            self._stored.add(step.stores)
        return step

    def before_load(self, memory: int) -> None:
        """To be called before memory is read at once: what is to be stored there must be there."""
        if memory in self._stored:
            self.play()

    def before_store(self, memory: int) -> None:
        """To be called before memory is written at once: what is to be read from there must have been read."""
        if memory in self._stored or memory in self._loaded:
            self.play()

    def play(self, *, finish: bool = False) -> None:
        """Do all steps; with finish=True nobody needs a value any more, only what is stored counts."""
        steps, self.steps, self.programs = self.steps, [], None
        self.times_played += 1
        self._loaded.clear()
        self._stored.clear()
        if steps:
            play(steps, self.chunk_elements, finish=finish)


class BlankTape(Tape):
    """Forgets every step: for a launch of which only the counts are wanted.

    Values are never there, so nobody can ask for them. `blank` is the memory in which values would have been stored.
    """

    computes = False

    def __init__(self, blank: set[int]) -> None:
        super().__init__(0)
        self.blank = blank

    def append(self, step: Step, programs: ProgramSet, rows: slice | None = None) -> Step:
        step.first, step.count = 0, programs.size
        step.inputs = ()
        if step.stores is not None:
            self.blank.add(step.stores)
        return step

    def before_load(self, memory: int) -> None:
        if memory in self.blank:
            raise SimulatorError(
                "trace(compute=False): an atomic operation meets memory that was not computed: leave compute=False out"
            )

    def before_store(self, memory: int) -> None:
        pass
