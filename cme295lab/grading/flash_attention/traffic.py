"""Part 4: formulas for the bytes that move, held against what the simulator counts when the course's kernels run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from cme295lab.grading.exercise import Property
from cme295lab.grading.observe import Observation, observe_call
from cme295lab.grading.result import Kind, Outcome
from cme295lab.units import format_bytes

_DTYPES = {2: torch.float16, 4: torch.float32}
_LSE_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Size:
    """One head of attention, without a mask.

    Args:
        seq: queries, and keys.
        dim: head dimension.
        element_bytes: 2 or 4.
        blocks: queries and keys in a tile; None for standard attention.
    """

    seq: int
    dim: int
    element_bytes: int
    blocks: tuple[int, int] | None = None

    @property
    def arguments(self) -> dict[str, int]:
        """The arguments of the student's function."""
        tiles = {} if self.blocks is None else {"block_m": self.blocks[0], "block_n": self.blocks[1]}
        return {"seq": self.seq, "dim": self.dim, **tiles, "element_bytes": self.element_bytes}

    @property
    def call(self) -> str:
        """The call of the student's function, in words."""
        name = "standard_forward_bytes" if self.blocks is None else "flash_forward_bytes"
        return f"{name}({', '.join(f'{key}={value}' for key, value in self.arguments.items())})"


