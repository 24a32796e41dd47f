"""The loop: greedy against reading everything again, batches against single prompts, seeds, endings, bad input."""

import dataclasses
import math

import pytest
import torch
from scipy import stats

from cme295lab.transformer import DecoderLM
from cme295lab.transformer.decoding import Sampling, generate, next_token_probabilities
from tests.transformer.decoding.models import CONFIG, all_paths, random_model

PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3], [7]]
CACHES = ["static", "growing", None]


@pytest.fixture(scope="module")
def model():
    return random_model()


def greedy_by_hand(model, prompt, num):
    """Read all of it again for each token, and look at the margin: no tie decides anything."""
    tokens, log_probabilities = list(prompt), []
    for _ in range(num):
        with torch.no_grad():
            logits = model(torch.tensor([tokens]))[0, -1].double()
        best, second = logits.topk(2).values.tolist()
        assert best - second > 1e-3
        tokens.append(int(logits.argmax()))
        log_probabilities.append(logits.log_softmax(-1).max().item())
    return tokens[len(prompt) :], log_probabilities


@pytest.mark.parametrize("cache", CACHES, ids=str)
def test_greedy_takes_the_largest_logit_of_each_row_whatever_its_length(model, cache):
    generation = generate(model, PROMPTS, max_new_tokens=12, cache=cache)
    for row, prompt in enumerate(PROMPTS):
        tokens, log_probabilities = greedy_by_hand(model, prompt, 12)
        assert generation.tokens[row] == tokens
        assert generation.log_probabilities[row] == pytest.approx(log_probabilities, abs=1e-4)
    assert len(set(map(tuple, generation.tokens))) == 3
    assert len(set(generation.tokens[0])) > 3  # it does not say one word for ever
    assert generation.finished == ["length"] * 3
    assert generation.seed is None


@pytest.mark.parametrize("attention", ["flash", "standard"])
@pytest.mark.parametrize("cache", CACHES, ids=str)
def test_padding_is_unseen_with_learned_positions_and_either_attention(cache, attention):
    gpt = dataclasses.replace(CONFIG, num_kv_heads=4, mlp="gelu", norm="layernorm", position="learned", tied_head=True)
    model = DecoderLM(gpt, attention=attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(12)
    together = generate(model, PROMPTS, max_new_tokens=10, cache=cache)
    for row, prompt in enumerate(PROMPTS):
        assert together.tokens[row] == greedy_by_hand(model, prompt, 10)[0]


def test_a_model_in_bf16_has_a_cache_in_bf16():
    model = random_model().bfloat16()
    static, growing = (generate(model, PROMPTS, max_new_tokens=10, cache=cache) for cache in ("static", "growing"))
    assert static.tokens == growing.tokens
    exact = generate(random_model(), PROMPTS, max_new_tokens=1)
    assert static.log_probabilities[0][0] == pytest.approx(exact.log_probabilities[0][0], abs=0.3)  # bf16: 3 digits


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(temperature=2.0, top_k=20, top_p=0.9, min_p=0.01, repetition_penalty=1.3)],
    ids=["plain", "all-steps"],
)
def test_a_seed_gives_the_same_tokens_with_each_cache(model, sampling):
    def sample(cache, seed):
        return generate(model, PROMPTS, max_new_tokens=15, sampling=sampling, seed=seed, cache=cache)

    first, *others = [sample(cache, 11) for cache in CACHES]
    assert [other.tokens for other in others] == [first.tokens] * 2
    assert first.seed == 11
    assert sample("static", 12).tokens != first.tokens


def test_a_seed_does_not_touch_the_random_numbers_of_others(model):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = generate(model, PROMPTS, max_new_tokens=4, sampling=Sampling(), seed=1)
    assert torch.rand(3).equal(expected)
    assert generate(model, PROMPTS, max_new_tokens=4, sampling=Sampling(), seed=1).tokens == first.tokens


def test_without_a_seed_draws_differ_and_the_result_says_how_to_repeat_them(model):
    one, other = (generate(model, PROMPTS, max_new_tokens=20, sampling=Sampling(temperature=3.0)) for _ in range(2))
    assert one.tokens != other.tokens
    again = generate(model, PROMPTS, max_new_tokens=20, sampling=Sampling(temperature=3.0), seed=one.seed)
    assert again.tokens == one.tokens


@pytest.mark.parametrize("repetition_penalty", [1.0, 1.5])
def test_the_first_answer_does_not_depend_on_those_next_to_it(model, repetition_penalty):
    sampling = Sampling(temperature=2.0, top_p=0.9, repetition_penalty=repetition_penalty)
    together = generate(model, PROMPTS, max_new_tokens=15, sampling=sampling, seed=3)  # the first is padded
    alone = generate(model, PROMPTS[:1], max_new_tokens=15, sampling=sampling, seed=3)
    assert together.tokens[0] == alone.tokens[0]


