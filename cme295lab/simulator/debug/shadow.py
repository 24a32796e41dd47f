"""Who touched which element last: the memory of the race detector, next to one tensor's own.

An entry is a *code* that stands for a program and an access instruction. Of plain stores the last is kept; of plain
loads, and of atomics, the last two of different programs: with these, every element that has a race shows one. Loads
wait in a list until somebody writes to the tensor, so tensors that are only read cost almost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cme295lab.simulator.debug.runs import Runs

PENDING_BYTES = 64_000_000


@dataclass(frozen=True)
class Touch:
    """Runs of elements with the code and the program of each."""

    runs: Runs
    codes: np.ndarray  # (n, 1)
    programs: np.ndarray  # (n, 1) positions in the grid


@dataclass(frozen=True)
class Conflict:
    """Lanes that collide with an earlier access.

    Attributes:
        lanes: positions in the flattened (n, length) lanes of the later access.
        earlier: code of the earlier access, for each of them.
        same_value: where both store, whether they store the same value.
    """

    lanes: np.ndarray
    earlier: np.ndarray
    same_value: np.ndarray | None = None


class Shadow:
    """The last accesses of each element of one tensor's memory."""

    def __init__(self, num_elements: int, unit_bytes: int, num_programs: int) -> None:
        self.num_elements = num_elements
        self.unit_bytes = unit_bytes
        self.num_programs = num_programs
        self.keeps_values = True  # not if the memory is seen as elements of several sizes
        self.roles: dict[str, np.ndarray] = {}
        self.values: np.ndarray | None = None
        self._pending: list[Touch] = []
        self._pending_bytes = 0

    def split_units(self, unit_bytes: int) -> None:
        """Count in smaller units from now on: the memory is also seen as elements of that size."""
        self._flush()
        factor = self.unit_bytes // unit_bytes
        self.roles = {role: np.repeat(array, factor) for role, array in self.roles.items()}
        self.num_elements *= factor
        self.unit_bytes = unit_bytes
        self.keeps_values, self.values = False, None

    def widen(self) -> None:
        """Keep 64-bit codes from now on: there are more programs times instructions than 32 bits can tell apart."""
        self._flush()
        self.roles = {role: array.astype(np.int64) for role, array in self.roles.items()}

    # ---- the three kinds of access; each gives the conflicts with what came before

    def load(self, touch: Touch) -> Iterator[Conflict]:
        """Programs read these elements."""
        if not self._is_written():
            self._pending.append(touch)
            self._pending_bytes += touch.runs.starts.nbytes + touch.programs.nbytes + touch.codes.nbytes
            if self._pending_bytes > PENDING_BYTES:
                self._flush()
            return
        yield from self._against(touch, "store", "atomic", "other atomic")
        self._note_two(touch, "load")

    def atomic(self, touch: Touch) -> Iterator[Conflict]:
        """Programs read and write these elements in one indivisible step each."""
        self._flush()
        yield from self._against(touch, "store", "load", "other load")
        self._note_two(touch, "atomic")

    def store(self, touch: Touch) -> Iterator[Conflict]:
        """Programs write these elements."""
        self._flush()
        runs = touch.runs
        words = self._words(runs)
        yield from self._against(touch, "load", "other load", "atomic", "other atomic")
        last = self.roles.get("store")
        if last is None:
            last = self.roles["store"] = np.full(self.num_elements, -1, touch.codes.dtype)
        window = runs.windows(last)
        before = window[runs.starts]
        differs = (before >= 0) & (before % self.num_programs != touch.programs)
        if differs.any():
            lanes = np.flatnonzero(differs)
            same = None
            if words is not None and self.values is not None:
                same = (runs.windows(self.values)[runs.starts] == words).reshape(-1)[lanes]
            yield Conflict(lanes, before.reshape(-1)[lanes], same)
        window[runs.starts] = touch.codes
        if words is not None:
            if self.values is None:
                self.values = np.zeros(self.num_elements, words.dtype)
            runs.windows(self.values)[runs.starts] = words
        yield from self._within(touch, words)

    # ---- parts

    def _is_written(self) -> bool:
        return "store" in self.roles or "atomic" in self.roles

    def _flush(self) -> None:
        """Enter the loads that have waited."""
        pending, self._pending, self._pending_bytes = self._pending, [], 0
        for touch in pending:
            self._note_two(touch, "load")

    def _words(self, runs: Runs) -> np.ndarray | None:
        """What a store writes, as integers (two NaNs of the same bits are the same value)."""
        if runs.words is None or not self.keeps_values:
            return None
        words = np.ascontiguousarray(runs.words)
        return words.view(f"i{words.itemsize}") if words.dtype.kind == "f" else words

    def _against(self, touch: Touch, *roles: str) -> Iterator[Conflict]:
        """Conflicts with the last accesses of some kinds by other programs."""
        for role in roles:
            known = self.roles.get(role)
            if known is None:
                continue
            before = touch.runs.windows(known)[touch.runs.starts]
            differs = (before >= 0) & (before % self.num_programs != touch.programs)
            if differs.any():
                lanes = np.flatnonzero(differs)
                yield Conflict(lanes, before.reshape(-1)[lanes])

    def _note_two(self, touch: Touch, role: str) -> None:
        """Enter the last access of a kind, and keep the last one of another program."""
        runs, codes = touch.runs, touch.codes
        last = self.roles.get(role)
        if last is None:
            last = self.roles[role] = np.full(self.num_elements, -1, codes.dtype)
            before = None
        else:
            before = runs.windows(last)[runs.starts]
        window = runs.windows(last)
        window[runs.starts] = codes
        now = window[runs.starts]
        self._note_other(touch, role, now, np.broadcast_to(codes, now.shape))
        if before is not None:
            self._note_other(touch, role, now, before)

    def _note_other(self, touch: Touch, role: str, now: np.ndarray, others: np.ndarray) -> None:
        wanted = (others >= 0) & (others != now)
        if wanted.any():
            wanted &= others % self.num_programs != now % self.num_programs
            if wanted.any():
                array = self.roles.get(f"other {role}")
                if array is None:
                    array = self.roles[f"other {role}"] = np.full(self.num_elements, -1, now.dtype)
                run, lane = np.nonzero(wanted)
                array[touch.runs.starts[run] + lane] = others[wanted]

    def _within(self, touch: Touch, words: np.ndarray | None) -> Iterator[Conflict]:
        """Conflicts between the lanes of one store: of several that meet, all but one lose."""
        runs = touch.runs
        if runs.length > 1:
            ordered = np.sort(runs.starts)
            if (np.diff(ordered) >= runs.length).all():
                return
        shape = (len(runs.starts), runs.length)
        winner = np.empty(self.num_elements, np.int32)
        window = runs.windows(winner)
        lanes = np.arange(shape[0] * shape[1], dtype=np.int32).reshape(shape)
        window[runs.starts] = lanes
        won_by = window[runs.starts]
        lost = np.flatnonzero(won_by != lanes)
        if not len(lost):
            return
        winners = won_by.reshape(-1)[lost]
        codes = np.broadcast_to(touch.codes, shape).reshape(-1)
        same = None
        if words is not None:
            flat = np.broadcast_to(words, shape).reshape(-1)
            same = flat[lost] == flat[winners]
        yield Conflict(lost, codes[winners], same)
