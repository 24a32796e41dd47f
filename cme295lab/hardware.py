"""GPU data sheets: memories, bandwidths, peaks and links of the accelerators the course talks about.

Read a `Device` as a set of limits. A kernel that does F floating-point operations and moves B bytes through the GPU's
main memory (HBM) takes at least max(F / peak, B / bandwidth) seconds; the two are equal at the ridge point,
`device.ridge_point(dtype)` FLOP per byte. What a kernel keeps close by must fit the SRAM of a streaming
multiprocessor (SM): `sram_bytes_per_sm`, of which one thread block may use `max_shared_bytes_per_block`.

Peaks are dense figures: the "with sparsity" ones of the marketing pages are twice as large. They equal
SMs x boost clock x FLOP per clock and SM, which the tests recompute. Memory sizes are binary, as memories are built: an
"80 GB" A100 has 80 GiB.

    >>> a100 = get_device("A100")
    >>> round(a100.ridge_point("bf16"), 1), a100.num_sms * a100.sram_bytes_per_sm / MiB
    (153.0, 20.25)

A GPU that the table lacks is a `Device` of one's own, or a changed copy of another; whatever takes a device takes it.

    >>> import dataclasses
    >>> slow = dataclasses.replace(a100, name="A100 at 1 TB/s", bandwidth_bytes_per_s=1e12)
    >>> get_device(slow).ridge_point("bf16")
    312.0
"""

import difflib
import html
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Literal

from cme295lab.units import GiB, KiB, MiB, format_bytes, format_rate

_DTYPE_NAMES = {
    "float64": "fp64", "double": "fp64", "float32": "fp32", "float": "fp32", "float16": "fp16", "half": "fp16",
    "bfloat16": "bf16", "float8_e4m3fn": "fp8", "float8_e5m2": "fp8",
}  # fmt: skip
_MAY_BE_ZERO = ("link_bytes_per_s", "tensor_memory_bytes_per_sm")


