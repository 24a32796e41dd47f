"""Part 4 of the FlashAttention exercise: formulas are held against the simulator's count, and mistakes are named."""

import pytest

from cme295lab.attention import io
from cme295lab.grading import checks
from cme295lab.grading.flash_attention.traffic import Size, counted_bytes
from cme295lab.grading.result import Kind
from tests.grading.students import Student, student, written

STANDARD = "(2 * matrix + scores + scores + scores + scores + matrix + matrix) * element_bytes"
FLASH = "elements * element_bytes + seq * 4"
ELEMENTS = "seq * dim + num_programs * 2 * seq * dim + seq * dim"
PROGRAMS = "math.ceil(seq / block_m)"

RIGHT = [
    student("the solution"),
    student("one formula", STANDARD, "4 * seq * (seq + dim) * element_bytes"),
    student("rounding up with integers", PROGRAMS, "-(-seq // block_m)"),
    student("a float that is a whole number", STANDARD, "4.0 * seq * (seq + dim) * element_bytes"),
]

WRONG = [
    student("elements", STANDARD, "4 * scores + 4 * matrix", says="multiply by element_bytes"),
    student("S and P written only", STANDARD, "(2 * scores + 4 * matrix) * element_bytes", says="only two passes"),
    student("three passes", STANDARD, "(3 * scores + 4 * matrix) * element_bytes", says="one of the four passes"),
    student("no matrices", STANDARD, "4 * scores * element_bytes", says="Q, K, V and O are missing"),
    student("no scores", STANDARD, "4 * matrix * element_bytes", says="S and P are missing"),
    student("two bytes always", STANDARD, "(4 * scores + 4 * matrix) * 2", says="element_bytes is not used"),
    student("a constant", STANDARD, "319488", says="whatever the arguments"),
    student("no log-sum-exp", FLASH, "elements * element_bytes", says="log-sum-exp is missing"),
    student(
        "log-sum-exp in the input's dtype", FLASH, "(elements + seq) * element_bytes", says="log-sum-exp is float32"
    ),
    student("flash elements", FLASH, "elements + seq", says="multiply by element_bytes"),
    student("flash two bytes always", FLASH, "elements * 2 + seq * 4", says="element_bytes is not used"),
    student("block_n for block_m", PROGRAMS, "math.ceil(seq / block_n)", says="block_n does not matter"),
    student("programs rounded down", PROGRAMS, "seq // block_m", says="round the number of programs up"),
    student("programs not rounded", PROGRAMS, "seq / block_m", says="a fraction of a program"),
    student(
        "whole tiles",
        ELEMENTS,
        "num_programs * block_m * dim * 2 + num_programs * 2 * seq * dim",
        says="masked elements are not read",
    ),
    student("K and V once", ELEMENTS, "4 * seq * dim", says="K and V are counted once"),
    student("K without V", ELEMENTS, "2 * seq * dim + num_programs * seq * dim", says="only one of K and V"),
    student("no O", ELEMENTS, "seq * dim + num_programs * 2 * seq * dim", says="O is not counted"),
    student(
        "Q again and again",
        ELEMENTS,
        "math.ceil(seq / block_n) * seq * dim + num_programs * 2 * seq * dim + seq * dim",
        says="Q is counted once per tile of keys",
    ),
    student("text", STANDARD, "'a lot'", kind=Kind.WRONG_SHAPE, says="must return a number of bytes"),
    student("infinity", STANDARD, "math.inf", kind=Kind.WRONG_SHAPE, says="must return a number of bytes"),
    student("a crash", STANDARD, "scores / 0", kind=Kind.CRASHED, says=("ZeroDivisionError", "return scores / 0")),
    student(
        "only standard attempted",
        "    num_programs =",
        "    raise NotImplementedError()\n    num_programs =",
        kind=Kind.NOT_ATTEMPTED,
        says="2 of 5",
        at_most=0.4,
    ),
    student(
        "only flash attempted",
        "    scores =",
        "    raise NotImplementedError()\n    scores =",
        kind=Kind.NOT_ATTEMPTED,
        says="3 of 5",
        at_most=0.6,
    ),
]


def formulas_of(made: Student):
    names = written("flash_attention", "traffic", *made.changes)
    return names["standard_forward_bytes"], names["flash_forward_bytes"]


@pytest.mark.parametrize("made", RIGHT, ids=str)
@pytest.mark.parametrize("options", [{}, {"seq": 320, "ragged": 210, "dim": 32}], ids=str)
def test_traffic_check_accepts_right_formulas(made: Student, options) -> None:
    result = checks.run("flash_attention/4", formulas_of(made), **options)
    assert result.passed, result.message


@pytest.mark.parametrize("made", WRONG, ids=str)
def test_traffic_check_names_the_mistake(made: Student) -> None:
    result = checks.run("flash_attention/4", formulas_of(made))
    assert not result.passed
    assert result.kind is (Kind.WRONG_VALUE if made.kind is Kind.PASSED else made.kind), result.message
    assert result.score <= made.at_most
    for words in made.says:
        assert words in result.message


def test_traffic_check_wants_both_functions() -> None:
    result = checks.run("flash_attention/4", formulas_of(RIGHT[0])[0])
    assert "the two functions" in result.message
    assert result.score == 0


@pytest.mark.parametrize("seq", [64, 100])
@pytest.mark.parametrize("element_bytes", [2, 4])
def test_simulator_counts_what_the_published_formulas_say(seq: int, element_bytes: int) -> None:
    standard = Size(seq=seq, dim=32, element_bytes=element_bytes)
    assert counted_bytes(standard) == io.standard_forward_elements(seq, 32) * element_bytes
    flash = Size(seq=seq, dim=32, element_bytes=element_bytes, blocks=(32, 16))
    matrices = io.flash2_forward_elements(seq, 32, 32) - seq  # the formula counts the log-sum-exp as seq elements
    assert counted_bytes(flash) == matrices * element_bytes + seq * 4
