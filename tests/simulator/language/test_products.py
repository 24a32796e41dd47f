"""tl.dot against float64."""

import pytest
import torch
import triton
import triton.language as tl

from cme295lab import simulator

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-5, torch.bfloat16: 1e-5, torch.float64: 1e-12}


def product(x, y):
    return x.double() @ y.double()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_products_are_exact_and_accumulated_in_float32(evaluate, dtype):
    """The operands have few bits: each product is exact in float32, and the sums differ only in their last bits."""
    x, y = torch.randn(16, 32).to(dtype), torch.randn(32, 64).to(dtype)
    got = evaluate("tl.dot(x, y)", x=x, y=y)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(got.double(), product(x, y), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * 10)


@pytest.mark.parametrize("dtype", [torch.float8_e5m2, torch.float8_e4m3fn])
def test_fp8(evaluate, dtype):
    x, y = torch.randn(16, 32).to(dtype), torch.randn(32, 16).to(dtype)
    torch.testing.assert_close(evaluate("tl.dot(x, y)", x=x, y=y).double(), product(x, y), rtol=1e-5, atol=1e-4)


def test_int8_is_exact(evaluate):
    x, y = torch.full((16, 1024), -128).to(torch.int8), torch.full((1024, 16), -128).to(torch.int8)
    got = evaluate("tl.dot(x, y)", x=x, y=y)
    assert got.dtype == torch.int32
    assert (got == 128 * 128 * 1024).all()
    x, y = (torch.randint(-128, 128, s).to(torch.int8) for s in ((16, 32), (32, 16)))
    acc = torch.randint(-(2**20), 2**20, (16, 16), dtype=torch.int32)
    assert torch.equal(evaluate("tl.dot(x, y, acc=acc)", x=x, y=y, acc=acc), x.int() @ y.int() + acc)


def test_three_axes(evaluate):
    x, y = torch.randn(4, 16, 32), torch.randn(4, 32, 8)
    torch.testing.assert_close(evaluate("tl.dot(x, y)", x=x, y=y), x @ y)
    got = evaluate("tl.dot(x, y, acc=acc)", x=x, y=y, acc=torch.ones(4, 16, 8))
    torch.testing.assert_close(got, x @ y + 1)


@pytest.mark.parametrize("size", [16, 64])
def test_accumulators(evaluate, size):
    x, y, acc = torch.randn(size, 32), torch.randn(32, size), torch.randn(size, size)
    torch.testing.assert_close(evaluate("tl.dot(x, y, acc)", x=x, y=y, acc=acc), torch.addmm(acc, x, y))
    got = evaluate("tl.dot(x, y, acc * 2.0) + acc", x=x, y=y, acc=acc)
    torch.testing.assert_close(got, torch.addmm(acc, x, y, beta=2) + acc)
    got = evaluate("tl.dot(x, y, tl.zeros([x.shape[0], y.shape[1]], tl.float32))", x=x, y=y)
    torch.testing.assert_close(got, x @ y)


def test_float16_accumulator_rounds(evaluate):
    x, y = torch.ones(16, 16, dtype=torch.float16), torch.ones(16, 16, dtype=torch.float16)
    acc = torch.full((16, 16), 2048.0, dtype=torch.float16)
    got = evaluate("tl.dot(x * 0.0625, y, acc, out_dtype=tl.float16)", x=x, y=y, acc=acc)
    assert got.dtype == torch.float16
    assert (got == 2048).all()  # 2049 is not a float16
    assert evaluate("tl.dot(x, y, out_dtype=tl.float16)", x=x, y=y).dtype == torch.float16


@pytest.mark.parametrize(
    ("operands", "acc"), [("float32", "float16"), ("bfloat16", "bfloat16"), ("float64", "float32")]
)
def test_accumulators_of_the_wrong_type_are_an_error(evaluate, operands, acc):
    x, acc = torch.ones(16, 16, dtype=getattr(torch, operands)), torch.ones(16, 16, dtype=getattr(torch, acc))
    with pytest.raises(simulator.KernelTypeError, match="not accumulated in"):
        evaluate("tl.dot(x, x, acc)", x=x, acc=acc)


def test_tf32_rounds_operands_to_10_bits(evaluate):
    x, y = torch.full((16, 16), 1 + 2.0**-11 + 2.0**-12), torch.eye(16)
    exact, rounded = (evaluate(f"tl.dot(x, y{p})", x=x, y=y) for p in ("", ', input_precision="tf32"'))
    assert (exact == x).all()
    assert (rounded == 1 + 2.0**-10).all()
    ieee = evaluate('tl.dot(x, y, input_precision="ieee")', x=x, y=y)
    assert torch.equal(ieee, x)
    tie = torch.full((16, 16), 1 + 2.0**-11)
    assert (evaluate('tl.dot(x, y, input_precision="tf32")', x=tie, y=y) == 1).all()


