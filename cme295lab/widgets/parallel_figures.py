"""Pictures of measured data parallelism: when gradients are sent, what ranks hold and send, how long it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from cme295lab import palette
from cme295lab.units import format_bytes, format_seconds
from cme295lab.widgets.memory_layout import colours_of
from cme295lab.widgets.picture import Picture

_SENT_COLOURS = {"gradients": palette.ORANGE, "weights": palette.BLUE, "scalars": palette.GREY}
_LINES = (palette.BLUE, palette.ORANGE, palette.GREEN, palette.VERMILLION, palette.PURPLE, palette.SKY)
_STYLES = ("-", "--", "-.", ":")
_LEAST_SHARE = 0.02  # of the highest bar; a smaller part has no figure in it


@dataclass(frozen=True, kw_only=True)
class BackwardTrace:
    """What one backward pass did, in seconds since its beginning.

    Attributes:
        label: what was measured.
        gradients_s: when autograd finished the gradient of each parameter.
        sends: for each message, when it was started, and its bytes.
        end_s: when backward returned, all gradients being averaged.

    Raises:
        ValueError: if there is no gradient, or something happened after the end.
    """

    label: str
    gradients_s: Sequence[float]
    sends: Sequence[tuple[float, float]]
    end_s: float

    def __post_init__(self) -> None:
        if not self.gradients_s:
            raise ValueError(f"gradients_s of {self.label!r} must hold a time for each parameter, got none")
        latest = max([*self.gradients_s, *(at for at, _ in self.sends)])
        if latest > self.end_s:
            raise ValueError(f"end_s of {self.label!r} must not lie before {latest:.4g} s, got {self.end_s:.4g} s")

    @property
    def num_early(self) -> int:
        """Messages that were started before the last gradient was there."""
        return sum(at < max(self.gradients_s) for at, _ in self.sends)


def backward_traces(traces: Sequence[BackwardTrace]) -> Picture:
    """Draw backward passes below each other: computing, when each gradient was ready, and when each message started.

    Args:
        traces: one per strategy; their axis of time is the same.

    Raises:
        ValueError: if there is none.
    """
    if not traces:
        raise ValueError("traces must hold at least one BackwardTrace, got none")
    picture = Picture(" ".join(map(_trace_text, traces)), figsize=(8.6, 0.8 + 0.95 * len(traces)))
    axes = picture.subplots()
    largest = max((size for trace in traces for _, size in trace.sends), default=1)
    for row, trace in enumerate(traces):
        last = max(trace.gradients_s)
        axes.barh(row, 1e3 * last, 0.26, color=palette.BLUE, alpha=0.35)
        axes.barh(row, 1e3 * (trace.end_s - last), 0.26, 1e3 * last, color=palette.PALE, edgecolor=palette.GREY,
                  hatch="//", linewidth=0)  # fmt: skip
        axes.plot([1e3 * at for at in trace.gradients_s], [row] * len(trace.gradients_s), "|", color=palette.BLUE,
                  markersize=13)  # fmt: skip
        areas = [24 + 190 * size / largest for _, size in trace.sends]
        axes.scatter([1e3 * at for at, _ in trace.sends], [row + 0.36] * len(trace.sends), areas, marker="^",
                     color=palette.ORANGE, edgecolor="black", linewidth=0.5, zorder=3)  # fmt: skip
    axes.set_yticks(range(len(traces)), [trace.label for trace in traces])
    axes.set(ylim=(len(traces) - 0.35, -0.5), xlabel="ms since backward began", xlim=(0, None))
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    handles = [
        Patch(color=palette.BLUE, alpha=0.35, label="computing"),
        axes.plot([], [], "|", color=palette.BLUE, markersize=11, label="a gradient is ready")[0],
        axes.scatter([], [], 70, marker="^", color=palette.ORANGE, edgecolor="black", label="a message starts"),
        Patch(facecolor=palette.PALE, edgecolor=palette.GREY, hatch="//", label="nothing left to compute"),
    ]
    axes.legend(handles=handles, ncols=4, frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(-0.02, 1))
    return picture


def _trace_text(trace: BackwardTrace) -> str:
    last = max(trace.gradients_s)
    return (
        f"{trace.label}: {len(trace.sends)} messages, {trace.num_early} of them started before the last gradient was "
        f"ready at {format_seconds(last)}; backward returned at {format_seconds(trace.end_s)}."
    )


def rank_bars(
    held: Mapping[str, Mapping[str, float]], sent: Mapping[str, Mapping[str, float]], *, formula_bytes: Sequence[float]
) -> Picture:
    """Draw what a rank holds and what it sends under each strategy, as stacked bars side by side.

    Args:
        held: strategy -> class of memory -> bytes.
        sent: strategy -> tag -> bytes, for the same strategies.
        formula_bytes: what a rank should hold by formula, in the order of the strategies; drawn as a line each.

    Raises:
        ValueError: if the strategies differ, or there is none.
    """
    if not held or list(held) != list(sent) or len(formula_bytes) != len(held):
        raise ValueError(
            f"held, sent and formula_bytes must be of the same strategies, at least one, got {list(held)}, "
            f"{list(sent)} and {len(formula_bytes)} numbers"
        )
    picture = Picture(_rank_text(held, sent), figsize=(9, 3.4))
    memory, traffic = picture.subplots(1, 2)
    classes = list(dict.fromkeys(name for parts in held.values() for name in parts))
    _stack(memory, held, colours_of(classes))
    for column, num_bytes in enumerate(formula_bytes):
        line = memory.plot([column - 0.42, column + 0.42], [num_bytes] * 2, color="black", linestyle="--", linewidth=1)
    tags = list(dict.fromkeys(name for parts in sent.values() for name in parts))
    unnamed = dict(zip((tag for tag in tags if tag not in _SENT_COLOURS), _LINES[2:], strict=False))
    _stack(traffic, sent, {tag: _SENT_COLOURS.get(tag) or unnamed[tag] for tag in tags})
    memory.legend([*memory.get_legend_handles_labels()[0], line[0]],
                  [*memory.get_legend_handles_labels()[1], "formula"], frameon=False, fontsize=9)  # fmt: skip
    traffic.legend(frameon=False, fontsize=9, loc="upper left")
    memory.set_title("held by a rank", loc="left", fontsize=10)
    traffic.set_title("sent by a rank in a step", loc="left", fontsize=10)
    return picture


def held_bars(held: Mapping[str, Mapping[str, float]], *, title: str = "") -> Picture:
    """Draw what a rank holds in several cases, as stacked bars.

    Args:
        held: case -> class of memory -> bytes.
        title: what is shown.

    Raises:
        ValueError: if there is nothing to draw.
    """
    if not any(held.values()):
        raise ValueError("held must have at least one case with a class of memory, got none")
    text = ". ".join(f"{name}: {_parts(values)}" for name, values in held.items())
    picture = Picture(f"{title}: bytes held by a rank. {text}.", figsize=(6.4, 3.2))
    axes = picture.subplots()
    _stack(axes, held, colours_of(list(dict.fromkeys(name for parts in held.values() for name in parts))))
    axes.set_title(title, loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=9)
    return picture


def _stack(axes: Any, bars: Mapping[str, Mapping[str, float]], colours: Mapping[str, str]) -> None:
    totals = [sum(parts.values()) for parts in bars.values()]
    below = [0.0] * len(bars)
    for name, colour in colours.items():
        values = [parts.get(name, 0.0) for parts in bars.values()]
        drawn = axes.bar(list(bars), values, 0.66, bottom=below, color=colour, edgecolor="white", label=name)
        shown = [format_bytes(value) if value > _LEAST_SHARE * max(totals) else "" for value in values]
        axes.bar_label(drawn, shown, label_type="center", fontsize=8, color=_legible_on(colour))
        below = [sum(pair) for pair in zip(below, values, strict=True)]
    for column, total in enumerate(totals):
        axes.annotate(format_bytes(total), (column, total), (0, 3), textcoords="offset points", ha="center",
                      fontweight="bold", fontsize=9)  # fmt: skip
    axes.set_ylim(0, max(1.32 * max(totals), 1))
    axes.yaxis.set_major_formatter(lambda value, _: format_bytes(value))
    axes.spines[["top", "right"]].set_visible(False)


def _legible_on(colour: str) -> str:
    red, green, blue = to_rgb(colour)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.4 else "white"


def _rank_text(held: Mapping[str, Mapping[str, float]], sent: Mapping[str, Mapping[str, float]]) -> str:
    return " ".join(f"{name}: a rank holds {_parts(held[name])}, and sends {_parts(sent[name])}." for name in held)


def _parts(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {format_bytes(size)}" for name, size in values.items())


def time_lines(times_s: Mapping[str, Mapping[float, float]], *, title: str = "", mark_bytes: float = 0) -> Picture:
    """Draw how long a message takes against its size, both axes logarithmic, a line per algorithm.

    Args:
        times_s: name of the line -> bytes -> seconds; all positive.
        title: what is shown.
        mark_bytes: a size to mark, such as where two lines cross; 0 for none.

    Raises:
        ValueError: if there is no line, or a size or time is not positive.
    """
    points = [(size, time) for line in times_s.values() for size, time in line.items()]
    if not points or not all(size > 0 and time > 0 for size, time in points):
        raise ValueError("times_s must hold at least one line, of positive bytes and seconds")
    ends = "; ".join(
        f"{name}: {format_seconds(line[min(line)])} for {format_bytes(min(line))}, "
        f"{format_seconds(line[max(line)])} for {format_bytes(max(line))}"
        for name, line in times_s.items()
    )
    crossing = f" The lines cross at {format_bytes(mark_bytes)}." if mark_bytes else ""
    picture = Picture(f"{title}. {ends}.{crossing}", figsize=(7.4, 3.3))
    axes = picture.subplots()
    for number, (name, line) in enumerate(times_s.items()):
        sizes = sorted(line)
        axes.plot(sizes, [line[size] for size in sizes], label=name, color=_LINES[number % len(_LINES)],
                  linestyle=_STYLES[number % len(_STYLES)], linewidth=2)  # fmt: skip
    if mark_bytes:
        axes.axvline(mark_bytes, color=palette.GREY, linestyle=":", linewidth=1.2)
        axes.annotate(format_bytes(mark_bytes), (mark_bytes, 0.03), (4, 0), xycoords=("data", "axes fraction"),
                      textcoords="offset points", fontsize=9, color="#555555")  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="bytes of the vector", ylabel="time")
    axes.xaxis.set_major_formatter(lambda value, _: format_bytes(value))
    axes.yaxis.set_major_formatter(lambda value, _: format_seconds(value))
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return picture
