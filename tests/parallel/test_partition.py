"""The partition: every element of every parameter is in exactly one piece of one rank, whatever the sizes."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cme295lab.parallel.sharding.partition import FlatLayout, Piece, common_part


def _layout(shapes, num_ranks):
    parameters = {f"p{number}": torch.empty(shape, device="meta") for number, shape in enumerate(shapes)}
    return FlatLayout.of(parameters, num_ranks=num_ranks)


SHAPES = st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=7)


@settings(max_examples=200, deadline=None)
@given(SHAPES, st.integers(1, 9))
def test_pieces_hold_each_element_once_and_lie_where_they_say(shapes, num_ranks):
    total = sum(torch.Size(shape).numel() for shape in shapes)
    if total < num_ranks:
        with pytest.raises(ValueError, match="more ranks than elements"):
            _layout(shapes, num_ranks)
        return
    layout = _layout(shapes, num_ranks)
    flat = torch.arange(layout.num_elements)
    seen = {slot.name: torch.zeros(slot.numel, dtype=torch.int64) for slot in layout.slots}
    for rank in range(num_ranks):
        shard = flat[slice(*layout.shard_range(rank))]
        assert shard.numel() == layout.shard_numel
        for piece in layout.pieces(rank):
            slot = next(slot for slot in layout.slots if slot.name == piece.name)
            seen[piece.name][piece.start : piece.stop] += 1
            whole = flat[slot.start : slot.stop]
            assert torch.equal(shard[piece.offset : piece.offset + piece.numel], whole[piece.start : piece.stop])
    assert all((count == 1).all() for count in seen.values())
    assert layout.num_used == total
    assert layout.num_elements % num_ranks == 0
    assert 0 <= layout.num_padding < num_ranks


@settings(max_examples=200, deadline=None)
@given(SHAPES, st.integers(1, 9), st.lists(st.integers(0, 2), min_size=7, max_size=7))
def test_runs_are_the_pieces_in_order_cut_where_the_key_changes(shapes, num_ranks, keys):
    if sum(torch.Size(shape).numel() for shape in shapes) < num_ranks:
        return
    layout = _layout(shapes, num_ranks)
    key = {slot.name: keys[number] for number, slot in enumerate(layout.slots)}
    for rank in range(num_ranks):
        runs = layout.runs(rank, key)
        assert tuple(piece for _, pieces in runs for piece in pieces) == layout.pieces(rank)
        assert all(key[piece.name] == value for value, pieces in runs for piece in pieces)
        assert all(before[0] != after[0] for before, after in pairwise(runs))
        for _, pieces in runs:  # without gaps
            assert all(a.offset + a.numel == b.offset for a, b in pairwise(pieces))


def test_nine_elements_on_three_ranks_by_hand():
    layout = _layout([(5,), (3,)], 3)
    assert (layout.num_used, layout.num_elements, layout.num_padding, layout.shard_numel) == (8, 9, 1, 3)
    assert layout.pieces(0) == (Piece(name="p0", start=0, stop=3, offset=0),)
    assert layout.pieces(1) == (
        Piece(name="p0", start=3, stop=5, offset=0),
        Piece(name="p1", start=0, stop=1, offset=2),
    )
    assert layout.pieces(2) == (Piece(name="p1", start=1, stop=3, offset=0),)
    assert layout.runs(1, {"p0": "decay", "p1": "decay"}) == (("decay", layout.pieces(1)),)
    assert [value for value, _ in layout.runs(1, {"p0": "decay", "p1": "none"})] == ["decay", "none"]


def test_pieces_of_other_numbers_of_ranks_can_be_put_together():
    shapes = [(4, 3), (1,), (7,)]
    old, new = _layout(shapes, 3), _layout(shapes, 4)
    for rank in range(4):
        for wanted in new.pieces(rank):
            found = [part for other in range(3) for held in old.pieces(other) if (part := common_part(wanted, held))]
            assert sum(part.numel for part in found) == wanted.numel
            assert [part.offset - wanted.offset for part in found] == [part.start - wanted.start for part in found]
    assert common_part(Piece(name="a", start=0, stop=3, offset=0), Piece(name="b", start=0, stop=3, offset=0)) is None


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match=r"cannot shard 2 elements \(p0\) over num_ranks=3"):
        _layout([(2,)], 3)
    with pytest.raises(ValueError, match="num_ranks must be at least 1, got 0"):
        _layout([(2,)], 0)
    with pytest.raises(ValueError, match="no parameters"):
        FlatLayout.of({}, num_ranks=1)
    with pytest.raises(ValueError, match="rank must be 0 to 1, got 2"):
        _layout([(2,)], 2).shard_range(2)
