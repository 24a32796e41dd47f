"""Calling a student's function where any way is allowed: numpy and plain Python, too, as no memory is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from cme295lab.grading.observe import Observation, TimeLimitReached, quiet, student_error, time_limit

_TIME_LIMIT_S = 10.0


def observe_plainly(function: Callable[..., Any], inputs: Mapping[str, Any]) -> Observation:
    """Call a function and record its result and which tensors it changed.

    Args:
        function: the student's, or one that calls it.
        inputs: its arguments by name; tensors are copied.

    Returns:
        The observation; `outputs["result"]` holds what the function returned.
    """
    copies = {name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}
    try:
        with quiet(), time_limit(_TIME_LIMIT_S):
            result = function(**copies)
    except (Exception, TimeLimitReached) as error:
        return Observation(error=student_error(error, _TIME_LIMIT_S))
    changed = tuple(
        name for name, value in inputs.items() if isinstance(value, Tensor) and not torch.equal(value, copies[name])
    )
    return Observation(outputs={"result": result}, changed_inputs=changed)
