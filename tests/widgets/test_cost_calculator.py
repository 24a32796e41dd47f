"""The cost calculator shows what `training_cost` says, for what its controls say."""

import pytest

from cme295lab.pretraining import training_cost
from cme295lab.widgets import CostCalculator
from cme295lab.widgets.controls import magnitudes, short
from cme295lab.widgets.cost_calculator import spreads


def test_megatron_at_a_trillion_takes_its_published_days_of_useful_flops() -> None:
    """1.008 T parameters on 450 B tokens took 84 days with recomputation, 8 of whose 8 FLOP are 6 of useful work."""
    calculator = CostCalculator(num_parameters=1e12, num_tokens=450e9, device="A100-80GB-SXM", num_gpus=4096, mfu=0.4)
    assert calculator.flops == 6 * 1e12 * 500e9  # the slider has no 450 B
    hours = 6 * 1e12 * 500e9 / (312e12 * 0.4) / 3600
    assert calculator.cost.gpu_hours.central == pytest.approx(hours)
    assert calculator.cost.days.central == pytest.approx(hours / 24 / 4096)


def test_calculator_follows_its_controls() -> None:
    calculator = CostCalculator()
    before = calculator.cost
    assert list(calculator.plot.data[1].y) == [before.days.central]
    calculator.controls["num_gpus"].value = 4096
    after = calculator.cost
    assert after.days.central == pytest.approx(before.days.central / 2)
    assert after.price_usd == before.price_usd
    assert list(calculator.plot.data[1].x) == [4096]
    assert f"{after.days.central:,.3g} days" in calculator._text.value
    calculator.controls["grid"].value = "coal: 0.8"
    assert calculator.cost.co2e_kg.high == pytest.approx(0.8 * calculator.cost.energy_kwh.high)
    assert spreads(calculator.cost)[-1] == ("CO2e of a kWh", 1.0, 1.0)
    assert list(calculator.plot.data[2].base)[-1] == 1.0
    calculator.controls["mfu"].value = 0.2
    assert calculator.cost.gpu_hours.central == pytest.approx(2 * after.gpu_hours.central)
    picture = calculator.figure()
    assert picture.alt_text in repr(calculator)
    assert len(picture.png()) < 100_000


def test_old_gpus_are_counted_in_fp16() -> None:
    calculator = CostCalculator(num_parameters=1e9, num_tokens=2e10, device="V100-32GB-SXM2", num_gpus=8, mfu=0.3)
    expected = training_cost(1.2e20, device="V100-32GB-SXM2", num_gpus=8, dtype="fp16").gpu_hours.central
    assert calculator.cost.gpu_hours.central == pytest.approx(expected * 0.4 / 0.3)


def test_magnitudes_rise_and_read_back() -> None:
    found = magnitudes(1e6, 1e13)
    values = [value for _, value in found]
    assert values == sorted(set(values))
    assert values[0] == 1e6
    assert values[-1] == 1e13
    assert [short(value) for value in (7, 2500, 1e6, 1.5e9, 7e11, 1.5e13)] == [
        "7", "2.5 k", "1 M", "1.5 B", "700 B", "15 T"]


def test_calculator_refuses_what_its_controls_lack() -> None:
    with pytest.raises(ValueError, match="num_gpus must be one of"):
        CostCalculator(num_gpus=1000)
    with pytest.raises(ValueError, match="device must be one of"):
        CostCalculator(device="H1000")
    with pytest.raises(ValueError, match="mfu must be one of"):
        CostCalculator(mfu=0.42)
