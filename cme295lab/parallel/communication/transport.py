"""The seam between the algorithms of this room and torch.distributed: sums of flat tensors, moved the fast way.

On nccl every function is torch's own call. On gloo, the CPU backend, torch's calls leave time on the table: its
reduce-scatter moves as many bytes as an all-reduce. Here each rank sends each other one its part, and adds up what
arrives; an all-gather is one message from each rank to each other; an all-reduce is one after the other, piece by
piece (`exchange` has the details).

**One order of summation.** The local sum adds rank 0, 1, 2, ... in that order, element by element. So a result depends
neither on how a buffer is cut into shards or buckets, nor on the run, and it is the same on every rank: data
parallelism and all stages of ZeRO end bit for bit alike. fp16 and bf16 are summed in fp32 and rounded once. (On nccl
order and rounding are the library's.)

**Asynchronous calls.** `async_op=True` returns a `Handle` at once. Sums run in a thread of the group, so several calls
make progress while the caller computes, and handles may be waited for in any order. As everywhere in
torch.distributed, all ranks of a group make the same calls in the same order, and tensors are left alone until `wait`
returns. Parts are told apart by message tags from 2^30 on; leave those to this module.

**Memory.** A sum holds at most 12 MiB beyond its tensors, whatever the payload, and one sum of a group runs at a time.
Payloads of which all ranks together have at most 1 MiB go in one exchange, which holds twice that much.

**Measured** (two busy cores, time relative to torch's own call on gloo, medians of interleaved runs, 2 / 4 ranks):

| payload | reduce_scatter | all_gather | all_reduce |
|---|---|---|---|
| 1 MiB | 0.81 / 0.51 | 0.88 / 0.71 | 1.11 / 0.85 |
| 4 MiB | 0.62 / 0.54 | 0.67 / 0.70 | 1.38 / 1.51 |
| 16 MiB | 0.48 / 0.51 | 0.96 / 0.80 | 1.09 / 1.21 |
| 64 MiB | 0.30 / 0.37 | 0.33 / 0.35 | 0.94 / 1.21 |

So sharding gains; an all-reduce pays for its order of summation, except below 128 KiB on 4 ranks (0.3 to 0.7).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from cme295lab.parallel.communication.calls import announce, describe, hidden_if_watched, is_watched
from cme295lab.parallel.communication.exchange import add_in_order, exchange, num_tags, sequencer, sum_in_pieces
from cme295lab.parallel.communication.tensor_checks import (
    check_flat,
    check_lengths,
    check_splits,
    check_summable,
    resolve_group,
)

ONE_EXCHANGE_BYTES = 2**20  # up to here, all ranks' payloads together, latency costs more than bytes
SWAP_BYTES = 8 * 2**20  # up to here, two ranks swap their vectors


class Handle:
    """A collective under way. `wait` until it is done before touching its tensors; waiting twice is fine."""

    def __init__(self, *waits: Callable[[], Any]) -> None:
        self._waits = list(waits)

    def wait(self) -> None:
        """Block until the result is there.

        Raises:
            RuntimeError: if the connection to another rank broke, or the group's time-out passed.
        """
        while self._waits:
            self._waits[0]()
            self._waits.pop(0)


def all_reduce(
    tensor: Shaped[Tensor, " elements"], *, group: dist.ProcessGroup | None = None, async_op: bool = False
) -> Handle:
    """Sum a tensor over the ranks of a group, in place, on every rank.

    Args:
        tensor: flat and contiguous, the same length and dtype on every rank; any length, also below the rank count.
        group: the ranks; None means all.
        async_op: return before it is done.

    Returns:
        A handle; done already unless `async_op`.

    Raises:
        TypeError, ValueError: if the tensor is not flat, contiguous and of a dtype that can be summed.
        CollectiveMismatch: under `consistency.checked`, if the ranks do not agree.
    """
    group, size = resolve_group(group), check_flat(tensor=tensor)
    check_summable(tensor)
    if is_watched():
        announce(describe("all_reduce", group, [tensor], payload_bytes=size, detail="sum"), group)
    tensor = tensor.detach()
    with hidden_if_watched():
        if not _is_gloo(group, tensor):
            return _started(dist.all_reduce(tensor, group=group, async_op=True), async_op)
        if group.size() == 1 or tensor.numel() == 0:
            return Handle()
        if size * group.size() <= ONE_EXCHANGE_BYTES:
            return _finished(_all_reduce_at_once(tensor, group), async_op)
        if group.size() == 2 and size <= SWAP_BYTES:  # as many bytes as in two halves, in one latency; twice the adding
            return _sum([tensor, tensor], tensor, group, gather=False, async_op=async_op)
        shards = list(tensor.tensor_split(group.size()))  # the first have one element more if it does not divide
        return _sum(shards, shards[group.rank()], group, gather=True, async_op=async_op)


def reduce_scatter(
    output: Shaped[Tensor, " shard"],
    input: Shaped[Tensor, " elements"],
    *,
    group: dist.ProcessGroup | None = None,
    async_op: bool = False,
) -> Handle:
    """Sum a tensor over the ranks, and leave each rank its shard of the sum: rank r the r-th.

    Args:
        output: the shard, flat and contiguous; it may be the part of `input` that it replaces.
        input: num_ranks shards, flat and contiguous.
        group: the ranks; None means all.
        async_op: return before it is done.

    Returns:
        A handle; done already unless `async_op`.

    Raises:
        TypeError, ValueError: if a tensor is not flat, contiguous and summable, or the lengths do not fit.
        CollectiveMismatch: under `consistency.checked`, if the ranks do not agree.
    """
    group = resolve_group(group)
    size = check_flat(input=input, output=output)
    check_lengths("input", input, "output", output, group)
    check_summable(input)
    if is_watched():
        announce(describe("reduce_scatter", group, [input], payload_bytes=size, detail="sum"), group)
    output, input = output.detach(), input.detach()
    with hidden_if_watched():
        if not _is_gloo(group, input):
            native = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
            return _started(native(output, input, group=group, async_op=True), async_op)
        if group.size() == 1 or input.numel() == 0:
            output.copy_(input)
            return Handle()
        if size <= ONE_EXCHANGE_BYTES:
            received = torch.empty_like(input)
            work = dist.all_to_all_single(received, input, group=group, async_op=True)
            add = lambda: add_in_order(list(received.view(group.size(), -1)), output)  # noqa: E731
            return _finished(Handle(work.wait, add), async_op)
        return _sum(list(input.view(group.size(), -1)), output, group, gather=False, async_op=async_op)


def all_gather(
    output: Shaped[Tensor, " elements"],
    input: Shaped[Tensor, " shard"],
    *,
    group: dist.ProcessGroup | None = None,
    async_op: bool = False,
) -> Handle:
    """Put together the shards of all ranks, in the order of the ranks, on every rank.

    Args:
        output: num_ranks shards, flat and contiguous.
        input: this rank's shard, flat and contiguous, the same length on every rank; it may be its part of `output`.
        group: the ranks; None means all.
        async_op: return before it is done.

    Returns:
        A handle; done already unless `async_op`.

    Raises:
        TypeError, ValueError: if a tensor is not flat and contiguous, or the lengths do not fit.
        CollectiveMismatch: under `consistency.checked`, if the ranks do not agree.
    """
    group = resolve_group(group)
    size = check_flat(output=output, input=input)
    check_lengths("output", output, "input", input, group)
    if is_watched():
        announce(describe("all_gather", group, [input], payload_bytes=size), group)
    output, input = output.detach(), input.detach()
    with hidden_if_watched():
        if not _is_gloo(group, input):
            native = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
            return _started(native(output, input, group=group, async_op=True), async_op)
        output, input = _bytes_if_gloo_needs(output), _bytes_if_gloo_needs(input)
        if 0 < size <= ONE_EXCHANGE_BYTES and group.size() > 1:
            repeated = input.expand(group.size(), -1).contiguous().view(-1)
            return _started(dist.all_to_all_single(output, repeated, group=group, async_op=True), async_op)
        shards = list(output.view(group.size(), -1))
        own = shards[group.rank()]
        if own.data_ptr() != input.data_ptr():
            own.copy_(input)
        works = exchange(shards, group, next(sequencer(group).reserve_tags(1)))
        return _finished(Handle(*(work.wait for work in works)), async_op)


def broadcast(
    tensor: Shaped[Tensor, " elements"], src: int, *, group: dist.ProcessGroup | None = None, async_op: bool = False
) -> Handle:
    """Copy a tensor from one rank to all of a group.

    Args:
        tensor: flat and contiguous, the same length and dtype on every rank.
        src: the *global* rank it comes from, as in torch.
        group: the ranks; None means all.
        async_op: return before it is done.

    Returns:
        A handle; done already unless `async_op`.

    Raises:
        TypeError, ValueError: if the tensor is not flat and contiguous, or `src` is not in the group.
        CollectiveMismatch: under `consistency.checked`, if the ranks do not agree.
    """
    group, size = resolve_group(group), check_flat(tensor=tensor)
    if src not in dist.get_process_group_ranks(group):
        raise ValueError(f"src must be a rank of the group {dist.get_process_group_ranks(group)}, got {src!r}")
    if is_watched():
        announce(describe("broadcast", group, [tensor], payload_bytes=size, detail=f"from rank {src}"), group)
    with hidden_if_watched():
        tensor = _bytes_if_gloo_needs(tensor.detach())
        return _started(dist.broadcast(tensor, src, group=group, async_op=True), async_op)


def all_to_all(
    output: Shaped[Tensor, " received"],
    input: Shaped[Tensor, " sent"],
    *,
    output_split_sizes: Sequence[int] | None = None,
    input_split_sizes: Sequence[int] | None = None,
    group: dist.ProcessGroup | None = None,
    async_op: bool = False,
) -> Handle:
    """Send a part of the input to each rank, and collect what each rank sends here.

    Args:
        output: flat and contiguous; the parts from rank 0, 1, ... one after the other.
        input: flat and contiguous; the parts for rank 0, 1, ...
        output_split_sizes: elements from each rank; None means equal parts.
        input_split_sizes: elements for each rank; None means equal parts.
        group: the ranks; None means all.
        async_op: return before it is done.

    Returns:
        A handle; done already unless `async_op`.

    Raises:
        TypeError, ValueError: if a tensor is not flat and contiguous, or the sizes do not add up to it.
        CollectiveMismatch: under `consistency.checked`, if the ranks do not agree.
    """
    group = resolve_group(group)
    check_flat(input=input, output=output)
    sent = check_splits("input", input, input_split_sizes, group)
    received = check_splits("output", output, output_split_sizes, group)
    if is_watched():
        element, rank = input.element_size(), group.rank()
        traffic = (sum(sent) - sent[rank]) * element, (sum(received) - received[rank]) * element
        payload = input.numel() * element
        call = describe("all_to_all", group, [input], payload_bytes=payload, traffic=traffic, splits=(sent, received))
        announce(call, group)
    with hidden_if_watched():
        output, input = _bytes_if_gloo_needs(output.detach()), _bytes_if_gloo_needs(input.detach())
        work = dist.all_to_all_single(output, input, received, sent, group=group, async_op=True)
    return _started(work, async_op)


def barrier(*, group: dist.ProcessGroup | None = None) -> None:
    """Wait until all ranks of a group are here."""
    group = resolve_group(group)
    if is_watched():
        announce(describe("barrier", group, [], payload_bytes=0, traffic=(0, 0)), group)
    with hidden_if_watched():
        dist.barrier(group=group)


def _all_reduce_at_once(tensor: Tensor, group: dist.ProcessGroup) -> Handle:
    """Everybody sends everything to everybody, and adds up: one latency."""
    sent = tensor.expand(group.size(), -1).contiguous()
    received = torch.empty_like(sent)
    work = dist.all_to_all_single(received.view(-1), sent.view(-1), group=group, async_op=True)
    return Handle(work.wait, lambda: add_in_order(list(received), tensor))


def _sum(sources: list[Tensor], total: Tensor, group: dist.ProcessGroup, *, gather: bool, async_op: bool) -> Handle:
    """The long way, in pieces: here and now, or in the thread that keeps asynchronous sums in order."""
    tags = sequencer(group).reserve_tags(num_tags(sources))
    if async_op:
        return Handle(sequencer(group).submit(lambda: sum_in_pieces(sources, total, group, tags, gather=gather)).result)
    sum_in_pieces(sources, total, group, tags, gather=gather)
    return Handle()


def _is_gloo(group: dist.ProcessGroup, tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and group._get_backend(tensor.device).name() == "gloo"


def _bytes_if_gloo_needs(tensor: Tensor) -> Tensor:
    """Gloo moves bytes of any dtype, but knows no float of 8 bits by name."""
    return tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 and tensor.is_floating_point() else tensor


def _started(work: Any, async_op: bool) -> Handle:
    return _finished(Handle() if work is None else Handle(work.wait), async_op)


def _finished(handle: Handle, async_op: bool) -> Handle:
    if not async_op:
        handle.wait()
    return handle
