"""Reads of memory that nobody has written, and what must not be taken for one."""

import pytest
import torch
import triton
import triton.language as tl

from cme295lab import simulator


@triton.jit
def copy_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + at, tl.load(x_ptr + at, mask=at < n), mask=at < n)


@triton.jit
def add_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.atomic_add(y_ptr + at, tl.load(x_ptr + at))


@triton.jit
def inner(p):
    return tl.load(p)


@triton.jit
def column_kernel(x_ptr, o_ptr, stride, ROWS: tl.constexpr):
    row = tl.arange(0, ROWS)
    tl.store(o_ptr + row, inner(x_ptr + row * stride + 3))


def copied(x, n=None, programs=None, out=None):
    """A copy of x by a kernel, of n elements by as many programs."""
    n = x.numel() if n is None else n
    out = torch.empty(x.shape, dtype=x.dtype) if out is None else out
    copy_kernel[(programs or triton.cdiv(n, 16),)](x, out, n, BLOCK=16)
    return out


def test_a_kernel_that_loads_what_nobody_has_written():
    with simulator.trace(check=True) as t:
        o = copied(torch.empty(40))
    assert len(t.problems) == 1
    found = t.problems[0]
    assert (found.kind, found.kernel, found.tensor, found.index) == ("uninitialized", "copy_kernel", "x", (0,))
    assert (found.programs, found.count) == (((0, 0, 0),), 40)
    assert found.source == "tl.store(y_ptr + at, tl.load(x_ptr + at, mask=at < n), mask=at < n)"
    assert "program (0, 0, 0) loads x[0], which nobody has written since torch.empty made it" in found.message
    assert f"line {found.line} of test_initialization.py" in found.message
    assert o.shape == (40,)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.empty(4, 8),
        lambda: torch.empty_like(torch.ones(4, 8)),
        lambda: torch.ones(3).new_empty(4, 8),
        lambda: torch.empty_strided((4, 8), (8, 1)),
        lambda: torch.ones(3).new_empty_strided((4, 8), (8, 1)),
        lambda: torch.empty_permuted((4, 8), (0, 1)),
        lambda: torch.empty(4, 8, dtype=torch.bfloat16),
        lambda: torch.empty(64).view(8, 8)[4:],
        lambda: torch.empty(4, 8).clone(),
        lambda: torch.empty(4, 8, dtype=torch.float64).float(),
        lambda: torch.zeros(4, 8).copy_(torch.empty(4, 8)),
        lambda: torch.empty(8, 4).T.contiguous(),
    ],
)
def test_every_way_to_make_an_undefined_tensor(make):
    with simulator.trace(check=True) as t:
        x, o = make(), torch.zeros(4)
        column_kernel[(1,)](x, o, 8, ROWS=4)
    assert [(p.tensor, p.index, p.count) for p in t.problems] == [("x", (0, 3), 4)]


def defined_by(write):
    x = torch.empty(4, 8)
    write(x)
    return x


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(4, 8),
        lambda: torch.empty(4, 8).fill_(1),
        lambda: torch.empty(4, 8).uniform_(),
        lambda: torch.empty(4, 8).copy_(torch.ones(8)),
        lambda: torch.add(torch.ones(4, 8), 1, out=torch.empty(4, 8)),
        lambda: defined_by(lambda x: x.__setitem__(slice(None), 2.0)),
        lambda: defined_by(lambda x: x[:, 3].fill_(2.0)),
        lambda: defined_by(lambda x: x.view(-1)[3::8].fill_(2.0)),
        lambda: defined_by(lambda x: x.view(torch.int16).zero_()),
        lambda: defined_by(lambda x: torch.mm(torch.ones(4, 2), torch.ones(2, 8), out=x)),
        lambda: defined_by(lambda x: x.numpy().fill(3)),
        lambda: defined_by(lambda x: x.detach().normal_()),
        lambda: defined_by(lambda x: copied(torch.ones(32), out=x)),
        lambda: torch.empty(4, 8, dtype=torch.float64).zero_().float(),
        lambda: torch.nn.Linear(8, 4).weight.detach(),
        lambda: torch.randn(4, 8).softmax(-1),
        lambda: torch.nn.functional.dropout(torch.ones(4, 8)),
        lambda: torch.cat([torch.ones(2, 8), torch.zeros(2, 8)]),
        lambda: torch.nn.functional.pad(torch.ones(4, 6), (0, 2)),
        lambda: torch.linalg.svd(torch.eye(8))[0][:4],
    ],
)
def test_every_way_to_define_it(make):
    with simulator.trace(check=True) as t:
        x, o = make(), torch.zeros(4)
        column_kernel[(1,)](x, o, 8, ROWS=4)
        o.sum().item()
    assert not t.problems


def test_an_atomic_on_undefined_memory():
    with simulator.trace(check=True) as t:
        y = torch.empty(16)
        add_kernel[(1,)](torch.ones(16), y, BLOCK=16)
    assert [(p.kind, p.tensor, p.count) for p in t.problems] == [("uninitialized", "y", 16)]
    assert "updates atomically y[0]" in t.problems[0].message
    assert "start from torch.zeros" in t.problems[0].message


def test_the_index_is_that_of_the_view_and_the_line_that_of_the_inner_function():
    with simulator.trace(check=True) as t:
        buffer = torch.empty(6, 10)
        x = buffer[2:]
        x[:3] = 1
        column_kernel[(1,)](x, torch.zeros(4), 10, ROWS=4)
    (found,) = t.problems
    assert (found.index, found.kernel, found.source) == ((3, 3), "column_kernel", "return tl.load(p)")


