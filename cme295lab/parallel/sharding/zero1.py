"""ZeRO stage 1: the optimizer's states are spread over the ranks.

Adam keeps two numbers for each weight, in mixed precision four bytes more for a master weight. Every rank of plain data
parallelism keeps all of them, and computes the same update as all others. Here each rank keeps the states of its part
of the weights, updates that part, and gets the other parts from those who updated them:

    backward    own gradients of all weights, in buckets; a full bucket is sent while backward goes on
    send        reduce-scatter: each rank gets the mean of its part of each bucket
    step        each rank updates its part of the weights with its part of the states
    send        all-gather: each rank gets all weights

An all-reduce is a reduce-scatter and an all-gather, so that costs no byte more than plain data parallelism: the gather
is of weights instead of gradients. Per rank (Adam, fp32): weights 4 Ψ, gradients 4 Ψ, states 8 Ψ/N bytes for Ψ
parameters.

**Gradients** stay where they were collected until the step or `zero_grad`, as in the paper; the parameters' `.grad` is
None meanwhile, for outside a rank's own part there is only that rank's own gradient, which is of no use to anybody.

**Accumulation.** Within `no_sync` gradients add up in `.grad` and nothing is sent. A second backward pass outside of it
is sent as well, and its mean added to the first one's.

Source: Rajbhandari et al. 2020, "ZeRO", section 5.1 (P_os).
"""

from __future__ import annotations

from torch import Tensor

from cme295lab.parallel.replication.buckets import Bucket
from cme295lab.parallel.sharding.flat_weights import FlatWeights
from cme295lab.parallel.sharding.zero_replicated import ReplicatedWeightsOptimizer


class ZeroStage1(ReplicatedWeightsOptimizer):
    """A torch optimizer whose states are spread over the ranks; see `ReplicatedWeightsOptimizer` for the arguments."""

    stage_number = 1
    max_in_flight = None  # the vectors stay anyway

    def make_bucket(self, weights: FlatWeights) -> Bucket:
        return _KeptBucket(weights)

    def _collect(self, name: str) -> None:
        _make_room(self._weights_of[name])
        super()._collect(name)


class _KeptBucket:
    """Gradients that are summed in place: this rank's part of their vector becomes the mean, and the vector stays."""

    def __init__(self, weights: FlatWeights) -> None:
        self._weights = weights

    def is_ready(self) -> bool:
        return self._weights.is_ready()

    def start(self) -> None:
        _make_room(self._weights)
        self._weights.start_sum()

    def finish(self) -> None:
        own, before = self._weights.finish_sum(), self._weights.gradient
        self._weights.gradient = own if before is None else before.add_(own)


def _make_room(weights: FlatWeights) -> None:
    """If the gradient of an earlier pass lies in the vector that is needed now, move it out."""
    flat, gradient = weights.local.flat, weights.gradient
    if flat is not None and gradient is not None and _share_memory(flat, gradient):
        weights.gradient = gradient.clone()
        weights.local.release()


def _share_memory(first: Tensor, second: Tensor) -> bool:
    return first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
