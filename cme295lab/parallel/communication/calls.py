"""What one collective call is, who is told about it, and how many bytes it puts on the wire.

`CollectiveCall` describes a call: which collective, over how many ranks, of which shapes and dtype, what for (its tag).
`announce` hands the description to whoever watches: `comm_ledger.CommLedger` counts it, `consistency.checked` compares
it with what the other ranks are about to call. With nobody watching, an announcement costs about a microsecond.

Two kinds of code announce. `transport` says what a call stands for, and hides the point-to-point messages and
exchanges it is made of. Everything else (a student's own ``torch.distributed`` code, DDP, FSDP) is seen
by `c10d_operators.c10d_watch`, which reads PyTorch's operators as they are dispatched.

**Bytes are algorithmic.** A call of payload S bytes over N ranks sends, per rank, what the best ring sends: an
all-reduce 2 S (N-1)/N, a reduce-scatter or an all-gather S (N-1)/N, where S is the whole vector (the input of the
reduce-scatter, the output of the all-gather). What a backend really moves may differ: gloo's own reduce-scatter moves
as much as an all-reduce.

Watchers and tags belong to the process, which is one rank, and not to a thread: hooks that autograd runs in a thread of
its own see the same ones.

Source of the factors: Patarasuk, Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations".
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager as ContextManager
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch.distributed as dist
from torch import Tensor

from cme295lab.parallel.communication.cost_model import wire_bytes


@dataclass(frozen=True, kw_only=True)
class CollectiveCall:
    """One call of one rank.

    Attributes:
        collective: "all_reduce", "reduce_scatter", "all_gather", "broadcast", "all_to_all", "reduce", "gather",
            "scatter", "barrier", "send" or "recv".
        num_ranks: ranks of the group (for a send or a receive, too).
        dtype: such as "float32"; "-" where nothing is moved.
        payload_bytes: S, the bytes of the whole vector.
        sent_bytes: bytes that this rank sends, by the ring's formula (for a broadcast or a reduce the average over the
            ranks of a pipelined ring).
        received_bytes: bytes that reach this rank.
        tag: what the traffic is for, see `ledger_tag`.
        shapes: of the tensors as given; they must agree between the ranks (see `consistency`).
        detail: what else must agree: the reduction, the root.
        splits: elements (rows) to and from each rank, for an all-to-all.
    """

    collective: str
    num_ranks: int
    dtype: str
    payload_bytes: int
    sent_bytes: float
    received_bytes: float
    tag: str = ""
    shapes: tuple[tuple[int, ...], ...] = ()
    detail: str = ""
    splits: tuple[tuple[int, ...], tuple[int, ...]] | None = field(default=None)


@runtime_checkable
class Watcher(Protocol):
    """Whoever is told of calls before they start."""

    def observe(self, call: CollectiveCall, group: dist.ProcessGroup) -> None:
        """See one call; may raise to stop it."""


_watchers: list[Watcher] = []
_tags: list[str] = []
_hidden = threading.local()


def describe(
    collective: str,
    group: dist.ProcessGroup,
    tensors: Sequence[Tensor],
    *,
    payload_bytes: int,
    traffic: tuple[float, float] | None = None,
    detail: str = "",
    splits: tuple[Sequence[int], Sequence[int]] | None = None,
) -> CollectiveCall:
    """Describe a call, with the innermost tag.

    Args:
        collective: its name.
        group: the ranks that take part.
        tensors: those whose shape and dtype must agree between the ranks.
        payload_bytes: S.
        traffic: bytes sent and received by this rank; None takes the ring's formula.
        detail: what else must agree.
        splits: what goes to and comes from each rank, for an all-to-all.
    """
    num_ranks = group.size()
    if traffic is None:
        traffic = (wire_bytes(collective, payload_bytes, num_ranks),) * 2
    return CollectiveCall(
        collective=collective,
        num_ranks=num_ranks,
        dtype=str(tensors[0].dtype).removeprefix("torch.") if tensors else "-",
        payload_bytes=payload_bytes,
        sent_bytes=traffic[0],
        received_bytes=traffic[1],
        tag=current_tag(),
        shapes=tuple(tuple(tensor.shape) for tensor in tensors),
        detail=detail,
        splits=None if splits is None else (tuple(splits[0]), tuple(splits[1])),
    )


def is_watched() -> bool:
    """Whether a call made here and now would be seen by anyone."""
    return bool(_watchers) and not is_hidden()


def is_hidden() -> bool:
    """Whether this thread is inside a call that was announced already."""
    return getattr(_hidden, "depth", 0) > 0


def announce(call: CollectiveCall, group: dist.ProcessGroup) -> None:
    """Tell every watcher of a call that is about to start; the innermost watcher last.

    Raises:
        whatever a watcher raises, in which case the call must not be made.
    """
    if is_watched():
        for watcher in tuple(_watchers):
            watcher.observe(call, group)


@contextmanager
def hidden() -> Iterator[None]:
    """Calls that this thread makes inside are the parts of one that was announced: nobody is told of them."""
    _hidden.depth = getattr(_hidden, "depth", 0) + 1
    try:
        yield
    finally:
        _hidden.depth -= 1


def hidden_if_watched() -> ContextManager[None]:
    """`hidden` where somebody watches; nothing, and no cost, elsewhere."""
    return hidden() if _watchers else nullcontext()


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Tell `watcher` of every call in the block."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


@contextmanager
def ledger_tag(name: str) -> Iterator[None]:
    """Name what the traffic in the block is for; the innermost name counts.

    Args:
        name: such as "gradients" or "weights, backward".

    Raises:
        TypeError: if the name is no string.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string such as 'gradients', got {name!r} of type {type(name).__name__}")
    _tags.append(name)
    try:
        yield
    finally:
        _tags.pop()


def current_tag() -> str:
    """The innermost `ledger_tag`, or ""."""
    return _tags[-1] if _tags else ""
