"""The course's kernels, forwards and backwards, have no races and read nothing that is undefined."""

import pytest
import torch

from cme295lab import simulator
from cme295lab.attention import flash_attention
from cme295lab.attention.materialized import standard_attention_kernels
from cme295lab.kernels.matmul import matmul_kernel
from cme295lab.kernels.softmax import online_softmax_kernel, plain_softmax_kernel, softmax_kernel


def assert_clean(t, launches):
    assert len(t.launches) == launches
    assert not t.problems
    assert not t.notes


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("seq", "dtype"), [(64, torch.float32), (77, torch.bfloat16)])
def test_flash_attention(causal, seq, dtype):
    q, k, v = (torch.randn(1, heads, seq, 32).to(dtype).requires_grad_() for heads in (4, 2, 2))
    with simulator.trace(check=True) as t:
        flash_attention(q, k, v, causal=causal, block_m=32, block_n=32).sum().backward()
        assert q.grad is not None
        assert q.grad.isfinite().all()
    assert_clean(t, 4)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("seq", [64, 77])
def test_standard_attention(causal, seq):
    q, k, v = (torch.randn(1, heads, seq, 32).requires_grad_() for heads in (4, 2, 2))
    with simulator.trace(check=True) as t:
        standard_attention_kernels(q, k, v, causal=causal, additive_mask=True, dropout_p=0.2).sum().backward()
        assert q.grad is not None
        assert q.grad.isfinite().all()
    assert_clean(t, len(t.launches))
    assert len(t.launches) >= 10


@pytest.mark.parametrize(
    "kernel", [plain_softmax_kernel, softmax_kernel, online_softmax_kernel], ids=lambda k: k.__name__
)
def test_softmax(kernel):
    x = torch.randn(9, 50)
    with simulator.trace(check=True) as t:
        y = torch.empty(50, 9).T
        kernel[(9,)](x, y, 50, *x.stride(), *y.stride(), BLOCK_N=64)
        torch.testing.assert_close(y, x.softmax(-1))
    assert_clean(t, 1)


def test_matmul():
    a, b = torch.randn(70, 40), torch.randn(40, 50)
    with simulator.trace(check=True) as t:
        c = torch.empty(70, 50)
        matmul_kernel[(3 * 2,)](
            a, b, c, 70, 50, 40, *a.stride(), *b.stride(), *c.stride(),
            BLOCK_M=32, BLOCK_N=32, BLOCK_K=16, GROUP_M=2, PRECISION="ieee",
        )  # fmt: skip
        torch.testing.assert_close(c, a @ b)
    assert_clean(t, 1)


def test_a_grid_one_row_of_tiles_too_short_is_seen():
    a, b = torch.randn(70, 40), torch.randn(40, 50)
    with simulator.trace(check=True) as t:
        c = torch.empty(70, 50)
        matmul_kernel[(3 * 2 - 2,)](
            a, b, c, 70, 50, 40, *a.stride(), *b.stride(), *c.stride(),
            BLOCK_M=32, BLOCK_N=32, BLOCK_K=16, GROUP_M=2, PRECISION="ieee",
        )  # fmt: skip
    (found,) = t.problems
    assert (found.kind, found.kernel, found.tensor) == ("uninitialized", "matmul_kernel", "c")
