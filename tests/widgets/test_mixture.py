"""Mixtures: shares and epochs worked by hand, losses between measured points, and the view that shows them."""

from typing import Any

import pytest

from cme295lab.widgets import MeasuredMixtures, MixtureExplorer, mixture_scenario

SIZES = {"english": 1_000_000, "code": 400_000, "stories": 200_000}
MEASURED = MeasuredMixtures(
    domain="code", shares=(0.0, 0.5, 1.0), losses={"english": (3.0, 3.2, 4.0), "code": (5.0, 2.5, 2.4)}
)


def test_shares_and_epochs_by_hand() -> None:
    found = mixture_scenario(sizes=SIZES, weights={"english": 1, "code": 2, "stories": 1}, num_tokens=4_000_000)
    assert [item.share for item in found.domains] == [0.25, 0.5, 0.25]
    assert [item.num_tokens for item in found.domains] == [1e6, 2e6, 1e6]
    assert [item.epochs for item in found.domains] == [1.0, 5.0, 5.0]
    assert [item.repeats_too_often for item in found.domains] == [False, True, True]
    assert all(item.loss is None for item in found.domains)


def test_losses_are_those_measured_and_lie_on_a_line_between() -> None:
    weights = {"english": 0.75, "code": 0.25, "stories": 0.0}
    found = mixture_scenario(sizes=SIZES, weights=weights, num_tokens=1000, measured=MEASURED)
    assert [item.loss for item in found.domains] == [pytest.approx(3.1), pytest.approx(3.75), None]
    assert MEASURED.loss_at("code", 0.5) == 2.5
    part = MeasuredMixtures(domain="code", shares=(0.2, 0.4), losses={"code": (1.0, 2.0)})
    assert part.loss_at("code", 0.1) is None
    assert part.loss_at("english", 0.3) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weights": {"english": 1}}, "weights must name the domains"),
        ({"weights": dict.fromkeys(SIZES, 0)}, "one must be positive"),
        ({"weights": {"english": 1, "code": -1, "stories": 1}}, "must not be negative"),
        ({"num_tokens": 0}, "must be positive"),
        ({"sizes": SIZES | {"code": 0}}, "must be positive"),
    ],
    ids=["domains", "zero", "negative", "tokens", "size"],
)
def test_impossible_mixtures_are_refused(change: dict[str, Any], says: str) -> None:
    values: dict[str, Any] = {"sizes": SIZES, "weights": dict.fromkeys(SIZES, 1.0), "num_tokens": 1000}
    with pytest.raises(ValueError, match=says):
        mixture_scenario(**(values | change))


def test_measured_mixtures_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match="shares must rise"):
        MeasuredMixtures(domain="code", shares=(0.5, 0.5), losses={})
    with pytest.raises(ValueError, match="one per share"):
        MeasuredMixtures(domain="code", shares=(0.0, 0.5), losses={"code": (1.0,)})


def test_explorer_shows_the_mixture_and_follows_its_sliders() -> None:
    explorer = MixtureExplorer(SIZES, measured=MEASURED)
    assert explorer.scenario.share("code") == pytest.approx(1 / 3)
    before = list(explorer.plot.data[0].y)
    explorer.controls["code"].value = 1.0
    after = list(explorer.plot.data[0].y)
    assert after == [item.epochs for item in explorer.scenario.domains]
    assert after[1] > before[1]
    assert after[0] < before[0]
    assert list(explorer.plot.data[-1].x) == [0.5, 0.5]
    assert "3.200" in explorer._text.value
    for domain in SIZES:
        explorer.controls[domain].value = 0.0
    assert explorer.scenario.share("english") == pytest.approx(1 / 3)
    picture = explorer.figure()
    assert picture.alt_text in repr(explorer)
    assert len(picture.png()) < 100_000


def test_explorer_works_without_measurements_and_refuses_odd_values() -> None:
    explorer = MixtureExplorer(SIZES)
    explorer.controls["num_tokens"].value = 20_000_000
    assert "times" in repr(explorer)
    assert len(explorer.figure().png()) < 100_000
    with pytest.raises(ValueError, match="code must be one of"):
        MixtureExplorer(SIZES, weights={"code": 0.33})
    with pytest.raises(ValueError, match="1 to 6 domains"):
        MixtureExplorer(dict.fromkeys("abcdefg", 10))
