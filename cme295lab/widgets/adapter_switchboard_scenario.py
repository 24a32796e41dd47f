"""One text through several adapters on one base, in one batch: what each of them answers, and what a switch moves.

A pure function but for a passing adapter: `switchboard_scenario` puts a weighted sum of adapters beside the others (if
asked), runs a forward pass whose rows go through an adapter each (`lora.adapters_per_example`), and takes the sum off
again. Rows are adapter by adapter, and within one label by label, as `tasks.label_log_probabilities` has them.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from cme295lab.finetuning import lora
from cme295lab.finetuning.chat import ChatTemplate
from cme295lab.finetuning.tasks import LABELS, Answer, answers_of, label_log_probabilities
from cme295lab.transformer.text import TextTokenizer

BASE = "none"
WEIGHTED = "weighted-sum"


@dataclass(frozen=True, kw_only=True)
class SwitchboardScenario:
    """What the adapters say of one text.

    Attributes:
        text: what the user says.
        labels: what may be answered.
        answers: adapter -> its answer; "none" is the base, "weighted-sum" the sum.
        weights: of the sum, by adapter; empty without one.
        num_rows: of the one batch.
        seconds: that the batch took.
        adapter_bytes: adapter -> bytes of its parameters, which is what a switch moves at most.
        base_bytes: of all other parameters, which stay.
    """

    text: str
    labels: tuple[str, ...]
    answers: Mapping[str, Answer]
    weights: Mapping[str, float]
    num_rows: int
    seconds: float
    adapter_bytes: Mapping[str, int]
    base_bytes: int


def switchboard_scenario(
    model: nn.Module,
    text: str,
    tokenizer: TextTokenizer,
    template: ChatTemplate,
    *,
    adapters: Sequence[str | None] | None = None,
    weights: Mapping[str, float] | None = None,
    labels: Sequence[str] = LABELS,
) -> SwitchboardScenario:
    """Ask every adapter at once.

    Args:
        model: tokens -> logits, with LoRA adapters; afterwards it is as it was.
        text: what the user says.
        tokenizer, template: those that the adapters were trained with.
        adapters: names, and None for the base; None in place of the list means the base and all adapters.
        weights: of a weighted sum, which answers, too; None or empty for no sum.
        labels: what may be answered.

    Raises:
        ValueError: if the text is empty, an adapter is named twice or unknown, nothing is asked, a weight is not
            finite, or what `encode_chat` refuses.
    """
    if not text.strip():
        raise ValueError("text is empty: type a message")
    chosen = [None, *lora.adapter_names(model)] if adapters is None else list(adapters)
    if len(set(chosen)) != len(chosen):
        raise ValueError(f"adapters must be named once each, got {', '.join(map(str, chosen))}")
    if not chosen and not weights:
        raise ValueError("adapters is empty, and there are no weights: nothing would be asked")
    if weights:
        lora.add_weighted_adapter(model, WEIGHTED, weights)
        chosen.append(WEIGHTED)
    try:
        rows = [name for name in chosen for _ in labels]
        start = time.perf_counter()
        with lora.adapters_per_example(model, rows):
            scores = label_log_probabilities(
                model, [text] * len(chosen), tokenizer, template, labels=labels, batch_size=len(chosen)
            )
        seconds = time.perf_counter() - start
        sizes = {name: _bytes(lora.lora_parameters(model, name)) for name in chosen if name is not None}
    finally:
        if weights:
            lora.delete_adapter(model, WEIGHTED)
    everything, of_adapters = _bytes(dict(model.named_parameters())), sum(
        _bytes(lora.lora_parameters(model, name)) for name in lora.adapter_names(model)
    )
    return SwitchboardScenario(
        text=text,
        labels=tuple(labels),
        answers={name or BASE: answer for name, answer in zip(chosen, answers_of(scores, labels), strict=True)},
        weights=dict(weights or {}),
        num_rows=len(rows),
        seconds=seconds,
        adapter_bytes=sizes,
        base_bytes=everything - of_adapters,
    )


def _bytes(parameters: Mapping[str, nn.Parameter]) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters.values())
