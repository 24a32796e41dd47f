"""The exercise on quantisers: right answers of many shapes pass, wrong ones fail with their mistake named."""

import numpy
import pytest
import torch

from cme295lab.grading import checks
from cme295lab.grading.quantizers import affine, blocks, mixed, whole
from cme295lab.grading.quantizers.rounding import MISTAKES, RIGHT, with_overflow
from cme295lab.grading.result import Kind
from tests.grading.students import (
    Student,
    assert_refused,
    assert_stubs_and_results_are_told_apart,
    cells,
    handed_in,
    student,
    written,
)

TOPIC = "quantizers"
HIDDEN = {
    "1": {"seed": 295, "size": 203, "rows": 5},
    "2": {"seed": 295, "size": 203, "smallest": 17.0},
    "3": {"seed": 295, "block_size": 6, "num_blocks": 13, "row": 17},
    "4": {"seed": 295, "tokens": 9, "features": 21, "outputs": 9, "threshold": 4.5},
}
CELLS = {
    "1": ("absmax", whole.FUNCTIONS),
    "2": ("affine", affine.FUNCTIONS),
    "3": ("blockwise", blocks.FUNCTIONS),
    "4": ("mixed", "mixed_int8_matmul"),
}

SCALE = "scale = x.abs().max() / 127"
GUARD = "if scale == 0:\n        scale = torch.ones_like(scale)\n    "
CODES = "(x / scale).round().to(torch.int8)"
BACK = "return codes * scale\n"
ZERO = "-round(smallest / scale) - 128"
STEP = "scale = (largest - smallest) / 255"
CONSTANT = "if smallest == largest:\n        return (abs(largest) / 100 or 1.0), 5\n    "
SAME = "if smallest == largest:\n        return abs(largest) or 1.0, 0\n    "
MOVED = "((x / scale).round() + zero_point).clamp(-128, 127).to(torch.int8)"
AFFINE_BACK = "(codes.float() - zero_point) * scale"
FLAT = "flat = x.flatten()"
AMAX = "scales = filled.abs().amax(dim=1) / 127"
ONES = "scales[scales == 0] = 1"
BLOCK_CODES = "codes = (filled / scales[:, None]).round().to(torch.int8)"
FILLED = "filled = torch.nn.functional.pad(flat, (0, -len(flat) % block_size)).view(-1, block_size)"
OUT = "return codes.flatten()[: len(flat)].view(x.shape), scales"
BLOCKS_BACK = "return codes * scales.repeat_interleave(block_size)[: codes.numel()].view(codes.shape)"
OUTLIER = "outlier = (x.abs() >= threshold).any(dim=0)"
REST = "rest = x.masked_fill(outlier, 0.0)"
ROW = "row = (rest.abs().amax(dim=1, keepdim=True) / 127).clamp(min=1e-12)"
COLUMN = "column = (weight.abs().amax(dim=0, keepdim=True) / 127).clamp(min=1e-12)"
PRODUCT = "(codes @ weight_codes) * row * column"
APART = "x[:, outlier] @ weight[outlier]"
LOOP = (
    "parts = [absmax(block) for block in x.reshape(-1).split(block_size)]\n"
    "    return torch.cat([p[0] for p in parts]).reshape(x.shape), torch.stack([p[1] for p in parts])"
)
ABSMAX = (
    "def absmax(x):\n    scale = (x.abs().max() / 127).clamp(min=1e-9)\n    "
    "return (x / scale).round().char(), scale\n\n"
)

