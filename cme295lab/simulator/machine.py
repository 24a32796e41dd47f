"""The state of a running launch: which programs are active, where in the kernel they are, and what has been
counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from cme295lab.simulator.memory import Memory
from cme295lab.simulator.programs import ProgramSet
from cme295lab.simulator.tape import CHUNK_ELEMENTS, Tape
from cme295lab.simulator.values import Block

if TYPE_CHECKING:
    from cme295lab.simulator.addresses import Access
    from cme295lab.simulator.source import KernelSource

AccessKind = Literal["load", "store", "atomic"]


class Watcher(Protocol):
    """Sees every assignment of a launch."""

    def begin(self, m: Machine) -> None:
        """A launch is about to run."""

    def assigned(self, m: Machine, name: str, value: Any) -> None:
        """A variable, of the function `m.source`, got a value; it must not be kept, only copied."""


class Observer(Protocol):
    """Sees every memory access of a launch, for a count or a check that costs too much to be always on.

    It must not keep the access itself (operations may overwrite the arrays of its operands later), only what it has
    copied or computed from it. An observer with an attribute `sees_values = False` looks at addresses only; any other
    finds the words of a store in `access.stored`, and memory as it was when the access was made, which takes longer.
    """

    def access(self, m: Machine, access: Access, kind: AccessKind) -> None:
        """One load, store or atomic of all active programs, after it has been found to be in bounds."""


@dataclass(frozen=True)
class AccessEvent:
    """One load, store or atomic of the batch: per program the first active element and the bytes moved."""

    kind: AccessKind
    tensor: str
    line: int
    text: str
    programs: np.ndarray  # (n,) positions in the grid
    first_elements: np.ndarray  # (n,) element offsets from the tensor's first element; no meaning where no bytes move
    num_bytes: np.ndarray  # (n,)
    shape: tuple[int, ...]


@dataclass(frozen=True)
class AssignEvent:
    """A watched variable got a new value; `values` has one row per program of `programs`, or one for all."""

    variable: str
    line: int
    text: str
    programs: np.ndarray
    values: np.ndarray


@dataclass
class Counters:
    """What a launch has cost so far. FLOPs are summed over programs; on-chip bytes are those of one program."""

    dot_flops: int = 0
    dot_flops_by_format: dict[str, int] = field(default_factory=dict)
    other_flops: int = 0
    transcendental_ops: int = 0
    sram_peak_bytes: int = 0
    sram_by_line: dict[int, int] = field(default_factory=dict)
    events: list[AccessEvent | AssignEvent] = field(default_factory=list)

    def count_dot(self, flops: int, number_format: str) -> None:
        """Add the FLOPs of a product, which a GPU computes in a number format such as "bf16" or "tf32"."""
        self.dot_flops += flops
        self.dot_flops_by_format[number_format] = self.dot_flops_by_format.get(number_format, 0) + flops


def _no_interpreter(function: Any, arguments: list[Any]) -> Any:
    raise AssertionError("no interpreter is attached to this machine")


class Machine:
    """State shared by the interpreter and the operations while a batch of programs runs.

    `held_bytes` are block bytes of one program that variables keep alive during the current statement,
    `temporary_bytes` those of intermediate results within it; their largest sum is the on-chip peak. `call` runs a
    jit function (reductions have one as argument).
    """

    def __init__(
        self,
        grid: tuple[int, int, int],
        *,
        counting: bool,
        recording: bool,
        watch: frozenset[str],
        observers: Sequence[Observer] = (),
        watchers: Sequence[Watcher] = (),
        kernel_name: str = "",
        tape: Tape | None = None,
    ) -> None:
        self.grid = grid
        self.memory = Memory()
        self.counting = counting
        self.recording = recording
        self.watch = watch
        self.observers = observers  # told of every access, if counting
        self.shows_values = counting and any(getattr(o, "sees_values", True) for o in observers)
        self.watchers = watchers  # told of every assignment
        self.kernel_name = kernel_name
        self.statement = 0  # number of the statement that runs
        self.begun = 0  # how many statements (and turns of a loop) have begun
        self.counters = Counters()
        self.active = ProgramSet(np.zeros(1, np.int64))
        self.program_ids = np.zeros((1, 3), np.int32)  # (batch, 3)
        self.first_program = 0
        self.source: KernelSource | None = None  # of the function that runs: `line` is a line of its file
        self.line = 0
        self.line_text = ""
        self.largest_block = 1
        self.discard_result = False
        self.held_bytes = 0
        self.temporary_bytes = 0
        self.call: Callable[[Any, list[Any]], Any] = _no_interpreter
        self.tape = tape or Tape(CHUNK_ELEMENTS)

    def begin_batch(self, first: int, last: int) -> None:
        """Make programs first … last - 1 (numbered with grid axis 0 running fastest) the active set."""
        number = np.arange(first, last)
        gx, gy, _ = self.grid
        self.program_ids = np.stack([number % gx, number // gx % gy, number // (gx * gy)], axis=1).astype(np.int32)
        self.first_program = first
        self.active = ProgramSet(np.arange(last - first))
        self.held_bytes = self.temporary_bytes = 0

    @property
    def num_active(self) -> int:
        return self.active.size

    def program_of_row(self, row: int) -> tuple[int, int, int]:
        """Grid coordinates of a row of the active set."""
        x, y, z = self.program_ids[self.active.ids[row if len(self.active) > 1 else 0]]
        return int(x), int(y), int(z)

    def active_numbers(self) -> np.ndarray:
        """Positions in the grid of the active programs."""
        return self.active.ids + self.first_program

    def note_block(self, block: Block) -> None:
        """Called for every result: the size of the next batch depends on the largest block."""
        size = block.num_elements
        if size > self.largest_block:
            self.largest_block = size

    def count_float_ops(self, num_elements: int, *, transcendental: bool = False) -> None:
        """Count one floating-point operation on every element of a block, in every active program."""
        if transcendental:
            self.counters.transcendental_ops += num_elements * self.num_active
        else:
            self.counters.other_flops += num_elements * self.num_active
