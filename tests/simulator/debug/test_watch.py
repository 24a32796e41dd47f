"""One program's values, line by line."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from cme295lab import simulator


@triton.jit
def scaled(v, factor):
    w = v * factor
    return w


@triton.jit
def watched_kernel(x_ptr, o_ptr, n, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0) + tl.program_id(1) * 2
    lane = tl.arange(0, BLOCK)
    mask = lane < n
    pointers = x_ptr + row * stride + lane
    x = tl.load(pointers, mask=mask, other=0.0)
    acc = tl.zeros([BLOCK], tl.float32)
    for k in range(0, row + 1):
        acc += scaled(x, k)
    total = tl.sum(acc)
    if row % 2 == 1:
        tl.store(o_ptr + row * stride + lane, acc, mask=mask)
    tl.atomic_add(o_ptr + row * stride, total)


def run(program=(1, 1), *, device_block=8, n=5, **options):
    """Launch 2 x 2 programs on rows of eight; returns the watch."""
    x, o = torch.arange(32, dtype=torch.bfloat16).view(4, 8), torch.zeros(4, 8)
    with simulator.trace() as t:
        w = t.watch(program=program, **options)
        watched_kernel[(2, 2)](x, o, n, 8, BLOCK=device_block)
    return w


@pytest.mark.parametrize("launches", [1, 2])
def test_every_assignment_load_and_store_in_order(launches):
    for _ in range(launches):  # the first launch of a kernel runs its first program alone
        w = run()
    kinds = [(s.kind, s.name) for s in w.steps]
    turns = [[("assign", "k"), ("assign", "w"), ("assign", "acc")]] * 4
    assert kinds == [
        ("assign", "row"), ("assign", "lane"), ("assign", "mask"), ("assign", "pointers"), ("load", "x"),
        ("assign", "x"), ("assign", "acc"), *[s for turn in turns for s in turn], ("assign", "total"), ("store", "o"),
        ("atomic", "o"),
    ]  # fmt: skip
    x = np.arange(24, 32, dtype=np.float32) * (np.arange(8) < 5)
    np.testing.assert_array_equal(w.values("x")[0], x)
    for turn, value in enumerate(w.values("acc")[1:]):
        np.testing.assert_array_equal(value, x * sum(range(turn + 1)))
    assert [int(v) for v in w.values("k")] == [0, 1, 2, 3]
    load = next(s for s in w.steps if s.kind == "load")
    assert (load.dtype, load.shape, load.num_bytes, load.lanes, load.index) == ("bf16", (8,), 10, 5, (3, 0))
    np.testing.assert_array_equal(load.value, x[:5])
    store = next(s for s in w.steps if s.kind == "store")
    np.testing.assert_array_equal(store.value, x[:5] * 6)
    assert store.index == (3, 0)
    assert store.first_element == 24


def test_a_program_on_the_other_path():
    w = run((0, 1))
    assert not [s for s in w.steps if s.kind == "store"]
    assert [int(v) for v in w.values("k")] == [0, 1, 2]


def test_turns_count_how_often_a_line_has_run():
    w = run()
    assert [s.turn for s in w.steps if s.name == "acc"] == [1, 1, 2, 3, 4]
    assert [s.turn for s in w.steps if s.name == "w"] == [1, 2, 3, 4]
    assert {s.function for s in w.steps if s.name == "w"} == {"scaled"}


def test_the_text():
    text = str(run())
    assert text.startswith("program (1, 1, 0) of kernel watched_kernel, grid (2, 2, 1): 22 steps\n")
    assert "row = tl.program_id(0) + tl.program_id(1) * 2\n    row: int32 = 3\n" in text
    assert "    lane: int32[8]  0 … 7  [0 1 2 3 …]\n" in text
    assert "    pointers: pointer<bf16>[8] -> x[3, 0]\n" in text
    assert "    loads x[3, 0] and on: bf16[8], 10 B (mask: 5 of 8 lanes)  24 … 28  [24 25 26 27 …]\n" in text
    assert "turn 3: acc += scaled(x, k)\n    acc: fp32[8]  0 … 84  [72 75 78 81 …]\n" in text
    assert "scaled, line" in text
    assert text.endswith("    atomic on o[3, 0]: fp32, 4 B")
    assert repr(run()) == text


def test_the_page():
    page = run()._repr_html_()
    assert "<code>acc += scaled(x, k)</code>" in page
    assert "acc: fp32[8]" in page
    assert page.count("<tr>") == 1 + len({s.statement for s in run().steps})


def test_two_dimensions_and_masked_out_accesses(module_from):
    source = """@triton.jit
