"""How many parameters LoRA trains, of a model in memory or one that is only a config: r (in + out) for each matrix.

Source: Hu et al. 2022, "LoRA", Table 4.
"""

from __future__ import annotations

from torch import nn

from cme295lab.finetuning.attached import check_int
from cme295lab.finetuning.lora.targets import (
    Target,
    Targets,
    check_rank,
    choose_targets,
    targets_of_config,
    targets_of_model,
)
from cme295lab.transformer.config import ModelConfig
from cme295lab.transformer.presets import preset


def num_lora_parameters(
    model: nn.Module | ModelConfig | str, *, rank: int, targets: Targets = ("query", "value")
) -> int:
    """r (in + out), summed over the matrices that are meant.

    Args:
        model: a model, a config, or the name of a preset.
        rank: of all matrices.
        targets: names, last parts of names, "all-linear".

    Raises:
        TypeError: if `targets` is another text than "all-linear".
        ValueError: if the rank is no positive int or larger than a side of a matrix, or a target names nothing.

    Example (GPT-3, Table 4 of the paper: 4.7 and 37.7 million):

        >>> num_lora_parameters("gpt-3", rank=1), num_lora_parameters("gpt-3", rank=8)
        (4718592, 37748736)
    """
    return sum(target.num_parameters(rank) for target in lora_targets(model, rank=rank, targets=targets))


def lora_targets(model: nn.Module | ModelConfig | str, *, rank: int, targets: Targets) -> list[Target]:
    """The matrices that are meant, each large enough for the rank.

    Raises:
        TypeError, ValueError: as `num_lora_parameters`.
    """
    check_int("rank", rank, 1)
    if isinstance(model, str):
        model = preset(model)
    known = targets_of_config(model) if isinstance(model, ModelConfig) else targets_of_model(model)
    chosen = choose_targets(known, targets)
    for target in chosen:
        check_rank(target, rank)
    return chosen
