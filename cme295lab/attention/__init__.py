"""Exact attention, four times, all with the call shape of torch's ``scaled_dot_product_attention``: (batch, heads,
sequence, dim).

Read in this order: ``standard`` (the definition, in plain PyTorch), ``online`` (a softmax that is merged block by
block), ``tiled`` (attention that never holds the score matrix, forward and backward, in plain PyTorch), ``flash`` (the
same walk as Triton kernels, ``cme295lab.kernels.flash_attention``), ``materialized`` (the definition as Triton kernels
that write every matrix to memory, to be counted against flash), ``io`` (how many bytes each of them moves, on paper).
``validation`` and ``block_sizes`` serve them all.

Causal always means that query i sees keys j <= i, aligned at the top left, as in torch. NaN inputs are not an error: a
NaN in a query makes its own output row NaN, a NaN in a key or value makes every row NaN that sees it. (A NaN or
infinite *value* may also reach rows that the causal mask hides it from, because 0 * NaN is NaN: all of the score matrix
for ``standard``, within a block for the others.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cme295lab._lazy import lazy_names

if TYPE_CHECKING:
    from cme295lab.attention import io, materialized
    from cme295lab.attention.flash import flash_attention
    from cme295lab.attention.materialized import standard_attention_kernels
    from cme295lab.attention.online import SoftmaxState, merge, online_softmax
    from cme295lab.attention.standard import standard_attention
    from cme295lab.attention.tiled import tiled_attention

_HOME = {
    "SoftmaxState": "online",
    "flash_attention": "flash",
    "merge": "online",
    "online_softmax": "online",
    "standard_attention": "standard",
    "standard_attention_kernels": "materialized",
    "tiled_attention": "tiled",
}
_MODULES = ("block_sizes", "flash", "io", "materialized", "online", "standard", "tiled", "validation")

__all__ = [
    "SoftmaxState",
    "flash_attention",
    "io",
    "materialized",
    "merge",
    "online_softmax",
    "standard_attention",
    "standard_attention_kernels",
    "tiled_attention",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME, _MODULES)
