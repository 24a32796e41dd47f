"""Everything that decides how much memory a training step takes, as plain values that can be stored and compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from cme295lab.memory.formulas.precision import PrecisionPolicy, get_policy
from cme295lab.transformer.config import ModelConfig
from cme295lab.transformer.presets import preset

AttentionKind = Literal["flash", "standard"]
Recompute = Literal["none", "selective", "full"]
Optimizer = Literal["sgd", "sgd-momentum", "adam", "adamw", "adam-8bit", "adafactor"]
GradientBuffers = Literal["kept", "freed"]
StepKind = Literal["loop", "foreach", "fused"]


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How a model and its batch are spread over GPUs.

    Attributes:
        data: ranks that hold copies, or with ZeRO shards, of the same part of the model.
        zero_stage: what is sharded over them: 0 nothing, 1 states and masters, 2 gradients too, 3 weights too.
        tensor: ranks that share each matrix of a layer, as Megatron splits them.
        sequence_parallel: whether what tensor parallelism leaves whole (norms, dropout, residuals) is split along the
            sequence; it uses the same ranks.
        pipeline: stages; each holds num_layers / pipeline layers, rounded up.
        pipeline_rank: the stage that is accounted for, 0 to pipeline - 1. The first holds the most activations.
        num_micro_batches: micro-batches in a step; None stands for enough to fill the pipeline.
        interleave_chunks: parts of a stage in the interleaved schedule; 1 is the plain 1F1B schedule.
        context: ranks that share each sequence.

    Raises:
        TypeError: if a degree is not an integer.
        ValueError: if a value is out of range, or values do not fit together.
    """

    data: int = 1
    zero_stage: int = 0
    tensor: int = 1
    sequence_parallel: bool = False
    pipeline: int = 1
    pipeline_rank: int = 0
    num_micro_batches: int | None = None
    interleave_chunks: int = 1
    context: int = 1

    def __post_init__(self) -> None:
        degrees = ["data", "tensor", "pipeline", "interleave_chunks", "context"]
        if self.num_micro_batches is not None:
            degrees.append("num_micro_batches")
        for name in degrees:
            check_count(name, getattr(self, name))
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"zero_stage must be 0, 1, 2 or 3, got {self.zero_stage!r}")
        if not 0 <= self.pipeline_rank < self.pipeline:
            raise ValueError(f"pipeline_rank must be 0 to pipeline - 1 = {self.pipeline - 1}, got {self.pipeline_rank}")
        if self.sequence_parallel and self.tensor == 1:
            raise ValueError("sequence_parallel splits over the ranks of tensor parallelism: it needs tensor > 1")
        if self.interleave_chunks > 1 and self.pipeline == 1:
            raise ValueError(f"interleave_chunks={self.interleave_chunks} needs pipeline > 1: a schedule of stages")

    @property
    def num_gpus(self) -> int:
        return self.data * self.tensor * self.pipeline * self.context

    @property
    def num_shards(self) -> int:
        """Ranks over which ZeRO divides: those of data and of context parallelism, which hold equal weights."""
        return self.data * self.context


