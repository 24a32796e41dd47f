"""How `transport` moves tensors on gloo: messages between pairs of ranks, a piece at a time.

A reduce-scatter of a long vector goes in pieces of at most `PIECE_BYTES`. Of its own shard, a rank receives each other
rank's piece into a scratch buffer and adds them up in the order of the ranks, while the next pieces arrive in a second
buffer. So nothing of the payload's size is allocated, and the sums run in the cache. An all-reduce sends each piece of
the sum on as soon as it is there.

Messages carry a tag of their own, so that calls under way do not get into each other's way, whichever thread posts
them. `Sequencer` is the thread that runs asynchronous sums, one after the other in the order of the calls. That order
is the same on all ranks of a group, so the first unfinished call is one that every rank is at, or will be at without
waiting for this one: no deadlock, whatever the order in which handles are waited for.
"""

from __future__ import annotations

import itertools
import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

FIRST_TAG, NUM_TAGS = 2**30, 2**30 - 1  # tags have 31 bits; the upper half is ours
PIECE_BYTES, SCRATCH_BYTES = 4 * 2**20, 12 * 2**20  # smaller messages cost time, larger buffers gain nothing
BLOCK_ELEMENTS = 2**16  # of running totals in fp32


class Sequencer:
    """A thread that runs the asynchronous sums of one group, in the order in which they were asked for."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], None], Future[None]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._tags = itertools.count()
        weakref.finalize(group, self._jobs.put, None)  # the thread ends with its group

    def submit(self, job: Callable[[], None]) -> Future[None]:
        """Run `job` after those submitted before."""
        if self._thread is None:
            self._thread = threading.Thread(target=_run, args=(self._jobs,), name="cme295lab sums", daemon=True)
            self._thread.start()
        done: Future[None] = Future()
        self._jobs.put((job, done))
        return done

    def reserve_tags(self, count: int) -> Iterator[int]:
        """Tags for the messages of one call; all ranks of a group count alike, since they make the same calls."""
        return iter([FIRST_TAG + next(self._tags) % NUM_TAGS for _ in range(count)])


_sequencers: weakref.WeakKeyDictionary[dist.ProcessGroup, Sequencer] = weakref.WeakKeyDictionary()


def sequencer(group: dist.ProcessGroup) -> Sequencer:
    """The one of this group."""
    found = _sequencers.get(group)
    if found is None:
        found = _sequencers[group] = Sequencer(group)
    return found


def _run(jobs: queue.SimpleQueue[tuple[Callable[[], None], Future[None]] | None]) -> None:
    while (entry := jobs.get()) is not None:
        job, done = entry
        problem: BaseException | None = None
        try:
            job()
        except BaseException as error:  # raised again where somebody waits
            problem = error
        del entry, job  # before whoever waits goes on: the tensors of a finished job must not live on
        if problem is None:
            done.set_result(None)
        else:
            done.set_exception(problem)
        del done, problem


def sum_in_pieces(
    sources: list[Tensor], total: Tensor, group: dist.ProcessGroup, tags: Iterator[int], *, gather: bool
) -> None:
    """Add up this rank's shard over all ranks; with `gather`, send the sums on and receive those of the other shards.

    Args:
        sources: this rank's values of shard 0, 1, ...; with `gather` they are overwritten with the sums.
        total: where the sum of the own shard goes; may be sources[rank].
        group: the ranks.
        tags: `num_tags(sources)` tags that the ranks agree on.
        gather: make it an all-reduce.
    """
    num_ranks, rank = group.size(), group.rank()
    piece = _piece_elements(total, num_ranks)
    starts = range(0, max(source.numel() for source in sources), piece)
    scratch = [torch.empty(num_ranks - 1, min(piece, total.numel()), dtype=total.dtype) for _ in starts[:2]]
    gathering: list[Any] = []
    arriving = None
    for index, start in enumerate([*starts, None]):
        posted = None
        if start is not None:
            parts = [source[start : start + piece] for source in sources]
            rows = list(scratch[index % 2][:, : parts[rank].numel()])
            posted = parts, rows, total[start : start + piece], _post(parts, rows, group, next(tags))
        if arriving is not None:
            parts, rows, into, works = arriving
            _wait(works)  # also for what was sent: with `gather` its place is taken by the sum
            add_in_order([*rows[:rank], parts[rank], *rows[rank:]], into)
            if gather:
                gathering += exchange([*parts[:rank], into, *parts[rank + 1 :]], group, next(tags))
        arriving = posted
    _wait(gathering)


def _piece_elements(tensor: Tensor, num_ranks: int) -> int:
    """Elements of one message, so that two buffers for all other ranks are within `SCRATCH_BYTES`."""
    piece_bytes = min(PIECE_BYTES, SCRATCH_BYTES // (2 * (num_ranks - 1)))
    return max(piece_bytes // tensor.element_size(), 1)


def num_tags(sources: list[Tensor]) -> int:
    """Tags that `sum_in_pieces` needs: two for each piece of the longest shard."""
    return 2 * -(-max(source.numel() for source in sources) // _piece_elements(sources[0], len(sources)))


def exchange(shards: list[Tensor], group: dist.ProcessGroup, tag: int) -> list[Any]:
    """Start to send the own shard to every other rank and to receive theirs."""
    own = shards[group.rank()]
    return _post([own] * group.size(), [*shards[: group.rank()], *shards[group.rank() + 1 :]], group, tag)


def _post(outgoing: list[Tensor], incoming: list[Tensor], group: dist.ProcessGroup, tag: int) -> list[Any]:
    """Send outgoing[r] to each other rank r; receive from the other ranks, in their order, into `incoming`."""
    rank, num_ranks = group.rank(), group.size()
    works = []
    for offset in range(1, num_ranks):  # not everybody to rank 0 first
        source, target = (rank - offset) % num_ranks, (rank + offset) % num_ranks
        place = incoming[source - (source > rank)]
        if place.numel():
            works.append(dist.irecv(place, group=group, group_src=source, tag=tag))
        if outgoing[target].numel():
            works.append(dist.isend(outgoing[target], group=group, group_dst=target, tag=tag))
    return works


def _wait(works: list[Any]) -> None:
    for work in works:
        work.wait()


@torch.no_grad()
def add_in_order(rows: list[Tensor], total: Tensor) -> None:
    """Add rows 0, 1, 2, ... in this order; fp16 and bf16 in fp32, rounded once. `total` may be one of the rows."""
    wide = torch.float32 if total.dtype in (torch.float16, torch.bfloat16) else total.dtype
    for start in range(0, total.numel(), BLOCK_ELEMENTS):
        first, *middle, last = (row[start : start + BLOCK_ELEMENTS] for row in rows)
        into = total[start : start + BLOCK_ELEMENTS]
        running = first.to(wide)
        for row in middle:  # not into `total`, which may be one of the rows to come
            running = running.add_(row) if running is not first else running + row
        if wide == total.dtype:
            torch.add(running, last, out=into)
        else:
            into.copy_(running.add_(last))
