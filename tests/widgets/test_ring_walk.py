"""The ring walk replays the schedule that the course's ring all-reduce follows."""

import pytest
from traitlets import TraitError

from cme295lab.widgets import RingWalk
from cme295lab.widgets.ring_records import MAX_RANKS, ring_records
from cme295lab.widgets.ring_walk import caption


def test_ring_records_of_two_ranks_by_hand() -> None:
    start, reduced, gathered = ring_records(2)
    both = frozenset({0, 1})
    own = (frozenset({0}), frozenset({0})), (frozenset({1}), frozenset({1}))
    assert start.summed == own
    assert sum(held == both for copies in reduced.summed for held in copies) == 2  # one chunk is ready on each rank
    assert reduced.phase == "reduce-scatter"
    assert gathered.summed == ((both, both), (both, both))
    assert gathered.phase == "all-gather"
    assert [m.sent_chunks for m in (start, reduced, gathered)] == [0, 1, 2]


@pytest.mark.parametrize("num_ranks", range(2, MAX_RANKS + 1))
def test_ring_records_reduce_first_and_gather_then(num_ranks: int) -> None:
    moments = ring_records(num_ranks)
    assert len(moments) == 2 * (num_ranks - 1) + 1
    assert [m.phase for m in moments[1:]] == ["reduce-scatter"] * (num_ranks - 1) + ["all-gather"] * (num_ranks - 1)
    for moment in moments[1:]:
        assert sorted(t.source for t in moment.transfers) == list(range(num_ranks))  # every link is busy
        assert all(t.destination == (t.source + 1) % num_ranks for t in moment.transfers)
    halfway = moments[num_ranks - 1]
    assert halfway.num_complete == num_ranks  # each rank has one whole chunk, and no two the same
    assert len({c for copies in halfway.summed for c, held in enumerate(copies) if len(held) == num_ranks}) == num_ranks
    assert moments[-1].num_complete == num_ranks**2


def test_ring_walk_sends_texts_ready_to_show() -> None:
    walk = RingWalk(num_ranks=4, num_bytes=400e6)
    ring = walk.walk["rings"]["4"]["moments"]
    assert ring[-1]["sent"] == "600 MB"  # 2 · 3/4 of 400 MB
    assert ring[-1]["sent_share"] == ring[-1]["complete_share"] == 1
    assert ring[1]["label"] == "100 MB"
    assert ring[3]["complete"] == "4 of 16"
    assert walk.moment.phase == "start"
    walk.step = 4
    assert repr(walk) == f"RingWalk({caption(ring_records(4)[4], 400e6)})"
    walk.num_ranks = 2
    assert walk.moment.step == 2  # there are no more


def test_ring_walk_draws_itself() -> None:
    walk = RingWalk(num_ranks=5, num_bytes=1e9, step=3)
    picture = walk.figure()
    assert "Step 3, reduce-scatter" in picture.alt_text
    assert "Each rank has sent 600 MB" in picture.alt_text
    assert len(picture.png()) < 100_000


@pytest.mark.parametrize(
    ("arguments", "says"),
    [({"num_ranks": 1}, "num_ranks must be 2 to 8, got 1"), ({"num_ranks": 9}, "num_ranks must be 2 to 8"),
     ({"num_bytes": 0}, "num_bytes must be positive"), ({"num_ranks": 2, "step": 3}, "step must be 0 to 2")],
)  # fmt: skip
def test_ring_walk_refuses_what_it_cannot_draw(arguments: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        RingWalk(**arguments)


def test_ring_walk_keeps_its_ring_when_another_is_impossible() -> None:
    walk = RingWalk(num_ranks=3)
    with pytest.raises((ValueError, TraitError), match="num_ranks must be 2 to 8"):
        walk.num_ranks = 12
    assert walk.num_ranks == 3
