"""The memory of one rank, line by line, at the moment when it is largest.

    >>> from cme295lab.transformer import preset
    >>> ledger = training_memory(preset("llama-3-8b"), seq=8192, recompute="full")
    >>> {name: round(size / 1e9) for name, size in ledger.by_class().items()}  # GB
    {'weight': 16, 'gradient': 16, 'master weight': 32, 'optimizer state': 64, 'activation': 6, 'temporary': 8}
    >>> print(ledger.fits("H100"))
    does not fit H100-SXM5: 143 GB of 85.9 GB, 57.5 GB too much

A ledger holds the setting it was made from, so it can be changed, stored and made again. Rows are typed: what it is,
which class it belongs to, bytes, the formula, the source. What is alive only at other moments of the step (the
optimizer's temporaries while activations peak, say) is not in `rows`; `at` shows those.

Not covered: the CUDA context and libraries' workspaces (some hundred MB), which no allocator sees; mixture of experts.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from cme295lab.hardware import Device, get_device
from cme295lab.memory.formulas import activations, ledger_view
from cme295lab.memory.formulas.model_states import ModelStates, model_states
from cme295lab.memory.formulas.moments import Moment, moments_of
from cme295lab.memory.formulas.precision import FORMAT_BYTES, PrecisionPolicy, get_policy
from cme295lab.memory.formulas.setting import Optimizer, ParallelConfig, TrainingSetting, check_count
from cme295lab.memory.formulas.shapes import local_kv_dim, parameter_shapes
from cme295lab.transformer.config import ModelConfig
from cme295lab.transformer.presets import preset
from cme295lab.units import format_bytes

if TYPE_CHECKING:
    from cme295lab.memory.formulas.fit import Fix

MemoryClass = Literal[
    "weight", "gradient", "master weight", "optimizer state", "activation", "temporary", "KV cache", "fragmentation"
]


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """One line of a ledger.

    Attributes:
        name: what it is.
        memory_class: the class that a measured timeline would give it; masters and fragmentation have their own.
        num_bytes: its size on one rank.
        formula: how that comes about.
        source: where the formula is from.
    """

    name: str
    memory_class: MemoryClass
    num_bytes: int
    formula: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a ledger fits a GPU.

    Attributes:
        device: the GPU.
        total_bytes: what is needed.
        margin_bytes: what is left; negative where it does not fit.
    """

    device: Device
    total_bytes: int
    margin_bytes: int

    def __bool__(self) -> bool:
        return self.margin_bytes >= 0

    def __str__(self) -> str:
        needed, there = format_bytes(self.total_bytes), format_bytes(self.device.memory_bytes)
        margin = format_bytes(abs(self.margin_bytes))
        if self:
            return f"fits {self.device.name}: {needed} of {there}, {margin} to spare"
        return f"does not fit {self.device.name}: {needed} of {there}, {margin} too much"


@dataclass(frozen=True, kw_only=True)
class MemoryLedger:
    """What one rank holds at a step's peak.

    Attributes:
        title: what was accounted for.
        rows: everything alive at the peak; their sum is `total_bytes`.
        moment: when that is.
        setting: the step; None for inference.
        moments: the moments that were compared.
    """

    title: str
    rows: tuple[LedgerRow, ...]
    moment: str
    setting: TrainingSetting | None = None
    moments: tuple[Moment, ...] = ()

    @cached_property
    def total_bytes(self) -> int:
        """Bytes at the peak."""
        return sum(row.num_bytes for row in self.rows)

    def by_class(self) -> dict[str, int]:
        """Bytes of each class that occurs, in the order of the rows."""
        found: dict[str, int] = {}
        for row in self.rows:
            found[row.memory_class] = found.get(row.memory_class, 0) + row.num_bytes
        return found

    def class_bytes(self, memory_class: MemoryClass) -> int:
        """Bytes of one class; 0 where it does not occur."""
        return self.by_class().get(memory_class, 0)

    @cached_property
    def saved_activation_bytes(self) -> int:
        """Activations of all layers at the end of the forward pass, whether or not that is the peak."""
        return max((activations.total(moment.activations) for moment in self.moments), default=0)

    def at(self, moment: str) -> MemoryLedger:
        """The ledger of another moment of the same step.

        Raises:
            ValueError: if there is no such moment.
        """
        names = [item.name for item in self.moments]
        if moment not in names or self.setting is None:
            raise ValueError(f"no moment {moment!r} in this ledger; it has {', '.join(names) or 'none'}")
        return _at(self.setting, self.moments, self.moments[names.index(moment)])

    def fits(self, device: str | Device) -> Verdict:
        """Whether the peak fits the memory of a GPU, and by how much.

        Raises:
            TypeError, ValueError: an unknown device.
        """
        gpu = get_device(device)
        return Verdict(device=gpu, total_bytes=self.total_bytes, margin_bytes=gpu.memory_bytes - self.total_bytes)

    def largest_fitting(self, what: str = "micro_batch", *, device: str | Device) -> int | str | None:
        """See `cme295lab.memory.formulas.fit.largest_fitting`."""
        from cme295lab.memory.formulas.fit import largest_fitting  # it makes ledgers, so it stands above this module

        return largest_fitting(self._own_setting("largest_fitting"), what, device=device)

    def cheapest_fix(self, device: str | Device, *, more_gpus: bool = True) -> Fix:
        """See `cme295lab.memory.formulas.fit.cheapest_fix`."""
        from cme295lab.memory.formulas.fit import cheapest_fix

        return cheapest_fix(self._own_setting("cheapest_fix"), device, more_gpus=more_gpus)

    def to_json(self) -> str:
        """The setting as JSON: all that is needed to make this ledger again."""
        return self._own_setting("to_json").to_json()

    @classmethod
    def from_json(cls, text: str) -> MemoryLedger:
        """The ledger of a setting that `to_json` wrote.

        Raises:
            ValueError: if the text is not such a setting.
        """
        return ledger_of(TrainingSetting.from_json(text))

    def _own_setting(self, what: str) -> TrainingSetting:
        if self.setting is None:
            raise ValueError(f"{what} is about a training step; this ledger is of {self.title}")
        return self.setting

    def __str__(self) -> str:
        return ledger_view.as_text(self)

    def _repr_html_(self) -> str:
        return ledger_view.as_html(self)


