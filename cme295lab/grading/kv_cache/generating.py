"""Part 3: greedy generation with a cache; the model counts the tokens that it reads.

The model is a real decoder with random weights. The tokens must be those of generation without a cache, and the model
must have read each token once: the prompt in one call, then one token per call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cme295lab.grading.exercise import Once, Property
from cme295lab.grading.observe import Observation, refuse_function
from cme295lab.grading.observe_plainly import observe_plainly
from cme295lab.grading.result import Kind, Outcome
from cme295lab.transformer.config import ModelConfig
from cme295lab.transformer.decoder import DecoderLM
from cme295lab.transformer.kv_cache import GrowingCache

_CONFIG = ModelConfig(
    name="checked", vocab_size=23, num_layers=2, dim=16, num_heads=4, num_kv_heads=2, mlp_dim=24, max_seq=256
)


@functools.cache
def _decoder(seed: int) -> DecoderLM:
    """A random model that is sure of what it says, and whose next token depends on all before it."""
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = DecoderLM(_CONFIG).double().eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:  # sharp attention, whose result matters: otherwise the text soon repeats one token
            sharp = any(part in name for part in ("query", "key", "attention.out"))
            torch.nn.init.normal_(parameter, std=0.9 if sharp else 0.3)
    torch.nn.init.normal_(model.embedding.weight, std=0.5)
    torch.set_rng_state(state)
    return model


@dataclass
class CountingModel:
    """What the student's loop calls: `model(tokens, cache) -> logits`.

    Attributes:
        seed: of its weights.
        calls: (tokens read, tokens held before) of each call.
    """

    seed: int
    calls: list[tuple[int, int]] = field(default_factory=list)

    def __call__(self, tokens: Any, cache: GrowingCache | None = None) -> Tensor:
        """Logits of the token that follows each of these, (seq, vocab)."""
        row = torch.as_tensor(tokens)
        if row.ndim != 1 or row.is_floating_point() or not len(row):
            raise ValueError(f"model reads a list of at least one token number, got {tokens!r}")
        self.calls.append((len(row), cache.length if cache is not None else 0))
        with torch.no_grad():
            logits: Tensor = _decoder(self.seed)(row[None].long(), cache=cache)[0]
        return logits

    @staticmethod
    def new_cache() -> GrowingCache:
        """An empty cache for one sequence."""
        return GrowingCache(_CONFIG, batch_size=1, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call of the student's function.

    Args:
        seed: of the model.
        prompt: tokens.
        num_tokens: to be written.
        end_token: ends the text; None if nothing does.
    """

    seed: int
    prompt: tuple[int, ...]
    num_tokens: int
    end_token: int | None = None

    @property
    def where(self) -> str:
        """The input in words."""
        return (
            f"a prompt of {len(self.prompt)} tokens, num_tokens={self.num_tokens}, end_token={self.end_token}, "
            f"model seed {self.seed}"
        )

    def tokens(self, choose: Callable[[Tensor, int], int] | None = None) -> list[int]:
        """The text that the model writes without a cache; `choose(logits of all positions, new tokens so far)`."""
        pick = choose or (lambda logits, _: int(logits[-1].argmax()))
        model, found = CountingModel(self.seed), list(self.prompt)
        for number in range(self.num_tokens):
            found.append(pick(model(found), number))
            if found[-1] == self.end_token:
                break
        return found[len(self.prompt) :]


def properties(*, seed: int = 0, prompt: int = 9, num_tokens: int = 12) -> list[Property]:
    """What must hold for `generate(model, new_cache, prompt, num_tokens, end_token) -> tokens`.

    Args:
        seed: of the model and the prompt.
        prompt: its length.
        num_tokens: to be written.
    """
    generator = torch.Generator().manual_seed(seed)
    row = tuple(torch.randint(_CONFIG.vocab_size, (prompt,), generator=generator).tolist())
    case = Case(seed=seed, prompt=row, num_tokens=num_tokens)
    text = case.tokens()
    end = max(text, key=text.index)  # the one that comes up last
    ending = Case(seed=seed, prompt=row, num_tokens=num_tokens, end_token=end)
    values = "the tokens are those of generation without a cache"
    observe = Once(partial(_observe, case))
    return [
        Property(name=values, observe=observe, judge=partial(_judge_tokens, case), where=case.where, weight=2),
        Property(
            name="the prompt is read in one call", observe=observe, judge=partial(_judge_prompt, case),
            where=case.where, needs=(values,),
        ),
        Property(
            name="after the prompt, each call reads one token", observe=observe, judge=partial(_judge_reading, case),
            where=case.where, weight=2, needs=(values,),
        ),
        Property(
            name="the end token ends the text, and is its last", observe=partial(_observe, ending),
            judge=partial(_judge_tokens, ending), where=ending.where, needs=(values,),
        ),
        Property(
            name="one token after a prompt of one works", where="a prompt of 1 token, num_tokens=1",
            observe=partial(_observe, Case(seed=seed, prompt=(5,), num_tokens=1)),
            judge=partial(_judge_tokens, Case(seed=seed, prompt=(5,), num_tokens=1)), needs=(values,),
        ),
    ]  # fmt: skip


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "generate")


