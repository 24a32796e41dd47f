"""Values of operators for every type, against torch and numpy."""

import numpy as np
import pytest
import torch

from cme295lab import simulator

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SIGNED = [torch.int8, torch.int16, torch.int32, torch.int64]
UNSIGNED = [torch.uint8, torch.uint16, torch.uint32, torch.uint64]


def floats(dtype, seed, n=64):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(3).to(dtype)


def integers(dtype, seed, n=64, *, nonzero=False):
    info = np.iinfo(str(dtype).removeprefix("torch."))
    values = np.random.default_rng(seed).integers(info.min, info.max, n, dtype=info.dtype, endpoint=True)
    values[:8] = values[:8] % 7
    if nonzero:
        values[values == 0] = 3
    return torch.from_numpy(values)


def same(got, want):
    assert got.dtype == want.dtype
    assert torch.equal(torch.isnan(got.double()), torch.isnan(want.double()))
    clean = ~torch.isnan(want.double())
    np.testing.assert_array_equal(got[clean].double().numpy(), want[clean].double().numpy())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", ["+", "-", "*"])
def test_float_operators_round_once_to_their_type(evaluate, dtype, op):
    x, y = floats(dtype, 1), floats(dtype, 2)
    exact = eval(f"a {op} b", {"a": x.double(), "b": y.double()})
    got = evaluate(f"x {op} y", programs=4, x=x, y=y)
    same(got, exact.float().to(dtype) if dtype != torch.float64 else exact)


@pytest.mark.parametrize("dtype", FLOATS)
def test_division_of_16_bit_floats_is_done_in_float32(evaluate, dtype):
    x, y = floats(dtype, 1), floats(dtype, 2)
    wide = dtype if dtype == torch.float64 else torch.float32
    same(evaluate("x / y", x=x, y=y), x.to(wide) / y.to(wide))


@pytest.mark.parametrize("dtype", FLOATS)
def test_float_remainder_has_the_sign_of_the_dividend(evaluate, dtype):
    x, y = floats(dtype, 3), floats(dtype, 4)
    wide = dtype if dtype == torch.float64 else torch.float32
    same(evaluate("x % y", x=x, y=y), torch.fmod(x.to(wide), y.to(wide)))


@pytest.mark.parametrize("dtype", SIGNED + UNSIGNED)
@pytest.mark.parametrize("op", ["+", "-", "*", "&", "|", "^"])
def test_integer_operators_wrap_around(evaluate, dtype, op):
    x, y = integers(dtype, 5), integers(dtype, 6)
    with np.errstate(all="ignore"):
        want = eval(f"a {op} b", {"a": x.numpy(), "b": y.numpy()})
    same(evaluate(f"x {op} y", programs=2, x=x, y=y), torch.from_numpy(want))


@pytest.mark.parametrize("dtype", SIGNED)
def test_integer_division_truncates_as_in_c(evaluate, dtype):
    x, y = integers(dtype, 7), integers(dtype, 8, nonzero=True)
    quotients = [int(abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1) for a, b in zip(x.tolist(), y.tolist())]
    remainders = [a - q * b for a, q, b in zip(x.tolist(), quotients, y.tolist())]
    assert evaluate("x // y", x=x, y=y).tolist() == [np.array(q).astype(x.numpy().dtype) for q in quotients]
    assert evaluate("x % y", x=x, y=y).tolist() == remainders


def test_integer_division_by_hand(evaluate):
    x = torch.tensor([7, -7, 7, -7, 6, -6, 0, 1], dtype=torch.int32)
    y = torch.tensor([2, 2, -2, -2, 3, 3, 5, -5], dtype=torch.int32)
    assert evaluate("x // y", x=x, y=y).tolist() == [3, -3, -3, 3, 2, -2, 0, 0]
    assert evaluate("x % y", x=x, y=y).tolist() == [1, -1, 1, -1, 0, 0, 0, 1]


