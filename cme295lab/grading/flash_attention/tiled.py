"""Part 2: tiled attention in plain PyTorch, which never holds an N x N matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from cme295lab.grading.exercise import Property
from cme295lab.grading.flash_attention.inputs import Case, accumulation_case, judge_accumulation, random_case
from cme295lab.grading.observe import Observation, observe_call
from cme295lab.grading.result import Kind, Outcome
from cme295lab.units import format_bytes

_FULL = "without a mask, the output is softmax(q kᵀ / sqrt(dim)) v"
_TILED = "no N x N matrix exists at any time"
TIME_LIMIT_S = 10.0
_MAX_TILES_HELD = (
    12  # of seq x block_size float32: q, k, v and o in float32, a row of scores, exponentials and temporaries
)


def properties(
    *, seed: int = 0, heads: int = 2, dim: int = 16, dtype: torch.dtype = torch.float32, ragged: int = 75
) -> list[Property]:
    """What must hold for `tiled_attention(q, k, v, causal, block_size)`.

    Args:
        seed: seeds the random inputs.
        heads: heads of the inputs.
        dim: head dimension.
        dtype: dtype of the inputs, but for the test of accumulators.
        ragged: a sequence length that the block size (32) does not divide.
    """

    def case(seq: int, **options: Any) -> Case:
        return random_case(seed, (1, heads, seq, dim), dtype=dtype, **options)

    tiled = (_FULL, _TILED)  # what comes by itself to code that is not tiled earns nothing
    loud = case(64, score_spread=60.0, note="scores around 100")
    return [
        _property(_FULL, case(96), weight=2),
        _property("the causal mask hides keys after the query, and only those", case(96, causal=True)),
        _property(_TILED, case(768), weight=3, needs=(_FULL,), judge=judge_memory),
        _property("lengths that the block size does not divide work", case(ragged), needs=tiled),
        _property("such lengths work with the causal mask", case(ragged, causal=True), needs=tiled),
        _property("large scores do not overflow", loud, needs=tiled),
        _property("the block size changes nothing", case(96, blocks=(24, 24)), needs=tiled, kind=Kind.NOT_EXACT),
        _property(
            "float16 inputs are accumulated in float32",
            accumulation_case(384),
            needs=tiled,
            judge=lambda case, seen: judge_accumulation(case, seen.outputs["result"]),
        ),
    ]


def _property(
    name: str,
    case: Case,
    *,
    weight: float = 1.0,
    needs: tuple[str, ...] = (),
    kind: Kind = Kind.WRONG_VALUE,
    judge: Callable[[Case, Observation], Outcome] | None = None,
) -> Property:
    def observe(student: Callable[..., Any]) -> Observation:
        inputs = {"q": case.q.clone(), "k": case.k.clone(), "v": case.v.clone()}
        return observe_call(student, {**inputs, "causal": case.causal, "block_size": case.blocks[1]}, TIME_LIMIT_S)

    def judge_seen(seen: Observation) -> Outcome:
        return judge(case, seen) if judge is not None else case.judge_output(seen.outputs["result"], kind)

    return Property(name=name, observe=observe, judge=judge_seen, where=case.text, weight=weight, needs=needs)


def judge_memory(case: Case, seen: Observation) -> Outcome:
    """Judge what the student's code allocated: O(N) elements, in one tensor and all together."""
    outcome = case.judge_output(seen.outputs["result"])
    if not outcome.passed:
        return outcome
    seq, width = case.seq, max(case.q.shape[-1], case.blocks[1])
    tile_elements = case.q.shape[0] * case.q.shape[1] * seq * width
    if seen.largest is not None and seen.largest.num_elements > 2 * tile_elements:
        made = f"{seen.largest.operator}, {seen.largest.line}" if seen.largest.line else seen.largest.operator
        difference = (
            f"a tensor of shape {seen.largest.shape} was made by {made}: {seen.largest.num_elements:,} elements, "
            f"N x N is {seq * seq:,}; a tile of keys for all queries needs {tile_elements:,}"
        )
        cause = f"an N x N matrix is materialised (N = {seq}): compute the scores of one block of keys at a time"
        return Outcome(name="", kind=Kind.TOO_MUCH_MEMORY, difference=difference, cause=cause)
    limit_bytes = _MAX_TILES_HELD * tile_elements * 4
    if seen.peak_bytes > limit_bytes:
        held, limit = format_bytes(seen.peak_bytes), format_bytes(limit_bytes)
        difference = f"{held} were held at one time, tiles need {limit} at most"
        cause = "the blocks of the N x N matrix are all kept at once, in a list for example: use each block and drop it"
        return Outcome(name="", kind=Kind.TOO_MUCH_MEMORY, difference=difference, cause=cause)
    return Outcome(name="")