RIGHT_ANSWERS = [
    *((part, student("the solution")) for part in CELLS),
    ("1", student("a Python number", SCALE, "scale = float(x.abs().max()) / 127", "torch.ones_like(scale)", "1.0")),
    ("1", student("127 over the largest", CODES, "(x * (1 / scale)).round().clamp(-127, 127).char()")),
    ("1", student("half up", ".round()", ".add(0.5).floor()")),
    ("1", student("a tiny scale", GUARD, "scale = scale.clamp(min=1e-20)\n    ")),
    ("1", student("both ends", SCALE, "scale = torch.maximum(x.max(), -x.min()) / 127")),
    ("1", student("numpy", f"return {CODES}, scale", "a = x.numpy()\n    "
                  "return torch.from_numpy(np.rint(a / float(scale)).astype(np.int8)), np.float32(scale)")),
    ("1", student("a loop", f"return {CODES}, scale", "found = [round(v / float(scale)) for v in x.flatten().tolist()]"
                  "\n    return torch.tensor(found, dtype=torch.int8).view(x.shape), scale[None]")),
    ("2", student("from the other end", ZERO, "127 - round(largest / scale)")),
    ("2", student("tensors", ZERO, "int((-128 - torch.tensor(smallest) / scale).round())")),
    ("2", student("a float zero point", ZERO, "float(-round(smallest / scale) - 128)")),
    ("2", student("added before rounding", "((x / scale).round() + zero_point)", "(x / scale + zero_point).round()")),
    ("2", student("wider whole numbers", AFFINE_BACK, "(codes.int() - zero_point) * scale")),
    ("2", student("multiplied out", AFFINE_BACK, "codes * scale - zero_point * scale")),
    ("2", student("a constant by its code", SAME, CONSTANT)),
    ("2", student("clamped in numpy", MOVED, "torch.from_numpy(np.clip(np.rint(x.numpy() / np.float32(scale)) + "
                  "zero_point, -128, 127).astype(np.int8))")),
    ("3", student("a loop over blocks", "def blockwise_q", ABSMAX + "def blockwise_q", FLAT, LOOP)),
    ("3", student("a column of scales", OUT, OUT + "[:, None]")),
    ("3", student("tiny scales", ONES, "scales = scales.clamp(min=1e-20)")),
    ("3", student("a table of blocks", BLOCKS_BACK,
                  "number = torch.arange(codes.numel()) // block_size\n"
                  "    return (codes.flatten() * scales[number]).reshape(codes.shape)")),
    ("3", student("a loop back", BLOCKS_BACK, "parts = zip(codes.flatten().split(block_size), scales)\n"
                  "    return torch.cat([c * s for c, s in parts]).view(codes.shape)")),
    ("4", student("columns left out", "x.masked_fill(outlier, 0.0)", "x[:, ~outlier]", COLUMN,
                  "weight_rest = weight[~outlier]\n    column = (weight_rest.abs().amax(0, keepdim=True) / 127)"
                  ".clamp(min=1e-12) if len(weight_rest) else 1.0",
                  "rest.abs().amax(dim=1, keepdim=True)", "(rest.abs().amax(1, keepdim=True) if rest.numel() else "
                  "torch.ones(1))", "(weight, column)", "(weight_rest, column)")),
    ("4", student("codes as floats", ".round().int()", ".round()")),
    ("4", student("long sums", ".int()", ".long()")),
    ("4", student("scales of rows as an outer product", PRODUCT,
                  "(codes @ weight_codes) * torch.outer(row[:, 0], column[0])")),
    ("4", student("weights of the rest have scales of their own", COLUMN, COLUMN.replace(
        "weight.abs()", "weight.masked_fill(outlier[:, None], 0).abs()"),
        "(weight, column)", "(weight.masked_fill(outlier[:, None], 0), column)")),
    ("4", student("linear", APART, "torch.nn.functional.linear(x[:, outlier], weight[outlier].T)")),
    ("4", student("divided by 127 squared", "/ 127).clamp(min=1e-12)", ").clamp(min=1e-12)", "part / scale",
                  "part * 127 / scale", PRODUCT, "(codes @ weight_codes) * row * column / 127**2")),
]  # fmt: skip

