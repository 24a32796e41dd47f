"""Reductions and scans against torch and numpy."""

import numpy as np
import pytest
import torch

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
INTEGERS = [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8]
ADD = "@triton.jit\ndef combine(a, b):\n    return a + b\n\n\n"


def make(dtype, shape=(4, 8), seed=0):
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return torch.randint(-8, 8, shape, generator=generator).to(dtype) / 4  # sums are exact in every type
    return torch.randint(-20 if dtype.is_signed else 0, 20, shape, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS)
@pytest.mark.parametrize("axis", [0, 1, -1, None])
@pytest.mark.parametrize("keep", [False, True])
def test_sum_max_min(evaluate, dtype, axis, keep):
    x = make(dtype)
    dims = tuple(range(2)) if axis is None else axis
    wide = dtype if dtype.is_floating_point or dtype.itemsize >= 4 else torch.int32 if dtype.is_signed else torch.uint32
    total = evaluate(f"tl.sum(x, axis={axis}, keep_dims={keep})", x=x)
    assert total.dtype == wide
    want = x.double().sum(dims, keepdim=keep)
    assert total.double().reshape(want.shape).tolist() == want.tolist()
    for name, reduce in (("max", torch.amax), ("min", torch.amin)):
        want = reduce(x.double(), dims, keepdim=keep)
        got = evaluate(f"tl.{name}(x, {axis}, keep_dims={keep})", x=x)
        assert got.double().reshape(want.shape).tolist() == want.tolist()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_three_axes_and_several_programs(evaluate, axis):
    x = torch.randn(6, 2, 4, 8).flatten(0, 1)  # 12 rows: 3 programs of (4, 4, 8)
    blocks = x.reshape(3, 4, 4, 8)
    got = evaluate(f"tl.sum(x, {axis})", programs=3, x=x)
    torch.testing.assert_close(got.reshape(blocks.sum(axis + 1).shape), blocks.sum(axis + 1))
    got = evaluate(f"x.max(axis={axis})", programs=3, x=x)
    assert torch.equal(got.reshape(blocks.amax(axis + 1).shape), blocks.amax(axis + 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_sums_are_accumulated_in_16_bits(evaluate, dtype):
    """A tree of additions in the type: n + 1 is a tie that rounds to n, 1 + 1 = 2, and n + 2 is a value of the type."""
    assert evaluate("tl.sum(x, 0)", x=torch.ones(4096, dtype=dtype)).item() == 4096
    n = {torch.float16: 2048, torch.bfloat16: 256}[dtype]
    x = torch.tensor([n, 1, 1, 1], dtype=dtype)
    assert evaluate("tl.sum(x, 0)", x=x).item() == n + 2  # n + 3 would round to n + 4
    assert evaluate("tl.sum(x.to(tl.float32), 0)", x=x).item() == n + 3
    assert evaluate("tl.sum(x, 0, dtype=tl.float32)", x=x).item() == n + 3


def test_a_sum_of_something_uniform_counts_every_position(evaluate):
    assert evaluate("tl.sum(tl.full([8], 3, tl.int32), 0)").item() == 24
    assert evaluate("tl.sum(tl.zeros([4, 8], tl.float32) + 0.5, 1)").tolist() == [4.0] * 4
    assert evaluate("tl.sum(tl.broadcast_to(x[:, None], [4, 16]), 1)", x=torch.arange(4.0)).tolist() == [0, 16, 32, 48]
    assert evaluate("tl.max(tl.broadcast_to(x[:, None], [4, 16]), 0)", x=torch.arange(4.0)).tolist() == [3.0] * 16
    assert evaluate("tl.cumsum(tl.full([4], 2, tl.int32), 0)").tolist() == [2, 4, 6, 8]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int32])
def test_ties_go_to_the_first(evaluate, dtype):
    x = torch.tensor([[1, 5, 5, 2], [7, 7, 7, 7], [0, -1, -1, 0], [-3, -2, -4, -4]]).to(dtype)
    assert evaluate("tl.argmax(x, 1)", x=x).tolist() == [1, 0, 0, 1]
    assert evaluate("tl.argmin(x, axis=1)", x=x).tolist() == [0, 0, 1, 2]
    assert evaluate("tl.argmax(x, 0)", x=x).tolist() == [1, 1, 1, 1]
    assert evaluate("x.argmax(1, keep_dims=True)", x=x).tolist() == [[1], [0], [0], [1]]
    both = "tl.max(x, 1, return_indices=True)"
    assert evaluate(f"{both}[0]", x=x).tolist() == [5, 7, 0, -2]
    assert evaluate(f"{both}[1]", x=x).tolist() == [1, 0, 0, 1]
    assert evaluate("tl.min(x, 1, return_indices=True)[1]", x=x).tolist() == [0, 0, 1, 2]


def test_maximum_drops_a_nan_beside_numbers(evaluate):
    nan = float("nan")
    x = torch.tensor([[1, nan, 3, 2], [nan, nan, nan, nan], [nan, -1, -2, float("inf")]])
    x = torch.cat([x, torch.zeros(1, 4)])
    for name, want in (("max", [3, nan, float("inf"), 0]), ("min", [1, nan, -2, 0])):
        np.testing.assert_array_equal(evaluate(f"tl.{name}(x, 1)", x=x).numpy(), np.array(want, np.float32))


