"""Part 2: blocks, their largest absolute value, the nearest level, and two codes in a byte.

Inputs keep away from the middle between two levels, where the last bit of a division would decide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cme295lab.grading.compare import Expected, Hypothesis, judge_tensor
from cme295lab.grading.exercise import Once, Property
from cme295lab.grading.nf4.table import levels
from cme295lab.grading.observe import refuse_function
from cme295lab.grading.quantizers.blocks import Blocking, blocks_of
from cme295lab.grading.result import Kind, Outcome
from cme295lab.grading.steps import Step, judge_tuple

_PARTS = ("packed", "absmax")
_TIE_MARGIN = 0.006
_EXAMPLE = torch.tensor([0.5, -1.0, 0.1, 2.0])
CUBES = torch.linspace(-1, 1, 16, dtype=torch.float64) ** 3  # another table: `code` is an argument


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How numbers become bytes; the defaults make no mistake.

    Args:
        cause: the mistake, in the words of the exercise.
        blocks: as in the exercise on quantisers: "flat", "rows", "columns", "whole", "number" or "strided".
        ragged: "own scale", "zero" or "joined".
        largest: "absolute", "signed" or "none" (not divided).
        level: "nearest", "below", "above" or "order" (of the levels' absolute values).
        order: "high first", "low first" or "halves" (the second half of the codes fills the low halves of the bytes).
        table: "given", "nf4" or "reversed".
    """

    cause: str = ""
    blocks: str = "flat"
    ragged: str = "own scale"
    largest: str = "absolute"
    level: str = "nearest"
    order: str = "high first"
    table: str = "given"


RIGHT = Packing()
MISTAKES = (
    Packing(cause="the halves of each byte are exchanged: the first of two codes fills the high half (code << 4)",
            order="low first"),
    Packing(cause="the first half of the codes is packed with the second half: two neighbours share a byte",
            order="halves"),
    Packing(cause="the level below is taken: take the nearest, which may be above", level="below"),
    Packing(cause="the level above is taken: take the nearest, which may be below", level="above"),
    Packing(cause="there is one absmax for the whole tensor: each block has its own", blocks="whole"),
    Packing(cause="each row begins a new block: blocks run through the flattened tensor, over the ends of rows",
            blocks="rows"),
    Packing(cause="the tensor is read column by column: flatten it row by row", blocks="columns"),
    Packing(cause="block_size is taken for the number of blocks", blocks="number"),
    Packing(cause="a block takes every n-th number: its numbers stand next to each other", blocks="strided"),
    Packing(cause="the last, shorter block is dropped: it has an absmax and codes, too", ragged="zero"),
    Packing(cause="the last, shorter block has the absmax of the one before: it has its own", ragged="joined"),
    Packing(cause="that is the largest number, not the largest absolute value: here the farthest from 0 is negative",
            largest="signed"),
    Packing(cause="the numbers are not divided by their block's absmax", largest="none"),
    Packing(cause="the table of NF4 is used: use the one that is given, `code`", table="nf4"),
    Packing(cause="the codes count from the largest level down: code 0 is the smallest level", table="reversed"),
)  # fmt: skip


def packed_with(x: Tensor, code: Tensor, block_size: int, mistake: Packing = RIGHT) -> tuple[Tensor, Tensor]:
    """Bytes and absmax, in float64; of an odd number of codes, the last low half is 0."""
    if mistake.blocks == "columns":
        return packed_with(x.view(-1, x.shape[-1]).T.flatten(), code, block_size, replace(mistake, blocks="flat"))
    layout = Blocking(blocks=mistake.blocks, ragged=mistake.ragged)
    blocks = blocks_of(x.shape, block_size, layout)
    if mistake.ragged == "zero":
        blocks = [block for block in blocks if len(block) == block_size]
    table = {"given": code.double(), "nf4": levels(), "reversed": code.double().flip(0)}[mistake.table]
    filled = torch.cat((x.double().flatten(), torch.zeros(1, dtype=torch.float64)))
    codes = _nearest(torch.zeros(len(filled), dtype=torch.float64), table, "nearest")
    absmax = torch.zeros(0, dtype=torch.float64)
    if blocks:
        places = pad_sequence(blocks, batch_first=True, padding_value=len(filled) - 1)
        absmax = filled[places].amax(1) if mistake.largest == "signed" else filled[places].abs().amax(1)
        divisor = torch.ones_like(absmax) if mistake.largest == "none" else absmax
        codes[places] = _nearest((filled[places] / divisor[:, None]).nan_to_num(0.0), table, mistake.level)
    return join(codes[:-1], mistake.order), absmax


