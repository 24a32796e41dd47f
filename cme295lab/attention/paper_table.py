"""The table of FlashAttention's Figure 2 (left), executed: both kinds of attention in the simulator, at full size.

The paper counts one forward and backward pass of GPT-2 medium's attention (batch 64, 16 heads, 1,024 tokens, dim 64,
fp16). Here the kernels run on every head, a slice of the batch at a time so that the score matrices fit a laptop's
memory, and the counts are added up. Standard attention adds a mask and drops out in passes of their own; flash
attention has neither (a fused dropout draws its mask again from the seed and moves no bytes for it).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cme295lab.attention.flash import flash_attention
from cme295lab.attention.materialized import standard_attention_kernels

_DROPOUT = 0.1


@dataclass(frozen=True, kw_only=True)
class CountedRun:
    """One forward and backward pass, counted.

    Attributes:
        name: "standard" or "flash".
        num_launches: kernels launched, all slices together.
        flops: all floating-point operations.
        dot_flops: those of matrix products.
        requested_bytes: what all loads and stores ask for.
        compulsory_bytes: each byte once per kernel: what crosses the HBM bus even with an unlimited cache.
        seconds: how long the simulator took.
    """

    name: str
    num_launches: int
    flops: int
    dot_flops: int
    requested_bytes: int
    compulsory_bytes: int
    seconds: float


def run_paper_table(
    *,
    batch: int = 64,
    heads: int = 16,
    n: int = 1024,
    d: int = 64,
    slice_size: int = 4,
    progress: bool = True,
    compute: bool = True,
) -> dict[str, CountedRun]:
    """Execute and count standard and flash attention, forward and backward, in fp16.

    Args:
        batch, heads, n, d: the size; by default the paper's.
        slice_size: sequences of the batch that are processed at a time.
        progress: show a progress bar.
        compute: with False the kernels are counted without computing a number (their addresses depend on none), in a
            fraction of the time.

    Returns:
        The counts, by name.

    Raises:
        ValueError: a size below 1, or what the kernels refuse.
    """
    for name, value in (("batch", batch), ("heads", heads), ("n", n), ("d", d), ("slice_size", slice_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    from tqdm import tqdm

    slices = [min(slice_size, batch - start) for start in range(0, batch, slice_size)]
    runs = [(name, size) for size in slices for name in ("standard", "flash")]
    counted: dict[str, CountedRun] = {}
    for name, size in tqdm(runs, desc="slices", disable=not progress, file=sys.stdout, ncols=80, leave=False):
        run = _count(name, (size, heads, n, d), compute)
        counted[name] = _add(counted[name], run) if name in counted else run
    return counted


def _count(name: str, shape: tuple[int, int, int, int], compute: bool) -> CountedRun:
    from cme295lab import simulator

    generator = torch.Generator().manual_seed(0)
    if compute:
        q, k, v, do = (torch.randn(shape, generator=generator).half() for _ in range(4))
    else:
        q, k, v, do = (torch.zeros(shape, dtype=torch.float16) for _ in range(4))
    leaves = [t.requires_grad_() for t in (q, k, v)]
    with simulator.trace(device="A100", compute=compute) as trace:
        _attend(name, leaves).backward(do)
    return CountedRun(
        name=name,
        num_launches=len(trace.launches),
        flops=trace.flops,
        dot_flops=trace.dot_flops,
        requested_bytes=trace.requested_bytes,
        compulsory_bytes=trace.distinct_bytes,
        seconds=trace.seconds,
    )


def _attend(name: str, qkv: list[Tensor]) -> Any:
    if name == "flash":
        return flash_attention(*qkv)
    return standard_attention_kernels(*qkv, additive_mask=True, dropout_p=_DROPOUT)


def _add(a: CountedRun, b: CountedRun) -> CountedRun:
    counts = ("num_launches", "flops", "dot_flops", "requested_bytes", "compulsory_bytes", "seconds")
    return CountedRun(name=a.name, **{c: getattr(a, c) + getattr(b, c) for c in counts})
