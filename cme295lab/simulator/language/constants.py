"""Arguments that must be known when a kernel is compiled."""

from __future__ import annotations

from cme295lab.simulator.errors import KernelTypeError


def whole_number(value: object, what: str) -> int:
    """A compile-time integer, or an error that says where one is needed."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    advice = "" if isinstance(value, float) else "; declare the kernel's parameter as NAME: tl.constexpr"
    raise KernelTypeError(f"{what} must be a compile-time integer (a literal or tl.constexpr), got {value!r}{advice}")


def block_shape(shape: object, what: str) -> tuple[int, ...]:
    """A compile-time block shape; Triton wants powers of two."""
    sizes = tuple(
        whole_number(n, f"each size in {what}'s shape") for n in (shape if isinstance(shape, list | tuple) else [shape])
    )
    for n in sizes:
        if n < 1 or n & (n - 1):
            larger = 1 << max(0, n - 1).bit_length()
            raise KernelTypeError(
                f"{what}: block sizes must be powers of two, got {n} in {sizes}; take {larger} "
                "(triton.next_power_of_2) and mask the rest"
            )
    return sizes
