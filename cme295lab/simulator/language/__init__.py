"""The Triton language as the simulator understands it: one function per `tl.…` name, grouped by what they do.

`core` (ids, creation, memory, casts), `block_pointers` and `descriptors` (tiles of tensors), `elementwise`, `shapes`,
`reductions`, `products` (tl.dot), `random`, `standard` (sorting and other library functions). Functions that Triton
writes in its own language are among them, so that nothing depends on what is installed.
"""

from __future__ import annotations

from cme295lab.simulator.language import (
    block_pointers,
    core,
    descriptors,
    elementwise,
    libdevice,
    libdevice_rounding,
    mapping,
    products,
    random,
    reductions,
    scaled_products,
    shapes,
    standard,
)
from cme295lab.simulator.language.registry import LIBDEVICE, METHODS, NATIVE, Builtin, native

__all__ = [
    "LIBDEVICE",
    "METHODS",
    "NATIVE",
    "Builtin",
    "block_pointers",
    "core",
    "descriptors",
    "elementwise",
    "libdevice",
    "libdevice_rounding",
    "mapping",
    "native",
    "products",
    "random",
    "reductions",
    "scaled_products",
    "shapes",
    "standard",
]
