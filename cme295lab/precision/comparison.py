"""The same model on the same batches under several policies, for losses that lie over one another until one does not.

Which failure shows depends on the run, and most short runs of small models show none: with a learning rate of 1e-3 and
1,024 tokens in a step, plain fp16 trains as fp32 does. What breaks large runs can be had on a laptop without cheating:

    small gradients    the loss of a large batch is a mean over its tokens, so a micro-batch of 1,024 tokens in a batch
                       of a million adds gradients that are a thousand times smaller than alone. With
                       `micro_batches=1024` one micro-batch stands for all of them: its loss is divided as it would be
    small updates      fine-tuning, and the end of every schedule, has learning rates of 1e-5: then weights without
                       masters hardly move, in bf16 long before fp16

Measured with course-draft (0.35 million parameters, 120 steps of 512 tokens, losses of the last twelve):

                                                           fp32   pure-fp16   fp16-master   fp16-mixed   bf16-mixed
    from scratch, 2e-3, 2,048 micro-batches                5.99        7.70          7.70         5.99         5.99
    trained on, 3e-5, 128 micro-batches                    2.45        2.56          2.52         2.45         2.45
    trained on, 3e-5, one                                  2.45        2.54          2.45         2.45         2.45

and in the last of these 2.73 with "bf16-fp32-states", which starts from 2.75, and 2.45 with "bf16-stochastic".

AdamW takes no notice of a constant factor in its gradients, but for ε and the clipping norm. Both are divided along, so
that fp32 gives the same curve with and without `micro_batches`, and what differs is what 16 bits lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cme295lab.precision.loss_scaling import LossNeverFinite
from cme295lab.precision.mixed_precision import MixedPrecisionTraining, StepRecord
from cme295lab.precision.policies import PrecisionPolicy, get_policy

MAIN_POLICIES = ("fp32", "pure-fp16", "fp16-master", "fp16-mixed", "bf16-mixed")
"""What to overlay first: each technique is missing once."""

_EPS = 1e-8


def compare_policies(
    make_model: Callable[[], nn.Module],
    batches: Sequence[Any],
    policies: Iterable[str] | Mapping[str, PrecisionPolicy] = MAIN_POLICIES,
    num_steps: int | None = None,
    learning_rate: float | Callable[[int], float] = 1e-3,
    *,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    micro_batches: int = 1,
    clip_norm: float | None = None,
    seed: int = 0,
) -> dict[str, list[StepRecord]]:
    """Train a fresh model under each policy.

    Args:
        make_model: makes an fp32 model; random numbers are seeded before each call.
        batches: one for each step, used from the start again when they end.
        policies: names of `POLICIES`, or policies by names of your own.
        num_steps: None for as many as there are batches.
        learning_rate: η, or a function of the step, from 0.
        loss: the loss of a model on a batch; None is `model.loss(*batch)`.
        micro_batches: how many micro-batches a step would have, of which one is computed; a power of two changes no
            digit.
        clip_norm: largest norm of all gradients; None never clips.
        seed: of the models, of dropout and of stochastic rounding.

    Returns:
        Records by name, with losses and norms as if the micro-batch were alone. A list is shorter where training could
        not go on: the loss, its last, is not finite, or no loss scale was low enough.

    Raises:
        ValueError: if there are no batches, or a number is out of range.
    """
    if not batches:
        raise ValueError("batches is empty: give one for each step, or a few to be repeated")
    num_steps = len(batches) if num_steps is None else num_steps
    for name, value in (("num_steps", num_steps), ("micro_batches", micro_batches)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an int of at least 1, got {value!r}")
    chosen = dict(policies) if isinstance(policies, Mapping) else {name: get_policy(name) for name in policies}
    loss_of = _own_loss if loss is None else loss
    rate = learning_rate if callable(learning_rate) else lambda step: learning_rate
    results = {}
    for name, policy in chosen.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            training = MixedPrecisionTraining(
                make_model(), policy, eps=_EPS / micro_batches,
                clip_norm=None if clip_norm is None else clip_norm / micro_batches,
            )  # fmt: skip
            results[name] = _train(training, batches, num_steps, rate, loss_of, micro_batches)
    return results


def _train(
    training: MixedPrecisionTraining,
    batches: Sequence[Any],
    num_steps: int,
    rate: Callable[[int], float],
    loss_of: Callable[[nn.Module, Any], Tensor],
    micro_batches: int,
) -> list[StepRecord]:
    records: list[StepRecord] = []
    for step in range(num_steps):
        batch = batches[step % len(batches)]
        training.learning_rate = rate(step)
        try:
            record = training.step(lambda batch=batch: loss_of(training.model, batch) / micro_batches)  # type: ignore[misc]
        except LossNeverFinite:
            break
        records.append(
            replace(record, loss=record.loss * micro_batches, gradient_norm=record.gradient_norm * micro_batches)
        )
        if not math.isfinite(record.loss):
            break
    return records


def _own_loss(model: nn.Module, batch: Any) -> Tensor:
    result: Tensor = model.loss(*batch)  # type: ignore[operator]
    return result
