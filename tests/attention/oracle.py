"""The independent answer, inputs to ask it about, and how far from it an answer in a given dtype may be."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

Attention = Callable[..., Tensor]

# Unit roundoffs. Against fp64 and relative to the largest element of the result, fp16 and bf16 round P (or dS) once and
# the result once, each to half a unit in the last place, and the roundings of a row's P average out: 3 u holds with a
# margin of 2.
# fp32 and fp64 sum up to a few hundred terms: the error grows like the square root of their number, times a few units.
UNIT_ROUNDOFF = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24, torch.float64: 2.0**-53}
NUM_ROUNDOFFS = {torch.float16: 3, torch.bfloat16: 3, torch.float32: 128, torch.float64: 64}


def tolerance(dtype: torch.dtype) -> float:
    return NUM_ROUNDOFFS[dtype] * UNIT_ROUNDOFF[dtype]


def make_inputs(
    batch: int = 1,
    heads: int = 2,
    kv_heads: int | None = None,
    len_q: int = 64,
    len_k: int | None = None,
    dim: int = 32,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> list[Tensor]:
    """q, k, v and dO."""
    generator = torch.Generator().manual_seed(seed)
    kv_shape = (batch, kv_heads or heads, len_k or len_q, dim)
    shapes = [(batch, heads, len_q, dim), kv_shape, kv_shape, (batch, heads, len_q, dim)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def exact(
    q: Tensor, k: Tensor, v: Tensor, do: Tensor, *, causal: bool = False, scale: float | None = None
) -> list[Tensor]:
    """O, dQ, dK and dV in fp64, by torch's own attention."""
    inputs = [t.detach().double().requires_grad_() for t in (q, k, v)]
    o = scaled_dot_product_attention(*inputs, is_causal=causal, scale=scale, enable_gqa=True)
    return [o.detach(), *torch.autograd.grad(o, inputs, do.double())]


def run(attention: Attention, q: Tensor, k: Tensor, v: Tensor, do: Tensor, **options: object) -> list[Tensor]:
    """O, dQ, dK and dV of the implementation under test."""
    inputs = [t.detach().requires_grad_() for t in (q, k, v)]
    o = attention(*inputs, **options)
    return [o.detach(), *torch.autograd.grad(o, inputs, do)]


def assert_close(got: list[Tensor], expected: list[Tensor], tol: float) -> None:
    """Each result's largest error is within tol of its largest element.

    A gradient is a sum of terms of order 1 that may cancel (with a single key dQ is exactly 0): there, within tol of 1.
    """
    for name, a, b in zip(("O", "dQ", "dK", "dV"), got, expected, strict=False):
        assert a.shape == b.shape, f"{name}: shape {tuple(a.shape)} instead of {tuple(b.shape)}"
        size = b.abs().max().item() if name == "O" else max(1.0, b.abs().max().item())
        error = (a.double() - b).abs().max().item() / size
        assert error <= tol, f"{name}: relative error {error:.2e}, tolerance {tol:.2e}"
