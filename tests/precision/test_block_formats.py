"""Blocks with a scale: by hand, and against an oracle that goes from value to value in float64."""

import math

import ml_dtypes
import numpy as np
import pytest
import torch

from cme295lab.precision import FORMATS
from cme295lab.precision.block_formats import MX_ELEMENTS, BlockScaled, quantize_mx, quantize_nvfp4
from tests.precision.format_oracles import LIBRARY_DTYPES


def element_of(x: float, name: str) -> float:
    limit = FORMATS[name].max
    clamped = np.array(np.clip(x, -limit, limit), dtype=np.float64)
    return float(clamped.astype(LIBRARY_DTYPES[name]).astype(np.float64))


def mx_by_loop(row: list[float], name: str, block_size: int) -> tuple[list[float], list[int]]:
    """Values and exponents of scales of one row, straight from the specification."""
    emax = {"fp8_e4m3fn": 8, "fp8_e5m2": 15, "fp6_e3m2": 4, "fp6_e2m3": 2, "fp4_e2m1": 2}[name]
    values: list[float] = []
    exponents = []
    for start in range(0, len(row), block_size):
        block = row[start : start + block_size]
        largest = max(abs(v) for v in block)
        exponent = max(-127, math.frexp(largest)[1] - 1 - emax) if largest else -127
        exponents.append(exponent)
        values += [element_of(v * 2.0**-exponent, name) * 2.0**exponent for v in block]
    return values, exponents


def nvfp4_by_loop(rows: list[list[float]]) -> list[list[float]]:
    largest = max(abs(v) for row in rows for v in row)
    tensor_scale = np.float32(largest / 2688)
    if float(tensor_scale) > largest / 2688:
        tensor_scale = np.nextafter(tensor_scale, np.float32(0))
    result = []
    for row in rows:
        result.append([])
        for start in range(0, len(row), 16):
            block = row[start : start + 16]
            wanted = max(abs(v) for v in block) / 6 / float(tensor_scale)
            scale = float(np.array(min(wanted, 448.0)).astype(ml_dtypes.float8_e4m3fn))
            if wanted > 0:
                scale = max(scale, 2.0**-9)
            factor = scale * float(tensor_scale)
            result[-1] += [element_of(v / factor, "fp4_e2m1") * factor if factor else 0.0 for v in block]
    return result


