"""Softmax one block at a time: what makes FlashAttention possible.

A softmax seems to need a whole row, because it divides by a sum over it. But the pair (max, sum) of a block, and its
weighted values, can be merged with those of another block exactly: bring both to the larger maximum, then add. Merging
is associative and commutative, so blocks may come in any order, in pieces, on different processors.

Source: Milakov and Gimelshein, Online normalizer calculation for softmax (2018); Dao et al., FlashAttention (2022),
section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class SoftmaxState:
    """What one has to know about the scores seen so far.

    Attributes:
        max: the largest score m of each row, (...,); -inf where nothing has been seen.
        sum: l = sum over the scores x of exp(x - m), (...,).
        output: sum over the scores x of exp(x - m) times the value that belongs to x, (..., dim); not divided by l yet.
            Or None.
    """

    max: Tensor
    sum: Tensor
    output: Tensor | None = None

    @classmethod
    def of(
        cls, scores: Float[Tensor, "... block"], values: Float[Tensor, "... block dim"] | None = None
    ) -> SoftmaxState:
        """The state of one block.

        Args:
            scores: (..., block), floating point; -inf marks what a mask hides.
            values: (..., block, dim), what the softmax will weigh, or None.

        Raises:
            ValueError: an empty block, or values whose block length is not that of the scores.
        """
        if scores.ndim == 0 or scores.shape[-1] == 0:
            raise ValueError(
                f"scores must have at least one element along the last dimension, got shape {tuple(scores.shape)}"
            )
        if values is not None and (values.ndim < 2 or values.shape[-2] != scores.shape[-1]):
            raise ValueError(
                f"values must be (..., {scores.shape[-1]}, dim) to go with scores {tuple(scores.shape)}, "
                f"got {tuple(values.shape)}"
            )
        row_max = scores.amax(dim=-1)  # (...,)
        p = torch.exp(scores - _finite(row_max).unsqueeze(-1))  # (..., block)
        output = None if values is None else (p.unsqueeze(-2) @ values).squeeze(-2)  # (..., dim)
        return cls(row_max, p.sum(dim=-1), output)

    @property
    def lse(self) -> Tensor:
        """log(sum over x of exp(x)) = m + log(l): all that the backward pass needs, (...,)."""
        return self.max + torch.log(self.sum)

    def result(self) -> Tensor:
        """The softmax-weighted mean of the values seen, (..., dim).

        Raises:
            ValueError: the state was made without values.
        """
        if self.output is None:
            raise ValueError("this state carries no values; make it with SoftmaxState.of(scores, values)")
        return self.output / self.sum.unsqueeze(-1)


def merge(a: SoftmaxState, b: SoftmaxState) -> SoftmaxState:
    """The state of two blocks together: m = max(m_a, m_b), l = e^(m_a - m) l_a + e^(m_b - m) l_b, and the output alike.

    A state that has seen nothing but -inf (max -inf, sum 0) is the neutral element.

    Raises:
        ValueError: one state carries values and the other does not.
    """
    if (a.output is None) != (b.output is None):
        raise ValueError("both states must carry values, or neither: got one of each")
    row_max = torch.maximum(a.max, b.max)
    scale_a = torch.exp(a.max - _finite(row_max))
    scale_b = torch.exp(b.max - _finite(row_max))
    output = None
    if a.output is not None and b.output is not None:
        output = a.output * scale_a.unsqueeze(-1) + b.output * scale_b.unsqueeze(-1)
    return SoftmaxState(row_max, a.sum * scale_a + b.sum * scale_b, output)


def online_softmax(x: Float[Tensor, "... n"], *, block_size: int) -> Float[Tensor, "... n"]:
    """softmax(x) along the last dimension, having looked at one block of it at a time.

    The first pass merges the blocks' states, the second writes exp(x - lse). Exact: it equals torch.softmax up to
    rounding.

    Args:
        x: (..., n), floating point.
        block_size: how many elements are looked at together, at least 1; it need not divide n.

    Raises:
        ValueError: an empty x, or a block size below 1.
    """
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must have at least one element along the last dimension, got shape {tuple(x.shape)}")
    first, *rest = x.split(block_size, dim=-1)
    state = SoftmaxState.of(first)
    for block in rest:
        state = merge(state, SoftmaxState.of(block))
    return torch.exp(x - state.max.unsqueeze(-1)) / state.sum.unsqueeze(-1)


def _finite(row_max: Tensor) -> Tensor:
    """The maximum, or 0 where all is -inf: exp(-inf - 0) is the 0 that is meant, exp(-inf - (-inf)) would be NaN."""
    return torch.where(row_max == float("-inf"), torch.zeros_like(row_max), row_max)
