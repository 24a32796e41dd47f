"""4-bit kernels: the bytes of bitsandbytes, products against float64, and bytes counted.

bitsandbytes' own dequantisation on a CPU is wrong for rows that are a multiple of 16 but not of the block, so elsewhere
the oracle is written out here: levels x scales.
"""

import math

import bitsandbytes.functional as theirs
import pytest
import torch
from torch import Tensor

from cme295lab import simulator
from cme295lab.quantization import four_bit_kernels, fp4, nf4

CODES = {"nf4": nf4.CODE, "fp4": fp4.CODE}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ROUNDOFF = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 0.0}


def levels_times_scales(packed: Tensor, absmax: Tensor, code: Tensor, shape: tuple[int, ...], block_size: int):
    """Weights in fp32, code by code."""
    codes = torch.stack((packed.flatten() >> 4, packed.flatten() & 15), 1).flatten()[: math.prod(shape)]
    scales = absmax.repeat_interleave(block_size)[: math.prod(shape)]
    return (code[codes.long()] * scales).view(shape)


@pytest.mark.parametrize("quant_type", CODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "block_size"),
    [((64, 64), 64), ((1,), 64), ((7, 33), 64), ((5, 96), 32), ((3, 43), 128), ((2, 4097), 4096)],
    ids=str,
)
def test_quantize_writes_the_bytes_of_bitsandbytes(shape, block_size, dtype, quant_type):
    for seed, magnitude in enumerate((1e-4, 1.0, 100.0)):
        w = (magnitude * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)
        expected, state = theirs.quantize_4bit(w, blocksize=block_size, quant_type=quant_type)
        packed, absmax = four_bit_kernels.quantize(w, CODES[quant_type], block_size)
        assert torch.equal(packed, expected)
        assert torch.equal(absmax, state.absmax)


@pytest.mark.parametrize("quant_type", CODES)
def test_values_at_and_beside_midpoints_get_the_code_of_bitsandbytes(quant_type):
    levels = CODES[quant_type].sort().values
    middles = (levels[:-1] + levels[1:]) / 2
    beside = [torch.nextafter(middles, torch.full_like(middles, end)) for end in (-2.0, 2.0)]
    w = torch.cat([middles, *beside, levels, torch.tensor([0.0, -0.0, 1.0])])  # 64 values, scale 1
    packed, absmax = four_bit_kernels.quantize(w, CODES[quant_type])
    assert torch.equal(packed, theirs.quantize_4bit(w, quant_type=quant_type)[0])
    assert absmax.tolist() == [1.0]


def test_a_block_worked_by_hand():
    packed, absmax = four_bit_kernels.quantize(torch.tensor([0.5, -2.0, 0.1, 1.4, 0.0]), nf4.CODE)
    assert absmax.tolist() == [2.0]
    assert packed.flatten().tolist() == [0xA0, 0x8E, 0x77]  # .25 -> 10, -1 -> 0, .05 -> 8, .7 -> 14, 0 and padding -> 7


@pytest.mark.parametrize("quant_type", CODES)
def test_blocks_of_zeros_and_of_tiny_values(quant_type):
    w = torch.zeros(3 * 64 - 5)
    w[64] = 1e-40  # subnormal: its reciprocal would be infinite
    packed, absmax = four_bit_kernels.quantize(w, CODES[quant_type])
    expected, state = theirs.quantize_4bit(w, quant_type=quant_type)
    assert torch.equal(packed, expected)
    assert torch.equal(absmax, state.absmax)
    assert not four_bit_kernels.dequantize(packed, absmax, CODES[quant_type], (187,), torch.float32)[:64].any()


@pytest.mark.parametrize("quant_type", CODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "block_size"), [((3, 128), 64), ((7, 33), 64), ((1,), 32), ((2, 4097), 4096)], ids=str
)
def test_dequantize_is_level_times_scale_rounded_once(shape, block_size, dtype, quant_type):
    w = torch.randn(shape).to(dtype)
    packed, state = theirs.quantize_4bit(w, blocksize=block_size, quant_type=quant_type)
    code = CODES[quant_type]
    got = four_bit_kernels.dequantize(packed, state.absmax, code, shape, dtype, block_size)
    assert torch.equal(got, levels_times_scales(packed, state.absmax, code, shape, block_size).to(dtype))
    if shape[-1] % block_size == 0:
        assert torch.equal(got, theirs.dequantize_4bit(packed, state))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("num_rows", "num_cols", "inner", "block_size"),
    [(1, 1, 64, 64), (33, 70, 192, 64), (300, 130, 128, 128), (5, 40, 96, 64), (17, 19, 37, 32), (2, 3, 1, 64)],
    ids=str,
)
def test_matmul_agrees_with_float64(num_rows, num_cols, inner, block_size, dtype):
    for quant_type, with_bias in (("nf4", True), ("fp4", False)):
        code = CODES[quant_type]
        x, bias = torch.randn(num_rows, inner).to(dtype), torch.randn(num_cols).to(dtype)
        packed, state = theirs.quantize_4bit(torch.randn(num_cols, inner), blocksize=block_size, quant_type=quant_type)
        w = levels_times_scales(packed, state.absmax, code, (num_cols, inner), block_size).to(dtype)
        expected = x.double() @ w.double().T
        expected = expected + bias.double() if with_bias else expected
        y = four_bit_kernels.matmul(
            x, packed, state.absmax, code, num_cols, block_size, bias if with_bias else None
        )
        assert y.dtype is dtype
        # One rounding of the result, and fp32 sums of products that are below 20.
        torch.testing.assert_close(y.double(), expected, rtol=1.01 * ROUNDOFF[dtype], atol=inner * 20 * 2.0**-24)


