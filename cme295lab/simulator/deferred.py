"""Writing operations on floats down on the machine's tape (see `tape`), instead of doing them at once.

An operation is deferred if it works on floats that differ between programs. Where programs share their rows
(`repeats`), so does the result of an operation on them, if all operands that differ between programs share alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import torch

from cme295lab.simulator.broadcasting import broadcast_sizes, lifted
from cme295lab.simulator.dtypes import DType
from cme295lab.simulator.machine import Machine
from cme295lab.simulator.tape import Function, PendingBlock, Step, spread
from cme295lab.simulator.values import Block, as_torch

Source = Step | torch.Tensor | float


def is_deferred(m: Machine, *operands: object) -> bool:
    """Whether an operation on these operands is one for the tape."""
    if m.num_active == 1:
        return False
    return any(isinstance(x, Block) and (is_pending(x, m) or x.terms(m.active)[0].shape[0] > 1) for x in operands)


def is_pending(x: object, m: Machine) -> TypeGuard[PendingBlock]:
    """Whether a value is on the tape, or was when it was made, with a row for each program that is active."""
    if not isinstance(x, PendingBlock):
        return False
    if x.programs is m.active:
        return True
    step = x.step
    return (
        step.first == 0
        and step.repeats == 1
        and x.programs.first_of is m.active.first_of
        and len(x.programs) >= len(m.active)
    )


def source(m: Machine, x: Any, rank: int) -> Source:
    """An operand as the input of a step: at `rank` block axes, its memory safe from being overwritten."""
    if not isinstance(x, Block):
        return x  # type: ignore[no-any-return]
    if not is_pending(x, m):
        x.exposed = True
        return as_torch(lifted(x.data(m.active), rank))
    step: Step = x.step
    missing = rank - len(step.size)
    return step if not missing else viewed_step(m, step, lambda t: lifted(t, rank), (1,) * missing + step.size)


def viewed_step(m: Machine, step: Step, view: Callable[[torch.Tensor], Any], size: tuple[int, ...]) -> Step:
    """The same numbers in another shape."""
    return m.tape.append(
        Step(lambda rows, out, x: view(x), [step], size, step.dtype, repeats=step.repeats, view=True), m.active
    )


def viewed(
    m: Machine, x: Block, view: Callable[[torch.Tensor], Any], size: tuple[int, ...], shape: tuple[int, ...]
) -> Block:
    """A pending block's elements in another shape, without moving data."""
    assert isinstance(x, PendingBlock)
    block = PendingBlock(viewed_step(m, x.step, view, size), m.tape, shape, m.active)
    block.temporary = False
    return block


def size_of(x: Source) -> tuple[int, ...]:
    """The lengths of an input's block axes, as stored."""
    return x.size if isinstance(x, Step) else tuple(x.shape[1:]) if isinstance(x, torch.Tensor) else ()


def together(m: Machine, sources: Sequence[Source]) -> tuple[list[Source], int]:
    """Inputs of which programs share rows in the same way, and how many share one."""
    runs = {x.repeats if isinstance(x, Step) else 1 for x in sources if has_rows(x)}
    if len(runs) <= 1:
        return list(sources), runs.pop() if runs else 1
    return [written_out(m, x) for x in sources], 1


def has_rows(x: Source) -> bool:
    """Whether an input differs between programs."""
    return isinstance(x, Step) or (isinstance(x, torch.Tensor) and x.shape[0] > 1)


def written_out(m: Machine, x: Source) -> Source:
    """An input with a row of its own for each program."""
    if not isinstance(x, Step) or x.repeats == 1:
        return x

    def write_out(rows: slice, out: torch.Tensor | None, shared: torch.Tensor, repeats: int) -> torch.Tensor:
        if rows.stop - rows.start < repeats:  # a chunk within one run
            return shared.expand(rows.stop - rows.start, *shared.shape[1:]).contiguous()
        return spread(shared, repeats)

    return m.tape.append(Step(write_out, [x, x.repeats], x.size, x.dtype), m.active)


def record(
    m: Machine, function: Function, sources: Sequence[Source], size: tuple[int, ...], dtype: DType,
    shape: tuple[int, ...], *, overwrites: Sequence[int] = (), repeats: int = 1,
) -> Block:  # fmt: skip
    """Write a step down; a new value."""
    step = Step(function, sources, size, dtype, overwrites=overwrites, repeats=repeats)
    block = PendingBlock(m.tape.append(step, m.active), m.tape, shape, m.active)
    m.note_block(block)
    return block


def elementwise(
    m: Machine, function: Callable[..., torch.Tensor], operands: Sequence[Any], dtype: DType, shape: tuple[int, ...]
) -> Block:
    """An operation that PyTorch has element by element, with an `out` argument."""
    rank = len(shape)
    sources, repeats = together(m, [source(m, x, rank) for x in operands])
    size: tuple[int, ...] = (1,) * rank
    for x in sources:
        if not isinstance(x, float | int):
            size = broadcast_sizes(size, size_of(x))
    return record(
        m, lambda rows, out, *args: function(*args, out=out), sources, size, dtype, shape,
        overwrites=range(len(sources)), repeats=repeats,
    )  # fmt: skip
