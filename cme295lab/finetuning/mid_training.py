"""Between pretraining and fine-tuning: more pretraining on other domains, and what it costs on the old ones.

A model that goes on with medicine, law or code gets better there, and worse at what it read before: **forgetting**. It
is seen only if somebody looks, so `mid_train` evaluates every domain, old and new, before the first update and after
the last, and says both changes in one table. The usual remedy is **replay**: a share of the rows comes from the old
domains. A few per cent often do, and cost as much of the new.

    rows     new new new old new new new new new old ...      replay_share = 0.2

The loop is that of fine-tuning with all that belongs to it (`sft`): resume, the log, methods (adapters, which learn
less and forget less), the best weights by an evaluation. Here every token is a target.

Not here: the learning rate to begin with. A model whose pretraining ended with a decayed rate needs a warm-up to a
higher one, or it does not learn; that is `SftConfig.warmup_share` and `learning_rate`.

Source: Ibrahim et al. 2024, "Simple and Scalable Strategies to Continually Pre-train Large Language Models" (replay,
and warming up again); Biderman et al. 2024, "LoRA Learns Less and Forgets Less".
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cme295lab.finetuning.sft import SftConfig, SftRun, train_sft
from cme295lab.pretraining.corpora.mixing import mixture_weights
from cme295lab.pretraining.packing import MixtureDataset, PackedDataset
from cme295lab.transformer.decoder import DecoderLM


@dataclass(frozen=True, kw_only=True)
class DomainChange:
    """The loss of one domain before and after, in nats per token.

    Attributes:
        domain: its name.
        is_old: whether the model is meant to keep it, rather than to learn it.
        before: loss of the base.
        after: loss at the end.
    """

    domain: str
    is_old: bool
    before: float
    after: float

    @property
    def change(self) -> float:
        """After minus before: positive is worse."""
        return self.after - self.before


@dataclass(frozen=True, kw_only=True)
class MidTrainingRun:
    """What continued pretraining did; prints as a table.

    Attributes:
        run: losses of each update and all evaluations.
        domains: changes, new domains first.
        shares: domain -> share of the rows.
    """

    run: SftRun = field(repr=False)
    domains: tuple[DomainChange, ...]
    shares: Mapping[str, float]

    @property
    def learned(self) -> float:
        """How much the loss of the new domains fell, their mean."""
        return -_mean_change(self.domains, is_old=False)

    @property
    def forgotten(self) -> float | None:
        """How much the loss of the old domains rose, their mean; None if none was looked at."""
        return _mean_change(self.domains, is_old=True) if any(domain.is_old for domain in self.domains) else None

    def __str__(self) -> str:
        width = max(len("domain"), *(len(row.domain) for row in self.domains))
        lines = [f"{'domain':<{width}}         share  before   after  change"]
        lines += [
            f"{row.domain:<{width}}  {'old' if row.is_old else 'new'}  {self.shares.get(row.domain, 0.0):>7.1%}"
            f"  {row.before:6.3f}  {row.after:6.3f}  {row.change:+6.3f}"
            for row in self.domains
        ]
        forgotten = "nothing old was looked at" if self.forgotten is None else f"forgotten {self.forgotten:+.3f}"
        return "\n".join([*lines, f"learned {self.learned:+.3f}, {forgotten} (nats per token, mean of domains)"])


def replay_mixture(
    new: Mapping[str, PackedDataset],
    old: Mapping[str, PackedDataset] | None = None,
    *,
    replay_share: float = 0.0,
    weights: Mapping[str, float] | None = None,
    seed: int = 0,
) -> MixtureDataset:
    """New domains, and old ones with a share of the rows.

    Args:
        new: domain -> packed text to learn.
        old: domain -> packed text that was learned before; they share the replay by their sizes in tokens.
        replay_share: of all rows, 0 to below 1.
        weights: of the new domains among themselves; None: by their sizes in tokens.
        seed: decides which rows come from which domain.

    Raises:
        ValueError: if the share is out of range, there is nothing to replay, a domain is new and old, or the data sets
            do not fit together.
    """
    old = dict(old or {})
    if not new:
        raise ValueError("new is empty: give at least one domain to learn")
    if not 0 <= replay_share < 1:
        raise ValueError(f"replay_share must be a share of the rows, 0 to below 1, got {replay_share}")
    if replay_share and not old:
        raise ValueError(f"replay_share is {replay_share}, and there is no old domain to replay: give old")
    if twice := sorted(set(new) & set(old)):
        raise ValueError(f"{', '.join(twice)} cannot be new and old: give the old one another name")
    if weights is not None and set(weights) != set(new):
        raise ValueError(f"weights must name the new domains {', '.join(new)}, got {', '.join(weights) or 'none'}")
    shares = {
        domain: (1 - replay_share) * share for domain, share in mixture_weights(weights or _sizes(new)).items()
    }
    if not replay_share:
        return MixtureDataset(new, shares, seed=seed)
    shares |= {domain: replay_share * share for domain, share in mixture_weights(_sizes(old)).items()}
    return MixtureDataset({**new, **old}, shares, seed=seed)


def mid_train(
    model: DecoderLM,
    new: Mapping[str, PackedDataset],
    config: SftConfig,
    *,
    evaluate_new: Mapping[str, PackedDataset],
    evaluate_old: Mapping[str, PackedDataset] | None = None,
    old: Mapping[str, PackedDataset] | None = None,
    replay_share: float = 0.0,
    weights: Mapping[str, float] | None = None,
    mixture_seed: int = 0,
    folder: str | Path | None = None,
    progress: bool = True,
) -> MidTrainingRun:
    """Go on with pretraining on other domains, and measure what is learned and what is forgotten.

    Args:
        model: the base; changed in place. The weights afterwards are those of the last step.
        new: domain -> packed text to learn.
        config: the settings; `num_steps`, since a mixture has no epochs.
        evaluate_new: name -> held-out text of what is to be learned; the first decides which weights are best.
        evaluate_old: name -> held-out text of what is to be kept.
        old: domain -> packed text that was learned before, for replay.
        replay_share: of all rows, 0 to below 1.
        weights: of the new domains among themselves; None: by their sizes.
        mixture_seed: decides which rows come from which domain.
        folder: for checkpoints and the log; the same call again goes on with what is there.
        progress: whether to draw a progress bar.

    Returns:
        Losses of every domain before and after.

    Raises:
        ValueError: if there is nothing to learn, to replay or to evaluate, a name is used twice, or data and settings
            do not fit (see `train_sft`).
        RuntimeError: if the run was interrupted: there is no loss at its end. The same call goes on.
    """
    evaluate_old = dict(evaluate_old or {})
    if not evaluate_new:
        raise ValueError("evaluate_new is empty: what is learned would not be seen")
    if twice := sorted(set(evaluate_new) & set(evaluate_old)):
        raise ValueError(f"{', '.join(twice)} cannot be evaluated as new and as old: give one another name")
    mixture = replay_mixture(new, old, replay_share=replay_share, weights=weights, seed=mixture_seed)
    run = train_sft(
        model, mixture, config, evaluation={**evaluate_new, **evaluate_old}, folder=folder, progress=progress
    )
    first, last = run.evaluations[0], run.evaluations[-1]
    if run.interrupted or last["step"] != run.num_steps:
        raise RuntimeError(f"the run was interrupted after {run.num_steps} steps: call again with its folder to go on")
    changes = tuple(
        DomainChange(domain=name, is_old=name in evaluate_old, before=first["losses"][name], after=last["losses"][name])
        for name in (*evaluate_new, *evaluate_old)
    )
    return MidTrainingRun(run=run, domains=changes, shares=mixture.weights)


def compare_replay(
    model: DecoderLM,
    new: Mapping[str, PackedDataset],
    config: SftConfig,
    *,
    replay_shares: Sequence[float],
    evaluate_new: Mapping[str, PackedDataset],
    evaluate_old: Mapping[str, PackedDataset],
    old: Mapping[str, PackedDataset],
    progress: bool = True,
) -> dict[float, MidTrainingRun]:
    """The same base and the same number of steps with several shares of replay.

    Args:
        model: the base; each run trains a copy, and it stays as it is.
        replay_shares: to compare.
        new, config, evaluate_new, evaluate_old, old, progress: as for `mid_train`.

    Returns:
        Share -> run.

    Raises:
        ValueError: as for `mid_train`.
    """
    return {
        share: mid_train(
            copy.deepcopy(model), new, config, evaluate_new=evaluate_new, evaluate_old=evaluate_old, old=old,
            replay_share=share, progress=progress,
        )
        for share in replay_shares
    }  # fmt: skip


def _sizes(datasets: Mapping[str, PackedDataset]) -> dict[str, float]:
    return {domain: float(data.num_tokens) for domain, data in datasets.items()}


def _mean_change(domains: Sequence[DomainChange], *, is_old: bool) -> float:
    changes = [domain.change for domain in domains if domain.is_old == is_old]
    return sum(changes) / len(changes)
