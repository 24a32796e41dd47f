"""The exercise on float formats: right answers of many shapes pass, wrong ones fail with their mistake named."""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from cme295lab.grading import checks
from cme295lab.grading.float_formats import decoding, encoding, formats, stochastic, summing
from cme295lab.grading.float_formats.formats import BF16, E5M2, FP16, FP32, PAGE, RIGHT, Format
from cme295lab.grading.result import Kind
from tests.grading.students import (
    Student,
    assert_refused,
    assert_stubs_and_results_are_told_apart,
    handed_in,
    student,
    written,
)

HIDDEN = {
    "1": {"seed": 295, "exponent_bits": 6, "mantissa_bits": 5},
    "2": {"seed": 295, "exponent_bits": 6, "mantissa_bits": 5},
    "3": {"seed": 295, "draws": 8000},
    "4": {"seed": 295, "steps": 700},
}
CELLS = {"1": "decode", "2": "encode", "3": "stochastic_round", "4": "compensated_add"}

BIAS = "bias = 2 ** (exponent_bits - 1) - 1"
SPECIAL = "if exponent == 2**exponent_bits - 1:\n        return math.nan if mantissa else sign * math.inf"
SUBNORMAL = "return sign * fraction * 2.0 ** (1 - bias)"
NORMAL = "return sign * (1 + fraction) * 2.0 ** (exponent - bias)"

SIGN = "sign = (math.copysign(1, x) < 0) << (exponent_bits + mantissa_bits)"
POWER = "power = max(math.frexp(x)[1] - 1, 1 - bias)"
UNITS = "units = round(math.ldexp(abs(x), mantissa_bits - power))"
SCALED = "math.ldexp(abs(x), mantissa_bits - power)"
CODE = "code = units + ((power + bias - 1) << mantissa_bits)"
END = "return sign | min(code, infinity)"
BODY = BIAS + "\n    " + SIGN

NOISE = "noise = torch.randint(0, 2**16, x.shape, generator=generator, dtype=torch.int32)"
CUT = "cut = (bits + noise) & ~0xFFFF"
BITS = "bits = x.view(torch.int32)"
FLOATS = "step = 2.0 ** (x.abs().clamp(min=1e-30).log2().floor() - 7)\n    "
UNIFORM = "torch.rand(x.shape, generator=generator)"

WANTED = "wanted = value + lost"
NEW = "new = total + wanted"
LOST = "return new, wanted - (new - total)"

SEARCH = '''table = search.__dict__.setdefault((exponent_bits, mantissa_bits), [])
    if not table:
        infinity = (2**exponent_bits - 1) << mantissa_bits
        bias = 2 ** (exponent_bits - 1) - 1
        for code in range(infinity):
            field, mantissa = code >> mantissa_bits, code & (2**mantissa_bits - 1)
            one = 2**mantissa_bits if field else 0
            table.append(math.ldexp(one + mantissa, max(field, 1) - bias - mantissa_bits))
        table.append(2 * table[-1] - table[-2])
    sign = int(math.copysign(1, x) < 0) << (exponent_bits + mantissa_bits)
    if x != x:
        return len(table) - 1 | 3 | sign
    near = np.searchsorted(table, abs(x))
    if near == len(table):
        return sign | len(table) - 1
    best = min((code for code in (near - 1, near) if code >= 0), key=lambda c: (abs(table[c] - abs(x)), c % 2))
    return np.int64(sign | best)'''
STRUCT = '''kinds = {(5, 10): np.float16, (8, 7): None}
    if (exponent_bits, mantissa_bits) == (5, 10):
        with np.errstate(over="ignore"):
            return np.float64(x).astype(np.float16).view(np.uint16)
    ''' + BIAS

