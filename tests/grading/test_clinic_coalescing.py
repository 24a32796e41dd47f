"""Part 1 of the kernel clinic: the check accepts coalesced kernels and says what is wrong with others."""

import pytest

from cme295lab.grading import checks
from cme295lab.grading.kernel_clinic import launches
from cme295lab.grading.result import Kind
from tests.grading.students import Student, student, written

FEATURES = "features = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)"
EXISTS = "exists = features < num_features"
ACC = "acc = tl.zeros([BLOCK_F], tl.float32)"
OFFSETS = "offsets = tokens[:, None] * num_features + features[None, :]"
INSIDE = "inside = (tokens[:, None] < num_tokens) & exists[None, :]"
LOAD = "dy = tl.load(dy_ptr + offsets, mask=inside, other=0.0)"
ADD = "acc += tl.sum(dy.to(tl.float32), 0)"
STORE = "tl.store(db_ptr + features, acc, mask=exists)"
GRID = "return (triton.cdiv(num_features, 64),)"
LOOP = "for start in range(0, num_tokens, BLOCK_T):"

RIGHT = [
    student("the solution"),
    student("wide blocks", "BLOCK_F: tl.constexpr = 64", "BLOCK_F: tl.constexpr = 256", "64),)", "256),)"),
    student(
        "one token at a time",
        LOOP,
        "for token in range(0, num_tokens):",
        "        tokens = start + tl.arange(0, BLOCK_T)\n",
        "",
        OFFSETS,
        "offsets = token * num_features + features",
        INSIDE,
        "inside = exists",
        ADD,
        "acc += dy.to(tl.float32)",
    ),
    student(
        "the tile the other way round",
        "tokens[:, None] * num_features + features[None, :]",
        "tokens[None, :] * num_features + features[:, None]",
        INSIDE,
        "inside = (tokens[None, :] < num_tokens) & exists[:, None]",
        "tl.float32), 0)",
        "tl.float32), 1)",
    ),
    student(
        "tokens divided too, with atomics",
        LOOP,
        "for start in range(tl.program_id(1) * 128, tl.minimum(num_tokens, tl.program_id(1) * 128 + 128), BLOCK_T):",
        STORE,
        "tl.atomic_add(db_ptr + features, acc, mask=exists)",
        "64),)",
        "64), triton.cdiv(num_tokens, 128))",
    ),
    student(
        "a tile is kept and summed at the end",
        ACC,
        "acc = tl.zeros([BLOCK_T, BLOCK_F], tl.float32)",
        ADD,
        "acc += dy",
        "features, acc, mask",
        "features, tl.sum(acc, 0), mask",
    ),
    student("the grid is a list", "(triton.cdiv(num_features, 64),)", "[triton.cdiv(num_features, 64)]"),
]

SICK = (
    "BLOCK_F: tl.constexpr = 64", "BLOCK_F: tl.constexpr = 1", FEATURES,
    "features = tl.program_id(0) + tl.arange(0, 1)", "64),)", "1),)",
)  # fmt: skip

