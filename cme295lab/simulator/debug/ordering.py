"""Which accesses of different programs are ordered by atomics: locks, flags, "the last one adds up".

An atomic on a single address orders what its program did before it before what a program does that sees its result
later. So of an access by program p and a later one by program q, the first comes first if p has executed an atomic on
some address after its access, and q has *used the result* of an atomic on the same address before its own. A lock
(`atomic_cas` until it succeeds, `atomic_xchg` to release it) is one case, a counter of finished programs another.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

_Moments = dict[int, list[tuple[int, int]]]  # address -> (clock, place in the order of that atomic)


@dataclass
class Order:
    """The atomics on single addresses that a launch has executed so far; `clock` counts them."""

    clock: int = 0
    uses_results: bool = False
    _log: list[tuple[int, np.ndarray, np.ndarray, bool]] = field(default_factory=list)
    _releases: dict[int, _Moments] = field(default_factory=lambda: defaultdict(dict))
    _acquires: dict[int, _Moments] = field(default_factory=lambda: defaultdict(dict))

    def add(self, programs: np.ndarray, addresses: np.ndarray, *, used: bool) -> None:
        """An atomic of these programs on one address each, in this order; `used`: somebody looks at the result."""
        self.clock += 1
        self.uses_results |= used
        self._log.append((self.clock, programs, addresses, used))

    def between(self, first: int, first_clock: int, second: int, second_clock: int) -> bool:
        """Whether an access by program `first` is ordered before a later one by program `second`; the clocks are those
        at the accesses."""
        if not self.uses_results:
            return False
        self._index()
        acquires = self._acquires.get(second)
        if acquires is None:
            return False
        for address, releases in self._releases.get(first, {}).items():
            left = min((moment for moment in releases if moment[0] > first_clock), default=None)
            entered = max((moment for moment in acquires.get(address, ()) if moment[0] <= second_clock), default=None)
            if left is not None and entered is not None and left < entered:
                return True
        return False

    def _index(self) -> None:
        """Sort what has been logged since the last question by program."""
        for clock, programs, addresses, used in self._log:
            for place, (program, address) in enumerate(zip(programs.tolist(), addresses.tolist(), strict=True)):
                self._releases[program].setdefault(address, []).append((clock, place))
                if used:
                    self._acquires[program].setdefault(address, []).append((clock, place))
        self._log.clear()
