"""How much of a weight's change is of low rank: its singular values, and the share of its energy that a rank keeps.

    dW = U diag(σ) Vᵀ          energy of rank r: Σ_{i ≤ r} σ_i² / Σ σ_i²

By Eckart and Young no matrix of rank r comes nearer to dW than the first r terms of that sum, and the rest of the
energy is its squared relative error. Only matrices are looked at: a norm's weight has no rank.

A change of bare noise has a spectrum, too: of n × n values, rank r keeps far more than r / n. `noise_like` draws one of
the same size, to compare with.

Source: Eckart and Young 1936; Hu et al. 2022, "LoRA", §7.2.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cme295lab.finetuning.attached import check_int


def weight_changes(before: nn.Module, after: nn.Module) -> dict[str, Tensor]:
    """Path -> what training added to the weight of each linear layer, in fp32.

    Args:
        before: the base.
        after: the same model, trained.

    Raises:
        ValueError: if a layer of one is missing in the other, or has another shape.
    """
    old, new = _linear_weights(before), _linear_weights(after)
    shapes = [{path: tuple(weight.shape) for path, weight in weights.items()} for weights in (old, new)]
    if shapes[0] != shapes[1]:
        differ = sorted(path for path in {*old, *new} if shapes[0].get(path) != shapes[1].get(path))
        raise ValueError(f"the two are different models: {', '.join(differ)} is not in both, or not of one shape")
    return {path: (new[path].detach().float() - old[path].detach().float()).cpu() for path in old}


def _linear_weights(model: nn.Module) -> dict[str, Tensor]:
    return {path: module.weight for path, module in model.named_modules() if isinstance(module, nn.Linear)}


def singular_values(change: Float[Tensor, "out in"]) -> Float[Tensor, " values"]:
    """Of a change, the largest first, in fp64."""
    return torch.linalg.svdvals(change.double())


def energy_kept(change: Float[Tensor, "out in"], rank: int) -> float:
    """Share of Σ σ² that the best matrix of this rank keeps, 0 to 1.

    Raises:
        ValueError: if the rank is below 1, or the change is zero.

    Example:
        >>> energy_kept(torch.diag(torch.tensor([2.0, 1.0])), 1)
        0.8
    """
    check_int("rank", rank, 1)
    energies = singular_values(change).square()
    if not bool(energies.sum() > 0):
        raise ValueError("the change is zero everywhere (or NaN): there is no energy to share")
    return float(energies[:rank].sum() / energies.sum())


def mean_energy_kept(changes: Mapping[str, Tensor], rank: int) -> float:
    """Mean of `energy_kept` over matrices; those that did not change are left out.

    Raises:
        ValueError: if no matrix changed.
    """
    moved = [change for change in changes.values() if bool((change != 0).any())]
    if not moved:
        raise ValueError("no matrix has changed")
    return sum(energy_kept(change, rank) for change in moved) / len(moved)


def noise_like(change: Float[Tensor, "out in"], *, seed: int = 0) -> Float[Tensor, "out in"]:
    """Independent normal values with the norm of the change: what a spectrum without structure looks like."""
    noise = torch.randn(change.shape, generator=torch.Generator().manual_seed(seed))
    return noise * (change.norm() / noise.norm())
