"""Speculative decoding: the target's distribution exactly, on vocabularies that can be enumerated; the formula."""

import math

import jaxtyping
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cme295lab.transformer import DecoderLM, ModelConfig
from cme295lab.transformer.decoding import (
    Sampling,
    acceptance_probability,
    accepts,
    expected_speedup,
    expected_tokens_per_step,
    generate,
    next_token_probabilities,
    residual,
    speculate,
)
from tests.transformer.decoding.models import CONFIG, all_paths, context_free_model, patient, random_model

TINY = ModelConfig(vocab_size=4, num_layers=2, dim=32, num_heads=4, num_kv_heads=2, mlp_dim=48, max_seq=32, name="four")


@pytest.fixture
def unchecked():
    """Thousands of calls: their shapes are checked in the other tests."""
    jaxtyping.config.update("jaxtyping_disable", True)


distributions = st.lists(st.integers(0, 9), min_size=2, max_size=7).filter(any)


def distribution(values):
    return torch.tensor([values], dtype=torch.double) / sum(values)


@patient
@given(st.data(), distributions)
def test_one_step_has_the_targets_distribution_analytically(data, target):
    draft = data.draw(st.lists(st.integers(0, 9), min_size=len(target), max_size=len(target)).filter(any))
    p, q = distribution(target), distribution(draft)
    # P(x) = q(x) · P(x accepted) + P(anything rejected) · residual(x). Acceptance is found at its threshold in u.
    tokens = torch.arange(len(target))
    chance = torch.where(q[0] > 0, (p / q)[0].nan_to_num(0, posinf=0), 0).clamp(max=1)
    rows_p, rows_q = p.expand(len(target), -1), q.expand(len(target), -1)
    below, above = chance * (1 - 1e-9) - 1e-12, chance * (1 + 1e-9) + 1e-12
    drawn = q[0] > 0
    assert accepts(rows_p, rows_q, tokens, below.clamp(min=0))[drawn & (chance > 0)].all()
    assert not accepts(rows_p, rows_q, tokens, above)[drawn & (chance < 1)].any()
    accepted = q[0] * chance
    result = accepted + (1 - accepted.sum()) * residual(p, q)[0]
    torch.testing.assert_close(result, p[0], rtol=0, atol=1e-12)
    assert acceptance_probability(p, q).item() == pytest.approx(accepted.sum().item(), abs=1e-12)


def test_acceptance_and_residual_by_hand():
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    assert acceptance_probability(p, q).item() == pytest.approx(0.6)  # 0.2 + 0.2 + 0.2
    assert residual(p, q).tolist() == pytest.approx([0.75, 0.25, 0])  # (0.3, 0.1, 0) / 0.4
    assert residual(p, p).equal(p)
    uniforms = torch.tensor([0.999, 0.999, 0.333, 0.334])
    decided = accepts(p.expand(4, 3), q.expand(4, 3), torch.tensor([0, 1, 2, 2]), uniforms)
    assert decided.tolist() == [True, True, True, False]  # 0.2 / 0.6 = 1/3


@pytest.mark.parametrize(
    ("num_draft", "sampling"),
    [(2, Sampling(temperature=3.0)), (1, Sampling(temperature=4.0, top_k=3))],
    ids=["plain-2", "top-k-1"],
)
def test_three_tokens_together_have_the_targets_distribution(num_draft, sampling, unchecked):
    target, draft = random_model(TINY, seed=3, scale=4.0), random_model(TINY, seed=4, scale=4.0)
    probabilities = {}
    for path, seen in all_paths(target, [1, 2], 3).items():
        chances = [next_token_probabilities(row[None], sampling)[0] for row in seen]
        probabilities[path] = math.prod(chance[token].item() for chance, token in zip(chances, path))
    num = 600
    counts = dict.fromkeys(probabilities, 0)
    for seed in range(num):
        result = speculate(
            target, draft, [1, 2], max_new_tokens=3, num_draft=num_draft, sampling=sampling, seed=seed, cache=None
        )
        counts[tuple(result.tokens)] += 1
    assert sum(counts[path] for path, chance in probabilities.items() if chance == 0) == 0
    # Paths too rare for the chi-squared distribution to hold are one class together.
    often = [path for path, chance in probabilities.items() if num * chance >= 5]
    seen = [counts[path] for path in often]
    expected = [num * probabilities[path] for path in often]
    assert len(often) > 10
    seen, expected = [*seen, num - sum(seen)], [*expected, num - sum(expected)]
    if expected[-1] < 1e-6:
        seen, expected = seen[:-1], expected[:-1]
    assert stats.chisquare(seen, expected, sum_check=False).pvalue > 0.01