def test_repetition_penalty_changes_a_greedy_answer_only_through_sampling(model):
    nearly_greedy = Sampling(temperature=1e-3)
    plain = generate(model, PROMPTS, max_new_tokens=12, sampling=nearly_greedy, seed=0)
    assert plain.tokens == generate(model, PROMPTS, max_new_tokens=12).tokens
    penalized = generate(
        model, PROMPTS, max_new_tokens=12, sampling=Sampling(top_k=1, repetition_penalty=5.0), seed=0
    )  # fmt: skip
    assert sum(len(set(row)) for row in penalized.tokens) > sum(len(set(row)) for row in plain.tokens)


def test_sampled_pairs_have_the_distribution_of_the_model():
    tiny = random_model(dataclasses.replace(CONFIG, vocab_size=4), seed=3, scale=4.0)
    sampling = Sampling(temperature=3.0, top_p=0.8)
    probabilities = {}
    for path, seen in all_paths(tiny, [1, 2], 2).items():
        chances = [next_token_probabilities(row[None], sampling)[0] for row in seen]
        probabilities[path] = math.prod(chance[token].item() for chance, token in zip(chances, path))
    assert sum(probabilities.values()) == pytest.approx(1)
    num = 4000
    generation = generate(tiny, [[1, 2]] * num, max_new_tokens=2, sampling=sampling, seed=7)
    counts = dict.fromkeys(probabilities, 0)
    for row in generation.tokens:
        counts[tuple(row)] += 1
    possible = [path for path, chance in probabilities.items() if chance > 0]
    assert sum(counts[path] for path in possible) == num  # nothing that top-p has cut off
    assert 5 < len(possible) < 16
    test = stats.chisquare([counts[path] for path in possible], [num * probabilities[path] for path in possible])
    assert test.pvalue > 0.01


def test_log_probabilities_are_the_models_own_whatever_the_sampling(model):
    generation = generate(model, PROMPTS, max_new_tokens=6, sampling=Sampling(temperature=4.0, top_k=5), seed=2)
    for prompt, row, values in zip(PROMPTS, generation.tokens, generation.log_probabilities):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + row]))[0, len(prompt) - 1 : -1].double()
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(row)[:, None])[:, 0]
        assert values == pytest.approx(expected.tolist(), abs=1e-4)


def test_rows_end_each_for_its_own_reason(model):
    free = generate(model, PROMPTS, max_new_tokens=10).tokens
    end_token = free[0][4]
    stop = [free[1][2:5], [40, 40, 40, 40]]
    expected = []
    for row in free:
        for length in range(1, 11):
            if row[length - 1] == end_token:
                expected.append((row[:length], "end", 1))
                break
            if row[:length][-3:] == stop[0]:
                expected.append((row[:length], "stop", 3))
                break
        else:
            expected.append((row, "length", 0))
    assert {how for _, how, _ in expected} == {"end", "stop", "length"}  # the case is worth its test
    generation = generate(model, PROMPTS, max_new_tokens=10, end_token=end_token, stop=stop)
    for row, (tokens, how, ending) in enumerate(expected):
        assert generation.tokens[row] == tokens
        assert generation.finished[row] == how
        assert len(generation.log_probabilities[row]) == len(tokens)
        assert generation.content[row] == tokens[: len(tokens) - ending]


def test_a_stop_sequence_does_not_begin_in_the_prompt(model):
    first, second, *_ = greedy_by_hand(model, PROMPTS[0], 3)[0]
    across = [PROMPTS[0][-1], first]
    assert generate(model, PROMPTS[:1], max_new_tokens=3, stop=[across]).finished == ["length"]
    assert generate(model, PROMPTS[:1], max_new_tokens=3, stop=[[first, second]]).tokens == [[first, second]]


def test_of_two_stop_sequences_that_end_together_the_longer_counts(model):
    free = generate(model, PROMPTS[:1], max_new_tokens=8).tokens[0]
    last = max(i for i in range(1, 8) if free[i] not in free[:i])
    assert last > 1
    generation = generate(model, PROMPTS[:1], max_new_tokens=8, stop=[free[last : last + 1], free[last - 1 : last + 1]])
    assert generation.tokens == [free[: last + 1]]
    assert generation.content == [free[: last - 1]]


def test_a_finished_batch_reads_no_further(model, monkeypatch):
    calls = []
    forward = DecoderLM.forward
    monkeypatch.setattr(DecoderLM, "forward", lambda *a, **k: calls.append(a[1].shape) or forward(*a, **k))
    first = generate(model, PROMPTS[:1], max_new_tokens=1).tokens[0][0]
    calls.clear()
    generate(model, PROMPTS[:1], max_new_tokens=30, end_token=first)
    assert calls == [(1, 3)]
    calls.clear()
    generate(model, PROMPTS[:2], max_new_tokens=4)
    assert calls == [(2, 7), (2, 1), (2, 1), (2, 1)]  # the last token is not read


