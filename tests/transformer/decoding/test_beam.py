"""Beam search: a tree worked by hand, all answers enumerated, GNMT's numbers, endings, and the tree that it leaves."""

import itertools
import math

import pytest
import torch

from cme295lab.transformer import DecoderLM, ModelConfig
from cme295lab.transformer.decoding import beam_search, generate, length_penalty_divisor
from tests.transformer.decoding.models import CONFIG, all_paths, context_free_model, random_model

TINY = ModelConfig(vocab_size=5, num_layers=2, dim=32, num_heads=4, num_kv_heads=2, mlp_dim=48, max_seq=32, name="five")


def test_gnmt_penalty_gives_the_published_numbers():
    assert length_penalty_divisor(10, 0.6) == pytest.approx(1.732862, abs=5e-7)
    assert length_penalty_divisor(20, 0.6) == pytest.approx(2.354362, abs=5e-7)
    for form in ("gnmt", "power"):
        assert length_penalty_divisor(1, 0.7, form) == 1
        assert length_penalty_divisor(13, 0.0, form) == 1
    assert length_penalty_divisor(7, 1.0, "power") == 7


def test_one_beam_is_greedy_decoding():
    model = random_model()
    result = beam_search(model, [3, 1, 4], num_beams=1, max_new_tokens=10)
    greedy = generate(model, [[3, 1, 4]], max_new_tokens=10)
    assert [beam.tokens for beam in result.beams] == greedy.tokens
    assert result.beams[0].log_probability == pytest.approx(sum(greedy.log_probabilities[0]), abs=1e-4)


def test_two_beams_by_hand():
    # Always (0.5, 0.3, 0.2), token 1 ends. Step 0: "0" .5, "1" .3 ends, "2" .2 goes on as the second beam.
    # Step 1: 00 .25, 01 .15 ends, then 02 .10 (before 20, a tie), 20 .10. Answers: "1", "0 1".
    model = context_free_model([math.log(value) for value in (0.5, 0.3, 0.2)])
    result = beam_search(model, [0], num_beams=2, max_new_tokens=2, end_token=1, length_penalty=0.0)
    tree = [(node.parent, node.step, node.token, node.kept, node.ends) for node in result.tree]
    assert tree[:3] == [(None, 0, 0, True, False), (None, 0, 1, True, True), (None, 0, 2, True, False)]
    # Step 1 is the last: all end, and only the best two of them count.
    assert tree[3:5] == [(0, 1, 0, True, True), (0, 1, 1, True, True)]
    assert [node.kept for node in result.tree[5:]] == [False, False]
    chances = [math.exp(node.log_probability) for node in result.tree]
    assert chances == pytest.approx([0.5, 0.3, 0.2, 0.25, 0.15, 0.1, 0.1], abs=1e-6)
    assert [beam.tokens for beam in result.beams] == [[1], [0, 0]]
    assert [math.exp(beam.score) for beam in result.beams] == pytest.approx([0.3, 0.25], abs=1e-6)
    assert result.path(result.beams[1].node) == [0, 3]


def test_the_penalty_decides_between_short_and_long():
    model = context_free_model([math.log(value) for value in (0.5, 0.3, 0.2)])
    for alpha, form, best in ((0.0, "gnmt", [1]), (1.0, "power", [0, 0]), (-1.0, "power", [1])):
        result = beam_search(
            model, [0], num_beams=2, max_new_tokens=2, end_token=1, length_penalty=alpha, length_penalty_form=form
        )
        assert result.beams[0].tokens == best
        for beam in result.beams:
            divisor = len(beam.tokens) ** alpha if form == "power" else ((5 + len(beam.tokens)) / 6) ** alpha
            assert beam.score == pytest.approx(beam.log_probability / divisor)
    # 0.3 against 0.25: log 0.3 = -1.204, log 0.25 = -1.386; GNMT turns the two round at (7/6)^alpha = 1.151.
    for alpha, best in ((0.90, [1]), (0.93, [0, 0])):
        result = beam_search(model, [0], num_beams=2, max_new_tokens=2, end_token=1, length_penalty=alpha)
        assert result.beams[0].tokens == best


@pytest.mark.parametrize("seed", range(4))
def test_with_beams_enough_the_answers_are_the_best_of_all(seed):
    model = random_model(TINY, seed=seed, scale=4.0)
    scores = {}
    for path, seen in all_paths(model, [2, 0], 3).items():
        values = [row.log_softmax(-1)[token].item() for row, token in zip(seen, path)]
        length = path.index(4) + 1 if 4 in path else 3
        scores[path[:length]] = sum(values[:length]) / ((5 + length) / 6) ** 0.6
    best = sorted(scores, key=scores.get, reverse=True)[:25]
    result = beam_search(model, [2, 0], num_beams=64, max_new_tokens=3, end_token=4)
    assert [tuple(beam.tokens) for beam in result.beams[:25]] == best
    assert [beam.score for beam in result.beams[:25]] == pytest.approx([scores[path] for path in best], abs=1e-4)


def test_more_beams_find_what_greedy_misses():
    model = random_model()
    gains = []
    for first in range(5):
        one, eight = (beam_search(model, [first], num_beams=num, max_new_tokens=8).beams[0] for num in (1, 8))
        gains.append(eight.log_probability - one.log_probability)
    assert max(gains) > 0.1


