"""A measured timeline to walk through: memory over time by class, and what is alive at any moment."""

from __future__ import annotations

import html
from typing import Any

import ipywidgets
import plotly.graph_objects as go

from cme295lab import palette
from cme295lab.memory import MemoryTimeline
from cme295lab.units import format_bytes
from cme295lab.widgets.memory_figures import peak_treemap, require_events, timeline_figure
from cme295lab.widgets.memory_layout import Piece, colours_of, kept_events, pieces_at
from cme295lab.widgets.picture import Picture

_MAX_POINTS = 3000
_MAX_PIECES = 300


class TimelineExplorer(ipywidgets.VBox):
    """Memory over time, stacked by class; a slider chooses a moment, and a treemap shows what is alive then.

    Args:
        timeline: a measurement. The first moment shown is the peak.

    Raises:
        ValueError: if nothing was measured.
    """

    def __init__(self, timeline: MemoryTimeline) -> None:
        require_events(timeline)
        self.timeline = timeline
        curve, kept = timeline.curve(), kept_events(timeline, _MAX_POINTS)
        self._colours = colours_of(list(curve))
        self.moment = ipywidgets.SelectionSlider(
            options=[(str(event), event) for event in kept], value=timeline.peak_event, description="event",
            continuous_update=True, layout=ipywidgets.Layout(width="860px"),
        )  # fmt: skip
        self.moment.add_class("timeline-moment")
        self._text = ipywidgets.HTML()
        self._text.add_class("timeline-text")
        self.plot = go.FigureWidget(
            [
                go.Scatter(
                    x=kept, y=[line[event] for event in kept], name=name, stackgroup="all", mode="lines",
                    line={"shape": "hv", "width": 0, "color": colour}, fillcolor=colour,
                )
                for name, colour, line in ((name, self._colours[name], curve[name]) for name in self._colours)
            ]
        )  # fmt: skip
        self.plot.update_layout(
            width=850, height=300, margin={"l": 70, "r": 10, "t": 10, "b": 40}, hovermode="x unified",
            xaxis={"title": "events (allocations, releases)"}, yaxis={"title": "alive", "ticksuffix": "B"},
            template="plotly_white",
        )  # fmt: skip
        self.plot.add_vline(x=timeline.peak_event, line={"color": palette.GREY, "dash": "dash"})
        self.map = go.FigureWidget([go.Treemap(branchvalues="total", textinfo="label+text")])
        self.map.update_layout(width=850, height=380, margin={"l": 5, "r": 5, "t": 5, "b": 5})
        self._redraw()
        self.moment.observe(self._redraw, "value")
        super().__init__([self.plot, self.moment, self._text, self.map])
        self.add_class("timeline-explorer")

    def figure(self) -> Picture:
        """The course as a static picture, for pages where no kernel runs."""
        return timeline_figure(self.timeline)

    def map_figure(self) -> Picture:
        """What is alive at the chosen moment as a static picture."""
        return peak_treemap(self.timeline, self.moment.value)

    def __repr__(self) -> str:
        """One line, as the widget's text alternative."""
        return f"TimelineExplorer({self._summary()})"

    def _summary(self) -> str:
        number = self.moment.value
        event = self.timeline.events[number]
        parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in self.timeline.composition(number).items())
        peak = "the peak, " if number == self.timeline.peak_event else ""
        return f"event {number}, {peak}phase {event.phase}: {format_bytes(event.live_bytes)} alive: {parts}"

    def _redraw(self, _: Any = None) -> None:
        event = self.moment.value
        self._text.value = html.escape(self._summary())
        rows = _tree(pieces_at(self.timeline, event)[:_MAX_PIECES], self._colours)
        with self.plot.batch_update():
            self.plot.layout.shapes[0].x0 = self.plot.layout.shapes[0].x1 = event
        with self.map.batch_update():
            trace = self.map.data[0]
            trace.ids, trace.labels, trace.parents, trace.values, trace.text, colours = zip(*rows, strict=True)
            trace.marker.colors = colours


def _tree(pieces: list[Piece], colours: dict[str, str]) -> list[tuple[str, str, str, int, str, str]]:
    """Rows of a treemap: id, label, parent, value, text and colour; parts of the model, and their storages in them."""
    sums: dict[str, int] = {}
    for piece in pieces:
        sums[piece.group] = sums.get(piece.group, 0) + piece.num_bytes
    rows = [(group, group, "", total, format_bytes(total), palette.PALE) for group, total in sums.items()]
    for number, piece in enumerate(pieces):
        lines = "<br>".join(html.escape(part) for part in (piece.operator, piece.source, piece.class_name) if part)
        text = f"{lines}<br>{format_bytes(piece.num_bytes)}"
        colour = colours[piece.class_name]
        rows.append((f"{piece.group}/{number}", piece.place, piece.group, piece.num_bytes, text, colour))
    return rows or [("nothing", "nothing is alive", "", 0, "", palette.PALE)]
