"""A small model with a tied weight, each rank's batches, and the gradients that must come out."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cme295lab.grading.compare import Expected, Hypothesis, allowed_error, diagnose, judge_tensor
from cme295lab.grading.distributed import collectives_called
from cme295lab.grading.observe import NOT_ATTEMPTED, RankFacts, is_stub
from cme295lab.grading.result import Kind, Outcome

Gradients = Mapping[str, Tensor]
VOCABULARY, WIDTH, NUM_LAYERS = 40, 16, 3
_SOME_NUMBERS_BYTES = 100  # token counts, padding
_SUMS = ("all_reduce", "reduce_scatter", "all_gather", "barrier", "broadcast")


class TinyModel(nn.Module):
    """Predicts a token from the one before; the head's weight is the embedding's.

    Args:
        has_branch: whether there is a layer that a batch may leave out.
    """

    def __init__(self, has_branch: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(NUM_LAYERS))
        if has_branch:
            self.branch = nn.Linear(WIDTH, WIDTH)
            self.last = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor, use_branch: bool = True) -> Tensor:
        """The scores of the next token, (tokens, vocabulary)."""
        x = self.embedding(tokens)
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        if hasattr(self, "branch"):
            x = x + torch.tanh(self.branch(x)) if use_branch else x
            x = torch.tanh(self.last(x))
        scores: Tensor = self.head(x)
        return scores


@dataclass(frozen=True, kw_only=True)
class Case:
    """A training step on several ranks.

    Args:
        seed: seeds the model and the batches.
        num_ranks: ranks.
        num_tokens: of each rank in each micro-batch.
        num_micro_batches: micro-batches of a step.
        num_steps: steps.
        bucket_bytes: size of a bucket, or 0 where there are none.
        without_branch: a rank whose batches leave a layer out, or None for a model without that layer.
        late: a rank that starts backward only when rank 0 has ended it, or None.
    """

    seed: int
    num_ranks: int
    num_tokens: tuple[int, ...]
    num_micro_batches: int = 1
    num_steps: int = 1
    bucket_bytes: int = 0
    without_branch: int | None = None
    late: int | None = None

    @property
    def text(self) -> str:
        """The input in words."""
        parts = [f"{self.num_ranks} ranks with {', '.join(map(str, self.num_tokens))} tokens, seed {self.seed}"]
        if self.num_micro_batches > 1:
            parts.append(f"{self.num_micro_batches} micro-batches")
        if self.bucket_bytes:
            parts.append(f"bucket_bytes={self.bucket_bytes}")
        if self.without_branch is not None:
            parts.append(f"rank {self.without_branch} does not use one layer")
        if self.late is not None:
            parts.append(f"rank {self.late} starts backward when rank 0 has ended it")
        return ", ".join(parts)

    def model(self) -> TinyModel:
        """The model, with the same weights on every rank; the global random state is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return TinyModel(has_branch=self.without_branch is not None)

    def loss(self, model: TinyModel, rank: int, step: int = 0, micro_batch: int = 0) -> Tensor:
        """The mean loss of one rank's micro-batch, divided by the number of micro-batches."""
        place = ((self.seed * 10 + rank) * 10 + step) * 10 + micro_batch
        generator = torch.Generator().manual_seed(place)
        tokens, targets = torch.randint(VOCABULARY, (2, self.num_tokens[rank]), generator=generator)
        scores = model(tokens, use_branch=rank != self.without_branch)
        return nn.functional.cross_entropy(scores, targets) / self.num_micro_batches

    @property
    def parameter_bytes(self) -> dict[str, int]:
        """Bytes of each parameter; a tied one once."""
        return {name: 4 * p.numel() for name, p in self.model().named_parameters()}

    def own_gradients(self, rank: int, step: int = 0, micro_batches: Sequence[int] = ()) -> Gradients:
        """What backward leaves on one rank, in float64; zeros for a layer that is not used."""
        return _own_gradients(self, rank, step, tuple(micro_batches) or tuple(range(self.num_micro_batches)))

    def weighted(self, weights: Sequence[float], step: int = 0, micro_batches: Sequence[int] = ()) -> Gradients:
        """The sum of all ranks' gradients, each times its weight."""
        own = [self.own_gradients(rank, step, micro_batches) for rank in range(self.num_ranks)]
        return {name: sum((w * g[name] for w, g in zip(weights, own)), torch.zeros(())) for name in own[0]}

    def mean(self, step: int = 0) -> Gradients:
        """The mean of all ranks' gradients."""
        return self.weighted([1 / self.num_ranks] * self.num_ranks, step)


@functools.lru_cache(maxsize=64)
def _own_gradients(case: Case, rank: int, step: int, micro_batches: tuple[int, ...]) -> Gradients:
    model = case.model().double()
    for micro_batch in micro_batches:
        case.loss(model, rank, step, micro_batch).backward()  # type: ignore[no-untyped-call]
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}


