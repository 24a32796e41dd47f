import pytest
import torch

from cme295lab import simulator
from cme295lab.simulator import KernelTypeError, OutOfBoundsError

MATMUL = """
@triton.jit
def kernel(a_ptr, b_ptr, c_ptr, M, N, K, sam, sak, sbk, sbn, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    first_row, first_column = tl.program_id(0) * BM, tl.program_id(1) * BN
    a = tl.make_block_ptr(a_ptr, (M, K), (sam, sak), (first_row, 0), (BM, BK), (1, 0))
    b = tl.make_block_ptr(base=b_ptr, shape=[K, N], strides=[sbk, sbn], offsets=[0, first_column],
                          block_shape=[BK, BN], order=[0, 1])
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for k in range(0, K, BK):
        x = tl.load(a, boundary_check=(0, 1), padding_option="zero")
        y = tl.load(b, boundary_check=(0, 1))
        acc += tl.dot(x, y)
        a, b = tl.advance(a, (0, BK)), b.advance((BK, 0))
    c = tl.make_block_ptr(c_ptr, (M, N), (N, 1), (first_row, first_column), (BM, BN), (1, 0))
    tl.store(c, acc.to(c.type.element_ty.element_ty), boundary_check=(0, 1))
"""


def test_a_product_of_tiles_that_stand_over_the_edges(module_from):
    torch.manual_seed(0)
    a, b = torch.randn(100, 70), torch.randn(90, 70)  # b is read transposed: its tiles are contiguous along axis 0
    c = torch.full((100, 90), float("nan"), dtype=torch.float16)
    with simulator.trace() as t:
        module_from(MATMUL).kernel[(4, 3)](a, b, c, 100, 90, 70, 70, 1, 1, 70, BM=32, BN=32, BK=16)
    torch.testing.assert_close(c, (a @ b.T).half(), atol=2e-2, rtol=1e-3)
    assert t.tensors["a"].read_bytes == 3 * 100 * 70 * 4  # lanes outside of the tensor are not counted
    assert t.tensors["b"].read_bytes == 4 * 90 * 70 * 4
    assert t.tensors["c"].written_bytes == 100 * 90 * 2


def test_a_block_pointer_counts_what_pointers_and_a_mask_do(module_from):
    source = """
@triton.jit
def tiles(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    x = tl.make_block_ptr(x_ptr, (n,), (1,), (tl.program_id(0) * BLOCK,), (BLOCK,), (0,))
    out = tl.make_block_ptr(out_ptr, (n,), (1,), (tl.program_id(0) * BLOCK,), (BLOCK,), (0,))
    tl.store(out, tl.load(x, boundary_check=(0,)) + 1, boundary_check=(0,))

@triton.jit
def pointers(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + at, tl.load(x_ptr + at, mask=at < n) + 1, mask=at < n)
"""
    module, x = module_from(source), torch.arange(1000, dtype=torch.float32)
    seen = []
    for kernel in (module.tiles, module.pointers):
        out = torch.zeros(1000)
        with simulator.trace(record=True) as t:
            kernel[(8,)](x, out, 1000, BLOCK=128)
        assert torch.equal(out, x + 1)
        seen.append([(r.read_bytes, r.written_bytes, r.distinct_read_bytes) for r in t.tensors.values()])
    assert seen[0] == seen[1]


ONE_TILE = """
@triton.jit
def kernel(x_ptr, out_ptr, first, CHECK: tl.constexpr, PADDING: tl.constexpr):
    x = tl.make_block_ptr(x_ptr, (5, 6), (6, 1), (first, first), (4, 4), (1, 0))
    value = tl.load(x, boundary_check=CHECK, padding_option=PADDING)
    at = tl.arange(0, 4)[:, None] * 4 + tl.arange(0, 4)[None, :]
    tl.store(out_ptr + at, value)
"""