WRONG = [
    ("1", student("cut off", ".round()", "", says="the codes are cut off, not rounded")),
    ("1", student("rounded down", ".round()", ".floor()", says="rounded down")),
    ("1", student("128, wrapped", "/ 127", "/ 128", says="the largest number becomes 128")),
    ("1", student("128, clamped", "/ 127", "/ 128", ".round()", ".round().clamp(-128, 127)",
                  says="the largest number becomes 128")),
    ("1", student("255", "/ 127", "/ 255", ".round()", ".round().clamp(-128, 127)",
                  says="255 steps are for the whole")),
    ("1", student("127.5", "/ 127", "/ 127.5", ".round()", ".round().clamp(-127, 127)",
                  says="127.5, which is no code")),
    ("1", student("no absolute value", "x.abs().max()", "x.max()", says="not of the largest absolute value")),
    ("1", student("no absolute value, clamped", "x.abs().max()", "x.max()", ".round()", ".round().clamp(-128, 127)",
                  says="not of the largest absolute value")),
    ("1", student("the range", SCALE, "scale = (x.max() - x.min()) / 255", says="quantiser with a zero point")),
    ("1", student("the mean", ".max()", ".mean()", ".round()", ".round().clamp(-127, 127)", says="the mean of |x|")),
    ("1", student("no negative codes", ".round()", ".round().clamp(0, 127)", says="negative numbers have become 0")),
    ("1", student("the inverse", "(torch.int8), scale", "(torch.int8), 1 / scale", says="the inverse")),
    ("1", student("max|x| as scale", "(torch.int8), scale", "(torch.int8), scale * 127", says="that is max|x|")),
    ("1", student("0 / 0", GUARD, "", says="0 / 0 = NaN", at_most=0.9)),
    ("1", student("a scale for each row", "x.abs().max()", "x.abs().amax(-1, keepdim=True)", GUARD,
                  "scale[scale == 0] = 1\n    ", kind=Kind.WRONG_SHAPE, says="scale must be one number")),
    ("1", student("float codes", ".to(torch.int8)", "", kind=Kind.WRONG_SHAPE, says="codes must be int8")),
    ("1", student("uint8 codes", CODES, "((x / scale).round() + 128).to(torch.uint8)", kind=Kind.WRONG_SHAPE,
                  says="codes must be int8")),
    ("1", student("codes alone", ", scale\n", "\n", kind=Kind.WRONG_SHAPE, says="return (codes, scale)")),
    ("1", student("flattened", CODES, "(x / scale).round().char().flatten()", kind=Kind.WRONG_SHAPE,
                  says="the shape (7, 9)")),
    ("1", student("divided on the way back", BACK, "return codes / scale\n", says="divided by the scale", at_most=0.8)),
    ("1", student("by 127 again", BACK, "return codes * scale / 127\n", says="factor 1/127 too much", at_most=0.8)),
    ("1", student("times 127", BACK, "return codes * scale * 127\n", says="a factor 127 too much", at_most=0.8)),
    ("1", student("codes back", BACK, "return codes.float()\n", says="the codes come back as they are", at_most=0.8)),
    ("1", student("in place", SCALE, "x /= 1.0001\n    " + SCALE, says="changes its input x in place")),
    ("2", student("256 steps", "/ 255", "/ 256", says="256 codes have 255 steps")),
    ("2", student("127 steps", "/ 255", "/ 127", says="127 steps are half")),
    ("2", student("absmax", STEP, "scale = max(-smallest, largest) / 127", says="the scale of absmax")),
    ("2", student("a sum", "largest - smallest", "largest + smallest", says="that is largest + smallest")),
    ("2", student("not rounded", ZERO, "-smallest / scale - 128", says="the zero point is not rounded")),
    ("2", student("cut off", ZERO, "-int(smallest / scale) - 128", says="the zero point is cut off, not rounded")),
    ("2", student("its sign", ZERO, "round(smallest / scale) - 128", says="the zero point's sign")),
    ("2", student("without 128", ZERO, "-round(smallest / scale)", says="codes from 0 to 255")),
    ("2", student("plus 128", ZERO, "-round(smallest / scale) + 128", says="the sign of 128")),
    ("2", student("within int8", ZERO, "max(-128, min(127, -round(smallest / scale) - 128))",
                  says="the zero point is clamped", at_most=0.95)),
    ("2", student("stored as int8", ZERO, "int(torch.tensor(-round(smallest / scale) - 128).char())",
                  says="the zero point has wrapped around")),
    ("2", student("a constant's range", SAME, "", says="largest - smallest is 0 here")),
    ("2", student("a constant gets scale 1", SAME, "if smallest == largest:\n        return 1.0, 0\n    ",
                  says="with which the one number comes back")),
    ("2", student("no clamp", ".clamp(-128, 127)", "", says="wrapped around to the other end", at_most=0.95)),
    ("2", student("clamped too early", MOVED, "((x / scale).round().clamp(-128, 127) + zero_point).to(torch.int8)",
                  says="clamped before the zero point is added")),
    ("2", student("clamped at -127", "clamp(-128", "clamp(-127", says="-127 is where absmax stops")),
    ("2", student("subtracted", "+ zero_point", "- zero_point", says="the zero point is subtracted")),
    ("2", student("forgotten", " + zero_point", "", says="the zero point is missing")),
    ("2", student("truncated", ".round()", ".trunc()", says="the numbers are cut off")),
    ("2", student("truncated at the end", ".round()", "", says="the numbers are cut off")),
    ("2", student("times the scale", "(x / scale)", "(x * scale)", says="the numbers are multiplied")),
    ("2", student("back in int8", "codes.float()", "codes", says="has left int8 and wrapped around", at_most=0.85)),
    ("2", student("added back", "codes.float() - ", "codes.float() + ", says="it is subtracted on the way back")),
    ("2", student("after the scale", AFFINE_BACK, "codes * scale - zero_point", says="subtracted after scaling")),
    ("2", student("not subtracted", "(codes.float() - zero_point)", "codes.float()", says="is not subtracted")),
    ("2", student("one number", ", -round(smallest / scale) - 128", "", kind=Kind.WRONG_SHAPE,
                  says="return (scale, zero_point)")),
    ("3", student("one scale for all", AMAX, "scales = (x.abs().max() / 127).expand(len(filled)).clone()",
                  says="there is one scale for the whole tensor")),
    ("3", student("one scale, alone", AMAX, "scales = (x.abs().max() / 127)[None]", kind=Kind.WRONG_SHAPE,
                  says="9 blocks have 9 scales")),
    ("3", student("largest alone", "filled.abs()", "filled", says="not of the largest absolute value")),
    ("3", student("cut off", ".round()", "", says="the codes are cut off")),
    ("3", student("128", "/ 127", "/ 128", says="the largest number becomes 128")),
    ("3", student("column by column", FLAT, "flat = x.T.flatten() if x.ndim > 1 else x", OUT,
                  "codes = codes.flatten()[: len(flat)]\n    return (codes.view(x.T.shape).T if x.ndim > 1 else "
                  "codes), scales", says="blocks run down the columns", at_most=0.95)),
    ("3", student("each row by itself", FLAT, "if x.ndim > 1:\n        pairs = [blockwise_quantize(r, block_size) for "
                  "r in x]\n        return torch.stack([p[0] for p in pairs]), torch.cat([p[1] for p in pairs])\n    "
                  + FLAT, says="each row begins a new block", at_most=0.95)),
    ("3", student("dropped", FILLED, "filled = flat[: len(flat) // block_size * block_size].view(-1, block_size)", OUT,
                  "rest = torch.zeros(len(flat) - filled.numel()).char()\n    "
                  "return torch.cat((codes.flatten(), rest)).view(x.shape), scales",
                  says="the last, shorter block is dropped")),
    ("3", student("refused", FILLED, "filled = flat.view(-1, block_size)", kind=Kind.CRASHED,
                  says="invalid for input")),
    ("3", student("number of blocks", FILLED,
                  "width = -(-len(flat) // block_size)\n    "
                  "filled = torch.nn.functional.pad(flat, (0, -len(flat) % width)).view(-1, width)",
                  kind=Kind.WRONG_SHAPE, says="9 blocks have 9 scales")),
    ("3", student("every n-th", FILLED, FILLED.replace(".view(-1, block_size)", ".view(block_size, -1).T"), OUT,
                  "return codes.T.flatten()[: len(flat)].view(x.shape), scales", says="a block takes every n-th")),
    ("3", student("0 / 0", ONES, "", says="0 / 0 = NaN", at_most=0.95)),
    ("3", student("inverse scales", OUT, OUT.replace(", scales", ", 1 / scales"), says="the inverse")),
    ("3", student("largest as scales", OUT, OUT.replace(", scales", ", scales * 127"), says="that is max|x|")),
    ("3", student("half-precision scales", OUT, OUT.replace(", scales", ", scales.half()"), kind=Kind.WRONG_SHAPE,
                  says="scales must be float32")),
    ("3", student("scales take turns", BLOCKS_BACK, "return codes * scales.repeat(block_size)[: codes.numel()]"
                  ".view(codes.shape)", says="repeat_interleave keeps", at_most=0.85)),
    ("3", student("divided back", "codes * scales", "codes / scales", says="divided by the scales", at_most=0.85)),
    ("3", student("the first scale", BLOCKS_BACK, "return codes * scales[0]", says="one scale for all",
                  at_most=0.85)),
    ("3", student("codes back", BLOCKS_BACK, "return codes.float()", says="codes come back as they are",
                  at_most=0.85)),
    ("3", student("flat back", BLOCKS_BACK, BLOCKS_BACK.replace("codes * ", "codes.flatten() * ")
                  .replace(".view(codes.shape)", ""), kind=Kind.WRONG_SHAPE, says="the shape (7, 13)", at_most=0.95)),
    ("4", student("nothing quantised", "return " + PRODUCT, "return x @ weight\n    return " + PRODUCT,
                  says="nothing is quantised")),
    ("4", student("everything quantised", OUTLIER, "outlier = torch.zeros(x.shape[1], dtype=torch.bool)",
                  says="outliers are quantised with the rest")),
    ("4", student("counted twice", REST, "rest = x", says="outliers are counted twice")),
    ("4", student("counted twice, with scales of the rest", "((rest, row)", "((x, row)",
                  says="outliers are counted twice")),
    ("4", student("dropped", " + " + APART, "", says="outliers are missing")),
    ("4", student("scales of the outliers", "rest.abs()", "x.abs()", says="the scales of x are those of the outliers")),
    ("4", student("mean", OUTLIER, "outlier = x.abs().mean(0) >= threshold", says="the mean of a column")),
    ("4", student("signed", "x.abs() >= threshold", "x >= threshold", says="negative outliers are not found")),
    ("4", student("strict", ">= threshold", "> threshold", says="exactly the threshold", at_most=0.95)),
    ("4", student("rows", "any(dim=0)", "any(dim=1)", "x.masked_fill(outlier, 0.0)",
                  "x.masked_fill(outlier[:, None], 0.0)",
                  APART, "x.masked_fill(~outlier[:, None], 0.0) @ weight", says="rows are kept in float32")),
    ("4", student("single values", ".any(dim=0)", "", APART, "x.masked_fill(~outlier, 0.0) @ weight",
                  says="single values are kept")),
    ("4", student("scales exchanged", PRODUCT, "(codes @ weight_codes) * row.T * column.T", kind=Kind.WRONG_VALUE,
                  says="rows and columns are exchanged")),
    ("4", student("one scale for x", ROW, "row = (rest.abs().max() / 127).clamp(min=1e-12)",
                  says="x has one scale for all")),
    ("4", student("one scale for the weights", COLUMN, "column = weight.abs().max() / 127",
                  says="the weights have one scale for all")),
    ("4", student("one scale each", ROW, "row = (rest.abs().max() / 127).clamp(min=1e-12)", COLUMN,
                  "column = weight.abs().max() / 127", says="both matrices have one scale")),
    ("4", student("scales of x alone", " * row * column", " * row", says="the scales of the weights are missing")),
    ("4", student("scales of the weights alone", " * row * column", " * column", says="the scales of x are missing")),
    ("4", student("127 once", "row * column", "row * column * 127", says="a factor 127 too much")),
    ("4", student("int8 sums", ".int()", ".char()", says="the sums have wrapped around")),
    ("4", student("outliers' weights in int8", APART, "x[:, outlier] @ (weight_codes * column)[outlier]",
                  says="the weights of the outliers are int8")),
    ("4", student("cut off", ".round()", "", says="cut off, not rounded")),
    ("4", student("128 levels", "/ 127", "/ 128", ".round()", ".round().clamp(-128, 127)", says="becomes 128")),
    ("4", student("0 / 0", ".clamp(min=1e-12)", "", ".round().int()", ".round()", says="inf or NaN", at_most=0.95)),
    ("4", student("half precision", APART, "(x[:, outlier].half() @ weight[outlier].half()).float()",
                  says="the largest error")),
    ("4", student("transposed", "return " + PRODUCT, "return (" + PRODUCT, APART, APART + ").T.contiguous()",
                  says="the largest error")),
]  # fmt: skip


