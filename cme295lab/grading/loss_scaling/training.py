"""Right and wrong training steps with fp32 masters, which part 3 runs beside the student's.

The loss is the check's own: it sees what the forward pass was given and by what the loss was multiplied, and its
gradients are chosen, so that they can be tiny, infinite or NaN in a step. One implementation of the step, right with
every option at its default (a test holds it to torch.amp and to plain fp32 training); the options are the mistakes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A known mistake; the defaults make none.

    Args:
        cause: the mistake, in the words of the exercise.
        scaled: whether the loss is scaled.
        unscale: when gradients are divided by the scale: "before clipping", "after clipping", "never", or the
            "learning rate" is divided instead.
        inverted: whether gradients are multiplied by the scale instead of divided.
        half: whether they are divided in fp16, before they become fp32.
        checked: what is looked at: "all", "nothing", "inf" (not NaN), "first" or "last" tensor, "loss". Or the step is
            taken, and reported: "later", "masters" (by what became of them), "zeros" (with 0 for what is not finite),
            "all zeros" (with nothing but 0).
        clip: "norm", "none", "each" (tensor by itself), "always" (also what is small enough) or "values".
        rounded: whether masters are rounded to 16 bits after the step.
        copied: whether the 16-bit weights are written.
        copied_back: whether masters are read from the 16-bit weights before the step.
        cleared: whether gradients are cleared, "always", "never", or "taken" (after steps that are taken).
        stepped: whether the optimizer makes its step.
        flag: what is returned, "right", "inverted" or "false".
    """

    cause: str = ""
    scaled: bool = True
    unscale: str = "before clipping"
    inverted: bool = False
    half: bool = False
    checked: str = "all"
    clip: str = "norm"
    rounded: bool = False
    copied: bool = True
    copied_back: bool = False
    cleared: str = "always"
    stepped: bool = True
    flag: str = "right"


class _ChosenGradient(torch.autograd.Function):
    """0, with a gradient of our choice; it keeps by what the loss was multiplied."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, gradient: Tensor, seen: list[float]) -> Tensor:
        """The loss."""
        ctx.gradient, ctx.dtype, ctx.seen = gradient, weight.dtype, seen
        return torch.zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        """The gradient in the weight's format."""
        ctx.seen.append(float(outer[0]))
        return (outer[0].float() * ctx.gradient).to(ctx.dtype), None, None


@dataclass(kw_only=True)
class Losses:
    """The losses of a run: each call is a forward pass on the weights that are handed over.

    Args:
        gradients: of each step, a tensor for each weight.
        pull: the gradient of step i is gradients[i] + pull * weight, so that it depends on the weights.
        infinite: steps whose loss is infinite.
        step: the number of the step.
        dtypes: of the weights that were handed over in this step.
        multipliers: by what the loss was multiplied, in this step.
    """

    gradients: Sequence[Sequence[Tensor]]
    pull: float = 0.0
    infinite: tuple[int, ...] = ()
    step: int = 0
    dtypes: list[torch.dtype] = field(default_factory=list)
    multipliers: list[float] = field(default_factory=list)

    def start(self, step: int) -> None:
        """Begin a step."""
        self.step = step
        self.dtypes.clear()
        self.multipliers.clear()

    def __call__(self, weights: Sequence[Tensor]) -> Tensor:
        """The loss, fp32."""
        self.dtypes += [weight.dtype for weight in weights]
        parts = [
            _ChosenGradient.apply(weight, self._gradient(weight, gradient), self.multipliers)
            for weight, gradient in zip(weights, self.gradients[self.step], strict=True)
        ]
        total: Tensor = torch.stack(parts).sum() + (math.inf if self.step in self.infinite else 1.0)
        return total

    def _gradient(self, weight: Tensor, chosen: Tensor) -> Tensor:
        return chosen + self.pull * weight.detach().float() if self.pull else chosen


