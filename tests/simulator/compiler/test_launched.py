"""What was launched can be compiled; and the FLOPs of the machine code are those that the simulator counts."""

import pytest
import torch
import triton
import triton.language as tl

from cme295lab import simulator
from cme295lab.attention import flash_attention
from cme295lab.simulator import SimulatorError
from tests.simulator.compiler.kernels import copy_kernel, matmul_kernel


def launch_matmul(**options):
    a = torch.zeros(128, 256, dtype=torch.float16)
    b = torch.zeros(256, 64, dtype=torch.float16)
    c = torch.zeros(128, 64)
    with simulator.trace(device="A100") as t:
        matmul_kernel[2, 1](a, b, c, 128, 64, 256, 1, BM=64, BN=64, BK=32, PRECISION="tf32", **options)
    return t.launches[0]


@pytest.mark.needs_triton
@pytest.mark.parametrize("device", ["A100", "H100", "B200"])
def test_flops_of_an_iteration_are_those_counted(device):
    launch = launch_matmul()
    iterations = 256 // 32
    per_iteration = launch.dot_flops // (launch.num_programs * iterations)
    assert launch.compile_report(device).main_loop.flops_per_iteration == per_iteration


@pytest.mark.needs_triton
@pytest.mark.parametrize("device", ["A100", "H100", "B200"])
def test_flops_of_an_iteration_of_attention_are_those_counted(device):
    q = torch.zeros(1, 2, 256, 64, dtype=torch.bfloat16)
    with simulator.trace(device=device) as t:
        flash_attention(q, q, q)
    (launch,) = t.launches
    iterations = 256 // launch.constants["BLOCK_N"]
    report = launch.compile_report()
    assert report.device == t.device
    assert report.main_loop.flops_per_iteration == launch.dot_flops // (launch.num_programs * iterations)
    assert report.spill_bytes == 0


@pytest.mark.needs_triton
def test_options_of_the_launch_are_the_defaults():
    launch = launch_matmul(num_warps=8, num_stages=2)
    report = launch.compile_report()
    assert (report.num_warps, report.num_stages, report.device.name) == (8, 2, "A100-80GB-SXM")
    again = launch.compile_report("H100", num_warps=4, num_stages=4)
    assert (again.num_warps, again.num_stages, again.device.name) == (4, 4, "H100-SXM5")
    plain = launch_matmul().compile_report()
    assert (plain.num_warps, plain.num_stages) == (4, 3)


@triton.autotune(configs=[triton.Config({"BLOCK": 256}, num_warps=2, num_stages=5)], key=["n"])
@triton.jit
def tuned_kernel(x_ptr, n, BLOCK: tl.constexpr):
    tl.store(x_ptr + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), 1.0)


@pytest.mark.needs_triton
def test_options_of_the_autotuner_are_the_defaults():
    with simulator.trace() as t:
        tuned_kernel[lambda meta: (512 // meta["BLOCK"],)](torch.zeros(512), 512)
    report = t.launches[0].compile_report()
    assert (report.num_warps, report.num_stages) == (2, 5)


@pytest.mark.needs_triton
def test_alignment_is_that_of_what_was_launched():
    x = torch.zeros(1025)
    with simulator.trace() as t:
        copy_kernel[1,](x[1:], x, True, BLOCK=1024)
        copy_kernel[1,](x[4:], x, True, BLOCK=512)
    odd, even = (launch.compile_report() for launch in t.launches)
    assert set(odd.loads_by_width) == {"LDG 4 B"}
    assert set(even.loads_by_width) == {"LDG 16 B"}


def test_a_record_keeps_no_data_alive():
    launch = launch_matmul()
    tensors = [v for v in launch.launched.arguments.values() if isinstance(v, torch.Tensor)]
    assert len(tensors) == 3
    assert all(t.device.type == "meta" for t in tensors)
    assert [tuple(t.shape) for t in tensors] == [(128, 256), (256, 64), (128, 64)]


@pytest.mark.needs_triton
def test_the_report_feeds_the_cache_model():
    launch = launch_matmul()
    report = launch.compile_report()
    assert launch.cache(ctas_per_sm=report.ctas_per_sm).dram_bytes > 0


def test_a_record_made_by_hand():
    launch = simulator.Launch(
        kernel="k", grid=(1, 1, 1), constants={}, config=None, tensors={}, dot_flops=0, other_flops=0,
        transcendental_ops=0, sram_peak_bytes=0, seconds=0.0,
    )  # fmt: skip
    with pytest.raises(SimulatorError, match="does not know what was launched"):
        launch.compile_report()
