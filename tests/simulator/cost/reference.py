"""The cache model once more, plainly: programs one by one, lines in a dictionary. Slow, and easy to believe."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np

from cme295lab.hardware import Device, get_device


@dataclass
class Access:
    """One access of one program: the sectors (number = address // 32) of each of its requests."""

    kind: str
    tensor: str
    requests: list[set[int]]

    @property
    def lines(self) -> dict[int, set[int]]:
        """The sectors that are touched, by line, lines in ascending order."""
        lines: dict[int, set[int]] = {}
        for sector in sorted(set().union(*self.requests)):
            lines.setdefault(sector // 4, set()).add(sector)
        return lines


@dataclass
class Counts:
    """Sectors of one tensor."""

    moved: int = 0
    hit: int = 0
    read: int = 0
    written: int = 0


@dataclass
class Line:
    present: set[int] = field(default_factory=set)
    dirty: set[int] = field(default_factory=set)
    writer: str = ""


def in_turn(programs: list[list[Access]], num_slots: int) -> list[Access]:
    """The accesses in the order in which they happen; a program without any holds its slot for one round."""
    order: list[Access] = []
    waiting = list(range(len(programs)))
    running: list[int] = []
    done = [0] * len(programs)
    while waiting or running:
        while waiting and len(running) < num_slots:
            running.append(waiting.pop(0))
        for p in sorted(running):
            if done[p] < len(programs[p]):
                order.append(programs[p][done[p]])
            done[p] += 1
        running = [p for p in running if done[p] < len(programs[p])]
    return order


def simulate(programs: list[list[Access]], *, num_slots: int, capacity_lines: int) -> dict[str, Counts]:
    """Sectors moved, found, read and written back, by tensor."""
    counts = {a.tensor: Counts() for accesses in programs for a in accesses}
    cache: OrderedDict[int, Line] = OrderedDict()

    def leave(line: Line) -> None:
        if line.dirty:
            counts[line.writer].written += len(line.dirty)

    for access in in_turn(programs, num_slots):
        count = counts[access.tensor]
        moved = sum(len(r) for r in access.requests)
        misses = 0
        for number, sectors in access.lines.items():
            line = cache.setdefault(number, Line())
            cache.move_to_end(number)
            misses += len(sectors - line.present)
            if access.kind != "store":
                count.read += len(sectors - line.present)
            line.present |= sectors
            if access.kind != "load":
                line.dirty |= sectors
                line.writer = access.tensor
            while len(cache) > capacity_lines:
                leave(cache.popitem(last=False)[1])
        count.moved += moved
        count.hit += moved - misses
    for line in cache.values():
        leave(line)
    return counts


def requests_of(addresses: np.ndarray, lanes_per_request: int = 32) -> list[set[int]]:
    """The sectors of each request, from the byte address of every lane in order; a masked lane has address -1."""
    flat = addresses.reshape(-1).tolist()
    chunks = [flat[i : i + lanes_per_request] for i in range(0, len(flat), lanes_per_request)]
    return [{a // 32 for a in chunk if a >= 0} for chunk in chunks]


def with_sms(num_sms: int) -> Device:
    """A small GPU."""
    return dataclasses.replace(get_device("A100"), name="small", num_sms=num_sms)
