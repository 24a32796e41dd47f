"""Instruction data of our own: generated, seeded, in six kinds, with two evaluation splits and a few probes.

Read in this order: ``example`` (a conversation of a kind), ``drafts`` (two worlds of words), one writer for each kind
(``stories``, ``poems``, ``arithmetic``, ``code``, ``explanations`` with ``knowledge``, ``safety`` with ``advice``),
``cleaning`` (filters, near copies, evaluation items), ``generate`` (mixture and splits), ``probes``, ``files`` (JSONL),
``measures`` (how varied, how long, what is in two splits).

What this is not: what people write. A few hundred sentences stand behind it. With 4,000 training examples, 36% of the
runs of eight words in the in-distribution split also occur in training (3% in the shifted one), though no item does:
sentences recur, in other combinations. A loss on the first split says how well a model has learned the forms.

How large others' data is: InstructGPT 12,725 conversations to train on, LIMA 1,000, Alpaca 52,002, Llama-2-chat 27,540.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cme295lab._lazy import lazy_names

if TYPE_CHECKING:
    from cme295lab.finetuning.instructions.cleaning import CleaningReport, clean
    from cme295lab.finetuning.instructions.example import Example, conversation, normalised
    from cme295lab.finetuning.instructions.files import read_jsonl, write_jsonl
    from cme295lab.finetuning.instructions.generate import KINDS, MIXTURE, InstructionData, instruction_data
    from cme295lab.finetuning.instructions.measures import leakage, token_lengths, variety
    from cme295lab.finetuning.instructions.probes import PROBES

_HOME: dict[str, str] = {
    "CleaningReport": "cleaning",
    "Example": "example",
    "InstructionData": "generate",
    "KINDS": "generate",
    "MIXTURE": "generate",
    "PROBES": "probes",
    "clean": "cleaning",
    "conversation": "example",
    "instruction_data": "generate",
    "leakage": "measures",
    "normalised": "example",
    "read_jsonl": "files",
    "token_lengths": "measures",
    "variety": "measures",
    "write_jsonl": "files",
}
_MODULES = (
    "advice", "arithmetic", "cleaning", "code", "drafts", "example", "explanations", "files", "generate", "knowledge",
    "measures", "poems", "probes", "safety", "stories",
)  # fmt: skip

__all__: list[str] = [
    "instruction_data",
    "InstructionData",
    "Example",
    "conversation",
    "KINDS",
    "MIXTURE",
    "PROBES",
    "clean",
    "CleaningReport",
    "normalised",
    "variety",
    "token_lengths",
    "leakage",
    "read_jsonl",
    "write_jsonl",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME, _MODULES)
