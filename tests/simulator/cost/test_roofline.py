"""Lower bounds on time, by hand and against published figures."""

import dataclasses

import pytest
import torch
import triton
import triton.language as tl

from cme295lab import simulator
from cme295lab.attention.block_sizes import LaunchConfig
from cme295lab.attention.flash import flash_forward
from cme295lab.hardware import get_device
from cme295lab.simulator.cost import roofline
from cme295lab.simulator.cost.roofline import available_format, one_after_another


@triton.jit
def product_kernel(a_ptr, b_ptr, c_ptr, SIZE: tl.constexpr, PRECISION: tl.constexpr, TO: tl.constexpr):
    i, j = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    a, b = tl.load(a_ptr + i * SIZE + j).to(TO), tl.load(b_ptr + i * SIZE + j).to(TO)
    tl.store(c_ptr + i * SIZE + j, tl.dot(a, b, input_precision=PRECISION))


def product(dtype: tl.dtype, precision: str | None = None) -> simulator.Launch:
    a, b, c = torch.ones(32, 32), torch.ones(32, 32), torch.zeros(32, 32, dtype=torch.float32)
    c = c.to(torch.int32) if dtype == tl.int8 else c
    with simulator.trace() as t:
        product_kernel[(1,)](a, b, c, SIZE=32, PRECISION=precision, TO=dtype)
    return t.launches[0]


@pytest.mark.parametrize(
    ("dtype", "precision", "number_format"),
    [
        (tl.float16, None, "fp16"), (tl.bfloat16, None, "bf16"), (tl.float32, None, "tf32"),
        (tl.float32, "tf32", "tf32"), (tl.float32, "ieee", "fp32"), (tl.float32, "tf32x3", "tf32x3"),
        (tl.float8e5, None, "fp8"), (tl.int8, None, "int8"),
    ],
)  # fmt: skip
def test_products_are_counted_by_the_format_that_a_gpu_computes_them_in(dtype, precision, number_format):
    assert product(dtype, precision).dot_flops_by_format == {number_format: 2 * 32**3}


@pytest.mark.parametrize(
    ("device", "wanted", "used"),
    [("A100", "fp16", "fp16"), ("A100", "fp8", "fp16"), ("A100", "tf32x3", "tf32"), ("H100", "fp8", "fp8"),
     ("H100", "int8", "fp8"), ("T4", "bf16", "fp32"), ("T4", "tf32", "fp32"), ("L4", "fp64_tensor", "fp64")],
)  # fmt: skip
def test_a_format_that_a_gpu_lacks_is_computed_in_the_next_wider_one(device, wanted, used):
    assert available_format(get_device(device), wanted) == used


def test_a_roof_by_hand():
    a100 = get_device("A100")  # 312 TFLOP/s in fp16, 19.5 in fp32, 2039 GB/s
    found = roofline(a100, {"fp16": 312_000_000_000}, flops=312_000_000_000 + 9_750_000_000, dram_bytes=1_019_500_000)
    assert found.compute_time_s == pytest.approx(1e-3)  # tensor cores 1 ms; the others, at the same time, half of it
    assert found.memory_time_s == pytest.approx(0.5e-3)
    assert (found.bound, found.time_s) == ("compute", found.compute_time_s)
    assert (found.dtype, found.flops, found.dot_flops) == ("fp16", 321_750_000_000, 312_000_000_000)
    assert found.intensity == pytest.approx(321.75 / 1.0195)
    assert found.ridge_point == a100.ridge_point("fp16")
    assert "bound by compute" in str(found)


def test_arithmetic_outside_of_products_may_be_what_takes_longest():
    found = roofline(get_device("A100"), {"fp16": 312_000_000}, flops=312_000_000 + 39_000_000, dram_bytes=1)
    assert found.compute_time_s == pytest.approx(2e-6)  # 39 MFLOP at the fp32 peak, products need half the time
    exact = roofline(get_device("A100"), {"fp32": 39_000_000}, flops=78_000_000, dram_bytes=1)
    assert exact.compute_time_s == pytest.approx(4e-6)  # fp32 products share the cores with everything else
    assert roofline(get_device("A100"), {"tf32x3": 52_000_000}, 52_000_000, 1).compute_time_s == pytest.approx(1e-6)


def test_an_addition_is_bound_by_memory():
    found = product(tl.float16).roofline()
    assert found.bound == "memory"
    assert found.dram_bytes == 3 * 32 * 32 * 4
    assert found.memory_time_s == pytest.approx(found.dram_bytes / 2039e9)


def test_the_format_can_be_chosen():
    done = product(tl.float32)
    assert done.roofline().dtype == "tf32"
    assert done.roofline(dtype="torch.bfloat16").dtype == "bf16"
    assert done.roofline("H100", dtype="fp8").ridge_point == get_device("H100").ridge_point("fp8")
    with pytest.raises(ValueError, match="has no peak for dtype 'fp8'"):
        done.roofline(dtype="fp8")


def test_launches_follow_each_other():
    slow, fast = (roofline(get_device("A100"), {}, flops, size) for flops, size in ((19_500_000, 1), (1, 2_039_000)))
    both = one_after_another([slow, fast], get_device("A100"))
    assert both.time_s == pytest.approx(2e-6)  # though neither resource is busy for more than 1 µs
    assert both.flops == 19_500_001
    assert one_after_another([], get_device("A100")).time_s == 0


def test_attention_is_bound_by_memory_where_scores_are_stored_and_by_arithmetic_where_not():
    """Flash attention forward does 4 N^2 d FLOPs a head, and moves Q, K, V, O and the row sums if a head fits L2: an
    intensity of N / 2 in fp16, up to softmax and row sums. Four tensors of N d elements take 8 N d bytes."""
    n, d, heads = 512, 64, 2
    q, k, v = (torch.ones(1, heads, n, d, dtype=torch.float16) for _ in range(3))
    config = LaunchConfig(block_m=64, block_n=64, num_warps=4, num_stages=2)
    with simulator.trace(device="A100") as t:
        flash_forward(q, k, v, causal=False, scale=0.125, config=config)
    found = t.roofline()
    assert found.dot_flops == heads * 4 * n * n * d
    assert found.dram_bytes == heads * (4 * n * d * 2 + n * 4)
    assert found.dtype == "fp16"
    assert found.dot_flops / found.dram_bytes == pytest.approx(n / 2, rel=0.01)
    assert found.bound == "compute"
    assert found.flops > found.dot_flops


def test_a_device_of_one_s_own():
    mine = dataclasses.replace(get_device("A100"), name="A100 at half the clock", bandwidth_bytes_per_s=1e12)
    with simulator.trace(device=mine) as t:
        product_kernel[(1,)](*(torch.ones(32, 32) for _ in range(3)), SIZE=32, PRECISION=None, TO=tl.float16)
    assert t.roofline().bandwidth_bytes_per_s == 1e12
    assert "A100 at half the clock" in str(t.roofline())
