"""The ring walk: an all-reduce on a ring, step by step, with the bytes that each rank has sent."""

import math
from typing import Any

import anywidget
import traitlets

from cme295lab import palette
from cme295lab.units import format_bytes
from cme295lab.widgets.picture import Picture
from cme295lab.widgets.ring_records import MAX_RANKS, RingMoment, ring_records
from cme295lab.widgets.walk_files import walk_source, walk_style


class RingWalk(anywidget.AnyWidget):
    """Step through a ring all-reduce and see which sums are where, and how many bytes have gone over each link.

    All steps for 2 to 8 ranks are sent to the browser once: stepping needs no kernel. `num_ranks` and `step` follow the
    controls and may be set from Python.

    Args:
        num_ranks: processes on the ring, 2 to 8.
        num_bytes: size of what is reduced, for instance the gradients of a model.
        step: where to begin.

    Raises:
        ValueError: if the ring cannot be drawn, there is no such step, or the size is not positive.
    """

    _esm, _css = walk_source("ring_walk.js"), walk_style("ring_walk.css")
    walk = traitlets.Dict().tag(sync=True)
    num_ranks = traitlets.Int(4).tag(sync=True)
    step = traitlets.Int(0).tag(sync=True)

    def __init__(self, *, num_ranks: int = 4, num_bytes: float = 400e6, step: int = 0) -> None:
        if not num_bytes > 0:
            raise ValueError(f"num_bytes must be positive, got {num_bytes}")
        last = len(ring_records(num_ranks)) - 1
        if not 0 <= step <= last:
            raise ValueError(f"step must be 0 to {last} for {num_ranks} ranks, got {step}")
        self.num_bytes = num_bytes
        rings = {str(n): _ring(n, num_bytes) for n in range(2, MAX_RANKS + 1)}
        super().__init__(walk={"rings": rings}, num_ranks=num_ranks, step=step)

    @traitlets.validate("num_ranks")
    def _check_num_ranks(self, proposal: Any) -> int:
        ring_records(proposal["value"])
        return int(proposal["value"])

    @property
    def moment(self) -> RingMoment:
        """The moment that is shown."""
        records = ring_records(self.num_ranks)
        return records[min(self.step, len(records) - 1)]

    def figure(self, step: int | None = None) -> Picture:
        """One step as a static picture, for pages where no kernel runs.

        Args:
            step: which step; None for the one that is shown.

        Raises:
            ValueError: if there is no such step.
        """
        records = ring_records(self.num_ranks)
        if step is not None and not 0 <= step < len(records):
            raise ValueError(f"step must be 0 to {len(records) - 1}, got {step}")
        moment = self.moment if step is None else records[step]
        return _draw(moment, self.num_bytes)

    def __repr__(self) -> str:
        """One line, as the widget's text alternative."""
        return f"RingWalk({caption(self.moment, self.num_bytes)})"


def caption(moment: RingMoment, num_bytes: float) -> str:
    """What a step does, in words."""
    num_ranks = len(moment.summed)
    chunk = format_bytes(num_bytes / num_ranks)
    if moment.phase == "start":
        return f"{num_ranks} ranks, each with gradients of its own: {format_bytes(num_bytes)} in {num_ranks} chunks"
    adds = "adds it to its own" if moment.phase == "reduce-scatter" else "puts it in place of its own"
    return f"Step {moment.step}, {moment.phase}: each rank passes a chunk of {chunk} on; the next rank {adds}"


def _ring(num_ranks: int, num_bytes: float) -> dict[str, Any]:
    """What the browser gets for a number of ranks: plain lists and texts, no unit or rounding left to JavaScript."""
    moments = ring_records(num_ranks)
    total_chunks = 2 * (num_ranks - 1)
    chunk_bytes = num_bytes / num_ranks
    formula = f"2 (N − 1)/N × {format_bytes(num_bytes)} = {format_bytes(total_chunks * chunk_bytes)}"
    return {
        "formula": f"In all, each rank sends {formula}, however many ranks there are: less than twice the gradients.",
        "moments": [
            {
                "caption": caption(moment, num_bytes),
                "phase": moment.phase,
                "arrows": [[t.source, t.destination, t.chunk] for t in moment.transfers],
                "label": format_bytes(chunk_bytes),
                "summed": [[sorted(held) for held in copies] for copies in moment.summed],
                "sent": format_bytes(moment.sent_chunks * chunk_bytes),
                "sent_share": moment.sent_chunks / total_chunks,
                "complete": f"{moment.num_complete} of {num_ranks**2}",
                "complete_share": moment.num_complete / num_ranks**2,
            }
            for moment in moments
        ],
    }


def _draw(moment: RingMoment, num_bytes: float) -> Picture:
    """The ring with matplotlib: a box of chunks per rank, an arrow per message."""
    num_ranks = len(moment.summed)
    text = caption(moment, num_bytes)
    sent = format_bytes(moment.sent_chunks * num_bytes / num_ranks)
    picture = Picture(f"{text}. Each rank has sent {sent}.", figsize=(6.2, 4.6))
    axes = picture.subplots()
    places = [(1.25 * math.sin(2 * math.pi * r / num_ranks), math.cos(2 * math.pi * r / num_ranks))
              for r in range(num_ranks)]  # fmt: skip
    arrow = {"arrowstyle": "-|>", "color": palette.ORANGE, "linewidth": 2, "shrinkA": 34, "shrinkB": 34,
             "connectionstyle": "arc3,rad=-0.2"}  # fmt: skip
    for transfer in moment.transfers:
        axes.annotate("", places[transfer.destination], places[transfer.source], arrowprops=arrow)
    width = 0.56 / num_ranks
    for rank, (x, y) in enumerate(places):
        for chunk, held in enumerate(moment.summed[rank]):
            whole = len(held) == num_ranks
            colour = palette.GREEN if whole else palette.BLUE
            shade = 1.0 if whole else 0.18 + 0.7 * (len(held) - 1) / num_ranks
            box: dict[str, Any] = {"facecolor": colour, "alpha": shade, "edgecolor": "black", "linewidth": 0.6}
            axes.bar(x - 0.28 + (chunk + 0.5) * width, 0.2, width, y - 0.1, **box)
            axes.text(x - 0.28 + (chunk + 0.5) * width, y, str(len(held)), ha="center", va="center", fontsize=8)
        axes.text(x, y + 0.15, f"rank {rank}", ha="center", fontsize=9)
    axes.set(xlim=(-1.8, 1.8), ylim=(-1.35, 1.4))
    axes.axis("off")
    axes.set_title(f"{text}\n(in a chunk: how many ranks are summed; green: all)", loc="left", fontsize=9)
    return picture
