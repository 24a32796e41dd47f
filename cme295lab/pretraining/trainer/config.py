"""The settings of a training run: plain values, checked, stored beside the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from cme295lab.pretraining.schedule import DecayShape, Kind, Schedule


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings of a training run.

    Attributes:
        num_steps: updates of the weights.
        rows_per_step: rows of a step, all micro-batches together.
        micro_rows: rows that pass the model at once, a divisor of rows_per_step; None for all of them.
        seq: tokens of a row; must be the data's.
        learning_rate: at the peak of the schedule.
        warmup_steps: updates until the peak.
        schedule: "constant", "linear", "cosine" or "wsd".
        final_share: learning rate at the end, as a share of the peak.
        decay_steps: length of the decay of "wsd"; None for a fifth of the run.
        decay_shape: of "wsd": "linear" or "1-sqrt".
        weight_decay: of AdamW, for matrices; norms, biases and embeddings have none.
        betas: of AdamW.
        eps: of AdamW.
        clip_norm: largest norm of the gradient, all parameters together; None to leave it as it is.
        isolate_documents: whether a token sees its own document alone; if not, all that stands before it in the row.
        balance_weight, router_z_weight: of the two auxiliary losses of a mixture of experts.
        seed: of dropout. Data and initial weights have seeds of their own.
        evaluate_every: updates between evaluations; None for one at the end.
        evaluation_rows: of each domain, the first of its data set; None for all.
        checkpoint_every: updates between checkpoints; None for one at the end. There is one at the beginning, too.

    Raises:
        TypeError: if a count is no integer.
        ValueError: if a value is out of range, or micro_rows does not divide rows_per_step.
    """

    num_steps: int
    rows_per_step: int
    micro_rows: int | None = None
    seq: int
    learning_rate: float
    warmup_steps: int = 0
    schedule: Kind = "cosine"
    final_share: float = 0.0
    decay_steps: int | None = None
    decay_shape: DecayShape = "linear"
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    clip_norm: float | None = 1.0
    isolate_documents: bool = True
    balance_weight: float = 0.01
    router_z_weight: float = 0.001
    seed: int = 0
    evaluate_every: int | None = None
    evaluation_rows: int | None = None
    checkpoint_every: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        for name in ("num_steps", "rows_per_step", "micro_rows", "seq", "evaluate_every", "evaluation_rows",
                     "checkpoint_every"):  # fmt: skip
            self._check_count(name)
        self._check_count("seed", at_least=0)
        if self.rows_per_step % (self.micro_rows or self.rows_per_step):
            raise ValueError(
                f"micro_rows must divide rows_per_step, got {self.micro_rows} and {self.rows_per_step}: "
                f"the last micro-batch would be of another size"
            )
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate must be a positive number, got {self.learning_rate}")
        if self.clip_norm is not None and not (math.isfinite(self.clip_norm) and self.clip_norm > 0):
            raise ValueError(f"clip_norm must be a positive number or None, got {self.clip_norm}")
        for name in ("weight_decay", "balance_weight", "router_z_weight"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must be a number that is not negative, got {getattr(self, name)}")
        self.make_schedule()  # its own checks

    def _check_count(self, name: str, at_least: int = 1) -> None:
        value = getattr(self, name)
        if value is None and name not in ("num_steps", "rows_per_step", "seq", "seed"):
            return
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {value!r} of type {type(value).__name__}")
        if value < at_least:
            raise ValueError(f"{name} must be at least {at_least}, got {value}")

    def make_schedule(self) -> Schedule:
        """The learning rate of each step as a share of the peak."""
        return Schedule(
            kind=self.schedule, num_steps=self.num_steps, warmup_steps=self.warmup_steps, floor=self.final_share,
            decay_steps=self.decay_steps, decay_shape=self.decay_shape,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `from_dict` turns back into an equal config."""
        return {**asdict(self), "betas": list(self.betas)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The config of such values.

        Raises:
            ValueError: if a name is not one of a config's.
        """
        known = [item.name for item in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"a TrainConfig has no {', '.join(unknown)}; it has {', '.join(known)}")
        betas = {"betas": tuple(values["betas"])} if "betas" in values else {}  # JSON gives a list
        return cls(**{**values, **betas})
