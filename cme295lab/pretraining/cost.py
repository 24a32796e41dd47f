"""What training costs: GPU-hours, days, money, energy and CO2e, from a number of FLOP.

    GPU-hours = FLOP / (peak · MFU) / 3600             days = GPU-hours / (24 · number of GPUs)
    price     = GPU-hours · price of one               more GPUs end sooner and cost the same, if MFU stays
    energy    = GPU-hours · power of one · PUE         PUE: what the data centre takes per kWh that a server takes
    CO2e      = energy · grid intensity                where the power comes from decides over a factor of 20

The number of FLOP is nearly certain. Everything after it is an assumption, so each is an `Assumption`: a low, a central
and a high value, a unit, and where it comes from. A low estimate takes the favourable end of every assumption at once,
a high one the unfavourable end: the truth is likely in between, and the two are no confidence interval.

Prices are this course's own assumptions, made in 2025: what a GPU-hour costs changes by the month and by the contract.
What is not counted: failed runs and restarts, experiments before the run, storage, people, and making the GPUs.

    >>> cost = training_cost(3.8e25, device="H100", num_gpus=16_384)
    >>> round(cost.gpu_hours.central / 1e6), round(cost.days.central)
    (27, 68)

Source: Patterson et al. 2021, "Carbon Emissions and Large Neural Network Training" (the four steps, and GPT-3's
figures); Llama 3.1 model card, 2024 (GPU-hours, power, emissions).
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

from cme295lab.hardware import Device, get_device
from cme295lab.pretraining.flops.quantities import FlopCount, as_count, positive, whole

_OURS = "an assumption of this course, 2025"


@dataclass(frozen=True, kw_only=True)
class Range:
    """A low, a central and a high value of something."""

    low: float
    central: float
    high: float

    def __post_init__(self) -> None:
        for item in fields(Range):
            positive(item.name, getattr(self, item.name))
        if not self.low <= self.central <= self.high:
            raise ValueError(
                f"low, central and high must be in that order, got {self.low:g}, {self.central:g}, {self.high:g}"
            )

    def times(self, other: Range) -> Range:
        """Low with low, high with high."""
        return Range(low=self.low * other.low, central=self.central * other.central, high=self.high * other.high)

    def scaled(self, factor: float) -> Range:
        """All three, times a positive number."""
        return self.times(Range(low=factor, central=factor, high=factor))

    def inverse(self) -> Range:
        """1 / this: what was high is low."""
        return Range(low=1 / self.high, central=1 / self.central, high=1 / self.low)


@dataclass(frozen=True, kw_only=True)
class Assumption(Range):
    """A range, its unit, and where it comes from."""

    unit: str
    source: str

    @classmethod
    def exactly(cls, value: float, unit: str, source: str) -> Assumption:
        """One that is known: all three values are the same."""
        return cls(low=value, central=value, high=value, unit=unit, source=source)


MFU = Assumption(
    low=0.30, central=0.40, high=0.55, unit="of the peak",
    source="Llama 3 405B 0.38 to 0.43, PaLM 540B 0.46, Megatron 530B 0.56, GPT-3 0.21 (the papers); the choice is "
    + _OURS,
)  # fmt: skip
PUE = Assumption(
    low=1.1, central=1.2, high=1.6, unit="kWh per kWh",
    source=f"1.1 as in Patterson et al. 2021; the others are {_OURS}",
)  # fmt: skip
GRID_KG_PER_KWH = Assumption(
    low=0.03, central=0.4, high=0.8, unit="kg CO2e per kWh",
    source=f"0.43 in Patterson et al. 2021 for GPT-3; hydro or nuclear power, and coal, at the ends: {_OURS}",
)  # fmt: skip
POWER_SHARE = Assumption(
    low=0.7, central=1.0, high=1.8, unit="of the TDP",
    source="the TDP, as model cards count; 0.7: GPUs wait at times; 1.8: all of a server, as the 10.2 kW of a DGX H100 "
    f"over 8 GPUs of 700 W; {_OURS}",
)  # fmt: skip

TDP_W: Mapping[str, float] = MappingProxyType(
    {
        "V100-16GB-SXM2": 300, "V100-32GB-SXM2": 300, "A100-40GB-SXM": 400, "A100-80GB-SXM": 400, "A100-80GB-PCIe": 300,
        "H100-SXM5": 700, "H100-PCIe": 350, "H200-SXM": 700, "B200": 1000, "L4": 72, "T4": 70, "RTX-4090": 450,
    }
)  # fmt: skip
"""Thermal design power of each GPU in watts. Source: NVIDIA data sheets."""

_USD_PER_HOUR: Mapping[str, tuple[float, float, float]] = MappingProxyType(
    {
        "V100-16GB-SXM2": (0.3, 0.8, 3.0), "V100-32GB-SXM2": (0.4, 1.0, 3.5), "A100-40GB-SXM": (0.7, 1.5, 3.7),
        "A100-80GB-SXM": (0.9, 1.8, 5.0), "A100-80GB-PCIe": (0.8, 1.6, 4.0), "H100-SXM5": (1.5, 2.5, 8.0),
        "H100-PCIe": (1.3, 2.2, 6.0), "H200-SXM": (2.0, 3.5, 10.0), "B200": (3.0, 5.0, 14.0), "L4": (0.3, 0.7, 1.0),
        "T4": (0.15, 0.35, 0.6), "RTX-4090": (0.25, 0.4, 0.8),
    }
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """All that lies between a number of FLOP and a bill.

    Attributes:
        mfu: model FLOPs utilization, each value at most 1.
        price_usd_per_gpu_hour: of one GPU, with its share of the server.
        power_w: of one GPU, with what is counted of its server.
        pue: power usage effectiveness of the data centre, at least 1.
        grid_kg_per_kwh: CO2e of a kWh.

    Raises:
        ValueError: if a value is out of range.
    """

    mfu: Assumption = MFU
    price_usd_per_gpu_hour: Assumption
    power_w: Assumption
    pue: Assumption = PUE
    grid_kg_per_kwh: Assumption = GRID_KG_PER_KWH

    def __post_init__(self) -> None:
        if self.mfu.high > 1:
            raise ValueError(f"mfu must be a share of the peak, at most 1, got up to {self.mfu.high:g}")
        if self.pue.low < 1:
            raise ValueError(f"pue must be at least 1, got {self.pue.low:g}: a data centre takes what its servers take")


def assumptions_for(
    device: str | Device,
    *,
    mfu: Assumption = MFU,
    price_usd_per_gpu_hour: Assumption | None = None,
    power_w: Assumption | None = None,
    pue: Assumption = PUE,
    grid_kg_per_kwh: Assumption = GRID_KG_PER_KWH,
) -> Assumptions:
    """The course's assumptions for a GPU, with some of one's own.

    Args:
        device: the GPU, or its name.
        mfu, price_usd_per_gpu_hour, power_w, pue, grid_kg_per_kwh: instead of the course's.

    Raises:
        ValueError: if the GPU is not known, or is none of the table and its price or power is not given.
    """
    name = get_device(device).name
    if name not in TDP_W and (power_w is None or price_usd_per_gpu_hour is None):
        raise ValueError(f"power_w and price_usd_per_gpu_hour must be given for {name}: known are {', '.join(TDP_W)}")
    if power_w is None:
        drawn = POWER_SHARE.scaled(TDP_W[name])
        power_w = Assumption(low=drawn.low, central=drawn.central, high=drawn.high, unit="W",
                             source=f"TDP {TDP_W[name]:g} W times: {POWER_SHARE.source}")  # fmt: skip
    if price_usd_per_gpu_hour is None:
        low, central, high = _USD_PER_HOUR[name]
        source = f"from market places to a cloud's list price: {_OURS}"
        price_usd_per_gpu_hour = Assumption(low=low, central=central, high=high, unit="USD", source=source)
    return Assumptions(mfu=mfu, price_usd_per_gpu_hour=price_usd_per_gpu_hour, power_w=power_w, pue=pue,
                       grid_kg_per_kwh=grid_kg_per_kwh)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainingCost:
    """What a training run costs, as ranges; it draws itself, with its assumptions.

    Attributes:
        title: of the run.
        num_gpus: GPUs.
        gpu_hours: hours of one GPU.
        assumptions: what it rests on.
        hours_are_known: whether the hours were given, so that no MFU was assumed.
    """

    title: str
    num_gpus: int
    gpu_hours: Range
    assumptions: Assumptions
    hours_are_known: bool = False

    @property
    def days(self) -> Range:
        """Days from beginning to end, without interruption."""
        return self.gpu_hours.scaled(1 / (24 * self.num_gpus))

    @property
    def price_usd(self) -> Range:
        return self.gpu_hours.times(self.assumptions.price_usd_per_gpu_hour)

    @property
    def energy_kwh(self) -> Range:
        """What the data centre takes."""
        return self.gpu_hours.times(self.assumptions.power_w).times(self.assumptions.pue).scaled(1e-3)

    @property
    def co2e_kg(self) -> Range:
        return self.energy_kwh.times(self.assumptions.grid_kg_per_kwh)

    def rows(self) -> list[tuple[str, Range]]:
        """Names with units, and ranges."""
        return [
            ("GPU-hours", self.gpu_hours),
            ("days", self.days),
            ("price, USD", self.price_usd),
            ("energy, MWh", self.energy_kwh.scaled(1e-3)),
            ("CO2e, t", self.co2e_kg.scaled(1e-3)),
        ]

    def _assumed(self) -> list[tuple[str, Assumption]]:
        names = [item.name for item in fields(self.assumptions)]
        return [(name, getattr(self.assumptions, name)) for name in names if name != "mfu" or not self.hours_are_known]

    def __str__(self) -> str:
        lines = [f"{self.title}\n  {'':24}{'low':>12}{'central':>12}{'high':>12}"]
        lines += [f"  {name:24}{''.join(f'{number:>12}' for number in _numbers(found))}" for name, found in self.rows()]
        lines.append("assumed")
        lines += [
            f"  {name:24}{''.join(f'{number:>12}' for number in _numbers(found))}  {found.unit}"
            for name, found in self._assumed()
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """A table that follows the notebook's light or dark theme; sources of assumptions are under the pointer."""
        lines = "".join(_html_line(name, found, "") for name, found in self.rows())
        lines += _HEAD.format(name="assumed", cells="")
        lines += "".join(_html_line(f"{name}, {a.unit}", a, a.source) for name, a in self._assumed())
        head = "".join(f'<td style="text-align:right">{name}</td>' for name in ("low", "central", "high"))
        return _TABLE.format(title=html.escape(self.title), head=_HEAD.format(name="", cells=head), lines=lines)


