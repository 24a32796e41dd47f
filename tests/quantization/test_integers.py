"""Integer quantisers against plain Python, one value at a time, and against two cases worked by hand."""

import math
import random

import pytest
import torch

from cme295lab.quantization.integers import absmax_quantize, pack_codes, unpack_codes, zero_point_quantize

QUANTIZERS = {"absmax": absmax_quantize, "zero-point": zero_point_quantize}
SHAPES = [(7,), (3, 5), (2, 3, 7), (1, 1), ()]


def slices_of(x, granularity, axis, block_size):
    """The flat positions of the values that share a constant: lists, in the order of the constants."""
    positions = torch.arange(x.numel()).reshape(x.shape)
    if granularity == "tensor":
        return [positions.flatten().tolist()]
    if granularity == "channel":
        return [positions.select(axis, index).flatten().tolist() for index in range(x.shape[axis])]
    return [list(range(start, min(start + block_size, x.numel()))) for start in range(0, x.numel(), block_size)]


def plain(kind, values, bits):
    """Codes and zero point of a few numbers as the formulas have it, in Python's floats; the scale kept in float32."""
    if kind == "absmax":
        top = 2 ** (bits - 1) - 1
        scale = torch.tensor(max(abs(v) for v in values) / top, dtype=torch.float32).item() or 1.0
        return [max(-top, min(top, round(v / scale))) for v in values], scale, 0
    lowest, top = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = torch.tensor((max(values) - min(values)) / (2**bits - 1), dtype=torch.float32).item()
    zero_point = -round(min(values) / scale) + lowest
    return [max(lowest, min(top, round(v / scale) + zero_point)) for v in values], scale, zero_point


def test_absmax_worked_by_hand():
    quantized = absmax_quantize(torch.tensor([1.2, -0.5, 3.1, -2.4, 0.0]))
    assert quantized.codes.tolist() == [49, -20, 127, -98, 0]
    assert quantized.codes.dtype == torch.int8
    assert 1 / quantized.scale.item() == pytest.approx(40.9677419, rel=1e-7)  # 127 / 3.1
    assert quantized.zero_point is None
    assert quantized.dequantize().tolist() == pytest.approx([1.196063, -0.488189, 3.1, -2.392126, 0.0], abs=5e-7)


def test_zero_point_worked_by_hand():
    quantized = zero_point_quantize(torch.tensor([0.1, 1.5, 2.0, 3.9, -0.4]))
    assert quantized.codes.tolist() == [-98, -15, 15, 127, -128]
    assert quantized.scale.item() == pytest.approx(0.0168627451, rel=1e-7)  # 4.3 / 255
    assert quantized.zero_point.item() == -104
    expected = [0.101176, 1.500784, 2.006667, 3.895294, -0.404706]
    assert quantized.dequantize().tolist() == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize("kind", QUANTIZERS)
