"""What every quantiser of this room refuses, said in one place.

A NaN or an infinity has no code. Rounded all the same, it would ruin the scale of all its neighbours (absmax becomes
inf, every code 0) and nobody would see it, so a quantiser counts such values, says where the first one is, and stops.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_float(name: str, x: object) -> None:
    """Refuse what is not a floating-point tensor of 16, 32 or 64 bits.

    Raises:
        TypeError: if it is not.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if x.dtype not in FLOAT_DTYPES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOAT_DTYPES)
        raise TypeError(f"{name} must be one of {allowed}, got {x.dtype}: convert it with .float()")


def check_finite(name: str, x: Tensor) -> None:
    """Refuse NaN and infinities.

    Raises:
        ValueError: if there are any; the message says how many, and what stands first and where.
    """
    finite = torch.isfinite(x)
    if bool(finite.all()):
        return
    places = (~finite).nonzero()
    first = tuple(places[0].tolist())
    raise ValueError(
        f"{name} has {len(places)} of {x.numel()} values that are not finite, the first of them {x[first].item()} at "
        f"{first}: no code stands for NaN or infinity; mask them, or find out where they come from"
    )


def check_int(name: str, value: object, low: int, high: int | None = None) -> None:
    """Refuse what is not a whole number in a range (True is none).

    Raises:
        ValueError: if it is not.
    """
    allowed = f"an int of at least {low}" if high is None else f"an int from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
