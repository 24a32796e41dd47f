"""What a storage is: weight, gradient, optimizer state, activation, input, temporary.

Nothing is hooked onto the program's own tensors. Weights are known by the model, or by being an `nn.Parameter` that an
operator reads. A gradient is what the graph's node makes that adds up into a parameter without a gradient, and whatever
is found in `.grad` when an optimizer's step begins or the timeline is asked. States are found in the optimizer when its
step is over. Activations are what `saved` finds.

A name that was given by hand stands. A weight or state that autograd saves or that `.grad` shows stays what it is.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cme295lab.memory.measurement.origin import Origins
from cme295lab.memory.measurement.records import (
    ACTIVATION,
    GRADIENT,
    INPUT,
    OPTIMIZER_STATE,
    TEMPORARY,
    WEAK,
    WEIGHT,
    SourceLine,
    StorageRecord,
)
from cme295lab.memory.measurement.storages import StorageLog

_functions: Any = torch._C._functions
_AccumulateGrad = _functions.AccumulateGrad
_aten = torch.ops.aten
# How such a node comes by a gradient where there was none: it keeps what it was given, or copies it.
_BECOMES_GRADIENT = {_aten.detach.default, _aten.clone.default, _aten.new_empty_strided.default}


class Classifier:
    """Names the storages of a log.

    Args:
        log: the log.
        origins: knows the names of parameters and where the program is.
    """

    def __init__(self, log: StorageLog, origins: Origins) -> None:
        self._log = log
        self._origins = origins
        self._named: tuple[int, int] | None = None  # backward pass and parameter of the last new gradient

    def enter_what_exists(self, model: nn.Module | None, optimizer: Any) -> None:
        """Enter weights, gradients and states that are there before the first operator."""
        tensors: list[tuple[str, Tensor]] = []
        if model is not None:
            tensors = [*model.named_parameters(), *model.named_buffers()]
        if optimizer is not None:
            tensors += [("", parameter) for group in optimizer.param_groups for parameter in group["params"]]
        for name, tensor in tensors:
            for record in self._log.see(tensor, _from_before, WEIGHT):
                record.name = record.name or name
        self.find_gradients(tensor for _, tensor in tensors)
        if optimizer is not None:
            self.step_ends(optimizer)

    def is_read(self, tensor: Tensor) -> None:
        """An operator reads a tensor."""
        is_parameter = type(tensor) is not Tensor and isinstance(tensor, nn.Parameter)  # the first is faster
        if self._log.is_known(tensor) and not is_parameter:
            return
        for record in self._log.see(tensor, self._as_input, WEIGHT if is_parameter else INPUT):
            if is_parameter and record.class_name in (TEMPORARY, INPUT):  # another tensor was put in its place
                self._name(record, WEIGHT, tensor)

    def is_made(self, tensors: Iterable[Tensor], operator: Any) -> None:
        """An operator has made tensors, or returns those that it changed."""
        parameter = None
        if operator in _BECOMES_GRADIENT:
            node: Any = torch._C._current_autograd_node()
            parameter = node.variable if isinstance(node, _AccumulateGrad) else None

        origin = functools.partial(self._as_output, operator)
        for tensor in tensors:
            if parameter is not None or not self._log.is_known(tensor):
                records = self._log.see(tensor, origin)
                if parameter is not None:
                    self._is_first_gradient(records, parameter)

    def is_saved(self, tensor: Tensor, packed: bool) -> None:
        """Autograd keeps a tensor for the backward pass.

        Args:
            tensor: which.
            packed: by the program's own hook, which may come before the operator. A tensor that is not known yet is
                then an input. Otherwise it is a number that autograd has made a tensor of.
        """
        for record in self._log.see(tensor, self._as_input, INPUT if packed else ACTIVATION):
            if record.class_name == TEMPORARY:
                self._name(record, ACTIVATION)

    def is_marked(self, tensors: Any, class_name: str) -> None:
        """The program says what tensors are."""
        for tensor in _tensors_in(tensors, strict=True):
            for record in self._log.see(tensor, self._as_input, class_name):
                self._log.rename(record, class_name)
                record.fixed = True

    def find_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Name what the parameters' `.grad` holds."""
        for parameter in parameters:
            if parameter.grad is not None:
                for record in self._log.see(parameter.grad, self._as_input, INPUT):
                    self._is_gradient(record, parameter)

    def step_begins(self, optimizer: Any) -> None:
        """Name an optimizer's parameters, where nothing has named them yet, and their gradients."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                for record in self._log.see(parameter, self._as_input, WEIGHT):
                    if record.class_name in WEAK:
                        self._name(record, WEIGHT, parameter)
            self.find_gradients(group["params"])

    def step_ends(self, optimizer: Any) -> None:
        """Name what the optimizer's state holds."""
        for parameter, state in optimizer.state.items():
            for tensor in _tensors_in(state):
                for record in self._log.see(tensor, self._as_input, INPUT):
                    if record.class_name != WEIGHT:
                        self._name(record, OPTIMIZER_STATE, parameter)

    def _is_first_gradient(self, records: Iterable[StorageRecord], parameter: Tensor) -> None:
        """Name it once per backward pass: the program's own hooks run in the same node, after it."""
        occasion = (torch._C._current_graph_task_id(), id(parameter))
        if occasion != self._named and parameter.grad is None:
            for record in records:
                self._is_gradient(record, parameter)
        self._named = occasion

    def _is_gradient(self, record: StorageRecord, parameter: Tensor) -> None:
        if record.class_name not in (WEIGHT, OPTIMIZER_STATE):
            self._name(record, GRADIENT, parameter)

    def _name(self, record: StorageRecord, class_name: str, parameter: Any = None) -> None:
        if not record.fixed:
            self._log.rename(record, class_name)
            if parameter is not None:
                record.name = self._origins.parameter_names.get(id(parameter), record.name)

    def _as_output(self, operator: Any) -> tuple[str, str, tuple[SourceLine, ...]]:
        return str(operator), self._origins.module, self._origins.stack()

    def _as_input(self) -> tuple[str, str, tuple[SourceLine, ...]]:
        return "", self._origins.module, self._origins.stack()


def _from_before() -> tuple[str, str, tuple[SourceLine, ...]]:
    return "", "", ()


def _tensors_in(values: Any, *, strict: bool = False) -> Iterator[Tensor]:
    """The tensors in a nest of mappings and iterables; anything else is an error, or left out unless `strict`."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        yield from _tensors_in(list(values.values()), strict=strict)
    elif isinstance(values, Iterable) and not isinstance(values, str):
        for value in values:
            yield from _tensors_in(value, strict=strict)
    elif strict:
        raise TypeError(f"tensors must hold tensors only, got {values!r} of type {type(values).__name__}")