RIGHT_ANSWERS = [
    ("1", student("the solution")),
    ("1", student("integers and ldexp", NORMAL,
                  "return sign * math.ldexp(2**mantissa_bits + mantissa, exponent - bias - "
                  "mantissa_bits)")),
    ("1", student("text", "exponent = code >> mantissa_bits & (2**exponent_bits - 1)",
                  "text = f'{code:0{1 + exponent_bits + mantissa_bits}b}'\n    "
                  "exponent = int(text[1 : 1 + exponent_bits], 2)")),
    ("1", student("numpy's numbers", NORMAL, NORMAL.replace("return ", "return np.float64(") + ")")),
    ("1", student("tensors", NORMAL, NORMAL.replace("return ", "return torch.tensor(") + ", dtype=torch.float64)")),
    ("2", student("the solution")),
    ("2", student("a search among all numbers", BODY, "def search(): pass\n    search = encode\n    " + SEARCH)),
    ("2", student("numpy for fp16", BIAS, STRUCT)),
    ("2", student("remainders", UNITS, "units, rest = divmod(" + SCALED + ", 1)\n    units = int(units)\n"
                  "    units += rest > 0.5 or (rest == 0.5 and units % 2 == 1)")),
    ("2", student("a search among decoded codes", END, "return torch.tensor(sign | min(code, infinity))")),
    ("2", student("negative NaN", "return infinity + 1",
                  "return infinity + 2 | sign | 1 << exponent_bits + mantissa_bits")),
    ("3", student("the solution")),
    ("3", student("floats and floor", BITS, FLOATS + f"return (torch.floor(x / step + {UNIFORM}) * step).bfloat16()")),
    ("3", student("neighbours", BITS, BITS + "\n    low = (bits & ~0xFFFF).view(torch.float32)\n"
                  "    high = ((bits & ~0xFFFF) + 0x10000).view(torch.float32)\n    chance = (x - low) / (high - low)\n"
                  f"    return torch.where({UNIFORM} < chance, high, low).bfloat16()")),
    ("3", student("noise around 0", BITS, FLOATS + f"return (torch.round(x / step + {UNIFORM} - 0.5 - 1e-7) * step)"
                  ".bfloat16()")),
    ("3", student("a loop", BITS, "flat = x.flatten().view(torch.int32).tolist()\n"
                  "    draws = torch.rand(len(flat), generator=generator).tolist()\n"
                  "    out = [(b & ~0xFFFF) + 0x10000 * (u < (b & 0xFFFF) / 2**16) for b, u in zip(flat, draws)]\n"
                  "    return torch.tensor(out, dtype=torch.int32).view(torch.float32).bfloat16().view(x.shape)")),
    ("3", student("numpy", BITS, "bits = x.numpy().view(np.uint32).astype(np.int64)\n"
                  "    bits = bits + torch.randint(0, 2**16, x.shape, generator=generator).numpy()\n"
                  "    cut = (bits & 0xFFFF0000).astype(np.uint32).view(np.float32)\n"
                  "    return torch.from_numpy(cut).bfloat16()")),
    ("4", student("the solution")),
    ("4", student("the other sign", WANTED, "wanted = value - lost", LOST, "return new, (new - total) - wanted")),
    ("4", student("in fp32 inside", NEW, "new = (total.float() + wanted.float()).to(total.dtype)")),
    ("4", student("six operations", LOST,
                  "taken = new - total\n    return new, (total - (new - taken)) + (wanted - taken)")),
    ("4", student("in place", NEW, "old = total.clone()\n    total += wanted\n    new, total = total, old")),
    ("4", student("exactly, in float64", WANTED, "exact = total.double() + lost.double() + value.double()\n"
                  "    new = exact.to(total.dtype)\n    return new, (exact - new.double()).to(total.dtype)\n"
                  "    wanted = 0")),
    ("4", student("a list", LOST, "return [new, wanted - (new - total)]")),
]  # fmt: skip

