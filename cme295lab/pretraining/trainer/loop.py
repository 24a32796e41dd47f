"""The training loop: data in, a trained model and the story of its losses out.

    step s   batch(s) ─ micro-batches ─ gradient ─ clip ─ AdamW at learning_rate × schedule(s) ─ log ─ checkpoint

**Killed at any moment, resumed bit for bit.** A step depends on the weights, the optimizer's states and s, on nothing
else: batches are a function of s, so is the learning rate, and dropout is seeded anew by (seed, s). All of that is in
one file that is replaced in one go (`checkpoint`). After a `kill -9`, `Trainer.resume` takes the last checkpoint,
cuts the log back to it, and gets the weights, states and losses of a run that was never interrupted; on the same
machine with as many threads, that is, since sums are rounded differently elsewhere.

Ctrl-C (or a notebook's stop button) lets the step in hand finish, writes a checkpoint and returns what was done; a
second one stops at once. A loss or gradient that is not finite stops the run before it reaches the weights.

**What is trained** is every parameter that asks for gradients (`requires_grad`): all of them in pretraining, few where
a base is frozen. A checkpoint holds these alone, and a hash of all that is frozen, so that a run is never resumed on
another base. Trainers with habits of their own (`cme295lab.finetuning.sft`) override `_make_optimizer`, `_next_batch`,
`_evaluate`, `_before_first_step` and `_run_facts`. Each group of an optimizer has a peak of its own, the "lr" that it
was made with, and all follow the one schedule.

Not covered: several devices (`cme295lab.parallel`), precisions below fp32.
"""

from __future__ import annotations

import hashlib
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from cme295lab.hardware import Device, get_device
from cme295lab.pretraining.flops.counting import flops_per_token
from cme295lab.pretraining.optim import AdamW, Optimizer, decay_groups
from cme295lab.pretraining.packing import Batch, MixtureDataset, PackedDataset
from cme295lab.pretraining.trainer.checkpoint import (
    has_checkpoint,
    load_parameters,
    optimizer_part,
    read_checkpoint,
    write_checkpoint,
)
from cme295lab.pretraining.trainer.config import TrainConfig
from cme295lab.pretraining.trainer.evaluation import evaluate
from cme295lab.pretraining.trainer.gradients import accumulate_gradients, clip_gradients
from cme295lab.pretraining.trainer.log import Record, RunLog, cut_log
from cme295lab.pretraining.trainer.progress import Progress
from cme295lab.transformer.config import ModelConfig
from cme295lab.transformer.decoder import DecoderLM

Data = PackedDataset | MixtureDataset


