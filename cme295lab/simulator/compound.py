"""Values that consist of several kernel values: tuples, named tuples, block pointers, descriptors, aggregates.

Where programs take different paths such a value is narrowed and put together again part by part; `parts` takes it
apart and `rebuilt` makes one like it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any


class Compound(ABC):
    """A kernel value that is no block itself but holds some."""

    __slots__ = ()

    @abstractmethod
    def parts(self) -> tuple[Any, ...]:
        """The values it consists of."""

    @abstractmethod
    def with_parts(self, parts: Sequence[Any]) -> Compound:
        """The same kind of value with other parts."""

    def matches(self, other: object) -> bool:
        """Whether programs that hold this value and programs that hold the other one can go on together."""
        return type(self) is type(other)


def parts(value: Any) -> tuple[Any, ...] | None:
    """What a value consists of; None for a plain one."""
    if isinstance(value, tuple | list):
        return tuple(value)
    return value.parts() if isinstance(value, Compound) else None


def rebuilt(value: Any, new_parts: Sequence[Any]) -> Any:
    """A value like this one made of other parts; a named tuple keeps its names."""
    if isinstance(value, Compound):
        return value.with_parts(new_parts)
    return type(value)(*new_parts) if hasattr(value, "_fields") else tuple(new_parts)


def alike(first: Any, second: Any) -> bool:
    """Whether two values consist of parts that correspond to each other."""
    if isinstance(first, Compound):
        return first.matches(second)
    both = isinstance(first, tuple | list) and isinstance(second, tuple | list)
    return both and len(first) == len(second) and getattr(first, "_fields", None) == getattr(second, "_fields", None)
