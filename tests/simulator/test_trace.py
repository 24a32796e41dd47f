"""What is counted, against counts made by hand."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from cme295lab import hardware, simulator
from cme295lab.simulator import SimulatorError, TensorTraffic


@triton.jit
def add_kernel(x_ptr, y_ptr, Out_ptr, n, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = place < n
    x = tl.load(x_ptr + place, mask=mask)
    y = tl.load(y_ptr + place, mask=mask)
    tl.store(Out_ptr + place, x + y, mask=mask)


@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.float32, 4), (torch.float16, 2), (torch.bfloat16, 2), (torch.int8, 1)]
)
@pytest.mark.parametrize("n", [1, 64, 100, 1000])
def test_vector_addition(dtype, size, n):
    x, y, out = (torch.ones(n).to(dtype) for _ in range(3))
    programs = triton.cdiv(n, 64)
    with simulator.trace() as t:
        add_kernel[(programs,)](x, y, out, n, BLOCK=64)
    assert list(t.tensors) == ["x", "y", "out"]
    for name in ("x", "y"):
        traffic = t.tensors[name]
        assert (traffic.read_bytes, traffic.distinct_read_bytes, traffic.num_loads) == (n * size, n * size, programs)
        assert (traffic.written_bytes, traffic.distinct_written_bytes, traffic.num_stores) == (0, 0, 0)
    out_traffic = t.tensors["out"]
    assert (out_traffic.written_bytes, out_traffic.num_stores, out_traffic.read_bytes) == (n * size, programs, 0)
    assert (t.read_bytes, t.written_bytes, t.distinct_bytes) == (2 * n * size, n * size, 3 * n * size)
    assert t.requested_bytes == 3 * n * size
    assert t.launches[0].other_flops == (64 * programs if dtype.is_floating_point else 0)  # masked lanes compute too
    assert t.dot_flops == t.launches[0].transcendental_ops == 0
    assert t.tensors["x"].element_bytes == size
    assert t.tensors["x"].shape == (n,)


@triton.jit
def softmax_kernel(x_ptr, out_ptr, columns, BLOCK: tl.constexpr):
    row, lane = tl.program_id(0), tl.arange(0, BLOCK)
    mask = lane < columns
    x = tl.load(x_ptr + row * columns + lane, mask=mask, other=-float("inf"))
    x = x - tl.max(x, 0)
    e = tl.exp(x)
    tl.store(out_ptr + row * columns + lane, e / tl.sum(e, 0), mask=mask)


def test_softmax():
    x = torch.randn(10, 100)
    out = torch.zeros_like(x)
    with simulator.trace() as t:
        softmax_kernel[(10,)](x, out, 100, BLOCK=128)
    torch.testing.assert_close(out, x.softmax(1))
    done = t.launches[0]
    assert done.read_bytes == done.written_bytes == x.nbytes
    assert done.transcendental_ops == 10 * 128
    assert done.other_flops == 10 * 128 * 4  # max, subtract, sum, divide
    assert done.dot_flops == 0
    assert done.flops == 10 * 128 * 5


@triton.jit
def matmul_kernel(a_ptr, b_ptr, c_ptr, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    j = tl.program_id(1) * BN + tl.arange(0, BN)
    acc = tl.zeros([BM, BN], tl.float32)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        a = tl.load(a_ptr + i[:, None] * K + k[None, :], mask=(i < M)[:, None] & (k < K)[None, :], other=0.0)
        b = tl.load(b_ptr + k[:, None] * N + j[None, :], mask=(k < K)[:, None] & (j < N)[None, :], other=0.0)
        acc = tl.dot(a, b, acc)
    tl.store(c_ptr + i[:, None] * N + j[None, :], acc, mask=(i < M)[:, None] & (j < N)[None, :])


@pytest.mark.parametrize(("m", "n", "k"), [(64, 96, 128), (50, 70, 30)])
def test_matmul(m, n, k):
    a, b, c = torch.randn(m, k), torch.randn(k, n), torch.zeros(m, n)
    gm, gn, gk = triton.cdiv(m, 32), triton.cdiv(n, 16), triton.cdiv(k, 32)
    with simulator.trace() as t:
        matmul_kernel[(gm, gn)](a, b, c, m, n, k, BM=32, BN=16, BK=32)
    bound = 2**-23 * k * (a.double().abs() @ b.double().abs())  # of a float32 sum of k products, in any order
    assert ((c - a.double() @ b.double()).abs() <= bound).all()
    assert t.tensors["a"].read_bytes == gn * a.nbytes  # every column of tiles reads A once
    assert t.tensors["b"].read_bytes == gm * b.nbytes
    assert t.tensors["a"].distinct_read_bytes == a.nbytes
    assert t.tensors["b"].distinct_read_bytes == b.nbytes
    assert t.tensors["c"].written_bytes == t.tensors["c"].distinct_written_bytes == c.nbytes
    assert t.tensors["a"].num_loads == t.tensors["b"].num_loads == gm * gn * gk
    assert t.dot_flops == gm * gn * gk * 2 * 32 * 16 * 32
    assert t.arithmetic_intensity == t.flops / t.requested_bytes


@triton.jit
def window_kernel(x_ptr, out_ptr, stride, n, BLOCK: tl.constexpr):
    place = tl.program_id(0) * stride + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + place, mask=place < n, other=0.0)
    tl.store(out_ptr + tl.program_id(0), tl.sum(x, 0))


@pytest.mark.parametrize(
    ("stride", "programs", "distinct"),
    [(8, 4, 32), (4, 5, 24), (1, 10, 17), (0, 6, 8), (3, 3, 14), (16, 2, 16), (11, 4, 32)],
)
def test_windows_that_overlap_are_requested_twice_and_counted_once(stride, programs, distinct):
    x, out = torch.ones(100), torch.zeros(programs)
    with simulator.trace() as t:
        window_kernel[(programs,)](x, out, stride, 100, BLOCK=8)
    assert t.tensors["x"].read_bytes == 4 * 8 * programs
    assert t.tensors["x"].distinct_read_bytes == 4 * distinct


def test_distinct_bytes_at_a_ragged_end_and_over_launches():
    x, out = torch.ones(30), torch.zeros(8)
    with simulator.trace() as t:
        window_kernel[(8,)](x, out, 8, 30, BLOCK=8)  # programs 4 … 7 read nothing
        window_kernel[(8,)](x, out, 8, 30, BLOCK=8)
    assert t.launches[0].tensors["x"].read_bytes == t.launches[0].tensors["x"].distinct_read_bytes == 120
    assert t.tensors["x"].read_bytes == t.tensors["x"].distinct_read_bytes == 240  # once per launch
    assert t.tensors["x"].num_loads == 16


@triton.jit
def outer_kernel(x_ptr, out_ptr, s0, s1, BLOCK: tl.constexpr):
    i, j = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    tl.store(out_ptr + i * BLOCK + j, tl.load(x_ptr + i * s0 + j * s1, mask=(i + j) % 2 == 0))


@pytest.mark.parametrize("layout", ["plain", "expanded rows", "expanded columns", "one number", "transposed"])
def test_expanded_and_scattered_reads(layout):
    x = torch.randn(8, 8)
    view = {"plain": x, "expanded rows": x[:1].expand(8, 8), "expanded columns": x[:, :1].expand(8, 8),
            "one number": x[:1, :1].expand(8, 8), "transposed": x.t()}[layout]  # fmt: skip
    distinct = {"plain": 32, "expanded rows": 8, "expanded columns": 8, "one number": 1, "transposed": 32}[layout]
    with simulator.trace() as t:
        outer_kernel[(1,)](view, torch.zeros(8, 8), *view.stride(), BLOCK=8)
    assert t.tensors["x"].read_bytes == 32 * 4  # half of the lanes
    assert t.tensors["x"].distinct_read_bytes == distinct * 4
    assert t.tensors["x"].strides == view.stride()
    assert t.tensors["out"].written_bytes == 64 * 4


@pytest.mark.parametrize("seed", range(12))
def test_distinct_bytes_of_random_windows(seed, module_from):
    """Against a set of element numbers."""
    source = """
