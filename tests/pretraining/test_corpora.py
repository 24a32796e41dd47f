import ast
import re
from collections import Counter
from datetime import date

import pytest

from cme295lab.pretraining.corpora import (
    Corpus,
    Document,
    arithmetic,
    course_corpus,
    mixture_weights,
    overlap,
    published_after,
    published_until,
    python_history,
    stories,
    temperature_weights,
)
from cme295lab.pretraining.corpora import course as course_module
from cme295lab.pretraining.corpora.python_library import language_reference, standard_library


@pytest.fixture(scope="module")
def course() -> Corpus:
    return course_corpus("fast")


def test_the_course_corpus_has_four_domains_on_both_sides(course):
    assert course.domains == ("english", "code", "arithmetic", "stories")
    for part in (course.train, course.validation):
        assert all(part[domain] and {d.domain for d in part[domain]} == {domain} for domain in course.domains)
        assert all(document.text.strip() for documents in part.values() for document in documents)


def test_the_course_corpus_is_the_same_each_time(course):
    again = course_module._course_corpus.__wrapped__("fast")
    assert again.fingerprint == course.fingerprint
    assert again.train == course.train
    assert course_corpus("fast") is course
    assert course.fingerprint in str(course)


def test_no_family_is_on_both_sides(course):
    sides = [{document.family for documents in part.values() for document in documents}
             for part in (course.train, course.validation)]  # fmt: skip
    assert sides[0].isdisjoint(sides[1])


def test_validation_text_of_english_and_code_is_not_in_the_training_text(course):
    everything = [document for documents in course.train.values() for document in documents]
    for domain, most in (("english", 0.01), ("code", 0.03)):
        assert overlap(everything, course.validation[domain]).share < most
    assert overlap(everything, course.validation["stories"]).share > 0.05  # made of the same sentences, and says so


def test_long_docstrings_are_english_and_no_longer_code():
    library = standard_library(one_in=16)
    for file in library.code:
        ast.parse(file.text)  # what is left is still Python
    code = " ".join(word for file in library.code for word in file.text.split())
    assert len(library.docstrings) > 20
    for docstring in library.docstrings:
        assert len(docstring.text) >= 200
        assert " ".join(docstring.text.split()) not in code, docstring.source
    families = {file.family for file in library.code}
    assert {docstring.family for docstring in library.docstrings} <= families


def test_the_report_says_why_files_were_left_out():
    report = standard_library(one_in=16).report
    assert report.num_kept == report.num_documents - sum(row.num_documents for row in report.dropped) > 5
    text = str(report)
    for reason in ("tests", "generated table", "does not parse", "kept"):
        assert reason in text


def test_the_reference_is_what_help_prints():
    chapters = {document.source: document.text for document in language_reference()}
    assert chapters["pydoc_data#if"].startswith('The "if" statement\n***')
    assert len(chapters) > 60


def test_a_python_without_source_files_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr("cme295lab.pretraining.corpora.python_library._folder", lambda: tmp_path)
    with pytest.raises(RuntimeError, match="no source files of its standard library"):
        standard_library()


def test_an_unknown_profile_is_an_error():
    with pytest.raises(ValueError, match='profile must be "full" or "fast", got \'quick\''):
        course_corpus("quick")
    with pytest.raises(ValueError, match="one_in must be positive"):
        standard_library(one_in=0)


def test_every_sum_is_right():
    """Each "a op b = c" in the text, worked out by Python."""
    documents = arithmetic(seed=3, num_documents=1500)
    equations = 0
    for document in documents:
        for left, right in re.findall(r"(?<![\d ])((?:\d+ [-+*] )+\d+) = (\d+)", document.text):
            assert eval(left) == int(right), document.text
            equations += 1
        for a, b, quotient, rest in re.findall(r"(\d+) / (\d+) = (\d+) remainder (\d+)", document.text):
            assert divmod(int(a), int(b)) == (int(quotient), int(rest))
            equations += 1
    assert equations > 4000


def test_steps_lead_to_the_result():
    """The digits that are written, from the ones on, are those of the result."""
    for document in arithmetic(seed=4, num_documents=400):
        if written := re.findall(r"write (\d)", document.text):
            result = re.findall(r"= (\d+)$", document.text.strip())[0]
            assert "".join(reversed(written)).lstrip("0") in (result, result.lstrip("0")), document.text


