"""A ring all-reduce as typed records: after each step, what every rank holds of every chunk, and what was sent.

The steps are those of `ring_schedule` in `cme295lab.parallel.communication.schedules`, which the course's
`ring_all_reduce` follows with real sends and receives. Here the numbers are left out: a chunk is the set of ranks
whose gradients are summed in it.
"""

from dataclasses import dataclass

from cme295lab.parallel.communication.schedules import Transfer, ring_schedule

MAX_RANKS = 8  # as many as a ring in a notebook can show


@dataclass(frozen=True, kw_only=True)
class RingMoment:
    """The ring after one step; step 0 is the beginning.

    Attributes:
        step: how many steps are done.
        phase: "start", "reduce-scatter" or "all-gather".
        transfers: what the last step moved, one message from each rank to the next.
        summed: by rank and chunk, the ranks whose values are in that rank's copy of the chunk.
        sent_chunks: chunks that each rank has sent so far.
    """

    step: int
    phase: str
    transfers: tuple[Transfer, ...]
    summed: tuple[tuple[frozenset[int], ...], ...]
    sent_chunks: int

    @property
    def num_complete(self) -> int:
        """How many copies of a chunk hold the whole sum."""
        return sum(len(held) == len(self.summed) for copies in self.summed for held in copies)


def ring_records(num_ranks: int) -> tuple[RingMoment, ...]:
    """Replay the schedule of a ring all-reduce.

    Args:
        num_ranks: processes on the ring, 2 to 8.

    Returns:
        2 (num_ranks - 1) + 1 moments, the beginning first.

    Raises:
        ValueError: if the number of ranks cannot be drawn.
    """
    if not 2 <= num_ranks <= MAX_RANKS:
        raise ValueError(f"num_ranks must be 2 to {MAX_RANKS}, got {num_ranks}")
    held = [[frozenset([rank])] * num_ranks for rank in range(num_ranks)]
    moments = [_moment(0, "start", (), held)]
    schedule = ring_schedule(num_ranks)
    for step in sorted({transfer.step for transfer in schedule}):
        transfers = tuple(transfer for transfer in schedule if transfer.step == step)
        arriving = [(t, held[t.source][t.chunk]) for t in transfers]  # all are sent before any arrives
        for transfer, sent in arriving:
            mine = held[transfer.destination][transfer.chunk]
            reduces = transfer.phase == "reduce-scatter"
            held[transfer.destination][transfer.chunk] = mine | sent if reduces else sent
        moments.append(_moment(len(moments), transfers[0].phase, transfers, held))
    return tuple(moments)


def _moment(step: int, phase: str, transfers: tuple[Transfer, ...], held: list[list[frozenset[int]]]) -> RingMoment:
    copies = tuple(tuple(chunks) for chunks in held)
    return RingMoment(step=step, phase=phase, transfers=transfers, summed=copies, sent_chunks=step)
