"""Tiles that neighbouring programs have in common.

Programs that work on the same head read the same K and V; with axis 0 of the grid running over the queries they are
neighbours. Such a tile is kept once per run of programs instead of once per program, and a product with it becomes one
tall product per run. Any other operation writes it out first.
"""

from __future__ import annotations

import numpy as np
import torch

from cme295lab.simulator.dtypes import DType
from cme295lab.simulator.programs import Array, ProgramSet
from cme295lab.simulator.values import Block


class SharedBlock(Block):
    """A block that runs of `repeats` consecutive programs share: `shared` has one row per run."""

    __slots__ = ("shared", "repeats", "_written_out")
    _written_out: list[Array]

    def __init__(
        self,
        shared: torch.Tensor,
        repeats: int,
        dtype: DType,
        shape: tuple[int, ...],
        programs: ProgramSet,
        *,
        is_view: bool = False,
    ) -> None:
        self.shared = shared
        self.repeats = repeats
        super().__init__([], dtype, shape, programs, is_view=is_view)
        self.exposed = True

    @property
    def arrays(self) -> list[Array]:  # type: ignore[override]
        """One row per program, made when first asked for."""
        if not self._written_out:
            runs, *tail = self.shared.shape
            self._written_out = [
                self.shared.unsqueeze(1).expand(runs, self.repeats, *tail).reshape(runs * self.repeats, *tail)
            ]
        return self._written_out

    @arrays.setter
    def arrays(self, value: list[Array]) -> None:
        self._written_out = value

    def permuted(self, axes: list[int], shape: tuple[int, ...]) -> SharedBlock:
        """The transposed block, shared in the same way; `axes` include the program axis."""
        block = SharedBlock(self.shared.permute(axes), self.repeats, self.dtype, shape, self.programs, is_view=True)
        block.temporary = False
        return block


def run_length(values: np.ndarray) -> int:
    """The length of the runs of equal values that an array consists of; 1 if they are not all equally long."""
    changes = np.flatnonzero(np.diff(values)) + 1
    length = int(changes[0]) if len(changes) else len(values)
    runs, rest = divmod(len(values), length)
    return length if not rest and np.array_equal(changes, np.arange(1, runs) * length) else 1
