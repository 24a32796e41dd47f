"""The seam between the algorithms of this room and torch.distributed: sums of flat tensors, moved the fast way.

On nccl every function is torch's own call. On gloo, the CPU backend, torch's calls leave time on the table: its
reduce-scatter moves as many bytes as an all-reduce. Here a reduce-scatter is an all-to-all and a local sum, an
all-gather is one message from each rank to each other, and an all-reduce is one after the other.

**One order of summation.** The local sum adds rank 0, 1, 2, ... in that order, element by element. So a result depends
neither on how a buffer is cut into shards or buckets, nor on the run, and it is the same on every rank: data
parallelism and all stages of ZeRO end bit for bit alike. fp16 and bf16 are summed in fp32 and rounded once. (On nccl
order and rounding are the library's.)

**Asynchronous calls.** `async_op=True` returns a `Handle` at once. The local sum and the second half of an all-reduce
run in gloo's thread as soon as the exchange is done, not when somebody waits, so several calls make progress at once
and handles may be waited for in any order. As everywhere in torch.distributed, all ranks of a group make the same calls
in the same order, and tensors are left alone until `wait` returns. Parts are told apart by message tags from 2^30 on;
leave those to this module.

**Memory.** `reduce_scatter` and `all_reduce` hold one buffer of the payload's size from the call until the sum is done
(one shard more for fp16 and bf16 at most 1 MiB of sums in fp32). The others need none. Payloads of which all ranks
together hold at most 1 MiB go in one exchange instead of two, which needs two buffers of `num_ranks` times the payload.

**Measured** (two cores, ratio of time to torch's own call on gloo, medians of interleaved runs):
reduce_scatter 0.24 to 0.41 for 2 ranks and 0.27 to 0.41 for 4 (4 to 64 MiB); all_gather 0.30 to 0.74 and 0.42 to 0.64;
all_reduce about 1.0 and 0.85 to 1.05, and 0.2 to 0.5 for less than 256 KiB on 4 ranks.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from cme295lab.parallel.calls import announce, describe, hidden_if_watched, is_watched
from cme295lab.parallel.tensor_checks import check_flat, check_lengths, check_splits, check_summable, resolve_group

FIRST_TAG, NUM_TAGS = 2**30, 2**20  # message tags of this module: far from those that people choose
ONE_EXCHANGE_BYTES = 2**20  # up to here, all ranks' payloads together, latency costs more than bytes
BLOCK_ELEMENTS = 2**17  # sums go block by block, so that running totals stay in the cache

_counters: weakref.WeakKeyDictionary[dist.ProcessGroup, Any] = weakref.WeakKeyDictionary()


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
    if not _is_gloo(group, tensor):
        return _started(dist.all_reduce(tensor, group=group, async_op=True), async_op)
    if group.size() == 1 or tensor.numel() == 0:
        return Handle()
    start = _all_reduce_at_once if size * group.size() <= ONE_EXCHANGE_BYTES else _all_reduce_in_shards
    return _finished(start(tensor.detach(), group), async_op)


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
    if not _is_gloo(group, input):
        native = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
        return _started(native(output, input, group=group, async_op=True), async_op)
    output, input = output.detach(), input.detach()
    if group.size() == 1 or input.numel() == 0:
        output.copy_(input)
        return Handle()
    received = torch.empty_like(input)
    with hidden_if_watched():
        work = dist.all_to_all_single(received, input, group=group, async_op=True)
    summed = work.get_future().then(lambda _: _sum_rows(received.view(group.size(), -1), output))
    return _finished(Handle(summed.wait), async_op)


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
    if not _is_gloo(group, input):
        native = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        return _started(native(output, input, group=group, async_op=True), async_op)
    output, input = _bytes_if_gloo_needs(output.detach()), _bytes_if_gloo_needs(input.detach())
    shards = output.view(group.size(), -1)
    if size <= ONE_EXCHANGE_BYTES and group.size() > 1 and size:
        with hidden_if_watched():
            repeated = input.expand(group.size(), -1).contiguous().view(-1)
            work = dist.all_to_all_single(output, repeated, group=group, async_op=True)
        return _started(work, async_op)
    own = shards[group.rank()]
    if own.data_ptr() != input.data_ptr():
        own.copy_(input)
    return _finished(_exchange_shards(list(shards), group, _next_tag(group)), async_op)


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
    with hidden_if_watched():
        work = dist.all_to_all_single(received.view(-1), sent.view(-1), group=group, async_op=True)
    summed = work.get_future().then(lambda _: (sent, _sum_rows(received, tensor)))
    return Handle(summed.wait)


def _all_reduce_in_shards(tensor: Tensor, group: dist.ProcessGroup) -> Handle:
    """Reduce-scatter, then all-gather; the first shards have one element more where the length does not divide."""
    shards = list(tensor.tensor_split(group.size()))
    own, tag = shards[group.rank()], _next_tag(group)
    received = torch.empty(group.size() * own.numel(), dtype=tensor.dtype, device=tensor.device)
    with hidden_if_watched():
        sent, expected = [shard.numel() for shard in shards], [own.numel()] * group.size()
        work = dist.all_to_all_single(received, tensor, expected, sent, group=group, async_op=True)

    def sum_and_gather(_: Any) -> Handle:
        _sum_rows(received.view(group.size(), -1), own)
        return _exchange_shards(shards, group, tag)

    second_half = work.get_future().then(sum_and_gather)
    return Handle(lambda: second_half.wait().wait())


def _exchange_shards(shards: list[Tensor], group: dist.ProcessGroup, tag: int) -> Handle:
    """Send the own shard to every other rank and receive theirs; safe in any thread, and in any order of calls."""
    rank, num_ranks = group.rank(), group.size()
    others = [(rank + offset) % num_ranks for offset in range(1, num_ranks)]  # not all to rank 0 at first
    with hidden_if_watched():
        works = [dist.irecv(shards[other], group=group, group_src=other, tag=tag) for other in others]
        works += [dist.isend(shards[rank], group=group, group_dst=other, tag=tag) for other in reversed(others)]
    return Handle(*(work.wait for work in works if work is not None))


@torch.no_grad()
def _sum_rows(rows: Tensor, total: Tensor) -> None:
    """Add rows 0, 1, 2, ... in this order, block by block."""
    wide = torch.float32 if total.dtype in (torch.float16, torch.bfloat16) else total.dtype
    for start in range(0, total.numel(), BLOCK_ELEMENTS):
        block = rows[:, start : start + BLOCK_ELEMENTS]
        into = total[start : start + BLOCK_ELEMENTS]
        if wide == total.dtype:
            torch.add(block[0], block[1], out=into)
        else:
            into, result = block[0].to(wide).add_(block[1]), into
        for row in block[2:]:
            into.add_(row)
        if wide != total.dtype:
            result.copy_(into)


def _next_tag(group: dist.ProcessGroup) -> int:
    """A tag for the messages of one call; all ranks of a group count alike, since they make the same calls."""
    counter = _counters.get(group)
    if counter is None:
        counter = _counters[group] = itertools.count()
    return FIRST_TAG + next(counter) % NUM_TAGS


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
