"""The optimizer of stage 3: each rank updates its shards, and there is nothing to send.

Weights reach the other ranks when these gather them, for the next forward. So a step costs no communication beyond two
single numbers (whether gradients are finite; the norm, if they are clipped).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from cme295lab.parallel.sharded_optimizer import OnNonfinite, ShardedOptimizer
from cme295lab.parallel.zero3 import FullyShardedModel


class FullyShardedOptimizer(ShardedOptimizer):
    """Runs a torch optimizer on this rank's shards of a `FullyShardedModel`.

    Args:
        sharded_model: the model.
        optimizer_class: an element-wise optimizer, such as torch.optim.AdamW.
        param_groups: as for torch's optimizers, with the model's own parameters; None: one group of all.
        offload: keep master weights and states in the CPU's memory, and update there.
        on_nonfinite: "raise" or "skip", see `ShardedOptimizer`.
        options: what the optimizer is called with.

    Attributes:
        sharded_model: as given; `model` is what it wraps.

    Raises:
        TypeError, ValueError: a model that is not sharded, and what `ShardedOptimizer` refuses.
    """

    def __init__(
        self,
        sharded_model: FullyShardedModel,
        optimizer_class: type[torch.optim.Optimizer],
        *,
        param_groups: Iterable[Mapping[str, Any]] | None = None,
        offload: bool = False,
        on_nonfinite: OnNonfinite = "raise",
        **options: Any,
    ) -> None:
        if not isinstance(sharded_model, FullyShardedModel):
            raise TypeError(
                f"stage=3 needs a FullyShardedModel, got {type(sharded_model).__name__}; wrap the model first: "
                "sharded = FullyShardedModel(model), then ZeroOptimizer(sharded, ..., stage=3)"
            )
        if not sharded_model.trained:
            raise ValueError("the model has no parameter with requires_grad=True: there is nothing to train")
        self.sharded_model = sharded_model
        super().__init__(
            sharded_model.module,
            sharded_model.trained,
            optimizer_class,
            options=options,
            param_groups=param_groups,
            offload=offload,
            on_nonfinite=on_nonfinite,
            group=sharded_model.group,
            stage=3,
        )
