"""A training step under ZeRO, moment by moment: at its end each rank holds what the ZeRO paper says."""

import itertools
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cme295lab.widgets import ShardMap
from cme295lab.widgets.shard_map import view_html
from cme295lab.widgets.shard_scenario import KINDS, shard_scenario

steps = st.builds(
    lambda stage, ranks, layers: shard_scenario(stage=stage, num_ranks=ranks, num_layers=layers),
    st.integers(0, 3), st.integers(1, 9), st.integers(1, 5),
)  # fmt: skip


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120), (1, 31.40625), (2, 16.640625), (3, 1.875)])
def test_shard_scenario_ends_at_the_papers_figure_for_7_5_b_on_64_ranks(stage: int, gigabytes: float) -> None:
    last = shard_scenario(stage=stage, num_ranks=64).moments[-1]
    assert {last.bytes_per_parameter(rank) * Fraction("7.5") for rank in range(64)} == {Fraction(gigabytes)}


@given(steps)
def test_shard_scenario_sends_what_a_ring_sends(step) -> None:
    volume = 3 if step.stage == 3 else 2
    assert step.sent == Fraction(volume * (step.num_ranks - 1), step.num_ranks)
    assert all(a.sent <= b.sent for a, b in itertools.pairwise(step.moments))


@given(steps)
def test_shard_scenario_ranks_together_hold_the_model_and_what_is_sharded_once(step) -> None:
    sharded = dict(zip(KINDS, (step.stage >= 3, step.stage >= 2, step.stage >= 1)))
    for kind in KINDS:
        pieces = sorted((h.start, h.stop) for held in step.moments[-1].holdings for h in held if h.kind == kind)
        total = sum(stop - start for start, stop in pieces)
        assert total == (1 if sharded[kind] else step.num_ranks)
        if sharded[kind]:
            assert pieces[0][0] == 0
            assert pieces[-1][1] == 1
            assert all(a[1] == b[0] for a, b in itertools.pairwise(pieces))


def test_shard_scenario_gathers_one_layer_at_a_time_in_stage_3() -> None:
    step = shard_scenario(stage=3, num_ranks=4, num_layers=4)
    for moment in step.moments:
        gathered = [h for h in moment.holdings[2] if h.status == "gathered"]
        assert sum(h.stop - h.start for h in gathered) in (0, Fraction(1, 4))
    assert step.peak == Fraction(16, 4) + (2 + 2) * Fraction(1, 4) * Fraction(3, 4)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [({"stage": 4, "num_ranks": 2}, "stage must be"), ({"stage": 1, "num_ranks": 0}, "num_ranks and num_layers")],
)
def test_shard_scenario_refuses_what_it_cannot_play(arguments: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        shard_scenario(**arguments)


def test_shard_map_follows_its_controls() -> None:
    shown = ShardMap(stage=1, num_ranks=8)
    assert shown.controls["moment"].max == len(shown.scenario.moments) - 1
    shown.controls["moment"].value = 3
    before = shown._view.value
    assert shown.scenario.moments[3].caption.replace("'", "&#x27;") in before
    shown.controls["stage"].value = 3
    assert shown.controls["moment"].value == 0
    assert shown.controls["moment"].max == len(shown.scenario.moments) - 1
    assert shown._view.value == view_html(shown.scenario, 0, 7.5e9)
    assert shown._view.value != before


def test_shard_map_shows_the_papers_bytes_and_draws_itself() -> None:
    shown = ShardMap(stage=2, num_ranks=4)
    last = shown.controls["moment"].max
    shown.controls["moment"].value = last
    assert "41.2 GB" in shown._view.value  # 7.5 B parameters, 4 ranks: 41.25 GB, Table 1 of the paper
    assert "41.2 GB" in repr(shown)
    assert shown._view.value.count('class="shard-held"') == 4 * (4 + 4 + 4)
    picture = shown.figure()
    assert picture.alt_text in repr(shown)
    assert len(picture.png()) < 100_000


@pytest.mark.parametrize(
    ("arguments", "says"),
    [({"stage": 4}, "stage must be one of 0, 1, 2, 3, got 4"), ({"num_ranks": 5}, "num_ranks must be one of"),
     ({"parameters": "7B"}, "parameters must be one of"), ({"moment": 99}, "moment must be 0 to")],
)  # fmt: skip
def test_shard_map_refuses_what_its_controls_lack(arguments: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ShardMap(**arguments)
