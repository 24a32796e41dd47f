"""Which parameters a fine-tuning run trains: all, those that are marked, or those that a method adds.

The trainer asks one question of a parameter, `requires_grad`. Whatever answers it is a method: "full" says yes for all,
"as-marked" leaves the answers to whoever prepared the model. Methods that add parameters freeze all others; their
options are those of the function that adds them, and its module is imported when it is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn


def _full(model: nn.Module) -> None:
    model.requires_grad_(True)


def _as_marked(model: nn.Module) -> None:
    """Nothing to do."""


def _adding(module: str, function: str) -> Callable[..., object]:
    """The function that adds parameters, found when it is called."""

    def add(model: nn.Module, **options: Any) -> object:
        return getattr(importlib.import_module(module), function)(model, **options)

    return add


METHODS: Mapping[str, Callable[..., object]] = MappingProxyType(
    {
        "full": _full,
        "as-marked": _as_marked,
        "lora": _adding("cme295lab.finetuning.lora.adapting", "add_lora"),
        "prefix": _adding("cme295lab.finetuning.prefix", "add_prefix"),
        "prompt": _adding("cme295lab.finetuning.prompt", "add_prompt"),
        "adapters": _adding("cme295lab.finetuning.adapters", "add_adapters"),
    }
)


def choose_parameters(
    model: nn.Module, method: str, options: Mapping[str, Any] | None = None, *, seed: int = 0
) -> dict[str, nn.Parameter]:
    """Let a method mark, and add, what shall be trained.

    Args:
        model: changed in place.
        method: one of `METHODS`.
        options: of the method.
        seed: of parameters that are added; the caller's random numbers stay as they are.

    Returns:
        Name -> parameter, of those that will be trained.

    Raises:
        TypeError: if the method has no such option.
        ValueError: if the method is unknown, an option is out of range, or nothing is left to train.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            METHODS[method](model, **(options or {}))
        except TypeError as error:
            raise TypeError(f"method {method!r} with options {dict(options or {})}: {error}") from error
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trained:
        raise ValueError(
            f"nothing to train: with method {method!r} no parameter has requires_grad. Set it where something shall be "
            f"learned, or take method='full'"
        )
    return trained
