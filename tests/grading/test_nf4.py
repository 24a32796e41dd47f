"""The exercise on NF4: right answers of many shapes pass, wrong ones fail with their mistake named."""

from statistics import NormalDist

import numpy
import pytest
import torch

from cme295lab.grading import checks
from cme295lab.grading.nf4 import constants, packing, table, unpacking
from cme295lab.grading.result import Kind
from cme295lab.quantization import nf4
from tests.grading.students import Student, assert_refused, assert_stubs_and_results_are_told_apart, handed_in, student

TOPIC = "nf4"
HIDDEN = {
    "1": {"bits": 5},
    "2": {"seed": 295, "block_size": 32, "num_blocks": 7, "row": 22},
    "3": {"seed": 295, "block_size": 32, "num_blocks": 7, "row": 23},
    "4": {"seed": 295, "group_size": 48, "num_groups": 5, "block_size": 128, "formula": 512},
}
CELLS = {
    "1": ("levels", "normal_float"),
    "2": ("quantize", "nf4_quantize"),
    "3": ("dequantize", "nf4_dequantize"),
    "4": ("double", constants.FUNCTIONS),
}

OFFSET = "offset = 1 - (1 / (2 * (2**bits - 1)) + 1 / (2 * 2**bits)) / 2"
ABOVE = "torch.linspace(offset, 0.5, half + 1).tolist()[:-1]"
BELOW = "torch.linspace(offset, 0.5, half).tolist()[:-1]"
SORTED = "sorted([*above, 0.0, *below])"
DIVIDED = "levels / levels.max()"
FLAT = "flat = x.flatten().float()"
BLOCKS = "blocks = torch.nn.functional.pad(flat, (0, -len(flat) % block_size)).view(-1, block_size)"
ABSMAX = "absmax = blocks.abs().amax(dim=1)"
NORMALISED = "normalised = blocks / absmax.clamp(min=1e-30)[:, None]"
NEAREST = "(normalised[..., None] - code).abs().argmin(dim=-1)"
BYTES = "(codes[0::2] * 16 + codes[1::2])"
CUT = ".flatten()[: len(flat)]"
HALVES = "torch.stack((packed >> 4, packed & 15), dim=1).flatten().long()"
SIZE = "codes = codes[: torch.Size(shape).numel()]"
CONSTANTS = "constants = absmax.repeat_interleave(block_size)[: len(codes)]"
OUT = "(code[codes] * constants).view(shape).to(dtype)"
MEAN = "mean = absmax.mean()"
SCALES = "scales = (groups.abs().amax(dim=1) / 127).clamp(min=1e-30)"
INT8 = "codes = (groups / scales[:, None]).round().to(torch.int8).flatten()[: len(absmax)]"
STORED = "return codes, scales, mean"
TAKEN = "codes, scales, mean = stored"
RESTORED = "codes * scales.repeat_interleave(group_size)[: len(codes)] + mean"
PLAIN = "4 + 32 / block_size\n"
DOUBLE = "4 + 8 / block_size + 32 / (block_size * group_size)"
LOOP = """found = []
    for number, value in enumerate(flat.tolist()):
        largest = float(absmax[number // block_size])
        scaled = value / largest if largest else 0.0
        found.append(min(range(16), key=lambda level: abs(float(code[level]) - scaled)))
    codes = torch.tensor(found)"""

