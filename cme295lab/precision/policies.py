"""Which parts of training run in 16 bits, and which of the three techniques are on.

Micikevicius et al. train in fp16 with three techniques. Each can be switched off here, to watch what breaks:

    master_weights       updates go into fp32 weights, which are rounded to 16 bits for the model. Without: an update
                         below half the gap between neighbours is lost, in fp16 whatever is 2048 times smaller than
                         its weight, in bf16 256 times
    loss_scaling         gradients are moved into fp16's range. Without: what is at or below 2^-25 becomes zero
    fp32_accumulation    products are added in fp32. Without: a sum of ones stops at 2048 in fp16, at 256 in bf16

and a fourth, which a framework does without being asked:

    fp32_reductions      softmax, norms, losses, sums, exponentials and logarithms run in fp32

bf16 has fp32's exponents and needs no loss scaling, but fewer digits, so it needs masters even more. Or stochastic
rounding (`stochastic`) in their place.

What it costs, in bytes per parameter that stay between two steps. Adam's two moments are fp32 in all of them.

                         weight   gradient   master   moments     together
    fp32                    4         4         -         8           16
    with master_weights     2         2         4         8           16
    without                 2         2         -         8           12

Mixed precision saves activations and time, not the memory of model states. `cme295lab.memory` has policies, too: there
they say what is stored, here what is computed, and one name means the same bytes in both.

Source: Micikevicius et al. 2018, "Mixed Precision Training", section 3; Kalamkar et al. 2019, "A Study of BFLOAT16 for
Deep Learning Training".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

import torch

from cme295lab.precision.loss_scaling import LossScaling

ComputeFormat = Literal["fp32", "fp16", "bf16"]

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class PrecisionPolicy:
    """How a model is trained in 16 bits, or in 32.

    Attributes:
        compute: format of weights, activations and gradients.
        master_weights: whether the optimizer keeps fp32 weights beside those in 16 bits.
        loss_scaling: how the loss scale moves; None for no scaling, and then no step is ever skipped.
        fp32_accumulation: whether matrix products are summed in fp32 and rounded once.
        fp32_reductions: whether softmax, norms, losses and sums run in fp32.
        stochastic_rounding: whether weights without masters are rounded at random.
        accumulation_chunk: without `fp32_accumulation`, products that are added before the running sum is rounded:
            1 is an adder of 16 bits, 4 to 16 a tensor core whose sums leave it in 16 bits.

    Raises:
        ValueError: if the parts contradict each other.
    """

    compute: ComputeFormat
    master_weights: bool = False
    loss_scaling: LossScaling | None = None
    fp32_accumulation: bool = True
    fp32_reductions: bool = True
    stochastic_rounding: bool = False
    accumulation_chunk: int = 1

    def __post_init__(self) -> None:
        if self.compute not in get_args(ComputeFormat):
            raise ValueError(f"compute must be 'fp32', 'fp16' or 'bf16', got {self.compute!r}")
        if self.compute == "fp32":
            for name, plain in (("master_weights", False), ("fp32_accumulation", True), ("fp32_reductions", True)):
                if getattr(self, name) is not plain:
                    raise ValueError(f"compute='fp32' leaves no choice: {name} must be {plain}, which is the default")
        if self.stochastic_rounding and (self.master_weights or self.compute == "fp32"):
            raise ValueError(
                "stochastic_rounding=True is for 16-bit weights without masters: set master_weights=False and compute "
                "to 'bf16' or 'fp16'"
            )
        chunk = self.accumulation_chunk
        if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
            raise ValueError(f"accumulation_chunk must be an int of at least 1, got {chunk!r}")

    @property
    def dtype(self) -> torch.dtype:
        """torch's name of `compute`."""
        return _DTYPES[self.compute]


POLICIES: Mapping[str, PrecisionPolicy] = MappingProxyType(
    {
        "fp32": PrecisionPolicy(compute="fp32"),
        "pure-fp16": PrecisionPolicy(compute="fp16"),
        "fp16-master": PrecisionPolicy(compute="fp16", master_weights=True),
        "fp16-mixed": PrecisionPolicy(compute="fp16", master_weights=True, loss_scaling=LossScaling()),
        "bf16-mixed": PrecisionPolicy(compute="bf16", master_weights=True),
        "bf16-fp32-states": PrecisionPolicy(compute="bf16"),
        "bf16-stochastic": PrecisionPolicy(compute="bf16", stochastic_rounding=True),
    }
)
"""The policies of the course by name. "fp16-mixed" has all three techniques, "bf16-mixed" is what most train with."""


def get_policy(policy: str | PrecisionPolicy) -> PrecisionPolicy:
    """A policy of `POLICIES` by name, or the one that was given.

    Raises:
        ValueError: if there is none of that name.
    """
    if isinstance(policy, PrecisionPolicy):
        return policy
    if policy not in POLICIES:
        raise ValueError(f"no policy is called {policy!r}; there are {', '.join(POLICIES)}, or make a PrecisionPolicy")
    return POLICIES[policy]