def test_a_torch_operation_that_reads_what_the_grid_has_left_out():
    x = torch.ones(5, 10)
    with simulator.trace(check=True) as t:
        y = copied(x, programs=3)
        y.sum()
    (found,) = t.problems
    assert (found.kernel, found.tensor, found.index, found.count) == ("copy_kernel", "y", (4, 8), 2)
    assert found.source == "y.sum()"
    assert "the torch operation sum reads y[4, 8], which no program of kernel copy_kernel has stored" in found.message
    assert "check that the grid has enough programs" in found.message


def test_a_result_that_nobody_has_looked_at_yet():
    with simulator.trace(check=True) as t:
        y = copied(torch.ones(50), programs=3)
        assert not t.problems
    (found,) = t.problems
    assert (found.index, found.count, found.line) == ((48,), 2, 0)
    assert "the result has y[48], which no program of kernel copy_kernel has stored" in found.message
    assert y.shape == (50,)
    assert t.summary().endswith("; 1 problem")


@pytest.mark.parametrize(
    "look",
    [lambda y: y.numpy(), lambda y: y.tolist(), lambda y: y.clone() + 1, lambda y: y == 1, lambda y: y[2:].max()],
)
def test_looking_at_a_hole_in_different_ways(look):
    with simulator.trace(check=True) as t:
        y = copied(torch.ones(50), programs=3)
        look(y)
        del y
    assert len(t.problems) == 1
    assert t.problems[0].tensor == "y"


def padded():
    """A result in a buffer with padding."""
    return copied(torch.ones(50), out=torch.empty(64))[:50]


def workspace():
    """A buffer of which only a part is used, gone when the function returns."""
    buffer = torch.empty(1000)
    copied(torch.ones(50), out=buffer)
    return copied(buffer, 50, out=torch.empty(50))


def parts():
    """Written by two kernels."""
    y = torch.empty(100)
    copied(torch.ones(50), out=y)
    copied(torch.ones(50), out=y[50:])
    return y


@pytest.mark.parametrize("run", [padded, workspace, parts, lambda: copied(torch.ones(3, 0))])
def test_padding_and_workspaces_are_no_problem(run):
    with simulator.trace(check=True) as t:
        y = run()
        assert y.sum() == y.numel()
    assert not t.problems


def test_picking_elements_is_not_judged():
    with simulator.trace(check=True) as t:
        y = copied(torch.ones(50), programs=3)
        index = torch.arange(48)
        assert (y[index] == 1).all()
        assert torch.where(torch.arange(50) < 48, y, 0).sum() == 48
        assert not t.problems
        del y


def test_an_operation_that_ignores_an_argument():
    """PyTorch passes an undefined weight, of which only the shape is used."""
    with simulator.trace(check=True) as t:
        torch.nn.grad.conv2d_weight(torch.ones(1, 1, 6, 6), (1, 1, 3, 3), torch.ones(1, 1, 4, 4))
    assert not t.problems


def test_views_and_shapes_read_nothing():
    with simulator.trace(check=True) as t:
        x = torch.empty(4, 8)
        assert torch.zeros_like(x.T).shape == x.view(8, 4).shape
        assert x.new_zeros(3).numel() == 3
        assert x.expand(2, 4, 8).stride() == (0, 8, 1)
    assert not t.problems


def test_memory_that_is_given_back_is_forgotten():
    """The next allocation may get the same address."""
    with simulator.trace(check=True) as t:
        for _ in range(5):
            copied(torch.ones(64), programs=1)
            assert torch.ones(64).mul(2).sum() == 128
    assert not t.problems


def test_the_same_problem_is_told_three_times_at_most():
    with simulator.trace(check=True) as t:
        for _ in range(5):
            copied(torch.empty(16))
    assert len(t.problems) == 3


def test_a_failed_launch_tells_its_problems():
    with simulator.trace(check=True) as t, pytest.raises(simulator.OutOfBoundsError):
        copied(torch.empty(8), n=16)
    assert not t.problems  # the load is out of bounds before it is a read
    with simulator.trace(check=True) as t, pytest.raises(simulator.OutOfBoundsError):
        copied(torch.empty(16), out=torch.zeros(8))
    assert [p.tensor for p in t.problems] == ["x"]


def test_problems_need_check():
    with simulator.trace() as t:
        copied(torch.ones(16))
    with pytest.raises(simulator.SimulatorError, match=r"nothing was checked: .*trace\(check=True\)"):
        t.problems  # noqa: B018
    assert "problem" not in t.summary()


def test_how_problems_are_shown():
    with simulator.trace(check=True) as t:
        copied(torch.ones(16))
    assert (str(t.problems), t.problems._repr_html_()) == ("no problems", "<p>no problems</p>")
    assert t.summary().endswith("; no problems")
    with simulator.trace(check=True) as t:
        copied(torch.empty(16))
    assert str(t.problems) == f"1. {t.problems[0]}"
    assert "torch.empty made it" in t.problems._repr_html_()
    assert "1 problem" in t._repr_html_()


def test_two_traces_each_see_their_own_block():
    with simulator.trace(check=True) as outer:
        x = torch.empty(16)
        with simulator.trace(check=True) as inner_trace:
            copied(x)
        with simulator.trace() as plain:
            copied(torch.ones(16))
    assert len(outer.problems) == 1
    assert not inner_trace.problems  # it was made outside
    assert len(plain.launches) == 1