def kernel(x_ptr, N: tl.constexpr):
    i = tl.arange(0, 8)
    tile = i[:, None] * 8 + i[None, :]
    y = tl.load(x_ptr + i, mask=i < 0, other=1)
    z = tl.dot(y[:, None] + i * 0.0, tile.to(tl.float32))
    for j in tl.static_range(N):
        pass
"""
    with simulator.trace() as t:
        w = t.watch()
        module_from(source).kernel[(1,)](torch.zeros(8), N=3)
    assert "tile: int32[8, 8]  0 … 63  [[0 1 2 3 …] [8 9 10 11 …] [16 17 18 19 …] [24 25 26 27 …] …]" in str(w)
    assert "loads nothing of x: all 8 lanes are masked out" in str(w)
    assert "j = 2" in str(w)
    assert w.steps[2].value is None


def test_some_variables():
    w = run(variables=("acc", "total"))
    assert {s.name for s in w.steps} == {"acc", "total"}
    assert w.values("total")[0] == 26 * 5 * 6
    with pytest.raises(ValueError, match="variable 'x' got no value in this program; assigned were acc, total"):
        w.values("x")


@triton.jit
def other_kernel(o_ptr):
    first = tl.program_id(0)
    tl.store(o_ptr + first, first)


def test_the_launch_is_the_next_one_or_the_one_that_is_named():
    o = torch.zeros(4)
    with simulator.trace() as t:
        following, third = t.watch((0,)), t.watch((2,), launch=2)
        named = t.watch((0, 0), kernel="watched_kernel")
        for _ in range(3):
            other_kernel[(3,)](o)
        again = t.watch((1,), kernel="other_kernel")
        watched_kernel[(1, 1)](torch.zeros(8), torch.zeros(8), 8, 8, BLOCK=8)
        other_kernel[(2,)](o)
    assert [int(w.values("first")[0]) for w in (following, third, again)] == [0, 2, 1]
    assert [w.grid for w in (following, third, named, again)] == [(3, 1, 1), (3, 1, 1), (1, 1, 1), (2, 1, 1)]
    assert named.values("row")


def test_a_program_outside_of_the_grid_is_an_error_at_the_launch():
    with pytest.raises(simulator.SimulatorError) as caught:
        run((3, 1))
    assert "t.watch(program=(3, 1, 0)): kernel watched_kernel was launched with grid (2, 2, 1)" in str(caught.value)
    assert "the last one is (1, 1, 0)" in str(caught.value)


def test_too_late_too_early_and_wrong_arguments():
    with simulator.trace() as t:
        other_kernel[(2,)](torch.zeros(2))
        nothing = t.watch((0,))
        with pytest.raises(ValueError, match="launch 0 has been: 1 are over"):
            t.watch((0,), launch=0)
        with pytest.raises(ValueError, match="program must be one to three grid coordinates"):
            t.watch((1, 2, 3, 4))
        with pytest.raises(ValueError, match="program must be one to three grid coordinates"):
            t.watch((-1,))
        with pytest.raises(ValueError, match=r"write variables=\('acc',\)"):
            t.watch((0,), variables="acc")
    with pytest.raises(simulator.SimulatorError, match="nothing was watched: no launch came after"):
        nothing.steps  # noqa: B018
    assert str(nothing) == "program (0, 0, 0): no launch has been watched yet"
    assert "no launch has been watched yet" in nothing._repr_html_()
    with pytest.raises(simulator.SimulatorError, match="came too late: call it inside"):
        t.watch((0,))


def test_watching_changes_nothing():
    def result(watched):
        x, o = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(4, 8)
        with simulator.trace() as t:
            if watched:
                t.watch((1, 1))
            watched_kernel[(2, 2)](x, o, 5, 8, BLOCK=8)
        return o, t.read_bytes, t.written_bytes, t.flops, t.sram_peak_bytes

    plain, watched = result(False), result(True)
    torch.testing.assert_close(plain[0], watched[0], rtol=0, atol=0)
    assert plain[1:] == watched[1:]


def test_watching_by_name_stays_what_it_was():
    with simulator.trace(record=True, watch=("acc",)) as t:
        assert t.watched_names == {"acc"}
        watched_kernel[(2, 2)](torch.ones(4, 8), torch.zeros(4, 8), 5, 8, BLOCK=8)
    steps = t.launches[0].walk((1, 1, 0))
    assert [s.name for s in steps if s.kind == "assign"] == ["acc"] * 5