@dataclass(frozen=True, kw_only=True)
class Device:
    """The limits of one GPU.

    Attributes:
        name: canonical name, a key of `DEVICES`.
        memory_bytes: capacity of the main memory (HBM or GDDR).
        bandwidth_bytes_per_s: peak bandwidth of the main memory.
        l2_bytes: level-2 cache, shared by all SMs.
        num_sms: streaming multiprocessors.
        sram_bytes_per_sm: L1 cache and shared memory of an SM, one array of SRAM.
        max_shared_bytes_per_block: the shared memory that one thread block may allocate.
        memory_kind: technology of the main memory, such as "HBM2e".
        register_bytes_per_sm: register file of an SM.
        tensor_memory_bytes_per_sm: memory of an SM that only its tensor cores use (Blackwell).
        peak_flops_per_s: dense peak by number format: "fp64" and "fp32" on the ordinary cores; "fp64_tensor", "tf32",
            "fp16", "bf16" and "fp8" on tensor cores, accumulating in fp32. Formats the GPU lacks are absent.
        link_bytes_per_s: link to other GPUs, both directions together (half of it each way).
        compute_capability: 80 for sm_80.
        l2_bandwidth_bytes_per_s, sram_bandwidth_bytes_per_s: peak bandwidth of all L2 and of all SRAM together; None
            where the vendor does not state what it follows from.
        confidence: "certain" (vendor document) or "likely" (some figures from secondary sources; `remark` says which).
        source: where the figures come from.
        remark: what to know before using them.

    Raises:
        ValueError: if a size, rate or peak is not positive.
    """

    name: str
    memory_bytes: int
    bandwidth_bytes_per_s: float
    l2_bytes: int
    num_sms: int
    sram_bytes_per_sm: int
    max_shared_bytes_per_block: int
    peak_flops_per_s: Mapping[str, float] = field(hash=False)
    link_bytes_per_s: float
    compute_capability: int
    source: str
    memory_kind: str = "HBM"
    register_bytes_per_sm: int = 256 * KiB
    tensor_memory_bytes_per_sm: int = 0
    l2_bandwidth_bytes_per_s: float | None = None
    sram_bandwidth_bytes_per_s: float | None = None
    confidence: Literal["certain", "likely"] = "certain"
    remark: str = ""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not isinstance(value, int | float) or (value == 0 and item.name in _MAY_BE_ZERO):
                continue
            if not value > 0:
                raise ValueError(f"{item.name} of {self.name!r} must be a positive number, got {value}")
        if not self.peak_flops_per_s or not all(peak > 0 for peak in self.peak_flops_per_s.values()):
            raise ValueError(
                f"peak_flops_per_s of {self.name!r} must map formats to positive FLOP/s, got {self.peak_flops_per_s}"
            )
        object.__setattr__(self, "peak_flops_per_s", MappingProxyType(dict(self.peak_flops_per_s)))

    def __reduce__(self) -> tuple[Any, ...]:  # a read-only mapping cannot be pickled as it is
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return _rebuild, (values | {"peak_flops_per_s": dict(self.peak_flops_per_s)},)

    @property
    def on_chip_bytes_per_sm(self) -> int:
        """All the memory a program can hold on an SM: SRAM, registers and tensor memory."""
        return self.sram_bytes_per_sm + self.register_bytes_per_sm + self.tensor_memory_bytes_per_sm

    def peak(self, dtype: object = "bf16") -> float:
        """Dense peak in FLOP/s for a number format, given as "bf16", "bfloat16" or `torch.bfloat16`.

        Raises:
            ValueError: if the GPU does not compute in that format; the message lists those it has.
        """
        name = number_format(dtype)
        if name not in self.peak_flops_per_s:
            raise ValueError(f"{self.name} has no peak for dtype {dtype!r}; it has {', '.join(self.peak_flops_per_s)}")
        return self.peak_flops_per_s[name]

    def ridge_point(self, dtype: object = "bf16") -> float:
        """FLOP per byte of main-memory traffic at which computing and moving take equally long.

        Source: Williams, Waterman, Patterson 2009, "Roofline".
        """
        return self.peak(dtype) / self.bandwidth_bytes_per_s

    def _rows(self) -> list[tuple[str, str]]:
        """What the card says, top to bottom."""
        memory, rate = format_bytes(self.memory_bytes, binary=True), format_rate(self.bandwidth_bytes_per_s, "B/s")
        sram, block = (format_bytes(n, binary=True) for n in (self.sram_bytes_per_sm, self.max_shared_bytes_per_block))
        rows = [
            ("memory", f"{memory} {self.memory_kind} at {rate}"),
            ("L2 cache", format_bytes(self.l2_bytes, binary=True)),
            ("SMs", f"{self.num_sms} (sm_{self.compute_capability})"),
            ("SRAM per SM", f"{sram}, at most {block} a block"),
            ("registers per SM", format_bytes(self.register_bytes_per_sm, binary=True)),
        ]
        if self.tensor_memory_bytes_per_sm:
            rows.append(("tensor memory per SM", format_bytes(self.tensor_memory_bytes_per_sm, binary=True)))
        if self.link_bytes_per_s:
            rows.append(("link", f"{format_rate(self.link_bytes_per_s, 'B/s')} both directions"))
        return rows

    def __str__(self) -> str:
        """A small text table."""
        peaks = ((f"peak {dtype}", format_rate(peak, "FLOP/s")) for dtype, peak in self.peak_flops_per_s.items())
        rows = [*self._rows(), *peaks, ("figures", f"{self.confidence}; {self.source}")]
        rows += [("remark", self.remark)] if self.remark else []
        width = max(len(label) for label, _ in rows)
        return "\n".join([self.name, *(f"  {label:<{width}}  {text}" for label, text in rows)])

    def _repr_html_(self) -> str:
        """A card that follows the notebook's light or dark theme."""
        return _CARD.format(
            name=html.escape(self.name),
            badge="" if self.confidence == "certain" else _BADGE.format(text="likely"),
            rows="".join(_CARD_ROW.format(label=label, text=html.escape(text)) for label, text in self._rows()),
            peaks="".join(_peak_row(self, dtype) for dtype in self.peak_flops_per_s),
            source=html.escape(self.source + (f" {self.remark}" if self.remark else "")),
        )


