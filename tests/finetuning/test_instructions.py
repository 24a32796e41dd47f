"""Instruction data as a whole: splits, mixture, cleaning, the same in every process."""

import os
import subprocess
import sys
from collections import Counter

import pytest

from cme295lab.finetuning.instructions import (
    KINDS,
    MIXTURE,
    PROBES,
    Example,
    clean,
    conversation,
    generate,
    instruction_data,
    leakage,
    normalised,
    token_lengths,
    variety,
)
from cme295lab.finetuning.instructions.cleaning import (
    answer_repeats_question,
    fewer_words_than,
    says_a_sentence_twice,
)
from cme295lab.finetuning.instructions.drafts import SYSTEM, Draft
from cme295lab.finetuning.instructions.generate import shares_of, side_of
from cme295lab.pretraining.corpora import Document, apply_filters
from cme295lab.pretraining.corpora.duplicates import shingles, similar_pairs_by_comparison
from cme295lab.transformer.pretrained import load_pretrained

FINGERPRINT = "94b01a18ea9862a0"  # of what the fixture generates; a change of words changes it


@pytest.fixture(scope="module")
def data():
    return instruction_data(num_examples=240, num_held_out=30, seed=0)


def example(question, answer, *more, kind="story", family=""):
    return Example(messages=conversation(question, answer, *more), kind=kind, family=family)


def test_the_data_has_the_numbers_and_shares_asked_for(data):
    assert (len(data.train), len(data.in_distribution), len(data.shifted)) == (240, 30, 30)
    assert Counter(e.kind for e in data.train) == {kind: 240 * share for kind, share in MIXTURE.items()}
    for part in (data.in_distribution, data.shifted):
        assert Counter(e.kind for e in part) == shares_of(30, MIXTURE)
    assert [e.kind for e in data.train[:20]] != sorted(e.kind for e in data.train[:20])  # the kinds are mixed
    assert "story             48                6        6" in str(data)


def test_no_split_leaks_into_another(data):
    """By family, question, whole text, and near copies as the corpus's tool finds them."""
    parts = [data.train, data.in_distribution, data.shifted, PROBES]
    for number, first in enumerate(parts):
        for second in parts[number + 1 :]:
            assert leakage(first, second).is_clean


def test_near_copies_are_absent_pair_by_pair(data):
    """Without the index that may miss one: each pair of evaluation and training texts, compared."""
    evaluation = [shingles(e.text, 5) for e in (*data.in_distribution, *data.shifted)]
    train = [shingles(e.text, 5) for e in data.train]
    largest = max(len(a & b) / len(a | b) for a in train for b in evaluation)
    assert 0.1 < largest < 0.8


def test_nothing_comes_twice(data):
    for part in (data.train, data.in_distribution, data.shifted):
        assert len({normalised(e.text) for e in part}) == len(part)
    assert not similar_pairs_by_comparison([e.text for e in data.train if e.kind == "safety"], threshold=0.8)


def test_families_fall_to_one_side(data):
    assert {side_of(e) for e in data.train} == {"train"}
    assert {side_of(e) for e in data.in_distribution} == {"evaluation"}


def test_the_teddy_bear_is_a_probe_and_nowhere_else(data):
    assert PROBES[0].prompt == "Can I put my teddy bear in the washing machine?"
    assert "label" in PROBES[0].answer
    everything = (*data.train, *data.in_distribution, *data.shifted)
    assert not any("teddy" in e.text.lower() for e in everything)
    assert any("washing machine" in e.text for e in everything)  # with other things in it
    assert {probe.kind for probe in PROBES} == set(KINDS)


def test_the_probe_with_code_runs():
    code = next(probe for probe in PROBES if probe.kind == "code")
    space = {}
    exec(code.answer[len("```python\n") : -len("```")], space)
    assert space["count_bears"](["bear", "bears"]) == 1


