"""Spectra: changes of known rank, energies by hand and by reconstruction."""

import copy

import pytest
import torch
from torch import nn

from cme295lab.finetuning.spectra import (
    energy_kept,
    mean_energy_kept,
    noise_like,
    singular_values,
    weight_changes,
)


def test_energy_by_hand_and_by_what_a_reconstruction_loses() -> None:
    assert energy_kept(torch.diag(torch.tensor([3.0, 4.0])), 1) == pytest.approx(16 / 25)
    change = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    u, s, v = torch.linalg.svd(change)
    for rank in range(1, 6):
        lost = (change - u[:, :rank] @ torch.diag(s[:rank]) @ v[:rank]).norm() ** 2 / change.norm() ** 2
        assert energy_kept(change, rank) == pytest.approx(1 - float(lost), abs=1e-5)
    assert energy_kept(change, 99) == pytest.approx(1)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_product_of_thin_matrices_has_their_rank(rank: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    change = torch.randn(9, rank, generator=generator) @ torch.randn(rank, 6, generator=generator)
    values = singular_values(change)
    assert int((values > 1e-5 * values[0]).sum()) == rank
    assert energy_kept(change, rank) == pytest.approx(1)


def test_changes_of_linear_layers_alone() -> None:
    before = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    after = copy.deepcopy(before)
    with torch.no_grad():
        after[0].weight[1, 2] += 0.5
        after[1].weight += 1
    changes = weight_changes(before, after)
    assert list(changes) == ["0", "2"]
    expected = torch.zeros(4, 3)
    expected[1, 2] = 0.5
    torch.testing.assert_close(changes["0"], expected)
    assert mean_energy_kept(changes, 1) == pytest.approx(1)  # of the one that changed
    with pytest.raises(ValueError, match="no matrix has changed"):
        mean_energy_kept({"2": changes["2"]}, 1)
    with pytest.raises(ValueError, match="there is no energy"):
        energy_kept(changes["2"], 1)
    with pytest.raises(ValueError, match="different models: 2"):
        weight_changes(before, before[:2])


def test_noise_has_the_norm_and_no_low_rank() -> None:
    change = torch.ones(40, 30)
    noise = noise_like(change)
    assert float(noise.norm()) == pytest.approx(float(change.norm()), rel=1e-5)
    assert energy_kept(change, 1) == pytest.approx(1)
    assert energy_kept(noise, 1) < 0.2
    assert torch.equal(noise, noise_like(change))
    with pytest.raises(ValueError, match="rank must be an int of at least 1"):
        energy_kept(change, 0)
