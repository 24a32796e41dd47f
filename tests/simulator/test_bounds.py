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
