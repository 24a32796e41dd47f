"""Programs that take different paths, and how they come together again.

At an `if`, `for` or `while` whose condition differs between programs, each group runs its path as the active set,
with its own variables. Groups that are done are *parked*: their variables, where somebody reads them later, are kept
aside. At the end of the statement all groups
meet again: `reconverge` puts the parked values together, row by row, for the programs that are still running.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cme295lab.simulator.compound import Compound, alike, parts, rebuilt
from cme295lab.simulator.deferred import blank
from cme295lab.simulator.errors import SimulatorError
from cme295lab.simulator.machine import Machine
from cme295lab.simulator.programs import Array, ProgramSet, Selector, combine
from cme295lab.simulator.tape import PendingBlock
from cme295lab.simulator.values import Block, Pointer, scalar, sum_terms

Variables = dict[str, Any]
EMPTY = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Group:
    """Programs that are done with a divergent statement, and their variables."""

    programs: ProgramSet
    variables: Variables


class Differs:
    """Stands for a variable that differs between programs in a way that no kernel value can hold."""

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, reason

    def error(self) -> SimulatorError:
        return SimulatorError(f"{self.name!r} {self.reason}")


def reconverge(m: Machine, entry: ProgramSet, groups: list[Group], live: frozenset[str]) -> Variables:
    """Make the programs of all groups the active set and return their variables, merged.

    Args:
        m: the machine; its active set is changed.
        entry: the set that was active before the statement.
        groups: the groups that go on after it (programs that returned are in none).
        live: names that are read later; others are dropped.
    """
    groups = [g for g in groups if len(g.programs)]
    if not groups:
        m.active = entry.select(EMPTY)
        return {}
    rows = [entry.rows_of(g.programs) for g in groups]
    total = sum(len(r) for r in rows)
    if total == len(entry):
        m.active = entry
    else:
        kept = np.sort(np.concatenate(rows))
        m.active = entry.select(kept)
        rows = [np.searchsorted(kept, r) for r in rows]
    merged: Variables = {}
    for name in live:
        having = [g.variables[name] for g in groups if name in g.variables]
        if len(having) == len(groups):
            merged[name] = merge(m, name, having, groups, rows)
        elif having:
            merged[name] = Differs(name, "has no value in some programs: it is assigned on one path only")
    return merged


def merge(m: Machine, name: str, values: list[Any], groups: list[Group], rows: list[np.ndarray]) -> Any:
    """One value made of the groups' values."""
    first = values[0]
    compound = isinstance(first, tuple | list | Compound)
    if all(v is first for v in values) and (
        not (compound or isinstance(first, Block)) or _made_before(m.active, first)
    ):
        return first
    if compound and all(alike(first, v) for v in values):
        columns = zip(*[parts(v) or () for v in values], strict=True)
        merged = [merge(m, name, list(column), groups, rows) for column in columns]
        return next((part for part in merged if isinstance(part, Differs)), rebuilt(first, merged))
    if not any(isinstance(v, Block) for v in values) and all(type(v) is type(first) and v == first for v in values):
        return first
    if not all(isinstance(v, Block | int | float) for v in values):
        return Differs(name, "differs between programs and is not a number or block in all of them")
    return _merge_blocks(m, name, values, groups, rows)


def _made_before(programs: ProgramSet, value: Any) -> bool:
    """Whether a value belongs to these programs or to a set that they come from, so that it can be narrowed to them."""
    if not isinstance(value, Block):
        return False
    ancestor: ProgramSet | None = programs
    while ancestor is not None and ancestor is not value.programs:
        ancestor = ancestor.parent
    return ancestor is not None


