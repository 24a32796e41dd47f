"""Addresses as numbers, and pointers that lead to different tensors in different programs."""

import pytest
import torch

from cme295lab import simulator
from cme295lab.simulator.errors import KernelTypeError, OutOfBoundsError, SimulatorError

GROUPED = """
@triton.jit
def kernel(a_table, b_table, c_table, sizes, groups, NUM_PROGRAMS: tl.constexpr, B: tl.constexpr):
    tile = tl.program_id(0)
    done = 0
    for g in range(groups):
        m, n, k = tl.load(sizes + g * 3), tl.load(sizes + g * 3 + 1), tl.load(sizes + g * 3 + 2)
        columns = tl.cdiv(n, B)
        tiles = tl.cdiv(m, B) * columns
        while tile >= done and tile < done + tiles:
            a = tl.load(a_table + g).to(tl.pointer_type(tl.float16))
            b = tl.cast(tl.load(b_table + g), tl.pointer_type(tl.float16))
            c = tl.load(c_table + g).to(tl.pointer_type(tl.float16))
            rows = (tile - done) // columns * B + tl.arange(0, B)
            cols = (tile - done) % columns * B + tl.arange(0, B)
            acc = tl.zeros((B, B), tl.float32)
            for first in range(0, k, B):
                inner = first + tl.arange(0, B)
                inside_a = (rows[:, None] < m) & (inner[None, :] < k)
                inside_b = (inner[:, None] < k) & (cols[None, :] < n)
                x = tl.load(a + rows[:, None] * k + inner[None, :], mask=inside_a, other=0)
                y = tl.load(b + inner[:, None] * n + cols[None, :], mask=inside_b, other=0)
                acc += tl.dot(x, y)
            inside = (rows[:, None] < m) & (cols[None, :] < n)
            tl.store(c + rows[:, None] * n + cols[None, :], acc.to(tl.float16), mask=inside)
            tile += NUM_PROGRAMS
        done += tiles
"""


def table(tensors, dtype=torch.int64):
    return torch.tensor([t.data_ptr() for t in tensors], dtype=dtype)


def test_a_grouped_product_reads_its_matrices_through_tables_of_addresses(module_from):
    torch.manual_seed(0)
    shapes = [(40, 33, 20), (16, 64, 48), (70, 10, 32)]
    a = [torch.randn(m, k).half() for m, n, k in shapes]
    b = [torch.randn(k, n).half() for m, n, k in shapes]
    c = [torch.zeros(m, n).half() for m, n, k in shapes]
    sizes = torch.tensor(shapes, dtype=torch.int32)
    with simulator.trace() as t:
        module_from(GROUPED).kernel[(5,)](table(a), table(b), table(c), sizes, 3, NUM_PROGRAMS=5, B=16)
    for x, y, z in zip(a, b, c, strict=True):
        torch.testing.assert_close(z, (x.float() @ y.float()).half(), atol=2e-2, rtol=1e-2)
    pointed = [v for name, v in t.tensors.items() if name.startswith("pointed_")]
    assert len(pointed) == 9
    assert sum(v.distinct_written_bytes for v in pointed) == sum(2 * m * n for m, n, _ in shapes)
    assert sum(v.distinct_read_bytes for v in pointed) == sum(2 * k * (m + n) for m, n, k in shapes)


SUM = """
@triton.jit
def kernel(table, out_ptr, N: tl.constexpr):
    pid = tl.program_id(0)
    x = tl.load(table + pid).to(tl.pointer_type(tl.{dtype}))
    tl.store(out_ptr + pid, tl.sum(tl.load(x + tl.arange(0, N)).to(tl.float32)))
    tl.store(x + pid, 1.0)
"""


