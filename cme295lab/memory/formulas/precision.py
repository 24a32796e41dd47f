"""Which number format holds what: weights, gradients, master weights, optimizer states.

"Mixed precision" with Adam does not save a byte of model states. It computes on 16-bit weights, but keeps a 32-bit copy
of them to update (the masters), so that both columns add up to 16 bytes per parameter:

    policy                      weights  gradients  masters  Adam's m, v   sum
    fp32                           4         4         -          8         16
    bf16-mixed, fp16-mixed         2         2         4          8         16
    bf16-mixed-fp32-gradients      2         4         4          8         18
    bf16-fp32-states               2         2         -          8         12   ">780 GB for 65B" in QLoRA's abstract
    bf16-pure                      2         2         -          4          8

What it saves is activations, which take the format of the weights, and traffic. Policies here say what is stored; a
model under `torch.autocast` is another case (32-bit weights and, while it runs, their 16-bit copies) that is not
covered.

Source: Micikevicius et al. 2018, "Mixed Precision Training"; Rajbhandari et al. 2020, "ZeRO", §3.1.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

FORMAT_BYTES: Mapping[str, int] = MappingProxyType({"fp64": 8, "fp32": 4, "bf16": 2, "fp16": 2})
"""Bytes of a number, by format."""


@dataclass(frozen=True, kw_only=True)
class PrecisionPolicy:
    """The format of everything that a training step stores.

    Attributes:
        name: what to call it.
        weights: format of the weights that the model computes with, and of its activations.
        gradients: format in which gradients are kept.
        masters: format of the copy that the optimizer updates; None where it updates the weights themselves.
        states: format of the optimizer's states (where the optimizer does not fix it, as 8-bit Adam does).

    Raises:
        ValueError: if a format is unknown.
    """

    name: str
    weights: str
    gradients: str
    masters: str | None
    states: str

    def __post_init__(self) -> None:
        for item in ("weights", "gradients", "masters", "states"):
            value = getattr(self, item)
            if value not in FORMAT_BYTES and not (item == "masters" and value is None):
                raise ValueError(f"{item} must be one of {', '.join(FORMAT_BYTES)}, got {value!r}")

    @property
    def weight_bytes(self) -> int:
        """Bytes of a weight, and of an element of an activation."""
        return FORMAT_BYTES[self.weights]

    @property
    def gradient_bytes(self) -> int:
        return FORMAT_BYTES[self.gradients]

    @property
    def master_bytes(self) -> int:
        return FORMAT_BYTES[self.masters] if self.masters else 0

    @property
    def state_bytes(self) -> int:
        """Bytes of one number of the optimizer's state; Adam has two per parameter."""
        return FORMAT_BYTES[self.states]


def _policy(name: str, weights: str, gradients: str, masters: str | None, states: str) -> PrecisionPolicy:
    return PrecisionPolicy(name=name, weights=weights, gradients=gradients, masters=masters, states=states)


_TABLE = (
    _policy("fp32", "fp32", "fp32", None, "fp32"),
    _policy("bf16-mixed", "bf16", "bf16", "fp32", "fp32"),
    _policy("fp16-mixed", "fp16", "fp16", "fp32", "fp32"),
    _policy("bf16-mixed-fp32-gradients", "bf16", "fp32", "fp32", "fp32"),
    _policy("bf16-fp32-states", "bf16", "bf16", None, "fp32"),
    _policy("bf16-pure", "bf16", "bf16", None, "bf16"),
)

POLICIES: Mapping[str, PrecisionPolicy] = MappingProxyType({policy.name: policy for policy in _TABLE})
"""The policies of the table above, by name."""


def get_policy(policy: str | PrecisionPolicy) -> PrecisionPolicy:
    """A policy by name; a `PrecisionPolicy` is returned as it is.

    Raises:
        TypeError: if it is neither.
        ValueError: if the name is unknown; the message lists the known ones and the closest.
    """
    if isinstance(policy, PrecisionPolicy):
        return policy
    if not isinstance(policy, str):
        raise TypeError(f"policy must be a name or a PrecisionPolicy, got {policy!r} of type {type(policy).__name__}")
    if policy not in POLICIES:
        close = difflib.get_close_matches(policy, POLICIES, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown precision policy {policy!r}.{hint} Known: {', '.join(POLICIES)}")
    return POLICIES[policy]
