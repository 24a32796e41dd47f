"""Batches of unequal length: the mean over all tokens is not the mean of the ranks' means.

Two ranks, 2 tokens with loss 1.0 and 6 tokens with loss 3.0. The mean of the means is 2.0; the mean over the eight
tokens is (2 × 1.0 + 6 × 3.0) / 8 = 2.5. Data parallelism averages the gradients of its N ranks, so each rank has to
multiply the *sum* of its tokens' losses by N / (number of all tokens): then the average is the mean over all tokens, on
any strategy and any stage of ZeRO, and a rank without any token adds a zero instead of 0 / 0.

    scale = token_scale(num_tokens)                   # tokens of this rank in this step, in all its micro-batches
    for tokens, targets in micro_batches:
        (loss_summed_over_tokens * scale).backward()
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from cme295lab.parallel.communication import transport
from cme295lab.parallel.communication.calls import ledger_tag
from cme295lab.parallel.communication.tensor_checks import resolve_group


def token_scale(
    num_tokens: int, *, group: dist.ProcessGroup | None = None, device: torch.device | str | None = None
) -> float:
    """What to multiply a rank's summed loss with, so that the ranks' average is the mean over all tokens.

    Args:
        num_tokens: tokens that count on this rank in the whole step, in all micro-batches; may be 0 on some ranks.
        group: the ranks; None means all. All of them call this together: it is one sum of one number.
        device: where the number is added up; None: where the group's backend works.

    Returns:
        num_ranks / (number of tokens on all ranks).

    Raises:
        TypeError: if `num_tokens` is no integer.
        ValueError: if it is negative, or there is no token on any rank.
    """
    if not isinstance(num_tokens, int) or isinstance(num_tokens, bool):
        raise TypeError(f"num_tokens must be an int, got {type(num_tokens).__name__}; use int(mask.sum())")
    if num_tokens < 0:
        raise ValueError(f"num_tokens must be 0 or more, got {num_tokens}")
    group = resolve_group(group)
    count = torch.tensor([num_tokens], dtype=torch.int64, device=device or scalar_device(group))
    with ledger_tag("scalars"):
        transport.all_reduce(count, group=group)
    total = int(count)
    if total == 0:
        raise ValueError("num_tokens is 0 on every rank: there is nothing to take the mean of; leave the step out")
    return group.size() / total


def scalar_device(group: dist.ProcessGroup) -> torch.device:
    """A device on which a group's backend can add up a number."""
    is_on_gpu = dist.get_backend(group) == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if is_on_gpu else torch.device("cpu")
