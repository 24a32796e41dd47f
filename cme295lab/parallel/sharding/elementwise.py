"""Whether an optimizer works on each number by itself, which is what cutting parameters into shards takes for granted.

SGD, Adam, AdamW, RMSprop and most others update a weight from its own gradient and its own state: cut a vector anywhere
and the parts end where the whole would. Others look at a parameter as a whole. Adafactor keeps one number per row and
column of a matrix, Muon orthogonalises a matrix, L-BFGS takes scalar products of everything: on a shard these would
compute something else, without a word. So they are told apart by trying: a few steps on a small matrix, whole and in
two flat parts. That works for optimizers that nobody here has heard of, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_ROWS, _COLUMNS, _CUT, _STEPS = 4, 3, 5, 3


def check_elementwise(
    optimizer_class: type[torch.optim.Optimizer], options: Mapping[str, Any], *, device: torch.device | str = "cpu"
) -> None:
    """Refuse an optimizer whose update of a number depends on other numbers.

    Args:
        optimizer_class: such as torch.optim.AdamW, or one's own.
        options: what it is called with, besides the parameters.
        device: where it will work.

    Raises:
        TypeError: if it is no class of optimizers, or cannot be called with these options.
        ValueError: if it is not element by element, or refuses the options or flat vectors.

        >>> check_elementwise(torch.optim.AdamW, {"lr": 0.1})
        >>> check_elementwise(torch.optim.LBFGS, {})
        Traceback (most recent call last):
        TypeError: LBFGS cannot be used with shards: LBFGS.step() missing 1 required positional argument: 'closure'
    """
    if not (isinstance(optimizer_class, type) and issubclass(optimizer_class, torch.optim.Optimizer)):
        raise TypeError(f"optimizer_class must be a class such as torch.optim.AdamW, got {optimizer_class!r}")
    name = optimizer_class.__name__
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(_ROWS, _COLUMNS, generator=generator).to(device)
    gradients = [torch.randn(_ROWS, _COLUMNS, generator=generator).to(device) for _ in range(_STEPS)]
    try:
        whole = _steps(optimizer_class, options, [weights], [[gradient] for gradient in gradients])
        parts = [weights.flatten()[:_CUT], weights.flatten()[_CUT:]]
        cut = [[gradient.flatten()[:_CUT], gradient.flatten()[_CUT:]] for gradient in gradients]
        in_parts = _steps(optimizer_class, options, parts, cut)
    except TypeError as error:
        raise TypeError(f"{name} cannot be used with shards: {error}") from error
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(f"{name} cannot be used with shards, which are parts of flat vectors: {error}") from error
    if not torch.allclose(whole, in_parts, rtol=1e-5, atol=1e-7):
        raise ValueError(
            f"{name} is not element-wise: cut into shards it gives other weights, because it looks at a parameter as a "
            "whole. Use SGD, Adam, AdamW or another optimizer that treats each number by itself"
        )


def _steps(
    optimizer_class: type[torch.optim.Optimizer],
    options: Mapping[str, Any],
    weights: Sequence[Tensor],
    gradients: Sequence[Sequence[Tensor]],
) -> Tensor:
    """All weights in a row after some steps."""
    parameters = [nn.Parameter(weight.clone()) for weight in weights]
    optimizer: Any = optimizer_class(parameters, **options)
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in parameters])