@pytest.mark.parametrize("first", [-2, 0, 3])
@pytest.mark.parametrize("option", ["zero", "nan"])
def test_lanes_outside_read_the_padding(module_from, first, option):
    x, out = torch.arange(1.0, 31).reshape(5, 6), torch.zeros(4, 4)
    with simulator.enabled():
        module_from(ONE_TILE).kernel[(1,)](x, out, first, CHECK=(0, 1), PADDING=option)
    padded = torch.full((20, 20), 0.0 if option == "zero" else float("nan"))
    padded[5:10, 5:11] = x
    torch.testing.assert_close(out, padded[5 + first : 9 + first, 5 + first : 9 + first], equal_nan=True)


def test_only_the_axes_that_are_checked_are_masked(module_from):
    x, out = torch.arange(1.0, 43).reshape(7, 6), torch.zeros(4, 4)
    with simulator.enabled():
        module_from(ONE_TILE).kernel[(1,)](x, out, 3, CHECK=(0,), PADDING="")
    assert out.tolist()[:2] == [[22, 23, 24, 25], [28, 29, 30, 31]]  # the fourth column is the next row's first
    assert not out[2:].any()
    x = x[:5].clone()
    with (
        simulator.enabled(),
        pytest.raises(OutOfBoundsError, match=r"out-of-bounds load: program \(0, 0, 0\), lane \(1, 3\).*\n.*line"),
    ):
        module_from(ONE_TILE).kernel[(1,)](x, out, 3, CHECK=(), PADDING="")


def test_tiles_that_move_differently_in_each_program(module_from):
    source = """
@triton.jit
def kernel(x_ptr, out_ptr):
    pid = tl.program_id(0)
    tile = tl.make_block_ptr(x_ptr, (64,), (1,), (0,), (4,), (0,))
    total = tl.zeros((4,), tl.float32)
    for i in range(pid):
        total += tl.load(tile)
        tile = tl.advance(tile, (4,)) if i % 2 == 0 else tl.advance(tile, (8,))
    if pid % 3 == 0:
        tile = tl.advance(tile, (1,))
    tl.store(out_ptr + pid * 4 + tl.arange(0, 4), total + tl.load(tile))
"""
    x, out = torch.arange(64, dtype=torch.float32), torch.zeros(6, 4)
    with simulator.enabled():
        module_from(source).kernel[(6,)](x, out)
    for pid in range(6):
        at, want = 0, torch.zeros(4)
        for i in range(pid):
            want += x[at : at + 4]
            at += 4 if i % 2 == 0 else 8
        at += pid % 3 == 0
        assert torch.equal(out[pid], want + x[at : at + 4])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("tl.load(p, mask=True)", "not mask and other"), ("tl.load(p, boundary_check=(2,))", "axes of the tile"),
        ("tl.load(p, boundary_check=(0, 0))", "axes of the tile"), ("tl.store(p, tl.zeros((4,), tl.float32))", "shape"),
        ("tl.load(x_ptr, boundary_check=(0,))", "go with block pointers"), ("tl.advance(p, (1,))", "each of 2 axes"),
        ("tl.load(p, padding_option='one')", "'zero' or 'nan'"), ("tl.advance(x_ptr, (1,))", "needs a block pointer"),
        ("tl.make_block_ptr(x_ptr, (4, 4), (4, 1), (0, 0), (2, 2), (0, 0))", "order"),
        ("tl.make_block_ptr(x_ptr, (4, 4), (4, 1.5), (0, 0), (2, 2), (0, 1))", "integer"),
        ("tl.make_block_ptr(x_ptr, (4, 4), (4, 1), (0, 0), (2, 3), (0, 1))", "powers of two"),
        ("tl.store(x_ptr, 1.0, boundary_check=(0,))", "goes with block pointers"),
        ("tl.make_block_ptr(x_ptr + tl.arange(0, 2), (4,), (1,), (0,), (2,), (0,))", "one pointer"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(module_from, line, message):
    source = f"""
@triton.jit
def kernel(x_ptr):
    p = tl.make_block_ptr(x_ptr, (4, 4), (4, 1), (0, 0), (2, 2), (1, 0))
    {line}
"""
    with simulator.enabled(), pytest.raises(KernelTypeError, match=message):
        module_from(source).kernel[(1,)](torch.zeros(4, 4))