def of(part: str, made: Student):
    return handed_in(TOPIC, *CELLS[part], made, np=numpy)


@pytest.mark.parametrize("hidden", [False, True], ids=["visible", "hidden"])
@pytest.mark.parametrize(("part", "made"), RIGHT_ANSWERS, ids=str)
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


def test_one_function_is_judged_while_another_is_a_stub() -> None:
    source = "def stub(codes, scale):\n    raise NotImplementedError()"
    stub = written(TOPIC, "absmax", (cells(TOPIC)["absmax"], source))["stub"]
    result = checks.run(f"{TOPIC}/1", (of("1", student("the solution"))[0], stub))
    assert not result.passed
    assert result.kind is Kind.NOT_ATTEMPTED
    assert result.score == pytest.approx(5 / 8)


def by_number(value: object) -> str:
    """Mistakes that share a cause need ids of their own."""
    return str(value) if isinstance(value, int) else value.cause[:30]


@pytest.mark.parametrize("hidden", [False, True], ids=["visible", "hidden"])
@pytest.mark.parametrize(("number", "mistake"), [*enumerate(with_overflow(MISTAKES))], ids=by_number)
def test_every_listed_mistake_of_rounding_is_found_and_named(number: int, mistake, hidden: bool) -> None:
    def quantize(x):
        codes, scale = whole.quantized(x, mistake)
        return codes.to(torch.int8), scale

    _, back = of("1", student("the solution"))
    result = checks.run(f"{TOPIC}/1", (quantize, back), **(HIDDEN["1"] if hidden else {}))
    assert mistake.cause in result.message, result.message


