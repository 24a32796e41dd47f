"""The inputs of the ring's exercises, and how what was sent is judged: how much, and to whom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cme295lab.grading.compare import allowed_error
from cme295lab.grading.distributed import collectives_called
from cme295lab.grading.observe import RankFacts
from cme295lab.grading.on_rank import Probe
from cme295lab.grading.result import Kind, Outcome

LATE_S = 0.2
_INSTEAD = "send the chunks yourself, with isend and irecv"
UNEXPLAINED = (
    "no sum over ranks gives these numbers: was every message waited for before its buffer was read, or written again?"
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A random tensor on each rank.

    Args:
        seed: seeds the tensors.
        num_ranks: ranks.
        shape: of each rank's tensor.
        late: a rank that starts 0.2 s after the others, or None.
    """

    seed: int
    num_ranks: int
    shape: tuple[int, ...]
    late: int | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of a rank's tensor, float32."""
        return 4 * math.prod(self.shape)

    @property
    def text(self) -> str:
        """The input in words."""
        ranks = "1 rank" if self.num_ranks == 1 else f"{self.num_ranks} ranks"
        late = "" if self.late is None else f", rank {self.late} starts {LATE_S:g} s later"
        return f"{ranks}, a float32 tensor of shape {self.shape} on each, seed {self.seed}{late}"

    def tensor(self, rank: int) -> Tensor:
        """The tensor of one rank."""
        generator = torch.Generator().manual_seed(1000 * self.seed + 10 * self.num_ranks + rank)
        return torch.randn(self.shape, generator=generator)

    def tensors(self) -> Tensor:
        """The tensors of all ranks, in float64."""
        return torch.stack([self.tensor(rank) for rank in range(self.num_ranks)]).double()

    @property
    def allowed(self) -> float:
        """The absolute error that rounding explains in a sum over the ranks."""
        return allowed_error(torch.float32, float(self.tensors().abs().sum(0).max()) / 8)


def scenario(probe: Probe, student: Callable[..., Any], case: Case) -> Mapping[str, Any]:
    """Call the student's function with this rank's tensor."""
    if case.late == probe.rank:
        for other in set(range(probe.num_ranks)) - {probe.rank}:
            probe.wait_for("begun", rank=other)
        time.sleep(LATE_S)
    probe.signal("begun")
    return {"result": probe.call(student, tensor=case.tensor(probe.rank))}


def only_messages(facts: RankFacts) -> list[str]:
    """What a rank called besides sending and receiving."""
    return collectives_called(facts, ("send", "recv"), _INSTEAD)


def judge_bytes(ranks: Sequence[RankFacts], case: Case, limit_bytes: int) -> Outcome:
    """Judge what the busiest rank sends, or receives."""
    sent = [facts.sent_bytes for facts in ranks]
    received = [sum(call.received_bytes for call in facts.calls) for facts in ranks]
    if max(*sent, *received) <= limit_bytes:
        return Outcome(name="")
    busiest = max(range(len(ranks)), key=lambda rank: max(sent[rank], received[rank]))
    difference = (
        f"rank {busiest} sends {sent[busiest]:,.0f} bytes and receives {received[busiest]:,.0f}; "
        f"{limit_bytes:,} each are enough for a tensor of {case.num_bytes:,} bytes on {case.num_ranks} ranks"
    )
    cause = _why_so_many(sent, received, case, limit_bytes)
    return Outcome(name="", kind=Kind.TOO_MUCH_COMMUNICATION, difference=difference, cause=cause)


def _why_so_many(sent: Sequence[float], received: Sequence[float], case: Case, limit_bytes: int) -> str:
    others, num_bytes = case.num_ranks - 1, case.num_bytes
    if min(received) < max(received) >= others * num_bytes:
        return (
            f"everything goes to rank {received.index(max(received))}, which adds up alone while the other links are "
            "idle: let each rank add up one chunk"
        )
    if min(sent) >= others * num_bytes:
        return (
            f"every rank sends the whole tensor {others} times: cut it into {case.num_ranks} chunks, and send one of "
            "them in each step"
        )
    if all(abs(bytes_sent * others - limit_bytes * case.num_ranks) < 1 for bytes_sent in sent):
        return f"{case.num_ranks} steps where {others} are enough: the last one sends what the receiver has already"
    return ""


def judge_route(ranks: Sequence[RankFacts]) -> Outcome:
    """Judge whether every message goes to the next rank of the ring, in one direction."""
    num_ranks = len(ranks)
    steps = {
        (call.peer - facts.rank) % num_ranks: (facts.rank, call)
        for facts in ranks
        for call in facts.calls
        if call.collective == "send" and call.peer is not None
    }
    if len(steps) == 1 and steps.keys() <= {1, num_ranks - 1}:
        return Outcome(name="")
    far = [found for step, found in steps.items() if step not in (1, num_ranks - 1)]
    if far:
        rank, call = far[0]
        at = f" ({call.line})" if call.line else ""
        difference = f"rank {rank} sends to rank {call.peer}, which is not its neighbour{at}"
        cause = "on a ring there is a link to the next rank only: pass the chunks on from neighbour to neighbour"
    else:
        difference = "messages go both to the next rank and to the one before"
        cause = "let all chunks travel in one direction: then every link carries one message in each step"
    return Outcome(name="", kind=Kind.WRONG_ROUTE, difference=difference, cause=cause)
