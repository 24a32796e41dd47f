import pytest
import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from cme295lab import simulator
from cme295lab.simulator import KernelTypeError

HEAD = """
@triton.jit
def made_here(x_ptr, y_ptr, M, N, BM: tl.constexpr, BN: tl.constexpr, PADDING: tl.constexpr):
    x = tl.make_tensor_descriptor(x_ptr, shape=[M, N], strides=[N, 1], block_shape=[BM, BN], padding_option=PADDING)
    y = tl.make_tensor_descriptor(y_ptr, [M, N], [N, 1], [BM, BN])
    work(x, y)

@triton.jit
def passed(x_desc, y_desc):
    work(x_desc, y_desc)
"""
DOUBLE = """
@triton.jit
def work(x, y):
    row = tl.program_id(0) * x.block_shape[0]
    for column in range(0, x.shape[1], x.block_shape[1]):
        tile = x.load([row, column])
        tl.static_assert(tile.dtype == x.dtype)
        tl.static_assert(x.block_type.shape[0] == 16)
        tl.store_tensor_descriptor(y, [row, column], tl.load_tensor_descriptor(x, [row, column]) + tile)
"""


@pytest.mark.parametrize("where", ["kernel", "host"])
def test_tiles_over_the_edges_are_cut_off(module_from, where):
    module = module_from(DOUBLE + HEAD)
    x = torch.randn(50, 36).bfloat16()
    y = torch.zeros(53, 36, dtype=torch.bfloat16)
    with simulator.trace() as t:
        if where == "kernel":
            module.made_here[(4,)](x, y, 50, 36, BM=16, BN=16, PADDING="zero")
        else:
            descriptors = [TensorDescriptor(v, [50, 36], [36, 1], [16, 16]) for v in (x.float(), y.float())]
            module.passed[(4,)](*descriptors)
            x, y = (d.base for d in descriptors)
    assert torch.equal(y[:50], x + x)
    assert not y[50:].any()
    name = "x" if where == "kernel" else "x_desc"
    assert t.tensors[name].read_bytes == 2 * x.numel() * x.element_size()
    assert t.tensors[name].distinct_read_bytes == x.numel() * x.element_size()


def test_outside_reads_the_padding_and_negative_offsets_are_outside(module_from):
    source = """
@triton.jit
def work(x, y):
    y.store([0, 0], x.load([-1, 2]))
"""
    x, y = torch.arange(1.0, 25).reshape(3, 8), torch.zeros(4, 8)
    with simulator.enabled():
        kernel = module_from(source + HEAD.replace("y_ptr, [M, N]", "y_ptr, [M + 1, N]")).made_here
        kernel[(1,)](x, y, 3, 8, BM=4, BN=8, PADDING="nan")
    assert torch.isnan(y[0]).all()
    assert torch.isnan(y[:, 6:]).all()
    assert torch.equal(y[1:, :6], x[:, 2:])


@pytest.mark.parametrize(
    ("op", "want"), [("add", 16 * 3 + 5), ("max", 5), ("min", 3), ("and", 1), ("or", 7), ("xor", 5)]
)
def test_atomics_combine_all_programs(module_from, op, want):
    source = f"""
@triton.jit
def work(x, y):
    y.atomic_{op}([0, 0], x.load([0, 0]))
"""
    x, y = torch.full((4, 4), 3, dtype=torch.int32), torch.full((4, 4), 5, dtype=torch.int32)
    with simulator.enabled():
        module_from(source + HEAD).made_here[(16,)](x, y, 4, 4, BM=4, BN=4, PADDING="zero")
    assert (y == want).all()


def test_gather_and_scatter_rows(module_from):
    source = """
@triton.jit
def kernel(x_ptr, y_ptr, rows_ptr):
    x = tl.make_tensor_descriptor(x_ptr, [20, 16], [16, 1], [1, 8])
    y = tl.make_tensor_descriptor(y_ptr, [20, 16], [16, 1], [1, 8])
    rows = tl.load(rows_ptr + tl.arange(0, 8))
    y.scatter(x.gather(rows, 8), 19 - rows, 4)
"""
    x, y, rows = torch.randn(20, 16), torch.zeros(20, 16), torch.tensor([3, 0, 19, 7, 7, 25, 11, 2], dtype=torch.int32)
    with simulator.enabled():
        module_from(source).kernel[(1,)](x, y, rows)
    want = torch.zeros(20, 16)
    for row in rows.tolist():
        if row < 20:
            want[19 - row, 4:12] = x[row, 8:]
    assert torch.equal(y, want)


def test_a_descriptor_survives_programs_that_part(module_from):
    source = """
@triton.jit
def kernel(x_ptr, y_ptr, n):
    pid = tl.program_id(0)
    if pid % 2 == 0:
        x = tl.make_tensor_descriptor(x_ptr, [n, 4], [4, 1], [1, 4])
    else:
        x = tl.make_tensor_descriptor(x_ptr + 16, [n - 4, 4], [4, 1], [1, 4])
    total = tl.zeros((1, 4), tl.float32)
    for i in range(pid):
        total += x.load([i, 0])
    tl.store(y_ptr + pid * 4 + tl.arange(0, 4)[None, :], total)
"""
    x, y = torch.randn(8, 4), torch.zeros(6, 4)
    with simulator.enabled():
        module_from(source).kernel[(6,)](x, y, 8)
    padded = torch.cat([x, torch.zeros(8, 4)])
    want = torch.stack([padded[4 * (p % 2) :][:p].sum(0) for p in range(6)])
    torch.testing.assert_close(y, want)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("tl.make_tensor_descriptor(x_ptr, [4, 4], [4, 2], [2, 4])", "last stride"),
        ("tl.make_tensor_descriptor(x_ptr, [4, 4], [4, 1], [4, 2])", "16 bytes"),
        ("tl.make_tensor_descriptor(x_ptr, [4], [4, 1], [2, 4])", "each of 2 axes"),
        ("tl.make_tensor_descriptor(4, [4, 4], [4, 1], [2, 4])", "one pointer"),
        ("x.load([0])", "each of 2 axes"), ("x.store([0, 0], tl.zeros((4, 4), tl.float32))", "the descriptor's tiles"),
        ("x.gather(tl.arange(0, 8), 0)", "tiles of one row"), ("x.first", "no attribute 'first'"),
        ("tl.load_tensor_descriptor(x_ptr, [0, 0])", "expected a tensor descriptor"),
        ("tl.make_tensor_descriptor(x_ptr.to(tl.pointer_type(tl.int32), bitcast=True), [4, 4], [4, 1], [2, 4], 'nan')",
         "floating-point"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(module_from, line, message):
    source = f"""
@triton.jit
def kernel(x_ptr):
    x = tl.make_tensor_descriptor(x_ptr, [4, 4], [4, 1], [2, 4])
    {line}
"""
    with simulator.enabled(), pytest.raises(KernelTypeError, match=message):
        module_from(source).kernel[(1,)](torch.zeros(4, 4))
