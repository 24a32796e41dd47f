"""Static pictures of fine-tuning with few parameters: learning rates, trials side by side, spectra of changes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cme295lab import palette
from cme295lab.finetuning.comparisons import TrialResult, best_learning_rates
from cme295lab.finetuning.spectra import singular_values
from cme295lab.widgets.picture import Picture
from cme295lab.widgets.training_figures import COLOURS

_MARKERS = "osD^vXP"


def learning_rate_figure(results: Sequence[TrialResult]) -> Picture:
    """Loss against the learning rate, a line per label, with standard errors; the best of each is ringed.

    Runs that diverged have no point.

    Args:
        results: as `learning_rate_sweep` returns them.

    Raises:
        ValueError: if there are no results, or a label has no finite one.
    """
    if not results:
        raise ValueError("results is empty: give those of a learning-rate sweep")
    best = best_learning_rates(results)
    if lost := [label for label, row in best.items() if not math.isfinite(row.mean)]:
        raise ValueError(f"every run of {', '.join(lost)} diverged: try smaller learning rates")
    said = "; ".join(f"{label} {row.trial.learning_rate:g} (loss {row.mean:.3f})" for label, row in best.items())
    picture = Picture(f"Loss on held-out data against the learning rate. Best: {said}.", figsize=(7.2, 3.3))
    axes = picture.subplots()
    for label, colour, marker in zip(best, COLOURS * 2, _MARKERS * 2, strict=False):
        rows = [row for row in results if row.trial.label == label and math.isfinite(row.mean)]
        rows.sort(key=lambda row: row.trial.learning_rate)
        rates = [row.trial.learning_rate for row in rows]
        axes.errorbar(rates, [row.mean for row in rows], yerr=[_bar(row) for row in rows], color=colour,
                      marker=marker, capsize=3, label=f"{label}: best {best[label].trial.learning_rate:g}")  # fmt: skip
        axes.plot([best[label].trial.learning_rate], [best[label].mean], "o", markersize=13, fillstyle="none",
                  color=colour)  # fmt: skip
    axes.set(xlabel="learning rate", ylabel="held-out loss, nats per token", xscale="log", yscale="log")
    axes.legend(frameon=False, fontsize=9)
    _plain(axes)
    return picture


def trials_figure(results: Sequence[TrialResult], *, reference: TrialResult | None = None) -> Picture:
    """Loss of each trial as a point with its standard error, and small dots for the seeds, one below the other.

    Args:
        results: in the order in which they are drawn.
        reference: another trial, drawn as a line through all.

    Raises:
        ValueError: if there are no results, or one diverged.
    """
    if not results:
        raise ValueError("results is empty: give those of a comparison")
    if lost := [row.trial.label for row in results if not math.isfinite(row.mean)]:
        raise ValueError(f"{', '.join(lost)} diverged: there is no loss to draw")
    said = "; ".join(f"{row.trial.label} {row.mean:.3f}" for row in results)
    picture = Picture(f"Loss on held-out data: {said}.", figsize=(7.2, 0.9 + 0.36 * len(results)))
    axes = picture.subplots()
    for place, row in enumerate(results):
        axes.plot(row.losses, [place] * len(row.losses), ".", color=palette.GREY, markersize=5)
        axes.errorbar([row.mean], [place], xerr=[_bar(row)], color=palette.BLUE, marker="o", capsize=4)
    if reference is not None:
        axes.axvline(reference.mean, color=palette.ORANGE, linestyle="--", label=reference.trial.label)
        axes.legend(frameon=False, fontsize=9)
    axes.set_yticks(range(len(results)), [f"{row.trial.label} ({row.num_trainable:,})" for row in results])
    axes.invert_yaxis()
    axes.set(xlabel="held-out loss, nats per token (mean, standard error, seeds)")
    _plain(axes)
    return picture


def spectra_figure(changes: Mapping[str, Tensor]) -> Picture:
    """Singular values of changes of one matrix, relative to the largest, and the energy that each rank keeps.

    Args:
        changes: name -> a matrix that is not zero.

    Raises:
        ValueError: if there is none, or one is zero.
    """
    values = {name: singular_values(change) for name, change in changes.items()}
    if not values or not all(bool(each[0] > 0) for each in values.values()):
        raise ValueError(f"changes must be matrices other than zero, got {', '.join(values) or 'none'}")
    kept = {name: each.square().cumsum(0) / each.square().sum() for name, each in values.items()}
    ranks = {name: int(torch.searchsorted(each, 0.9)) + 1 for name, each in kept.items()}
    said = "; ".join(f"{name} needs rank {rank}" for name, rank in ranks.items())
    picture = Picture(f"Singular values of changes. For 90 % of the energy {said}.", figsize=(8.4, 3.2))
    left, right = picture.subplots(1, 2)
    for name, colour, dash in zip(values, COLOURS * 2, ("-", "--", ":", "-.") * 4, strict=False):
        places = range(1, len(values[name]) + 1)
        shown = (values[name] / values[name][0]).clamp_min(1e-6)
        left.plot(places, shown.tolist(), color=colour, linestyle=dash, label=name)
        right.plot(places, kept[name].tolist(), color=colour, linestyle=dash, label=f"{name}: 90 % at {ranks[name]}")
    left.set(xlabel="number of the singular value", ylabel="relative to the first", yscale="log", ylim=(1e-4, 1.3))
    right.set(xlabel="rank", ylabel="energy kept", xscale="log", ylim=(0, 1.03))
    right.legend(frameon=False, fontsize=8)
    _plain(left, right)
    return picture


def _bar(row: TrialResult) -> float:
    """Half the length of an error bar; none for a single seed."""
    return 0.0 if math.isnan(row.standard_error) else row.standard_error


def _plain(*axes: Any) -> None:
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
