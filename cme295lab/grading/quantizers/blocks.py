"""Part 3: a scale for every block of the flattened tensor; the last block may be shorter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cme295lab.grading.compare import Expected, Hypothesis, allowed_error, judge_tensor
from cme295lab.grading.exercise import Once, Property
from cme295lab.grading.quantizers.rounding import MISTAKES, Rounding, clear_of_ties, codes_of, scale_of, with_overflow
from cme295lab.grading.quantizers.whole import ZERO_SCALE, judge_codes, observe_first
from cme295lab.grading.result import Kind, Outcome
from cme295lab.grading.steps import Step, judge_tuple, refuse_functions

FUNCTIONS = ("blockwise_quantize", "blockwise_dequantize")
_PARTS = ("codes", "scales")
_EXAMPLE = torch.tensor([0.3, -1.0, 0.6, 0.1, 20.0, -50.0])


@dataclass(frozen=True, kw_only=True)
class Blocking:
    """Which numbers share a scale, and how they become codes; the defaults make no mistake.

    Args:
        cause: the mistake, in the words of the exercise.
        blocks: "flat", "rows" (each row begins a new block), "columns" (the tensor is read column by column), "whole"
            (one block), "number" (block_size is taken for the number of blocks) or "strided" (every n-th number).
        ragged: "own scale", "zero" (not quantised) or "joined" (to the block before).
        rounding: of each block.
    """

    cause: str = ""
    blocks: str = "flat"
    ragged: str = "own scale"
    rounding: Rounding = field(default_factory=Rounding)


LAYOUTS = (
    Blocking(cause="there is one scale for the whole tensor: each block has its own", blocks="whole"),
    Blocking(cause="each row begins a new block: blocks run through the flattened tensor, over the ends of rows",
             blocks="rows"),
    Blocking(cause="blocks run down the columns: flatten row by row", blocks="columns"),
    Blocking(cause="block_size is taken for the number of blocks", blocks="number"),
    Blocking(cause="a block takes every n-th number: its numbers stand next to each other", blocks="strided"),
    Blocking(cause="the last, shorter block is dropped: it has a scale and codes, too", ragged="zero"),
    Blocking(cause="the last, shorter block has the scale of the one before: it has its own", ragged="joined"),
)  # fmt: skip
ALL_MISTAKES = (*LAYOUTS, *(Blocking(cause=m.cause, rounding=m) for m in with_overflow(MISTAKES)))


def blocks_of(shape: Sequence[int], block_size: int, mistake: Blocking = Blocking()) -> list[Tensor]:
    """Places of the flattened tensor, block by block."""
    places = torch.arange(torch.Size(shape).numel())
    if mistake.blocks == "rows":
        return [block for row in places.view(-1, shape[-1]) for block in row.split(block_size)]
    if mistake.blocks == "columns":
        places = places.view(-1, shape[-1]).T.flatten()
    if mistake.blocks == "whole":
        return [places]
    if mistake.blocks == "number":
        return list(places.split(max(1, -(-len(places) // block_size))))
    if mistake.blocks == "strided":
        count = -(-len(places) // block_size)
        return [places[first::count] for first in range(count)]
    blocks = list(places.split(block_size))
    if mistake.ragged == "joined" and len(blocks) > 1 and len(blocks[-1]) < block_size:
        blocks[-2:] = [torch.cat(blocks[-2:])]
    return blocks


def quantized(x: Tensor, block_size: int, mistake: Blocking = Blocking()) -> tuple[Tensor, Tensor]:
    """Codes of x's shape and the scales of its blocks, in float64."""
    blocks = blocks_of(x.shape, block_size, mistake)
    if mistake.ragged == "zero":
        blocks = [block for block in blocks if len(block) == block_size]
    if not blocks:
        return torch.zeros_like(x, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
    filled = torch.cat((x.double().flatten(), torch.zeros(1, dtype=torch.float64)))  # shorter blocks end with that 0
    places = pad_sequence(blocks, batch_first=True, padding_value=len(filled) - 1)
    scales = scale_of(filled[places], mistake.rounding)
    codes = torch.zeros_like(filled)
    codes[places] = codes_of(filled[places], scales, mistake.rounding)
    return codes[:-1].view(x.shape), scales[:, 0]


def properties(*, seed: int = 0, block_size: int = 8, num_blocks: int = 9, row: int = 13) -> list[Property]:
    """What must hold for `blockwise_quantize` and `blockwise_dequantize`.

    Args:
        seed: seeds the random numbers.
        block_size: numbers of a block, at least 3.
        num_blocks: of the vector.
        row: numbers in a row of the matrix, of which block_size is no divisor.
    """
    make = partial(_random, seed, block_size)
    vector, matrix = make(block_size * num_blocks), make(7 * row).view(7, row)
    ragged, short = make(block_size * num_blocks + block_size // 2), make(block_size - 1)
    zeros = make(3 * block_size)
    zeros[block_size : 2 * block_size] = 0
    step = partial(_quantize, block_size, seed)
    observe = Once(partial(observe_first, {"x": vector, "block_size": block_size}))
    whole = "each block has its own scale"
    return [
        step(vector, "scales").as_property(whole, observe=observe),
        step(vector, "codes").as_property("every code is the nearest", observe=observe, weight=2),
        step(ragged).as_property("the last block may be shorter", weight=2),
        step(matrix).as_property("blocks run through a matrix row by row"),
        step(short).as_property("a tensor may be shorter than a block"),
        step(zeros).as_property("a block of zeros has codes 0 and a scale that can be divided by", needs=(whole,)),
        _dequantize(block_size, seed, ragged).as_property("codes come back as numbers"),
        _dequantize(block_size, seed, matrix).as_property("a matrix comes back as a matrix"),
        _quantize(4, None, _EXAMPLE).as_property("the example of the page comes out"),
    ]


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_functions(student, FUNCTIONS)


def _random(seed: int, block_size: int, size: int) -> Tensor:
    """Blocks of different size, in most of which the farthest number from zero is negative."""
    x = torch.randn(size, generator=torch.Generator().manual_seed(seed + size))
    for number, block in enumerate(x.split(block_size)):
        block *= 1.5 ** (number % 5)
        if number % 3 < 2:
            block[len(block) // 3] = -1.4 * block.abs().max()
        block.copy_(clear_of_ties(block, scale_of(block.double())))
    return x


def _quantize(block_size: int, seed: int | None, x: Tensor, *parts: str) -> Step:
    """The first function on x; the parts of its result that are judged."""
    codes, scales = quantized(x, block_size)

    def of_part(part: int) -> list[Hypothesis]:
        return [Hypothesis(m.cause, partial(_part, x, block_size, m, part)) for m in ALL_MISTAKES]

    judges: dict[str, Callable[[Any], Outcome]] = {
        "codes": lambda got: judge_codes(got, codes, of_part(0)),
        "scales": lambda got: judge_scales(got, scales, of_part(1), ragged=len(x.flatten()) % block_size > 0),
    }
    judged = {name: judge for name, judge in judges.items() if name in (parts or _PARTS)}
    return Step(
        position=0, inputs={"x": x, "block_size": block_size}, judge=lambda got: judge_tuple(got, _PARTS, judged),
        where=_words(x, block_size, seed),
    )  # fmt: skip


def _part(x: Tensor, block_size: int, mistake: Blocking, part: int) -> Tensor:
    found = quantized(x, block_size, mistake)[part]
    # One scale for all may have been repeated.
    return found.expand(-(-x.numel() // block_size)) if part and mistake.blocks == "whole" else found


def _words(x: Tensor, block_size: int, seed: int | None) -> str:
    made = "the page's" if seed is None else f"seed {seed}"
    return f"x of shape {tuple(x.shape)}, float32, block_size={block_size}, {made}"


def judge_scales(got: Any, scales: Tensor, mistakes: list[Hypothesis], *, ragged: bool) -> Outcome:
    """Judge scales; that of a block of zeros may be any that can be divided by."""
    if isinstance(got, Tensor) and got.shape == (len(scales), 1):
        got = got[:, 0]
    if isinstance(got, Tensor) and got.shape != scales.shape:
        cause = f"{len(scales)} blocks have {len(scales)} scales, yours are of shape {tuple(got.shape)}"
        if ragged and got.numel() == len(scales) - 1:
            cause += ": the last, shorter block has one, too"
        return Outcome(name="", kind=Kind.WRONG_SHAPE, cause=cause)
    zero = scales == 0
    if isinstance(got, Tensor) and bool(((got[zero] <= 0) | ~got[zero].isfinite()).any()):
        return Outcome(
            name="", kind=Kind.WRONG_VALUE, difference=f"the scale of a block of zeros is {float(got[zero][0]):g}",
            cause=ZERO_SCALE,
        )  # fmt: skip
    judged = got.masked_fill(zero, 0) if isinstance(got, Tensor) else got
    found = [
        Hypothesis("that is 127 / max|x|, the inverse: x is codes times scale", lambda: 1 / scales),
        Hypothesis("that is max|x|: the scale is one step, a 127th of it", lambda: scales * 127),
        *mistakes,
    ]
    return judge_tensor(
        judged,
        Expected(name="scales", value=scales, dtype=torch.float32, allowed=1e-6 * float(scales.max()), mistakes=found),
    )


def _dequantize(block_size: int, seed: int, x: Tensor) -> Step:
    """The second function, on right codes and scales."""
    codes, scales = quantized(x, block_size)
    flat = codes.flatten()

    def with_scales(each: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return lambda: (flat * each()[: len(flat)]).view(x.shape)

    def of_layout(layout: str) -> Tensor:
        found = torch.zeros_like(flat)
        for number, block in enumerate(blocks_of(x.shape, block_size, replace(Blocking(), blocks=layout))):
            found[block] = scales[number % len(scales)]
        return found

    def repeated() -> Tensor:
        return scales.repeat(-(-len(flat) // len(scales)))

    right = scales.repeat_interleave(block_size)
    mistakes = [
        Hypothesis("scales take turns, number by number: repeat_interleave keeps those of a block together",
                   with_scales(repeated)),
        Hypothesis("codes are divided by the scales: they are multiplied", with_scales(lambda: 1 / right)),
        Hypothesis("there is one scale for all: each block has its own",
                   with_scales(lambda: scales[0].expand(len(flat)))),
        Hypothesis("the last, shorter block is missing: it has a scale, too",
                   with_scales(lambda: torch.where(torch.arange(len(right)) < len(flat) // block_size * block_size,
                                                   right, 0.0))),
        Hypothesis("the codes come back as they are: multiply by the scales", lambda: codes),
        Hypothesis("each row begins a new block: blocks run over the ends of rows",
                   with_scales(partial(of_layout, "rows"))),
        Hypothesis("blocks run down the columns: flatten row by row", with_scales(partial(of_layout, "columns"))),
    ]  # fmt: skip
    expected = Expected(
        name="the result", value=with_scales(lambda: right)(), dtype=torch.float32,
        allowed=allowed_error(torch.float32, float(x.abs().max())) / 16, mistakes=mistakes,
    )  # fmt: skip
    inputs = {"codes": codes.to(torch.int8), "scales": scales.float(), "block_size": block_size}
    return Step(
        position=1, inputs=inputs, judge=lambda got: judge_tensor(got, expected),
        where=f"the codes and scales of {_words(x, block_size, seed)}",
    )  # fmt: skip
