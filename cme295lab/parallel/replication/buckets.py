"""Which gradients travel together, and the vectors that they travel in.

A collective has a price per call and a price per byte, so small gradients share a call. Backward produces the gradients
of the last layers first: buckets are made in reverse order of the parameters, and while autograd still works on the
first layers, the buckets of the last ones are on their way.

    backward   layer 3 │ layer 2 │ layer 1 │ layer 0 │
    sending            │ bucket 0: 3, 2    │ bucket 1: 1, 0 │ wait

**A large gradient has a bucket of its own, and is its own vector**: it is sent from where autograd left it, without a
copy. Small ones, before and after large ones, are copied next to each other into a vector of the bucket.

**All ranks must send the same buckets in the same order**, or they wait for each other for ever. A rank on which a
parameter was not used has no gradient for it, and its bucket never fills by itself. So buckets are sent strictly in
order, and when backward ends, those that are left are sent with zeros in the places of what did not come.

A parameter that no rank used has therefore a gradient of zeros, not none: an optimizer with weight decay or momentum
still moves it, as in every stage of ZeRO. Freeze what is not to be trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from cme295lab.parallel.sharding.partition import FlatLayout

DEFAULT_BUCKET_BYTES = 4 * 2**20


class GradientVector:
    """Local gradients of some parameters, one after the other in a flat vector.

    Args:
        parameters: name in the model -> parameter; all of one dtype and device.
        layout: where each lies in the vector.
        dtype: of the vector; None: the parameters' own.

    Attributes:
        flat: the vector; None before the first gradient is there.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], layout: FlatLayout, *, dtype: torch.dtype | None = None
    ) -> None:
        first = next(iter(parameters.values()))
        self.dtype, self.device = dtype or first.dtype, first.device
        self.layout = layout
        self.flat: Tensor | None = None
        self._parameters = dict(parameters)
        self._slots = {slot.name: slot for slot in layout.slots}
        self._arrived: set[str] = set()

    @property
    def is_full(self) -> bool:
        """Whether the gradient of every parameter has been collected."""
        return len(self._arrived) == len(self._parameters)

    def view(self, name: str) -> Tensor:
        """A parameter's gradient, as a view of the vector."""
        assert self.flat is not None
        slot = self._slots[name]
        return self.flat[slot.start : slot.stop].view(slot.shape)

    @torch.no_grad()
    def collect(self, name: str, *, keep_as_grad: bool) -> None:
        """Move a parameter's `.grad` to its place in the vector.

        Args:
            name: the parameter's.
            keep_as_grad: let `.grad` be a view of the vector afterwards; else it is None.
        """
        parameter = self._parameters[name]
        gradient = parameter.grad
        assert gradient is not None
        if self.flat is None:
            self.flat = self._new_flat(gradient)
        place = self.view(name)
        if place.data_ptr() != gradient.data_ptr():
            place.copy_(gradient)
        parameter.grad = place if keep_as_grad else None
        self._arrived.add(name)

    def _new_flat(self, gradient: Tensor) -> Tensor:
        """A vector; the gradient itself where it is all that goes in and fits as it is."""
        is_all = gradient.numel() == self.layout.num_elements
        if is_all and gradient.dtype == self.dtype and gradient.is_contiguous():
            return gradient.view(-1)
        return torch.empty(self.layout.num_elements, dtype=self.dtype, device=self.device)

    @torch.no_grad()
    def complete(self, *, keep_as_grad: bool) -> Tensor:
        """The vector, ready to be sent: with what earlier passes left in `.grad`, and zeros where there is nothing."""
        for name, parameter in self._parameters.items():
            if name not in self._arrived and parameter.grad is not None:
                self.collect(name, keep_as_grad=keep_as_grad)
        if self.flat is None:
            self.flat = torch.empty(self.layout.num_elements, dtype=self.dtype, device=self.device)
        for name in self._parameters.keys() - self._arrived:
            self.view(name).zero_()
            if keep_as_grad:
                self._parameters[name].grad = self.view(name)
        self.flat[self.layout.num_used :].zero_()
        self._arrived.clear()
        return self.flat

    def release(self) -> None:
        """Let go of the vector, and take what was collected as not there."""
        self.flat = None
        self._arrived.clear()


@runtime_checkable
class Bucket(Protocol):
    """What `InOrder` needs of a bucket."""

    def is_ready(self) -> bool:
        """Whether all of its gradients are there."""

    def start(self) -> None:
        """Begin to send it, complete or not."""

    def finish(self) -> None:
        """Wait until it has been sent."""


