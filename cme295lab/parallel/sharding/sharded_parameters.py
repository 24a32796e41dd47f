"""Parameters of which each rank keeps one piece: put together, taken apart, gradients sent home.

A unit's parameters, one after the other and padded to a multiple of the number of ranks, are a flat vector. Each rank
keeps its shard of it, in fp32: the only copy of these weights that the optimizer ever sees.

    shard ──all-gather──▶ full vector, parameters are views of it ──free──▶ nothing
    gradients of all parameters ──copied──▶ flat vector ──reduce-scatter──▶ gradient of the shard

**Freed means its storage has no bytes.** It does not do to point the parameters elsewhere: between forward and backward
autograd holds views of them (a linear layer keeps its transposed weight), and these keep the whole vector alive. So the
full vector is one tensor for life, and its storage is resized: to nothing, and back, before the views are read again.

**What a freed parameter looks like.** It keeps its shape, and reads as NaN everywhere (one NaN, expanded): who reads
weights that are not here gets no plausible number, and who writes them gets an error.

**Autograd's counter.** A tensor that was saved for backward must not be changed before; autograd counts changes. Being
gathered a second time is no change, so the full vector is written through an alias that has a counter of its own.

Gradients have no such vector of their own for life: it is made when the unit's first gradient arrives in a backward
pass, and gone when its sum has arrived.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cme295lab.parallel.communication import transport
from cme295lab.parallel.communication.calls import ledger_tag
from cme295lab.parallel.sharding.partition import FlatLayout


class ShardedParameters:
    """Some parameters of a model, as a shard of a flat vector.

    Args:
        name: what to call them in errors.
        parameters: name in the model -> parameter, all of one dtype and all trainable or none. Rank 0's values count.
        compute_dtype: of the gathered weights and their gradients; None: the parameters' own.
        reduce_dtype: in which gradients are sent; None: `compute_dtype`.
        group: the ranks.
        absent: a NaN that stands for weights that are not here; all may share one.

    Attributes:
        layout: where each parameter lies in the flat vector.
        shard: this rank's part of the weights, in the parameters' own dtype.
        gradient: this rank's part of the summed gradient, in the same dtype; None before there is one.

    Raises:
        ValueError: mixed dtypes.
    """

    def __init__(
        self,
        name: str,
        parameters: Mapping[str, nn.Parameter],
        *,
        compute_dtype: torch.dtype | None,
        reduce_dtype: torch.dtype | None,
        group: dist.ProcessGroup,
        absent: Float[Tensor, ""],
    ) -> None:
        self.name = name
        self.parameters = dict(parameters)
        self.group = group
        first = next(iter(self.parameters.values()))
        _check(name, self.parameters)
        self.is_trainable = first.requires_grad
        self.layout = FlatLayout.of(self.parameters, num_ranks=group.size())
        self._names = {id(parameter): name for name, parameter in self.parameters.items()}
        self._slots = {slot.name: slice(slot.start, slot.start + slot.numel) for slot in self.layout.slots}
        self._reduce_dtype = reduce_dtype or compute_dtype or first.dtype
        self.shard = self._take_shard(first)
        self.gradient: Tensor | None = None
        dtype = compute_dtype or first.dtype
        self._full = torch.empty(self.layout.num_elements, dtype=dtype, device=first.device)
        self._views = {
            name: self._full[self._slots[name]].view(parameter.shape) for name, parameter in self.parameters.items()
        }
        self._absent = absent.to(first.device, self._full.dtype)
        self._gathering: transport.Handle | None = None
        self._collected: Tensor | None = None
        self._arrived: set[str] = set()
        self._reducing: tuple[transport.Handle, Tensor] | None = None
        self.is_gathered = True
        self.free()

    def _take_shard(self, like: Tensor) -> Tensor:
        flat = torch.zeros(self.layout.num_elements, dtype=like.dtype, device=like.device)
        for name, parameter in self.parameters.items():
            flat[self._slots[name]] = parameter.detach().flatten()
        transport.broadcast(flat, dist.get_global_rank(self.group, 0), group=self.group)
        start, stop = self.layout.shard_range(self.group.rank())
        return flat[start:stop].clone()

    @property
    def full_bytes(self) -> int:
        """Bytes of the gathered weights."""
        return self._full.numel() * self._full.element_size()

    # --- weights ---

    def start_gather(self) -> None:
        """Begin to put the weights together; nothing to do where they are there or on their way."""
        if self.is_gathered or self._gathering is not None:
            return
        self._full.untyped_storage().resize_(self.full_bytes)
        writable = self._full.data  # an alias with a version counter of its own
        own = writable[slice(*self.layout.shard_range(self.group.rank()))]
        own.copy_(self.shard)
        with ledger_tag("weights"):
            self._gathering = transport.all_gather(writable, own, group=self.group, async_op=True)

    def gather(self) -> None:
        """Put the weights together, and let the parameters be them."""
        if self.is_gathered:
            return
        self.start_gather()
        assert self._gathering is not None
        self._gathering.wait()
        self._gathering = None
        self.is_gathered = True
        for name, parameter in self.parameters.items():
            parameter.data = self._views[name].data

    def free(self) -> None:
        """Give back the bytes of the gathered weights."""
        if self._gathering is not None:
            self.gather()  # a message that is under way must find its place
        if not self.is_gathered:
            return
        for name, parameter in self.parameters.items():
            parameter.data = self._absent.expand(self._views[name].shape)
        self._full.untyped_storage().resize_(0)
        self.is_gathered = False

    def keep_changes(self) -> None:
        """Take what was written into the gathered weights over into the shard."""
        if not self.is_gathered:
            raise RuntimeError(f"the weights of {self.name} are not gathered")
        self.shard.copy_(self._full.data[slice(*self.layout.shard_range(self.group.rank()))])

    def restore(self) -> None:
        """Give the parameters tensors of their own, in the dtype of the shard, with all values."""
        for name, value in self.full_values().items():
            self.parameters[name].data = value
        self._full.untyped_storage().resize_(0)

    def full_values(self) -> dict[str, Tensor]:
        """All weights in the dtype of the shard, gathered for this purpose: name -> tensor of its own."""
        flat = torch.empty(self.layout.num_elements, dtype=self.shard.dtype, device=self.shard.device)
        transport.all_gather(flat, self.shard, group=self.group)
        return {
            name: flat[self._slots[name]].view(parameter.shape).clone() for name, parameter in self.parameters.items()
        }

    def take_values(self, values: Mapping[str, Tensor]) -> None:
        """Take this rank's shard from full weights: name -> tensor; names that are not there keep their weights."""
        for piece in self.layout.pieces(self.group.rank()):
            if piece.name in values:
                part = values[piece.name].detach().flatten()[piece.start : piece.stop]
                self.shard[piece.offset : piece.offset + piece.numel] = part

    def name_of(self, parameter: nn.Parameter) -> str | None:
        """The name of a parameter, or None if it is not one of these."""
        return self._names.get(id(parameter))

    # --- gradients ---

    def zero_gradient(self, *, set_to_none: bool) -> None:
        """Forget the gradient of the shard, and what was not sent yet."""
        for parameter in self.parameters.values():
            parameter.grad = None
        if set_to_none:
            self.gradient = None
        elif self.gradient is not None:
            self.gradient.zero_()

    def collect(self, parameter: nn.Parameter) -> bool:
        """Move a parameter's gradient into the flat vector.

        Args:
            parameter: one of these; its `.grad` is None afterwards.

        Returns:
            Whether the gradients of all of them are there now.
        """
        assert parameter.grad is not None
        if self._collected is None:
            self._collected = torch.empty(self.layout.num_elements, dtype=self._reduce_dtype, device=self.shard.device)
        name = self._names[id(parameter)]
        place = self._collected[self._slots[name]]
        place.view(parameter.grad.shape).copy_(parameter.grad)
        parameter.grad = None
        self._arrived.add(name)
        return len(self._arrived) == len(self.parameters)

    @property
    def has_leftovers(self) -> bool:
        """Whether there are gradients that earlier backward passes were told not to send."""
        return any(parameter.grad is not None for parameter in self.parameters.values())

    @property
    def has_collected(self) -> bool:
        """Whether a gradient was collected that is not on its way yet."""
        return self._collected is not None

    def start_reduce(self) -> None:
        """Begin to sum the collected gradients over the ranks; those that did not come count as zero."""
        for parameter in self.parameters.values():
            if parameter.grad is not None:
                self.collect(parameter)
        if self._collected is None:
            self._collected = torch.zeros(self.layout.num_elements, dtype=self._reduce_dtype, device=self.shard.device)
        else:
            for name in self.parameters.keys() - self._arrived:
                self._collected[self._slots[name]].zero_()
            self._collected[self.layout.num_used :].zero_()
        flat, self._collected = self._collected, None
        self._arrived.clear()
        own = flat[slice(*self.layout.shard_range(self.group.rank()))]
        with ledger_tag("gradients"):
            self._reducing = transport.reduce_scatter(own, flat, group=self.group, async_op=True), own

    def finish_reduce(self, scale: float) -> None:
        """Wait for the sum and add it to the shard's gradient; nothing to do where none is under way.

        Args:
            scale: factor of the sum.
        """
        if self._reducing is None:
            return
        (handle, own), self._reducing = self._reducing, None
        handle.wait()
        own = own.to(self.shard.dtype).mul_(scale)
        if self.gradient is None:
            self.gradient = own.clone()  # not a view that keeps the flat vector
        else:
            self.gradient.add_(own)

    def drop_collected(self) -> None:
        """Forget what was collected or sent in a backward pass that failed."""
        self._collected = self._reducing = None
        self._arrived.clear()


def _check(name: str, parameters: Mapping[str, nn.Parameter]) -> None:
    if len({parameter.dtype for parameter in parameters.values()}) > 1:
        listed = ", ".join(f"{key} {parameter.dtype}" for key, parameter in parameters.items())
        raise ValueError(
            f"the parameters of {name} have several dtypes ({listed}), and a flat vector has one; convert the model "
            "with model.float() and ask for 16-bit weights with compute_dtype"
        )
