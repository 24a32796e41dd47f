"""Row softmax, plain, fused and online."""

import math

import pytest
import torch

from cme295lab import simulator
from cme295lab.kernels.softmax import online_softmax_kernel, plain_softmax_kernel, softmax_kernel

KERNELS = [plain_softmax_kernel, softmax_kernel, online_softmax_kernel]


def softmax(kernel, x: torch.Tensor) -> torch.Tensor:
    y = torch.empty_like(x)
    rows, cols = x.shape
    block = 1 << (cols - 1).bit_length() if kernel is softmax_kernel else 64
    with simulator.enabled():
        kernel[(rows,)](x, y, cols, *x.stride(), *y.stride(), BLOCK_N=block)
    return y


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("cols", [1, 63, 64, 65, 300])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_softmax_equals_torch(kernel, cols, dtype):
    x = (4 * torch.randn(9, cols, generator=torch.Generator().manual_seed(0))).to(dtype)
    expected = x.double().softmax(-1)
    # One rounding of the result; in fp32 a few of exp, the sum and the quotient.
    roundoff = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 16 * 2.0**-24}[dtype]
    torch.testing.assert_close(softmax(kernel, x).double(), expected, rtol=1.01 * roundoff, atol=2.0**-25)


@pytest.mark.parametrize("kernel", KERNELS)
def test_softmax_reads_strides(kernel):
    x = torch.randn(70, 20, generator=torch.Generator().manual_seed(0)).T
    torch.testing.assert_close(softmax(kernel, x), x.softmax(-1))


@pytest.mark.parametrize("kernel", KERNELS)
def test_softmax_of_masked_large_and_nan_scores(kernel):
    x = torch.zeros(3, 200)
    x[0, :150] = -math.inf  # whole blocks masked, at the start
    x[1, 100] = 1e4
    x[2, 7] = math.nan
    y = softmax(kernel, x)
    torch.testing.assert_close(y[:2], x[:2].softmax(-1))
    assert y[2].isnan().all()


def test_plain_softmax_reads_three_times_online_twice_and_fused_once():
    x = torch.randn(4, 256)
    cases = ((plain_softmax_kernel, 3, 64), (softmax_kernel, 1, 256), (online_softmax_kernel, 2, 64))
    for kernel, reads, block in cases:
        y = torch.empty_like(x)
        with simulator.trace() as t:
            kernel[(4,)](x, y, 256, *x.stride(), *y.stride(), BLOCK_N=block)
        assert t.tensors["x"].read_bytes == reads * x.nbytes
        assert t.tensors["y"].written_bytes == y.nbytes
