"""The frontier: published allocations, an optimum that no neighbour beats, a serving size that no other beats."""

import numpy as np
import pytest

from cme295lab.scaling import EPOCH
from cme295lab.widgets import FrontierExplorer, frontier_scenario
from cme295lab.widgets.frontier_scenario import frontiers


def test_laws_stand_side_by_side_as_published_at_gophers_budget() -> None:
    found = frontier_scenario(flops=5.76e23)
    billions = {law: item.num_parameters / 1e9 for law, item in found.allocations.items()}
    assert billions["chinchilla-1"] == pytest.approx(67.8, rel=0.03)
    assert billions["chinchilla-2"] == pytest.approx(63.4, rel=0.03)
    assert billions["chinchilla-3"] == pytest.approx(40.4, rel=0.01)
    assert billions["epoch"] == pytest.approx(72.2, rel=0.01)
    assert billions["20 per parameter"] == pytest.approx(69.3, rel=0.01)
    assert billions["kaplan"] > 4 * billions["epoch"]


@pytest.mark.parametrize("constants", ["Epoch 2024", "Chinchilla", "Chinchilla, as printed"])
def test_optimum_lies_at_the_bottom_of_the_curve(constants: str) -> None:
    found = frontier_scenario(flops=1e22, constants=constants)
    assert found.optimum.loss == pytest.approx(found.losses.min(), abs=1e-3)
    assert found.optimum.loss <= found.losses.min()
    assert np.log(found.sizes[found.losses.argmin()] / found.optimum.num_parameters) == pytest.approx(0, abs=0.07)


def test_serving_reaches_the_same_loss_with_less_compute_and_a_smaller_model() -> None:
    plain = frontier_scenario(flops=1e24)
    assert plain.serving.num_parameters == pytest.approx(plain.optimum.num_parameters)
    assert plain.serving.saving == pytest.approx(0, abs=1e-9)
    sizes = [plain.optimum.num_parameters]
    for served in (1e12, 1e13, 1e14):
        found = frontier_scenario(flops=1e24, served_tokens=served)
        loss = float(EPOCH.loss(found.serving.num_parameters, found.serving.num_tokens))
        assert loss == pytest.approx(found.optimum.loss, abs=1e-6)
        sizes.append(found.serving.num_parameters)
        size, tokens = found.serving.num_parameters, found.serving.num_tokens
        best = 6 * size * tokens + 2 * size * served
        in_all = found.flops + 2 * found.optimum.num_parameters * served
        assert best < in_all
        assert found.serving.saving == pytest.approx(1 - best / in_all)
        for factor in (0.9, 1.1):  # neighbours that reach the same loss
            size = found.serving.num_parameters * factor
            tokens = EPOCH.tokens_for_loss(size, loss)
            assert best <= 6 * size * tokens + 2 * size * served
    assert sizes == sorted(sizes, reverse=True)


def test_lines_of_the_laws_cost_what_they_say() -> None:
    lines = frontiers()
    sizes, tokens = lines["chinchilla-1"]
    assert 6 * sizes * tokens == pytest.approx(np.logspace(16, 29, 27))
    assert np.polyfit(np.log(6 * sizes * tokens), np.log(sizes), 1)[0] == pytest.approx(0.4981, abs=1e-4)


def test_explorer_follows_its_controls() -> None:
    explorer = FrontierExplorer()
    assert list(explorer.plot.data[2].x) == [explorer.scenario.optimum.num_parameters]
    levels = np.array(explorer.plot.data[0].z)
    explorer.controls["flops"].value = 1e21
    explorer.controls["served_tokens"].value = 1e12
    found = explorer.scenario
    assert (found.flops, found.served_tokens) == (1e21, 1e12)
    assert list(explorer.plot.data[3].y) == [found.serving.num_tokens]
    assert list(explorer.plot.data[4].y) == list(found.losses)
    explorer.controls["constants"].value = "Chinchilla"
    assert not np.array_equal(np.array(explorer.plot.data[0].z), levels)
    assert "less compute in all" in explorer._text.value
    picture = explorer.figure()
    assert picture.alt_text in repr(explorer)
    assert len(picture.png()) < 100_000


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="constants must be one of Epoch 2024"):
        frontier_scenario(flops=1e21, constants="Kaplan")
    with pytest.raises(ValueError, match="served_tokens must not be negative"):
        frontier_scenario(flops=1e21, served_tokens=-1)
    with pytest.raises(ValueError, match="flops must be a positive"):
        frontier_scenario(flops=0)
    with pytest.raises(ValueError, match="served_tokens must be one of"):
        FrontierExplorer(served_tokens=5)