RIGHT = [
    *((part, student("the solution")) for part in CELLS),
    ("1", student("torch's quantiles", "[NormalDist().inv_cdf(p) for p in " + ABOVE + "]",
                  "torch.special.ndtri(torch.linspace(offset, 0.5, half + 1)[:-1]).tolist()")),
    ("1", student("numpy", ABOVE, "np.linspace(offset, 0.5, half + 1)[:-1]", BELOW,
                  "np.linspace(offset, 0.5, half)[:-1].tolist()")),
    ("1", student("bitsandbytes' offset", OFFSET, "offset = 0.9677083 if bits == 4 else "
                  "1 - (1 / (2 * (2**bits - 1)) + 1 / (2 * 2**bits)) / 2")),
    ("1", student("by negation of p", "-NormalDist().inv_cdf(p)", "NormalDist().inv_cdf(1 - p)")),
    ("2", student("buckets", NEAREST, "torch.bucketize(normalised, (code[1:] + code[:-1]) / 2)")),
    ("2", student("buckets, ties up", NEAREST, "torch.bucketize(normalised, (code[1:] + code[:-1]) / 2, right=True)")),
    ("2", student("numpy", NEAREST,
                  "torch.from_numpy(np.abs(normalised.numpy()[..., None] - code.numpy()).argmin(-1))")),
    ("2", student("a loop", "codes = " + NEAREST + CUT, LOOP)),
    ("2", student("times the inverse", NORMALISED, "normalised = blocks * (1 / absmax.clamp(min=1e-30))[:, None]")),
    ("2", student("shifted bytes", BYTES, "(codes[0::2] << 4 | codes[1::2])")),
    ("2", student("rows of bytes", ".to(torch.uint8), absmax", ".to(torch.uint8)[:, None], absmax")),
    ("2", student("the last half is 7", "(codes, (0, len(flat) % 2))", "(codes, (0, len(flat) % 2), value=7)")),
    ("2", student("constants of zeros are 1", ABSMAX, ABSMAX + "\n    absmax = torch.where(absmax == 0, 1.0, absmax)")),
    ("2", student("a column of constants", ABSMAX, ABSMAX + "[:, None]", "[:, None]\n    codes", "\n    codes")),
    ("3", student("a table of pairs", "codes = " + HALVES, "pairs = torch.cartesian_prod(torch.arange(16), "
                  "torch.arange(16))\n    codes = pairs[packed.int()].flatten()")),
    ("3", student("a loop", OUT, "torch.tensor([float(code[c] * absmax[i // block_size]) for i, c in "
                  "enumerate(codes.tolist())]).view(shape).to(dtype)")),
    ("3", student("filled by steps", "codes = " + HALVES, "codes = torch.empty(2 * len(packed), dtype=torch.long)\n"
                  "    codes[0::2], codes[1::2] = packed // 16, packed % 16")),
    ("3", student("blocks by number", CONSTANTS, "constants = absmax[torch.arange(len(codes)) // block_size]")),
    ("3", student("in float64", OUT, "(code.double()[codes] * constants).view(shape).float().to(dtype)")),
    ("4", student("a loop over groups", "return codes, scales, mean", "parts = [((g := (a - mean)), max(float(g.abs()"
                  ".max()) / 127, 1e-20)) for a in absmax.split(group_size)]\n    return (torch.cat([(g / s).round()"
                  ".char() for g, s in parts]), torch.tensor([s for _, s in parts]), mean)")),
    ("4", student("a dictionary", STORED, 'return {"codes": codes, "scales": scales, "mean": float(mean)}', TAKEN,
                  'codes, scales, mean = stored["codes"], stored["scales"], stored["mean"]')),
    ("4", student("the middle instead of the mean", MEAN, "mean = absmax[:group_size].mean() * 0 + absmax.mean()")),
    ("4", student("unsigned codes", ".to(torch.int8).flatten()", ".add(128).to(torch.uint8).flatten()",
                  "codes * scales",
                  "(codes.float() - 128) * scales")),
    ("4", student("bits in bytes", DOUBLE, "8 * (0.5 + 1 / block_size + 4 / block_size / group_size)")),
]  # fmt: skip