def _observe(case: Case, student: Callable[..., Any]) -> Observation:
    model, prompt = CountingModel(case.seed), list(case.prompt)
    seen = observe_plainly(lambda: student(model, model.new_cache, prompt, case.num_tokens, case.end_token), {})
    if seen.error is not None:
        return seen
    changed = ("prompt",) if prompt != list(case.prompt) else ()
    return Observation(outputs={**seen.outputs, "calls": tuple(model.calls)}, changed_inputs=changed)


def _judge_tokens(case: Case, seen: Observation) -> Outcome:
    got = seen.outputs["result"]
    if isinstance(got, Tensor):
        got = got.tolist()
    if not isinstance(got, list | tuple) or any(isinstance(x, bool) or not isinstance(x, int) for x in got):
        cause = f"return a list of token numbers, not {type(got).__name__} {str(got)[:60]}"
        return Outcome(name="", kind=Kind.WRONG_SHAPE, cause=cause)
    want = case.tokens()
    if list(got) == want:
        return Outcome(name="")
    cause = _cause(case, list(got), want, seen.outputs["calls"])
    return Outcome(name="", kind=Kind.WRONG_VALUE, difference=f"expected {want}, got {list(got)}", cause=cause)


def _cause(case: Case, got: list[int], want: list[int], calls: Sequence[tuple[int, int]]) -> str:
    """Name the mistake: by the text that it gives, then by what the model was told to read."""
    prompt = list(case.prompt)
    if got == prompt + want:
        return "the prompt is in the result: return the new tokens alone"
    if case.end_token is not None:
        longer = Case(seed=case.seed, prompt=case.prompt, num_tokens=case.num_tokens).tokens()
        if got == longer:
            return "the end token does not end the text"
        if got == want[:-1]:
            return "the end token is missing: it is the last token of the text"
    if got == want[:-1] or (len(got) == len(want) + 1 and got[:-1] == want):
        return f"{len(got)} tokens, and {len(want)} are asked for"
    if got == want[1:] or (got[:-1] == want[1:] and len(got) == len(want)):
        return "the first new token is missing: it comes from the prompt's last logits"
    if got == case.tokens(lambda logits, number: int(logits[-1 if number else 0].argmax())):
        return "logits of the first position are used: the last one says what follows"
    held = [before for _, before in calls]
    read = [size for size, _ in calls]
    if len(calls) > 1 and any(held) and read[1] > 1:
        return "tokens are read again that the cache holds already: they are then in it twice, at wrong positions"
    if len(calls) > 1 and not any(held) and max(read[1:]) == 1:
        return "each call has a new cache, or none: the model sees a single token. Make one cache, before the loop"
    if calls and calls[0] == (1, 0) and len(prompt) > 1:
        return "the model has not read the whole prompt"
    if got == case.tokens(lambda logits, _: int(logits[-1].argmin())):
        return "the least likely token is chosen"
    return ""


def _judge_prompt(case: Case, seen: Observation) -> Outcome:
    calls = seen.outputs["calls"]
    if calls[0][0] == len(case.prompt):
        return Outcome(name="")
    difference = f"the first call read {calls[0][0]} of {len(case.prompt)} tokens"
    cause = "the prompt is read in pieces: one call reads it all, at the price of reading the weights once"
    return Outcome(name="", kind=Kind.WRONG_ROUTE, difference=difference, cause=cause)


def _judge_reading(case: Case, seen: Observation) -> Outcome:
    """The tokens read against the fewest possible; the last token may be read, though nothing follows it."""
    read = [size for size, _ in seen.outputs["calls"]]
    fewest = len(case.prompt) + case.num_tokens - 1
    if sum(read) <= fewest + 1:
        return Outcome(name="")
    without = sum(len(case.prompt) + number for number in range(case.num_tokens))
    difference = f"the model read {sum(read)} tokens; {fewest} are enough, without a cache it is {without}"
    cause = "tokens are read that it has read before: with the cache, each call reads the newest token alone"
    if sum(read) >= without:
        cause = "the whole text is read again for each token: hand over a cache, and the newest token alone"
    return Outcome(name="", kind=Kind.WRONG_ROUTE, difference=difference, cause=cause)
