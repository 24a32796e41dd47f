"""The pictures of a report: memory hierarchy, roofline, on-chip bytes along the source."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from cme295lab import palette
from cme295lab.hardware import Device
from cme295lab.simulator.cost import Roofline
from cme295lab.simulator.report.facts import KernelFacts, LineFacts
from cme295lab.simulator.report.svg import FAINT, arrow, element, line, picture, rect, text
from cme295lab.units import format_bytes, format_flops, format_rate

READ, WRITTEN = palette.SKY, palette.GREEN
_WIDTH = 760
_CHART = (420, 270)
_MARGIN = (54, 14, 14, 40)  # left, top, right, bottom of a chart
_THICKEST, _THINNEST = 22.0, 2.0
_RADIUS = 9.0
Scale = Callable[[float], float]


def hierarchy(device: Device, k: KernelFacts) -> str:
    """Registers and SRAM, L2, DRAM, with the bytes that move between them."""
    t = k.traffic
    share = f"hits {t.l2_hit_bytes / t.l2_bytes:.0%}" if t.l2_bytes else "not used"
    held = format_bytes(k.sram_peak_bytes, binary=True)
    l2_rate = device.l2_bandwidth_bytes_per_s
    boxes = [
        (0, 216, f"{device.num_sms} SMs", [
            f"registers {_binary(device.register_bytes_per_sm)} each", f"SRAM {_binary(device.sram_bytes_per_sm)} each",
            f"a program holds up to {held}", f"programs ask for {format_bytes(t.requested_bytes)}"]),
        (318, 146, "L2 cache", [
            _binary(device.l2_bytes), *([format_rate(l2_rate, "B/s")] if l2_rate else []), share]),
        (566, 194, f"{device.memory_kind} (DRAM)", [
            _binary(device.memory_bytes), format_rate(device.bandwidth_bytes_per_s, "B/s"),
            f"distinct bytes {format_bytes(t.distinct_bytes)}"]),
    ]  # fmt: skip
    body = [_box(*box) for box in boxes]
    flows = [
        (218, 316, t.l2_read_bytes, t.l2_written_bytes),
        (466, 564, t.dram_read_bytes, t.dram_written_bytes),
    ]
    most = max(1, *(n for flow in flows for n in flow[2:]))
    for left, right, read, written in flows:
        body += _flow(right, left, 52, read, most, READ, "read")
        body += _flow(left, right, 112, written, most, WRITTEN, "written")
    label = (
        f"Memory hierarchy of {device.name} for {k.kernel}. Between SMs and L2: {format_bytes(t.l2_read_bytes)} read, "
        f"{format_bytes(t.l2_written_bytes)} written. Between L2 and DRAM: {format_bytes(t.dram_read_bytes)} read, "
        f"{format_bytes(t.dram_written_bytes)} written."
    )
    return picture(_WIDTH, 144, body, label)


def _binary(num_bytes: int) -> str:
    return format_bytes(num_bytes, binary=True)


def _box(x: int, width: int, name: str, facts: list[str]) -> str:
    frame = rect(
        x + 1,
        6,
        width - 2,
        132,
        rx=8,
        fill="currentColor",
        fill_opacity=0.05,
        stroke="currentColor",
        stroke_opacity=0.5,
    )
    rows = [text(x + width / 2, 64 + 18 * n, fact, anchor="middle", opacity=0.85) for n, fact in enumerate(facts)]
    return frame + text(x + width / 2, 36, name, size=15, anchor="middle", font_weight=600) + "".join(rows)


def _flow(start: int, end: int, y: int, num_bytes: int, most: int, colour: str, verb: str) -> list[str]:
    middle = (start + end) / 2
    words = text(middle, y - 15, f"{format_bytes(num_bytes)} {verb}", anchor="middle", size=11)
    if not num_bytes:
        return [words, line(start, y, end, y, stroke_opacity=0.35, stroke_dasharray="2 4")]
    return [words, arrow(start, end, y, max(_THINNEST, _THICKEST * num_bytes / most), colour)]


def roofline_chart(device: Device, kernels: Sequence[KernelFacts]) -> str:
    """Time bounds as points under the roofs of the formats that the kernels compute in, both axes logarithmic; "" if no
    kernel computes."""
    roofs = {k.roofline.dtype: k.roofline for k in kernels}
    points = [(n, k.roofline) for n, k in enumerate(kernels, 1) if k.roofline.flops and k.roofline.dram_bytes]
    if not points:
        return ""
    xs = [r.ridge_point for r in roofs.values()] + [r.intensity for _, r in points]
    ys = [r.peak_flops_per_s for r in roofs.values()] + [_rate(r) for _, r in points]
    low, high = _decades(xs)
    bottom, top = _decades(ys)
    (width, height), (left, above, right, below) = _CHART, _MARGIN

    def x_of(value: float) -> float:
        return left + (math.log10(value) - low) / (high - low) * (width - left - right)

    def y_of(value: float) -> float:
        return height - below - (math.log10(value) - bottom) / (top - bottom) * (height - above - below)

    body = []
    for value in (10.0**power for power in range(low, high + 1)):
        body.append(line(x_of(value), above, x_of(value), height - below, stroke_opacity=0.14))
        body.append(text(x_of(value), height - below + 15, _short(value), anchor="middle", size=11))
    for value in (10.0**power for power in range(bottom, top + 1)):
        body.append(line(left, y_of(value), width - right, y_of(value), stroke_opacity=0.14))
        body.append(text(left - 5, y_of(value) + 4, _short(value), anchor="end", size=11))
    for dtype, roof in roofs.items():
        body += _roof(dtype, roof, x_of, y_of, (low, high, bottom))
    body += _markers([(x_of(r.intensity), y_of(_rate(r)), str(n)) for n, r in points])
    body += [text(width - right, height - 6, "FLOP per byte of DRAM traffic", anchor="end", size=11, opacity=FAINT),
             text(left + 4, above + 8, "FLOP/s", size=11, opacity=FAINT)]  # fmt: skip
    words = "; ".join(
        f"{n} {kernels[n - 1].kernel}: {r.intensity:.3g} FLOP per byte, bound by {r.bound}" for n, r in points
    )
    ridges = ", ".join(f"{dtype} {roof.ridge_point:.3g}" for dtype, roof in roofs.items())
    return picture(width, height, body, f"Roofline of {device.name}, ridge point at {ridges} FLOP per byte. {words}")


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """Powers of ten below and above the values, three at least."""
    low, high = math.floor(math.log10(min(values)) - 0.3), math.ceil(math.log10(max(values)) + 0.2)
    return min(low, high - 3), high


def _rate(roofline: Roofline) -> float:
    """FLOP/s if the launch takes no longer than its bound."""
    return roofline.flops / roofline.time_s


def _short(value: float) -> str:
    return format_flops(value).removesuffix("FLOP").replace(" ", "")


def _roof(dtype: str, roof: Roofline, x_of: Scale, y_of: Scale, limits: tuple[int, int, int]) -> list[str]:
    low, high, bottom = limits
    start = max(10.0**low, 10.0**bottom / roof.bandwidth_bytes_per_s)
    ridge, peak = roof.ridge_point, roof.peak_flops_per_s
    path = (
        f"M{x_of(start):.1f} {y_of(start * roof.bandwidth_bytes_per_s):.1f}L{x_of(ridge):.1f} {y_of(peak):.1f}"
        f"L{x_of(10.0**high):.1f} {y_of(peak):.1f}"
    )
    return [
        element("path", d=path, fill="none", stroke="currentColor", stroke_width=2, stroke_opacity=0.8),
        line(x_of(ridge), y_of(peak), x_of(ridge), y_of(10.0**bottom), stroke_dasharray="3 4", stroke_opacity=0.6),
        text(x_of(ridge) - 4, y_of(10.0**bottom) - 6, f"ridge {ridge:.3g}", anchor="end", size=11, opacity=FAINT),
        text(x_of(10.0**high) - 2, y_of(peak) - 14, f"{dtype} {format_rate(peak, 'FLOP/s')}", anchor="end", size=11),
    ]


def _markers(points: list[tuple[float, float, str]]) -> list[str]:
    """Numbered points; those that would hide each other are one."""
    clusters: list[list[tuple[float, float, str]]] = []
    for point in sorted(points):
        near = next((c for c in clusters if math.dist(c[-1][:2], point[:2]) < 2 * _RADIUS + 4 * len(c)), None)
        if near is None:
            clusters.append([point])
        else:
            near.append(point)
    body = []
    for cluster in clusters:
        x, y = (math.fsum(c) / len(cluster) for c in ([p[0] for p in cluster], [p[1] for p in cluster]))
        words = ", ".join(p[2] for p in sorted(cluster, key=lambda p: int(p[2])))
        width = 2 * _RADIUS + 5 * (len(words) - 1)
        body += [
            rect(x - width / 2, y - _RADIUS, width, 2 * _RADIUS, rx=_RADIUS, fill=palette.BLUE, stroke="currentColor"),
            text(x, y + 4, words, anchor="middle", size=11, fill="#fff", font_weight=600),
        ]
    return body


def on_chip_chart(lines: Sequence[LineFacts], available_bytes: int) -> str:
    """Block bytes that one program holds at each line of the source that computes something."""
    shown = [x for x in lines if x.sram_bytes is not None]
    peak = max((x.sram_bytes or 0 for x in shown), default=0)
    if not peak:
        return ""
    (width, height), (left, above, right, below) = _CHART, _MARGIN
    step = (width - left - right) / len(shown)
    scale = (height - above - below - 12) / peak
    body = [line(left, height - below, width - right, height - below, stroke_opacity=0.6)]
    for share in (0.5, 1.0):
        y = height - below - share * peak * scale
        body += [line(left, y, width - right, y, stroke_opacity=0.14),
                 text(left - 5, y + 4, _binary(round(share * peak)), anchor="end", size=10)]  # fmt: skip
    every = max(1, math.ceil(26 / step))
    for n, x in enumerate(shown):
        size = (x.sram_bytes or 0) * scale
        full = (x.sram_bytes or 0) > available_bytes
        colour = palette.VERMILLION if full else palette.ORANGE if x.sram_bytes == peak else palette.BLUE
        at = left + n * step
        thick = min(0.8 * step, _THICKEST)
        body.append(rect(at + (step - thick) / 2, height - below - size, thick, size, fill=colour))
        if n % every == 0:
            body.append(text(at + step / 2, height - below + 14, str(x.line), anchor="middle", size=10))
    top = max(shown, key=lambda x: x.sram_bytes or 0)
    body.append(text(width - right, height - 6, "source line", anchor="end", size=11, opacity=FAINT))
    where = f"line {top.line} ({top.text.strip()})"
    label = f"On-chip bytes of one program by source line: at most {_binary(peak)}, in {where}."
    return picture(width, height, body, label)