def _merge_blocks(m: Machine, name: str, values: list[Any], groups: list[Group], rows: list[np.ndarray]) -> Any:
    blocks = [v if isinstance(v, Block) else scalar(v, g.programs) for v, g in zip(values, groups, strict=True)]
    dtype = blocks[0].dtype
    if any(
        b.dtype != dtype or b.shape != blocks[0].shape or isinstance(b, Pointer) != isinstance(blocks[0], Pointer)
        for b in blocks
    ):
        kinds = " and ".join(sorted({f"{b.dtype}{list(b.shape)}" for b in blocks}))
        return Differs(name, f"has different types on different paths ({kinds}); Triton needs one type")
    if any(isinstance(b, PendingBlock) for b in blocks) and not m.tape.computes:
        return blank(m, dtype, blocks[0].shape)
    terms = [b.terms(g.programs) for b, g in zip(blocks, groups, strict=True)]
    storages = [b.storage for b in blocks if isinstance(b, Pointer)]
    if storages and any(s is not storages[0] for s in storages):  # from here on it may point into any of them
        pairs = [m.memory.anywhere(b, ts) for b, ts in zip(blocks, terms, strict=True) if isinstance(b, Pointer)]
        terms, storages = [ts for ts, _ in pairs], [s for _, s in pairs]
    layouts = {tuple(tuple(n != 1 for n in t.shape[1:]) for t in ts) for ts in terms}
    if len(layouts) == 1:
        arrays = [_merge_terms([ts[i] for ts in terms], rows, m.num_active) for i in range(len(terms[0]))]
    else:
        whole = [
            b.data(g.programs) if not storages else sum_terms(ts)
            for b, g, ts in zip(blocks, groups, terms, strict=True)
        ]
        arrays = [combine(list(zip(rows, whole, strict=True)), m.num_active)]
    if storages:
        return Pointer(arrays, dtype, blocks[0].shape, m.active, storages[0])
    result = Block(arrays, dtype, blocks[0].shape, m.active)
    result.temporary = False
    return result


def _merge_terms(parts: list[Array], rows: list[np.ndarray], num_programs: int) -> Array:
    """One term of all groups; a term that is the same in every program stays a single row."""
    first = parts[0]
    if isinstance(first, np.ndarray) and all(p.shape[0] == 1 and np.array_equal(p, first) for p in parts):
        return first
    return combine(list(zip(rows, parts, strict=True)), num_programs)


class Leaving:
    """Programs leaving a loop one by one: parks those that are done and narrows the variables of those that stay.

    `base` is the set in which the loop's programs were ordered; every smaller set is made from it directly, so that
    values made before the loop are narrowed in one step, however many times programs have left.
    """

    def __init__(self, m: Machine, base: ProgramSet, live: frozenset[str], needed: frozenset[str]) -> None:
        self.m = m
        self.live = live  # names that are read after the loop
        self.needed = needed  # names that are read in the next turn or after the loop
        self.base = base
        self.rows: Selector = slice(0, len(base))
        self.groups: list[Group] = []
        m.active = base

    def park(self, leaving: Selector, variables: Variables) -> None:
        """Keep aside the rows `leaving` of the active set."""
        active = self.m.active
        programs = active.select(leaving)
        kept = {
            name: _narrowed(variables[name], active, programs, leaving, copy=True)
            for name in self.live
            if name in variables
        }
        self.groups.append(Group(programs, kept))

    def keep(self, staying: Selector, variables: Variables) -> None:
        """Go on with the rows `staying` of the active set; `variables` are narrowed in place, or dropped."""
        active = self.m.active
        if (active.parent is self.base and active.selector is self.rows) or active is self.base:
            rows = staying if active is self.base else _composed(self.rows, staying)
        else:  # programs have returned inside the loop: start again from what is left
            self.base, rows = active, staying
        narrowed = self.base.select(rows)
        self.rows = rows
        for name in [n for n in variables if n not in self.needed]:
            del variables[name]
        for name, value in variables.items():
            variables[name] = _narrowed(value, active, narrowed, staying, copy=False)
        self.m.active = narrowed

    def finish(self, entry: ProgramSet, variables: Variables) -> Variables:
        """All programs are done: bring them together."""
        if self.m.num_active:
            self.groups.append(Group(self.m.active, variables))
        return reconverge(self.m, entry, self.groups, self.live)


def _composed(outer: Selector, inner: Selector) -> Selector:
    """Selecting `inner` from what `outer` selects, as one selection."""
    if isinstance(outer, slice):
        if isinstance(inner, slice):
            return slice((outer.start or 0) + (inner.start or 0), (outer.start or 0) + inner.stop)
        return inner + (outer.start or 0)
    return outer[inner]


def _narrowed(value: Any, active: ProgramSet, programs: ProgramSet, selector: Selector, *, copy: bool) -> Any:
    """A variable for a subset of the active programs; a value from before the region is narrowed when it is read."""
    if isinstance(value, tuple | Compound):
        return rebuilt(value, [_narrowed(v, active, programs, selector, copy=copy) for v in parts(value) or ()])
    if isinstance(value, Block) and value.programs is active:
        return value.restricted(programs, selector, copy=copy)
    return value
