"""Part 2 of the kernel clinic: the check accepts kernels without a race and says what is wrong with others."""

import pytest

from cme295lab.grading import checks
from cme295lab.grading.result import Kind
from tests.grading.students import Student, student, written

ATOMIC = "tl.atomic_add(dw_ptr + row * dim + columns, dy, mask=columns < dim)"
LOAD = "dy = tl.load(dy_ptr + token * dim + columns, mask=columns < dim)"
BODY = f"""token = tl.program_id(0)
    row = tl.load(ids_ptr + token)
    columns = tl.arange(0, BLOCK_D)
    {LOAD}
    {ATOMIC}"""
GRID = "return (num_tokens,)"
LOAD_ADD_STORE = (
    "dw = tl.load(dw_ptr + row * dim + columns, mask=columns < dim)\n"
    "    tl.store(dw_ptr + row * dim + columns, dw + dy, mask=columns < dim)"
)
OWN_ROW = """mine = tl.program_id(0)
    columns = tl.arange(0, BLOCK_D)
    acc = tl.zeros([BLOCK_D], tl.float32)
    for token in range(0, num_tokens):
        if tl.load(ids_ptr + token) == mine:
            acc += tl.load(dy_ptr + token * dim + columns, mask=columns < dim, other=0.0)
    tl.store(dw_ptr + mine * dim + columns, acc, mask=columns < dim)"""
OWN_COLUMNS = """columns = tl.program_id(0) * 32 + tl.arange(0, 32)
    for token in range(0, num_tokens):
        row = tl.load(ids_ptr + token)
        dy = tl.load(dy_ptr + token * dim + columns, mask=columns < dim)
        dw = tl.load(dw_ptr + row * dim + columns, mask=columns < dim)
        tl.store(dw_ptr + row * dim + columns, dw + dy, mask=columns < dim)"""
ALONE = """columns = tl.arange(0, BLOCK_D)
    if tl.program_id(0) == 0:
        for token in range(0, num_tokens):
            row = tl.load(ids_ptr + token)
            dy = tl.load(dy_ptr + token * dim + columns, mask=columns < dim)
            dw = tl.load(dw_ptr + row * dim + columns, mask=columns < dim)
            tl.store(dw_ptr + row * dim + columns, dw + dy, mask=columns < dim)"""

RIGHT = [
    student("the solution"),
    student("a program owns a row", BODY, OWN_ROW, GRID, "return (num_rows,)"),
    student("a program owns columns", BODY, OWN_COLUMNS, GRID, "return (triton.cdiv(dim, 32),)"),
    student(
        "four tokens per program, with atomics",
        "token = tl.program_id(0)\n    row = tl.load(ids_ptr + token)",
        "token = tl.program_id(0) * 4 + tl.arange(0, 4)[:, None]\n    valid = token < num_tokens\n"
        "    row = tl.load(ids_ptr + token, mask=valid)",
        "tl.arange(0, BLOCK_D)",
        "tl.arange(0, BLOCK_D)[None, :]",
        "mask=columns < dim",
        "mask=valid & (columns < dim)",
        GRID,
        "return (triton.cdiv(num_tokens, 4),)",
    ),
    student("a relaxed atomic", "dy, mask=columns < dim)", 'dy, mask=columns < dim, sem="relaxed")'),
]

