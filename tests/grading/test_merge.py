"""Part 1 of the FlashAttention exercise: the check accepts right merges and names the mistake in wrong ones."""

import pytest
import torch

from cme295lab.grading import checks
from cme295lab.grading.flash_attention.merge import worked_example
from cme295lab.grading.result import Kind
from tests.grading.students import Student, student, written

NEW_MAX = "m = torch.maximum(m_a, m_b)"
ADD_L = "weight_a * l_a + weight_b * l_b"
ADD_O = "weight_a[:, None] * o_a + weight_b[:, None] * o_b"
RETURN = "return m, l, o"
EXAMPLE = (
    "return (torch.tensor([5.0], dtype=torch.float64), torch.tensor([1.2034379905], dtype=torch.float64), "
    "torch.tensor([[0.0681, 1.1353]], dtype=torch.float64))"
)

RIGHT = [
    student("the solution"),
    student("exp2", "torch.exp(m_a - m)", "torch.exp2((m_a - m) / math.log(2))"),
    student("torch.where for the maximum", NEW_MAX, "m = torch.where(m_a > m_b, m_a, m_b)"),
    student(
        "l and o in one tensor",
        ADD_O,
        "(torch.stack([o_a, o_b], -1) * torch.stack([weight_a, weight_b], -1)[:, None]).sum(-1)",
    ),
]

WRONG = [
    student("l not rescaled", ADD_L, "l_a + l_b", says="l is not rescaled", at_most=0.0),
    student("o not rescaled", ADD_O, "o_a + o_b", says="accumulator o is not rescaled", at_most=0.0),
    student(
        "one weight forgotten",
        "torch.exp(m_b - m)",
        "torch.ones_like(m)",
        says="second block is not rescaled",
        at_most=0.2,
    ),
    student("maximum of the first block", NEW_MAX, "m = m_a", says="maximum is not updated", at_most=0.0),
    student("the smaller maximum", NEW_MAX, "m = torch.minimum(m_a, m_b)", says="larger of the two", at_most=0.0),
    student("log-sum-exp for the maximum", NEW_MAX, "m = torch.logaddexp(m_a, m_b)", says="log-sum-exp", at_most=0.0),
    student("upside down", "torch.exp(m_a - m)", "torch.exp(m - m_a)", says="upside down", at_most=0.0),
    student("weights swapped", ADD_L, "weight_b * l_a + weight_a * l_b", says="swapped", at_most=0.0),
    student("o divided by l", RETURN, "return m, l, o / l[:, None]", says="already divided by l", at_most=0.0),
    student(
        "o weighted by l",
        ADD_O,
        "((weight_a * l_a)[:, None] * o_a + (weight_b * l_b)[:, None] * o_b) / l[:, None]",
        says="as if they were normalised",
        at_most=0.0,
    ),
    student(
        "the first block comes back",
        RETURN,
        "return m_a, l_a, o_a",
        says="first block is returned unchanged",
        at_most=0.0,
    ),
    student("zeros", RETURN, "return 0 * m, 0 * l, 0 * o", says="every value is zero", at_most=0.0),
    student(
        "exponentials that overflow",
        "torch.exp(m_a - m)",
        "torch.exp(m_a) / torch.exp(m)",
        says=("do not overflow", "exp overflowed"),
    ),
    student(
        "an input is overwritten", RETURN, "m_a.copy_(m)\n    return m, l, o", says="changes its input m_a", at_most=0.0
    ),
    student("the example's numbers", RETURN, EXAMPLE, says="score 0%", at_most=0.0),
    student(
        "a list of two", RETURN, "return [m, l]", kind=Kind.WRONG_SHAPE, says="return the three tensors", at_most=0.0
    ),
    student(
        "numbers",
        RETURN,
        "return m.sum(), l.sum(), o.sum()",
        kind=Kind.WRONG_SHAPE,
        says="must have the shape",
        at_most=0.0,
    ),
    student(
        "a wrong call",
        "torch.maximum(m_a, m_b)",
        "torch.maximum(m_a)",
        kind=Kind.CRASHED,
        says=("TypeError", "m = torch.maximum(m_a)"),
        at_most=0.0,
    ),
    student(
        "not attempted",
        NEW_MAX,
        "raise NotImplementedError()",
        kind=Kind.NOT_ATTEMPTED,
        says="raise NotImplementedError",
        at_most=0.0,
    ),
]


def merge_of(made: Student):
    return written("flash_attention", "merge_blocks", *made.changes)["merge_blocks"]


@pytest.mark.parametrize("made", RIGHT, ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"seed": 295, "rows": 5, "dim": 7}, {"seed": 296, "dtype": torch.float32}], ids=str
)
def test_merge_check_accepts_right_merges(made: Student, options) -> None:
    result = checks.run("flash_attention/1", merge_of(made), **options)
    assert result.passed, result.message


@pytest.mark.parametrize("made", WRONG, ids=str)
def test_merge_check_names_the_mistake(made: Student) -> None:
    result = checks.run("flash_attention/1", merge_of(made))
    assert not result.passed
    assert result.kind is (Kind.WRONG_VALUE if made.kind is Kind.PASSED else made.kind), result.message
    assert result.score <= made.at_most
    for words in made.says:
        assert words in result.message


def test_merge_check_recognises_the_example_whatever_the_input() -> None:
    whole = worked_example()[2]
    result = checks.run("flash_attention/1", lambda **state: tuple(x.clone() for x in whole))
    assert result.score <= 0.2
    assert "numbers of the worked example" in result.message


def test_merge_check_finds_a_merge_that_is_right_only_once() -> None:
    merge = merge_of(RIGHT[0])
    calls = []

    def first_calls_only(m_a, l_a, o_a, m_b, l_b, o_b):
        calls.append(1)
        m, total, o = merge(m_a, l_a, o_a, m_b, l_b, o_b)
        return (m, total, o) if len(calls) < 6 else (m, total * 1.001, o)

    result = checks.run("flash_attention/1", first_calls_only)
    assert result.kind is Kind.NOT_EXACT
    assert "merging two blocks is right and merging six is not" in result.message


def test_worked_example_has_the_published_numbers() -> None:
    m, total, _ = worked_example()[2]
    assert m.item() == 5
    assert total.item() == pytest.approx(1.2034379905, abs=1e-10)
    assert (m + total.log()).item() == pytest.approx(5.1851824526, abs=1e-10)
