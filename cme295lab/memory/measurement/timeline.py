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

- "weight": a parameter or buffer, also one of the optimizer's that is not the model's. "gradient": what was added up
  into a parameter's `.grad`. "optimizer state": found in an optimizer after its step, step counters included.
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

Watching costs some tens of microseconds per operator, a third of it torch's own cost of any such mode: on one core a
step of a 0.2-million-parameter model takes about 6 times as long, that of a 29-million one up to 1.2 times
(`tests/benchmarks/memory.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from cme295lab.memory.measurement.classify import Classifier
from cme295lab.memory.measurement.origin import Origins
from cme295lab.memory.measurement.results import TimelineResults
from cme295lab.memory.measurement.saved import SavedTensors
from cme295lab.memory.measurement.stand_in import RESIZE
from cme295lab.memory.measurement.storages import StorageLog

_DEVICES = ("cpu", "cuda")
# Autograd runs it in between: to pack an output, when the node is not complete yet, and to unpack a saved tensor, which
# then carries a node that was read before.
_DETACH = torch.ops.aten.detach.default


class MemoryTimeline(TimelineResults, TorchDispatchMode):
    """Follows the memory of tensors while its block runs. Timelines may be nested.

    Args:
        model: whose parameters and buffers are weights, and whose modules have paths.
        optimizer: an optimizer, or a wrapper with `param_groups` and `state`; its states count from the start. (Other
            optimizers are noticed at their first step.)
        device: "cpu" or "cuda" to follow only that; by default both, added up.

    Raises:
        TypeError: if model is no module or optimizer no optimizer.
        ValueError: if the device is unknown.
        RuntimeError: if a second block is entered.
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
        device_type = str(device).partition(":")[0]
        if device is not None and device_type not in _DEVICES:
            raise ValueError(f"device must be 'cpu', 'cuda', or None for both, got {device!r}")
        self._model, self._optimizer = model, optimizer
        self._origins = Origins(model)
        self._log = StorageLog(None if device is None else device_type, lambda: self._origins.phase)
        self._classifier = Classifier(self._log, self._origins)
        self._saved = SavedTensors(self._classifier.is_saved)
        self._entered = False

    def mark(self, tensors: Any, class_name: str) -> None:
        """Say what tensors are, and let nothing else rename them.

        Args:
            tensors: a tensor, or a nest of mappings and iterables of such.
            class_name: one of the classes or a name of your own, such as "gathered weight".

        Raises:
            TypeError: if there is something in it that is not a tensor.
            ValueError: if the name is empty.
        """
        if not class_name:
            raise ValueError("class_name must be a name such as 'gradient', got an empty one")
        self._classifier.is_marked(tensors, class_name)

    def note_kept(self, tensor: Tensor) -> None:
        """Say that a tensor is kept for the backward pass: an activation, unless it is known as something else.

        What autograd keeps is seen without this; it is for what a function of the program's own holds on to.
        """
        self._classifier.is_saved(tensor, packed=True)

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

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch would wrap `__torch_dispatch__` for compiled code, which costs as much again as the mode itself."""
        return False

    def __enter__(self) -> MemoryTimeline:
        if self._entered:
            raise RuntimeError("a MemoryTimeline measures one block: make a new one for the next")
        self._entered = True
        self._classifier.enter_what_exists(self._model, self._optimizer)
        self.start_event = len(self._log.events)
        RESIZE.add(self._resize)
        self._saved.start()
        self._origins.start(on_step_begin=self._classifier.step_begins, on_step_end=self._classifier.step_ends)
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)
        self._look()
        self._origins.stop()
        self._saved.stop()
        RESIZE.remove(self._resize)
        self._log.stop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not all(_is_plain(kind) for kind in types):
            return NotImplemented  # a wrapper takes itself apart; its parts come back here
        if func is not _DETACH:
            self._saved.look()
        extends_graph, builds_graph = False, torch.is_grad_enabled()
        for tensor in _tensors_in((args, tuple(kwargs.values())) if kwargs else args):
            self._classifier.is_read(tensor)
            extends_graph = extends_graph or (builds_graph and tensor.requires_grad)
        self._origins.extends_graph = extends_graph
        try:
            output = func(*args, **(kwargs or {}))
            made = list(_tensors_in((output,)))
            self._classifier.is_made(made, func)
        finally:
            self._origins.extends_graph = False
        if func is not _DETACH:
            self._saved.expect(made)
        return output

    def _look(self) -> None:
        self._log.settle()
        self._saved.look()
        if self._model is not None and self._log.is_following:
            self._classifier.find_gradients(self._model.parameters())

    def _resize(self, original: Any, storage: torch.UntypedStorage, *arguments: Any, **options: Any) -> Any:
        """`storage.resize_` is no operator, so it is watched."""
        result = original(storage, *arguments, **options)
        self._log.resized(storage)
        return result


def running_timelines() -> list[MemoryTimeline]:
    """The timelines whose blocks run in this thread, the outermost first."""
    return [mode for mode in _get_current_dispatch_mode_stack() if isinstance(mode, MemoryTimeline)]


def _is_plain(kind: Any) -> bool:
    """Whether tensors of a type are what the dispatcher works on, rather than wrappers of such."""
    return kind.__torch_dispatch__ is Tensor.__torch_dispatch__


def _tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among an operator's arguments or results."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors_in(value)
