"""Training with 16-bit weights: one step, in the order in which its parts have to come.

    forward in 16 bits (`autocast`)
    loss × S, backward                      gradients in 16 bits, in the range of the format
    gradients to fp32, ÷ S                  inf or NaN among them: skip the step, halve S
    clip                                    after the division, or S is clipped
    AdamW on fp32 masters                   fp32 moments
    masters rounded into the weights        16 bits again

The weights of the model become 16-bit tensors when a training is made, and are trained in place. Master weights start
from what they were before. Without masters the same update is computed in fp32 and each new weight rounded once: as
good as weights of 16 bits can be had, and what is below half the gap between two numbers is lost still; or rounded
stochastically, and nothing is lost on average.

Adam's moments are fp32 with every policy, so that policies differ in what they say they differ in. (In fp16 the squares
of gradients below 1.7e-4 would vanish, which is another way to fail.)

Without loss scaling nobody looks for infinities, and a gradient that overflows makes weights NaN: so it goes with plain
16-bit training.

Source: Micikevicius et al. 2018, "Mixed Precision Training", Figure 1 and section 3; Loshchilov and Hutter 2019.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cme295lab.precision.autocast import autocast_like
from cme295lab.precision.loss_scaling import LossScaler
from cme295lab.precision.policies import PrecisionPolicy, get_policy
from cme295lab.precision.stochastic import stochastic_round_


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What happened in one step.

    Attributes:
        step: its number, from 1.
        loss: before scaling.
        scale: S in this step; 1 without loss scaling.
        skipped: whether gradients were not finite and no weight was changed.
        gradient_norm: of all gradients together, unscaled and before clipping; inf or NaN if they are.
    """

    step: int
    loss: float
    scale: float
    skipped: bool
    gradient_norm: float


@dataclass(frozen=True, kw_only=True)
class ModelStateBytes:
    """Bytes that stay between two steps, from the tensors that hold them.

    Attributes:
        weights: the model's parameters.
        gradients: theirs, after a backward pass.
        masters: fp32 weights beside them.
        moments: Adam's two.
        num_parameters: what they are for.
    """

    weights: int
    gradients: int
    masters: int
    moments: int
    num_parameters: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.masters + self.moments

    @property
    def per_parameter(self) -> float:
        """Bytes per parameter."""
        return self.total / self.num_parameters


