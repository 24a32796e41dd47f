"""AdamW and the 4-bit kernels, compiled and launched on a CUDA device, against plain PyTorch on the CPU."""

import pytest
import torch

from cme295lab.precision import adamw_step_fused, adamw_step_reference, adamw_step_unfused
from cme295lab.quantization import fp4, nf4
from cme295lab.quantization.four_bit_kernels import dequantize, matmul, quantize

pytestmark = pytest.mark.gpu

MODULES = {"nf4": nf4, "fp4": fp4}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@pytest.mark.parametrize("step_function", [adamw_step_unfused, adamw_step_fused], ids=["unfused", "fused"])
@pytest.mark.parametrize("num_elements", [1, 5000])
def test_adamw_on_a_gpu_agrees_with_the_reference_on_the_cpu(num_elements: int, step_function) -> None:
    master = torch.randn(num_elements)
    gradient = (100 * torch.randn(num_elements)).bfloat16()
    state = [master, gradient, torch.zeros_like(master), torch.zeros_like(master), master.bfloat16()]
    on_gpu = [x.cuda() for x in state]
    options = {"learning_rate": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "inverse_scale": 1 / 96}
    for step in range(1, 4):
        adamw_step_reference(*state, step=step, **options)
        step_function(*on_gpu, step=step, **options)
    for expected, got in zip(state[:4], on_gpu):
        torch.testing.assert_close(got.cpu(), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(on_gpu[4].cpu(), state[4], rtol=2.0**-7, atol=0)


@pytest.mark.parametrize("quant_type", MODULES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "block_size"), [((64, 128), 64), ((13, 70), 64), ((2, 4097), 4096)], ids=str)
def test_4_bit_bytes_on_a_gpu_are_those_on_the_cpu(shape, block_size: int, dtype: torch.dtype, quant_type: str) -> None:
    w = torch.randn(shape).to(dtype)
    expected = MODULES[quant_type].quantize(w, block_size=block_size)
    code = MODULES[quant_type].CODE.cuda()
    packed, absmax = quantize(w.cuda(), code, block_size)
    torch.testing.assert_close(packed.cpu(), expected.packed, rtol=0, atol=0)
    torch.testing.assert_close(absmax.cpu(), expected.scales(), rtol=0, atol=0)
    got = dequantize(packed, absmax, code, shape, dtype, block_size)
    torch.testing.assert_close(got.cpu(), expected.dequantize(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_rows", "inner"), [(1, 256), (100, 256), (300, 256), (30, 130)])
def test_products_with_4_bit_weights_on_a_gpu_agree_with_float64(num_rows: int, inner: int, dtype: torch.dtype) -> None:
    tensor = nf4.quantize(torch.randn(200, inner))
    x, bias = torch.randn(num_rows, inner).to(dtype), torch.randn(200).to(dtype)
    expected = x.double() @ tensor.dequantize(dtype).double().T + bias.double()
    arguments = (tensor.packed.cuda(), tensor.scales().cuda(), nf4.CODE.cuda())
    y = matmul(x.cuda(), *arguments, 200, bias=bias.cuda()).cpu().double()
    error = ((y - expected).abs().max() / expected.abs().max()).item()
    assert error <= TOLERANCE[dtype], f"largest error {error:.1e} of the largest value"


def test_values_without_a_nearest_level_are_refused_on_a_gpu() -> None:
    w = torch.randn(200, device="cuda")
    w[70] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity, the first in block 1"):
        quantize(w, nf4.CODE.cuda())
