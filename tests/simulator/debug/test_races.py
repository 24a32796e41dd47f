"""The race detector: kernels with a race, kernels without, and a set-based oracle for random accesses."""

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings

from cme295lab import simulator
from cme295lab.simulator.debug import races
from cme295lab.simulator.debug import shadow as shadow_module
from cme295lab.simulator.launch import Settings, launch


@triton.jit
def histogram_kernel(x_ptr, bins_ptr, n, ATOMIC: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    x = tl.load(x_ptr + at, mask=mask)
    if ATOMIC:
        tl.atomic_add(bins_ptr + x, 1, mask=mask)
    else:
        seen = tl.load(bins_ptr + x, mask=mask)
        tl.store(bins_ptr + x, seen + 1, mask=mask)


@triton.jit
def tiles_kernel(o_ptr, stride, STEP: tl.constexpr, BLOCK: tl.constexpr):
    """Tiles of BLOCK x BLOCK, STEP apart: with STEP < BLOCK they overlap."""
    rows = tl.program_id(0) * STEP + tl.arange(0, BLOCK)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    value = tl.program_id(0) + tl.zeros([BLOCK, BLOCK], tl.float32)
    tl.store(o_ptr + rows[:, None] * stride + cols[None, :], value)


@triton.jit
def split_k_kernel(a_ptr, b_ptr, c_ptr, k, ATOMIC: tl.constexpr, BLOCK: tl.constexpr):
    """C = A B, each program a part of the inner sum."""
    i = tl.arange(0, BLOCK)
    inner = tl.program_id(0) * BLOCK + i
    a = tl.load(a_ptr + i[:, None] * k + inner[None, :])
    b = tl.load(b_ptr + inner[:, None] * BLOCK + i[None, :])
    part = tl.dot(a, b)
    c = c_ptr + i[:, None] * BLOCK + i[None, :]
    if ATOMIC:
        tl.atomic_add(c, part)
    else:
        tl.store(c, tl.load(c) + part)


@triton.jit
def halo_kernel(x_ptr, o_ptr, n, BLOCK: tl.constexpr):
    """Each element becomes the mean of its neighbours."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    left = tl.load(x_ptr + at - 1, mask=(at > 0) & (at < n), other=0.0)
    right = tl.load(x_ptr + at + 1, mask=at + 1 < n, other=0.0)
    tl.store(o_ptr + at, (left + right) / 2, mask=at < n)


@triton.jit
def flag_kernel(flag_ptr, value):
    tl.store(flag_ptr, value)


@triton.jit
def columns_kernel(o_ptr, STRIDE: tl.constexpr):
    """Rows of four numbers, STRIDE apart: with STRIDE < 4 the rows of one program overlap."""
    i = tl.arange(0, 4)
    tl.store(o_ptr + i[:, None] * STRIDE + i[None, :], i[:, None] + tl.zeros([4, 4], tl.int32))


@triton.jit
def mixed_kernel(o_ptr):
    pid = tl.program_id(0)
    if pid == 0:
        tl.store(o_ptr, 1.0)
    else:
        tl.atomic_add(o_ptr, 1.0)


def problems(kernel, grid, *args, notes=False, **constants):
    with simulator.trace(check=True) as t:
        kernel[grid](*args, **constants)
    return list(t.notes if notes else t.problems)


X = torch.tensor([3, 1, 3, 0, 5, 3, 1, 2], dtype=torch.int32)


def test_a_histogram_without_atomics_races():
    found = problems(histogram_kernel, (2,), X, torch.zeros(8, dtype=torch.int32), 8, ATOMIC=False, BLOCK=4)
    assert {p.kind for p in found} == {"race"}
    assert {p.tensor for p in found} == {"bins"}
    race = next(p for p in found if "loads" in p.message)
    # program 0 counts 3 (twice), 1 and 0; program 1 counts 5, 3, 1 and 2: they meet at 3 and 1
    assert race.index in {(3,), (1,)}
    assert set(race.programs) == {(0, 0, 0), (1, 0, 0)}
    assert race.source == "tl.store(bins_ptr + x, seen + 1, mask=mask)"
    assert race.file == "test_races.py"
    reader, writer = race.programs
    assert f"race in kernel histogram_kernel: program {reader} loads and program {writer} stores bins[" in race.message
    assert (
        f"program {reader}: line {race.line - 1} of test_races.py\n    --> seen = tl.load(bins_ptr + x" in race.message
    )
    assert f"program {writer}: line {race.line} of test_races.py\n    --> tl.store(bins_ptr + x" in race.message
    assert "use tl.atomic_add" in race.message


def test_counts_that_are_lost_in_the_same_way_are_no_harmless_note():
    """Both programs read 0 and store 1."""
    bins = torch.zeros(8, dtype=torch.int32)
    with simulator.trace(check=True) as t:
        histogram_kernel[(2,)](X, bins, 8, ATOMIC=False, BLOCK=4)
        histogram_kernel[(2,)](X, bins.zero_(), 8, ATOMIC=False, BLOCK=4)
    assert bins.max() < 3
    assert t.problems
    assert not t.notes


def test_a_histogram_with_atomics_does_not():
    bins = torch.zeros(8, dtype=torch.int32)
    assert not problems(histogram_kernel, (2,), X, bins, 8, ATOMIC=True, BLOCK=4)
    assert bins.tolist() == [1, 2, 1, 3, 0, 1, 0, 0]


def test_overlapping_output_tiles_race():
    o = torch.zeros(64, 32)
    assert not problems(tiles_kernel, (4, 2), o, 32, STEP=16, BLOCK=16)
    found = problems(tiles_kernel, (4, 2), o, 32, STEP=8, BLOCK=16)
    assert len(found) == 1
    assert (found[0].tensor, found[0].index) == ("o", (8, 0))
    assert found[0].programs == ((0, 0, 0), (1, 0, 0))
    assert found[0].count == 3 * 2 * 8 * 16  # neighbours share 8 rows of 16 numbers
    assert "each program must own its output block" in found[0].message


def test_split_k_without_atomics_races():
    a, b = torch.randn(16, 64), torch.randn(64, 16)
    found = problems(split_k_kernel, (4,), a, b, torch.zeros(16, 16), 64, ATOMIC=False, BLOCK=16)
    assert {p.tensor for p in found} == {"c"}
    assert any("use tl.atomic_add" in p.message for p in found)
    assert not problems(split_k_kernel, (4,), a, b, torch.zeros(16, 16), 64, ATOMIC=True, BLOCK=16)


def test_a_stencil_in_place_races_where_blocks_meet():
    x = torch.arange(16.0)
    found = problems(halo_kernel, (4,), x, x, 16, BLOCK=4)
    assert len(found) == 2
    for p in found:  # a neighbour's outermost element is read by one and written by the other
        (reader, _, _), (writer, _, _) = p.programs
        assert p.index in {((writer + 1) * 4 - 1,), (writer * 4,)}
        assert abs(reader - writer) == 1
        assert p.source.startswith("tl.store(o_ptr")
    assert all("write to another tensor than the one that is read, or use two launches" in p.message for p in found)
    assert not problems(halo_kernel, (4,), torch.arange(16.0), torch.zeros(16), 16, BLOCK=4)


def test_views_of_one_memory_are_one_memory():
    """The output is the input, one element further on; and the same as bytes."""
    memory = torch.zeros(32)
    found = problems(halo_kernel, (2,), memory[:16], memory[8:24], 16, BLOCK=8)
    assert found
    assert not problems(halo_kernel, (2,), memory[:16], memory[16:], 16, BLOCK=8)
    bytes_of = memory.view(torch.uint8)
    assert problems(histogram_kernel, (2,), X, bytes_of.view(torch.int16), 8, ATOMIC=False, BLOCK=4)


@triton.jit
def two_sizes_kernel(wide_ptr, narrow_ptr, WHERE: tl.constexpr):
    if tl.program_id(0) == 0:
        tl.store(wide_ptr + 1, 7)
    else:
        tl.store(narrow_ptr + WHERE, 1)


@pytest.mark.parametrize(("where", "races_"), [(3, False), (4, True), (7, True), (8, False)])
def test_accesses_of_different_sizes_meet_byte_by_byte(where, races_):
    wide = torch.zeros(4, dtype=torch.int32)
    found = problems(two_sizes_kernel, (2,), wide, wide.view(torch.int8), WHERE=where)
    assert bool(found) == races_


def test_one_value_by_all_is_a_note():
    assert not problems(flag_kernel, (3,), torch.zeros(1), 1.0)
    notes = problems(flag_kernel, (3,), torch.zeros(1), 1.0, notes=True)
    assert len(notes) == 1
    assert "stores flag[0] with the same value" in notes[0].message


def test_lanes_of_one_program_that_store_different_values():
    assert not problems(columns_kernel, (1,), torch.zeros(32, dtype=torch.int32), STRIDE=4)
    found = problems(columns_kernel, (1,), torch.zeros(32, dtype=torch.int32), STRIDE=2)
    assert len(found) == 1
    assert found[0].programs == ((0, 0, 0), (0, 0, 0))
    assert "program (0, 0, 0) stores different values to o[2] from several lanes of one tl.store" in found[0].message
    assert "check the strides" in found[0].message


@triton.jit
def one_number_kernel(o_ptr, SAME: tl.constexpr):
    lane = tl.arange(0, 8)
    tl.store(o_ptr + lane * 0, lane if not SAME else lane * 0 + 3)


def test_lanes_of_one_program_may_store_one_value_to_one_element():
    assert problems(one_number_kernel, (1,), torch.zeros(1, dtype=torch.int32), SAME=False)
    assert not problems(one_number_kernel, (1,), torch.zeros(1, dtype=torch.int32), SAME=True)
    assert not problems(one_number_kernel, (1,), torch.zeros(1, dtype=torch.int32), SAME=True, notes=True)


def test_an_atomic_and_a_plain_store_race():
    found = problems(mixed_kernel, (3,), torch.zeros(1))
    assert len(found) == 1
    assert "an atomic is safe only against other atomics" in found[0].message


def test_a_program_may_read_what_it_has_written(module_from):
    source = (
        "@triton.jit\ndef kernel(x_ptr):\n    at = tl.program_id(0) * 8 + tl.arange(0, 8)\n"
        "    for _ in range(3):\n        tl.store(x_ptr + at, tl.load(x_ptr + at) + 1)\n"
        "    tl.atomic_add(x_ptr + at, 1.0)\n"
    )
    x = torch.zeros(32)
    assert not problems(module_from(source).kernel, (4,), x)
    assert (x == 4).all()


# ---- kernels that order their programs


@triton.jit
def locked_sum_kernel(x_ptr, total_ptr, lock_ptr, LOCK: tl.constexpr):
    x = tl.load(x_ptr + tl.program_id(0))
    if LOCK:
        while tl.atomic_cas(lock_ptr, 0, 1) == 1:
            pass
    tl.store(total_ptr, tl.load(total_ptr) + x)
    if LOCK:
        tl.atomic_xchg(lock_ptr, 0)


@triton.jit
def early_release_kernel(x_ptr, total_ptr, lock_ptr):
    x = tl.load(x_ptr + tl.program_id(0))
    while tl.atomic_cas(lock_ptr, 0, 1) == 1:
        pass
    total = tl.load(total_ptr)
    tl.atomic_xchg(lock_ptr, 0)
    tl.store(total_ptr, total + x)


@triton.jit
def last_one_adds_kernel(x_ptr, part_ptr, count_ptr, out_ptr, n, COUNT_FIRST: tl.constexpr, BLOCK: tl.constexpr):
    """Every program stores a part; the one that finds all others done adds them up."""
    pid = tl.program_id(0)
    part = tl.sum(tl.load(x_ptr + pid * BLOCK + tl.arange(0, BLOCK)))
    done = 0
    if COUNT_FIRST:
        done = tl.atomic_add(count_ptr, 1)
    tl.store(part_ptr + pid, part)
    if not COUNT_FIRST:
        done = tl.atomic_add(count_ptr, 1)
    if done == n - 1:
        lane = tl.arange(0, 8)
        tl.store(out_ptr, tl.sum(tl.load(part_ptr + lane, mask=lane < n, other=0.0)))


@triton.jit
def first_comes_kernel(lock_ptr, count_ptr, sums_ptr, x_ptr, NUM_LOCKS: tl.constexpr, BLOCK: tl.constexpr):
    """Rows added to a few partial sums, each under its lock; the first one only stores."""
    row = tl.program_id(0)
    mine = row % NUM_LOCKS
    lane = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * BLOCK + lane)
    while tl.atomic_cas(lock_ptr + mine, 0, 1) == 1:
        pass
    sums = sums_ptr + mine * BLOCK + lane
    if tl.load(count_ptr + mine) == 0:
        tl.atomic_xchg(count_ptr + mine, 1)
    else:
        x += tl.load(sums)
    tl.store(sums, x)
    tl.debug_barrier()
    tl.atomic_xchg(lock_ptr + mine, 0)


def test_accesses_under_a_lock_are_ordered():
    x, zero = torch.arange(6.0), torch.zeros(1, dtype=torch.int32)
    total = torch.zeros(1)
    assert not problems(locked_sum_kernel, (6,), x, total, zero, LOCK=True)
    assert total == 15
    assert problems(locked_sum_kernel, (6,), x, total, zero, LOCK=False)


def test_a_lock_that_is_released_too_early_orders_nothing():
    found = problems(early_release_kernel, (6,), torch.arange(6.0), torch.zeros(1), torch.zeros(1, dtype=torch.int32))
    assert any(p.source == "tl.store(total_ptr, total + x)" for p in found)


def test_the_last_program_may_read_what_the_others_stored_before_they_counted():
    x, zero = torch.arange(64.0), lambda: torch.zeros(1, dtype=torch.int32)
    out = torch.zeros(1)
    args = (x, torch.zeros(8), zero(), out, 8)
    assert not problems(last_one_adds_kernel, (8,), *args, COUNT_FIRST=False, BLOCK=8)
    assert out == x.sum()
    args = (x, torch.zeros(8), zero(), out, 8)
    found = problems(last_one_adds_kernel, (8,), *args, COUNT_FIRST=True, BLOCK=8)
    assert {p.tensor for p in found} == {"part"}


def test_partial_sums_under_several_locks_are_ordered():
    x = torch.randn(12, 16)
    lock, count, sums = torch.zeros(3, dtype=torch.int32), torch.zeros(3, dtype=torch.int32), torch.zeros(3, 16)
    assert not problems(first_comes_kernel, (12,), lock, count, sums, x, NUM_LOCKS=3, BLOCK=16)
    torch.testing.assert_close(sums.sum(0), x.sum(0))


# ---- against a brute-force oracle


@triton.jit
def random_kernel(x_ptr, load_ptr, store_ptr, atomic_ptr, value_ptr, TIMES: tl.constexpr, LANES: tl.constexpr):
    """Loads, stores and atomics at given elements; a negative one is masked out."""
    pid = tl.program_id(0)
    lane = tl.arange(0, LANES)
    total = 0
    for turn in range(TIMES):
        at = (pid * TIMES + turn) * LANES + lane
        index = tl.load(load_ptr + at)
        total += tl.sum(tl.load(x_ptr + index, mask=index >= 0, other=0))
        index = tl.load(store_ptr + at)
        tl.store(x_ptr + index, tl.load(value_ptr + at), mask=index >= 0)
        index = tl.load(atomic_ptr + at)
        tl.atomic_add(x_ptr + index, 1, mask=index >= 0)


@triton.jit
def random_rows_kernel(x_ptr, load_ptr, store_ptr, TIMES: tl.constexpr, ROWS: tl.constexpr, LENGTH: tl.constexpr):
    """Loads and stores of rows that begin at given elements; a negative one is masked out."""
    pid = tl.program_id(0)
    row = tl.arange(0, ROWS)
    for turn in range(TIMES):
        start = tl.load(load_ptr + (pid * TIMES + turn) * ROWS + row)
        at = start[:, None] + tl.arange(0, LENGTH)[None, :]
        x = tl.load(x_ptr + at, mask=start[:, None] >= 0, other=0)
        start = tl.load(store_ptr + (pid * TIMES + turn) * ROWS + row)
        at = start[:, None] + tl.arange(0, LENGTH)[None, :]
        tl.store(x_ptr + at, x * 0 + pid, mask=start[:, None] >= 0)


def racing(accesses, num_elements):
    """The elements that two programs touch, at least one of them writing, and not both atomically."""
    found = set()
    for element in range(num_elements):
        here = [(program, kind) for program, kind, touched in accesses if element in touched]
        for (p, first), (q, second) in itertools.combinations(set(here), 2):
            if p != q and {first, second} not in ({"load"}, {"atomic"}):
                found.add(element)
    return found


def marked(kernel, args, constants, grid, budget):
    """The elements of x that the detector reports, of all instructions together."""
    detector = races.RaceDetector()
    seen = set()
    report = detector._report

    def spy(conflict, touch, site, storage, factor):
        if site.tensor == "x":
            between = conflict.earlier % grid[0] != touch.programs.reshape(-1)[conflict.lanes // touch.runs.length]
            seen.update(touch.runs.element(int(lane)) // factor for lane in conflict.lanes[between])
        report(conflict, touch, site, storage, factor)

    detector._report = spy
    launch(kernel, grid, args, constants, Settings(counting=True, observers=(detector,), element_budget=budget))
    named = {p.index[0] for p in [*detector.problems(), *detector.notes()] if p.programs[0] != p.programs[1]}
    assert named <= seen
    assert bool(named) == bool(seen)
    return seen


@pytest.fixture(params=[0, 64_000_000], ids=["nothing waits", "loads wait"])
def pending(request, monkeypatch):
    monkeypatch.setattr(shadow_module, "PENDING_BYTES", request.param)


@pytest.mark.parametrize("budget", [4, 1 << 20])
def test_agrees_with_a_brute_force_oracle(pending, budget):
    programs, times, lanes, size = 4, 2, 4, 24

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.5, 0.9]))
    def check(seed, idle):
        rng = np.random.default_rng(seed)
        given_ = [
            np.where(rng.random((programs, times, lanes)) < p, -1, rng.integers(0, size, (programs, times, lanes)))
            for p in (idle, max(idle, 0.5), max(idle, 0.7))
        ]
        args = (torch.zeros(size, dtype=torch.int32), *(torch.from_numpy(g.astype(np.int32)) for g in given_))
        values = torch.from_numpy(rng.integers(0, 2, (programs, times, lanes)).astype(np.int32))
        accesses = [
            (p, kind, set(g[p].reshape(-1).tolist()))
            for kind, g in zip(("load", "store", "atomic"), given_, strict=True) for p in range(programs)
        ]  # fmt: skip
        found = marked(random_kernel, (*args, values), {"TIMES": times, "LANES": lanes}, (programs,), budget)
        assert found == racing(accesses, size)

    check()


@pytest.mark.parametrize("budget", [8, 1 << 20])
def test_agrees_with_a_brute_force_oracle_on_rows(pending, budget):
    programs, times, rows, length, size = 4, 2, 2, 8, 64

    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.5, 0.8]))
    def check(seed, idle):
        rng = np.random.default_rng(seed)
        starts = [
            np.where(
                rng.random((programs, times, rows)) < p, -1, rng.integers(0, size - length, (programs, times, rows))
            )
            for p in (idle, max(idle, 0.6))
        ]
        args = (torch.zeros(size, dtype=torch.int32), *(torch.from_numpy(g.astype(np.int32)) for g in starts))
        accesses = [
            (p, kind, {s + i for s in g[p].reshape(-1).tolist() if s >= 0 for i in range(length)})
            for kind, g in zip(("load", "store"), starts, strict=True) for p in range(programs)
        ]  # fmt: skip
        constants = {"TIMES": times, "ROWS": rows, "LENGTH": length}
        assert marked(random_rows_kernel, args, constants, (programs,), budget) == racing(accesses, size)

    check()


@triton.jit
def shared_rows_kernel(x_ptr, o_ptr, WRITER: tl.constexpr, BLOCK: tl.constexpr):
    """Programs of one head read the same rows; one program of the grid writes where it must not."""
    head, block = tl.program_id(1), tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    at = head * BLOCK * BLOCK + lane[:, None] * BLOCK + lane[None, :]
    x = tl.load(x_ptr + at)
    tl.store(o_ptr + (head * tl.num_programs(0) + block) * BLOCK * BLOCK + lane[:, None] * BLOCK + lane[None, :], x)
    if (head == 1) & (block == WRITER):
        tl.store(x_ptr + at, x + 1)


@pytest.mark.parametrize("writer", [0, 1, 2, -1])
def test_a_tile_that_several_programs_load_at_once(writer):
    for _ in range(2):  # the first launch runs its first program alone
        x, o = torch.randn(2, 8, 8), torch.zeros(6, 8, 8)
        found = problems(shared_rows_kernel, (3, 2), x, o, WRITER=writer, BLOCK=8)
        assert len(found) == (0 if writer < 0 else 1)
        for p in found:
            (reader, head, _), second = p.programs
            assert (p.tensor, p.index, head, second) == ("x", (1, 0, 0), 1, (writer, 1, 0))
            assert reader != writer


def test_codes_that_leave_32_bits_are_kept_in_64(monkeypatch):
    args = X, torch.zeros(8, dtype=torch.int32), 8
    before = [p.message for p in problems(histogram_kernel, (2,), *args, ATOMIC=False, BLOCK=4)]
    monkeypatch.setattr(races, "MAX_CODE", 5)  # the third instruction of two programs
    found = problems(histogram_kernel, (2,), X, torch.zeros(8, dtype=torch.int32), 8, ATOMIC=False, BLOCK=4)
    assert found
    assert [p.message for p in found] == before
