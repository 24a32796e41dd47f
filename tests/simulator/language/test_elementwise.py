"""Element-wise functions against torch in float64, and random numbers against Philox written down here."""

import math

import numpy as np
import pytest
import torch

FUNCTIONS = {
    "exp": torch.exp, "exp2": torch.exp2, "log": torch.log, "log2": torch.log2, "sin": torch.sin, "cos": torch.cos,
    "sqrt": torch.sqrt, "sqrt_rn": torch.sqrt, "rsqrt": torch.rsqrt, "erf": torch.erf, "floor": torch.floor,
    "ceil": torch.ceil, "sigmoid": torch.sigmoid, "abs": torch.abs,
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [16, 2048])
def test_functions(evaluate, name, dtype, size):
    x = (torch.rand(size, dtype=torch.float64) * 4 + 0.01).to(dtype)
    want = FUNCTIONS[name](x.double())
    got = evaluate(f"tl.{name}(x)", programs=2, x=x)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


def test_functions_as_methods_and_from_tl_math(evaluate):
    x = torch.rand(8) + 0.5
    assert torch.equal(evaluate("x.exp()", x=x), x.exp())
    assert torch.equal(evaluate("tl.math.log(x)", x=x), x.log())


def test_special_values(evaluate):
    x = torch.tensor([float("inf"), float("-inf"), float("nan"), 0.0])
    np.testing.assert_array_equal(evaluate("tl.exp(x)", x=x).numpy(), np.float32([np.inf, 0, np.nan, 1]))
    np.testing.assert_array_equal(evaluate("tl.log(x)", x=x).numpy(), np.float32([np.inf, np.nan, np.nan, -np.inf]))
    np.testing.assert_array_equal(evaluate("1.0 / x", x=x).numpy(), np.float32([0, -0.0, np.nan, np.inf]))
    assert evaluate("x != x", x=x).tolist() == [False, False, True, False]


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64, torch.float16])
def test_abs(evaluate, dtype):
    x = torch.tensor([-3, 0, 5, -127]).to(dtype)
    assert torch.equal(evaluate("tl.abs(x)", x=x), x.abs())
    assert torch.equal(evaluate("abs(x)", x=x), x.abs())


@pytest.mark.parametrize("dtype", [torch.uint32, torch.int32, torch.int64, torch.uint64])
def test_upper_half_of_a_product(evaluate, dtype):
    bits = dtype.itemsize * 8
    numbers = np.random.default_rng(0).integers(0, 2**bits, 32, dtype=np.uint64)
    other = np.random.default_rng(1).integers(0, 2**bits, 32, dtype=np.uint64)
    kind = np.dtype(str(dtype).removeprefix("torch."))
    unsigned = np.dtype(f"u{kind.itemsize}")
    x, y = (torch.from_numpy(v.astype(unsigned).view(kind)) for v in (numbers, other))
    got = evaluate("tl.umulhi(x, y)", x=x, y=y).numpy().view(unsigned)
    mask = 2**bits - 1
    want = [(int(a) & mask) * (int(b) & mask) >> bits for a, b in zip(numbers, other)]
    assert got.tolist() == want


def test_division_helpers(evaluate):
    x = torch.tensor([0, 1, 7, 8, 9, 16], dtype=torch.int32)
    x = torch.cat([x, x[:2]])
    assert evaluate("tl.cdiv(x, 8)", x=x).tolist() == [0, 1, 1, 1, 2, 2, 0, 1]
    assert (
        evaluate("tl.full([1], tl.cdiv(9, 8) + triton.next_power_of_2(5) + triton.cdiv(3, 2), tl.int32)").item() == 12
    )
    y = torch.tensor([1.0, 3.0, 7.0, 10.0] * 2)
    assert torch.equal(evaluate("tl.fdiv(y, 3.0)", y=y), y / 3)
    assert torch.equal(evaluate("tl.div_rn(1.0, y)", y=y), 1 / y)


# ---- random numbers


def philox(counter, seed, rounds=10):
    """Philox-4x32-10 as in Salmon et al. (2011): four 32-bit counters (the first is `counter`), a 64-bit key."""
    low = np.uint64(0xFFFFFFFF)
    words = [np.asarray(counter, np.uint64), *(np.zeros_like(counter, dtype=np.uint64) for _ in range(3))]
    key = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF]
    for _ in range(rounds):
        first, second = words[0] * np.uint64(0xD2511F53), words[2] * np.uint64(0xCD9E8D57)
        words = [
            (second >> np.uint64(32)) ^ words[1] ^ np.uint64(key[0]), second & low,
            (first >> np.uint64(32)) ^ words[3] ^ np.uint64(key[1]), first & low,
        ]  # fmt: skip
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return [w.astype(np.uint32) for w in words]


def uniform(bits):
    """A float in [0, 1) of 32 random bits, as tl.rand makes it: negative numbers are mirrored, then scaled."""
    signed = bits.view(np.int32)
    return np.where(signed < 0, -signed - 1, signed).astype(np.float32) * np.float32(4.6566127342e-10)


def test_philox_of_the_paper_s_known_answers():
    """Known answers that the authors publish with Random123: counter and key all zero."""
    assert [int(w[0]) for w in philox([0], 0)] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**31 - 1, 2**40 + 7])
def test_random_numbers_are_bit_identical(evaluate, seed):
    offsets = torch.arange(256, dtype=torch.int32) * 7
    words = philox(offsets.numpy().astype(np.uint64), seed)
    got = evaluate("tl.rand(seed, o)", programs=4, o=offsets, seed=seed).numpy()
    np.testing.assert_array_equal(got, uniform(words[0]))
    np.testing.assert_array_equal(
        evaluate("tl.randint(seed, o)", o=offsets, seed=seed).numpy().view(np.uint32), words[0]
    )
    for i, name in enumerate(words):
        four = evaluate(f"tl.randint4x(seed, o)[{i}]", o=offsets, seed=seed).numpy().view(np.uint32)
        np.testing.assert_array_equal(four, name)


def test_normal_numbers(evaluate):
    offsets = torch.arange(4096, dtype=torch.int32)
    x = evaluate("tl.randn(7, o)", o=offsets).double()
    words = philox(offsets.numpy().astype(np.uint64), 7)
    u, v = (uniform(w).astype(np.float64) for w in words[:2])
    want = np.sqrt(-2 * np.log(np.maximum(u, 1e-7))) * np.cos(2 * math.pi * v)
    np.testing.assert_allclose(x.numpy(), want, rtol=1e-4, atol=1e-5)
    assert abs(x.mean()) < 0.05
    assert abs(x.std() - 1) < 0.05
