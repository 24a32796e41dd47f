"""Byte-pair encoding in plain Python against a case by hand, its own plain version, and the `tokenizers` library."""

import itertools
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from cme295lab.pretraining.corpora import course_corpus
from cme295lab.pretraining.tokenizer import Bpe, pieces, train_bpe, train_tokenizer
from cme295lab.pretraining.tokenizer.bpe import BYTE_ORDER
from cme295lab.transformer.text import TextTokenizer

HUG = ["hug"] * 10 + [" pug"] * 5 + ["pun"] * 12 + ["bun"] * 4 + ["hugs"] * 5


@pytest.fixture(scope="module")
def course_texts() -> list[str]:
    texts = [document.text for documents in course_corpus("fast").train.values() for document in documents]
    return texts[::3]


@pytest.fixture(scope="module")
def course_bpe(course_texts) -> Bpe:
    return train_bpe(course_texts, 1000)


def library_merges(tokenizer: TextTokenizer) -> list[tuple[bytes, bytes]]:
    """The merges of the library's file, its letters turned back into bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    byte_of = dict(zip(letters, BYTE_ORDER))
    merges = json.loads(tokenizer.tokenizer.to_str())["model"]["merges"]
    return [tuple(bytes(byte_of[letter] for letter in side) for side in merge) for merge in merges]


def test_bpe_by_hand():
    """Pairs, with their counts: u+g 20, u+n 16, h+u 15, p+u 17, g+s 5, ..., so "ug" is first.

    Then h+ug 15, u+n 16, p+u 12, ...: "un"; then h+ug 15; p+un 12.
    """
    bpe = train_bpe(HUG, 256 + 4, special_tokens=())
    assert bpe.merges == ((b"u", b"g"), (b"u", b"n"), (b"h", b"ug"), (b"p", b"un"))
    vocabulary = bpe.vocabulary
    assert [vocabulary[number] for number in bpe.encode("hugs bun")] == [b"hug", b"s", b" ", b"b", b"un"]


def test_ties_go_to_the_smaller_numbers():
    """All pairs occur once. Numbers follow the order of the bytes' letters: "!" before "a", "a" before "b"."""
    assert train_bpe(["ba", "ab", "cc"], 258, special_tokens=()).merges == ((b"a", b"b"), (b"b", b"a"))
    assert train_bpe(["ab", "!?"], 257, special_tokens=()).merges == ((b"!", b"?"),)


def test_a_pair_that_overlaps_itself():
    """In "aaaaa" the pair stands at four places, and two are merged; of aa+aa and aa+a the smaller numbers are next."""
    bpe = train_bpe(["aaaaa"], 258, special_tokens=())
    assert bpe.merges == ((b"a", b"a"), (b"aa", b"a"))
    assert [bpe.vocabulary[number] for number in bpe.encode("aaaaaaa")] == [b"aa", b"aa", b"aaa"]


def test_both_ways_of_training_agree_with_the_library_on_random_words():
    """Few letters: many ties, many pairs that overlap themselves."""
    rng = random.Random(0)
    for letters in ("ab", "abc", "aé", "01 +"):
        for _ in range(12):
            text = " ".join("".join(rng.choice(letters) for _ in range(rng.randint(1, 15))) for _ in range(60))
            size = 257 + rng.randint(1, 20)
            by_library = library_merges(train_tokenizer([text], size))
            assert list(train_bpe([text], size).merges) == by_library
            assert list(train_bpe([text], size, method="naive").merges) == by_library


def test_merges_and_numbers_are_the_librarys_on_the_course_corpus(course_texts, course_bpe):
    fast = train_tokenizer(course_texts, course_bpe.vocab_size)
    assert list(course_bpe.merges) == library_merges(fast)
    assert course_bpe.vocab_size == fast.vocab_size == 1000
    for text in [*course_texts[::12], "Größe: 7 °C, 日本語, 🙂<|end|>\n\n\t x  y", "", " ", "'s 's"]:
        assert course_bpe.encode(text) == fast.encode(text)
        assert course_bpe.decode(course_bpe.encode(text)) == text


def test_naive_and_incremental_learn_the_same_from_the_course_corpus(course_texts):
    some = course_texts[::20]
    assert train_bpe(some, 310, method="naive") == train_bpe(some, 310)


