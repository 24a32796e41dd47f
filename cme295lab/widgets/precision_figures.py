"""Static pictures of training in 16 bits: losses under each policy, and the way of a loss scale."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cme295lab import palette
from cme295lab.precision.mixed_precision import StepRecord
from cme295lab.widgets.picture import Picture
from cme295lab.widgets.training_figures import COLOURS

_DASHES = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)))
_WINDOW = 8  # steps that a point of a line is the mean of: batches differ more than policies do


def policy_losses(results: Mapping[str, Sequence[StepRecord]], *, reference: str = "fp32") -> Picture:
    """Losses of one model under several policies, overlaid, and how far each is from the reference.

    Lines are running means over eight steps.

    Args:
        results: policy -> records, as `compare_policies` returns them.
        reference: the policy that the others are measured against.

    Raises:
        ValueError: if the reference is not among the results, or a policy has no step.
    """
    if reference not in results:
        raise ValueError(f"reference must be one of {', '.join(results)}, got {reference!r}")
    empty = [name for name, records in results.items() if not records]
    if empty:
        raise ValueError(f"results must have a step for each policy; there is none for {', '.join(empty)}")
    ends = "; ".join(f"{name} {records[-1].loss:.3f} after {len(records)} steps" for name, records in results.items())
    picture = Picture(f"Losses in nats per token under each policy, at the end: {ends}.", figsize=(8.6, 3.3))
    losses, distances = picture.subplots(1, 2)
    exact = _running_mean([record.loss for record in results[reference]])
    for (name, records), colour, dash in zip(results.items(), COLOURS, _DASHES * 2, strict=False):
        steps, values = [record.step for record in records], _running_mean([record.loss for record in records])
        width = 4.0 if name == reference else 1.6
        losses.plot(steps, values, linestyle=dash, color=colour, linewidth=width, alpha=0.9, label=name)
        if name != reference:
            distance = [max(abs(value - right), 1e-6) for value, right in zip(values, exact)]
            distances.plot(steps[: len(distance)], distance, linestyle=dash, color=colour, linewidth=1.6, label=name)
    losses.set(xlabel="step", ylabel="loss, nats per token")
    losses.legend(frameon=False, fontsize=9)
    distances.set(xlabel="step", ylabel=f"distance from {reference}, nats", yscale="log")
    _plain(losses, distances)
    return picture


def scale_trace(records: Sequence[StepRecord]) -> Picture:
    """The loss scale from step to step, and the steps that were skipped.

    Raises:
        ValueError: if there are no steps.
    """
    if not records:
        raise ValueError("records is empty: give the steps of a training with loss scaling")
    skipped = [record for record in records if record.skipped]
    scales = [math.log2(record.scale) for record in records]
    way = f"from 2^{scales[0]:g} to 2^{scales[-1]:g}, {len(skipped)} of them skipped"
    picture = Picture(f"Loss scale over {len(records)} steps: {way}.", figsize=(8.4, 2.4))
    axes = picture.subplots()
    axes.step([record.step for record in records], scales, where="mid", color=palette.BLUE)
    axes.plot([record.step for record in skipped], [math.log2(record.scale) for record in skipped], "X",
              color=palette.VERMILLION, label="overflow: step skipped")  # fmt: skip
    axes.set(xlabel="step", ylabel="log₂ of the loss scale")
    if skipped:
        axes.legend(frameon=False, fontsize=9)
    _plain(axes)
    return picture


def _running_mean(values: Sequence[float]) -> list[float]:
    """Each value's mean with those before it, up to eight."""
    windows = (values[max(0, end - _WINDOW) : end] for end in range(1, len(values) + 1))
    return [sum(window) / len(window) for window in windows]


def _plain(*axes: Any) -> None:
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