WRONG = [
    ("1", student("equal bins", DIVIDED, "torch.linspace(-1, 1, 2**bits)", says="equally far apart")),
    ("1", student("no zero", BELOW, ABOVE, SORTED, "sorted([*above, *below])", says="and no 0")),
    ("1", student("sides exchanged", ABOVE, "SPARE", BELOW, ABOVE, "SPARE", BELOW, says="the sides are exchanged")),
    ("1", student("with 1/2", ABOVE, "torch.linspace(offset, 0.5, half).tolist()", says="0 is there twice")),
    ("1", student("not divided", "return " + DIVIDED, "return levels", says="not divided by the largest")),
    ("1", student("offset 1", OFFSET, "offset = 1.0", kind=Kind.CRASHED, says="inv_cdf")),
    ("1", student("offset 1, with torch", OFFSET, "offset = 1.0", "NormalDist().inv_cdf(p)",
                  "float(torch.special.ndtri(torch.tensor(p)))", says="the largest level is infinite")),
    ("1", student("offset of 32", OFFSET, "offset = 1 - 1 / (2 * 2**bits)", says="it is the mean of two")),
    ("1", student("offset of 30", OFFSET, "offset = 1 - 1 / (2 * (2**bits - 1))", says="it is the mean of two")),
    ("1", student("a factor 2", "2 * (2**bits - 1)", "(2**bits - 1)", "(2 * 2**bits)", "2**bits",
                  says="twice as far from 1")),
    ("1", student("no mean", " / 2\n", "\n", says="twice as far from 1")),
    ("1", student("the offset of four", OFFSET, "offset = 0.9677083", says="depends on their number", at_most=0.6)),
    ("1", student("the published table", "return " + DIVIDED, "return torch.tensor([-1.0, -0.6961928, -0.52507305, "
                  "-0.3949175, -0.28444138, -0.18477343, -0.091050036, 0.0, 0.0795803, 0.1609302, 0.2461123, "
                  "0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0])", kind=Kind.WRONG_SHAPE, says="the shape (8,)",
                  at_most=0.6)),
    ("1", student("probabilities", "NormalDist().inv_cdf(p)", "(p - 0.5)", says="these are probabilities")),
    ("1", student("middles", DIVIDED,
                  "(lambda x: x / x.max())(torch.special.ndtri((torch.arange(2**bits) + 0.5) / 2**bits))",
                  says="then 0 is no level")),
    ("1", student("descending", DIVIDED, "(levels / levels.max()).flip(0)", says="the order is descending")),
    ("1", student("unsorted", SORTED, "[*above, 0.0, *below]", says="the levels are not sorted")),
    ("1", student("nearly 0", SORTED, "sorted([*above, 1e-7, *below])", says="put 0 among the levels by itself",
                  at_most=0.9)),
    ("1", student("float64", "return " + DIVIDED, "return (" + DIVIDED + ").double()", kind=Kind.WRONG_SHAPE,
                  says="float32")),
    ("1", student("a list", "return " + DIVIDED, "return (" + DIVIDED + ").tolist()", kind=Kind.WRONG_SHAPE,
                  says="must be a tensor")),
    ("2", student("low half first", BYTES, "(codes[0::2] + 16 * codes[1::2])",
                  says="the halves of each byte are exchanged")),
    ("2", student("halves of the tensor", BYTES, "(codes.chunk(2)[0] * 16 + codes.chunk(2)[1])",
                  says="two neighbours share")),
    ("2", student("level below", NEAREST, "(torch.searchsorted(code, normalised, right=True) - 1).clamp(0, 15)",
                  says="the level below is taken")),
    ("2", student("level above", NEAREST, "torch.searchsorted(code, normalised).clamp(0, 15)",
                  says="the level above is taken")),
    ("2", student("one absmax", ABSMAX, "absmax = flat.abs().max().expand(len(blocks))",
                  says="one absmax for the whole")),
    ("2", student("one absmax, alone", ABSMAX, "absmax = flat.abs().max()[None]", kind=Kind.WRONG_SHAPE,
                  says="5 blocks have 5 constants")),
    ("2", student("largest number", "blocks.abs()", "blocks", says="that is the largest number")),
    ("2", student("not divided", NORMALISED, "normalised = blocks", says="not divided by their block's absmax")),
    ("2", student("each row", "flat = x",
                  "if x.ndim > 1:\n        pairs = [nf4_quantize(row, code, block_size) for row in x]"
                  "\n        return torch.cat([p[0] for p in pairs]), torch.cat([p[1] for p in pairs])\n    flat = x",
                  says="each row begins a new block", at_most=0.95)),
    ("2", student("column by column", "x.flatten()", "x.T.flatten()", says="read column by column", at_most=0.95)),
    ("2", student("dropped", BLOCKS, "blocks = flat[: len(flat) // block_size * block_size].view(-1, block_size)", CUT,
                  ".flatten()\n    codes = torch.nn.functional.pad(codes, (0, len(flat) - len(codes)), value=7)",
                  says="the last, shorter block is dropped")),
    ("2", student("refused", BLOCKS, "blocks = flat.view(-1, block_size)", kind=Kind.CRASHED,
                  says="invalid for input")),
    ("2", student("number of blocks", BLOCKS, "blocks = torch.nn.functional.pad(flat, (0, -len(flat) % block_size))"
                  ".view(block_size, -1)", kind=Kind.WRONG_SHAPE, says="constants, absmax has the shape (64,)")),
    ("2", student("0 / 0", ".clamp(min=1e-30)", "", says="0 / 0 is NaN", at_most=0.95)),
    ("2", student("the table of NF4", NORMALISED, NORMALISED + "\n    code = torch.tensor(CODE)",
                  says="use the one that is given", at_most=0.95)),
    ("2", student("from the top", NEAREST, "15 - " + NEAREST, says="the codes count from the largest level down")),
    ("2", student("inverse constants", "(torch.uint8), absmax", "(torch.uint8), 1 / absmax",
                  says="that is 1 / max|x|")),
    ("2", student("127ths", "(torch.uint8), absmax", "(torch.uint8), absmax / 127", says="that is max|x| / 127")),
    ("2", student("half-precision constants", "(torch.uint8), absmax", "(torch.uint8), absmax.half()",
                  kind=Kind.WRONG_SHAPE, says="absmax must be float32")),
    ("2", student("bfloat16 constants", ".flatten().float()", ".flatten()", "blocks / absmax",
                  "blocks.float() / absmax",
                  kind=Kind.WRONG_SHAPE, says="absmax must be float32", at_most=0.95)),
    ("2", student("a code a byte", BYTES, "codes", kind=Kind.WRONG_SHAPE, says="two codes in each")),
    ("2", student("int64", ".to(torch.uint8)", "", kind=Kind.WRONG_SHAPE, says="packed must be uint8")),
    ("2", student("odd", "(codes, (0, len(flat) % 2))", "(codes, (0, 0))", kind=Kind.CRASHED, says="must match",
                  at_most=0.95)),
    ("2", student("in place", FLAT, "x *= 1\n    x += 1e-3\n    " + FLAT, says="changes its input x in place")),
    ("3", student("low half first", "(packed >> 4, packed & 15)", "(packed & 15, packed >> 4)",
                  says="the halves of each byte are exchanged")),
    ("3", student("high halves first", "torch.stack((packed >> 4, packed & 15), dim=1).flatten()",
                  "torch.cat((packed >> 4, packed & 15))", says="all high halves come first")),
    ("3", student("stacked the other way", "dim=1", "dim=0", says="all high halves come first")),
    ("3", student("constants take turns", CONSTANTS, "constants = absmax.repeat(block_size)[: len(codes)]",
                  says="repeat_interleave keeps")),
    ("3", student("the first constant", CONSTANTS, "constants = absmax[0]", says="one constant for all")),
    ("3", student("not multiplied", "code[codes] * constants", "code[codes]", says="not multiplied by absmax")),
    ("3", student("divided", "code[codes] * constants", "code[codes] / constants", says="divided by absmax")),
    ("3", student("codes", "code[codes]", "codes", says="look them up in the table")),
    ("3", student("the table of NF4", "code[codes]", "torch.tensor(CODE)[codes]", says="use the one that is given",
                  at_most=0.95)),
    ("3", student("from the top", "code[codes]", "code[15 - codes]", says="the table is read from its end")),
    ("3", student("rounded early", "code[codes] * constants", "code[codes].to(dtype) * constants.to(dtype)",
                  says="rounded before they are multiplied", at_most=0.85)),
    ("3", student("float32 always", ".to(dtype)", "", kind=Kind.WRONG_SHAPE, says="must be bfloat16", at_most=0.85)),
    ("3", student("flat", ".view(shape)", "", kind=Kind.WRONG_SHAPE, says="must have the shape", at_most=0.9)),
    ("3", student("all halves", SIZE, "", kind=Kind.CRASHED, says="invalid for input", at_most=0.95)),
    ("3", student("each row", CONSTANTS,
                  "width = shape[-1] if len(shape) == 2 else len(codes)\n    per_row = -(-width // "
                  "block_size)\n    at = torch.arange(len(codes))\n    number = at // width * per_row + at % width // "
                  "block_size\n    constants = absmax[number % len(absmax)]", says="each row begins a new block",
                  at_most=0.95)),
    ("4", student("no mean", MEAN, "mean = torch.zeros(())", says="the mean is not subtracted")),
    ("4", student("not added", "[: len(codes)] + mean", "[: len(codes)]", says="the mean is not added back")),
    ("4", student("subtracted", "[: len(codes)] + mean", "[: len(codes)] - mean", says="it is added")),
    ("4", student("one scale", SCALES, "scales = (groups.abs().max() / 127).expand(len(groups))",
                  says="one scale for all groups")),
    ("4", student("one scale, no mean", MEAN, "mean = torch.zeros(())", SCALES,
                  "scales = (groups.abs().max() / 127).expand(len(groups))",
                  says="one scale for all groups, and the mean")),
    ("4", student("cut off", ".round()", "", says="cut off, not rounded")),
    ("4", student("128", "/ 127", "/ 128", says="becomes 128")),
    ("4", student("largest alone", "groups.abs()", "groups", says="not of the largest absolute value")),
    ("4", student("dropped", INT8, "count = len(absmax) // group_size * group_size\n    " + INT8.replace(
        "len(absmax)", "count"), kind=Kind.WRONG_SHAPE, says="must have the shape")),
    ("4", student("float codes", ".to(torch.int8)", "", kind=Kind.TOO_MUCH_MEMORY, says="the codes are float32",
                  at_most=0.85)),
    ("4", student("16 bits", ".to(torch.int8)", ".to(torch.int16)", kind=Kind.TOO_MUCH_MEMORY,
                  says="the codes have 16 bits", at_most=0.85)),
    ("4", student("kept as they are", STORED, "return (absmax,)", TAKEN, "return stored[0]", kind=Kind.TOO_MUCH_MEMORY,
                  says="stored as they are", at_most=0.85)),
    ("4", student("in 16 bits", STORED, "return (absmax.half(),)", TAKEN, "return stored[0].float()",
                  says="times the error")),
    ("4", student("a mean for each group", MEAN, "mean = torch.stack([g.mean() for g in absmax.split(group_size)])",
                  "absmax - mean", "absmax - mean.repeat_interleave(group_size)[: len(absmax)]",
                  "[: len(codes)] + mean", "[: len(codes)] + mean.repeat_interleave(group_size)[: len(codes)]",
                  kind=Kind.TOO_MUCH_MEMORY, says="one mean for all is enough", at_most=0.85)),
    ("4", student("float16", RESTORED, "(" + RESTORED + ").half()", kind=Kind.WRONG_SHAPE, says="must be float32")),
    ("4", student("nothing to count", STORED, "return lambda: (codes, scales, mean)", TAKEN, TAKEN + "()",
                  kind=Kind.WRONG_SHAPE, says="store tensors, in a tuple", at_most=0.85)),
    ("4", student("without the code", PLAIN, "32 / block_size\n", says="they have 4 bits", at_most=0.95)),
    ("4", student("without the code, twice", DOUBLE, "8 / block_size + 32 / (block_size * group_size)",
                  says="they have 4 bits", at_most=0.85)),
    ("4", student("old constants, too", DOUBLE, "4 + 32 / block_size + 32 / (block_size * group_size)",
                  says="counted besides", at_most=0.85)),
    ("4", student("a scale for a group of weights", "(block_size * group_size)", "group_size",
                  says="shared by a group of "
                  "blocks", at_most=0.85)),
    ("4", student("no scales", DOUBLE, "4 + 8 / block_size", says="the scales of the groups are missing",
                  at_most=0.85)),
    ("4", student("no codes", DOUBLE, "4 + 32 / (block_size * group_size)",
                  says="the codes of the constants are missing",
                  at_most=0.85)),
    ("4", student("never twice", "if group_size is None:\n        return", "if True:\n        return",
                  says="group_size is not used", at_most=0.85)),
]  # fmt: skip


