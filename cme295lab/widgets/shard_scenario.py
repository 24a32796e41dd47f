"""Who holds what during one training step under ZeRO: a training step as a list of moments, as pure records.

The model is a line from 0 to 1, cut into equal layers; each layer is cut into one shard per rank. A `Holding` is a
piece of that line that a rank has in memory. Mixed-precision Adam: 2 bytes per parameter of weights, 2 of gradients,
12 of optimizer state (fp32 master weights, momentum, variance). What is sent is counted as on a ring.

Source: Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", §5 and §7.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

KINDS = ("weights", "gradients", "optimizer state")
BYTES_PER_PARAMETER = {"weights": 2, "gradients": 2, "optimizer state": 12}
STAGES = (0, 1, 2, 3)

Status = Literal["kept", "gathered", "local"]


@dataclass(frozen=True, kw_only=True)
class Holding:
    """A piece of the model that a rank holds.

    Attributes:
        kind: one of `KINDS`.
        start, stop: where it lies on the model's line, 0 to 1.
        status: "kept" over the step, "gathered" for a moment, or "local": a gradient of this rank's batch alone.
    """

    kind: str
    start: Fraction
    stop: Fraction
    status: Status = "kept"


@dataclass(frozen=True, kw_only=True)
class ShardMoment:
    """One moment of a training step.

    Attributes:
        phase: "rest", "forward", "backward" or "update".
        caption: what happens, in words.
        holdings: by rank, what it holds.
        sent: what a rank has sent since the step began, in units of the model's parameters.
    """

    phase: str
    caption: str
    holdings: tuple[tuple[Holding, ...], ...]
    sent: Fraction

    def held(self, rank: int, kind: str) -> Fraction:
        """The share of the model, 0 to 1, that a rank holds of a kind."""
        return sum((h.stop - h.start for h in self.holdings[rank] if h.kind == kind), Fraction(0))

    def bytes_per_parameter(self, rank: int) -> Fraction:
        """Bytes that a rank holds, per parameter of the whole model."""
        return sum((self.held(rank, kind) * BYTES_PER_PARAMETER[kind] for kind in KINDS), Fraction(0))


@dataclass(frozen=True, kw_only=True)
class ShardScenario:
    """A training step under one stage.

    Attributes:
        stage: 0 is plain data parallelism.
        num_ranks: processes.
        num_layers: equal layers of the model.
        moments: the step, from rest to rest.
    """

    stage: int
    num_ranks: int
    num_layers: int
    moments: tuple[ShardMoment, ...]

    @property
    def sent(self) -> Fraction:
        """What a rank sends in a step, in units of the model's parameters: 2 (N-1)/N, or 3 (N-1)/N for stage 3."""
        return self.moments[-1].sent

    @property
    def peak(self) -> Fraction:
        """The most that rank 0 holds at a moment, in bytes per parameter."""
        return max(moment.bytes_per_parameter(0) for moment in self.moments)


def shard_scenario(*, stage: int, num_ranks: int, num_layers: int = 4) -> ShardScenario:
    """Play one training step.

    Args:
        stage: 0, 1, 2 or 3.
        num_ranks: processes, at least 1.
        num_layers: layers, at least 1.

    Returns:
        The step's moments.

    Raises:
        ValueError: if an argument is out of range.
    """
    if stage not in STAGES:
        raise ValueError(f"stage must be 0 (no sharding), 1, 2 or 3, got {stage!r}")
    if num_ranks < 1 or num_layers < 1:
        raise ValueError(f"num_ranks and num_layers must be at least 1, got {num_ranks} and {num_layers}")
    moments = _Step(stage, num_ranks, num_layers).play()
    return ShardScenario(stage=stage, num_ranks=num_ranks, num_layers=num_layers, moments=tuple(moments))


class _Step:
    """Builds the moments one after the other."""

    def __init__(self, stage: int, num_ranks: int, num_layers: int) -> None:
        self.stage, self.num_ranks, self.num_layers = stage, num_ranks, num_layers
        self.sent = Fraction(0)
        self.moments: list[ShardMoment] = []

    def play(self) -> list[ShardMoment]:
        layers = range(self.num_layers)
        self._note("rest", "Between two steps: weights and optimizer state" + (", in shards" if self.stage else ""))
        if self.stage == 3:
            for layer in layers:
                self._send()
                self._note("forward", f"Forward, layer {layer}: all-gather its weights, compute, free them", at=layer)
        else:
            self._note("forward", "Forward: every rank has all weights; nothing is sent")
        for layer in reversed(layers):
            self._backward(layer)
        share = "its shard" if self.stage else "everything: the same work on every rank"
        self._note("update", f"Optimizer step: each rank updates {share}", done=0)
        if self.stage in (1, 2):
            self.sent += self._ring(self.num_layers)
            self._note("update", "All-gather: every rank collects the updated weights from all the others", done=0)
        return self.moments

    def _backward(self, layer: int) -> None:
        if self.stage == 3:
            self._send()
            self._note("backward", f"Backward, layer {layer}: all-gather its weights again, compute its gradient",
                       at=layer, done=layer + 1, local=layer)  # fmt: skip
        else:
            self._note("backward", f"Backward, layer {layer}: the gradient of this rank's own batch",
                       done=layer + 1, local=layer)  # fmt: skip
        collective = "reduce-scatter" if self.stage else "all-reduce"
        self.sent += self._ring(1) * (1 if self.stage else 2)
        rest = {
            0: "every rank has the mean",
            1: "each rank has the mean of its shard, in a buffer that stays full-size",
            2: "each rank keeps the mean of its shard and frees the rest",
            3: "each rank keeps the mean of its shard and frees the rest, the weights too",
        }[self.stage]
        self._note("backward", f"{collective.capitalize()} of layer {layer}: {rest}", done=layer)

    def _send(self) -> None:
        self.sent += self._ring(1)

    def _ring(self, layers: int) -> Fraction:
        """What an all-gather or a reduce-scatter of some layers makes each rank send."""
        return Fraction(layers * (self.num_ranks - 1), self.num_layers * self.num_ranks)

    def _note(
        self, phase: str, caption: str, *, at: int | None = None, done: int | None = None, local: int | None = None
    ) -> None:
        """Record a moment: `at` is a gathered layer, layers from `done` on are reduced, `local` is a fresh gradient."""
        holdings = tuple(tuple(self._held_by(rank, at, done, local)) for rank in range(self.num_ranks))
        self.moments.append(ShardMoment(phase=phase, caption=caption, holdings=holdings, sent=self.sent))

    def _held_by(self, rank: int, at: int | None, done: int | None, local: int | None) -> list[Holding]:
        held = []
        for layer in range(self.num_layers):
            gathered = layer == at
            if gathered or self.stage < 3:
                held.append(self._piece("weights", layer, None, "gathered" if gathered else "kept"))
            else:
                held.append(self._piece("weights", layer, rank))
            held.append(self._piece("optimizer state", layer, rank if self.stage else None))
            if layer == local:
                held.append(self._piece("gradients", layer, None, "local"))
            elif done is not None and layer >= done:
                held.append(self._piece("gradients", layer, rank if self.stage >= 2 else None))
        return held

    def _piece(self, kind: str, layer: int, rank: int | None, status: Status = "kept") -> Holding:
        """A layer, or one rank's shard of it."""
        start, width = Fraction(layer, self.num_layers), Fraction(1, self.num_layers)
        if rank is not None:
            width /= self.num_ranks
            start += rank * width
        return Holding(kind=kind, start=start, stop=start + width, status=status)
