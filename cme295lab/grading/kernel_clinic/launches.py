"""Launch a student's kernel with the student's grid in the simulator, and record what it did to memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from cme295lab.grading.kernels import kernel_error, refuse_kernel
from cme295lab.grading.observe import (
    NOT_ATTEMPTED,
    LaunchFacts,
    MemoryAccess,
    Observation,
    StudentError,
    TimeLimitReached,
    is_stub,
    quiet,
    time_limit,
)
from cme295lab.grading.result import Kind, Outcome

DEVICE = "A100"
TIME_LIMIT_S = 10.0
Student = tuple[Any, Callable[..., Any]]
_MAX_AXES = 3


def refuse(student: Any, parameters: tuple[str, ...]) -> Outcome | None:
    """Say why this is not a pair of a kernel and its grid, or why the pair cannot be run.

    Args:
        student: what was handed over.
        parameters: the names with which the kernel's parameters must begin.
    """
    if not (isinstance(student, tuple) and len(student) == 2 and callable(student[1])):
        cause = "hand over two things: (the kernel, the function that returns its grid)"
        return Outcome(name="there are a kernel and a grid", kind=Kind.WRONG_SHAPE, cause=cause)
    kernel, grid = student
    refusal = refuse_kernel(kernel, parameters)
    if refusal is None and is_stub(grid):
        return Outcome(name="the grid is written", kind=NOT_ATTEMPTED.kind, cause=NOT_ATTEMPTED.cause)
    return refusal


def observe_launch(
    student: Student, tensors: Mapping[str, Tensor], numbers: tuple[int, ...], *, output: str, find_races: bool = False
) -> Observation:
    """Launch the kernel once: first the tensors, then the numbers; the grid is a function of the numbers.

    Args:
        student: the kernel and its grid.
        tensors: arguments by name; the kernel gets copies.
        numbers: the remaining arguments.
        output: the tensor that the kernel may change.
        find_races: whether to look for races, and for the share of the busiest program (this takes longer).

    Returns:
        `outputs[output]` as the kernel left it, changed inputs, and what the launch did.
    """
    from cme295lab import simulator

    kernel, grid = student
    given = {name: tensor.clone() for name, tensor in tensors.items()}
    error, facts = None, None
    try:
        with quiet(), time_limit(TIME_LIMIT_S):
            programs = grid(*numbers)
            if (error := _refused_grid(programs)) is None:
                with simulator.trace(device=DEVICE, record=find_races, check=find_races) as trace:
                    kernel[tuple(programs)](*given.values(), *numbers)
                facts = _facts(trace, find_races)
    except (Exception, TimeLimitReached) as reason:
        error = kernel_error(reason, TIME_LIMIT_S, _OUT_OF_BOUNDS)
    changed = (name for name, tensor in tensors.items() if name != output and not torch.equal(given[name], tensor))
    return Observation(
        outputs={output: given[output]},
        error=error,
        changed_inputs=tuple(changed) if error is None else (),
        launch=facts,
    )


_OUT_OF_BOUNDS = "a block reaches past the end of the tensor: the load or store of this line needs a mask="


def _refused_grid(programs: Any) -> StudentError | None:
    """Say why the student's grid is none."""
    listed = isinstance(programs, tuple | list) and 1 <= len(programs) <= _MAX_AXES
    if listed and all(isinstance(number, int) and not isinstance(number, bool) and number > 0 for number in programs):
        return None
    cause = "the grid must be a tuple of one to three positive whole numbers, such as (triton.cdiv(n, 64),)"
    return StudentError(Kind.WRONG_SHAPE, f"the grid is {programs!r}", cause)


def _facts(trace: Any, find_races: bool) -> LaunchFacts:
    """What the launch did, as plain data."""
    (launch,) = trace.launches
    accesses = tuple(
        MemoryAccess(
            kind=access.kind,
            tensor=access.tensor,
            line=f"line {access.line}: {access.source.strip()}",
            requested_bytes=access.requested_bytes,
            moved_bytes=access.moved_bytes,
        )
        for access in launch.accesses
    )
    if not find_races:
        return LaunchFacts(num_programs=launch.num_programs, accesses=accesses)
    # Without the detector's advice: the check has its own, which knows the exercise.
    races = tuple(problem.message.partition("\n  fix:")[0] for problem in trace.problems if problem.kind == "race")
    return LaunchFacts(
        num_programs=launch.num_programs, accesses=accesses, races=races, largest_share=_largest_share(launch)
    )


def _largest_share(launch: Any) -> float:
    """The share of all bytes that the busiest program moved."""
    x, y, z = launch.grid
    programs = ((i, j, k) for i in range(x) for j in range(y) for k in range(z))
    moved = [sum(step.num_bytes for step in launch.walk(program)) for program in programs]
    return max(moved) / sum(moved) if sum(moved) else 0.0
