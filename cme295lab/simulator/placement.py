"""Where a launch on a tensor runs: on the tensor's GPU, or here. Every room that launches kernels asks this module."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from cme295lab.simulator.trace import enabled, is_enabled


def can_run_kernels(tensor: Tensor) -> bool:
    """Whether a Triton launch on this tensor would run: on a CUDA device, or on the CPU in the simulator."""
    return tensor.device.type == "cuda" or (tensor.device.type == "cpu" and is_enabled())


def place_to_run(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """The tensor's GPU, or the simulator.

    It is turned on if need be: a backward pass may come after the `with` block of its forward pass has ended.
    """
    if tensor.device.type == "cuda":
        return torch.cuda.device(tensor.device)
    if can_run_kernels(tensor):
        return contextlib.nullcontext()
    return enabled()


def input_precision(dtype: torch.dtype) -> str:
    """How fp32 products are formed: in fp32 ("ieee"), unless torch.set_float32_matmul_precision allowed TF32."""
    return "ieee" if dtype is torch.float32 and torch.get_float32_matmul_precision() == "highest" else "tf32"