WRONG = [
    ("1", student("no bias", BIAS, "bias = 0", says="the bias is forgotten", at_most=0.5)),
    ("1", student("bias one more", BIAS, "bias = 2 ** (exponent_bits - 1)", says="yours is one more")),
    ("1", student("bias 127", BIAS, "bias = 127", says="the bias is 127 in formats with 8")),
    ("1", student("no implicit one", "(1 + fraction)", "fraction", says="the implicit one is missing")),
    ("1", student("mantissa not divided", "mantissa / 2**mantissa_bits", "mantissa",
                  says="the mantissa is not divided")),
    ("1", student("a bit too far", "mantissa / 2**mantissa_bits", "mantissa / 2**(mantissa_bits + 1)",
                  says="the fraction is half")),
    ("1", student("mantissa on top", "code >> mantissa_bits & (2**exponent_bits - 1)", "code & (2**exponent_bits - 1)",
                  "code & (2**mantissa_bits - 1)", "code >> exponent_bits & (2**mantissa_bits - 1)",
                  says="the fields are swapped")),
    ("1", student("no sign", "sign = -1.0 if", "sign = 1.0 if", says="the sign bit has no effect", at_most=0.8)),
    ("1", student("sign inverted", "-1.0 if code >> (exponent_bits + mantissa_bits) else 1.0",
                  "1.0 if code >> (exponent_bits + mantissa_bits) else -1.0", says="the sign is inverted",
                  at_most=0.2)),
    ("1", student("flushed", SUBNORMAL, "return sign * 0.0", says="subnormals are flushed", at_most=0.8)),
    ("1", student("0 - bias", SUBNORMAL, SUBNORMAL.replace("1 - bias", "-bias"), says="not 0 - bias", at_most=0.8)),
    ("1", student("no subnormals", "if exponent == 0:", "if exponent == -1:", says="subnormals have no implicit one",
                  at_most=0.8)),
    ("1", student("nothing special", SPECIAL, "", says="the largest exponent is taken for a normal one", at_most=0.9)),
    ("1", student("inf for NaN", SPECIAL, SPECIAL.replace("math.nan if mantissa else ", ""), says="NaN is lost")),
    ("1", student("NaN for inf", SPECIAL, SPECIAL.replace(" if mantissa else sign * math.inf", ""),
                  says="inf is lost")),
    ("1", student("zero without sign", SUBNORMAL, SUBNORMAL + " + 0.0", says="the sign of zero is lost", at_most=0.9)),
    ("1", student("text back", NORMAL, NORMAL.replace("return ", "return str(") + ")", kind=Kind.WRONG_SHAPE,
                  says="return the number as a float, not str")),
    ("2", student("no bias", BIAS, "bias = 0", says="the bias is forgotten", at_most=0.5)),
    ("2", student("bias one more", BIAS, "bias = 2 ** (exponent_bits - 1)",
                  says="the exponent field is one too large", at_most=0.5)),
    ("2", student("implicit one stored", "power + bias - 1", "power + bias",
                  says="the exponent field is one too large")),
    ("2", student("ties away", UNITS, f"units = math.floor({SCALED} + 0.5)", says="ties are rounded away from zero",
                  at_most=0.85)),
    ("2", student("ties up", UNITS, f"units = math.ceil({SCALED} - 0.5) if x < 0 else math.floor({SCALED} + 0.5)",
                  says="ties are rounded up, toward +inf", at_most=0.85)),
    ("2", student("ties down", UNITS, f"units = math.ceil({SCALED} - 0.5)", says="ties are rounded toward zero")),
    ("2", student("cut off", "round(", "int(", says="bits are cut off", at_most=0.5)),
    ("2", student("rounded away", "round(", "math.ceil(", says="rounded away from zero: round to the nearest")),
    ("2", student("flushed", UNITS, UNITS + "\n    units = 0 if math.frexp(x)[1] - 1 < 1 - bias else units",
                  says="subnormals are flushed to zero", at_most=0.8)),
    ("2", student("0 - bias", UNITS, UNITS + "\n    if math.frexp(x)[1] - 1 < 1 - bias:\n"
                  "        units = round(2 * " + SCALED + ")", says="not 0 - bias", at_most=0.9)),
    ("2", student("largest number", END, "return sign | min(code, infinity - 1)", says="become the largest number",
                  at_most=0.95)),
    ("2", student("inf too early", POWER, POWER + "\n    if abs(x) > (2 - 2.0**-mantissa_bits) * 2.0**bias:\n"
                  "        return sign | infinity", says="inf begins too early", at_most=0.95)),
    ("2", student("overflow not checked", END, "return sign | code", says="overflow is not checked")),
    ("2", student("carry lost", CODE,
                  "units = min(units, 2 ** (mantissa_bits + 1) - 1) if units < 2 ** (mantissa_bits + 1)"
                  " else 2**mantissa_bits\n    " + CODE, says="the carry is lost")),
    ("2", student("inf is the largest", "return sign | infinity", "return sign | infinity - 1", says="inf is lost")),
    ("2", student("inf is NaN", "return sign | infinity\n", "return infinity + 1\n", says="inf became NaN")),
    ("2", student("NaN is inf", "return infinity + 1", "return infinity", says="NaN is lost, it became inf",
                  at_most=0.95)),
    ("2", student("NaN is zero", "return infinity + 1", "return 0", says="NaN is lost, it became zero")),
    ("2", student("zero without sign", "if x == 0:\n        return sign", "if x == 0:\n        return 0",
                  says="the sign of zero is lost")),
    ("2", student("x < 0", "math.copysign(1, x) < 0", "x < 0", says="the sign of zero is lost", at_most=0.95)),
    ("2", student("no sign", SIGN, "sign = 0", says="the sign is lost", at_most=0.5)),
    ("2", student("through fp32", BIAS, "if abs(x) < 1e38:\n        x = torch.tensor(x).item()\n    " + BIAS,
                  says="rounded twice: first to fp32", at_most=0.95)),
    ("2", student("a subnormal twice", POWER, "power = math.frexp(x)[1] - 1\n    x = math.copysign(math.ldexp(round("
                  + SCALED + "), power - mantissa_bits), x)\n    power = max(power, 1 - bias)",
                  says="a subnormal is rounded twice", at_most=0.95)),
    ("2", student("a float", END, END.replace("return ", "return float(") + ")", kind=Kind.WRONG_SHAPE,
                  says="return the code as an int, not float")),
    ("2", student("zero forgotten", "if x == 0:\n        return sign", "", says="zero needs a case of its own",
                  at_most=0.95)),
    ("3", student("nearest", BITS, "return x.bfloat16()", says="every number goes to the nearer neighbour",
                  at_most=0.4)),
    ("3", student("truncated", NOISE, "noise = 0", says="the bits are cut off", at_most=0.4)),
    ("3", student("always away", NOISE, "noise = 0xFFFF", says="every number is rounded up", at_most=0.4)),
    ("3", student("a coin", BITS, BITS + "\n    up = ((bits & 0xFFFF) != 0).int() * 0x10000 * "
                  "torch.randint(0, 2, x.shape, generator=generator, dtype=torch.int32)\n"
                  "    return ((bits & ~0xFFFF) + up).view(torch.float32).bfloat16()", says="a coin is tossed")),
    ("3", student("the other way round", CUT, "cut = (bits & ~0xFFFF) + 0x10000 * (((bits & 0xFFFF) < noise) & "
                  "((bits & 0xFFFF) > 0)).int()", says="the chance is the other way round")),
    ("3", student("half the noise", "0, 2**16, x.shape", "0, 2**15, x.shape", says="", at_most=0.5)),
    ("3", student("half the chance", CUT, "cut = (bits & ~0xFFFF) + 0x10000 * (noise < (bits & 0xFFFF) / 2).int()",
                  says="the chance is half of what it should be")),
    ("3", student("then nearest", BITS, FLOATS + f"return (x + {UNIFORM} * step).bfloat16()",
                  says=("it is rounded to the nearest",), at_most=0.9)),
    ("3", student("wide noise", "2**16, x.shape", "2**18, x.shape", says="past its neighbours")),
    ("3", student("fp16's step", BITS, FLOATS.replace("- 7", "- 3")
                  + f"return (torch.floor(x / step + {UNIFORM}) * step).bfloat16()", says="past its neighbours")),
    ("3", student("one draw for all", NOISE, NOISE.replace("x.shape", "()"), says="elements share a draw")),
    ("3", student("one draw a row", NOISE, NOISE.replace("x.shape", "(*x.shape[:-1], 1)"),
                  says="elements share a draw")),
    ("3", student("one draw a column", NOISE, NOISE.replace("x.shape", "x.shape[-1:]"), says="elements share a draw")),
    ("3", student("negative ones reversed", BITS, FLOATS + f"return ((x / step + x.sign() * {UNIFORM}).floor() * step)"
                  ".bfloat16()", says="", at_most=0.9)),
    ("3", student("floor of negative ones", CUT,
                  "cut = (bits & ~0xFFFF) + 0x10000 * (torch.where(x < 0, noise > (bits & "
                  "0xFFFF), noise < (bits & 0xFFFF)) & ((bits & 0xFFFF) > 0)).int()",
                  says="for negative numbers the chance",
                  at_most=0.85)),
    ("3", student("a generator of its own", NOISE, NOISE.replace("generator=generator, ", ""),
                  says="the same seed gives another result", at_most=0.95)),
    ("3", student("always the same seed", NOISE, NOISE.replace("=generator", "=torch.Generator().manual_seed(7)"),
                  says="another seed gives the same result", at_most=0.95)),
    ("3", student("seeded from the generator", NOISE,
                  NOISE.replace("=generator", "=torch.Generator().manual_seed(generator.initial_seed())"),
                  says="a second call with the same generator", at_most=0.95)),
    ("3", student("fp32 back", ".bfloat16()", "", kind=Kind.WRONG_SHAPE, says="must be bfloat16, yours is float32")),
    ("3", student("zero is NaN", BITS, FLOATS.replace(".clamp(min=1e-30)", "")
                  + f"return (torch.floor(x / step + {UNIFORM}) * step).bfloat16()", says="for x = 0", at_most=0.95)),
    ("3", student("in place", NOISE, NOISE + "\n    bits += noise\n    noise = 0", says="changes its input x",
                  at_most=0.0)),
    ("4", student("plain", LOST, "return total + value, lost", says="nothing is carried along", at_most=0.2)),
    ("4", student("nothing put in", WANTED, "wanted = value", LOST, "return new, lost + (wanted - (new - total))",
                  says="never added")),
    ("4", student("wrong sign", LOST, "return new, (new - total) - wanted",
                  says="the sign of what is carried is wrong")),
    ("4", student("older ones forgotten", LOST, "return new, value - (new - total)",
                  says="what was lost earlier is forgotten")),
    ("4", student("twice", LOST, "return new, lost + (wanted - (new - total))", says="added and kept as well")),
    ("4", student("all of it", LOST, "return new, value", says="the whole value is carried along")),
    ("4", student("exact difference", LOST,
                  "return new, (wanted.float() - (total.float() + wanted.float() - total.float()))"
                  ".to(total.dtype)", says="nothing is carried along")),
    ("4", student("fp32 state", NEW, "new = total.float() + wanted.float()", kind=Kind.WRONG_SHAPE,
                  says=("total must stay float16", "Yours is float32"))),
    ("4", student("lost in fp32", LOST, "return new, (wanted - (new - total)).float()", kind=Kind.WRONG_SHAPE,
                  says="lost must stay float16")),
    ("4", student("fp16 whatever comes", LOST, "return new.half(), (wanted - (new - total)).half()",
                  kind=Kind.WRONG_SHAPE, says="total must stay bfloat16", at_most=0.9)),
    ("4", student("one number", LOST, "return new, (wanted - (new - total)).sum()", kind=Kind.WRONG_SHAPE,
                  says="lost must have the shape (2,)", at_most=0.5)),
    ("4", student("the total alone", LOST, "return new", kind=Kind.WRONG_SHAPE, says="return (total, lost)")),
]  # fmt: skip


