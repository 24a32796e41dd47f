"""The course's kernels, compiled and launched on a CUDA device, against float64 attention on the same device."""

import pytest
import torch

from cme295lab.attention import flash_attention
from cme295lab.hardware import device_at_hand

pytestmark = pytest.mark.gpu

# Inputs and outputs are rounded to the dtype; sums run in fp32. Gradients add up several such roundings.
TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 5e-3}


def exact_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    """Attention in float64, scores and all."""
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    if causal:
        keep = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~keep, float("-inf"))
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("length", "dim", "kv_heads"), [(512, 64, 4), (333, 128, 2), (100, 32, 1), (64, 16, 4)])
def test_flash_attention_agrees_with_float64(
    dtype: torch.dtype, causal: bool, length: int, dim: int, kv_heads: int
) -> None:
    generator = torch.Generator("cuda").manual_seed(length + dim)
    shapes = [(2, 4, length, dim), (2, kv_heads, length, dim), (2, kv_heads, length, dim), (2, 4, length, dim)]
    tensors = [torch.randn(shape, generator=generator, device="cuda", dtype=dtype) for shape in shapes]
    q, k, v = (x.requires_grad_() for x in tensors[:3])
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    output, wanted = flash_attention(q, k, v, causal=causal), exact_attention(*exact, causal)
    output.backward(tensors[3])
    wanted.backward(tensors[3].double())
    pairs = {"o": (output, wanted)} | {n: (x.grad, y.grad) for n, x, y in zip("qkv", (q, k, v), exact)}
    for name, (got, expected) in pairs.items():
        error = ((got.double() - expected).abs().max() / expected.abs().max()).item()
        assert error <= TOLERANCE[dtype], f"{name}: largest error {error:.1e} of the largest value"


def test_device_at_hand_is_this_gpu() -> None:
    device = device_at_hand()
    assert device is not None
    properties = torch.cuda.get_device_properties(0)
    assert device.num_sms == properties.multi_processor_count
    assert device.compute_capability == 10 * properties.major + properties.minor
