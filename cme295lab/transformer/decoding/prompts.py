"""Prompts as they come, checked, and as one tensor with the padding on the left.

Prompts of one batch have different lengths, and the model reads a rectangle. Padding goes to the *left*: then the last
column holds the last token of every prompt, one step appends one column for all, and the new tokens of every row begin
in the same place. Nobody may look at the padding, and positions are counted from a row's first own token; the model
does both when it is told how much padding a row has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Int
from torch import Tensor, nn

from cme295lab.transformer.config import ModelConfig

PADDING = 0  # any token number would do: nobody looks at it


def check_prompts(
    prompts: Sequence[Sequence[int]] | Int[Tensor, "batch seq"], config: ModelConfig, max_new_tokens: int
) -> list[list[int]]:
    """The prompts as lists, all of them such that the model can read and continue them.

    Raises:
        TypeError: if they are no lists of token numbers.
        ValueError: if there is none, one is empty, has a token that the model does not know, or is too long.
    """
    if isinstance(prompts, Tensor):
        if prompts.ndim != 2 or prompts.is_floating_point():
            raise ValueError(f"prompts must be integers (batch, seq), got {prompts.dtype} {tuple(prompts.shape)}")
        prompts = prompts.tolist()
    if not all(isinstance(prompt, Sequence | Tensor) for prompt in prompts):
        raise TypeError(
            "prompts must be a list of prompts, each a list of token numbers: put a single one into [ ], "
            "and encode text with a tokenizer first"
        )
    if not prompts:
        raise ValueError("prompts is empty: there is nothing to continue")
    check_max_new_tokens(max_new_tokens)
    return [check_prompt(prompt, config, max_new_tokens, name=f"prompts[{i}]") for i, prompt in enumerate(prompts)]


def check_prompt(
    prompt: Sequence[int] | Int[Tensor, " seq"], config: ModelConfig, max_new_tokens: int, name: str = "prompt"
) -> list[int]:
    """One prompt as a list; raises as `check_prompts` does."""
    if isinstance(prompt, Tensor):
        if prompt.ndim != 1 or prompt.is_floating_point():
            raise ValueError(f"{name} must be integers (seq,), got {prompt.dtype} {tuple(prompt.shape)}")
        prompt = prompt.tolist()
    if not all(isinstance(token, int) for token in prompt):
        raise TypeError(f"{name} must hold token numbers, got {list(prompt)[:8]!r}: encode text with a tokenizer first")
    if not prompt:
        raise ValueError(f"{name} is empty: give the model at least one token, its end token for instance")
    check_tokens(prompt, config, name)
    if len(prompt) + max_new_tokens > config.max_seq:
        raise ValueError(
            f"{name} has {len(prompt)} tokens, and with max_new_tokens {max_new_tokens} there would be "
            f"{len(prompt) + max_new_tokens}: the model has max_seq {config.max_seq}. "
            f"Shorten the prompt, keeping its end, or ask for fewer tokens"
        )
    return list(prompt)


def check_tokens(tokens: Sequence[int], config: ModelConfig, name: str) -> None:
    """Raise a ValueError unless all are tokens that the model knows."""
    unknown = [token for token in tokens if not 0 <= token < config.vocab_size]
    if unknown:
        raise ValueError(
            f"{name} has token {unknown[0]}, and the vocabulary of model {config.name!r} ends at "
            f"{config.vocab_size - 1}: was it encoded with another tokenizer?"
        )


def check_max_new_tokens(max_new_tokens: int) -> None:
    """Raise unless it is an integer of at least 1."""
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int):
        raise TypeError(f"max_new_tokens must be an int, got {max_new_tokens!r} of {type(max_new_tokens).__name__}")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")


def pad_left(
    prompts: Sequence[Sequence[int]], device: torch.device
) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, " batch"] | None]:
    """Prompts as one tensor, and how many columns of padding each row begins with (None if there is no padding)."""
    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    tokens = torch.tensor([[PADDING] * num + list(prompt) for num, prompt in zip(padding, prompts)], device=device)
    return tokens, torch.tensor(padding, device=device) if any(padding) else None


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """No dropout within, and every part of the model in the mode that it was in afterwards."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
