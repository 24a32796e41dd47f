"""From text to a trained model: what it reads, how it is trained, and what that costs.

Read in the order in which data flows. ``corpora``: real text that is on any machine with Python, cleaned, free of
duplicates, split without leakage. ``tokenizer``: byte-level BPE, in plain Python to read and from a library to use.
``packing``: documents of all lengths in rows of one length, none of which sees another. Then the training itself:
``optim`` and ``schedule`` (one step, and how long the steps are), ``trainer`` (many steps, that survive being killed),
``memorization`` (what the model can say by heart), ``course_model`` (the course's own models, made with all of it).
Beside them the accounting: ``flops`` (floating-point operations, by formula and counted), ``cost`` (hours, money,
energy), and ``transfer`` (what a trained model is good for besides the next token).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cme295lab._lazy import lazy_names

if TYPE_CHECKING:
    from cme295lab.pretraining.corpora import Corpus, Document, course_corpus
    from cme295lab.pretraining.cost import (
        Assumption,
        Assumptions,
        TrainingCost,
        assumptions_for,
        cost_of_gpu_hours,
        training_cost,
    )
    from cme295lab.pretraining.flops.breakdown import FlopBreakdown
    from cme295lab.pretraining.flops.counting import flops_per_token, training_flops
    from cme295lab.pretraining.flops.published import approximate_training_flops
    from cme295lab.pretraining.flops.quantities import FlopCount, FlopRate
    from cme295lab.pretraining.flops.utilization import hfu, mfu, tokens_per_s, training_time_s
    from cme295lab.pretraining.memorization import VerbatimIndex, memorization_experiment
    from cme295lab.pretraining.optim import SGD, Adam, AdamW
    from cme295lab.pretraining.packing import Batch, MixtureDataset, PackedDataset
    from cme295lab.pretraining.schedule import Schedule
    from cme295lab.pretraining.tokenizer.library import train_tokenizer
    from cme295lab.pretraining.trainer import TrainConfig, Trainer, TrainingRun
    from cme295lab.pretraining.transfer.experiment import few_label_experiment

_HOME: dict[str, str] = {
    "Adam": "optim",
    "AdamW": "optim",
    "SGD": "optim",
    "Schedule": "schedule",
    "TrainConfig": "trainer",
    "Trainer": "trainer",
    "TrainingRun": "trainer",
    "VerbatimIndex": "memorization",
    "memorization_experiment": "memorization",
    "Assumption": "cost",
    "Assumptions": "cost",
    "Batch": "packing",
    "Corpus": "corpora",
    "Document": "corpora",
    "FlopBreakdown": "flops.breakdown",
    "FlopCount": "flops.quantities",
    "FlopRate": "flops.quantities",
    "MixtureDataset": "packing",
    "PackedDataset": "packing",
    "TrainingCost": "cost",
    "approximate_training_flops": "flops.published",
    "course_corpus": "corpora",
    "assumptions_for": "cost",
    "cost_of_gpu_hours": "cost",
    "few_label_experiment": "transfer",
    "flops_per_token": "flops.counting",
    "hfu": "flops.utilization",
    "mfu": "flops.utilization",
    "tokens_per_s": "flops.utilization",
    "training_cost": "cost",
    "training_flops": "flops.counting",
    "training_time_s": "flops.utilization",
    "train_tokenizer": "tokenizer",
}
_MODULES = (
    "packing", "corpora", "tokenizer", "optim", "schedule", "trainer", "memorization", "course_model", "flops", "cost",
    "transfer",
)  # fmt: skip

__all__: list[str] = [
    "course_corpus",
    "Corpus",
    "Document",
    "train_tokenizer",
    "PackedDataset",
    "MixtureDataset",
    "Batch",
    "SGD",
    "Adam",
    "AdamW",
    "Schedule",
    "TrainConfig",
    "Trainer",
    "TrainingRun",
    "VerbatimIndex",
    "memorization_experiment",
    "flops_per_token",
    "training_flops",
    "approximate_training_flops",
    "FlopBreakdown",
    "FlopCount",
    "FlopRate",
    "mfu",
    "hfu",
    "tokens_per_s",
    "training_time_s",
    "training_cost",
    "cost_of_gpu_hours",
    "assumptions_for",
    "Assumption",
    "Assumptions",
    "TrainingCost",
    "few_label_experiment",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME, _MODULES)