@dataclass(frozen=True, kw_only=True)
class StepFacts:
    """What is left after one step.

    Args:
        masters, weights: copies.
        flag: what the step returned.
        dtypes: of the weights that the forward pass was given; empty if there was none.
        multipliers: by what the loss was multiplied.
    """

    masters: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    flag: Any
    dtypes: tuple[torch.dtype, ...]
    multipliers: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Run:
    """Some training steps.

    Args:
        masters: fp32, where they start.
        gradients: of each step, a tensor for each weight.
        scale: of the loss.
        max_norm: gradients are clipped to it.
        adam: whether the optimizer is AdamW rather than SGD.
        learning_rate: of it.
        pull, infinite: see `Losses`.
        dtype: of the 16-bit weights.
    """

    masters: tuple[Tensor, ...]
    gradients: tuple[tuple[Tensor, ...], ...]
    scale: float = 1024.0
    max_norm: float = 1e9
    adam: bool = False
    learning_rate: float = 0.5
    pull: float = 0.0
    infinite: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float16

    def follow(self, step: Callable[..., Any]) -> Iterator[StepFacts]:
        """Take the steps, each with step(loss_of, masters, weights, optimizer, scale, max_norm), as asked for."""
        masters = [master.clone() for master in self.masters]
        weights = [master.to(self.dtype).requires_grad_() for master in masters]
        rate = self.learning_rate
        optimizer: torch.optim.Optimizer = torch.optim.SGD(masters, lr=rate)
        if self.adam:
            optimizer = torch.optim.AdamW(masters, lr=rate, eps=1e-15, weight_decay=0.0, foreach=False)
        losses = Losses(gradients=self.gradients, pull=self.pull, infinite=self.infinite)
        for number in range(len(self.gradients)):
            losses.start(number)
            flag = step(losses, list(masters), list(weights), optimizer, self.scale, self.max_norm)
            yield StepFacts(
                masters=tuple(master.detach().clone() for master in masters),
                weights=tuple(weight.detach().clone() for weight in weights),
                flag=flag, dtypes=tuple(losses.dtypes), multipliers=tuple(losses.multipliers),
            )  # fmt: skip


def step_with(
    mistake: Mistake,
    loss_of: Callable[[Sequence[Tensor]], Tensor],
    masters: list[Tensor],
    weights: list[Tensor],
    optimizer: torch.optim.Optimizer,
    scale: float,
    max_norm: float,
) -> bool:
    """One step; whether it was skipped."""
    loss = loss_of(weights)
    (loss * scale if mistake.scaled else loss).backward()
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    used = _divided(mistake, gradients, scale)
    bad = _is_bad(mistake, used, loss)
    skipped = bad and mistake.checked not in ("nothing", "later", "masters", "zeros", "all zeros")
    if bad and mistake.checked == "zeros":
        used = [gradient.nan_to_num(0.0, 0.0, 0.0) for gradient in used]
    if bad and mistake.checked == "all zeros":
        used = [torch.zeros_like(gradient) for gradient in used]
    if not skipped:
        used = _clipped(mistake.clip, used, max_norm)
        if mistake.unscale == "after clipping":
            used = [gradient / scale for gradient in used]
        _update(mistake, masters, weights, optimizer, used, scale)
    if mistake.checked == "masters":
        bad = not all(bool(master.isfinite().all()) for master in masters)
    if mistake.cleared == "always" or (mistake.cleared == "taken" and not skipped):
        for weight in weights:
            weight.grad = None
    return {"right": bad, "inverted": not bad, "false": False}[mistake.flag]


def _divided(mistake: Mistake, gradients: Sequence[Tensor], scale: float) -> list[Tensor]:
    if mistake.half:
        return [(gradient / scale).float() for gradient in gradients]
    if mistake.unscale != "before clipping":
        return [gradient.float() for gradient in gradients]
    return [gradient.float() * scale if mistake.inverted else gradient.float() / scale for gradient in gradients]


def _is_bad(mistake: Mistake, gradients: Sequence[Tensor], loss: Tensor) -> bool:
    if mistake.checked == "nothing":
        return False
    if mistake.checked == "loss":
        return not math.isfinite(float(loss.detach()))
    looked_at = {"first": gradients[:1], "last": gradients[-1:]}.get(mistake.checked, gradients)
    if mistake.checked == "inf":
        return any(bool(gradient.isinf().any()) for gradient in looked_at)
    return not all(bool(gradient.isfinite().all()) for gradient in looked_at)


def _clipped(clip: str, gradients: list[Tensor], max_norm: float) -> list[Tensor]:
    if clip == "values":
        return [gradient.clamp(-max_norm, max_norm) for gradient in gradients]
    if clip == "none":
        return gradients
    norms = [gradient.norm() for gradient in gradients]
    total = torch.stack(norms).norm()
    factors = [max_norm / (norm if clip == "each" else total) for norm in norms]
    # A norm of 0 gives inf, and one that is NaN stays NaN.
    kept = [factor if clip == "always" else factor.clamp(max=1.0) for factor in factors]
    return [gradient * factor for gradient, factor in zip(gradients, kept, strict=True)]


@torch.no_grad()
def _update(
    mistake: Mistake,
    masters: Sequence[Tensor],
    weights: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    gradients: Sequence[Tensor],
    scale: float,
) -> None:
    for master, weight, gradient in zip(masters, weights, gradients, strict=True):
        if mistake.copied_back:
            master.copy_(weight)
        master.grad = gradient.clone()
    rates = [group["lr"] for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate / scale if mistake.unscale == "learning rate" else rate
    if mistake.stepped:
        optimizer.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for master, weight in zip(masters, weights, strict=True):
        master.grad = None
        if mistake.rounded:
            master.copy_(master.to(weight.dtype))
        if mistake.copied:
            weight.copy_(master)
