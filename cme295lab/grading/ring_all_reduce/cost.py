"""Part 3: what an all-reduce costs, on a ring and on a tree, and for which messages the tree is faster.

The bytes are held against what the ledger counts when the course's own ring runs on real ranks.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from cme295lab.grading.distributed import observe_ranks
from cme295lab.grading.exercise import Property
from cme295lab.grading.observe import Observation, observe_call, refuse_function
from cme295lab.grading.on_rank import Probe
from cme295lab.grading.result import Kind, Outcome

NAMES = ("ring_sent_bytes", "ring_time_s", "tree_time_s", "break_even_bytes")
_RELATIVE = 1e-6
Arguments = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Link:
    """A message, and the links that it travels on.

    Args:
        num_bytes: of the tensor.
        num_ranks: ranks, a power of two where trees are compared.
        latency_s: of one message.
        bytes_per_s: of one link.
    """

    num_bytes: int = 0
    num_ranks: int
    latency_s: float = 0.0
    bytes_per_s: float = 0.0

    def arguments(self, function: str) -> Arguments:
        """What a function of the student's is called with."""
        link = {"num_ranks": self.num_ranks, "latency_s": self.latency_s, "bytes_per_s": self.bytes_per_s}
        if function == "ring_sent_bytes":
            return {"num_bytes": self.num_bytes, "num_ranks": self.num_ranks}
        return link if function == "break_even_bytes" else {"num_bytes": self.num_bytes, **link}

    def call(self, function: str) -> str:
        """The call, in words."""
        return f"{function}({', '.join(f'{key}={value:g}' for key, value in self.arguments(function).items())})"


def properties(*, scale: int = 1) -> list[Property]:
    """What must hold for `(ring_sent_bytes, ring_time_s, tree_time_s, break_even_bytes)`.

    Args:
        scale: makes messages, latencies and links larger or smaller.
    """
    fast = partial(Link, latency_s=5e-6 * scale, bytes_per_s=450e9 / scale)
    slow = partial(Link, latency_s=3e-5, bytes_per_s=1e9 * scale)
    sizes = [Link(num_bytes=240 * scale, num_ranks=num_ranks) for num_ranks in (4, 3)]
    links = [fast(num_bytes=100_000 * scale, num_ranks=8), slow(num_bytes=10**9, num_ranks=6)]
    even = [fast(num_ranks=16), slow(num_ranks=64 * scale)]
    return [
        _property("the bytes that a rank sends are those that are counted", "ring_sent_bytes", sizes),
        _property("the time on the ring is right", "ring_time_s", links),
        _property("the time on the tree is right", "tree_time_s", links),
        _property("the message for which both take equally long is right", "break_even_bytes", even),
    ]


def refuse(student: Any) -> Outcome | None:
    """Say why these are not the four functions."""
    if not isinstance(student, tuple) or len(student) != len(NAMES):
        cause = f"hand over the four functions: ({', '.join(NAMES)})"
        return Outcome(name="there are four functions", kind=Kind.WRONG_SHAPE, cause=cause)
    refusals = [refuse_function(function, name) for function, name in zip(student, NAMES)]
    return refusals[0] if all(refusals) else None


def _property(name: str, function: str, links: Sequence[Link]) -> Property:
    def observe(student: tuple[Callable[..., Any], ...]) -> Observation:
        chosen = student[NAMES.index(function)]
        return observe_call(lambda: tuple(chosen(**link.arguments(function)) for link in links), {}, 5)

    def judge(seen: Observation) -> Outcome:
        outcomes = (judge_number(function, link, got) for link, got in zip(links, seen.outputs["result"]))
        return next((outcome for outcome in outcomes if not outcome.passed), Outcome(name=""))

    where = "; ".join(link.call(function) for link in links)
    return Property(name=name, observe=observe, judge=judge, where=where)


def judge_number(function: str, link: Link, got: Any) -> Outcome:
    """Judge one number."""
    where = link.call(function)
    if isinstance(got, bool) or not isinstance(got, int | float) or not math.isfinite(got):
        return Outcome(name="", kind=Kind.WRONG_SHAPE, where=where, cause=f"return a number, not {got!r}")
    want = right_number(function, link)
    if math.isclose(got, want, rel_tol=_RELATIVE):
        return Outcome(name="")
    difference = f"expected {want:g}, got {got:g} ({got / want:.4g} times)"
    if function == "ring_sent_bytes":
        counted = f"the ledger counts {want:,.0f} bytes on each of {link.num_ranks} ranks"
        difference = f"{counted}, your formula gives {got:,.0f}"
    causes = (cause for cause, value in _mistakes(function, link) if math.isclose(got, value, rel_tol=_RELATIVE))
    return Outcome(name="", kind=Kind.WRONG_VALUE, where=where, difference=difference, cause=next(causes, ""))


