"""What QLoRA's model states take, on paper, for any model: 4-bit codes, their scales, and little else.

    codes               half a byte for each weight of the layers' linear maps
    scales              one per 64 weights: fp32, or in 8 bits with an fp32 constant per 256 ("double quantisation")
    embeddings, head    what is no linear map of a layer, in 16 bits
    norms, biases       in 16 bits
    adapters            r (inputs + outputs) numbers for each matrix that has one
    gradients           of the adapters alone
    states              two fp32 numbers of Adam for each number of an adapter

A 65B model, against the same model fine-tuned in full with 12 bytes per parameter (16-bit weights and gradients, fp32
states):

    full    65e9 × 12 bytes                   780 GB
    QLoRA   65e9 × 4.127 bits                 33.5 GB, and adapters of rank 64 on all layers 10 GB: below 48 GB

So "16 times less" compares two ways of training: most of it comes from the gradients and states of frozen weights,
which are not there. The weights alone shrink 16 / 4.127 = 3.88 times. `QloraMemory` gives both ratios.

Bytes are exact: of a model that is in memory, storages have as many (`measured` counts them).
Not covered: activations (`cme295lab.memory` has them; they are those of the adapters' forward pass and of the base's,
and 4 bits change nothing about them), and the slab of weights that is dequantised at a time.

Source: Dettmers et al. 2023, "QLoRA", abstract, §3 and §6; Hu et al. 2022, "LoRA", §4.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Literal

from cme295lab.finetuning.lora.counting import num_lora_parameters
from cme295lab.finetuning.lora.targets import Targets
from cme295lab.memory.formulas.model_states import bytes_per_parameter
from cme295lab.memory.formulas.precision import FORMAT_BYTES
from cme295lab.memory.formulas.shapes import ParameterShape, parameter_shapes
from cme295lab.transformer.config import ModelConfig
from cme295lab.transformer.presets import preset
from cme295lab.units import format_bytes

StateFormat = Literal["fp32", "bf16", "fp16"]
CONSTANTS_PER_GROUP = 256  # scales that share an fp32 constant, with double quantisation
STATES_PER_NUMBER = 2  # Adam's m and v

LABELS: Mapping[str, str] = MappingProxyType(
    {
        "codes": "codes, 4 bits",
        "scales": "scales",
        "embeddings": "embeddings, head",
        "norms": "norms, biases",
        "adapters": "adapters",
        "gradients": "their gradients",
        "states": "their Adam states",
    }
)
"""Class of bytes -> how tables call it, in their order."""


@dataclass(frozen=True, kw_only=True)
class ClassBytes:
    """Bytes by class.

    Args:
        codes: of quantised weights.
        scales: of their blocks.
        embeddings: tables, and linear layers that are not quantised, such as the head.
        norms: norms and biases.
        adapters: matrices of the adapters.
        gradients: of the adapters.
        states: of the optimizer.
    """

    codes: int
    scales: int
    embeddings: int
    norms: int
    adapters: int
    gradients: int
    states: int

    @property
    def base(self) -> int:
        """Of what is frozen."""
        return self.codes + self.scales + self.embeddings + self.norms

    @property
    def total(self) -> int:
        """Of everything."""
        return sum(getattr(self, item.name) for item in fields(self))


@dataclass(frozen=True, kw_only=True)
class QloraMemory:
    """The model states of a QLoRA run; `print` shows them as a table.

    Args:
        name: of the model.
        num_parameters: of the base.
        num_quantized: of those in 4 bits.
        num_trained: numbers in adapters.
        bytes: by class.
    """

    name: str
    num_parameters: int
    num_quantized: int
    num_trained: int
    bytes: ClassBytes

    @property
    def bits_per_weight(self) -> float:
        """Bits that a quantised weight takes, its share of the scales among them."""
        return 8 * (self.bytes.codes + self.bytes.scales) / self.num_quantized

    @property
    def full_bytes(self) -> int:
        """The same model fine-tuned in full with 16-bit weights and gradients and fp32 states: 12 bytes each."""
        return int(bytes_per_parameter("bf16-fp32-states") * self.num_parameters)

    @property
    def saving_against_full(self) -> float:
        """How many times less than fine-tuning in full."""
        return self.full_bytes / self.bytes.total

    @property
    def saving_of_weights(self) -> float:
        """How many times smaller a quantised weight is than one in 16 bits."""
        return 16 / self.bits_per_weight

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.num_parameters / 1e9:.3g}B parameters, {self.num_trained / 1e6:.3g}M trained"]
        rows = [(label, format_bytes(getattr(self.bytes, name))) for name, label in LABELS.items()]
        rows += [("QLoRA", format_bytes(self.bytes.total)), ("in full, 16 bits", format_bytes(self.full_bytes))]
        width = max(len(label) for label, _ in rows)
        lines += [f"  {label.ljust(width)}  {text:>8}" for label, text in rows]
        lines.append(
            f"  {self.saving_against_full:.1f} times less than in full; a weight takes {self.bits_per_weight:.3f} "
            f"bits, {self.saving_of_weights:.2f} times less than 16"
        )
        return "\n".join(lines)


def qlora_memory(
    model: str | ModelConfig,
    *,
    rank: int = 64,
    targets: Targets = "all-linear",
    block_size: int = 64,
    double_quant: bool = True,
    quantize_head: bool = False,
    base_format: StateFormat = "bf16",
    adapter_format: StateFormat = "bf16",
    state_format: StateFormat = "fp32",
) -> QloraMemory:
    """The bytes of a QLoRA run's model states, exactly.

    Args:
        model: a config, or the name of a preset.
        rank: of all adapters.
        targets: layers that have one: names or last parts of names, such as "query"; "all-linear" is all but the head
            and routers.
        block_size: weights to a scale.
        double_quant: whether scales are in 8 bits.
        quantize_head: whether an output head of its own (not tied to the embedding) is in 4 bits, too.
        base_format: of what is frozen and not quantised.
        adapter_format: of adapters and their gradients.
        state_format: of Adam's states.

    Raises:
        TypeError: if `targets` is another text than "all-linear", or a number no int.
        ValueError: if a number is not positive, a format unknown, a target names no layer, or the rank is larger than
            a side of a matrix.

        >>> memory = qlora_memory("llama-2-7b", rank=64)
        >>> memory.num_trained, round(memory.bits_per_weight, 3), round(memory.saving_of_weights, 2)
        (159907840, 4.127, 3.88)
    """
    config = preset(model) if isinstance(model, str) else model
    for name, value in (("rank", rank), ("block_size", block_size)):
        _check_positive(name, value)
    formats = {"base_format": base_format, "adapter_format": adapter_format, "state_format": state_format}
    for name, chosen in formats.items():
        if chosen not in FORMAT_BYTES:
            raise ValueError(f"{name} must be one of {', '.join(FORMAT_BYTES)}, got {chosen!r}")
    shapes = parameter_shapes(config)
    linear = [shape for shape in shapes if _is_linear(shape)]
    quantized = linear + [shape for shape in shapes if quantize_head and shape.part == "head"]
    in_four_bits = {shape.name for shape in quantized}
    others = [shape for shape in shapes if shape.name not in in_four_bits]
    num_trained = num_lora_parameters(config, rank=rank, targets=targets)
    adapter_bytes = num_trained * FORMAT_BYTES[adapter_format]
    return QloraMemory(
        name=config.name,
        num_parameters=config.num_parameters,
        num_quantized=sum(shape.num_elements for shape in quantized),
        num_trained=num_trained,
        bytes=ClassBytes(
            codes=sum(code_bytes(shape.num_elements) for shape in quantized),
            scales=sum(scale_bytes(shape.num_elements, block_size, double_quant) for shape in quantized),
            embeddings=FORMAT_BYTES[base_format] * sum(s.num_elements for s in others if len(s.shape) == 2),
            norms=FORMAT_BYTES[base_format] * sum(s.num_elements for s in others if len(s.shape) == 1),
            adapters=adapter_bytes,
            gradients=adapter_bytes,
            states=STATES_PER_NUMBER * num_trained * FORMAT_BYTES[state_format],
        ),
    )


def code_bytes(num_values: int) -> int:
    """Bytes of 4-bit codes: two to a byte, an odd one for itself."""
    return -(-num_values // 2)


def scale_bytes(num_values: int, block_size: int = 64, double_quant: bool = True) -> int:
    """Bytes of the scales of a tensor's blocks; doubly quantised, with their constants and one mean.

    >>> 8 * scale_bytes(2**20) / 2**20, 8 * scale_bytes(2**20, double_quant=False) / 2**20  # bits per weight
    (0.126983642578125, 0.5)
    """
    num_blocks = -(-num_values // block_size)
    if not double_quant:
        return 4 * num_blocks
    return num_blocks + 4 * -(-num_blocks // CONSTANTS_PER_GROUP) + 4


def _is_linear(shape: ParameterShape) -> bool:
    return shape.layer is not None and len(shape.shape) == 2


def _check_positive(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r} of type {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