@pytest.mark.parametrize("cache", ["static", "growing", None], ids=str)
def test_the_prompt_is_read_once_and_not_by_every_beam(monkeypatch, cache):
    shapes, forward = [], DecoderLM.forward
    monkeypatch.setattr(DecoderLM, "forward", lambda *a, **k: shapes.append(tuple(a[1].shape)) or forward(*a, **k))
    beam_search(random_model(), [3, 1, 4], num_beams=5, max_new_tokens=3, cache=cache)
    assert shapes == ([(1, 3), (5, 1), (5, 1)] if cache else [(1, 3), (5, 4), (5, 5)])


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 2.0])
def test_all_caches_give_the_same_answers_and_trees(length_penalty):
    model = random_model()
    results = [
        beam_search(
            model, [3, 1, 4], num_beams=4, max_new_tokens=9, end_token=7, length_penalty=length_penalty, cache=cache
        )
        for cache in ("static", "growing", None)
    ]
    for other in results[1:]:
        assert [beam.tokens for beam in other.beams] == [beam.tokens for beam in results[0].beams]
        assert [(node.parent, node.token, node.kept) for node in other.tree] == [
            (node.parent, node.token, node.kept) for node in results[0].tree
        ]


def test_the_tree_holds_every_candidate_and_adds_up():
    model = random_model()
    result = beam_search(model, [3, 1, 4], num_beams=3, max_new_tokens=7, end_token=7)
    for step in range(7):
        level = [node for node in result.tree if node.step == step]
        assert len(level) == 6
        assert [node.log_probability for node in level] == sorted((n.log_probability for n in level), reverse=True)
        assert sum(node.kept and not node.ends for node in level) == (3 if step < 6 else 0)
    assert [node.id for node in result.tree] == list(range(42))
    for node in result.tree:
        path = [result.tree[i] for i in result.path(node.id)]
        assert [at.step for at in path] == list(range(node.step + 1))
        assert all(at.kept and not at.ends for at in path[:-1])
        tokens = [3, 1, 4] + [at.token for at in path]
        with torch.no_grad():
            rows = model(torch.tensor([tokens]))[0, 2:-1].double().log_softmax(-1)
        total = rows.gather(-1, torch.tensor(tokens[3:])[:, None]).sum().item()
        assert node.log_probability == pytest.approx(total, abs=1e-3)
    for beam in result.beams:
        assert [result.tree[i].token for i in result.path(beam.node)] == beam.tokens


def test_stopping_early_may_miss_the_better_answer_that_patience_finds():
    found = 0
    for seed in range(16):
        model = random_model(TINY, seed=seed, scale=4.0)
        options = dict(num_beams=2, max_new_tokens=8, end_token=4, length_penalty=1.5)
        hasty, patient = (beam_search(model, [1], stop_early=early, **options) for early in (True, False))
        assert patient.beams[0].score >= hasty.beams[0].score
        assert len(patient.tree) >= len(hasty.tree)
        found += patient.beams[0].score > hasty.beams[0].score + 1e-6
    assert found >= 2


def test_patience_ends_when_nothing_can_get_better():
    # One token has nearly everything, and it is the end token: after two steps no other answer can pass.
    model = context_free_model([8.0, 0.0, 0.0, 0.0])
    result = beam_search(model, [0], num_beams=2, max_new_tokens=30, end_token=0, length_penalty=0.0)
    assert max(node.step for node in result.tree) == 1
    assert result.beams[0].tokens == [0]
    longer = beam_search(model, [0], num_beams=2, max_new_tokens=30, end_token=0, length_penalty=3.0)
    assert max(node.step for node in longer.tree) > 1  # a strong penalty leaves hope to longer ones


def test_a_vocabulary_smaller_than_the_beams():
    model = context_free_model([0.5, 0.0])
    result = beam_search(model, [0], num_beams=5, max_new_tokens=3)
    chances = [math.exp(beam.log_probability) for beam in result.beams]
    p = 1 / (1 + math.exp(-0.5))
    expected = sorted((math.prod(path) for path in itertools.product((p, 1 - p), repeat=3)), reverse=True)
    assert chances == pytest.approx(expected[:5], abs=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_beams": 0}, ValueError, "num_beams must be an integer of at least 1, got 0"),
        ({"num_beams": 2.0}, ValueError, "num_beams must be an integer of at least 1, got 2.0"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens must be at least 1, got 0"),
        ({"max_new_tokens": 63}, ValueError, r"prompt has 2 tokens.*max_seq 64"),
        ({"prompt": []}, ValueError, "prompt is empty"),
        ({"prompt": [41]}, ValueError, "prompt has token 41"),
        ({"prompt": ["a"]}, TypeError, "prompt must hold token numbers"),
        ({"prompt": torch.ones(2)}, ValueError, r"prompt must be integers \(seq,\), got torch.float32"),
        ({"end_token": -2}, ValueError, "end_token has token -2"),
        ({"length_penalty": math.nan}, ValueError, "length_penalty must be a finite number, got nan"),
        ({"length_penalty_form": "root"}, ValueError, "must be 'gnmt' or 'power', got 'root'"),
        ({"cache": "none"}, ValueError, "cache must be"),
    ],
    ids=lambda value: None,
)
def test_bad_input_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        beam_search(random_model(), **{"prompt": [1, 2], "num_beams": 2, "max_new_tokens": 4, **options})


def test_a_length_below_one_has_no_penalty():
    with pytest.raises(ValueError, match="length must be at least 1 token, got 0"):
        length_penalty_divisor(0, 0.6)


def test_logits_that_are_not_finite_are_an_error():
    broken = random_model(CONFIG)
    with torch.no_grad():
        broken.head.weight[3] = math.nan
    with pytest.raises(ValueError, match="logits for new token 0 are not finite"):
        beam_search(broken, [1], num_beams=2, max_new_tokens=3)
