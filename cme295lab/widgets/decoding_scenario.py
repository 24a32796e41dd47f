"""What temperature, top-k, top-p and min-p make of a model's next-token distribution, as typed records.

The steps are those of `cme295lab.transformer.decoding.sampling`, applied to the logits of one forward pass. Only the
likeliest tokens get a bar; what the others have together is kept, so that the bars and the rest sum to one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cme295lab.transformer.decoding import Sampling, next_token_probabilities

NUM_BARS = 20
_VISIBLE = str.maketrans({" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"})


@dataclass(frozen=True, kw_only=True)
class TokenChance:
    """A token and its probability.

    Attributes:
        token: its number.
        text: its text, blanks made visible.
        before: what the model gives it.
        after: what it is drawn with; 0 where a step cut it off.
    """

    token: int
    text: str
    before: float
    after: float

    @property
    def kept(self) -> bool:
        return self.after > 0


@dataclass(frozen=True, kw_only=True)
class DecodingScenario:
    """A next-token distribution before and after reshaping.

    Attributes:
        sampling: the steps; None is greedy.
        chances: the likeliest tokens by the model, best first.
        rest_before, rest_after: probability of all other tokens together.
        entropy_before_nats, entropy_after_nats: of the whole distributions.
        num_kept: tokens that can still be drawn.
        vocab_size: tokens that there are.
    """

    sampling: Sampling | None
    chances: tuple[TokenChance, ...]
    rest_before: float
    rest_after: float
    entropy_before_nats: float
    entropy_after_nats: float
    num_kept: int
    vocab_size: int


def decoding_scenario(
    logits: Float[Tensor, " vocab"],
    sampling: Sampling | None,
    *,
    token_text: Callable[[int], str],
    num_bars: int = NUM_BARS,
) -> DecodingScenario:
    """Reshape a distribution and describe it.

    Args:
        logits: of the next token, (vocab,).
        sampling: temperature, top-k, top-p, min-p; None is greedy. A repetition penalty needs a history: 1 here.
        token_text: text of a token by its number.
        num_bars: how many of the likeliest tokens to list.

    Raises:
        ValueError: if num_bars is below 1, or the sampling asks for a repetition penalty.
    """
    if num_bars < 1:
        raise ValueError(f"num_bars must be at least 1, got {num_bars}")
    row = logits[None].double()  # sums over 50,000 tokens
    before = next_token_probabilities(row, Sampling())[0]
    after = next_token_probabilities(row, sampling)[0]
    # Stable, so that of equal tokens the one with the smaller number comes first, as in top-k.
    best = before.sort(descending=True, stable=True).indices[:num_bars]
    chances = tuple(
        TokenChance(token=token, text=visible(token_text(token)), before=p, after=q)
        for token, p, q in zip(best.tolist(), before[best].tolist(), after[best].tolist(), strict=True)
    )
    return DecodingScenario(
        sampling=sampling,
        chances=chances,
        rest_before=max(0.0, 1 - sum(chance.before for chance in chances)),
        rest_after=max(0.0, 1 - sum(chance.after for chance in chances)),
        entropy_before_nats=entropy_nats(before),
        entropy_after_nats=entropy_nats(after),
        num_kept=int((after > 0).sum()),
        vocab_size=len(logits),
    )


def entropy_nats(probabilities: Float[Tensor, " vocab"]) -> float:
    """-Σ p ln p: how undecided a distribution is; 0 if one token has it all, ln(vocab) if all are equal."""
    return float(torch.special.entr(probabilities).sum())


def visible(text: str) -> str:
    """A token's text with blanks and line ends that can be seen."""
    return text.translate(_VISIBLE) or "∅"