@pytest.mark.parametrize("bits", range(2, 9))
def test_quantizers_equal_plain_python_for_each_granularity(kind, bits):
    generator = torch.Generator().manual_seed(bits)
    x = torch.randn(3, 4, 7, generator=generator) * 3 + 1
    for granularity, axis, block_size in [
        ("tensor", 0, None),
        ("channel", 0, None),
        ("channel", 1, None),
        ("channel", -1, None),
        ("block", 0, 8),  # 84 values: the last block has 4
        ("block", 0, 84),
        ("block", 0, 1000),
    ]:
        quantized = QUANTIZERS[kind](x, bits=bits, granularity=granularity, axis=axis, block_size=block_size)
        restored = quantized.dequantize().flatten()
        slices = slices_of(x, granularity, axis, block_size)
        assert quantized.scale.numel() == len(slices)
        for number, positions in enumerate(slices):
            codes, scale, zero_point = plain(kind, x.flatten()[positions].tolist(), bits)
            assert quantized.codes.flatten()[positions].tolist() == codes
            assert quantized.scale.reshape(-1)[number].item() == scale
            if kind == "zero-point":
                assert quantized.zero_point.reshape(-1)[number].item() == zero_point
            expected = torch.tensor([(code - zero_point) * scale for code in codes], dtype=torch.float64).float()
            torch.testing.assert_close(restored[positions], expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", QUANTIZERS)
def test_no_value_is_off_by_more_than_its_scale_allows(kind, dtype):
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        chooser = random.Random(seed)
        shape = chooser.choice(SHAPES)
        bits, block_size = chooser.randint(2, 8), chooser.choice([1, 2, 5, 64])
        x = (torch.randn(shape, generator=generator) * 10 ** chooser.uniform(-3, 3) + chooser.uniform(-5, 5)).to(dtype)
        quantized = QUANTIZERS[kind](x, bits=bits, granularity="block", block_size=block_size)
        scale = quantized.scale.double().repeat_interleave(block_size)[: x.numel()].reshape(shape)
        error = (quantized.dequantize(torch.float64) - x.double()).abs()
        worst = 0.5 if kind == "absmax" else 1.0  # a clamped value may lose up to a whole scale
        assert (error <= scale * worst * (1 + 1e-6)).all()
        if kind == "zero-point":
            clamped = quantized.codes == 2 ** (bits - 1) - 1
            assert (error[~clamped] <= scale[~clamped] * 0.5 * (1 + 1e-6)).all()
        assert quantized.dequantize().dtype == dtype
        assert quantized.dequantize().shape == x.shape


def test_zero_point_clamps_where_rounding_min_and_max_apart_leaves_the_codes():
    x = torch.tensor([-0.5, 254.5])  # scale 1; round(-.5) = 0 and z = -128, but round(254.5) = 254 (half to even) fits
    assert zero_point_quantize(x).codes.tolist() == [-128, 126]
    x = torch.tensor([-1.5, 253.5])  # z = 2 - 128, round(253.5) = 254: 128 is one code too many
    quantized = zero_point_quantize(x)
    assert quantized.codes.tolist() == [-128, 127]
    assert quantized.dequantize().tolist() == [-2.0, 253.0]


def test_absmax_is_symmetric_and_leaves_the_lowest_code_alone():
    x = torch.randn(1000)
    for bits in range(2, 9):
        codes, mirrored = absmax_quantize(x, bits=bits).codes, absmax_quantize(-x, bits=bits).codes
        assert (codes == -mirrored).all()
        assert codes.abs().max() == 2 ** (bits - 1) - 1
    assert set(absmax_quantize(x, bits=2).codes.tolist()) == {-1, 0, 1}


def test_codes_that_tie_go_to_the_even_one():
    x = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5])
    assert absmax_quantize(x).codes.tolist() == [127, 0, 2, 2, 0, -2]


def test_an_outlier_spoils_its_channel_or_its_block_alone():
    x = torch.randn(4, 64)
    x[2, 5] = 2000.0
    whole = absmax_quantize(x)
    assert whole.codes[0].count_nonzero() == 0  # everything else lies within half a scale of 0
    for quantized in (
        absmax_quantize(x, granularity="channel"),
        absmax_quantize(x, granularity="block", block_size=64),
    ):
        error = (quantized.dequantize() - x).abs().amax(dim=1)
        assert error[2] > 1.0  # its own 63 neighbours
        assert error[[0, 1, 3]].max() < 0.02


@pytest.mark.parametrize("constant", [0.0, 3.0, -3.0, 0.1, 1e-40, -3e38, 65504.0])
@pytest.mark.parametrize("kind", QUANTIZERS)
def test_constant_tensors_come_back(kind, constant):
    x = torch.full((5, 3), constant)
    for bits in (2, 4, 8):
        restored = QUANTIZERS[kind](x, bits=bits, granularity="block", block_size=4).dequantize()
        # absmax: float32 rounds the scale, by half of its smallest step (7e-46, 127 times) where it is subnormal
        rtol, atol = (1.2e-7, 127 * 7.1e-46) if kind == "absmax" else (0, 0)
        torch.testing.assert_close(restored, x, rtol=rtol, atol=atol)


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_zero_blocks_have_scale_one_and_decode_to_zero_beside_others(kind):
    x = torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0, -3.0, 0.0])
    quantized = QUANTIZERS[kind](x, granularity="block", block_size=3)
    assert quantized.scale[[0, 2]].tolist() == [1.0, 1.0]
    restored = quantized.dequantize()
    assert restored[[0, 1, 2, 6]].tolist() == [0.0] * 4
    assert restored[3:6].tolist() == pytest.approx([1.0, 2.0, -3.0], abs=0.02)


