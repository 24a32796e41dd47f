"""Formulas against counts: what the simulator sees the kernels read and write, byte for byte."""

import pytest
import torch

from cme295lab import simulator
from cme295lab.attention import flash_attention, io, standard_attention_kernels
from tests.attention.oracle import make_inputs

LSE_BYTES = 4


def traced(attention, *, backward: bool = False, batch=2, heads=3, length=128, dim=32, **options):
    q, k, v, do = make_inputs(batch=batch, heads=heads, len_q=length, dim=dim, dtype=torch.float16)
    inputs = [t.requires_grad_(backward) for t in (q, k, v)]
    with simulator.trace() as t:
        o = attention(*inputs, **options)
        if backward:
            o.backward(do)
    return t


@pytest.mark.parametrize(("causal", "length"), [(False, 128), (True, 128), (False, 150), (True, 150)])
@pytest.mark.parametrize(("block_m", "block_n"), [(32, 32), (64, 16), (16, 64)])
def test_flash_forward_moves_what_the_formula_says(block_m, block_n, causal, length):
    t = traced(flash_attention, length=length, causal=causal, block_m=block_m, block_n=block_n)
    elements = io.flash2_forward_elements(length, 32, block_m, causal=causal, block_n=block_n)
    lse = length
    assert t.requested_bytes == 6 * ((elements - lse) * 2 + lse * LSE_BYTES)
    assert t.tensors["q"].read_bytes == t.tensors["o"].written_bytes == 6 * length * 32 * 2
    assert t.tensors["lse"].written_bytes == 6 * length * LSE_BYTES
    assert t.tensors["k"].read_bytes == t.tensors["v"].read_bytes
    assert t.tensors["k"].distinct_read_bytes == 6 * length * 32 * 2


@pytest.mark.parametrize("length", [128, 150])
def test_flash_backward_moves_what_the_formula_says(length):
    both = traced(flash_attention, backward=True, length=length, block_m=32, block_n=64)
    forward = traced(flash_attention, length=length, block_m=32, block_n=64)
    elements = io.flash2_backward_elements(length, 32, block_m=32, block_n=64)
    # delta written; lse and delta read per tile of keys for dK and dV; read once for dQ
    statistics = length + (2 * length) * -(-length // 64) + 2 * length
    assert both.requested_bytes - forward.requested_bytes == 6 * ((elements - statistics) * 2 + statistics * 4)


def test_standard_moves_18_nn_and_12_nd():
    t = traced(standard_attention_kernels, backward=True, causal=True, additive_mask=True, dropout_p=0.1)
    nn, nd = 6 * 128 * 128 * 2, 6 * 128 * 32 * 2
    assert t.distinct_bytes == 18 * nn + 12 * nd
    assert t.distinct_bytes == io.paper_table_bytes(batch=2, heads=3, n=128, d=32).standard_bytes
    assert [launch.kernel for launch in t.launches] == [
        "scores_kernel", "mask_kernel", "softmax_kernel", "dropout_kernel", "output_kernel",
        "value_grad_kernel", "probability_grad_kernel", "dropout_backward_kernel", "softmax_backward_kernel",
        "query_grad_kernel", "key_grad_kernel",
    ]  # fmt: skip
    for step, launch in zip(io.STANDARD_STEPS, t.launches, strict=True):
        expected = step.score_matrices * nn + step.row_matrices * nd + step.byte_masks * nn // 2
        assert launch.distinct_bytes == expected, step.name


def test_standard_without_mask_and_dropout_moves_what_the_pseudocode_says():
    forward = traced(standard_attention_kernels)
    assert forward.distinct_bytes == 6 * 2 * io.standard_forward_elements(128, 32)
    both = traced(standard_attention_kernels, backward=True)
    assert both.distinct_bytes - forward.distinct_bytes == 6 * 2 * io.standard_backward_elements(128, 32)


def test_flash_moves_less_and_computes_more_than_standard():
    flash = traced(flash_attention, backward=True, batch=1, heads=1, length=512, block_m=64, block_n=64)
    standard = traced(standard_attention_kernels, backward=True, batch=1, heads=1, length=512)
    assert flash.requested_bytes < standard.distinct_bytes / 2
    # Forward 2 products; backward 4 in standard attention, 5 in the algorithm and 7 here: two kernels form S and dP.
    product = 2 * 512 * 512 * 32
    assert standard.dot_flops == (2 + 4) * product
    assert flash.dot_flops == (2 + 7) * product


def test_causal_flash_skips_the_blocks_above_the_diagonal():
    product, blocks = 2 * 64 * 64 * 32, 1 + 2 + 3 + 4
    t = traced(flash_attention, backward=True, batch=1, heads=1, length=256, causal=True, block_m=64, block_n=64)
    flops = {launch.kernel: launch.dot_flops for launch in t.launches}
    assert flops["forward_kernel"] == 2 * blocks * product
    assert flops["key_value_grads_kernel"] == 4 * blocks * product
    assert flops["query_grad_kernel"] == 3 * blocks * product
