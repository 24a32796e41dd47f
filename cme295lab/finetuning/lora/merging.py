"""An adapter in the base's own weights: W = W₀ + s · B A, at the speed of the base; and out again, exactly.

The sum is computed in fp32 and rounded once to the dtype of the weight. Subtracting it again would leave what rounding
lost, so the weights before are kept, and `unmerge` puts those very tensors back: bit for bit, for the price of one more
copy of the matrices that have an adapter. `merge_and_remove` keeps the merged ones alone.

A weight in 4 bits takes no sum: it would have to be quantised again, and most of a small update would fall between two
levels. A weight that two modules share (a head tied to the embedding) is refused, since the update of one would change
the other.

Source: Hu et al. 2022, "LoRA", §4.1 ("no additional inference latency").
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cme295lab.finetuning.lora.layers import LoraHook, LoraMatrix
from cme295lab.finetuning.lora.state import (
    Lora,
    check_no_rows,
    check_not_merged,
    chosen_adapter,
    get_lora,
    take_off,
    unhook,
)
from cme295lab.quantization.linear4bit import Linear4bit


def merge(model: nn.Module, adapter: str | None = None) -> None:
    """Add an adapter's update to the weights, in place, and take the hooks off until `unmerge`.

    Args:
        model: has the adapter.
        adapter: its name; None means the active one.

    Raises:
        ValueError: if there is no such adapter, one is merged already, a matrix is in 4 bits or shared, or a sum is not
            finite. The model is then as it was.
    """
    lora, name = get_lora(model), chosen_adapter(model, adapter)
    check_not_merged(lora, "merge")
    check_no_rows(lora, "merge")
    parts = lora.of(name)
    for path in parts:
        _check_mergeable(model, path)
    merged = {path: _merged(model, matrix, name) for path, matrix in parts.items()}
    for path, weight in merged.items():
        parameter = _weight(model, path)
        lora.weights_before[path], parameter.data = parameter.data, weight
    for matrix in _matrices(lora):
        unhook(model.get_submodule(matrix.target.path), matrix)
    lora.merged = name


def unmerge(model: nn.Module) -> None:
    """Put the weights back that were there before `merge`, bit for bit.

    Raises:
        ValueError: if nothing is merged.
    """
    lora = get_lora(model)
    if lora.merged is None:
        raise ValueError("nothing is merged")
    for path, weight in lora.weights_before.items():
        parameter = _weight(model, path)
        parameter.data = weight.to(parameter.device)
    lora.weights_before = {}
    for matrix in _matrices(lora):
        model.get_submodule(matrix.target.path).register_forward_hook(LoraHook(lora, matrix))
    lora.merged = None


def is_merged(model: nn.Module) -> bool:
    """Whether an adapter is in the weights."""
    return get_lora(model).merged is not None


def merge_and_remove(model: nn.Module, adapter: str | None = None) -> None:
    """Merge an adapter for good: what is left is a model without LoRA. All its other adapters are gone.

    Raises:
        ValueError: as `merge`.
    """
    lora = get_lora(model)
    if lora.merged is None:
        merge(model, adapter)
    elif adapter not in (None, lora.merged):
        raise ValueError(f"adapter {lora.merged!r} is merged into the weights: unmerge before you merge {adapter!r}")
    take_off(model, lora)


def _check_mergeable(model: nn.Module, path: str) -> None:
    module = model.get_submodule(path)
    if isinstance(module, Linear4bit):
        raise ValueError(
            f"{path} is in 4 bits, and a sum would have to be rounded to 4 bits again: merge into the base in 16 bits, "
            f"or keep the adapter beside it"
        )
    sharing = [
        name for name, other in model.named_modules()
        if other is not module and getattr(other, "weight", None) is module.weight
    ]  # fmt: skip
    if sharing:
        raise ValueError(
            f"{path} shares its weight with {', '.join(sharing)}: merging would change that, too. Give {path} a weight "
            f"of its own first, or leave it out of the targets"
        )


def _merged(model: nn.Module, matrix: LoraMatrix, adapter: str) -> Tensor:
    with torch.no_grad():
        weight = matrix.merged_weight(adapter, _weight(model, matrix.target.path))
    if not bool(torch.isfinite(weight).all()):
        raise ValueError(f"merging adapter {adapter!r} into {matrix.target.path} gives NaN or infinity")
    return weight


def _weight(model: nn.Module, path: str) -> nn.Parameter:
    weight = model.get_submodule(path).weight
    assert isinstance(weight, nn.Parameter)
    return weight


def _matrices(lora: Lora) -> list[LoraMatrix]:
    return [matrix for matrix in lora.matrices.values() if isinstance(matrix, LoraMatrix)]