def test_matmul_takes_any_strides_leading_dims_tiles_and_no_rows():
    packed, absmax = four_bit_kernels.quantize(torch.randn(40, 64), nf4.CODE)
    w = levels_times_scales(packed, absmax, nf4.CODE, (40, 64), 64)
    x = torch.randn(64, 5, 3).permute(2, 1, 0)
    tiles = four_bit_kernels.MatmulTiles(block_m=16, block_n=16, block_k=16)
    for y in (
        four_bit_kernels.matmul(x, packed, absmax, nf4.CODE, 40),
        four_bit_kernels.matmul(x, packed.view(-1), absmax, nf4.CODE, 40, tiles=tiles),
    ):
        torch.testing.assert_close(y, x @ w.T, rtol=0, atol=1e-5)
    assert four_bit_kernels.matmul(x[:, :0], packed, absmax, nf4.CODE, 40).shape == (3, 0, 40)
    assert four_bit_kernels.matmul(x[0, 0], packed, absmax, nf4.CODE, 40).shape == (40,)


def test_many_rows_take_larger_tiles_and_groups_cover_them():
    x = torch.randn(1200, 64).bfloat16()  # ten tiles of rows, more than a group
    packed, absmax = four_bit_kernels.quantize(torch.randn(200, 64), nf4.CODE)
    w = levels_times_scales(packed, absmax, nf4.CODE, (200, 64), 64).bfloat16()
    y = four_bit_kernels.matmul(x, packed, absmax, nf4.CODE, 200)
    torch.testing.assert_close(y.double(), x.double() @ w.double().T, rtol=1.01 * 2.0**-8, atol=1e-4)


@pytest.mark.parametrize("num_rows", [1, 16])
def test_matmul_reads_four_and_a_half_bits_per_weight(num_rows):
    num_cols, inner = 96, 256
    n = num_cols * inner
    packed, absmax = four_bit_kernels.quantize(torch.randn(num_cols, inner), nf4.CODE)
    x = torch.randn(num_rows, inner).bfloat16()
    with simulator.trace() as t:
        four_bit_kernels.matmul(x, packed, absmax, nf4.CODE, num_cols)
    assert t.tensors["packed"].read_bytes == t.tensors["packed"].distinct_read_bytes == n // 2
    assert t.tensors["absmax"].read_bytes == t.tensors["absmax"].distinct_read_bytes == 4 * n // 64
    assert n // 2 == 2 * n / 4  # a quarter of the bytes in 16 bits
    assert t.tensors["y"].written_bytes == 2 * num_rows * num_cols
    assert t.distinct_bytes == n // 2 + 4 * n // 64 + 2 * num_rows * (inner + num_cols) + code_bytes()
    # x is read by each of three programs along the weight
    assert t.tensors["x"].read_bytes == 3 * x.nbytes


def code_bytes() -> int:
    return 16 * 4


def test_weights_are_read_once_per_tile_of_rows():
    packed, absmax = four_bit_kernels.quantize(torch.randn(64, 128), nf4.CODE)
    with simulator.trace() as t:
        four_bit_kernels.matmul(torch.randn(130, 128).half(), packed, absmax, nf4.CODE, 64)
    assert t.tensors["packed"].read_bytes == 3 * packed.nbytes  # 130 rows in tiles of 64
    assert t.tensors["absmax"].read_bytes == 3 * absmax.nbytes


def test_rows_that_are_not_whole_blocks_have_the_same_compulsory_bytes():
    packed, absmax = four_bit_kernels.quantize(torch.randn(20, 37), nf4.CODE)
    with simulator.trace() as t:
        four_bit_kernels.matmul(torch.randn(2, 37), packed, absmax, nf4.CODE, 20)
    assert t.tensors["packed"].distinct_read_bytes == packed.nbytes
    assert t.tensors["packed"].read_bytes == 20 * 37
    assert t.tensors["absmax"].read_bytes == 4 * 20 * 37