@dataclass(frozen=True, kw_only=True)
class TrainingSetting:
    """A model, and how a step of its training is run.

    Attributes:
        config: the model.
        policy: number formats.
        parallel: spread over GPUs.
        micro_batch: sequences that one rank processes at a time.
        seq: tokens in a sequence.
        recompute: "none"; "selective" (the core of attention is run again in the backward pass, from Q, K and V);
            "full" (each layer is, from its input).
        attention: "flash" or "standard".
        optimizer: see `cme295lab.memory.formulas.model_states`.
        fp32_logits: whether the loss is computed on an fp32 copy of the logits, as `DecoderLM.loss` does.
        gradients: "kept": buffers that exist through the whole step (gradient accumulation, ZeRO, DDP's buckets);
            "freed": they exist from the backward pass to the optimizer's step (`zero_grad(set_to_none=True)`).
        step: how the optimizer runs: "loop" over tensors, "foreach" (a list of all tensors at once, which takes as much
            again as one state), "fused" (one kernel, no temporaries).
        fragmentation: share of everything that the allocator cannot use; stated, not computed.
        offload_states: whether states and masters stay in the CPU's memory.

    Raises:
        TypeError, ValueError: a value that is not allowed, or does not fit the model.
    """

    config: ModelConfig
    policy: PrecisionPolicy
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    micro_batch: int = 1
    seq: int
    recompute: Recompute = "none"
    attention: AttentionKind = "flash"
    optimizer: Optimizer = "adamw"
    fp32_logits: bool = True
    gradients: GradientBuffers = "kept"
    step: StepKind = "fused"
    fragmentation: float = 0.0
    offload_states: bool = False

    def __post_init__(self) -> None:
        check_count("micro_batch", self.micro_batch)
        check_count("seq", self.seq)
        choices = {"recompute": Recompute, "attention": AttentionKind, "optimizer": Optimizer,
                   "gradients": GradientBuffers, "step": StepKind}  # fmt: skip
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, got {getattr(self, name)!r}")
        if not 0 <= self.fragmentation < 1:
            raise ValueError(f"fragmentation is a share, at least 0 and below 1, got {self.fragmentation}")
        if self.config.num_experts:
            raise ValueError(
                f"config {self.config.name!r} is a mixture of {self.config.num_experts} experts: what its training "
                f"step keeps depends on where tokens go and is not counted here; use a dense config (num_experts=0), "
                f"or `inference_memory`"
            )
        if self.config.position == "learned" and self.seq > self.config.max_seq:
            raise ValueError(f"seq={self.seq} is longer than the {self.config.max_seq} learned positions of the model")
        if self.seq % self.parallel.context:
            raise ValueError(f"seq={self.seq} does not divide over context={self.parallel.context} ranks")
        _check_split(self.config, self.parallel, self.seq)

    def changed(self, **values: Any) -> TrainingSetting:
        """A copy with other values; names of `ParallelConfig` go to `parallel`."""
        inner = {name: values.pop(name) for name in list(values) if name in _PARALLEL_NAMES}
        if inner:
            values["parallel"] = replace(values.get("parallel", self.parallel), **inner)
        return replace(self, **values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `from_dict` turns back into an equal setting."""
        return asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingSetting:
        """The setting of such values.

        `config` and `policy` may be names, so that a link can be written by hand.

        Raises:
            ValueError: if a name is unknown; TypeError if one that is needed lacks.
        """
        known = [item.name for item in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"a setting has no {', '.join(unknown)}; it has {', '.join(known)}")
        given = dict(values)
        if isinstance(given.get("config"), Mapping):
            given["config"] = ModelConfig.from_dict(given["config"])
        elif isinstance(given.get("config"), str):
            given["config"] = preset(given["config"])
        policy: Any = given.get("policy")
        given["policy"] = PrecisionPolicy(**policy) if isinstance(policy, Mapping) else get_policy(policy)
        if isinstance(given.get("parallel"), Mapping):
            extra = sorted(set(given["parallel"]) - set(_PARALLEL_NAMES))
            if extra:
                raise ValueError(f"parallel has no {', '.join(extra)}; it has {', '.join(_PARALLEL_NAMES)}")
            given["parallel"] = ParallelConfig(**given["parallel"])
        return cls(**given)

    @classmethod
    def from_json(cls, text: str) -> TrainingSetting:
        """The setting that `to_json` wrote.

        Raises:
            ValueError: if the text is not such a setting.
        """
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"a setting is a JSON object, got {type(values).__name__}")
        return cls.from_dict(values)


_PARALLEL_NAMES = tuple(item.name for item in fields(ParallelConfig))


def check_count(name: str, value: object) -> None:
    """Refuse what is no positive integer.

    Raises:
        TypeError: if it is not an int; ValueError if it is below 1.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {value!r} of type {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def _check_split(config: ModelConfig, parallel: ParallelConfig, seq: int) -> None:
    """Refuse degrees that the model cannot be divided by."""
    tensor, kv_heads = parallel.tensor, config.num_kv_heads
    for name in ("num_heads", "mlp_dim"):
        if getattr(config, name) % tensor:
            raise ValueError(f"tensor={tensor} does not divide {name}={getattr(config, name)} of {config.name}")
    if kv_heads % tensor and tensor % kv_heads:
        raise ValueError(f"tensor={tensor} and num_kv_heads={kv_heads} of {config.name}: one must divide the other")
    num_parts = parallel.pipeline * parallel.interleave_chunks
    if num_parts > config.num_layers:
        raise ValueError(
            f"pipeline × interleave_chunks = {num_parts} is more than the {config.num_layers} layers of {config.name}"
        )
    if parallel.sequence_parallel and (seq // parallel.context) % tensor:
        num_tokens = seq // parallel.context
        raise ValueError(f"sequence_parallel: {num_tokens} tokens do not divide over tensor={tensor} ranks")
