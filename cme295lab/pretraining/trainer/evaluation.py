"""The loss on text that the model does not train on: a mean over tokens, for each domain."""

from __future__ import annotations

import torch

from cme295lab.pretraining.packing import PackedDataset
from cme295lab.pretraining.trainer.gradients import loss_of
from cme295lab.transformer.decoder import DecoderLM


@torch.no_grad()
def evaluate(
    model: DecoderLM, data: PackedDataset, *, rows: int = 16, max_rows: int | None = None,
    isolate_documents: bool = True,
) -> float:  # fmt: skip
    """The mean loss over all targets of a data set, in nats per token. Dropout is off, and on again afterwards.

    Args:
        model: as it is.
        data: rows to predict.
        rows: that pass the model at once; the result does not depend on it, but for rounding.
        max_rows: how many rows are read, always the same; None for all.
        isolate_documents: whether a token sees its own document alone.

    Raises:
        ValueError: if `rows` or `max_rows` is not positive, or no row that is read has a target.
    """
    if rows < 1 or (max_rows is not None and max_rows < 1):
        raise ValueError(f"rows and max_rows must be positive, got {rows} and {max_rows}")
    was_training = model.training
    model.eval()
    try:
        num_rows = data.num_rows if max_rows is None else min(max_rows, data.num_rows)
        total, count = 0.0, 0
        for first in range(0, num_rows, rows):
            batch = data.rows(range(first, min(first + rows, num_rows)))
            if targets := batch.num_targets:
                total += loss_of(model, batch, isolate_documents=isolate_documents).item() * targets
                count += targets
        if not count:
            raise ValueError(f"the first {num_rows} rows have no target: there is no loss to take the mean of")
        return total / count
    finally:
        model.train(was_training)