def test_transposed_operands(evaluate):
    x, y = torch.randn(16, 32), torch.randn(64, 32)
    for expression in ("tl.dot(x, tl.trans(y))", "tl.dot(x, y.T)", "tl.trans(tl.dot(y, tl.trans(x)))"):
        torch.testing.assert_close(evaluate(expression, x=x, y=y), x @ y.T)


@triton.jit
def matmul_kernel(
    a_ptr, b_ptr, c_ptr, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SKIP: tl.constexpr
):
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    j = tl.program_id(1) * BN + tl.arange(0, BN)
    acc = tl.zeros([BM, BN], tl.float32)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        if not SKIP or (tl.program_id(0) + start // BK) % 2 == 0:
            a = tl.load(a_ptr + i[:, None] * K + k[None, :], mask=(i < M)[:, None] & (k < K)[None, :], other=0.0)
            b = tl.load(b_ptr + k[:, None] * N + j[None, :], mask=(k < K)[:, None] & (j < N)[None, :], other=0.0)
            acc = tl.dot(a, b, acc)
    tl.store(c_ptr + i[:, None] * N + j[None, :], acc, mask=(i < M)[:, None] & (j < N)[None, :])


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(("m", "n", "k"), [(64, 64, 64), (128, 32, 64), (70, 33, 50), (16, 16, 16)])
def test_tiled_product_with_tiles_that_programs_share(m, n, k, skip):
    a, b, c = torch.randn(m, k), torch.randn(k, n), torch.zeros(m, n)
    with simulator.enabled():
        matmul_kernel[(triton.cdiv(m, 16), triton.cdiv(n, 16))](a, b, c, m, n, k, BM=16, BN=16, BK=16, SKIP=skip)
    if skip:
        row, column = torch.arange(m)[:, None] // 16, torch.arange(k)[None, :] // 16
        a = a * ((row + column) % 2 == 0)
    torch.testing.assert_close(c.double(), a.double() @ b.double(), rtol=1e-5, atol=1e-4)


@triton.jit
def shared_tile_kernel(out_ptr, x_ptr, y_ptr, WHAT: tl.constexpr):
    """Programs of one row of the grid read the same tile y; each has its own x."""
    i = tl.arange(0, 16)
    tile = i[:, None] * 16 + i[None, :]
    number = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    x = tl.load(x_ptr + number * 256 + tile)
    y = tl.load(y_ptr + tl.program_id(1) * 256 + tile)
    if WHAT == "dot":
        z = tl.dot(x, y)
    elif WHAT == "transposed":
        z = tl.dot(x, tl.trans(y))
    elif WHAT == "left":
        z = tl.dot(y, x)
    elif WHAT == "both":
        z = tl.dot(y, y)
    elif WHAT == "used twice":
        z = tl.dot(x, y) + y * 2.0
        y = y + 1.0
        z = z + y
    elif WHAT == "accumulator":
        z = tl.dot(x, y, y)
    elif WHAT == "loop":
        z = x * 0.0
        for _turn in range(0, tl.program_id(0) + 1):
            z = tl.dot(x, y, z)
    elif WHAT == "branch":
        z = x
        if tl.program_id(0) > 0:
            z = tl.dot(x, y)
    else:
        z = tl.sum(y, 0)[:, None] + x
    tl.store(out_ptr + number * 256 + tile, z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "what", ["dot", "transposed", "left", "both", "used twice", "accumulator", "loop", "branch", "sum"]
)
@pytest.mark.parametrize("grid", [(3, 4), (1, 5), (4, 1), (2, 2)])
def test_tiles_that_neighbours_share(what, grid, dtype):
    if dtype == torch.float16 and what in ("loop", "branch", "accumulator"):
        dtype = torch.float32
    x, y = torch.randn(grid[1], grid[0], 16, 16).to(dtype), torch.randn(grid[1], 1, 16, 16).to(dtype)
    out = torch.zeros(x.shape)
    with simulator.enabled():
        for _ in range(2):  # the second launch knows how many programs fit a batch
            shared_tile_kernel[grid](out, x, y, WHAT=what)
    x, y = x.double(), y.double()
    pid = torch.arange(grid[0])[:, None, None]
    want = {
        "dot": x @ y, "transposed": x @ y.mT, "left": y @ x, "both": (y @ y).expand_as(x),
        "used twice": x @ y + y * 2 + y + 1, "accumulator": x @ y + y, "loop": (x @ y) * (pid + 1),
        "branch": torch.where(pid > 0, x @ y, x), "sum": y.sum(-2).unsqueeze(-1) + x,
    }[what]  # fmt: skip
    loose = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(out.double(), want, rtol=loose, atol=loose * 10)
