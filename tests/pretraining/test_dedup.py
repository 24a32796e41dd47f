"""Duplicates, quality filters and splits: against comparison of all pairs, and cases by hand."""

import random

import pytest

from cme295lab.pretraining.corpora import (
    Document,
    apply_filters,
    from_folders,
    generated_table,
    length_outside,
    link_families,
    not_printable,
    overlap,
    remove_duplicates,
    similar_pairs,
    split,
    too_many_repeated_lines,
    too_many_symbols,
)
from cme295lab.pretraining.corpora.clusters import clusters_of
from cme295lab.pretraining.corpora.duplicates import similar_pairs_by_comparison
from cme295lab.pretraining.corpora.quality import (
    repeated_line_share,
    symbol_share,
    table_share,
    unprintable_share,
)


def document(text: str, source: str = "here", **options) -> Document:
    return Document(text, "english", source, **options)


def random_words(rng: random.Random, count: int) -> list[str]:
    return [f"w{rng.randrange(10**6)}" for _ in range(count)]


def edited_texts(seed: int) -> list[str]:
    """Forty texts, and of each a copy in which more and more words are others."""
    rng = random.Random(seed)
    texts = []
    for number in range(40):
        words = random_words(rng, 120)
        copy = list(words)
        for place in rng.sample(range(120), number // 4):
            copy[place] = "other"
        texts += [" ".join(words), " ".join(copy)]
    return texts


def test_near_copies_are_those_that_comparing_all_pairs_finds():
    texts = edited_texts(0)
    exact = similar_pairs_by_comparison(texts, threshold=0.7)
    found = similar_pairs(texts, threshold=0.7)
    assert 10 < len(exact) < 40  # some copies are too different
    missed = [pair for pair in exact if pair not in found]
    assert not [pair for pair in found if pair not in exact]  # candidates are compared
    assert len(missed) <= 1
    assert all(pair.similarity < 0.8 for pair in missed)


def test_similarity_by_hand():
    """Runs of three words: abc bcd cde def against abc bcd cdx dxf: 2 shared of 6."""
    (pair,) = similar_pairs_by_comparison(["a b c d e f", "a b c d x f"], threshold=0.1, words=3)
    assert pair.similarity == pytest.approx(2 / 6)


def test_case_and_punctuation_do_not_make_a_text_another():
    (pair,) = similar_pairs(["The cat, it sat on the mat.", "the cat it sat on the MAT!"])
    assert pair.similarity == 1.0


def test_short_and_wordless_texts_are_compared_whole():
    assert [(p.first, p.second) for p in similar_pairs(["two words", "Two words", "!!!", "...", "", "one"])] == [(0, 1)]


def test_the_first_of_each_cluster_is_kept():
    rng = random.Random(1)
    words = random_words(rng, 100)
    a, b = " ".join(words), " ".join([*words, "more"])
    c = " ".join(random_words(rng, 100))
    kept, report = remove_duplicates([document(a, "a"), document(c, "c"), document(b, "b"), document(c, "c2")])
    assert [item.source for item in kept] == ["a", "c"]
    assert (report.num_documents, report.num_exact, report.num_near) == (4, 1, 1)
    assert report.examples[0][:2] == ("b", "a")
    assert "4 read, 1 copies, 1 near copies, 2 kept" in str(report)


def test_another_seed_finds_the_same_here():
    texts = edited_texts(3)
    assert similar_pairs(texts, threshold=0.8, seed=0) == similar_pairs(texts, threshold=0.8, seed=0)
    assert len(similar_pairs(texts, threshold=0.8, seed=5)) == len(similar_pairs_by_comparison(texts, threshold=0.8))


def test_clusters_equal_a_walk_through_the_links():
    rng = random.Random(0)
    for _ in range(50):
        links = [(rng.randrange(30), rng.randrange(30)) for _ in range(rng.randrange(25))]
        neighbours = {n: {n} for n in range(30)}
        for a, b in links:
            neighbours[a].add(b)
            neighbours[b].add(a)
        reached = set()
        for start in range(30):
            group, waiting = set(), [start]
            while waiting:
                at = waiting.pop()
                if at not in group:
                    group.add(at)
                    waiting += neighbours[at]
            reached.add(tuple(sorted(group)))
        assert clusters_of(30, links) == [list(group) for group in sorted(reached) if len(group) > 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.0}, "threshold must be above 0"),
        ({"threshold": 1.1}, "at most 1"),
        ({"words": 0}, "words must be positive"),
        ({"num_hashes": 8}, "num_hashes must be at least 16"),
    ],
)
def test_duplicates_refuse(options, message):
    with pytest.raises(ValueError, match=message):
        remove_duplicates([document("a b c")], **options)