@pytest.mark.parametrize("address", [torch.int64, torch.uint64])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8e5", "int8"])
def test_every_program_may_read_another_tensor(module_from, dtype, address):
    kind = {"float8e5": torch.float8_e5m2}.get(dtype) or getattr(torch, dtype)
    tensors = [torch.arange(i, i + 8).to(torch.float32).to(kind) for i in range(6)]
    before, out = [t.float().clone() for t in tensors], torch.zeros(6)
    order = [3, 3, 0, 5, 1, 0]  # neighbours that share a tensor, and programs that do not
    with simulator.trace(record=True) as t:
        module_from(SUM.format(dtype=dtype)).kernel[(6,)](table([tensors[i] for i in order], address), out, N=8)
    assert out.tolist()[:1] + out.tolist()[2:5] == [float(before[i].sum()) for i in (3, 0, 5, 1)]
    for program, i in enumerate(order):
        assert tensors[i][program].float() == 1.0
    assert sum(v.num_loads for n, v in t.tensors.items() if n.startswith("pointed_")) == 6


def test_an_address_that_is_in_an_argument_counts_for_it(module_from):
    x, out = torch.arange(8.0), torch.zeros(2)
    source = SUM.format(dtype="float32").replace("out_ptr, N", "out_ptr, x_ptr, N")
    with simulator.trace() as t:
        module_from(source).kernel[(2,)](table([x, x[2:]]), out, x[:4], N=4)
    assert t.tensors["x"].read_bytes == 2 * 4 * 4
    assert out.tolist() == [6.0, 14.0]


@pytest.mark.parametrize("programs", [1, 4])
def test_addresses_of_no_tensor_are_named(module_from, programs):
    x = torch.zeros(16)
    wrong = torch.tensor([64, *[x.data_ptr()] * 3])
    with (
        simulator.enabled(),
        pytest.raises(SimulatorError, match=r"made from the number 0x40, which is not an address"),
    ):
        module_from(SUM.format(dtype="float32")).kernel[(programs,)](wrong, torch.zeros(4), N=8)


def test_an_address_may_be_missing_where_it_is_not_used(module_from):
    source = """
@triton.jit
def kernel(table, out_ptr):
    pid = tl.program_id(0)
    address = tl.load(table + pid)
    x = address.to(tl.pointer_type(tl.float32))
    value = tl.load(x, mask=address != 0, other=-1.0)
    if address != 0:
        value += tl.load(x + 1)
    tl.store(out_ptr + pid, value)
"""
    x, out = torch.tensor([3.0, 4.0]), torch.zeros(3)
    with simulator.enabled():
        module_from(source).kernel[(3,)](torch.tensor([0, x.data_ptr(), 0]), out)
    assert out.tolist() == [-1.0, 7.0, -1.0]


def test_out_of_bounds_and_alignment_are_checked(module_from):
    x = torch.zeros(4)
    with simulator.enabled(), pytest.raises(OutOfBoundsError, match="pointed_0"):
        module_from(SUM.format(dtype="float32")).kernel[(1,)](table([x]), torch.zeros(1), N=8)
    with simulator.enabled(), pytest.raises(KernelTypeError, match="not aligned for fp32"):
        module_from(SUM.format(dtype="float32")).kernel[(1,)](table([x]) + 1, torch.zeros(1), N=4)


BLOCK_OF_POINTERS = """
@triton.jit
def kernel(table, out_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(table + i).to(tl.pointer_type(tl.float32))
    tl.store(out_ptr + i, tl.load(x + i) + tl.load(x, mask=i > 1, other=100.0))
    tl.store(x + i, -1.0, mask=i < 3)
    tl.atomic_add(x + 3, 5.0)
"""


def test_one_block_of_pointers_may_lead_to_several_tensors(module_from):
    tensors, out = [torch.arange(10.0 * k, 10.0 * k + 4) for k in range(4)], torch.zeros(4)
    with simulator.enabled():
        module_from(BLOCK_OF_POINTERS).kernel[(1,)](table(tensors), out, N=4)
    assert out.tolist() == [100.0, 111.0, 22.0 + 20, 33.0 + 30]
    want = [torch.arange(10.0 * k, 10.0 * k + 4) for k in range(4)]
    for k in range(4):
        want[k][3] += 5
        if k < 3:
            want[k][k] = -1
    assert all(torch.equal(a, b) for a, b in zip(tensors, want, strict=True))


