"""A classifier on a decoder: what it reads, what it trains, and what pretraining is worth."""

import math
import statistics

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers

from cme295lab.pretraining.transfer import (
    PROFILES,
    Recipe,
    TextClassifier,
    TransferOptions,
    TransferRecord,
    accuracies,
    few_label_experiment,
    make_examples,
    make_task,
    recipe_for,
    table,
    train_classifier,
)
from cme295lab.pretraining.transfer.classifier import pad
from cme295lab.pretraining.transfer.experiment import as_rows
from cme295lab.pretraining.transfer.sentences import HAM, SPAM
from cme295lab.transformer import DecoderLM, ModelConfig
from cme295lab.transformer.text import TextTokenizer


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    """A word a token."""
    texts = [example.text for name in ("spam", "sentiment") for example in make_examples(name, 3000, seed=100)]
    splitter = pre_tokenizers.Sequence([pre_tokenizers.Whitespace()])
    words = sorted({word for text in texts for word, _ in splitter.pre_tokenize_str(text)})
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(["?", *words])}, unk_token="?"))
    made.pre_tokenizer = splitter
    return TextTokenizer(made)


@pytest.fixture(scope="module")
def shape(tokenizer) -> ModelConfig:
    return ModelConfig(name="tiny", vocab_size=tokenizer.vocab_size, num_layers=2, dim=32, num_heads=2, mlp_dim=64,
                       max_seq=48, tied_head=True)  # fmt: skip


