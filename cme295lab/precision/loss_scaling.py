"""Loss scaling: moving small gradients into fp16's range for the length of a backward pass, and back again.

fp16 has no positive number below 2^-24, and what is at or below 2^-25 rounds to zero. Gradients are often that small.
Weights and activations are not, so nothing but the backward pass has to be moved: multiply the loss by S, and by the
chain rule every gradient comes out S times as large, at no further cost. In fp32 they are divided by S again, before
anything reads them: clipping, logging, the optimizer. The order matters: clipping to a norm of 1 before dividing by
S = 65536 would leave a norm of 1.5e-5.

    static     S is a number that somebody found: 8 for an object detector, 128 for a language model
    dynamic    S starts high. Is a gradient inf or NaN, the step is skipped and S halved; after a row of clean steps it
               is doubled. So it stays just below where gradients overflow, and follows them while they change.

Powers of two cost no accuracy: multiplying by them changes the exponent alone (but for what leaves the range).

Halving cannot help when the loss itself is not finite, or when something in the backward pass is NaN at every scale. A
loop that only skips and halves would then run to its end without one update and without a word. Here a loss that is
not finite before it is scaled raises `LossNeverFinite` at once, and so do `max_skips_in_a_row` skipped steps. The
default of 32 takes a scale of 65536 to 2^-16: gradients that overflow even so are above four thousand million, which
is no matter of range any more. A scale that had grown to 2^24 still passes 1 after 24 halvings.

Decision: the scale is a Python number and `unscale_` answers with a bool, so the CPU waits for the device once in a
step. torch's GradScaler keeps both on the device, and its optimizers skip there. That is faster on a GPU, and cannot
be read along.

Source: Micikevicius et al. 2018, "Mixed Precision Training", sections 3.2 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_SMALLEST_SCALE = torch.finfo(torch.float32).tiny  # the inverse of anything smaller is infinite in fp32
_LARGEST_SCALE = 2.0**126  # and the inverse of anything larger is not a normal number


class LossNeverFinite(ArithmeticError):
    """A loss that no scale makes finite: training cannot go on."""


@dataclass(frozen=True, kw_only=True)
class LossScaling:
    """How the scale starts and moves; the defaults are those of torch's GradScaler.

    Attributes:
        initial_scale: S of the first step.
        growth_factor: S times this after `growth_interval` clean steps in a row; above 1.
        backoff_factor: S times this after a step whose gradients were not finite; between 0 and 1.
        growth_interval: clean steps in a row.
        dynamic: False keeps S where it starts; steps that overflow are still skipped.
        max_skips_in_a_row: after how many skipped steps `LossNeverFinite` is raised.

    Raises:
        ValueError: if a value is out of range.
    """

    initial_scale: float = 65536.0
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 2000
    dynamic: bool = True
    max_skips_in_a_row: int = 32

    def __post_init__(self) -> None:
        if not _SMALLEST_SCALE <= self.initial_scale <= _LARGEST_SCALE:
            raise ValueError(
                f"initial_scale must be a positive number of fp32, such as 65536.0; got {self.initial_scale}"
            )
        if not (math.isfinite(self.growth_factor) and self.growth_factor > 1):
            raise ValueError(
                f"growth_factor must be a number above 1, got {self.growth_factor}; for a scale that never changes set "
                "dynamic=False"
            )
        if not 0 < self.backoff_factor < 1:
            raise ValueError(
                f"backoff_factor must be above 0 and below 1, got {self.backoff_factor}; for a scale that never "
                "changes set dynamic=False"
            )
        for name in ("growth_interval", "max_skips_in_a_row"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an int of at least 1, got {value!r}")


class LossScaler:
    """The scale, and the steps it went through.

        scaler.scale_loss(loss).backward()
        found_inf = scaler.unscale_(gradients)      # before clipping
        if not found_inf:
            clip and update
        scaler.update(found_inf)

    Args:
        options: how the scale moves; None takes the defaults.

    Attributes:
        options: the same.
        scale: S of the next loss.
        clean_steps: steps without inf or NaN since the scale changed last.
        skips_in_a_row: steps with, since the last clean one.
    """

    def __init__(self, options: LossScaling | None = None) -> None:
        self.options = LossScaling() if options is None else options
        self.scale = _to_fp32(self.options.initial_scale)
        self.clean_steps = 0
        self.skips_in_a_row = 0
        self._unscaled = False

    def scale_loss(self, loss: Tensor) -> Tensor:
        """S times the loss, in fp32 at least: 65536 alone would be infinite in fp16.

        Args:
            loss: one number.

        Returns:
            What to call `backward()` on.

        Raises:
            ValueError: if the loss has more than one element.
            LossNeverFinite: if the loss is inf or NaN before it is scaled.
        """
        if loss.numel() != 1:
            raise ValueError(f"loss must be one number, got shape {tuple(loss.shape)}: take its mean or its sum")
        if not torch.isfinite(loss).item():
            raise LossNeverFinite(
                f"the loss is {loss.item()} before it is scaled, so no scale helps: the forward pass overflowed or the "
                "weights are not finite. Look for a learning rate that is too high, for a logarithm or a division by "
                "zero, and for sums that are computed in fp16"
            )
        return loss.to(torch.promote_types(loss.dtype, torch.float32)) * self.scale

    @torch.no_grad()
    def unscale_(self, gradients: Iterable[Tensor | None]) -> bool:
        """Divide gradients by S, in place, and look for inf and NaN.

        Args:
            gradients: of all parameters, fp32 or wider; None, for parameters without one, is passed over.

        Returns:
            Whether any value is not finite: then the step has to be skipped.

        Raises:
            ValueError: if a gradient is in 16 bits, where it would be flushed to zero by the very division.
            RuntimeError: if it is the second call since `update`: the gradients would be divided twice.
        """
        given = [gradient for gradient in gradients if gradient is not None and gradient.numel()]
        for gradient in given:
            if gradient.dtype not in (torch.float32, torch.float64):
                raise ValueError(
                    f"gradients must be torch.float32 or torch.float64 to be unscaled, got {gradient.dtype}: copy them "
                    "to fp32 first, or small ones are flushed to zero after all"
                )
        if self._unscaled:
            raise RuntimeError("unscale_ was called already: call update(found_inf) once for each step, after it")
        self._unscaled = True
        if not given:
            return False
        largest = torch.stack([norm.float() for norm in torch._foreach_norm(given, math.inf)])  # NaN stays NaN
        # The largest fp64 values leave fp32's range here, and would not be clean in any training.
        torch._foreach_mul_(given, 1.0 / self.scale)
        return not bool(torch.isfinite(largest).all())

    def update(self, found_inf: bool) -> None:
        """End a step: halve S if gradients were not finite, double it after enough steps in which they were.

        Args:
            found_inf: what `unscale_` said.

        Raises:
            LossNeverFinite: if it was True for `max_skips_in_a_row` steps.
        """
        self._unscaled = False
        options = self.options
        if not found_inf:
            self.skips_in_a_row = 0
            self.clean_steps += 1
            if options.dynamic and self.clean_steps == options.growth_interval:
                self.clean_steps = 0
                grown = _to_fp32(self.scale * options.growth_factor)
                self.scale = grown if grown <= _LARGEST_SCALE else self.scale
            return
        scale = self.scale
        self.clean_steps = 0
        self.skips_in_a_row += 1
        if options.dynamic:
            self.scale = _to_fp32(self.scale * options.backoff_factor)
        if self.skips_in_a_row >= options.max_skips_in_a_row or self.scale < _SMALLEST_SCALE:
            raise LossNeverFinite(
                f"{self.skips_in_a_row} steps in a row had gradients that are inf or NaN, the last at a loss scale of "
                f"{scale:g}, and no weight was updated in any of them. " + self._likely_cause(scale)
            )

    def _likely_cause(self, scale: float) -> str:
        if not self.options.dynamic:
            return "The scale is static: lower initial_scale, or set dynamic=True"
        if scale > 1:
            return "The scale is still above 1: allow more with max_skips_in_a_row, or start lower with initial_scale"
        return (
            "At a scale of 1 and below it is not the scale that overflows: the backward pass makes inf or NaN by "
            "itself. Run a step under torch.autograd.detect_anomaly(), or in fp32, to see where"
        )

    def state_dict(self) -> dict[str, Any]:
        """What changes from step to step, for a checkpoint."""
        return {"scale": self.scale, "clean_steps": self.clean_steps, "skips_in_a_row": self.skips_in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ValueError: if an entry is missing or not known, or the scale is not a positive number.
        """
        if set(state) != set(self.state_dict()):
            raise ValueError(
                f"state must have {', '.join(self.state_dict())}, got {', '.join(sorted(state)) or 'none'}"
            )
        if not _SMALLEST_SCALE <= state["scale"] <= _LARGEST_SCALE:
            raise ValueError(f"the scale in state must be a positive number of fp32, got {state['scale']}")
        for name in ("clean_steps", "skips_in_a_row"):
            if not (isinstance(state[name], int) and state[name] >= 0):
                raise ValueError(f"{name} in state must be an int of at least 0, got {state[name]!r}")
        self.scale = float(state["scale"])
        self.clean_steps, self.skips_in_a_row = state["clean_steps"], state["skips_in_a_row"]
        self._unscaled = False


def _to_fp32(value: float) -> float:
    """The scale as torch keeps it, so that factors such as 1.5 give the same numbers in a long run."""
    return torch.tensor(value, dtype=torch.float64).float().item()
