"""Collectives written out: each is a list of messages (`schedules`), and a loop that sends and receives them.

An all-reduce leaves the sum of everybody's vector with everybody. Sending all vectors to one rank and the sum back
would make that rank's link carry 2 (N-1) S bytes. On a ring each rank cuts its vector into N chunks, and in each step
sends one chunk to its right and receives one from its left, so that all links work all the time: 2 S (N-1)/N bytes per
rank, nearly independent of N, and no algorithm sends less. The price is 2 (N-1) steps, each with its latency; for short
vectors a tree of log2 N steps is faster, although it sends the whole vector each time (`cost_model` has the crossover).

All functions work on any shape and length (chunks differ by one element where the length does not divide; empty ones
are not sent), any dtype that adds, any group, and in place. Within a step sends and receives are started together and
then waited for: if everybody first waited for its send, nobody would get to receive, and the ring would stand still.

Sums are made in the dtype of the vector, hop by hop, as a real ring does; in bf16 that rounds N-1 times. Chunk c is
summed from rank c+1 round the ring to rank c, so a ring's result is the same on all ranks and in all runs, but not bit
for bit that of another order. `transport` is what the rest of the room uses.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from cme295lab.parallel.communication.schedules import (
    ADDING_PHASES,
    RingTransfer,
    Schedule,
    Transfer,
    all_to_all_schedule,
    ring_all_gather_schedule,
    ring_broadcast_schedule,
    ring_reduce_scatter_schedule,
    ring_schedule,
    tree_all_reduce_schedule,
    tree_broadcast_schedule,
)
from cme295lab.parallel.communication.tensor_checks import check_summable, resolve_group

__all__ = [
    "RingTransfer",
    "Transfer",
    "pairwise_all_to_all",
    "ring_all_gather",
    "ring_all_reduce",
    "ring_broadcast",
    "ring_reduce_scatter",
    "ring_schedule",
    "run_schedule",
    "tree_all_reduce",
    "tree_broadcast",
]


def run_schedule(schedule: Schedule, chunks: list[Tensor], group: dist.ProcessGroup) -> None:
    """Do this rank's part of a schedule, in place.

    Args:
        schedule: the messages of all ranks, in the order of their steps.
        chunks: this rank's chunks, by their number.
        group: the ranks; those of the schedule count within the group.
    """
    rank = group.rank()
    mine = [t for t in schedule if rank in (t.source, t.destination) and chunks[t.chunk].numel() > 0]
    for _, step in groupby(mine, key=lambda transfer: transfer.step):
        messages, to_add = [], []
        for transfer in step:
            chunk = chunks[transfer.chunk]
            if transfer.source == rank:
                messages.append(_message(dist.isend, chunk, transfer.destination, group))
            else:
                adds = transfer.phase in ADDING_PHASES
                received = torch.empty_like(chunk) if adds else chunk
                messages.append(_message(dist.irecv, received, transfer.source, group))
                if adds:
                    to_add.append((chunk, received))
        for work in dist.batch_isend_irecv(messages):
            work.wait()
        for chunk, received in to_add:  # only now: until here, the chunk may have been on its own way out
            chunk.add_(received)


def ring_reduce_scatter(
    tensor: Shaped[Tensor, " *shape"], *, group: dist.ProcessGroup | None = None
) -> Shaped[Tensor, " chunk"]:
    """Sum a tensor over the ranks and leave each rank one chunk of the sum: S (N-1)/N bytes sent, N-1 steps.

    Args:
        tensor: contiguous, the same shape and dtype on every rank; used as working space, overwritten.
        group: the ranks; None means all.

    Returns:
        Chunk r of the sum on rank r, a flat view of `tensor`: ``tensor.view(-1).tensor_split(N)[r]``.

    Raises:
        TypeError, ValueError: if the tensor is not contiguous or cannot be summed.
    """
    group = resolve_group(group)
    chunks = _chunks(tensor, group.size())
    check_summable(tensor)
    run_schedule(ring_reduce_scatter_schedule(group.size()), chunks, group)
    return chunks[group.rank()]


def ring_all_gather(tensor: Shaped[Tensor, " *shape"], *, group: dist.ProcessGroup | None = None) -> None:
    """Fill in the chunks that the other ranks have: S (N-1)/N bytes sent, N-1 steps.

    Args:
        tensor: contiguous, the same shape and dtype on every rank. Rank r brings chunk r of
            ``tensor.view(-1).tensor_split(N)``; the rest is overwritten.
        group: the ranks; None means all.

    Raises:
        TypeError, ValueError: if the tensor is not contiguous.
    """
    group = resolve_group(group)
    run_schedule(ring_all_gather_schedule(group.size()), _chunks(tensor, group.size()), group)


def ring_all_reduce(tensor: Shaped[Tensor, " *shape"], *, group: dist.ProcessGroup | None = None) -> None:
    """Sum a tensor over the ranks, in place, on every rank: a reduce-scatter, then an all-gather.

    2 S (N-1)/N bytes sent, 2 (N-1) steps.

    Args:
        tensor: contiguous, the same shape and dtype on every rank.
        group: the ranks; None means all.

    Raises:
        TypeError, ValueError: if the tensor is not contiguous or cannot be summed.
    """
    ring_reduce_scatter(tensor, group=group)
    ring_all_gather(tensor, group=group)


def tree_all_reduce(tensor: Shaped[Tensor, " *shape"], *, group: dist.ProcessGroup | None = None) -> None:
    """Sum a tensor over the ranks, in place, by recursive doubling: S log2 N bytes sent, log2 N steps.

    Bit for bit the same on all ranks, because both partners of a step add the same two vectors.

    Args:
        tensor: contiguous, the same shape and dtype on every rank.
        group: the ranks; None means all.

    Raises:
        TypeError, ValueError: if the tensor is not contiguous or cannot be summed.
    """
    group = resolve_group(group)
    chunks = _chunks(tensor, 1)
    check_summable(tensor)
    run_schedule(tree_all_reduce_schedule(group.size()), chunks, group)


def ring_broadcast(
    tensor: Shaped[Tensor, " *shape"], src: int, *, num_chunks: int = 8, group: dist.ProcessGroup | None = None
) -> None:
    """Pass a tensor down the ring, chunk by chunk, so that all links work at the same time.

    Args:
        tensor: contiguous, the same shape and dtype on every rank.
        src: the global rank it comes from, as in torch.
        num_chunks: parts that it is cut into; more hide more of the way, and cost more latencies.
        group: the ranks; None means all.

    Raises:
        TypeError, ValueError: if the tensor is not contiguous, `src` is not in the group, or `num_chunks` below 1.
    """
    group = resolve_group(group)
    schedule = ring_broadcast_schedule(group.size(), num_chunks, _root(src, group))
    run_schedule(schedule, _chunks(tensor, num_chunks), group)


def tree_broadcast(tensor: Shaped[Tensor, " *shape"], src: int, *, group: dist.ProcessGroup | None = None) -> None:
    """Pass a tensor down a binomial tree: ⌈log2 N⌉ steps of the whole tensor.

    Args:
        tensor: contiguous, the same shape and dtype on every rank.
        src: the global rank it comes from, as in torch.
        group: the ranks; None means all.

    Raises:
        TypeError, ValueError: if the tensor is not contiguous, or `src` is not in the group.
    """
    group = resolve_group(group)
    run_schedule(tree_broadcast_schedule(group.size(), _root(src, group)), _chunks(tensor, 1), group)


def pairwise_all_to_all(
    output: Shaped[Tensor, " *shape"], input: Shaped[Tensor, " *shape"], *, group: dist.ProcessGroup | None = None
) -> None:
    """Send chunk r of the input to rank r, and collect what each rank sends here: S (N-1)/N bytes sent, N-1 steps.

    Args:
        output: contiguous, as many elements as `input`; chunk r comes from rank r.
        input: contiguous; its number of elements must be a multiple of the number of ranks.
        group: the ranks; None means all.

    Raises:
        TypeError, ValueError: if a tensor is not contiguous, the shapes differ, or the ranks cannot share it equally.
    """
    group = resolve_group(group)
    sent, received = _chunks(input, group.size()), _chunks(output, group.size())
    if output.numel() != input.numel() or output.dtype != input.dtype:
        raise ValueError(
            f"output must have the elements and dtype of input, {input.numel()} of {input.dtype}, got "
            f"{output.numel()} of {output.dtype}"
        )
    if input.numel() % group.size():
        raise ValueError(
            f"input has {input.numel()} elements, which {group.size()} ranks cannot share equally; pad to a multiple"
        )
    rank = group.rank()
    received[rank].copy_(sent[rank])
    if input.numel() == 0:
        return
    for _, step in groupby(all_to_all_schedule(group.size()), key=lambda transfer: transfer.step):
        messages = []
        for transfer in step:
            if transfer.source == rank:
                messages.append(_message(dist.isend, sent[transfer.chunk], transfer.destination, group))
            elif transfer.destination == rank:
                messages.append(_message(dist.irecv, received[transfer.source], transfer.source, group))
        for work in dist.batch_isend_irecv(messages):
            work.wait()


def _message(kind: Callable[..., Any], tensor: Tensor, peer: int, group: dist.ProcessGroup) -> dist.P2POp:
    return dist.P2POp(kind, tensor, dist.get_global_rank(group, peer), group)


def _chunks(tensor: Tensor, num_chunks: int) -> list[Tensor]:
    """Flat views of a tensor's parts, longer ones first."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"tensor must be a torch.Tensor, got {type(tensor).__name__}")
    if not tensor.is_contiguous():
        raise ValueError(f"tensor must be contiguous, got strides {tensor.stride()}; use .contiguous()")
    return list(tensor.detach().view(-1).tensor_split(num_chunks))


def _root(src: int, group: dist.ProcessGroup) -> int:
    ranks = dist.get_process_group_ranks(group)
    if src not in ranks:
        raise ValueError(f"src must be a rank of the group {ranks}, got {src!r}")
    return ranks.index(src)