@pytest.fixture(scope="module")
def base(tokenizer, shape) -> DecoderLM:
    """At random, but for what pretraining is hoped to give: words that occur together lie in the same direction."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = DecoderLM(shape)
        direction = torch.randn(shape.dim)
        for words, sign in ((SPAM, 1), (HAM, -1)):
            for word in (*words["noun"], *words["adjective"]):
                model.embedding.weight[tokenizer.encode(word)] += sign * direction
    return model


def test_features_are_the_hidden_state_of_the_last_real_token(base):
    """Padding on the right changes nothing, and a text alone gives what it gives among others."""
    texts = [[5, 3, 8], [4], [9, 2, 7, 7, 1]]
    model = TextClassifier(base)
    together = model.features(*pad(texts, max_seq=48))
    for text, row in zip(texts, together, strict=True):
        # The logits are the state times the head: solving for the state gives it back.
        logits = base(torch.tensor([text]))[0, -1]
        state = torch.linalg.lstsq(base.head.weight.double(), logits[:, None].double()).solution[:, 0]
        assert torch.allclose(row.double(), state, atol=1e-4)


def test_classifier_begins_without_preference_and_leaves_the_base_alone(base, tokenizer):
    before = {name: value.clone() for name, value in base.state_dict().items()}
    model = TextClassifier(base, num_classes=3)
    assert torch.equal(model(*pad([[1, 2], [3]], max_seq=48)), torch.zeros(2, 3))
    recipe = Recipe(num_steps=3, rows_per_step=8, learning_rate=1e-2, weight_decay=0.0)
    for way in ("from scratch", "frozen base", "fine-tuned"):
        train_classifier(make_task("spam", num_labels=8, num_test=4), way, base, tokenizer, recipe, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert isinstance(base.head, torch.nn.Linear)


def test_what_each_way_trains(base, tokenizer, shape):
    task = make_task("spam", num_labels=8, num_test=4)
    recipe = Recipe(num_steps=1, rows_per_step=8, learning_rate=1e-2, weight_decay=0.0)
    found = {
        way: train_classifier(task, way, base, tokenizer, recipe, seed=0).num_trained
        for way in ("from scratch", "frozen base", "fine-tuned")
    }
    head = 2 * shape.dim + 2
    assert found == {
        "from scratch": shape.num_parameters + head, "frozen base": head, "fine-tuned": shape.num_parameters + head,
    }  # fmt: skip


def test_first_step_of_fine_tuning_is_that_of_the_plain_loss(base, tokenizer):
    """One update by hand: the same loss falls as much as `train_classifier` makes of one step with all texts."""
    task = make_task("spam", num_labels=16, num_test=64)
    recipe = Recipe(num_steps=1, rows_per_step=16, learning_rate=3e-3, weight_decay=0.0)
    record = train_classifier(task, "fine-tuned", base, tokenizer, recipe, seed=0)
    model = TextClassifier(base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    tokens, lengths = pad(tokenizer.encode_batch([e.text for e in task.train]), max_seq=48)
    F.cross_entropy(model(tokens, lengths), torch.tensor([e.label for e in task.train])).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    tokens, lengths = pad(tokenizer.encode_batch([e.text for e in task.test]), max_seq=48)
    right = model(tokens, lengths).argmax(-1) == torch.tensor([e.label for e in task.test])
    assert record.accuracy == pytest.approx(float(right.float().mean()), abs=1 / 64 + 1e-6)


def test_a_pretrained_base_is_worth_more_than_a_random_one(base, tokenizer):
    """On mails, if the base knows which words belong together; means over four seeds of 32 labels."""
    means = {}
    for way, rate in (("from scratch", 3e-3), ("frozen base", 2e-2), ("fine-tuned", 3e-3)):
        recipe = Recipe(num_steps=30, rows_per_step=32, learning_rate=rate, weight_decay=0.0)
        means[way] = statistics.fmean(
            train_classifier(make_task("spam", num_labels=32, num_test=150, seed=seed), way, base, tokenizer, recipe,
                             seed=seed).accuracy
            for seed in range(4)
        )  # fmt: skip
    assert min(means["fine-tuned"], means["frozen base"]) > means["from scratch"] + 0.05, means


def test_experiment_is_deterministic_and_complete(base, tokenizer):
    options = TransferOptions(num_labels=(4, 6), seeds=(0, 7), num_test=20)
    seen = []
    first = few_label_experiment(base, tokenizer, task="sentiment", options=options, report=seen.append)
    again = few_label_experiment(base, tokenizer, task="sentiment", options=options)
    assert seen == first
    assert [(r.way, r.num_labels, r.seed) for r in first] == [
        (way, n, seed) for n in (4, 6) for seed in (0, 7) for way in ("from scratch", "frozen base", "fine-tuned")
    ]
    assert [(r.accuracy, r.train_accuracy) for r in first] == [(r.accuracy, r.train_accuracy) for r in again]
    assert as_rows(first)[0]["task"] == "sentiment"


def test_noise_in_the_labels_is_learned_by_heart_and_costs_accuracy(base, tokenizer):
    recipe = Recipe(num_steps=80, rows_per_step=32, learning_rate=1e-2, weight_decay=0.0)
    clean, noisy = (
        train_classifier(make_task("spam", num_labels=32, num_test=100, label_noise=noise), "fine-tuned", base,
                         tokenizer, recipe, seed=0)
        for noise in (0.0, 0.3)
    )  # fmt: skip
    assert clean.train_accuracy == noisy.train_accuracy == 1
    assert noisy.accuracy < clean.accuracy - 0.05


def record(way: str, accuracy: float, *, seed: int = 0, num_labels: int = 16, task: str = "spam") -> TransferRecord:
    return TransferRecord(task=task, way=way, num_labels=num_labels, seed=seed, accuracy=accuracy, train_accuracy=1.0,
                          num_trained=1, time_s=0.1)  # fmt: skip


def test_table_has_means_and_standard_errors():
    """0.6 and 0.8: mean 0.7, standard deviation 0.1414, standard error 0.1."""
    records = [record("from scratch", 0.6), record("from scratch", 0.8, seed=1)]
    records.append(record("fine-tuned", 0.9, num_labels=64))
    assert accuracies(records) == {"from scratch": {16: [0.6, 0.8]}, "fine-tuned": {64: [0.9]}}
    lines = table(records).splitlines()
    assert lines[0].split() == ["labels", "16", "64"]
    assert lines[1].split() == ["from", "scratch", "70.0%", "±", "10.0", "-"]
    assert lines[2].split() == ["fine-tuned", "-", "90.0%"]


def test_steps_grow_with_the_root_of_the_labels_and_are_the_same_for_both():
    for labels in (16, 64, 256):
        steps = [recipe_for(way, labels).num_steps for way in ("from scratch", "fine-tuned")]
        assert steps == [round(5 * math.sqrt(labels))] * 2
    assert PROFILES["full"].num_labels == (16, 64, 256)


def test_bad_arguments(base, tokenizer):
    with pytest.raises(ValueError, match="num_classes must be at least 2"):
        TextClassifier(base, num_classes=1)
    with pytest.raises(ValueError, match="texts must have 1 to 48 tokens each, got 1 of 49 to 49"):
        pad([[1] * 49], max_seq=48)
    for texts in ([], [[1], []]):
        with pytest.raises(ValueError, match="texts must have 1 to 4 tokens"):
            pad(texts, max_seq=4)
    recipe = recipe_for("frozen base", 4)
    with pytest.raises(ValueError, match="way must be one of from scratch, frozen base, fine-tuned, got 'lora'"):
        train_classifier(make_task("spam", num_labels=4), "lora", base, tokenizer, recipe, seed=0)
    with pytest.raises(ValueError, match="seeds must not be empty"):
        TransferOptions(seeds=())
    with pytest.raises(ValueError, match=r"ways must be among .*, got lora"):
        TransferOptions(ways=("lora",))
    with pytest.raises(ValueError, match="num_labels must be at least 2"):
        TransferOptions(num_labels=(16, 1))
    with pytest.raises(ValueError, match="records must be of one task, got 0 of none"):
        accuracies([])
    with pytest.raises(ValueError, match="got 2 of sentiment, spam"):
        table([record("fine-tuned", 1.0), record("fine-tuned", 1.0, task="sentiment")])
