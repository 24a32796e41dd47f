"""Part 3 of the kernel clinic: the check accepts the best blocks, however they were found, and says what is wrong."""

import pytest

from cme295lab.grading import checks
from cme295lab.grading.kernel_clinic import blocks
from cme295lab.grading.kernel_clinic.blocks import SIDES, Size
from cme295lab.grading.result import Kind
from cme295lab.units import KiB


def by_measuring(num_rows, num_cols, inner, limit_bytes):
    """The solution's way, with the check's own measurement."""
    size = Size(num_rows, num_cols, inner, limit_bytes)
    found = {(m, n): blocks.measure(size, (m, n)) for m in SIDES for n in SIDES}
    return min((b for b in found if found[b][1] <= limit_bytes), key=lambda b: found[b][0])


def requested(num_rows, num_cols, inner, m, n):
    return 2 * inner * (num_rows * -(-num_cols // n) + num_cols * -(-num_rows // m)) + 2 * num_rows * num_cols


def by_formula(num_rows, num_cols, inner, limit_bytes):
    """A formula for the bytes, a measurement of one tile for the room."""
    pairs = [(m, n) for m in SIDES for n in SIDES]
    held = {pair: blocks.measure(Size(*pair, 32, limit_bytes), pair)[1] for pair in pairs}
    fitting = [pair for pair in pairs if held[pair] <= 0.98 * limit_bytes]
    return list(min(fitting, key=lambda pair: requested(num_rows, num_cols, inner, *pair)))


def largest_that_fits(num_rows, num_cols, inner, limit_bytes):
    size = Size(num_rows, num_cols, inner, limit_bytes)
    pairs = [(m, n) for m in SIDES for n in SIDES if blocks.measure(size, (m, n))[1] <= limit_bytes]
    return max(pairs, key=lambda pair: pair[0] * pair[1])


def square_that_fits(num_rows, num_cols, inner, limit_bytes):
    size = Size(num_rows, num_cols, inner, limit_bytes)
    return max((s, s) for s in SIDES if blocks.measure(size, (s, s))[1] <= limit_bytes)


def swapped(*arguments):
    return by_measuring(*arguments)[::-1]


def accumulator_only(num_rows, num_cols, inner, limit_bytes):
    pairs = [(m, n) for m in SIDES for n in SIDES if 4 * m * n <= limit_bytes]
    return min(pairs, key=lambda pair: requested(num_rows, num_cols, inner, *pair))


def limit_ignored(num_rows, num_cols, inner, limit_bytes):
    return 256, 256


def smallest(num_rows, num_cols, inner, limit_bytes):
    return 16, 16


def too_careful(num_rows, num_cols, inner, limit_bytes):
    return by_measuring(num_rows, num_cols, inner, limit_bytes // 3)


def between_the_choices(num_rows, num_cols, inner, limit_bytes):
    return 96, 64


def three_sizes(num_rows, num_cols, inner, limit_bytes):
    return 64, 64, 32


def misspelt(num_rows, num_cols, inner, limit_bytes):
    return num_row, 64


def endless(num_rows, num_cols, inner, limit_bytes):
    while True:
        pass


def not_attempted(num_rows, num_cols, inner, limit_bytes):
    raise NotImplementedError()


@pytest.mark.parametrize("seed", [0, 295, 7])
@pytest.mark.parametrize("chosen", [by_measuring, by_formula])
def test_blocks_check_accepts_the_best_blocks(chosen, seed: int) -> None:
    result = checks.run("kernel_clinic/3", chosen, seed=seed)
    assert result.passed, result.message
    assert result.score == 1.0


@pytest.mark.parametrize(
    ("chosen", "kind", "says", "at_most"),
    [
        (largest_that_fits, Kind.TOO_MUCH_TRAFFIC, "the largest block is not always the best", 0.8),
        (square_that_fits, Kind.TOO_MUCH_TRAFFIC, "square blocks are not always the best", 0.8),
        (swapped, Kind.TOO_MUCH_TRAFFIC, "the two sides are swapped", 0.8),
        (accumulator_only, Kind.TOO_MUCH_MEMORY, "the accumulator fits, but", 0.6),
        (limit_ignored, Kind.TOO_MUCH_MEMORY, "the accumulator alone", 0.2),
        (smallest, Kind.TOO_MUCH_TRAFFIC, "the smallest blocks always fit", 0.0),
        (too_careful, Kind.TOO_MUCH_TRAFFIC, "there is room for larger blocks", 0.6),
        (between_the_choices, Kind.WRONG_SHAPE, "each one of 16, 32, 64, 128, 256; got (96, 64)", 0.0),
        (three_sizes, Kind.WRONG_SHAPE, "return (BLOCK_M, BLOCK_N)", 0.0),
        (misspelt, Kind.CRASHED, "'num_row' is not defined", 0.0),
        (endless, Kind.TIMED_OUT, "stopped after", 0.0),
        (not_attempted, Kind.NOT_ATTEMPTED, "raise NotImplementedError", 0.0),
        ((64, 64), Kind.WRONG_SHAPE, "hand over the function", 0.0),
    ],
)
def test_blocks_check_names_the_mistake(
    chosen, kind: Kind, says: str, at_most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind is Kind.TIMED_OUT:
        monkeypatch.setattr(blocks, "TIME_LIMIT_S", 0.3)
    result = checks.run("kernel_clinic/3", chosen)
    assert result.kind is kind, result.message
    assert says in result.message, result.message
    assert result.score <= at_most, result.score
    assert 'checks.hint("kernel_clinic/3")' in result.message


def test_requested_bytes_are_those_of_the_formula() -> None:
    """Independent of the simulator: A once per column of tiles, B once per row of tiles, C once."""
    for pair in ((32, 128), (256, 16), (64, 64)):
        size = Size(300, 170, 64, 160 * KiB)
        assert blocks.measure(size, pair)[0] == requested(300, 170, 64, *pair)


def test_the_best_pair_differs_from_size_to_size() -> None:
    """Otherwise a constant would pass."""
    sizes = [Size(512, 512, 64, 160 * KiB), Size(1024, 64, 64, 160 * KiB), Size(64, 1024, 64, 160 * KiB)]
    assert len({blocks.best_blocks(size) for size in sizes}) == 3