def properties(*, seq: int = 192, dim: int = 16, ragged: int = 150) -> list[Property]:
    """What must hold for `(standard_forward_bytes, flash_forward_bytes)`.

    The sizes are chosen so that different mistakes give different numbers: no 4 dim = seq, no two tiles.

    Args:
        seq: a sequence length, a multiple of 64.
        dim: head dimension.
        ragged: a sequence length that the tiles do not divide.
    """
    tall, wide = (64, 16), (16, 64)
    return [
        _property("standard attention is counted right", [Size(seq=seq, dim=dim, element_bytes=2)]),
        _property(
            "standard attention is counted right for other sizes",
            [Size(seq=ragged, dim=dim, element_bytes=2), Size(seq=seq // 2, dim=2 * dim, element_bytes=4)],
        ),
        _property(
            "flash attention is counted right",
            [
                Size(seq=seq, dim=dim, element_bytes=2, blocks=tall),
                Size(seq=seq, dim=dim, element_bytes=2, blocks=wide),
            ],
        ),
        _property(
            "flash attention is counted right for float32",
            [Size(seq=seq, dim=dim, element_bytes=4, blocks=tall)],
        ),
        _property(
            "flash attention is counted right for lengths that the tiles do not divide",
            [Size(seq=ragged, dim=dim, element_bytes=2, blocks=tall)],
        ),
    ]


def refuse(student: Any) -> Outcome | None:
    """Say why this is not the pair of functions."""
    if isinstance(student, tuple) and len(student) == 2 and all(callable(function) for function in student):
        return None
    cause = "hand over the two functions: (standard_forward_bytes, flash_forward_bytes)"
    return Outcome(name="there are two functions", kind=Kind.WRONG_SHAPE, cause=cause)


def _property(name: str, sizes: list[Size]) -> Property:
    def observe(student: tuple[Callable[..., Any], Callable[..., Any]]) -> Observation:
        function = student[0] if sizes[0].blocks is None else student[1]
        return observe_call(lambda: tuple(function(**size.arguments) for size in sizes), {}, 5)

    def judge(seen: Observation) -> Outcome:
        answers = seen.outputs["result"]
        outcomes = (judge_count(size, got) for size, got in zip(sizes, answers))
        failed = next((outcome for outcome in outcomes if not outcome.passed), Outcome(name=name))
        if failed.kind is Kind.WRONG_VALUE and not failed.cause and len(answers) > 1 and len(set(answers)) == 1:
            return replace(failed, cause="the same number comes back whatever the arguments: compute it from them")
        return failed

    return Property(name=name, observe=observe, judge=judge, where="; ".join(size.call for size in sizes))


def judge_count(size: Size, got: Any) -> Outcome:
    """Judge one number of bytes against what the simulator counts."""
    if isinstance(got, bool) or not isinstance(got, int | float) or not math.isfinite(got):
        cause = f"{size.call} must return a number of bytes, not {got!r}"
        return Outcome(name="", kind=Kind.WRONG_SHAPE, where=size.call, cause=cause)
    counted = counted_bytes(size)
    if got == counted:
        return Outcome(name="")
    times = f" ({got / counted:.4g} times)" if counted else ""
    difference = (
        f"the simulator counts {counted:,} bytes ({format_bytes(counted)}), your formula gives {got:,}{times}; they "
        f"differ by {abs(got - counted):,.0f}"
    )
    causes = (cause for cause, value in _mistakes(size) if value == got and value != counted)
    cause = next(causes, "")
    return Outcome(name="", kind=Kind.WRONG_VALUE, where=size.call, difference=difference, cause=cause)


def counted_bytes(size: Size) -> int:
    """Run the course's kernels on one head in the simulator and count.

    Standard attention: each kernel's inputs and outputs once (compulsory traffic). Flash: what its programs ask for.
    """
    from cme295lab import attention, simulator

    q, k, v = torch.zeros(3, 1, 1, size.seq, size.dim, dtype=_DTYPES[size.element_bytes])
    with torch.no_grad(), simulator.trace() as trace:
        if size.blocks is None:
            attention.standard_attention_kernels(q, k, v, causal=False)
            return trace.distinct_bytes
        attention.flash_attention(q, k, v, backend="triton", block_m=size.blocks[0], block_n=size.blocks[1])
        return trace.requested_bytes


def _mistakes(size: Size) -> Iterator[tuple[str, float]]:
    """What known mistakes give for this size."""
    scores, matrix, e = size.seq**2, size.seq * size.dim, size.element_bytes
    if size.blocks is None:
        right = 4 * scores + 4 * matrix
        yield "this is the number of elements: multiply by element_bytes", right
        yield "element_bytes is not used: an element has 2 bytes only by default", 2 * right
        yield (
            "only two passes over N x N matrices are counted: S is written and read back, and so is P",
            (2 * scores + 4 * matrix) * e,
        )
        yield (
            "one of the four passes over N x N matrices is missing: S is written and read back, and so is P",
            (3 * scores + 4 * matrix) * e,
        )
        yield "Q, K, V and O are missing: only the N x N matrices are counted", 4 * scores * e
        yield "S and P are missing: only Q, K, V and O are counted", 4 * matrix * e
        yield "O is not counted", (4 * scores + 3 * matrix) * e
        return
    block_m, block_n = size.blocks
    tiles, lse = -(-size.seq // block_m), size.seq * _LSE_BYTES

    def total(programs: float, lse_bytes: int = lse, width: int = e) -> float:
        return (2 * matrix + 2 * programs * matrix) * width + lse_bytes

    yield "the log-sum-exp is missing: 4 bytes per query", total(tiles, 0)
    yield "the log-sum-exp is float32: 4 bytes per query, whatever element_bytes is", total(tiles, size.seq * e)
    yield "this is the number of elements: multiply by element_bytes", (2 + 2 * tiles) * matrix + size.seq
    yield "element_bytes is not used: an element has 2 bytes only by default", total(tiles, width=2)
    yield (
        "the number of programs is seq / block_m, not seq / block_n: block_n does not matter",
        total(-(-size.seq // block_n)),
    )
    yield (
        "the last, incomplete tile of queries is a program too: round the number of programs up",
        total(size.seq // block_m),
    )
    yield "a fraction of a program is counted: round the number of programs up", total(size.seq / block_m)
    yield (
        "whole tiles are counted past the end: masked elements are not read",
        (total(tiles) + 2 * (tiles * block_m - size.seq) * size.dim * e),
    )
    yield "K and V are counted once: every program reads all of them", total(1)
    yield "only one of K and V is counted for every program: both are read", total(tiles / 2)
    yield "O is not counted", total(tiles) - matrix * e
    yield (
        "Q is counted once per tile of keys: a program reads its tile of Q once",
        (total(tiles) + (-(-size.seq // block_n) - 1) * matrix * e),
    )
