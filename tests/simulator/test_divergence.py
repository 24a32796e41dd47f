"""Programs that take different paths: branches, loops of different lengths, early returns, values that meet again."""

import pytest
import torch
import triton
import triton.language as tl

from cme295lab import simulator
from cme295lab.simulator import SimulatorError


def run(kernel, *args, grid=8, **constants):
    """Run `kernel` on one int32 output of `grid` elements and return it as a list."""
    out = torch.full((grid,), -1, dtype=torch.int32)
    with simulator.enabled():
        kernel[(grid,)](out, *args, **constants)
    return out.tolist()


@triton.jit
def branch_kernel(out):
    pid = tl.program_id(0)
    if pid % 3 == 0:
        value = pid * 10
        extra = 1
    elif pid % 3 == 1:
        value = -pid
        extra = 2
    else:
        value = 7
        extra = 3
    tl.store(out + pid, value + 1000 * extra)


def test_branches_meet_again():
    assert run(branch_kernel) == [1000, 1999, 3007, 1030, 1996, 3007, 1060, 1993]


@triton.jit
def branch_blocks_kernel(out_ptr, x_ptr, BLOCK: tl.constexpr):
    pid = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + pid * BLOCK + lane)
    total = tl.sum(x)
    if total > 0:
        x = x * 2
        if pid % 2 == 0:
            x += lane
    else:
        if total < -2:
            x = tl.zeros([BLOCK], tl.float32)
    tl.store(out_ptr + pid * BLOCK + lane, x)


@pytest.mark.parametrize("block", [4, 2048])  # small and large enough to be overwritten in place
def test_blocks_of_different_paths_meet_again(block):
    x = torch.randn(16, block)
    want = x.clone()
    for pid, row in enumerate(x):
        if row.sum() > 0:
            want[pid] = row * 2 + (torch.arange(block) if pid % 2 == 0 else 0)
        elif row.sum() < -2:
            want[pid] = 0
    got = torch.empty_like(x)
    with simulator.enabled():
        branch_blocks_kernel[(16,)](got, x, BLOCK=block)
    assert torch.equal(got, want)


@triton.jit
def one_path_kernel(out):
    pid = tl.program_id(0)
    if pid < 3:
        value = pid
    tl.store(out + pid, value)


@triton.jit
def never_read_kernel(out):
    pid = tl.program_id(0)
    if pid > 3:
        value = pid
        tl.store(out + pid, value)


def test_a_value_of_one_path_only_is_an_error_when_it_is_read():
    with pytest.raises(SimulatorError, match=r"'value' has no value in some programs(.|\n)*line \d+"):
        run(one_path_kernel)
    assert run(never_read_kernel) == [-1, -1, -1, -1, 4, 5, 6, 7]


@triton.jit
def two_types_kernel(out, KIND: tl.constexpr):
    pid = tl.program_id(0)
    if pid > 3:
        if KIND == "numbers":
            value = 1
        elif KIND == "block and number":
            value = tl.full([1], 2, tl.int32)
        elif KIND == "int32 and number":
            value = pid
        elif KIND == "types":
            value = pid.to(tl.float32)
        else:
            value = (pid, pid)
    else:
        if KIND == "types":
            value = pid
        else:
            value = 1.5
    tl.store(out + pid, value)


@pytest.mark.parametrize("kind", ["numbers", "block and number", "int32 and number", "types", "tuple"])
def test_a_value_of_two_types_is_an_error(kind):
    with pytest.raises(SimulatorError, match=r"'value'.*(different types|differs)"):
        run(two_types_kernel, kind)


@triton.jit
def numbers_kernel(out):
    pid = tl.program_id(0)
    if pid > 3:
        value = 5
        flag = True
    else:
        value = 6
        flag = pid > 1
    tl.store(out + pid, value + flag.to(tl.int32) * 10)


def test_different_numbers_become_a_value():
    assert run(numbers_kernel) == [6, 6, 16, 16, 15, 15, 15, 15]


