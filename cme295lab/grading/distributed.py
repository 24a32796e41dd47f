"""Run a student's distributed code on several real processes and record what each rank returned, sent and held.

`observe_ranks` runs a scenario (see `on_rank`) on 2 to 4 ranks. Whatever happens there becomes an `Observation`: a
crash with its rank and the student's line, a deadlock with the place where each rank waits, and otherwise the facts of
all ranks. A judge sees plain data only.

    on_four = scene(scenario, four)  # one run, judged twice; `four` is a case: it has num_ranks and a text
    rank_property("the sums are right", four, on_four, judge_sums)
    rank_property("each rank sends 3/4 of the tensor", four, on_four, on_each(judge_traffic, four))
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from cme295lab.grading.exercise import Once, Property
from cme295lab.grading.observe import Observation, RankFacts, StudentError, quiet
from cme295lab.grading.on_rank import Scenario, Signs, run_scenario
from cme295lab.grading.result import Kind, Outcome
from cme295lab.parallel import DistributedError, run_distributed

TIME_LIMIT_S = 30.0

_SENDS_FIRST = (
    "every rank sends first, and a blocking send returns only when the other side receives: nobody ever gets there. "
    "Use isend and irecv, and wait for both afterwards"
)
_RECEIVES_FIRST = "every rank waits for a message that nobody has sent yet: send (isend) before you wait for a message"
_SOME_RETURNED = (
    "a collective needs every rank of the group: those that have returned never called the one in which the others wait"
)
_DIFFERENT_PLACES = "a collective needs every rank, and all of them call the same ones in the same order"
_SIZES_DIFFER = "the two sides of a message disagree about its size: both must take the same chunk"


def observe_ranks(
    scenario: Scenario,
    student: Any,
    *,
    num_ranks: int,
    inputs: Mapping[str, Any],
    time_limit_s: float | None = None,
    deadlock: str = "",
    forbid: Callable[[RankFacts], Iterable[str]] = lambda facts: (),
) -> Observation:
    """Run the student's code on several ranks.

    Args:
        scenario: runs on every rank: `scenario(probe, student, **inputs)`; a function of a module of the library.
        student: the student's function, class, or a tuple of them; it may come from a notebook cell.
        num_ranks: how many processes.
        inputs: plain arguments of the scenario, the same on every rank.
        time_limit_s: for the whole run, in s; `TIME_LIMIT_S` if None.
        deadlock: the likely cause of a deadlock in this scenario; if empty, what the places tell.
        forbid: names what a rank must not have called, each as a sentence; see `collectives_called`.

    Returns:
        The observation; `ranks` has the facts of each rank unless `error` says why there are none.
    """
    limit_s = TIME_LIMIT_S if time_limit_s is None else time_limit_s
    with tempfile.TemporaryDirectory(prefix="cme295lab-", ignore_cleanup_errors=True) as folder:
        arguments = (scenario, student, dict(inputs), folder)
        try:
            with quiet():
                ranks = run_distributed(
                    run_scenario, num_ranks, *arguments, backend="gloo", timeout_s=limit_s, progress=False
                )
        except DistributedError as error:
            return Observation(error=_explain(error, Signs(folder=Path(folder)), num_ranks, deadlock))
        except TypeError as error:
            cause = "your code is sent to other processes: what it refers to must be a tensor, a number, text or code"
            return Observation(error=StudentError(Kind.CRASHED, f"{type(error).__name__}: {error}", cause))
    return Observation(
        forbidden=tuple(dict.fromkeys(text for facts in ranks for text in forbid(facts))),
        changed_inputs=tuple(dict.fromkeys(name for facts in ranks for name in facts.changed_inputs)),
        ranks=tuple(ranks),
    )


def collectives_called(facts: RankFacts, allowed: Iterable[str], instead: str) -> list[str]:
    """Name the calls of torch.distributed that the exercise does not allow; for `forbid`.

    Args:
        facts: of one rank.
        allowed: collectives that may be called, such as "send" and "recv".
        instead: what to do instead.

    Returns:
        A sentence for each line that calls another one, or that lets the course's library do the work.
    """
    sentences = []
    for call in facts.calls:
        place = f" ({call.line})" if call.line else ""
        if call.from_library:
            sentences.append(f"your code calls the course's library, which does the work: {instead}{place}")
        elif call.collective not in allowed:
            sentences.append(f"your code calls {call.collective}: {instead}{place}")
    return list(dict.fromkeys(sentences))


class RankCase(Protocol):
    """An input of a scenario on several ranks."""

    @property
    def num_ranks(self) -> int:
        """How many processes."""
        ...

    @property
    def text(self) -> str:
        """The input in words."""
        ...


def scene(scenario: Scenario, case: RankCase, **options: Any) -> Once:
    """One run of a scenario with a case, which several properties judge.

    Args:
        scenario: runs on every rank: `scenario(probe, student, case)`.
        case: the input.
        options: of `observe_ranks`.
    """

    def observe(student: Any) -> Observation:
        return observe_ranks(scenario, student, num_ranks=case.num_ranks, inputs={"case": case}, **options)

    return Once(observe)


def rank_property(
    name: str,
    case: RankCase,
    seen_in: Once,
    judge: Callable[[Sequence[RankFacts]], Outcome],
    *,
    weight: float = 1.0,
    needs: tuple[str, ...] = (),
) -> Property:
    """A property of what was observed on all ranks.

    Args:
        name: what must hold.
        case: the input.
        seen_in: the run of the case.
        judge: gets the facts of all ranks.
        weight: its share of the score.
        needs: names of properties without which this one means nothing.
    """

    def judge_seen(seen: Observation) -> Outcome:
        return judge(seen.ranks)

    return Property(name=name, observe=seen_in, judge=judge_seen, where=case.text, weight=weight, needs=needs)


def on_each(judge: Callable[..., Outcome], case: RankCase, *more: Any) -> Callable[[Sequence[RankFacts]], Outcome]:
    """Judge each rank by itself, with `judge(case, facts, *more)`; the first rank that fails is reported."""

    def judge_all(ranks: Sequence[RankFacts]) -> Outcome:
        for facts in ranks:
            outcome = judge(case, facts, *more)
            if not outcome.passed:
                difference = f"on rank {facts.rank}: {outcome.difference or outcome.kind}"
                return replace(outcome, difference=difference)
        return Outcome(name="")

    return judge_all


def on_each_or_why(
    judge: Callable[..., Outcome], case: RankCase, *more: Any
) -> Callable[[Sequence[RankFacts]], Outcome]:
    """`on_each` for values: if they are wrong and the ranks did not call the same, that is why."""

    def judge_all(ranks: Sequence[RankFacts]) -> Outcome:
        outcome, same = on_each(judge, case, *more)(ranks), judge_same_calls(ranks)
        return outcome if outcome.passed or same.passed else same

    return judge_all



def judge_same_calls(ranks: Sequence[RankFacts]) -> Outcome:
    """Judge whether all ranks called the same collectives in the same order; what differs may give any numbers."""
    difference = first_mismatch({facts.rank: [call.text for call in facts.collectives] for facts in ranks})
    if not difference:
        return Outcome(name="")
    return Outcome(name="", kind=Kind.RANKS_DISAGREE, difference=difference, cause=_DIFFERENT_PLACES)


def first_mismatch(calls: Mapping[int, Sequence[str]]) -> str:
    """The first collective in which two ranks differ, in words; an empty string if there is none.

    Args:
        calls: what each rank called, in order; a rank that has ended earlier has a shorter list.
    """
    first = min(calls, default=0)
    for rank in calls:
        for index, (ours, theirs) in enumerate(zip(calls[first], calls[rank])):
            if ours != theirs:
                return f"call number {index + 1} is {ours} on rank {first}, and {theirs} on rank {rank}"
    return ""


def _explain(error: DistributedError, signs: Signs, num_ranks: int, deadlock: str) -> StudentError:
    """Why the ranks did not return: what they have written down tells more than the error of the launcher."""
    errors, mismatch = signs.errors(), first_mismatch(signs.collectives())
    places = "; ".join(f"rank {rank} {place}" for rank, place in sorted(error.failures.items()))
    if mismatch:  # whether it hangs, crashes or gives wrong numbers is a matter of luck
        return StudentError(Kind.RANKS_DISAGREE, mismatch, _DIFFERENT_PLACES)
    if str(error).startswith("deadlock"):
        cause = deadlock or _cause_of_deadlock(list(error.failures.values()), num_ranks)
        return StudentError(Kind.DEADLOCK, f"nobody can go on: {places}", cause)
    if str(error).startswith("no end"):
        cause = "does every loop advance its index, and does it end?"
        return StudentError(Kind.TIMED_OUT, f"stopped: {places}", cause)
    if errors and not errors[0].is_connection_lost:
        return errors[0].error
    first_line = str(error).partition("\n")[0]
    return StudentError(Kind.CRASHED, first_line, _SIZES_DIFFER if "SIGABRT" in first_line else "")


def _cause_of_deadlock(places: Sequence[str], num_ranks: int) -> str:
    if len(places) < num_ranks:
        return _SOME_RETURNED
    if all("waits in send " in place for place in places):
        return _SENDS_FIRST
    if all("waits in recv " in place for place in places):
        return _RECEIVES_FIRST
    return _DIFFERENT_PLACES
