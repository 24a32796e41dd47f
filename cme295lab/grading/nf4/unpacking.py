"""Part 3: from bytes and constants back to a tensor of any shape and dtype."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cme295lab.grading.compare import Expected, Hypothesis, judge_tensor
from cme295lab.grading.exercise import Property
from cme295lab.grading.nf4.packing import CUBES, join
from cme295lab.grading.nf4.table import levels
from cme295lab.grading.observe import refuse_function
from cme295lab.grading.quantizers.blocks import Blocking, blocks_of
from cme295lab.grading.result import Outcome
from cme295lab.grading.steps import Step


def properties(*, seed: int = 0, block_size: int = 64, num_blocks: int = 5, row: int = 50) -> list[Property]:
    """What must hold for `nf4_dequantize(packed, absmax, code, shape, dtype, block_size) -> x`.

    Args:
        seed: seeds the random codes and constants.
        block_size: numbers of a block, even.
        num_blocks: of the vector, above 1.
        row: numbers in a row of the matrix, of which block_size is no divisor.
    """
    step = partial(_step, seed, block_size)
    whole = "bytes and constants become numbers"
    ragged = block_size * num_blocks + block_size // 2 + 1
    return [
        step((block_size * num_blocks,)).as_property(whole, weight=3),
        step((ragged,)).as_property("the last block may be shorter, the last byte half full"),
        step((7, row)).as_property("a matrix comes back as a matrix"),
        step((block_size * num_blocks,), torch.bfloat16).as_property(
            "bfloat16 is rounded to once, at the end", weight=2
        ),
        step((3, 5, 6), torch.float16).as_property("float16, and three dimensions"),
        step((4 * block_size,), code=CUBES.float()).as_property("another table of levels can be used", needs=(whole,)),
    ]


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "nf4_dequantize")


def _step(
    seed: int, block_size: int, shape: Sequence[int], dtype: torch.dtype = torch.float32, code: Tensor | None = None
) -> Step:
    size = torch.Size(shape).numel()
    generator = torch.Generator().manual_seed(seed + size)
    codes = torch.randint(16, (size,), generator=generator)
    absmax = 0.05 + torch.rand(-(-size // block_size), generator=generator)
    table = levels().float() if code is None else code
    right = (table[codes] * absmax.repeat_interleave(block_size)[:size]).view(*shape)  # float32, as it should be
    expected = Expected(
        name="the result", value=right.to(dtype).double(), dtype=dtype, allowed=3e-7,
        mistakes=[*_mistakes(codes, absmax, table, shape, block_size), _too_early(codes, absmax, table, shape, dtype,
                                                                                  block_size)],
    )  # fmt: skip
    inputs = {
        "packed": join(codes).to(torch.uint8), "absmax": absmax, "code": table, "shape": tuple(shape), "dtype": dtype,
        "block_size": block_size,
    }  # fmt: skip
    where = f"shape={tuple(shape)}, dtype={dtype}, block_size={block_size}, seed {seed}"
    return Step(position=None, inputs=inputs, judge=lambda got: judge_tensor(got, expected), where=where)


def _too_early(
    codes: Tensor, absmax: Tensor, table: Tensor, shape: Sequence[int], dtype: torch.dtype, block_size: int
) -> Hypothesis:
    """The product taken in the dtype of the result: three roundings instead of one."""
    constants = absmax.repeat_interleave(block_size)[: len(codes)].to(dtype)
    cause = "levels and constants are rounded before they are multiplied: multiply in float32, convert at the end"
    return Hypothesis(cause, lambda: (table.to(dtype)[codes] * constants).view(*shape))


def _mistakes(
    codes: Tensor, absmax: Tensor, code: Tensor, shape: Sequence[int], block_size: int
) -> list[Hypothesis]:  # fmt: skip
    size, table, constants = len(codes), code.double(), absmax.double()
    filled = torch.cat((codes, codes.new_zeros(size % 2)))
    exchanged = filled.view(-1, 2).flip(1).flatten()[:size]
    apart = torch.cat((filled[0::2], filled[1::2]))[:size]
    right = constants.repeat_interleave(block_size)[:size]

    def result(which: Tensor, each: Tensor, levels: Tensor = table) -> Callable[[], Tensor]:
        return lambda: (levels[which] * each).view(*shape)

    def of_layout(layout: str) -> Tensor:
        found = torch.zeros_like(right)
        for number, block in enumerate(blocks_of(shape, block_size, Blocking(blocks=layout))):
            found[block] = constants[number % len(constants)]
        return found

    turns = constants.repeat(-(-size // len(constants)))[:size]
    return [
        Hypothesis("the halves of each byte are exchanged: the first code is in the high half, byte >> 4",
                   result(exchanged, right)),
        Hypothesis("all high halves come first, then all low ones: the two of a byte are neighbours",
                   result(apart, right)),
        Hypothesis("all low halves come first, then all high ones: the two of a byte are neighbours",
                   result(torch.cat((filled[1::2], filled[0::2]))[:size], right)),
        Hypothesis("constants take turns, number by number: repeat_interleave keeps those of a block together",
                   result(codes, turns)),
        Hypothesis("each row begins a new block: blocks run over the ends of rows", result(codes, of_layout("rows"))),
        Hypothesis("blocks run down the columns: they run row by row", result(codes, of_layout("columns"))),
        Hypothesis("there is one constant for all: each block has its own", result(codes, constants[0])),
        Hypothesis("the levels are not multiplied by absmax", result(codes, torch.ones_like(right))),
        Hypothesis("the levels are divided by absmax: they are multiplied", result(codes, 1 / right)),
        Hypothesis("the table of NF4 is used: use the one that is given, `code`",
                   result(codes, right, levels())),
        Hypothesis("these are codes: look them up in the table", result(codes, right, torch.arange(16).double())),
        Hypothesis("these are codes: look them up in the table, and multiply by absmax",
                   result(codes, torch.ones_like(right), torch.arange(16).double())),
        Hypothesis("the table is read from its end: code 0 is the smallest level", result(15 - codes, right)),
    ]  # fmt: skip
