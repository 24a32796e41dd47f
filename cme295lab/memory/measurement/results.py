"""What can be asked of a timeline: what is alive, what the peak was made of, how it went over time.

Everything is told from the log of storages, again at every question, because what a storage is may be known only later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from cme295lab.memory.measurement.records import Event, StorageRecord
from cme295lab.memory.measurement.snapshot import write_snapshot
from cme295lab.memory.measurement.storages import StorageLog
from cme295lab.memory.measurement.timeline_text import timeline_html, timeline_text


class TimelineResults:
    """The questions; the timeline fills the log that answers them."""

    _log: StorageLog
    start_event = 0  # number of the first event after those that enter what there was before the block

    def _look(self) -> None:
        """Name what can be named now."""
        raise NotImplementedError

    @property
    def live_bytes(self) -> int:
        """The sum of all storages that are alive now; after the block, of those that were at its end."""
        self._log.settle()
        return self._log.live_bytes

    @property
    def peak_bytes(self) -> int:
        """The highest `live_bytes` so far."""
        return self._log.peak_bytes

    @property
    def peak(self) -> dict[str, int]:
        """Bytes by class at the first moment of the peak, largest first."""
        return self.composition(self.peak_event)

    @property
    def peak_event(self) -> int:
        """Number of the event that reached the peak; -1 before there is any."""
        return self._log.peak_event

    @property
    def events(self) -> list[Event]:
        """Everything that happened, in order."""
        self._look()
        return self._log.events

    @property
    def records(self) -> list[StorageRecord]:
        """All storages, in the order in which they were first seen."""
        self._look()
        return self._log.records

    def by_class(self) -> dict[str, int]:
        """Bytes that are alive now by class, largest first."""
        self._look()
        return _sum_by_class((record.class_name, record.num_bytes) for record in self._log.live_records())

    def composition(self, event: int) -> dict[str, int]:
        """Bytes by class after an event, largest first.

        Args:
            event: its number, or -1 for before all.

        Raises:
            ValueError: if there is no such event.
        """
        return _sum_by_class((record.class_at(event), num_bytes) for record, num_bytes in self.alive_at(event).items())

    def alive_at(self, event: int) -> dict[StorageRecord, int]:
        """The storages that are alive after an event, and their bytes then.

        Raises:
            ValueError: if there is no such event.
        """
        events = self.events
        if not -1 <= event < len(events):
            raise ValueError(f"event must be one of {len(events)}, counted from 0, or -1 for before all, got {event}")
        alive: dict[StorageRecord, int] = {}
        for happened in events[: event + 1]:
            if happened.kind == "free":
                alive.pop(happened.record, None)
            else:
                alive[happened.record] = happened.after_bytes
        return alive

    def curve(self) -> dict[str, list[int]]:
        """Bytes by class after each event: class to a list as long as `events`; their sum is the live bytes."""
        events = self.events
        lines: dict[str, list[int]] = {}
        now: Counter[str] = Counter()
        for number, event in enumerate(events):
            name = event.record.class_at(number)
            if event.kind == "rename":
                now[event.record.class_at(number - 1)] -= event.before_bytes
                now[name] += event.after_bytes
            else:
                now[name] += event.after_bytes - event.before_bytes
            for known in now:
                lines.setdefault(known, [0] * number).append(now[known])
        return lines

    def peak_bytes_of(self, classes: Collection[str] | None = None, *, without: Collection[str] = ()) -> int:
        """The highest sum of some classes over time, such as everything but what is offloaded.

        Args:
            classes: those that count; None for all.
            without: those that don't.
        """
        kept = [
            line for name, line in self.curve().items() if name not in without and (classes is None or name in classes)
        ]
        return max((sum(values) for values in zip(*kept, strict=True)), default=0)

    def save_snapshot(self, path: str | Path) -> None:
        """Write the timeline as a snapshot that PyTorch's viewer of memory reads; see `snapshot`.

        Args:
            path: the file to write, by custom `.pickle`.
        """
        write_snapshot(self.events, path)

    def __str__(self) -> str:
        return timeline_text(self)

    def _repr_html_(self) -> str:
        return timeline_html(self)


def _sum_by_class(parts: Iterable[tuple[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for class_name, num_bytes in parts:
        total[class_name] += num_bytes
    return {class_name: num_bytes for class_name, num_bytes in total.most_common() if num_bytes}
