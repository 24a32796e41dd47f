"""What a model says by heart: passages against a search by hand, exposure by its definition, canaries planted."""

import math

import numpy as np
import pytest
import torch

from cme295lab.pretraining.memorization import (
    Canary,
    VerbatimIndex,
    exposure,
    exposure_of_rank,
    extract,
    memorization_experiment,
    rank_of,
    secret_log_probabilities,
)
from tests.pretraining.runs import tiny_model


def _contains(document, passage):
    n = len(passage)
    return any(list(document[i : i + n]) == list(passage) for i in range(len(document) - n + 1))


@pytest.mark.parametrize("seed", range(6))
def test_longest_span_and_ngrams_equal_a_search_through_everything(seed):
    draw = np.random.default_rng(seed)
    documents = [draw.integers(0, 3, draw.integers(1, 30)).tolist() for _ in range(5)]
    text = draw.integers(0, 4, 17).tolist()
    index = VerbatimIndex(documents)
    lengths = [
        max(n for n in range(len(text) - i + 1) if n == 0 or any(_contains(d, text[i : i + n]) for d in documents))
        for i in range(len(text))
    ]
    assert [index.longest_match(text, i).length for i in range(len(text))] == lengths
    span = index.longest_span(text)
    assert span.length == max(lengths)
    there = documents[span.document][span.document_start : span.document_start + span.length]
    assert there == text[span.start : span.start + span.length]
    for n in (1, 2, 4):
        grams = [text[i : i + n] for i in range(len(text) - n + 1)]
        found = sum(any(_contains(d, gram) for d in documents) for gram in grams) / len(grams)
        assert index.share_of_ngrams(text, n) == pytest.approx(found)


def test_passages_do_not_reach_across_documents():
    index = VerbatimIndex([[1, 2, 3], [4, 5, 6]])
    span = index.longest_span([9, 2, 3, 4, 5, 9])
    assert (span.length, span.start, span.document, span.document_start) == (2, 1, 0, 1)
    assert index.longest_span([9, 9]).length == 0


def test_bad_documents_texts_and_n_are_refused():
    for documents in ([], [[1], []]):
        with pytest.raises(ValueError, match="documents must not be empty"):
            VerbatimIndex(documents)
    with pytest.raises(ValueError, match="not negative"):
        VerbatimIndex([[1, -1]])
    index = VerbatimIndex([[1, 2]])
    with pytest.raises(ValueError, match="tokens is empty"):
        index.longest_span([])
    with pytest.raises(ValueError, match="n must be 1 to 2"):
        index.share_of_ngrams([1, 2], 3)


def test_exposure_by_its_definition():
    assert [exposure_of_rank(rank, 8) for rank in (1, 2, 4, 8)] == [3, 2, 1, 0]
    assert rank_of([-3.0, -1.0, -2.0], 0) == 3
    assert rank_of([-1.0, -1.0], 0) == 2
    mean = np.mean([exposure_of_rank(rank, 4096) for rank in range(1, 4097)])
    assert mean == pytest.approx(1 / math.log(2), abs=0.01)  # of secrets that the model knows nothing of
    with pytest.raises(ValueError, match="rank must be 1 to 8"):
        exposure_of_rank(0, 8)


def test_log_probabilities_are_sums_over_single_steps():
    model, prefix = tiny_model().eval(), [3, 1, 4]
    secrets = [[1, 5], [9, 2], [6, 5]]
    found = secret_log_probabilities(model, prefix, secrets)
    for secret, value in zip(secrets, found, strict=True):
        expected = 0.0
        for i, token in enumerate(secret):
            logits = model(torch.tensor([prefix + secret[:i]]))[0, -1]
            expected += logits.log_softmax(-1)[token].item()
        assert value == pytest.approx(expected, abs=1e-5)
    best = max(range(3), key=found.__getitem__)
    canary = Canary(prefix=(3, 1, 4), secret=tuple(secrets[best]))
    assert exposure(model, canary, secrets) == pytest.approx(math.log2(3))


def test_candidates_without_the_secret_and_of_several_lengths_are_refused():
    model = tiny_model().eval()
    with pytest.raises(ValueError, match="must contain"):
        exposure(model, Canary(prefix=(1,), secret=(2,)), [[3]])
    with pytest.raises(ValueError, match="one length"):
        secret_log_probabilities(model, [1], [[2], [3, 4]])
    with pytest.raises(ValueError, match="repetitions must be different"):
        memorization_experiment((4, 4))
    with pytest.raises(ValueError, match="profile must be"):
        memorization_experiment(profile="slow")


def test_extraction_is_greedy_decoding():
    model = tiny_model().eval()
    said = extract(model, [3, 1], 4)
    for i, token in enumerate(said):
        assert int(model(torch.tensor([[3, 1, *said[:i]]]))[0, -1].argmax()) == token


def test_what_is_repeated_often_leaks_and_what_is_not_there_does_not():
    result = memorization_experiment()
    means = {count: np.mean(values) for count, values in result.exposure_bits.items()}
    assert list(means) == [0, 1, 4, 16, 64]
    assert all(len(values) == 2 for values in result.exposure_bits.values())
    assert means[64] > 0.8 * result.most_bits  # the likeliest of 1,024, or nearly
    assert means[64] > means[16] - 1e-9 > means[4]
    assert means[0] < 4
    assert result.extracted[64] >= result.extracted[0] == 0
