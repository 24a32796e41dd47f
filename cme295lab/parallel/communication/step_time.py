"""How long a training step takes with data parallelism or ZeRO: computing, and what of the communication cannot hide.

With Psi bytes of gradients (and of weights, in the same dtype) and N ranks:

| stage | with the backward pass | with the (next) forward pass | sent per rank |
|---|---|---|---|
| 0, plain data parallelism | all-reduce of the gradients | | 2 Psi (N-1)/N |
| 1, 2 | reduce-scatter of the gradients | all-gather of the weights | 2 Psi (N-1)/N |
| 3 | all-gather of the weights, reduce-scatter of the gradients | all-gather of the weights | 3 Psi (N-1)/N |

Communication that may run beside a pass hides behind it as far as the pass is long; `overlap` is the part of it that
may. The first bucket has to be computed before anything can be sent, and the last one is sent when nothing is left to
compute, so overlap is near (number of buckets - 1) / (number of buckets) at best, and 0 in a naive implementation.

Source: Rajbhandari et al. 2020, "ZeRO", section 7 (volumes).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cme295lab.parallel.communication.cost_model import Cluster, Link, collective_time_s, wire_bytes

_FORWARD, _BACKWARD = "forward", "backward"
# By stage: (pass that it runs beside, collective, what is moved).
_TRAFFIC = {
    0: ((_BACKWARD, "all_reduce", "gradient"),),
    1: ((_BACKWARD, "reduce_scatter", "gradient"), (_FORWARD, "all_gather", "weight")),
    2: ((_BACKWARD, "reduce_scatter", "gradient"), (_FORWARD, "all_gather", "weight")),
    3: (
        (_FORWARD, "all_gather", "weight"),
        (_BACKWARD, "all_gather", "weight"),
        (_BACKWARD, "reduce_scatter", "gradient"),
    ),
}


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Where the time of a step goes.

    Attributes:
        compute_s: forward, backward and optimizer.
        communication_s: all collectives, were they done one after the other.
        exposed_s: what of them does not hide behind computing.
        sent_bytes: bytes that each rank sends.
    """

    compute_s: float
    communication_s: float
    exposed_s: float
    sent_bytes: float

    @property
    def step_s(self) -> float:
        """Time of the step, in s."""
        return self.compute_s + self.exposed_s

    @property
    def efficiency(self) -> float:
        """Share of the step that computes; 1 when the communication hides altogether."""
        return self.compute_s / self.step_s if self.step_s else 1.0


def training_step_time(
    *,
    compute_s: float,
    gradient_bytes: float,
    num_ranks: int,
    link: str | Link | Cluster,
    stage: int = 0,
    weight_bytes: float | None = None,
    overlap: float = 1.0,
    num_messages: int = 1,
    forward_share: float = 1 / 3,
) -> StepTime:
    """Time of a training step.

    Args:
        compute_s: time to compute a step on one rank, in s.
        gradient_bytes: bytes of all gradients as they are sent.
        num_ranks: N.
        link: between the ranks, or a `Cluster`.
        stage: 0 (plain data parallelism), 1, 2 or 3.
        weight_bytes: bytes of all weights as they are gathered; None means as many as of gradients.
        overlap: part of the communication that may run beside the computation, 0 to 1.
        num_messages: buckets, or layers, that the vectors are sent in; each has its latency.
        forward_share: share of `compute_s` that is the forward pass; 1/3, as a backward pass takes twice as long.

    Returns:
        The parts of the step's time.

    Raises:
        ValueError: if an argument is out of its range.
    """
    weight_bytes = gradient_bytes if weight_bytes is None else weight_bytes
    _check(stage, num_messages, overlap=overlap, forward_share=forward_share)
    if not (compute_s >= 0 and math.isfinite(compute_s)):
        raise ValueError(f"compute_s must be >= 0, got {compute_s}")
    pass_s = {_FORWARD: compute_s * forward_share, _BACKWARD: compute_s * (1 - forward_share)}
    wire_s, sent_bytes = dict.fromkeys(pass_s, 0.0), 0.0
    for beside, collective, what in _TRAFFIC[stage]:
        num_bytes = gradient_bytes if what == "gradient" else weight_bytes
        one_s = collective_time_s(collective, num_bytes / num_messages, num_ranks, link)
        wire_s[beside] += num_messages * one_s
        sent_bytes += wire_bytes(collective, num_bytes, num_ranks)
    exposed = [wire_s[beside] - min(overlap * wire_s[beside], pass_s[beside]) for beside in pass_s]
    return StepTime(
        compute_s=compute_s, communication_s=sum(wire_s.values()), exposed_s=sum(exposed), sent_bytes=sent_bytes
    )


def _check(stage: int, num_messages: int, **shares: float) -> None:
    if stage not in _TRAFFIC:
        raise ValueError(f"stage must be 0 (plain data parallelism), 1, 2 or 3, got {stage!r}")
    if num_messages < 1:
        raise ValueError(f"num_messages must be at least 1, got {num_messages}")
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must be between 0 and 1, got {share}")
