"""Making the model the same on all ranks: is it the same model, and then rank 0's values for everybody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cme295lab.parallel.communication import transport
from cme295lab.parallel.communication.calls import ledger_tag
from cme295lab.parallel.communication.tensor_checks import resolve_group


def check_same_model(model: nn.Module, *, group: dist.ProcessGroup | None = None) -> None:
    """Compare names, shapes and dtypes of parameters and buffers, and what is trained, between the ranks.

    Raises:
        TypeError: if it is no module.
        ValueError: on every rank, naming the first difference and who has it.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    group = resolve_group(group)
    everyones: list[Any] = [None] * group.size()
    dist.all_gather_object(everyones, _description(model), group=group)
    for rank, description in enumerate(everyones):
        difference = _first_difference(everyones[0], description)
        if difference:
            first, other = dist.get_global_rank(group, 0), dist.get_global_rank(group, rank)
            name, mine, theirs = difference
            raise ValueError(
                f"the ranks do not have the same model: {name} is {mine} on rank {first} and {theirs} on rank {other}; "
                "build the model from the same configuration on every rank"
            )


def _description(model: nn.Module) -> dict[str, str]:
    found = {}
    for name, parameter in model.named_parameters():
        kind = "trained" if parameter.requires_grad else "frozen"
        found[name] = f"{tuple(parameter.shape)} {parameter.dtype} {kind}"
    for name, buffer in model.named_buffers():
        found[f"buffer {name}"] = f"{tuple(buffer.shape)} {buffer.dtype}"
    return found


def _first_difference(first: Mapping[str, str], other: Mapping[str, str]) -> tuple[str, str, str] | None:
    for name in dict.fromkeys([*first, *other]):
        if first.get(name) != other.get(name):
            return name, first.get(name, "missing"), other.get(name, "missing")
    order = [(mine, theirs) for mine, theirs in zip(first, other) if mine != theirs]
    return ("the order of the parameters", f"{order[0][0]} first", f"{order[0][1]} first") if order else None


@torch.no_grad()
def broadcast_values(model: nn.Module, *, group: dist.ProcessGroup, parameters: bool = True) -> None:
    """Copy rank 0's buffers, and its parameters, to all ranks, in place.

    Args:
        model: the same on all ranks, with its own values.
        group: the ranks.
        parameters: whether parameters go, too.
    """
    source = dist.get_global_rank(group, 0)
    with ledger_tag("initial values"):
        for tensor in [*(model.parameters() if parameters else ()), *model.buffers()]:
            _broadcast(tensor.detach(), source, group)


def _broadcast(tensor: Tensor, source: int, group: dist.ProcessGroup) -> None:
    if tensor.numel() == 0:
        return
    flat = tensor.view(-1) if tensor.is_contiguous() else tensor.flatten()
    transport.broadcast(flat, source, group=group)
    if flat.data_ptr() != tensor.data_ptr():
        tensor.copy_(flat.view(tensor.shape))
