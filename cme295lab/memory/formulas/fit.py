"""Does it fit? What is the largest that does? What is the cheapest change that makes it fit?

The last question needs an order of cost. This is the one used here, from free to dear; what a change costs is said in
the answer:

    1  flash attention                     nothing: the same numbers, and faster
    2  fused optimizer                     nothing: no temporaries
    3  ZeRO-1, ZeRO-2                      nothing: the traffic of data parallelism, where there is some
    4  sequence parallelism                nothing: the traffic of tensor parallelism, where there is some
    5  selective recomputation             a few per cent more compute
    6  a smaller micro-batch               more steps of accumulation, smaller matrices
    7  full recomputation                  a third more compute
    8  ZeRO-3                              half as much traffic again
    9  8 GPUs with ZeRO-1, 2, 3            more GPUs
    10 tensor parallelism over 2, 4, 8     more GPUs, and traffic inside of every layer
    11 optimizer states in the CPU's memory  two crossings of PCIe per parameter and step
    12 8 pipeline stages                   more GPUs, and time in which stages wait

One change that suffices is preferred to two. Changes of the numbers (another optimizer, pure bf16) are never proposed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cme295lab.hardware import Device, get_device
from cme295lab.memory.formulas.ledger import MemoryLedger, Verdict, ledger_of
from cme295lab.memory.formulas.setting import TrainingSetting
from cme295lab.transformer.presets import PRESETS

_NUMBERS = ("micro_batch", "seq", "num_layers")
_MORE_GPUS = 8


def largest_fitting(setting: TrainingSetting, what: str = "micro_batch", *, device: str | Device) -> int | str | None:
    """The largest micro-batch, sequence, number of layers or published model that fits, all else as it is.

    Args:
        setting: the step.
        what: "micro_batch", "seq" (a multiple of what it is divided by), "num_layers", or "model" (the preset with the
            most parameters, at the setting's sequence and micro-batch).
        device: the GPU, or its name.

    Returns:
        A number, or a preset's name; None if not even the smallest fits. A learned table of positions bounds "seq".

    Raises:
        TypeError, ValueError: an unknown device or an unknown `what`.
    """
    gpu = get_device(device)
    if what == "model":
        return _largest_model(setting, gpu)
    if what not in _NUMBERS:
        raise ValueError(f"what must be one of {', '.join(_NUMBERS)}, model, got {what!r}")
    unit, limit = 1, None
    if what == "seq":
        split = setting.parallel
        unit = split.context * (split.tensor if split.sequence_parallel else 1)
        limit = setting.config.max_seq // unit if setting.config.position == "learned" else None
    elif what == "num_layers":
        unit = setting.parallel.pipeline * setting.parallel.interleave_chunks

    def fits(count: int) -> bool:
        if limit is not None and count > limit:
            return False
        return bool(ledger_of(_with(setting, what, count * unit)).fits(gpu))

    count = largest_count(fits)
    return count * unit if count else None


def largest_count(fits: Callable[[int], bool]) -> int:
    """The largest count from 1 up that fits, if what is above it does not; 0 if none does."""
    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _with(setting: TrainingSetting, what: str, value: int) -> TrainingSetting:
    if what == "num_layers":
        config = type(setting.config).from_dict(setting.config.to_dict() | {"num_layers": value})
        return setting.changed(config=config)
    return setting.changed(**{what: value})


def _largest_model(setting: TrainingSetting, gpu: Device) -> str | None:
    for config in sorted(PRESETS.values(), key=lambda config: -config.num_parameters):
        if config.num_experts or (config.position == "learned" and setting.seq > config.max_seq):
            continue  # not counted; or it has no positions for such a sequence
        changed = _try(setting, config=config)
        if changed is not None and ledger_of(changed).fits(gpu):
            return config.name
    return None


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change of a setting that saves memory.

    Attributes:
        name: what is changed.
        cost: what it costs.
    """

    name: str
    cost: str


@dataclass(frozen=True, kw_only=True)
class Fix:
    """The cheapest way to make a step fit.

    Attributes:
        changes: what to change, none if it fits already.
        ledger: the step after the changes.
        verdict: whether it fits then.
    """

    changes: tuple[Change, ...]
    ledger: MemoryLedger
    verdict: Verdict

    def __bool__(self) -> bool:
        return bool(self.verdict)

    def __str__(self) -> str:
        if not self.changes:
            return str(self.verdict)
        if not self.verdict:
            names = ", ".join(change.name for change in self.changes)
            return f"nothing that is known here makes it fit; with {names} it {self.verdict}"
        what = "; ".join(f"{change.name} (costs {change.cost})" for change in self.changes)
        return f"{what}: {self.verdict}"


def cheapest_fix(setting: TrainingSetting, device: str | Device, *, more_gpus: bool = True) -> Fix:
    """The cheapest change, or changes, that make a step fit a GPU, in the order of cost above.

    The first single change that suffices; else changes are added one after the other until it fits, and those that turn
    out not to be needed are taken away again, the dearest first.

    Args:
        setting: the step.
        device: the GPU, or its name.
        more_gpus: whether changes that need more GPUs may be proposed.

    Returns:
        The changes and the ledger after them; false if nothing helps.

    Raises:
        TypeError, ValueError: an unknown device.
    """
    gpu = get_device(device)
    if ledger_of(setting).fits(gpu):
        return _fix((), setting, gpu)
    for change, changed in _changes(setting, gpu, more_gpus):
        if ledger_of(changed).fits(gpu):
            return _fix((change,), changed, gpu)
    taken, current = _add_up(setting, gpu, more_gpus)
    for change in [change for change, _ in reversed(taken)]:
        fewer = [item for item in taken if item[0] is not change]
        shorter = _apply(setting, fewer)
        if shorter is not None and ledger_of(shorter).fits(gpu):
            taken, current = fewer, shorter
    return _fix(tuple(change for change, _ in taken), current, gpu)


_Values = dict[str, object]


def _add_up(
    setting: TrainingSetting, gpu: Device, more_gpus: bool
) -> tuple[list[tuple[Change, _Values]], TrainingSetting]:
    """Changes one after the other, each applied to what the ones before left, until it fits."""
    taken: list[tuple[Change, _Values]] = []
    current = setting
    for make in _MAKERS if more_gpus else _ON_THESE_GPUS:
        for change, values in make(current, gpu):
            changed = _try(current, **values)
            if changed is None or ledger_of(changed).total_bytes >= ledger_of(current).total_bytes:
                continue
            taken.append((change, values))
            current = changed
            if ledger_of(current).fits(gpu):
                return taken, current
    return taken, current


def _apply(setting: TrainingSetting, changes: list[tuple[Change, _Values]]) -> TrainingSetting | None:
    changed: TrainingSetting | None = setting
    for _, values in changes:
        changed = _try(changed, **values) if changed is not None else None
    return changed


def _fix(changes: tuple[Change, ...], setting: TrainingSetting, gpu: Device) -> Fix:
    ledger = ledger_of(setting)
    return Fix(changes=changes, ledger=ledger, verdict=ledger.fits(gpu))


def _try(setting: TrainingSetting, **values: object) -> TrainingSetting | None:
    """The changed setting, or None where the model cannot be divided that way."""
    try:
        return setting.changed(**values)
    except ValueError:
        return None


def _changes(setting: TrainingSetting, gpu: Device, more_gpus: bool) -> Iterator[tuple[Change, TrainingSetting]]:
    for make in _MAKERS if more_gpus else _ON_THESE_GPUS:
        for change, values in make(setting, gpu):
            changed = _try(setting, **values)
            if changed is not None:
                yield change, changed


def _free(setting: TrainingSetting, gpu: Device) -> Iterator[tuple[Change, _Values]]:
    if setting.attention == "standard":
        yield Change(name="flash attention", cost="nothing, it is faster"), {"attention": "flash"}
    if setting.step != "fused":
        yield Change(name="fused optimizer", cost="nothing"), {"step": "fused"}
    if setting.parallel.num_shards > 1:
        for stage in range(setting.parallel.zero_stage + 1, 3):
            cost = "nothing: the traffic of data parallelism"
            yield Change(name=f"ZeRO-{stage}", cost=cost), {"zero_stage": stage}
    if setting.parallel.tensor > 1 and not setting.parallel.sequence_parallel:
        cost = "nothing: the traffic of tensor parallelism"
        yield Change(name="sequence parallelism", cost=cost), {"sequence_parallel": True}


def _compute(setting: TrainingSetting, gpu: Device) -> Iterator[tuple[Change, _Values]]:
    if setting.recompute == "none" and setting.attention == "standard":
        cost = "a few per cent more compute"
        yield Change(name="selective recomputation", cost=cost), {"recompute": "selective"}
    if setting.micro_batch > 1:
        found = largest_fitting(setting, "micro_batch", device=gpu)
        size = found if isinstance(found, int) else 1
        cost = "more accumulation, smaller matrices"
        yield Change(name=f"micro-batch {size}", cost=cost), {"micro_batch": size}
    if setting.recompute != "full":
        yield Change(name="full recomputation", cost="a third more compute"), {"recompute": "full"}
    if setting.parallel.num_shards > 1 and setting.parallel.zero_stage < 3:
        yield Change(name="ZeRO-3", cost="half as much traffic again"), {"zero_stage": 3}


def _offload(setting: TrainingSetting, gpu: Device) -> Iterator[tuple[Change, _Values]]:
    if not setting.offload_states:
        cost = "gradients and weights cross PCIe in every step"
        yield Change(name="optimizer states in the CPU's memory", cost=cost), {"offload_states": True}


def _shards(setting: TrainingSetting, gpu: Device) -> Iterator[tuple[Change, _Values]]:
    if setting.parallel.data == 1:
        for stage in (1, 2, 3):
            traffic = "data parallelism's traffic" if stage < 3 else "1.5 times data parallelism's traffic"
            values: _Values = {"data": _MORE_GPUS, "zero_stage": stage}
            yield Change(name=f"ZeRO-{stage} over {_MORE_GPUS} GPUs", cost=f"GPUs, and {traffic}"), values
    for tensor in (2, 4, 8):
        if setting.parallel.tensor < tensor:
            cost = "GPUs, and traffic inside of every layer"
            yield Change(name=f"tensor parallelism over {tensor} GPUs", cost=cost), {"tensor": tensor}


def _stages(setting: TrainingSetting, gpu: Device) -> Iterator[tuple[Change, _Values]]:
    if setting.parallel.pipeline == 1:
        cost = "GPUs, and time in which stages wait"
        yield Change(name=f"{_MORE_GPUS} pipeline stages", cost=cost), {"pipeline": _MORE_GPUS}


_MAKERS = (_free, _compute, _shards, _offload, _stages)
_ON_THESE_GPUS = (_free, _compute, _offload)
