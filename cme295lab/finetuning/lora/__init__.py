"""LoRA: what fine-tuning adds to a weight, as a product of two thin matrices.

``targets`` says which matrices are meant, ``options`` what an adapter is like, ``counting`` how many parameters it has;
``layers`` computes (the low-rank part of one matrix, and the hook that adds it); ``state`` is what hangs on a model.
``adapting`` adds, switches and removes adapters, ``combining`` uses several at once, ``merging`` puts one into the
weights, ``learning_rates`` is LoRA+, and ``files`` reads and writes adapters in PEFT's format.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cme295lab._lazy import lazy_names

if TYPE_CHECKING:
    from cme295lab.finetuning.lora.adapting import (
        active_adapter,
        adapter_names,
        add_lora,
        delete_adapter,
        delta_weights,
        lora_parameters,
        remove_lora,
        set_adapter,
    )
    from cme295lab.finetuning.lora.combining import adapters_per_example, add_weighted_adapter
    from cme295lab.finetuning.lora.counting import lora_targets, num_lora_parameters
    from cme295lab.finetuning.lora.files import load_adapter, save_adapter
    from cme295lab.finetuning.lora.learning_rates import lora_plus_groups
    from cme295lab.finetuning.lora.merging import is_merged, merge, merge_and_remove, unmerge
    from cme295lab.finetuning.lora.options import LoraOptions
    from cme295lab.finetuning.lora.summary import LoraSummary, summarize

_HOME = {
    "LoraOptions": "options",
    "LoraSummary": "summary",
    "active_adapter": "adapting",
    "adapter_names": "adapting",
    "adapters_per_example": "combining",
    "add_lora": "adapting",
    "add_weighted_adapter": "combining",
    "delete_adapter": "adapting",
    "delta_weights": "adapting",
    "is_merged": "merging",
    "load_adapter": "files",
    "lora_parameters": "adapting",
    "lora_plus_groups": "learning_rates",
    "lora_targets": "counting",
    "merge": "merging",
    "merge_and_remove": "merging",
    "num_lora_parameters": "counting",
    "remove_lora": "adapting",
    "save_adapter": "files",
    "set_adapter": "adapting",
    "summarize": "summary",
    "unmerge": "merging",
}
_MODULES = (
    "adapting",
    "combining",
    "counting",
    "files",
    "layers",
    "learning_rates",
    "merging",
    "options",
    "peft_config",
    "state",
    "summary",
    "targets",
)

__all__ = [
    "LoraOptions",
    "LoraSummary",
    "active_adapter",
    "adapter_names",
    "adapters_per_example",
    "add_lora",
    "add_weighted_adapter",
    "delete_adapter",
    "delta_weights",
    "is_merged",
    "load_adapter",
    "lora_parameters",
    "lora_plus_groups",
    "lora_targets",
    "merge",
    "merge_and_remove",
    "num_lora_parameters",
    "remove_lora",
    "save_adapter",
    "set_adapter",
    "summarize",
    "unmerge",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME, _MODULES)