@triton.jit
def kernel(x_ptr, starts_ptr, lengths_ptr, s0, s1, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    pid = tl.program_id(0)
    start, n = tl.load(starts_ptr + pid), tl.load(lengths_ptr + pid)
    i, j = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    tl.load(x_ptr + start + i * s0 + j * s1, mask=(i * 0 + j) < n)
    tl.store(x_ptr + start + i * s0 + j * s1, 1.0, mask=i + j * 0 < n)
"""
    rng = np.random.default_rng(seed)
    rows, columns = (int(v) for v in rng.choice([1, 4, 8], 2))
    s0, s1 = (int(v) for v in rng.choice([0, 1, 2, 8, 40], 2))
    starts = rng.integers(0, 100, 6) if seed % 2 else rng.integers(0, 12, 6) * columns
    lengths = rng.integers(0, 9, 6) if seed % 3 else np.full(6, int(rng.integers(0, 9)))
    x = torch.zeros(800)
    with simulator.trace() as t:
        module_from(source).kernel[(6,)](
            x, torch.from_numpy(starts), torch.from_numpy(lengths), s0, s1, ROWS=rows, COLUMNS=columns
        )
    read, written, counts = set(), set(), [0, 0]
    for start, n in zip(starts.tolist(), lengths.tolist()):
        for i in range(rows):
            for j in range(columns):
                element = start + i * s0 + j * s1
                if j < n:
                    read.add(element)
                    counts[0] += 1
                if i < n:
                    written.add(element)
                    counts[1] += 1
    got = t.tensors["x"]
    assert (got.read_bytes, got.written_bytes) == (4 * counts[0], 4 * counts[1])
    assert (got.distinct_read_bytes, got.distinct_written_bytes) == (4 * len(read), 4 * len(written))
    assert set(torch.nonzero(x).flatten().tolist()) == written


@triton.jit
def atomic_kernel(x_ptr, n, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    tl.atomic_add(x_ptr + lane % 3, 1.0, mask=lane < n)


def test_an_atomic_reads_and_writes():
    x = torch.zeros(3)
    with simulator.trace() as t:
        atomic_kernel[(5,)](x, 6, BLOCK=8)
    assert x.tolist() == [10.0] * 3
    got = t.tensors["x"]
    assert got.read_bytes == got.written_bytes == 5 * 6 * 4
    assert got.distinct_read_bytes == got.distinct_written_bytes == 12
    assert got.num_loads == got.num_stores == 5


# ---- on-chip bytes


@triton.jit
def held_kernel(x_ptr, out_ptr, n, WHAT: tl.constexpr, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)  # int32 lane numbers are a block too: 4 bytes each
    x = tl.load(x_ptr + lane)
    if WHAT == "copy":
        tl.store(out_ptr + lane, x)
    elif WHAT == "two":
        y = tl.load(x_ptr + BLOCK + lane)
        tl.store(out_ptr + lane, x + y)
    elif WHAT == "dead":
        y = tl.load(x_ptr + BLOCK + lane)
        z = y * 1.0
        tl.store(out_ptr + lane, z)
    elif WHAT == "rebound":
        tl.store(out_ptr + lane, x)
        x = tl.load(x_ptr + BLOCK + lane)
        tl.store(out_ptr + lane, x)
    elif WHAT == "half":
        tl.store(out_ptr + lane, x.to(tl.float16))
    else:
        for i in range(0, n):
            x = x + tl.load(x_ptr + i * BLOCK + lane)
        tl.store(out_ptr + lane, x)


@pytest.mark.parametrize(
    ("what", "bytes_per_lane"),
    [
        ("copy", 4 + 4),  # lane, x
        ("two", 4 + 4 + 4 + 4),  # lane, x, y, and x + y beside them
        ("dead", 4 + 4 + 4),  # x is not needed any more: lane, y, y * 1.0
        ("rebound", 4 + 4),  # lane and x: the old x is not needed when the new one is loaded
        ("half", 4 + 4 + 2),  # lane, x, its half-precision copy
        ("loop", 4 + 4 + 4),  # lane, x, and the loaded block, which their sum overwrites
    ],
)
def test_on_chip_bytes_by_hand(what, bytes_per_lane):
    x, out = torch.ones(4096), torch.zeros(1024)
    with simulator.trace() as t:
        held_kernel[(1,)](x, out, 4, WHAT=what, BLOCK=1024)
    assert t.sram_peak_bytes == 1024 * bytes_per_lane  # addresses are not counted
    peaks = []
    for programs in (1, 7):
        with simulator.trace() as again:
            held_kernel[(programs,)](x, out, 4, WHAT=what, BLOCK=1024)
        peaks.append(again.sram_peak_bytes)
    assert peaks == [t.sram_peak_bytes] * 2  # of one program, however many there are


def test_on_chip_bytes_grow_with_the_tile_not_with_the_matrix():
    peaks = {}
    for size, block in ((64, 16), (128, 16), (128, 32)):
        a = torch.randn(size, size)
        with simulator.trace() as t:
            matmul_kernel[(size // block, size // block)](
                a, a, torch.zeros_like(a), size, size, size, BM=block, BN=block, BK=block
            )
        peaks[size, block] = t.sram_peak_bytes
    assert peaks[64, 16] == peaks[128, 16]
    assert 3 <= peaks[128, 32] / peaks[128, 16] <= 4
    tile = 32 * 32 * 4
    assert 3 * tile <= peaks[128, 32] <= 6 * tile  # A, B and the accumulator, with masks and temporaries


# ---- steps


@triton.jit
def steps_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    pid = tl.program_id(0) + 2 * tl.program_id(1)
    lane = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for i in range(0, pid + 1):
        place = pid * BLOCK + lane + i
        x = tl.load(x_ptr + place, mask=(place < n) & (lane > 0), other=0.0)
        total += x
    tl.store(out_ptr + pid * BLOCK + lane, total)


def test_steps_of_one_program():
    x, out = torch.arange(40.0), torch.zeros(4, 8)
    with simulator.trace(record=True, watch=("total", "pid")) as t:
        steps_kernel[(2, 2)](x[4:], out, 20, BLOCK=8)
    launch = t.launches[0]
    for p in range(4):
        steps = launch.walk((p % 2, p // 2, 0))
        assert [s.kind for s in steps] == ["assign", "assign", *["load", "assign"] * (p + 1), "store"]
        assert steps[0].name == "pid"
        assert steps[0].value == p
        loads = [s for s in steps if s.kind == "load"]
        running = torch.zeros(8)
        for i, (load, total) in enumerate(zip(loads, [s for s in steps if s.name == "total"][1:])):
            place = torch.arange(8) + p * 8 + i
            active = (place < 20) & (torch.arange(8) > 0)
            assert load.name == "x"
            assert load.num_bytes == 4 * active.sum()
            assert load.first_element == (place[active][0] if active.any() else None)
            assert load.shape == (8,)
            assert "tl.load(x_ptr + place" in load.source
            running += torch.where(active, x[4:][place], 0)
            assert torch.equal(torch.from_numpy(total.value), running)
        store = steps[-1]
        assert (store.name, store.num_bytes, store.first_element) == ("out", 32, p * 8)
        assert store.line > loads[0].line > steps[0].line
    assert sum(s.num_bytes for p in range(4) for s in launch.walk((p % 2, p // 2, 0)) if s.kind == "load") == (
        launch.tensors["x"].read_bytes
    )


def test_steps_need_a_recorded_trace_and_a_program_of_the_grid():
    x, out = torch.arange(40.0), torch.zeros(4, 8)
    with simulator.trace() as plain:
        steps_kernel[(2, 2)](x, out, 20, BLOCK=8)
    with pytest.raises(SimulatorError, match="record=True"):
        plain.launches[0].walk((0, 0, 0))
    with simulator.trace(record=True) as t:
        steps_kernel[(2, 2)](x, out, 20, BLOCK=8)
    for program in ((2, 0, 0), (0, 0, 1), (-1, 0, 0), (0, 0)):
        with pytest.raises(ValueError, match="is not in the grid"):
            t.launches[0].walk(program)


def test_a_step_may_begin_before_the_tensor_s_first_element():
    memory = torch.arange(16.0)
    with simulator.trace(record=True) as t:
        window_kernel[(1,)](memory[8:], torch.zeros(1), 0, 100, BLOCK=8)
        window_kernel[(2,)](memory[8:], torch.zeros(2), -3, 100, BLOCK=8)
    assert [s.first_element for s in t.launches[0].walk((0, 0, 0))] == [0, 0]
    assert t.launches[1].walk((1, 0, 0))[0].first_element == -3


def test_watch_wants_names_and_a_record():
    with pytest.raises(ValueError, match="needs record=True"), simulator.trace(watch=("x",)):
        pass
    with pytest.raises(ValueError, match="must be a collection of names"), simulator.trace(record=True, watch="x"):
        pass
    with pytest.raises(ValueError, match="B999"), simulator.trace(device="B999"):
        pass


# ---- presentation


def test_counting_and_recording_change_no_result():
    x = torch.randn(20, 100)
    results = []
    for context in (simulator.enabled(), simulator.trace(), simulator.trace(record=True, watch=("x", "e"))):
        out = torch.zeros_like(x)
        with context:
            softmax_kernel[(20,)](x, out, 100, BLOCK=128)
        results.append(out)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_a_trace_adds_up_its_launches():
    x, y, out = (torch.ones(100) for _ in range(3))
    with simulator.trace() as outer:
        add_kernel[(2,)](x, y, out, 100, BLOCK=64)
        with simulator.trace(device="H100") as inner:
            softmax_kernel[(1,)](x, out, 100, BLOCK=128)
    assert [x.kernel for x in outer.launches] == ["add_kernel", "softmax_kernel"]
    assert [x.kernel for x in inner.launches] == ["softmax_kernel"]
    assert outer.tensors["x"].read_bytes == 800
    assert outer.tensors["out"].written_bytes == 800
    assert outer.flops == 128 + 5 * 128
    assert outer.sram_peak_bytes == max(x.sram_peak_bytes for x in outer.launches)
    assert outer.distinct_bytes == sum(x.distinct_bytes for x in outer.launches)
    assert outer.seconds > 0
    assert inner.device == hardware.get_device("H100")
    assert outer.launches[0].constants == {"BLOCK": 64}
    assert outer.launches[0].config is None


@triton.jit
def same_names_kernel(X, x_ptr, n, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    tl.store(X + lane, tl.load(x_ptr + lane))


def test_two_parameters_with_one_short_name_are_both_counted():
    with simulator.trace() as t:
        same_names_kernel[(1,)](torch.zeros(8), torch.zeros(8), 8, BLOCK=8)
    assert t.read_bytes == t.written_bytes == 32


def test_tables():
    x, y, out = (torch.ones(1000) for _ in range(3))
    with simulator.trace(device="A100") as t:
        assert "empty trace" in str(t)
        assert "empty trace" in t._repr_html_()
        add_kernel[(16,)](x, y, out, 1000, BLOCK=64)
    table = t.table()
    assert [row["tensor"] for row in table.rows] == ["x", "y", "out"]
    assert table.rows[0] == {
        "kernel": "add_kernel", "tensor": "x", "dtype": "fp32", "shape": "1000", "read": "4 kB", "written": "0 B",
        "distinct": "4 kB", "DRAM": "4 kB",
    }  # fmt: skip
    lines = str(t).splitlines()
    assert len(lines) == 5
    assert lines[1].split() == ["kernel", "tensor", "dtype", "shape", "read", "written", "distinct", "DRAM"]
    assert "12 kB requested, 12 kB distinct, 12 kB DRAM" in lines[0]
    assert "A100" in lines[0]
    html = t._repr_html_()
    assert html.count("<tr>") == 4
    assert "<script" not in html
    assert str(table) == repr(table)


def test_index_of_an_element():
    def traffic(tensor):
        return TensorTraffic(
            name="x", dtype="fp32", shape=tuple(tensor.shape), strides=tensor.stride(), element_bytes=4
        )

    x = torch.arange(24).reshape(2, 3, 4)
    views = [x, x.permute(2, 0, 1), x[:, ::2], x.transpose(0, 1), x[1:], x[:, :, :1], x[0].expand(5, 3, 4)]
    for view in views:
        t = traffic(view)
        for index in np.ndindex(*view.shape):
            offset = sum(i * s for i, s in zip(index, view.stride()))
            found = t.index_of(offset)
            assert view[found] == view[index]
    assert traffic(x).index_of(13) == (1, 0, 1)


@triton.jit
def doubled(x):
    y = x + x
    return y


@triton.jit
def calling_kernel(x_ptr, o_ptr, BLOCK: tl.constexpr):
    cols = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + cols)
    z = doubled(x)
    tl.store(o_ptr + cols, z)


def test_a_step_after_a_call_shows_the_line_of_the_caller():
    x, o = torch.ones(16), torch.empty(16)
    with simulator.trace(record=True, watch=("y", "z")) as t:
        calling_kernel[(1,)](x, o, BLOCK=16)
    shown = {s.name: (s.line, s.source.strip()) for s in t.launches[0].walk((0, 0, 0))}
    assert shown["y"][1] == "y = x + x"
    assert shown["z"][1] == "z = doubled(x)"
    assert shown["o"] == (shown["z"][0] + 1, "tl.store(o_ptr + cols, z)")