def test_the_order_of_texts_does_not_matter(course_texts):
    some = course_texts[:30]
    assert train_bpe(some, 400) == train_bpe(some[::-1], 400)
    assert train_tokenizer(some, 400) == train_tokenizer(some[::-1], 400)


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=40))
def test_any_text_comes_back(course_bpe, text):
    assert course_bpe.decode(course_bpe.encode(text)) == text
    assert course_bpe.decode(course_bpe.encode(text, special=False)) == text


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=40))
def test_any_bytes_come_back(course_bpe, data):
    assert course_bpe.decode_bytes(course_bpe.encode_bytes(data)) == data


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(codec="utf-8", max_codepoint=0x2FFF) | st.sampled_from(" \n\t'sd1ab.²Ⅷ\x1c\x85"),
                    max_size=30))  # fmt: skip
def test_pieces_are_those_of_the_library(text):
    library = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    assert list(pieces(text)) == [text[start:stop] for _, (start, stop) in library]


def test_pieces_by_hand():
    assert list(pieces("We'll pay  $30,\n\n  ok?")) == ["We", "'ll", " pay", " ", " $", "30", ",", "\n\n ", " ok", "?"]


def test_encoding_applies_the_earliest_merge_first(course_bpe):
    """Against a plain search: at each step, all pairs of the word, the one with the lowest rank."""
    rank = {merge: number for number, merge in enumerate(course_bpe.merges)}
    for word in (" understanding", " self", "return", " 1234567890", " Donaudampfschiff"):
        tokens = [bytes([byte]) for byte in word.encode()]
        while ranked := [rank[pair] for pair in itertools.pairwise(tokens) if pair in rank]:
            left, right = course_bpe.merges[min(ranked)]
            joined, at = [], 0
            while at < len(tokens):
                both = tokens[at : at + 2] == [left, right]
                joined.append(left + right if both else tokens[at])
                at += 2 if both else 1
            tokens = joined
        assert [course_bpe.vocabulary[number] for number in course_bpe.encode(word)] == tokens


def test_special_tokens_are_one_number_and_merge_with_nothing():
    bpe = train_bpe(["aa aa aa"], 261, special_tokens=("<|end|>", "<|end|>!", "[x]"))
    assert bpe.encode("aa<|end|>aa") == [*bpe.encode("aa"), 0, *bpe.encode("aa")]
    assert bpe.encode("<|end|>![x]") == [1, 2]  # the longer of two
    assert bpe.encode("[x]", special=False) == [bpe.vocabulary.index(letter.encode()) for letter in "[x]"]
    assert bpe.decode([0, 2]) == "<|end|>[x]"


def test_half_a_character_becomes_the_replacement_character():
    bpe = train_bpe(["x x"], 258)
    assert bpe.decode(bpe.encode("é")[:1]) == "\N{REPLACEMENT CHARACTER}"
    assert bpe.decode_bytes(bpe.encode("é")[:1]) == b"\xc3"


@pytest.mark.parametrize("train", [train_bpe, train_tokenizer], ids=["plain", "library"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["abc"], 200), "vocab_size must be at least 257"),
        ((["abc"], 257, ("<a>", "<b>")), "at least 258"),
        (([], 300), "texts are empty"),
        (([""], 300), "texts are empty"),
        ((["abc"], 300), "only have pairs for 259 tokens: give more text, or vocab_size=259"),
        ((["abc", "\ud800"], 300), "text 1 has half a surrogate pair"),
        ((["abc"], 300, ("<a>", "<a>")), "must be different"),
        ((["abc"], 300, ("",)), "not empty"),
    ],
)
def test_training_refuses(train, arguments, message):
    with pytest.raises(ValueError, match=message):
        train(*arguments)


@pytest.mark.parametrize("train", [train_bpe, train_tokenizer], ids=["plain", "library"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("abc", 300), "texts must be several strings"),
        ((["abc", 3], 300), "text 1 must be a string, got int"),
        ((["abc"], 300, "<|end|>"), "special_tokens must be a sequence of strings"),
    ],
)
def test_training_refuses_other_types(train, arguments, message):
    with pytest.raises(TypeError, match=message):
        train(*arguments)


def test_bpe_refuses():
    bpe = train_bpe(["aa aa"], 258)
    with pytest.raises(ValueError, match="ids holds 258 at 1, which is no token: the vocabulary has 0 to 257"):
        bpe.decode([0, 258])
    with pytest.raises(ValueError, match="ids holds -1 at 0"):
        bpe.decode([-1])
    with pytest.raises(TypeError, match="for bytes there is encode_bytes"):
        bpe.encode(b"aa")
    with pytest.raises(ValueError, match="half a surrogate pair"):
        bpe.encode("\udcff")
    with pytest.raises(ValueError, match="method must be one of incremental, naive"):
        train_bpe(["aa"], 257, method="fast")
    with pytest.raises(ValueError, match=r"pair 1 is \(257, 258\), but only tokens 1 to 257 exist yet"):
        Bpe(pairs=((1, 2), (257, 258)), special_tokens=("<|end|>",))
