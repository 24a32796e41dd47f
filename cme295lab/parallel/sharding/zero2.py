"""ZeRO stage 2: gradients, too, are spread over the ranks.

Stage 1 leaves each rank with gradients of all weights, of which it uses its own part. Here a bucket's gradients are
given up as soon as they have been summed, and a rank keeps its part of the mean alone:

    backward    own gradients of one bucket ──reduce-scatter──▶ this rank's part of their mean; the rest is freed
    step        each rank updates its part of the weights with its part of the gradients and states
    send        all-gather: each rank gets all weights

The bytes on the wire are those of stage 1. Per rank (Adam, fp32): weights 4 Ψ, gradients 4 Ψ/N, states 8 Ψ/N bytes for
Ψ parameters, and while backward runs at most two buckets under way and one that is filling.

**Accumulation.** Each backward pass is summed over the ranks and added to this rank's part, so the memory stays small
and k micro-batches send gradients k times. `no_sync` makes the other choice: nothing is sent, and the rank holds
gradients of all weights until the next pass outside of it.

Source: Rajbhandari et al. 2020, "ZeRO", section 5.2 (P_os+g).
"""

from __future__ import annotations

from torch import Tensor

from cme295lab.parallel.replication.buckets import Bucket
from cme295lab.parallel.sharding.flat_weights import FlatWeights
from cme295lab.parallel.sharding.zero_replicated import ReplicatedWeightsOptimizer


class ZeroStage2(ReplicatedWeightsOptimizer):
    """A torch optimizer whose states and gradients are spread; see `ReplicatedWeightsOptimizer` for the arguments."""

    stage_number = 2
    max_in_flight = 2  # each is a vector of gradients that waits to be freed

    def make_bucket(self, weights: FlatWeights) -> Bucket:
        return _FreedBucket(weights)


class _FreedBucket:
    """Gradients whose sum goes elsewhere: into this rank's part, which is all that stays."""

    def __init__(self, weights: FlatWeights) -> None:
        self._weights = weights

    def is_ready(self) -> bool:
        return self._weights.is_ready()

    def start(self) -> None:
        self._weights.start_sum(self._weights.new_shard_gradient())
        self._weights.local.release()  # who sends it holds it until it is sent

    def finish(self) -> None:
        own: Tensor = self._weights.finish_sum()
        before = self._weights.gradient
        self._weights.gradient = own if before is None else before.add_(own)
