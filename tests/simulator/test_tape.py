"""Operations that are written down and done later: the same results in any chunks, on any number of threads."""

import time

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from cme295lab import simulator
from cme295lab.simulator import dtypes, launch, player, tape
from cme295lab.simulator.steps import Step


@pytest.fixture(params=[1, 2])
def num_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    assert torch.get_num_threads() == request.param  # put back by the simulator
    torch.set_num_threads(before)


@triton.jit
def attend_kernel(q_ptr, k_ptr, v_ptr, o_ptr, keys, BLOCK: tl.constexpr):
    """Causal attention, a tile per program: tiles that neighbours share, a loop whose length differs, all kinds of
    steps."""
    tile = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    block = tl.program_id(0)
    head = tl.program_id(1)
    first = (head * tl.num_programs(0) + block) * BLOCK * BLOCK
    q = tl.load(q_ptr + first + tile)
    largest = tl.full([BLOCK], -1e30, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    acc = tl.zeros([BLOCK, BLOCK], tl.float32)
    for i in range(0, block + 1):
        start = (head * tl.num_programs(0) + i) * BLOCK * BLOCK
        k = tl.load(k_ptr + start + tile)
        v = tl.load(v_ptr + start + tile)
        s = tl.dot(q, tl.trans(k), input_precision="ieee")
        s = tl.where(i * BLOCK + tl.arange(0, BLOCK)[None, :] < keys, s, -1e30)
        new = tl.maximum(largest, tl.max(s, 1))
        p = tl.exp(s - new[:, None])
        scale = tl.exp(largest - new)
        total = total * scale + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc * scale[:, None], input_precision="ieee")
        largest = new
    tl.store(o_ptr + first + tile, (acc / total[:, None]).to(o_ptr.dtype.element_ty))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("chunk_elements", [1, 600, 1 << 20])
