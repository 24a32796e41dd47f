"""A base in 4 bits with adapters that learn, made in place, and what it takes: measured, beside the formula.

    y = x · dequantise(codes, scales)ᵀ + (α / r) · x Aᵀ Bᵀ
        ───────── frozen ─────────────   ──── learns ────

Three steps, in this order: everything is frozen and linear layers become `Linear4bit` (`base`); a function of yours
adds adapters; bytes are measured. What learns is what that function added, of whatever kind and dtype: LoRA is the one
of the paper, and nothing here depends on it. bf16 is what the paper's adapters compute in; fp32 costs twice the bytes
of a small part of the model, and loses no small updates.

Source: Dettmers et al. 2023, "QLoRA", §3, equations 5 and 6.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cme295lab.finetuning.qlora.base import freeze_in_four_bits
from cme295lab.finetuning.qlora.measured import measured_bytes, quantized_layers
from cme295lab.finetuning.qlora.memory import (
    LABELS,
    STATES_PER_NUMBER,
    ClassBytes,
    QloraMemory,
    code_bytes,
    scale_bytes,
)
from cme295lab.quantization.quantized_models import QuantizedModelSummary
from cme295lab.units import format_bytes

STATE_ITEM_BYTES = 4  # Adam's states are planned in fp32


@dataclass(frozen=True, kw_only=True)
class QloraSummary:
    """What became of a model; `print` shows bytes by class, by formula and measured.

    Args:
        memory: bytes that a run takes by the formula, gradients and fp32 states of the adapters among them.
        measured: bytes by class in storages, right after the change: no gradients and states yet.
        quantized: what became of the linear layers.
        trained: names of the parameters that learn.
    """

    memory: QloraMemory
    measured: ClassBytes
    quantized: QuantizedModelSummary
    trained: tuple[str, ...]

    @property
    def num_trained(self) -> int:
        """Numbers that learn."""
        return self.memory.num_trained

    def __str__(self) -> str:
        rows = [("", "by formula", "measured")]
        for name, label in (*LABELS.items(), ("total", "together")):
            formula, measured = (getattr(source, name) for source in (self.memory.bytes, self.measured))
            rows.append((label, format_bytes(formula), format_bytes(measured)))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [f"{a.ljust(widths[0])}  {b.rjust(widths[1])}  {c.rjust(widths[2])}" for a, b, c in rows]
        lines.append(
            f"before: {format_bytes(self.quantized.bytes_before)}; {self.num_trained} of "
            f"{self.memory.num_parameters + self.num_trained} parameters learn; gradients and states come with training"
        )
        return "\n".join(lines)


def adapt_in_four_bits(
    model: nn.Module,
    add: Callable[[nn.Module], object],
    *,
    block_size: int = 64,
    double_quant: bool = True,
    skip: Sequence[str] | None = None,
    compute_dtype: torch.dtype = torch.bfloat16,
) -> QloraSummary:
    """Freeze a model in 4 bits and add what shall learn; all in place.

    Args:
        model: holds `nn.Linear` layers.
        add: is given the frozen model, whose linear layers are `Linear4bit` by then, and adds parameters to it.
        block_size, double_quant, skip, compute_dtype: as for `freeze_in_four_bits`.

    Raises:
        TypeError, ValueError: as for `freeze_in_four_bits`, with the model as it was; and whatever `add` raises.
        ValueError: if `add` added no parameter that learns, or set one of the base to learn.
    """
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    quantized = freeze_in_four_bits(
        model, block_size=block_size, double_quant=double_quant, skip=skip, compute_dtype=compute_dtype
    )
    base = set(model.parameters())  # by identity; those that are quantised are no longer among them
    add(model)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trained:
        raise ValueError("add must add parameters that learn to the model, and there are none")
    if woken := [name for name, parameter in trained.items() if parameter in base]:
        raise ValueError(f"add set parameters of the frozen base to learn: {', '.join(woken)}")
    parameters = list(trained.values())
    return QloraSummary(
        memory=_planned(model, parameters, num_parameters),
        measured=measured_bytes(model, parameters),
        quantized=quantized,
        trained=tuple(trained),
    )


def _planned(model: nn.Module, trained: list[nn.Parameter], num_parameters: int) -> QloraMemory:
    """Bytes from shapes and formats alone."""
    weights = {id(layer.weight): layer.weight for layer in quantized_layers(model)}.values()
    ids = {id(parameter) for parameter in trained}
    others: list[Tensor] = [parameter for parameter in model.parameters() if id(parameter) not in ids]
    num_trained = sum(parameter.numel() for parameter in trained)
    adapters = sum(parameter.numel() * parameter.dtype.itemsize for parameter in trained)
    return QloraMemory(
        name=type(model).__name__,
        num_parameters=num_parameters,
        num_quantized=sum(weight.num_values for weight in weights),
        num_trained=num_trained,
        bytes=ClassBytes(
            codes=sum(code_bytes(weight.num_values) for weight in weights),
            scales=sum(scale_bytes(w.num_values, w.block_size, not isinstance(w.absmax, Tensor)) for w in weights),
            embeddings=sum(tensor.numel() * tensor.dtype.itemsize for tensor in others if tensor.ndim > 1),
            norms=sum(tensor.numel() * tensor.dtype.itemsize for tensor in others if tensor.ndim < 2),
            adapters=adapters,
            gradients=adapters,
            states=STATES_PER_NUMBER * STATE_ITEM_BYTES * num_trained,
        ),
    )