@pytest.mark.parametrize("hidden", [False, True], ids=["visible", "hidden"])
@pytest.mark.parametrize("mistake", blocks.LAYOUTS, ids=lambda mistake: mistake.cause[:30])
def test_every_listed_mistake_of_blocks_is_found_and_named(mistake, hidden: bool) -> None:
    def quantize(x, block_size):
        codes, _ = blocks.quantized(x, block_size, mistake)
        return codes.to(torch.int8), blocks.quantized(x, block_size)[1].float()

    _, back = of("3", student("the solution"))
    result = checks.run(f"{TOPIC}/3", (quantize, back), **(HIDDEN["3"] if hidden else {}))
    assert mistake.cause in result.message, result.message


@pytest.mark.parametrize("hidden", [False, True], ids=["visible", "hidden"])
@pytest.mark.parametrize(("number", "mistake"), [*enumerate(mixed.ALL_MISTAKES)], ids=by_number)
def test_every_listed_mistake_of_the_product_is_found_and_named(number: int, mistake, hidden: bool) -> None:
    def multiply(x, weight, threshold):
        return mixed.mixed_product(x, weight, threshold, mistake).float()

    result = checks.run(f"{TOPIC}/4", multiply, **(HIDDEN["4"] if hidden else {}))
    assert mistake.cause in result.message, result.message