class MixedPrecisionTraining:
    """A model, its 16-bit weights, and all that is needed to train them.

    Args:
        model: any module with fp32 parameters. They become 16-bit tensors, in place; buffers stay as they are.
        policy: a name of `POLICIES`, or a policy.
        learning_rate: η; the attribute may be changed between steps.
        betas, eps, weight_decay: of AdamW; the decay is on all parameters.
        clip_norm: largest norm of all gradients together; None never clips.
        generator: of stochastic rounding; None takes torch's own.

    Attributes:
        model, policy, learning_rate: the same.
        scaler: the loss scale; None without.
        masters: fp32 weights by name; empty without.
        step_count: updates that were made; skipped steps are none.

    Raises:
        ValueError: if a value is out of range, or nothing can be trained.
        TypeError: if a trainable parameter is not fp32.
    """

    def __init__(
        self,
        model: nn.Module,
        policy: str | PrecisionPolicy,
        *,
        learning_rate: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self.policy = get_policy(policy)
        _check_options(learning_rate, betas, eps, weight_decay, clip_norm)
        self.model, self.learning_rate = model, learning_rate
        self.betas, self.eps, self.weight_decay, self.clip_norm = betas, eps, weight_decay, clip_norm
        self.generator = generator
        self.scaler = None if self.policy.loss_scaling is None else LossScaler(self.policy.loss_scaling)
        self._parameters = dict(_trainable(model))
        self.masters = (
            {name: p.detach().clone() for name, p in self._parameters.items()} if self.policy.master_weights else {}
        )
        self._averages = [torch.zeros_like(p, dtype=torch.float32) for p in self._parameters.values()]
        self._squares = [torch.zeros_like(average) for average in self._averages]
        self.step_count = self._num_calls = 0
        for parameter in model.parameters():  # frozen ones, too
            parameter.grad = None
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(self.policy.dtype)

    def step(self, loss_fn: Callable[[], Tensor]) -> StepRecord:
        """Forward, backward, and an update unless gradients overflowed.

        Args:
            loss_fn: computes the loss, one number, with the model.

        Raises:
            LossNeverFinite: with loss scaling, if the loss is not finite, or no scale is low enough for the gradients.
        """
        self._num_calls += 1
        scale = 1.0 if self.scaler is None else self.scaler.scale
        for parameter in self._parameters.values():
            parameter.grad = None
        with autocast_like(self.policy):
            loss = loss_fn()
        (loss if self.scaler is None else self.scaler.scale_loss(loss)).backward()  # type: ignore[no-untyped-call]
        gradients = self._wide_gradients()
        skipped = self.scaler is not None and self.scaler.unscale_(gradients)
        norm = _norm(gradients)
        if not skipped:
            if self.clip_norm is not None and norm > self.clip_norm:
                torch._foreach_mul_(gradients, self.clip_norm / norm)
            self._update(gradients)
        if self.scaler is not None:
            self.scaler.update(skipped)
        return StepRecord(step=self._num_calls, loss=loss.item(), scale=scale, skipped=skipped, gradient_norm=norm)

    def state_bytes(self) -> ModelStateBytes:
        """Bytes of weights, gradients, masters and moments, as they are held now."""
        parameters = list(self._parameters.values())
        return ModelStateBytes(
            weights=_num_bytes(parameters),
            gradients=_num_bytes([p.grad for p in parameters if p.grad is not None]),
            masters=_num_bytes(list(self.masters.values())),
            moments=_num_bytes([*self._averages, *self._squares]),
            num_parameters=sum(p.numel() for p in parameters),
        )

    def _wide_gradients(self) -> list[Tensor]:
        """Gradients in fp32, which nobody else holds; zeros where there is none."""
        return [
            torch.zeros_like(p, dtype=torch.float32) if p.grad is None else p.grad.to(torch.float32, copy=True)
            for p in self._parameters.values()
        ]

    @torch.no_grad()
    def _update(self, gradients: list[Tensor]) -> None:
        """AdamW in fp32, on masters or on weights for which fp32 lasts as long as this step."""
        self.step_count += 1
        weights = [parameter.data for parameter in self._parameters.values()]
        wide = list(self.masters.values()) if self.masters else [weight.float() for weight in weights]
        self._adamw(wide, gradients)
        if self.policy.compute == "fp32":  # `.float()` was no copy
            return
        if self.policy.stochastic_rounding:
            for value in wide:
                stochastic_round_(value, "bf16" if self.policy.compute == "bf16" else "fp16", generator=self.generator)
        torch._foreach_copy_(weights, wide)  # rounds to nearest

    def _adamw(self, weights: list[Tensor], gradients: list[Tensor]) -> None:
        (beta1, beta2), step = self.betas, self.step_count
        torch._foreach_mul_(weights, 1 - self.learning_rate * self.weight_decay)
        torch._foreach_lerp_(self._averages, gradients, 1 - beta1)
        torch._foreach_mul_(self._squares, beta2)
        torch._foreach_addcmul_(self._squares, gradients, gradients, 1 - beta2)
        denominators = torch._foreach_sqrt(self._squares)
        torch._foreach_div_(denominators, math.sqrt(1 - beta2**step))
        torch._foreach_add_(denominators, self.eps)
        torch._foreach_addcdiv_(weights, self._averages, denominators, -self.learning_rate / (1 - beta1**step))


def _trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    empty = True
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.dtype != torch.float32:
            raise TypeError(
                f"the parameter {name!r} must be torch.float32, got {parameter.dtype}: masters start from weights that "
                "were not rounded yet; call model.float() first if there are no others"
            )
        empty = False
        yield name, parameter
    if empty:
        raise ValueError("the model has no parameter that requires a gradient: there is nothing to train")


def _norm(gradients: Sequence[Tensor]) -> float:
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(gradients)))).item()


def _num_bytes(tensors: Sequence[Tensor]) -> int:
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def _check_options(
    learning_rate: float, betas: tuple[float, float], eps: float, weight_decay: float, clip_norm: float | None
) -> None:
    for name, value in (("learning_rate", learning_rate), ("weight_decay", weight_decay)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a number that is not negative, got {value}")
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas must be two numbers of at least 0 and below 1, got {betas}")
    if not (math.isfinite(eps) and eps > 0):
        raise ValueError(f"eps must be a positive number, got {eps}")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm must be positive, or None for no clipping; got {clip_norm}")