# Inline styles and inherited colours only: notebook pages strip <style> from outputs that they do not trust.
_CARD = """\
<div style="display:inline-block;box-sizing:border-box;max-width:760px;padding:14px 18px;font-size:13px;line-height:1.5;
border:1px solid rgba(128,128,128,.45);border-radius:8px">
<div style="font-size:16px;font-weight:600;margin-bottom:8px">{name}{badge}</div>
<div style="display:flex;flex-wrap:wrap;gap:8px 36px;align-items:flex-start">
<table style="margin:0;border-collapse:collapse;font-size:13px">{rows}</table>
<table style="margin:0;border-collapse:collapse;font-size:13px">{peaks}</table></div>
<div style="padding-top:8px;font-size:11px;opacity:.7">{source}</div></div>"""
_CARD_ROW = """\
<tr style="background:none"><td style="text-align:left;padding:1px 14px 1px 0;opacity:.7">{label}</td>
<td style="text-align:left;padding:1px 0;font-variant-numeric:tabular-nums">{text}</td></tr>"""
_PEAK_ROW = """\
<tr style="background:none"><td style="text-align:left;padding:1px 10px 1px 0;opacity:.7">{dtype}</td>
<td style="text-align:left;padding:1px 10px 1px 0"><div style="width:110px">
<div style="height:8px;border-radius:2px;background:#0072b2;width:{share:.1f}%"></div></div></td>
<td style="text-align:right;padding:1px 0;white-space:nowrap;font-variant-numeric:tabular-nums">{peak}</td></tr>"""
_BADGE = """\
<span style="margin-left:10px;padding:1px 8px;border:1px solid currentColor;border-radius:9px;font-size:11px;
font-weight:400;opacity:.75">{text}</span>"""


def _peak_row(device: Device, dtype: str) -> str:
    peak = device.peak_flops_per_s[dtype]
    share = max(100 * peak / max(device.peak_flops_per_s.values()), 1)
    return _PEAK_ROW.format(dtype=dtype.replace("_", "&nbsp;"), share=share, peak=format_rate(peak, "FLOP/s"))


def _rebuild(values: dict[str, Any]) -> Device:
    return Device(**values)


def _tera(**peaks: float) -> dict[str, float]:
    return {dtype: value * 1e12 for dtype, value in peaks.items()}


_A100: dict[str, Any] = {
    "l2_bytes": 40 * MiB, "num_sms": 108, "sram_bytes_per_sm": 192 * KiB, "max_shared_bytes_per_block": 163 * KiB,
    "peak_flops_per_s": _tera(fp64=9.7, fp64_tensor=19.5, fp32=19.5, tf32=156, fp16=312, bf16=312),
    "link_bytes_per_s": 600e9, "compute_capability": 80, "l2_bandwidth_bytes_per_s": 5120 * 1.41e9,
    "sram_bandwidth_bytes_per_s": 108 * 128 * 1.41e9,
    "source": "NVIDIA A100 Tensor Core GPU Architecture, 2020, and A100 data sheet.",
}  # fmt: skip
_HOPPER: dict[str, Any] = {
    "l2_bytes": 50 * MiB, "sram_bytes_per_sm": 256 * KiB, "max_shared_bytes_per_block": 227 * KiB,
    "compute_capability": 90,
}  # fmt: skip
_HOPPER_SXM: dict[str, Any] = _HOPPER | {
    "num_sms": 132, "link_bytes_per_s": 900e9, "sram_bandwidth_bytes_per_s": 132 * 128 * 1.83e9,
    "peak_flops_per_s": _tera(fp64=33.5, fp64_tensor=66.9, fp32=66.9, tf32=494.7, fp16=989.4, bf16=989.4, fp8=1978.9),
}  # fmt: skip
_V100: dict[str, Any] = {
    "memory_kind": "HBM2", "bandwidth_bytes_per_s": 900e9, "l2_bytes": 6 * MiB, "num_sms": 80,
    "sram_bytes_per_sm": 128 * KiB, "max_shared_bytes_per_block": 96 * KiB,
    "peak_flops_per_s": _tera(fp64=7.8, fp32=15.7, fp16=125),
    "link_bytes_per_s": 300e9, "compute_capability": 70, "l2_bandwidth_bytes_per_s": 2048 * 1.53e9,
    "sram_bandwidth_bytes_per_s": 80 * 128 * 1.53e9,
    "source": "NVIDIA Tesla V100 GPU Architecture, 2017, and V100 data sheet.",
}  # fmt: skip
_ADA: dict[str, Any] = {
    "memory_bytes": 24 * GiB, "sram_bytes_per_sm": 128 * KiB, "max_shared_bytes_per_block": 99 * KiB,
    "link_bytes_per_s": 64e9, "compute_capability": 89, "confidence": "likely",
}  # fmt: skip
_BRIDGE = "The link is a bridge between two cards."
_SECONDARY = "L2 size and fp64 peak are from secondary sources. The link is PCIe."

