"""From an offset in memory to the index that one thinks in."""

from __future__ import annotations

from collections.abc import Sequence


def index_of(shape: Sequence[int], strides: Sequence[int], offset: int) -> tuple[int, ...]:
    """Index of the element at an offset (in elements) from a tensor's first one.

    An offset outside the tensor gives the index at which it would lie: one before the first row of a (64, 64) tensor
    is (-1, 63), one past the last is (64, 0).
    """
    index = [0] * len(shape)
    rest = offset
    for axis in sorted(range(len(shape)), key=lambda a: -strides[a]):
        if shape[axis] > 1 and strides[axis]:
            index[axis], rest = divmod(rest, strides[axis])
    return tuple(index)