def right_number(function: str, link: Link) -> float:
    """The right answer; the bytes are counted, on real ranks."""
    if function == "ring_sent_bytes":
        return counted_bytes(link.num_bytes, link.num_ranks)
    others, rounds, latency_s = link.num_ranks - 1, math.ceil(math.log2(link.num_ranks)), link.latency_s
    if function == "ring_time_s":
        return 2 * others * (latency_s + link.num_bytes / link.num_ranks / link.bytes_per_s)
    if function == "tree_time_s":
        return 2 * rounds * (latency_s + link.num_bytes / link.bytes_per_s)
    return latency_s * link.bytes_per_s * (others - rounds) / (rounds - others / link.num_ranks)


@functools.cache
def counted_bytes(num_bytes: int, num_ranks: int) -> float:
    """Run the course's ring all-reduce, and count what a rank sends."""
    seen = observe_ranks(_run_ring, None, num_ranks=num_ranks, inputs={"num_elements": num_bytes // 4})
    assert seen.error is None, seen.error
    return max(facts.sent_bytes for facts in seen.ranks)


def _run_ring(probe: Probe, student: None, num_elements: int) -> Mapping[str, Any]:
    from cme295lab.parallel.communication.collectives import ring_all_reduce

    ring_all_reduce(torch.ones(num_elements))
    return {}


def _mistakes(function: str, link: Link) -> Iterator[tuple[str, float]]:
    """What known mistakes give."""
    n, size, a, b = link.num_ranks, link.num_bytes, link.latency_s, link.bytes_per_s
    rounds, exact = math.ceil(math.log2(n)), math.log2(n)
    if function == "ring_sent_bytes":
        yield (
            "that is one half of the all-reduce: reduce-scatter and all-gather send (N - 1) / N each",
            size * (n - 1) / n,
        )
        yield "that is what all ranks send together; the question is about one", 2 * size * (n - 1)
        yield "each rank would send its whole tensor in every step: it sends one chunk, a part of N", size * (n - 1)
        yield "the last step is not needed: N - 1 steps in each half", 2 * size
        yield "a chunk in each of N - 1 steps: that is (N - 1) / N of the tensor, not 1 / N", 2 * size / n
    elif function == "ring_time_s":
        yield "that is one half: the all-reduce has 2 (N - 1) steps", (n - 1) * (a + size / n / b)
        yield "each step has its latency: 2 (N - 1) of them", a + 2 * (n - 1) / n * size / b
        yield (
            "there is a latency per half only: each of the 2 (N - 1) steps has one",
            2 * a + 2 * (n - 1) / n * size / b,
        )
        yield "a step sends a chunk, a part of N of the tensor, not all of it", 2 * (n - 1) * (a + size / b)
        yield "N steps in each half where N - 1 are enough", 2 * n * (a + size / n / b)
        yield "the latency is left out", 2 * (n - 1) / n * size / b
        yield "the bytes are multiplied by the bandwidth: divide", 2 * (n - 1) * (a + size / n * b)
    elif function == "tree_time_s":
        yield "that is the way up: the result must come down again, in as many rounds", rounds * (a + size / b)
        yield "a round is sent or it is not: round log2(N) up", 2 * exact * (a + size / b)
        yield (
            "the logarithm has base 2: the number of ranks with a part doubles in each round",
            2 * math.ceil(math.log(n)) * (a + size / b),
        )
        yield "the tree sends the whole tensor in each round, not a chunk of it", 2 * rounds * (a + size / n / b)
        yield "each round has its latency and its bytes", 2 * rounds * a + 2 * size / b
        yield "that is the ring", 2 * (n - 1) * (a + size / n / b)
        yield "N - 1 rounds are a chain: in a tree, log2(N) of them are enough", 2 * (n - 1) * (a + size / b)
    else:
        right = right_number(function, link)
        yield "that is the reciprocal", 1 / right
        yield "that is in units of latency times bandwidth: multiply by both", right / (a * b)
        yield "the bandwidth is missing: this is the time of such a message", right / b
        yield "only the latencies are compared: the tree also sends more bytes", a * b * (n - 1 - exact)
        yield "that is the number of elements in float32: the question is about bytes", right / 4
