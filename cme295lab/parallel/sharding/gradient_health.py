"""Gradients of all ranks, as one vector: is it finite, and how long is it?

Both questions are answered by each rank for its part and one sum of a single number, so all ranks come to the same
answer and do the same next: nobody steps while another stops.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cme295lab.parallel.communication import transport
from cme295lab.parallel.communication.calls import ledger_tag

_BLOCK_ELEMENTS = 2**16  # of squares in float64
_MAX_NAMED = 5


class NonFiniteGradients(RuntimeError):
    """A gradient is NaN or infinite; no weight was changed on any rank."""


@torch.no_grad()
def square_sum(gradients: Iterable[Tensor]) -> float:
    """The sum of the squares of all elements, in float64, without a float64 copy of everything."""
    parts = [part.double().square().sum() for each in gradients for part in each.reshape(-1).split(_BLOCK_ELEMENTS)]
    return float(torch.stack(parts).sum()) if parts else 0.0


def sum_over_ranks(value: float, *, group: dist.ProcessGroup, device: torch.device) -> float:
    """One number, added up over the ranks."""
    summed = torch.tensor([value], dtype=torch.float64, device=device)
    with ledger_tag("scalars"):
        transport.all_reduce(summed, group=group)
    return float(summed)


def clip_factor(norm: float, max_norm: float) -> float | None:
    """What to multiply gradients with so that their norm is at most `max_norm`; None where that is one.

    Raises:
        ValueError: if `max_norm` is not positive.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm must be positive, got {max_norm!r}")
    return max_norm / (norm + 1e-6) if math.isfinite(norm) and norm > max_norm else None


@torch.no_grad()
def is_finite(values: Tensor) -> bool:
    """Whether all elements are finite. A sum is so only if all of its terms are; one that overflows is looked at."""
    return math.isfinite(float(values.sum(dtype=torch.float32))) or bool(torch.isfinite(values).all())


def report(sums: Sequence[str], *, own: Sequence[str] = (), group: dist.ProcessGroup) -> NonFiniteGradients:
    """The error for all ranks, with what each of them found.

    Args:
        sums: descriptions of what is not finite, of this rank's part of the sum over the ranks.
        own: the same of this rank's own gradients, before they were summed; better, if any rank knows.
        group: the ranks; all of them call this.
    """
    everyones: list[Any] = [None] * group.size()
    dist.all_gather_object(everyones, (list(own), list(sums)), group=group)
    which = 0 if any(own for own, _ in everyones) else 1
    named = [
        f"{what} on rank {dist.get_global_rank(group, rank)}"
        for rank, found in enumerate(everyones)
        for what in found[which]
    ]
    more = f" and {len(named) - _MAX_NAMED} more" if len(named) > _MAX_NAMED else ""
    listed = ", ".join(named[:_MAX_NAMED]) or "their sum over the ranks overflows"
    return NonFiniteGradients(
        f"gradients are NaN or infinite: {listed}{more}. No weight was changed on any rank. Look at that rank's "
        'batch and loss, lower the learning rate, or leave such steps out with on_nonfinite="skip"'
    )


def not_finite(local_sums: Mapping[str, Tensor]) -> list[str]:
    """Of sums of gradients by name, the names of those that are not finite."""
    return [f"the gradient of {name}" for name, total in local_sums.items() if not math.isfinite(float(total))]