_TABLE = (
    Device(name="V100-16GB-SXM2", memory_bytes=16 * GiB, **_V100),
    Device(name="V100-32GB-SXM2", memory_bytes=32 * GiB, **_V100),
    Device(name="A100-40GB-SXM", memory_bytes=40 * GiB, memory_kind="HBM2", bandwidth_bytes_per_s=1555e9, **_A100),
    Device(name="A100-80GB-SXM", memory_bytes=80 * GiB, memory_kind="HBM2e", bandwidth_bytes_per_s=2039e9, **_A100),
    Device(name="A100-80GB-PCIe", memory_bytes=80 * GiB, memory_kind="HBM2e", bandwidth_bytes_per_s=1935e9,
           remark=_BRIDGE, **_A100),
    Device(name="H100-SXM5", memory_bytes=80 * GiB, memory_kind="HBM3", bandwidth_bytes_per_s=3350e9, **_HOPPER_SXM,
           source="NVIDIA H100 Tensor Core GPU Architecture, 2022."),
    Device(name="H100-PCIe", memory_bytes=80 * GiB, memory_kind="HBM2e", bandwidth_bytes_per_s=2000e9,
           num_sms=114, **_HOPPER,
           peak_flops_per_s=_tera(fp64=25.6, fp64_tensor=51.2, fp32=51.2, tf32=378, fp16=756, bf16=756, fp8=1513),
           link_bytes_per_s=600e9, sram_bandwidth_bytes_per_s=114 * 128 * 1.62e9, remark=_BRIDGE,
           source="NVIDIA H100 Tensor Core GPU Architecture, 2022."),
    Device(name="H200-SXM", memory_bytes=141 * GiB, memory_kind="HBM3e", bandwidth_bytes_per_s=4800e9, **_HOPPER_SXM,
           source="NVIDIA H200 data sheet."),
    Device(name="B200", memory_bytes=180 * GiB, memory_kind="HBM3e", bandwidth_bytes_per_s=8000e9,
           l2_bytes=126 * MiB, num_sms=148,
           sram_bytes_per_sm=256 * KiB, max_shared_bytes_per_block=227 * KiB, tensor_memory_bytes_per_sm=256 * KiB,
           peak_flops_per_s=_tera(fp64=37, fp64_tensor=37, fp32=75, tf32=1125, fp16=2250, bf16=2250, fp8=4500),
           link_bytes_per_s=1800e9, compute_capability=100, confidence="likely",
           source="NVIDIA Blackwell data sheets.",
           remark="Of 192 GB fitted 180 are usable. Sources differ on bandwidth (7.7 to 8 TB/s), bf16 (2.25 or "
                  "2.5 PFLOP/s), tf32, fp32 and fp64."),
    Device(name="L4", memory_kind="GDDR6", bandwidth_bytes_per_s=300e9, l2_bytes=48 * MiB, num_sms=58, **_ADA,
           peak_flops_per_s=_tera(fp64=0.47, fp32=30.3, tf32=60, fp16=121, bf16=121, fp8=242),
           sram_bandwidth_bytes_per_s=58 * 128 * 2.04e9, source="NVIDIA L4 data sheet.", remark=_SECONDARY),
    Device(name="T4", memory_bytes=16 * GiB, memory_kind="GDDR6", bandwidth_bytes_per_s=320e9,
           l2_bytes=4 * MiB, num_sms=40,
           sram_bytes_per_sm=96 * KiB, max_shared_bytes_per_block=64 * KiB, link_bytes_per_s=32e9,
           peak_flops_per_s=_tera(fp64=0.25, fp32=8.1, fp16=65), compute_capability=75, confidence="likely",
           sram_bandwidth_bytes_per_s=40 * 64 * 1.59e9, remark="No bf16. " + _SECONDARY,
           source="NVIDIA Turing GPU Architecture, 2018, and T4 data sheet."),
    Device(name="RTX-4090", memory_kind="GDDR6X", bandwidth_bytes_per_s=1008e9, l2_bytes=72 * MiB, num_sms=128, **_ADA,
           peak_flops_per_s=_tera(fp64=1.29, fp32=82.6, tf32=82.6, fp16=165.2, bf16=165.2, fp8=330.3),
           sram_bandwidth_bytes_per_s=128 * 128 * 2.52e9, source="NVIDIA Ada GPU Architecture, 2022.",
           remark="Twice as fast in fp16 and fp8 with fp16 accumulation. " + _SECONDARY),
)  # fmt: skip

DEVICES: Mapping[str, Device] = MappingProxyType({device.name: device for device in _TABLE})
"""All devices of the table by canonical name."""

