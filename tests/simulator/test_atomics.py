"""Atomic operations: results, old values, order."""

import itertools
import operator

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from cme295lab import simulator
from cme295lab.simulator import KernelTypeError, SimulatorError, launch

INTEGERS = [torch.int32, torch.int64, torch.uint32]
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
ARITHMETIC = ["add", "max", "min", "xchg"]
OPERATIONS = [*ARITHMETIC, "and", "or", "xor"]


@triton.jit
def histogram_kernel(counts_ptr, x_ptr, n, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    bin = tl.load(x_ptr + place, mask=place < n, other=0)
    tl.atomic_add(counts_ptr + bin, 1, mask=place < n)


@pytest.mark.parametrize("dtype", [d for d in (*INTEGERS, *FLOATS) if d.itemsize > 2 or d.is_floating_point])
def test_histogram(dtype):
    x = torch.randint(0, 7, (1000,), dtype=torch.int32)
    counts = torch.zeros(7, dtype=dtype)
    with simulator.enabled():
        histogram_kernel[(triton.cdiv(1000, 64),)](counts, x, 1000, BLOCK=64)
    assert counts.tolist() == torch.bincount(x, minlength=7).tolist()  # each count < 256: exact in all types


@triton.jit
def operation_kernel(memory_ptr, x_ptr, old_ptr, OP: tl.constexpr, USED: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + place)
    slot = memory_ptr + place % 3
    mask = place % 5 != 4
    if not USED:
        if OP == "add":
            tl.atomic_add(slot, x, mask=mask)
        elif OP == "max":
            tl.atomic_max(slot, x, mask=mask)
        elif OP == "min":
            tl.atomic_min(slot, x, mask=mask)
        elif OP == "and":
            tl.atomic_and(slot, x, mask=mask)
        elif OP == "or":
            tl.atomic_or(slot, x, mask=mask)
        elif OP == "xor":
            tl.atomic_xor(slot, x, mask=mask)
        else:
            tl.atomic_xchg(slot, x, mask=mask)
        return
    if OP == "add":
        old = tl.atomic_add(slot, x, mask=mask)
    elif OP == "max":
        old = tl.atomic_max(slot, x, mask=mask, sem="relaxed")
    elif OP == "min":
        old = tl.atomic_min(slot, x, mask=mask, scope="cta")
    elif OP == "and":
        old = tl.atomic_and(slot, x, mask=mask)
    elif OP == "or":
        old = tl.atomic_or(slot, x, mask=mask)
    elif OP == "xor":
        old = tl.atomic_xor(slot, x, mask=mask)
    else:
        old = tl.atomic_xchg(slot, x, mask=mask)
    tl.store(old_ptr + place, old, mask=mask)


def applied(op, old, new):
    functions = {
        "add": operator.add,
        "max": max,
        "min": min,
        "and": operator.and_,
        "or": operator.or_,
        "xor": operator.xor,
    }
    return functions.get(op, lambda _, value: value)(old, new)


@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize(
    ("dtype", "op"),
    [
        (dtype, op)
        for dtype, op in [*itertools.product(INTEGERS, OPERATIONS), *itertools.product(FLOATS, ARITHMETIC)]
        if dtype.itemsize > 2 or (op == "add" and dtype.is_floating_point)
    ],
)
def test_operations_in_program_order(dtype, op, used):
    x = torch.randint(0, 50, (32,)).to(dtype)
    memory, old = torch.full((3,), 9).to(dtype), torch.full((32,), 77).to(dtype)
    want, seen = memory.tolist(), old.tolist()
    for i, value in enumerate(x.tolist()):
        if i % 5 != 4:
            seen[i] = want[i % 3]
            want[i % 3] = torch.tensor(applied(op, want[i % 3], value)).to(dtype).item()
    with simulator.enabled():
        operation_kernel[(4,)](memory, x, old, OP=op, USED=used, BLOCK=8)
    assert memory.tolist() == want
    assert old.tolist() == (seen if used else [77] * 32)


@triton.jit
def ticket_kernel(counter_ptr, tickets_ptr, last_ptr, n):
    pid = tl.program_id(0)
    ticket = tl.atomic_add(counter_ptr, 1)
    tl.store(tickets_ptr + pid, ticket)
    if ticket == n - 1:
        tl.store(last_ptr, pid)


def test_tickets_are_given_in_program_order():
    counter, tickets, last = torch.zeros(1, dtype=torch.int32), torch.zeros(20, dtype=torch.int32), torch.zeros(1)
    with simulator.enabled():
        ticket_kernel[(20,)](counter, tickets, last, 20)
    assert tickets.tolist() == list(range(20))
    assert (counter.item(), last.item()) == (20, 19)


@triton.jit
def lock_kernel(lock_ptr, total_ptr, x_ptr, BLOCK: tl.constexpr):
    while tl.atomic_cas(lock_ptr, 0, 1) == 1:
        pass
    lane = tl.arange(0, BLOCK)
    total = tl.load(total_ptr + lane)
    tl.store(total_ptr + lane, total + tl.load(x_ptr + tl.program_id(0) * BLOCK + lane))
    tl.atomic_xchg(lock_ptr, 0)


@triton.jit
def acquire(lock_ptr):
    while tl.atomic_cas(lock_ptr, 0, 1) == 1:
        pass


@triton.jit
def release(lock_ptr):
    tl.atomic_xchg(lock_ptr, 0)


@triton.jit
def lock_in_functions_kernel(lock_ptr, total_ptr, x_ptr, BLOCK: tl.constexpr):
    acquire(lock_ptr)
    lane = tl.arange(0, BLOCK)
    total = tl.load(total_ptr + lane)
    tl.store(total_ptr + lane, total + tl.load(x_ptr + tl.program_id(0) * BLOCK + lane))
    release(lock_ptr)


@pytest.mark.parametrize("kernel", [lock_kernel, lock_in_functions_kernel])
def test_a_spin_lock_excludes(kernel):
    x, total, lock = torch.ones(12, 4), torch.zeros(4), torch.zeros(1, dtype=torch.int32)
    with simulator.enabled():
        kernel[(12,)](lock, total, x, BLOCK=4)
    assert total.tolist() == [12.0] * 4
    assert lock.item() == 0


@triton.jit
def cas_kernel(memory_ptr, old_ptr):
    pid = tl.program_id(0)
    tl.store(old_ptr + pid, tl.atomic_cas(memory_ptr, pid, pid + 1))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_compare_and_swap_returns_what_was_there(dtype):
    memory, old = torch.zeros(1, dtype=dtype), torch.zeros(6, dtype=dtype)
    with simulator.enabled():
        cas_kernel[(6,)](memory, old)
    assert old.tolist() == [0, 1, 2, 3, 4, 5]
    assert memory.item() == 6


def test_compare_and_swap_changes_nothing_where_the_value_differs():
    memory, old = torch.full((1,), 3, dtype=torch.int32), torch.zeros(6, dtype=torch.int32)
    with simulator.enabled():
        cas_kernel[(6,)](memory, old)
    assert old.tolist() == [3, 3, 3, 3, 4, 5]
    assert memory.item() == 6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_sums_round_after_every_addition(dtype):
    x = torch.zeros(4096, dtype=torch.int32)
    counts = torch.zeros(1, dtype=dtype)
    with simulator.enabled():
        histogram_kernel[(64,)](counts, x, 4096, BLOCK=64)
    assert counts.item() == {torch.float16: 2048, torch.bfloat16: 256}[dtype]  # n + 1 is a tie, and rounds down to n


def test_atomics_on_fp8_are_an_error():
    with pytest.raises(KernelTypeError, match="fp8"), simulator.enabled():
        histogram_kernel[(1,)](torch.zeros(7, dtype=torch.float8_e5m2), torch.zeros(4, dtype=torch.int32), 4, BLOCK=4)


@triton.jit
def scalar_value_kernel(memory_ptr, BLOCK: tl.constexpr):
    tl.atomic_add(memory_ptr + tl.program_id(0) % 2, tl.sum(tl.arange(0, BLOCK)))
    tl.atomic_max(memory_ptr + 2, tl.program_id(0) * 1.0)


def test_scalars():
    memory = torch.zeros(3)
    with simulator.enabled():
        scalar_value_kernel[(5,)](memory, BLOCK=4)
    assert memory.tolist() == [18.0, 12.0, 4.0]


@triton.jit
def branch_kernel(counter_ptr, out_ptr):
    pid = tl.program_id(0)
    if pid % 3 == 0:
        tl.store(out_ptr + pid, tl.atomic_add(counter_ptr, 1))
    else:
        tl.store(out_ptr + pid, tl.atomic_add(counter_ptr + 1, 2))


def test_atomics_of_some_programs():
    counter, out = torch.zeros(2, dtype=torch.int32), torch.zeros(8, dtype=torch.int32)
    with simulator.enabled():
        branch_kernel[(8,)](counter, out)
    assert counter.tolist() == [3, 10]
    assert out.tolist() == [0, 0, 2, 1, 4, 6, 2, 8]


@pytest.mark.parametrize("budget", [1, 1 << 20])
def test_atomics_do_not_depend_on_the_size_of_a_batch(budget):
    memory, old = torch.tensor([9, 9, 9]), torch.zeros(64, dtype=torch.int64)
    x = torch.from_numpy(np.random.default_rng(0).integers(-99, 99, 64))
    arguments = {"OP": "add", "USED": True, "BLOCK": 8}
    launch.launch(operation_kernel, (8,), (memory, x, old), arguments, launch.Settings(element_budget=budget))
    want, seen = [9, 9, 9], [0] * 64
    for i, value in enumerate(x.tolist()):
        if i % 5 != 4:
            seen[i] = want[i % 3]
            want[i % 3] += value
    assert (memory.tolist(), old.tolist()) == (want, seen)


@pytest.mark.parametrize(
    ("dtype", "op"),
    [
        (torch.int8, "add"), (torch.uint8, "max"), (torch.int16, "add"), (torch.float16, "max"),
        (torch.bfloat16, "min"),
        (torch.float16, "xchg"), (torch.float32, "and"), (torch.float64, "xor"),
    ],
)  # fmt: skip
def test_what_the_compiler_refuses_is_refused(module_from, dtype, op):
    source = f"@triton.jit\ndef kernel(x_ptr):\n    tl.atomic_{op}(x_ptr, 1)\n"
    with (
        simulator.enabled(),
        pytest.raises(KernelTypeError, match=f"atomic_{op} (does not support|needs integers)"),
    ):
        module_from(source).kernel[(1,)](torch.zeros(1, dtype=dtype))


def test_atomic_loads_stores_and_polls(module_from):
    source = """
@triton.jit
def kernel(flags_ptr, out_ptr):
    pid = tl.program_id(0)
    if pid > 0:
        tl.atomic_poll(flags_ptr + pid - 1, 7)
    late = tl.atomic_poll(flags_ptr + pid, 7, timeout_ns=0)
    tl.atomic_store(out_ptr + pid, tl.atomic_load(flags_ptr + pid) + late.to(tl.int32), sem="relaxed")
    tl.atomic_store(flags_ptr + pid, 7)
"""
    flags, out = torch.tensor([0, 1, 2, 7]).int(), torch.zeros(4).int()
    with simulator.enabled():
        module_from(source).kernel[(4,)](flags, out)
    assert flags.tolist() == [7] * 4
    assert out.tolist() == [0, 1, 2, 8]
    with (
        simulator.enabled(),
        pytest.raises(SimulatorError, match="waits for a value that no earlier program has stored"),
    ):
        module_from(source.replace("pid - 1", "3")).kernel[(4,)](torch.zeros(4).int(), out)


@triton.jit
def add_at_kernel(x_ptr, y_ptr, o_ptr, USED: tl.constexpr):
    lane = tl.arange(0, 4)
    x = tl.load(x_ptr + lane)
    if USED:
        tl.store(o_ptr + lane, tl.atomic_add(y_ptr + lane, x))
    else:
        tl.atomic_add(y_ptr + lane, x)


@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_infinities_and_overflow_give_no_warning(used, dtype):
    """Warnings are errors in the tests."""
    large, inf = torch.finfo(dtype).max, float("inf")
    x, y = torch.tensor([inf, -inf, large, 1.0]).to(dtype), torch.tensor([inf, inf, large, 2.0]).to(dtype)
    with simulator.enabled():
        add_at_kernel[(1,)](x, y, torch.zeros(4, dtype=dtype), USED=used)
    torch.testing.assert_close(y, torch.tensor([inf, float("nan"), inf, 3.0]).to(dtype), equal_nan=True)
