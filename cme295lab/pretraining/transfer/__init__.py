"""What a pretrained model is good for besides the next token: tasks with few labels.

Read in this order: ``sentences`` and ``tasks`` (labelled texts, generated from a seed: spam, sentiment), ``classifier``
(a decoder with a head that names a class), ``training`` (from scratch, frozen base, fine-tuned) and ``experiment``
(all of them on 16, 64 and 256 labels, with error bars over seeds).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cme295lab._lazy import lazy_names

if TYPE_CHECKING:
    from cme295lab.pretraining.transfer.classifier import TextClassifier
    from cme295lab.pretraining.transfer.experiment import (
        PROFILES,
        TransferOptions,
        accuracies,
        few_label_experiment,
        recipe_for,
        table,
    )
    from cme295lab.pretraining.transfer.tasks import TASKS, Example, Task, make_examples, make_task
    from cme295lab.pretraining.transfer.training import WAYS, Recipe, TransferRecord, train_classifier

_HOME = {
    "Example": "tasks",
    "PROFILES": "experiment",
    "Recipe": "training",
    "TASKS": "tasks",
    "Task": "tasks",
    "TextClassifier": "classifier",
    "TransferOptions": "experiment",
    "TransferRecord": "training",
    "WAYS": "training",
    "accuracies": "experiment",
    "few_label_experiment": "experiment",
    "make_examples": "tasks",
    "make_task": "tasks",
    "recipe_for": "experiment",
    "table": "experiment",
    "train_classifier": "training",
}
_MODULES = ("classifier", "experiment", "sentences", "tasks", "training")

__all__ = [
    "few_label_experiment",
    "TransferOptions",
    "PROFILES",
    "TransferRecord",
    "accuracies",
    "table",
    "make_task",
    "make_examples",
    "Task",
    "Example",
    "TASKS",
    "TextClassifier",
    "train_classifier",
    "Recipe",
    "recipe_for",
    "WAYS",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME, _MODULES)
