"""Layers in a row whose weights are in shards: the inputs, a run that is measured, and the truth on one process."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from cme295lab.grading.on_rank import Probe
from cme295lab.grading.zero_sharding.states import settled
from cme295lab.memory.measurement.timeline import MemoryTimeline

FLOAT_BYTES = 4
_RATE = 0.5


@dataclass(frozen=True, kw_only=True)
class Case:
    """A stack of layers on several ranks.

    Args:
        seed: of weights and batches.
        num_ranks: ranks.
        narrow, wide: the widths between which the layers lead, there and back.
        uses: which weight each layer of the stack uses, even numbers leading from narrow to wide.
        tokens: rows of each rank's batch.
    """

    seed: int
    num_ranks: int
    narrow: int
    wide: int
    uses: tuple[int, ...]
    tokens: int = 3

    @property
    def text(self) -> str:
        """The input in words."""
        tied = ", one of them used twice" if len(set(self.uses)) < len(self.uses) else ""
        return (
            f"{self.num_ranks} ranks, {len(set(self.uses))} weights of {self.wide} × {self.narrow}{tied}, "
            f"{self.tokens} tokens each, seed {self.seed}"
        )

    @property
    def num_weights(self) -> int:
        """Different weights."""
        return len(set(self.uses))

    @property
    def weight_bytes(self) -> int:
        """Bytes of a whole weight."""
        return FLOAT_BYTES * self.narrow * self.wide

    @property
    def shard_elements(self) -> int:
        """Elements of a shard of a weight, rounded up."""
        return -(-self.narrow * self.wide // self.num_ranks)

    @property
    def shard_bytes(self) -> int:
        """Bytes of all shards of a rank."""
        return self.num_weights * self.shard_elements * FLOAT_BYTES

    def weight(self, index: int) -> Tensor:
        """A whole weight, (out, in)."""
        shape = (self.wide, self.narrow) if index % 2 == 0 else (self.narrow, self.wide)
        generator = torch.Generator().manual_seed(100 * self.seed + index)
        return torch.randn(shape, generator=generator) / math.sqrt(shape[1])

    def batch(self, rank: int, step: int) -> Tensor:
        """A rank's batch."""
        generator = torch.Generator().manual_seed(10_000 + 100 * self.seed + 10 * rank + step)
        return torch.randn(self.tokens, self.narrow, generator=generator)


def scenario(probe: Probe, student: Callable[..., Any], case: Case) -> Mapping[str, Any]:
    """Two steps of plain gradient descent on the student's layers, measured."""
    outputs: list[Tensor] = []
    memory: dict[str, int] = {}
    activations = plain_memory(case)  # before the measurement begins, since it takes memory itself
    with MemoryTimeline() as timeline:
        made = {index: student(case.weight(index)) for index in sorted(set(case.uses))}
        shards: dict[str, Any] = {str(index): getattr(layer, "shard", None) for index, layer in made.items()}
        memory["at rest"] = timeline.live_bytes
        found: dict[str, Any] = {"shards": dict(shards), "gradients": {}, "memory": memory, "outputs": outputs}
        if any(not isinstance(shard, nn.Parameter) for shard in shards.values()):
            return found
        parameters = [parameter for layer in made.values() for parameter in layer.parameters()]
        for step in range(2):
            batch = case.batch(probe.rank, step)
            y = run_stack([made[index] for index in case.uses], batch)
            if step == 0:
                held = settled(timeline, memory["at rest"] + activations + case.weight_bytes // 2)
                memory["after forward"] = sum(held.values()) - memory["at rest"]
            outputs.append(y.detach())
            if not y.requires_grad:
                return found
            with probe.phase(f"step {step}"):
                loss_of(y).backward()  # type: ignore[no-untyped-call]
            if step == 0:
                memory["peak"] = timeline.peak_bytes - memory["at rest"]
                found["gradients"] = {index: _copy(shard.grad) for index, shard in shards.items()}
            descend(parameters)
            del y, batch
    return found


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone()


def run_stack(layers: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    """The layers in a row, with tanh between them."""
    for layer in layers:
        x = torch.tanh(layer(x))
    return x


def loss_of(y: Tensor) -> Tensor:
    """A loss whose gradient has the size of the outputs."""
    return y.square().mean()


def descend(parameters: Sequence[Tensor]) -> None:
    """A step of gradient descent; gradients are released."""
    with torch.no_grad():
        for parameter in parameters:
            if parameter.grad is not None:
                parameter -= _RATE * parameter.grad
            parameter.grad = None


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What one process with whole weights computes.

    Args:
        outputs: of each step and rank.
        stale: of the second step, with the weights of the first.
        by_use: the mean gradient of each layer of the stack, at the first step; a weight that is used twice has two.
        own: the same of each rank alone.
    """

    outputs: tuple[tuple[Tensor, ...], ...]
    stale: tuple[Tensor, ...]
    by_use: tuple[Tensor, ...]
    own: tuple[tuple[Tensor, ...], ...]

    def gradient(self, case: Case, weight: int) -> Tensor:
        """The mean gradient of a weight: the sum over its uses."""
        return torch.stack([g for use, g in zip(case.uses, self.by_use) if use == weight]).sum(0)


@functools.lru_cache(maxsize=16)
def truth(case: Case) -> Truth:
    """Two steps in float64 on one process."""
    weights = {index: case.weight(index).double() for index in set(case.uses)}
    start, outputs, by_use, own = dict(weights), [], [], []
    for step in range(2):
        rows = []
        gradients = []
        for rank in range(case.num_ranks):
            used = [weights[index].clone().requires_grad_() for index in case.uses]
            y = run_stack(
                [functools.partial(linear, weight=weight) for weight in used], case.batch(rank, step).double()
            )
            gradients.append(torch.autograd.grad(loss_of(y), used))
            rows.append(y.detach())
        outputs.append(tuple(rows))
        mean = [torch.stack(parts).mean(0) for parts in zip(*gradients)]
        if step == 0:
            by_use, own = mean, gradients
        for index, gradient in zip(case.uses, mean):
            weights[index] = weights[index] - _RATE * gradient
    stale = tuple(
        run_stack([functools.partial(linear, weight=start[i]) for i in case.uses], case.batch(rank, 1).double())
        for rank in range(case.num_ranks)
    )
    return Truth(outputs=tuple(outputs), stale=stale, by_use=tuple(by_use), own=tuple(own))


@functools.lru_cache(maxsize=16)
def plain_memory(case: Case) -> int:
    """Bytes that plain layers keep after the forward pass besides their weights."""
    weights = [case.weight(index).requires_grad_() for index in case.uses]
    with MemoryTimeline() as timeline:
        y = run_stack([functools.partial(linear, weight=weight) for weight in weights], case.batch(0, 0))
        kept = timeline.live_bytes - sum(weight.untyped_storage().nbytes() for weight in weights)
    assert y.grad_fn is not None
    return kept
