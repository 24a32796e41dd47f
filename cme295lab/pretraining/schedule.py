"""How long the steps are: the learning rate as a function of the step, as a share of its peak.

    constant   1
    linear     from 1 to the floor
    cosine     floor + (1 - floor) (1 + cos π t) / 2, with t from 0 to 1
    wsd        1 for most of the run, then down to the floor in the last `decay_steps`: warm-up, stable, decay

All begin with a warm-up: in its first steps Adam knows its moments badly, and a large step in a bad direction can take
long to make good. Cosine needs to know the end from the start; WSD decides only when to begin to decay, so one run
gives checkpoints for several lengths.

Source: Loshchilov and Hutter 2016, "SGDR" (cosine); Hu et al. 2024, "MiniCPM" (WSD); Hägele et al. 2024 (1 - sqrt).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

ScheduleKind = Literal["constant", "linear", "cosine", "wsd"]
DecayShape = Literal["linear", "sqrt"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate of each step, as a share of its peak.

    Args:
        kind: "constant", "linear", "cosine" or "wsd".
        num_steps: of the run, warm-up included.
        warmup_steps: in which the share rises evenly; the first step is 1 / warmup_steps, never 0.
        floor: the share at the end, 0 to 1.
        decay_steps: at the end, in which "wsd" goes down.
        decay: how it goes down: "linear", or "sqrt" for 1 - sqrt(t), which falls quickly first.

    Raises:
        TypeError, ValueError: if a value is out of range, or the parts are longer than the run.

    Example:
        >>> cosine = Schedule(kind="cosine", num_steps=10, warmup_steps=2)
        >>> [round(cosine(step), 2) for step in (0, 1, 2, 6, 9)]
        [0.5, 1.0, 1.0, 0.5, 0.04]
    """

    kind: ScheduleKind = "cosine"
    num_steps: int
    warmup_steps: int = 0
    floor: float = 0.0
    decay_steps: int = 0
    decay: DecayShape = "linear"

    def __post_init__(self) -> None:
        for name, least in (("num_steps", 1), ("warmup_steps", 0), ("decay_steps", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, got {value!r} of type {type(value).__name__}")
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        for name, allowed in (("kind", get_args(ScheduleKind)), ("decay", get_args(DecayShape))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor must be a share, 0 to 1, got {self.floor}")
        if self.warmup_steps + self.decay_steps > self.num_steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} and decay_steps {self.decay_steps} do not fit into {self.num_steps}"
            )
        if (self.kind == "wsd") != bool(self.decay_steps):
            raise ValueError(f"decay_steps goes with kind='wsd', which needs some: {self.kind!r} got {self.decay_steps}")

    def __call__(self, step: int) -> float:
        """The share at a step, counted from 0.

        Raises:
            ValueError: if the run has no such step.
        """
        if not 0 <= step < self.num_steps:
            raise ValueError(f"step must be 0 to {self.num_steps - 1}, got {step}")
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.kind == "constant":
            return 1.0
        start = self.num_steps - self.decay_steps if self.kind == "wsd" else self.warmup_steps
        gone = max(0, step - start) / (self.num_steps - start)  # 0 to just below 1
        if self.kind == "cosine":
            left = (1 + math.cos(math.pi * gone)) / 2
        else:
            left = 1 - (math.sqrt(gone) if self.decay == "sqrt" else gone)
        return self.floor + (1 - self.floor) * left
