"""What a beginner gets wrong: the message names the kernel, the place, the value, and what to do."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from cme295lab import simulator

SCALE = 2.0


@triton.jit
def copy_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + at, tl.load(x_ptr + at, mask=at < n), mask=at < n)


@triton.jit
def unmasked_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + at, tl.load(x_ptr + at))


@triton.jit
def no_constexpr_kernel(x_ptr, y_ptr, n, BLOCK):
    tl.store(y_ptr + tl.arange(0, BLOCK), 1.0)


@triton.jit
def global_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    tl.store(y_ptr, SCALE)


@triton.jit
def condition_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, BLOCK))
    if x > 0:
        tl.store(y_ptr, 1.0)


@triton.jit
def reshape_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    x = tl.reshape(tl.load(x_ptr + tl.arange(0, BLOCK)), (4, BLOCK))
    tl.store(y_ptr, tl.sum(x))


@triton.jit
def half_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    for i in range(n / 2):
        tl.store(y_ptr + i, 1.0)


@triton.jit
def float_offset_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    tl.store(y_ptr + n / 2, 1.0)


@triton.jit
def numpy_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    tl.store(y_ptr, np.sqrt(n))


X = torch.ones(100)
PLACED = [
    (unmasked_kernel, (), {}, "lane (4,) touches element 100 of 'x'", "Mask the lanes beyond the end"),
    (no_constexpr_kernel, (), {}, "must be a compile-time integer", "declare the kernel's parameter as NAME"),
    (copy_kernel, (), {"BLOCK": 33}, "powers of two, got 33", "take 64 (triton.next_power_of_2) and mask the rest"),
    (global_kernel, (), {}, "the global 'SCALE' is a float", "write SCALE = tl.constexpr(...)"),
    (condition_kernel, (), {}, "a condition must be a scalar, got a block of shape (32,)", "use tl.where"),
    (reshape_kernel, (), {}, "cannot reshape a block of shape (32,) to (4, 32)", "numbers of elements differ"),
    (half_kernel, (), {}, "a loop bound must be an integer scalar, got fp32", "use // instead of /"),
    (float_offset_kernel, (), {}, "cannot compute pointer + fp32", "use // instead of /"),
    (numpy_kernel, (), {}, "calling the Python function sqrt on kernel values", "use a function of tl"),
    (copy_kernel, (X, X, torch.tensor(100)), {}, "'n' is a tensor, so the kernel gets a pointer", ".item()"),
    (copy_kernel, ([1.0, 2.0], X, 100), {}, "no meaning for a tuple and a block of int32", "pass a tensor"),
]  # fmt: skip


@pytest.mark.parametrize(("kernel", "args", "constants", "mistake", "advice"), PLACED)
def test_mistakes_inside_a_kernel(kernel, args, constants, mistake, advice):
    with simulator.enabled(), pytest.raises(simulator.SimulatorError) as caught:
        kernel[(4,)](*(args or (X, torch.zeros(100), 100)), **({"BLOCK": 32} | constants))
    text = str(caught.value)
    assert mistake in text
    assert advice in text
    assert f"in kernel {kernel.fn.__name__}, line {caught.value.line} of test_messages.py:\n    --> " in text


LAUNCHES = [
    ((4,), (X.numpy(), X, 100), {}, "argument 'x_ptr' of type ndarray", "pass torch.from_numpy(array)"),
    ((4,), (X.to("meta"), X, 100), {}, "argument 'x_ptr' is on meta", "put all tensors on the CPU"),
    ((4,), (X.to(torch.complex64), X, 100), {}, "dtype torch.complex64", "convert it first"),
    ((4,), (X, {}, 100), {}, "argument 'y_ptr' of type dict", "pass tensors, numbers or tuples"),
    ((100 / 32,), (X, X, 100), {}, "got (3.125,)", "round up with triton.cdiv(n, BLOCK)"),
    ((1, 1, 1, 1), (X, X, 100), {}, "got (1, 1, 1, 1)", "one to three non-negative integers"),
    ((-1,), (X, X, 100), {}, "got (-1,)", "one to three non-negative integers"),
    (lambda meta: (meta["BLOK"],), (X, X, 100), {}, "the grid function asks for 'BLOK'", "x_ptr, y_ptr, n, BLOCK"),
    ((4,), (X, X), {}, "missing a required argument: 'n'", "its parameters are x_ptr, y_ptr, n, BLOCK"),
    ((4,), (X, X, 100), {"BLOK": 3}, "unexpected keyword argument 'BLOK'", "its parameters are x_ptr, y_ptr, n, BLOCK"),
]  # fmt: skip


@pytest.mark.parametrize(("grid", "args", "constants", "mistake", "advice"), LAUNCHES)
def test_mistakes_of_a_launch(grid, args, constants, mistake, advice):
    with simulator.enabled(), pytest.raises(simulator.SimulatorError) as caught:
        copy_kernel[grid](*args, BLOCK=32, **constants)
    assert str(caught.value).startswith("launching copy_kernel: ")
    assert mistake in str(caught.value)
    assert advice in str(caught.value)
