"""Each step from logits to probabilities: by hand, against plain Python on exact fractions, and what always holds."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cme295lab.transformer.decoding import (
    Sampling,
    apply_temperature,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    next_token_probabilities,
    penalize_repetition,
)
from tests.transformer.decoding.models import patient

LOGITS = torch.tensor([[2.0, 1.0, 0.0]])
NEVER = -math.inf
# Small whole weights: probabilities are exact fractions, ties are common, and 1e-9 lies between any two sums.
weights = st.lists(st.integers(1, 12), min_size=1, max_size=9)


def logits_of(values):
    return torch.tensor([values], dtype=torch.double).log()


def kept_tokens(logits):
    return [token for token, value in enumerate(logits[0].tolist()) if value != NEVER]


def by_rank(values):
    return sorted(range(len(values)), key=lambda token: -values[token])  # stable: ties by token number


@pytest.mark.parametrize(
    ("temperature", "expected", "entropy"),
    [
        (0.5, (0.866813, 0.117310, 0.015876), 0.441057),
        (1.0, (0.665241, 0.244728, 0.090031), 0.832396),
        (2.0, (0.506480, 0.307196, 0.186324), 1.020191),
    ],
)
def test_temperature_gives_the_published_numbers(temperature, expected, entropy):
    probabilities = next_token_probabilities(LOGITS.double(), Sampling(temperature=temperature))[0]
    assert probabilities.tolist() == pytest.approx(expected, abs=5e-7)
    assert -(probabilities * probabilities.log()).sum().item() == pytest.approx(entropy, abs=5e-7)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(top_k=2), (0.731059, 0.268941, 0)),
        (Sampling(top_k=1), (1, 0, 0)),
        (Sampling(top_k=7), (0.665241, 0.244728, 0.090031)),
        (Sampling(top_p=0.66), (1, 0, 0)),  # 0.665 alone reaches it
        (Sampling(top_p=0.67), (0.731059, 0.268941, 0)),  # the token that crosses 0.67 is kept
        (Sampling(top_p=0.92), (0.665241, 0.244728, 0.090031)),
        (Sampling(top_p=1.0, min_p=0.0, temperature=1), (0.665241, 0.244728, 0.090031)),
        (Sampling(min_p=0.36), (0.731059, 0.268941, 0)),  # exp(-1) = 0.368 of the largest
        (Sampling(min_p=0.37), (1, 0, 0)),
        (Sampling(min_p=1.0), (1, 0, 0)),
        (None, (1, 0, 0)),
        # The order: 0.9 of (0.731, 0.269), what top-k leaves, needs both; 0.9 of all three would, too. 0.7 would not:
        (Sampling(top_k=2, top_p=0.7), (1, 0, 0)),
        (Sampling(top_p=0.7), (0.731059, 0.268941, 0)),
        # Top-p looks at what temperature has sharpened: 0.867 alone reaches 0.86.
        (Sampling(temperature=0.5, top_p=0.86), (1, 0, 0)),
    ],
)
def test_steps_by_hand(sampling, expected):
    assert next_token_probabilities(LOGITS, sampling)[0].tolist() == pytest.approx(expected, abs=5e-7)


def test_repetition_penalty_by_hand():
    logits = torch.tensor([[2.5, -2.0, 1.0, -1.0, 0.0]] * 2)
    previous = torch.tensor([[0, 1, 0, -1], [-1, -1, 4, 3]])  # twice is as once, -1 is nobody
    penalized = penalize_repetition(logits, previous, 1.25)
    assert penalized.tolist() == [[2.0, -2.5, 1.0, -1.0, 0.0], [2.5, -2.0, 1.0, -1.25, 0.0]]
    probabilities = next_token_probabilities(logits, Sampling(repetition_penalty=1.25, temperature=2.0), previous)
    torch.testing.assert_close(probabilities, (penalized / 2).softmax(-1))
    assert penalize_repetition(logits, previous, 1.0).equal(logits)


@patient
@given(weights, st.integers(1, 10))
def test_top_k_keeps_exactly_the_k_largest_and_ties_by_number(values, top_k):
    kept = keep_top_k(logits_of(values), top_k)
    assert kept_tokens(kept) == sorted(by_rank(values)[:top_k])
    assert all(kept[0, token] == logits_of(values)[0, token] for token in kept_tokens(kept))


@patient
@given(weights, st.integers(1, 1000))
def test_top_p_keeps_the_smallest_set_that_reaches_p(values, per_mille):
    top_p, total = Fraction(per_mille, 1000) - Fraction(1, 10**9), sum(values)  # never exactly on a sum
    expected, reached = [], Fraction(0)
    for token in by_rank(values):
        if reached >= top_p:
            break
        expected.append(token)
        reached += Fraction(values[token], total)
    assert kept_tokens(keep_top_p(logits_of(values), float(top_p))) == sorted(expected)


@patient
@given(weights, st.integers(0, 12))
def test_min_p_keeps_all_from_a_fraction_of_the_largest(values, twelfths):
    min_p = max(Fraction(twelfths, 12) - Fraction(1, 10**9), Fraction(0))
    expected = [token for token, value in enumerate(values) if value >= min_p * max(values)]
    assert kept_tokens(keep_min_p(logits_of(values), float(min_p))) == expected


samplings = st.builds(
    Sampling,
    temperature=st.floats(1e-6, 1e6),
    top_k=st.none() | st.integers(1, 12),
    top_p=st.none() | st.floats(1e-6, 1.0),
    min_p=st.none() | st.floats(0.0, 1.0),
    repetition_penalty=st.floats(0.1, 10.0),
)


@patient
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=9), samplings)
def test_probabilities_are_a_distribution_that_keeps_the_most_likely(values, sampling):
    logits = torch.tensor([values])
    previous = torch.tensor([[0, -1]])
    probabilities = next_token_probabilities(logits, sampling, previous)
    assert probabilities.shape == logits.shape
    assert (probabilities >= 0).all()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)
    assert probabilities[0, penalize_repetition(logits, previous, sampling.repetition_penalty)[0].argmax()] > 0


@patient
@given(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=9), st.floats(1e-3, 1e3))
def test_temperature_never_turns_a_ranking_round(values, temperature):
    logits = torch.tensor([values])
    before, after = logits[0], apply_temperature(logits, temperature)[0]
    for i in range(len(values)):
        assert (after[before > before[i]] >= after[i]).all()
    assert (after[before == before.max()] == 0).all()


@patient
@given(st.permutations(range(7)), samplings)
def test_renumbering_the_tokens_renumbers_the_probabilities(order, sampling):
    # No ratio of two of them is a round number, or a penalty could make them tie, and ties go by token number.
    logits = torch.tensor([[3.1416, 1.4142, 0.2718, -0.5772, -1.1937, -2.2361, -4.1231]])
    previous = torch.tensor([[1, 4]])
    renumbered = torch.tensor([[order.index(1), order.index(4)]])
    ours = next_token_probabilities(logits[:, order], sampling, renumbered)
    torch.testing.assert_close(ours, next_token_probabilities(logits, sampling, previous)[:, order])


@patient
@given(weights, st.floats(-30, 30), samplings)
def test_a_constant_added_to_all_logits_changes_nothing(values, constant, sampling):
    plain = Sampling(temperature=max(sampling.temperature, 0.1), top_k=sampling.top_k)
    ours = next_token_probabilities(logits_of(values) + constant, plain)
    torch.testing.assert_close(ours, next_token_probabilities(logits_of(values), plain), rtol=0, atol=1e-9)


def test_rows_of_a_batch_do_not_see_each_other():
    logits = torch.randn(5, 31) * 3
    sampling = Sampling(temperature=0.7, top_k=9, top_p=0.8, min_p=0.05)
    together = next_token_probabilities(logits, sampling)
    assert together.equal(torch.cat([next_token_probabilities(row[None], sampling) for row in logits]))
    assert len({int(row.count_nonzero()) for row in together}) > 1  # a set of another size in each


def test_half_precision_is_computed_in_fp32():
    logits = (torch.randn(2, 300) * 3).bfloat16()
    sampling = Sampling(temperature=0.8, top_p=0.9)
    probabilities = next_token_probabilities(logits, sampling)
    assert probabilities.dtype == torch.float32
    assert probabilities.equal(next_token_probabilities(logits.float(), sampling))


def test_masked_logits_stay_masked():
    logits = torch.tensor([[NEVER, 1.0, NEVER, 0.0]])
    for sampling in (Sampling(top_k=3), Sampling(top_p=0.999999), Sampling(min_p=0.1), Sampling(temperature=0.5)):
        assert next_token_probabilities(logits, sampling)[0, ::2].tolist() == [0, 0]


def test_draw_by_hand():
    probabilities = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]])
    below_one = 1 - 2.0**-53
    uniforms = [0.0, 0.2499, 0.25, 0.7499, 0.75, below_one]
    drawn = draw(probabilities.expand(6, -1), torch.tensor(uniforms, dtype=torch.double))
    assert drawn.tolist() == [1, 1, 3, 3, 4, 4]


@patient
@given(st.lists(st.integers(0, 5), min_size=1, max_size=8).filter(any), st.integers(0, 2**53 - 1))
def test_draw_never_takes_what_has_no_probability(values, number):
    probabilities = torch.tensor([values], dtype=torch.float32) / 7  # they need not sum to 1
    drawn = draw(probabilities, torch.tensor([number / 2**53], dtype=torch.double))
    assert values[drawn.item()] > 0


def test_draw_reaches_tokens_that_fp32_sums_would_lose():
    # 2^-25 is below half a unit in the last place of a sum near 1 in fp32, so 1 + 2^-25 would be 1.
    probabilities = torch.tensor([[1.0, 2.0**-25]])
    assert draw(probabilities, torch.tensor([1 - 2.0**-27], dtype=torch.double)).item() == 1


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"temperature": 0}, ValueError, r"temperature must be a positive number.*got 0.*sampling=None"),
        ({"temperature": -0.5}, ValueError, r"temperature .*got -0.5"),
        ({"temperature": math.nan}, ValueError, r"temperature .*got nan"),
        ({"temperature": math.inf}, ValueError, r"temperature .*got inf"),
        ({"temperature": "hot"}, TypeError, r"temperature must be a number, got 'hot' of type str"),
        ({"temperature": True}, TypeError, r"temperature must be a number, got True"),
        ({"top_k": 0}, ValueError, r"top_k must be at least 1, got 0.*leave it None"),
        ({"top_k": -3}, ValueError, r"top_k .*got -3"),
        ({"top_k": 5.0}, TypeError, r"top_k must be an int, got 5.0 of type float"),
        ({"top_p": 0}, ValueError, r"top_p must be above 0 and at most 1, got 0"),
        ({"top_p": 1.01}, ValueError, r"top_p .*got 1.01"),
        ({"top_p": 90}, ValueError, r"top_p .*got 90"),
        ({"top_p": math.nan}, ValueError, r"top_p .*got nan"),
        ({"min_p": -0.1}, ValueError, r"min_p must be from 0 to 1, got -0.1"),
        ({"min_p": 1.5}, ValueError, r"min_p .*got 1.5"),
        ({"repetition_penalty": 0}, ValueError, r"repetition_penalty must be a positive number.*got 0"),
        ({"repetition_penalty": -1.2}, ValueError, r"repetition_penalty .*got -1.2"),
        ({"repetition_penalty": None}, TypeError, r"repetition_penalty must be a number, got None"),
    ],
)
def test_sampling_refuses_what_makes_no_sense(values, error, message):
    with pytest.raises(error, match=message):
        Sampling(**values)


@pytest.mark.parametrize(
    ("step", "value"),
    [(apply_temperature, 0), (keep_top_k, 0), (keep_top_p, 0.0), (keep_min_p, 2.0)],
    ids=["temperature", "top_k", "top_p", "min_p"],
)
def test_single_steps_refuse_what_sampling_refuses(step, value):
    with pytest.raises(ValueError, match=f"got {value}"):
        step(LOGITS, value)


def test_repetition_penalty_needs_tokens():
    with pytest.raises(ValueError, match=r"repetition_penalty is 1.1, but previous is None"):
        next_token_probabilities(LOGITS, Sampling(repetition_penalty=1.1))