def _nearest(x: Tensor, table: Tensor, level: str) -> Tensor:
    """Codes of normalised numbers."""
    if level == "nearest":
        return (x[..., None] - table).abs().argmin(-1)
    # The largest number is 1 in float32, too: no cushion for rounding is needed at a level itself.
    below = torch.searchsorted(table.contiguous(), x.contiguous(), right=True) - 1
    above = torch.searchsorted(table.contiguous(), x.contiguous())
    return (below if level == "below" else above).clamp(0, len(table) - 1)


def join(codes: Tensor, order: str = "high first") -> Tensor:
    """Two codes of 4 bits in a byte, as float64."""
    codes = torch.cat((codes, codes.new_zeros(len(codes) % 2))).double()
    if order == "halves":
        first, second = codes.chunk(2)
    else:
        first, second = codes[0::2], codes[1::2]
    return second * 16 + first if order == "low first" else first * 16 + second


def properties(*, seed: int = 0, block_size: int = 64, num_blocks: int = 5, row: int = 50) -> list[Property]:
    """What must hold for `nf4_quantize(x, code, block_size) -> (packed, absmax)`.

    Args:
        seed: seeds the random numbers.
        block_size: numbers of a block, even.
        num_blocks: of the vector, above 1.
        row: numbers in a row of the matrix, even, of which block_size is no divisor.
    """
    make = partial(random_numbers, seed, block_size)
    vector = make(block_size * num_blocks)
    step = partial(_step, block_size, seed)
    observe = Once(step(vector).observe)
    zeros = make(3 * block_size)
    zeros[block_size : 2 * block_size] = 0
    absmax = "each block has its absmax"
    odd = block_size + block_size // 2 + 1
    return [
        step(vector, "absmax").as_property(absmax, observe=observe),
        step(vector, "packed").as_property("bytes hold the nearest levels", observe=observe, weight=3),
        step(make(block_size * num_blocks + block_size // 2)).as_property("the last block may be shorter"),
        step(make(6 * row).view(6, row)).as_property("blocks run through a matrix row by row"),
        step(make(odd)).as_property("an odd number of codes leaves half a byte over"),
        step(zeros).as_property("a block of zeros gets the level 0"),
        step(vector.bfloat16()).as_property("of bfloat16 weights, absmax is float32", needs=(absmax,)),
        step(make(4 * block_size, CUBES), code=CUBES.float()).as_property("another table of levels can be used"),
        _step(4, None, _EXAMPLE).as_property("the example of the page comes out"),
    ]


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "nf4_quantize")


def random_numbers(seed: int, block_size: int, size: int, table: Tensor | None = None) -> Tensor:
    """Blocks of different size, in most of which the farthest number from zero is negative."""
    x = torch.randn(size, generator=torch.Generator().manual_seed(seed + size))
    for number, block in enumerate(x.split(block_size)):
        block *= 0.1 * 1.7 ** (number % 5)
        if number % 3 < 2:
            block[len(block) // 3] = -1.2 * block.abs().max()
        block.copy_(clear_of_middles(block, levels() if table is None else table))
    return x


def clear_of_middles(block: Tensor, table: Tensor) -> Tensor:
    """One block, of which numbers near the middle between two levels have moved towards the lower one."""
    absmax = block.abs().max().double()
    middles, gaps = (table[1:] + table[:-1]) / 2, table[1:] - table[:-1]
    distance, nearest = ((block.double() / absmax)[:, None] - middles).abs().min(dim=1)
    moved = (middles[nearest] - 0.35 * gaps[nearest]) * absmax
    return torch.where(distance < _TIE_MARGIN, moved, block.double()).to(block.dtype)


def _step(block_size: int, seed: int | None, x: Tensor, *parts: str, code: Tensor | None = None) -> Step:
    table = levels().float() if code is None else code
    packed, absmax = packed_with(x, table, block_size)

    def of_part(part: int) -> list[Hypothesis]:
        return [Hypothesis(m.cause, partial(_part, x, table, block_size, m, part)) for m in MISTAKES]

    judges: dict[str, Callable[[Any], Outcome]] = {
        "packed": lambda got: judge_bytes(got, packed, of_part(0), is_odd=x.numel() % 2 > 0),
        "absmax": lambda got: judge_absmax(got, absmax, of_part(1)),
    }
    judged = {name: judge for name, judge in judges.items() if name in (parts or _PARTS)}
    made = "the page's" if seed is None else f"seed {seed}"
    kind = "" if code is None else ", another table"
    where = f"x of shape {tuple(x.shape)}, {str(x.dtype).removeprefix('torch.')}, block_size={block_size}, {made}{kind}"
    return Step(
        position=None, inputs={"x": x, "code": table, "block_size": block_size},
        judge=lambda got: judge_tuple(got, _PARTS, judged), where=where,
    )  # fmt: skip


def _part(x: Tensor, code: Tensor, block_size: int, mistake: Packing, part: int) -> Tensor:
    found = packed_with(x, code, block_size, mistake)[part]
    # One absmax for all may have been repeated.
    return found.expand(-(-x.numel() // block_size)) if part and mistake.blocks == "whole" else found


def judge_bytes(got: Any, want: Tensor, mistakes: list[Hypothesis], *, is_odd: bool = False) -> Outcome:
    """Judge packed codes, (bytes,) or (bytes, 1); what fills half a byte that is left over is free."""
    if isinstance(got, Tensor) and got.shape == (len(want), 1):
        got = got[:, 0]
    if isinstance(got, Tensor) and got.dtype != torch.uint8:
        cause = f"packed must be uint8, two codes in a byte; yours is {str(got.dtype).removeprefix('torch.')}"
        return Outcome(name="", kind=Kind.WRONG_SHAPE, cause=cause)
    if isinstance(got, Tensor) and got.shape != want.shape:
        cause = f"packed must have {len(want)} bytes, two codes in each; yours has the shape {tuple(got.shape)}"
        return Outcome(name="", kind=Kind.WRONG_SHAPE, cause=cause)
    if is_odd and isinstance(got, Tensor):
        got = got.clone()
        # Its place is the high half: compare that alone.
        got[-1] = int(got[-1]) // 16 * 16
    expected = Expected(name="packed", value=want, dtype=torch.uint8, allowed=0.0, mistakes=mistakes)
    outcome = judge_tensor(got, expected)
    if outcome.passed or outcome.cause or not isinstance(got, Tensor):
        return outcome
    return Outcome(name="", kind=outcome.kind, difference=outcome.difference, cause=_zero_cause(got, want))


def _zero_cause(got: Tensor, want: Tensor) -> str:
    """Whether only bytes of zeros are wrong."""
    wrong = got.double() != want
    if not bool((want[wrong] == 7 * 16 + 7).all()):
        return ""
    return "the codes of a block of zeros are wrong: its absmax is 0, and 0 / 0 is NaN, which is near no level"


def judge_absmax(got: Any, want: Tensor, mistakes: list[Hypothesis]) -> Outcome:
    """Judge the constants; that of a block of zeros is free, as its codes say 0 already."""
    if isinstance(got, Tensor) and got.shape == (len(want), 1):
        got = got[:, 0]
    if isinstance(got, Tensor) and got.shape != want.shape:
        cause = f"{len(want)} blocks have {len(want)} constants, absmax has the shape {tuple(got.shape)}"
        return Outcome(name="", kind=Kind.WRONG_SHAPE, cause=cause)
    if isinstance(got, Tensor) and got.dtype != torch.float32:
        cause = f"absmax must be float32, yours is {str(got.dtype).removeprefix('torch.')}: every number of a block "
        return Outcome(name="", kind=Kind.WRONG_SHAPE, cause=cause + "has its error")
    if isinstance(got, Tensor) and bool(got[want == 0].isfinite().all()):
        got = got.masked_fill(want == 0, 0)
    found = [
        Hypothesis("that is 1 / max|x|: keep max|x| itself", lambda: 1 / want),
        Hypothesis("that is max|x| / 127: levels go to 1, so the constant is max|x|", lambda: want / 127),
        *mistakes,
    ]
    allowed = 1e-6 * float(want.max())
    return judge_tensor(got, Expected(name="absmax", value=want, dtype=torch.float32, allowed=allowed, mistakes=found))
