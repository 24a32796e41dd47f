"""One step up to its gradient: micro-batches, weighted by their tokens, and clipping.

The loss of a batch is a mean over its target tokens. Cut into micro-batches, it is not the mean of their means: with 2
targets at a loss of 1 and 6 at 3, the mean over tokens is (2·1 + 6·3) / 8 = 2.5, the mean of means 2. Tokens in
micro-batches with few targets would count more. So each micro-batch adds mean × targets / all targets, and however a
batch is cut, the gradient is the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from cme295lab.pretraining.packing import Batch
from cme295lab.transformer.decoder import DecoderLM


def accumulate_gradients(
    model: DecoderLM,
    parts: Sequence[Batch],
    *,
    isolate_documents: bool = True,
    balance_weight: float = 0.01,
    router_z_weight: float = 0.001,
) -> tuple[float, float | None]:
    """Add the gradient of the mean loss over all targets of some micro-batches to `.grad`.

    Args:
        model: its gradients are added to, not replaced.
        parts: the micro-batches of a step.
        isolate_documents: whether a token sees its own document alone.
        balance_weight, router_z_weight: of the auxiliary losses, where the model has experts.

    Returns:
        The mean loss over targets, in nats, and the auxiliary loss; None where the model has no experts.

    Raises:
        ValueError: if no micro-batch has a target.
    """
    counts = [part.num_targets for part in parts]
    if not (total := sum(counts)):
        raise ValueError("the batch has no target: there is nothing to learn from it")
    loss_sum, auxiliary_sum = 0.0, 0.0
    for part, count in zip(parts, counts, strict=True):
        if not count:  # a mean over no token is nan
            continue
        with _routing(model) as routings:
            loss = loss_of(model, part, isolate_documents=isolate_documents)
        share = count / total
        whole = loss
        if routings:
            from cme295lab.transformer.moe import auxiliary_loss

            auxiliary = auxiliary_loss(routings, balance=balance_weight, z=router_z_weight)
            auxiliary_sum += share * auxiliary.item()
            whole = loss + auxiliary
        (whole * share).backward()
        loss_sum += share * loss.item()
    return loss_sum, auxiliary_sum if model.config.num_experts else None


def loss_of(model: DecoderLM, batch: Batch, *, isolate_documents: bool) -> Tensor:
    """The mean loss over a batch's targets, as a tensor."""
    if not isolate_documents:
        return model.loss(batch.tokens, batch.targets)
    return model.loss(batch.tokens, batch.targets, positions=batch.positions, documents=batch.documents)


def clip_gradients(parameters: Iterable[nn.Parameter], clip_norm: float | None) -> float:
    """Scale the gradients so that their norm, all together, is at most `clip_norm`.

    Args:
        parameters: those without a gradient are passed over.
        clip_norm: the largest norm; None leaves the gradients as they are.

    Returns:
        The norm before.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return 0.0
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))).item()
    if clip_norm is not None and norm > clip_norm and math.isfinite(norm):
        torch._foreach_mul_(gradients, clip_norm / norm)
    return norm


def _routing(model: DecoderLM) -> Any:
    if not model.config.num_experts:
        return nullcontext([])
    from cme295lab.transformer.moe import record_routing

    return record_routing(model)
