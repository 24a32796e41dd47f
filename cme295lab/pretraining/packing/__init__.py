"""Documents of all lengths in rows of one length, none of which sees another.

A batch is a rectangle, documents are not. One document a row wastes what is left of the row; texts glued together and
cut every `seq` tokens waste nothing, but the model then reads the end of a recipe as context for the start of a proof.
Packing puts several documents into a row and tells the model where each begins.

Read ``filling`` (which documents share a row), ``dataset`` (the rows, and batches of them) and ``mixture`` (several
domains in one run).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cme295lab._lazy import lazy_names

if TYPE_CHECKING:
    from cme295lab.pretraining.packing.dataset import IGNORED_TARGET, PADDING_DOCUMENT, Batch, PackedDataset
    from cme295lab.pretraining.packing.filling import best_fit, cut_to_fit, next_fit, one_per_row
    from cme295lab.pretraining.packing.mixture import MixtureDataset

_HOME: dict[str, str] = {
    "Batch": "dataset",
    "IGNORED_TARGET": "dataset",
    "MixtureDataset": "mixture",
    "PADDING_DOCUMENT": "dataset",
    "PackedDataset": "dataset",
    "best_fit": "filling",
    "cut_to_fit": "filling",
    "next_fit": "filling",
    "one_per_row": "filling",
}
_MODULES = ("dataset", "filling", "mixture")

__all__: list[str] = [
    "PackedDataset",
    "MixtureDataset",
    "Batch",
    "best_fit",
    "next_fit",
    "cut_to_fit",
    "one_per_row",
    "IGNORED_TARGET",
    "PADDING_DOCUMENT",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME, _MODULES)