CHOICES = {
    "branch": "if pid % 2 == 0:\n        p = x_ptr + pid\n    else:\n        p = y_ptr + 2 * pid",
    "where": "p = tl.where(pid % 2 == 0, x_ptr + pid, y_ptr + 2 * pid)",
    "expression": "p = x_ptr + pid if pid % 2 == 0 else y_ptr + 2 * pid",
    "loop": "p = x_ptr + pid\n    for i in range(pid % 2):\n        p = y_ptr + 2 * pid",
}


@pytest.mark.parametrize("how", sorted(CHOICES))
def test_a_pointer_may_be_chosen_between_tensors(module_from, how):
    source = f"""
@triton.jit
def kernel(x_ptr, y_ptr, out_ptr):
    pid = tl.program_id(0)
    {CHOICES[how]}
    i = tl.arange(0, 4)
    tl.store(out_ptr + pid * 4 + i, tl.load(p + i))
    tl.atomic_max(p + 3, 1000)
    tl.store(p, tl.atomic_xchg(p, 7) + 1)
"""
    x, y, out = torch.arange(16).int(), torch.arange(100, 120).int(), torch.zeros(6, 4).int()
    with simulator.trace() as t:
        module_from(source).kernel[(6,)](x, y, out)
    wanted_x, wanted_y = torch.arange(16).int(), torch.arange(100, 120).int()
    for pid in range(6):
        memory, at = (wanted_x, pid) if pid % 2 == 0 else (wanted_y, 2 * pid)
        assert torch.equal(out[pid], memory[at : at + 4])
        memory[at + 3], memory[at] = 1000, memory[at] + 1
    assert torch.equal(x, wanted_x)
    assert torch.equal(y, wanted_y)
    assert t.tensors["x"].num_loads == 3 + 3 * 2


def test_a_pointer_as_a_number_and_back(module_from):
    source = """
@triton.jit
def kernel(x_ptr, address_ptr, out_ptr):
    i = tl.arange(0, 4)
    address = (x_ptr + i).to(tl.int64)
    tl.store(address_ptr + i, address)
    tl.store(out_ptr + i, tl.load((address + 4).to(tl.pointer_type(tl.float32))))
    tl.static_assert(x_ptr.to(tl.uint64).dtype == tl.uint64)
    tl.device_assert(x_ptr.to(tl.int1))
"""
    x, addresses, out = torch.arange(8.0)[1:], torch.zeros(4, dtype=torch.int64), torch.zeros(4)
    with simulator.enabled():
        module_from(source).kernel[(1,)](x, addresses, out)
    assert addresses.tolist() == [x.data_ptr() + 4 * i for i in range(4)]
    assert out.tolist() == [2, 3, 4, 5]


def test_pointers_to_other_widths(module_from):
    source = """
@triton.jit
def kernel(x_ptr, bytes_ptr, words_ptr):
    i = tl.arange(0, 16)
    tl.store(bytes_ptr + i, tl.load((x_ptr + 1).to(tl.pointer_type(tl.uint8), bitcast=True) + i))
    back = (x_ptr.to(tl.pointer_type(tl.uint8)) + 4 + i * 4).to(tl.pointer_type(tl.int32))
    tl.store(words_ptr + i, tl.load(back))
"""
    x = torch.arange(20).int() * 0x01010101
    found, words = torch.zeros(16, dtype=torch.uint8), torch.zeros(16, dtype=torch.int32)
    with simulator.enabled():
        module_from(source).kernel[(1,)](x, found, words)
    assert torch.equal(found, x[1:5].view(torch.uint8))
    assert torch.equal(words, x[1:17])
    wrong = source.replace("+ 4 + i * 4", "+ 2 + i * 4")
    with simulator.enabled(), pytest.raises(KernelTypeError, match="not aligned for int32"):
        module_from(wrong).kernel[(1,)](x, found, words)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x_ptr.to(tl.int32)", "a 64-bit integer or another pointer, not to int32"),
        ("tl.program_id(0).to(tl.pointer_type(tl.float32))", "an address is a 64-bit integer, got int32"),
    ],
)
def test_wrong_conversions_are_named(module_from, line, message):
    source = f"@triton.jit\ndef kernel(x_ptr):\n    {line}\n"
    with simulator.enabled(), pytest.raises(KernelTypeError, match=message):
        module_from(source).kernel[(1,)](torch.zeros(4))
