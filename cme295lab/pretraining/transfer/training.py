"""Training a classifier on a few labels, in the three ways, and testing it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from cme295lab.pretraining.transfer.classifier import TextClassifier, pad
from cme295lab.pretraining.transfer.tasks import Example, Task
from cme295lab.transformer.decoder import DecoderLM
from cme295lab.transformer.text import TextTokenizer

Way = Literal["from scratch", "frozen base", "fine-tuned"]
WAYS: tuple[Way, ...] = get_args(Way)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a classifier is trained.

    Attributes:
        num_steps: updates.
        rows_per_step: texts of an update; all of them where there are fewer.
        learning_rate: at the beginning; it falls to zero in a straight line.
        weight_decay: of AdamW.
    """

    num_steps: int
    rows_per_step: int
    learning_rate: float
    weight_decay: float


@dataclass(frozen=True, kw_only=True)
class TransferRecord:
    """One classifier, trained and tested.

    Attributes:
        task: its name.
        way: how it was trained.
        num_labels: labelled texts that it learned from.
        seed: of the texts, of the order and of the weights that start at random.
        accuracy: share of the test's texts with the right class.
        train_accuracy: share of the texts it learned from, with the labels as given.
        num_trained: parameters that were trained.
        time_s: seconds of training and testing.
    """

    task: str
    way: Way
    num_labels: int
    seed: int
    accuracy: float
    train_accuracy: float
    num_trained: int
    time_s: float


@dataclass(frozen=True)
class _Texts:
    """Texts as tensors."""

    tokens: Int[Tensor, "texts seq"]
    lengths: Int[Tensor, " texts"]
    labels: Int[Tensor, " texts"]

    def rows(self, index: Tensor) -> _Texts:
        lengths = self.lengths[index]
        return _Texts(self.tokens[index, : int(lengths.max())], lengths, self.labels[index])


def train_classifier(
    task: Task, way: Way, base: DecoderLM, tokenizer: TextTokenizer, recipe: Recipe, *, seed: int
) -> TransferRecord:
    """Train on the task's labels and test on its texts.

    Args:
        task: labelled texts.
        way: "from scratch" takes only the shape of `base`.
        base: the pretrained model; it is left as it is.
        tokenizer: its tokenizer.
        recipe: steps and learning rate.
        seed: of the order, and of the weights that start at random.

    Raises:
        ValueError: if the way is unknown, or a text is longer than the model's context.
    """
    if way not in WAYS:
        raise ValueError(f"way must be one of {', '.join(WAYS)}, got {way!r}")
    start = time.perf_counter()
    random = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TextClassifier(DecoderLM(base.config) if way == "from scratch" else base, len(task.kind.classes))
    train, test = (_encoded(examples, tokenizer, base.config.max_seq) for examples in (task.train, task.test))
    if way == "frozen base":
        num_trained, scores = _train_head(model, train, test, recipe)
    else:
        num_trained, scores = _train_all(model, train, test, recipe, random)
    accuracy, train_accuracy = (
        float((score.argmax(-1) == texts.labels).float().mean()) for score, texts in zip(scores, (test, train))
    )
    return TransferRecord(
        task=task.kind.name, way=way, num_labels=len(task.train), seed=seed, accuracy=accuracy,
        train_accuracy=train_accuracy, num_trained=num_trained, time_s=time.perf_counter() - start,
    )  # fmt: skip


def _train_all(
    model: TextClassifier, train: _Texts, test: _Texts, recipe: Recipe, random: torch.Generator
) -> tuple[int, tuple[Tensor, Tensor]]:
    """Train the base and the head; scores of the test and of the training texts."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / recipe.num_steps)
    order: list[int] = []
    for _ in range(recipe.num_steps):
        while len(order) < min(recipe.rows_per_step, len(train.labels)):
            order += torch.randperm(len(train.labels), generator=random).tolist()
        rows, order = order[: recipe.rows_per_step], order[recipe.rows_per_step :]
        batch = train.rows(torch.tensor(rows))
        loss = F.cross_entropy(model(batch.tokens, batch.lengths), batch.labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    num_trained = sum(parameter.numel() for parameter in model.parameters())
    return num_trained, (_in_parts(model, test), _in_parts(model, train))


def _train_head(
    model: TextClassifier, train: _Texts, test: _Texts, recipe: Recipe
) -> tuple[int, tuple[Tensor, Tensor]]:
    """Train the head alone, on hidden states that are computed once and brought to mean 0 and variance 1."""
    with torch.no_grad():
        features, test_features = (_features(model, texts) for texts in (train, test))
    mean, scale = features.mean(0), features.std(0) + 1e-6
    features, test_features = (features - mean) / scale, (test_features - mean) / scale
    optimizer = torch.optim.AdamW(model.output.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    for _ in range(recipe.num_steps):
        loss = F.cross_entropy(model.output(features), train.labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    num_trained = sum(parameter.numel() for parameter in model.output.parameters())
    with torch.no_grad():
        return num_trained, (model.output(test_features), model.output(features))


def _features(model: TextClassifier, texts: _Texts) -> Float[Tensor, "texts dim"]:
    parts = (texts.rows(index) for index in torch.arange(len(texts.labels)).split(64))
    return torch.cat([model.features(part.tokens, part.lengths) for part in parts])


@torch.no_grad()
def _in_parts(model: TextClassifier, texts: _Texts) -> Float[Tensor, "texts classes"]:
    return model.output(_features(model, texts))


def _encoded(examples: Sequence[Example], tokenizer: TextTokenizer, max_seq: int) -> _Texts:
    tokens, lengths = pad(tokenizer.encode_batch([example.text for example in examples]), max_seq=max_seq)
    return _Texts(tokens, lengths, torch.tensor([example.label for example in examples]))
