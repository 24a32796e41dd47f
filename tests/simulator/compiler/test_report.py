"""Kernels compiled for GPUs that are not here."""

import pytest
import torch
import triton
import triton.language as tl

from cme295lab import hardware, simulator
from cme295lab.simulator import SimulatorError


@triton.jit
def matmul_kernel(a_ptr, b_ptr, c_ptr, M, N, K, scale, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    j = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    acc = tl.zeros([BM, BN], tl.float32)
    for start in range(0, K, BK):
        a = tl.load(a_ptr + i[:, None] * K + (start + k)[None, :])
        b = tl.load(b_ptr + (start + k)[:, None] * N + j[None, :])
        acc = tl.dot(a, b, acc)
    tl.store(c_ptr + i[:, None] * N + j[None, :], acc * scale)


@triton.jit
def copy_kernel(x_ptr, out_ptr, flag, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + lane)
    if flag:
        tl.store(out_ptr + lane, x)


@triton.jit
def broken_kernel(x_ptr, BLOCK: tl.constexpr):
    tl.store(x_ptr, tl.arange(0, BLOCK))


def compiled(device, dtype=torch.float16, block=64, **options):
    a = torch.empty(256, 256, dtype=dtype, device="meta")
    c = torch.empty(256, 256, device="meta")
    return simulator.compile_report(
        matmul_kernel, a, a, c, 256, 256, 256, 0.5, device=device, BM=block, BN=block, BK=32, **options
    )


@pytest.mark.parametrize(("device", "instruction"), [("A100", "HMMA"), ("H100", "HGMMA"), ("B200", "UTC")])
def test_a_product_of_16_bit_numbers_runs_on_tensor_cores(device, instruction):
    done = compiled(device)
    assert done.uses_tensor_cores
    assert instruction in done.asm["sass"]
    assert 16 <= done.registers <= 255
    assert done.spill_bytes == 0
    assert 0 < done.shared_bytes <= done.device.max_shared_bytes_per_block
    assert done.fits
    assert done.num_warps == 4
    assert done.kernel == "matmul_kernel"
    assert f"sm_{done.device.compute_capability}" in done.asm["ptx"]
    assert {"ttir", "ttgir", "llir", "ptx", "sass"} <= set(done.asm)


def test_large_tiles_do_not_fit():
    small, large = compiled("A100"), compiled("A100", block=128, num_stages=14)
    assert large.shared_bytes > large.device.max_shared_bytes_per_block > small.shared_bytes
    assert not large.fits
    assert "does not fit" in str(large)
    assert "fits" in str(small)


def test_few_warps_spill():
    done = compiled("A100", block=128, num_stages=1, num_warps=1)  # 512 accumulators a thread
    assert done.spill_bytes > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.uint16, torch.float64, torch.bool])
def test_arguments_of_all_types(dtype):
    x = torch.empty(128, dtype=dtype)
    done = simulator.compile_report(copy_kernel, x, x, True, device=hardware.get_device("A100"), BLOCK=128)
    assert not done.uses_tensor_cores
    assert done.shared_bytes == 0


def test_mistakes():
    x = torch.empty(128)
    with pytest.raises(ValueError, match="H1OO"):
        simulator.compile_report(copy_kernel, x, x, True, device="H1OO", BLOCK=128)
    with pytest.raises(SimulatorError, match="Triton cannot compile broken_kernel for A100"):
        simulator.compile_report(broken_kernel, x, device="A100", BLOCK=128)
    with pytest.raises(SimulatorError, match="argument 'flag' of type dict has no type in a kernel"):
        simulator.compile_report(copy_kernel, x, x, {}, device="A100", BLOCK=128)
    with pytest.raises(SimulatorError, match="compiling copy_kernel: missing a required argument: 'BLOCK'"):
        simulator.compile_report(copy_kernel, x, x, True, device="A100")
    with pytest.raises(SimulatorError, match=r"argument 'x_ptr' of dtype torch.complex64 has no type in a kernel"):
        simulator.compile_report(copy_kernel, x.to(torch.complex64), x, True, device="A100", BLOCK=128)
