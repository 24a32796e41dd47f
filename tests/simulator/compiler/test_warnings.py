"""Each warning: a kernel that deserves it, and one that does not."""

import pytest
import torch

from cme295lab import simulator
from tests.simulator.compiler.kernels import (
    copy_kernel,
    empty,
    matmul_report,
    product_without_dot_kernel,
    transpose_kernel,
)

pytestmark = pytest.mark.needs_triton  # its compiler


def starting(report, text):
    """The warnings that start with a text."""
    return [w for w in report.warnings if w.startswith(text)]


def test_a_well_made_kernel_has_none():
    assert matmul_report().warnings == []
    assert "nothing to complain about" in str(matmul_report())


def test_spills():
    report = matmul_report(block=128, num_stages=1, num_warps=1)
    (warning,) = starting(report, "spills")
    assert f"spills {report.spill_store_bytes} B (and loads {report.spill_load_bytes} B back) a thread" in warning
    assert "num_warps=1" in warning
    assert not starting(matmul_report(block=128, num_warps=8), "spills")


def test_no_tensor_cores_for_fp32_in_full_precision():
    (warning,) = starting(matmul_report(dtype=torch.float32, precision="ieee"), "no tensor cores")
    assert 'on fp32 with input_precision "ieee"' in warning
    assert not starting(matmul_report(dtype=torch.float32, precision="tf32"), "no tensor cores")


def test_a_product_without_dot():
    x = empty(256, 256, dtype=torch.float32)
    naive = simulator.compile_report(product_without_dot_kernel, x, x, x, 256, 256, 256, device="A100", BM=64, BN=64)
    assert starting(naive, "no tensor cores: the loop multiplies and adds tiles element by element; write")
    small = simulator.compile_report(product_without_dot_kernel, x, x, x, 256, 256, 256, device="A100", BM=16, BN=16)
    assert not starting(small, "no tensor cores")  # 2 products a thread: nothing for a matrix instruction


def test_narrow_accesses():
    x = empty(256, 256, dtype=torch.float32)

    def transposed(size):
        return simulator.compile_report(transpose_kernel, x, x, size, size, device="A100", BLOCK=64)

    load, store = starting(transposed(255), "narrow")
    first = transpose_kernel.fn.__code__.co_firstlineno
    assert f"loads of 4 B per thread in line {first + 4} (x = tl.load(x_ptr" in load
    assert "where 16 B are possible" in load
    assert f"stores of 4 B per thread in line {first + 5}" in store
    assert not starting(transposed(256), "narrow")


def test_narrow_operand_of_a_product():
    (warning,) = starting(matmul_report(stride=3), "narrow")
    assert "loads of 2 B per thread" in warning
    assert "(a = tl.load(" in warning


def test_a_tile_with_few_elements_a_thread_is_not_called_narrow():
    x = empty(128, dtype=torch.float32)
    small = simulator.compile_report(copy_kernel, x, x, True, device="A100", BLOCK=128)  # one element a thread
    assert set(small.loads_by_width) == {"LDG 4 B"}
    assert not starting(small, "narrow")


def test_occupancy():
    limited = matmul_report(block=64, inner=64, num_stages=9)  # 128 KiB of shared memory
    assert starting(limited, "occupancy 6.25 % limited by shared memory")
    assert not starting(matmul_report(), "occupancy")


def test_shared_memory_that_does_not_fit():
    large = matmul_report(block=128, num_stages=14)
    (warning,) = starting(large, "shared memory does not fit the device")
    assert "163 KiB a block on A100-80GB-SXM" in warning
    assert "num_stages=14" in warning
    assert not starting(large, "occupancy")  # which would say the same again
    assert not starting(matmul_report("H100", block=64, num_stages=4), "shared memory")


def test_a_loop_that_waits_for_its_loads():
    (warning,) = starting(matmul_report(num_stages=1), "not pipelined")
    assert "(now 1)" in warning
    assert not starting(matmul_report(num_stages=2), "not pipelined")


@pytest.mark.parametrize("device", ["A100", "H100", "B200"])
def test_a_naive_kernel_is_told_what_is_wrong(device):
    report = matmul_report(device, torch.float32, stride=3, precision="ieee", num_stages=1)
    assert {w.split(":")[0] for w in report.warnings} >= {"no tensor cores", "narrow"}
    for warning in report.warnings:
        assert warning in str(report)
