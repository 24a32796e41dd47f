"""A next-token distribution before and after reshaping: worked by hand, and against plain sums over the vocabulary."""

import math

import pytest
import torch

from cme295lab.transformer.decoding import Sampling
from cme295lab.widgets.decoding_scenario import decoding_scenario, visible

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def letter(token: int) -> str:
    return LETTERS[token]


def test_three_tokens_by_hand() -> None:
    """softmax((2, 1, 0)) at temperatures 1 and 1/2, with their entropies in nats."""
    found = decoding_scenario(torch.tensor([1.0, 2.0, 0.0]), Sampling(temperature=0.5), token_text=letter)
    assert [chance.text for chance in found.chances] == ["b", "a", "c"]
    assert [chance.before for chance in found.chances] == pytest.approx([0.665241, 0.244728, 0.090031], abs=1e-6)
    assert [chance.after for chance in found.chances] == pytest.approx([0.866813, 0.117310, 0.015876], abs=1e-6)
    assert found.entropy_before_nats == pytest.approx(0.832396, abs=1e-6)
    assert found.entropy_after_nats == pytest.approx(0.441057, abs=1e-6)
    assert (found.num_kept, found.vocab_size) == (3, 3)
    assert found.rest_before == found.rest_after == pytest.approx(0, abs=1e-12)


def test_greedy_keeps_one_token_and_no_doubt() -> None:
    found = decoding_scenario(torch.tensor([1.0, 2.0, 0.0]), None, token_text=letter)
    assert [chance.after for chance in found.chances] == [1.0, 0.0, 0.0]
    assert [chance.kept for chance in found.chances] == [True, False, False]
    assert found.entropy_after_nats == 0
    assert found.num_kept == 1


@pytest.mark.parametrize(
    ("sampling", "num_kept"),
    [
        (Sampling(top_k=2), 2),
        (Sampling(top_p=0.7), 2),  # 0.4 + 0.3 reach it exactly
        (Sampling(top_p=0.71), 3),  # the token that crosses is kept
        (Sampling(min_p=0.5), 3),  # at least 0.2
        (Sampling(top_k=3, min_p=0.7), 2),
    ],
    ids=["top_k", "top_p", "crossing", "min_p", "both"],
)
def test_what_is_cut_off_by_hand(sampling: Sampling, num_kept: int) -> None:
    before = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    found = decoding_scenario(before.log(), sampling, token_text=letter)
    assert found.num_kept == num_kept == sum(chance.kept for chance in found.chances)
    kept = before[:num_kept] / before[:num_kept].sum()
    assert [chance.after for chance in found.chances[:num_kept]] == pytest.approx(kept.tolist())


def test_bars_and_rest_sum_to_one_and_entropy_is_of_all_tokens() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(26, generator=generator) * 2
    found = decoding_scenario(logits, Sampling(temperature=1.7, top_k=11), token_text=letter, num_bars=7)
    assert len(found.chances) == 7
    assert sum(chance.before for chance in found.chances) + found.rest_before == pytest.approx(1)
    assert sum(chance.after for chance in found.chances) + found.rest_after == pytest.approx(1)
    assert found.rest_after > 0.01  # four tokens that are kept have no bar
    p = logits.double().softmax(-1).tolist()
    assert found.entropy_before_nats == pytest.approx(-sum(q * math.log(q) for q in p))
    best = sorted(range(26), key=lambda token: -p[token])[:7]
    assert [chance.token for chance in found.chances] == best


def test_blanks_are_made_visible() -> None:
    assert visible(" a\n\tb") == "␣a↵⇥b"
    assert visible("") == "∅"


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="num_bars must be at least 1"):
        decoding_scenario(torch.zeros(3), None, token_text=letter, num_bars=0)
    with pytest.raises(ValueError, match="repetition_penalty"):
        decoding_scenario(torch.zeros(3), Sampling(repetition_penalty=1.2), token_text=letter)
