"""Labelled texts: reproducible, balanced, different, and not given away by one word."""

import re
from collections import Counter

import pytest

from cme295lab.pretraining.transfer import TASKS, make_examples, make_task


@pytest.mark.parametrize("name", TASKS)
def test_the_same_seed_gives_the_same_texts_and_another_seed_others(name):
    first, again, other = (make_examples(name, 40, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert not {example.text for example in first} & {example.text for example in other}


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("number", [1, 16, 257])
def test_classes_are_balanced_and_mixed(name, number):
    labels = [example.label for example in make_examples(name, number, seed=0)]
    assert labels.count(0) - labels.count(1) in (0, 1)
    assert len(labels) == number
    assert number < 16 or labels != sorted(labels)


@pytest.mark.parametrize("name", TASKS)
def test_texts_are_whole_sentences_and_all_different(name):
    texts = [example.text for example in make_examples(name, 2000, seed=5)]
    assert len(set(texts)) == len(texts)
    for text in texts:
        assert text[0].isupper()
        assert text[-1] in ".?"
        assert not re.search(r"[{}]|  | [,.:?]|[.?] [a-z]| a [aeio]| an [^aeiouh]", text), text


@pytest.mark.parametrize("name", TASKS)
def test_training_and_test_share_no_text_and_the_test_is_always_the_same(name):
    small, large = (make_task(name, num_labels=n, num_test=300, seed=seed) for n, seed in ((16, 0), (256, 9)))
    assert small.test == large.test
    for task in (small, large):
        assert not {example.text for example in task.train} & {example.text for example in task.test}


@pytest.mark.parametrize("name", TASKS)
def test_one_word_does_not_give_the_class_away(name):
    """The best single word, chosen with all labels in sight, is right about less than three quarters of the texts."""
    examples = make_examples(name, 3000, seed=11)
    with_word = [Counter(), Counter()]
    for example in examples:
        with_word[example.label].update(set(re.findall(r"\w+", example.text.lower())))
    words = {*with_word[0], *with_word[1]}
    right = {word: 0.5 + abs(with_word[0][word] - with_word[1][word]) / len(examples) for word in words}
    assert 0.5 < max(right.values()) < 0.75, max(right, key=right.get)


@pytest.mark.parametrize("name", TASKS)
def test_few_labels_show_a_part_of_the_words(name):
    """Sixteen texts hold less than half of the words of the test, so that something must carry over."""
    task = make_task(name, num_labels=16)
    known, needed = (
        {word for example in examples for word in re.findall(r"\w+", example.text.lower())}
        for examples in (task.train, task.test)
    )
    assert len(known & needed) / len(needed) < 0.5


@pytest.mark.parametrize(("noise", "number", "changed"), [(0.0, 50, 0), (0.1, 50, 5), (0.25, 16, 4), (0.49, 100, 49)])
def test_noise_turns_so_many_labels_round_and_leaves_the_test_alone(noise, number, changed):
    task = make_task("spam", num_labels=number, num_test=100, seed=3, label_noise=noise)
    assert sum(example.label != example.true_label for example in task.train) == changed
    assert all(example.label == example.true_label for example in task.test)
    clean = make_task("spam", num_labels=number, num_test=100, seed=3)
    assert {(e.text, e.true_label) for e in task.train} == {(e.text, e.true_label) for e in clean.train}


def test_bad_arguments():
    with pytest.raises(ValueError, match="name must be one of spam, sentiment, got 'ham'"):
        make_task("ham", num_labels=16)
    with pytest.raises(ValueError, match=r"label_noise must be from 0 to below 0\.5"):
        make_task("spam", num_labels=16, label_noise=0.5)
    with pytest.raises(ValueError, match="number must be at least 1"):
        make_task("spam", num_labels=0)
    with pytest.raises(TypeError, match="number must be an int"):
        make_examples("spam", 2.5, seed=0)
    with pytest.raises(ValueError, match="seed must be at least 0"):
        make_task("spam", num_labels=4, seed=-1)
