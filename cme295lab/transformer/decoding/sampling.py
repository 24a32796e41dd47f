"""From logits to the distribution that the next token is drawn from, one small step at a time.

A model gives one number per token of the vocabulary, a logit z. softmax(z) is what it believes; what is drawn from is
often another distribution, sharpened and with its tail cut off. Each step takes logits and gives logits, so that steps
can be chained and looked at between:

    step                  what it does                                               what it is for
    penalize_repetition   tokens seen before: z / r where z > 0, z · r where z < 0   loops
    apply_temperature     z / T                                                      T < 1 sharpens, T > 1 flattens
    keep_top_k            all but the k largest become -inf                          a tail of fixed size is cut off
    keep_top_p            all but the smallest set with probability >= p             a tail that follows its doubt
    keep_min_p            all below m times the largest probability                  the same, without a sort

`next_token_probabilities` chains them in this order, which is that of `transformers`, and ends with a softmax: what is
left is thereby renormalised. The order matters: top-p after temperature sees the sharpened distribution, top-p after
top-k sees one that has been renormalised over k tokens.

Ties. Of tokens with equal logits the one with the smaller number comes first, in top-k and in top-p, so exactly k
tokens are kept. (`transformers` keeps all that tie with the k-th; real logits seldom tie.)

Temperature 0 would be the limit "always the largest logit". That is greedy decoding, and asked for as such: with
`sampling=None`, in `next_token_probabilities` and everywhere else in this room.

Not covered: typical, eta and mirostat sampling, penalties on frequency and presence, constrained grammars.

Source: Fan et al. 2018 (top-k); Holtzman et al. 2020 (top-p); Nguyen et al. 2024 (min-p); Keskar et al. 2019, section
4.1 (repetition penalty; its formula multiplies, which *helps* a token whose logit is negative, so the sign is asked).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

MIN_TEMPERATURE = 1e-6  # below it, a division in fp32 overflows before it changes which token is drawn


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn. The defaults draw from the model's own distribution.

    Attributes:
        temperature: divides the logits; positive.
        top_k: tokens kept, at least 1; None keeps all.
        top_p: the smallest set of tokens with at least this probability is kept; in (0, 1], None keeps all.
        min_p: tokens with at least this fraction of the largest probability are kept; in [0, 1], None keeps all.
        repetition_penalty: above 1, tokens that came before become less likely; positive, 1 does nothing.

    Raises:
        TypeError: if a value is no number, or top_k no integer.
        ValueError: if a value is out of its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        _check_temperature(self.temperature)
        _check_repetition_penalty(self.repetition_penalty)
        if self.top_k is not None:
            _check_top_k(self.top_k)
        if self.top_p is not None:
            _check_top_p(self.top_p)
        if self.min_p is not None:
            _check_min_p(self.min_p)


def next_token_probabilities(
    logits: Float[Tensor, "batch vocab"],
    sampling: Sampling | None,
    previous: Int[Tensor, "batch seq"] | None = None,
) -> Float[Tensor, "batch vocab"]:
    """The distribution of the next token.

    Args:
        logits: of the next token, (batch, vocab), any floating dtype.
        sampling: the steps; None puts all probability on the largest logit (greedy).
        previous: tokens that the repetition penalty is about, (batch, seq); negative entries are padding.

    Returns:
        Probabilities, (batch, vocab), fp32 (float64 if the logits are).

    Raises:
        ValueError: if there is a repetition penalty and nothing that it is about.

    Example:
        >>> logits = torch.tensor([[2.0, 1.0, 0.0]])
        >>> next_token_probabilities(logits, Sampling(temperature=0.5))
        tensor([[0.8668, 0.1173, 0.0159]])
        >>> next_token_probabilities(logits, Sampling(temperature=0.5, top_k=2))
        tensor([[0.8808, 0.1192, 0.0000]])
    """
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    if sampling is None:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    if sampling.repetition_penalty != 1.0:
        if previous is None:
            raise ValueError(
                f"repetition_penalty is {sampling.repetition_penalty}, but previous is None: "
                f"pass the tokens seen so far, (batch, seq)"
            )
        logits = penalize_repetition(logits, previous, sampling.repetition_penalty)
    if sampling.temperature != 1.0:
        logits = apply_temperature(logits, sampling.temperature)
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p is not None:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p is not None:
        logits = keep_min_p(logits, sampling.min_p)
    return logits.softmax(-1)


def draw(probabilities: Float[Tensor, "batch vocab"], uniforms: Float[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """The token at which the cumulative probability passes a uniform number: one number in [0, 1) draws one token.

    torch.multinomial would need a random number per token of the vocabulary, and would give other tokens on a GPU than
    on a CPU. The sum runs in float64: in fp32, the rounding of 50,000 additions is larger than the rarest tokens.

    Args:
        probabilities: (batch, vocab); they need not sum to 1.
        uniforms: numbers in [0, 1), float64, (batch,).

    Returns:
        Token numbers, (batch,); never one with probability 0.
    """
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    thresholds = uniforms[:, None] * cumulative[:, -1:]
    # "right": a token of probability 0 has the same sum as the one before it, and is stepped over. Not finite
    # probabilities would lead behind the last token; whoever draws finds them by the token's log-probability.
    tokens = torch.searchsorted(cumulative, thresholds, right=True)
    return tokens[:, 0].clamp(max=probabilities.shape[-1] - 1)


def penalize_repetition(
    logits: Float[Tensor, "batch vocab"], previous: Int[Tensor, "batch seq"], penalty: float
) -> Float[Tensor, "batch vocab"]:
    """Logits of tokens seen before: divided by the penalty if positive, multiplied by it if negative.

    Args:
        logits: (batch, vocab).
        previous: tokens seen, (batch, seq), how often makes no difference; negative entries are padding.
        penalty: positive; above 1 it makes these tokens less likely.

    Raises:
        ValueError: if the penalty is not positive; TypeError if it is no number.
    """
    _check_repetition_penalty(penalty)
    # One column more than the vocabulary takes the padding in.
    columns = previous.long().where(previous >= 0, logits.shape[-1])
    seen = torch.zeros(logits.shape[0], logits.shape[-1] + 1, dtype=torch.bool, device=logits.device)
    seen.scatter_(1, columns, True)
    penalized = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(seen[:, :-1], penalized, logits)


def apply_temperature(logits: Float[Tensor, "batch vocab"], temperature: float) -> Float[Tensor, "batch vocab"]:
    """z / T, less a constant: the largest logit becomes 0, so that a small temperature cannot overflow.

    The ranking of tokens stays as it is. T → 0 leads to greedy decoding, T → ∞ to the uniform distribution.

    Raises:
        ValueError: if the temperature is below 1e-6, or infinite; TypeError if it is no number.
    """
    _check_temperature(temperature)
    return (logits - logits.amax(-1, keepdim=True)) / temperature


def keep_top_k(logits: Float[Tensor, "batch vocab"], top_k: int) -> Float[Tensor, "batch vocab"]:
    """Keep the k largest logits, exactly k, and set the others to -inf; k beyond the vocabulary keeps all.

    Raises:
        ValueError: if top_k is below 1; TypeError if it is no integer.
    """
    _check_top_k(top_k)
    if top_k >= logits.shape[-1]:
        return logits
    kth = logits.topk(top_k, dim=-1).values[:, -1:]
    above, ties = logits > kth, logits == kth
    # Ties with the k-th fill the places that are left, in the order of their numbers.
    kept = above | (ties & (ties.cumsum(-1) <= top_k - above.sum(-1, keepdim=True)))
    return logits.masked_fill(~kept, -math.inf)


def keep_top_p(logits: Float[Tensor, "batch vocab"], top_p: float) -> Float[Tensor, "batch vocab"]:
    """Keep the smallest set of tokens whose probabilities sum to at least p, and set the others to -inf.

    Sorted from likely to unlikely, a token stays if those *before* it do not reach p yet. So the token that crosses p
    is kept, and at least one token always is.

    Raises:
        ValueError: if top_p is not in (0, 1]; TypeError if it is no number.
    """
    _check_top_p(top_p)
    if top_p == 1.0:
        return logits
    ranked, order = logits.sort(dim=-1, descending=True, stable=True)
    kept_ranks = torch.ones_like(order, dtype=torch.bool)
    kept_ranks[:, 1:] = ranked.softmax(-1).cumsum(-1)[:, :-1] < top_p
    kept = torch.empty_like(kept_ranks).scatter_(-1, order, kept_ranks)  # back to the order of the vocabulary
    return logits.masked_fill(~kept, -math.inf)


def keep_min_p(logits: Float[Tensor, "batch vocab"], min_p: float) -> Float[Tensor, "batch vocab"]:
    """Keep tokens with at least `min_p` times the largest probability, and set the others to -inf.

    A ratio of probabilities is a difference of logits, so neither a softmax nor a sort is needed.

    Raises:
        ValueError: if min_p is not in [0, 1]; TypeError if it is no number.
    """
    _check_min_p(min_p)
    if min_p == 0.0:
        return logits
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(min_p), -math.inf)


def _check_number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
    return float(value)


def _check_temperature(value: object) -> None:
    number = _check_number("temperature", value)
    if not (math.isfinite(number) and number >= MIN_TEMPERATURE):
        raise ValueError(
            f"temperature must be a positive number (at least {MIN_TEMPERATURE:g}), got {value}: "
            f"for the limit of temperature 0 decode greedily, with sampling=None"
        )


def _check_repetition_penalty(value: object) -> None:
    number = _check_number("repetition_penalty", value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"repetition_penalty must be a positive number (1 does nothing), got {value}")


def _check_top_k(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"top_k must be an int, got {value!r} of type {type(value).__name__}")
    if value < 1:
        raise ValueError(f"top_k must be at least 1, got {value}: to keep all tokens, leave it None")


def _check_top_p(value: object) -> None:
    if not 0 < _check_number("top_p", value) <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, got {value}: to keep all tokens, leave it None")


def _check_min_p(value: object) -> None:
    if not 0 <= _check_number("min_p", value) <= 1:
        raise ValueError(f"min_p must be from 0 to 1, got {value}: to keep all tokens, leave it None")
