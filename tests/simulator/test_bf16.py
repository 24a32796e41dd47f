"""bf16 against float64: casts, arithmetic, sums, products and atomics round once, where the type says so.

A bf16 number has 8 bits of mantissa. Products of two are exact in fp32 (24 bits), and so a result that was computed in
fp32 and then rounded is the exact one, rounded once (24 >= 2 * 8 + 2, also for sums, quotients and roots).
"""

import pytest
import torch
import triton
import triton.language as tl

from cme295lab import simulator

N = 256
UNIT = 2.0**-8  # largest relative error of one rounding


def numbers(seed, n=N):
    """Numbers of many magnitudes."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, generator=generator) * torch.exp2(torch.randint(-6, 7, (n,), generator=generator))
    ).bfloat16()


@pytest.mark.parametrize("expression", ["x + y", "x - y", "x * y", "x / y", "-x", "tl.abs(x)", "tl.maximum(x, y)"])
def test_arithmetic_is_the_exact_result_rounded_once(evaluate, expression):
    x, y = numbers(0), numbers(1)
    exact = eval(expression, {"x": x.double(), "y": y.double(), "tl": torch})  # the same names, in float64
    got = evaluate(expression, out=torch.bfloat16, x=x, y=y)
    torch.testing.assert_close(got, exact.bfloat16(), rtol=0, atol=0)


def test_a_cast_rounds_to_nearest_with_ties_to_even(evaluate):
    """One unit in the last place above 1 is 2**-7; half of it is a tie."""
    x = torch.tensor(
        [1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-8 + 2.0**-20, 3.4e38, -0.0, 1e-40, float("inf"), float("nan")]
    )
    got = evaluate("x.to(tl.bfloat16)", x=x).float()
    assert got[:3].tolist() == [1.0, 1 + 2.0**-6, 1 + 2.0**-7]
    assert got[3] == float("inf")  # beyond the largest number, 3.39e38
    assert torch.signbit(got[4])
    assert got[5].item() == 2.0**-133  # the smallest subnormal number is the nearest
    assert got[6] == float("inf")
    assert got[7].isnan()


def test_the_way_to_fp32_and_back_changes_no_bit(evaluate):
    every = torch.arange(2**15, dtype=torch.int16).view(torch.bfloat16)
    x = torch.cat([every, -every])
    finite = ~x.isnan()
    got = evaluate("x.to(tl.float32).to(tl.bfloat16)", x=x)
    assert (got.view(torch.int16)[finite] == x.view(torch.int16)[finite]).all()
    assert got[~finite].isnan().all()


def test_a_sum_in_fp32_keeps_what_one_in_bf16_would_lose(evaluate):
    x = numbers(2, 1024)
    exact = x.double().sum()
    got = evaluate("tl.sum(x.to(tl.float32))", x=x)
    scale = x.double().abs().sum()
    assert abs(got.item() - exact) < 1e-6 * scale
    rounded = evaluate("tl.sum(x)", x=x)
    assert rounded.dtype == torch.bfloat16
    assert abs(rounded.double().item() - exact) < 10 * UNIT * scale  # a tree of ten levels, each rounds once


@pytest.mark.parametrize(("m", "n", "k"), [(16, 16, 16), (32, 16, 128)])
def test_a_product_is_exact_and_summed_in_fp32(evaluate, m, n, k):
    a, b = numbers(3, m * k).view(m, k), numbers(4, k * n).view(k, n)
    got = evaluate("tl.dot(a, b)", a=a, b=b)
    assert got.dtype == torch.float32
    exact, scale = a.double() @ b.double(), a.double().abs() @ b.double().abs()
    assert ((got.double() - exact).abs() <= k * 2.0**-24 * scale).all()
    assert not torch.equal(got, got.bfloat16().float())  # it is not rounded to bf16 on the way


@triton.jit
def atomics_kernel(x_ptr, sum_ptr, max_ptr, min_ptr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at)
    tl.atomic_add(sum_ptr + at % 8, x)
    tl.atomic_max(max_ptr + at % 8, x.to(tl.float32))
    tl.atomic_min(min_ptr + at % 8, x.to(tl.float32))


def test_atomics_round_after_every_addition():
    x = numbers(5, 64)
    total = torch.zeros(8, dtype=torch.bfloat16)
    largest, smallest = torch.full((8,), -1e30), torch.full((8,), 1e30)
    with simulator.trace(check=True) as t:
        atomics_kernel[(4,)](x, total, largest, smallest, BLOCK=16)
    want = torch.zeros(8, dtype=torch.float64)
    for row in x.view(8, 8):
        want = (want + row.double()).bfloat16().double()
    torch.testing.assert_close(total.double(), want, rtol=0, atol=0)
    torch.testing.assert_close(largest, x.view(8, 8).float().amax(0), rtol=0, atol=0)
    torch.testing.assert_close(smallest, x.view(8, 8).float().amin(0), rtol=0, atol=0)
    assert not t.problems