@triton.jit
def two_tensors_kernel(out, a_ptr, b_ptr):
    pid = tl.program_id(0)
    if pid % 2 == 0:
        p = a_ptr + pid
    else:
        p = b_ptr + pid
    tl.store(out + pid, tl.load(p))


@triton.jit
def same_tensor_kernel(out, a_ptr):
    pid = tl.program_id(0)
    if pid % 2 == 0:
        p = a_ptr + pid
    else:
        p = a_ptr
    tl.store(out + pid, tl.load(p))


def test_pointers_meet_whether_they_point_into_one_tensor_or_several():
    a = torch.arange(8, dtype=torch.int32) * 3
    assert run(same_tensor_kernel, a) == [0, 0, 6, 0, 12, 0, 18, 0]
    assert run(two_tensors_kernel, a, a + 100) == [0, 103, 6, 109, 12, 115, 18, 121]


@triton.jit
def ragged_kernel(out, lengths_ptr, STEP: tl.constexpr):
    pid = tl.program_id(0)
    n = tl.load(lengths_ptr + pid)
    total = 0
    last = -5
    for i in range(0, n, STEP):
        total += i
        last = i
        if i == 3:
            total += 100
    tl.store(out + pid, total * 1000 + last)


@pytest.mark.parametrize("step", [1, 2, -1, -3])
def test_loops_of_different_length(step):
    lengths = torch.tensor([0, 5, 1, -4, 9, 3, 0, -7], dtype=torch.int32)

    def expected(n):
        total, last = 0, -5
        for i in range(0, n, step):
            total += i + (100 if i == 3 else 0)
            last = i
        return total * 1000 + last

    assert run(ragged_kernel, lengths, STEP=step) == [expected(n) for n in lengths.tolist()]


@triton.jit
def ragged_start_kernel(out, first_ptr, step_ptr):
    pid = tl.program_id(0)
    total = 0
    for i in tl.range(tl.load(first_ptr + pid), 10, tl.load(step_ptr + pid), num_stages=2):
        total = total * 2 + i
    tl.store(out + pid, total)


def test_loops_with_different_starts_and_steps():
    first = torch.tensor([0, 9, 10, 5, -3, 8, 2, 1], dtype=torch.int32)
    step = torch.tensor([1, 2, 1, 5, 4, 1, 3, 7], dtype=torch.int32)
    want = []
    for a, s in zip(first.tolist(), step.tolist()):
        total = 0
        for i in range(a, 10, s):
            total = total * 2 + i
        want.append(total)
    assert run(ragged_start_kernel, first, step) == want


@triton.jit
def collatz_kernel(out, start_ptr):
    pid = tl.program_id(0)
    n = tl.load(start_ptr + pid)
    steps = 0
    while n != 1:
        if n % 2 == 0:
            n = n // 2
        else:
            n = 3 * n + 1
        steps += 1
    tl.store(out + pid, steps)


