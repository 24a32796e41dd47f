"""Schedules, replayed on sets: each rank's contribution reaches each chunk exactly once, in the promised steps."""

import math
from collections import Counter
from itertools import groupby

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from cme295lab.parallel.communication import schedules
from cme295lab.parallel.communication.schedules import ADDING_PHASES, Transfer

RANKS = st.integers(1, 33)


def replay(schedule, held):
    """Follow a schedule on multisets: held[rank][chunk] counts whose values are in it."""
    steps = [transfer.step for transfer in schedule]
    assert steps == sorted(steps)
    for _, step in groupby(schedule, key=lambda transfer: transfer.step):
        arriving = [(t, held[t.source][t.chunk]) for t in step]  # all leave before any arrives
        for t, values in arriving:
            assert t.source != t.destination
            held[t.destination][t.chunk] = held[t.destination][t.chunk] + values if _adds(t) else values
    return held


def _adds(transfer: Transfer) -> bool:
    return transfer.phase in ADDING_PHASES


def _own(num_ranks, num_chunks):
    return [[Counter([rank])] * num_chunks for rank in range(num_ranks)]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(num_ranks=RANKS)
def test_ring_adds_every_rank_to_every_chunk_once(num_ranks):
    schedule = schedules.ring_schedule(num_ranks)
    everybody = Counter(range(num_ranks))
    assert replay(schedule, _own(num_ranks, num_ranks)) == [[everybody] * num_ranks] * num_ranks
    sent, received = Counter(t.source for t in schedule), Counter(t.destination for t in schedule)
    expected = dict.fromkeys(range(num_ranks), 2 * (num_ranks - 1)) if num_ranks > 1 else {}
    assert sent == received == expected
    assert len({t.step for t in schedule}) == 2 * (num_ranks - 1)
    assert all(t.destination == (t.source + 1) % num_ranks for t in schedule)
    per_step = Counter((t.step, t.source) for t in schedule)
    assert set(per_step.values()) <= {1}, "a rank sends one chunk a step"


@settings(max_examples=40, deadline=None, derandomize=True)
@given(num_ranks=RANKS)
def test_ring_reduce_scatter_leaves_rank_r_the_sum_of_chunk_r(num_ranks):
    held = replay(schedules.ring_reduce_scatter_schedule(num_ranks), _own(num_ranks, num_ranks))
    assert all(held[rank][rank] == Counter(range(num_ranks)) for rank in range(num_ranks))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(num_ranks=RANKS)
def test_tree_all_reduce_adds_every_rank_once_in_logarithmic_steps(num_ranks):
    schedule = schedules.tree_all_reduce_schedule(num_ranks)
    assert replay(schedule, _own(num_ranks, 1)) == [[Counter(range(num_ranks))]] * num_ranks
    power = num_ranks & (num_ranks - 1) == 0
    assert len({t.step for t in schedule}) == int(math.log2(num_ranks)) + (0 if power else 2)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(num_ranks=RANKS, num_chunks=st.integers(1, 9), data=st.data())
def test_broadcasts_reach_everybody_in_as_few_steps_as_promised(num_ranks, num_chunks, data):
    root = data.draw(st.integers(0, num_ranks - 1))
    ring = schedules.ring_broadcast_schedule(num_ranks, num_chunks, root)
    tree = schedules.tree_broadcast_schedule(num_ranks, root)
    for schedule, chunks, steps in (
        (ring, num_chunks, num_ranks - 2 + num_chunks if num_ranks > 1 else 0),
        (tree, 1, math.ceil(math.log2(num_ranks))),
    ):
        held = [[Counter("x") if rank == root else Counter()] * chunks for rank in range(num_ranks)]
        assert replay(schedule, held) == [[Counter("x")] * chunks] * num_ranks
        assert len({t.step for t in schedule}) == steps
        assert len(schedule) == (num_ranks - 1) * chunks, "nobody receives a chunk twice"


@settings(max_examples=30, deadline=None, derandomize=True)
@given(num_ranks=RANKS)
def test_all_to_all_sends_each_pair_one_message(num_ranks):
    schedule = schedules.all_to_all_schedule(num_ranks)
    pairs = {(a, b) for a in range(num_ranks) for b in range(num_ranks) if a != b}
    assert {(t.source, t.destination) for t in schedule} == pairs
    assert len(schedule) == len(pairs)
    assert set(Counter((t.step, t.destination) for t in schedule).values()) <= {1}
    assert all(t.chunk == t.destination for t in schedule)


def test_ring_of_three_worked_by_hand():
    got = [(t.step, t.source, t.destination, t.chunk, t.phase) for t in schedules.ring_schedule(3)]
    down, round_ = "reduce-scatter", "all-gather"
    assert got == [
        (0, 0, 1, 2, down), (0, 1, 2, 0, down), (0, 2, 0, 1, down),
        (1, 0, 1, 1, down), (1, 1, 2, 2, down), (1, 2, 0, 0, down),
        (2, 0, 1, 0, round_), (2, 1, 2, 1, round_), (2, 2, 0, 2, round_),
        (3, 0, 1, 2, round_), (3, 1, 2, 0, round_), (3, 2, 0, 1, round_),
    ]  # fmt: skip


@pytest.mark.parametrize("bad", [0, -1])
def test_schedules_refuse_too_few_ranks(bad):
    for make in (schedules.ring_schedule, schedules.tree_all_reduce_schedule, schedules.all_to_all_schedule):
        with pytest.raises(ValueError, match=f"num_ranks must be at least 1, got {bad}"):
            make(bad)
    with pytest.raises(ValueError, match="num_chunks must be at least 1"):
        schedules.ring_broadcast_schedule(2, bad)
    with pytest.raises(ValueError, match="root must be a rank from 0 to 1, got 2"):
        schedules.tree_broadcast_schedule(2, 2)
    with pytest.raises(TypeError, match="num_ranks must be an int"):
        schedules.ring_schedule(2.0)
