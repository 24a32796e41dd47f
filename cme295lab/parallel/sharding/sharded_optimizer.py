"""Any element-wise torch optimizer, run on the shards of one rank.

ZeRO leaves each rank a shard of every flat vector, and the rank updates that and nothing else. So what torch's
optimizer is given are no longer the model's parameters but long 1-D pieces of the shards, one for each run of
parameters of the same parameter group. It never knows: for Adam a vector is a vector.

    flat vector      |--- layer.weight ---|-- norm --|------ head ------|     parameter groups 0, 1, 0
    shard of rank 1             |---------|--1--|                             two runs: group 0, group 1

The stages of ZeRO differ in where the shards' gradients come from and where updated weights go; they fill in
`share_weights`, and the rest is here.

**Learning-rate schedulers** find what they look for: this is a `torch.optim.Optimizer`, with as many parameter groups
as it was given, on every rank, even if a group's parameters all lie in other ranks' shards.

**Gradients are used up.** `step` takes them, and a second step without a backward pass in between is an error. (In
torch they stay until `zero_grad`. Here nobody could see them: they belong to no parameter.)

**A gradient that is not finite** stops the step on all ranks before a weight is changed on any of them.

**16 bits.** A shard of bf16 or fp16 weights gets a master copy in fp32, which the optimizer updates; its rounded values
go into the shard. `offload=True` keeps the masters and all states in the CPU's memory and updates there; on a machine
without a GPU that is the same memory under another name, see `host_tensors`.

Source: Rajbhandari et al. 2020, "ZeRO", section 5.1; Ren et al. 2021, "ZeRO-Offload".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cme295lab.parallel.replication.weighting import scalar_device
from cme295lab.parallel.sharding.elementwise import check_elementwise
from cme295lab.parallel.sharding.gradient_health import clip_factor, is_finite, report, square_sum, sum_over_ranks
from cme295lab.parallel.sharding.parameter_groups import number_groups
from cme295lab.parallel.sharding.partition import FlatLayout, Piece

OnNonfinite = Literal["raise", "skip"]


@runtime_checkable
class Shard(Protocol):
    """What is to be known of a flat vector of which this rank updates a part.

    Attributes:
        name: what to call it.
        layout: where each parameter lies in the vector.
        shard: this rank's part of the weights.
        gradient: this rank's part of the gradient, the mean over the ranks; None if there was no backward pass.
    """

    name: str
    layout: FlatLayout
    shard: Tensor
    gradient: Tensor | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A stretch of a shard whose parameters are in one group: one tensor of the inner optimizer.

    Attributes:
        tensor: what the optimizer updates: a view of the shard, or of its master copy.
        pieces: the parts of parameters that it is made of; their offsets count from the run's beginning.
        group: number of its parameter group.
        source: the shard in which it lies.
        where: its elements there.
    """

    tensor: nn.Parameter
    pieces: tuple[Piece, ...]
    group: int
    source: Shard
    where: slice

    @property
    def gradient(self) -> Tensor | None:
        """The run's part of the shard's gradient."""
        return None if self.source.gradient is None else self.source.gradient[self.where]


