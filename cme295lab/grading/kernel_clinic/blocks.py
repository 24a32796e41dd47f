"""Part 3: block sizes that fit the chip and ask for the fewest bytes, held against all other choices."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from cme295lab.grading.exercise import Property
from cme295lab.grading.observe import Observation, TimeLimitReached, quiet, refuse_function, student_error, time_limit
from cme295lab.grading.result import Kind, Outcome
from cme295lab.units import KiB, format_bytes

SIDES = (16, 32, 64, 128, 256)
BLOCK_K = 32
TIME_LIMIT_S = 60.0
_SLACK = 1.01
Pair = tuple[int, int]


@dataclass(frozen=True)
class Size:
    """A matrix product and the room for one of its programs.

    Args:
        num_rows, num_cols: the shape of C.
        inner: columns of A and rows of B.
        limit_bytes: what a program may hold on the chip.
    """

    num_rows: int
    num_cols: int
    inner: int
    limit_bytes: int

    @property
    def call(self) -> str:
        """The call of the student's function, in words."""
        return f"choose_blocks({self.num_rows}, {self.num_cols}, {self.inner}, {self.limit_bytes})"


def properties(*, seed: int = 0) -> list[Property]:
    """What must hold for `choose_blocks(num_rows, num_cols, inner, limit_bytes)`.

    Args:
        seed: 0 gives the visible sizes; others scale and vary them.
    """
    vary = random.Random(seed)
    step = 0 if seed == 0 else vary.randrange(1, 4)
    room = 160 + 32 * step
    return [
        _property("a square product gets its best blocks", Size(512 + 128 * step, 512 + 128 * step, 64, room * KiB)),
        _property("a tall product gets its best blocks", Size(1024 + 256 * step, 64, 64, room * KiB)),
        _property("a wide product gets its best blocks", Size(64, 1024 + 256 * step, 64, room * KiB)),
        _property("less room is respected", Size(512, 512, 64, (48 + 8 * step) * KiB)),
        _property("sizes that blocks do not divide work", Size(300 + step, 700 - 3 * step, 64, 2 * room * KiB)),
    ]


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "choose_blocks")


def _property(name: str, size: Size) -> Property:
    def observe(student: Callable[..., Any]) -> Observation:
        try:
            with quiet(), time_limit(TIME_LIMIT_S):
                return Observation(
                    outputs={"blocks": student(size.num_rows, size.num_cols, size.inner, size.limit_bytes)}
                )
        except (Exception, TimeLimitReached) as error:
            return Observation(error=student_error(error, TIME_LIMIT_S))

    def judge(seen: Observation) -> Outcome:
        return judge_blocks(size, seen.outputs["blocks"])

    return Property(name=name, observe=observe, judge=judge, where=size.call)


@functools.cache
def measure(size: Size, blocks: Pair) -> tuple[int, int]:
    """Launch the course's matrix product: requested bytes, and the on-chip bytes of one program."""
    from cme295lab import simulator
    from cme295lab.kernels.matmul import matmul_kernel

    a, b = torch.zeros(size.num_rows, size.inner).half(), torch.zeros(size.inner, size.num_cols).half()
    c = torch.empty(size.num_rows, size.num_cols).half()
    constants = {"BLOCK_M": blocks[0], "BLOCK_N": blocks[1], "BLOCK_K": BLOCK_K, "GROUP_M": 1, "PRECISION": "ieee"}
    shape = (size.num_rows, size.num_cols, size.inner)
    programs = -(-size.num_rows // blocks[0]) * -(-size.num_cols // blocks[1])
    with simulator.trace() as trace:
        matmul_kernel[(programs,)](a, b, c, *shape, *a.stride(), *b.stride(), *c.stride(), **constants)
    return trace.requested_bytes, trace.sram_peak_bytes


@functools.cache
def best_blocks(size: Size) -> Pair:
    """The pair that requests least among those that fit; of equals, the one that holds least."""
    pairs = [(m, n) for m in SIDES for n in SIDES]
    fitting = [pair for pair in pairs if measure(size, pair)[1] <= size.limit_bytes]
    return min(fitting, key=lambda pair: measure(size, pair))


def judge_blocks(size: Size, got: Any) -> Outcome:
    """Judge a pair of block sizes."""
    if not (isinstance(got, tuple | list) and len(got) == 2 and all(side in SIDES for side in got)):
        sides = ", ".join(map(str, SIDES))
        cause = f"return (BLOCK_M, BLOCK_N), each one of {sides}; got {got!r}"
        return Outcome(name="", kind=Kind.WRONG_SHAPE, cause=cause)
    blocks, best = (int(got[0]), int(got[1])), best_blocks(size)
    (requested, held), (least, _) = measure(size, blocks), measure(size, best)
    if held > size.limit_bytes:
        limit = format_bytes(size.limit_bytes, binary=True)
        difference = f"with blocks {blocks} one program holds {format_bytes(held, binary=True)}, the limit is {limit}"
        return Outcome(name="", kind=Kind.TOO_MUCH_MEMORY, difference=difference, cause=_too_large(size, blocks))
    if requested <= _SLACK * least:
        return Outcome(name="")
    difference = (
        f"blocks {blocks} request {format_bytes(requested)}, {requested / least:.2f} times as much as blocks {best}, "
        f"which fit too: {format_bytes(least)}"
    )
    return Outcome(name="", kind=Kind.TOO_MUCH_TRAFFIC, difference=difference, cause=_too_small(size, blocks, best))


def _too_large(size: Size, blocks: Pair) -> str:
    if 4 * blocks[0] * blocks[1] > size.limit_bytes:
        return "the accumulator alone, BLOCK_M × BLOCK_N float32 numbers, is larger than limit_bytes: is it compared?"
    return (
        "the accumulator fits, but a program also holds its tiles of A and B and the result of tl.dot before it is "
        "added: compare what `measure` counts"
    )


def _too_small(size: Size, blocks: Pair, best: Pair) -> str:
    swapped = (blocks[1], blocks[0])
    if blocks == (SIDES[0], SIDES[0]):
        return "the smallest blocks always fit, and ask for the most bytes: take the largest that fit"
    if measure(size, swapped)[1] <= size.limit_bytes and measure(size, swapped)[0] <= _SLACK * measure(size, best)[0]:
        return "the two sides are swapped: BLOCK_M tiles the rows of C, and says how often B is read"
    if blocks[0] == blocks[1] and best[0] != best[1]:
        return "square blocks are not always the best: try pairs with different sides"
    if blocks[0] * blocks[1] >= best[0] * best[1]:
        return "the largest block is not always the best: a side that passes the end of C reads nothing less"
    return "there is room for larger blocks"