def of(part: str, made: Student):
    cell, names = CELLS[part]
    return handed_in(TOPIC, cell, names, made, np=numpy, NormalDist=NormalDist, CODE=table.levels().tolist())


@pytest.mark.parametrize("hidden", [False, True], ids=["visible", "hidden"])
@pytest.mark.parametrize(("part", "made"), RIGHT, ids=str)
def test_right_answers_pass(part: str, made: Student, hidden: bool) -> None:
    result = checks.run(f"{TOPIC}/{part}", of(part, made), **(HIDDEN[part] if hidden else {}))
    assert result.passed, result.message


@pytest.mark.parametrize(("part", "made"), WRONG, ids=str)
def test_wrong_answers_fail_with_their_mistake_named(part: str, made: Student) -> None:
    result = checks.run(f"{TOPIC}/{part}", of(part, made))
    assert_refused(result, made)


@pytest.mark.parametrize("part", CELLS)
def test_stubs_and_results_are_told_apart(part: str) -> None:
    assert_stubs_and_results_are_told_apart(f"{TOPIC}/{part}", *CELLS[part])


@pytest.mark.parametrize("hidden", [False, True], ids=["visible", "hidden"])
@pytest.mark.parametrize("number", range(len([*table.mistakes()])))
def test_every_listed_mistake_of_the_table_is_found_and_named(number: int, hidden: bool) -> None:
    cause, output = [*table.mistakes()][number]
    result = checks.run("nf4/1", lambda bits: output(bits).float(), **(HIDDEN["1"] if hidden else {}))
    assert cause in result.message, result.message


