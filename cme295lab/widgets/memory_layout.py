"""A measured timeline prepared for drawing: fewer points, spans of phases, what is alive at a moment as rectangles."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from cme295lab import palette
from cme295lab.memory import MemoryTimeline
from cme295lab.units import format_bytes
from cme295lab.widgets.memory_colours import COLOURS

_ORDER = ("weight", "master weight", "optimizer state", "gradient", "activation", "temporary", "input", "offloaded")
_OTHER_COLOURS = (palette.VERMILLION, "#F0E442", palette.GREY)
_OUTSIDE = "outside of modules"


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Storages of one class, place and operator that are alive at a moment.

    Attributes:
        class_name: what they are.
        place: name of the parameter or path of the module.
        operator: what made them, or nothing for what was there before.
        source: the line of the program.
        num_bytes: their sum.
    """

    class_name: str
    place: str
    operator: str
    source: str
    num_bytes: int

    @property
    def label(self) -> str:
        """Place within the part of the model, operator and size, for a rectangle of a treemap."""
        place = self.place.removeprefix(self.group).removeprefix(".") or self.place
        operator = self.operator.removesuffix(".default")
        return "\n".join(part for part in (place, operator, format_bytes(self.num_bytes)) if part)

    @property
    def group(self) -> str:
        """The part of the model: "embedding", "layers.3"."""
        first, *rest = self.place.split(".")
        return f"{first}.{rest[0]}" if rest and rest[0].isdigit() else first


def pieces_at(timeline: MemoryTimeline, event: int) -> list[Piece]:
    """What is alive after an event, the largest first; empty storages are left out."""
    sums: dict[tuple[str, str, str, str], int] = defaultdict(int)
    for record, num_bytes in timeline.alive_at(event).items():
        place = record.name or record.module or _OUTSIDE
        source = str(record.source) if record.source else ""
        sums[record.class_at(event), place, record.operator.removeprefix("aten."), source] += num_bytes
    pieces = [
        Piece(class_name=name, place=place, operator=operator, source=source, num_bytes=total)
        for (name, place, operator, source), total in sums.items()
        if total
    ]
    return sorted(pieces, key=lambda piece: -piece.num_bytes)


def colours_of(classes: Sequence[str]) -> dict[str, str]:
    """A colour for each class in the order in which they are stacked; names given by hand get what is left."""
    known = COLOURS | {"input": palette.PALE, "offloaded": "#8C6D31"}
    ordered = sorted(classes, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))
    others = [name for name in ordered if name not in known]
    return {name: known.get(name) or _OTHER_COLOURS[others.index(name) % len(_OTHER_COLOURS)] for name in ordered}


def kept_events(timeline: MemoryTimeline, limit: int) -> list[int]:
    """At most about `limit` events that show the course: of each stretch the highest and the last one.

    What there was before the block is one point, the first.

    Args:
        timeline: the measurement.
        limit: number of points that can be drawn.
    """
    live = [event.live_bytes for event in timeline.events]
    begin = max(0, timeline.start_event - 1)
    stretch = max(1, -(-2 * (len(live) - begin) // limit))
    kept = {begin}
    for start in range(begin, len(live), stretch):
        part = range(start, min(start + stretch, len(live)))
        kept |= {max(part, key=live.__getitem__), part[-1]}
    return sorted(kept)


def phase_spans(timeline: MemoryTimeline) -> list[tuple[str, int, int]]:
    """Phase, first and last event of each stretch that is long enough to be seen, in order."""
    events = timeline.events
    runs: list[tuple[str, int, int]] = []
    start = timeline.start_event
    for phase, run in groupby(event.phase for event in events[start:]):
        length = len(list(run))
        runs.append((phase, start, start + length - 1))
        start += length
    long_ones = [run for run in runs if run[2] - run[1] + 1 > len(events) / 50]
    spans: list[tuple[str, int, int]] = []
    for phase, first, last in long_ones:  # what lies between two stretches of one phase is too short to be told apart
        if spans and spans[-1][0] == phase:
            spans[-1] = (phase, spans[-1][1], last)
        else:
            spans.append((phase, first, last))
    return spans


def rectangles(sizes: Sequence[float], x: float, y: float, width: float, height: float) -> list[tuple[float, ...]]:
    """Fill a rectangle with one per size, of that area, as square as can be: (x, y, width, height) each.

    Args:
        sizes: positive, the largest first.
        x, y, width, height: the rectangle to fill.

    Source: Bruls, Huizing and van Wijk 2000, "Squarified treemaps".
    """
    placed: list[tuple[float, ...]] = []
    left = list(sizes)
    while left:
        scale = width * height / sum(left)
        side = min(width, height)
        row = [left[0]]
        while len(row) < len(left) and _worst([*row, left[len(row)]], side, scale) <= _worst(row, side, scale):
            row.append(left[len(row)])
        depth = sum(row) * scale / side
        along = 0.0
        for size in row:
            length = size * scale / depth
            placed.append((x, y + along, depth, length) if width >= height else (x + along, y, length, depth))
            along += length
        x, y, width, height = (
            (x + depth, y, width - depth, height) if width >= height else (x, y + depth, width, height - depth)
        )
        left = left[len(row) :]
    return placed


def _worst(row: Sequence[float], side: float, scale: float) -> float:
    """The most oblong rectangle's ratio of sides, if a row lies along a side."""
    depth = sum(row) * scale / side
    return max(max(depth**2 / (size * scale), size * scale / depth**2) for size in row)