AnyBucket = TypeVar("AnyBucket", bound=Bucket)


class InOrder(Generic[AnyBucket]):
    """Sends buckets in their order, each as soon as it and all before it are ready.

    Args:
        buckets: the same on all ranks.
        max_in_flight: before one more is sent, wait for the oldest of so many; None: no limit.
    """

    def __init__(self, buckets: Sequence[AnyBucket], *, max_in_flight: int | None = None) -> None:
        self.buckets = list(buckets)
        self._limit = max_in_flight
        self._num_started = self._num_finished = 0

    def advance(self) -> None:
        """Send what is ready."""
        while self._num_started < len(self.buckets) and self.buckets[self._num_started].is_ready():
            self._start_next()

    def send_rest(self) -> None:
        """At the end of backward: send what is left, and wait for everything."""
        while self._num_started < len(self.buckets):
            self._start_next()
        self.wait()
        self._num_started = self._num_finished = 0

    def wait(self, num_left: int = 0) -> None:
        """Wait until at most so many are under way."""
        while self._num_finished < self._num_started - num_left:
            self.buckets[self._num_finished].finish()
            self._num_finished += 1

    def reset(self) -> None:
        """After a backward pass that failed: wait for what is under way, and begin anew."""
        self.wait()
        self._num_started = self._num_finished = 0

    def _start_next(self) -> None:
        if self._limit is not None:
            self.wait(self._limit - 1)
        self.buckets[self._num_started].start()
        self._num_started += 1


def plan_buckets(
    parameters: Mapping[str, nn.Parameter], *, bucket_bytes: int = DEFAULT_BUCKET_BYTES, num_ranks: int = 1
) -> list[dict[str, nn.Parameter]]:
    """Put parameters into buckets in reverse order, the last ones first.

    Args:
        parameters: name in the model -> parameter; those that are not trained, or empty, are left out.
        bucket_bytes: small parameters are put together up to this size, and larger ones have buckets of their own.
        num_ranks: the least number of elements of a bucket, so that it can be cut.

    Returns:
        Buckets, ordered by when their last gradient is expected; all parameters of one have one dtype and device.

    Raises:
        ValueError: if nothing is trained, or the size is not positive.
    """
    if not isinstance(bucket_bytes, int) or bucket_bytes < 1:
        raise ValueError(f"bucket_bytes must be a positive int, got {bucket_bytes!r}")
    trained = {name: each for name, each in parameters.items() if each.requires_grad and each.numel()}
    if not trained:
        raise ValueError("the model has no parameter with requires_grad=True: there is nothing to train")
    planned: list[dict[str, nn.Parameter]] = []
    open_ones: dict[Any, dict[str, nn.Parameter]] = {}  # of small parameters, by dtype and device
    sizes: dict[Any, int] = {}
    for name, parameter in reversed(trained.items()):
        num_bytes, kind = parameter.numel() * parameter.element_size(), (parameter.dtype, parameter.device)
        if num_bytes >= bucket_bytes and parameter.numel() >= num_ranks:
            planned.append({name: parameter})
            continue
        if kind in open_ones and sizes[kind] + num_bytes > bucket_bytes and _numel(open_ones[kind]) >= num_ranks:
            planned.append(open_ones.pop(kind))
        open_ones.setdefault(kind, {})[name] = parameter
        sizes[kind] = sizes.get(kind, 0) * (len(open_ones[kind]) > 1) + num_bytes
    for members in open_ones.values():
        _add_last(planned, members, num_ranks)
    position = {name: number for number, name in enumerate(reversed(trained))}
    return sorted(planned, key=lambda members: max(position[name] for name in members))


def _add_last(planned: list[dict[str, nn.Parameter]], members: dict[str, nn.Parameter], num_ranks: int) -> None:
    """Add a last bucket; one that is too small to be cut joins the smallest of its kind."""
    first = next(iter(members.values()))
    same = [each for each in planned if _kind(next(iter(each.values()))) == _kind(first)]
    if _numel(members) < num_ranks and same:
        min(same, key=_numel).update(members)
    else:
        planned.append(members)


def _kind(parameter: nn.Parameter) -> tuple[torch.dtype, torch.device]:
    return parameter.dtype, parameter.device


def _numel(members: Mapping[str, nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in members.values())