def training_memory(
    config: ModelConfig | str,
    *,
    policy: str | PrecisionPolicy = "bf16-mixed",
    parallel: ParallelConfig | None = None,
    micro_batch: int = 1,
    seq: int | None = None,
    **options: Any,
) -> MemoryLedger:
    """The memory of one rank in a step of training.

    Args:
        config: the model, or the name of a preset.
        policy: number formats, or the name of them.
        parallel: spread over GPUs; None means one.
        micro_batch: sequences that one rank processes at a time.
        seq: tokens in a sequence; None means the model's max_seq.
        options: the other fields of `TrainingSetting`: recompute, attention, optimizer, fp32_logits, gradients, step,
            fragmentation, offload_states.

    Raises:
        TypeError, ValueError: an option that does not exist, or a value that is not allowed.
    """
    model = preset(config) if isinstance(config, str) else config
    setting = TrainingSetting(
        config=model, policy=get_policy(policy), parallel=parallel or ParallelConfig(), micro_batch=micro_batch,
        seq=model.max_seq if seq is None else seq, **options,
    )  # fmt: skip
    return ledger_of(setting)


def ledger_of(setting: TrainingSetting) -> MemoryLedger:
    """The ledger of a setting at the moment when it holds most."""
    moments = moments_of(setting)
    gradients = states_of(setting).gradients
    peak = max(moments, key=lambda moment: moment.num_bytes + gradients * moment.gradient_share)
    return _at(setting, moments, peak)


def states_of(setting: TrainingSetting) -> ModelStates:
    """Weights, gradients, masters and optimizer states of one rank."""
    return _states(setting.config, setting.parallel, setting.policy, setting.optimizer)


@functools.lru_cache(maxsize=256)
def _states(config: ModelConfig, split: ParallelConfig, policy: PrecisionPolicy, optimizer: Optimizer) -> ModelStates:
    shapes = parameter_shapes(config, split)
    return model_states(shapes, policy, optimizer, zero_stage=split.zero_stage, num_shards=split.num_shards)


def _at(setting: TrainingSetting, moments: tuple[Moment, ...], moment: Moment) -> MemoryLedger:
    rows = _state_rows(setting, moment)
    rows += [
        LedgerRow(name=f"{row.operator}: {row.what}", memory_class="activation", num_bytes=row.num_bytes,
                  formula=row.formula, source="torch's derivatives; Korthikanti et al. 2022, §4")
        for row in moment.activations
    ]  # fmt: skip
    rows += [
        LedgerRow(name=item.what, memory_class="temporary", num_bytes=item.num_bytes, formula=item.formula,
                  source=f"moment {moment.name!r} of the step")
        for item in moment.temporaries
    ]  # fmt: skip
    if setting.fragmentation:
        num_bytes = round(setting.fragmentation * sum(row.num_bytes for row in rows))
        formula = f"{setting.fragmentation:.1%} of all"
        rows.append(LedgerRow(name="fragmentation", memory_class="fragmentation", num_bytes=num_bytes,
                              formula=formula, source="stated, not computed"))  # fmt: skip
    title = f"{setting.config.name}, {setting.micro_batch} × {setting.seq:,} tokens, {setting.policy.name}"
    return MemoryLedger(title=title, rows=tuple(row for row in rows if row.num_bytes), moment=moment.name,
                        setting=setting, moments=moments)  # fmt: skip