@pytest.mark.parametrize("seed", range(6))
def test_the_right_codes_are_those_of_a_search(seed: int) -> None:
    """Against the nearest of all levels, one number at a time."""
    x = whole._random(seed, 50)
    codes, scale = whole.quantized(x)
    for value, code in zip(x.tolist(), codes.tolist(), strict=True):
        assert min(range(-127, 128), key=lambda level: abs(level * float(scale) - value)) == code
    for smallest, largest in affine.random_ranges(seed):
        step, zero = affine.right_range(smallest, largest)
        assert min(range(-128, 128), key=lambda level: abs((level - zero) * step)) == zero
        assert abs((-128 - zero) * step - smallest) <= step / 2
        assert abs((127 - zero) * step - largest) <= step / 2


@pytest.mark.parametrize("size", [1, 7, 8, 9, 64])
def test_blocks_cover_each_place_once(size: int) -> None:
    found = blocks.blocks_of((size,), 8)
    assert torch.cat(found).tolist() == list(range(size))
    assert [len(block) for block in found] == [8] * (size // 8) + [size % 8] * (size % 8 > 0)


def test_the_right_product_is_that_of_plain_python() -> None:
    """Number by number, with whole numbers in the sum."""
    x, weight = mixed.matrices(3, 5, 9, 4, 6.0, "some")
    rows, columns = x.double().tolist(), weight.double().T.tolist()
    apart = [k for k in range(9) if any(abs(row[k]) >= 6 for row in rows)]
    assert apart == [1, 7]
    rest = [k for k in range(9) if k not in apart]
    found = mixed.mixed_product(x, weight, 6.0)
    for i, row in enumerate(rows):
        step = max(abs(row[k]) for k in rest) / 127
        for j, column in enumerate(columns):
            other = max(map(abs, column)) / 127
            total = sum(round(row[k] / step) * round(column[k] / other) for k in rest)
            exact = sum(row[k] * column[k] for k in apart)
            assert float(found[i, j]) == pytest.approx(total * step * other + exact, abs=1e-9)


def test_the_page_says_what_the_examples_give() -> None:
    x = whole._EXAMPLE.double()
    codes, scale = whole.quantized(x)
    assert codes.tolist() == [49, -20, 127, -98, 0]
    assert (codes * scale).tolist() == pytest.approx([1.196063, -0.488189, 3.1, -2.392126, 0], abs=1e-6)
    assert affine.right_range(-0.4, 3.9) == (pytest.approx(0.0168627451), -104)
    codes, scales = blocks.quantized(blocks._EXAMPLE, 4)
    assert codes.tolist() == [38, -127, 76, 13, 51, -127]
    assert scales.tolist() == pytest.approx([1 / 127, 50 / 127])
    product = mixed.mixed_product(*mixed._EXAMPLE, 6.0)
    assert float(product[0, 0]) == pytest.approx(2413 * 2 / 127**2 + 7.2)
    assert RIGHT.cause == ""
