"""LoRA+: B learns faster than A.

A's inputs are of size 1 and B's are sums over r numbers that start at zero, so one learning rate suits only one of the
two; in the limit of wide models B's has to be larger by a constant factor. With Adam the paper takes 16.

Source: Hayou et al. 2024, "LoRA+", §4.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from cme295lab.finetuning.lora.adapting import lora_parameters
from cme295lab.finetuning.lora.targets import key_of


def lora_plus_groups(
    model: nn.Module, *, learning_rate: float, ratio: float = 16.0, adapter: str | None = None
) -> list[dict[str, Any]]:
    """Groups for an optimizer: B of linear layers with `ratio` times the learning rate of all else.

    Args:
        model: has the adapter.
        learning_rate: of A, of DoRA's magnitudes and of embeddings.
        ratio: of the two.
        adapter: None means the active one.

    Returns:
        Two groups, "name" "A" and "B", with "params" and "lr".

    Raises:
        ValueError: if a number is not positive, or there is no such adapter.
    """
    for name, value in (("learning_rate", learning_rate), ("ratio", ratio)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive number, got {value!r}")
    named = lora_parameters(model, adapter)
    embeddings = {key_of(path) for path, module in model.named_modules() if isinstance(module, nn.Embedding)}
    fast = {name for name in named if ".lora_B." in name and name.split(".")[2] not in embeddings}
    return [
        {"name": "A", "params": [p for name, p in named.items() if name not in fast], "lr": learning_rate},
        {"name": "B", "params": [p for name, p in named.items() if name in fast], "lr": learning_rate * ratio},
    ]
