"""How large the steps of a run are: the learning rate as a share of its peak, a pure function of the step.

    warm-up      a straight line up; the first step already moves: (step + 1) / warmup_steps
    constant     1 from then on
    linear       a straight line down to `floor`
    cosine       half a cosine down to `floor`: slow at both ends
    wsd          warm-up, stable, decay: 1 for most of the run, then down to `floor` within the last `decay_steps`, in a
                 straight line ("linear") or as 1 - √progress ("1-sqrt"), steep first

A cosine must know the length of the run from its first step: to train for longer, one starts again. A checkpoint from
the stable part of WSD can go on for as long as one likes; only the decay, a tenth or a fifth of the run, is paid
again.

Steps count from 0, so the last of a run is num_steps - 1, a hair above the floor. A step at or beyond num_steps is an
error: whoever asks for it has another length in mind than the schedule.

Source: Loshchilov and Hutter 2017, "SGDR", eq. 5; Hu et al. 2024, "MiniCPM", §4.2; Hägele et al. 2024, "Scaling Laws
and Compute-Optimal Training Beyond Fixed Training Durations" (1 - √).
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["constant", "linear", "cosine", "wsd"]
DecayShape = Literal["linear", "1-sqrt"]


def warmup_share(step: int, warmup_steps: int) -> float:
    """(step + 1) / warmup_steps, at most 1.

    Example:
        >>> [warmup_share(step, 4) for step in range(5)]
        [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


def linear_share(progress: float, floor: float = 0.0) -> float:
    """A straight line from 1 to `floor`, for a progress of 0 to 1."""
    return floor + (1 - floor) * (1 - progress)


def cosine_share(progress: float, floor: float = 0.0) -> float:
    """Half a cosine from 1 to `floor`, for a progress of 0 to 1."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def one_minus_sqrt_share(progress: float, floor: float = 0.0) -> float:
    """1 - √progress, from 1 to `floor`."""
    return floor + (1 - floor) * (1 - math.sqrt(progress))


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate of each step of a run, as a share of its peak.

    Attributes:
        kind: "constant", "linear", "cosine" or "wsd".
        num_steps: of the run.
        warmup_steps: with which it begins.
        floor: the share at the end, 0 to 1; "constant" has none.
        decay_steps: of "wsd", at the end of the run; None for a fifth of it.
        decay_shape: of "wsd": "linear" or "1-sqrt".

    Raises:
        TypeError: if a number of steps is no integer.
        ValueError: if a value is out of range, or warm-up and decay do not fit into the run.

    Example:
        >>> schedule = Schedule(kind="cosine", num_steps=10, warmup_steps=2, floor=0.1)
        >>> [round(schedule(step), 3) for step in (0, 1, 2, 6, 9)]
        [0.5, 1.0, 1.0, 0.55, 0.134]
    """

    kind: Kind = "cosine"
    num_steps: int
    warmup_steps: int = 0
    floor: float = 0.0
    decay_steps: int | None = None
    decay_shape: DecayShape = "linear"

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind of schedule must be one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        if self.decay_shape not in get_args(DecayShape):
            raise ValueError(f"decay_shape must be 'linear' or '1-sqrt', got {self.decay_shape!r}")
        for name, least in (("num_steps", 1), ("warmup_steps", 0), ("decay_steps", 1)):
            value = getattr(self, name)
            if value is None and name == "decay_steps":
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, got {value!r} of type {type(value).__name__}")
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor must be a share of the peak, 0 to 1, got {self.floor}")
        if self.decay_steps is not None and self.kind != "wsd":
            raise ValueError(f"decay_steps is of 'wsd' alone, got {self.decay_steps} with kind {self.kind!r}")
        tail = self.num_decay_steps if self.kind == "wsd" else 0
        if self.warmup_steps + tail > self.num_steps:
            raise ValueError(
                f"warm-up ({self.warmup_steps}) and decay ({tail}) must fit into num_steps, got {self.num_steps}"
            )

    @property
    def num_decay_steps(self) -> int:
        """Steps of the decay of "wsd"."""
        return max(1, self.num_steps // 5) if self.decay_steps is None else self.decay_steps

    def __call__(self, step: int) -> float:
        """The share of the peak learning rate in a step.

        Raises:
            ValueError: if the step is negative or beyond the run.
        """
        step = operator.index(step)
        if not 0 <= step < self.num_steps:
            raise ValueError(f"step must be 0 to {self.num_steps - 1}, those of the schedule, got {step}")
        if step < self.warmup_steps:
            return warmup_share(step, self.warmup_steps)
        if self.kind == "constant":
            return 1.0
        if self.kind == "wsd":
            progress = max(0, step - (self.num_steps - self.num_decay_steps)) / self.num_decay_steps
            shape = linear_share if self.decay_shape == "linear" else one_minus_sqrt_share
            return shape(progress, self.floor)
        progress = (step - self.warmup_steps) / (self.num_steps - self.warmup_steps)
        return (linear_share if self.kind == "linear" else cosine_share)(progress, self.floor)
