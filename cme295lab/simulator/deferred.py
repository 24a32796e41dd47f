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
from cme295lab.simulator.programs import ProgramSet
from cme295lab.simulator.steps import Function, Step
from cme295lab.simulator.tape import PendingBlock, spread
from cme295lab.simulator.values import Block, as_torch

Source = Step | torch.Tensor | float


def is_deferred(m: Machine, *operands: object) -> bool:
    """Whether an operation on these operands is one for the tape."""
    active = m.active
    if active.size == 1 and m.tape.computes:
        return False
    return any(isinstance(x, Block) and (is_pending(x, m) or x.terms(active)[0].shape[0] > 1) for x in operands)


def is_pending(x: object, m: Machine) -> TypeGuard[PendingBlock]:
    """Whether a value is on the tape, or was when it was made, with a row for each program that is active."""
    if x.__class__ is not PendingBlock:
        return False
    if not m.tape.computes:
        return True
    step: Step = x.step  # type: ignore[attr-defined]
    programs: ProgramSet = x.programs  # type: ignore[attr-defined]
    if programs is m.active:
        return step.first == 0
    return (
        programs.first_of is m.active.first_of
        and step.first == 0
        and step.repeats == 1
        and programs.size >= m.active.size
    )


def source(m: Machine, x: Any, rank: int) -> Any:
    """An operand as the input of a step: at `rank` block axes, its memory safe from being overwritten."""
    if not isinstance(x, Block):
        return x
    if not is_pending(x, m):
        x.exposed = True
        return as_torch(lifted(x.data(m.active), rank))
    step = x.step
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
    return x.__class__ is Step or (isinstance(x, torch.Tensor) and x.shape[0] > 1)


def written_out(m: Machine, x: Source) -> Source:
    """An input with a row of its own for each program."""
    if not isinstance(x, Step) or x.repeats == 1:
        return x

    def write_out(rows: slice, out: torch.Tensor | None, shared: torch.Tensor, repeats: int) -> torch.Tensor:
        if rows.stop - rows.start < repeats:  # a chunk within one run
            return shared.expand(rows.stop - rows.start, *shared.shape[1:]).contiguous()
        return spread(shared, repeats)

    return m.tape.append(Step(write_out, [x, x.repeats], x.size, x.dtype), m.active)


def blank(m: Machine, dtype: DType, shape: tuple[int, ...]) -> Block:
    """A value that will not be computed."""
    return record(m, _nothing, (), shape, dtype, shape)


def _nothing(rows: slice, out: torch.Tensor | None) -> torch.Tensor:
    raise AssertionError("a step of a blank tape is never done")


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
    sources: list[Any] = []
    size: tuple[int, ...] = ()
    repeats = 0  # none known yet
    for x in operands:
        x = source(m, x, rank)
        sources.append(x)
        if x.__class__ is Step:
            itself, shared = x.size, x.repeats
        elif isinstance(x, torch.Tensor):
            itself, shared = tuple(x.shape[1:]), 1 if x.shape[0] > 1 else repeats
        else:
            continue
        if itself != size:
            size = broadcast_sizes(size, itself) if size else itself
        if shared != repeats:
            repeats = shared if not repeats else -1
    if repeats < 0:  # programs share rows in different ways
        sources, repeats = [written_out(m, x) for x in sources], 1
    step = Step(function, sources, size, dtype, repeats, overwrites=range(len(sources)), is_plain=True)
    block = PendingBlock(m.tape.append(step, m.active), m.tape, shape, m.active)
    m.note_block(block)
    return block