@pytest.mark.parametrize("cache", ["static", "growing", None], ids=str)
@pytest.mark.parametrize("num_draft", [1, 3, 7])
def test_greedy_gives_the_targets_own_tokens_and_caches_are_taken_back(cache, num_draft):
    target, draft = random_model(), random_model(seed=1)
    with torch.no_grad():  # like the target, often but not always
        for theirs, ours in zip(draft.parameters(), target.parameters()):
            theirs.mul_(0.02).add_(ours)
    whole = rejected = 0
    for prompt in ([3, 1, 4], [7], list(range(30))):
        result = speculate(target, draft, prompt, max_new_tokens=30, num_draft=num_draft, cache=cache)
        assert result.tokens == generate(target, [prompt], max_new_tokens=30).tokens[0]
        assert result.seed is None
        assert sum(accepted + 1 for accepted in result.accepted) == 30
        rejected += sum(accepted < proposed for accepted, proposed in zip(result.accepted, result.proposed))
        whole += sum(accepted == num_draft for accepted in result.accepted)
    assert min(whole, rejected) > 0  # both ways of taking back occurred


def test_a_seed_gives_the_same_tokens_with_each_cache_and_another_seed_others():
    target, draft = random_model(), random_model(seed=1)
    sampling = Sampling(temperature=3.0, top_p=0.95, repetition_penalty=1.2)
    results = [
        speculate(target, draft, [3, 1, 4], max_new_tokens=40, sampling=sampling, seed=5, cache=cache)
        for cache in ("static", "growing", None)
    ]
    assert results[1] == results[0]
    assert results[2] == results[0]
    other = speculate(target, draft, [3, 1, 4], max_new_tokens=40, sampling=sampling, seed=6)
    assert other.tokens != results[0].tokens
    free = speculate(target, draft, [3, 1, 4], max_new_tokens=40, sampling=sampling)
    again = speculate(target, draft, [3, 1, 4], max_new_tokens=40, sampling=sampling, seed=free.seed)
    assert again == free


def test_the_penalty_of_each_proposal_sees_only_what_comes_before_it():
    # Greedy in all but name, target = draft: with penalties that agree, every proposal is accepted.
    model = random_model()
    sampling = Sampling(top_k=1, repetition_penalty=1.5)
    result = speculate(model, model, [3, 1, 4], max_new_tokens=30, num_draft=4, sampling=sampling, seed=0)
    assert result.tokens == generate(model, [[3, 1, 4]], max_new_tokens=30, sampling=sampling, seed=0).tokens[0]
    assert result.accepted == result.proposed
    assert result.acceptance_rate == 1


@pytest.mark.parametrize("num_draft", [1, 4])
def test_tokens_per_step_follow_the_formula(num_draft, unchecked):
    target = context_free_model([math.log(value) for value in (0.5, 0.3, 0.2)])
    draft = context_free_model([math.log(value) for value in (0.25, 0.25, 0.5)])
    rate = 0.25 + 0.25 + 0.2
    result = speculate(target, draft, [0], max_new_tokens=800, num_draft=num_draft, sampling=Sampling(), seed=1)
    # Tokens of a step: at most num_draft + 1, so their standard deviation is below half of that.
    error = 4 * (num_draft + 1) / 2 / result.num_steps**0.5
    assert result.tokens_per_step == pytest.approx(expected_tokens_per_step(rate, num_draft), abs=error)
    assert result.acceptance_rate == pytest.approx(rate, abs=4 * (rate * (1 - rate) / 600) ** 0.5)
    shares = torch.tensor(result.tokens).bincount(minlength=3) / 800
    assert shares.tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.07)