WRONG = [
    student(
        "still a feature per program",
        *SICK,
        kind=Kind.TOO_MUCH_TRAFFIC,
        says=("2 of 32 bytes", "run along the features", "dy = tl.load(dy_ptr + offsets"),
        at_most=0.0,
    ),
    student(
        "a block too narrow",
        "BLOCK_F: tl.constexpr = 64",
        "BLOCK_F: tl.constexpr = 4",
        "64),)",
        "4),)",
        kind=Kind.TOO_MUCH_TRAFFIC,
        says=("about 4 elements of 2 bytes", "at least 16 neighbouring features"),
        at_most=0.0,
    ),
    student(
        "features far apart",
        FEATURES,
        "features = tl.program_id(0) + tl.arange(0, BLOCK_F) * tl.num_programs(0)",
        kind=Kind.TOO_MUCH_TRAFFIC,
        says="without gaps",
        at_most=0.0,
    ),
    student(
        "the old grid",
        GRID,
        "return (num_features,)",
        FEATURES,
        "features = tl.program_id(0) // BLOCK_F * BLOCK_F + tl.arange(0, BLOCK_F)",
        kind=Kind.TOO_MUCH_TRAFFIC,
        says=("still has a program per feature", "64 times"),
        at_most=0.5,
    ),
    student(
        "every program reads everything",
        FEATURES,
        "features = tl.arange(0, 512)",
        ACC,
        "acc = tl.zeros([512], tl.float32)",
        STORE,
        "tl.store(db_ptr + features, acc, mask=exists & (features // BLOCK_F == tl.program_id(0)))",
        kind=Kind.TOO_MUCH_TRAFFIC,
        says="every program reads all of dy",
        at_most=0.9,
    ),
    student(
        "coalesced loads, one store per number",
        STORE,
        "for i in range(0, BLOCK_F):\n        number = tl.sum(tl.where(tl.arange(0, BLOCK_F) == i, acc, 0.0), 0)\n"
        "        feature = tl.program_id(0) * BLOCK_F + i\n"
        "        tl.store(db_ptr + feature, number, mask=feature < num_features)",
        kind=Kind.TOO_MUCH_TRAFFIC,
        says=("of db were asked for", "give it a block of features"),
        at_most=0.9,
    ),
    student(
        "summed in the input's dtype",
        ADD,
        "acc += tl.sum(dy, 0)",
        kind=Kind.NOT_EXACT,
        says=("summed in float16", "dy.to(tl.float32)"),
        at_most=0.9,
    ),
    student(
        "an accumulator in float16",
        ACC,
        "acc = tl.zeros([BLOCK_F], tl.float16)",
        ADD,
        "acc += tl.sum(dy.to(tl.float32), 0).to(tl.float16)",
        STORE,
        "tl.store(db_ptr + features, acc.to(tl.float32), mask=exists)",
        kind=Kind.NOT_EXACT,
        says="summed in float16",
        at_most=0.9,
    ),
    student(
        "the mean",
        "features, acc, mask",
        "features, acc / num_tokens, mask",
        kind=Kind.WRONG_VALUE,
        says="the mean over the tokens",
        at_most=0.0,
    ),
    student(
        "the accumulator is replaced",
        "acc +=",
        "acc =",
        kind=Kind.WRONG_VALUE,
        says="add to the accumulator",
        at_most=0.0,
    ),
    student(
        "the last tokens are left out",
        "range(0, num_tokens, BLOCK_T)",
        "range(0, num_tokens // BLOCK_T * BLOCK_T, BLOCK_T)",
        kind=Kind.WRONG_VALUE,
        says="incomplete block of tokens is left out",
        at_most=0.9,
    ),
    student(
        "too few programs",
        "triton.cdiv(num_features, 64)",
        "num_features // 64",
        kind=Kind.WRONG_VALUE,
        says="round the number of programs up",
        at_most=0.9,
    ),
    student(
        "every program does the first block",
        FEATURES,
        "features = tl.arange(0, BLOCK_F)",
        kind=Kind.WRONG_VALUE,
        says="only the first 64 features",
        at_most=0.0,
    ),
    student("nothing stored", STORE, "", kind=Kind.WRONG_VALUE, says="nothing was written to db", at_most=0.0),
    student(
        "no mask over the features",
        "(tokens[:, None] < num_tokens) & exists[None, :]",
        "tokens[:, None] < num_tokens",
        ", mask=exists)",
        ")",
        kind=Kind.CRASHED,
        says=("needs a mask=", "tl.load(dy_ptr + offsets"),
        at_most=0.9,
    ),
    student(
        "a sum along the wrong axis",
        "tl.float32), 0)",
        "tl.float32), 1)",
        kind=Kind.CRASHED,
        says="acc += tl.sum",
        at_most=0.0,
    ),
    student(
        "dy is overwritten",
        STORE,
        STORE + "\n    tl.store(dy_ptr + features, acc.to(dy_ptr.dtype.element_ty), mask=exists)",
        kind=Kind.WRONG_VALUE,
        says="changes its input dy",
        at_most=0.0,
    ),
    student("no grid", GRID, "return None", kind=Kind.WRONG_SHAPE, says="the grid must be a tuple", at_most=0.0),
    student("an empty grid", GRID, "return (0,)", kind=Kind.WRONG_SHAPE, says="positive", at_most=0.0),
    student(
        "renamed arguments", "dy_ptr", "x_ptr", kind=Kind.WRONG_SHAPE, says="must begin with dy_ptr", at_most=0.0
    ),
    student(
        "not attempted",
        FEATURES,
        "raise NotImplementedError()",
        kind=Kind.NOT_ATTEMPTED,
        says="raise NotImplementedError",
        at_most=0.0,
    ),
    student(
        "a grid not attempted",
        GRID,
        "raise NotImplementedError()",
        kind=Kind.NOT_ATTEMPTED,
        says="raise NotImplementedError",
        at_most=0.0,
    ),
    student(
        "an endless loop",
        LOOP,
        "while num_tokens > 0:\n        acc = acc * 1.0\n    " + LOOP,
        kind=Kind.TIMED_OUT,
        says="stopped after",
        at_most=0.0,
    ),
]  # fmt: skip


def answer(made: Student):
    names = written("kernel_clinic", "bias_grad", *made.changes)
    return names["bias_grad_kernel"], names["bias_grad_grid"]


@pytest.mark.parametrize("made", RIGHT, ids=str)
def test_coalescing_check_accepts_right_kernels(made: Student) -> None:
    result = checks.run("kernel_clinic/1", answer(made))
    assert result.passed, result.message
    assert result.score == 1.0


def test_coalescing_check_accepts_the_solution_on_other_inputs() -> None:
    result = checks.run("kernel_clinic/1", answer(RIGHT[0]), seed=295, tokens=640, features=256)
    assert result.passed, result.message


@pytest.mark.parametrize("made", WRONG, ids=str)
def test_coalescing_check_names_the_mistake(made: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    if made.kind is Kind.TIMED_OUT:
        monkeypatch.setattr(launches, "TIME_LIMIT_S", 0.5)
    result = checks.run("kernel_clinic/1", answer(made))
    assert result.kind is made.kind, result.message
    assert result.score <= made.at_most, result.score
    for words in made.says:
        assert words in result.message
    assert 'checks.hint("kernel_clinic/1")' in result.message


def test_the_kernel_that_is_given_is_right_and_earns_nothing() -> None:
    sick = written("kernel_clinic", "sick_bias_grad")["sick_bias_grad"]
    result = checks.run("kernel_clinic/1", (sick, lambda num_tokens, num_features: (num_features,)))
    assert result.kind is Kind.TOO_MUCH_TRAFFIC, result.message
    assert result.outcomes[0].passed
    assert result.score == 0.0


@pytest.mark.parametrize("handed_over", [None, lambda: None, (1, 2), (lambda: None, lambda: None)])
def test_coalescing_check_refuses_what_is_no_kernel_with_a_grid(handed_over) -> None:
    result = checks.run("kernel_clinic/1", handed_over)
    assert result.kind is Kind.WRONG_SHAPE
