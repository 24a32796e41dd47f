"""Several adapters on one base: a weighted sum as an adapter of its own, and another adapter for each row of a batch.

**Sum.** Σ w · s · B A of adapters is one product of larger rank: the A's stacked, and the B's side by side, each times
its w · s. So the sum is exact, and is itself an adapter. (The sum of the A's times the sum of the B's would be
something else: B₁ A₂ appears.)

**Rows.** Requests for different tasks share a batch, because the base's products do not depend on the adapter: they are
computed once for all rows, and only the low-rank parts by adapter.

Source: Hu et al. 2022, "LoRA", §4.2 (many tasks on one base); Chen et al. 2023, "Punica" (rows of a batch).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cme295lab.finetuning.lora.options import LoraOptions
from cme295lab.finetuning.lora.state import Lora, check_can_add, check_not_merged, get_lora
from cme295lab.finetuning.lora.summary import LoraSummary, summarize


def add_weighted_adapter(model: nn.Module, adapter: str, weights: Mapping[str, float]) -> LoraSummary:
    """An adapter whose update is the weighted sum of others' updates; it does not become the active one.

    Its rank is the sum of theirs. It holds copies: what the others learn later does not change it.

    Args:
        model: has the adapters.
        adapter: a new name.
        weights: adapter -> its weight, any finite number.

    Raises:
        ValueError: if a name is unknown, the new one is taken, a weight is not finite, none is given, one of the
            adapters is DoRA (its update is no sum), or an adapter is merged.
    """
    lora = get_lora(model)
    check_can_add(model, adapter)
    if not weights:
        raise ValueError("weights is empty: name the adapters to add up")
    for name, weight in weights.items():
        lora.check(name)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ValueError(f"weights[{name!r}] must be a finite number, got {weight!r}")
        if lora.options[name].dora:
            raise ValueError(f"adapter {name!r} is DoRA: it scales the rows of the base, so its update is no sum")
    ranks = _stack(lora, adapter, weights)
    top = max(ranks.values())
    pattern = {path: rank for path, rank in ranks.items() if rank != top}
    lora.options[adapter] = LoraOptions(
        rank=top, alpha=top, targets=tuple(ranks), rank_pattern=pattern,
        alpha_pattern={path: float(rank) for path, rank in pattern.items()},
    )  # fmt: skip
    for parameter in lora.parameters_of(adapter).values():
        parameter.requires_grad_(False)
    return summarize(model, adapter)


def _stack(lora: Lora, adapter: str, weights: Mapping[str, float]) -> dict[str, int]:
    """Put the stacked factors in, scale 1; path -> rank."""
    paths = dict.fromkeys(path for name in weights for path in lora.of(name))
    ranks = {}
    for path in paths:
        matrix = lora.matrix(path)
        names = [name for name in weights if name in matrix.scales]
        a = torch.cat([matrix.lora_A[name].detach() for name in names])
        parts: list[Tensor] = [weights[name] * matrix.scales[name] * matrix.lora_B[name].detach() for name in names]
        matrix.put(adapter, a, torch.cat(parts, dim=1), scale=1.0)
        ranks[path] = a.shape[0]
    return ranks


@contextmanager
def adapters_per_example(model: nn.Module, adapters: Sequence[str | None]) -> Iterator[None]:
    """Inside, row i of a batch goes through the i-th adapter; None is the base.

    Generation with a cache works, as long as the rows keep their places. Gradients reach the adapters that are
    trainable, which is the active one.

    Args:
        model: has the adapters.
        adapters: a name, or None, for each row.

    Raises:
        ValueError: if a name is unknown, an adapter is merged, or one acts on experts, whose rows are tokens of the
            whole batch. The forward pass raises it if a batch has another number of rows.
    """
    lora = get_lora(model)
    check_not_merged(lora, "run adapters by row")
    rows = tuple(adapters)
    for name in dict.fromkeys(rows):
        if name is not None:
            lora.check(name)
            for path in lora.of(name):
                if "experts" in path.split("."):
                    raise ValueError(f"adapter {name!r} acts on {path}: an expert gets tokens, and no rows of a batch")
    before, lora.rows = lora.rows, rows
    try:
        yield
    finally:
        lora.rows = before
