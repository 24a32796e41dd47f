"""Costs of real launches: against the plain model, and against counts made by hand."""

import dataclasses

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

from cme295lab import simulator
from cme295lab.simulator import Launch, SimulatorError
from cme295lab.units import KiB
from tests.simulator.cost.reference import Access, requests_of, simulate, with_sms


@triton.jit
def walk_kernel(
    x_ptr, out_ptr, turns, by_program, by_turn, by_row, by_column,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for turn in range(turns + tl.program_id(0) % 2):
        place = tl.program_id(0) * by_program + turn * by_turn + row * by_row + column * by_column
        if MASKED:
            total += tl.load(x_ptr + place, mask=(place + 5 * row + 3 * column) % 7 != 3, other=0.0)
        else:
            total += tl.load(x_ptr + place)
    tl.store(out_ptr + tl.program_id(0) * ROWS * COLUMNS + row * COLUMNS + column, total)


def walked(
    programs: int, turns: int, steps: tuple[int, int, int, int], shape: tuple[int, int], masked: bool
) -> list[list[Access]]:
    """What the programs of walk_kernel touch; x lies at byte 0, out far behind it."""
    row, column = np.arange(shape[0])[:, None], np.arange(shape[1])[None, :]
    tiles = {}
    for p in range(programs):
        for turn in range(turns + p % 2):
            place = p * steps[0] + turn * steps[1] + row * steps[2] + column * steps[3]
            active = (place + 5 * row + 3 * column) % 7 != 3 if masked else np.True_
            tiles[p, turn] = np.where(active, 4 * place, -1)
    down = steps[2] == 1 != steps[3]  # neighbouring lanes lie along the first axis
    if down:
        tiles = {key: tile.T for key, tile in tiles.items()}
    length = shape[0] if down else shape[1]
    vector = 1
    if length >= 4 and (down or steps[3] == 1) and all((tile >= 0).all() for tile in tiles.values()):
        starts = [int(s) for tile in tiles.values() for s in tile[:, 0]]
        vector = next(v for v in (4, 2, 1) if all(s % (4 * v) == 0 for s in starts))
    size = shape[0] * shape[1]
    stored = (1 << 20) + 4 * np.arange(size)
    return [
        [
            *(Access("load", "x", requests_of(tiles[p, t], 32 * vector)) for t in range(turns + p % 2)),
            Access("store", "out", requests_of(stored + 4 * p * size, 128)),
        ]
        for p in range(programs)
    ]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    programs=st.integers(1, 9), turns=st.integers(0, 4), masked=st.booleans(),
    steps=st.tuples(
        st.integers(0, 70), st.integers(0, 70) | st.just(64), st.sampled_from([0, 1, 3, 16, 33, 64]),
        st.sampled_from([1, 1, 2, 8, 17]),
    ),
    shape=st.tuples(st.sampled_from([2, 8, 16]), st.sampled_from([4, 8, 32])),
    slots=st.integers(1, 4), capacity=st.integers(1, 60),
)  # fmt: skip
def test_launches_cost_what_the_plain_model_says(programs, turns, masked, steps, shape, slots, capacity):
    x = torch.ones(programs * steps[0] + (turns + 1) * steps[1] + shape[0] * steps[2] + shape[1] * steps[3])
    out = torch.zeros(programs * shape[0] * shape[1])
    with simulator.trace() as t:
        walk_kernel[(programs,)](x, out, turns, *steps, ROWS=shape[0], COLUMNS=shape[1], MASKED=masked)
    found = t.launches[0].cache(with_sms(slots), ctas_per_sm=1, l2_bytes=128 * capacity)
    plain = walked(programs, turns, steps, shape, masked)
    for name, counts in simulate(plain, num_slots=slots, capacity_lines=capacity).items():
        traffic = found.tensors[name]
        assert traffic.sector_bytes == 32 * counts.moved
        assert traffic.l2_hit_bytes == 32 * counts.hit
        assert traffic.dram_read_bytes == 32 * counts.read
        assert traffic.dram_written_bytes == 32 * counts.written


