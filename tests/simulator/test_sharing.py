"""Tiles that neighbouring programs share: the same values as if every program held its own."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from cme295lab import simulator
from cme295lab.simulator.addresses import run_length


@pytest.mark.parametrize(
    ("values", "length"),
    [
        ([5, 5, 7, 7, 1, 1], 2),
        ([3, 3, 3], 3),
        ([1, 2, 3], 1),
        ([1, 1, 2], 1),
        ([1, 1, 2, 2, 2, 2], 1),
        ([4], 1),
        ([1, 2, 2, 1], 1),
    ],
)
def test_run_length_is_that_of_equal_runs(values, length):
    assert run_length(np.array(values)) == length


@triton.jit
def shared_tile_kernel(a_ptr, b_ptr, o_ptr, BLOCK: tl.constexpr):
    """o = a b + trans(b) + b where all programs along axis 0 read the same b."""
    rows, cols = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    tile = rows * BLOCK + cols
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    a = tl.load(a_ptr + program * BLOCK * BLOCK + tile)
    b = tl.load(b_ptr + tl.program_id(1) * BLOCK * BLOCK + tile)
    acc = tl.dot(a, b, input_precision="ieee")
    acc = tl.dot(a, tl.trans(b), acc, input_precision="ieee")
    tl.store(o_ptr + program * BLOCK * BLOCK + tile, acc + tl.trans(b) + b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("grid", [(4, 3), (1, 5), (5, 1), (3, 4)])
def test_shared_tiles_give_the_values_of_separate_ones(grid, dtype):
    across, down = grid
    a = torch.randn(down, across, 16, 16).to(dtype)
    b = torch.randn(down, 1, 16, 16).to(dtype)
    o = torch.empty(a.shape)
    for _ in range(2):  # the second launch knows the size of the blocks and takes all programs in one batch
        with simulator.trace() as t:
            shared_tile_kernel[grid](a, b, o, BLOCK=16)
    exact = a.double() @ b.double() + a.double() @ b.double().mT + b.double().mT + b.double()
    assert (o - exact).abs().max() < (1e-5 if dtype == torch.float32 else 0.1)
    assert t.tensors["b"].read_bytes == a.numel() * a.element_size()  # every program asked for its tile
    assert t.tensors["b"].distinct_read_bytes == b.numel() * b.element_size()


@triton.jit
def shared_in_branches_kernel(b_ptr, o_ptr, BLOCK: tl.constexpr):
    """o = 2 b in even programs, -b in odd ones: a shared tile is narrowed to a part of its run."""
    cols = tl.arange(0, BLOCK)
    b = tl.load(b_ptr + tl.program_id(1) * BLOCK + cols)
    if tl.program_id(0) % 2 == 0:
        b = b * 2.0
    else:
        b = -b
    tl.store(o_ptr + (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)) * BLOCK + cols, b)


def test_shared_tile_is_narrowed_in_a_divergent_branch():
    b = torch.randn(3, 1, 32)
    o = torch.empty(3, 6, 32)
    with simulator.enabled():
        shared_in_branches_kernel[(6, 3)](b, o, BLOCK=32)
    assert torch.equal(o, b * torch.tensor([2.0, -1.0] * 3)[None, :, None])