WRONG = [
    student(
        "load, add, store",
        ATOMIC,
        LOAD_ADD_STORE,
        kind=Kind.RACE,
        says=("another program loads the same row", "use tl.atomic_add", "dw"),
        at_most=0.0,
    ),
    student(
        "a barrier between",
        ATOMIC,
        LOAD_ADD_STORE.replace("    tl.store", "    tl.debug_barrier()\n    tl.store"),
        kind=Kind.RACE,
        says="Barriers do not help",
        at_most=0.0,
    ),
    student(
        "only stored",
        ATOMIC,
        "tl.store(dw_ptr + row * dim + columns, dy, mask=columns < dim)",
        kind=Kind.RACE,
        says="only one of them stays: add them",
        at_most=0.0,
    ),
    student(
        "atomic, and plain",
        ATOMIC,
        "dw = tl.load(dw_ptr + row * dim + columns, mask=columns < dim)\n"
        "    tl.atomic_add(dw_ptr + row * dim + columns, dy + dw * 0, mask=columns < dim)",
        kind=Kind.RACE,
        says="Use the atomic alone",
        at_most=0.0,
    ),
    student(
        "one program does it all",
        BODY,
        ALONE,
        kind=Kind.NOT_PARALLEL,
        says=("one moves 100% of all bytes", "the other SMs idle"),
        at_most=0.8,
    ),
    student(
        "a grid of one",
        BODY,
        ALONE,
        GRID,
        "return (1,)",
        kind=Kind.NOT_PARALLEL,
        says=("of 1 program, one moves 100%", "nobody to race with"),
        at_most=0.8,
    ),
    student(
        "atomic maximum",
        "tl.atomic_add",
        "tl.atomic_max",
        kind=Kind.WRONG_VALUE,
        says="the largest gradient of each word",
        at_most=0.0,
    ),
    student(
        "added twice",
        ATOMIC,
        f"{ATOMIC}\n    {ATOMIC}",
        kind=Kind.WRONG_VALUE,
        says="every token is added twice",
        at_most=0.0,
    ),
    student(
        "counts",
        "columns, dy, mask",
        "columns, 1.0, mask",
        kind=Kind.WRONG_VALUE,
        says="add dy, not 1",
        at_most=0.0,
    ),
    student(
        "subtracted",
        "columns, dy, mask",
        "columns, -dy, mask",
        kind=Kind.WRONG_VALUE,
        says="the sign is wrong",
        at_most=0.0,
    ),
    student(
        "the exchange instead of the sum",
        "tl.atomic_add",
        "tl.atomic_xchg",
        kind=Kind.WRONG_VALUE,
        says="only the last token of each word counts",
        at_most=0.0,
    ),
    student(
        "the width is taken for 128",
        "* dim + columns, dy, mask=columns < dim",
        "* 128 + columns, dy",
        kind=Kind.CRASHED,
        says="tl.atomic_add",
        at_most=0.9,
    ),
    student(
        "no mask",
        ", mask=columns < dim",
        "",
        kind=Kind.CRASHED,
        says=("needs a mask=", "tl.load(dy_ptr"),
        at_most=0.9,
    ),
    student("a program too few", GRID, "return (num_tokens - 1,)", kind=Kind.WRONG_VALUE, at_most=0.0),
    student("nothing stored", ATOMIC, "", kind=Kind.WRONG_VALUE, says="every value is zero", at_most=0.0),
    student(
        "not attempted",
        ATOMIC,
        "raise NotImplementedError()",
        kind=Kind.NOT_ATTEMPTED,
        says="raise NotImplementedError",
        at_most=0.0,
    ),
]


def answer(made: Student):
    names = written("kernel_clinic", "embedding_grad", *made.changes)
    return names["embedding_grad_kernel"], names["embedding_grad_grid"]


@pytest.mark.parametrize("made", RIGHT, ids=str)
def test_race_check_accepts_right_kernels(made: Student) -> None:
    result = checks.run("kernel_clinic/2", answer(made))
    assert result.passed, result.message
    assert result.score == 1.0


@pytest.mark.parametrize("made", RIGHT, ids=str)
def test_race_check_accepts_right_kernels_on_other_inputs(made: Student) -> None:
    result = checks.run("kernel_clinic/2", answer(made), seed=295, tokens=45, rows=7, dim=100)
    assert result.passed, result.message


@pytest.mark.parametrize("made", WRONG, ids=str)
def test_race_check_names_the_mistake(made: Student) -> None:
    result = checks.run("kernel_clinic/2", answer(made))
    assert result.kind is made.kind, result.message
    assert result.score <= made.at_most, result.score
    for words in made.says:
        assert words in result.message
    assert 'checks.hint("kernel_clinic/2")' in result.message


def test_the_kernel_that_is_given_races_and_earns_nothing() -> None:
    sick = written("kernel_clinic", "sick_embedding_grad")["sick_embedding_grad"]
    result = checks.run("kernel_clinic/2", (sick, lambda num_tokens, num_rows, dim: (num_tokens,)))
    assert result.kind is Kind.RACE, result.message
    assert result.score == 0.0
