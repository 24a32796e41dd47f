"""What the checks of Triton kernels share: refusing what is no kernel, and describing what stopped one."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any

from cme295lab.grading.observe import NOT_ATTEMPTED, StudentError, student_error
from cme295lab.grading.result import Kind, Outcome


def refuse_kernel(kernel: Any, first_parameters: tuple[str, ...]) -> Outcome | None:
    """Say why a kernel cannot be run: no kernel, other parameters, or a stub.

    Args:
        kernel: what the student handed over.
        first_parameters: the names with which its parameters must begin; the simulator counts under them.
    """
    function = getattr(kernel, "fn", None)
    if not inspect.isfunction(function):
        cause = f"hand over the @triton.jit kernel itself; this is a {type(kernel).__name__}"
        return Outcome(name="the kernel is a Triton kernel", kind=Kind.WRONG_SHAPE, cause=cause)
    names = tuple(inspect.signature(function).parameters)
    if names[: len(first_parameters)] != first_parameters:
        cause = f"the kernel's arguments must begin with {', '.join(first_parameters)}; yours are {', '.join(names)}"
        return Outcome(name="the arguments of the stub are kept", kind=Kind.WRONG_SHAPE, cause=cause)
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    raised = {ast.unparse(node.exc) for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc}
    if any(text.startswith("NotImplementedError") for text in raised):
        return Outcome(name="the kernel is written", kind=NOT_ATTEMPTED.kind, cause=NOT_ATTEMPTED.cause)
    return None


def kernel_error(error: BaseException, time_limit_s: float, out_of_bounds: str = "") -> StudentError:
    """Describe what stopped a kernel, by the student's own line.

    Args:
        error: what was raised inside the simulator.
        time_limit_s: the limit under which the kernel ran.
        out_of_bounds: the likely cause if the kernel left a tensor.
    """
    from cme295lab.simulator import OutOfBoundsError, SimulatorError

    if not isinstance(error, SimulatorError):
        return student_error(error, time_limit_s)
    place = f"\nat line {error.place.line}: {error.place.source.strip()}" if error.place else ""
    cause = out_of_bounds if isinstance(error, OutOfBoundsError) else ""
    return StudentError(Kind.CRASHED, error.message + place, cause)
