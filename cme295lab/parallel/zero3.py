"""ZeRO stage 3: weights, too, are on a rank only while they are computed with.

The model is divided into units, a layer each. A rank holds a shard of every unit; the rest comes when it is needed:

    forward     gather unit 0 │ compute 0, gather 1 │ free 0, compute 1, gather 2 │ ...
    backward    gather unit n │ compute n, gather n-1 │ free n, send its gradients home, compute n-1 │ ...

Per step that is two all-gathers of the weights and one reduce-scatter of the gradients, 3 Ψ (N-1)/N bytes sent by each
of N ranks where plain data parallelism sends 2 Ψ (N-1)/N; and weights, gradients and states are Ψ/N each.

**When a unit is needed** is told by hooks: before and after its module's forward, and when the gradient of its output
is there. **When it is done with** in the backward pass follows from the order of its calls: autograd runs operations in
the reverse order of their making, so once the gradient of an earlier unit's output is there, all that a later unit
computes has been done. That depends neither on which of its parameters were used nor on their gradients, so all ranks
come to the same sequence of collectives even if one of them did not use a parameter.

**The root unit** (embedding, last norm, head) is gathered when the model's forward begins and stays until its end, for
both ends of the model need it. It is gathered again for backward, and freed when the first layer's turn comes, because
an embedding does not read its weights in backward. With `keep_root=True` it is not freed in between, which saves one
of its three trips; that is what FSDP does.

**Overlap.** Gathers run one unit ahead. A sum of gradients runs while the next unit's backward begins; before that unit
collects its own, it is waited for, so that there is one vector of gradients at a time, and only then the next gather
starts. So the most that a rank holds beyond its shards is two units' weights and one unit's gradients.

**Checkpointing.** A layer that runs again within backward finds its weights gathered and leaves them there.

Several forwards before a backward, frozen and unused parameters, forwards under `no_grad` and passes that failed are
fine. Not covered: gradients of gradients (`create_graph=True`), and units that some ranks call and others do not.

Source: Rajbhandari et al. 2020, "ZeRO", section 5.3 and 7.2.2; Zhao et al. 2023, "PyTorch FSDP".
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cme295lab.parallel import transport
from cme295lab.parallel.sharded_parameters import ShardedParameters
from cme295lab.parallel.sharded_unit import ShardedUnit, assign_parameters, find_units

_NEVER_EARLY = -1  # first use of a unit that is needed until the end of backward


class FullyShardedModel(nn.Module):
    """A model whose weights and gradients are spread over the ranks; call it like the model itself.

    The model given is changed: its parameters are shards from now on (see `gathered` to look at them). Train it with
    `ZeroOptimizer(sharded_model, ..., stage=3)`.

    Args:
        model: the same on every rank; rank 0's values count.
        units: modules of it, or classes of modules, that are gathered one at a time; None: the children of its
            `ModuleList`s.
        compute_dtype: such as torch.bfloat16: what weights are gathered, and computed with, in; floating inputs of the
            model are converted. The shards stay as they are. None: the parameters' own dtype.
        reduce_dtype: in which gradients are sent and summed; None: that of the shards.
        prefetch: gather the next unit while one computes.
        keep_root: do not free the root unit between forward and backward.
        group: the ranks; None means all.

    Attributes:
        module: the model.
        units: its units in the order of the model, the root unit last.

    Raises:
        TypeError, ValueError: units that are not in the model or lie within each other; a dtype that is no float; mixed
            dtypes; a model with fewer elements than there are ranks.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        units: Sequence[nn.Module | type[nn.Module]] | None = None,
        compute_dtype: torch.dtype | None = None,
        reduce_dtype: torch.dtype | None = None,
        prefetch: bool = True,
        keep_root: bool = False,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.group = group if group is not None else _default_group()
        _check_model(model, self.group.size(), compute_dtype=compute_dtype, reduce_dtype=reduce_dtype)
        self.module = model
        self.compute_dtype = compute_dtype
        self.prefetch = prefetch
        self.keep_root = keep_root
        self.is_syncing = True
        first = next(model.parameters())
        absent = torch.full((), torch.nan, dtype=compute_dtype or first.dtype, device=first.device)
        modules = find_units(model, units)
        self.units = [
            ShardedUnit(
                name,
                modules.get(name, model),
                parameters,
                compute_dtype=compute_dtype,
                reduce_dtype=reduce_dtype,
                group=self.group,
                absent=absent,
            )
            for name, parameters in assign_parameters(model, modules).items()
        ]
        for buffer in model.buffers():
            _broadcast_buffer(buffer, self.group)
        self._root = self.units[-1]
        self._expected = self.units[:-1]  # the units' order of the last complete forward
        self._calls: list[ShardedUnit] = []  # of the forward that is under way
        self._num_calls = 0  # since the last backward
        self._first_use: dict[ShardedUnit, int] = {}  # number of the call, since the last backward
        self._next: ShardedUnit | None = None  # to be gathered ahead in backward
        self._in_backward = False
        self._open: list[ShardedUnit] = []  # in backward, gradients not yet on their way
        self._summing: list[ShardedParameters] = []  # gradients on their way
        self._hooks = list(self._register_hooks())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backward passes in this block keep their gradients to themselves; the next one outside sends all of them.

        The price of the messages saved is memory: a rank then holds the gradients of all weights, not of its shard.
        """
        before, self.is_syncing = self.is_syncing, False
        try:
            yield
        finally:
            self.is_syncing = before

    @contextlib.contextmanager
    def gathered(self, *, write: bool = False) -> Iterator[nn.Module]:
        """The model with all its weights, to look at; on all ranks together.

        Args:
            write: take over into the shards what is changed in the block.
        """
        for unit in self.units:
            unit.gather()
        try:
            yield self.module
            if write:
                for unit in self.units:
                    unit.keep_changes()
        finally:
            self._free_all()

    def close(self) -> nn.Module:
        """Give the model its weights back, take the hooks away, and return it; the wrapper is of no use afterwards."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for unit in self.units:
            unit.restore()
        return self.module

    # --- forward ---

    def _register_hooks(self) -> Iterator[Any]:
        yield self.module.register_forward_pre_hook(self._before_model, with_kwargs=True)
        yield self.module.register_forward_hook(self._after_model)
        for unit in self.units[:-1]:
            yield unit.module.register_forward_pre_hook(partial(self._before_unit, unit))
            yield unit.module.register_forward_hook(partial(self._after_unit, unit))
        of_root = {id(parameter) for part in self._root.parts for parameter in part.parameters.values()}
        for module in self.module.modules():
            if any(id(parameter) in of_root for parameter in module.parameters(recurse=False)):
                yield module.register_forward_pre_hook(self._note_use_of_root)
        for unit in self.units:
            for parameter in unit.trained.parameters.values() if unit.trained else ():
                yield parameter.register_post_accumulate_grad_hook(partial(self._take_gradient, unit))

    def _before_model(self, _: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        if not _autograd_is_running():
            self._forget_what_failed()
        self._root.gather()
        if self.prefetch and self._expected:
            self._expected[0].start_gather()
        if self.compute_dtype is None:
            return None
        return _converted(args, self.compute_dtype), _converted(kwargs, self.compute_dtype)

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
        if self.prefetch and position < len(self._expected) and self._expected[position - 1] is unit:
            self._expected[position].start_gather()

    def _after_unit(self, unit: ShardedUnit, _: nn.Module, __: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            self._watch(output, unit, unit.last_call, unit.called_after)
        if not _autograd_is_running():
            unit.free()

    def _note_use_of_root(self, module: nn.Module, _: Any) -> None:
        if isinstance(module, nn.Embedding) or not torch.is_grad_enabled():
            return  # an embedding reads only the numbers of its rows in backward
        contains_units = any(unit.module is not module and unit.module in module.modules() for unit in self.units[:-1])
        number = _NEVER_EARLY if contains_units else self._num_calls
        self._first_use[self._root] = min(number, self._first_use.get(self._root, number))

    def _after_model(self, _: nn.Module, __: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            self._watch(output, self._root, self._num_calls, self._calls[-1] if self._calls else None)
        if _autograd_is_running():
            return
        for unit in self._expected:
            unit.free()  # one that was gathered ahead and never called
        if not (self.keep_root and torch.is_grad_enabled()):
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
        self._next = earlier if self.prefetch else None
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
            self._summing.pop(0).finish_reduce(1 / self.group.size())

    def _finish_after(self, call: int) -> None:
        """Finish the units whose every call came after a call: autograd has gone through them."""
        for unit in [unit for unit, first in self._first_use.items() if first > call]:
            if not unit.is_root and unit in self._open:
                self._send_gradients(unit)
            unit.free()

    def _after_backward(self) -> None:
        """Autograd is at its end: finish the rest, in an order that is the same on all ranks, the root unit last."""
        for unit in self.units:
            if unit in self._open or (self.is_syncing and unit.trained and unit.trained.has_leftovers):
                self._send_gradients(unit)
                self._finish_sums()
        self._finish_sums()
        self._free_all()
        self._reset()

    def _free_all(self) -> None:
        for unit in self.units:
            unit.free()

    def _reset(self) -> None:
        self._in_backward = False
        self._open, self._summing, self._next = [], [], None
        self._first_use, self._num_calls = {}, 0

    def _forget_what_failed(self) -> None:
        """Start anew after a forward or a backward that ended in an exception, or was never followed by another."""
        if self._in_backward:
            for unit in self.units:
                if unit.trained:
                    unit.trained.drop_collected()
            self._reset()
        self._calls = []
        self._free_all()  # what is gathered may be older than the shards


def _autograd_is_running() -> bool:
    """Whether this thread is within a backward pass: a forward that runs now is one that runs again."""
    return torch._C._current_graph_task_id() != -1


def _default_group() -> dist.ProcessGroup:
    if not dist.is_initialized():
        raise RuntimeError(
            "there is no process group; call this on the ranks of run_distributed, or under torchrun after "
            "torch.distributed.init_process_group()"
        )
    group = dist.group.WORLD
    assert group is not None
    return group


def _check_model(model: nn.Module, num_ranks: int, **dtypes: torch.dtype | None) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, FullyShardedModel):
        raise TypeError("model is a FullyShardedModel already")
    num_elements = sum(parameter.numel() for parameter in model.parameters())
    if num_elements < num_ranks:
        raise ValueError(
            f"the model has {num_elements} parameters for {num_ranks} ranks, so some rank would hold none; use "
            f"{max(1, num_elements)} ranks at most"
        )
    for name, dtype in dtypes.items():
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f"{name} must be a floating dtype such as torch.bfloat16, or None, got {dtype!r}")


def _broadcast_buffer(buffer: Tensor, group: dist.ProcessGroup) -> None:
    flat = buffer.detach().flatten()
    transport.broadcast(flat, dist.get_global_rank(group, 0), group=group)
    buffer.copy_(flat.view(buffer.shape))


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
