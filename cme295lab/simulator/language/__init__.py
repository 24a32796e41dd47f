"""The Triton language as the simulator understands it: one function per `tl.…` name, grouped by what they do.

`core` (ids, creation, memory, casts), `block_pointers` and `descriptors` (tiles of tensors), `elementwise`, `shapes`,
`reductions`, `products` (tl.dot), `random`. What is not
in the table is looked up in the installed Triton: those of its library functions that are written in Triton themselves
(sorting, the front of the random numbers) run like any other kernel.
"""

from __future__ import annotations

from cme295lab.simulator.language import (
    block_pointers,
    core,
    descriptors,
    elementwise,
    products,
    random,
    reductions,
    shapes,
)
from cme295lab.simulator.language.registry import METHODS, NATIVE, Builtin, native

__all__ = [
    "METHODS",
    "NATIVE",
    "Builtin",
    "block_pointers",
    "core",
    "descriptors",
    "elementwise",
    "native",
    "products",
    "random",
    "reductions",
    "shapes",
]
