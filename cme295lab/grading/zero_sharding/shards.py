"""Part 1: the shard of a rank, and the way back from a flat vector to tensors. No processes yet."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from cme295lab.grading.compare import Expected, Hypothesis, judge_tensor
from cme295lab.grading.exercise import Property
from cme295lab.grading.observe import Observation, observe_call, refuse_function
from cme295lab.grading.result import Kind, Outcome

NAMES = ("shard_of", "unflatten")
_TIME_LIMIT_S = 5.0
_EVEN = "shards of a count that divides are right"
_RAGGED = "shards of a count that does not divide are right"
Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Some tensors, and the ranks that share them.

    Args:
        shapes: of the tensors.
        num_ranks: ranks.
        seed: of the values.
    """

    shapes: tuple[Shape, ...]
    num_ranks: int
    seed: int

    @property
    def num_elements(self) -> int:
        """Elements of all tensors."""
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def shard_elements(self) -> int:
        """Elements of a shard, rounded up."""
        return -(-self.num_elements // self.num_ranks)

    @property
    def text(self) -> str:
        """The input in words."""
        shapes = ", ".join(map(str, self.shapes))
        return f"tensors of {shapes}: {self.num_elements} elements for {self.num_ranks} ranks, seed {self.seed}"

    def tensors(self) -> list[Tensor]:
        """The tensors."""
        generator = torch.Generator().manual_seed(self.seed)
        return [torch.randn(shape, generator=generator) for shape in self.shapes]

    def flat(self) -> Tensor:
        """All of them in a row, padded."""
        row = torch.cat([tensor.flatten() for tensor in self.tensors()])
        return pad(row, (0, self.shard_elements * self.num_ranks - self.num_elements))


def properties(*, seed: int = 0, extra: int = 1) -> list[Property]:
    """What must hold for `(shard_of, unflatten)`.

    Args:
        seed: of the values.
        extra: elements of a bias that makes the count indivisible.
    """
    even = Case(shapes=((3, 4), (4,), (2, 4)), num_ranks=4, seed=seed)
    ragged = Case(shapes=((3, 5), (5, extra), (2,)), num_ranks=4, seed=seed)
    three = Case(shapes=((7,), (2, 3, extra)), num_ranks=3, seed=seed)
    few = Case(shapes=((2,), (1,)), num_ranks=4, seed=seed)
    return [
        _property(_EVEN, even, _shards, judge_shards),
        _property(_RAGGED, ragged, _shards, judge_shards, weight=2, needs=(_EVEN,)),
        _property("so they are for three ranks", three, _shards, judge_shards, needs=(_EVEN,)),
        _property("more ranks than elements work", few, _shards, judge_shards, needs=(_EVEN, _RAGGED)),
        _property("a shard holds no memory but its own", ragged, _shards, judge_memory, needs=(_RAGGED,)),
        _property("the way back gives the tensors", ragged, _back, judge_back, weight=2),
    ]


def refuse(student: Any) -> Outcome | None:
    """Say why these are not the two functions."""
    if not isinstance(student, tuple) or len(student) != len(NAMES):
        cause = f"hand over the two functions: ({', '.join(NAMES)})"
        return Outcome(name="there are two functions", kind=Kind.WRONG_SHAPE, cause=cause)
    refusals = [refuse_function(function, name) for function, name in zip(student, NAMES)]
    return refusals[0] if all(refusals) else None


def _property(
    name: str,
    case: Case,
    run: Callable[[Any, Case, list[Tensor]], Any],
    judge: Callable[[Case, Any], Outcome],
    weight: float = 1.0,
    needs: tuple[str, ...] = (),
) -> Property:
    def observe(student: Any) -> Observation:
        tensors = case.tensors()
        seen = observe_call(lambda: run(student, case, tensors), {}, _TIME_LIMIT_S)
        is_changed = not all(map(torch.equal, tensors, case.tensors()))
        return replace(seen, changed_inputs=("tensors",)) if is_changed else seen

    def judge_seen(seen: Observation) -> Outcome:
        return judge(case, seen.outputs["result"])

    return Property(name=name, observe=observe, judge=judge_seen, where=case.text, weight=weight, needs=needs)


def _shards(student: Any, case: Case, tensors: list[Tensor]) -> list[tuple[Any, int]]:
    """Each rank's shard, and the bytes that it keeps alive."""
    shards = [student[0](tensors, rank, case.num_ranks) for rank in range(case.num_ranks)]
    return [(shard, shard.untyped_storage().nbytes() if isinstance(shard, Tensor) else 0) for shard in shards]


def _back(student: Any, case: Case, tensors: list[Tensor]) -> Any:
    return student[1](case.flat(), tensors)


def judge_shards(case: Case, shards: Sequence[tuple[Any, int]]) -> Outcome:
    """Judge the shards of all ranks: equally long, and the right elements."""
    elements = case.shard_elements
    lengths = [shard.numel() if isinstance(shard, Tensor) else None for shard, _ in shards]
    if None not in lengths and len(set(lengths)) > 1:
        difference = f"the shards have {', '.join(map(str, lengths))} elements"
        cause = f"all shards must be equally long, {elements} elements here: pad the last one with zeros"
        return Outcome(name="", kind=Kind.WRONG_SHAPE, difference=difference, cause=cause)
    if None not in lengths and case.num_elements % case.num_ranks and lengths[0] == case.num_elements // case.num_ranks:
        difference = f"{case.num_ranks} shards of {lengths[0]} elements; there are {case.num_elements} elements"
        cause = "the last elements are in no shard: round the length of a shard up"
        return Outcome(name="", kind=Kind.WRONG_VALUE, difference=difference, cause=cause)
    for rank, (shard, _) in enumerate(shards):
        outcome = judge_tensor(
            shard,
            Expected(
                name=f"the shard of rank {rank}",
                value=case.flat().view(case.num_ranks, -1)[rank],
                dtype=torch.float32,
                allowed=0.0,
                mistakes=_mistakes(case, rank),
                explain=partial(_why_padding, case, rank),
            ),
        )
        if not outcome.passed:
            return outcome
    return Outcome(name="")


def _mistakes(case: Case, rank: int) -> Iterator[Hypothesis]:
    """What known mistakes give."""
    flat, num_ranks = case.flat(), case.num_ranks
    by_tensor = [
        pad(tensor.flatten(), (0, -tensor.numel() % num_ranks)).view(num_ranks, -1)[rank] for tensor in case.tensors()
    ]
    cause = "each tensor is cut by itself: lay them one after the other first, and cut the whole row"
    yield Hypothesis(cause, lambda: torch.cat(by_tensor))
    cause = "every N-th element is taken: a shard is a piece of neighbours, as reduce-scatter and all-gather have it"
    yield Hypothesis(cause, lambda: flat[rank::num_ranks])
    for other in range(num_ranks):
        if other != rank:
            cause = f"this is the shard of rank {other}"
            yield Hypothesis(cause, partial(flat.view(num_ranks, -1).__getitem__, other))
    num_padding = len(flat) - case.num_elements
    if num_padding:
        front = pad(flat[: case.num_elements], (num_padding, 0)).view(num_ranks, -1)[rank]
        yield Hypothesis("the padding stands in front: it belongs to the end", lambda: front)


def _why_padding(case: Case, rank: int, error: Tensor) -> str:
    """A cause, if only the padding is wrong."""
    num_used = max(0, case.num_elements - rank * case.shard_elements)
    return "" if error[:num_used].any() else "the padding must be zeros: it takes part in sums"


def judge_memory(case: Case, shards: Sequence[tuple[Any, int]]) -> Outcome:
    """Judge what a shard keeps alive."""
    needed = 4 * case.shard_elements
    most = max(num_bytes for _, num_bytes in shards)
    if most <= needed:
        return Outcome(name="")
    difference = f"a shard of {needed:,} bytes keeps {most:,} bytes alive"
    cause = (
        "the shard is a view of the row with everything in it, so the whole row stays in memory on every rank: copy "
        "the piece, with clone()"
    )
    return Outcome(name="", kind=Kind.NOT_SHARDED, difference=difference, cause=cause)


def judge_back(case: Case, got: Any) -> Outcome:
    """Judge the tensors that a flat vector gives."""
    tensors = case.tensors()
    if not isinstance(got, list | tuple) or len(got) != len(tensors):
        cause = f"return a list of {len(tensors)} tensors"
        return Outcome(name="", kind=Kind.WRONG_SHAPE, cause=cause)
    for index, (value, want) in enumerate(zip(got, tensors)):
        expected = Expected(name=f"tensor {index}", value=want, dtype=torch.float32, allowed=0.0)
        outcome = judge_tensor(value, expected)
        if not outcome.passed:
            return outcome
    return Outcome(name="")