def collatz(n):
    steps = 0
    while n != 1:
        n, steps = (n // 2 if n % 2 == 0 else 3 * n + 1), steps + 1
    return steps


def test_while_of_different_length_collatz():
    start = torch.arange(1, 65, dtype=torch.int32)
    assert run(collatz_kernel, start, grid=64) == [collatz(n) for n in range(1, 65)]


@triton.jit
def doubling_kernel(out, x_ptr, BLOCK: tl.constexpr):
    pid = tl.program_id(0)
    x = tl.load(x_ptr + pid)
    while x < 100:
        x = x * 2  # the last statement reads what the condition reads
    tl.store(out + pid, x.to(tl.int32))


def test_while_condition_reads_what_the_last_statement_overwrites():
    x = torch.tensor([1.0, 3, 99, 100, 512, 7, 50, 51])
    assert run(doubling_kernel, x, BLOCK=1) == [128, 192, 198, 100, 512, 112, 100, 102]


@triton.jit
def early_return_kernel(out):
    pid = tl.program_id(0)
    if pid == 2:
        return
    value = pid * 2
    if pid > 4:
        tl.store(out + pid, -value)
        return
    tl.store(out + pid, value)


def test_early_return():
    assert run(early_return_kernel) == [0, 2, -1, 6, 8, -10, -12, -14]


@triton.jit
def return_in_loop_kernel(out, limits_ptr):
    pid = tl.program_id(0)
    limit = tl.load(limits_ptr + pid)
    total = 0
    for i in range(0, 10):
        total += i
        if total > limit:
            tl.store(out + pid, i)
            return
    tl.store(out + pid, 99)


@triton.jit
def return_in_ragged_loop_kernel(out, limits_ptr):
    pid = tl.program_id(0)
    limit = tl.load(limits_ptr + pid)
    total = 0
    for i in range(0, pid + 4):
        total += i
        if total > limit:
            tl.store(out + pid, i)
            return
        total += 1
    tl.store(out + pid, 100 + total)


@triton.jit
def return_in_while_kernel(out, limits_ptr):
    pid = tl.program_id(0)
    limit = tl.load(limits_ptr + pid)
    total = 0
    i = 0
    while i < pid + 4:
        total += i
        if total > limit:
            tl.store(out + pid, i)
            return
        total += 1
        i += 1
    tl.store(out + pid, 100 + total)


def test_return_inside_loops():
    limits = torch.tensor([100, 3, 0, 44, 10, 1000, 20, 5], dtype=torch.int32)

    def plain(pid, limit, trips, extra):
        total = 0
        for i in range(trips):
            total += i
            if total > limit:
                return i
            total += extra
        return 99 if not extra else 100 + total

    assert run(return_in_loop_kernel, limits) == [plain(p, n, 10, 0) for p, n in enumerate(limits.tolist())]
    want = [plain(p, n, p + 4, 1) for p, n in enumerate(limits.tolist())]
    assert run(return_in_ragged_loop_kernel, limits) == want
    assert run(return_in_while_kernel, limits) == want


@triton.jit
def classify(x, LOW: tl.constexpr = 2):
    if x < LOW:
        return x - 100, 0
    y = x * x
    if x > 5:
        return -y, 1
    return y, 2


@triton.jit
def nested_return_kernel(out):
    pid = tl.program_id(0)
    value, kind = classify(pid)
    other, _ = classify(pid, LOW=4)
    tl.store(out + pid, value * 10 + kind + other * 10000)


def test_functions_return_on_different_paths():
    def plain(x, low=2):
        return (x - 100, 0) if x < low else (-x * x, 1) if x > 5 else (x * x, 2)

    want = [plain(p)[0] * 10 + plain(p)[1] + plain(p, 4)[0] * 10000 for p in range(8)]
    assert run(nested_return_kernel) == want


@triton.jit
def sometimes(x, KIND: tl.constexpr):
    if x < 4:
        return x
    if KIND == "number":
        return 1.5
    if KIND == "tuple":
        return x, x


@triton.jit
def inconsistent_return_kernel(out, KIND: tl.constexpr):
    pid = tl.program_id(0)
    tl.store(out + pid, sometimes(pid, KIND) + 1)


@pytest.mark.parametrize("kind", ["nothing", "number", "tuple"])
def test_a_function_that_returns_different_things_is_an_error(kind):
    with pytest.raises(SimulatorError, match=r"sometimes.*(returns|different types|differs)"):
        run(inconsistent_return_kernel, kind)


@triton.jit
def nest_kernel(out, x_ptr):
    pid = tl.program_id(0)
    total = 0
    for i in range(0, pid):
        if i % 2 == 0:
            j = 0
            while j < i + pid:
                if (j + pid) % 3 == 0:
                    total += j
                else:
                    for k in tl.static_range(3):
                        total += k * tl.load(x_ptr + (i + k) % 8)
                j += 1
                if total > 500:
                    tl.store(out + pid, -total)
                    return
        else:
            total -= 1
    tl.store(out + pid, total)


def test_loops_in_branches_in_loops():
    x = torch.tensor([3, -1, 4, 1, -5, 9, 2, 6], dtype=torch.int32)

    def plain(pid):
        total = 0
        for i in range(pid):
            if i % 2 == 0:
                for j in range(i + pid):
                    total += j if (j + pid) % 3 == 0 else sum(k * x[(i + k) % 8].item() for k in range(3))
                    if total > 500:
                        return -total
            else:
                total -= 1
        return total

    assert run(nest_kernel, x) == [plain(p) for p in range(8)]
    assert run(nest_kernel, x, grid=20) == [plain(p) for p in range(20)]


@triton.jit
def ternary_kernel(out, x_ptr, n):
    pid = tl.program_id(0)
    value = tl.load(x_ptr + pid) if pid < n else 0
    tl.store(out + pid, value)


def test_a_conditional_expression_evaluates_only_the_branch_that_is_taken():
    x = torch.tensor([5, 6, 7], dtype=torch.int32)
    assert run(ternary_kernel, x, 3) == [5, 6, 7, 0, 0, 0, 0, 0]


@triton.jit
def ternary_types_kernel(out):
    pid = tl.program_id(0)
    value = pid if pid < 3 else 1.5
    tl.store(out + pid, value)


def test_a_conditional_expression_has_one_type():
    with pytest.raises(SimulatorError, match="different types"):
        run(ternary_types_kernel)


@triton.jit
def swap_kernel(out):
    pid = tl.program_id(0)
    a, b = pid, pid * 10
    for i in range(0, pid):
        a, b = b, a + 1
        (c, d), e = (a, b), i
        a = c + 0 * d + 0 * e
    tl.store(out + pid, a * 1000 + b)


def test_tuple_assignment_in_a_ragged_loop():
    want = []
    for pid in range(8):
        a, b = pid, pid * 10
        for _ in range(pid):
            a, b = b, a + 1
        want.append(a * 1000 + b)
    assert run(swap_kernel) == want


@triton.jit
def carried_tuple_kernel(out):
    pid = tl.program_id(0)
    state = (pid, 1)
    while state[0] < 20:
        state = (state[0] + state[1] + 1, state[1] * 2)
    tl.store(out + pid, state[0] * 100 + state[1])


def test_a_tuple_is_carried_through_a_divergent_loop():
    want = []
    for pid in range(8):
        a, b = pid, 1
        while a < 20:
            a, b = a + b + 1, b * 2
        want.append(a * 100 + b)
    assert run(carried_tuple_kernel) == want


@triton.jit
def aliases_kernel(out_ptr, x_ptr, BLOCK: tl.constexpr):
    """Two names for one value, kept across branches, loops and overwritten originals."""
    pid = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + pid * BLOCK + lane)
    y = x
    pair = (x, y)
    if pid % 2 == 0:
        x = x + 1.0
    z = y * 1.0
    for _i in range(0, pid):
        y = y + x
    z = z - pair[0]
    w = tl.trans(tl.reshape(y, [BLOCK // 2, 2]))
    y = y * 2.0
    w = tl.reshape(tl.trans(w), [BLOCK])
    tl.store(out_ptr + pid * BLOCK + lane, x + y + z + w)


@pytest.mark.parametrize("block", [8, 1024])
def test_two_names_for_one_value(block):
    x = torch.randint(-9, 9, (6, block)).float()
    got = torch.empty_like(x)
    with simulator.enabled():
        aliases_kernel[(6,)](got, x, BLOCK=block)
    pid = torch.arange(6.0)[:, None]
    bumped = x + (pid % 2 == 0)
    y = x + pid * bumped
    assert torch.equal(got, bumped + 2 * y + y)


@triton.jit
def uniform_kernel(out, n):
    pid = tl.program_id(0)
    value = pid
    if n > 3:
        value = value * 2.5  # of another type: every program takes this path, so nothing has to be merged
    tl.store(out + pid, value.to(tl.int32))


def test_a_condition_that_agrees_everywhere_is_plain_control_flow():
    assert run(uniform_kernel, 4) == [int(p * 2.5) for p in range(8)]
    assert run(uniform_kernel, 3) == list(range(8))
