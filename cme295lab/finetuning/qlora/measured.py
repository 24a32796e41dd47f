"""The bytes of a model in training by class, measured from its storages.

A storage counts once, whatever shares it, and whole, whatever part of it a tensor shows. What was allocated is what is
counted: a gradient that is not there takes nothing, states appear with the optimizer's first step.

`memory.qlora_memory` says the same on paper; tests hold the two together to the byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from cme295lab.finetuning.qlora.memory import ClassBytes
from cme295lab.finetuning.qlora.paged_adamw import PagedAdamW
from cme295lab.pretraining.optim import Optimizer
from cme295lab.quantization.double_quantization import DoubleQuantized
from cme295lab.quantization.linear4bit import Linear4bit


def measured_bytes(
    model: nn.Module, adapters: Iterable[nn.Parameter], optimizer: Optimizer | None = None
) -> ClassBytes:
    """Bytes by class, as they are now.

    Args:
        model: with quantised layers and adapters, or without.
        adapters: those of its parameters that are adapters.
        optimizer: whose states count; None means none. Paged states count at home, in the CPU's memory.
    """
    trained = list(adapters)
    ids = {id(parameter) for parameter in trained}
    others: list[Tensor] = [parameter for parameter in model.parameters() if id(parameter) not in ids]
    layers = quantized_layers(model)
    return ClassBytes(
        codes=storage_bytes(layer.weight.packed for layer in layers),
        scales=storage_bytes(tensor for layer in layers for tensor in _scale_tensors(layer)),
        embeddings=storage_bytes(tensor for tensor in others if tensor.ndim > 1),
        norms=storage_bytes([tensor for tensor in others if tensor.ndim < 2] + list(model.buffers())),
        adapters=storage_bytes(trained),
        gradients=storage_bytes(p.grad for p in model.parameters() if p.grad is not None),
        states=0 if optimizer is None else state_bytes(optimizer),
    )


def quantized_layers(model: nn.Module) -> list[Linear4bit]:
    """The layers in 4 bits, each once."""
    return [module for module in model.modules() if isinstance(module, Linear4bit)]


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes of an optimizer's states, without its counts of steps.

    Raises:
        TypeError: if it is not one of the course's optimizers.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer must be one of cme295lab.pretraining.optim or a PagedAdamW, got {type(optimizer).__name__}"
        )
    if isinstance(optimizer, PagedAdamW):
        return optimizer.num_state_bytes
    return storage_bytes(
        tensor for key, tensor in optimizer.state_tensors().items() if not key.endswith("/step")
    )


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the memory behind tensors; what several share counts once."""
    storages = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        storages[storage.device, storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _scale_tensors(layer: Linear4bit) -> Iterator[Tensor]:
    scales = layer.weight.absmax
    if isinstance(scales, DoubleQuantized):
        yield from (scales.codes, scales.nested_absmax, scales.offset)
    else:
        yield scales
