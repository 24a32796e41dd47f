"""What the compiler refuses: its words in short, the line, and what to do."""

import inspect

import pytest
import torch
import triton
import triton.language as tl

from cme295lab import simulator
from cme295lab.simulator import SimulatorError
from tests.simulator.compiler.kernels import copy_kernel, empty, matmul_kernel, matmul_report

pytestmark = pytest.mark.needs_triton  # its compiler


@triton.jit
def broken_kernel(x_ptr, BLOCK: tl.constexpr):
    tl.store(x_ptr, tl.arange(0, BLOCK))


@triton.jit
def unstable_kernel(x_ptr, n):
    total = 0
    for _ in range(n):
        total += 0.5
    tl.store(x_ptr, total)


SCALE = 2.0


@triton.jit
def global_kernel(x_ptr):
    tl.store(x_ptr, SCALE)


def refusal(call, *args, **options):
    with pytest.raises(SimulatorError) as caught:
        call(*args, **options)
    assert len(caught.value.message) < 600
    assert "\n" not in caught.value.message
    return caught.value


def line_of(kernel, text):
    lines = inspect.getsource(kernel.fn).splitlines()
    return kernel.fn.__code__.co_firstlineno + next(n for n, line in enumerate(lines) if text in line)


def test_an_inner_dimension_that_is_too_small():
    error = refusal(matmul_report, inner=8)
    assert "Triton cannot compile matmul_kernel for A100-80GB-SXM (sm_80)" in error.message
    assert "No tensor cores: K, the inner dimension of tl.dot" in error.message
    assert "at least 16" in error.message
    assert error.line == line_of(matmul_kernel, "tl.dot")


def test_a_type_that_the_gpu_lacks():
    error = refusal(matmul_report, dtype=torch.float8_e4m3fn)
    assert "type fp8e4nv not supported in this architecture" in error.message
    assert "use torch.float8_e5m2, or another device" in error.message
    assert "Error(" not in error.message
    assert matmul_report("H100", torch.float8_e4m3fn).tensor_core_instructions  # which has it


def test_the_line_of_a_mistake():
    error = refusal(simulator.compile_report, broken_kernel, torch.empty(128), device="A100", BLOCK=128)
    assert "Triton cannot compile broken_kernel for A100" in error.message
    assert error.line == line_of(broken_kernel, "tl.store")


def test_a_variable_that_changes_its_type():
    error = refusal(simulator.compile_report, unstable_kernel, torch.empty(1), 3)
    assert "Give total one type and one shape before the loop and in it" in error.message


def test_a_global_that_is_no_constant():
    error = refusal(simulator.compile_report, global_kernel, torch.empty(1))
    assert "SCALE" in error.message


def test_blocks_that_are_too_large_or_no_power_of_two():
    x = empty(128)
    assert "Use smaller blocks" in refusal(simulator.compile_report, copy_kernel, x, x, True, BLOCK=1 << 21).message
    assert "triton.next_power_of_2" in refusal(simulator.compile_report, copy_kernel, x, x, True, BLOCK=100).message
