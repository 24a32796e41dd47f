"""The optimizer of stage 3: each rank updates its shards, and there is nothing to send.

Weights reach the other ranks when these gather them, for the next forward. So a step costs no communication beyond two
single numbers (whether gradients are finite; the norm, if they are clipped).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from cme295lab.parallel.replication.weighting import token_scale
from cme295lab.parallel.sharding.sharded_optimizer import OnNonfinite, ShardedOptimizer
from cme295lab.parallel.sharding.zero3 import FullyShardedModel


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

    @property
    def num_padding(self) -> int:
        """Elements of padding in all flat vectors together."""
        return sum(part.layout.num_padding for part in self.sharded_model.trained)

    def no_sync(self) -> AbstractContextManager[None]:
        """Backward passes in this block send nothing; see `FullyShardedModel.no_sync`."""
        return self.sharded_model.no_sync()

    def token_scale(self, num_tokens: int) -> float:
        """What to multiply this rank's summed loss with, for the mean over all tokens; see `weighting.token_scale`."""
        return token_scale(num_tokens, group=self.process_group)

    def close(self) -> nn.Module:
        """Take the hooks away and return the model, with all its weights; the optimizer is of no use afterwards."""
        return self.sharded_model.close()

    def share_weights(self) -> None:
        """Nothing is sent; a graph that still needs the old weights must not be run backward, and autograd is told."""
        torch.autograd.graph.increment_version(list(self.model.parameters()))
