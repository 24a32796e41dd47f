"""Weights in a flat vector of which every rank has all, and updates a part: what stages 1 and 2 of ZeRO share.

    weights   |--- rank 0's part ---|--- rank 1's part ---|     on every rank; the model's parameters are views of it
    shard     this rank's part: what its optimizer updates

    gradients ──reduce-scatter──▶ this rank's part of their mean ──optimizer──▶ shard ──all-gather──▶ weights

Since parameters are views, an all-gather into the vector is all it takes to give the model its new weights. The vector
is padded to a multiple of the number of ranks; padding is zero, travels, and is in nobody's optimizer.

With weights in bf16 or fp16 the optimizer updates not the shard but a copy of it in fp32, the master weights, made of
the values that the parameters had before they were rounded.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cme295lab.parallel.communication import transport
from cme295lab.parallel.communication.calls import ledger_tag
from cme295lab.parallel.replication.buckets import GradientVector
from cme295lab.parallel.sharding.partition import FlatLayout


class FlatWeights:
    """Some parameters of a model as views of a flat vector, with this rank's shard and its gradient.

    Args:
        name: what to call them.
        parameters: name in the model -> parameter, all of one dtype; each becomes a view of the vector.
        compute_dtype: of the vector; None: the parameters' own.
        reduce_dtype: in which gradients are sent, summed and kept; None: that of the vector.
        offload: have the master in the CPU's memory.
        group: the ranks.

    Attributes:
        layout: where each parameter lies in the vector.
        weights: the vector.
        shard: this rank's part of the vector.
        master: what this rank's optimizer updates: the shard itself, or a copy of it in fp32 or in the CPU's memory.
        gradient: this rank's part of the mean of the gradients; None before there is one.
        local: this rank's own gradients while they are collected.
        local_sums: the sum of each gradient before it was sent: tells whose is not finite.
    """

    def __init__(
        self,
        name: str,
        parameters: Mapping[str, nn.Parameter],
        *,
        compute_dtype: torch.dtype | None,
        reduce_dtype: torch.dtype | None,
        offload: bool,
        group: dist.ProcessGroup,
    ) -> None:
        self.name, self.group = name, group
        self.parameters = dict(parameters)
        self.layout = FlatLayout.of(parameters, num_ranks=group.size())
        self._own = slice(*self.layout.shard_range(group.rank()))
        first = next(iter(parameters.values()))
        dtype = compute_dtype or first.dtype
        original = torch.zeros(self.layout.num_elements, dtype=first.dtype, device=first.device)
        for slot in self.layout.slots:
            original[slot.start : slot.stop] = self.parameters[slot.name].detach().reshape(-1)
        self.weights = original.to(dtype)
        for slot in self.layout.slots:
            self.parameters[slot.name].data = self.weights[slot.start : slot.stop].view(slot.shape)
        self.shard = self.weights[self._own]
        self.master = self._make_master(original, offload)
        self.local = GradientVector(self.parameters, self.layout, dtype=reduce_dtype)
        self.local_sums: dict[str, Tensor] = {}
        self.gradient: Tensor | None = None
        self._sum: tuple[transport.Handle, Tensor] | None = None

    def _make_master(self, original: Tensor, offload: bool) -> Tensor:
        if self.shard.dtype.itemsize >= 4 and not offload:
            return self.shard
        dtype = torch.promote_types(original.dtype, torch.float32)
        return original[self._own].to("cpu" if offload else self.shard.device, dtype, copy=True)

    def is_ready(self) -> bool:
        return self.local.is_full

    @torch.no_grad()
    def collect(self, name: str) -> None:
        """Take over a parameter's `.grad`."""
        gradient = self.parameters[name].grad
        assert gradient is not None
        self.local_sums[name] = gradient.sum(dtype=torch.float32)
        self.local.collect(name, keep_as_grad=False)

    def start_sum(self, output: Tensor | None = None) -> None:
        """Begin to sum the collected gradients over the ranks, each rank its part.

        Args:
            output: where the sum goes; None: into its place among the local gradients.
        """
        flat = self.local.complete(keep_as_grad=False)
        own = flat[self._own] if output is None else output
        with ledger_tag("gradients"):
            self._sum = transport.reduce_scatter(own, flat, group=self.group, async_op=True), own

    @torch.no_grad()
    def finish_sum(self) -> Tensor:
        """Wait for the sum, and divide it by the number of ranks."""
        assert self._sum is not None
        (handle, own), self._sum = self._sum, None
        handle.wait()
        return own.mul_(1 / self.group.size())

    def new_shard_gradient(self) -> Tensor:
        """Room for this rank's part of the gradient."""
        return torch.empty(self.layout.shard_numel, dtype=self.local.dtype, device=self.local.device)

    def start_gather(self) -> transport.Handle:
        """Begin to put together the vector from all ranks' shards."""
        with ledger_tag("weights"):
            return transport.all_gather(self.weights, self.shard, group=self.group, async_op=True)