@triton.jit
def gather_kernel(index_ptr, x_ptr, out_ptr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    index = tl.load(index_ptr + place)
    tl.atomic_add(out_ptr + index, tl.load(x_ptr + index, mask=index % 3 != 0, other=0.0))


@pytest.mark.parametrize("capacity", [5, 40, 1000])
def test_gathers_and_atomics_cost_what_the_plain_model_says(capacity):
    index = torch.randint(0, 700, (8, 64), dtype=torch.int32, generator=torch.Generator().manual_seed(capacity))
    with simulator.trace() as t:
        gather_kernel[(8,)](index, torch.ones(700), torch.zeros(700), BLOCK=64)
    found = t.launches[0].cache(with_sms(3), ctas_per_sm=1, l2_bytes=128 * capacity)
    place = 4 * index.numpy().astype(np.int64)
    plain = [
        [
            Access("load", "index", requests_of((1 << 20) + 256 * p + 4 * np.arange(64), 128)),
            Access("load", "x", requests_of(np.where(index[p].numpy() % 3 != 0, place[p], -1))),
            Access("atomic", "out", requests_of((1 << 16) + place[p])),
        ]
        for p in range(8)
    ]
    for name, counts in simulate(plain, num_slots=3, capacity_lines=capacity).items():
        traffic = found.tensors[name]
        seen = (traffic.sector_bytes, traffic.l2_hit_bytes, traffic.dram_read_bytes, traffic.dram_written_bytes)
        assert seen == tuple(32 * n for n in (counts.moved, counts.hit, counts.read, counts.written))


@triton.jit
def pages_kernel(page_ptr, x_ptr, out_ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    page = tl.load(page_ptr + tl.program_id(0) * ROWS + row)
    tile = tl.load(x_ptr + page[:, None] * COLUMNS + column[None, :])
    tl.store(out_ptr + tl.program_id(0) * COLUMNS + column, tl.sum(tile, 0))


def test_rows_found_through_a_table_cost_what_the_plain_model_says():
    page = torch.randint(0, 40, (6, 8), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    with simulator.trace() as t:
        pages_kernel[(6,)](page, torch.ones(40 * 16), torch.zeros(6 * 16), ROWS=8, COLUMNS=16)
    found = t.launches[0].cache(with_sms(2), ctas_per_sm=1, l2_bytes=128 * 9)
    rows = 64 * page.numpy().astype(np.int64)[..., None] + 4 * np.arange(16)
    plain = [[Access("load", "x", requests_of(rows[p], 128))] for p in range(6)]
    for p, program in enumerate(plain):
        program.insert(0, Access("load", "page", requests_of((1 << 20) + 32 * p + 4 * np.arange(8), 128)))
        program.append(Access("store", "out", requests_of((1 << 16) + 64 * p + 4 * np.arange(16), 128)))
    for name, counts in simulate(plain, num_slots=2, capacity_lines=9).items():
        traffic = found.tensors[name]
        assert (traffic.sector_bytes, traffic.dram_read_bytes) == (32 * counts.moved, 32 * counts.read)


@pytest.mark.parametrize("masked", [False, True])
def test_lanes_lie_along_the_axis_whose_addresses_are_consecutive(masked):
    with simulator.trace() as t:
        walk_kernel[(1,)](
            torch.ones(1024), torch.zeros(256), 1, 0, 0, 1, 64, ROWS=16, COLUMNS=16, MASKED=masked
        )  # fmt: skip
    load = t.launches[0].accesses[0]
    assert load.moved_bytes == 16 * 2 * 32  # 16 columns of 16 neighbours
    assert load.requested_bytes == (4 * 256 if not masked else load.requested_bytes)


# ---- by hand


@triton.jit
def copy_kernel(x_ptr, out_ptr, n, step, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + place, tl.load(x_ptr + place * step, mask=place < n), mask=place < n)


def copied(x: torch.Tensor, step: int = 1, n: int = 4096, device: str = "A100") -> Launch:
    with simulator.trace(device=device) as t:
        copy_kernel[(triton.cdiv(n, 256),)](x, torch.zeros(n, dtype=x.dtype), n, step, BLOCK=256)
    return t.launches[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.int8])
def test_streaming_moves_what_is_requested(dtype):
    done = copied(torch.ones(4096).to(dtype))
    assert done.dram_read_bytes == done.read_bytes == done.distinct_bytes // 2
    assert done.dram_written_bytes == done.written_bytes
    assert done.l2_hit_bytes == 0
    assert [a.sector_efficiency for a in done.accesses] == [1.0, 1.0]


@pytest.mark.parametrize(("step", "efficiency"), [(1, 1.0), (2, 0.5), (4, 0.25), (8, 0.125), (64, 0.125)])
def test_strided_loads_waste_sectors(step, efficiency):
    done = copied(torch.ones(4096 * step), step)
    load, store = done.accesses
    assert (load.kind, load.tensor, store.kind, store.tensor) == ("load", "x", "store", "out")
    assert load.sector_efficiency == pytest.approx(efficiency)
    assert store.sector_efficiency == 1.0
    assert done.tensors["x"].dram_bytes == done.tensors["x"].read_bytes / efficiency
    assert done.tensors["x"].distinct_bytes == done.tensors["x"].read_bytes  # of which the distinct bytes say nothing
    assert load.line == store.line
    assert "tl.load(x_ptr + place * step" in load.source
    assert load.file == "test_launches.py"
    assert load.executions == 16


def test_a_view_that_begins_off_a_sector_needs_one_sector_more_per_request():
    aligned, shifted = torch.ones(4097)[:4096], torch.ones(4097)[1:]
    assert copied(aligned).accesses[0].sector_efficiency == 1.0
    assert copied(shifted).accesses[0].sector_efficiency == 4 / 5  # 32 lanes of 4 bytes, in 5 sectors instead of 4
    assert copied(torch.ones(4104)[8:]).accesses[0].sector_efficiency == 1.0  # off a line, on a sector
    assert copied(shifted).tensors["x"].dram_bytes == 4096 * 4 + 32  # neighbours share the sector: it hits


def test_masked_lanes_move_nothing():
    done = copied(torch.ones(1000), n=1000)
    assert done.tensors["x"].dram_bytes == done.sector_bytes // 2 == 4000
    with simulator.trace() as t:  # the same mask in all programs: rows of 100 elements, each in 13 sectors
        transpose_by_rows_kernel[(100,)](torch.ones(100, 100), torch.zeros(100, 100), 100, BLOCK=128)
    assert t.tensors["x"].sector_bytes == 100 * 13 * 32
    assert t.tensors["x"].dram_bytes == 100 * 100 * 4


@triton.jit
def broadcast_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    tl.store(out_ptr + lane, tl.load(x_ptr + lane * 0) + tl.load(x_ptr))


def test_lanes_that_share_an_element_move_one_sector():
    with simulator.trace() as t:
        broadcast_kernel[(1,)](torch.ones(1), torch.zeros(64), BLOCK=64)
    loads = [a for a in t.launches[0].accesses if a.kind == "load"]
    assert sum(a.requested_bytes for a in loads) == 64 * 4 + 4
    assert sum(a.moved_bytes for a in loads) == 2 * 32 + 32


@triton.jit
def transpose_by_rows_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    row, lane = tl.program_id(0), tl.arange(0, BLOCK)
    tl.store(out_ptr + lane * n + row, tl.load(x_ptr + row * n + lane, mask=lane < n), mask=lane < n)


@triton.jit
def transpose_by_tiles_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    tile = tl.load(x_ptr + i[:, None] * n + j[None, :])
    tl.store(out_ptr + j[None, :] * n + i[:, None], tile)


def test_a_transpose_by_rows_wastes_seven_eighths_of_its_stores_and_one_by_tiles_nothing():
    x, out = torch.randn(128, 128), torch.zeros(128, 128)
    with simulator.trace() as t:
        transpose_by_rows_kernel[(128,)](x, out, 128, BLOCK=128)
        transpose_by_tiles_kernel[(4, 4)](x, out, 128, BLOCK=32)
    by_rows, by_tiles = t.launches
    assert [a.sector_efficiency for a in by_rows.accesses] == [1.0, 0.125]
    assert [a.sector_efficiency for a in by_tiles.accesses] == [1.0, 1.0]
    assert by_rows.dram_bytes == by_tiles.dram_bytes == 2 * x.nbytes  # the cache puts the pieces together
    small = [launch.cache(with_sms(4), ctas_per_sm=1, l2_bytes=8 * KiB) for launch in (by_rows, by_tiles)]
    # a column of out lies in 128 lines, of which 64 fit: a sector leaves with one of its eight elements written
    assert [c.dram_written_bytes for c in small] == [8 * x.nbytes, x.nbytes]


@triton.jit
def reread_kernel(x_ptr, out_ptr, n, turns, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for _ in range(turns):
        for start in range(0, n, BLOCK):
            total += tl.load(x_ptr + start + lane)
    tl.store(out_ptr + tl.program_id(0) * BLOCK + lane, total)


def test_reuse_costs_nothing_if_it_fits_and_everything_if_it_does_not():
    x, out = torch.ones(2048), torch.zeros(256)
    with simulator.trace() as t:
        reread_kernel[(1,)](x, out, 2048, 10, BLOCK=256)
    done = t.launches[0]
    assert done.tensors["x"].read_bytes == 10 * x.nbytes
    assert done.cache(l2_bytes=8 * KiB).tensors["x"].dram_bytes == x.nbytes
    assert done.cache(l2_bytes=8 * KiB - 1).tensors["x"].dram_bytes == 10 * x.nbytes  # least recently used: none hits
    assert done.tensors["x"].l2_hit_bytes == 9 * x.nbytes


@triton.jit
def helper(pointer, lane):
    return tl.load(pointer + lane)


@triton.jit
def calling_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    tl.store(out_ptr + lane, helper(x_ptr, lane))


def test_an_access_in_a_function_has_the_function_s_line():
    with simulator.trace() as t:
        calling_kernel[(1,)](torch.ones(32), torch.zeros(32), BLOCK=32)
    load, store = t.launches[0].accesses
    assert load.source == "return tl.load(pointer + lane)"
    assert store.source == "tl.store(out_ptr + lane, helper(x_ptr, lane))"
    assert set(t.launches[0].sram_by_line) == {load.line, store.line, store.line - 1}


def test_a_trace_adds_its_launches_each_with_a_cold_cache():
    x = torch.ones(4096)
    with simulator.trace(device="H100") as t:
        for _ in range(2):
            copy_kernel[(16,)](x, torch.zeros(4096), 4096, 1, BLOCK=256)
    assert t.dram_bytes == 2 * t.launches[0].dram_bytes == 2 * 2 * x.nbytes
    assert t.tensors["x"].dram_read_bytes == t.dram_read_bytes == 2 * x.nbytes
    assert t.tensors["out"].dram_written_bytes == t.dram_written_bytes == 2 * x.nbytes
    assert (t.l2_hit_bytes, t.sector_bytes, t.tensors["x"].sector_bytes) == (0, 4 * x.nbytes, 2 * x.nbytes)
    assert t.launches[0].cache().device == "H100-SXM5"


def test_nested_traces_have_the_costs_of_their_devices():
    with simulator.trace(device="T4") as outer, simulator.trace(device="H100") as inner:
        copy_kernel[(16,)](torch.ones(4096), torch.zeros(4096), 4096, 1, BLOCK=256)
    assert (outer.launches[0].cache().device, inner.launches[0].cache().device) == ("T4", "H100-SXM5")
    assert outer.launches[0].roofline().bandwidth_bytes_per_s == 320e9


@triton.jit
def swap_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    tl.store(y_ptr + lane, tl.load(x_ptr + lane))


def test_arguments_that_share_memory_share_lines():
    x = torch.ones(64)
    with simulator.trace() as t:
        swap_kernel[(1,)](x, x, BLOCK=64)
    assert t.tensors["x"].dram_read_bytes == t.tensors["y"].dram_written_bytes == x.nbytes
    assert t.tensors["y"].l2_hit_bytes == x.nbytes  # it was read before


def test_settings_are_checked():
    done = copied(torch.ones(4096))
    with pytest.raises(ValueError, match="l2_bytes must be at least 1, got 0"):
        done.cache(l2_bytes=0)
    with pytest.raises(ValueError, match="ctas_per_sm must be at least 1, got -1"):
        done.cache(ctas_per_sm=-1)
    with pytest.raises(ValueError, match="unknown device 'A1000'"):
        done.cache("A1000")
    with pytest.raises(SimulatorError, match="no address log"):
        dataclasses.replace(done, cost=None).dram_bytes  # noqa: B018
    assert "L2 of 40 MiB" in str(done.cache())
    assert "(100.0%)" in str(done.accesses[0])
