"""One run of the sweep: a model, so many tokens, a warm-up and one cosine to the end.

Every run has a schedule of its own length: a run stopped in the middle of a longer one would look worse than it is.
All runs read the same rows in the same order, in steps of 512 tokens, with AdamW; the loss that counts is taken at
the end on text that no run has seen, the same for all. The training curve is kept as means of the training loss over
stretches that grow by a constant factor.

The decoder starts its matrices at a standard deviation of 0.02, which suits widths of a thousand. At a width of 48 that
is a seventh of 1 / sqrt(width): activations fade, and a third of a short run is lost on growing them (4.6 nats against
3.95 after 200,000 tokens). So `initialize` scales them to the width, and the learning rate is found by trials.

A plain loop, without checkpoints: a run takes seconds to minutes, and one that was interrupted is repeated.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cme295lab.pretraining.packing import PackedDataset
from cme295lab.scaling.records import FLOPS_PER_PARAMETER_AND_TOKEN
from cme295lab.scaling.sweep.models import SEQ
from cme295lab.transformer.config import ModelConfig
from cme295lab.transformer.decoder import DecoderLM
from cme295lab.transformer.layers import ResidualLinear

ROWS = 4  # of a step
TOKENS_PER_STEP = ROWS * SEQ
CURVE_POINTS = 12
_WARMUP_SHARE, _FINAL_SHARE = 0.05, 0.1  # of the steps; of the peak learning rate, at the end
_DATA_SEED = 295


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """What a run is to do.

    Args:
        name: unlike all others.
        config: the model.
        num_steps: of 512 tokens.
        learning_rate: at the peak.
        kind: "trial" (of a learning rate), "sweep" or "check" (of the extrapolation).
        seed: of the initial weights.
    """

    name: str
    config: ModelConfig
    num_steps: int
    learning_rate: float
    kind: str
    seed: int = 0

    @property
    def num_tokens(self) -> int:
        """That it reads."""
        return self.num_steps * TOKENS_PER_STEP


def steps_for_budget(config: ModelConfig, flops: float) -> int:
    """Steps that spend a budget, 6 N D FLOP, on a model."""
    return max(1, round(flops / (FLOPS_PER_PARAMETER_AND_TOKEN * config.num_parameters * TOKENS_PER_STEP)))


def rows_of(tokens: np.ndarray) -> PackedDataset:
    """A stream of tokens as rows in a shuffled order, the same for every run; each token but the last has its next one.

    Documents follow each other in the stream with an end token between them, and are not masked from each other.
    """
    return PackedDataset([tokens.tolist()], seq=SEQ, seed=_DATA_SEED, end_token=0)


def train_run(run: PlannedRun, train: PackedDataset, validation: PackedDataset, *, rows: int = 32) -> dict[str, Any]:
    """Train one model, and return its record: plain values.

    Args:
        run: what to do.
        train: rows to learn from; longer runs start over.
        validation: rows for the loss at the end, all of them.
        rows: of validation at a time.
    """
    start = time.perf_counter()
    torch.manual_seed(run.seed)
    model = initialize(DecoderLM(run.config))
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=run.learning_rate, betas=(0.9, 0.95), fused=True)
    losses = np.empty(run.num_steps)
    for step in range(run.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = run.learning_rate * schedule(step, run.num_steps)
        batch = train.batch(step, ROWS)
        loss = model.loss(batch.tokens, batch.targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses[step] = loss.detach()
    return {
        "name": run.name,
        "kind": run.kind,
        "model": run.config.name,
        "num_parameters": run.config.num_parameters,
        "num_embedding_parameters": run.config.counts.token_embedding,
        "num_tokens": run.num_tokens,
        "flops": FLOPS_PER_PARAMETER_AND_TOKEN * run.config.num_parameters * run.num_tokens,
        "learning_rate": float(f"{run.learning_rate:.4g}"),
        "loss": round(evaluate(model, validation, rows=rows), 5),
        "curve": curve_of(losses),
        "seconds": round(time.perf_counter() - start, 1),
    }


def initialize(model: DecoderLM) -> DecoderLM:
    """Draw all matrices anew, with a standard deviation of 1 / sqrt(inputs); those that write into the residual stream
    are smaller by sqrt(2 layers), and the embedding, which is the head as well, has 1 / sqrt(width).
    """
    smaller = (2 * model.config.num_layers) ** -0.5
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            scale = smaller if isinstance(module, ResidualLinear) else 1.0
            torch.nn.init.normal_(module.weight, std=scale * module.weight.shape[1] ** -0.5)
    return model


def schedule(step: int, num_steps: int) -> float:
    """The learning rate of a step as a share of its peak: a linear warm-up, then a cosine down to a tenth."""
    warmup = max(1, round(_WARMUP_SHARE * num_steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return _FINAL_SHARE + (1 - _FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * progress))


@torch.no_grad()
def evaluate(model: DecoderLM, data: PackedDataset, *, rows: int = 32) -> float:
    """The mean loss over all rows of a data set, in nats per token."""
    total, count = 0.0, 0
    for first in range(0, data.num_rows, rows):
        batch = data.rows(range(first, min(first + rows, data.num_rows)))
        total += float(model.loss(batch.tokens, batch.targets)) * batch.num_targets
        count += batch.num_targets
    return total / count


def curve_of(losses: np.ndarray) -> list[list[float]]:
    """(tokens, mean training loss) of stretches whose ends grow by a constant factor, the last one at the end."""
    ends = np.unique(np.geomspace(min(8, len(losses)), len(losses), CURVE_POINTS).round().astype(int))
    starts = [0, *ends[:-1]]
    points = zip(starts, ends, strict=True)
    return [
        [round(math.sqrt(max(1, first) * last)) * TOKENS_PER_STEP, round(float(losses[first:last].mean()), 5)]
        for first, last in points
    ]
