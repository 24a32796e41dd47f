"""Which lane an out-of-bounds error names."""

import pytest
import torch
import triton
import triton.language as tl

from cme295lab import simulator


@triton.jit
def rows_kernel(x_ptr, o_ptr, KIND: tl.constexpr):
    """Five of eight lanes, in rows of eight: the last three are masked out in every program."""
    cols = tl.arange(0, 8)
    at = tl.program_id(0) * 8 + cols
    if KIND == "load":
        tl.store(o_ptr + cols, tl.load(x_ptr + at, mask=cols < 5), mask=cols < 5)
    elif KIND == "store":
        tl.store(x_ptr + at, at.to(tl.float32), mask=cols < 5)
    else:
        tl.atomic_add(x_ptr + at, 1.0, mask=cols < 5)


@pytest.mark.parametrize("kind", ["load", "store", "atomic"])
def test_a_masked_out_lane_is_not_blamed(kind):
    """Of 22 elements program 2 touches 16 to 20; only its masked lanes point behind the end. Program 3 begins there."""
    x, o = torch.zeros(22), torch.zeros(8)
    with simulator.enabled():
        rows_kernel[(3,)](x, o, KIND=kind)
        with pytest.raises(simulator.OutOfBoundsError) as caught:
            rows_kernel[(4,)](x, o, KIND=kind)
    assert (caught.value.program, caught.value.element) == ((3, 0, 0), 24)
    assert f"out-of-bounds {kind}: program (3, 0, 0), lane (0,) touches element 24 of 'x'" in str(caught.value)
    assert f"{caught.value.lane}" == "(0,)"
    assert "3 past the last (shape (22,), strides (1,), 22 elements in memory)" in str(caught.value)
    assert "5 of the 5 active lanes of this program are outside. Nothing of the block is inside" in str(caught.value)


@triton.jit
def at(p, offset):
    return tl.load(p + offset)


@triton.jit
def tile_kernel(x_ptr, o_ptr, first_row, first_col, stride, KIND: tl.constexpr):
    """A tile of 4 x 4."""
    i = tl.arange(0, 4)
    offsets = (first_row + i)[:, None] * stride + (first_col + i)[None, :]
    if KIND == "load":
        tl.store(o_ptr, tl.sum(tl.load(x_ptr + offsets)))
    elif KIND == "nested":
        tl.store(o_ptr, tl.sum(at(x_ptr, offsets)))
    elif KIND == "masked":
        tl.store(o_ptr, tl.sum(tl.load(x_ptr + offsets, mask=(first_row + i < 6)[:, None])))
    elif KIND == "store":
        tl.store(x_ptr + offsets, 1.0)
    elif KIND == "cas":
        tl.atomic_cas(x_ptr + offsets, 0.0, 1.0)
    else:
        tl.atomic_max(x_ptr + offsets, 1.0)


def outside(x, row, col, kind="load", stride=8):
    with simulator.enabled(), pytest.raises(simulator.OutOfBoundsError) as caught:
        tile_kernel[(1,)](x, torch.zeros(1), row, col, stride, KIND=kind)
    return caught.value


@pytest.mark.parametrize("kind", ["load", "nested", "store", "atomic", "cas"])
def test_the_index_is_the_one_that_the_kernel_meant(kind):
    error = outside(torch.zeros(6, 8), 4, 2, kind)
    assert (error.index, error.lane, error.element) == ((6, 2), (2, 0), 50)
    assert "lane (2, 0) touches element 50 of 'x', index [6, 2], 3 past the last (shape (6, 8)" in str(error)
    assert "8 of the 16 active lanes of this program are outside. Mask the lanes beyond the end" in str(error)
    assert f"in kernel {'at' if kind == 'nested' else 'tile_kernel'}, line {error.line} of test_bounds.py" in str(error)


def test_one_past_the_end():
    error = outside(torch.zeros(6, 8), 2, 5)
    assert (error.index, error.lane) == ((6, 0), (3, 3))
    assert "1 past the last" in str(error)


def test_before_the_beginning():
    error = outside(torch.zeros(6, 8), -1, 2)
    assert (error.index, error.element) == ((-1, 2), -6)
    assert "touches element -6 of 'x', index [-1, 2], 6 before the first" in str(error)
    assert "Offsets must not be negative" in str(error)


def test_the_index_in_a_view_counts_from_the_view():
    """Four columns of the last rows of a larger tensor, transposed."""
    whole = torch.zeros(10, 8)
    view = whole[6:, 2:6].T
    error = outside(view, 0, 0, stride=16)
    assert (error.element, error.index) == (32, (0, 4))
    assert "80 elements in memory, of which the first 50 come before it" in str(error)
    error = outside(whole[1:], -2, 0)
    assert (error.element, error.index) == (-16, (-2, 0))
    assert "8 before the first" in str(error)


def test_lanes_that_are_masked_out_may_point_anywhere():
    with simulator.enabled():
        tile_kernel[(1,)](torch.zeros(6, 8), torch.zeros(1), 4, 2, 8, KIND="masked")


def test_a_wrong_stride():
    error = outside(torch.zeros(6, 8), 1, 0, stride=80)
    assert "Nothing of the block is inside: check the strides" in str(error)
