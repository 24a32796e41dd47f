"""What attention accepts, checked once for every implementation in this room."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cme295lab.simulator.placement import can_run_kernels

MIN_HEAD_DIM, MAX_HEAD_DIM = 16, 128
KERNEL_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def check_inputs(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> float:
    """Check q, k, v and the scale, and return the scale to use.

    Args:
        q: queries, (batch, query heads, len_q, dim), any floating-point dtype.
        k: keys, (batch, key/value heads, len_k, dim); query heads must be a multiple of key/value heads.
        v: values, the shape of k.
        scale: what Q Kᵀ is multiplied by; None means 1 / sqrt(dim).

    Raises:
        TypeError: an argument is not a tensor, or not floating point.
        ValueError: ranks, shapes, dtypes, devices or the scale do not fit together; the message says which and what to
            do.
    """
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}; convert it with .to(torch.float32)")
        if tensor.ndim != 4:
            raise ValueError(
                f"{name} must have 4 dimensions (batch, heads, sequence, dim), got shape {tuple(tensor.shape)}; "
                f"add the missing ones with .unsqueeze(...)"
            )
        if tensor.numel() == 0:
            raise ValueError(
                f"{name} must not be empty, got shape {tuple(tensor.shape)}: attention over nothing has no value"
            )
    for name, tensor in (("k", k), ("v", v)):
        if tensor.dtype != q.dtype:
            raise ValueError(
                f"q, k and v must have one dtype, got q {q.dtype} and {name} {tensor.dtype}; convert with .to(q.dtype)"
            )
        if tensor.device != q.device:
            raise ValueError(
                f"q, k and v must be on one device, got q on {q.device} and {name} on {tensor.device}; "
                f"use .to(q.device)"
            )
    _check_shapes(q, k, v)
    if scale is None:
        return 1.0 / math.sqrt(q.shape[-1])
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be a positive finite number, got {scale!r}; None means 1 / sqrt(dim)")
    return float(scale)


def _check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    if k.shape != v.shape:
        raise ValueError(f"k and v must have the same shape, got {tuple(k.shape)} and {tuple(v.shape)}")
    if q.shape[0] != k.shape[0]:
        raise ValueError(f"q and k must have the same batch size, got {q.shape[0]} and {k.shape[0]}")
    if q.shape[3] != k.shape[3]:
        raise ValueError(f"q and k must have the same head dim, got {q.shape[3]} and {k.shape[3]}")
    if q.shape[1] % k.shape[1] != 0:
        raise ValueError(
            f"the number of query heads must be a multiple of the number of key/value heads, "
            f"got {q.shape[1]} and {k.shape[1]}: each key/value head serves a whole group of query heads"
        )


def check_kernel_inputs(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> float:
    """As :func:`check_inputs`, and what the Triton kernels need beyond it: a supported dtype and head dim, and a place
    to run.

    Raises:
        TypeError, ValueError: see :func:`check_inputs`; also a dtype other than fp16, bf16 and fp32, a head dim outside
            16 to 128, or tensors on a device where no kernel can run.
    """
    scale = check_inputs(q, k, v, scale)
    if q.dtype not in KERNEL_DTYPES:
        raise ValueError(
            f"the Triton kernels take fp16, bf16 and fp32, got {q.dtype}; use backend='tiled', or convert the inputs"
        )
    if not MIN_HEAD_DIM <= q.shape[3] <= MAX_HEAD_DIM:
        raise ValueError(
            f"the Triton kernels take head dims from {MIN_HEAD_DIM} to {MAX_HEAD_DIM}, got {q.shape[3]}; "
            f"use backend='tiled', or split the dim over more heads"
        )
    if not can_run_kernels(q):
        raise ValueError(
            f"q, k and v are on {q.device}, where a Triton kernel only runs in the simulator; wrap the call in "
            f"`with cme295lab.simulator.enabled():`, or pass backend='tiled' (plain PyTorch), or move them to a GPU"
        )
    return scale


def check_block_size(name: str, value: int, smallest: int = 16) -> None:
    """Refuse a block size that tensor cores or Triton cannot take: it must be a power of two, at least `smallest`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < smallest or value & (value - 1):
        raise ValueError(f"{name} must be a power of two and at least {smallest}, got {value}; 64 is a good start")