def test_xor_sum(evaluate):
    x = torch.randint(0, 2**30, (4, 16), dtype=torch.int32)
    assert evaluate("tl.xor_sum(x, 1)", x=x).tolist() == np.bitwise_xor.reduce(x.numpy(), 1).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int32, torch.int8])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
def test_cumulative_sums(evaluate, dtype, reverse, axis):
    x = make(dtype)
    wide = torch.int32 if dtype == torch.int8 else dtype
    flip = (lambda t: t.flip(axis)) if reverse else (lambda t: t)
    got = evaluate(f"tl.cumsum(x, {axis}, reverse={reverse})", programs=1, x=x)
    assert got.dtype == wide
    assert got.double().tolist() == flip(flip(x.double()).cumsum(axis)).tolist()
    signs = torch.where(x > 0, 1, -1).to(dtype)
    got = evaluate(f"tl.cumprod(x, {axis}, reverse={reverse})", x=signs)
    assert got.double().tolist() == flip(flip(signs.double()).cumprod(axis)).tolist()


CUSTOM = """
@triton.jit
def add(a, b):
    return a + b


@triton.jit
def larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def affine(a0, b0, a1, b1):
    return a0 * a1, b0 * a1 + b1


@triton.jit
def softmax_parts(m0, s0, m1, s1):
    m = tl.maximum(m0, m1)
    return m, s0 * tl.exp(m0 - m) + s1 * tl.exp(m1 - m)


@triton.jit
def kernel(out_ptr, x_ptr, y_ptr, WHAT: tl.constexpr, AXIS: tl.constexpr, REVERSE: tl.constexpr):
    row, column = tl.arange(0, 4)[:, None], tl.arange(0, 8)[None, :]
    place = tl.program_id(0) * 32 + row * 8 + column
    x, y = tl.load(x_ptr + place), tl.load(y_ptr + place)
    if WHAT == "add":
        tl.store(out_ptr + place, tl.associative_scan(x, AXIS, add, reverse=REVERSE))
    elif WHAT == "affine":
        a, b = tl.associative_scan((x, y), AXIS, affine, reverse=REVERSE)
        tl.store(out_ptr + place, b)
    elif WHAT == "reduce":
        total = tl.reduce(x, AXIS, larger, keep_dims=True)
        tl.store(out_ptr + place, x * 0 + total)
    else:
        m, s = tl.reduce((x, y), AXIS, softmax_parts)
        tl.store(out_ptr + place, x * 0 + (m + tl.log(s)).expand_dims(AXIS))
"""


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("reverse", [False, True])
def test_custom_scans_and_reductions(module_from, axis, reverse):
    from cme295lab import simulator

    x, y = torch.randn(3, 4, 8), torch.rand(3, 4, 8) + 0.5
    kernel = module_from(CUSTOM).kernel

    def run(what):
        out = torch.zeros_like(x)
        with simulator.enabled():
            kernel[(3,)](out, x, y, WHAT=what, AXIS=axis, REVERSE=reverse)
        return out

    flip = (lambda t: t.flip(axis + 1)) if reverse else (lambda t: t)
    torch.testing.assert_close(run("add"), flip(flip(x).cumsum(axis + 1)))
    state, states = torch.zeros(3, 4, 8).select(axis + 1, 0), []
    for a, b in zip(flip(x).unbind(axis + 1), flip(y).unbind(axis + 1)):
        state = state * a + b
        states.append(state)
    torch.testing.assert_close(run("affine"), flip(torch.stack(states, axis + 1)), rtol=1e-4, atol=1e-4)
    assert torch.equal(run("reduce"), x.amax(axis + 1, keepdim=True).expand_as(x))
    want = (x.exp() * y).sum(axis + 1, keepdim=True).log().expand_as(x)
    torch.testing.assert_close(run("softmax"), want)


def test_reduction_of_all_elements_with_a_function(evaluate, module_from):
    from cme295lab import simulator

    source = """
@triton.jit
def add(a, b):
    return a + b


@triton.jit
def kernel(out_ptr, x_ptr):
    x = tl.load(x_ptr + tl.arange(0, 4)[:, None] * 8 + tl.arange(0, 8)[None, :])
    tl.store(out_ptr, tl.reduce(x, None, add))
"""
    x, out = torch.randint(-9, 9, (4, 8)).float(), torch.zeros(1)
    with simulator.enabled():
        module_from(source).kernel[(1,)](out, x)
    assert out.item() == x.sum().item()


def test_softmax(evaluate):
    x = torch.randn(4, 16)
    torch.testing.assert_close(evaluate("tl.softmax(x, 1)", x=x), x.softmax(1))
    torch.testing.assert_close(evaluate("x.softmax(0)", x=x), x.softmax(0))


@pytest.mark.parametrize("descending", [False, True])
def test_sort_is_triton_s_own_code(evaluate, descending):
    x = torch.randperm(32).float().reshape(2, 16)
    got = evaluate(f"tl.sort(x, 1, descending={descending})", x=x)
    assert torch.equal(got, x.sort(1, descending=descending).values)
