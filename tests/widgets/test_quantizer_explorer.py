"""The quantiser explorer: levels that the weights really come back on, published errors, and what outliers do."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from cme295lab.widgets import QuantizerExplorer, quality_figure, quantizer_scenario
from cme295lab.widgets.quantizer_scenario import BLOCK_SCHEMES, SCHEMES, compare_schemes, plant_outliers

NORMAL = torch.randn(128, 512, generator=torch.Generator().manual_seed(1))
SMALL = NORMAL[:8, :90] * 0.02  # rows that blocks do not divide


def test_the_worked_case_of_absmax_comes_back_as_published() -> None:
    scenario = quantizer_scenario(torch.tensor([[1.2, -0.5, 3.1, -2.4, 0.0]]), bits=8, granularity="tensor")
    assert scenario.restored[0].tolist() == pytest.approx([1.196063, -0.488189, 3.1, -2.392126, 0], abs=1e-6)
    (group,) = scenario.groups
    assert (group.name, group.first, group.last, len(group.levels)) == ("all", 0, 5, 255)
    assert group.levels == pytest.approx(np.arange(-127, 128) * 3.1 / 127)
    assert scenario.share_lost == pytest.approx(1 / 5)


def test_the_worked_case_of_zero_point_comes_back_as_published() -> None:
    scenario = quantizer_scenario(
        torch.tensor([[0.1, 1.5, 2.0, 3.9, -0.4]]), scheme="zero-point", bits=8, granularity="channel"
    )
    assert scenario.restored[0].tolist() == pytest.approx([0.101176, 1.500784, 2.006667, 3.895294, -0.404706], abs=1e-6)
    assert scenario.groups[0].levels == pytest.approx((np.arange(-128, 128) + 104) * 0.0168627451)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "block"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_weight_of_a_group_comes_back_on_one_of_its_levels(scheme: str, granularity: str) -> None:
    scenario = quantizer_scenario(SMALL, scheme=scheme, granularity=granularity, bits=3, outlier=9)
    for group in scenario.groups:
        restored = scenario.restored.flatten()[group.first : group.last].numpy()
        distance = np.abs(restored[:, None] - np.array(group.levels)).min(1)
        assert distance.max() <= 1e-6 * np.abs(group.levels).max()
        assert list(group.levels) == sorted(group.levels)
        assert len(np.unique(restored)) > 1
    if len(scenario.groups) == 2:
        typical, widest = (scenario.weights.flatten()[group.first : group.last].abs() for group in scenario.groups)
        assert widest.max() == scenario.weights.abs().max()
        assert typical.max() < widest.max()


@pytest.mark.parametrize(
    ("scheme", "mse", "bits_per_weight"),
    # The first two are FACTS of 12.8 million values; a sample of 65,536 is within 3 % of them.
    [("nf4", 0.00845, 4.5), ("zero-point", 0.00829, 5.0), ("nf4 double", 0.00845, 4 + 0.12695)],
)
def test_errors_of_normal_numbers_are_the_published_ones(scheme: str, mse: float, bits_per_weight: float) -> None:
    scenario = quantizer_scenario(NORMAL, scheme=scheme, bits=4)
    assert scenario.error.mse == pytest.approx(mse, rel=0.03)
    assert scenario.bits_per_weight == pytest.approx(bits_per_weight, abs=1e-3)


def test_block_formats_keep_their_own_block_size() -> None:
    for scheme, size in BLOCK_SCHEMES.items():
        scenario = quantizer_scenario(SMALL, scheme=scheme, block_size=256, bits=8, granularity="tensor")
        assert (scenario.block_size, scenario.bits, scenario.granularity) == (size, 4, "block")
        assert scenario.bits_per_weight == pytest.approx(4 + 8 / size, abs=0.05)
        assert [group.last - group.first for group in scenario.groups] == [size, size]


def test_outliers_are_planted_in_a_copy_and_do_not_count_as_signal() -> None:
    before = NORMAL.clone()
    changed, planted = plant_outliers(NORMAL, 20)
    assert torch.equal(before, NORMAL)
    assert int(planted.sum()) == NORMAL.numel() // 4096
    assert changed[planted].abs().tolist() == pytest.approx([20 * float(NORMAL.std())] * 16)
    assert float(changed[planted].sum()) == pytest.approx(0, abs=1e-4)
    assert torch.equal(changed[~planted], NORMAL[~planted])
    scenario = quantizer_scenario(NORMAL, granularity="tensor", outlier=20)
    ordinary = (scenario.weights - scenario.restored)[~planted].double()
    signal = scenario.weights[~planted].double()
    assert scenario.error.mse == pytest.approx(float((ordinary**2).mean()))
    assert scenario.error.signal_to_noise_db == pytest.approx(
        10 * np.log10(float((signal**2).sum() / (ordinary**2).sum()))
    )
    step = 20 / 7
    lost = 2 * float(torch.distributions.Normal(0, 1).cdf(torch.tensor(step / 2))) - 1
    assert scenario.share_lost == pytest.approx(lost, abs=0.01)


def test_one_bit_more_is_six_decibels_and_blocks_save_what_outliers_spoil() -> None:
    calm: dict[str, list[tuple[float, float]]] = {point.family: [] for point in compare_schemes(NORMAL)}
    for point in compare_schemes(NORMAL):
        calm[point.family].append((point.bits_per_weight, point.signal_to_noise_db))
    decibels = [signal_to_noise for _, signal_to_noise in calm["absmax, one scale"]][-4:]
    finer = [20 * np.log10(more / less) for less, more in ((7, 15), (15, 31), (31, 127))]  # codes of 4, 5, 6, 8 bits
    assert np.diff(decibels) == pytest.approx(finer, abs=0.1)
    spoilt = {(point.family, round(point.bits_per_weight)): point.signal_to_noise_db
              for point in compare_schemes(NORMAL, outlier=20)}  # fmt: skip
    assert spoilt["absmax, one scale", 4] < 3
    assert spoilt["absmax, blocks", 4] > 14
    assert set(calm) == {"absmax, one scale", "absmax, blocks", "zero-point, blocks", *SCHEMES[2:]}


def test_explorer_follows_its_controls_and_greys_what_a_scheme_does_not_ask() -> None:
    explorer = QuantizerExplorer({"normal": NORMAL, "small": SMALL})
    ring = explorer.plot.data[3]
    before = ring.y[0]
    assert sum(explorer.plot.data[0].y) == NORMAL.numel()
    explorer.controls["outlier"].value = 50
    assert ring.y[0] < before - 2
    assert max(explorer.plot.data[2].x) == pytest.approx(50 * float(NORMAL.std()), rel=1e-5)
    explorer.controls["granularity"].value = "tensor"
    assert list(explorer.plot.data[2].x) == []
    assert explorer.plot.layout.yaxis3.ticktext == ("all",)
    assert explorer.controls["block_size"].disabled
    explorer.controls["bits"].value = 8
    assert len(explorer.plot.data[1].x) == 255
    explorer.controls["scheme"].value = "nf4"
    assert len(explorer.plot.data[1].x) == 16
    assert explorer.controls["bits"].disabled
    assert not explorer.controls["block_size"].disabled
    assert "nf4, blocks of 64: 4.500 bits per weight" in explorer._text.value
    explorer.controls["weights"].value = "small"
    assert sum(explorer.plot.data[0].y) == SMALL.numel()
    shown = [point for trace in explorer.plot.data[4:] for point in trace.x]
    assert len(shown) == len(explorer.points)


def test_picture_says_in_words_what_it_shows() -> None:
    explorer = QuantizerExplorer({"small": SMALL}, scheme="nf4 double")
    picture = explorer.figure()
    assert picture.alt_text.startswith("nf4 double, blocks of 64: 4.")
    assert picture.alt_text.removesuffix(".") in repr(explorer)
    assert len(picture.png()) < 100_000


@dataclass(frozen=True)
class Row:
    scheme: str
    bits_per_weight: float
    perplexity: float


def test_quality_figure_cuts_what_is_ruined_and_says_it_in_words() -> None:
    rows = [Row("original", 32, 20.0), Row("nf4", 4.5, 20.4), Row("int2 absmax, tensor", 2, 4000.0)]
    picture = quality_figure(rows)
    assert "nf4 4.50 bits 20.4; int2 absmax, tensor 2.00 bits 4000" in picture.alt_text
    heights = [line.get_ydata()[0] for line in picture.axes[0].lines]
    assert heights[:3] == pytest.approx([1, 1.02, 3])
    with pytest.raises(ValueError, match="at least one scheme"):
        quality_figure([])


def test_what_cannot_be_quantised_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="scheme must be one of absmax"):
        quantizer_scenario(SMALL, scheme="int4")
    with pytest.raises(ValueError, match="granularity must be one of tensor"):
        quantizer_scenario(SMALL, granularity="row")
    with pytest.raises(ValueError, match="block_size must be one of 32"):
        compare_schemes(SMALL, block_size=48)
    with pytest.raises(ValueError, match="size must be 0 or more"):
        plant_outliers(SMALL, -1)
    with pytest.raises(ValueError, match="one or more matrices"):
        QuantizerExplorer({})
