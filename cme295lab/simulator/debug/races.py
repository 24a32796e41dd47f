"""The race detector: two programs that touch one element, at least one of them writing, with nothing that orders them.

A GPU promises no order between the programs of a launch. So two accesses of the same element by different programs are
a race unless both only read, both are atomics, or atomics on a single address order them (see `ordering`). Lanes of one
program that store *different* values to one element in one `tl.store` are a race of that program with itself.

The check is exact to the element: an element is in a race if, and only if, some access of it is reported — where
atomics order programs it may miss a race (only the last accesses of an element are remembered there, and an atomic of
several lanes is not taken for a lock), but does not invent one. Programs that write the *same* value to an element
are a note, not a problem: the result is defined, though the work is done twice, and other inputs may give
others.

Cost: see docs/simulator.md; 4 to 24 bytes for each element of a tensor that the kernel writes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cme295lab.simulator.addresses import Access
from cme295lab.simulator.debug.ordering import Order
from cme295lab.simulator.debug.problem import (
    Problem,
    Program,
    program_of_number,
    shown_index,
    shown_line,
    shown_program,
)  # fmt: skip
from cme295lab.simulator.debug.runs import runs_of
from cme295lab.simulator.debug.shadow import Conflict, Shadow, Touch
from cme295lab.simulator.errors import Place
from cme295lab.simulator.indices import index_of
from cme295lab.simulator.machine import AccessKind, Machine
from cme295lab.simulator.storage import Storage

MAX_CODE = 2**31 - 1  # larger codes are kept in 64 bits
_VERBS: dict[AccessKind, str] = {"load": "loads", "store": "stores", "atomic": "updates atomically"}


@dataclass(frozen=True)
class Site:
    """An access instruction: where it is, what it does, to which tensor."""

    place: Place
    kind: AccessKind
    tensor: str


@dataclass
class _Race:
    """The first of the races between two instructions (in the order of the source), and how many there were."""

    upper: Site
    lower: Site
    index: tuple[int, ...]
    programs: tuple[Program, Program]
    same_value: bool
    count: int


class RaceDetector:
    """Observes one launch; afterwards `problems` and `notes` say what it saw."""

    def __init__(self) -> None:
        self._shadows: dict[int, Shadow] = {}
        self._sites: dict[Site, int] = {}
        self._entries: list[tuple[Site, int]] = []  # code // num_programs -> instruction, clock at the access
        self._entry_of: dict[tuple[int, int], int] = {}
        self._order = Order()
        self._races: dict[tuple[Site, Site, bool], _Race] = {}
        self._code_type: type[np.signedinteger] = np.int32
        self.grid: Program = (1, 1, 1)
        self.kernel = ""

    # ---- watching

    def access(self, m: Machine, access: Access, kind: AccessKind) -> None:
        """One load, store or atomic of all active programs."""
        self.grid, self.kernel = m.grid, m.kernel_name
        runs = runs_of(m, access, one_for_all=kind == "load")
        if runs is None:
            return
        storage = access.pointer.storage
        assert m.source is not None
        site = Site(m.source.place(m.line), kind, storage.name)
        shadow = self._shadow(storage, m)
        factor = storage.dtype.itemsize // shadow.unit_bytes
        numbers = m.active_numbers()
        if kind == "atomic" and not access.shape:
            self._order.add(numbers[runs.rows], runs.starts * factor, used=not m.discard_result)
        programs = numbers[runs.rows].reshape(-1, 1)
        codes = self._codes(site, programs, shadow.num_programs)
        touch = Touch(runs.scaled(factor), codes, programs.astype(np.int32))
        for conflict in getattr(shadow, kind)(touch):
            self._report(conflict, touch, site, storage, factor)

    def _shadow(self, storage: Storage, m: Machine) -> Shadow:
        """The memory of what happened to a tensor; arguments that share memory share it."""
        memory, size = storage.tensor.untyped_storage(), storage.dtype.itemsize
        shadow = self._shadows.get(memory._cdata)
        if shadow is None:
            x, y, z = m.grid
            shadow = self._shadows[memory._cdata] = Shadow(memory.nbytes() // size, size, x * y * z)
        elif size < shadow.unit_bytes:
            shadow.split_units(size)
        return shadow

    def _codes(self, site: Site, programs: np.ndarray, num_programs: int) -> np.ndarray:
        key = self._sites.setdefault(site, len(self._sites)), self._order.clock
        entry = self._entry_of.get(key)
        if entry is None:
            entry = self._entry_of[key] = len(self._entries)
            self._entries.append((site, self._order.clock))
            if self._code_type is np.int32 and (entry + 1) * num_programs > MAX_CODE:
                self._code_type = np.int64
                for shadow in self._shadows.values():
                    shadow.widen()
        return (programs + entry * num_programs).astype(self._code_type)

    # ---- judging

    def _report(self, conflict: Conflict, touch: Touch, site: Site, storage: Storage, factor: int) -> None:
        """Sort the lanes of a conflict by the earlier instruction, leave out those that are ordered."""
        num_programs = self._shadows[storage.tensor.untyped_storage()._cdata].num_programs
        for entry in np.unique(conflict.earlier // num_programs):
            earlier, clock = self._entries[int(entry)]
            mine = conflict.earlier // num_programs == entry
            lanes, first = conflict.lanes[mine], conflict.earlier[mine] % num_programs
            second = touch.programs.reshape(-1)[lanes // touch.runs.length]
            same = np.zeros(len(lanes), bool) if conflict.same_value is None else conflict.same_value[mine]
            keep = ~same | (first != second)  # one program may store one value twice
            keep &= ~self._ordered(first, second, clock)
            for alike in (False, True):
                chosen = np.flatnonzero(keep & (same == alike))
                if len(chosen):
                    at = int(chosen[0])
                    pair = (int(first[at]), int(second[at]))
                    element = touch.runs.element(int(lanes[at])) // factor
                    self._add(earlier, site, storage, element, pair, same_value=alike, count=len(chosen))

    def _ordered(self, first: np.ndarray, second: np.ndarray, clock: int) -> np.ndarray:
        """Whether atomics order the two programs of each conflict."""
        if not self._order.uses_results:
            return np.zeros(len(first), bool)
        pairs, which = np.unique(np.stack([first, second]), axis=1, return_inverse=True)
        now = self._order.clock
        answers = [
            p != q and self._order.between(int(p), clock, int(q), now) for p, q in zip(*pairs.tolist(), strict=True)
        ]
        return np.array(answers, bool)[which.reshape(-1)]

    def _add(
        self, earlier: Site, later: Site, storage: Storage, element: int, pair: tuple[int, int], *,
        same_value: bool, count: int,
    ) -> None:  # fmt: skip
        known = self._races.get((earlier, later, same_value)) or self._races.get((later, earlier, same_value))
        if known is not None:
            known.count += count
            return
        tensor = storage.tensor
        if later.place.line < earlier.place.line or (later == earlier and pair[1] < pair[0]):
            earlier, later, pair = later, earlier, pair[::-1]
        self._races[earlier, later, same_value] = _Race(
            earlier, later, index_of(tensor.shape, tensor.stride(), element - storage.first_element),
            (program_of_number(pair[0], self.grid), program_of_number(pair[1], self.grid)), same_value, count,
        )  # fmt: skip

    def release(self) -> None:
        """Give the memory back; what was found stays."""
        self._shadows.clear()

    # ---- telling

    def problems(self) -> list[Problem]:
        """The races in which the outcome depends on the order, one for each pair of instructions."""
        return [self._problem(race) for race in self._races.values() if not race.same_value]

    def notes(self) -> list[Problem]:
        """The pairs of instructions that only ever wrote the same value to an element, without any other race on that
        tensor (programs that each add 1 to what all of them have read write the same value, too)."""
        wrong = {race.lower.tensor for race in self._races.values() if not race.same_value}
        return [
            self._problem(race) for race in self._races.values() if race.same_value and race.lower.tensor not in wrong
        ]

    def _problem(self, race: _Race) -> Problem:
        place, (first, second) = race.lower.place, race.programs
        element = f"{race.lower.tensor}{shown_index(race.index)}"
        if first == second:
            what = f"{shown_program(first)} stores different values to {element} from several lanes of one tl.store"
            lines = [f"  {shown_line(place)}"]
        else:
            what = f"{_said(race.upper, first)} and {_said(race.lower, second)} {element}"
            if race.same_value:
                what += " with the same value"
            lines = [f"  {shown_program(first)}: {shown_line(race.upper.place)}"]
            lines += [f"  {shown_program(second)}: {shown_line(place)}"]
        title = f"race in kernel {self.kernel}: {what}" + ("" if first == second else ", and nothing orders the two")
        if race.count > 1:
            lines.append(f"  {race.count:,} such accesses in all; this is the first")
        return Problem(
            kind="race", kernel=self.kernel, file=place.file, line=place.line, source=place.source.strip(),
            tensor=race.lower.tensor, index=race.index, programs=race.programs, count=race.count,
            message="\n".join([title, *lines, f"  fix: {self._fix(race)}"]),
        )  # fmt: skip

    def _fix(self, race: _Race) -> str:
        kinds, tensor = {race.upper.kind, race.lower.kind}, race.lower.tensor
        if race.programs[0] == race.programs[1]:
            return (
                "let every lane of the block have its own element (check the strides), or reduce the block first "
                "(tl.sum) and store one number"
            )
        if race.same_value:
            return "let one program store it (mask the others), or leave it: the result does not depend on the order"
        if "atomic" in kinds:
            return "an atomic is safe only against other atomics: make both accesses atomic, or use two launches"
        stores_meet = any(e.kind == n.kind == "store" and n.tensor == tensor for e, n, _ in self._races)
        if stores_meet and any(s.kind == "load" and s.tensor == tensor for s in self._sites):
            return (
                f"if programs add to {tensor!r} what they load from it, use tl.atomic_add (on zeros) instead of "
                "tl.load and tl.store; otherwise each program must own its output block"
            )
        if stores_meet:
            return (
                "each program must own its output block: check the offsets that tl.program_id goes into, and the "
                "block size against the grid; if the programs are to add up, use tl.atomic_add on zeros"
            )
        return (
            f"write to another tensor than the one that is read, or use two launches: programs of one launch cannot "
            f"wait for each other's part of {tensor!r}"
        )


def _said(site: Site, program: Program) -> str:
    return f"{shown_program(program)} {_VERBS[site.kind]}"
