"""Every function against Python's own mathematics; what has no counterpart there, against its definition."""

import ast
import inspect
import math
import struct
from fractions import Fraction

import numpy as np
import pytest
import torch
import triton.language.extra.cuda.libdevice as real_libdevice

from cme295lab import simulator
from cme295lab.simulator import KernelTypeError, UnsupportedFeatureError
from cme295lab.simulator.language import LIBDEVICE

POINTS = [-40.5, -2.5, -1.0, -0.75, -0.5, -0.1, -0.0, 0.0, 1e-9, 0.25, 0.5, 0.99, 1.0, 1.5, 2.5, 3.5, 20.0, 1e4]


def guarded(function):
    def oracle(*x):
        try:
            return float(function(*x))
        except (ValueError, ZeroDivisionError):
            return math.nan
        except OverflowError:
            return math.inf

    return oracle


def log_of(function):
    """A logarithm, with its pole."""
    return lambda x: -math.inf if x == 0 else function(x)


def half_away(x):
    return math.copysign(math.floor(abs(x) + 0.5), x)


UNARY = {
    "exp": math.exp, "exp2": lambda x: 2.0**x, "exp10": lambda x: 10.0**x, "expm1": math.expm1, "log": log_of(math.log),
    "log2": log_of(math.log2), "log10": log_of(math.log10), "sin": math.sin, "cos": math.cos, "tan": math.tan,
    "log1p": lambda x: -math.inf if x == -1 else math.log1p(x),
    "asin": math.asin, "acos": math.acos, "atan": math.atan, "sinh": math.sinh, "cosh": math.cosh, "tanh": math.tanh,
    "asinh": math.asinh, "acosh": math.acosh, "sqrt": math.sqrt, "floor": math.floor, "ceil": math.ceil,
    "atanh": lambda x: math.copysign(math.inf, x) if abs(x) == 1 else math.atanh(x),
    "trunc": math.trunc, "rint": round, "nearbyint": round, "round": half_away, "erf": math.erf, "erfc": math.erfc,
    "abs": abs, "rsqrt": lambda x: math.copysign(math.inf, x) if x == 0 else 1 / math.sqrt(x),
    "cbrt": lambda x: math.copysign(abs(x) ** (1 / 3), x),
    "rcbrt": lambda x: math.copysign(math.inf, x) if x == 0 else math.copysign(abs(x) ** (-1 / 3), x),
    "sinpi": lambda x: math.copysign(0, x) if x == int(x) else math.sin(math.pi * math.fmod(x, 2)),
    "cospi": lambda x: 0.0 if abs(x) % 1 == 0.5 else math.cos(math.pi * math.fmod(x, 2)),
    "normcdf": lambda x: 0.5 * math.erfc(-x / math.sqrt(2)),
    "tgamma": lambda x: math.copysign(math.inf, x) if x == 0 else math.gamma(x),
    "lgamma": lambda x: math.inf if x <= 0 and x == int(x) else math.lgamma(x),
    "logb": lambda x: -math.inf if x == 0 else math.floor(math.log2(abs(x))),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", sorted(UNARY))
def test_functions_of_one_number(evaluate, name, dtype):
    x = torch.tensor(POINTS + [0.0] * 14, dtype=dtype)
    found = evaluate(f"tl.extra.cuda.libdevice.{name}(x)", x=x)
    want = torch.tensor([guarded(UNARY[name])(v) for v in x.tolist()], dtype=torch.float64).to(dtype)
    assert found.dtype == dtype
    torch.testing.assert_close(found, want, rtol=1e-7 if dtype == torch.float32 else 1e-13, atol=1e-300, equal_nan=True)


BINARY = {
    "pow": lambda x, y: math.nan if x < 0 and y != int(y) else math.inf if x == 0 > y else x**y,
    "atan2": math.atan2, "hypot": math.hypot, "fmod": math.fmod, "copysign": math.copysign,
    "fdim": lambda x, y: max(x - y, 0.0), "remainder": math.remainder,
    "rhypot": lambda x, y: math.inf if x == y == 0 else 1 / math.hypot(x, y),
    "nextafter": None, "add_rn": lambda x, y: x + y, "sub_rn": lambda x, y: x - y, "mul_rn": lambda x, y: x * y,
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", sorted(BINARY))
def test_functions_of_two_numbers(evaluate, name, dtype):
    pairs = [(x, y) for x in (-2.5, -1.0, 0.0, 0.5, 3.0, 7.25) for y in (-2.0, -0.5, 0.0, 1.5, 3.0)] + [(1.0, 1.0)] * 2
    x, y = (torch.tensor(column, dtype=dtype) for column in zip(*pairs, strict=True))
    found = evaluate(f"tl.extra.libdevice.{name}(x, y)", x=x, y=y)
    oracle = BINARY[name]
    if oracle is None:
        want = torch.nextafter(x, y)
    else:
        want = torch.tensor([guarded(oracle)(*p) for p in pairs], dtype=torch.float64).to(dtype)
    tolerance = 1e-7 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(found, want, rtol=tolerance, atol=1e-300, equal_nan=True)


@pytest.mark.parametrize(
    ("name", "inverse", "points"),
    [
        ("erfinv", math.erf, [-0.999, -0.5, 0.0, 0.25, 0.9]), ("erfcinv", math.erfc, [0.001, 0.5, 1.0, 1.25, 1.9]),
        ("normcdfinv", UNARY["normcdf"], [0.001, 0.25, 0.5, 0.75, 0.99]),
    ],
)  # fmt: skip
def test_inverse_functions(evaluate, name, inverse, points):
    x = torch.tensor((points * 2)[:8], dtype=torch.float64)
    found = evaluate(f"tl.extra.libdevice.{name}(x)", x=x)
    torch.testing.assert_close(torch.tensor([inverse(v) for v in found.tolist()], dtype=torch.float64), x)


@pytest.mark.parametrize(
    ("name", "order", "kind"),
    [
        ("j0", 0, "J"),
        ("j1", 1, "J"),
        ("cyl_bessel_i0", 0, "I"),
        ("cyl_bessel_i1", 1, "I"),
        ("y0", 0, "Y"),
        ("y1", 1, "Y"),
    ],
)
def test_bessel_functions_against_their_integrals(evaluate, name, order, kind):
    """J_n(x) = 1/pi int cos(n t - x sin t), I_n(x) = 1/pi int exp(x cos t) cos(n t), Y by its integrals."""
    x = torch.tensor([0.5, 1.0, 2.0, 7.5], dtype=torch.float64)
    t = (np.arange(20000) + 0.5) * np.pi / 20000
    s = (np.arange(400000) + 0.5) * 12 / 400000
    want = []
    for v in x.tolist():
        if kind == "J":
            want.append(np.cos(order * t - v * np.sin(t)).mean())
        elif kind == "I":
            want.append((np.exp(v * np.cos(t)) * np.cos(order * t)).mean())
        else:
            tail = (np.exp(order * s) + (-1) ** order * np.exp(-order * s)) * np.exp(-v * np.sinh(s))
            want.append(np.sin(v * np.sin(t) - order * t).mean() - tail.mean() * 12 / np.pi)
    found = evaluate(f"tl.extra.libdevice.{name}(x)", x=x)
    torch.testing.assert_close(found, torch.tensor(want), rtol=1e-6, atol=1e-6)


def test_scaled_complementary_error_function(evaluate):
    x = torch.tensor([-1.0, 0.0, 0.5, 3.0], dtype=torch.float64)
    want = torch.tensor([math.exp(v * v) * math.erfc(v) for v in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(evaluate("tl.extra.libdevice.erfcx(x)", x=x), want)


MODES = ("rn", "rz", "rd", "ru")


def rounded(exact, kind, mode):
    """A fraction rounded to a numpy float type in one direction."""
    near = kind(float(exact)) if kind is np.float64 else _to_float32(exact)
    error = Fraction(float(near)) - exact
    if mode == "rn" or error == 0:
        return near
    down = mode == "rd" or (mode == "rz" and exact > 0)
    if down and error > 0:
        return np.nextafter(near, kind(-np.inf))
    return np.nextafter(near, kind(np.inf)) if not down and error < 0 else near


def _to_float32(exact):
    near = np.float32(float(exact))
    around = [np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))]
    best = min(abs(Fraction(float(v)) - exact) for v in around)
    ties = [v for v in around if abs(Fraction(float(v)) - exact) == best]
    return next((v for v in ties if v.view(np.int32) % 2 == 0), ties[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("op", ["add", "sub", "mul", "div", "rcp", "fma"])
def test_arithmetic_rounds_in_the_direction_of_its_name(evaluate, op, mode, dtype):
    generator = torch.Generator().manual_seed(5)
    x, y, z = (torch.randn(64, generator=generator, dtype=dtype) for _ in range(3))
    y = y * 2.0 ** torch.randint(-40, 40, (64,), generator=generator).to(dtype)  # far apart: sums round in all ways
    count = {"rcp": 1, "fma": 3}.get(op, 2)
    given = dict(zip("xyz", (x, y, z)[:count], strict=False))
    found = evaluate(f"tl.extra.libdevice.{op}_{mode}({', '.join(given)})", **given)
    exact = {
        "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "div": lambda a, b: a / b,
        "rcp": lambda a: 1 / a, "fma": lambda a, b, c: a * b + c,
    }[op]  # fmt: skip
    kind = np.float32 if dtype == torch.float32 else np.float64
    for row, value in enumerate(found.tolist()):
        operands = [Fraction(v[row].item()) for v in given.values()]
        assert value == float(rounded(exact(*operands), kind, mode)), (op, mode, operands)


@pytest.mark.parametrize("mode", ["rz", "rd", "ru"])
def test_square_roots_round_in_the_direction_of_their_name(evaluate, mode):
    x = torch.rand(64, generator=torch.Generator().manual_seed(1)) * 100
    found = evaluate(f"tl.extra.libdevice.sqrt_{mode}(x)", x=x).double()
    below, exact = found**2 <= x.double(), x.double()
    nearest = torch.sqrt(x.double())
    assert (below if mode != "ru" else found**2 >= exact).all()
    assert (found - nearest).abs().max() < 2e-6
    assert (found.float() != torch.sqrt(x)).any()  # the direction matters somewhere


@pytest.mark.parametrize("mode", MODES)
def test_conversions_to_integers(evaluate, mode):
    points = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3e9, -3e9, 1e20, -1e20, math.nan, math.inf, -math.inf, 7.0, 1.25, -1.75]
    whole = {"rn": round, "rz": math.trunc, "rd": math.floor, "ru": math.ceil}[mode]
    for source, dtype in (("float", torch.float32), ("double", torch.float64)):
        x = torch.tensor(points, dtype=dtype)
        for target, low, high in (
            ("int", -(2**31), 2**31 - 1), ("uint", 0, 2**32 - 1), ("ll", -(2**63), 2**63 - 1), ("ull", 0, 2**64 - 1)
        ):  # fmt: skip
            found = evaluate(f"tl.extra.libdevice.{source}2{target}_{mode}(x)", x=x)
            bits = 32 if "int" in target else 64
            for value, got in zip(x.tolist(), found.tolist(), strict=True):
                if math.isnan(value):
                    want = 0 if bits == 32 else 2**63
                else:
                    want = (high if value > 0 else low) if math.isinf(value) else min(max(whole(value), low), high)
                assert got % 2**bits == want % 2**bits, (source, target, value)


@pytest.mark.parametrize("mode", MODES)
def test_conversions_to_floats(evaluate, mode):
    integers = [0, 1, -1, 16777217, 16777219, -16777217, 2**31 - 1, -(2**31)]
    x = torch.tensor(integers, dtype=torch.int32)
    assert evaluate(f"tl.extra.libdevice.int2float_{mode}(x)", x=x).tolist() == [
        float(rounded(Fraction(n), np.float32, mode)) for n in integers
    ]
    wide = [0, 5, 2**53 + 1, -(2**53) - 1, 2**62 + 3, -(2**63), 2**63 - 1, 2**60 - 1]
    x = torch.tensor(wide)
    for target, kind in (("float", np.float32), ("double", np.float64)):
        found = evaluate(f"tl.extra.libdevice.ll2{target}_{mode}(x)", x=x).tolist()
        assert found == [float(rounded(Fraction(n), kind, mode)) for n in wide]
    x = torch.tensor([0.1, 1 / 3, -0.1, 1e-3, 1 + 2**-40, 5.0, -1 / 3, 2.5], dtype=torch.float64)
    found = evaluate(f"tl.extra.libdevice.double2float_{mode}(x)", x=x).tolist()
    assert found == [float(rounded(Fraction(v), np.float32, mode)) for v in x.tolist()]


WORDS = [0, 1, -1, 2, 255, -256, 0x7FFFFFFF, -0x80000000]


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize(
    ("name", "oracle"),
    [
        ("clz", lambda n, bits: bits - n.bit_length()), ("popc", lambda n, bits: bin(n).count("1")),
        ("ffs", lambda n, bits: (n & -n).bit_length()),
        ("brev", lambda n, bits: int(f"{n:0{bits}b}"[::-1], 2)),
    ],
)  # fmt: skip
def test_bits(evaluate, name, oracle, bits):
    x = torch.tensor(WORDS, dtype=torch.int32 if bits == 32 else torch.int64)
    found = evaluate(f"tl.extra.libdevice.{name}(x)", x=x)
    assert [v % 2**bits for v in found.tolist()] == [oracle(n % 2**bits, bits) for n in WORDS]


def signed(n, bits=32):
    n %= 2**bits
    return n - 2**bits if n >= 2 ** (bits - 1) else n


def low_24(n):
    n &= 0xFFFFFF
    return n - 2**24 if n & 0x800000 else n


@pytest.mark.parametrize(
    ("name", "oracle"),
    [
        ("hadd", lambda a, b: (a + b) >> 1), ("rhadd", lambda a, b: (a + b + 1) >> 1),
        ("mulhi", lambda a, b: (a * b) >> 32), ("mul24", lambda a, b: signed(low_24(a) * low_24(b))),
    ],
)  # fmt: skip
def test_integers(evaluate, name, oracle):
    x, y = torch.tensor(WORDS, dtype=torch.int32), torch.tensor([7, -3, 0x7FFFFFFF, -9, 12345678, 99, 3, 5]).int()
    found = evaluate(f"tl.extra.libdevice.{name}(x, y)", x=x, y=y).tolist()
    assert found == [oracle(a, b) for a, b in zip(WORDS, y.tolist(), strict=True)]


def test_bytes_and_differences(evaluate):
    x, y = torch.tensor([0x44332211, 0x11] * 2).int(), torch.tensor([0x0877665, 0x22] * 2).int()
    s = torch.tensor([0x3210, 0x7654, 0x0415, 0xC000]).int()
    found = evaluate("tl.extra.libdevice.byte_perm(x, y, s)", x=x, y=y, s=s).tolist()
    for a, b, selector, got in zip(x.tolist(), y.tolist(), s.tolist(), found, strict=True):
        pool = struct.pack("<iI", a, b % 2**32)
        want = []
        for place in range(4):
            choice = (selector >> (4 * place)) & 15
            byte = pool[choice & 7]
            want.append((255 if byte & 128 else 0) if choice & 8 else byte)
        assert struct.pack("<i", got) == bytes(want)
    assert evaluate("tl.extra.libdevice.sad(x, y, s.to(tl.uint32))", x=x, y=y, s=s).tolist() == [
        signed(abs(a - b) + c) for a, b, c in zip(x.tolist(), y.tolist(), s.tolist(), strict=True)
    ]


def test_reinterpretations(evaluate):
    x = torch.tensor([1.0, -2.5, 0.1, math.inf])
    assert torch.equal(evaluate("tl.extra.libdevice.float_as_int(x)", x=x), x.view(torch.int32))
    assert torch.equal(evaluate("tl.extra.libdevice.int_as_float(tl.extra.libdevice.float_as_uint(x))", x=x), x)
    d = x.double()
    assert torch.equal(evaluate("tl.extra.libdevice.double_as_longlong(d)", d=d), d.view(torch.int64))
    back = "tl.extra.libdevice.hiloint2double(tl.extra.libdevice.double2hiint(d), tl.extra.libdevice.double2loint(d))"
    assert torch.equal(evaluate(back, d=d), d)


def test_predicates_exponents_and_scaling(evaluate):
    x = torch.tensor([1.5, -0.0, math.nan, math.inf, -math.inf, 1e-40, -3.0, 8.0])
    assert torch.equal(evaluate("tl.extra.libdevice.isnan(x)", x=x), torch.isnan(x))
    assert torch.equal(evaluate("tl.extra.libdevice.isinf(x)", x=x), torch.isinf(x))
    assert torch.equal(evaluate("tl.extra.libdevice.finitef(x)", x=x), torch.isfinite(x))
    assert torch.equal(evaluate("tl.extra.libdevice.isfinited(x)", x=x.double()), torch.isfinite(x))
    assert evaluate("tl.extra.libdevice.signbit(x)", x=x).tolist() == torch.signbit(x).int().tolist()
    limits = (-(2**31), 2**31 - 1)
    assert evaluate("tl.extra.libdevice.ilogb(x)", x=x).tolist() == [
        0, limits[0], limits[0], limits[1], limits[1], -133, 1, 3,
    ]  # fmt: skip
    n = torch.tensor([1, 2, 3, 4, 5, 10, -2, -3]).int()
    torch.testing.assert_close(evaluate("tl.extra.libdevice.ldexp(x, n)", x=x, n=n), torch.ldexp(x, n), equal_nan=True)
    assert evaluate("tl.extra.libdevice.saturatef(x)", x=x).tolist() == [1, 0, 0, 1, 0, pytest.approx(1e-40), 0, 1]
    assert evaluate("tl.extra.libdevice.llround(x)", x=torch.tensor([0.5, 1.5, -2.5, 3.49])).tolist() == [1, 2, -3, 3]
    assert evaluate("tl.extra.libdevice.llrint(x)", x=torch.tensor([0.5, 1.5, -2.5, 3.49])).tolist() == [0, 2, -2, 3]


def test_lengths_do_not_overflow(evaluate):
    x = torch.tensor([3e200, 0.0], dtype=torch.float64)
    found = evaluate("tl.extra.libdevice.norm4d(x, x, x, x)", x=x)
    torch.testing.assert_close(found, 2 * x)
    torch.testing.assert_close(evaluate("tl.extra.libdevice.rnorm3d(x, x, x)", x=x), 1 / (math.sqrt(3) * x))


def test_fast_functions_are_the_exact_ones(evaluate):
    x = torch.tensor([0.1, 0.5, 1.5, 2.5])
    for name, want in (
        ("sinf", torch.sin), ("cosf", torch.cos), ("tanf", torch.tan), ("logf", torch.log), ("log2f", torch.log2),
        ("log10f", torch.log10), ("expf", torch.exp), ("tanhf", torch.tanh), ("exp10f", lambda v: 10.0**v),
    ):  # fmt: skip
        torch.testing.assert_close(evaluate(f"tl.extra.libdevice.fast_{name}(x)", x=x), want(x.double()).float())
    torch.testing.assert_close(evaluate("tl.extra.libdevice.fast_powf(x, x)", x=x), x**x)
    torch.testing.assert_close(evaluate("tl.extra.libdevice.fast_dividef(x, 3.0)", x=x), x / 3)


def test_a_power_with_an_integer_and_operands_of_mixed_types(evaluate):
    x, n = torch.tensor([-2.0, 3.0]), torch.tensor([3, -2]).int()
    torch.testing.assert_close(evaluate("tl.extra.libdevice.pow(x, n)", x=x, n=n), torch.tensor([-8.0, 1 / 9]))
    found = evaluate("tl.extra.libdevice.pow(2.0, d)", d=x.double())
    torch.testing.assert_close(found, torch.tensor([0.25, 8.0], dtype=torch.float64))
    assert evaluate("tl.extra.libdevice.atan2(x, d)", x=x, d=x.double()).dtype == torch.float64


def test_names_lead_to_the_same_functions_however_they_are_imported(module_from):
    source = """
from triton.language.extra import libdevice
from triton.language.extra.cuda import libdevice as cuda_libdevice
from triton.language.extra.libdevice import rint

@triton.jit
def kernel(x_ptr, out_ptr):
    i = tl.arange(0, 4)
    x = tl.load(x_ptr + i)
    y = libdevice.rint(x) + cuda_libdevice.rint(x) + rint(x) + tl.extra.cuda.libdevice.rint(x)
    tl.store(out_ptr + i, y)
"""
    x, out = torch.tensor([0.5, 1.5, 2.4, -0.6]), torch.zeros(4)
    with simulator.trace() as t:
        module_from(source).kernel[(1,)](x, out)
    assert out.tolist() == [0, 8, 8, -4]
    assert t.launches[0].other_flops == 4 * 4 + 3 * 4


def test_wrong_operands_and_missing_functions_are_named(module_from):
    source = "@triton.jit\ndef kernel(x_ptr):\n    x = tl.load(x_ptr)\n    {}\n"
    for line, error, message in (
        ("tl.extra.libdevice.tanh(x.to(tl.float16))", KernelTypeError, r"takes \(fp32\) or \(fp64\), got \(fp16\)"),
        ("tl.extra.libdevice.pow(x)", KernelTypeError, "takes 2 operands, got 1"),
        ("tl.extra.libdevice.jn(1, x)", UnsupportedFeatureError, r"libdevice\.jn"),
    ):
        with simulator.enabled(), pytest.raises(error, match=message):
            module_from(source.format(line)).kernel[(1,)](torch.zeros(4))


@pytest.mark.needs_triton
def test_the_table_has_the_functions_and_types_of_the_installed_library():
    tree = ast.parse(inspect.getsource(real_libdevice))
    functions = {f.name: f for f in tree.body if isinstance(f, ast.FunctionDef)}
    assert set(functions) - set(LIBDEVICE) == {"jn", "yn", "rcp64h"}
    for name in set(functions) & set(LIBDEVICE):
        table = next(n for n in ast.walk(functions[name]) if isinstance(n, ast.Dict))
        names = [
            [c.args[0].value for c in ast.walk(k) if isinstance(c, ast.Call)] for k in (*table.keys, *table.values)
        ]
        half = len(table.keys)
        want = {tuple(k): v[0] for k, v in zip(names[:half], names[half:], strict=True)}
        if ".to(core.int1" in ast.unparse(functions[name]):
            want = dict.fromkeys(want, "int1")
        got = {tuple(map(str, k)): str(v) for k, v in LIBDEVICE[name].function.overloads.items()}
        assert got == want, name