@pytest.mark.parametrize("element", MX_ELEMENTS)
@pytest.mark.parametrize(("shape", "block_size"), [((3, 64), 32), ((2, 2, 77), 32), ((5, 7), 4), ((9,), 32)])
def test_mx_is_that_of_the_specification(element: str, shape: tuple[int, ...], block_size: int) -> None:
    x = torch.randn(shape, dtype=torch.float64) * torch.exp2(torch.randint(-20, 20, shape))
    x = x.masked_fill(torch.rand(shape) < 0.1, 0.0)
    found = quantize_mx(x, element, block_size)
    rows = [mx_by_loop(row, element, block_size) for row in x.reshape(-1, shape[-1]).tolist()]
    assert found.dequantize().reshape(-1, shape[-1]).tolist() == [values for values, _ in rows]
    assert found.scales.reshape(len(rows), -1).tolist() == [[e + 127 for e in exponents] for _, exponents in rows]
    assert found.shape == found.codes.shape == x.shape
    assert found.scales.shape == (*shape[:-1], -(-shape[-1] // block_size))


@pytest.mark.parametrize("shape", [(4, 32), (3, 37), (2, 3, 16), (1,), (1, 1000)])
def test_nvfp4_is_that_of_the_loop(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape) * torch.exp2(torch.randint(-16, 6, shape))
    found = quantize_nvfp4(x)
    expected = torch.tensor(nvfp4_by_loop(x.double().reshape(-1, shape[-1]).tolist()), dtype=torch.float64)
    assert torch.equal(found.dequantize(torch.float64), expected.reshape(shape))
    assert torch.equal(found.dequantize(), expected.reshape(shape).float())
    assert found.dequantize().abs().max() <= x.abs().max()


def test_mx_by_hand() -> None:
    """The largest, 20, lies in [16, 32): scale 2^(4 - 2) = 4. 20 / 4 = 5 is a tie of 4 and 6: the even code, 4."""
    x = torch.tensor([20.0, -3.0, 1.0, 0.9, 0.0])
    found = quantize_mx(x)
    assert found.scales.tolist() == [129]
    assert found.dequantize().tolist() == [16.0, -4.0, 0.0, 0.0, 0.0]
    assert found.codes.tolist() == [0b0110, 0b1010, 0, 0, 0]
    assert quantize_mx(torch.tensor([7.0, 7.9, -7.9])).dequantize().tolist() == [6.0, 6.0, -6.0]  # clamped
    assert quantize_mx(torch.tensor([448.0, 511.0]), "fp8_e4m3fn").dequantize().tolist() == [448.0, 448.0]
    assert quantize_mx(torch.tensor([65504.0]), "fp8_e5m2").dequantize().tolist() == [57344.0]


def test_nvfp4_by_hand() -> None:
    """max 6 · 448: tensor scale 1. The second block's largest, 3, wants the scale 1/2; the third has none."""
    x = torch.cat([torch.full((16,), 2688.0), torch.tensor([3.0, -0.25, 0.1, 1.2] * 4), torch.zeros(16)])
    found = quantize_nvfp4(x)
    assert found.tensor_scale == 1.0
    assert found.scales.tolist() == [0x7E, 0x30, 0]
    assert found.dequantize()[[0, 16, 17, 18, 19, 47]].tolist() == [2688.0, 3.0, -0.25, 0.0, 1.0, 0.0]
    # A thousandth of a thousandth: the scale would be 0 and takes the smallest, 2^-9, instead
    small = quantize_nvfp4(torch.tensor([2688.0] + [0.0] * 15 + [0.004]))
    assert small.scales.tolist() == [0x7E, 1]
    assert float(small.dequantize()[16]) == 2 * 2.0**-9


def test_bits_are_counted_from_what_is_stored() -> None:
    x = torch.randn(64, 256)
    widths = {"fp8_e4m3fn": 8.25, "fp8_e5m2": 8.25, "fp6_e3m2": 6.25, "fp6_e2m3": 6.25, "fp4_e2m1": 4.25}
    assert {name: quantize_mx(x, name).bits_per_value for name in MX_ELEMENTS} == widths
    assert quantize_nvfp4(x).bits_per_value == 4.5 + 32 / x.numel()
    # 33 values: two blocks, 17 bytes of elements, two of scales
    assert quantize_mx(x[0, :33]).num_bytes == 19
    for name in MX_ELEMENTS:
        small = quantize_mx(x[:3, :33], name)
        assert small.packed().nbytes + small.scales.nbytes == small.num_bytes


def test_packing_by_hand() -> None:
    assert quantize_mx(torch.tensor([4.0, -0.5, 6.0])).packed().tolist() == [0b1001_0110, 0b0000_0111]
    codes = quantize_mx(torch.tensor([28.0, -1.0, 0.0625, 2.0]), "fp6_e3m2")
    assert codes.codes.tolist() == [0b011111, 0b101100, 0b000001, 0b010000]
    assert codes.packed().tolist() == [0b00_011111, 0b0001_1011, 0b010000_00]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_is_on_the_grid_stays(dtype: torch.dtype) -> None:
    for x in (torch.randn(8, 40).to(dtype), torch.tensor(-3.0).to(dtype), torch.zeros(2, 33).to(dtype)):
        for quantize in (quantize_mx, lambda x: quantize_mx(x, "fp6_e2m3")):
            once = quantize(x).dequantize()
            assert once.dtype == dtype
            assert once.shape == x.shape
            assert torch.equal(quantize(once).dequantize(), once)
        assert quantize_nvfp4(x).dequantize().shape == x.shape


def test_zeros_have_scales_and_stay_zero() -> None:
    mx, nvfp4 = quantize_mx(torch.zeros(2, 40)), quantize_nvfp4(torch.zeros(2, 40))
    assert mx.scales.tolist() == [[0, 0], [0, 0]]
    assert (nvfp4.tensor_scale, nvfp4.scales.unique().tolist()) == (1.0, [0])
    for found in (mx, nvfp4):
        assert found.dequantize().tolist() == [[0.0] * 40] * 2


def test_ends_of_the_ranges() -> None:
    largest = torch.tensor([FORMATS["fp32"].max, 1.0])
    assert quantize_mx(largest).dequantize().tolist() == [6 * 2.0**125, 0.0]
    assert quantize_nvfp4(largest).dequantize()[0] == pytest.approx(FORMATS["fp32"].max, rel=1e-6)
    tiny = torch.tensor([2.0**-149])
    assert quantize_mx(tiny).dequantize().tolist() == [0.0]  # 2^-127 is the smallest scale, half of it the least value
    assert quantize_mx(torch.tensor([2.0**-128])).dequantize().tolist() == [2.0**-128]
    assert quantize_nvfp4(tiny).dequantize().tolist() == [2.0**-149]
    between = torch.tensor([5107 * 2.0**-149])  # wants a tensor scale of 1.9 times the smallest fp32
    assert quantize_nvfp4(between).dequantize()[0] == pytest.approx(5107 * 2.0**-149, rel=1 / 16)


def test_a_scale_for_each_block_beats_one_for_all_and_nvfp4_beats_mx() -> None:
    """Mean squared errors of normal values with a few outliers."""
    x = torch.randn(256, 256)
    x[::16, 5] *= 50

    def error(quantized: BlockScaled) -> float:
        return float((quantized.dequantize() - x).square().mean())

    assert error(quantize_nvfp4(x)) < error(quantize_mx(x)) < error(quantize_mx(x, block_size=256)) / 2
    assert error(quantize_mx(x, "fp8_e4m3fn")) < error(quantize_mx(x, "fp6_e2m3")) < error(quantize_mx(x))


def test_what_cannot_be_quantised_is_refused() -> None:
    for quantize in (quantize_mx, quantize_nvfp4):
        with pytest.raises(ValueError, match="x holds 1 NaN and 2 infinite values of 4"):
            quantize(torch.tensor([math.nan, math.inf, -math.inf, 0.0]))
        with pytest.raises(ValueError, match=r"x is empty, shape \(3, 0\)"):
            quantize(torch.zeros(3, 0))
        with pytest.raises(TypeError, match=r"floating dtype, got torch\.int8"):
            quantize(torch.zeros(3, dtype=torch.int8))
        with pytest.raises(ValueError, match="scale x down first"):
            quantize(torch.tensor([1e300], dtype=torch.float64))
    with pytest.raises(ValueError, match=r"element must be one of fp8_e4m3fn, .* got 'fp16'"):
        quantize_mx(torch.zeros(3), "fp16")
    for block_size in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="block_size must be an int of at least 1"):
            quantize_mx(torch.zeros(3), block_size=block_size)
