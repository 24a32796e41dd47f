"""Speculative decoding: a small draft proposes several tokens, the large model checks them all in one pass.

Decoding is bound by memory traffic: reading the weights for one token costs nearly as much as reading them for five.
So a draft model with distribution q proposes g tokens, one after the other, and the target model with distribution p
reads all of them at once. For each proposal x, from left to right:

    accept x with probability min(1, p(x) / q(x));
    at the first rejection draw from max(p - q, 0), renormalised, instead, and drop the proposals behind it;
    if all are accepted, the target's next distribution is there already: draw one more token from it.

The result has *exactly* the target's distribution. Token x comes out with probability

    q(x) min(1, p(x)/q(x)) + P(rejected) · max(p(x) - q(x), 0) / P(rejected) = min(p, q) + max(p - q, 0) = p(x)

because P(rejected) = 1 - Σ min(p, q) = Σ max(p - q, 0). Drawing from p itself after a rejection would give the draft's
favourites too often. p and q are what is sampled from: temperature, top-k and so on apply to both, and greedy decoding
is the case of all probability on one token: a proposal is accepted if it is the target's own choice.

If a is the probability that a proposal is accepted, Σ min(p, q) on average, and proposals are independent, a step of
one target pass gives (1 - a^(g+1)) / (1 - a) tokens.

Both models have a cache. What was rejected is taken back from both (`truncate`); the last token is always one that
neither has read, so a step begins with it. After a step in which all was accepted, the draft is one more token behind.

Source: Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding", algorithm 1, eq. 1 and
theorem 3.8; Chen et al. 2023, "Accelerating Large Language Model Decoding with Speculative Sampling", algorithm 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cme295lab.transformer.config import ModelConfig
from cme295lab.transformer.decoder import DecoderLM
from cme295lab.transformer.decoding.context import CacheKind, Context
from cme295lab.transformer.decoding.generation import random_numbers
from cme295lab.transformer.decoding.prompts import check_max_new_tokens, check_prompt, check_tokens, evaluation_mode
from cme295lab.transformer.decoding.sampling import Sampling, draw, next_token_probabilities


@dataclass(frozen=True, kw_only=True)
class SpeculativeResult:
    """What speculative decoding gave, and how well the draft proposed.

    Attributes:
        tokens: the new tokens, with the end token if it came.
        proposed: proposals of each step; a step is one pass of the target model.
        accepted: how many of them were accepted.
        seed: repeats the draws; None if decoding was greedy.
    """

    tokens: list[int]
    proposed: list[int]
    accepted: list[int]
    seed: int | None

    @property
    def num_steps(self) -> int:
        """Passes of the target model."""
        return len(self.accepted)

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a pass of the target model gave: its accepted proposals and one more."""
        return sum(accepted + 1 for accepted in self.accepted) / self.num_steps

    @property
    def acceptance_rate(self) -> float:
        """Accepted among the proposals that were looked at: those behind a rejection are not. NaN without any."""
        looked_at = sum(min(accepted + 1, proposed) for accepted, proposed in zip(self.accepted, self.proposed))
        return sum(self.accepted) / looked_at if looked_at else math.nan


def expected_tokens_per_step(acceptance_rate: float, num_draft: int) -> float:
    """(1 - a^(g+1)) / (1 - a) = 1 + a + a² + … + a^g: tokens that one pass of the target model gives.

    Raises:
        ValueError: if the rate is not in [0, 1], or num_draft is negative.

    Source: Leviathan et al. 2023, eq. 1; proposals are taken to be accepted independently of each other.

    Example:
        >>> round(expected_tokens_per_step(0.8, 4), 4), expected_tokens_per_step(1.0, 4)
        (3.3616, 5.0)
    """
    _check_rate(acceptance_rate)
    if num_draft < 0:
        raise ValueError(f"num_draft must be at least 0, got {num_draft}")
    return float(sum(acceptance_rate**power for power in range(num_draft + 1)))


