"""Part 4 of the kernel clinic: numbers read from a report."""

from typing import Any

import pytest

from cme295lab.grading import checks
from cme295lab.grading.kernel_clinic.reading import truth
from cme295lab.grading.result import Kind


def right() -> dict[str, Any]:
    """By hand: 256 rows of 4,096 float32 numbers, read three times and written once; 4 MiB fit into 40 MiB of L2."""
    return {"programs": 256, "times_read": 3, "dram_share": 0.5, "bound": "memory", "saved_bytes": 2 * 4 * 256 * 4096}


def answering(**changes: Any):
    return lambda: right() | changes


def test_the_report_is_what_one_computes_by_hand() -> None:
    assert truth().answers == right()


@pytest.mark.parametrize("changes", [{}, {"saved_bytes": 8.39e6}, {"times_read": 3.0, "bound": " Memory"}], ids=str)
def test_reading_check_accepts_right_numbers_rounded_or_not(changes: dict[str, Any]) -> None:
    result = checks.run("kernel_clinic/4", answering(**changes))
    assert result.passed, result.message


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"programs": 1024}, Kind.WRONG_VALUE, "the number of blocks in the matrix"),
        ({"programs": 4096}, Kind.WRONG_VALUE, "the number of columns"),
        ({"times_read": 1}, Kind.WRONG_VALUE, "compare requested with distinct"),
        ({"times_read": 2}, Kind.WRONG_VALUE, "y is written once"),
        ({"times_read": 4}, Kind.WRONG_VALUE, "the fourth access is the store"),
        ({"dram_share": 50}, Kind.WRONG_VALUE, "from 0 to 1"),
        ({"dram_share": 1}, Kind.WRONG_VALUE, "the L2 cache keeps x"),
        ({"dram_share": 2}, Kind.WRONG_VALUE, "the other way round"),
        ({"bound": "compute"}, Kind.WRONG_VALUE, "ridge point"),
        ({"saved_bytes": 4 * 256 * 4096}, Kind.WRONG_VALUE, "three passes become one"),
        ({"saved_bytes": 12 * 256 * 4096}, Kind.WRONG_VALUE, "one of the three passes stays"),
        ({"saved_bytes": 2 * 256 * 4096}, Kind.WRONG_VALUE, "a float32 has 4 bytes"),
        ({"saved_bytes": "8 MB"}, Kind.WRONG_SHAPE, "must be a number"),
        ({"times_read": 7}, Kind.WRONG_VALUE, "got 7"),
        ({"times_read": None}, Kind.NOT_ATTEMPTED, 'no answer for "times_read"'),
    ],
    ids=str,
)
def test_reading_check_names_the_mistake(changes: dict[str, Any], kind: Kind, says: str) -> None:
    result = checks.run("kernel_clinic/4", answering(**changes))
    assert result.kind is kind, result.message
    assert says in result.message, result.message
    assert result.score == pytest.approx(0.8)


def test_reading_check_tells_not_attempted_crashed_and_no_dictionary_apart() -> None:
    def untouched() -> dict[str, Any]:
        raise NotImplementedError()

    assert checks.run("kernel_clinic/4", untouched).kind is Kind.NOT_ATTEMPTED
    assert checks.run("kernel_clinic/4", lambda: 1 / 0).kind is Kind.CRASHED
    assert checks.run("kernel_clinic/4", lambda: [256, 3]).kind is Kind.WRONG_SHAPE
    assert checks.run("kernel_clinic/4", right()).kind is Kind.WRONG_SHAPE