def _state_rows(setting: TrainingSetting, moment: Moment) -> list[LedgerRow]:
    found, policy, split = states_of(setting), setting.policy, setting.parallel
    source = "Rajbhandari et al. 2020, ZeRO, §3.1 and §5"

    def text(size: int, sharded_from: int) -> str:
        shard = f" / {split.num_shards} ranks" if split.zero_stage >= sharded_from and split.num_shards > 1 else ""
        return f"{size} × parameters{shard}"

    rows = [LedgerRow(name="weights", memory_class="weight", num_bytes=found.weights,
                      formula=text(policy.weight_bytes, 3), source=source)]  # fmt: skip
    share = "" if moment.gradient_share == 1 else f", {float(moment.gradient_share):.0%} of them"
    rows.append(LedgerRow(name="gradients", memory_class="gradient",
                          num_bytes=round(found.gradients * moment.gradient_share),
                          formula=text(policy.gradient_bytes, 2) + share, source=source))  # fmt: skip
    if not setting.offload_states:
        rows += [
            LedgerRow(name="master weights", memory_class="master weight", num_bytes=found.masters,
                      formula=text(policy.master_bytes, 1), source=source),
            LedgerRow(name=f"states of {setting.optimizer}", memory_class="optimizer state", num_bytes=found.states,
                      formula=f"{policy.states}; see memory.model_states", source=source),
            LedgerRow(name="step counters", memory_class="optimizer state", num_bytes=found.counters,
                      formula="4 × tensors", source="torch.optim"),
        ]  # fmt: skip
    return rows


def kv_cache_bytes(
    config: ModelConfig | str, *, seq: int | None = None, batch: int = 1, dtype: str = "bf16", tensor: int = 1
) -> int:
    """Bytes of keys and values that generation keeps: 2 × layers × kv_dim × bytes, per token.

    Args:
        config: the model, or the name of a preset.
        seq: tokens of context; None means the model's max_seq.
        batch: sequences.
        dtype: format of keys and values.
        tensor: ranks of tensor parallelism; each keeps its heads.

    Raises:
        TypeError, ValueError: a count that is no positive integer; an unknown format.

        >>> kv_cache_bytes("llama-3-8b", seq=1), kv_cache_bytes("llama-3-8b", seq=8192) / 2**30
        (131072, 1.0)
    """
    model = preset(config) if isinstance(config, str) else config
    length = model.max_seq if seq is None else seq
    for name, value in (("seq", length), ("batch", batch), ("tensor", tensor)):
        check_count(name, value)
    if dtype not in FORMAT_BYTES:
        raise ValueError(f"dtype must be one of {', '.join(FORMAT_BYTES)}, got {dtype!r}")
    return 2 * model.num_layers * local_kv_dim(model, tensor) * FORMAT_BYTES[dtype] * length * batch


def inference_memory(
    config: ModelConfig | str, *, seq: int | None = None, batch: int = 1, dtype: str = "bf16", tensor: int = 1
) -> MemoryLedger:
    """The memory of generating: weights, the cache of keys and values, and the logits of one token per sequence.

    Args: as `kv_cache_bytes`.
    """
    model = preset(config) if isinstance(config, str) else config
    cache = kv_cache_bytes(model, seq=seq, batch=batch, dtype=dtype, tensor=tensor)
    size = FORMAT_BYTES[dtype]
    shapes = parameter_shapes(model, ParallelConfig(tensor=tensor))
    rows = (
        LedgerRow(name="weights", memory_class="weight", formula=f"{size} × parameters", source="counted",
                  num_bytes=size * sum(shape.num_elements for shape in shapes)),
        LedgerRow(name="keys and values", memory_class="KV cache", num_bytes=cache, source="Pope et al. 2022, §3.3",
                  formula=f"2 × layers × kv_dim × {size} × tokens"),
        LedgerRow(name="logits", memory_class="temporary", num_bytes=FORMAT_BYTES["fp32"] * batch * model.vocab_size,
                  formula="4·bV", source="counted"),
    )  # fmt: skip
    length = model.max_seq if seq is None else seq
    title = f"generation with {model.name}, {batch} × {length:,} tokens"
    return MemoryLedger(title=title, rows=rows, moment="decoding")
