"""QLoRA: adapters learn beside a base in 4 bits, and the optimizer's states wait in the CPU's memory.

``base`` (a model frozen, with its linear layers in NF4), ``models`` (the same with adapters of any kind, and a table of
bytes), ``with_lora`` (with LoRA: what is called QLoRA), ``memory`` (what a run takes, on paper), ``measured`` (what it
takes), ``paging`` (pages between two memories, on a budget) and ``paged_adamw`` (AdamW whose states are such pages).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cme295lab._lazy import lazy_names

if TYPE_CHECKING:
    from cme295lab.finetuning.qlora.base import freeze_in_four_bits
    from cme295lab.finetuning.qlora.measured import measured_bytes
    from cme295lab.finetuning.qlora.memory import ClassBytes, QloraMemory, qlora_memory
    from cme295lab.finetuning.qlora.models import QloraSummary, adapt_in_four_bits
    from cme295lab.finetuning.qlora.paged_adamw import PagedAdamW
    from cme295lab.finetuning.qlora.paging import PagePool, PagingCounts
    from cme295lab.finetuning.qlora.with_lora import qlora_model

_HOME = {
    "ClassBytes": "memory",
    "PagePool": "paging",
    "PagedAdamW": "paged_adamw",
    "PagingCounts": "paging",
    "QloraMemory": "memory",
    "QloraSummary": "models",
    "adapt_in_four_bits": "models",
    "freeze_in_four_bits": "base",
    "measured_bytes": "measured",
    "qlora_memory": "memory",
    "qlora_model": "with_lora",
}
_MODULES = ("base", "measured", "memory", "models", "paged_adamw", "paging", "with_lora")

__all__ = [
    "ClassBytes",
    "PagePool",
    "PagedAdamW",
    "PagingCounts",
    "QloraMemory",
    "QloraSummary",
    "adapt_in_four_bits",
    "freeze_in_four_bits",
    "measured_bytes",
    "qlora_memory",
    "qlora_model",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME, _MODULES)