_ALIASES = {
    "V100": "V100-16GB-SXM2", "A100": "A100-80GB-SXM", "A100-40GB": "A100-40GB-SXM", "A100-80GB": "A100-80GB-SXM",
    "A100-PCIe": "A100-80GB-PCIe", "H100": "H100-SXM5", "H100-SXM": "H100-SXM5", "H200": "H200-SXM", "4090": "RTX-4090",
}  # fmt: skip
_DRIVER_NAMES = {  # as the CUDA driver reports them, without "NVIDIA", "Tesla" and "GeForce"
    "V100-SXM2-16GB": "V100-16GB-SXM2", "V100-SXM2-32GB": "V100-32GB-SXM2", "A100-SXM4-40GB": "A100-40GB-SXM",
    "A100-SXM4-80GB": "A100-80GB-SXM", "A100 80GB PCIe": "A100-80GB-PCIe", "H100 80GB HBM3": "H100-SXM5",
    "H100 PCIe": "H100-PCIe", "H200": "H200-SXM", "B200": "B200", "L4": "L4", "T4": "T4", "RTX 4090": "RTX-4090",
}  # fmt: skip
_TENSOR_FLOP_PER_CLOCK_AND_SM = {70: 1024, 75: 1024, 80: 2048, 90: 4096, 100: 8192, 103: 8192}  # elsewhere 512


def number_format(dtype: object) -> str:
    """The key of `Device.peak_flops_per_s` for a number format given as "bf16", "bfloat16" or `torch.bfloat16`."""
    name = str(dtype).lower().removeprefix("torch.")
    return _DTYPE_NAMES.get(name, name)


def _fold(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


_BY_FOLDED_NAME = {_fold(alias): DEVICES[name] for alias, name in ({name: name for name in DEVICES} | _ALIASES).items()}


def get_device(device: str | Device) -> Device:
    """Look a GPU up by name, in any case, hyphens or not ("a100", "RTX 4090"); a `Device` is returned as it is.

    Raises:
        TypeError: if `device` is neither a name nor a `Device`.
        ValueError: if the name is unknown; the message lists the known ones and the closest match.
    """
    if isinstance(device, Device):
        return device
    if not isinstance(device, str):
        raise TypeError(f"device must be a name or a Device, got {device!r} of type {type(device).__name__}")
    folded = _fold(device)
    if folded not in _BY_FOLDED_NAME:
        close = difflib.get_close_matches(folded, _BY_FOLDED_NAME, n=1)
        hint = f" Did you mean {_BY_FOLDED_NAME[close[0]].name!r}?" if close else ""
        raise ValueError(f"unknown device {device!r}.{hint} Known: {', '.join([*DEVICES, *_ALIASES])}")
    return _BY_FOLDED_NAME[folded]


def device_at_hand() -> Device | None:
    """The CUDA GPU that PyTorch would use, or None on a machine without one.

    A GPU of the table is returned with its data sheet. Another one is built from what the driver reports; its peaks are
    then derived from its compute capability and clock, and `confidence` is "likely".
    """
    import torch  # here, because importing this module must stay cheap

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    model = properties.name
    for brand in ("NVIDIA ", "Tesla ", "GeForce "):
        model = model.removeprefix(brand)
    return DEVICES[_DRIVER_NAMES[model]] if model in _DRIVER_NAMES else _from_properties(properties)


def _from_properties(properties: Any) -> Device:
    """Build a device from the record that `torch.cuda.get_device_properties` returns."""
    capability = 10 * properties.major + properties.minor
    sm_clocks_per_s = properties.multi_processor_count * properties.clock_rate * 1e3  # the driver reports kHz
    tensor_peak = sm_clocks_per_s * _TENSOR_FLOP_PER_CLOCK_AND_SM.get(capability, 512)
    fp32_peak = sm_clocks_per_s * (128 if capability <= 80 else 256)  # 64 or 128 cores, a multiply-add is two FLOP
    return Device(
        name=properties.name,
        memory_bytes=properties.total_memory,
        memory_kind="memory",
        bandwidth_bytes_per_s=2 * properties.memory_clock_rate * 1e3 * properties.memory_bus_width / 8,
        l2_bytes=properties.L2_cache_size,
        num_sms=properties.multi_processor_count,
        sram_bytes_per_sm=properties.shared_memory_per_multiprocessor,
        max_shared_bytes_per_block=properties.shared_memory_per_block_optin,
        register_bytes_per_sm=4 * properties.regs_per_multiprocessor,
        peak_flops_per_s={"fp32": fp32_peak, "fp16": tensor_peak} | ({"bf16": tensor_peak} if capability >= 80 else {}),
        link_bytes_per_s=0.0,
        compute_capability=capability,
        confidence="likely",
        source="Reported by the CUDA driver.",
        remark="Peaks are derived from compute capability and clock; the link is not known.",
    )
