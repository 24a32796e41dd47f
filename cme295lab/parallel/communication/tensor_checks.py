"""What the calls of this room accept, checked once for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def resolve_group(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    """The group itself, or the one of all ranks for None.

    Raises:
        ValueError: if there is no process group yet, or this rank is not in the group.
    """
    if group is not None:
        if not isinstance(group, dist.ProcessGroup):
            raise ValueError(f"group must be a ProcessGroup that this rank is a member of, got {group!r}")
        return group
    if not dist.is_initialized():
        raise ValueError("there is no process group yet: call inside run_distributed(...), or init_process_group first")
    assert dist.group.WORLD is not None
    return dist.group.WORLD


def check_float_dtypes(**dtypes: torch.dtype | None) -> None:
    """Check that each is a floating dtype, or None.

    Raises:
        ValueError: naming the argument and what it is.
    """
    for name, dtype in dtypes.items():
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f"{name} must be a floating dtype such as torch.bfloat16, or None, got {dtype!r}")


def check_flat(**tensors: Tensor) -> int:
    """Check that all are flat, contiguous and of one dtype and device; return the bytes of the first.

    Raises:
        TypeError, ValueError: naming the tensor, what it is, and what to do.
    """
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.ndim != 1 or not tensor.is_contiguous():
            kind = "contiguous" if tensor.is_contiguous() else "not contiguous"
            raise ValueError(
                f"{name} must be flat and contiguous, got shape {tuple(tensor.shape)}, {kind}; "
                f"use .contiguous().view(-1)"
            )
        if tensor.dtype != first.dtype or tensor.device != first.device:
            raise ValueError(
                f"{first_name} and {name} must have one dtype and device, got {first.dtype} on {first.device} and "
                f"{tensor.dtype} on {tensor.device}"
            )
    return first.numel() * first.element_size()


def check_summable(tensor: Tensor) -> None:
    """Refuse dtypes in which a sum means nothing or does not exist, with a TypeError."""
    if tensor.dtype == torch.bool or (tensor.dtype.itemsize == 1 and tensor.is_floating_point()):
        raise TypeError(f"{tensor.dtype} cannot be summed; convert to float32 or an integer dtype first")


def check_lengths(whole_name: str, whole: Tensor, shard_name: str, shard: Tensor, group: dist.ProcessGroup) -> None:
    """Refuse a whole that is not num_ranks shards long, with a ValueError."""
    if whole.numel() != shard.numel() * group.size():
        raise ValueError(
            f"{whole_name} must have num_ranks * len({shard_name}) = {group.size()} * {shard.numel()} elements, got "
            f"{whole.numel()}; pad to a multiple of the number of ranks"
        )


def check_splits(name: str, tensor: Tensor, sizes: Sequence[int] | None, group: dist.ProcessGroup) -> list[int]:
    """The sizes of an all-to-all's parts, equal ones for None.

    Raises:
        ValueError: if the parts are not one per rank, or do not add up to the tensor.
    """
    num_ranks = group.size()
    if sizes is None:
        if tensor.numel() % num_ranks:
            raise ValueError(
                f"{name} has {tensor.numel()} elements, which {num_ranks} ranks cannot share equally; "
                f"pass {name}_split_sizes"
            )
        return [tensor.numel() // num_ranks] * num_ranks
    sizes = list(sizes)
    if len(sizes) != num_ranks or min(sizes) < 0 or sum(sizes) != tensor.numel():
        raise ValueError(
            f"{name}_split_sizes must be {num_ranks} sizes >= 0 that add up to the {tensor.numel()} elements of "
            f"{name}, got {sizes}"
        )
    return sizes
