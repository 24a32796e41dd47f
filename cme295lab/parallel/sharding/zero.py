"""ZeRO: a torch optimizer whose states, gradients and weights are spread over the ranks, stage by stage.

| stage | weights | gradients | states | sent per rank and step |
|---|---|---|---|---|
| 1 (`zero1`) | Ψ | Ψ | K Ψ/N | 2 Ψ (N-1)/N |
| 2 (`zero2`) | Ψ | Ψ/N | K Ψ/N | 2 Ψ (N-1)/N |
| 3 (`zero3`) | Ψ/N | Ψ/N | K Ψ/N | 3 Ψ (N-1)/N |

Stages 1 and 2 take the plain model and leave it callable as ever; stage 3 takes a `FullyShardedModel`. From the same
weights and batches, all of them end bit for bit where `DataParallel` with the same optimizer ends (fp32). Two things
add up numbers in another order than one process would, and agree within rounding: the norm that gradients are clipped
by, and `fused=True`, whose kernel treats the last few elements of a tensor apart from the others.

    optimizer = ZeroOptimizer(model, torch.optim.AdamW, stage=2, lr=1e-3, weight_decay=0.1)
    model.loss(tokens, targets).backward()
    optimizer.clip_grad_norm_(1.0)
    optimizer.step()

Source: Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cme295lab.parallel.sharding.sharded_optimizer import ShardedOptimizer
from cme295lab.parallel.sharding.zero1 import ZeroStage1
from cme295lab.parallel.sharding.zero2 import ZeroStage2
from cme295lab.parallel.sharding.zero3 import FullyShardedModel
from cme295lab.parallel.sharding.zero3_optimizer import FullyShardedOptimizer

STAGES = (1, 2, 3)


def ZeroOptimizer(
    model: nn.Module, optimizer_class: type[torch.optim.Optimizer], *, stage: int, **options: Any
) -> ShardedOptimizer:
    """Make the optimizer of a stage.

    Args:
        model: the same on every rank; for stage 3 a `FullyShardedModel`.
        optimizer_class: an element-wise optimizer, such as torch.optim.AdamW.
        stage: 1, 2 or 3.
        options: of the stage (`compute_dtype`, `reduce_dtype`, `offload`, `param_groups`, `on_nonfinite`,
            `bucket_bytes`, `group`, see `ReplicatedWeightsOptimizer`), and of the optimizer, such as `lr`.

    Returns:
        A torch.optim.Optimizer for this rank.

    Raises:
        TypeError, ValueError: an unknown stage, a model that does not fit it, and what the stage refuses.
    """
    if isinstance(stage, bool) or stage not in STAGES:
        raise ValueError(
            f"stage must be 1 (states), 2 (states and gradients) or 3 (states, gradients and weights), got {stage!r}; "
            "stage 0 is DataParallel with a plain torch optimizer"
        )
    if isinstance(model, FullyShardedModel) is not (stage == 3):
        wanted = "FullyShardedModel(model)" if stage == 3 else "the plain model"
        raise TypeError(f"stage {stage} takes {wanted}, got {type(model).__name__}")
    if stage == 3:
        return FullyShardedOptimizer(model, optimizer_class, **options)  # type: ignore[arg-type]
    return (ZeroStage1 if stage == 1 else ZeroStage2)(model, optimizer_class, **options)
