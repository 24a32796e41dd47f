"""The launches that are timed, made the same way in this process (simulator) and in the interpreter's process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl

from cme295lab.attention.block_sizes import LaunchConfig
from cme295lab.attention.flash import flash_delta, flash_forward, flash_key_value_grads, flash_query_grad
from cme295lab.kernels.matmul import matmul_kernel
from cme295lab.kernels.softmax import softmax_kernel

HEADS, DIM = 16, 64
CONFIG = LaunchConfig(block_m=64, block_n=64, num_warps=8, num_stages=3)


@dataclass(frozen=True)
class Case:
    """One benchmark: the launch, the same in PyTorch, and how often the slow interpreter is asked."""

    name: str
    launch: Callable[[], object]
    torch: Callable[[], object] | None = None
    interpreter_repeats: int = 1


@triton.jit
def add_kernel(x_ptr, y_ptr, o_ptr, length, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < length
    tl.store(
        o_ptr + offsets, tl.load(x_ptr + offsets, mask=inside) + tl.load(y_ptr + offsets, mask=inside), mask=inside
    )


def make_cases() -> list[Case]:
    """All cases, with fresh inputs."""
    torch.manual_seed(0)
    return [_forward(causal=False), _forward(causal=True), _backward(), _softmax(), _matmul(), _add()]


def large_launches() -> dict[str, Callable[[], object]]:
    """Launches over 32 M elements."""
    x, y, o = (torch.zeros(1 << 25) for _ in range(3))
    rows, out = torch.zeros(1 << 15, 1024), torch.zeros(1 << 15, 1024)
    return {
        "vector add 32M": lambda: add_kernel[(1 << 15,)](x, y, o, 1 << 25, BLOCK=1024),
        "row softmax 32768 x 1000": lambda: softmax_kernel[(1 << 15,)](
            rows, out, 1000, *rows.stride(), *out.stride(), BLOCK_N=1024
        ),
    }


def _qkv(length: int) -> list[torch.Tensor]:
    return [torch.randn(1, HEADS, length, DIM) for _ in range(3)]


def _forward(*, causal: bool) -> Case:
    q, k, v = _qkv(1024)
    return Case(
        f"flash forward N=1024 h=16 d=64 {'causal' if causal else 'full'}",
        lambda: flash_forward(q, k, v, causal=causal, scale=DIM**-0.5, config=CONFIG),
        lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal),
    )


def _backward() -> Case:
    q, k, v = _qkv(512)
    do, o = torch.randn_like(q), torch.randn_like(q)
    lse = torch.full(q.shape[:3], 8.0)
    by_keys = replace(CONFIG, block_m=64, block_n=128)

    def launch() -> None:
        delta = flash_delta(o, do, config=CONFIG)
        flash_key_value_grads(q, k, v, do, lse, delta, causal=False, scale=DIM**-0.5, config=by_keys)
        flash_query_grad(q, k, v, do, lse, delta, causal=False, scale=DIM**-0.5, config=CONFIG)

    leaves = [t.clone().requires_grad_() for t in (q, k, v)]
    output = torch.nn.functional.scaled_dot_product_attention(*leaves)
    return Case(
        "flash backward N=512 h=16 d=64 full",
        launch,
        lambda: torch.autograd.grad(output, leaves, do, retain_graph=True),
    )


def _softmax() -> Case:
    x = torch.randn(2048, 1000)
    o = torch.empty_like(x)
    return Case(
        "row softmax 2048 x 1000",
        lambda: softmax_kernel[(2048,)](x, o, 1000, *x.stride(), *o.stride(), BLOCK_N=1024),
        lambda: torch.softmax(x, -1),
        interpreter_repeats=3,
    )


def _matmul() -> Case:
    a, b, c = (torch.randn(1024, 1024) for _ in range(3))
    sizes = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "GROUP_M": 8, "PRECISION": "ieee"}
    return Case(
        "matmul 1024^3 fp32",
        lambda: matmul_kernel[(256,)](a, b, c, 1024, 1024, 1024, *a.stride(), *b.stride(), *c.stride(), **sizes),
        lambda: a @ b,
    )


def _add() -> Case:
    x, y, o = (torch.randn(1 << 20) for _ in range(3))
    return Case("vector add 1M", lambda: add_kernel[(1024,)](x, y, o, 1 << 20, BLOCK=1024), lambda: x + y, 3)
