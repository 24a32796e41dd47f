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
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from cme295lab.parallel.communication.tensor_checks import check_float_dtypes, resolve_group
from cme295lab.parallel.replication.replicas import broadcast_values, check_same_model
from cme295lab.parallel.replication.weighting import token_scale
from cme295lab.parallel.sharding.sharded_parameters import ShardedParameters
from cme295lab.parallel.sharding.sharded_unit import ShardedUnit, assign_parameters, find_units
from cme295lab.parallel.sharding.unit_schedule import UnitSchedule


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
        reduce_dtype: in which gradients are sent; None: `compute_dtype`. Their sums are kept in the shards' dtype.
        prefetch: gather the next unit while one computes.
        keep_root: do not free the root unit between forward and backward.
        group: the ranks; None means all.

    Attributes:
        module: the model.
        units: its units in the order of the model, the root unit last.

    Raises:
        TypeError, ValueError: units that are not in the model or lie within each other; a dtype that is no float; mixed
            dtypes; a model with fewer elements than there are ranks, or that differs between them.
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
        self.group = resolve_group(group)
        _check_model(model, self.group.size(), compute_dtype=compute_dtype, reduce_dtype=reduce_dtype)
        check_same_model(model, group=self.group)
        self.module = model
        self.compute_dtype = compute_dtype
        absent = torch.full((), torch.nan, dtype=compute_dtype, device=next(model.parameters()).device)
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
        broadcast_values(model, group=self.group, parameters=False)  # each unit has done so with its parameters
        self._schedule = UnitSchedule(
            model,
            self.units,
            compute_dtype=compute_dtype,
            prefetch=prefetch,
            keep_root=keep_root,
            scale=1 / self.group.size(),
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    @property
    def trained(self) -> list[ShardedParameters]:
        """The shards that an optimizer updates: `.shard` with `.gradient`, in the order of the units."""
        return [unit.trained for unit in self.units if unit.trained]

    @property
    def frozen(self) -> list[ShardedParameters]:
        """The shards of parameters that are not trained."""
        return [part for unit in self.units for part in unit.parts if not part.is_trainable]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients.

        Args:
            set_to_none: free their bytes; False: keep zeros.
        """
        for part in self.trained:
            part.zero_gradient(set_to_none=set_to_none)

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backward passes in this block keep their gradients to themselves; the next one outside sends all of them.

        The price of the messages saved is memory: a rank then holds the gradients of all weights, not of its shard.
        """
        before, self._schedule.is_syncing = self._schedule.is_syncing, False
        try:
            yield
        finally:
            self._schedule.is_syncing = before

    def token_scale(self, num_tokens: int) -> float:
        """What to multiply this rank's summed loss with, for the mean over all tokens; see `weighting.token_scale`."""
        return token_scale(num_tokens, group=self.group)

    @contextlib.contextmanager
    def gathered(self, *, write: bool = False) -> Iterator[nn.Module]:
        """The model with all its weights, to look at; all ranks together.

        Args:
            write: take over into the shards what is changed in the block.

        Raises:
            ValueError: `write` with a compute_dtype: what is gathered is rounded, and the shards must not be.
        """
        if write and self.compute_dtype not in (None, self.trained[0].shard.dtype):
            raise ValueError(
                f"write=True would round the weights to compute_dtype {self.compute_dtype}; change them with "
                "load_state_dict instead"
            )
        for unit in self.units:
            unit.gather()
        try:
            yield self.module
            if write:
                for unit in self.units:
                    unit.keep_changes()
        finally:
            self._schedule.free_all()

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:  # type: ignore[override]
        """All weights and buffers, on every rank; all ranks call it together.

        Returns:
            What the plain model's `load_state_dict` takes, in the dtype of the shards. For checkpoints of large models
            see `save_sharded`, which puts nothing together.
        """
        values: dict[str, Any] = dict(self.module.state_dict())
        for part in self.trained + self.frozen:
            full = part.full_values()
            for name, parameter in self.module.named_parameters(remove_duplicate=False):
                first = part.name_of(parameter)
                if first is not None:
                    values[name] = full[first]
        return values

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take weights and buffers of a plain model; each rank keeps its shard of them.

        Args:
            state_dict: of the plain model.
            strict: no name may be missing or be too much.
            assign: not possible here.

        Raises:
            ValueError: `assign`, or a shape is not the model's.
            RuntimeError: names are missing or too many, as torch has it.
        """
        if assign:
            raise ValueError("assign=True would replace the shards; load without it")
        shapes = {name: tuple(value.shape) for name, value in self.module.state_dict().items()}
        wrong = [name for name, value in state_dict.items() if name in shapes and tuple(value.shape) != shapes[name]]
        missing, extra = shapes.keys() - state_dict.keys(), state_dict.keys() - shapes.keys()
        if wrong or (strict and (missing or extra)):
            raise RuntimeError(
                f"the state dict is of another model: missing {sorted(missing)}, not in the model {sorted(extra)}, "
                f"of another shape {sorted(wrong)}; make the model with the config that it was saved with"
            )
        for part in self.trained + self.frozen:
            part.take_values(state_dict)
        buffers = dict(self.module.named_buffers())
        for name in buffers.keys() & state_dict.keys():
            buffers[name].copy_(state_dict[name])

    def close(self) -> nn.Module:
        """Give the model its weights back, take the hooks away, and return it; the wrapper is of no use afterwards."""
        self._schedule.close()
        for unit in self.units:
            unit.restore()
        return self.module


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
    check_float_dtypes(**dtypes)