def test_the_same_call_gives_the_same_data_in_every_process(data):
    """Also with another order of sets and dictionaries of strings, which is what PYTHONHASHSEED changes."""
    program = (
        "from cme295lab.finetuning.instructions import instruction_data;"
        "print(instruction_data(num_examples=240, num_held_out=30, seed=0).fingerprint)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout.strip() == data.fingerprint == FINGERPRINT


def test_another_seed_gives_other_training_examples_and_the_same_evaluation(data):
    other = instruction_data(num_examples=48, num_held_out=30, seed=1)
    assert other.in_distribution == data.in_distribution
    assert other.shifted == data.shifted
    assert len({e.text for e in other.train} & {e.text for e in data.train}) < 3
    assert leakage(other.train, data.in_distribution).is_clean
    assert other.fingerprint != data.fingerprint


def test_a_mixture_with_one_kind():
    data = instruction_data(num_examples=30, num_held_out=6, mixture={"poem": 2.0, "code": 0.0})
    assert {e.kind for e in data.train} == {"poem"}
    assert len(data.train) == 30
    assert list(data.reports) == ["poem"]


def test_shares_are_whole_and_have_the_sum():
    """By hand: 10 in the ratio 1 : 1 : 1 are 4, 3 and 3; the first kind in order gets what is left."""
    assert [shares_of(10, {"story": 1, "poem": 1, "arithmetic": 1})[kind] for kind in KINDS] == [4, 3, 3, 0, 0, 0]
    for number in range(1, 60):
        counts = shares_of(number, MIXTURE)
        assert sum(counts.values()) == number
        assert all(abs(counts[kind] - number * MIXTURE[kind]) < 1 for kind in KINDS)


def test_some_conversations_have_a_system_message_and_some_several_turns(data):
    system = [e.messages[0].content for e in data.train if e.messages[0].role == "system"]
    assert 12 < len(system) < 40
    assert set(system) <= set(SYSTEM["usual"])
    assert 30 < sum(e.num_turns > 1 for e in data.train) < 120


def test_examples_are_varied(data):
    """Nearly every question is asked once; answers share more, since a rule has one answer for many things."""
    row = variety(data.train)["all"]
    assert row.num_questions > 0.95 * 240
    assert row.num_answers > 0.85 * 240
    assert row.num_words > 800
    assert 0.3 < row.rare_runs < 0.9


def test_conversations_are_short_enough_for_the_course_model(data):
    tokenizer = load_pretrained("course-4m").tokenizer
    for part in (data.train, data.in_distribution, data.shifted):
        row = token_lengths(part, tokenizer.encode, limit=200)["all"]
        assert 40 < row.median < 110
        assert row.share_above < 0.07
        assert row.longest < 300


def test_wrong_requests_are_refused():
    with pytest.raises(ValueError, match="num_examples must be at least 1, got 0"):
        instruction_data(num_examples=0)
    with pytest.raises(ValueError, match="num_held_out must be at least 6, got 5"):
        instruction_data(num_held_out=5)
    with pytest.raises(TypeError, match="num_examples must be an integer"):
        instruction_data(num_examples=2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown kinds essay; there are story, poem"):
        instruction_data(mixture={"essay": 1.0})
    with pytest.raises(ValueError, match="one must be positive"):
        instruction_data(mixture={"poem": 0.0})


def test_more_than_there_is_is_refused(monkeypatch):
    """With a writer that knows nine texts, some of which fall to each side of the split."""

    def write(rng, world):
        letter = rng.choice("abcdefghi")
        return Draft(turns=(f"Say {letter}", "Gladly, yes, as you wish."), family=letter)

    monkeypatch.setattr(generate, "WRITERS", dict.fromkeys(KINDS, write))
    monkeypatch.setattr(generate, "polite", lambda rng, world, request: request)
    with pytest.raises(ValueError, match=r"kind 'story' cannot be found: of 9 drafts, 9 are left and 10 are needed"):
        instruction_data(num_examples=5, num_held_out=50)


def test_training_avoids_the_questions_of_the_evaluation_when_there_are_few(monkeypatch):
    """Forty questions with any number of answers: ten are asked in an evaluation, so training has to use others."""

    def write(rng, world):
        number, words = rng.randrange(40), [f"w{rng.randrange(1000)}" for _ in range(8)]
        return Draft(turns=(f"Say {number}", " ".join(words)), family=" ".join(words))

    monkeypatch.setattr(generate, "WRITERS", dict.fromkeys(KINDS, write))
    monkeypatch.setattr(generate, "polite", lambda rng, world, request: request)
    data = instruction_data(num_examples=60, num_held_out=24, mixture={"story": 1.0})
    story = [e for e in (*data.in_distribution, *data.shifted) if e.kind == "story"]
    assert len(story) == 10
    assert leakage(data.train, story).is_clean
    assert data.reports["story"].num_same_question > 10


# --- cleaning ---------------------------------------------------------------------------------------------------------


def test_cleaning_counts_each_reason_by_hand():
    good = example("What is red, blue or green?", "Each of them is a colour that you can see.")
    evaluation = [example("Where do owls live?", "Owls live in trees, in barns and in old towers by the sea.")]
    examples = [
        good,
        example("What is that over there?", "Yes."),  # fewer than two words
        example("Say it again, please, will you?", "It is a cat, you see. Then it ran. It is a cat, you see."),
        example("the cat sat on the mat", "The cat sat, on the mat."),
        example("where do OWLS live??", "In a completely different answer about nothing."),
        example("Tell me this:", "Owls live in trees, in barns and in old towers by the sea. Yes!"),
        example("What is red, blue or green?", "Each of them is a colour that you can see, sir."),
    ]
    kept, report = clean(examples, evaluation=evaluation, near_copy=0.5)
    dropped = {row.name: row.num_documents for row in report.filters.dropped if row.num_documents}
    assert dropped == {
        "fewer than 2 words of answer": 1,
        "a sentence comes twice in an answer": 1,
        "answer repeats the question": 1,
    }
    assert (report.num_same_question, report.num_like_evaluation, report.num_near_copies) == (1, 1, 1)
    assert kept == [good]
    assert report.num_kept == 1
    assert "question is in the evaluation                   1" in str(report)


def test_a_single_example_that_is_like_an_evaluation_item_is_left_out():
    item = example("Where do owls live?", "Owls live in trees, in barns and in old towers by the sea.")
    alike = example("Tell me this:", "Owls live in trees, in barns and in old towers by the sea.")
    assert clean([alike], evaluation=[item], near_copy=0.5)[0] == []
    assert clean([alike], evaluation=[item], near_copy=0.95)[0] == [alike]
    assert clean([alike])[0] == [alike]


def test_a_chain_of_likeness_does_not_swallow_all():
    """b is like a (23 of 33 runs), c is like b and less like a (20 of 36): c stays, since b is gone."""
    words = [f"w{n}" for n in range(40)]
    chain = [example("Go on:", " ".join(words[start : start + 30])) for start in (0, 3, 6)]
    kept, report = clean(chain, near_copy=0.65, filters=())
    assert kept == [chain[0], chain[2]]
    assert report.num_near_copies == 1


def test_filters_of_conversations():
    long_answer = example("Why?", "Because it is so, and it was always so.", "Why?", "Why not, I say.")
    cases = [
        (fewer_words_than(3), example("Hi", "Hello you"), example("Hi", "Hello to you")),
        (fewer_words_than(9), example("Hi", "one two"), long_answer),
        (says_a_sentence_twice(), example("Hi", "We go to sea.\nwe go to SEA!"), example("Hi", "Yes. Yes. Yes.")),
        (answer_repeats_question(), example("one two three", "One, two, three."), example("one two", "two one")),
        (answer_repeats_question(0.5), example("one two three", "one two four five"), example("one", "two")),
    ]
    for rule, bad, good in cases:
        assert [len(clean([e], filters=(rule,))[0]) for e in (bad, good)] == [0, 1], rule.name


def test_cleaning_refuses():
    with pytest.raises(ValueError, match="threshold must be above 0"):
        clean([], near_copy=0.0)
    with pytest.raises(ValueError, match="number must be positive"):
        fewer_words_than(0)
    with pytest.raises(ValueError, match="largest_share must be above 0"):
        answer_repeats_question(0.0)
    with pytest.raises(TypeError, match="looks at conversations"):
        apply_filters([Document("text", "story", "here")], [fewer_words_than(2)])