def of(part: str, made: Student):
    return handed_in("float_formats", CELLS[part], CELLS[part], made, np=np)


@pytest.mark.parametrize("hidden", [False, True], ids=["visible", "hidden"])
@pytest.mark.parametrize(("part", "made"), RIGHT_ANSWERS, ids=str)
def test_right_answers_pass(part: str, made: Student, hidden: bool) -> None:
    result = checks.run(f"float_formats/{part}", of(part, made), **(HIDDEN[part] if hidden else {}))
    assert result.passed, result.message


@pytest.mark.parametrize(("part", "made"), WRONG, ids=str)
def test_wrong_answers_fail_with_their_mistake_named(part: str, made: Student) -> None:
    assert_refused(checks.run(f"float_formats/{part}", of(part, made)), made)


@pytest.mark.parametrize("part", CELLS)
def test_stubs_and_results_are_told_apart(part: str) -> None:
    assert_stubs_and_results_are_told_apart(f"float_formats/{part}", CELLS[part], CELLS[part])


def bits_student(answer: Callable[..., Any], mistake: formats.Mistake) -> Callable[..., Any]:
    return lambda x, e, m: answer(mistake, x, Format(e, m))


@pytest.mark.parametrize("options", [{}, HIDDEN["1"]], ids=["visible", "hidden"])
def test_every_listed_mistake_of_bits_is_found_and_named(options: dict[str, int]) -> None:
    """In the visible check and in the hidden one: a cause that fits nothing could never be named."""
    for part, answer, listed in (
        ("1", formats.decode_with, decoding.MISTAKES),
        ("2", formats.encode_with, encoding.MISTAKES),
    ):
        for mistake in listed:
            result = checks.run(f"float_formats/{part}", bits_student(answer, mistake), **options)
            assert mistake.cause in result.message, (mistake, result.message)