class ShardedOptimizer(torch.optim.Optimizer):
    """Runs a torch optimizer on the shards of this rank; a stage of ZeRO fills in what becomes of the weights.

    Args:
        model: whose parameters these are.
        shards: of its flat vectors, in the same order on all ranks; together all parameters that are trained.
        optimizer_class: an element-wise optimizer, such as torch.optim.AdamW.
        options: what it is called with, besides parameters.
        param_groups: as for torch's optimizers: dictionaries with "params" and options; None: one group of all.
        masters: what the optimizer updates, a tensor for each shard; None: the shards themselves, or copies of them
            where `offload` or 16 bits ask for it.
        offload: keep master weights and states in the CPU's memory, and update there.
        on_nonfinite: "raise" stops with `NonFiniteGradients`; "skip" leaves the step out and counts it.
        group: the ranks.
        stage: of ZeRO.

    Attributes:
        model, process_group, stage: as given.
        optimizer: torch's optimizer, over the tensors of `runs`.
        runs: what this rank updates.
        num_skipped: steps left out because of gradients that were not finite.

    Raises:
        TypeError, ValueError: an optimizer that is not element-wise; parameters that are in no group or in two; an
            unknown `on_nonfinite`.
    """

    def __init__(
        self,
        model: nn.Module,
        shards: Sequence[Shard],
        optimizer_class: type[torch.optim.Optimizer],
        *,
        options: Mapping[str, Any],
        param_groups: Iterable[Mapping[str, Any]] | None = None,
        masters: Sequence[Tensor] | None = None,
        offload: bool = False,
        on_nonfinite: OnNonfinite = "raise",
        group: dist.ProcessGroup,
        stage: int,
    ) -> None:
        check_on_nonfinite(on_nonfinite)
        check_elementwise(optimizer_class, options, device="cpu" if offload else shards[0].shard.device)
        self._scalar_device = scalar_device(group)
        self.model, self.process_group, self.stage = model, group, stage
        self.on_nonfinite, self.num_skipped = on_nonfinite, 0
        self.shards = list(shards)
        self._group_names, extras = number_groups(dict(model.named_parameters()), param_groups)
        group_of = {name: number for number, names in enumerate(self._group_names) for name in names}
        self._masters = list(masters) if masters else [_master(shard.shard, offload) for shard in self.shards]
        self._is_offloaded = offload
        self.runs = [
            run for shard, master in zip(self.shards, self._masters) for run in self._cut(shard, master, group_of)
        ]
        groups: list[dict[str, Any]] = [{"params": [], **extra} for extra in extras]
        for run in self.runs:
            groups[run.group]["params"].append(run.tensor)
        self.optimizer: torch.optim.Optimizer = optimizer_class(groups, **options)
        self._is_built = False
        super().__init__([dict(each) for each in self.optimizer.param_groups], dict(self.optimizer.defaults))
        self._is_built = True
        self._share_groups_and_states()

    def _cut(self, shard: Shard, weights: Tensor, group_of: Mapping[str, int]) -> Iterator[Run]:
        for number, pieces in shard.layout.runs(self.process_group.rank(), group_of):
            start, stop = pieces[0].offset, pieces[-1].offset + pieces[-1].numel
            relative = tuple(replace(piece, offset=piece.offset - start) for piece in pieces)
            where = slice(start, stop)
            yield Run(tensor=nn.Parameter(weights[where]), pieces=relative, group=number, source=shard, where=where)

    def _share_groups_and_states(self) -> None:
        """One set of groups and states: schedulers and checkpoints look here, the inner optimizer there."""
        self.param_groups, self.state = self.optimizer.param_groups, self.optimizer.state

    # --- what a stage fills in ---

    def share_weights(self) -> None:
        """Let the model, on all ranks, have the updated shards. Stage 3 gathers when it needs them: nothing to do."""

    def local_culprits(self) -> list[str]:
        """Which of this rank's own gradients were not finite before they were summed, as far as is known."""
        return []

    # --- the step ---

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update this rank's shards, let all ranks have the new weights, and forget the gradients.

        Args:
            closure: computes the loss and its gradients first, as in torch.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: if there was no backward pass since the last step.
            NonFiniteGradients: if a gradient is NaN or infinite on any rank, and `on_nonfinite` is "raise".
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_gradients()
        if self._all_ranks_are_finite():
            self._update()
            self.weights_changed()
        else:
            self.num_skipped += 1
        self.zero_grad()
        return loss

    def _check_gradients(self) -> None:
        if all(shard.gradient is None for shard in self.shards):
            raise RuntimeError(
                "step() before backward(): there are no gradients. Call loss.backward() first, the last one of a step "
                "outside no_sync(); a step uses gradients up"
            )

    def _update(self) -> None:
        for run in self.runs:
            if (gradient := run.gradient) is not None:
                run.tensor.grad = gradient.to(run.tensor.device, run.tensor.dtype)
        self.optimizer.step()
        for run in self.runs:
            run.tensor.grad = None

    @torch.no_grad()
    def weights_changed(self) -> None:
        """Take the tensors of `runs` as the new weights, on all ranks together; after a step, or after loading them."""
        for shard, master in zip(self.shards, self._masters):
            if master is not shard.shard:
                shard.shard.copy_(master)
        self.share_weights()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, those that `no_sync` left on this rank, too.

        Raises:
            ValueError: if `set_to_none` is False: gradients of shards are dropped, not zeroed.
        """
        if not set_to_none:
            raise ValueError("set_to_none must be True: gradients of shards are dropped, not zeroed; call zero_grad()")
        for shard in self.shards:
            shard.gradient = None
        for parameter in self.model.parameters():
            parameter.grad = None

    # --- gradients ---

    def _gradients(self) -> Iterator[Tensor]:
        """This rank's gradients, without padding."""
        for run in self.runs:
            if (gradient := run.gradient) is not None:
                yield gradient

    def grad_norm(self) -> float:
        """The norm of the gradients of all parameters as one vector; all ranks call it together."""
        total = sum_over_ranks(square_sum(self._gradients()), group=self.process_group, device=self._scalar_device)
        return math.sqrt(total)

    @torch.no_grad()
    def clip_grad_norm_(self, max_norm: float) -> float:
        """Scale all gradients so that the norm of all of them together is at most `max_norm`.

        Args:
            max_norm: the largest norm; positive.

        Returns:
            The norm before. One that is not finite changes nothing; `step` will see to that.

        Raises:
            ValueError: if `max_norm` is not positive.
        """
        norm = self.grad_norm()
        factor = clip_factor(norm, max_norm)
        for shard in self.shards:
            if factor is not None and shard.gradient is not None:
                shard.gradient.mul_(factor)
        return norm

    def _all_ranks_are_finite(self) -> bool:
        """Whether all gradients of all ranks are finite; raises where that is asked for."""
        num_bad = sum(not is_finite(gradient) for gradient in self._gradients())
        if sum_over_ranks(num_bad, group=self.process_group, device=self._scalar_device) == 0:
            return True
        if self.on_nonfinite == "raise":
            raise report(self._bad_pieces(), own=self.local_culprits(), group=self.process_group)
        return False

    def _bad_pieces(self) -> list[str]:
        """The parameters whose summed gradient, in this rank's shard, is not finite."""
        found = []
        for run in self.runs:
            if (gradient := run.gradient) is None:
                continue
            for piece in run.pieces:
                if not is_finite(gradient[piece.offset : piece.offset + piece.numel]):
                    found.append(f"the summed gradient of {piece.name}, held")
        return found

    # --- state ---

    def held_runs(self) -> Sequence[Run]:
        """What this rank updates, with its pieces; for checkpoints, together with `optimizer.state`."""
        return self.runs

    def group_names(self) -> list[list[str]]:
        """The parameters of each group, by name."""
        return self._group_names

    def master_tensors(self) -> list[Tensor]:
        """The master copies; none where the optimizer updates the shards themselves."""
        return [master for shard, master in zip(self.shards, self._masters) if master is not shard.shard]

    def host_tensors(self) -> list[Tensor]:
        """What `offload` put into the CPU's memory: masters and states. Empty without it."""
        if not self._is_offloaded:
            return []
        states = [value for state in self.state.values() for value in state.values() if isinstance(value, Tensor)]
        return [*self.master_tensors(), *states]

    def state_dict(self) -> dict[str, Any]:
        """This rank's part alone, for the same number of ranks. See `checkpoint` for the whole, and for any number."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave, on the same rank of as many ranks."""
        self.optimizer.load_state_dict(state_dict)
        self._share_groups_and_states()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused: parameters are cut into shards once.

        Raises:
            RuntimeError: always.
        """
        if self._is_built:
            raise RuntimeError("parameters are cut into shards once: pass all groups as param_groups when it is made")
        super().add_param_group(param_group)


def check_on_nonfinite(on_nonfinite: str) -> None:
    """Refuse what is not a way to deal with gradients that are not finite, with a ValueError."""
    if on_nonfinite not in get_args(OnNonfinite):
        raise ValueError(f'on_nonfinite must be "raise" or "skip", got {on_nonfinite!r}')


def _master(shard: Tensor, offload: bool) -> Tensor:
    """The tensor that the optimizer updates: the shard itself, or a copy in fp32 or in the CPU's memory."""
    dtype = torch.float32 if shard.dtype.itemsize < 4 else shard.dtype
    if not offload and dtype == shard.dtype:
        return shard
    return shard.detach().to("cpu" if offload else shard.device, dtype, copy=True)
