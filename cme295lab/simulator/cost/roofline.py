"""The roofline: how long a launch must take at least, by its arithmetic and by its traffic.

- *Memory*: DRAM bytes (from the cache model) over the bandwidth of the main memory.
- *Compute*: `tl.dot` runs on tensor cores at the peak of its operands' format; everything else, and dots that tensor
  cores do not do, on the ordinary cores at the fp32 peak. The two kinds of cores work at the same time, so the bound
  is the larger of the two times. A transcendental function counts as one FLOP.

Formats of `tl.dot`: fp32 operands are rounded to tf32 (Triton's default) unless `input_precision="ieee"`, which stays
on the ordinary cores; "tf32x3" does three products. A GPU that lacks a format uses the next wider one: fp8 → fp16, bf16
and tf32 → fp32; int8 is taken to be as fast as fp8.

Both times are lower bounds: launch overheads, latencies and instructions that are no arithmetic are left out.

Source: Williams, Waterman, Patterson 2009, "Roofline".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cme295lab.hardware import Device, number_format
from cme295lab.units import format_bytes, format_flops, format_rate, format_seconds

_WIDER = {"int8": "fp8", "fp8": "fp16", "bf16": "fp32", "tf32": "fp32", "fp64_tensor": "fp64", "fp16": "fp32"}
_ORDINARY = ("fp32", "fp64")


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """Lower bounds on the time of a launch (or of several, one after another).

    Attributes:
        device: name of the GPU.
        dtype: format whose peak is the roof: of most of the `tl.dot` FLOPs, fp32 without any.
        flops, dot_flops: counted.
        dram_bytes: from the cache model.
        compute_time_s, memory_time_s: see the module.
        time_s: the larger one; for several launches, the sum of the larger ones.
        peak_flops_per_s, bandwidth_bytes_per_s: the two roofs.
    """

    device: str
    dtype: str
    flops: int
    dot_flops: int
    dram_bytes: int
    compute_time_s: float
    memory_time_s: float
    time_s: float
    peak_flops_per_s: float
    bandwidth_bytes_per_s: float

    @property
    def intensity(self) -> float:
        """FLOPs per byte of main-memory traffic."""
        return self.flops / self.dram_bytes if self.dram_bytes else float("inf")

    @property
    def ridge_point(self) -> float:
        """Intensity from which on the peak, not the bandwidth, is the limit."""
        return self.peak_flops_per_s / self.bandwidth_bytes_per_s

    @property
    def bound(self) -> Literal["memory", "compute"]:
        """The resource that the larger of the two times belongs to."""
        return "compute" if self.compute_time_s > self.memory_time_s else "memory"

    def __str__(self) -> str:
        return (
            f"{self.device}: at least {format_seconds(self.time_s)}, bound by {self.bound}: "
            f"{format_flops(self.flops)} in {format_seconds(self.compute_time_s)} "
            f"({self.dtype} peak {format_rate(self.peak_flops_per_s, 'FLOP/s')}), "
            f"{format_bytes(self.dram_bytes)} in {format_seconds(self.memory_time_s)} "
            f"({format_rate(self.bandwidth_bytes_per_s, 'B/s')}); "
            f"{self.intensity:.1f} FLOP/byte, ridge at {self.ridge_point:.1f}"
        )

    def _repr_html_(self) -> str:
        return f"<p>{self}</p>"


def available_format(device: Device, dtype: str) -> str:
    """The format in which a device computes products of a format: itself, or the next wider one that it has."""
    dtype = dtype.partition("x")[0]
    while dtype not in device.peak_flops_per_s and dtype in _WIDER:
        dtype = _WIDER[dtype]
    return dtype


def _num_products(dtype: str) -> int:
    """How often the products are done: 3 for "tf32x3"."""
    return int(dtype.partition("x")[2] or 1)


def roofline(
    device: Device, dot_flops: Mapping[str, int], flops: int, dram_bytes: int, dtype: str | None = None
) -> Roofline:
    """The roofline of one launch.

    Args:
        device: the GPU.
        dot_flops: FLOPs of tl.dot by format ("fp16", "bf16", "tf32", "fp32", …).
        flops: all FLOPs.
        dram_bytes: main-memory traffic.
        dtype: computes every tl.dot in this format instead.

    Raises:
        ValueError: the device does not compute in `dtype`; the message lists what it has.
    """
    all_dots = sum(dot_flops.values())
    if dtype is not None:
        device.peak(dtype)
        dot_flops = {number_format(dtype): all_dots}
    roof = available_format(device, max(dot_flops, key=lambda name: dot_flops[name], default="fp32"))
    tensor_s, ordinary_s = 0.0, (flops - all_dots) / device.peak("fp32")
    for name, count in dot_flops.items():
        used = available_format(device, name)
        seconds = count * _num_products(name) / device.peak(used)
        if used in _ORDINARY:
            ordinary_s += seconds
        else:
            tensor_s += seconds
    compute_s, memory_s = max(tensor_s, ordinary_s), dram_bytes / device.bandwidth_bytes_per_s
    return Roofline(
        device=device.name, dtype=roof, flops=flops, dot_flops=all_dots, dram_bytes=dram_bytes,
        compute_time_s=compute_s, memory_time_s=memory_s, time_s=max(compute_s, memory_s),
        peak_flops_per_s=device.peak(roof), bandwidth_bytes_per_s=device.bandwidth_bytes_per_s,
    )  # fmt: skip


def one_after_another(parts: Sequence[Roofline], device: Device, dtype: str | None = None) -> Roofline:
    """The roofline of several launches on one device; the roof is that of the one with most FLOPs."""
    if not parts:
        return roofline(device, {}, 0, 0, dtype)
    main = max(parts, key=lambda part: part.flops)
    return Roofline(
        device=device.name, dtype=main.dtype, flops=sum(p.flops for p in parts),
        dot_flops=sum(p.dot_flops for p in parts), dram_bytes=sum(p.dram_bytes for p in parts),
        compute_time_s=sum(p.compute_time_s for p in parts), memory_time_s=sum(p.memory_time_s for p in parts),
        time_s=sum(p.time_s for p in parts), peak_flops_per_s=main.peak_flops_per_s,
        bandwidth_bytes_per_s=main.bandwidth_bytes_per_s,
    )  # fmt: skip
