"""A `DecoderLM` with the weights of a checkpoint.

The model is made on the meta device, where it takes no memory, and its parameters are filled in one by one. At its peak
this needs the model itself and one tensor more, whatever the file holds. Before the first number is read, names are
compared: a checkpoint with a tensor too few, or one too many, is of another model, and half-loaded models are worse
than none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from cme295lab.transformer.config import ModelConfig
from cme295lab.transformer.decoder import DecoderLM
from cme295lab.transformer.pretrained.checkpoint import Checkpoint
from cme295lab.transformer.pretrained.hub_names import Part

# Old checkpoints keep constants among the weights: the causal mask of GPT-2, the frequencies of Llama.
_CONSTANTS = re.compile(r"(.*\.)?(attn\.bias|attn\.masked_bias|rotary_emb\.inv_freq)")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def assemble(
    config: ModelConfig,
    checkpoint: Checkpoint,
    parts: Iterable[Part],
    *,
    tied_copy: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> DecoderLM:
    """Build a model and fill it from a checkpoint.

    Args:
        config: its shape.
        checkpoint: where the tensors are.
        parts: which of them make up which parameter.
        tied_copy: what the head is called in the checkpoint where it is there a second time although it is tied.
        dtype: of the parameters.
        device: where they go.

    Returns:
        The model, in evaluation mode.

    Raises:
        TypeError: if the dtype is not a floating-point one that models are run in.
        ValueError: if tensors are missing or left over, have the wrong shape, or do not fit into the dtype.
    """
    if dtype not in DTYPES:
        raise TypeError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {dtype!r}")
    with torch.device("meta"):
        model = DecoderLM(config)
    parts = list(parts)
    _compare_names(config, checkpoint, parts, tied_copy)
    for part in parts:
        tensors = part.read([checkpoint.read(name) for name in part.theirs])
        for name, tensor in zip(part.ours, tensors, strict=True):
            _fill(model, name, tensor, part, checkpoint, dtype, torch.device(device))
    if config.tied_head:
        model.head.weight = model.embedding.weight
        if tied_copy is not None and tied_copy in checkpoint.shapes:
            _check_tied_copy(model, checkpoint, tied_copy)
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    assert not left, f"no part fills {left}"
    return model.eval()


def _compare_names(config: ModelConfig, checkpoint: Checkpoint, parts: list[Part], tied_copy: str | None) -> None:
    needed = {name for part in parts for name in part.theirs}
    found = {name for name in checkpoint.shapes if not _CONSTANTS.fullmatch(name)}
    found -= {tied_copy} if config.tied_head else set()
    missing, unexpected = sorted(needed - found), sorted(found - needed)
    if missing:
        raise ValueError(
            f"{checkpoint.where} lacks {_some(missing)}: with {config.num_layers} layers the model has {len(needed)} "
            f"tensors, and {len(found)} are there. Is it complete, and does its config.json belong to it?"
        )
    if unexpected:
        raise ValueError(
            f"{checkpoint.where} has {_some(unexpected)}, for which a model of {config.num_layers} layers with this "
            f"config has no place: the weights are of another model, or have parts that are not supported"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more tensors" if len(names) > 3 else "")


def _fill(
    model: DecoderLM,
    name: str,
    tensor: Tensor,
    part: Part,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Put a copy of the numbers into one parameter: the tensor may be a view of the file."""
    place, _, leaf = name.rpartition(".")
    module = model.get_submodule(place)
    expected = getattr(module, leaf).shape
    if tensor.shape != expected:
        there = ", ".join(f"{name} {checkpoint.shapes[name]}" for name in part.theirs[:2])
        raise ValueError(
            f"{checkpoint.where}: {there} gives {name} the shape {tuple(tensor.shape)}, and by its config it must be "
            f"{tuple(expected)}"
        )
    copy = torch.empty(expected, dtype=dtype, device=device).copy_(tensor)
    if not _is_finite(copy):
        inside = "it has no such numbers in the file: load in bfloat16 or float32"
        reason = inside if _is_finite(tensor) else "the file has them: it is damaged, or training diverged"
        raise ValueError(f"{checkpoint.where}: {name} has infinities or NaN in {dtype}; {reason}")
    setattr(module, leaf, nn.Parameter(copy))


def _is_finite(tensor: Tensor) -> bool:
    low, high = tensor.aminmax()  # both are NaN where one number is; four times as fast as isfinite of each
    return bool(low.isfinite() and high.isfinite())


def _check_tied_copy(model: DecoderLM, checkpoint: Checkpoint, tied_copy: str) -> None:
    head = checkpoint.read(tied_copy)
    if head.shape != model.head.weight.shape or not torch.equal(head.to(model.head.weight), model.head.weight):
        raise ValueError(
            f"{checkpoint.where}: {tied_copy} differs from the embedding, although the config says that they are tied"
        )