@pytest.mark.parametrize("dtype", UNSIGNED)
def test_unsigned_division(evaluate, dtype):
    x, y = integers(dtype, 9), integers(dtype, 10, nonzero=True)
    same(evaluate("x // y", x=x, y=y), torch.from_numpy(x.numpy() // y.numpy()))
    same(evaluate("x % y", x=x, y=y), torch.from_numpy(x.numpy() % y.numpy()))


@pytest.mark.parametrize("dtype", SIGNED + UNSIGNED)
def test_right_shift_keeps_the_sign_of_signed_types_only(evaluate, dtype):
    x = integers(dtype, 11)
    same(evaluate("x >> 3", x=x), torch.from_numpy(x.numpy() >> np.array(3, x.numpy().dtype)))
    same(evaluate("x << 2", x=x), torch.from_numpy(x.numpy() << np.array(2, x.numpy().dtype)))


@pytest.mark.parametrize("dtype", FLOATS + SIGNED + UNSIGNED)
@pytest.mark.parametrize("op", ["<", "<=", ">", ">=", "==", "!="])
def test_comparisons(evaluate, dtype, op):
    make = floats if dtype.is_floating_point else integers
    x, y = make(dtype, 12), make(dtype, 13)
    y[::3] = x[::3]
    if dtype.is_floating_point:
        x[1] = float("nan")
        want = eval(f"a {op} b", {"a": x, "b": y})
    else:
        want = torch.from_numpy(eval(f"a {op} b", {"a": x.numpy(), "b": y.numpy()}))
    same(evaluate(f"x {op} y", programs=4, x=x, y=y), want)


def test_booleans_combine_like_one_bit_integers(evaluate):
    x = torch.tensor([False, False, True, True])
    y = torch.tensor([False, True, False, True])
    for op in ("&", "|", "^"):
        same(evaluate(f"x {op} y", x=x, y=y), eval(f"x {op} y", {"x": x, "y": y}))
    assert evaluate("~x", x=x).tolist() == [True, True, False, False]
    assert evaluate("x and y", x=x, y=y).tolist() == [False, False, False, True]
    assert evaluate("x or y", x=x, y=y).tolist() == [False, True, True, True]
    assert evaluate("not x", x=x).tolist() == [True, True, False, False]


def test_not_of_integers_is_a_comparison_with_zero(evaluate):
    x = torch.tensor([0, 1, -1, 4], dtype=torch.int32)
    assert evaluate("not x", x=x).tolist() == [True, False, False, False]
    assert evaluate("~x", x=x).tolist() == [-1, -2, 0, -5]
    assert evaluate("x and x", x=x).tolist() == [False, True, True, True]


@pytest.mark.parametrize("dtype", FLOATS + SIGNED)
def test_unary_minus(evaluate, dtype):
    x = floats(dtype, 14) if dtype.is_floating_point else integers(dtype, 14)
    same(evaluate("-x", x=x), -x)
    same(evaluate("+x", x=x), x)


@pytest.mark.parametrize("dtype", UNSIGNED)
def test_unary_minus_of_unsigned_wraps_around(evaluate, dtype):
    x = integers(dtype, 14)
    with np.errstate(all="ignore"):
        same(evaluate("-x", x=x), torch.from_numpy(np.array(0, x.numpy().dtype) - x.numpy()))


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_python_number_does_not_widen_a_block(evaluate, dtype):
    x = floats(dtype, 15)
    for expression, want in {"x * 0.1": x * torch.tensor(0.1, dtype=dtype), "2 + x": x + 2, "1 - x": 1 - x}.items():
        same(evaluate(expression, x=x), want)


@pytest.mark.parametrize("dtype", FLOATS)
def test_minimum_and_maximum_drop_a_nan_unless_told_otherwise(evaluate, dtype):
    nan = float("nan")
    x = torch.tensor([1, nan, 3, nan, -0.5, 2, 8, 1], dtype=dtype)
    y = torch.tensor([2, 5, nan, nan, 0.5, 2, -8, float("inf")], dtype=dtype)
    same(evaluate("tl.maximum(x, y)", x=x, y=y), torch.fmax(x, y))
    same(evaluate("tl.minimum(x, y)", x=x, y=y), torch.fmin(x, y))
    keep = "propagate_nan=tl.PropagateNan.ALL"
    same(evaluate(f"tl.maximum(x, y, {keep})", x=x, y=y), torch.maximum(x, y))
    same(evaluate(f"tl.minimum(x, y, {keep})", x=x, y=y), torch.minimum(x, y))
    same(evaluate("min(x, y)", x=x, y=y), torch.fmin(x, y))
    same(evaluate("max(x, 0)", x=x), torch.fmax(x, torch.zeros((), dtype=dtype)))


def test_clamp(evaluate):
    x = torch.tensor([-2, 0.5, 7, float("nan")], dtype=torch.float32)
    assert evaluate("tl.clamp(x, 0.0, 1.0)", x=x).tolist()[:3] == [0.0, 0.5, 1.0]
    assert evaluate("tl.clamp(x, 0.0, 1.0, propagate_nan=tl.PropagateNan.ALL)", x=x).isnan().tolist()[3]


@pytest.mark.parametrize("dtype", FLOATS + SIGNED + UNSIGNED + [torch.bool])
def test_where_takes_elements_of_either_block(evaluate, dtype):
    if dtype == torch.bool:
        x, y = torch.rand(64) < 0.5, torch.rand(64) < 0.5
    else:
        make = floats if dtype.is_floating_point else integers
        x, y = make(dtype, 16), make(dtype, 17)
    c = torch.from_numpy(np.random.default_rng(18).random(64) < 0.5)
    want = torch.from_numpy(np.where(c.numpy(), x.numpy(), y.numpy())) if dtype != torch.bfloat16 else x.where(c, y)
    same(evaluate("tl.where(c, x, y)", programs=4, c=c, x=x, y=y), want)


def test_where_promotes_and_broadcasts(evaluate):
    x = torch.arange(4, dtype=torch.float16)
    got = evaluate("tl.where(c[:, None], x[None, :], -1.5)", c=torch.tensor([True, False]), x=x)
    same(got, torch.tensor([[0, 1, 2, 3], [-1.5] * 4], dtype=torch.float16))
    assert evaluate("tl.where(i, x, 0.0)", i=torch.tensor([2, 0, -1, 0]), x=x).tolist() == [0, 0, 2, 0]


def test_operands_of_different_rank_broadcast_as_in_numpy(evaluate):
    x, y = torch.arange(4, dtype=torch.int32), torch.arange(8, dtype=torch.int32) * 10
    same(evaluate("x[:, None] + y", x=x, y=y), x[:, None] + y)
    same(evaluate("x[:, None] * y[None, :]", x=x, y=y), x[:, None] * y)


def test_an_overwritten_temporary_is_never_a_variable(evaluate):
    """Results reuse the memory of operands that nobody holds; a variable must keep its value."""
    x = torch.arange(2048, dtype=torch.float32)
    for step in ("y = x + 1.0", "y = tl.exp(x * 0.0) + x", "y = tl.where(x > 3, x, 0.0)", "y = (x + 0.0) * x - x"):
        same(evaluate("x", x=x, before=step), x)


@pytest.mark.parametrize(
    "view",
    [
        "tl.full([1024], s, tl.float32)", "tl.split(pairs)[0]", "i.to(tl.float32, bitcast=True)",
        "tl.reshape(x, [32, 32])", "tl.trans(tl.reshape(x, [32, 32]))", "x[:, None]", "tl.flip(x)",
        "tl.sum(h[:, None], 1)", "tl.reduce(x[:, None], 1, add)", "tl.associative_scan(x[:, None], 1, add)",
        "tl.broadcast_to(x, [1024])", "tl.cumsum(x[:, None], 1)", "tl.max(x[:, None], 1)", "x.to(tl.float32)",
        "tl.join(x, x)", "tl.dot(m, m, acc=m)",
    ],
)  # fmt: skip
def test_overwriting_a_result_does_not_change_what_it_was_made_of(module_from, view):
    """A result that shares memory with a variable may not be used as scratch space."""
    source = f"""
@triton.jit
def add(a, b):
    return a + b


@triton.jit
def kernel(x_ptr, before_ptr, after_ptr):
    lane = tl.arange(0, 1024)
    x = tl.load(x_ptr + lane + 1024 * tl.program_id(0))
    s = tl.load(x_ptr + 1024 * tl.program_id(0) + 7)
    h = x.to(tl.float16)
    i = x.to(tl.int32, bitcast=True)
    m = tl.reshape(x, [32, 32])
    pairs = tl.reshape(x, [512, 2])
    total = tl.sum(x) + s + tl.sum(i.to(tl.float32, bitcast=True)) + tl.sum(h.to(tl.float32)) + tl.sum(pairs)
    tl.store(before_ptr + tl.program_id(0), total)
    y = ({view} + 1.0) * 2.0
    total = tl.sum(x) + s + tl.sum(i.to(tl.float32, bitcast=True)) + tl.sum(h.to(tl.float32)) + tl.sum(pairs)
    tl.store(after_ptr + tl.program_id(0), total)
"""
    x = torch.randn(3 * 1024)
    before, after = torch.zeros(3), torch.ones(3)
    with simulator.enabled():
        module_from(source).kernel[(3,)](x, before, after)
    assert torch.equal(before, after)


@pytest.mark.parametrize("dtype", ["tl.int8", "tl.uint8", "tl.uint32", "tl.int32"])
@pytest.mark.parametrize("expression", ["({a} - {b}) > 100", "({a} + {b}).to(tl.int64)", "-({a} - {b}) <= 3"])
def test_lazy_sums_wrap_around_where_the_type_does(evaluate, dtype, expression):
    """Integer sums are kept as terms; the wrap-around of the type must show all the same."""
    a, b = torch.tensor([1, 5, 100, 120]), torch.tensor([3, 50, 100, 127])
    if dtype == "tl.int32":
        a, b = a * 2**24, b * 2**24
    numpy = np.dtype(dtype.removeprefix("tl."))
    left, right = (v.numpy().astype(numpy) for v in (a, b))
    with np.errstate(all="ignore"):
        if ">" in expression:
            want = (left[:, None] - right) > 100
        elif "int64" in expression:
            want = (left[:, None] + right).astype(np.int64)
        else:
            want = -(left[:, None] - right) <= 3
    text = expression.format(a=f"a.to({dtype})[:, None]", b=f"b.to({dtype})[None, :]")
    np.testing.assert_array_equal(evaluate(text, a=a, b=b).numpy(), want)


def test_fma_rounds_once(evaluate):
    x = torch.full((16,), 1 + 2.0**-12)
    z = torch.full((16,), -(1 + 2.0**-11))
    assert evaluate("tl.fma(x, x, z)", x=x, z=z).tolist() == [2.0**-24] * 16
