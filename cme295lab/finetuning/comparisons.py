"""Fine-tuning the same base in several ways, several times each: which difference is one, and which is chance?

A *trial* is a way of training with a learning rate. Every trial starts from a copy of the same base, and sees the same
data in the same order as the others with that seed; so differences between trials at one seed are of the trials.
Over seeds, data, their order, and the start of whatever is added change. A row has the mean over seeds and its
standard error, s / √n with s² = Σ (x - x̄)² / (n - 1).

A run that diverges has an infinite loss, and the sweep goes on: too large a learning rate is a result. An interrupted
sweep returns the trials that are complete.

Three sweeps are made of it: over learning rates, over ranks, and over places at (nearly) equal parameters.

Source of the questions: Hu et al. 2022, "LoRA", §7; Schulman et al. 2025, "LoRA Without Regret".
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cme295lab.finetuning.attached import check_int, trainable_parameters
from cme295lab.finetuning.lora.counting import lora_targets, num_lora_parameters
from cme295lab.finetuning.lora.targets import Targets
from cme295lab.finetuning.sft.config import SftConfig
from cme295lab.finetuning.sft.run import train_sft
from cme295lab.pretraining.packing import PackedDataset
from cme295lab.pretraining.trainer import TrainingDivergedError
from cme295lab.transformer.decoder import DecoderLM

TrainingData = Callable[[int], PackedDataset]  # seed -> rows
Score = Callable[[DecoderLM], float]
RANK_OPTIONS = {"targets": "all-linear", "alpha": 32.0}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A way of fine-tuning.

    Attributes:
        label: what it is called; trials with one label differ in their learning rate.
        learning_rate: at the peak.
        method, options: as `method` and `method_options` of `SftConfig`.
    """

    label: str
    learning_rate: float
    method: str = "lora"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """What came out of a trial.

    Attributes:
        trial: the trial.
        num_trainable: parameters that were trained.
        losses: on the evaluation data after the last step, by seed; infinite where the run diverged.
        scores: what `score` said, by seed; empty without one, NaN where the run diverged.
        seconds: of all its runs.
    """

    trial: Trial
    num_trainable: int
    losses: tuple[float, ...]
    scores: tuple[float, ...] = ()
    seconds: float = 0.0

    @property
    def mean(self) -> float:
        """Mean loss."""
        return statistics.fmean(self.losses)

    @property
    def standard_error(self) -> float:
        """Of the mean loss; NaN for a single seed, or if a run diverged."""
        return standard_error(self.losses)

    @property
    def mean_score(self) -> float:
        """Mean of the scores; NaN if there is none."""
        return statistics.fmean(self.scores) if self.scores else math.nan