def test_tokens_stream_as_they_come_and_finished_rows_are_silent(model):
    free = generate(model, PROMPTS, max_new_tokens=8)
    heard = []
    end_token = free.tokens[0][2]
    generation = generate(
        model, PROMPTS, max_new_tokens=8, end_token=end_token, on_token=lambda *event: heard.append(event)
    )
    expected = [(row, generation.tokens[row][step]) for step in range(8) for row in range(3)
                if step < len(generation.tokens[row])]  # fmt: skip
    assert heard == expected
    assert len({len(row) for row in generation.tokens}) > 1
    plain = []
    generate(model, PROMPTS[:1], max_new_tokens=3, on_token=lambda *event: plain.append(event))
    assert plain == [(0, token) for token in free.tokens[0][:3]]


def test_prompts_may_be_a_tensor_and_fill_the_context(model):
    prompt = list(range(40))
    generation = generate(model, torch.tensor([prompt]), max_new_tokens=CONFIG.max_seq - 40)
    assert generation.tokens == generate(model, [prompt], max_new_tokens=24, cache=None).tokens
    assert len(generation.tokens[0]) == 24


def test_dropout_is_off_within_and_every_module_is_in_its_mode_again():
    config = dataclasses.replace(CONFIG, dropout=0.5)
    model = DecoderLM(config, attention="standard").train()
    model.layers[0].eval()
    before = [module.training for module in model.modules()]
    tokens = [generate(model, PROMPTS, max_new_tokens=5).tokens for _ in range(2)]
    assert tokens[0] == tokens[1]
    with pytest.raises(ZeroDivisionError):  # and so after an error of the caller's own
        generate(model, PROMPTS, max_new_tokens=5, on_token=lambda row, token: 1 / 0)
    assert [module.training for module in model.modules()] == before
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("prompts", "options", "error", "message"),
    [
        ([], {}, ValueError, "prompts is empty"),
        ([[1], []], {}, ValueError, r"prompts\[1\] is empty: give the model at least one token"),
        ([1, 2, 3], {}, TypeError, r"prompts must be a list of prompts.*put a single one into \[ \]"),
        (["text"], {}, TypeError, "encode text with a tokenizer"),
        ([["a", "b"]], {}, TypeError, r"prompts\[0\] must hold token numbers, got \['a', 'b'\]"),
        (torch.tensor([1, 2]), {}, ValueError, r"prompts must be integers \(batch, seq\), got torch.int64 \(2,\)"),
        (torch.ones(1, 2), {}, ValueError, r"prompts must be integers .*float32"),
        ([[1, 41]], {}, ValueError, r"prompts\[0\] has token 41, and the vocabulary of model 'tiny' ends at 40"),
        ([[-1]], {}, ValueError, r"prompts\[0\] has token -1"),
        ([[1], [2] * 65], {}, ValueError, r"prompts\[1\] has 65 tokens.*max_seq 64. Shorten the prompt"),
        ([[2] * 60], {"max_new_tokens": 5}, ValueError, r"60 tokens, and with max_new_tokens 5 there would be 65"),
        ([[1]], {"max_new_tokens": 0}, ValueError, "max_new_tokens must be at least 1, got 0"),
        ([[1]], {"max_new_tokens": 2.0}, TypeError, "max_new_tokens must be an int, got 2.0"),
        ([[1]], {"stop": [[]]}, ValueError, r"stop\[0\] is empty"),
        ([[1]], {"stop": ["\n"]}, TypeError, r"stop must be a list of lists of token numbers, got '\\n'"),
        ([[1]], {"stop": [5]}, TypeError, r"stop must be a list of lists .*got 5"),
        ([[1]], {"stop": [[99]]}, ValueError, r"stop\[0\] has token 99"),
        ([[1]], {"end_token": 41}, ValueError, "end_token has token 41"),
        ([[1]], {"cache": "paged"}, ValueError, "cache must be 'static', 'growing' or None, got 'paged'"),
        ([[1]], {"sampling": Sampling(), "seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ([[1]], {"sampling": Sampling(), "seed": 1.5}, TypeError, "seed must be an int or None, got 1.5"),
    ],
    ids=lambda value: None,
)
def test_bad_input_is_refused_with_what_to_do(model, prompts, options, error, message):
    with pytest.raises(error, match=message):
        generate(model, prompts, **{"max_new_tokens": 4, **options})


@pytest.mark.parametrize("sampling", [None, Sampling(), Sampling(top_p=0.9)], ids=["greedy", "plain", "top-p"])
def test_logits_that_are_not_finite_are_an_error(sampling):
    broken = random_model()
    with torch.no_grad():
        broken.head.weight[3] = math.nan
    with pytest.raises(ValueError, match="logits for new token 0 of row 0 are not finite"):
        generate(broken, [[1, 2]], max_new_tokens=3, sampling=sampling, seed=0)
