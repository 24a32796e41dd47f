"""The softmax that is merged from blocks."""

import math

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

from cme295lab.attention import SoftmaxState, merge, online_softmax

scores = st.lists(st.floats(-50, 50), min_size=1, max_size=12).map(lambda x: torch.tensor(x, dtype=torch.float64))
# fp64: three exponentials and a few sums of at most 36 terms; 1e-12 leaves a factor of a hundred.
close = {"rtol": 1e-12, "atol": 0.0}


def assert_same(a: SoftmaxState, b: SoftmaxState) -> None:
    assert torch.equal(a.max, b.max)  # a maximum is exact
    torch.testing.assert_close(a.sum, b.sum, **close)
    if a.output is not None and b.output is not None:
        torch.testing.assert_close(a.output, b.output, rtol=1e-12, atol=1e-12)


def state(x: torch.Tensor) -> SoftmaxState:
    values = torch.stack([torch.cos(x), torch.sin(3 * x)], dim=-1)
    return SoftmaxState.of(x, values)


def test_merge_two_blocks_by_hand():
    # x = [1, 3 | 2, 5]: m = 3, l = e^-2 + 1; m = 5, l = e^-3 + 1; together m = 5.
    a = SoftmaxState.of(torch.tensor([1.0, 3.0], dtype=torch.float64))
    b = SoftmaxState.of(torch.tensor([2.0, 5.0], dtype=torch.float64))
    assert (a.max.item(), b.max.item()) == (3.0, 5.0)
    assert a.sum.item() == pytest.approx(1.1353352832366127, abs=1e-12)
    assert b.sum.item() == pytest.approx(1.0497870683678639, abs=1e-12)
    merged = merge(a, b)
    assert merged.max.item() == 5.0
    assert merged.sum.item() == pytest.approx(math.exp(-4) + math.exp(-2) + math.exp(-3) + 1, abs=1e-12)
    assert merged.sum.item() == pytest.approx(1.2034379905, abs=1e-10)
    assert merged.lse.item() == pytest.approx(5.1851824526, abs=1e-10)


@hypothesis.given(scores, scores)
def test_merge_is_the_state_of_both_blocks_together(x, y):
    assert_same(merge(state(x), state(y)), state(torch.cat([x, y])))


@hypothesis.given(scores, scores, scores)
def test_merge_is_associative(x, y, z):
    a, b, c = state(x), state(y), state(z)
    assert_same(merge(merge(a, b), c), merge(a, merge(b, c)))


@hypothesis.given(scores, scores)
def test_merge_is_commutative(x, y):
    assert_same(merge(state(x), state(y)), merge(state(y), state(x)))


@hypothesis.given(scores, st.randoms(use_true_random=False))
def test_state_does_not_depend_on_the_order_of_scores(x, random):
    order = list(range(len(x)))
    random.shuffle(order)
    assert_same(state(x), state(x[order]))


@hypothesis.given(scores, scores, st.integers(-1000, 1000))
def test_merge_shifts_with_its_scores(x, y, shift):
    # Scores in steps of 1/8, so that adding the shift rounds nothing.
    x, y = (torch.round(8 * t) / 8 for t in (x, y))
    plain = merge(SoftmaxState.of(x), SoftmaxState.of(y))
    moved = merge(SoftmaxState.of(x + shift), SoftmaxState.of(y + shift))
    assert moved.max == plain.max + shift
    torch.testing.assert_close(moved.sum, plain.sum, **close)


@hypothesis.given(scores)
def test_merge_has_fully_masked_blocks_as_neutral_element(x):
    masked = SoftmaxState.of(torch.full((3,), -math.inf, dtype=torch.float64), torch.ones(3, 2, dtype=torch.float64))
    assert (masked.max.item(), masked.sum.item()) == (-math.inf, 0.0)
    for merged in (merge(masked, state(x)), merge(state(x), masked)):
        assert_same(merged, state(x))
    assert merge(masked, masked).sum.item() == 0.0


@hypothesis.given(scores, st.integers(1, 15))
def test_online_softmax_equals_softmax(x, block_size):
    torch.testing.assert_close(online_softmax(x, block_size=block_size), x.softmax(-1), rtol=1e-12, atol=1e-300)


def test_online_softmax_does_not_overflow():
    x = torch.tensor([[1000.0, -1000.0, 999.0], [-1e30, -1e30, -1e30]])
    torch.testing.assert_close(online_softmax(x, block_size=2), x.softmax(-1))


def test_result_is_attention_of_one_query():
    generator = torch.Generator().manual_seed(0)
    s = torch.randn(2, 3, 7, generator=generator, dtype=torch.float64)  # (batch, query, key)
    v = torch.randn(2, 1, 7, 5, generator=generator, dtype=torch.float64)
    merged = merge(SoftmaxState.of(s[..., :4], v[..., :4, :]), SoftmaxState.of(s[..., 4:], v[..., 4:, :]))
    torch.testing.assert_close(merged.result(), s.softmax(-1) @ v[:, 0], **close)


def test_softmax_propagates_nan():
    x = torch.tensor([0.0, math.nan, 1.0])
    assert online_softmax(x, block_size=1).isnan().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SoftmaxState.of(torch.empty(3, 0)), "at least one element"),
        (lambda: SoftmaxState.of(torch.zeros(3), torch.zeros(4, 2)), "got \\(4, 2\\)"),
        (lambda: merge(SoftmaxState.of(torch.zeros(3)), SoftmaxState.of(torch.zeros(3), torch.zeros(3, 2))), "both"),
        (lambda: SoftmaxState.of(torch.zeros(3)).result(), "carries no values"),
        (lambda: online_softmax(torch.zeros(3), block_size=0), "block_size must be at least 1"),
        (lambda: online_softmax(torch.empty(0), block_size=2), "at least one element"),
    ],
)
def test_online_softmax_refuses_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
