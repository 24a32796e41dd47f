"""Put a model's linear layers into 4 bits, one after the other, and say what that saved.

Each `nn.Linear` is replaced by a `Linear4bit` in the same place. The old weight is let go before the next layer is
looked at, so the peak is the model and one layer in 4 bits, never two models.

What is left alone, and why; the summary says it layer by layer:

    named in `skip`             your choice; the output head is the usual one
    a weight used elsewhere     an embedding tied to the head stays one tensor. Quantising one of the two would untie
                                them and keep both. Linear layers that share a weight among themselves are quantised
                                once, and share the result.
    a forward of its own        a subclass of `nn.Linear` that computes something else, or is a mark to others that its
                                `weight` is read directly (as in `nn.MultiheadAttention`). Subclasses that only start
                                differently, such as the layers before a residual sum, are linear layers like others.

Everything is checked before anything is changed: a weight with a NaN stops it with the model as it was.

Bytes are counted from storages, each once, whatever shares it: parameters, buffers, codes and scales.

Source: Dettmers et al. 2023, "QLoRA", §3: all linear layers of the transformer, not the embeddings.
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from cme295lab.quantization.checking import check_finite
from cme295lab.quantization.codebooks import QuantType, check_quant_type
from cme295lab.quantization.double_quantization import DoubleQuantized
from cme295lab.quantization.four_bit import DTYPES, FourBitTensor, check_block_size, quantize_four_bit
from cme295lab.quantization.linear4bit import Linear4bit, check_compute_dtype
from cme295lab.units import format_bytes

_MARKED = (nn.modules.linear.NonDynamicallyQuantizableLinear,)


@dataclass(frozen=True, kw_only=True)
class LayerSummary:
    """What became of a linear layer.

    Args:
        name: in the model.
        shape: of its weight.
        bytes_before: of the weight.
        bytes_after: of the weight; 0 where it is shared with a layer above.
        kept: why it is still what it was; None if it is in 4 bits.
    """

    name: str
    shape: tuple[int, int]
    bytes_before: int
    bytes_after: int
    kept: str | None = None


@dataclass(frozen=True, kw_only=True)
class QuantizedModelSummary:
    """What became of a model; `print` shows it as a table.

    Args:
        quant_type: of the new layers.
        block_size: values to a scale.
        double_quant: whether scales are in 8 bits.
        layers: every linear layer, in the order of the model.
        bytes_before: of the whole model.
        bytes_after: of the whole model.
    """

    quant_type: QuantType
    block_size: int
    double_quant: bool
    layers: tuple[LayerSummary, ...]
    bytes_before: int
    bytes_after: int

    @property
    def num_quantized(self) -> int:
        """Layers in 4 bits."""
        return sum(layer.kept is None for layer in self.layers)

    @property
    def bits_per_weight(self) -> float:
        """Bits that a quantised weight takes, its share of the scales among them."""
        stored = [layer for layer in self.layers if layer.kept is None and layer.bytes_after > 0]
        return 8 * sum(layer.bytes_after for layer in stored) / sum(layer.shape[0] * layer.shape[1] for layer in stored)

    def __str__(self) -> str:
        rows = [("layer", "weight", "before", "after", "")]
        rows += [
            (
                layer.name,
                f"{layer.shape[0]} x {layer.shape[1]}",
                format_bytes(layer.bytes_before),
                format_bytes(layer.bytes_after),
                "" if layer.kept is None else f"kept: {layer.kept}",
            )
            for layer in self.layers
        ]
        rows.append(("whole model", "", format_bytes(self.bytes_before), format_bytes(self.bytes_after), ""))
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = [
            "  ".join(
                cell.rjust(width) if column in (1, 2, 3) else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        scales = "scales in 8 bits" if self.double_quant else "scales in fp32"
        lines.append(
            f"{self.num_quantized} of {len(self.layers)} linear layers in {self.quant_type}, blocks of "
            f"{self.block_size}, {scales}: {self.bits_per_weight:.3f} bits per weight"
        )
        return "\n".join(lines)


def quantize_model(
    model: nn.Module,
    quant_type: QuantType = "nf4",
    *,
    block_size: int = 64,
    double_quant: bool = True,
    skip: Sequence[str] = (),
    compute_dtype: torch.dtype = torch.bfloat16,
) -> QuantizedModelSummary:
    """Replace a model's linear layers by layers in 4 bits, in place.

    Args:
        model: holds `nn.Linear` layers; their biases stay the parameters that they are.
        quant_type: "nf4" or "fp4".
        block_size: values to a scale.
        double_quant: whether to store the scales in 8 bits.
        skip: layers to leave alone: full names, or the last parts of names: "head", "mlp.down".
        compute_dtype: dtype of the products, fp32, fp16 or bf16.

    Raises:
        TypeError: if a weight is not fp32, fp16 or bf16, or `skip` is one text.
        ValueError: if there is nothing to quantise, a name in `skip` names no linear layer, a weight holds NaN or
            infinity, or a setting is not one of those allowed. The model is then as it was.
    """
    check_quant_type(quant_type)
    check_block_size(block_size)
    check_compute_dtype(compute_dtype)
    kept = _kept_layers(model, skip)
    groups = _groups_by_weight(model, kept)
    if not groups:
        reason = f"all {len(kept)} are kept:\n{_lines(kept)}" if kept else "it has none"
        raise ValueError(f"there is no nn.Linear to quantise in {type(model).__name__}: {reason}")
    for names in groups:
        _check_weight(names[0], _linear(model, names[0]).weight)
    rows = {name: _row(name, layer.weight, kept.get(name)) for name, layer in _linear_layers(model)}
    bytes_before = model_bytes(model)
    for names in groups:
        weight = quantize_four_bit(
            _linear(model, names[0]).weight, quant_type=quant_type, block_size=block_size, double_quant=double_quant
        )
        _replace(model, names, weight, compute_dtype)
        for name in names:
            rows[name] = replace(rows[name], bytes_after=weight.num_bytes if name == names[0] else 0)
    return QuantizedModelSummary(
        quant_type=quant_type,
        block_size=block_size,
        double_quant=double_quant,
        layers=tuple(rows.values()),
        bytes_before=bytes_before,
        bytes_after=model_bytes(model),
    )


def model_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters, buffers, codes and scales; memory that several share counts once."""
    storages = {}
    for tensor in _tensors(model):
        storage = tensor.untyped_storage()
        storages[storage.device, storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        if isinstance(module, Linear4bit):
            yield module.weight.packed
            scales = module.weight.absmax
            if isinstance(scales, DoubleQuantized):
                yield from (scales.codes, scales.nested_absmax, scales.offset)
            else:
                yield scales


def _linear_layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Every place that holds a linear layer; one layer in two places comes twice."""
    if isinstance(model, nn.Linear):
        raise ValueError("model is an nn.Linear and cannot replace itself: use Linear4bit.from_linear(model)")
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Linear):
            yield name, module


def _linear(model: nn.Module, name: str) -> nn.Linear:
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer


def _kept_layers(model: nn.Module, skip: Sequence[str]) -> dict[str, str]:
    """Name -> why it is not quantised."""
    kept = {}
    skipped = _skipped_names([name for name, _ in _linear_layers(model)], skip)
    for name, layer in _linear_layers(model):
        if name in skipped:
            kept[name] = "named in skip"
        elif reason := _reason_of_its_own(layer):
            kept[name] = reason
    return kept | _tied_layers(model, kept)


def _skipped_names(names: list[str], skip: Sequence[str]) -> set[str]:
    if isinstance(skip, str):
        raise TypeError(f"skip must be names in a tuple or list, got the text {skip!r}: write skip=({skip!r},)")
    skipped: set[str] = set()
    for wanted in skip:
        found = {name for name in names if name == wanted or name.endswith(f".{wanted}")}
        if not found:
            parts = [name.split(".") for name in names]
            endings = {".".join(part[first:]) for part in parts for first in range(len(part))}
            close = difflib.get_close_matches(wanted, sorted(endings), n=3) or sorted({part[-1] for part in parts})[:8]
            raise ValueError(f"skip names {wanted!r}, and no nn.Linear has that name; did you mean {', '.join(close)}?")
        skipped |= found
    return skipped


def _reason_of_its_own(layer: nn.Linear) -> str | None:
    if isinstance(layer, _MARKED):
        return "others read its weight directly"
    if type(layer).forward is not nn.Linear.forward or "forward" in vars(layer):
        return f"{type(layer).__name__} has a forward of its own"
    if "weight" not in layer._parameters:
        return "its weight is computed from other parameters"
    if any((layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)):
        return "it has hooks, which would be lost"
    return None


def _tied_layers(model: nn.Module, kept: dict[str, str]) -> dict[str, str]:
    """Layers whose weight lives in the memory of something that is not quantised with it."""
    owners: dict[int, list[tuple[str, tuple[object, ...] | None]]] = defaultdict(list)
    quantized = {name for name, _ in _linear_layers(model)} - set(kept)
    for module_name, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module.named_parameters(recurse=False):
            view = _view(parameter) if name == "weight" and module_name in quantized else None
            owners[_memory(parameter)].append((f"{module_name}.{name}".strip("."), view))
    tied = {}
    for name, layer in _linear_layers(model):
        if name in kept:
            continue
        mine = _view(layer.weight)
        others = [other for other, view in owners[_memory(layer.weight)] if view != mine]
        if others:
            tied[name] = f"its weight is tied to {', '.join(others)}"
    return tied


def _memory(parameter: Tensor) -> int:
    """What tensors in the same memory have in common; where there is no memory, each is for itself."""
    return parameter.untyped_storage().data_ptr() or id(parameter)


def _view(parameter: Tensor) -> tuple[object, ...]:
    return tuple(parameter.shape), parameter.stride(), parameter.storage_offset(), parameter.dtype


def _groups_by_weight(model: nn.Module, kept: dict[str, str]) -> list[list[str]]:
    """Names of layers to quantise; those with one weight between them together."""
    groups: dict[int, list[str]] = defaultdict(list)
    for name, layer in _linear_layers(model):
        if name not in kept:
            groups[_memory(layer.weight)].append(name)
    return list(groups.values())


def _check_weight(name: str, weight: Tensor) -> None:
    if weight.dtype not in DTYPES:
        raise TypeError(f"{name}.weight must be one of {', '.join(map(str, DTYPES))}, got {weight.dtype}")
    if weight.device.type == "meta":
        raise ValueError(f"{name}.weight is on the meta device and has no values: load the model first")
    if weight.numel() == 0:
        raise ValueError(f"{name}.weight has shape {tuple(weight.shape)} and no values: name it in skip")
    check_finite(f"{name}.weight", weight.detach())


def _row(name: str, weight: Tensor, kept: str | None) -> LayerSummary:
    rows, columns = weight.shape
    return LayerSummary(
        name=name, shape=(rows, columns), bytes_before=weight.nbytes, bytes_after=weight.nbytes, kept=kept
    )


def _replace(model: nn.Module, names: list[str], weight: FourBitTensor, compute_dtype: torch.dtype) -> None:
    """Put layers with this weight into all these places; one layer in two places stays one."""
    made: dict[nn.Linear, Linear4bit] = {}
    for name, old in [(name, _linear(model, name)) for name in names]:
        if old not in made:
            made[old] = Linear4bit.from_weight(
                weight, old.bias, compute_dtype=compute_dtype, training=old.training
            )
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, made[old])


def _lines(kept: dict[str, str]) -> str:
    return "\n".join(f"    {name}: {reason}" for name, reason in kept.items())