def expected_speedup(acceptance_rate: float, num_draft: int, cost_ratio: float) -> float:
    """Times faster than the target model alone, if checking g + 1 tokens costs the target what one token does.

    Args:
        acceptance_rate: a, in [0, 1].
        num_draft: g, proposals of a step.
        cost_ratio: c, time of a pass of the draft over that of the target.

    Raises:
        ValueError: if a value is out of its range.

    Source: Leviathan et al. 2023, theorem 3.8: (1 - a^(g+1)) / ((1 - a) (g c + 1)).
    """
    if not cost_ratio >= 0:
        raise ValueError(f"cost_ratio must be at least 0, got {cost_ratio}")
    return expected_tokens_per_step(acceptance_rate, num_draft) / (num_draft * cost_ratio + 1)


def acceptance_probability(
    target: Float[Tensor, "*batch vocab"], draft: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch"]:
    """Σ min(p, q): how likely a proposal drawn from q is accepted; 1 less the total variation distance."""
    return torch.minimum(target, draft).sum(-1)


def accepts(
    target: Float[Tensor, "num_draft vocab"],
    draft: Float[Tensor, "num_draft vocab"],
    proposals: Int[Tensor, " num_draft"],
    uniforms: Float[Tensor, " num_draft"],
) -> Bool[Tensor, " num_draft"]:
    """Whether each proposal is accepted: u < p(x) / q(x), which is always so where p(x) >= q(x)."""
    p = target.gather(-1, proposals[:, None])[:, 0]
    q = draft.gather(-1, proposals[:, None])[:, 0]
    return uniforms * q < p


def residual(
    target: Float[Tensor, "*batch vocab"], draft: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch vocab"]:
    """max(p - q, 0), renormalised: what is drawn from after a rejection. Where p = q nothing is ever rejected: p."""
    surplus = (target - draft).clamp(min=0)
    total = surplus.sum(-1, keepdim=True)
    return torch.where(total > 0, surplus / total, target)


@torch.no_grad()
def speculate(
    model: DecoderLM,
    draft: DecoderLM,
    prompt: Sequence[int] | Int[Tensor, " seq"],
    *,
    max_new_tokens: int,
    num_draft: int = 4,
    sampling: Sampling | None = None,
    end_token: int | None = None,
    seed: int | None = None,
    cache: CacheKind | None = "static",
) -> SpeculativeResult:
    """Continue a prompt as the model would, helped by a draft: the same tokens if greedy, else the same distribution.

    Args:
        model: the target, whose distribution the result has.
        draft: a cheaper model with the same vocabulary.
        prompt: token numbers.
        max_new_tokens: most tokens to add.
        num_draft: proposals of a step; near the end fewer are made.
        sampling: how to draw, for both models; None is greedy.
        end_token: ends the answer.
        seed: of the draws, from 0; None takes one at random.
        cache: "static", "growing" or None: the same tokens, at other costs.

    Raises:
        TypeError, ValueError: if the vocabularies differ, the prompt does not fit both models, or an option is out of
            range.
    """
    _check_options(model.config, draft.config, max_new_tokens, num_draft, end_token)
    tokens = check_prompt(prompt, model.config, max_new_tokens)
    check_prompt(prompt, draft.config, max_new_tokens)
    # A step draws for each proposal whether it is accepted, each proposal, and the token behind them.
    uniforms, used_seed = random_numbers(seed, (max_new_tokens, 2 * num_draft + 1))
    num_prompt, end = len(tokens), len(tokens) + max_new_tokens
    target_context, draft_context = (Context(each, cache, batch_size=1, max_seq=end) for each in (model, draft))
    proposed: list[int] = []
    accepted: list[int] = []
    with evaluation_mode(model), evaluation_mode(draft):
        while len(tokens) < end:
            numbers = uniforms[len(proposed)]
            num_proposals = min(num_draft, end - len(tokens) - 1)  # a step adds one token more than that, at most
            proposals, q = _propose(draft_context, tokens, numbers[:num_proposals], sampling)
            p = _target_probabilities(target_context, tokens, proposals, sampling)
            new = _accept(p, q, proposals, numbers[num_draft:].to(p.device))
            proposed.append(num_proposals)
            accepted.append(len(new) - 1)
            if end_token in new:
                tokens += new[: new.index(end_token) + 1]
                break
            tokens += new
            for context in (target_context, draft_context):
                context.truncate(min(context.length, len(tokens) - 1))
    seed_or_none = used_seed if sampling is not None else None
    return SpeculativeResult(tokens=tokens[num_prompt:], proposed=proposed, accepted=accepted, seed=seed_or_none)


def _propose(
    context: Context, tokens: list[int], uniforms: Float[Tensor, " num_draft"], sampling: Sampling | None
) -> tuple[Int[Tensor, " num_draft"], Float[Tensor, "num_draft vocab"]]:
    """Tokens that the draft draws one after the other, and the distributions that it drew them from."""
    model = context.model
    device = model.embedding.weight.device
    history = torch.tensor(tokens, device=device)
    distributions: list[Tensor] = []
    for uniform in uniforms.to(device):
        logits = context.read(history[context.length :][None])[:, -1]
        distributions.append(next_token_probabilities(logits, sampling, history[None]))
        history = torch.cat((history, draw(distributions[-1], uniform[None])))
    if not distributions:
        return history[len(tokens) :], torch.empty(0, model.config.vocab_size, device=device)
    return history[len(tokens) :], torch.cat(distributions)


def _target_probabilities(
    context: Context, tokens: list[int], proposals: Int[Tensor, " num_draft"], sampling: Sampling | None
) -> Float[Tensor, "num_draft_and_one vocab"]:
    """The target's distributions at every proposal and behind the last: one pass of the model."""
    num = len(proposals) + 1
    history = torch.cat((torch.tensor(tokens, device=proposals.device), proposals))
    logits = context.read(history[context.length :][None], num_logits=num)[0]
    # Row i is about the token after i proposals: a repetition penalty must not see those behind.
    columns = torch.arange(len(history), device=history.device)
    seen = history.where(columns < len(tokens) + torch.arange(num, device=history.device)[:, None], -1)
    return next_token_probabilities(logits, sampling, seen)


def _accept(
    p: Float[Tensor, "num_draft_and_one vocab"],
    q: Float[Tensor, "num_draft vocab"],
    proposals: Int[Tensor, " num_draft"],
    uniforms: Float[Tensor, " numbers"],
) -> list[int]:
    """The proposals up to the first rejection, and one token more: the tokens of a step."""
    num_proposals = len(proposals)
    accepted = accepts(p[:-1], q, proposals, uniforms[:num_proposals])
    # Instead of the first that is rejected, a token from the residual; behind the last, one from the target itself.
    replacements = torch.cat((residual(p[:-1], q), p[-1:]))
    last = draw(replacements, uniforms[-1:].expand(num_proposals + 1))
    # One transfer to Python: which were accepted, what was proposed, what would replace each.
    packed = torch.cat((accepted.long(), proposals, last)).tolist()
    flags, instead = packed[:num_proposals], packed[2 * num_proposals :]
    num_accepted = flags.index(0) if 0 in flags else num_proposals
    return [*packed[num_proposals : num_proposals + num_accepted], instead[num_accepted]]


def _check_options(
    model: ModelConfig, draft: ModelConfig, max_new_tokens: int, num_draft: int, end_token: int | None
) -> None:
    if model.vocab_size != draft.vocab_size:
        raise ValueError(
            f"model and draft must have one vocabulary, got {model.vocab_size} tokens of {model.name!r} "
            f"and {draft.vocab_size} of {draft.name!r}"
        )
    if isinstance(num_draft, bool) or not isinstance(num_draft, int) or num_draft < 1:
        raise ValueError(f"num_draft must be an integer of at least 1, got {num_draft!r}")
    check_max_new_tokens(max_new_tokens)
    if end_token is not None:
        check_tokens([end_token], model, "end_token")


def _check_rate(rate: float) -> None:
    if not 0 <= rate <= 1:
        raise ValueError(f"acceptance_rate must be from 0 to 1, got {rate}")
