"""The tiled matrix product."""

import pytest
import torch

from cme295lab import simulator
from cme295lab.kernels.matmul import matmul_kernel


def matmul(
    a: torch.Tensor, b: torch.Tensor, *, block=(32, 64, 32), group: int = 3
) -> tuple[torch.Tensor, simulator.Trace]:
    (m, k), n = a.shape, b.shape[1]
    c = torch.empty(m, n, dtype=a.dtype)
    grid = (-(-m // block[0]) * -(-n // block[1]),)
    with simulator.trace() as t:
        matmul_kernel[grid](
            a, b, c, m, n, k, *a.stride(), *b.stride(), *c.stride(),
            BLOCK_M=block[0], BLOCK_N=block[1], BLOCK_K=block[2], GROUP_M=group, PRECISION="ieee",
        )  # fmt: skip
    return c, t


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("m", "n", "k"), [(64, 64, 64), (1, 1, 1), (100, 130, 70), (33, 65, 17)])
def test_matmul_equals_torch(m, n, k, dtype):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator).to(dtype) for shape in ((m, k), (k, n)))
    c, _ = matmul(a, b)
    # One rounding of the result, and fp32 sums of up to 70 products, each up to about 10.
    roundoff = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 0.0}[dtype]
    torch.testing.assert_close(c.double(), a.double() @ b.double(), rtol=1.01 * roundoff, atol=70 * 10 * 2.0**-24)


def test_matmul_reads_strides():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(40, 50, generator=generator).T, torch.randn(60, 40, generator=generator).T
    c, _ = matmul(a, b)
    torch.testing.assert_close(c, a @ b, rtol=0, atol=1e-5)


def test_matmul_reads_a_once_per_column_of_tiles():
    a, b = torch.randn(128, 64), torch.randn(64, 256)
    _, t = matmul(a, b, block=(32, 64, 32))
    assert t.tensors["a"].read_bytes == a.nbytes * (256 // 64)
    assert t.tensors["b"].read_bytes == b.nbytes * (128 // 32)
    assert t.dot_flops == 2 * 128 * 256 * 64


def test_matmul_groups_change_the_order_and_nothing_else():
    a, b = torch.randn(100, 32), torch.randn(32, 200)
    assert torch.equal(matmul(a, b, group=1)[0], matmul(a, b, group=8)[0])