def test_shares_by_hand():
    assert symbol_share("a+b = c_d") == 3 / 7
    assert repeated_line_share("the same line\nanother line\nthe same line\n}\n}\n") == pytest.approx(1 / 3)
    assert unprintable_share("ab\x00\ufffd\n\té") == pytest.approx(2 / 7)
    assert table_share("'a': 1,\n'b': 0x2,  # two\nx = 3\n") == pytest.approx(2 / 3)
    assert table_share("def f(x):\n    return x\n") == 0
    assert [share("") for share in (symbol_share, repeated_line_share, unprintable_share, table_share)] == [0] * 4


def test_each_document_is_charged_to_the_first_filter_that_drops_it():
    good = "A sentence with enough words in it, and nothing strange."
    documents = [
        document(good, "good"),
        document("short", "short"),
        document("?!" * 40, "symbols"),
        document("the same line\n" * 9, "repeated"),
        document(good + "\x00" * 20, "strange"),
        document("".join(f"{n}: 'x',\n" for n in range(30)), "table"),
        document(good, "lib/tests/x.py#name"),
    ]
    rules = [from_folders(["tests"]), length_outside(20, 1000), generated_table(0.5), too_many_symbols(0.5),
             not_printable(0.01), too_many_repeated_lines(0.5)]  # fmt: skip
    kept, report = apply_filters(iter(documents), rules)
    assert [item.source for item in kept] == ["good"]
    assert [row.num_documents for row in report.dropped] == [1] * 6
    assert report.num_bytes_kept == len(good)
    assert report.num_bytes == sum(item.num_bytes for item in documents)
    table = str(report).splitlines()
    assert len(table) == 8
    assert "in tests" in table[1]
    assert "lib/tests/x.py#name: A sentence" in table[1]


def test_filters_refuse():
    with pytest.raises(ValueError, match=r"largest_share must be between 0 and 1, got 1\.5"):
        too_many_symbols(1.5)
    with pytest.raises(ValueError, match="in order and not negative"):
        length_outside(10, 5)
    with pytest.raises(ValueError, match="must have different names"):
        apply_filters([], [generated_table(0.5), generated_table(0.6)])


def test_a_chapter_that_contains_another_is_of_its_family():
    rng = random.Random(2)
    part, rest, other = (" ".join(random_words(rng, 200)) for _ in range(3))
    documents = [document(part, "z"), document(f"{rest} {part}", "m"), document(other, "a"), document(rest, "k")]
    assert [item.family for item in link_families(documents)] == ["k", "k", "a", "k"]


def test_what_many_documents_share_links_nothing():
    rng = random.Random(3)
    licence = " ".join(random_words(rng, 100))
    documents = [document(f"{licence} {' '.join(random_words(rng, 100))}", f"file {n}") for n in range(60)]
    assert len({item.family for item in link_families(documents)}) == 60


def test_a_split_keeps_families_together_and_moves_nothing():
    documents = [document(f"text {n}", f"source {n}", family=f"family {n // 3}") for n in range(3000)]
    train, validation = split(documents, validation_share=0.1)
    assert {item.family for item in train}.isdisjoint(item.family for item in validation)
    assert 230 < len(validation) < 370  # 100 of 1,000 families of three, with some luck
    fewer = split(documents[::-2], validation_share=0.1)[1]
    assert {item.source for item in fewer} <= {item.source for item in validation}
    larger = split(documents, validation_share=0.2)[1]
    assert {item.source for item in validation} <= {item.source for item in larger}
    assert split(documents, validation_share=0.1, seed=1)[1] != validation


def test_overlap_by_hand():
    """Runs of three of "b c d e": bcd is in the training text, cde is not."""
    measured = overlap([document("a b c d x")], [document("b c d e", "half"), document("u v w", "none")], ngram=3)
    assert measured.share == pytest.approx(1 / 3)
    assert measured.worst == (("half", 0.5),)
    assert "33.33% of 3 3-grams" in str(measured)


def test_splitting_refuses():
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="validation_share must be between 0 and 1"):
            split([document("a")], validation_share=share)
    with pytest.raises(ValueError, match="no words"):
        overlap([document("a")], [])
    with pytest.raises(ValueError, match="ngram must be positive"):
        overlap([document("a")], [document("a")], ngram=0)
    with pytest.raises(ValueError, match="smallest_share must be above 0"):
        link_families([document("a")], smallest_share=0)
