"""Static pictures of hardware and traffic for notebooks and pages. Each returns a `Picture`; none computes a result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.patches import Polygon, Rectangle

from cme295lab import palette
from cme295lab.hardware import Device, get_device
from cme295lab.units import format_bytes, format_flops, format_rate
from cme295lab.widgets.picture import Picture

_SERIES = (palette.BLUE, palette.ORANGE, palette.GREEN, palette.PURPLE, palette.VERMILLION, palette.SKY)
_POINTS = (palette.VERMILLION, palette.BLUE, palette.GREEN, palette.ORANGE, palette.PURPLE, palette.SKY)
_MARKERS = ("o", "s", "D", "^", "v", "P")  # a point is told apart without its colour too


def memory_hierarchy(device: str | Device = "A100") -> Picture:
    """Draw registers, SRAM, L2 and main memory of a GPU as a pyramid, with sizes and, where known, bandwidths.

    Args:
        device: name or data sheet; the widths of the layers are not to scale.
    """
    device = get_device(device)
    layers = _layers(device)
    figure = Picture(
        f"Memory hierarchy of the {device.name}: "
        + "; ".join(f"{layer[0]}: {layer[1]}, {layer[2]}" for layer in layers)
        + ".",
        figsize=(8.2, 3.6),
    )
    axes = figure.subplots()
    for row, (name, size, rate, colour) in enumerate(layers):
        top, bottom = 3.4 * row / len(layers), 3.4 * (row + 1) / len(layers)
        half = 0.28 + 0.62 * np.array([top, bottom - 0.05])
        corners = [(-half[0], -top), (half[0], -top), (half[1], 0.05 - bottom), (-half[1], 0.05 - bottom)]
        axes.add_patch(Polygon(corners, facecolor=colour, edgecolor="none"))
        middle = -(top + bottom) / 2
        axes.text(0, middle, name, ha="center", va="center", color="white", fontweight="bold", fontsize=10)
        axes.text(2.75, middle, size, va="center", fontsize=10)
        axes.text(6.3, middle, rate, va="center", fontsize=10)
    for x, text in ((2.75, "size"), (6.3, "bandwidth")):
        axes.text(x, 0.16, text, fontsize=9, color="#555555")
    axes.set_title(f"{device.name}: the closer to the arithmetic, the smaller and the faster", loc="left", fontsize=11)
    axes.set(xlim=(-2.6, 8.6), ylim=(-3.5, 0.4))
    axes.axis("off")
    return figure


def _layers(device: Device) -> list[tuple[str, str, str, str]]:
    """Name, size, bandwidth and colour of each memory, the closest first."""

    def per_sm(num_bytes: int) -> str:
        total = format_bytes(num_bytes * device.num_sms, binary=True, digits=4)
        return f"{format_bytes(num_bytes, binary=True)} × {device.num_sms} SMs = {total}"

    def rate(bytes_per_s: float | None) -> str:
        return format_rate(bytes_per_s, "B/s") if bytes_per_s else "not published"

    return [
        ("registers", per_sm(device.register_bytes_per_sm), "every instruction", palette.VERMILLION),
        ("SRAM", per_sm(device.sram_bytes_per_sm), rate(device.sram_bandwidth_bytes_per_s), "#B07A00"),
        ("L2 cache", format_bytes(device.l2_bytes, binary=True), rate(device.l2_bandwidth_bytes_per_s), palette.GREEN),
        (
            device.memory_kind,
            format_bytes(device.memory_bytes, binary=True),
            rate(device.bandwidth_bytes_per_s),
            palette.BLUE,
        ),
    ]


_HBM_AXIS = "bytes moved to and from HBM"


def traffic_bars(
    series: Mapping[str, Mapping[str, float]], *, title: str = "", log: bool = False, axis: str = _HBM_AXIS
) -> Picture:
    """Compare bytes, for instance a formula's with a count's: a group of bars per label, a bar per series.

    Args:
        series: name of the series ("formula", "counted") to label ("standard", "flash") to bytes. A label may be
            missing from a series; a series without any is left out.
        title: what is compared.
        log: a logarithmic axis.
        axis: what the bars count.

    Raises:
        ValueError: if there is nothing to draw or a number of bytes is not positive on a logarithmic axis.
    """
    series = {name: values for name, values in series.items() if values}
    labels = list(dict.fromkeys(label for values in series.values() for label in values))
    if not labels:
        raise ValueError("series must hold at least one number of bytes")
    if log and any(value <= 0 for values in series.values() for value in values.values()):
        raise ValueError("a logarithmic axis needs positive numbers of bytes: pass log=False")
    text = "; ".join(
        f"{label}: "
        + ", ".join(f"{name} {format_bytes(values[label])}" for name, values in series.items() if label in values)
        for label in labels
    )
    height = 0.9 + 0.34 * len(labels) * max(len(series), 1.6)
    figure = Picture(f"Bars of bytes moved. {title}: {text}.", figsize=(7.4, height))
    axes = figure.subplots()
    draw_bars(axes, series, labels)
    if log:
        axes.set_xscale("log")
    axes.set_xlabel(axis)
    axes.set_title(title, loc="left", fontsize=11)
    return figure


def draw_bars(axes: Any, series: Mapping[str, Mapping[str, float]], labels: Sequence[str]) -> None:
    """Draw what `traffic_bars` draws into given axes."""
    height = 0.8 / len(series)
    for number, (name, values) in enumerate(series.items()):
        at = [labels.index(label) + (number - (len(series) - 1) / 2) * height for label in values]
        style = {"color": _SERIES[number % len(_SERIES)], "hatch": "//" if number % 2 else "", "edgecolor": "white"}
        bars = axes.barh(at, list(values.values()), height * 0.9, label=name, **style)
        axes.bar_label(bars, [format_bytes(value) for value in values.values()], padding=4, fontsize=9)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.xaxis.set_major_formatter(lambda value, _: format_bytes(value))
    axes.set_xlabel(_HBM_AXIS)
    axes.spines[["top", "right"]].set_visible(False)
    if len(series) > 1:
        axes.legend(frameon=False, loc="best", fontsize=9)


@dataclass(frozen=True, kw_only=True)
class RooflinePoint:
    """One computation in a roofline plot.

    Attributes:
        label: its name.
        flops: floating-point operations.
        num_bytes: bytes moved to and from main memory.
        seconds: measured time; None to place the point on the roof, at the best possible time.
    """

    label: str
    flops: float
    num_bytes: float
    seconds: float | None = None


def roofline(points: Sequence[RooflinePoint], device: str | Device = "A100", dtype: str = "fp16") -> Picture:
    """Draw the roof of a GPU, its ridge point, and where computations stand under it.

    Source: Williams, Waterman, Patterson 2009, "Roofline".

    Args:
        points: the computations.
        device: name or data sheet.
        dtype: number format of the peak.

    Raises:
        ValueError: if the GPU does not compute in `dtype`, or a point has no bytes or FLOPs.
    """
    device = get_device(device)
    figure = Picture("", figsize=(7.4, 3.8))
    draw_roofline(figure.subplots(), points, device, dtype)
    figure.alt_text = roofline_text(points, device, dtype)
    return figure


def draw_roofline(axes: Any, points: Sequence[RooflinePoint], device: Device, dtype: str) -> None:
    """Draw what `roofline` draws into given axes."""
    peak, ridge = device.peak(dtype), device.ridge_point(dtype)
    for point in points:
        if not (point.flops > 0 and point.num_bytes > 0 and (point.seconds is None or point.seconds > 0)):
            raise ValueError(f"point {point.label!r} needs positive flops, bytes and seconds, got {point}")
    intensities = [point.flops / point.num_bytes for point in points]
    low, high = min([ridge / 30, *intensities]) / 2, max([ridge * 10, *intensities]) * 2
    floor = low * device.bandwidth_bytes_per_s
    axes.plot([low, ridge, high], [floor, peak, peak], color="#333333", linewidth=2)
    axes.plot([ridge, ridge], [floor, peak], color=palette.GREY, linestyle=":", linewidth=1.2)
    axes.text(ridge * 1.08, floor * 1.3, f"ridge\n{ridge:.0f} FLOP/B", color="#555555", fontsize=9)
    for number, (point, intensity) in enumerate(zip(points, intensities, strict=True)):
        height = point.flops / point.seconds if point.seconds else min(peak, intensity * device.bandwidth_bytes_per_s)
        style = {"color": _POINTS[number % len(_POINTS)], "marker": _MARKERS[number % len(_MARKERS)], "markersize": 10}
        label = f"{point.label}: {intensity:.3g} FLOP/B"
        axes.plot(intensity, height, linestyle="none", markeredgecolor="black", label=label, zorder=3, **style)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(floor, peak * 4))
    axes.yaxis.set_major_formatter(lambda value, _: format_flops(value).replace("FLOP", ""))
    axes.xaxis.set_major_formatter("{x:,.6g}")
    axes.set_xlabel("arithmetic intensity, FLOP per byte of HBM traffic")
    axes.set_ylabel("attainable FLOP/s")
    limits = f"{format_rate(peak, 'FLOP/s')} and {format_rate(device.bandwidth_bytes_per_s, 'B/s')}"
    axes.set_title(f"{device.name}, {dtype}: {limits}", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="upper left")


def roofline_text(points: Sequence[RooflinePoint], device: Device, dtype: str) -> str:
    """Say in words where points stand under the roof."""
    ridge = device.ridge_point(dtype)
    sides = "; ".join(
        f"{p.label} at {p.flops / p.num_bytes:.3g} FLOP per byte, "
        + ("limited by memory" if p.flops / p.num_bytes < ridge else "limited by arithmetic")
        for p in points
    )
    return f"Roofline of the {device.name} in {dtype}, ridge at {ridge:.0f} FLOP per byte. {sides}."


def block_size_map(
    values: Mapping[tuple[int, int], float], fits: Mapping[tuple[int, int], bool], *, title: str = ""
) -> Picture:
    """Draw a sweep over block sizes: a cell per (BLOCK_M, BLOCK_N), its bytes, and whether it fits on chip.

    Args:
        values: bytes moved by (block_m, block_n).
        fits: whether that choice fits, for the same keys.
        title: what was swept.

    Raises:
        ValueError: if the keys are not a full grid or differ.
    """
    rows, columns = (sorted({key[i] for key in values}) for i in (0, 1))
    if not values or len(values) != len(rows) * len(columns) or set(fits) != set(values):
        raise ValueError("values and fits must have the same keys: every (block_m, block_n) of a grid, at least one")
    best = min((key for key in values if fits[key]), key=lambda key: values[key], default=None)
    figure = Picture(_map_text(values, fits, best, title), figsize=(1.9 + 0.95 * len(columns), 1.5 + 0.5 * len(rows)))
    axes = figure.subplots()
    blues = LinearSegmentedColormap.from_list("bytes", ["#F3F9FD", palette.BLUE])
    low, high = min(values.values()), max(values.values())
    scale = LogNorm(low, high) if 0 < low < high else Normalize(low - 1, high + 1)
    for (m, n), value in values.items():
        x, y = columns.index(n), rows.index(m)
        colour = blues(0.85 * float(scale(value))) if fits[m, n] else "white"
        hatch = "" if fits[m, n] else "////"
        edge = palette.GREY if not fits[m, n] else "white"
        axes.add_patch(Rectangle((x, y), 1, 1, facecolor=colour, edgecolor=edge, hatch=hatch, linewidth=0.8))
        _cell_text(axes, x, y, format_bytes(value) if fits[m, n] else "does\nnot fit", float(scale(value)), fits[m, n])
    if best:
        at = (columns.index(best[1]), rows.index(best[0]))
        axes.add_patch(Rectangle(at, 1, 1, facecolor="none", edgecolor=palette.ORANGE, linewidth=3, zorder=3))
    axes.set(
        xlim=(0, len(columns)),
        ylim=(len(rows), 0),
        xlabel="BLOCK_N (keys per step)",
        ylabel="BLOCK_M (queries per program)",
    )
    axes.set_xticks(np.arange(len(columns)) + 0.5, [str(n) for n in columns])
    axes.set_yticks(np.arange(len(rows)) + 0.5, [str(m) for m in rows])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, loc="left", fontsize=11)
    return figure


def _map_text(
    values: Mapping[tuple[int, int], float],
    fits: Mapping[tuple[int, int], bool],
    best: tuple[int, int] | None,
    title: str,
) -> str:
    misfits = ", ".join(f"{m} by {n}" for (m, n), fit in fits.items() if not fit) or "none"
    least = ""
    if best:
        size = format_bytes(values[best])
        least = f"Least traffic that fits: BLOCK_M {best[0]}, BLOCK_N {best[1]}, {size}."
    return f"Bytes moved by block size. {title}. {least} Does not fit: {misfits}."


def _cell_text(axes: Any, x: int, y: int, text: str, shade: float, fits: bool) -> None:
    box = None if fits else {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    colour = ("white" if shade > 0.55 else "black") if fits else "#444444"
    axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=9, color=colour, bbox=box)
