"""Part 3: optimizer states in pages, which move to the GPU when they are used and back when there is no room.

One simulation of the pager, right with every option at its default; the options are the mistakes. What the student
returns is a list of moves, held against the right one move by move, and a number of bytes.

Source: T. Dettmers et al., QLoRA, 2023, section 3 (paged optimizers).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from cme295lab.grading.exercise import Once, Property
from cme295lab.grading.observe import Observation, refuse_function
from cme295lab.grading.observe_plainly import observe_plainly
from cme295lab.grading.result import Kind, Outcome
from cme295lab.grading.steps import number_of

Moves = list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Pager:
    """How pages are moved; the defaults make no mistake.

    Args:
        cause: the mistake, in the words of the exercise.
        victim: which page leaves: "least recent", "most recent", "first in", "last in", "largest", "smallest" or "all".
        strict: whether a budget that is filled to the last byte counts as full.
        count: of the pages that leave at a time: "enough", "one" or "never any".
        room: "bytes", or "pages" (as many of the largest as fit).
        used: whether a page that is there already is noted as used.
        first: what happens first, "out" or "in".
        always_in: whether a page that is there already is read again.
        at_end: whether everything is written back at the end.
        read, written: bytes counted for a move, as factors.
        pages_counted: whether moves are counted instead of their bytes.
    """

    cause: str = ""
    victim: str = "least recent"
    strict: bool = False
    count: str = "enough"
    room: str = "bytes"
    used: bool = True
    first: str = "out"
    always_in: bool = False
    at_end: bool = False
    read: float = 1.0
    written: float = 1.0
    pages_counted: bool = False


RIGHT = Pager()
ORDER = (
    Pager(cause="the page that was used last is evicted: it is the one that was not used for longest",
          victim="most recent"),
    Pager(cause="the page that came first is evicted, although it was used since: each use counts, not only the "
                "arrival", used=False),
    Pager(cause="the page that came last is evicted: it is the one that was not used for longest", victim="last in"),
    Pager(cause="the largest page is evicted: it is the one that was not used for longest", victim="largest"),
    Pager(cause="the smallest page is evicted: it is the one that was not used for longest", victim="smallest"),
    Pager(cause="all pages are evicted: only as many as needed", victim="all"),
    Pager(cause="a page that fits exactly needs no eviction: the budget may be filled to the last byte", strict=True),
    Pager(cause="one page is evicted, though the new one needs more room: go on until it fits", count="one"),
    Pager(cause="nothing is evicted: the budget is exceeded", count="never any"),
    Pager(cause="pages are counted: the budget is in bytes, and pages differ in size", room="pages"),
    Pager(cause="the page comes in before another leaves: for a moment, there is no room for both", first="in"),
    Pager(cause="a page that is on the GPU is read again: then nothing moves", always_in=True),
    Pager(cause="everything is written back at the end: what is on the GPU stays there", at_end=True),
)  # fmt: skip
BYTES = (
    Pager(cause="only reads are counted: an evicted page has changed, and is written back", written=0),
    Pager(cause="only write-backs are counted: a page that comes in is read", read=0),
    Pager(cause="reads are counted twice: a page is written back when it leaves, which not all do", read=2, written=0),
    Pager(cause="evictions are counted twice, and page-ins not at all: one write-back for each eviction, one read for "
                "each page-in", read=0, written=2),
    Pager(cause="evictions are counted twice: one write-back for each, and one read for each page-in", written=2),
    Pager(cause="moves are counted: add up their bytes", pages_counted=True),
    Pager(cause="bits are counted: page_bytes are bytes", read=8, written=8),
)  # fmt: skip


def paged(
    uses: Sequence[str], page_bytes: Mapping[str, int], budget_bytes: int, pager: Pager = RIGHT
) -> tuple[Moves, float]:
    """The moves in order, and the bytes moved."""
    moves: Moves = []
    present: list[str] = []  # the one not used for longest comes first
    arrived: list[str] = []
    limit = budget_bytes - (1 if pager.strict else 0)
    slots = max(1, budget_bytes // max(page_bytes.values()))
    for page in uses:
        if page in present:
            if pager.used:
                present.remove(page)
                present.append(page)
            if pager.always_in:
                moves.append(("in", page))
            continue
        leaving: Moves = []

        def full(page: str = page) -> bool:
            if pager.room == "pages":
                return len(present) >= slots
            return sum(page_bytes[other] for other in present) + page_bytes[page] > limit

        while present and full() and pager.count != "never any":
            for gone in _victims(pager, present, arrived, page_bytes):
                present.remove(gone)
                arrived.remove(gone)
                leaving.append(("out", gone))
            if pager.count == "one":
                break
        arrival = [("in", page)]
        moves += leaving + arrival if pager.first == "out" else arrival + leaving
        present.append(page)
        arrived.append(page)
    if pager.at_end:
        moves += [("out", page) for page in present]
    factors = {"in": pager.read, "out": pager.written}
    moved = sum(factors[way] * (1 if pager.pages_counted else page_bytes[page]) for way, page in moves)
    return moves, moved


def _victims(
    pager: Pager, present: Sequence[str], arrived: Sequence[str], page_bytes: Mapping[str, int]
) -> Sequence[str]:
    size: Callable[[str], int] = page_bytes.__getitem__
    choices: dict[str, Callable[[], Sequence[str]]] = {
        "most recent": lambda: [present[-1]], "last in": lambda: [arrived[-1]], "all": lambda: list(present),
        "largest": lambda: [max(present, key=size)], "smallest": lambda: [min(present, key=size)],
    }  # fmt: skip
    return choices[pager.victim]() if pager.victim in choices else [present[0]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Some uses of pages.

    Args:
        uses: the pages in the order of their uses.
        page_bytes: the size of each.
        budget_bytes: of the GPU, for pages.
        where: the same in words.
    """

    uses: tuple[str, ...]
    page_bytes: Mapping[str, int]
    budget_bytes: int
    where: str

    def right(self, pager: Pager = RIGHT) -> tuple[Moves, float]:
        """The moves and their bytes."""
        return paged(self.uses, self.page_bytes, self.budget_bytes, pager)


