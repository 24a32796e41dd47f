"""Part 3 of the ring: formulas against what is counted and against the cost model; mistakes are named."""

import math

import pytest

from cme295lab.grading import checks
from cme295lab.grading.result import Kind
from cme295lab.grading.ring_all_reduce.cost import NAMES, Link, counted_bytes, right_number
from tests.grading.students import Student, student, written

SENT = "2 * (num_ranks - 1) * num_bytes / num_ranks"
RING = "2 * (num_ranks - 1) * (latency_s + num_bytes / num_ranks / bytes_per_s)"
TREE = "2 * math.ceil(math.log2(num_ranks)) * (latency_s + num_bytes / bytes_per_s)"
EVEN = "latency_s * bytes_per_s * (steps - rounds) / (rounds - steps / num_ranks)"
STEPS = "2 * (num_ranks - 1)"

RIGHT = [
    student("the solution"),
    student("rounds by bits", "math.ceil(math.log2(num_ranks))", "(num_ranks - 1).bit_length()"),
    student("chunk by chunk", SENT, "sum(num_bytes / num_ranks for _ in range(2 * num_ranks - 2))"),
]

WRONG = [
    student("one half sent", SENT, "(num_ranks - 1) * num_bytes / num_ranks", says="one half of the all-reduce"),
    student("all ranks", SENT, STEPS + " * num_bytes", says="all ranks send together"),
    student("whole tensors", SENT, "(num_ranks - 1) * num_bytes", says="a part of N"),
    student("N steps", SENT, "2 * num_bytes", says="the last step is not needed"),
    student("a constant", SENT, "999", says="ranks, your formula gives 999"),
    student("one half of the time", RING, RING.removeprefix("2 * "), says="that is one half"),
    student(
        "one latency", RING, f"latency_s + {STEPS} * num_bytes / num_ranks / bytes_per_s", says="each step has its"
    ),
    student("no latency", RING, f"{STEPS} * num_bytes / num_ranks / bytes_per_s", says="the latency is left out"),
    student("no chunks", RING, f"{STEPS} * (latency_s + num_bytes / bytes_per_s)", says="a step sends a chunk"),
    student("multiplied", RING, f"{STEPS} * (latency_s + num_bytes / num_ranks * bytes_per_s)", says="divide"),
    student("up only", TREE, TREE.removeprefix("2 * "), says="that is the way up"),
    student(
        "not rounded", TREE, TREE.replace("math.ceil(math.log2(num_ranks))", "math.log2(num_ranks)"), says="round log2"
    ),
    student("natural logarithm", TREE, TREE.replace("math.log2", "math.log"), says="has base 2"),
    student(
        "chunks in a tree", TREE, TREE.replace("num_bytes /", "num_bytes / num_ranks /"), says="the whole tensor in"
    ),
    student("the ring again", TREE, RING, says="that is the ring"),
    student("a chain", TREE, f"{STEPS} * (latency_s + num_bytes / bytes_per_s)", says="a chain"),
    student("upside down", EVEN, f"1 / ({EVEN})", says="reciprocal"),
    student("in time", EVEN, EVEN.replace("* bytes_per_s", ""), says="the bandwidth is missing"),
    student("without units", EVEN, EVEN.replace("latency_s * bytes_per_s * ", ""), says="multiply by both"),
    student(
        "latencies alone", EVEN, "latency_s * bytes_per_s * (steps - rounds)", says="only the latencies are compared"
    ),
    student("text", EVEN, "'a lot'", kind=Kind.WRONG_SHAPE, says="return a number, not 'a lot'"),
    student("infinite", EVEN, "math.inf", kind=Kind.WRONG_SHAPE, says="return a number, not inf"),
    student("a crash", RING, "latency_s / 0", kind=Kind.CRASHED, says=("ZeroDivisionError", "return latency_s / 0")),
    student(
        "one missing", f"return {EVEN}", "raise NotImplementedError()", kind=Kind.NOT_ATTEMPTED, says="Replace the line"
    ),
]


def functions_of(made: Student):
    names = written("ring_all_reduce", "costs", *made.changes)
    return tuple(names[name] for name in NAMES)


@pytest.mark.parametrize("made", RIGHT, ids=str)
@pytest.mark.parametrize("options", [{}, {"scale": 2}], ids=str)
def test_cost_check_accepts_right_formulas(made: Student, options) -> None:
    result = checks.run("ring_all_reduce/3", functions_of(made), **options)
    assert result.passed, result.message


@pytest.mark.parametrize("made", WRONG, ids=str)
def test_cost_check_names_the_mistake(made: Student) -> None:
    result = checks.run("ring_all_reduce/3", functions_of(made))
    assert not result.passed
    assert result.kind is (Kind.WRONG_VALUE if made.kind is Kind.PASSED else made.kind), result.message
    assert result.score == 0.75
    for words in made.says:
        assert words in result.message, result.message


def test_cost_check_wants_four_functions() -> None:
    for handed_over in (functions_of(RIGHT[0])[:3], functions_of(RIGHT[0])[0], (1, 2, 3, 4)):
        result = checks.run("ring_all_reduce/3", handed_over)
        assert result.kind is Kind.WRONG_SHAPE, result.message
        assert result.score == 0


def test_four_stubs_are_not_attempted() -> None:
    def stub(**arguments):
        raise NotImplementedError()

    assert checks.run("ring_all_reduce/3", (stub,) * 4).kind is Kind.NOT_ATTEMPTED


def test_right_numbers_are_those_of_the_cost_model() -> None:
    """The room's own model, written by others; and the break-even is where the two times are equal."""
    from cme295lab.parallel.communication import cost_model

    link = Link(num_bytes=10**6, num_ranks=8, latency_s=5e-6, bytes_per_s=5e10)
    wire = cost_model.Link(name="a wire", latency_s=5e-6, bandwidth_bytes_per_s=5e10)
    for function, algorithm in (("ring_time_s", "ring"), ("tree_time_s", "tree")):
        theirs = cost_model.collective_time_s("all_reduce", 10**6, 8, wire, algorithm=algorithm)
        assert right_number(function, link) == pytest.approx(theirs)
    even = Link(num_bytes=round(right_number("break_even_bytes", link)), num_ranks=8, latency_s=5e-6, bytes_per_s=5e10)
    times = [right_number(name, even) for name in ("ring_time_s", "tree_time_s")]
    assert math.isclose(*times, rel_tol=1e-5)


def test_break_even_is_that_of_the_cost_model() -> None:
    from cme295lab.parallel.communication import cost_model

    wire = cost_model.Link(name="a wire", latency_s=5e-6, bandwidth_bytes_per_s=5e10)
    for num_ranks in (4, 6, 16, 100):
        link = Link(num_ranks=num_ranks, latency_s=5e-6, bytes_per_s=5e10)
        assert right_number("break_even_bytes", link) == pytest.approx(cost_model.crossover_bytes(num_ranks, wire))


def test_counted_bytes_are_the_published_factor() -> None:
    """Patarasuk and Yuan 2009: 2 S (N - 1) / N."""
    assert counted_bytes(240, 3) == 2 * 240 * 2 / 3
