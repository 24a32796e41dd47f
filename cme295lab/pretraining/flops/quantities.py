"""FLOP and FLOP/s: a count of operations, and a rate.

Papers write "FLOPs" for a count and "FLOPS" for a rate, and a plural looks like a speed. Training GPT-3 took 3.14e23
FLOP; an A100 does at most 3.12e14 FLOP/s; the one divided by the other is seconds. The two classes here are floats that
know which of the two they are: they print their unit, and what makes no sense (to add a rate to a count, to compare
them) is refused.

    >>> compute, speed = FlopCount(3.14e23), FlopRate(140e12)
    >>> compute, speed
    (314 ZFLOP, 140 TFLOP/s)
    >>> round(compute.seconds_at(1024 * speed) / 86_400, 1)
    25.4

Functions of this room take plain numbers as well; they refuse the wrong one of these two.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

from cme295lab.units import format_flops, format_rate

Same = TypeVar("Same", bound="_Quantity")


class _Quantity(float):
    """A float that adds up and compares with its own kind, and plain numbers, only."""

    _unit = ""

    def _refuse(self, other: Any, verb: str) -> None:
        if isinstance(other, _Quantity) and type(other) is not type(self):
            raise TypeError(
                f"cannot {verb} {self!r} and {other!r}: one is a count of operations, the other a rate; "
                f"a count is a rate times seconds"
            )

    def __add__(self: Same, other: float) -> Same:
        self._refuse(other, "add")
        return type(self)(float(self) + float(other))

    __radd__ = __add__

    def __sub__(self: Same, other: float) -> Same:
        self._refuse(other, "subtract")
        return type(self)(float(self) - float(other))

    def __mul__(self: Same, other: float) -> Same:
        if isinstance(other, _Quantity):
            raise TypeError(f"cannot multiply {self!r} and {other!r}: multiply by a number")
        return type(self)(float(self) * float(other))

    __rmul__ = __mul__

    def __truediv__(self, other: float) -> Any:
        """A ratio of two of a kind, or this divided by a number of GPUs, tokens, ... and still of its kind."""
        self._refuse(other, "divide")
        ratio = float(self) / float(other)
        return ratio if isinstance(other, _Quantity) else type(self)(ratio)

    def __lt__(self, other: float) -> bool:
        self._refuse(other, "compare")
        return float(self) < float(other)

    def __gt__(self, other: float) -> bool:
        self._refuse(other, "compare")
        return float(self) > float(other)

    def __le__(self, other: float) -> bool:
        self._refuse(other, "compare")
        return float(self) <= float(other)

    def __ge__(self, other: float) -> bool:
        self._refuse(other, "compare")
        return float(self) >= float(other)

    def __str__(self) -> str:
        return repr(self)


class FlopCount(_Quantity):
    """A number of floating-point operations; a multiply-add is two."""

    def __repr__(self) -> str:
        return format_flops(float(self))

    def seconds_at(self, rate: float) -> float:
        """Seconds that so many operations take at a rate in FLOP/s.

        Raises:
            TypeError: if it is a count; ValueError if it is not positive.
        """
        return float(self) / as_rate("rate", rate)

    def rate_in(self, seconds: float) -> FlopRate:
        """The rate at which they are done in so many seconds.

        Raises:
            TypeError: if that is a count or a rate; ValueError if it is not positive.
        """
        if isinstance(seconds, _Quantity):
            raise TypeError(f"seconds must be a time, got {seconds!r}")
        return FlopRate(float(self) / positive("seconds", seconds))


class FlopRate(_Quantity):
    """Floating-point operations per second."""

    def __repr__(self) -> str:
        return format_rate(float(self), "FLOP/s")

    def count_in(self, seconds: float) -> FlopCount:
        """Operations in so many seconds.

        Raises:
            TypeError: if that is a count or a rate; ValueError if it is not positive.
        """
        if isinstance(seconds, _Quantity):
            raise TypeError(f"seconds must be a time, got {seconds!r}")
        return FlopCount(float(self) * positive("seconds", seconds))


def as_count(name: str, value: float) -> FlopCount:
    """A positive number as a count of operations.

    Raises:
        TypeError: if it is a rate or no number; ValueError if it is not positive and finite.
    """
    if isinstance(value, FlopRate):
        raise TypeError(f"{name} must be a count in FLOP, got the rate {value!r}: multiply it by seconds (.count_in)")
    return FlopCount(positive(name, value))


def as_rate(name: str, value: float) -> FlopRate:
    """A positive number as a rate.

    Raises:
        TypeError: if it is a count or no number; ValueError if it is not positive and finite.
    """
    if isinstance(value, FlopCount):
        raise TypeError(f"{name} must be a rate in FLOP/s, got the count {value!r}: divide it by seconds (.rate_in)")
    return FlopRate(positive(name, value))


def positive(name: str, value: float) -> float:
    """A positive, finite number as a float.

    Raises:
        TypeError: if it is no number; ValueError if it is not positive and finite.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive, finite number, got {float(value):g}")
    return float(value)


def whole(name: str, value: int, at_least: int = 1) -> int:
    """An integer of at least so much.

    Raises:
        TypeError: if it is no int; ValueError if it is too small.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r} of type {type(value).__name__}")
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {value}")
    return value
