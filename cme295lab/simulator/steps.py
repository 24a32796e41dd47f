"""One operation on floats that has been written down and is done later (see `tape`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from cme295lab.simulator.dtypes import DType

if TYPE_CHECKING:
    import weakref

    from cme295lab.simulator.tape import PendingBlock
    from cme295lab.simulator.tiles_in_memory import Tiles

Function = Callable[..., Any]  # (rows of the chunk, memory for the result or None, *inputs)


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def held_as(dtype: DType) -> torch.dtype:
    """The type of the tensors in which values wait: for integers a type of the same width, which has the same bits."""
    if dtype.is_float:
        return dtype.torch
    if dtype.is_bool():
        return torch.bool
    return torch.uint8 if dtype.name == "uint8" else _INTEGERS[dtype.itemsize]


class Step:
    """One operation for all programs of a set.

    What is asked for: `function` with its `inputs` (steps, tensors with a row per program or one for all, numbers).
    `held` is the type of the tensors (integers wait as their bits), `size` are the lengths of the result's block axes
    as stored (1: the same all along the axis). `repeats`: that many consecutive programs share one row. `view`: the
    result has memory in common with the first input. `overwrites`: inputs whose place the result may take when nobody
    needs them any more. `loads` and `stores` name the memory that is read or written, `tiles` says where;
    `reads_in_place`: a load gives a view of that memory. `is_plain`: the function is PyTorch's own, called with `out=`.

    Set when it is written down: `first` and `count`, the programs for which it is done; `blocks`, who holds the value;
    `wide`, the same value in a type that products are exact in. Set when it is done: `tensor`, the value for all
    programs, if somebody held it. The rest belongs to the player.
    """

    __slots__ = (
        "function", "inputs", "size", "dtype", "repeats", "view", "overwrites", "tiles", "loads", "stores",
        "reads_in_place", "is_plain", "first", "count", "blocks", "wide", "tensor", "root", "held",
        "number", "is_needed", "last_use", "sources", "narrowed", "span", "place", "offset", "dropped", "is_copied",
    )  # fmt: skip
    first: int
    count: int
    number: int  # among the steps that are done together; -1 before and after
    is_needed: bool
    last_use: int  # number of the last step that reads the value or a view of it
    sources: list[int]  # the places of the inputs
    narrowed: list[tuple[int, int]]  # inputs that exist for other programs, too, and which
    span: int  # number of the programs for which it is done
    place: int | None  # the input whose memory the result takes
    offset: int | None  # or where in the buffer it goes
    dropped: list[int]  # what nobody needs any more afterwards
    is_copied: bool  # whether the result must not stay in the user's memory, which is about to be overwritten

    def __init__(
        self,
        function: Function,
        inputs: Sequence[Any],
        size: tuple[int, ...],
        dtype: DType,
        repeats: int = 1,
        *,
        view: bool = False,
        overwrites: Sequence[int] = (),
        is_plain: bool = False,
    ) -> None:
        self.function = function
        self.inputs = inputs
        self.size = size
        self.dtype = dtype
        self.repeats = repeats
        self.view = view
        self.overwrites = overwrites
        self.is_plain = is_plain
        self.tiles: Tiles | None = None
        self.loads: int | None = None
        self.stores: int | None = None
        self.reads_in_place = False
        self.blocks: list[weakref.ref[PendingBlock]] | None = None
        self.wide: tuple[int, Step] | None = None
        self.tensor: torch.Tensor | None = None
        self.held = held_as(dtype)
        self.root: Step = inputs[0].root if view else self
        self.number = -1

    def is_wanted(self) -> bool:
        """Whether a block still holds the value."""
        return self.blocks is not None and any(block() is not None for block in self.blocks)