@pytest.mark.parametrize("options", [{}, HIDDEN["3"]], ids=["visible", "hidden"])
@pytest.mark.parametrize("mistake", stochastic.MISTAKES, ids=lambda mistake: mistake.cause[:40])
def test_every_listed_chance_is_found_and_named(mistake: stochastic.Mistake, options: dict[str, int]) -> None:
    def rounded(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        low, high, position = stochastic.neighbours(x)
        pairs = zip(position.flatten().tolist(), (x < 0).flatten().tolist(), strict=True)
        chance = torch.tensor([mistake.chance(*pair) for pair in pairs]).view(x.shape)
        return torch.where(torch.rand(x.shape, generator=generator) < chance, high, low).bfloat16()

    result = checks.run("float_formats/3", rounded, **options)
    assert mistake.cause in result.message, result.message


@pytest.mark.parametrize("seed", [0, 295])
@pytest.mark.parametrize("mistake", summing.MISTAKES, ids=lambda mistake: mistake.cause[:40])
def test_every_listed_sum_is_found_and_named(mistake: summing.Mistake, seed: int) -> None:
    result = checks.run("float_formats/4", lambda total, lost, value: mistake.step(total, lost, value), seed=seed)
    assert mistake.cause in result.message, result.message


ORACLES = [
    (FP16, np.float16, np.uint16),
    (BF16, ml_dtypes.bfloat16, np.uint16),
    (E5M2, ml_dtypes.float8_e5m2, np.uint8),
    (Format(4, 3), ml_dtypes.float8_e4m3, np.uint8),
    (Format(3, 4), ml_dtypes.float8_e3m4, np.uint8),
    (FP32, np.float32, np.uint32),
]


@pytest.mark.parametrize(("kind", "dtype", "codes"), ORACLES, ids=lambda value: getattr(value, "__name__", None))
def test_the_right_way_is_that_of_other_libraries(kind: Format, dtype: type, codes: type) -> None:
    generator = np.random.default_rng(0)
    few = np.arange(2 * kind.sign) if kind.sign < 2**8 else generator.integers(0, 2 * kind.sign, 400)
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        values = few.astype(codes).view(dtype).astype(np.float64)
        numbers = generator.standard_normal(400) * 2.0 ** generator.integers(-26, 20, 400)
        middles = [formats.middle(int(code), kind) for code in generator.integers(0, kind.infinity, 100)]
        # ml_dtypes rounds float64 twice, so it gets float32s; numpy gets more digits than its format has.
        exact = np.concatenate([numbers, middles, np.negative(middles)])
        exact = exact if dtype in (np.float16, np.float32) else exact.astype(np.float32)
        encoded = exact.astype(dtype).view(codes)
    for code, value in zip(few, values, strict=True):
        got = formats.decode_with(RIGHT, int(code), kind)
        assert decoding.DIRECTION.is_same(got, float(value), kind), (code, got, value)
    for number, code in zip(exact, encoded, strict=True):
        assert formats.encode_with(RIGHT, float(number), kind) == int(code), number


def test_the_neighbours_are_torchs() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(1)) * 50
    low, high, position = stochastic.neighbours(x)
    assert torch.equal(low, low.bfloat16().float())
    assert torch.equal(high, high.bfloat16().float())
    torch.testing.assert_close((low.double() + position * (high - low).double()), x.double(), rtol=0, atol=1e-12)
    assert bool(((x.bfloat16().float() == low) | (x.bfloat16().float() == high)).all())


def test_the_page_says_what_the_functions_give() -> None:
    decode = written("float_formats", "decode")["decode"]
    encode = written("float_formats", "encode")["encode"]
    assert decode(0b010110, *PAGE) == 6
    assert decode(0b000011, *PAGE) == 0.1875
    table = {6.9: 0b010111, 6.5: 0b010110, 7.5: 0b011000, 0.05: 0b000001, 14.9: 0b011011, 15: 0b011100}
    assert {x: encode(x, *PAGE) for x in table} == table
    assert (decode(0b010111, *PAGE), decode(0b011000, *PAGE), decode(0b011011, *PAGE)) == (7, 8, 14)
    assert decode(encode(2049, *FP16), *FP16) == 2048
    assert decode(encode(65519, *FP16), *FP16) == 65504
    step = written("float_formats", "compensated_add")["compensated_add"]
    total, lost = torch.tensor([2048.0, 0.0], dtype=torch.float16)
    rows = []
    for _ in range(3):
        total, lost = step(total, lost, torch.tensor(1.0, dtype=torch.float16))
        rows.append((float(total), float(lost)))
    assert rows == [(2048, 1), (2050, 0), (2052, -1)]
