"""Plain PyTorch attention: the definition, and the tiled version with its hand-written backward pass."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cme295lab.attention import standard_attention, tiled_attention
from tests.attention.oracle import assert_close, exact, make_inputs, run, tolerance

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("attention", [standard_attention, tiled_attention])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_plain_attention_equals_exact_attention(attention, dtype, causal):
    x = make_inputs(batch=2, heads=4, kv_heads=2, len_q=70, len_k=50, dtype=dtype)
    assert_close(run(attention, *x, causal=causal), exact(*x, causal=causal), tolerance(dtype))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("len_q", "len_k"), [(1, 1), (1, 40), (40, 1), (33, 70), (70, 33), (32, 32)])
def test_tiled_equals_exact_attention_for_lengths_that_do_not_divide(len_q, len_k, causal):
    x = make_inputs(heads=2, kv_heads=1, len_q=len_q, len_k=len_k, dim=5, dtype=torch.float64)
    got = run(tiled_attention, *x, causal=causal, block_m=16, block_n=32)
    assert_close(got, exact(*x, causal=causal), tolerance(torch.float64))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("attention", [standard_attention, tiled_attention])
def test_plain_attention_passes_gradcheck(attention, causal):
    q, k, v, _ = (
        t.requires_grad_() for t in make_inputs(heads=2, kv_heads=1, len_q=19, len_k=18, dim=3, dtype=torch.float64)
    )
    options = {"block_m": 16, "block_n": 16} if attention is tiled_attention else {}
    assert torch.autograd.gradcheck(lambda *x: attention(*x, causal=causal, **options), (q, k, v))


def test_plain_attention_worked_by_hand():
    # One query, scores ln 1 and ln 3: probabilities 1/4 and 3/4.
    q = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    k = torch.tensor([0.0, math.log(3)], dtype=torch.float64).reshape(1, 1, 2, 1)
    v = torch.tensor([8.0, 4.0], dtype=torch.float64).reshape(1, 1, 2, 1)
    for attention in (standard_attention, tiled_attention):
        assert attention(q, k, v, scale=1.0).item() == pytest.approx(5.0, abs=1e-14)
        assert attention(q, k, v, scale=1.0, causal=True).item() == pytest.approx(8.0, abs=1e-14)


def test_causal_mask_is_aligned_at_the_top_left():
    q, k, v, _ = make_inputs(len_q=3, len_k=5, dtype=torch.float64)
    for attention in (standard_attention, tiled_attention):
        o = attention(q, k, v, causal=True)
        torch.testing.assert_close(o[:, :, 0], v[:, :, 0])  # the first query sees the first key only
        changed = v.clone()
        changed[:, :, 3:] = 1e3  # keys that no query sees
        assert torch.equal(o, attention(q, k, changed, causal=True))


class LargestTensor(TorchDispatchMode):
    """Records the most elements that an operation returns in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = result if isinstance(result, tuple | list) else (result,)
        self.num_elements = max([self.num_elements, *(t.numel() for t in tensors if isinstance(t, torch.Tensor))])
        return result


def largest_tensor(attention, length: int, **options) -> int:
    q, k, v, do = make_inputs(heads=1, len_q=length, dim=16)
    q.requires_grad_()
    with LargestTensor() as largest:
        attention(q, k, v, causal=True, **options).backward(do)
    return largest.num_elements


def test_tiled_never_holds_anything_larger_than_its_inputs():
    for length in (256, 512):
        assert largest_tensor(tiled_attention, length, block_m=32, block_n=32) == length * 16
        assert largest_tensor(standard_attention, length) == length * length
