"""Static pictures of training runs: losses by domain, memorisation, accuracy over few labels."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cme295lab import palette
from cme295lab.widgets.picture import Picture

COLOURS = (palette.BLUE, palette.ORANGE, palette.GREEN, palette.PURPLE, palette.SKY, palette.VERMILLION, palette.GREY)
_MARKERS = "osD^vXP"


def loss_curves(curves: Mapping[str, Sequence[tuple[float, float]]], *, x_label: str = "step") -> Picture:
    """Losses over the course of training, a line each, named at its end.

    Args:
        curves: name -> (step, loss in nats per token) in order.
        x_label: what the horizontal axis counts.

    Raises:
        ValueError: if there is no curve, or one without points.
    """
    if not curves or not all(curves.values()):
        raise ValueError(f"curves must not be empty, got {({name: len(points) for name, points in curves.items()})}")
    ends = "; ".join(f"{name} from {points[0][1]:.2f} to {points[-1][1]:.2f}" for name, points in curves.items())
    picture = Picture(f"Loss in nats per token over training: {ends}.", figsize=(8.4, 3.4))
    axes = picture.subplots()
    for (name, points), colour, marker in zip(curves.items(), COLOURS, _MARKERS, strict=False):
        steps, losses = zip(*points, strict=True)
        style = {"marker": marker, "markersize": 4} if len(points) < 40 else {"linewidth": 1}
        axes.plot(steps, losses, color=colour, label=f"{name}: {losses[-1]:.2f}", **style)
    axes.set_xlabel(x_label)
    axes.set_ylabel("loss, nats per token")
    axes.legend(frameon=False, fontsize=9, loc="upper right")
    _plain(axes)
    return picture


def few_labels_figure(accuracies: Mapping[str, Mapping[int, Sequence[float]]], *, chance: float, title: str) -> Picture:
    """Accuracy against the number of labels, mean and standard error over seeds, a line per way of training.

    Args:
        accuracies: way -> number of labels -> accuracy of each seed, 0 to 1.
        chance: accuracy of guessing.
        title: the task.

    Raises:
        ValueError: if there is no way of training, or one without results.
    """
    if not accuracies or not all(accuracies.values()):
        raise ValueError(f"accuracies must not be empty, got {dict(accuracies)}")
    said = []
    picture = Picture("", figsize=(6.6, 3.2))
    axes = picture.subplots()
    for (way, by_labels), colour, marker in zip(accuracies.items(), COLOURS, _MARKERS, strict=False):
        counts = sorted(by_labels)
        means = [statistics.fmean(by_labels[count]) for count in counts]
        errors = [_standard_error(by_labels[count]) for count in counts]
        axes.errorbar(counts, means, yerr=errors, color=colour, marker=marker, capsize=3, label=way)
        said.append(f"{way}: " + ", ".join(f"{mean:.0%} of {n}" for n, mean in zip(counts, means, strict=True)))
    axes.axhline(chance, color=palette.GREY, linestyle="--", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel("labelled examples")
    axes.set_ylabel("accuracy")
    axes.set_title(title, loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=9)
    _plain(axes)
    picture.alt_text = f"{title}, accuracy by number of labels. {'; '.join(said)}. Chance is {chance:.0%}."
    return picture


def memorisation_figure(exposure_bits: Mapping[int, Sequence[float]], *, most_bits: float) -> Picture:
    """Exposure of planted canaries against how often each stood in the training data.

    Args:
        exposure_bits: repetitions -> exposure of each canary, in bits.
        most_bits: exposure of a canary that is the likeliest of all candidates.

    Raises:
        ValueError: if there is no canary.
    """
    if not exposure_bits or not all(exposure_bits.values()):
        raise ValueError(f"exposure_bits must not be empty, got {dict(exposure_bits)}")
    counts = sorted(exposure_bits)
    means = [statistics.fmean(exposure_bits[count]) for count in counts]
    said = ", ".join(f"{mean:.1f} bits after {count}" for count, mean in zip(counts, means, strict=True))
    text = f"Exposure of planted canaries by repetitions: {said}. The most possible is {most_bits:.1f} bits."
    picture = Picture(text, figsize=(6.6, 3))
    axes = picture.subplots()
    places = range(len(counts))
    for place, count in zip(places, counts, strict=True):
        values = exposure_bits[count]
        axes.plot([place] * len(values), values, "o", color=palette.ORANGE, alpha=0.7)
    axes.plot(places, means, "-", color=palette.BLUE)
    axes.axhline(most_bits, color=palette.VERMILLION, linewidth=1.2)
    axes.text(0, most_bits, " likeliest of all candidates: can be extracted", va="bottom", fontsize=9)
    axes.set_xticks(places, [f"{count:g}" for count in counts])
    axes.set_xlabel("times the canary stood in the training data")
    axes.set_ylabel("exposure, bits")
    axes.set_ylim(0, 1.2 * most_bits)
    _plain(axes)
    return picture


def _standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.03, y=0.08)
