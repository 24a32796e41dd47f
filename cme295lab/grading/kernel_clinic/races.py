"""Part 2: the gradient of an embedding, where several programs want to write the same row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from cme295lab.grading.compare import Expected, Hypothesis, allowed_error, judge_tensor
from cme295lab.grading.exercise import Property
from cme295lab.grading.kernel_clinic import launches
from cme295lab.grading.kernel_clinic.launches import Student
from cme295lab.grading.observe import LaunchFacts, Observation
from cme295lab.grading.result import Kind, Outcome

MAX_SHARE = 0.5  # of all bytes: with more, one program does most of the work
_REPEATS = "words that repeat get the gradient of all their tokens, without a race"
_PARAMETERS = ("ids_ptr", "dy_ptr", "dw_ptr", "num_tokens", "num_rows", "dim")

refuse = partial(launches.refuse, parameters=_PARAMETERS)


@dataclass(frozen=True)
class Case:
    """One embedding gradient.

    Args:
        ids: the row that each token took, (tokens,).
        dy: (tokens, dim), float32.
        num_rows: rows of the table.
        text: the input in words.
    """

    ids: Tensor
    dy: Tensor
    num_rows: int
    text: str

    @property
    def expected(self) -> Tensor:
        """The sum over the tokens of each row, float64."""
        return torch.zeros(self.num_rows, self.dy.shape[1], dtype=torch.float64).index_add(
            0, self.ids, self.dy.double()
        )


def properties(*, seed: int = 0, tokens: int = 64, rows: int = 8, dim: int = 128) -> list[Property]:
    """What must hold for `(embedding_grad_kernel, embedding_grad_grid)`.

    Args:
        seed: seeds the random inputs.
        tokens: how many tokens.
        rows: rows of the table; fewer than tokens, so that words repeat.
        dim: width of the table, at most 128.
    """
    generator = torch.Generator().manual_seed(seed)

    def case(ids: Tensor, num_rows: int, dim: int, note: str) -> Case:
        dy = torch.randn(len(ids), dim, generator=generator)
        text = f"{len(ids)} tokens, {num_rows} rows, dim {dim}, {note}, seed {seed}"
        return Case(ids, dy, num_rows, text)

    repeats = case(torch.randint(rows - 1, (tokens,), generator=generator), rows, dim, "the last row never taken")
    same = case(torch.full((tokens // 2,), 1), 3, dim, "every token takes row 1")
    distinct = case(torch.randperm(rows * 2, generator=generator)[:rows], rows * 2, dim // 2 - 3, "no row twice")
    one = case(torch.tensor([2]), 5, 1, "a single token")
    needs = (_REPEATS,)
    return [
        _property(_REPEATS, repeats, judge_race, weight=3.0),
        _property("a word that takes all tokens works", same, judge_race, needs=needs),
        _property("many programs share the work", repeats, judge_parallel, weight=2.0, needs=needs),
        _property("words that do not repeat, and other widths, work", distinct, judge_values, needs=needs),
        _property("a single token works", one, judge_values, needs=needs),
    ]


def _property(
    name: str,
    case: Case,
    judge: Callable[[Case, Observation], Outcome],
    *,
    weight: float = 1.0,
    needs: tuple[str, ...] = (),
) -> Property:
    def observe(student: Student) -> Observation:
        dw = torch.zeros(case.num_rows, case.dy.shape[1])
        tensors = {"ids": case.ids, "dy": case.dy, "dw": dw}
        numbers = (len(case.ids), case.num_rows, case.dy.shape[1])
        return launches.observe_launch(student, tensors, numbers, output="dw", find_races=judge is not judge_values)

    return Property(name=name, observe=observe, judge=partial(judge, case), where=case.text, weight=weight, needs=needs)


def judge_race(case: Case, seen: Observation) -> Outcome:
    """Judge races first, since they explain wrong values, then the values."""
    if seen.launch is not None and seen.launch.races:
        return Outcome(name="", kind=Kind.RACE, difference=seen.launch.races[0], cause=_race_cause(seen.launch))
    return judge_values(case, seen)


def _race_cause(launch: LaunchFacts) -> str:
    kinds = {access.kind for access in launch.accesses if access.tensor == "dw"}
    if "atomic" in kinds:
        return (
            "dw is updated by atomics in one line and loaded or stored plainly in another: the plain access races with "
            "the atomic one. Use the atomic alone"
        )
    if kinds == {"store"}:
        return "several tokens of one word store their own gradient, and only one of them stays: add them"
    return (
        "between the load and the store of a row, another program loads the same row, and one of the two additions is "
        "lost: use tl.atomic_add, or let only one program write a row. Barriers do not help: they order the threads of "
        "one program"
    )


def judge_values(case: Case, seen: Observation) -> Outcome:
    """Judge the gradient."""
    most = int(torch.bincount(case.ids).max())
    expected = Expected(
        name="dw",
        value=case.expected,
        dtype=torch.float32,
        allowed=allowed_error(torch.float32, most**0.5 * float(case.dy.abs().max())),
        mistakes=_mistakes(case),
    )
    return judge_tensor(seen.outputs["dw"], expected)


def _mistakes(case: Case) -> list[Hypothesis]:
    """What known mistakes give."""
    dy, ids = case.dy.double(), case.ids
    counts = torch.bincount(ids, minlength=case.num_rows)[:, None]
    zeros = torch.zeros_like(case.expected)

    def reduced(how: str) -> Tensor:
        rows = ids[:, None].expand_as(dy)
        return zeros.scatter_reduce(0, rows, dy, how, include_self=True)

    def last() -> Tensor:
        result = zeros.clone()
        for row, gradient in zip(ids.tolist(), dy):
            result[row] = gradient
        return result

    return [
        Hypothesis("only the last token of each word counts: the others are overwritten", last),
        Hypothesis("this is the largest gradient of each word, not the sum", lambda: reduced("amax")),
        Hypothesis("every token is added twice", lambda: 2 * case.expected),
        Hypothesis("this is the mean over the tokens of a word, not the sum", lambda: case.expected / counts.clamp(1)),
        Hypothesis("every row gets all tokens: does ids decide?", lambda: zeros + dy.sum(0)),
        Hypothesis("the sign is wrong", lambda: -case.expected),
        Hypothesis("this counts the tokens of each word: add dy, not 1", lambda: zeros + counts),
    ]


def judge_parallel(case: Case, seen: Observation) -> Outcome:
    """Judge whether the work is divided among programs."""
    outcome = judge_race(case, seen)
    if not outcome.passed or seen.launch is None:
        return outcome
    if seen.launch.largest_share <= MAX_SHARE:
        return outcome
    share, programs = seen.launch.largest_share, seen.launch.num_programs
    difference = f"of {programs} program{'s' if programs > 1 else ''}, one moves {share:.0%} of all bytes"
    cause = (
        "one program does the work of all, so there is nobody to race with, and the other SMs idle: divide the work by "
        "tokens (with atomics), by rows or by columns"
    )
    return Outcome(name="", kind=Kind.NOT_PARALLEL, difference=difference, cause=cause)