def standard_error(values: Sequence[float]) -> float:
    """Of the mean: s / √n; NaN for fewer than two values, or for values that are not finite."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return math.nan
    return statistics.stdev(values) / math.sqrt(len(values))


def compare(
    base: DecoderLM,
    trials: Sequence[Trial],
    train: TrainingData,
    evaluation: PackedDataset,
    *,
    num_steps: int,
    rows_per_step: int = 8,
    seeds: Sequence[int] = (0, 1, 2),
    score: Score | None = None,
    progress: bool = True,
) -> list[TrialResult]:
    """Run every trial with every seed.

    Args:
        base: stays as it is.
        trials: no two alike.
        train: gives the training data for a seed; it is called once for each.
        evaluation: what all are measured on.
        num_steps, rows_per_step: of each run; the schedule is a cosine with a short warm-up.
        seeds: of data, and of parameters that are added.
        score: another measure of a trained model, such as its accuracy.
        progress: whether to draw a bar, a step for each run.

    Returns:
        A result for each trial, in their order; fewer if the sweep was interrupted.

    Raises:
        ValueError: if there is no trial or no seed, or one occurs twice; and as `train_sft`.
        KeyboardInterrupt: if it was interrupted before one trial was complete.
    """
    keys = [(trial.label, trial.learning_rate) for trial in trials]
    if not keys or len(set(keys)) < len(keys):
        raise ValueError(f"trials must be given, each label and learning rate once, got {keys}")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be given, each once, got {list(seeds)}")
    from tqdm.auto import tqdm

    data = {seed: train(seed) for seed in seeds}
    results: list[TrialResult] = []
    with tqdm(total=len(trials) * len(seeds), unit="run", disable=not progress) as bar:
        for trial in trials:
            bar.set_description(f"{trial.label} at {trial.learning_rate:g}")
            start, losses, scores, num_trainable = time.perf_counter(), [], [], 0
            try:
                for seed in seeds:
                    config = SftConfig(
                        num_steps=num_steps, rows_per_step=rows_per_step, learning_rate=trial.learning_rate,
                        method=trial.method, method_options=trial.options, seed=seed, keep_best=False,
                    )  # fmt: skip
                    model, loss = _run(base, data[seed], config, evaluation)
                    num_trainable = trainable_parameters(model).num_trainable
                    losses.append(loss)
                    if score is not None:
                        scores.append(score(model) if math.isfinite(loss) else math.nan)
                    bar.update()
            except KeyboardInterrupt:
                if not results:
                    raise
                bar.set_description(f"interrupted: {len(results)} of {len(trials)} trials are complete")
                return results
            results.append(
                TrialResult(
                    trial=trial, num_trainable=num_trainable, losses=tuple(losses), scores=tuple(scores),
                    seconds=time.perf_counter() - start,
                )
            )  # fmt: skip
    return results


def _run(
    base: DecoderLM, train: PackedDataset, config: SftConfig, evaluation: PackedDataset
) -> tuple[DecoderLM, float]:
    """A trained copy, and its loss."""
    model = copy.deepcopy(base)
    try:
        run = train_sft(model, train, config, evaluation={"held out": evaluation}, progress=False)
    except TrainingDivergedError:
        return model, math.inf
    losses = run.losses_of("held out")
    return model, losses[max(losses)]


def learning_rate_sweep(
    base: DecoderLM,
    train: TrainingData,
    evaluation: PackedDataset,
    *,
    learning_rates: Mapping[str, Sequence[float]],
    methods: Mapping[str, tuple[str, Mapping[str, Any]]],
    num_steps: int,
    **options: Any,
) -> list[TrialResult]:
    """Every method at every one of its learning rates.

    Args:
        base, train, evaluation, num_steps: as for `compare`.
        learning_rates: label -> the learning rates to try.
        methods: label -> method and its options.
        **options: of `compare`.

    Raises:
        ValueError: if the labels of the two differ; and as `compare`.
    """
    if set(learning_rates) != set(methods):
        raise ValueError(f"learning_rates are for {', '.join(learning_rates)}, and methods are {', '.join(methods)}")
    trials = [
        Trial(label=label, learning_rate=rate, method=method, options=its_options)
        for label, (method, its_options) in methods.items()
        for rate in learning_rates[label]
    ]
    return compare(base, trials, train, evaluation, num_steps=num_steps, **options)


def best_learning_rates(results: Sequence[TrialResult]) -> dict[str, TrialResult]:
    """Label -> the trial with the lowest mean loss.

    Look where it lies: at the end of what was tried, the best may be further out.
    """
    best: dict[str, TrialResult] = {}
    for result in results:
        label = result.trial.label
        if label not in best or result.mean < best[label].mean:
            best[label] = result
    return best


def rank_sweep(
    base: DecoderLM,
    train: TrainingData,
    evaluation: PackedDataset,
    *,
    ranks: Sequence[int],
    learning_rate: float,
    num_steps: int,
    lora: Mapping[str, Any] | None = None,
    **options: Any,
) -> list[TrialResult]:
    """LoRA at several ranks, one learning rate for all: the product is divided by r, so that one will do.

    Args:
        base, train, evaluation, num_steps: as for `compare`.
        ranks: to try.
        learning_rate: of all of them.
        lora: further options of `add_lora`; all linear layers and α = 32 unless told otherwise.
        **options: of `compare`.

    Raises:
        ValueError: if a rank is larger than a side of a matrix; and as `compare`.
    """
    more = {**RANK_OPTIONS, **(lora or {})}
    for rank in ranks:
        lora_targets(base, rank=rank, targets=more["targets"])
    trials = [
        Trial(label=f"rank {rank}", learning_rate=learning_rate, options={**more, "rank": rank}) for rank in ranks
    ]
    return compare(base, trials, train, evaluation, num_steps=num_steps, **options)


def ranks_at_equal_parameters(
    model: DecoderLM, places: Mapping[str, Targets], num_parameters: int
) -> dict[str, int]:
    """For each place, the rank that comes nearest to a number of parameters.

    Args:
        model: whose matrices are meant.
        places: label -> targets.
        num_parameters: to come near to.

    Raises:
        ValueError: if a place would need a rank below 1 or above a side of one of its matrices.
    """
    check_int("num_parameters", num_parameters, 1)
    ranks = {}
    for label, targets in places.items():
        of_rank_one = num_lora_parameters(model, rank=1, targets=targets)
        ranks[label] = rank = round(num_parameters / of_rank_one)
        if rank < 1:
            raise ValueError(f"{label} has {of_rank_one:,} parameters at rank 1, more than {num_parameters:,}")
        lora_targets(model, rank=rank, targets=targets)
    return ranks


def placement_comparison(
    base: DecoderLM,
    train: TrainingData,
    evaluation: PackedDataset,
    *,
    places: Mapping[str, Targets],
    num_parameters: int,
    learning_rate: float,
    num_steps: int,
    lora: Mapping[str, Any] | None = None,
    **options: Any,
) -> list[TrialResult]:
    """LoRA on several sets of matrices, each with the rank that gives (nearly) the same number of parameters.

    Args:
        base, train, evaluation, num_steps: as for `compare`.
        places: label -> targets.
        num_parameters: of each.
        learning_rate: of all of them.
        lora: further options of `add_lora`; α = 32 unless told otherwise.
        **options: of `compare`.

    Raises:
        ValueError: if a place cannot have so many; and as `compare`.
    """
    ranks = ranks_at_equal_parameters(base, places, num_parameters)
    more = {"alpha": RANK_OPTIONS["alpha"], **(lora or {})}
    trials = [
        Trial(
            label=f"{label}, rank {ranks[label]}", learning_rate=learning_rate,
            options={**more, "rank": ranks[label], "targets": targets},
        )
        for label, targets in places.items()
    ]  # fmt: skip
    return compare(base, trials, train, evaluation, num_steps=num_steps, **options)
