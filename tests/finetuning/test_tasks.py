"""Tasks: splits that share nothing, labels that a reader would give, and scores against one forward pass at a time."""

import math
import re
from collections import Counter

import pytest
import torch

from cme295lab.finetuning.chat import chat_template, encode_chat
from cme295lab.finetuning.tasks import (
    LABELS,
    TASKS,
    TaskExample,
    accuracy,
    answers_of,
    classify,
    label_log_probabilities,
    task_data,
    to_messages,
)
from cme295lab.transformer.pretrained import load_pretrained

ALPACA = chat_template("alpaca", bos_token="", eos_token="<|end|>")
GOOD = "great|lovely|wonderful|good|beautiful|perfect|nice|excellent|superb|delightful|charming|brilliant"
TEXTS = ["You have won a red bike!", "The soup was good."]


@pytest.fixture(scope="module")
def course_model():
    return load_pretrained("course-4m")


@pytest.mark.parametrize("task", TASKS)
def test_splits_are_balanced_distinct_and_share_no_text(task: str) -> None:
    data = task_data(task, num_examples=1501, num_held_out=100)
    parts = [data.train, data.held_out, data.shifted]
    assert [len(part) for part in parts] == [1501, 100, 100]
    texts = [{" ".join(re.findall(r"\w+", example.text.lower())) for example in part} for part in parts]
    assert [len(part) for part in texts] == [1501, 100, 100]
    assert not texts[0] & texts[1]
    assert not (texts[0] | texts[1]) & texts[2]
    for part in parts:
        counts = Counter(example.label for example in part)
        assert set(counts) == set(data.labels) == set(TASKS[task])
        assert max(counts.values()) - min(counts.values()) <= 1
        assert not any("{" in example.text for example in part)


@pytest.mark.parametrize("task", TASKS)
def test_seeds_change_training_and_never_evaluation(task: str) -> None:
    first, same, other = (task_data(task, num_examples=60, num_held_out=20, seed=seed) for seed in (0, 0, 1))
    assert first == same
    assert first.train != other.train
    assert (first.held_out, first.shifted) == (other.held_out, other.shifted)


def test_sentiment_follows_from_words_and_negation() -> None:
    data = task_data("sentiment", num_examples=300, num_held_out=60)
    last_good = f"(?:{GOOD})"
    for example in (*data.train, *data.held_out, *data.shifted):
        text = example.text
        if re.search(r"nothing|[Ff]ar from", text):  # what is said is denied
            positive = not re.search(r"(?:nothing|[Ff]ar from) " + last_good, text)
        elif "would be" in text:  # and what counts comes after the "but"
            positive = re.search(last_good, text.split(" but ")[1]) is not None
        else:
            positive = re.search(rf"\b{last_good}\b", text.removeprefix("Good")) is not None
        assert positive == (example.label == "positive"), text


def test_a_conversation_has_no_hint_of_its_task() -> None:
    for task, labels in TASKS.items():
        for example in task_data(task, num_examples=20, num_held_out=2).train:
            question, answer = to_messages(example)
            assert (question.role, question.content) == ("user", example.text)
            assert (answer.role, answer.content) == ("assistant", example.label)
            assert not {task, *labels} & set(example.text.lower().split())


def test_scores_are_products_of_token_probabilities_one_by_one(course_model) -> None:
    model, tokenizer = course_model.model, course_model.tokenizer
    scores = label_log_probabilities(model, TEXTS, tokenizer, ALPACA, batch_size=2)
    for row, text in enumerate(TEXTS):
        prompt = tokenizer.encode(ALPACA.render([{"role": "user", "content": text}], True), special=False)
        for column, label in enumerate(LABELS):
            chat = encode_chat(to_messages(TaskExample(text, label)), tokenizer, ALPACA)
            expected, context = 0.0, list(prompt)
            answer = [token for token, counts in zip(chat.tokens, chat.loss_mask, strict=True) if counts]
            assert tokenizer.decode(answer) == f"{label}<|end|>"
            with torch.no_grad():
                for token in answer:
                    shares = model(torch.tensor([context]))[0, -1].double().softmax(-1)
                    expected += math.log(shares[token])
                    context.append(token)
            assert float(scores[row, column]) == pytest.approx(expected, abs=1e-4)
    one_by_one = label_log_probabilities(model, TEXTS, tokenizer, ALPACA, batch_size=1)
    torch.testing.assert_close(scores, one_by_one, atol=1e-4, rtol=0)


def test_answers_by_hand() -> None:
    scores = torch.tensor([[0.5, 0.25, 0.125, 0.0], [0.1, 0.2, 0.3, 0.4]], dtype=torch.float32).log()
    first, second = answers_of(scores)
    assert (first.label, second.label) == ("spam", "negative")
    assert first.coverage == pytest.approx(0.875)
    expected = {"spam": 4 / 7, "normal": 2 / 7, "positive": 1 / 7, "negative": 0}
    assert first.probabilities == pytest.approx(expected)


def test_accuracy_counts_what_classify_says(course_model) -> None:
    model, tokenizer = course_model.model, course_model.tokenizer
    found = classify(model, TEXTS, tokenizer, ALPACA)
    right = [TaskExample(text, answer.label) for text, answer in zip(TEXTS, found, strict=True)]
    wrong = TaskExample(TEXTS[0], next(label for label in LABELS if label != found[0].label))
    assert accuracy(model, right, tokenizer, ALPACA) == 1
    assert accuracy(model, [*right, wrong], tokenizer, ALPACA, batch_size=2) == pytest.approx(2 / 3)


def test_refuses_what_cannot_be(course_model) -> None:
    with pytest.raises(ValueError, match="task must be one of spam, sentiment, got 'topic'"):
        task_data("topic")
    with pytest.raises(ValueError, match="num_examples"):
        task_data("spam", num_examples=1)
    with pytest.raises(ValueError, match="different texts of 'spam'"):
        task_data("spam", num_held_out=100_000)
    with pytest.raises(ValueError, match="lacks maybe"):
        accuracy(course_model.model, [TaskExample("x", "maybe")], course_model.tokenizer, ALPACA)
    with pytest.raises(ValueError, match="different labels"):
        label_log_probabilities(course_model.model, ["x"], course_model.tokenizer, ALPACA, labels=["a", "a"])