def test_chunks_do_not_matter(num_threads, chunk_elements, dtype):
    heads, blocks, size = 3, 5, 16
    q, k, v = (torch.randn(heads, blocks * size, size).to(dtype) for _ in range(3))
    o = torch.empty_like(q)
    for _ in range(2):  # the second launch knows the size of the blocks and takes all programs in one batch
        o.fill_(float("nan"))
        settings = launch.Settings(counting=True, chunk_elements=chunk_elements)
        launch.launch(attend_kernel, (blocks, heads), (q, k, v, o, 70), {"BLOCK": size}, settings)
    rows, columns = torch.arange(blocks * size)[:, None], torch.arange(blocks * size)[None, :]
    scores = q.double() @ k.double().mT
    scores = scores.masked_fill((columns // size > rows // size) | (columns >= 70), float("-inf"))
    error = (o.double() - scores.softmax(-1) @ v.double()).abs().max()
    assert error < {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]


@triton.jit
def product_kernel(a_ptr, b_ptr, o_ptr, BLOCK: tl.constexpr):
    """o = (a b + b) b where programs along axis 0 read the same b: as a tile, in a product, scaled, summed."""
    tile = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    a = tl.load(a_ptr + program * BLOCK * BLOCK + tile)
    b = tl.load(b_ptr + tl.program_id(1) * BLOCK * BLOCK + tile)
    half = b * 0.5
    o = tl.dot(tl.dot(a, b, input_precision="ieee") + half + half, b, input_precision="ieee")
    tl.store(o_ptr + program * BLOCK * BLOCK + tile, o + tl.sum(half * half, 0)[None, :])


@pytest.mark.parametrize("chunk_elements", [1, 256, 700, 1100, 1 << 20])
def test_shared_rows_stay_with_their_programs(num_threads, chunk_elements):
    a, b = torch.randn(4, 6, 16, 16), torch.randn(4, 1, 16, 16)
    o = torch.empty_like(a)
    for _ in range(2):
        settings = launch.Settings(chunk_elements=chunk_elements)
        launch.launch(product_kernel, (6, 4), (a, b, o), {"BLOCK": 16}, settings)
    exact = (a.double() @ b.double() + b.double()) @ b.double() + (b.double() / 2).square().sum(-2, keepdim=True)
    assert (o - exact).abs().max() < 1e-4


@triton.jit
def shift_kernel(x_ptr, ROW: tl.constexpr, BLOCK: tl.constexpr):
    """Every program moves its row one place down; what was loaded must not change while it is stored."""
    row = x_ptr + tl.program_id(0) * ROW + tl.arange(0, BLOCK)
    x = tl.load(row + 1)
    first = tl.load(row)
    tl.store(row, x)
    tl.store(row + BLOCK, first + x)


@triton.jit
def copy_up_kernel(x_ptr, ROW: tl.constexpr, BLOCK: tl.constexpr):
    """Every program moves its row one place up: the source is overwritten from its second element on."""
    row = x_ptr + tl.program_id(0) * ROW + tl.arange(0, BLOCK)
    tl.store(row + 1, tl.load(row))


def test_a_row_moves_onto_itself():
    x = torch.randn(40, 4097)
    want = torch.cat([x[:, :1], x[:, :-1]], 1)
    with simulator.enabled():
        copy_up_kernel[(40,)](x, ROW=4097, BLOCK=4096)
    assert torch.equal(x, want)


@triton.jit
def scatter_over_kernel(x_ptr, y_ptr, o_ptr, BLOCK: tl.constexpr):
    """Scattered stores over rows that were stored, and over rows that were loaded and are still to be used."""
    lanes = tl.arange(0, BLOCK)
    start = tl.program_id(0) * BLOCK
    x = tl.load(x_ptr + start + lanes)
    y = tl.load(y_ptr + start + lanes)
    tl.store(o_ptr + start + lanes, x)
    tl.store(o_ptr + start + (BLOCK - 1 - lanes), y)
    tl.store(y_ptr + start + (BLOCK - 1 - lanes), x)
    tl.store(x_ptr + start + lanes, x + y)


@triton.jit
def clear_kernel(x_ptr, o_ptr, BLOCK: tl.constexpr):
    """A number is scattered over rows that were loaded and are still to be used."""
    lanes = tl.arange(0, BLOCK)
    start = tl.program_id(0) * BLOCK
    x = tl.load(x_ptr + start + lanes)
    tl.store(x_ptr + start + (BLOCK - 1 - lanes), 7.0)
    tl.store(o_ptr + start + lanes, x)


def test_what_was_loaded_stays_when_a_number_is_stored():
    x, o = torch.randn(20, 16), torch.empty(20, 16)
    before = x.clone()
    with simulator.enabled():
        clear_kernel[(20,)](x, o, BLOCK=16)
    assert torch.equal(o, before)
    assert torch.equal(x, torch.full_like(x, 7.0))


def test_scattered_stores_come_in_order():
    x, y = torch.randn(20, 16), torch.randn(20, 16)
    before = x.clone(), y.clone()
    o = torch.empty_like(x)
    with simulator.enabled():
        scatter_over_kernel[(20,)](x, y, o, BLOCK=16)
    assert torch.equal(o, before[1].flip(1))
    assert torch.equal(y, before[0].flip(1))
    assert torch.equal(x, before[0] + before[1])


def test_what_was_loaded_stays_when_memory_changes(num_threads):
    x = torch.randn(40, 32)
    before = x.clone()
    with simulator.enabled():
        for _ in range(2):
            x.copy_(before)
            shift_kernel[(40,)](x, ROW=32, BLOCK=16)
    assert torch.equal(x[:, :16], before[:, 1:17])
    assert torch.equal(x[:, 16:], before[:, :16] + before[:, 1:17])


@triton.jit
def through_memory_kernel(x_ptr, scratch_ptr, o_ptr, BLOCK: tl.constexpr):
    """What a row store writes, a scattered load, an atomic and a row load read, one after another."""
    lanes = tl.arange(0, BLOCK)
    start = tl.program_id(0) * BLOCK
    tl.store(scratch_ptr + start + lanes, tl.load(x_ptr + start + lanes) * 2.0)
    backwards = tl.load(scratch_ptr + start + (BLOCK - 1 - lanes))
    tl.atomic_add(scratch_ptr + start + lanes, backwards)
    tl.store(o_ptr + start + lanes, tl.load(scratch_ptr + start + lanes))
    tl.store(scratch_ptr + start + (BLOCK - 1 - lanes), backwards * 0.0)


def test_accesses_of_all_kinds_see_each_other(num_threads):
    x = torch.randn(20, 16)
    scratch, o = torch.empty_like(x), torch.empty_like(x)
    with simulator.enabled():
        for _ in range(2):
            through_memory_kernel[(20,)](x, scratch, o, BLOCK=16)
    assert torch.equal(o, 2 * x + 2 * x.flip(1))
    assert torch.equal(scratch, torch.zeros_like(x))


@triton.jit
def overlapping_kernel(o_ptr, BLOCK: tl.constexpr):
    """Rows of neighbours overlap by half: the later program wins."""
    values = tl.load(o_ptr + 1000 + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))
    tl.store(o_ptr + tl.program_id(0) * (BLOCK // 2) + tl.arange(0, BLOCK), values)


def test_of_overlapping_stores_the_later_program_wins(num_threads):
    o = torch.cat([torch.zeros(1000), torch.arange(160.0)])
    with simulator.enabled():
        for _ in range(2):
            overlapping_kernel[(10,)](o, BLOCK=16)
    want = torch.zeros(1000)
    for program in range(10):
        want[program * 8 : program * 8 + 16] = torch.arange(program * 16.0, program * 16.0 + 16)
    assert torch.equal(o[:1000], want)


@triton.jit
def interleaved_kernel(x_ptr, o_ptr, ROWS: tl.constexpr, COLS: tl.constexpr, PITCH: tl.constexpr):
    """Tiles whose rows lie between and upon those of the neighbours' tiles."""
    rows, cols = tl.arange(0, ROWS)[:, None], tl.arange(0, COLS)[None, :]
    values = tl.load(x_ptr + tl.program_id(0) * ROWS * COLS + rows * COLS + cols)
    tl.store(o_ptr + tl.program_id(0) * 8 + rows * PITCH + cols, values)


def test_of_interleaved_stores_the_later_program_wins(num_threads):
    x, o = torch.randn(12, 4, 16), torch.zeros(300)
    with simulator.enabled():
        for _ in range(2):
            interleaved_kernel[(12,)](x, o, ROWS=4, COLS=16, PITCH=32)
    want = torch.zeros(300)
    for program in range(12):
        for row in range(4):
            want[program * 8 + row * 32 :][:16] = x[program, row]
    assert torch.equal(o, want)


@triton.jit
def aliases_kernel(x_ptr, u_ptr, o_ptr, BLOCK: tl.constexpr):
    """Values that are read as they are and transposed, or by a step that waits, before they are overwritten."""
    tile = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    x = tl.load(x_ptr + tl.program_id(0) * BLOCK * BLOCK + tile)
    u = tl.load(u_ptr + tile)  # the same in all programs: not deferred
    product = x * u
    u = u + 1.0
    x = x * 2.0
    both = x + tl.trans(x)
    tl.store(o_ptr + tl.program_id(0) * BLOCK * BLOCK + tile, both + product * u)


def test_no_operand_is_overwritten_too_early():
    x, u = torch.randn(6, 32, 32), torch.randn(32, 32)
    o = torch.empty_like(x)
    with simulator.enabled():
        for _ in range(2):
            aliases_kernel[(6,)](x, u, o, BLOCK=32)
    assert torch.allclose(o, 2 * x + 2 * x.mT + x * u * (u + 1), atol=1e-5)


@triton.jit
def leaving_kernel(b_ptr, o_ptr, BLOCK: tl.constexpr):
    """Tiles that runs of programs share, read before, in and after a loop that programs leave one by one."""
    lanes = tl.arange(0, BLOCK)
    number = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    b = tl.load(b_ptr + tl.program_id(1) * BLOCK + lanes)
    last = b
    total = b * 0.0
    for _ in range(0, tl.num_programs(0) * tl.num_programs(1) - number):
        total += b + last
        last = tl.load(b_ptr + tl.program_id(1) * BLOCK + lanes) * 0.5
    tl.store(o_ptr + number * BLOCK + lanes, total + last * 0.0)


@pytest.mark.parametrize("chunk_elements", [16, 100, 1 << 20])
def test_programs_leave_a_loop_with_what_they_share(num_threads, chunk_elements):
    b, o = torch.randn(4, 16), torch.empty(4, 3, 16)
    for _ in range(2):
        settings = launch.Settings(chunk_elements=chunk_elements)
        launch.launch(leaving_kernel, (3, 4), (b, o), {"BLOCK": 16}, settings)
    turns = torch.arange(12, 0, -1.0).reshape(4, 3, 1)
    assert torch.allclose(o, b[:, None] * (1.5 * turns + 0.5))


def test_the_whole_kernel_is_done_at_once_unless_programs_part(monkeypatch):
    played = []
    monkeypatch.setattr(tape, "play", lambda steps, *args, **kwargs: played.append(steps) or player.play(
        steps, *args, **kwargs
    ))  # fmt: skip
    a, b = torch.randn(4, 6, 16, 16), torch.randn(4, 1, 16, 16)
    with simulator.trace():
        for _ in range(2):
            product_kernel[(6, 4)](a, b, torch.empty_like(a), BLOCK=16)
    assert len(played) <= 2  # one for the first launch's second batch (its first has one program), one for the second
    assert all(step.tensor is None for steps in played for step in steps)  # nothing was written out


@triton.jit
def neighbour_kernel(x_ptr, BLOCK: tl.constexpr):
    """Every program reads what its neighbour writes: a race, with the same end in every run."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x_ptr + row, tl.load(x_ptr + row + BLOCK) + 1.0)


def test_racing_programs_go_in_order_on_any_number_of_threads(num_threads):
    for _ in range(20):
        x = torch.zeros(65, 16)
        settings = launch.Settings(chunk_elements=16)
        launch.launch(neighbour_kernel, (64,), (x,), {"BLOCK": 16}, settings)
        assert torch.equal(x[:64], torch.ones(64, 16))


@pytest.mark.parametrize(
    ("runs", "apart"),
    [
        ([([0, 8, 16], 8)], True),
        ([([16, 0, 8], 8)], True),
        ([([0, 8, 15], 8)], False),
        ([([0, 16], 8), ([8, 24], 8)], True),
        ([([0, 16], 8), ([8, 17], 4)], False),
        ([([0, 0], 8)], False),
    ],
)
def test_memory_that_programs_write_is_found_to_be_apart(runs, apart):
    assert player._are_disjoint([(np.array(starts), length) for starts, length in runs]) is apart


def steps_of(*functions):
    """A chain of element-wise steps on a tensor with ten rows, the last of which stores."""
    stored = torch.zeros(10, 64)
    steps = []
    for function in functions:
        steps.append(Step(function, [steps[-1] if steps else torch.ones(10, 64)], (64,), dtypes.float32))
        steps[-1].overwrites = (0,)
    write = Step(lambda rows, out, x: stored[rows].copy_(x), [steps[-1]], (64,), dtypes.float32)
    write.stores = 1
    for step in (*steps, write):
        step.first, step.count = 0, 10
    return [*steps, write], stored


def test_a_chain_of_steps_needs_one_piece_of_memory():
    steps, stored = steps_of(*[lambda rows, out, x: torch.add(x, 1, out=out)] * 12)
    plan = player._Plan(steps, [slice(0, 10)])
    assert plan.num_bytes == 10 * 64 * 4
    plan.run([slice(0, 10)])
    assert torch.equal(stored, torch.full((10, 64), 13.0))


def test_an_error_in_a_thread_comes_out_and_ends_the_others(num_threads):
    calls = []

    def fail_first(rows, out, x):
        calls.append(rows.start)
        if rows.start == 0:
            raise RuntimeError("no such luck")
        time.sleep(0.05)  # so that the error comes before the next chunk
        return x

    steps, _ = steps_of(fail_first)
    with pytest.raises(RuntimeError, match="no such luck"):
        player.play(steps, 64, finish=True)
    assert len(calls) <= 2 * num_threads - 1


def test_what_nobody_needs_is_not_done():
    def fail(rows, out, x):
        raise AssertionError("done in vain")

    steps, stored = steps_of(lambda rows, out, x: torch.mul(x, 3, out=out))
    unused = Step(fail, [steps[0]], (64,), dtypes.float32)
    unused.first, unused.count = 0, 10
    player.play([steps[0], unused, steps[1]], 1 << 20, finish=True)
    assert torch.equal(stored, torch.full((10, 64), 3.0))