@pytest.mark.parametrize("hidden", [False, True], ids=["visible", "hidden"])
@pytest.mark.parametrize("mistake", packing.MISTAKES, ids=lambda mistake: mistake.cause[:36])
def test_every_listed_mistake_of_packing_is_found_and_named(mistake: packing.Packing, hidden: bool) -> None:
    def quantize(x, code, block_size):
        packed, _ = packing.packed_with(x, code, block_size, mistake)
        return packed.to(torch.uint8), packing.packed_with(x, code, block_size)[1].float()

    result = checks.run("nf4/2", quantize, **(HIDDEN["2"] if hidden else {}))
    assert mistake.cause in result.message, result.message


@pytest.mark.parametrize("hidden", [False, True], ids=["visible", "hidden"])
@pytest.mark.parametrize("number", range(len(constants.MISTAKES)))
def test_every_listed_mistake_of_constants_is_found_and_named(number: int, hidden: bool) -> None:
    mistake = constants.MISTAKES[number]

    def compress(absmax, group_size):
        return absmax, torch.zeros(0)

    def restore(stored, group_size):
        return constants.restored(stored[0], group_size, mistake).float()

    student = (compress, restore, of("4", RIGHT[3][1])[2])
    result = checks.run("nf4/4", student, **(HIDDEN["4"] if hidden else {}))
    assert mistake.cause in result.message, result.message


