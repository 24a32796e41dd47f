"""What a memory timeline writes down: one record per storage, one event per change.

A storage is the block of bytes behind a tensor; views share one. Its record says what it is (its class), where it came
from and when it lived. What it is may be known only later: a matrix product becomes an activation when autograd saves
it, a block made in the first optimizer step turns out to be a state. So names come in two strengths. "temporary" and
"input" are weak: a later name replaces them from the storage's first moment on. All others are strong: a later name
holds from then on, and the log has an event for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch

WEIGHT = "weight"
GRADIENT = "gradient"
OPTIMIZER_STATE = "optimizer state"
ACTIVATION = "activation"
TEMPORARY = "temporary"
INPUT = "input"
OFFLOADED = "offloaded"
CLASSES = (WEIGHT, GRADIENT, OPTIMIZER_STATE, ACTIVATION, TEMPORARY, INPUT)
WEAK = (TEMPORARY, INPUT)

EventKind = Literal["allocate", "free", "resize", "rename"]


class SourceLine(NamedTuple):
    """A line of a program.

    Attributes:
        file: path of the file.
        line: number of the line, from 1.
        function: name of the function.
    """

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file.rpartition('/')[2]}:{self.line}"


@dataclass(slots=True, eq=False, kw_only=True)
class StorageRecord:
    """One storage, from its first moment to its last.

    Attributes:
        number: storages are numbered in the order in which they were first seen.
        num_bytes: its size now; the last size once it is gone.
        dtype, shape: of the first tensor that was seen on it.
        device: where it lives.
        operator: what made it, for instance "aten.mm.default"; empty for a storage that was there before.
        module: path of the module at work, or of the one whose backward pass was at work.
        name: name of the parameter that it belongs to, for weights, gradients and states of a known model.
        stack: lines of the program that led to it, the innermost first; torch's own and this package's left out.
        born, phase: number of the event of its first moment, and the phase of the step.
        died, death_phase: the same of its last moment; None while it lives.
        classes: its names, each with the number of the event from which it holds.
    """

    number: int
    num_bytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    device: torch.device
    operator: str
    module: str
    stack: tuple[SourceLine, ...]
    born: int
    phase: str
    classes: list[tuple[int, str]]
    name: str = ""
    died: int | None = None
    death_phase: str | None = None
    fixed: bool = field(default=False, repr=False)  # named by hand

    @property
    def class_name(self) -> str:
        """What it is, by what is known now."""
        return self.classes[-1][1]

    @property
    def source(self) -> SourceLine | None:
        """The innermost line of the program that made it; None if there is none outside torch."""
        return self.stack[0] if self.stack else None

    def label(self, event: int | None = None) -> str:
        """Class, place and operator, for instance "activation, layers.0.mlp, aten.mm.default at train.py:12".

        Args:
            event: as it was then; None for what is known now.
        """
        class_name = self.class_name if event is None else self.class_at(event)
        maker = " at ".join(str(part) for part in (self.operator, self.source) if part)
        return ", ".join(part for part in (class_name, self.name or self.module, maker) if part)

    def class_at(self, event: int) -> str:
        """What it was at an event."""
        return next((name for start, name in reversed(self.classes) if start <= event), self.classes[0][1])

    def rename(self, name: str, event: int) -> bool:
        """Give it a name; returns whether the name holds from `event` on only, rather than from the start."""
        if self.class_name in WEAK:
            self.classes[-1] = (self.classes[-1][0], name)
            return False
        self.classes.append((event, name))
        return True


class Event(NamedTuple):
    """A change of what is alive.

    Attributes:
        record: the storage.
        kind: what happened to it.
        before_bytes, after_bytes: its size before and after.
        live_bytes: of all storages, after it.
        phase: the phase of the step.
    """

    record: StorageRecord
    kind: EventKind
    before_bytes: int
    after_bytes: int
    live_bytes: int
    phase: str