def test_expected_tokens_per_step_is_the_published_formula():
    for rate in (0.0, 0.3, 0.8, 0.99):
        for num_draft in (0, 1, 4, 10):
            formula = (1 - rate ** (num_draft + 1)) / (1 - rate)
            assert expected_tokens_per_step(rate, num_draft) == pytest.approx(formula)
    assert expected_tokens_per_step(1.0, 6) == 7
    # Leviathan et al. 2023, section 3.3: speed-up (1 - a^(g+1)) / ((1 - a) (g c + 1)).
    assert expected_speedup(0.8, 5, 0.05) == pytest.approx((1 - 0.8**6) / (0.2 * 1.25))
    assert expected_speedup(0.0, 3, 0.1) < 1


def test_passes_of_the_target_are_as_many_as_steps(monkeypatch):
    target, draft, calls = random_model(), random_model(seed=1), []
    forward = DecoderLM.forward
    monkeypatch.setattr(DecoderLM, "forward", lambda *a, **k: calls.append((a[0], a[1].shape[1])) or forward(*a, **k))
    result = speculate(target, draft, [3, 1, 4], max_new_tokens=12, num_draft=3)
    widths = [width for model, width in calls if model is target]
    assert len(widths) == result.num_steps
    assert widths == [3 + 3, *(1 + proposed for proposed in result.proposed[1:])]  # the prompt is read once
    assert max(width for model, width in calls[1:] if model is draft) <= 2
    assert sum(accepted + 1 for accepted in result.accepted) == len(result.tokens) == 12


def test_the_end_token_ends_the_answer_wherever_it_comes_in_a_step():
    target, draft = random_model(), random_model(seed=1)
    free = generate(target, [[3, 1, 4]], max_new_tokens=20).tokens[0]
    for token in set(free):
        for num_draft in (2, 6):
            for proposing in (draft, target):
                options = dict(max_new_tokens=20, num_draft=num_draft, end_token=token)
                result = speculate(target, proposing, [3, 1, 4], **options)
                assert result.tokens == free[: free.index(token) + 1]


def test_one_token_needs_no_proposal():
    model = random_model()
    result = speculate(model, random_model(seed=1), [5], max_new_tokens=1, num_draft=4)
    assert (result.proposed, result.accepted) == ([0], [0])
    assert math.isnan(result.acceptance_rate)
    assert result.tokens == generate(model, [[5]], max_new_tokens=1).tokens[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draft": random_model(TINY)}, "must have one vocabulary, got 41 tokens of 'tiny' and 4 of 'four'"),
        ({"num_draft": 0}, "num_draft must be an integer of at least 1, got 0"),
        ({"num_draft": 1.5}, "num_draft must be an integer of at least 1, got 1.5"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"prompt": [1] * 62}, "prompt has 62 tokens.*max_seq 64"),
        ({"prompt": []}, "prompt is empty"),
        ({"end_token": 41}, "end_token has token 41"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
    ids=lambda value: None,
)
def test_bad_input_is_refused(options, message):
    arguments = {"draft": random_model(), "prompt": [1], "max_new_tokens": 4, **options}
    with pytest.raises(ValueError, match=message):
        speculate(random_model(), **arguments)


def test_the_context_of_the_draft_counts_too():
    small = random_model(ModelConfig(**{**CONFIG.to_dict(), "max_seq": 16, "name": "short"}))
    with pytest.raises(ValueError, match="max_seq 16"):
        speculate(random_model(), small, [1] * 10, max_new_tokens=10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: expected_tokens_per_step(1.1, 2), "acceptance_rate must be from 0 to 1, got 1.1"),
        (lambda: expected_tokens_per_step(math.nan, 2), "acceptance_rate must be from 0 to 1, got nan"),
        (lambda: expected_tokens_per_step(0.5, -1), "num_draft must be at least 0, got -1"),
        (lambda: expected_speedup(0.5, 2, -0.1), "cost_ratio must be at least 0, got -0.1"),
    ],
    ids=["rate", "nan", "num_draft", "cost_ratio"],
)
def test_formulas_refuse_what_is_out_of_range(call, message):
    with pytest.raises(ValueError, match=message):
        call()
