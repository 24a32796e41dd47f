"""Memory against time for each ZeRO stage: the paper's bytes, and a step time worked by hand."""

import itertools
from dataclasses import replace

import pytest

from cme295lab.hardware import get_device
from cme295lab.units import format_bytes
from cme295lab.widgets import TradeOffExplorer
from cme295lab.widgets.trade_off_scenario import trade_off


def test_trade_off_has_the_papers_bytes_for_7_5_b_on_64_gpus() -> None:
    found = trade_off(num_parameters=7.5e9, num_ranks=64)
    assert [cost.state_bytes / 1e9 for cost in found.stages] == pytest.approx([120, 31.40625, 16.640625, 1.875])


def test_trade_off_step_time_by_hand_without_overlap() -> None:
    gpu = replace(get_device("A100"), name="100 TFLOP/s", peak_flops_per_s={"bf16": 1e14})
    found = trade_off(num_parameters=1e9, num_ranks=2, tokens_per_gpu=1000, link_bytes_per_s=1e9, utilisation=0.5,
                      overlap=0.0, device=gpu)  # fmt: skip
    compute_s = 6 * 1e9 * 1000 / 0.5e14  # 0.12 s
    latencies_s = 32 * 5e-6  # a message per bucket and step of the ring
    plain, full = found.stages[0].time, found.stages[3].time
    assert plain.step_s == pytest.approx(compute_s + 2 * 2e9 * 0.5 / 1e9 + 2 * latencies_s)
    assert full.step_s == pytest.approx(compute_s + 3 * 2e9 * 0.5 / 1e9 + 3 * latencies_s)
    assert full.sent_bytes == 1.5 * plain.sent_bytes
    assert found.stages[1].time.sent_bytes == found.stages[2].time.sent_bytes == plain.sent_bytes


def test_faster_links_never_make_a_step_longer_and_the_advice_follows() -> None:
    times = [trade_off(num_parameters=7.5e9, num_ranks=64, link_bytes_per_s=rate) for rate in (1e9, 1e10, 1e11, 1e12)]
    for slow, fast in itertools.pairwise(times):
        assert all(a.time.step_s >= b.time.step_s for a, b in zip(slow.stages, fast.stages, strict=True))
    assert times[0].cheapest_that_fits is not None
    assert times[0].cheapest_that_fits.stage in (1, 2)
    assert trade_off(num_parameters=1e12, num_ranks=8).cheapest_that_fits is None
    small = trade_off(num_parameters=1e8, num_ranks=8).cheapest_that_fits
    assert small is not None
    assert small.stage in (0, 1)


def test_trade_off_explorer_shows_the_scenario_and_follows_its_controls() -> None:
    explorer = TradeOffExplorer()
    assert list(explorer.plot.data[0].y) == [cost.state_bytes for cost in explorer.scenario.stages]
    before = list(explorer.plot.data[2].y)
    explorer.controls["link_bytes_per_s"].value = 1.25e9
    after = list(explorer.plot.data[2].y)
    assert after == [cost.time.exposed_s for cost in explorer.scenario.stages]
    assert all(b > a for a, b in zip(before, after, strict=True))
    explorer.controls["num_ranks"].value = 8
    assert format_bytes(explorer.scenario.stages[3].state_bytes) in explorer._text.value
    picture = explorer.figure()
    assert picture.alt_text in repr(explorer)
    assert len(picture.png()) < 100_000


@pytest.mark.parametrize(
    ("arguments", "says"),
    [({"num_ranks": 3}, "num_ranks must be one of"), ({"parameters": "8 B"}, "parameters must be one of"),
     ({"overlap": 0.3}, "overlap must be one of")],
)  # fmt: skip
def test_trade_off_explorer_refuses_what_its_controls_lack(arguments: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TradeOffExplorer(**arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [({"utilisation": 0}, "utilisation"), ({"tokens_per_gpu": 0}, "tokens_per_gpu"), ({"overlap": 2}, "overlap"),
     ({"link_bytes_per_s": 0}, "bandwidth_bytes_per_s")],
)  # fmt: skip
def test_trade_off_refuses_impossible_values(arguments: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        trade_off(num_parameters=1e9, num_ranks=2, **arguments)