@pytest.mark.parametrize("shape", [(64, 128), (13, 70)], ids=str)
def test_quantize_and_dequantize_move_each_byte_once(shape):
    w = torch.randn(shape).bfloat16()
    with simulator.trace() as t:
        packed, absmax = four_bit_kernels.quantize(w, nf4.CODE)
    assert t.tensors["x"].read_bytes == w.nbytes
    assert t.tensors["packed"].written_bytes == packed.nbytes == -(-w.numel() // 2)
    assert t.tensors["absmax"].written_bytes == absmax.nbytes == 4 * -(-w.numel() // 64)
    assert t.distinct_bytes == w.nbytes + packed.nbytes + absmax.nbytes + 15 * 4  # the midpoints
    with simulator.trace() as t:
        four_bit_kernels.dequantize(packed, absmax, nf4.CODE, shape, torch.bfloat16)
    assert t.tensors["packed"].read_bytes == packed.nbytes
    assert t.tensors["absmax"].read_bytes == absmax.nbytes
    assert t.tensors["out"].written_bytes == w.nbytes
    assert t.distinct_bytes == w.nbytes + packed.nbytes + absmax.nbytes + code_bytes()


def test_kernels_have_no_races_and_leave_nothing_unwritten():
    with simulator.trace(check=True) as t:
        packed, absmax = four_bit_kernels.quantize(torch.randn(13, 70), nf4.CODE)
        w = four_bit_kernels.dequantize(packed, absmax, nf4.CODE, (13, 70), torch.float16)
        y = four_bit_kernels.matmul(torch.randn(20, 70), packed, absmax, nf4.CODE, 13)
    assert t.problems == []
    assert w.shape == (13, 70)
    assert y.shape == (20, 13)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_without_a_nearest_level_are_refused(value):
    w = torch.randn(200)
    w[70] = value
    with pytest.raises(ValueError, match=r"x holds NaN or infinity, the first in block 1 \(values 64 to 127\)"):
        four_bit_kernels.quantize(w, nf4.CODE)


def test_what_does_not_fit_is_refused():
    w = torch.randn(4, 64)
    packed, absmax = four_bit_kernels.quantize(w, nf4.CODE)
    quantize, dequantize, matmul = four_bit_kernels.quantize, four_bit_kernels.dequantize, four_bit_kernels.matmul
    cases = [
        (TypeError, "x must be a tensor of", lambda: quantize(w.double(), nf4.CODE)),
        (TypeError, "x must be a tensor of", lambda: quantize(w.tolist(), nf4.CODE)),
        (ValueError, "no values", lambda: quantize(w[:0], nf4.CODE)),
        (ValueError, "block_size must be one of", lambda: quantize(w, nf4.CODE, 48)),
        (TypeError, r"code must be torch\.float32", lambda: quantize(w, nf4.CODE.half())),
        (ValueError, "16 contiguous levels", lambda: quantize(w, nf4.CODE[:15])),
        (ValueError, "where no Triton kernel runs", lambda: quantize(w.to("meta"), nf4.CODE)),
        (TypeError, "dtype must be one of", lambda: dequantize(packed, absmax, nf4.CODE, (4, 64), torch.int8)),
        (ValueError, "packed must be 160", lambda: dequantize(packed, absmax, nf4.CODE, (5, 64), torch.half)),
        (ValueError, "absmax must be 8", lambda: dequantize(packed, absmax, nf4.CODE, (4, 64), torch.half, 32)),
        (TypeError, r"packed must be torch\.uint8", lambda: matmul(w, packed.int(), absmax, nf4.CODE, 4)),
        (TypeError, r"absmax must be torch\.float32", lambda: matmul(w, packed, absmax.half(), nf4.CODE, 4)),
        (ValueError, "packed must be 120", lambda: matmul(w[:, :60], packed, absmax, nf4.CODE, 4)),
        (ValueError, "out_features must be", lambda: matmul(w, packed, absmax, nf4.CODE, 0)),
        (ValueError, r"bias must be \(4,\)", lambda: matmul(w, packed, absmax, nf4.CODE, 4, bias=w[0])),
        (ValueError, "last dimension", lambda: matmul(w[:, :0], packed, absmax, nf4.CODE, 4)),
        (ValueError, "must divide block_size 64", lambda: matmul(w, packed, absmax, nf4.CODE, 4, tiles=tiles(128))),
        (ValueError, "block_k must be a power of two", lambda: tiles(48)),
    ]
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()


def tiles(block_k: int) -> four_bit_kernels.MatmulTiles:
    return four_bit_kernels.MatmulTiles(block_m=16, block_n=16, block_k=block_k)
