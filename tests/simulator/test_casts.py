"""Conversions between all pairs of types, rounding, reinterpreted bits."""

import numpy as np
import pytest
import torch

from cme295lab.simulator import KernelTypeError

FLOATS = {"fp32": torch.float32, "fp64": torch.float64, "fp16": torch.float16, "bf16": torch.bfloat16}
TRITON = {
    torch.float32: "tl.float32", torch.float64: "tl.float64", torch.float16: "tl.float16",
    torch.bfloat16: "tl.bfloat16", torch.float8_e5m2: "tl.float8e5", torch.float8_e4m3fn: "tl.float8e4nv",
}  # fmt: skip
INTEGERS = [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64]
for _dtype in INTEGERS:
    TRITON[_dtype] = "tl." + str(_dtype).removeprefix("torch.")


def spread(n=64):
    """Values of all sizes that a float16 holds, both signs, with ties between neighbours."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.exp2(torch.randint(-12, 6, (n,), generator=generator).double())
    values = torch.randn(n, generator=generator, dtype=torch.float64) * sizes
    values[:8] = torch.tensor([0.0, 1.0, -1.0, 1 + 2.0**-11, 1 + 3 * 2.0**-11, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 2.0**-24])
    return values


@pytest.mark.parametrize("source", FLOATS.values())
@pytest.mark.parametrize("target", FLOATS.values())
def test_floats_round_to_nearest_even(evaluate, source, target):
    x = spread().to(source)
    got = evaluate(f"x.to({TRITON[target]})", programs=4, x=x)
    assert got.dtype == target
    assert torch.equal(got.double(), x.to(target).double())


@pytest.mark.parametrize("target", [torch.float16, torch.bfloat16])
def test_round_toward_zero(evaluate, target):
    x = torch.cat([spread(256).float(), torch.tensor([1e30, -1e30, 65519.9, -65535.0, 3e38, float("inf"), -0.0, 0.0])])
    x = torch.cat([x, torch.zeros(512 - x.numel())])
    got = evaluate(f'x.to({TRITON[target]}, fp_downcast_rounding="rtz")', x=x)
    drop = {torch.float16: 13, torch.bfloat16: 16}[target]
    ordinary = (x.abs() < 65504) & (x.abs() >= 2.0**-14)
    cut = (x.view(torch.int32) >> drop << drop).view(torch.float32)
    assert torch.equal(got.float()[ordinary], cut[ordinary])
    assert (got.float().abs() <= x.abs()).all()
    assert got.float()[torch.isinf(x)].isinf().all()
    if target == torch.float16:
        assert got.float()[x == 1e30].tolist() == [65504.0]


def test_round_toward_zero_keeps_nan(evaluate):
    x = torch.tensor([float("nan")] * 4)
    assert evaluate('x.to(tl.float16, fp_downcast_rounding="rtz")', x=x).isnan().all()


@pytest.mark.parametrize("target", [torch.float8_e5m2, torch.float8_e4m3fn])
@pytest.mark.parametrize("source", FLOATS.values())
def test_fp8_rounds_to_nearest_and_saturates(evaluate, source, target):
    """On GPUs the conversion is `cvt.rn.satfinite`: what is too large becomes the largest number."""
    x = spread().clamp(-400, 400).to(source)
    got = evaluate(f"x.to({TRITON[target]})", x=x)
    assert torch.equal(got.float(), x.to(target).float())
    large = torch.tensor([500.0, -500.0, 60000.0, float("inf")] * 2, dtype=source)
    largest = torch.finfo(target).max
    want = large.double().clamp(-largest, largest).to(target).double()
    assert torch.equal(evaluate(f"x.to({TRITON[target]})", x=large).double(), want)
    assert evaluate(f"x.to({TRITON[target]})", x=torch.full((4,), float("nan"), dtype=source)).float().isnan().all()


@pytest.mark.parametrize("source", [torch.float8_e5m2, torch.float8_e4m3fn])
def test_fp8_to_others_is_exact(evaluate, source):
    x = torch.arange(256).to(torch.uint8).view(source)
    finite = torch.isfinite(x.float())
    for target in FLOATS.values():
        got = evaluate(f"x.to({TRITON[target]})", x=x)
        assert torch.equal(got.double()[finite], x.double()[finite])


@pytest.mark.parametrize("target", INTEGERS)
@pytest.mark.parametrize("source", FLOATS.values())
def test_floats_to_integers_truncate(evaluate, source, target):
    x = torch.tensor([0, 0.9, 1.5, 2.5, 99.99, 0.5, 7, 126.7], dtype=source)
    if "uint" not in str(target):
        x = torch.cat([x, -x])
    assert evaluate(f"x.to({TRITON[target]})", x=x).tolist() == x.double().trunc().long().tolist()


@pytest.mark.parametrize("source", INTEGERS)
@pytest.mark.parametrize("target", INTEGERS)
def test_integers_to_integers_keep_the_low_bits(evaluate, source, target):
    info = np.iinfo(str(source).removeprefix("torch."))
    values = np.random.default_rng(1).integers(info.min, info.max, 32, dtype=info.dtype, endpoint=True)
    got = evaluate(f"x.to({TRITON[target]})", x=torch.from_numpy(values))
    np.testing.assert_array_equal(got.numpy(), values.astype(str(target).removeprefix("torch.")))


@pytest.mark.parametrize("source", INTEGERS)
@pytest.mark.parametrize("target", [torch.float32, torch.float64, torch.float16])
def test_integers_to_floats(evaluate, source, target):
    info = np.iinfo(str(source).removeprefix("torch."))
    values = np.random.default_rng(2).integers(max(info.min, -60000), min(info.max, 60000), 32).astype(info.dtype)
    got = evaluate(f"x.to({TRITON[target]})", x=torch.from_numpy(values))
    wanted = values.astype({torch.float16: np.float16, torch.float32: np.float32}.get(target, np.float64))
    np.testing.assert_array_equal(got.numpy(), wanted)


def test_large_integers_to_float32_round_once(evaluate):
    x = torch.tensor([2**62 + 1, 2**53 + 1, -(2**40) - 3, 2**24 + 1])
    np.testing.assert_array_equal(evaluate("x.to(tl.float32)", x=x).numpy(), x.numpy().astype(np.float32))


@pytest.mark.parametrize("dtype", [*FLOATS.values(), torch.int32, torch.uint8])
def test_booleans(evaluate, dtype):
    x = torch.tensor([0, 1, 2, 0]).to(dtype)
    assert evaluate("x.to(tl.int1)", x=x).tolist() == [False, True, True, False]
    b = torch.tensor([True, False, True, True])
    assert evaluate(f"x.to({TRITON[dtype]})", x=b).tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (torch.float32, torch.int32), (torch.float32, torch.uint32), (torch.float16, torch.int16),
        (torch.bfloat16, torch.int16), (torch.bfloat16, torch.float16), (torch.float64, torch.int64),
        (torch.float8_e5m2, torch.int8), (torch.float8_e4m3fn, torch.uint8), (torch.int32, torch.uint32),
        (torch.uint8, torch.int8),
    ],
)  # fmt: skip
def test_bitcast_reinterprets_there_and_back(evaluate, source, target):
    x = torch.randint(0, 100, (16, source.itemsize), dtype=torch.uint8).view(source).squeeze(-1)
    there = evaluate(f"x.to({TRITON[target]}, bitcast=True)", programs=2, x=x)
    assert there.view(torch.uint8).tolist() == x.contiguous().view(torch.uint8).tolist()
    back = evaluate(f"x.to({TRITON[source]}, bitcast=True)", x=there)
    assert back.view(torch.uint8).tolist() == x.contiguous().view(torch.uint8).tolist()


def test_bitcast_of_another_width_is_an_error(evaluate):
    with pytest.raises(KernelTypeError, match="cannot bitcast fp32 to int16: the widths differ"):
        evaluate("x.to(tl.int16, bitcast=True)", x=torch.zeros(4))


def test_bits_of_a_variable_survive_what_is_done_to_it(evaluate):
    x = torch.randn(2048)
    got = evaluate("bits", before="bits = x.to(tl.int32, bitcast=True)\ny = x * 2.0\nz = tl.exp(y)", x=x)
    assert torch.equal(got, x.view(torch.int32))


def test_pointers_are_cast_to_another_type_of_the_same_width(module_from):
    from cme295lab import simulator

    source = """
@triton.jit
def kernel(out_ptr, x_ptr, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    bits = x_ptr.to(tl.pointer_type(tl.int32))
    tl.store(out_ptr + lane, tl.load(bits + lane))
"""
    x, out = torch.randn(16), torch.zeros(16, dtype=torch.int32)
    with simulator.enabled():
        module_from(source).kernel[(1,)](out, x, BLOCK=16)
    assert torch.equal(out, x.view(torch.int32))


def test_cast_of_a_constant(evaluate):
    assert evaluate("tl.full([4], 3, tl.int32).to(tl.float32) + tl.cast(2, tl.float32)").tolist() == [5.0] * 4