def training_cost(
    num_flops: float,
    *,
    device: str | Device = "H100",
    num_gpus: int,
    dtype: str = "bf16",
    assumptions: Assumptions | None = None,
) -> TrainingCost:
    """The cost of so many model FLOP (without recomputation: MFU takes that into account).

    Args:
        num_flops: such as 6ND.
        device: the GPU, or its name.
        num_gpus: how many.
        dtype: the number format that is multiplied in; it decides over the peak.
        assumptions: instead of the course's own for this GPU.

    Raises:
        TypeError, ValueError: a rate for the count, numbers that are not positive, a GPU that is not known.
    """
    count, gpus, gpu = as_count("num_flops", num_flops), whole("num_gpus", num_gpus), get_device(device)
    assumed = assumptions or assumptions_for(gpu)
    hours = assumed.mfu.inverse().scaled(count.seconds_at(gpu.peak(dtype)) / 3600)
    title = f"{count} on {gpus:,} {gpu.name} in {dtype}"
    return TrainingCost(title=title, num_gpus=gpus, gpu_hours=hours, assumptions=assumed)


def cost_of_gpu_hours(
    gpu_hours: float, *, device: str | Device = "H100", num_gpus: int, assumptions: Assumptions | None = None
) -> TrainingCost:
    """The cost of a run whose GPU-hours are known; MFU plays no part then.

    Args:
        gpu_hours: hours of one GPU.
        device, num_gpus, assumptions: as in `training_cost`.

    Raises:
        TypeError, ValueError: numbers that are not positive, a GPU that is not known.
    """
    if isinstance(gpu_hours, FlopCount):
        raise TypeError(f"gpu_hours must be hours, got {gpu_hours!r}: training_cost takes FLOP")
    hours, gpus, gpu = positive("gpu_hours", gpu_hours), whole("num_gpus", num_gpus), get_device(device)
    title = f"{hours:,.0f} GPU-hours on {gpus:,} {gpu.name}"
    return TrainingCost(title=title, num_gpus=gpus, gpu_hours=Range(low=hours, central=hours, high=hours),
                        assumptions=assumptions or assumptions_for(gpu), hours_are_known=True)  # fmt: skip