def test_mirrored_sums_are_one_family_and_no_problem_comes_twice():
    documents = arithmetic(seed=0, num_documents=2000)
    assert len({document.source for document in documents}) == 2000
    by_problem = {document.source.split("#")[1]: document.family for document in documents}
    mirrored = [(p, " ".join(reversed(p.split()))) for p in by_problem if "+" in p or "*" in p]
    both = [(a, b) for a, b in mirrored if b in by_problem and a != b]
    assert both
    assert all(by_problem[a] == by_problem[b] for a, b in both)


@pytest.mark.parametrize("generate", [arithmetic, stories], ids=["arithmetic", "stories"])
def test_generated_text_depends_on_the_seed_alone(generate):
    first = generate(seed=7, num_documents=50)
    assert generate(seed=7, num_documents=80)[:50] == first
    assert generate(seed=8, num_documents=50) != first
    assert len({document.text for document in first}) == 50
    with pytest.raises(ValueError, match="num_documents must be between 1 and 50,000, got 0"):
        generate(seed=0, num_documents=0)


def test_stories_are_sentences_with_names_and_pronouns_that_agree():
    told = stories(seed=1, num_documents=600)
    for document in told:
        text = document.text
        assert not re.search(r"[{}]|  ", text), text
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", text), text
        assert all(sentence[0].isupper() or sentence[0] == '"' for sentence in text.split("\n\n")), text
        assert not re.search(r"\. [a-z]", text), text
        assert text.count('"') % 2 == 0, text
        assert re.search(r'[.!?]"?\n$', text), text
    openings = Counter(document.text.split(".")[0] for document in told)
    assert max(openings.values()) < 20
    assert len({document.family for document in told}) > 250


def test_stories_are_varied():
    """Few texts of one thousand share most of their sentences with another."""
    told = stories(seed=2, num_documents=300)
    sentences = [set(re.split(r"(?<=[.!?])\s+", document.text)) for document in told]
    closest = [max(len(a & b) / len(a | b) for b in sentences if b is not a) for a in sentences]
    assert sum(share > 0.5 for share in closest) < 6
    assert len(set().union(*sentences)) > 1500


def test_history_states_each_fact_with_its_release():
    history = python_history()
    assert [document.date for document in history] == sorted(document.date for document in history)
    walrus = [document for document in history if "assignment expressions" in document.text.lower()]
    assert {document.date for document in walrus} == {date(2019, 10, 14)}
    assert all("3.8" in document.text and "2019" in document.text for document in walrus)
    assert any("October 2019" in document.text for document in walrus)


def test_a_cutoff_divides_dated_text():
    history = python_history()
    cutoff = date(2019, 10, 14)
    known, unknown = published_until(history, cutoff), published_after(history, cutoff)
    assert len(known) + len(unknown) == len(history)
    assert any("3.8" in document.text for document in known)  # released on that day
    assert not any(re.search(r"3\.(9|1\d)\b", document.text) for document in known)
    assert all(document.date > cutoff for document in unknown)


def test_text_without_a_date_is_refused_unless_asked_for():
    undated = Document("words", "english", "somewhere")
    with pytest.raises(ValueError, match="'somewhere' has no date"):
        published_until([undated], date(2020, 1, 1))
    with pytest.raises(ValueError, match="has no date"):
        published_after([undated], date(2020, 1, 1))
    assert published_until([undated], date(2020, 1, 1), keep_undated=True) == [undated]


def test_temperature_by_hand():
    sizes = {"code": 800, "english": 200}
    assert temperature_weights(sizes, 1) == {"code": 0.8, "english": 0.2}
    assert temperature_weights(sizes, 2) == pytest.approx({"code": 2 / 3, "english": 1 / 3})
    assert temperature_weights(sizes, float("inf")) == {"code": 0.5, "english": 0.5}
    assert mixture_weights({"a": 3, "b": 1, "c": 0}) == {"a": 0.75, "b": 0.25, "c": 0.0}


@pytest.mark.parametrize(
    ("sizes", "temperature", "message"),
    [
        ({}, 1, "sizes must be positive"),
        ({"a": 0}, 1, "sizes must be positive"),
        ({"a": 1}, 0.5, "temperature must be at least 1"),
        ({"a": 1}, float("nan"), "temperature must be at least 1"),
    ],
)
def test_temperature_refuses(sizes, temperature, message):
    with pytest.raises(ValueError, match=message):
        temperature_weights(sizes, temperature)


def test_documents_and_corpora_refuse():
    with pytest.raises(ValueError, match="weights must be finite and not negative"):
        mixture_weights({"a": -1.0, "b": 2.0})
    with pytest.raises(TypeError, match="text must be a string, got bytes"):
        Document(b"words", "english", "somewhere")
    with pytest.raises(ValueError, match="the corpus is empty"):
        Corpus(train={"english": []}, validation={})
