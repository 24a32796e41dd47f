"""Known mistakes in blockwise attention, and what they give.

Each mistake is an option of one float64 implementation of the online softmax which, with every option at its default,
is right (a test holds it to the truth). The checks use it to name the cause of a wrong value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cme295lab.grading.compare import Hypothesis


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A known mistake, as options of a blockwise attention; the defaults make none.

    Args:
        cause: the mistake, in the words of the exercise.
        applies: to which inputs: "always", "causal" or "ragged" ones.
        scale_power: the scores are multiplied by dim to this power.
        score_factor: and by this factor.
        rescale_output: whether the accumulator is rescaled when the maximum moves.
        rescale_sum: whether the running sum is.
        inverse_rescale: whether both are rescaled by exp(new - old).
        keep_maximum: whether the new maximum is forgotten after each block.
        block_maximum: whether a block is weighted by its own maximum only.
        divide: whether the accumulator is divided by the sum at the end.
        masked: whether the causal mask is applied.
        boundary: query i sees keys up to i + boundary.
        diagonal: what is seen of the tile that the diagonal cuts: "part", "all" or "none" of it.
        padding: whether keys of zeros stand after the last key and are counted.
        drop_tail: whether the last, incomplete block of keys is left out.
    """

    cause: str = ""
    applies: str = "always"
    scale_power: float = -0.5
    score_factor: float = 1.0
    rescale_output: bool = True
    rescale_sum: bool = True
    inverse_rescale: bool = False
    keep_maximum: bool = False
    block_maximum: bool = False
    divide: bool = True
    masked: bool = True
    boundary: int = 0
    diagonal: str = "part"
    padding: bool = False
    drop_tail: bool = False


MISTAKES: tuple[Mistake, ...] = (
    Mistake(
        cause="the scale is missing: the scores must be multiplied by 1/sqrt(dim) before the softmax",
        scale_power=0,
    ),
    Mistake(cause="the scores are scaled by 1/dim; the scale is 1/sqrt(dim)", scale_power=-1),
    Mistake(cause="the scores are multiplied by sqrt(dim); the scale is 1/sqrt(dim)", scale_power=0.5),
    Mistake(
        cause="exp2(x) stands where exp(x) should: exp(x) = exp2(x * log2(e)), so multiply the scores by log2(e) first",
        score_factor=math.log(2),
    ),
    Mistake(
        cause="the accumulator is not rescaled when the running maximum moves: multiply it by exp(m_old - m_new)",
        rescale_output=False,
    ),
    Mistake(
        cause="the running sum l is not rescaled when the running maximum moves: multiply it by exp(m_old - m_new)",
        rescale_sum=False,
    ),
    Mistake(
        cause="neither the accumulator nor the running sum l is rescaled when the running maximum moves",
        rescale_output=False,
        rescale_sum=False,
    ),
    Mistake(
        cause="the rescaling is upside down: the factor is exp(m_old - m_new), not exp(m_new - m_old)",
        inverse_rescale=True,
    ),
    Mistake(
        cause="only the last block counts: either the running maximum m is not updated at the end of each block (so "
        "that exp(m_old - m_new) stays 0), or the accumulator and l are overwritten instead of added to",
        keep_maximum=True,
    ),
    Mistake(
        cause="each block is weighted by its own maximum: the maximum must run over all blocks so far",
        block_maximum=True,
    ),
    Mistake(cause="the result is not divided by the running sum l at the end", divide=False),
    Mistake(
        cause="there is no causal mask: query i may see only keys 0 to i",
        applies="causal",
        masked=False,
    ),
    Mistake(
        cause="the causal boundary is one too strict: query i must see key i itself (column <= row, not <)",
        applies="causal",
        boundary=-1,
    ),
    Mistake(
        cause="the causal boundary is one too wide: query i must not see key i + 1",
        applies="causal",
        boundary=1,
    ),
    Mistake(
        cause="the causal mask is missing inside the tile that the diagonal cuts: query i may see only keys 0 to i",
        applies="causal",
        diagonal="all",
    ),
    Mistake(
        cause="the causal boundary is wrong: the loop over keys ends before the tile that the diagonal cuts",
        applies="causal",
        diagonal="none",
    ),
    Mistake(
        cause="keys past the end are counted: the block size does not divide the length, and the scores of columns "
        "beyond the last key must become -inf (a zero key still gets exp(0))",
        applies="ragged",
        padding=True,
    ),
    Mistake(
        cause="the last, incomplete block of keys is left out: the block size does not divide the length, so round the "
        "number of blocks up",
        applies="ragged",
        drop_tail=True,
    ),
)

_ALL_NAN = (
    "every value is NaN: exp overflows when the running maximum is not subtracted; exp(m_new - m_old) is infinite "
    "at the "
    "start, where the factor must be exp(m_old - m_new); and a row that sees no key gives 0 / 0"
)


