"""How parameters are cut into equal shards: pure arithmetic, without tensors and without processes.

Some parameters are laid one after the other into a flat vector, and zeros are appended until its length is a multiple
of the number of ranks. Rank r's shard is the r-th of N equal parts. A cut may go through the middle of a parameter,
and a shard may hold parts of several: this is what makes shards equal, whatever the shapes are.

    parameters   |------- a: 5 -------|-- b: 3 --|0|      9 elements for 3 ranks: one element of padding
    shards       |-- rank 0 --|-- rank 1 --|- rank 2 -|

What a rank holds is described in *pieces*, "elements 3 to 5 of the flattened parameter a". Pieces do not depend on
the layout, so a checkpoint that is written by pieces can be read by another number of ranks.

An optimizer with several parameter groups (weight decay for matrices, none for norms) needs to know which part of a
shard belongs to which group: see `runs`.

Source: Rajbhandari et al. 2020, "ZeRO", section 5; the flat vector is how DeepSpeed and FSDP implement it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import TypeVar

from torch import Tensor

Key = TypeVar("Key")


@dataclass(frozen=True, kw_only=True)
class Slot:
    """The place of one parameter in a flat vector.

    Attributes:
        name: the parameter's name.
        shape: its shape.
        start: index of its first element in the flat vector.
    """

    name: str
    shape: tuple[int, ...]
    start: int

    @property
    def numel(self) -> int:
        """Elements of the parameter."""
        return prod(self.shape)

    @property
    def stop(self) -> int:
        """Index after its last element in the flat vector."""
        return self.start + self.numel


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a parameter.

    Attributes:
        name: the parameter's name.
        start, stop: elements of the flattened parameter.
        offset: where the piece begins in the shard (or vector) that it was asked of.
    """

    name: str
    start: int
    stop: int
    offset: int

    @property
    def numel(self) -> int:
        """Elements of the piece."""
        return self.stop - self.start


@dataclass(frozen=True, kw_only=True)
class FlatLayout:
    """Parameters in a flat vector that divides evenly over the ranks.

    Attributes:
        slots: the places of the parameters, in order, without gaps.
        num_ranks: ranks over which it is divided.
    """

    slots: tuple[Slot, ...]
    num_ranks: int

    @classmethod
    def of(cls, parameters: Mapping[str, Tensor], *, num_ranks: int) -> FlatLayout:
        """Lay out parameters in the order in which they are given.

        Args:
            parameters: name -> tensor; only shapes are used.
            num_ranks: ranks over which the vector is divided.

        Raises:
            ValueError: if there are no parameters, or fewer elements than ranks.

            >>> import torch
            >>> layout = FlatLayout.of({"a": torch.zeros(5), "b": torch.zeros(3)}, num_ranks=3)
            >>> layout.num_elements, layout.num_padding, layout.shard_range(1), layout.pieces(1)
            (9, 1, (3, 6), (Piece(name='a', start=3, stop=5, offset=0), Piece(name='b', start=0, stop=1, offset=2)))
        """
        if num_ranks < 1:
            raise ValueError(f"num_ranks must be at least 1, got {num_ranks}")
        slots: list[Slot] = []
        for name, tensor in parameters.items():
            slots.append(Slot(name=name, shape=tuple(tensor.shape), start=slots[-1].stop if slots else 0))
        num_used = slots[-1].stop if slots else 0
        if num_used < num_ranks:
            names = ", ".join(list(parameters)[:3]) or "no parameters"
            raise ValueError(
                f"cannot shard {num_used} elements ({names}) over num_ranks={num_ranks}: there are more ranks than "
                "elements, and some would hold only padding; use fewer ranks, or put more parameters into one vector"
            )
        return cls(slots=tuple(slots), num_ranks=num_ranks)

    @property
    def num_used(self) -> int:
        """Elements of the parameters, without padding."""
        return self.slots[-1].stop

    @property
    def num_elements(self) -> int:
        """Elements of the vector, padding included: a multiple of num_ranks."""
        return self.num_ranks * self.shard_numel

    @property
    def num_padding(self) -> int:
        """Elements of padding, fewer than num_ranks; they are at the end, so the last rank has most of them."""
        return self.num_elements - self.num_used

    @property
    def shard_numel(self) -> int:
        """Elements of a shard, the same for all ranks."""
        return -(-self.num_used // self.num_ranks)

    def shard_range(self, rank: int) -> tuple[int, int]:
        """Where a rank's shard begins and ends in the flat vector.

        Raises:
            ValueError: if there is no such rank.
        """
        if not 0 <= rank < self.num_ranks:
            raise ValueError(f"rank must be 0 to {self.num_ranks - 1}, got {rank}")
        return rank * self.shard_numel, (rank + 1) * self.shard_numel

    def pieces(self, rank: int) -> tuple[Piece, ...]:
        """What a rank's shard holds; `offset` counts from the shard's beginning. Padding is in no piece."""
        first, last = self.shard_range(rank)
        found = []
        for slot in self.slots:
            start, stop = max(slot.start, first), min(slot.stop, last)
            if start < stop:
                piece = Piece(name=slot.name, start=start - slot.start, stop=stop - slot.start, offset=start - first)
                found.append(piece)
        return tuple(found)

    def runs(self, rank: int, key: Mapping[str, Key]) -> tuple[tuple[Key, tuple[Piece, ...]], ...]:
        """Cut a rank's shard where the key of the parameters changes: into few long runs, one optimizer tensor each.

        Args:
            rank: whose shard.
            key: name -> what must be equal within a run, for instance the number of the parameter group.

        Returns:
            For each run its key and its pieces, which lie next to each other.
        """
        found: list[tuple[Key, list[Piece]]] = []
        for piece in self.pieces(rank):
            if found and found[-1][0] == key[piece.name]:
                found[-1][1].append(piece)
            else:
                found.append((key[piece.name], [piece]))
        return tuple((value, tuple(pieces)) for value, pieces in found)


def common_part(piece: Piece, other: Piece) -> Piece | None:
    """What two pieces have in common, with the offset in the first one's shard; None if nothing."""
    start, stop = max(piece.start, other.start), min(piece.stop, other.stop)
    if piece.name != other.name or start >= stop:
        return None
    return replace(piece, start=start, stop=stop, offset=piece.offset + start - piece.start)
