"""When the units of a sharded model come, compute, and go: the hooks on forward and backward.

A hook before and after each unit's forward gathers and frees it, and has the next one gathered while it computes. A
hook on its output asks for its weights again when the output's gradient is there. One on each parameter takes its
gradient as soon as it is complete.

**Which units are done with** in a backward pass is told by numbers: each call of a unit gets the next one. Autograd
works through the operations in the reverse order of their making. So when it comes to the output of call 7, nothing
of the calls from 8 on is left to do, whether or not all of their parameters got gradients; a unit whose first call was
number 8 or later is finished. The parameters of the root unit have no forward of their own; for them it is the number
of calls before the first module that uses them counts, embeddings left out, as these do not read weights in backward.

**One order on all ranks.** Gathers and sums are messages, and must be in the same order everywhere. They are: their
order follows from the calls of units alone, except that a unit's sum may start a little earlier, as soon as its last
gradient is there; in between nothing else is sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cme295lab.parallel.sharding.sharded_parameters import ShardedParameters
from cme295lab.parallel.sharding.sharded_unit import ShardedUnit

_NEVER_EARLY = -1  # first use of a unit that is needed until the end of backward


class UnitSchedule:
    """Brings the weights of each unit for its forward and its backward, and takes its gradients away.

    Args:
        model: the whole; its forward is watched, too.
        units: its units, the root unit last.
        compute_dtype: floating inputs of the model are converted to it; None: they stay.
        prefetch: gather the next unit while one computes.
        keep_root: do not free the root unit between forward and backward.
        scale: factor of the sums of gradients.

    Attributes:
        is_syncing: whether gradients are sent home.
    """

    def __init__(
        self,
        model: nn.Module,
        units: Sequence[ShardedUnit],
        *,
        compute_dtype: torch.dtype | None,
        prefetch: bool,
        keep_root: bool,
        scale: float,
    ) -> None:
        self.is_syncing = True
        self._model = model
        self._units = units
        self._compute_dtype = compute_dtype
        self._prefetch = prefetch
        self._keep_root = keep_root
        self._scale = scale
        self._root = units[-1]
        self._expected = list(units[:-1])  # the units' order of the last complete forward
        self._calls: list[ShardedUnit] = []  # of the forward that is under way
        self._num_calls = 0  # since the last backward
        self._first_use: dict[ShardedUnit, int] = {}  # number of the call, since the last backward
        self._next: ShardedUnit | None = None  # to be gathered ahead in backward
        self._in_backward = False
        self._open: list[ShardedUnit] = []  # in backward, gradients not yet on their way
        self._summing: list[ShardedParameters] = []  # gradients on their way
        self._hooks = list(self._register_hooks())

    def close(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def free_all(self) -> None:
        """Free every unit that is gathered."""
        for unit in self._units:
            unit.free()

    # --- forward ---

    def _register_hooks(self) -> Iterator[Any]:
        yield self._model.register_forward_pre_hook(self._before_model, with_kwargs=True)
        yield self._model.register_forward_hook(self._after_model)
        for unit in self._units[:-1]:
            yield unit.module.register_forward_pre_hook(partial(self._before_unit, unit))
            yield unit.module.register_forward_hook(partial(self._after_unit, unit))
        of_root = {id(parameter) for part in self._root.parts for parameter in part.parameters.values()}
        for module in self._model.modules():
            if any(id(parameter) in of_root for parameter in module.parameters(recurse=False)):
                yield module.register_forward_pre_hook(self._note_use_of_root)
        for unit in self._units:
            for parameter in unit.trained.parameters.values() if unit.trained else ():
                yield parameter.register_post_accumulate_grad_hook(partial(self._take_gradient, unit))

    def _before_model(self, _: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        if not _autograd_is_running():
            self._forget_what_failed()
        self._root.gather()
        if self._prefetch and self._expected:
            self._expected[0].start_gather()
        if self._compute_dtype is None:
            return None
        return _converted(args, self._compute_dtype), _converted(kwargs, self._compute_dtype)

    def _before_unit(self, unit: ShardedUnit, *_: Any) -> None:
        unit.gather()
        if _autograd_is_running():  # a layer runs again, for its backward
            self._first_use.setdefault(unit, unit.last_call)
            return
        unit.last_call, unit.called_after = self._num_calls, self._calls[-1] if self._calls else None
        self._calls.append(unit)
        self._num_calls += 1
        if torch.is_grad_enabled():
            self._first_use.setdefault(unit, unit.last_call)
        position = len(self._calls)
        if self._prefetch and position < len(self._expected) and self._expected[position - 1] is unit:
            self._expected[position].start_gather()

    def _after_unit(self, unit: ShardedUnit, _: nn.Module, __: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            self._watch(output, unit, unit.last_call, unit.called_after)
        if not _autograd_is_running():
            unit.free()

    def _note_use_of_root(self, module: nn.Module, _: Any) -> None:
        if isinstance(module, nn.Embedding) or not torch.is_grad_enabled():
            return  # an embedding reads only the numbers of its rows in backward
        contains_units = any(unit.module is not module and unit.module in module.modules() for unit in self._units[:-1])
        number = _NEVER_EARLY if contains_units else self._num_calls
        self._first_use[self._root] = min(number, self._first_use.get(self._root, number))

    def _after_model(self, _: nn.Module, __: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            self._watch(output, self._root, self._num_calls, self._calls[-1] if self._calls else None)
        if _autograd_is_running():
            return
        for unit in self._expected:
            unit.free()  # one that was gathered ahead and never called
        if not (self._keep_root and torch.is_grad_enabled()):
            self._root.free()
        self._expected, self._calls = list(dict.fromkeys(self._calls)) or self._expected, []

    def _watch(self, output: Any, unit: ShardedUnit, call: int, earlier: ShardedUnit | None) -> None:
        """See to it that we are asked before the gradient of an output goes on into its unit."""
        tensors = list(_tensors_in(output))
        if not tensors:
            raise TypeError(
                f"the forward of {unit.name} returns {type(output).__name__} without a tensor that could be found; "
                "return a tensor, or a tuple, list, dict or dataclass of tensors, so that its backward can be noticed"
            )
        for tensor in tensors:
            if tensor.requires_grad:
                tensor.register_hook(partial(self._before_backward, unit, call, earlier))

    # --- backward ---

    def _before_backward(self, unit: ShardedUnit, call: int, earlier: ShardedUnit | None, _: Tensor) -> None:
        """The gradient of a unit's output is there: finish what came later in forward, and get its weights."""
        if not self._in_backward:
            self._in_backward = True
            torch.autograd.Variable._execution_engine.queue_callback(self._after_backward)
        self._gather_next()  # the last unit's turn to do so, had it had a gradient
        self._finish_after(call)
        unit.gather()
        if unit.trained and unit not in self._open:
            self._open.append(unit)
        self._next = earlier if self._prefetch else None
        if not self._summing or unit.trained is None:
            self._gather_next()

    def _take_gradient(self, unit: ShardedUnit, parameter: nn.Parameter) -> None:
        """A parameter's gradient is there: put it to those of its unit, and send them when they are complete."""
        if not self.is_syncing:
            return
        assert unit.trained is not None
        if not unit.trained.has_collected:
            self._finish_sums()
            self._gather_next()
        if unit.trained.collect(parameter) and not unit.is_root:
            self._send_gradients(unit)

    def _gather_next(self) -> None:
        if self._next is not None:
            self._next.start_gather()
            self._next = None

    def _send_gradients(self, unit: ShardedUnit) -> None:
        self._open.remove(unit)
        if unit.trained is None or not self.is_syncing:
            return
        unit.trained.free()
        unit.trained.start_reduce()
        self._summing.append(unit.trained)

    def _finish_sums(self) -> None:
        while self._summing:
            self._summing.pop(0).finish_reduce(self._scale)

    def _finish_after(self, call: int) -> None:
        """Finish the units whose every call came after a call: autograd has gone through them."""
        for unit in [unit for unit, first in self._first_use.items() if first > call]:
            if not unit.is_root and unit in self._open:
                self._send_gradients(unit)
            unit.free()

    def _after_backward(self) -> None:
        """Autograd is at its end: finish the rest, in an order that is the same on all ranks, the root unit last."""
        for unit in self._units:
            if unit in self._open or (self.is_syncing and unit.trained and unit.trained.has_leftovers):
                self._send_gradients(unit)
                self._finish_sums()
        self._finish_sums()
        self.free_all()
        self._reset()

    def _reset(self) -> None:
        self._in_backward = False
        self._open, self._summing, self._next = [], [], None
        self._first_use, self._num_calls = {}, 0

    def _forget_what_failed(self) -> None:
        """Start anew after a forward or a backward that ended in an exception, or was never followed by another."""
        if self._in_backward:
            for unit in self._units:
                if unit.trained:
                    unit.trained.drop_collected()
            self._reset()
        self._calls = []
        self.free_all()  # what is gathered may be older than the shards


def _autograd_is_running() -> bool:
    """Whether this thread is within a backward pass: a forward that runs now is one that runs again."""
    return torch._C._current_graph_task_id() != -1


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors_in(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _tensors_in(getattr(value, field.name))


def _converted(value: Any, dtype: torch.dtype) -> Any:
    """Floating tensors in arguments, in another dtype."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _converted(item, dtype) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_converted(item, dtype) for item in value)
    return value