def blockwise_attention(
    q: Float[Tensor, "*lead rows dim"],
    k: Float[Tensor, "*lead cols dim"],
    v: Float[Tensor, "*lead cols dim"],
    causal: bool,
    blocks: tuple[int, int],
    mistake: Mistake | None = None,
) -> tuple[Float[Tensor, "*lead rows dim"], Float[Tensor, "*lead rows"]]:
    """Attention over blocks of keys with the online softmax, in float64, with at most one mistake.

    Args:
        q: queries, any floating dtype.
        k: keys.
        v: values.
        causal: whether query i sees keys 0 to i only.
        blocks: queries and keys in a tile.
        mistake: what to do wrong; None for nothing.

    Returns:
        The output and the log-sum-exp, float64.
    """
    wrong = mistake or Mistake()
    q, k, v = q.double(), k.double(), v.double()
    block_m, block_n = blocks
    rows, cols, dim = q.shape[-2], k.shape[-2], q.shape[-1]
    q = q * dim**wrong.scale_power * wrong.score_factor
    if wrong.padding:
        k, v = (torch.nn.functional.pad(x, (0, 0, 0, -cols % block_n)) for x in (k, v))
    cols = cols // block_n * block_n if wrong.drop_tail else k.shape[-2]
    visible = _visible(rows, cols, block_m, wrong) if causal and wrong.masked else torch.ones(rows, cols).bool()
    highest = q.new_full(q.shape[:-1], -math.inf)
    total, output = torch.zeros_like(highest), torch.zeros_like(q)
    for start in range(0, cols, block_n):
        block = slice(start, min(start + block_n, cols))
        scores = (q @ k[..., block, :].transpose(-2, -1)).masked_fill(~visible[:, block], -math.inf)
        highest, total, output = _step(highest, total, output, scores, v[..., block, :], wrong)
    return (output / total[..., None] if wrong.divide else output), highest + total.log()


def _visible(rows: int, cols: int, block_m: int, wrong: Mistake) -> Bool[Tensor, "rows cols"]:
    """Which keys a query sees."""
    row, col = torch.arange(rows)[:, None], torch.arange(cols)
    if wrong.diagonal == "part":
        return col <= row + wrong.boundary
    first_row_of_tile = row // block_m * block_m
    return col < first_row_of_tile + (block_m if wrong.diagonal == "all" else 0)


def _step(
    highest: Tensor, total: Tensor, output: Tensor, scores: Tensor, v: Tensor, wrong: Mistake
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge one block into the state. nan_to_num stands for inf - inf and 0 * inf where the state is still empty."""
    new = scores.amax(-1) if wrong.block_maximum else torch.maximum(highest, scores.amax(-1))
    p = (scores - new[..., None]).exp().nan_to_num(nan=0.0)
    moved = new - highest if wrong.inverse_rescale else highest - new
    rescale = torch.ones_like(new) if wrong.block_maximum else moved.exp().nan_to_num(nan=1.0)
    total = (total * rescale).nan_to_num(nan=0.0) if wrong.rescale_sum else total
    output = (output * rescale[..., None]).nan_to_num(nan=0.0) if wrong.rescale_output else output
    return (highest if wrong.keep_maximum else new), total + p.sum(-1), output + p @ v


def mistaken_outputs(q: Tensor, k: Tensor, v: Tensor, causal: bool, blocks: tuple[int, int]) -> Iterator[Hypothesis]:
    """What each known mistake gives as the output of attention on this input."""
    yield Hypothesis("the result is the input q, untouched", lambda: q)
    yield Hypothesis("the result is the input k, untouched", lambda: k)
    yield Hypothesis("the result is the input v, untouched", lambda: v)
    for mistake in _applicable(k.shape[-2], causal, blocks):
        yield Hypothesis(mistake.cause, partial(_blockwise, 0, q, k, v, causal, blocks, mistake))
    yield Hypothesis(_ALL_NAN, lambda: torch.full(q.shape, torch.nan))


def mistaken_lse(q: Tensor, k: Tensor, v: Tensor, causal: bool, blocks: tuple[int, int]) -> Iterator[Hypothesis]:
    """What each known mistake gives as the log-sum-exp on this input."""
    scores = q.double() @ k.double().transpose(-2, -1) / math.sqrt(q.shape[-1])
    if causal:
        scores = scores.masked_fill(~_visible(scores.shape[-2], scores.shape[-1], 1, Mistake()), -math.inf)
    highest, lse = scores.amax(-1), scores.logsumexp(-1)
    log_total = lse - highest
    wrong = "the log-sum-exp is m + log(l); yours is"
    yield Hypothesis(f"{wrong} log(l): the maximum m is missing", lambda: log_total)
    yield Hypothesis(f"{wrong} l, the sum itself", lambda: log_total.exp())
    yield Hypothesis(f"{wrong} m + l: the logarithm is missing", lambda: highest + log_total.exp())
    yield Hypothesis(f"{wrong} m, the maximum: log(l) is missing", lambda: highest)
    yield Hypothesis(f"{wrong} m - log(l)", lambda: highest - log_total)
    yield Hypothesis(f"{wrong} m + log2(l): it is a natural logarithm", lambda: highest + log_total / math.log(2))
    yield Hypothesis(f"{wrong} in base 2: divide by log2(e) at the end", lambda: lse / math.log(2))
    for mistake in _applicable(k.shape[-2], causal, blocks):
        yield Hypothesis(mistake.cause, partial(_blockwise, 1, q, k, v, causal, blocks, mistake))


def _blockwise(
    which: int, q: Tensor, k: Tensor, v: Tensor, causal: bool, blocks: tuple[int, int], mistake: Mistake
) -> Tensor:
    """The output (0) or the log-sum-exp (1) of blockwise attention with a mistake."""
    return blockwise_attention(q, k, v, causal, blocks, mistake)[which]


def _applicable(cols: int, causal: bool, blocks: tuple[int, int]) -> Iterator[Mistake]:
    ragged = cols % blocks[1] != 0
    for mistake in MISTAKES:
        if {"always": True, "causal": causal, "ragged": ragged}[mistake.applies]:
            yield mistake