def gpt_3() -> TrainingCost:
    """GPT-3 as Patterson et al. estimated it: 10,000 V100s at 24.6 TFLOP/s of 125, 330 W, PUE 1.1, 0.429 kg/kWh.

    They come to 14.8 days, 1,287 MWh and 552 t. The price is this course's guess.

    Source: Patterson et al. 2021, Table 4.
    """
    source = "Patterson et al. 2021, Table 4"
    assumed = assumptions_for(
        "V100",
        mfu=Assumption.exactly(24.6 / 125, "of the peak", source),
        power_w=Assumption.exactly(330, "W", source),
        pue=Assumption.exactly(1.10, "kWh per kWh", source),
        grid_kg_per_kwh=Assumption.exactly(0.429, "kg CO2e per kWh", source),
    )
    return training_cost(3.14e23, device="V100", num_gpus=10_000, dtype="fp16", assumptions=assumed)


def llama_3_405b() -> TrainingCost:
    """Llama 3.1 405B: the 30.84 million H100-hours at 700 W of its model card, the other assumptions the course's.

    The card estimates 8,930 t: 0.41 kg for each kWh of 30.84e6 hours at 700 W.

    Source: Llama 3.1 model card, July 2024.
    """
    power = Assumption.exactly(700, "W", "Llama 3.1 model card: TDP of the H100")
    return cost_of_gpu_hours(30.84e6, num_gpus=16_384, assumptions=assumptions_for("H100", power_w=power))


def _numbers(found: Range) -> list[str]:
    return [_short(value) for value in (found.low, found.central, found.high)]


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _html_line(name: str, found: Range, source: str) -> str:
    style = "text-align:right;padding:1px 10px;font-variant-numeric:tabular-nums"
    cells = "".join(f'<td style="{style}">{number}</td>' for number in _numbers(found))
    return (
        f'<tr style="background:none" title="{html.escape(source)}"><td style="text-align:left">{html.escape(name)}'
        f"</td>{cells}</tr>"
    )


_HEAD = '<tr style="background:none;opacity:.7"><td style="text-align:left">{name}</td>{cells}</tr>'
# Inline styles and inherited colours only: notebook pages strip <style> from outputs that they do not trust.
_TABLE = """\
<table style="border-collapse:collapse;font-size:13px"><caption style="text-align:left;font-weight:600;color:inherit">
{title}</caption>{head}{lines}</table>"""
