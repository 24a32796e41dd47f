"""Hours, days, money, energy and CO2e: by hand, in order, and as published."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cme295lab.hardware import DEVICES
from cme295lab.pretraining.cost import (
    GRID_KG_PER_KWH,
    MFU,
    PUE,
    TDP_W,
    Assumption,
    Assumptions,
    Range,
    assumptions_for,
    cost_of_gpu_hours,
    gpt_3,
    llama_3_405b,
    training_cost,
)
from cme295lab.pretraining.flops import FlopCount, FlopRate, approximate_training_flops


def exactly(value: float) -> Assumption:
    return Assumption.exactly(value, "", "this test")


KNOWN = Assumptions(mfu=exactly(0.5), price_usd_per_gpu_hour=exactly(2), power_w=exactly(400), pue=exactly(1.25),
                    grid_kg_per_kwh=exactly(0.1))  # fmt: skip


def test_cost_by_hand():
    """312 TFLOP/s at a half, 1.1232e21 FLOP: 7.2e6 s, 2,000 hours; 4 GPUs take 20.83 days."""
    cost = training_cost(1.1232e21, device="A100", num_gpus=4, assumptions=KNOWN)
    values = [found.central for _, found in cost.rows()]
    assert values == pytest.approx([2000, 2000 / 96, 4000, 2000 * 0.4 * 1.25 / 1000, 2000 * 0.4 * 1.25 * 0.1 / 1000])
    assert [(found.low, found.high) for _, found in cost.rows()] == [(value, value) for value in values]


def test_gpt_3_as_patterson_et_al_have_it():
    cost = gpt_3()
    assert cost.days.central == pytest.approx(14.8, abs=0.05)
    assert cost.energy_kwh.central / 1e3 == pytest.approx(1287, rel=0.002)
    assert cost.co2e_kg.central / 1e3 == pytest.approx(552, rel=0.002)


def test_llama_3_405b_as_its_model_card_has_it():
    cost = llama_3_405b()
    # The card counts the GPUs alone: 30.84e6 h at 700 W, 21.6 GWh. 8,930 t of them are 0.41 kg/kWh.
    at_the_gpus_kwh = cost.energy_kwh.central / PUE.central
    assert at_the_gpus_kwh == pytest.approx(21.588e6)
    assert 8_930_000 / at_the_gpus_kwh == pytest.approx(GRID_KG_PER_KWH.central, rel=0.05)
    assert cost.co2e_kg.low < 8_930_000 < cost.co2e_kg.high
    # By 6ND the steps alone, at the 400 TFLOP/s of the paper, are fewer hours than were used.
    compute = approximate_training_flops(405e9, 15.6e12)
    assert compute.seconds_at(400e12) / 3600 / 30.84e6 == pytest.approx(0.85, abs=0.01)
    estimate = training_cost(compute, num_gpus=16_384)
    assert estimate.gpu_hours.low < 30.84e6 < estimate.gpu_hours.high


@pytest.mark.parametrize(
    ("parameters", "tokens", "gpus", "tflops", "days"),
    [(175e9, 300e9, 1024, 140, 33.9), (1008e9, 450e9, 3072, 163, 83.9)],
    ids=["gpt-3", "1t"],
)
def test_days_of_narayanan_et_al(parameters, tokens, gpus, tflops, days):
    """They count recomputation in the rate: 8ND of work at 140 TFLOP/s is 6ND at three quarters of it."""
    mfu = exactly(0.75 * tflops / 312)
    cost = training_cost(
        approximate_training_flops(parameters, tokens), device="A100", num_gpus=gpus,
        assumptions=assumptions_for("A100", mfu=mfu),
    )  # fmt: skip
    assert cost.days.central == pytest.approx(days, abs=0.05)


@settings(max_examples=40, deadline=None)
@given(flops=st.floats(1e15, 1e27), gpus=st.integers(1, 100_000), device=st.sampled_from(["A100", "H100", "B200"]))
def test_ranges_are_in_order_and_gpus_trade_for_days(flops, gpus, device):
    cost = training_cost(flops, device=device, num_gpus=gpus)
    for _, found in cost.rows():
        assert found.low < found.central < found.high
    twice = training_cost(flops, device=device, num_gpus=2 * gpus)
    assert twice.days.central == pytest.approx(cost.days.central / 2)
    assert twice.price_usd == cost.price_usd


def test_a_low_estimate_takes_every_favourable_end():
    cost = training_cost(1e24, device="H100", num_gpus=1000)
    hours = 1e24 / 989.4e12 / 3600
    assert cost.gpu_hours.low == pytest.approx(hours / MFU.high)
    assert cost.gpu_hours.high == pytest.approx(hours / MFU.low)
    assert cost.price_usd.low == pytest.approx(hours / MFU.high * 1.5)
    assert cost.energy_kwh.high == pytest.approx(hours / MFU.low * 0.7 * 1.8 * PUE.high)
    assert cost.co2e_kg.low == pytest.approx(hours / MFU.high * 0.7 * 0.7 * PUE.low * GRID_KG_PER_KWH.low)


def test_every_gpu_of_the_data_sheets_has_power_and_price():
    assert set(TDP_W) == set(DEVICES)
    for device in DEVICES:
        assumed = assumptions_for(device)
        assert assumed.power_w.central == TDP_W[device]
        assert assumed.price_usd_per_gpu_hour.low > 0
        for item in dataclasses.fields(assumed):
            assert getattr(assumed, item.name).source


def test_a_gpu_of_ones_own_needs_power_and_price():
    own = dataclasses.replace(DEVICES["A100-80GB-SXM"], name="mine")
    assert assumptions_for(own, power_w=exactly(100), price_usd_per_gpu_hour=exactly(1)).power_w.high == 100
    with pytest.raises(ValueError, match="power_w and price_usd_per_gpu_hour must be given for mine"):
        assumptions_for(own, power_w=exactly(100))


def test_tables_show_results_and_assumptions():
    cost = gpt_3()
    for text in (str(cost), cost._repr_html_()):
        for words in ("1,287", "552", "14.8", "assumed", "mfu", "0.197", "0.429"):
            assert words in text
    assert "Patterson et al. 2021, Table 4" in cost._repr_html_()
    assert "mfu" not in str(llama_3_405b())  # its hours are known


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: training_cost(FlopRate(1e15), num_gpus=1), TypeError, "num_flops must be a count"),
        (lambda: training_cost(0, num_gpus=1), ValueError, "num_flops must be a positive"),
        (lambda: training_cost(1e20, num_gpus=0), ValueError, "num_gpus must be at least 1"),
        (lambda: training_cost(1e20, num_gpus=8.0), TypeError, "num_gpus must be an int"),
        (lambda: training_cost(1e20, num_gpus=8, device="H1000"), ValueError, "unknown device"),
        (lambda: training_cost(1e20, num_gpus=8, device="T4"), ValueError, "has no peak for dtype 'bf16'"),
        (lambda: cost_of_gpu_hours(-1, num_gpus=8), ValueError, "gpu_hours must be a positive"),
        (lambda: cost_of_gpu_hours(FlopCount(1e9), num_gpus=8), TypeError, "training_cost takes FLOP"),
        (lambda: assumptions_for("A100", mfu=exactly(1.2)), ValueError, "mfu must be a share"),
        (lambda: assumptions_for("A100", mfu=exactly(0)), ValueError, "low must be a positive"),
        (lambda: assumptions_for("A100", pue=exactly(0.9)), ValueError, "pue must be at least 1"),
        (lambda: Range(low=2, central=1, high=3), ValueError, "in that order, got 2, 1, 3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arguments(call, error, says):
    with pytest.raises(error, match=says):
        call()
