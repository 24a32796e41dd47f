"""The memory of a training step, measured: every byte that tensors hold, from allocation to release.

    with MemoryTimeline(model=model, optimizer=optimizer) as m:
        model.loss(tokens, targets).backward()
        optimizer.step()
    m.peak_bytes, m.peak            # the highest sum of live storages, and what it was made of

A mode on torch's dispatcher sees each operator that runs, forward and backward, ours, the program's and torch's. The
storages of its outputs are followed until they are released (`storages`), so views count once, in-place operators
nothing, and a tensor that autograd keeps alive counts as long as it does. What there was before counts, too: the
tensors of `model` and `optimizer` from the start, others from the first operator that reads them.

What a storage is:

- "weight": a parameter or buffer. "gradient": what was added up into a parameter's `.grad`. "optimizer state": found in
  the state of an optimizer after its step.
- "activation": saved by autograd for the backward pass (`saved`). It keeps that name until it is released, also where
  the program itself holds on to it longer.
- "input": there before, or made outside torch's operators (`torch.tensor`, NumPy), and none of the above.
- "temporary": everything else. What a distributed wrapper holds can be named by `mark`.

A name may come after the fact: a product is saved after it was computed. Then it holds from the storage's first moment
(`records`), so the composition of a peak is told with what is known later.

What is counted is exact: the sum of the sizes of live storages. What is not counted: memory that a kernel takes and
gives back within one operator (workspaces of matrix products and convolutions), rounding and fragmentation of the
allocator, the second copy while `resize_` moves a storage. Code compiled by `torch.compile` runs outside the
dispatcher's view: out of scope. So are threads that the program starts by itself; autograd's own threads are seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from cme295lab.memory.origin import Origins
from cme295lab.memory.records import (
    ACTIVATION,
    GRADIENT,
    INPUT,
    OPTIMIZER_STATE,
    TEMPORARY,
    WEIGHT,
    Event,
    SourceLine,
    StorageRecord,
)
from cme295lab.memory.saved import SavedTensors
from cme295lab.memory.storages import StorageLog

_PLAIN = (Tensor, nn.Parameter, nn.Buffer)
_WEAK = (TEMPORARY, INPUT)


class MemoryTimeline(TorchDispatchMode):
    """Follows the memory of tensors while its block runs.

    Args:
        model: whose parameters and buffers are weights, and whose modules have paths.
        optimizer: an optimizer, or a wrapper with `param_groups` and `state`; its states count from the start. (Other
            optimizers are noticed at their first step.)
        device: "cpu" or "cuda" to follow only that; by default both, added up.

    Raises:
        TypeError: if model is no module or optimizer no optimizer.
        ValueError: if the device is unknown.
    """

    supports_higher_order_operators = True

    def __init__(
        self, *, model: nn.Module | None = None, optimizer: Any = None, device: str | torch.device | None = None
    ) -> None:
        super().__init__()
        if model is not None and not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module or None, got {type(model).__name__}")
        if optimizer is not None and not (hasattr(optimizer, "param_groups") and hasattr(optimizer, "state")):
            raise TypeError(
                f"optimizer must have `param_groups` and `state`, as torch's have, got {type(optimizer).__name__}"
            )
        device_type = None if device is None else torch.device(device).type
        if device_type not in (None, "cpu", "cuda"):
            raise ValueError(f"device must be 'cpu', 'cuda' or None for both, got {device!r}")
        self._model, self._optimizer = model, optimizer
        self._origins = Origins(model)
        self._origins.on_step_begin = self._name_gradients
        self._origins.on_step_end = self._name_states
        self._log = StorageLog(device_type, lambda: self._origins.phase)
        self._saved = SavedTensors(self._is_saved)
        self._added_up: tuple[int, int] | None = None  # backward pass and parameter whose gradient was named last
        self._entered = False

    # ---- what was measured

    @property
    def live_bytes(self) -> int:
        """The sum of all storages that are alive now; after the block, of those that were at its end."""
        self._log.settle()
        return self._log.live_bytes

    @property
    def peak_bytes(self) -> int:
        """The highest `live_bytes` so far."""
        return self._log.peak_bytes

    @property
    def peak(self) -> dict[str, int]:
        """Bytes by class at the (first) moment of the peak, largest first."""
        return self.composition(self._log.peak_event)

    @property
    def peak_event(self) -> int:
        """Number of the event at which the peak was reached; -1 before there is any."""
        return self._log.peak_event

    @property
    def events(self) -> list[Event]:
        """Everything that happened, in order."""
        self._look()
        return self._log.events

    @property
    def records(self) -> list[StorageRecord]:
        """All storages, in the order in which they were first seen."""
        self._look()
        return self._log.records

    def by_class(self) -> dict[str, int]:
        """Bytes that are alive now by class, largest first."""
        self._look()
        return _sum_by_class((record.class_name, record.num_bytes) for record in self._log.live_records())

    def composition(self, event: int) -> dict[str, int]:
        """Bytes by class after an event, largest first."""
        return _sum_by_class((record.class_at(event), num_bytes) for record, num_bytes in self.alive_at(event).items())

    def alive_at(self, event: int) -> dict[StorageRecord, int]:
        """The storages that are alive after an event, and their bytes then.

        Raises:
            ValueError: if there is no such event.
        """
        events = self.events
        if not -1 <= event < len(events):
            raise ValueError(f"event must be one of {len(events)}, counted from 0, or -1 for before all, got {event}")
        alive: dict[StorageRecord, int] = {}
        for record, kind, _, after_bytes, _, _ in events[: event + 1]:
            if kind == "free":
                alive.pop(record, None)
            else:
                alive[record] = after_bytes
        return alive

    # ---- what the program may say

    def mark(self, tensors: Any, class_name: str) -> None:
        """Say what tensors are, and let nothing else rename them.

        Args:
            tensors: a tensor, or a mapping, sequence or iterator of such.
            class_name: one of the classes or a name of your own, such as "gathered weight".

        Raises:
            TypeError: if there is something in it that is not a tensor.
            ValueError: if the name is empty.
        """
        if not isinstance(class_name, str) or not class_name:
            raise ValueError(f"class_name must be a name such as 'gradient', got {class_name!r}")
        for tensor in _flatten(tensors):
            for record in self._log.see(tensor, self._origin_of_input, class_name):
                record.fixed = False
                self._name(record, class_name)
                record.fixed = True

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Call the phase `name` while this block runs."""
        self._origins.push_phase(name)
        try:
            yield
        finally:
            self._origins.pop_phase()

    def reset_peak(self) -> None:
        """Forget the peak so far: the next one is sought from here on."""
        self._log.reset_peak()

    # ---- how it is measured

    def __enter__(self) -> MemoryTimeline:
        if self._entered:
            raise RuntimeError("a MemoryTimeline measures one block: make a new one for the next")
        self._entered = True
        self._resize = torch.UntypedStorage.__dict__.get("resize_")
        self._watch_resizing()
        self._saved.start()
        self._origins.start()
        self._enter_what_exists()
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)
        self._look()
        self._origins.stop()
        self._saved.stop()
        if self._resize is None:
            del torch.UntypedStorage.resize_
        else:
            torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        self._log.stop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(not _is_plain(kind) for kind in types):
            return NotImplemented  # a wrapper takes itself apart; its parts come back here
        kwargs = kwargs or {}
        self._saved.look()
        self._origins.extends_graph = False
        for tensor in _tensors_in(args):
            self._is_read(tensor)
        if kwargs:
            for tensor in _tensors_in(kwargs.values()):
                self._is_read(tensor)
        output = func(*args, **kwargs)
        self._is_made(output, func)
        self._origins.extends_graph = False
        return output

    def _is_read(self, tensor: Tensor) -> None:
        if tensor.requires_grad and torch.is_grad_enabled():
            self._origins.extends_graph = True
        known = self._log.is_known(tensor)
        if known and not isinstance(tensor, nn.Parameter):
            return
        for record in self._log.see(tensor, self._origin_of_input, INPUT):
            if isinstance(tensor, nn.Parameter) and record.class_name in _WEAK:
                self._name(record, WEIGHT)
                record.name = self._origins.parameter_names.get(id(tensor), "")

    def _is_made(self, output: Any, func: Any) -> None:
        origins = self._origins
        node = torch._C._current_autograd_node()
        variable = getattr(node, "variable", None) if node is not None else None  # of a node that adds up gradients

        def origin() -> tuple[str, str, tuple[SourceLine, ...]]:
            return str(func), origins.module, origins.stack()

        for tensor in _tensors_in((output,)):
            if not self._log.is_known(tensor) or variable is not None:
                records = self._log.see(tensor, origin)
                if variable is not None:
                    self._is_added_up(records, variable)
            self._saved.expect(tensor)

    def _is_added_up(self, records: Iterable[StorageRecord], variable: Tensor) -> None:
        """The first tensor that a node makes which adds up gradients is the gradient, if there was none."""
        task = (torch._C._current_graph_task_id(), id(variable))
        if task != self._added_up and variable.grad is None:
            self._added_up = task
            for record in records:
                self._name_gradient(record, variable)

    def _is_saved(self, tensor: Tensor) -> None:
        for record in self._log.see(tensor, self._origin_of_input, INPUT):
            if record.class_name == TEMPORARY:
                self._name(record, ACTIVATION)

    def _name(self, record: StorageRecord, class_name: str) -> None:
        if not record.fixed:
            self._log.rename(record, class_name)

    def _name_gradient(self, record: StorageRecord, parameter: Tensor) -> None:
        if record.class_name not in (WEIGHT, OPTIMIZER_STATE):
            self._name(record, GRADIENT)
            record.name = self._origins.parameter_names.get(id(parameter), "")

    def _name_gradients(self, optimizer: Any) -> None:
        self._see_gradients(parameter for group in optimizer.param_groups for parameter in group["params"])

    def _see_gradients(self, parameters: Iterable[Tensor]) -> None:
        for parameter in parameters:
            if parameter.grad is not None:
                for record in self._log.see(parameter.grad, self._origin_of_input, INPUT):
                    self._name_gradient(record, parameter)

    def _name_states(self, optimizer: Any) -> None:
        for parameter, state in optimizer.state.items():
            for tensor in _flatten(state, only_tensors=False):
                for record in self._log.see(tensor, self._origin_of_input, INPUT):
                    if record.class_name != WEIGHT:
                        self._name(record, OPTIMIZER_STATE)
                        record.name = self._origins.parameter_names.get(id(parameter), "")

    def _enter_what_exists(self) -> None:
        parameters: list[tuple[str, Tensor]] = []
        if self._model is not None:
            parameters = [*self._model.named_parameters(), *self._model.named_buffers()]
        if self._optimizer is not None:
            parameters += [("", p) for group in self._optimizer.param_groups for p in group["params"]]
        for name, parameter in parameters:
            for record in self._log.see(parameter, self._origin_of_input, WEIGHT):
                record.name = record.name or name
        self._see_gradients(parameter for _, parameter in parameters)
        if self._optimizer is not None:
            self._name_states(self._optimizer)

    def _look(self) -> None:
        """Name what can be named now."""
        self._log.settle()
        self._saved.look()
        if self._model is not None and self._log.is_following:
            self._see_gradients(self._model.parameters())

    def _origin_of_input(self) -> tuple[str, str, tuple[SourceLine, ...]]:
        return "", self._origins.module, self._origins.stack()

    def _watch_resizing(self) -> None:
        """`storage.resize_` is no operator: it is noticed by standing in for it while the block runs."""
        original: Callable[[torch.UntypedStorage, int], torch.UntypedStorage] = torch.UntypedStorage.resize_
        log = self._log

        def resize_(storage: torch.UntypedStorage, num_bytes: int) -> torch.UntypedStorage:
            result = original(storage, num_bytes)
            log.resized(storage)
            return result

        torch.UntypedStorage.resize_ = resize_  # type: ignore[method-assign, assignment]


def running_timelines() -> list[MemoryTimeline]:
    """The timelines whose blocks run in this thread, the outermost first."""
    return [mode for mode in _get_current_dispatch_mode_stack() if isinstance(mode, MemoryTimeline)]


def _is_plain(kind: Any) -> bool:
    """Whether tensors of a type are what the dispatcher works on, rather than wrappers of such."""
    return kind in _PLAIN or kind.__torch_dispatch__ is Tensor.__torch_dispatch__


def _tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors_in(value)


def _flatten(values: Any, *, only_tensors: bool = True) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        yield from _flatten(values.values(), only_tensors=only_tensors)
    elif isinstance(values, Iterable) and not isinstance(values, str):
        for value in values:
            yield from _flatten(value, only_tensors=only_tensors)
    elif only_tensors:
        raise TypeError(f"tensors must hold tensors only, got {values!r} of type {type(values).__name__}")


def _sum_by_class(parts: Iterable[tuple[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for class_name, num_bytes in parts:
        total[class_name] += num_bytes
    return {class_name: num_bytes for class_name, num_bytes in total.most_common() if num_bytes}