def test_absmax_clamps_where_float32_rounds_a_tiny_scale_down():
    step = 2.0**-149  # of float32 next to zero: 190 steps / 127 is kept as one step, and 190 is no code
    assert absmax_quantize(torch.tensor([190 * step, -190 * step, step])).codes.tolist() == [127, -127, 1]


def test_zero_point_of_values_far_from_zero_stays_an_int32_and_their_order_is_kept():
    next_after_one = 1 + 2**-23
    x = torch.tensor([1.0, next_after_one])  # one step of float32: z of the plain formula would be -2^31
    quantized = zero_point_quantize(x)
    assert quantized.zero_point.dtype == torch.int32
    assert quantized.dequantize().tolist() == x.tolist()
    shifted = torch.randn(1000) + 1e4
    error = (zero_point_quantize(shifted).dequantize() - shifted).abs().max()
    assert error < (shifted.max() - shifted.min()) / 255


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_largest_values_of_a_dtype_stay_finite(dtype):
    largest = torch.finfo(dtype).max
    for kind in QUANTIZERS.values():
        for bits in (2, 8):
            quantized = kind(torch.tensor([largest, -largest, 0.0], dtype=torch.float64).to(dtype), bits=bits)
            restored = quantized.dequantize()
            assert torch.isfinite(restored).all()
            assert restored[0] > 0 > restored[1]


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0)])
@pytest.mark.parametrize("kind", QUANTIZERS)
def test_empty_tensors_stay_empty(kind, shape):
    x = torch.zeros(shape)
    for options in ({}, {"granularity": "channel"}, {"granularity": "block", "block_size": 64}):
        quantized = QUANTIZERS[kind](x, **options)
        assert quantized.dequantize().shape == shape
        assert quantized.packed().numel() == 0
        assert quantized.num_bytes == quantized.scale.nbytes * (1 if kind == "absmax" else 2)
    with pytest.raises(ValueError, match="no bits per value"):
        _ = quantized.bits_per_value


def test_transposed_and_learnt_tensors_are_quantised_by_value():
    x = torch.randn(6, 10, requires_grad=True)
    turned = absmax_quantize(x.T, granularity="block", block_size=16)
    assert torch.equal(turned.codes, absmax_quantize(x.T.contiguous(), granularity="block", block_size=16).codes)
    assert not turned.dequantize().requires_grad


def test_packing_worked_by_hand():
    assert pack_codes(torch.tensor([1, -1, 7]), 4).tolist() == [0b0001_1111, 0b0111_0000]
    assert pack_codes(torch.tensor([1, -2, 0, -1, 1]), 2).tolist() == [0b01_10_00_11, 0b01_00_00_00]
    assert pack_codes(torch.tensor([3, -4, -1]), 3).tolist() == [0b011_100_11, 0b1_0000000]
    assert pack_codes(torch.tensor([-128, 127]), 8).tolist() == [128, 127]


@pytest.mark.parametrize("bits", range(2, 9))
def test_packed_codes_come_back_and_take_no_more_bytes_than_needed(bits):
    every = list(range(-(2 ** (bits - 1)), 2 ** (bits - 1)))
    for num_codes in [0, 1, 2, 3, 5, 8, 9, 63, 64, 257]:
        codes = torch.tensor(random.Random(num_codes).choices(every, k=num_codes), dtype=torch.int8)
        packed = pack_codes(codes, bits)
        assert packed.dtype == torch.uint8
        assert packed.nbytes == math.ceil(num_codes * bits / 8)
        assert torch.equal(unpack_codes(packed, bits, num_codes), codes)
    every_code = torch.tensor(every)
    assert unpack_codes(pack_codes(every_code, bits), bits, len(every)).tolist() == every