def test_the_levels_are_the_published_table() -> None:
    published = [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
        0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]  # fmt: skip
    assert table.levels().tolist() == pytest.approx(published, abs=3e-7)


@pytest.mark.parametrize("shape", [(320,), (6, 50), (3, 5, 7), (1,), (63,), (65,)])
def test_the_right_bytes_are_the_librarys(shape: tuple[int, ...]) -> None:
    """Which are those of bitsandbytes; clear of middles, as the inputs of the checks are."""
    x = packing.random_numbers(5, 64, torch.Size(shape).numel()).view(shape)
    packed, absmax = packing.packed_with(x, table.levels().float(), 64)
    found = nf4.quantize(x, block_size=64)
    whole = x.numel() // 2
    assert found.packed.flatten()[:whole].tolist() == packed[:whole].tolist()
    assert found.absmax.tolist() == absmax.tolist()
    step = unpacking._step(0, 64, shape)
    back = nf4.quantize(torch.zeros(shape), block_size=64).dequantize()
    assert step.inputs["shape"] == shape == back.shape


def test_the_pages_bits_and_errors() -> None:
    assert constants._question(64, 256).want == pytest.approx(4.127, abs=1e-3)
    assert constants._question(64, None).want == 4.5
    assert 65e9 * (4.5 - constants._question(64, 256).want) / 8e9 == pytest.approx(3.03, abs=0.01)
    example = torch.tensor([2.0, 2.5, 3.1, 2.8])
    assert constants.restored(example, 4).tolist() == pytest.approx([2.0, 2.501, 3.101, 2.798], abs=1e-3)
    packed, absmax = packing.packed_with(packing._EXAMPLE, table.levels(), 4)
    assert (packed.tolist(), absmax.tolist()) == ([162, 143], [2.0])
    assert table.offset_of(4) == pytest.approx(0.9677083333)
    assert table.levels(2).tolist() == pytest.approx([-1, 0, 0.436, 1], abs=1e-3)


def test_a_step_with_the_mean_kept_is_larger() -> None:
    """Otherwise subtracting it could not be asked for."""
    absmax = constants.random_constants(0, 64, 4)
    error = (constants.restored(absmax, 64, constants.Compression(mean="none")) - absmax).abs()
    assert float((error / constants.allowed(absmax, 64)).max()) > 2
    assert bool(((constants.restored(absmax, 64) - absmax).abs() <= constants.allowed(absmax, 64)).all())
