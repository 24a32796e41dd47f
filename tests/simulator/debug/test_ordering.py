"""What atomics on single addresses order."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from cme295lab import simulator
from cme295lab.simulator.debug.ordering import Order

LOCK, OTHER = 100, 200


def order(*events):
    """Atomics, one a moment: (programs, address, used)."""
    made = Order()
    for programs, address, used in events:
        made.add(np.array(programs), np.full(len(programs), address), used=used)
    return made


def test_a_release_before_an_acquire_orders_what_lies_around_them():
    made = order(([0], LOCK, False), ([1], LOCK, True))
    assert made.between(0, 0, 1, 2)
    assert not made.between(0, 1, 1, 2)  # program 0's access came after its atomic
    assert not made.between(0, 0, 1, 1)  # program 1's access came before its own


def test_the_acquire_must_come_after_the_release():
    made = order(([1], LOCK, True), ([0], LOCK, True))
    assert not made.between(0, 0, 1, 2)


def test_within_one_atomic_programs_come_in_order():
    made = order(([0, 1, 2], LOCK, True))
    assert made.between(0, 0, 2, 1)
    assert not made.between(2, 0, 0, 1)


def test_other_addresses_order_nothing():
    assert not order(([0], LOCK, False), ([1], OTHER, True)).between(0, 0, 1, 2)


def test_an_atomic_whose_result_nobody_uses_orders_nothing():
    made = order(([0], LOCK, False), ([1], LOCK, False), ([2], LOCK, True))
    assert not made.between(0, 0, 1, 3)
    assert made.between(0, 0, 2, 3)


def test_nothing_is_ordered_before_any_atomic():
    assert not Order().between(0, 0, 1, 0)


@triton.jit
def counted_kernel(x_ptr, count_ptr, seen_ptr, USED: tl.constexpr):
    """Everybody stores to the next one's element, counts, and stores to its own: only a count that is used orders."""
    pid = tl.program_id(0)
    tl.store(x_ptr + pid + 1, pid)
    if USED:
        seen = tl.atomic_add(count_ptr, 1)
        tl.store(seen_ptr + pid, seen)
    else:
        tl.atomic_add(count_ptr, 1)
        tl.store(seen_ptr + pid, tl.atomic_add(count_ptr + 1 + pid, 1))
    tl.store(x_ptr + pid, -pid)


@pytest.mark.parametrize("used", [True, False])
def test_a_count_that_nobody_looks_at_orders_nothing(used):
    for _ in range(2):  # the first launch runs its first program alone
        x, count = torch.zeros(5, dtype=torch.int32), torch.zeros(5, dtype=torch.int32)
        with simulator.trace(check=True) as t:
            counted_kernel[(4,)](x, count, torch.zeros(4, dtype=torch.int32), USED=used)
        assert bool(t.problems) != used
        assert {p.tensor for p in t.problems} <= {"x"}
