"""Where the program is: the phase of the training step, the module at work, the lines that led here.

The phase is "backward" while autograd runs a backward pass, else "forward" inside a module or where an operator extends
the graph, else "optimizer step" between an optimizer's begin and end of `step`, else "other". A name given by hand
stands above all.

Modules are known by torch's global hooks on every module's forward. During the backward pass the path is that of the
module whose forward was at work when the graph's node was made: nodes are numbered in the order of their making, and
where a module begins and ends is noted by that number. The node that adds up a gradient is known by its parameter.
"""

from __future__ import annotations

import bisect
import sys
import sysconfig
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as module_hooks
from torch.optim import optimizer as optimizer_hooks

from cme295lab.memory.measurement.records import SourceLine

MAX_STACK_LINES = 8
_LIBRARIES = (
    str(Path(torch.__file__).parent),
    str(Path(__file__).parents[1]),
    sysconfig.get_path("stdlib"),
    sysconfig.get_path("purelib"),
    sysconfig.get_path("platlib"),
)
_IN_NO_FILE = "<"  # "<frozen importlib>", "<string>"; a notebook's cell has a file name of its own
_LAST_NODE = 2**63  # nodes that add up gradients carry a number beyond


class Origins:
    """Answers where the program is, between `start` and `stop`.

    Args:
        model: whose modules have paths; others are called by their class.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self.parameter_names: dict[int, str] = {}
        self._paths: dict[int, str] = {}
        self._optimizers: set[int] = set()
        self._manual: list[str] = []
        self._modules: dict[int, list[str]] = {}  # the modules at work in each thread
        self._marks: list[int] = []  # the number of the next node when a module began or ended ...
        self._marked: list[str] = []  # ... and the module at work from there on
        self._is_own_file: dict[str, bool] = {}  # the program's, rather than Python's, torch's or this package's
        self._handles: list[Any] = []
        self.extends_graph = False  # whether the operator at work does; set by the timeline
        if model is not None:
            self._paths = {id(part): path or type(part).__name__ for path, part in model.named_modules()}
            self.parameter_names = {id(p): path for path, p in model.named_parameters()}

    def start(self, *, on_step_begin: Callable[[Any], None], on_step_end: Callable[[Any], None]) -> None:
        """Install the hooks.

        Args:
            on_step_begin, on_step_end: called with an optimizer when its step begins and when it is over.
        """
        self._handles = [
            module_hooks.register_module_forward_pre_hook(self._module_begins),
            module_hooks.register_module_forward_hook(self._module_ends, always_call=True),
            optimizer_hooks.register_optimizer_step_pre_hook(partial(self._step_begins, on_step_begin)),
            optimizer_hooks.register_optimizer_step_post_hook(partial(self._step_ends, on_step_end)),
        ]

    def stop(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @property
    def phase(self) -> str:
        """The phase of the step."""
        if self._manual:
            return self._manual[-1]
        if torch._C._current_graph_task_id() != -1:
            return "backward"
        if self.extends_graph or self._modules.get(threading.get_ident()):
            return "forward"
        return "optimizer step" if self._optimizers else "other"

    def push_phase(self, name: str) -> None:
        """From now on the phase is called `name`."""
        self._manual.append(name)

    def pop_phase(self) -> None:
        """The phase is what it was before the last `push_phase`."""
        self._manual.pop()

    @property
    def module(self) -> str:
        """Path of the module at work, or whose backward pass is; empty outside modules."""
        at_work = self._modules.get(threading.get_ident())
        if at_work:
            return at_work[-1]
        node: Any = torch._C._current_autograd_node()
        if node is None:
            return ""
        number = node._sequence_nr()
        if number >= _LAST_NODE:
            return self.parameter_names.get(id(getattr(node, "variable", None)), "")
        position = bisect.bisect_right(self._marks, number)
        return self._marked[position - 1] if position else ""

    def stack(self) -> tuple[SourceLine, ...]:
        """The lines of the program that led here, the innermost first."""
        lines: list[SourceLine] = []
        frame = sys._getframe(1)
        while frame is not None and len(lines) < MAX_STACK_LINES:
            file = frame.f_code.co_filename
            own = self._is_own_file.get(file)
            if own is None:
                own = self._is_own_file[file] = not file.startswith((*_LIBRARIES, _IN_NO_FILE))
            if own:
                lines.append(SourceLine(file, frame.f_lineno, frame.f_code.co_name))
            frame = frame.f_back  # type: ignore[assignment]
        return tuple(lines)

    def _module_begins(self, module: nn.Module, _: Any) -> None:
        at_work = self._modules.setdefault(threading.get_ident(), [])
        path = self._paths.get(id(module))
        if path is None:
            path = f"{at_work[-1]}.{type(module).__name__}" if at_work else type(module).__name__
        at_work.append(path)
        self._mark(path)

    def _module_ends(self, module: nn.Module, *_: Any) -> None:
        at_work = self._modules.get(threading.get_ident())
        if at_work:  # a module that was at work when the hooks were installed ends without having begun
            at_work.pop()
            self._mark(at_work[-1] if at_work else "")

    def _mark(self, path: str) -> None:
        number = torch._C._autograd._get_sequence_nr()
        if not self._marks or number >= self._marks[-1]:  # other threads number their nodes by themselves
            self._marks.append(number)
            self._marked.append(path)

    def _step_begins(self, call: Callable[[Any], None], optimizer: Any, *_: Any) -> None:
        self._optimizers.add(id(optimizer))
        call(optimizer)

    def _step_ends(self, call: Callable[[Any], None], optimizer: Any, *_: Any) -> None:
        self._optimizers.discard(id(optimizer))
        call(optimizer)
