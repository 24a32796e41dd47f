"""The settings of a fine-tuning run: those of a training run, in the terms in which one thinks of fine-tuning.

Data are few, so the length is given in epochs as often as in steps; the warm-up is a share of it. Weights are good
already, so there is no weight decay by default, and the learning rate is smaller than in pretraining: about a tenth
where all parameters are trained, about as large where an adapter is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cme295lab.finetuning.sft.methods import METHODS
from cme295lab.finetuning.sft.optimizers import OptimizerChoice
from cme295lab.pretraining.packing import MixtureDataset, PackedDataset
from cme295lab.pretraining.schedule import Kind
from cme295lab.pretraining.trainer import TrainConfig


@dataclass(frozen=True, kw_only=True)
class SftConfig:
    """The settings of a fine-tuning run.

    Attributes:
        num_steps: updates of the weights; or
        epochs: how often all rows of the training data are read (the last step may read into the next epoch).
        rows_per_step: rows of a step, all micro-batches together.
        micro_rows: rows that pass the model at once, a divisor of rows_per_step; None for all of them.
        seq: tokens of a row, if the data shall be checked for it; None: the data's.
        learning_rate: at the peak of the schedule.
        warmup_share: of the steps, until the peak.
        schedule: "constant", "linear", "cosine" or "wsd".
        final_share: learning rate at the end, as a share of the peak.
        weight_decay, betas, eps: of AdamW.
        clip_norm: largest norm of the gradient of all that is trained; None to leave it as it is.
        method: which parameters are trained, one of `METHODS`.
        method_options: of the method, such as {"rank": 8}; plain values, since they are stored.
        optimizer: "adamw" or "paged-adamw", whose states are on the device up to a budget.
        optimizer_options: {"budget_bytes": ...} of "paged-adamw", and {"lora_plus_ratio": 16.0} of LoRA+, with either;
            all of them: `OptimizerChoice`.
        seed: of dropout, and of parameters that the method adds.
        evaluate_every: updates between evaluations; None for one before the first and one after the last.
        evaluation_rows: of each evaluation, the first of its data; None for all.
        checkpoint_every: updates between checkpoints; None for one at the end.
        keep_best: whether the weights with the lowest evaluation loss are kept.
        best_by: which evaluation decides; None for the first that is given.

    Raises:
        TypeError: if a count is no integer, a method's option cannot be stored, or the optimizer has no such option.
        ValueError: if a value is out of range, the method or the optimizer is unknown, or not exactly one of num_steps
            and epochs is given.
    """

    num_steps: int | None = None
    epochs: float | None = None
    rows_per_step: int
    micro_rows: int | None = None
    seq: int | None = None
    learning_rate: float
    warmup_share: float = 0.05
    schedule: Kind = "cosine"
    final_share: float = 0.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip_norm: float | None = 1.0
    method: str = "full"
    method_options: Mapping[str, Any] = field(default_factory=dict)
    optimizer: str = "adamw"
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    evaluate_every: int | None = None
    evaluation_rows: int | None = None
    checkpoint_every: int | None = None
    keep_best: bool = True
    best_by: str | None = None

    def __post_init__(self) -> None:
        if (self.num_steps is None) == (self.epochs is None):
            raise ValueError(f"give num_steps or epochs, one of them, got {self.num_steps} and {self.epochs}")
        if self.epochs is not None and not (math.isfinite(self.epochs) and self.epochs > 0):
            raise ValueError(f"epochs must be a positive number, got {self.epochs}")
        if not 0 <= self.warmup_share < 1:
            raise ValueError(f"warmup_share must be a share of the steps, 0 to below 1, got {self.warmup_share}")
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if self.best_by is not None and not self.keep_best:
            raise ValueError(f"best_by={self.best_by!r} needs keep_best=True: nothing is kept otherwise")
        try:
            json.dumps(dict(self.method_options))
        except TypeError as error:
            raise TypeError(f"method_options must be plain values, since a run stores them: {error}") from error
        choice = self.optimizer_choice()
        if choice.lora_plus_ratio is not None and self.method not in ("lora", "as-marked"):
            raise ValueError(
                f"lora_plus_ratio needs method 'lora', or 'as-marked' and a model with LoRA, got {self.method!r}"
            )
        self._train_config(num_steps=self.num_steps or 1, seq=self.seq or 2)  # its own checks

    def optimizer_choice(self) -> OptimizerChoice:
        """The optimizer with its options, checked."""
        return OptimizerChoice.of(self.optimizer, self.optimizer_options)

    def train_config(self, train: PackedDataset | MixtureDataset) -> TrainConfig:
        """The settings of the training run on some data.

        Args:
            train: what is trained on; its size decides how many steps an epoch has.

        Raises:
            ValueError: if epochs are asked for of a mixture, whose parts have epochs of their own.
        """
        if self.num_steps is not None:
            num_steps = self.num_steps
        elif isinstance(train, MixtureDataset):
            raise ValueError(f"a mixture has no epochs (got epochs={self.epochs}), each part its own: give num_steps")
        else:
            num_steps = max(1, math.ceil(float(self.epochs or 0) * train.num_rows / self.rows_per_step))
        return self._train_config(num_steps=num_steps, seq=self.seq or train.seq)

    def _train_config(self, *, num_steps: int, seq: int) -> TrainConfig:
        return TrainConfig(
            num_steps=num_steps, seq=seq, rows_per_step=self.rows_per_step, micro_rows=self.micro_rows,
            learning_rate=self.learning_rate, warmup_steps=round(self.warmup_share * num_steps),
            schedule=self.schedule, final_share=self.final_share, weight_decay=self.weight_decay, betas=self.betas,
            eps=self.eps, clip_norm=self.clip_norm, seed=self.seed, evaluate_every=self.evaluate_every,
            evaluation_rows=self.evaluation_rows, checkpoint_every=self.checkpoint_every,
        )  # fmt: skip
