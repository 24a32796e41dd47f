"""Error measures against numpy, one formula at a time, and against what theory says of a uniform quantiser."""

import math

import numpy as np
import pytest
import torch

from cme295lab.quantization.errors import quantization_error
from cme295lab.quantization.integers import absmax_quantize, zero_point_quantize


def test_errors_worked_by_hand():
    error = quantization_error(torch.tensor([3.0, 4.0, 0.0, 0.0]), torch.tensor([3.0, 4.5, 0.0, 0.0]))
    assert error.mse == pytest.approx(0.0625)  # .25 / 4
    assert error.rmse == pytest.approx(0.25)
    assert error.max_abs == pytest.approx(0.5)
    assert error.signal_to_noise_db == pytest.approx(20.0)  # 25 / .25 = 100
    assert error.cosine == pytest.approx(27 / math.sqrt(25 * 29.25))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_errors_equal_numpy_in_float64(dtype):
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(3, 5, 7, generator=generator).to(dtype)
        x_hat = (x.float() + torch.randn(3, 5, 7, generator=generator) / 10).to(dtype)
        a, b = x.double().numpy(), x_hat.double().numpy()
        error = quantization_error(x, x_hat)
        assert error.mse == pytest.approx(np.mean((a - b) ** 2), rel=1e-12)
        assert error.rmse == pytest.approx(np.sqrt(np.mean((a - b) ** 2)), rel=1e-12)
        assert error.max_abs == pytest.approx(np.abs(a - b).max(), rel=1e-12)
        assert error.signal_to_noise_db == pytest.approx(10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()), rel=1e-12)
        expected = (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)
        assert error.cosine == pytest.approx(expected, rel=1e-12)


def test_a_bit_more_is_worth_six_decibels():
    x = torch.rand(20_000) * 2 - 1  # uniform: theory has 20·log10(2^bits) for it, whatever the bits
    for bits in range(4, 9):
        ratio = quantization_error(x, zero_point_quantize(x, bits=bits).dequantize()).signal_to_noise_db
        assert ratio == pytest.approx(20 * math.log10(2**bits - 1), abs=0.15)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_smaller_blocks_have_smaller_errors(bits):
    x = torch.randn(64, 512)
    errors = [
        quantization_error(x, absmax_quantize(x, bits=bits, **options).dequantize()).mse
        for options in (
            {},
            {"granularity": "block", "block_size": 512},
            {"granularity": "block", "block_size": 64},
            {"granularity": "block", "block_size": 16},
        )
    ]
    assert errors == sorted(errors, reverse=True)


def test_errors_of_zeros_are_defined():
    zeros, ones = torch.zeros(4), torch.ones(4)
    nothing_lost = quantization_error(zeros, zeros)
    assert (nothing_lost.mse, nothing_lost.max_abs, nothing_lost.cosine) == (0.0, 0.0, 1.0)
    assert nothing_lost.signal_to_noise_db == math.inf
    assert quantization_error(ones, ones).signal_to_noise_db == math.inf
    only_error = quantization_error(zeros, ones)
    assert (only_error.signal_to_noise_db, only_error.cosine) == (-math.inf, 0.0)
    all_lost = quantization_error(ones, zeros)
    assert (all_lost.signal_to_noise_db, all_lost.cosine) == (0.0, 0.0)


@pytest.mark.parametrize("unit", [1e-180, 1e180])
def test_ratios_do_not_depend_on_the_unit(unit):
    x, x_hat = torch.randn(50, dtype=torch.float64), torch.randn(50, dtype=torch.float64)
    plain, scaled = quantization_error(x, x_hat), quantization_error(x * unit, x_hat * unit)
    assert scaled.signal_to_noise_db == pytest.approx(plain.signal_to_noise_db, rel=1e-9)
    assert scaled.cosine == pytest.approx(plain.cosine, rel=1e-9)
    assert scaled.rmse == pytest.approx(plain.rmse * unit, rel=1e-9)
    assert scaled.max_abs == pytest.approx(plain.max_abs * unit, rel=1e-9)


def test_errors_print_in_a_line():
    error = quantization_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]))
    assert str(error) == "rmse 0.354, worst 0.5, 20.0 dB, cosine 0.998460"


def test_what_cannot_be_compared_is_refused():
    x = torch.randn(2, 3)
    with pytest.raises(ValueError, match=r"same shape, got \(2, 3\) and \(3, 2\)"):
        quantization_error(x, x.T)
    with pytest.raises(ValueError, match=r"shape \(0, 3\) has none"):
        quantization_error(x[:0], x[:0])
    with pytest.raises(TypeError, match=r"x_hat must be one of .*got torch.int8"):
        quantization_error(x, x.to(torch.int8))
    broken = x.clone()
    broken[1, 0] = math.nan
    with pytest.raises(ValueError, match=r"x_hat has 1 of 6 values .* nan at \(1, 0\)"):
        quantization_error(x, broken)
