"""Pictures of a measured timeline: memory over time by class, and what the peak is made of."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from cme295lab.memory import MemoryTimeline
from cme295lab.units import format_bytes
from cme295lab.widgets.memory_layout import Piece, colours_of, kept_events, phase_spans, pieces_at, rectangles
from cme295lab.widgets.picture import Picture

_MAX_POINTS = 1500
_SMALLEST_SHARE = 0.002  # of the peak; smaller storages are one rectangle
_GAP = 0.004


def timeline_figure(timeline: MemoryTimeline) -> Picture:
    """Draw memory over time, stacked by class, with the phases of the step and the peak.

    Args:
        timeline: a measurement. Time is counted in events: allocations, releases and changes of size.

    Raises:
        ValueError: if nothing was measured.
    """
    require_events(timeline)
    curve, kept = timeline.curve(), kept_events(timeline, _MAX_POINTS)
    colours = colours_of(list(curve))
    figure = Picture(f"Memory over a training step, stacked by class. {describe(timeline)}", figsize=(9, 3.8))
    axes = figure.subplots()
    axes.stackplot(
        kept, [[curve[name][event] for event in kept] for name in colours], labels=list(colours),
        colors=list(colours.values()), step="post", linewidth=0,
    )  # fmt: skip
    top = timeline.peak_bytes * 1.22
    for phase, first, last in phase_spans(timeline):
        axes.axvline(first, color="#888888", linewidth=0.6, linestyle=":")
        axes.text((first + last) / 2, top * 0.985, phase, ha="center", va="top", fontsize=9, color="#444444")
    axes.plot(timeline.peak_event, timeline.peak_bytes, "v", color="black", markersize=7)
    axes.annotate(
        f"peak {format_bytes(timeline.peak_bytes)}", (timeline.peak_event, timeline.peak_bytes), (0, 6),
        textcoords="offset points", ha="center", va="bottom", fontsize=9, fontweight="bold",
    )  # fmt: skip
    axes.set(xlim=(kept[0], max(kept[-1], kept[0] + 1)), ylim=(0, top), xlabel="events (allocations, releases)")
    axes.yaxis.set_major_formatter(lambda value, _: format_bytes(value))
    axes.spines[["top", "right"]].set_visible(False)
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], names[::-1], loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=9)
    return figure


def peak_treemap(timeline: MemoryTimeline, event: int | None = None) -> Picture:
    """Draw what is alive at the peak as rectangles: a part of the model each, and in it its storages.

    Args:
        timeline: a measurement.
        event: another moment than the peak.

    Raises:
        ValueError: if nothing was alive then.
    """
    require_events(timeline)
    event = timeline.peak_event if event is None else event
    pieces = pieces_at(timeline, event)
    if not pieces:
        raise ValueError(f"event {event}: nothing is alive then")
    total = sum(piece.num_bytes for piece in pieces)
    colours = colours_of(list(dict.fromkeys(piece.class_name for piece in pieces)))
    groups = _groups(pieces)
    figure = Picture(f"What {format_bytes(total)} are made of. {_describe_pieces(pieces)}", figsize=(9, 4.6))
    axes = figure.subplots()
    sizes = [sum(piece.num_bytes for piece in members) for _, members in groups]
    for (name, members), box in zip(groups, rectangles(sizes, 0, 0, 9, 4.2), strict=True):
        _draw_group(axes, name, _merge_small(members, total), box, colours)
    axes.set(xlim=(0, 9), ylim=(4.2, 0))
    axes.axis("off")
    handles = [Rectangle((0, 0), 1, 1, facecolor=colour) for colour in colours.values()]
    axes.legend(
        handles, list(colours), loc="upper center", bbox_to_anchor=(0.5, 0), ncols=len(colours), frameon=False,
        fontsize=9,
    )  # fmt: skip
    return figure


def describe(timeline: MemoryTimeline) -> str:
    """The course in words: the peak, its phase and classes, and the end."""
    phase = timeline.events[timeline.peak_event].phase
    parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in timeline.peak.items())
    return (
        f"Peak {format_bytes(timeline.peak_bytes)} in phase {phase}: {parts}. "
        f"At the end {format_bytes(timeline.live_bytes)} are alive."
    )


def _draw_group(axes: Any, name: str, members: list[Piece], box: tuple[float, ...], colours: dict[str, str]) -> None:
    x, y, width, height = box
    for piece, (left, top, wide, high) in zip(
        members, rectangles([piece.num_bytes for piece in members], x, y, width, height), strict=True
    ):
        colour = colours[piece.class_name]
        axes.add_patch(
            Rectangle(
                (left + _GAP, top + _GAP), max(wide - 2 * _GAP, 0), max(high - 2 * _GAP, 0), facecolor=colour,
                edgecolor="white", linewidth=0.3,
            )
        )  # fmt: skip
        lines = piece.label.splitlines()
        if wide > 0.06 * max(map(len, lines)) and high > 0.13 * len(lines) + 0.1:
            axes.text(
                left + wide / 2, top + high / 2, piece.label, ha="center", va="center", fontsize=6.5,
                color=_legible_on(colour),
            )  # fmt: skip
    axes.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor="#222222", linewidth=1.1))
    if width > 0.08 * len(name) and height > 0.3:
        style = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1}
        axes.text(x + 0.05, y + 0.05, name, va="top", fontsize=7.5, fontweight="bold", bbox=style)


def _groups(pieces: list[Piece]) -> list[tuple[str, list[Piece]]]:
    """Pieces by part of the model, the largest part first."""
    by_group = sorted(pieces, key=lambda piece: piece.group)
    groups = [(name, list(members)) for name, members in groupby(by_group, key=lambda piece: piece.group)]
    return sorted(groups, key=lambda group: -sum(piece.num_bytes for piece in group[1]))


def _merge_small(members: list[Piece], total: int) -> list[Piece]:
    """Put the storages that could not be seen into one piece per class."""
    large = [piece for piece in members if piece.num_bytes >= _SMALLEST_SHARE * total]
    small: dict[str, int] = {}
    for piece in members:
        if piece.num_bytes < _SMALLEST_SHARE * total:
            small[piece.class_name] = small.get(piece.class_name, 0) + piece.num_bytes
    large += [
        Piece(class_name=name, place="small ones", operator="", source="", num_bytes=size)
        for name, size in small.items()
    ]
    return sorted(large, key=lambda piece: -piece.num_bytes)


def _describe_pieces(pieces: list[Piece]) -> str:
    largest = "; ".join(
        f"{piece.class_name} {piece.place} {piece.operator} {format_bytes(piece.num_bytes)}" for piece in pieces[:6]
    )
    return f"{len(pieces)} kinds of storages, the largest: {largest}."


def _legible_on(colour: str) -> str:
    red, green, blue = to_rgb(colour)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def require_events(timeline: MemoryTimeline) -> None:
    """Refuse to draw nothing."""
    if timeline.peak_event < 0:
        raise ValueError("timeline: no tensor was seen in its block, so there is nothing to draw")