class TrainingDivergedError(ArithmeticError):
    """The loss or the gradient is no longer a finite number."""


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What a run has done so far, from its first step, across interruptions.

    Attributes:
        records: of each update: "step" (from 1), "loss" (before it, nats per token), "auxiliary_loss" (experts),
            "learning_rate", "gradient_norm" (before clipping), "num_tokens" (positions read so far), "tokens_per_s"
            (positions), "mfu" (None without a peak).
        evaluations: "step" (updates done) and "losses", domain -> nats per token.
        num_steps: updates done.
        interrupted: whether Ctrl-C ended it.
    """

    records: list[Record] = field(repr=False)
    evaluations: list[Record] = field(repr=False)
    num_steps: int
    interrupted: bool = False

    @property
    def losses(self) -> list[float]:
        """The training loss of each update."""
        return [record["loss"] for record in self.records]


class Trainer:
    """Trains a decoder with AdamW.

    Args:
        model: its weights are changed in place.
        data: `batch(step, rows)` gives the rows of a step.
        config: the settings.
        validation: domain -> rows to evaluate on.
        folder: for the checkpoint and the log; None keeps nothing.
        progress: whether to draw a progress bar.
        peak: what MFU is measured against: a GPU's name, or FLOP/s, such as `measure_peak()`; None for no MFU.

    Raises:
        ValueError: if rows are longer than the model's max_seq or not `config.seq` long, the data have tokens that the
            model does not know, or all of its parameters are frozen.
        FileExistsError: if the folder holds a run.
    """

    # Parts of a run that must be the same when it is resumed, and what it is if they are not
    _same_when_resumed: ClassVar[Mapping[str, str]] = {
        "model": "a model of another shape",
        "data": "other data",
        "frozen": "another base",
    }

    def __init__(
        self,
        model: DecoderLM,
        data: Data,
        config: TrainConfig,
        *,
        validation: Mapping[str, PackedDataset] | None = None,
        folder: str | Path | None = None,
        progress: bool = True,
        peak: str | Device | float | None = None,
    ) -> None:
        self.model, self.data, self.config = model, data, config
        self.validation = dict(validation or {})
        self.folder = None if folder is None else Path(folder)
        self.progress = progress
        self.peak_flops_per_s = get_device(peak).peak("fp32") if isinstance(peak, str | Device) else peak
        self._check()
        if self.folder is not None and has_checkpoint(self.folder):
            raise FileExistsError(f"{self.folder} holds a run: Trainer.resume(folder, model, data) goes on with it")
        self._trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        if not self._trained:
            raise ValueError("nothing to train: no parameter of the model has requires_grad, all are frozen")
        self._frozen_hash = _frozen_hash(model)
        self.optimizer = self._make_optimizer()
        self._peak_rates = [group["lr"] for group in self.optimizer.param_groups]
        self._schedule = config.make_schedule()
        self._flops_per_token = float(flops_per_token(model.config, config.seq).model_flops)
        self._records: list[Record] = []
        self._evaluations: list[Record] = []
        self._step, self._saved_step = 0, -1
        self._stop, self._updating = False, False

    @classmethod
    def resume(
        cls,
        folder: str | Path,
        model: DecoderLM,
        data: Data,
        *,
        validation: Mapping[str, PackedDataset] | None = None,
        progress: bool = True,
        peak: str | Device | float | None = None,
        **options: Any,
    ) -> Trainer:
        """A trainer that goes on where a folder's last checkpoint is; the settings are the run's own.

        Args:
            folder: of the run.
            model: of the same shape; the weights that are trained are replaced.
            data: the run's own.
            validation, progress, peak: as for a new trainer.
            options: further ones that a new trainer of this class has.

        Raises:
            FileNotFoundError: if there is no checkpoint.
            ValueError: if the checkpoint or the log is damaged, or belongs to another model or other data.
        """
        folder = Path(folder)
        tensors, facts = read_checkpoint(folder)
        config = TrainConfig.from_dict(facts["run"]["train"])
        trainer = cls(model, data, config, validation=validation, progress=progress, peak=peak, **options)
        here, there = trainer._run_facts(), facts["run"]
        for part, what in cls._same_when_resumed.items():
            if here.get(part) != there.get(part):
                raise ValueError(
                    f"the run in {folder} is of {what}: there {there.get(part)}, here {here.get(part)}. Give what it "
                    f"was started with, or start another run in another folder"
                )
        load_parameters(trainer._trained, optimizer_part(tensors, "model/"))
        trainer.optimizer.load_state_tensors(optimizer_part(tensors, "optimizer/"))
        trainer.folder, trainer._step, trainer._saved_step = folder, facts["step"], facts["step"]
        trainer._records, trainer._evaluations = cut_log(folder, facts["step"])
        return trainer

    def run(self, until: int | None = None) -> TrainingRun:
        """Train, and return what was done from the first step on.

        Args:
            until: updates after which to stop; None for all. The schedule is that of the whole run.

        Raises:
            ValueError: if `until` is beyond the run, or before what is done.
            TrainingDivergedError: if the loss or the gradient is not finite.
        """
        last = self.config.num_steps if until is None else until
        if not self._step <= last <= self.config.num_steps:
            raise ValueError(f"until must be {self._step} (done) to {self.config.num_steps} (num_steps), got {until}")
        self._stop = False
        self.model.train()
        with RunLog(self.folder) as log, Progress(self.progress, self._step, last) as bar, self._finish_step_first():
            try:
                if self._saved_step < 0:
                    self._save(log)
                if not self._step:
                    self._before_first_step(log)
                while self._step < last and not self._stop:
                    self._one_step(log, bar)
            except KeyboardInterrupt:
                self._stop = True
                if self._updating:  # some weights are new and some old: the last checkpoint is what can be kept
                    raise
            if self._saved_step != self._step:
                self._save(log)
        return TrainingRun(
            records=list(self._records), evaluations=list(self._evaluations), num_steps=self._step,
            interrupted=self._stop,
        )  # fmt: skip

    def _one_step(self, log: RunLog, bar: Progress) -> None:
        start, config = time.perf_counter(), self.config
        share = self._schedule(self._step)
        learning_rate = config.learning_rate * share
        batch = self._next_batch()
        self.optimizer.zero_grad()
        with self._dropout_seed():
            loss, auxiliary = accumulate_gradients(
                self.model,
                batch.split(config.micro_rows or config.rows_per_step),
                isolate_documents=config.isolate_documents,
                balance_weight=config.balance_weight,
                router_z_weight=config.router_z_weight,
            )
        norm = clip_gradients(self._trained.values(), config.clip_norm)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._diverged(loss, norm, learning_rate)
        for group, peak in zip(self.optimizer.param_groups, self._peak_rates, strict=True):
            group["lr"] = peak * share
        self._updating = True
        self.optimizer.step()
        self._step += 1
        tokens = config.rows_per_step * config.seq
        per_second = tokens / (time.perf_counter() - start)
        record = {
            "step": self._step, "loss": loss, "auxiliary_loss": auxiliary, "learning_rate": learning_rate,
            "gradient_norm": norm, "num_tokens": self._step * tokens, "tokens_per_s": per_second,
            "mfu": self._mfu(per_second),
        }  # fmt: skip
        self._records.append(record)
        log.record(record)
        bar.show(record)
        done = self._step == config.num_steps
        if self.validation and (done or (config.evaluate_every and self._step % config.evaluate_every == 0)):
            self._evaluate(log)
        self._updating = False
        if config.checkpoint_every and self._step % config.checkpoint_every == 0:
            self._save(log)

    def _make_optimizer(self) -> Optimizer:
        """The optimizer of the run, each group with its learning rate at the schedule's peak as "lr"."""
        config = self.config
        groups = decay_groups(self.model, config.weight_decay)
        return AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps)

    def _before_first_step(self, log: RunLog) -> None:
        """What happens once the first checkpoint is there; again, if the run was killed before the second."""

    def _next_batch(self) -> Batch:
        return self.data.batch(self._step, self.config.rows_per_step)

    def _mfu(self, tokens_per_s: float) -> float | None:
        """Not `flops.mfu`, which refuses shares above 1: a measured peak can be beaten by a per cent."""
        return None if self.peak_flops_per_s is None else self._flops_per_token * tokens_per_s / self.peak_flops_per_s

    def _evaluate(self, log: RunLog) -> None:
        config = self.config
        rows = config.micro_rows or config.rows_per_step
        losses = {
            domain: evaluate(self.model, data, rows=rows, max_rows=config.evaluation_rows,
                             isolate_documents=config.isolate_documents)
            for domain, data in self.validation.items()
        }  # fmt: skip
        evaluation = {"step": self._step, "losses": losses}
        self._evaluations.append(evaluation)
        log.evaluation(evaluation)

    def _save(self, log: RunLog) -> None:
        self._saved_step = self._step
        if self.folder is None:
            return
        log.sync()  # the log is never behind the checkpoint, also after a power cut
        tensors: dict[str, torch.Tensor] = {f"model/{name}": value for name, value in self._trained.items()}
        tensors |= {f"optimizer/{name}": value for name, value in self.optimizer.state_tensors().items()}
        write_checkpoint(self.folder, tensors, self._facts())

    def _facts(self) -> dict[str, Any]:
        return {"step": self._step, "run": self._run_facts()}

    def _run_facts(self) -> dict[str, Any]:
        facts = {
            "train": self.config.to_dict(),
            "model": self.model.config.to_dict(),
            "data": fingerprint(self.data, self.config.rows_per_step),
        }
        return facts if self._frozen_hash is None else {**facts, "frozen": self._frozen_hash}

    def _diverged(self, loss: float, norm: float, learning_rate: float) -> None:
        kept = "" if self.folder is None else f" The checkpoint of step {self._saved_step} is in {self.folder}."
        raise TrainingDivergedError(
            f"update {self._step + 1} has loss {loss:g} and gradient norm {norm:g} at learning rate "
            f"{learning_rate:.3g}: the run has diverged. The weights are those of update {self._step}.{kept} "
            f"Lower the learning rate, warm up for longer, or clip the gradient (clip_norm is {self.config.clip_norm})"
        )

    @contextmanager
    def _dropout_seed(self) -> Iterator[None]:
        """The caller's random numbers stay as they are; those of dropout depend on the seed and the step alone.

        Also for a model without dropout: what hangs on it (LoRA) may have some.
        """
        device = next(iter(self._trained.values())).device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.config.seed * 1_000_003 + self._step)
            yield

    @contextmanager
    def _finish_step_first(self) -> Iterator[None]:
        """Ctrl-C asks the loop to stop after the step; the second one interrupts, as usual."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: object) -> None:
            if self._stop:
                raise KeyboardInterrupt
            self._stop = True

        before = signal.signal(signal.SIGINT, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _check(self) -> None:
        shape: ModelConfig = self.model.config
        for name, data in {"data": self.data, **self.validation}.items():
            if data.seq != self.config.seq:
                raise ValueError(f"{name} has rows of {data.seq} tokens, config.seq is {self.config.seq}")
            largest = largest_token(data)
            if largest >= shape.vocab_size:
                raise ValueError(
                    f"{name} has token {largest}, the model knows {shape.vocab_size}: they belong to other vocabularies"
                )
        if self.config.seq > shape.max_seq:
            raise ValueError(f"seq must be at most the model's max_seq {shape.max_seq}, got {self.config.seq}")


def fingerprint(data: Data, rows: int) -> dict[str, Any]:
    """What tells two data sets apart without reading them whole: sizes, and a hash of their first and a later batch.

    Two sets of the same text differ if other tokens of it are targets.
    """
    digest = hashlib.sha256()
    for step in (0, 1000):
        batch: Batch = data.batch(step, rows)
        digest.update(batch.tokens.numpy().tobytes())
        digest.update(batch.targets.numpy().tobytes())
    return {"kind": type(data).__name__, "num_tokens": data.num_tokens, "seq": data.seq, "hash": digest.hexdigest()}


def largest_token(data: Data) -> int:
    """The largest token number in a data set."""
    if isinstance(data, MixtureDataset):
        return max(largest_token(part) for part in data.datasets.values())
    return data.largest_token


def _frozen_hash(model: DecoderLM) -> str | None:
    """A hash of everything in a model that is not trained; None if nothing is. Read once: it does not change."""
    digest, frozen = hashlib.sha256(), False
    for name, value in sorted(model.state_dict(keep_vars=True).items()):
        if not value.requires_grad:
            frozen = True
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest() if frozen else None
