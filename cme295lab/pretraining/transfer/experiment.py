"""The transfer-learning story as records: three ways of training, a few sizes of a training set, several seeds.

    accuracy
      │            ╭────────  fine-tuned
      │      ╭─────╯ ╭──────  frozen base
      │   ───╯ ──────╯ ╭────  from scratch
      └───────────────────── labels: 16, 64, 256

That is what one hopes for; what comes out depends on the base, and is what is shown. All ways see the same texts; those
that train the whole model take the same steps, as many as their number of labels deserves: 5 √labels.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from cme295lab.pretraining.flops.quantities import whole
from cme295lab.pretraining.transfer.tasks import make_task
from cme295lab.pretraining.transfer.training import WAYS, Recipe, TransferRecord, Way, train_classifier
from cme295lab.transformer.decoder import DecoderLM
from cme295lab.transformer.text import TextTokenizer


@dataclass(frozen=True, kw_only=True)
class TransferOptions:
    """Which classifiers to train.

    Attributes:
        num_labels: sizes of the training set.
        seeds: each draws other texts to learn from.
        ways: of training.
        num_test: texts to be tested on, the same for all.
        label_noise: share of the labels to learn from that are wrong.

    Raises:
        TypeError, ValueError: if one is empty or out of range.
    """

    num_labels: tuple[int, ...] = (16, 64, 256)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    ways: tuple[Way, ...] = WAYS
    num_test: int = 400
    label_noise: float = 0.0

    def __post_init__(self) -> None:
        for name in ("num_labels", "seeds", "ways"):
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty")
        for number in self.num_labels:
            whole("num_labels", number, 2)
        whole("num_test", self.num_test, 2)
        unknown = set(self.ways) - set(WAYS)
        if unknown:
            raise ValueError(f"ways must be among {', '.join(WAYS)}, got {', '.join(sorted(unknown))}")


PROFILES = {
    "fast": TransferOptions(num_labels=(8, 32), seeds=(0, 1), num_test=100),
    "full": TransferOptions(seeds=(0, 1, 2), num_test=300),
}
"""What a notebook asks for, by its profile."""


def recipe_for(way: Way, num_labels: int) -> Recipe:
    """How each way is trained; the rates come from a small search on another base model."""
    if way == "frozen base":
        return Recipe(num_steps=200, rows_per_step=num_labels, learning_rate=0.02, weight_decay=1.0)
    steps = round(5 * math.sqrt(num_labels))
    rate = {"from scratch": 1e-3, "fine-tuned": 5e-4}[way]
    return Recipe(num_steps=steps, rows_per_step=16, learning_rate=rate, weight_decay=0.01)


def few_label_experiment(
    base: DecoderLM,
    tokenizer: TextTokenizer,
    *,
    task: str = "spam",
    options: TransferOptions = PROFILES["full"],
    report: Callable[[TransferRecord], None] = lambda record: None,
) -> list[TransferRecord]:
    """Train and test a classifier for each way, size and seed.

    Args:
        base: the pretrained model, such as `load_pretrained("course-4m").model`; it is left as it is.
        tokenizer: its tokenizer.
        task: "spam" or "sentiment".
        options: which; `PROFILES["fast"]` is a small part.
        report: called with each record as it comes.

    Returns:
        A record each, which `accuracies` sorts for a figure.

    Raises:
        ValueError: an unknown task.
    """
    records = []
    for num_labels in options.num_labels:
        for seed in options.seeds:
            texts = make_task(task, num_labels=num_labels, num_test=options.num_test, seed=seed,
                              label_noise=options.label_noise)  # fmt: skip
            for way in options.ways:
                recipe = recipe_for(way, num_labels)
                records.append(train_classifier(texts, way, base, tokenizer, recipe, seed=seed))
                report(records[-1])
    return records


def accuracies(records: Sequence[TransferRecord]) -> dict[str, dict[int, list[float]]]:
    """Way -> number of labels -> accuracy of each seed, in the order of the records.

    Raises:
        ValueError: if there are none, or of several tasks.
    """
    names = {record.task for record in records}
    if len(names) != 1:
        raise ValueError(f"records must be of one task, got {len(records)} of {', '.join(sorted(names)) or 'none'}")
    sorted_out: dict[str, dict[int, list[float]]] = {}
    for record in records:
        sorted_out.setdefault(record.way, {}).setdefault(record.num_labels, []).append(record.accuracy)
    return sorted_out


def table(records: Sequence[TransferRecord]) -> str:
    """Mean accuracy and its standard error over the seeds, a line per way.

    Raises:
        ValueError: if there are no records, or of several tasks.
    """
    found = accuracies(records)
    counts = sorted({count for by_labels in found.values() for count in by_labels})
    lines = [f"{'labels':14}" + "".join(f"{count:>15}" for count in counts)]
    for way, by_labels in found.items():
        lines.append(f"{way:14}" + "".join(f"{_mean_and_error(by_labels.get(count, [])):>15}" for count in counts))
    return "\n".join(lines)


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of some values; NaN for a single one, which says nothing about it."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _mean_and_error(values: Sequence[float]) -> str:
    if not values:
        return "-"
    error = standard_error(values)
    return f"{statistics.fmean(values):.1%}" + ("" if math.isnan(error) else f" ± {100 * error:.1f}")


def as_rows(records: Sequence[TransferRecord]) -> list[dict[str, object]]:
    """The records as plain dictionaries, for a file or a table."""
    return [{item.name: getattr(record, item.name) for item in fields(record)} for record in records]
