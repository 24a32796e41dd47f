"""Text and token numbers: round trips, the end token, files, and what is refused."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, processors
from transformers import AutoTokenizer

from cme295lab.transformer.text import TextTokenizer
from tests.transformer.pretrained.tiny import END, TEXTS, tiny_tokenizer


@given(st.text(max_size=60))
def test_decode_gives_back_any_text(text):
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_encode_is_what_the_library_says_and_merges_words():
    tokenizer = tiny_tokenizer()
    assert tokenizer.encode(TEXTS[0]) == tokenizer.tokenizer.encode(TEXTS[0]).ids
    assert len(tokenizer.encode(TEXTS[0])) < len(TEXTS[0]) / 2
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


def test_end_token_by_number_or_text_and_special_tokens_in_text():
    tokenizer = tiny_tokenizer()
    assert tokenizer.end_token == 0 == TextTokenizer(tokenizer.tokenizer, end_token=0).end_token
    assert TextTokenizer(tokenizer.tokenizer).end_token is None
    assert tokenizer.encode(f"a{END}")[-1] == 0
    assert tokenizer.decode(tokenizer.encode(f"a{END}")) == f"a{END}"
    assert tokenizer.decode(tokenizer.encode(f"a{END}"), skip_special=True) == "a"


def test_tokens_around_a_text_can_be_left_out():
    library = Tokenizer(models.WordLevel({"<s>": 0, "a": 1, "?": 2}, unk_token="?"))
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = TextTokenizer(library)
    assert tokenizer.encode("a") == [0, 1]
    assert tokenizer.encode("a", special=False) == [1]
    assert tokenizer.encode_batch(["a"], special=False) == [[1]]


def test_vocab_size_is_one_more_than_the_largest_number():
    assert tiny_tokenizer().vocab_size == tiny_tokenizer().tokenizer.get_vocab_size()
    assert TextTokenizer(Tokenizer(models.WordLevel({"a": 3, "b": 9}, unk_token="a"))).vocab_size == 10


def test_decode_takes_tensors():
    assert tiny_tokenizer().decode(torch.tensor(tiny_tokenizer().encode("a + b"))) == "a + b"


def test_token_text_shows_parts_of_characters_as_bytes():
    tokenizer = tiny_tokenizer()
    parts = tokenizer.encode("€")  # e2 82 ac in UTF-8
    assert [tokenizer.token_text(part) for part in parts] == ["\\xe2", "\\x82", "\\xac"]
    assert tokenizer.token_text(tokenizer.encode(" the")[0]).startswith(" ")
    assert tokenizer.token_text(0) == END


@pytest.mark.parametrize("file", [False, True], ids=["folder", "file"])
def test_save_and_load_give_the_same_tokenizer(tmp_path, file):
    path = tmp_path / "new" / "tokenizer.json" if file else tmp_path / "new"
    tiny_tokenizer().save(path)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    assert TextTokenizer.load(path) == tiny_tokenizer()
    assert TextTokenizer(tiny_tokenizer().tokenizer) != tiny_tokenizer()


def test_transformers_loads_what_was_saved(tmp_path):
    tiny_tokenizer().save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert [theirs(text)["input_ids"] for text in TEXTS] == tiny_tokenizer().encode_batch(TEXTS)
    assert theirs.eos_token_id == tiny_tokenizer().end_token
    theirs.save_pretrained(tmp_path / "theirs")
    again = TextTokenizer.load(tmp_path / "theirs")
    assert again.encode_batch(TEXTS) == tiny_tokenizer().encode_batch(TEXTS)
    assert again.end_token == 0


def test_load_switches_truncation_and_padding_off(tmp_path):
    tiny_tokenizer().save(tmp_path)
    library = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    library.enable_truncation(2)
    library.enable_padding(length=50)
    library.save(str(tmp_path / "tokenizer.json"))
    assert TextTokenizer.load(tmp_path).encode(TEXTS[0]) == tiny_tokenizer().encode(TEXTS[0])


def test_load_reads_an_end_token_with_options_and_does_without_one(tmp_path):
    tiny_tokenizer().save(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"eos_token": {"content": END, "lstrip": False}}))
    assert TextTokenizer.load(tmp_path).end_token == 0
    config.unlink()
    assert TextTokenizer.load(tmp_path).end_token is None


def test_bad_arguments_are_named():
    tokenizer = tiny_tokenizer()
    with pytest.raises(TypeError, match=r"tokenizers.Tokenizer, got str"):
        TextTokenizer("bpe")
    with pytest.raises(ValueError, match=r"'<eos>' is not among the \d+ tokens"):
        TextTokenizer(tokenizer.tokenizer, end_token="<eos>")
    with pytest.raises(ValueError, match=r"end_token has token 5000"):
        TextTokenizer(tokenizer.tokenizer, end_token=5000)
    with pytest.raises(TypeError, match=r"end_token must be"):
        TextTokenizer(tokenizer.tokenizer, end_token=1.0)
    with pytest.raises(TypeError, match=r"encode_batch"):
        tokenizer.encode(["a"])
    with pytest.raises(TypeError, match=r"texts must be strings"):
        tokenizer.encode_batch(["a", 1])


@pytest.mark.parametrize("number", [-1, 300, 10**12])
def test_decode_refuses_numbers_that_are_no_tokens(number):
    with pytest.raises(ValueError, match=f"ids has token {number}, which is not in the vocabulary"):
        tiny_tokenizer().decode([1, number])


def test_load_names_the_file_that_is_missing_or_damaged(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer at .*tokenizer.json"):
        TextTokenizer.load(tmp_path)
    tiny_tokenizer().save(tmp_path)
    for text in ("{", "[1]", '{"eos_token": 3}', '{"eos_token": {}}'):
        (tmp_path / "tokenizer_config.json").write_text(text)
        with pytest.raises(ValueError, match=r"tokenizer_config.json is damaged"):
            TextTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(ValueError, match=r"tokenizer.json is not a tokenizer"):
        TextTokenizer.load(tmp_path)
