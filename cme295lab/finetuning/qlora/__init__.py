"""QLoRA: adapters learn beside a base in 4 bits, and the optimizer's states wait in the CPU's memory.

``paging`` (pages between two memories, on a budget) and ``paged_adamw`` (AdamW whose states are such pages).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cme295lab._lazy import lazy_names

if TYPE_CHECKING:
    from cme295lab.finetuning.qlora.paged_adamw import PagedAdamW
    from cme295lab.finetuning.qlora.paging import PagePool, PagingCounts

_HOME = {
    "PagePool": "paging",
    "PagedAdamW": "paged_adamw",
    "PagingCounts": "paging",
}
_MODULES = ("paged_adamw", "paging")

__all__ = ["PagePool", "PagedAdamW", "PagingCounts"]

__getattr__, __dir__ = lazy_names(__name__, _HOME, _MODULES)
