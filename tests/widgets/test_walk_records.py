"""The records of a walk say what the trace says: rows, tiles, bytes and the running softmax."""

import dataclasses
import math

import numpy as np
import pytest

from cme295lab.widgets.walk_records import WatchedNames, walk_records
from tests.widgets.fake_launch import FakeLaunch

CASES = [(64, 32, True), (64, 32, False), (96, 32, True), (80, 32, True), (80, 32, False)]  # 80: a ragged last block


def test_worked_case_of_two_by_two_causal_tiles() -> None:
    """64 queries in two blocks: program 0 sees one tile and program 1 two. A tile of 32 rows of 16 fp16 is 1,024 B."""
    first, second = walk_records(FakeLaunch(seq=64, head_dim=16, block=32, causal=True))
    assert (first.program, second.program) == ((0, 0, 0), (1, 0, 0))
    assert (first.query_rows, second.query_rows) == ((0, 32), (32, 64))
    assert first.visited == ((0, 32),)
    assert second.visited == ((0, 32), (32, 64))
    assert first.sampled_rows == (0, 10, 21, 31)
    moves = [(step.kind, step.name) for step in first.steps]
    assert moves == [
        ("load", "q"), ("assign", "row_max"), ("assign", "row_sum"), ("load", "k"), ("load", "v"),
        ("assign", "rescale"), ("assign", "row_sum"), ("assign", "row_max"), ("store", "o"), ("store", "lse"),
    ]  # fmt: skip
    assert [step.read_bytes for step in first.steps] == [1024] * 3 + [2048] + [3072] * 6
    assert [step.written_bytes for step in first.steps] == [0] * 8 + [1024, 1024 + 4 * 32]
    assert (second.read_bytes_before, second.written_bytes_before) == (3072, 1152)
    assert second.steps[-1].read_bytes == 5 * 1024
    assert [step.key_rows for step in first.steps[:4]] == [None, None, None, (0, 32)]
    assert second.steps[-3].key_rows == (32, 64)
    held = [step.held for step in second.steps]
    assert held[:5] == [("q",), ("q",), ("q",), ("q", "k"), ("q", "k", "v")]
    assert held[8:10] == [("q", "k"), ("q", "k", "v")]  # the second K tile replaces the first K and V tiles
    assert held[-1] == ("q",)
    assert [step.held_bytes for step in second.steps[:5]] == [1024, 1024, 1024, 2048, 3072]
    assert [step.stored for step in second.steps[-3:]] == [(), ("o",), ("o", "lse")]
    assert first.steps[0].source == "tl.load(q_ptrs)"


@pytest.mark.parametrize(("seq", "block", "causal"), CASES)
def test_final_running_softmax_is_the_log_sum_exp_of_the_scores(seq: int, block: int, causal: bool) -> None:
    launch = FakeLaunch(seq=seq, head_dim=16, block=block, causal=causal)
    log_sum_exp = np.log(np.exp(launch.scores(0)).sum(1))
    for walk in walk_records(launch):
        last = walk.steps[-1]
        assert last.row_max is not None
        assert last.row_sum is not None
        shown = np.array(last.row_max) + np.log(last.row_sum)
        np.testing.assert_allclose(shown, log_sum_exp[list(walk.sampled_rows)], rtol=1e-12)


@pytest.mark.parametrize(("seq", "block", "causal"), CASES)
def test_every_tile_is_visited_once_and_causal_ones_above_the_diagonal_never(
    seq: int, block: int, causal: bool
) -> None:
    for walk in walk_records(FakeLaunch(seq=seq, head_dim=16, block=block, causal=causal)):
        last_key = walk.query_rows[1] if causal else seq
        assert walk.visited == tuple((first, min(first + block, seq)) for first in range(0, last_key, block))


def test_rows_of_a_ragged_last_block_end_with_the_sequence() -> None:
    last = walk_records(FakeLaunch(seq=80, head_dim=16, block=32, causal=False))[-1]
    assert last.query_rows == (64, 80)
    assert last.sampled_rows == (64, 74)
    assert last.visited[-1] == (64, 80)
    assert all(step.row_sum is None or len(step.row_sum) == 2 for step in last.steps)


def test_first_rescale_is_zero_and_later_ones_are_at_most_one() -> None:
    walk = walk_records(FakeLaunch(seq=96, head_dim=16, block=32, causal=False))[0]
    factors = [step.rescale for step in walk.steps if step.name == "rescale"]
    assert factors[0] == (0, 0, 0, 0)
    assert all(0 < factor <= 1 for step in factors[1:] if step for factor in step)


def test_heads_are_programs_of_their_own_and_bytes_add_up_in_grid_order() -> None:
    walks = walk_records(FakeLaunch(seq=64, head_dim=16, block=32, causal=True, heads=2))
    assert [walk.program for walk in walks] == [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0)]
    assert walks[2].query_rows == (0, 32)
    assert walks[3].read_bytes_before == sum(walk.steps[-1].read_bytes for walk in walks[:3])


def test_names_of_another_kernel_and_base_e_are_understood() -> None:
    launch = FakeLaunch(seq=64, head_dim=16, block=32, causal=False)
    in_base_two = walk_records(launch)[0].steps[-1].row_max
    as_stored = walk_records(launch, names=WatchedNames(base_two=False))[0].steps[-1].row_max
    assert in_base_two is not None
    assert as_stored == pytest.approx([value / math.log(2) for value in in_base_two])
    unwatched = walk_records(launch, names=WatchedNames(row_max="m_i", row_sum="l_i", rescale="alpha"))[0].steps[-1]
    assert (unwatched.row_max, unwatched.row_sum, unwatched.rescale) == (None, None, None)


def test_records_cannot_be_changed() -> None:
    walk = walk_records(FakeLaunch(seq=64, head_dim=16, block=32, causal=True))[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        walk.steps[0].read_bytes = 0  # type: ignore[misc]


def test_a_launch_of_another_kernel_is_refused_by_name() -> None:
    launch = FakeLaunch(seq=64, head_dim=16, block=32, causal=True, kernel="softmax_kernel")
    del launch.tensors["k"], launch.constants["BLOCK_N"]
    with pytest.raises(ValueError, match=r"kernel 'softmax_kernel' has no k, BLOCK_N: pass the launch of a flash"):
        walk_records(launch)


def test_a_kernel_that_loads_no_queries_is_refused() -> None:
    launch = FakeLaunch(seq=64, head_dim=16, block=32, causal=True)
    launch.walk = lambda program: []  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"program \(0, 0, 0\) .* loads no q"):
        walk_records(launch)


def test_number_of_rows_must_be_positive() -> None:
    with pytest.raises(ValueError, match="num_rows must be at least 1, got 0"):
        walk_records(FakeLaunch(seq=64, head_dim=16, block=32, causal=True), num_rows=0)
