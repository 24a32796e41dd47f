"""Data parallelism: every rank has the whole model and a part of the batch; gradients are averaged over the ranks.

    rank 0   batch 0 ─ forward ─ backward ─┐                       ┌─ the same step
    rank 1   batch 1 ─ forward ─ backward ─┴─ mean of gradients ───┴─ the same step

Each rank then takes the same optimizer step from the same weights, so the models stay equal without being compared.
Three ways to take the mean, with the same result bit for bit:

- "naive": after backward, an all-reduce per parameter. A hundred small messages, and the wire is idle during backward.
- "flat": after backward, all gradients in one vector and one all-reduce. One message, but twice the gradients' memory
  while they are copied, and the wire is still idle during backward.
- "bucketed": gradients are collected in buckets while backward runs, and a bucket is sent as soon as it is full
  (`buckets`). Gradients are views of the buckets: nothing is copied back.

Each sends 2 Ψ (N-1)/N bytes from each of N ranks, Ψ being the bytes of the gradients.

**The mean is over ranks.** That is the mean over the joined batch if all ranks have equally many tokens; if not, see
`weighting.token_scale`.

**Buffers** (running means and the like) are rank 0's at the beginning. After that each rank changes its own;
`sync_buffers` takes rank 0's again, for instance before a checkpoint is written.

Not covered: gradients of gradients, and changing what is trained after wrapping.

Source: Li et al. 2020, "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", sections 3.2 and 4.
"""

from __future__ import annotations

import math
import sys
from contextlib import AbstractContextManager
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cme295lab.parallel.communication import transport
from cme295lab.parallel.communication.calls import ledger_tag
from cme295lab.parallel.communication.tensor_checks import resolve_group
from cme295lab.parallel.replication.backward_watch import BackwardWatch
from cme295lab.parallel.replication.buckets import DEFAULT_BUCKET_BYTES, GradientVector, InOrder, plan_buckets
from cme295lab.parallel.replication.replicas import broadcast_values, check_same_model
from cme295lab.parallel.replication.weighting import token_scale
from cme295lab.parallel.sharding.gradient_health import clip_factor, is_finite, report, square_sum
from cme295lab.parallel.sharding.partition import FlatLayout

Strategy = Literal["bucketed", "flat", "naive"]


class DataParallel(nn.Module):
    """A model whose gradients are averaged over the ranks when a backward pass ends. Call it like the model itself.

    Args:
        model: the same on every rank; rank 0's values count.
        strategy: "bucketed", "flat" or "naive".
        bucket_bytes: small gradients are put together up to this size; larger ones travel alone.
        group: the ranks; None means all.

    Attributes:
        module: the model.

    Raises:
        TypeError, ValueError: an unknown strategy; nothing to train; models that differ between the ranks.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        strategy: Strategy = "bucketed",
        bucket_bytes: int = DEFAULT_BUCKET_BYTES,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        if strategy not in get_args(Strategy):
            raise ValueError(f"strategy must be one of {', '.join(map(repr, get_args(Strategy)))}, got {strategy!r}")
        self.group, self.strategy = resolve_group(group), strategy
        check_same_model(model, group=self.group)
        self.module = model
        self._trained = {name: each for name, each in model.named_parameters() if each.requires_grad and each.numel()}
        is_overlapped = strategy == "bucketed"
        sizes = {"naive": 1, "flat": sys.maxsize, "bucketed": bucket_bytes}
        planned = plan_buckets(self._trained, bucket_bytes=sizes[strategy])
        buckets = [_Bucket(members, self.group) for members in planned]
        self._buckets = InOrder(buckets, max_in_flight=None if is_overlapped else 1)
        self._bucket_of = {name: bucket for bucket, members in zip(buckets, planned) for name in members}
        self._watch = BackwardWatch(
            model,
            self._trained,
            on_gradient=self._collect if is_overlapped else _ignore,
            on_end=self._buckets.send_rest,
            on_forward=self._before_forward,
        )
        broadcast_values(model, group=self.group)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def no_sync(self) -> AbstractContextManager[None]:
        """Backward passes in this block send nothing; gradients add up on each rank until the next one outside."""
        return self._watch.no_sync()

    def token_scale(self, num_tokens: int) -> float:
        """What to multiply this rank's summed loss with, for the mean over all tokens; see `weighting.token_scale`."""
        return token_scale(num_tokens, group=self.group)

    @torch.no_grad()
    def clip_grad_norm_(self, max_norm: float) -> float:
        """Scale the averaged gradients so that the norm of all of them together is at most `max_norm`.

        Every rank has all of them, so this needs no message.

        Args:
            max_norm: the largest norm; positive.

        Returns:
            The norm before. One that is not finite changes nothing: see `check_finite`.

        Raises:
            RuntimeError: if there are no gradients.
            ValueError: if `max_norm` is not positive.
        """
        gradients = [each.grad for each in self._trained.values() if each.grad is not None]
        if not gradients:
            raise RuntimeError("clip_grad_norm_() before backward(): there are no gradients")
        norm = math.sqrt(square_sum(gradients))
        factor = clip_factor(norm, max_norm)
        if factor is not None:
            torch._foreach_mul_(gradients, factor)
        return norm

    def check_finite(self) -> None:
        """Stop before the optimizer's step if an averaged gradient is NaN or infinite; all ranks call it together.

        Raises:
            NonFiniteGradients: naming the parameters.
        """
        found = [name for name, each in self._trained.items() if each.grad is not None and not is_finite(each.grad)]
        if found:  # the mean is the same on all ranks, so all are here
            raise report([f"the mean gradient of {name}" for name in found], group=self.group)

    def sync_buffers(self) -> None:
        """Take rank 0's buffers; all ranks call it together."""
        broadcast_values(self.module, group=self.group, parameters=False)

    def close(self) -> nn.Module:
        """Take the hooks away and return the model."""
        self._watch.close()
        return self.module

    def _before_forward(self, has_failed: bool) -> None:
        if has_failed:
            self._buckets.reset()
            for bucket in self._buckets.buckets:
                bucket.vector.release()

    def _collect(self, name: str) -> None:
        self._bucket_of[name].vector.collect(name, keep_as_grad=True)
        self._buckets.advance()


class _Bucket:
    """Gradients of some parameters, averaged over the ranks by one all-reduce."""

    def __init__(self, parameters: dict[str, nn.Parameter], group: dist.ProcessGroup) -> None:
        self.vector = GradientVector(parameters, FlatLayout.of(parameters, num_ranks=1))
        self._group = group
        self._sum: tuple[transport.Handle, Tensor] | None = None

    def is_ready(self) -> bool:
        return self.vector.is_full

    def start(self) -> None:
        flat = self.vector.complete(keep_as_grad=True)
        with ledger_tag("gradients"):
            self._sum = transport.all_reduce(flat, group=self._group, async_op=True), flat

    @torch.no_grad()
    def finish(self) -> None:
        assert self._sum is not None
        (handle, flat), self._sum = self._sum, None
        handle.wait()
        flat.mul_(1 / self._group.size())
        self.vector.release()  # from now on it belongs to the gradients, which are views of it, and goes with them


def _ignore(_: str) -> None:
    """Gradients are collected when backward ends."""
