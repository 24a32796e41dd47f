"""Scales in 8 bits: bytes of bitsandbytes, a case by hand, and the bound of the error."""

import bitsandbytes.functional as theirs
import pytest
import torch

from cme295lab.quantization import DoubleQuantized, double_quantize
from cme295lab.quantization.codebooks import dynamic_code


@pytest.mark.parametrize("num_scales", [1, 2, 3, 255, 256, 257, 1000, 4096])
@pytest.mark.parametrize("exponent", [-30, -3, 0, 20])
def test_every_state_is_that_of_bitsandbytes(num_scales: int, exponent: int) -> None:
    absmax = (torch.randn(num_scales).abs() + 0.1) * 10.0**exponent
    ours = double_quantize(absmax)
    offset = absmax.mean()
    codes, state = theirs.quantize_blockwise(absmax - offset, blocksize=256)
    assert torch.equal(ours.offset, offset)
    assert torch.equal(ours.codes, codes)
    assert torch.equal(ours.nested_absmax, state.absmax)
    assert torch.equal(ours.code, state.code)
    assert torch.equal(ours.dequantize(), theirs.dequantize_blockwise(codes, state) + offset)


def test_scales_too_small_for_a_reciprocal_are_coded_as_bitsandbytes_codes_them() -> None:
    for size in (1e-38, 1e-40, 1e-44):
        absmax = torch.tensor([3.0, 1.0, 2.0, 2.0]) * size
        ours = double_quantize(absmax)
        codes, state = theirs.quantize_blockwise(absmax - absmax.mean(), blocksize=256)
        assert torch.equal(ours.codes, codes), size
        assert torch.equal(ours.nested_absmax, state.absmax), size


def test_by_hand() -> None:
    """1, 2, 6: mean 3; -2, -1, 3; largest 3; -2/3 and -1/3 lie in a decade of 64 levels, 0.9/64 apart; 1 is a level."""
    quantized = double_quantize(torch.tensor([1.0, 2.0, 6.0]))
    assert float(quantized.offset) == 3
    assert quantized.nested_absmax.tolist() == [3]
    levels = [0.1 + 0.9 * (part + 0.5) / 64 for part in (40, 16)]  # 2/3 and 1/3 lie in parts 40 and 16 of 0.1..1
    assert quantized.dequantize().tolist() == pytest.approx([3 - 3 * levels[0], 3 - 3 * levels[1], 6], rel=1e-6)


def test_one_scale_comes_back_exactly() -> None:
    """It is its own mean: nothing is left to quantise."""
    scale = torch.tensor([0.7])
    assert torch.equal(double_quantize(scale).dequantize(), scale)


def test_error_is_at_most_half_the_widest_gap_and_a_position() -> None:
    code = dynamic_code()
    widest = float((code[1:] - code[:-1]).max())
    for seed in range(20):
        absmax = torch.rand(700, generator=torch.Generator().manual_seed(seed)) + 0.5
        quantized = double_quantize(absmax)
        bound = (widest / 2 + 1 / 65535) * quantized.nested_absmax.repeat_interleave(256)[:700] + 1e-6
        assert bool(((quantized.dequantize() - absmax).abs() <= bound).all()), seed


def test_bytes_are_counted_from_storages() -> None:
    quantized = double_quantize(torch.rand(1000))
    assert quantized.num_bytes == 1000 + 4 * 4 + 4
    assert quantized.codes.untyped_storage().nbytes() == 1000  # the padding of the last block is not held


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="absmax is empty"):
        double_quantize(torch.zeros(0))
    with pytest.raises(TypeError, match=r"absmax must be torch.float32, got torch.float64"):
        double_quantize(torch.ones(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="300 codes in blocks of 256 need 2 constants, got 1"):
        DoubleQuantized(
            codes=torch.zeros(300, dtype=torch.uint8), nested_absmax=torch.ones(1), offset=torch.tensor(0.0)
        )
    with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
        DoubleQuantized(
            codes=torch.zeros(1, dtype=torch.uint8),
            nested_absmax=torch.ones(1),
            offset=torch.tensor(0.0),
            block_size=0,
        )
