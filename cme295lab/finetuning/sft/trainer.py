"""The pretraining loop, fine-tuning: what is different, and nothing else.

The loss is the mean over the assistant's tokens of a batch, Σ w CE / Σ w with w = 1 where the assistant speaks (the end
of its turn included) and 0 elsewhere. Rows have different numbers of such tokens, so a step that is cut into
micro-batches weights each by its count. With 2 tokens at a loss of 1 and 6 at 3 it is 2.5; the mean of the two means
would be 2, and would change with the size of a micro-batch. All of that is `pretraining.trainer`'s, and so are the
schedule, clipping, the log, checkpoints, and that a killed run is resumed bit for bit. Added are

- an evaluation **before the first update**: what the base can do, to compare with;
- the **best** weights by one of the evaluations, in `best.safetensors`: few data are soon learned by heart, and the
  loss on others rises again. Only what is trained is in it;
- an error for a **batch without an answer**, which says the step.

**Best, and killed.** The order of writing is log, checkpoint, best. If the process dies before the last, the checkpoint
holds the very weights that should have been written, and resuming writes them. So the file is always the best of the
evaluations in the log.

Source: the loss's weights: the gradient-accumulation error that was found in several libraries in October 2024.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from cme295lab.finetuning.sft.optimizers import OptimizerChoice
from cme295lab.hardware import Device
from cme295lab.pretraining.optim import Optimizer
from cme295lab.pretraining.packing import Batch, MixtureDataset, PackedDataset
from cme295lab.pretraining.trainer import TrainConfig, Trainer, TrainingRun
from cme295lab.pretraining.trainer.checkpoint import load_parameters, read_checkpoint, write_checkpoint
from cme295lab.pretraining.trainer.log import Record, RunLog
from cme295lab.transformer.decoder import DecoderLM

BEST_NAME = "best.safetensors"


@dataclass(frozen=True, kw_only=True)
class SftRun(TrainingRun):
    """What a fine-tuning run has done so far. `records`, `evaluations` and the rest are a training run's.

    Attributes:
        best_step: updates after which the evaluation `best_by` was lowest, 0 for the base; None if none is kept.
        best_by: the name of that evaluation.
        best_weights: by name, of what was trained, at that step; None where `load_best(model, folder)` reads them.
    """

    best_step: int | None = None
    best_by: str | None = None
    best_weights: Mapping[str, Tensor] | None = field(default=None, repr=False)

    def losses_of(self, name: str) -> dict[int, float]:
        """Step -> loss of one of the evaluations."""
        return {evaluation["step"]: evaluation["losses"][name] for evaluation in self.evaluations}


class SftTrainer(Trainer):
    """Trains those parameters of a decoder that have `requires_grad`, on data whose targets are the assistant's tokens.

    Args:
        model: its trained weights are changed in place; all others stay as they are.
        data, config, folder, progress, peak: as for `Trainer`.
        validation: name -> data to evaluate on.
        best_by: the evaluation by which the best weights are kept; None keeps none.
        method: how the parameters were chosen, plain values; a run is resumed with the same alone.
        optimizer: AdamW if none is given; a run is resumed with one that computes the same.

    Raises:
        ValueError: as for `Trainer`; and if data have no assistant token, or `best_by` is none of the evaluations.
        FileExistsError: if the folder holds a run.
    """

    _same_when_resumed: ClassVar[Mapping[str, str]] = {**Trainer._same_when_resumed, "sft": "other settings"}

    def __init__(
        self,
        model: DecoderLM,
        data: PackedDataset | MixtureDataset,
        config: TrainConfig,
        *,
        validation: Mapping[str, PackedDataset] | None = None,
        folder: str | Path | None = None,
        progress: bool = True,
        peak: str | Device | float | None = None,
        best_by: str | None = None,
        method: Mapping[str, Any] | None = None,
        optimizer: OptimizerChoice | None = None,
    ) -> None:
        self.best_by = best_by
        self.method = json.loads(json.dumps(dict(method or {})))  # tuples as lists, as a checkpoint gives them back
        self.optimizer_choice = optimizer or OptimizerChoice()
        self._best_weights: dict[str, Tensor] | None = None
        super().__init__(model, data, config, validation=validation, folder=folder, progress=progress, peak=peak)

    def _check(self) -> None:
        super()._check()
        for name, data in {"the training data": self.data, **self.validation}.items():
            if not _num_targets(data):
                raise ValueError(f"{name} has no assistant token: there is no loss, and nothing to learn")
        if self.best_by is not None and self.best_by not in self.validation:
            known = ", ".join(self.validation) or "none"
            raise ValueError(f"best_by must be the name of an evaluation ({known}), or None, got {self.best_by!r}")

    @classmethod
    def resume(
        cls,
        folder: str | Path,
        model: DecoderLM,
        data: PackedDataset | MixtureDataset,
        *,
        validation: Mapping[str, PackedDataset] | None = None,
        progress: bool = True,
        peak: str | Device | float | None = None,
        **options: Any,
    ) -> SftTrainer:
        """A trainer that goes on where a folder's last checkpoint is.

        Args:
            folder: of the run.
            model: the run's base, with the same parameters marked; what is trained is replaced.
            data, validation, progress, peak: as for `Trainer.resume`.
            options: `best_by`, `method` and `optimizer`, the run's own.

        Raises:
            FileNotFoundError: if there is no checkpoint.
            ValueError: as for `Trainer.resume`; and if the best weights are missing, or of another step.
        """
        trainer = super().resume(folder, model, data, validation=validation, progress=progress, peak=peak, **options)
        assert isinstance(trainer, SftTrainer)
        trainer._find_best()
        return trainer

    def run(self, until: int | None = None) -> SftRun:
        """Train, and return what was done from the first step on.

        Args:
            until: updates after which to stop; None for all.

        Raises:
            ValueError: if `until` is out of range, or a batch has no assistant token.
            TrainingDivergedError: if the loss or the gradient is not finite.
        """
        run = super().run(until)
        return SftRun(**vars(run), best_step=self._best_step, best_by=self.best_by, best_weights=self._best_weights)

    @property
    def _best_step(self) -> int | None:
        return None if self.best_by is None else best_step(self._evaluations, self.best_by)

    def _run_facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"best_by": self.best_by, "method": self.method}
        if stored := self.optimizer_choice.stored():  # nothing of plain AdamW, which earlier runs say nothing of
            facts["optimizer"] = stored
        return {**super()._run_facts(), "sft": facts}

    def _make_optimizer(self) -> Optimizer:
        return self.optimizer_choice.make(self.model, self.config)

    def _before_first_step(self, log: RunLog) -> None:
        if self.validation and not self._evaluations:
            self._evaluate(log)

    def _next_batch(self) -> Batch:
        batch = super()._next_batch()
        if not batch.num_targets:
            raise ValueError(
                f"the batch of step {self._step + 1} has no assistant token: there is nothing to learn from it. Take "
                f"more rows to a step, or leave such conversations out"
            )
        return batch

    def _evaluate(self, log: RunLog) -> None:
        super()._evaluate(log)
        if self._best_step == self._step:
            self._save(log)
            self._keep_best()

    def _keep_best(self) -> None:
        if self.folder is None:
            self._best_weights = {name: parameter.detach().clone() for name, parameter in self._trained.items()}
        else:
            facts = {"step": self._step, "best_by": self.best_by, "losses": self._evaluations[-1]["losses"]}
            write_checkpoint(self.folder, self._trained, facts, name=BEST_NAME)

    def _find_best(self) -> None:
        """After resuming: the file is there, or its weights are those of the checkpoint."""
        if self.folder is None or self._best_step is None:
            return
        if self._best_step == self._step:
            self._keep_best()
            return
        _, facts = read_checkpoint(self.folder, name=BEST_NAME)
        if facts.get("step") != self._best_step:
            raise ValueError(
                f"{self.folder / BEST_NAME} is of step {facts.get('step')}, the log's best of {self.best_by!r} is step "
                f"{self._best_step}: one of the two was changed"
            )


def best_step(evaluations: Sequence[Record], name: str) -> int | None:
    """The step at which an evaluation was lowest, the first such; None if it never was a finite number.

    Args:
        evaluations: of a run.
        name: which of the losses.
    """
    finite = [entry for entry in evaluations if math.isfinite(entry["losses"][name])]
    return min(finite, key=lambda entry: entry["losses"][name])["step"] if finite else None


def load_best(model: DecoderLM, best: SftRun | str | Path) -> dict[str, Any]:
    """Put the best weights of a run into a model.

    Args:
        model: with the same parameters marked as in the run; only these change.
        best: the run, if it had no folder, or its folder.

    Returns:
        What is known of them: "step", "best_by", "losses"; all evaluations, by name.

    Raises:
        FileNotFoundError: if the folder has no best weights.
        ValueError: if the run kept none in memory, the file is damaged, or the model has other parameters marked.
    """
    if isinstance(best, SftRun):
        if best.best_weights is None:
            raise ValueError("the run holds no best weights: it kept none, or they are in its folder; give that")
        weights = best.best_weights
        losses = next(entry["losses"] for entry in best.evaluations if entry["step"] == best.best_step)
        facts: dict[str, Any] = {"step": best.best_step, "best_by": best.best_by, "losses": losses}
    else:
        weights, facts = read_checkpoint(Path(best), name=BEST_NAME)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    load_parameters(trained, weights)
    return facts


def _num_targets(data: PackedDataset | MixtureDataset) -> int:
    if isinstance(data, MixtureDataset):
        return sum(part.num_targets for part in data.datasets.values())
    return data.num_targets
