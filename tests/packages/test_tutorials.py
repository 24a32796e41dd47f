"""The algorithms of Triton's tutorials, written again (tutorial_kernels.py), against PyTorch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
import triton

from cme295lab import simulator
from tests.packages import tutorial_kernels as kernels
from tests.packages.harness import FLOAT_TYPES, assert_close, randn

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
each_type = pytest.mark.parametrize("dtype", FLOAT_TYPES, ids=["fp32", "bf16", "fp16"])


@pytest.fixture(autouse=True)
def _simulated():
    with simulator.enabled():
        yield


@pytest.mark.parametrize("n", [1, 1000, 98_432])
def test_vector_addition(n):
    x, y = torch.rand(n), torch.rand(n)
    out = torch.empty(n)
    kernels.add_kernel[lambda meta: (triton.cdiv(n, meta["BLOCK"]),)](x, y, out, n, BLOCK=1024)
    assert torch.equal(out, x + y)


@each_type
def test_fused_softmax(dtype):
    x = randn(123, 81, dtype=dtype, grad=False)
    out = torch.empty_like(x)
    kernels.softmax_kernel[(8,)](out, x, x.stride(0), out.stride(0), 123, 81, BLOCK=128, STAGES=4)
    assert_close(out, x.double().softmax(-1), "softmax")


@each_type
@pytest.mark.parametrize("activation", ["", "leaky_relu"])
@pytest.mark.parametrize("configuration", [0, 1])
def test_matrix_product_in_groups(dtype, activation, configuration, monkeypatch):
    """The result does not depend on the configuration that is taken."""
    tuner = kernels.matmul_kernel
    monkeypatch.setattr(tuner, "prune_configs", lambda options: [tuner.configs[configuration]])
    m, n, k = 130, 75, 50
    a, b = randn(m, k, dtype=dtype, grad=False), randn(n, k, dtype=dtype, grad=False).T
    c = torch.empty(m, n, dtype=dtype)
    tuner[lambda meta: (triton.cdiv(m, meta["BM"]) * triton.cdiv(n, meta["BN"]),)](
        a, b, c, m, n, k, *a.stride(), *b.stride(), *c.stride(), ACTIVATION=activation
    )
    expected = a.double() @ b.double()
    assert_close(c, F.leaky_relu(expected, 0.01) if activation else expected, "matmul", 64 if dtype == FP32 else None)


def test_dropout_from_a_seed():
    x = randn(1000, grad=False)
    first, again, other = (torch.empty_like(x) for _ in range(3))
    for out, seed in [(first, 123), (again, 123), (other, 512)]:
        kernels.dropout_kernel[(triton.cdiv(1000, 256),)](x, out, 1000, 0.5, seed, BLOCK=256)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    kept = first != 0
    assert torch.equal(first[kept], x[kept] / 0.5)
    assert 400 < int(kept.sum()) < 600


@each_type
@pytest.mark.parametrize("shape", [(9, 70), (65, 300)])
def test_layer_norm_with_locks(dtype, shape):
    (rows, n), slots = shape, 4
    x, w, b = randn(rows, n, dtype=dtype), randn(n, dtype=dtype), randn(n, dtype=dtype)
    dy = randn(rows, n, dtype=dtype, grad=False)
    y, mean, rstd = torch.empty_like(x), torch.empty(rows), torch.empty(rows)
    kernels.layer_norm_kernel[(rows,)](x, y, w, b, mean, rstd, n, n, 1e-5, BLOCK=64)
    dx, locks = torch.empty_like(x), torch.zeros(2 * slots, dtype=torch.int32)
    parts = torch.zeros(2, slots, n, dtype=dtype)
    kernels.layer_norm_backward_kernel[(rows,)](
        dx, dy, parts[0], parts[1], x, w, mean, rstd, locks, n, n, SLOTS=slots, BLOCK=512
    )
    dw, db = torch.empty_like(w), torch.empty_like(b)
    for part, out in zip(parts, (dw, db), strict=True):
        kernels.add_slots_kernel[lambda meta: (triton.cdiv(n, meta["BN"]),)](part, out, slots, n, BM=2, BN=128)
    exact = [t.detach().double().requires_grad_() for t in (x, w, b)]
    expected = F.layer_norm(exact[0], (n,), exact[1], exact[2])
    expected.backward(dy.double())
    assert_close(y, expected, "y")
    for name, got, t in zip(("dx", "dw", "db"), (dx, dw, db), exact, strict=True):
        assert_close(got, t.grad, name, 32)


@each_type
@pytest.mark.parametrize("length", [64, 100])
def test_causal_attention_with_block_pointers(dtype, length):
    heads, d = 3, 32
    q, k, v = (randn(heads, length, d, dtype=dtype, grad=False) for _ in range(3))
    out, lse = torch.empty_like(q), torch.empty(heads, length)
    kernels.attention_kernel[lambda meta: (triton.cdiv(length, meta["BM"]), heads)](
        q, k, v, out, lse, d**-0.5 * math.log2(math.e), length * d, d, length, D=d, BM=32, BN=16, STAGE=3
    )
    scores = q.double() @ k.double().mT * d**-0.5
    scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -torch.inf)
    assert_close(out, scores.softmax(-1) @ v.double(), "attention", 32)
    # the sum starts at 1, with the weight exp2(-inf) = 0 as soon as there is a score
    assert_close(lse, scores.logsumexp(-1) * math.log2(math.e), "log-sum-exp", 32)


def test_functions_of_libdevice():
    x, out = torch.rand(1000), torch.empty(1000)
    kernels.asin_kernel[(4,)](x, out, 1000, BLOCK=256)
    assert_close(out, x.double().asin(), "asin")


def test_products_of_different_sizes_from_a_table_of_addresses():
    sizes = [(33, 20, 16), (16, 70, 40), (5, 16, 50)]
    a = [randn(m, k, dtype=FP16, grad=False) for m, n, k in sizes]
    b = [randn(k, n, dtype=FP16, grad=False) for m, n, k in sizes]
    c = [torch.empty(m, n, dtype=FP16) for m, n, k in sizes]
    tables = [torch.tensor([t.data_ptr() for t in group]) for group in (a, b, c)]
    strides = torch.tensor([[x.stride(0) for x in group] for group in zip(a, b, c, strict=True)], dtype=torch.int32)
    kernels.grouped_gemm_kernel[(4,)](
        *tables, torch.tensor(sizes, dtype=torch.int32), strides, 3, PROGRAMS=4, BM=16, BN=16, BK=16
    )
    for x, y, z in zip(a, b, c, strict=True):
        assert_close(z, x.double() @ y.double(), "grouped gemm")


@each_type
def test_persistent_matrix_product_with_tensor_descriptors(dtype):
    m, n, k = 70, 80, 48
    a, b = randn(m, k, dtype=dtype, grad=False), randn(n, k, dtype=dtype, grad=False)
    c = torch.empty(m, n, dtype=dtype)
    kernels.persistent_matmul_kernel[(5,)](a, b, c, m, n, k, PROGRAMS=5, BM=32, BN=32, BK=16, GROUP=2)
    assert_close(c, a.double() @ b.double().T, "persistent matmul", 64 if dtype == FP32 else None)


def test_block_scaled_matrix_product():
    m, n, k = 32, 64, 64
    a, b = randn(m, k, grad=False).to(torch.float8_e4m3fn), randn(k, n, grad=False).to(torch.float8_e4m3fn)
    a_scale = torch.randint(124, 131, (m, k // 32), dtype=torch.uint8)
    b_scale = torch.randint(124, 131, (n, k // 32), dtype=torch.uint8)
    c = torch.empty(m, n)
    kernels.block_scaled_matmul_kernel[(1,)](a, a_scale, b, b_scale, c, M=m, N=n, K=k)
    a_exact = a.double() * (2.0 ** (a_scale.double() - 127)).repeat_interleave(32, 1)
    b_exact = b.double() * (2.0 ** (b_scale.double() - 127)).repeat_interleave(32, 1).T
    assert_close(c, a_exact @ b_exact, "scaled matmul", 64)
