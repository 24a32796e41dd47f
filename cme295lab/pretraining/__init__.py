"""From text to a trained model: what it reads, how it is trained, and what that costs.

Read in the order in which data flows. ``corpora``: real text that is on any machine with Python, cleaned, free of
duplicates, split without leakage. ``tokenizer``: byte-level BPE, in plain Python to read and from a library to use.
``packing``: documents of all lengths in rows of one length, none of which sees another. Then the training itself:
``optim`` and ``schedule`` (one step, and how long the steps are), ``trainer`` (many steps, that survive being killed),
``memorization`` (what the model can say by heart), ``course_model`` (the course's own models, made with all of it).
Beside them the accounting: ``flops`` (floating-point operations, by formula and counted), ``cost`` (hours, money,
energy), and ``transfer`` (what a trained model is good for besides the next token).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cme295lab._lazy import lazy_names

if TYPE_CHECKING:
    from cme295lab.pretraining.packing import Batch, MixtureDataset, PackedDataset

_HOME: dict[str, str] = {
    "Batch": "packing",
    "MixtureDataset": "packing",
    "PackedDataset": "packing",
}
_MODULES = ("packing", "corpora", "tokenizer")

__all__: list[str] = [
    "PackedDataset",
    "MixtureDataset",
    "Batch",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME, _MODULES)