def test_bytes_are_those_of_real_storages():
    x = torch.randn(10, 65)  # 650 values: 11 blocks of 64, the last one of 10
    block = {"granularity": "block", "block_size": 64}
    for quantized, expected in [
        (absmax_quantize(x, bits=8), 650 + 4),
        (absmax_quantize(x, bits=4), 325 + 4),
        (absmax_quantize(x, bits=2), 163 + 4),
        (absmax_quantize(x, bits=3, granularity="channel"), 244 + 10 * 4),
        (absmax_quantize(x, bits=4, **block), 325 + 11 * 4),
        (zero_point_quantize(x, bits=4, **block), 325 + 11 * 8),
        (absmax_quantize(x.double(), bits=4), 325 + 8),
    ]:
        constants = [quantized.scale] + ([] if quantized.zero_point is None else [quantized.zero_point])
        stored = quantized.packed().untyped_storage().nbytes() + sum(c.untyped_storage().nbytes() for c in constants)
        assert quantized.num_bytes == stored == expected
        assert quantized.bits_per_value == 8 * expected / 650


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", QUANTIZERS)
def test_values_that_are_not_finite_are_refused_with_count_and_place(kind, bad):
    x = torch.zeros(3, 4)
    x[1, 2] = x[2, 0] = bad
    with pytest.raises(ValueError, match=rf"x has 2 of 12 .* the first of them {bad} at \(1, 2\)"):
        QUANTIZERS[kind](x)


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_impossible_arguments_are_refused(kind):
    quantize, x = QUANTIZERS[kind], torch.randn(4, 6)
    for bits in (1, 9, 0, -4, True, 4.0, "4", None):
        with pytest.raises(ValueError, match="bits must be an int from 2 to 8, got"):
            quantize(x, bits=bits)
    for block_size in (0, -1, True, 2.0):
        with pytest.raises(ValueError, match="block_size must be an int of at least 1, got"):
            quantize(x, granularity="block", block_size=block_size)
    for axis in (2, -3, True, None, 0.0):
        with pytest.raises(ValueError, match="axis must be an int from -2 to 1, got"):
            quantize(x, granularity="channel", axis=axis)
    for options, message in [
        ({"granularity": "row"}, 'granularity must be "tensor", "channel" or "block", got \'row\''),
        ({"granularity": "block"}, "needs a block_size"),
        ({"block_size": 64}, "block_size is for granularity"),
        ({"granularity": "channel", "block_size": 64}, "block_size is for granularity"),
        ({"axis": 1}, "axis is for granularity"),
    ]:
        with pytest.raises(ValueError, match=message):
            quantize(x, **options)
    with pytest.raises(ValueError, match="x has no axes"):
        quantize(torch.tensor(1.0), granularity="channel")


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_what_is_not_a_float_tensor_is_refused(kind):
    for x in (torch.arange(3), torch.zeros(3, dtype=torch.bool), torch.zeros(3, dtype=torch.complex64)):
        with pytest.raises(TypeError, match=f"x must be one of float16, .*got {x.dtype}"):
            QUANTIZERS[kind](x)
    with pytest.raises(TypeError, match=r"x must be a torch.Tensor, got list"):
        QUANTIZERS[kind]([1.0, 2.0])


def test_codes_and_bytes_that_do_not_fit_are_refused():
    for codes in ([8], [-9], [0, 100]):
        with pytest.raises(ValueError, match="codes of 4 bits must lie from -8 to 7"):
            pack_codes(torch.tensor(codes), 4)
    with pytest.raises(ValueError, match="3 codes of 4 bits take 2 bytes, got 3"):
        unpack_codes(torch.zeros(3, dtype=torch.uint8), 4, 3)
    with pytest.raises(ValueError, match="num_codes must be"):
        unpack_codes(torch.zeros(0, dtype=torch.uint8), 4, -1)
    with pytest.raises(ValueError, match="bits must be"):
        pack_codes(torch.zeros(1, dtype=torch.int8), 1)