def gradients_of(model: nn.Module) -> dict[str, Tensor | None]:
    """The gradients as they are, copied."""
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def scaled(gradients: Gradients, factor: float) -> Gradients:
    """All gradients times a number."""
    return {name: factor * gradient for name, gradient in gradients.items()}


def judge_gradients(
    got: Mapping[str, Any],
    want: Gradients,
    mistakes: Iterable[tuple[str, Gradients]],
    own: Gradients,
    otherwise: str = "",
) -> Outcome:
    """Judge all gradients of one rank.

    Args:
        got: by name; None where there is no gradient.
        want: the right ones.
        mistakes: causes, and what they give.
        own: the rank's own gradients, before any communication.
        otherwise: the likely cause if no mistake matches.
    """
    missing = [name for name in want if got.get(name) is None]
    if missing:
        cause = f"there is no gradient of {missing[0]} on this rank: it must get the mean like all the others"
        return Outcome(name="", kind=Kind.WRONG_VALUE, cause=cause)
    allowed = allowed_error(torch.float32, max(float(g.abs().max()) for g in want.values()))
    outcomes = {
        name: judge_tensor(
            got[name],
            Expected(name=f"the gradient of {name}", value=want[name], dtype=torch.float32, allowed=allowed),
        )
        for name in want
    }
    failed = {name: outcome for name, outcome in outcomes.items() if not outcome.passed}
    first = next((o for o in failed.values() if o.kind is not Kind.WRONG_VALUE), None)
    if first is not None or not failed:
        return first or Outcome(name="")
    worst = max(failed, key=lambda name: float((got[name].double() - want[name]).abs().max()))
    hypotheses = [Hypothesis(cause, functools.partial(_flat, given)) for cause, given in mistakes]
    cause = (
        diagnose(_flat(got), _flat(want), hypotheses, allowed) or _left_alone(got, own, failed, allowed) or otherwise
    )
    return Outcome(name="", kind=Kind.WRONG_VALUE, difference=failed[worst].difference, cause=cause)


def _flat(gradients: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([gradient.flatten().double() for gradient in gradients.values()])


def _left_alone(got: Mapping[str, Tensor], own: Gradients, failed: Iterable[str], allowed: float) -> str:
    """Whether the wrong gradients are those that this rank has computed itself."""
    names = list(failed)
    if all(bool(((got[name].double() - own[name]).abs() <= allowed).all()) for name in names):
        return (
            f"the gradients of {', '.join(names)} are still this rank's own, and the others are right: a bucket was "
            "never sent. The last one need not be full; who sends it?"
        )
    return ""


def judge_bytes(case: Case, facts: RankFacts, phases: str = "") -> Outcome:
    """Judge what one rank sends in a step: 2 (N - 1) / N times the gradients, and a number or two.

    Args:
        case: the input.
        facts: of the rank.
        phases: how the names of the step's phases begin.
    """
    sizes, share = case.parameter_bytes, 2 * (case.num_ranks - 1) / case.num_ranks
    needed = share * sum(sizes.values())
    sent = sum(call.sent_bytes for call in facts.calls if call.phase.startswith(phases))
    if sent <= needed + _SOME_NUMBERS_BYTES:
        return Outcome(name="")
    difference = f"{sent:,.0f} bytes are sent in a step; 2 (N - 1) / N times the gradients are {needed:,.0f}"
    cause = f"the gradients travel {sent / needed:.2g} times: send each of them once"
    if abs(sent - needed - share * sizes["embedding.weight"]) <= _SOME_NUMBERS_BYTES:
        cause = "the tied weight is sent twice: the embedding and the head share it. model.parameters() gives it once"
    return Outcome(name="", kind=Kind.TOO_MUCH_COMMUNICATION, difference=difference, cause=cause)


def what_else_it_calls(facts: RankFacts) -> list[str]:
    """What a rank called besides collectives."""
    return collectives_called(facts, _SUMS, "write it yourself, with dist.all_reduce")


def refuse_class(student: Any, name: str, methods: Sequence[str]) -> Outcome | None:
    """Say why a student's class cannot be checked: it is none, lacks a method, or one is still a stub."""
    if not inspect.isclass(student):
        cause = f"hand over the class {name} itself, not an object of it"
        return Outcome(name="there is a class", kind=Kind.WRONG_SHAPE, cause=cause)
    lacking = [method for method in methods if not callable(getattr(student, method, None))]
    if lacking:
        cause = f"the class needs a method {lacking[0]}"
        return Outcome(name="the class has the methods of the stub", kind=Kind.WRONG_SHAPE, cause=cause)
    own: list[Callable[..., Any]] = [value for value in vars(student).values() if inspect.isfunction(value)]
    if any(is_stub(inspect.unwrap(method)) for method in own):
        return Outcome(name="the class is written", kind=NOT_ATTEMPTED.kind, cause=NOT_ATTEMPTED.cause)
    return None