def case(uses: str, page_bytes: Mapping[str, int], budget_bytes: int) -> Case:
    """A case with pages of one letter each."""
    where = f"uses {' '.join(uses[:30])}{' ...' if len(uses) > 30 else ''}, page_bytes={dict(page_bytes)}, "
    return Case(
        uses=tuple(uses), page_bytes=page_bytes, budget_bytes=budget_bytes, where=f"{where}budget_bytes={budget_bytes}"
    )


def random_case(seed: int, num_uses: int) -> Case:
    """Uses of pages of five sizes, now and then a page again soon."""
    draw = random.Random(seed)
    page_bytes = {"a": 2, "b": 3, "c": 4, "d": 6, "e": 9}
    return case("".join(draw.choice("abcde") for _ in range(num_uses)), page_bytes, 15)


def properties(*, seed: int = 0, num_uses: int = 60, size: int = 4) -> list[Property]:
    """What must hold for `page_moves(uses, page_bytes, budget_bytes) -> (moves, moved_bytes)`.

    Args:
        seed: of the random uses.
        num_uses: their number.
        size: bytes of a page where all are the same.
    """
    same = dict.fromkeys("abcd", size)
    fits = case("abcabca", same, 3 * size)
    steps = case("abcabdacbd", same, 3 * size)
    sizes = case("abcabdcad", {"a": size, "b": 2 * size, "c": size, "d": 4 * size}, 5 * size)
    long = random_case(seed, num_uses)
    room = "pages that fit are read once, and stay"
    least = "without room, the page that was not used for longest leaves"
    differ = "pages of several sizes leave until the new one fits"
    seen = {name: Once(partial(_observe, which)) for name, which in (("steps", steps), ("long", long))}
    bytes_of = "bytes are those of all reads and write-backs"
    return [
        _moves(room, fits, Once(partial(_observe, fits))),
        _moves(least, steps, seen["steps"], weight=2),
        _bytes(bytes_of, steps, seen["steps"], needs=(least,), weight=2),
        _moves(differ, sizes, Once(partial(_observe, sizes)), needs=(least,)),
        _moves("a long run of uses goes the same way", long, seen["long"], weight=2, needs=(least,)),
        _bytes("and moves as many bytes", long, seen["long"], needs=(bytes_of, "a long run of uses goes the same way")),
    ]  # fmt: skip


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "page_moves")


def _observe(which: Case, student: Callable[..., Any]) -> Observation:
    return observe_plainly(
        student,
        {"uses": list(which.uses), "page_bytes": dict(which.page_bytes), "budget_bytes": which.budget_bytes},
    )


def _moves(name: str, which: Case, seen: Once, weight: float = 1.0, needs: tuple[str, ...] = ()) -> Property:
    return Property(
        name=name, observe=seen, judge=partial(judge_moves, which), where=which.where, weight=weight, needs=needs
    )


def _bytes(name: str, which: Case, seen: Once, weight: float = 1.0, needs: tuple[str, ...] = ()) -> Property:
    return Property(
        name=name, observe=seen, judge=partial(judge_bytes, which), where=which.where, weight=weight, needs=needs
    )


def judge_moves(which: Case, seen: Observation) -> Outcome:
    """Judge the moves in their order."""
    result = seen.outputs["result"]
    got = _as_moves(result[0]) if isinstance(result, tuple | list) and len(result) == 2 else None
    if got is None:
        cause = 'return (moves, moved_bytes); moves is a list of ("in", page) and ("out", page)'
        return Outcome(name="", kind=Kind.WRONG_SHAPE, cause=cause)
    want, _ = which.right()
    if got == want:
        return Outcome(name="")
    at = next((i for i, (a, b) in enumerate(zip(got, want)) if a != b), min(len(got), len(want)))
    expected = _in_words(want[at]) if at < len(want) else "no more"
    received = _in_words(got[at]) if at < len(got) else "no more"
    before = ", ".join(map(_in_words, want[max(0, at - 4) : at])) or "nothing"
    difference = f"move {at + 1} must be {expected}, yours is {received} (before it: {before})"
    cause = next((pager.cause for pager in ORDER if which.right(pager)[0] == got), "")
    return Outcome(name="", kind=Kind.WRONG_VALUE, difference=difference, cause=cause)


def judge_bytes(which: Case, seen: Observation) -> Outcome:
    """Judge the number of bytes."""
    got = number_of(seen.outputs["result"][1])
    if got is None:
        return Outcome(name="", kind=Kind.WRONG_SHAPE, cause="moved_bytes must be one number")
    _, want = which.right()
    if got == want:
        return Outcome(name="")
    cause = next((pager.cause for pager in BYTES if which.right(pager)[1] == got), "")
    difference = f"expected {want:,.0f} bytes, got {got:,.0f}"
    return Outcome(name="", kind=Kind.WRONG_VALUE, difference=difference, cause=cause)


def _as_moves(value: Any) -> Moves | None:
    """A list of pairs; None if it is none."""
    if not isinstance(value, tuple | list):
        return None
    pairs = [tuple(move) for move in value if isinstance(move, tuple | list)]
    if len(pairs) != len(value) or any(len(pair) != 2 or pair[0] not in ("in", "out") for pair in pairs):
        return None
    return [(pair[0], pair[1]) for pair in pairs]


def _in_words(move: tuple[str, str]) -> str:
    return f"{move[1]!r} {move[0]}"
