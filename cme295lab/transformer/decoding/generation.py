"""Token by token: read the prompts, choose a token for every row, read what was chosen, and so on.

    prompts ─ read ─ logits of the last position ─ choose ─┬─ append
                 ^                                         │
                 └───────── the chosen token alone ────────┘

Choosing is `argmax` (greedy: no softmax, no sort) or a draw from `next_token_probabilities`. The loop adds as little to
the model's own time as it can: tensors for all new tokens exist from the start, all random numbers are drawn before the
first token, and tokens come back to Python once a step, or not before the end if nothing there depends on them.

Seeds. The numbers come from a generator of this call alone, on the CPU whatever the model runs on. Row i uses its own
row of numbers, so the answer to a prompt does not depend on the answers next to it.

Stopping. A row is finished by its end token, by a stop sequence (any number of tokens, within the new ones), or by
`max_new_tokens`. Rows that are finished are computed along until all are; what they would say is dropped.

Source: greedy and sampling as in Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", section 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cme295lab.transformer.decoder import DecoderLM
from cme295lab.transformer.decoding.context import CacheKind, Context
from cme295lab.transformer.decoding.endings import Endings, Finished
from cme295lab.transformer.decoding.prompts import check_prompts, evaluation_mode, pad_left
from cme295lab.transformer.decoding.sampling import Sampling, draw, next_token_probabilities


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What was generated, by row.

    Attributes:
        tokens: the new tokens, with the end token or stop sequence that finished the row.
        finished: "end" (the end token came), "stop" (a stop sequence did) or "length" (max_new_tokens were made).
        log_probabilities: of each new token by the model itself (not as reshaped by the sampling); their sum is the
            log-likelihood of the row.
        seed: repeats the draws; None if decoding was greedy.
        num_ending_tokens: how many of a row's last tokens are its end token or stop sequence.
    """

    tokens: list[list[int]]
    finished: list[Finished]
    log_probabilities: list[list[float]]
    seed: int | None
    num_ending_tokens: list[int]

    @property
    def content(self) -> list[list[int]]:
        """The new tokens without what finished the row: what a reader wants to see."""
        return [row[: len(row) - ending] for row, ending in zip(self.tokens, self.num_ending_tokens)]


@torch.no_grad()
def generate(
    model: DecoderLM,
    prompts: Sequence[Sequence[int]] | Int[Tensor, "batch seq"],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop: Sequence[Sequence[int]] = (),
    end_token: int | None = None,
    seed: int | None = None,
    cache: CacheKind | None = "static",
    on_token: Callable[[int, int], None] | None = None,
) -> Generation:
    """Continue prompts, greedily or by sampling.

    Args:
        model: in any mode; dropout is off within.
        prompts: lists of token numbers, of different lengths if you like, or a tensor (batch, seq).
        max_new_tokens: most tokens to add to each.
        sampling: how to draw; None takes the most likely token (greedy).
        stop: sequences of tokens; a row is finished once its new tokens end with one of them.
        end_token: a row is finished once this token comes.
        seed: of the draws, from 0; None takes one at random (it is in the result). Greedy decoding needs none.
        cache: "static", "growing" or None (everything is read again at each token): the same tokens, at other costs.
        on_token: called with (row, token) as soon as a token is known, for rows that go on.

    Returns:
        The new tokens and why they ended.

    Raises:
        TypeError: if prompts are no token numbers.
        ValueError: if a prompt is empty, unknown to the model, or too long for its context together with
            max_new_tokens; if a stop sequence is empty; if the model gives logits that are not finite.

    Source: the rules of `transformers.generate`, token for token when greedy.
    """
    rows = check_prompts(prompts, model.config, max_new_tokens)
    endings = Endings(len(rows), stop, end_token, model.config)
    tokens, left_padding = pad_left(rows, model.embedding.weight.device)
    choose = _Chooser(tokens, left_padding, sampling, seed, max_new_tokens)
    room = tokens.shape[1] + max_new_tokens
    context = Context(model, cache, batch_size=len(rows), max_seq=room, left_padding=left_padding)
    with evaluation_mode(model):
        for _ in range(max_new_tokens):
            chosen = choose(context.read(tokens)[:, -1])
            if (endings.matter or on_token) and endings.add(chosen.tolist(), on_token):
                break
            tokens = chosen[:, None]
    return _collect(choose, endings)


class _Chooser:
    """Chooses the next token of each row, and keeps what was chosen."""

    def __init__(
        self,
        prompts: Int[Tensor, "batch seq"],
        left_padding: Int[Tensor, " batch"] | None,
        sampling: Sampling | None,
        seed: int | None,
        max_new_tokens: int,
    ) -> None:
        batch_size, self.width = prompts.shape
        device = prompts.device
        self.sampling = sampling
        self.step = 0
        self.log_probabilities = torch.zeros(batch_size, max_new_tokens, device=device)
        # Prompt and answer side by side; -1 is what a repetition penalty does not see.
        self.history = torch.full((batch_size, self.width + max_new_tokens), -1, device=device)
        self.history[:, : self.width] = prompts
        if left_padding is not None:
            columns = torch.arange(self.width, device=device)
            self.history[:, : self.width].masked_fill_(columns < left_padding[:, None], -1)
        self.seed = None
        if sampling is not None:
            uniforms, self.seed = random_numbers(seed, (batch_size, max_new_tokens))
            self.uniforms = uniforms.to(device)

    def __call__(self, logits: Float[Tensor, "batch vocab"]) -> Int[Tensor, " batch"]:
        logits = logits.float()
        if self.sampling is None:
            chosen = logits.argmax(-1)
        else:
            probabilities = next_token_probabilities(logits, self.sampling, self.history)
            chosen = draw(probabilities, self.uniforms[:, self.step])
        log_probability = logits.gather(-1, chosen[:, None])[:, 0] - logits.logsumexp(-1)
        self.log_probabilities[:, self.step] = log_probability
        self.history[:, self.width + self.step] = chosen
        self.step += 1
        return chosen


def random_numbers(seed: int | None, shape: tuple[int, ...]) -> tuple[Tensor, int]:
    """Uniform numbers in [0, 1) in float64, and the seed that repeats them.

    Raises:
        TypeError: if the seed is no integer; ValueError if it is negative.
    """
    generator = torch.Generator()
    if seed is None:
        seed = generator.seed()
    elif isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an int or None, got {seed!r} of type {type(seed).__name__}")
    elif seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    return torch.rand(shape, generator=generator.manual_seed(seed), dtype=torch.float64), seed


def _collect(choose: _Chooser, endings: Endings) -> Generation:
    num_steps = choose.step
    new_tokens = choose.history[:, choose.width : choose.width + num_steps].tolist()
    log_probabilities = choose.log_probabilities[:, :num_steps].tolist()
    lengths = [num_steps if length is None else length for length in endings.lengths]
    for row, (length, values) in enumerate(zip(lengths, log_probabilities)):
        for step, value in enumerate(values[:length]):
            if not math.isfinite(value):
                raise ValueError(f"the model's logits for new token {step} of row {row} are not finite numbers")
    return Generation(
        tokens=[row[:length] for row, length in zip(new_tokens, lengths)],
        finished=list(endings.finished),
        log_probabilities=[row[:length] for row, length in zip(log_probabilities, lengths)],
        seed=choose.seed,
        num_ending_tokens=list(endings.num_ending_tokens),
    )
