"""Who sends which chunk to whom at which step: the collectives as plain lists, without processes.

A schedule is a tuple of `Transfer` records in the order of their steps; all transfers of a step happen at the same
time. `collectives` follows them with real sends and receives, a widget draws them, and their cost can be read off: the
number of steps is what latency multiplies, the chunks that a rank sends are its bytes.

Rank r of the ring passes to rank r+1. In the reduce-scatter it adds what it receives to its own chunk and passes the
sum on; after N-1 steps each rank has one chunk with all N values in it, rank r the r-th. In the all-gather it passes on
what it received, and after N-1 steps more everybody has everything: 2 (N-1) steps, and 2 (N-1) of N chunks sent by
each rank.

    >>> [(t.step, t.source, t.destination, t.chunk) for t in ring_schedule(2)]
    [(0, 0, 1, 1), (0, 1, 0, 0), (1, 0, 1, 0), (1, 1, 0, 1)]

Sources: Patarasuk, Yuan 2009 (ring); Thakur, Rabenseifner, Gropp 2005, "Optimization of Collective Communication
Operations in MPICH" (recursive doubling, binomial tree, pairwise exchange).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Phase = Literal["reduce-scatter", "all-gather", "broadcast", "all-to-all", "fold", "exchange", "unfold"]
ADDING_PHASES = ("reduce-scatter", "fold", "exchange")  # what arrives is added; elsewhere it replaces


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """One message.

    Attributes:
        step: when, from 0; messages of a step travel at the same time.
        source: the rank that sends.
        destination: the rank that receives.
        chunk: which part of the vector.
        phase: what the step is part of; it says whether what arrives is added or replaces.
    """

    step: int
    source: int
    destination: int
    chunk: int
    phase: Phase


RingTransfer = Transfer
Schedule = tuple[Transfer, ...]


@lru_cache(maxsize=64)
def ring_reduce_scatter_schedule(num_ranks: int) -> Schedule:
    """N-1 steps, after which rank r has the sum of chunk r.

    Args:
        num_ranks: N, at least 1.

    Raises:
        TypeError, ValueError: if `num_ranks` is no int from 1.
    """
    _check(num_ranks=num_ranks)
    return tuple(
        _to_the_next(step, rank, num_ranks, rank - 1 - step, "reduce-scatter")
        for step in range(num_ranks - 1)
        for rank in range(num_ranks)
    )


@lru_cache(maxsize=64)
def ring_all_gather_schedule(num_ranks: int, first_step: int = 0) -> Schedule:
    """N-1 steps, after which everybody has the chunks that rank 0, 1, ... began with.

    Args:
        num_ranks: N, at least 1.
        first_step: number of the first step.

    Raises:
        TypeError, ValueError: if `num_ranks` is no int from 1.
    """
    _check(num_ranks=num_ranks)
    return tuple(
        _to_the_next(first_step + step, rank, num_ranks, rank - step, "all-gather")
        for step in range(num_ranks - 1)
        for rank in range(num_ranks)
    )


def ring_schedule(num_ranks: int) -> Schedule:
    """The ring all-reduce: a reduce-scatter, then an all-gather; 2 (N-1) steps of N messages.

    Args:
        num_ranks: N, at least 1 (and then nothing is sent).

    Raises:
        TypeError, ValueError: if `num_ranks` is no int from 1.
    """
    return ring_reduce_scatter_schedule(num_ranks) + ring_all_gather_schedule(num_ranks, max(num_ranks, 1) - 1)


@lru_cache(maxsize=64)
def ring_broadcast_schedule(num_ranks: int, num_chunks: int, root: int = 0) -> Schedule:
    """Down the ring from the root, chunk after chunk: while chunk c moves on, chunk c+1 follows a rank behind.

    N-2 + num_chunks steps of 1/num_chunks of the vector: for many chunks hardly longer than sending it once.

    Args:
        num_ranks: N.
        num_chunks: parts that the vector is cut into.
        root: the rank that has it.

    Raises:
        TypeError, ValueError: if a number is no int from 1, or the root no rank.
    """
    _check(num_ranks=num_ranks, num_chunks=num_chunks)
    _check_root(root, num_ranks)
    return tuple(
        _to_the_next(step, root + hop, num_ranks, step - hop, "broadcast", num_chunks)
        for step in range(num_ranks - 2 + num_chunks)
        for hop in range(num_ranks - 1)
        if 0 <= step - hop < num_chunks
    )


@lru_cache(maxsize=64)
def tree_broadcast_schedule(num_ranks: int, root: int = 0) -> Schedule:
    """A binomial tree: in each step, everybody who has the vector sends it to one who has not; ⌈log2 N⌉ steps.

    Args:
        num_ranks: N.
        root: the rank that has it.

    Raises:
        TypeError, ValueError: if `num_ranks` is no int from 1, or the root no rank.
    """
    _check(num_ranks=num_ranks)
    _check_root(root, num_ranks)
    transfers = []
    for step in range((num_ranks - 1).bit_length()):
        for place in range(min(2**step, num_ranks - 2**step)):
            source, destination = (root + place) % num_ranks, (root + place + 2**step) % num_ranks
            transfers.append(Transfer(step=step, source=source, destination=destination, chunk=0, phase="broadcast"))
    return tuple(transfers)


@lru_cache(maxsize=64)
def tree_all_reduce_schedule(num_ranks: int) -> Schedule:
    """Recursive doubling: in each step, ranks at distance 1, 2, 4, ... swap what they have and add it.

    log2 N steps of the whole vector for a power of two. Otherwise the ranks beyond the largest power of two first give
    their vector to one below ("fold") and get the result at the end ("unfold"): two steps more.

    Args:
        num_ranks: N.

    Raises:
        TypeError, ValueError: if `num_ranks` is no int from 1.
    """
    _check(num_ranks=num_ranks)
    core = 2 ** (num_ranks.bit_length() - 1)
    extra = range(core, num_ranks)
    pairs: list[tuple[Phase, list[tuple[int, int]]]] = [("fold", [(rank, rank - core) for rank in extra])]
    for bit in range(core.bit_length() - 1):
        pairs.append(("exchange", [(rank, rank ^ 2**bit) for rank in range(core)]))
    pairs.append(("unfold", [(rank - core, rank) for rank in extra]))
    steps = [(phase, messages) for phase, messages in pairs if messages]
    return tuple(
        Transfer(step=step, source=source, destination=destination, chunk=0, phase=phase)
        for step, (phase, messages) in enumerate(steps)
        for source, destination in messages
    )


@lru_cache(maxsize=64)
def all_to_all_schedule(num_ranks: int) -> Schedule:
    """In step s, rank r sends rank r+s+1 its part; nobody gets two messages at a time. `chunk` is the destination.

    Args:
        num_ranks: N.

    Raises:
        TypeError, ValueError: if `num_ranks` is no int from 1.
    """
    _check(num_ranks=num_ranks)
    return tuple(
        Transfer(step=step, source=rank, destination=target, chunk=target, phase="all-to-all")
        for step in range(num_ranks - 1)
        for rank in range(num_ranks)
        for target in [(rank + step + 1) % num_ranks]
    )


def _to_the_next(step: int, rank: int, num_ranks: int, chunk: int, phase: Phase, num_chunks: int = 0) -> Transfer:
    source, destination = rank % num_ranks, (rank + 1) % num_ranks
    chunk %= num_chunks or num_ranks
    return Transfer(step=step, source=source, destination=destination, chunk=chunk, phase=phase)


def _check(**counts: int) -> None:
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool):
            raise TypeError(f"{name} must be an int, got {count!r} of type {type(count).__name__}")
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")


def _check_root(root: int, num_ranks: int) -> None:
    if not 0 <= root < num_ranks:
        raise ValueError(f"root must be a rank from 0 to {num_ranks - 1}, got {root!r}")
