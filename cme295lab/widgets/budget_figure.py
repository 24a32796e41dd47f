"""Bars of memory, stacked by class: a setting against a card's capacity, and formula against measurement."""

from collections.abc import Mapping, Sequence
from typing import Any

from cme295lab import palette
from cme295lab.hardware import Device
from cme295lab.memory.measurement.comparison import Comparison
from cme295lab.units import format_bytes
from cme295lab.widgets.memory_colours import COLOURS
from cme295lab.widgets.picture import Picture


def draw_stacks(axes: Any, names: Sequence[str], rows: Mapping[str, Sequence[float]], **style: Any) -> list[float]:
    """Draw horizontal bars, a piece per class, and return their lengths.

    Args:
        axes: where.
        names: of the bars, from top to bottom.
        rows: class -> its bytes in each bar; classes that are nowhere are left out.
        **style: passed to `barh`.
    """
    lengths = [0.0] * len(names)
    for kind, values in rows.items():
        if any(values):
            axes.barh(names, values, left=lengths, color=COLOURS[kind], label=kind, edgecolor="white", **style)
            lengths = [a + b for a, b in zip(lengths, values, strict=True)]
    axes.xaxis.set_major_formatter(lambda value, _: format_bytes(value))
    axes.spines[["top", "right"]].set_visible(False)
    return lengths


def budget_figure(text: str, title: str, names: Sequence[str], rows: Mapping[str, Sequence[float]],
                  device: Device) -> Picture:  # fmt: skip
    """Bars of a budget and the line of the card's capacity.

    Args:
        text: the picture in words.
        title: the verdict.
        names, rows: as for `draw_stacks`.
        device: the card.
    """
    picture = Picture(text, figsize=(9, 1.3 + 0.55 * len(names)))
    axes = picture.subplots()
    longest = max(draw_stacks(axes, names, rows, height=0.6))
    capacity = device.memory_bytes
    axes.axvline(capacity, color=palette.VERMILLION, linewidth=2)
    label = f" {device.name}: {format_bytes(capacity, binary=True)} "
    side = "left" if capacity < 0.7 * longest else "right"
    axes.text(capacity, -0.42, label, fontsize=9, color=palette.VERMILLION, ha=side)
    axes.set_ylim(len(names) - 0.5, -0.65)
    axes.margins(x=0.02)
    axes.legend(frameon=False, fontsize=9, ncols=4, loc="upper center", bbox_to_anchor=(0.45, -0.22))
    axes.set_title(title, loc="left", fontsize=10)
    return picture


def comparison_bars(comparisons: Mapping[str, Comparison]) -> Picture:
    """For each setting the peak by formula and as measured, one above the other.

    Args:
        comparisons: name of the setting -> what `memory.compare` returned.

    Raises:
        ValueError: if there are none.
    """
    if not comparisons:
        raise ValueError("comparisons must hold at least one setting")
    text = "; ".join(
        f"{name}: formula {format_bytes(found.ledger.total_bytes)}, measured {format_bytes(found.measured_peak_bytes)}"
        for name, found in comparisons.items()
    )
    picture = Picture(f"Bars of the peak's memory by class, formula above measurement. {text}.",
                      figsize=(9, 1.1 + 0.62 * len(comparisons)))  # fmt: skip
    axes = picture.subplots()
    names, rows = [], {kind: [] for kind in COLOURS}  # type: tuple[list[str], dict[str, list[float]]]
    for name, found in comparisons.items():
        for label, values in ((name, found.ledger.by_class()), (f"{name}, measured", found.measured)):
            names.append(label)
            for kind, row in rows.items():
                row.append(float(values.get(kind, 0)))
    lengths = draw_stacks(axes, names, rows, height=0.85)
    for at, length in enumerate(lengths):
        axes.text(length, at, f" {format_bytes(length)}", va="center", fontsize=8)
    axes.set_yticks(range(len(names)), [name if at % 2 == 0 else "measured" for at, name in enumerate(names)])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.1, y=0.01)
    axes.legend(frameon=False, fontsize=9, ncols=3, loc="upper center", bbox_to_anchor=(0.4, -0.05))
    return picture
