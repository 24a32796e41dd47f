import pytest

from cme295lab.pretraining.corpora import course_corpus
from cme295lab.pretraining.tokenizer import SAMPLES, compression, train_bpe, train_tokenizer


def test_compression_by_hand():
    """Five bytes and two characters of "é€" are five tokens; "abab" is two, of two bytes each."""
    bpe = train_bpe(["ab"], 257, special_tokens=())
    accents, letters = compression(bpe, {"accents": "é€", "letters": ["ab", "ab"]})
    assert (accents.num_bytes, accents.num_characters, accents.num_tokens) == (5, 2, 5)
    assert (accents.bytes_per_token, accents.characters_per_token) == (1.0, 0.4)
    assert (letters.num_bytes, letters.num_tokens, letters.bytes_per_token) == (4, 2, 2.0)
    assert "4 bytes" in str(letters)


def test_a_vocabulary_of_bytes_compresses_nothing():
    rows = compression(train_bpe(["x"], 256, special_tokens=()), SAMPLES)
    assert [row.bytes_per_token for row in rows] == [1.0] * len(SAMPLES)


def test_languages_that_were_not_learned_cost_several_times_as_much():
    texts = [document.text for documents in course_corpus("fast").train.values() for document in documents]
    rows = {row.name: row for row in compression(train_tokenizer(texts, 2000), SAMPLES)}
    assert rows["English"].bytes_per_token > 2.5
    assert rows["English"].bytes_per_token > 1.5 * rows["German"].bytes_per_token
    assert rows["Chinese"].num_tokens > 2.5 * rows["English"].num_tokens  # the same four sentences
    assert rows["Chinese"].characters_per_token < 0.5


def test_compression_refuses_nothing_at_all():
    with pytest.raises(ValueError, match="no text of 'empty'"):
        compression(train_bpe(["ab"], 257, special_tokens=()), {"empty": []})
