"""From a model that continues text to one that answers, and then the same more cheaply.

``chat`` is where to begin: messages as text and tokens, and which of the tokens carry loss.
``instructions`` generates conversations to learn from.
``mid_training`` goes on with pretraining on other domains, and sees what is forgotten.
``sft`` trains a model to answer.
``lora`` trains what is added to weights, as products of thin matrices.
``qlora`` trains adapters beside a base in 4 bits.
``prefix`` trains keys and values in front of the sequence.
``prompt`` trains vectors in place of words in front of the text.
``adapters`` trains small MLPs after or beside the parts of a layer.
``tasks`` generates two small tasks, for several adapters on one base.
``comparisons`` fine-tunes in several ways, several times each, and says which difference is one.
``spectra`` asks of what rank a weight's change is.
"""

from __future__ import annotations

from cme295lab._lazy import lazy_names

_HOME: dict[str, str] = {}
_MODULES = (
    "adapters",
    "chat",
    "comparisons",
    "instructions",
    "lora",
    "mid_training",
    "prefix",
    "prompt",
    "qlora",
    "sft",
    "spectra",
    "tasks",
)

__all__: list[str] = []

__getattr__, __dir__ = lazy_names(__name__, _HOME, _MODULES)
