"""What a model answers, of a few words that it may: their probabilities, the likeliest, and how often it is right.

The score of a label is the log-probability of the whole answer: all its tokens and the end of turn. So labels of
different length can be compared, and a label that begins another one is not favoured. All labels of all tasks compete,
unless told otherwise: with the wrong adapter the accuracy is near zero, and not one half.

A batch is one forward pass; a row is a text with one of the labels, padded on the right, which a causal model does not
see. The prompt is computed once for each label; for texts this short that costs less than a cache would explain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cme295lab.finetuning.attached import check_int
from cme295lab.finetuning.chat.masking import encode_chat
from cme295lab.finetuning.chat.templates import ChatTemplate
from cme295lab.finetuning.instructions.example import conversation
from cme295lab.finetuning.tasks.generate import LABELS, TaskExample
from cme295lab.transformer.text import TextTokenizer


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model says of a text.

    Attributes:
        label: the likeliest.
        probabilities: label -> its probability among the labels; the sum is 1.
        coverage: probability that the model answers one of the labels at all, of everything that it could say.
    """

    label: str
    probabilities: Mapping[str, float]
    coverage: float


def label_log_probabilities(
    model: nn.Module,
    texts: Sequence[str],
    tokenizer: TextTokenizer,
    template: ChatTemplate,
    *,
    labels: Sequence[str] = LABELS,
    batch_size: int = 16,
) -> Float[Tensor, "texts labels"]:
    """Log-probability that the model answers just the label, and ends.

    Args:
        model: tokens -> logits, causal; in training mode its dropout acts.
        texts: what the user says.
        tokenizer, template: how a conversation becomes tokens.
        labels: what may be answered, all different.
        batch_size: texts in a forward pass, which has as many rows for each label. Rows are in the order of texts, and
            within a text in that of the labels.

    Raises:
        ValueError: if there is no text or no label, a label occurs twice, or what `encode_chat` refuses.
    """
    if not texts or not labels or len(set(labels)) != len(labels):
        raise ValueError(f"give texts and different labels, got {len(texts)} texts and labels {', '.join(labels)}")
    check_int("batch_size", batch_size, 1)
    parts = []
    for start in range(0, len(texts), batch_size):
        some = texts[start : start + batch_size]
        chats = [encode_chat(conversation(text, label), tokenizer, template) for text in some for label in labels]
        length = max(len(chat.tokens) for chat in chats)
        tokens = torch.tensor([chat.tokens + [chat.tokens[-1]] * (length - len(chat.tokens)) for chat in chats])
        mask = torch.tensor([chat.loss_mask + [False] * (length - len(chat.tokens)) for chat in chats])
        device = next(model.parameters()).device
        parts.append(_answer_scores(model, tokens.to(device), mask.to(device)).view(len(some), len(labels)).cpu())
    return torch.cat(parts)


@torch.no_grad()
def _answer_scores(model: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
    """For each row, the sum of the log-probabilities of its masked tokens."""
    logits = model(tokens[:, :-1])
    targets, wanted = tokens[:, 1:], mask[:, 1:]
    scores = torch.zeros(wanted.shape, dtype=torch.float32, device=tokens.device)
    chosen = logits[wanted].float().log_softmax(-1)  # of the answers only: the vocabulary is large
    scores[wanted] = chosen.gather(-1, targets[wanted].unsqueeze(-1)).squeeze(-1)
    return scores.sum(-1)


def answers_of(scores: Float[Tensor, "texts labels"], labels: Sequence[str] = LABELS) -> list[Answer]:
    """Answers from log-probabilities, one for each row."""
    found = []
    for row in scores.double():
        shares = row.softmax(-1).tolist()
        found.append(
            Answer(
                label=labels[int(row.argmax())],
                probabilities=dict(zip(labels, shares, strict=True)),
                coverage=float(row.exp().sum()),
            )
        )
    return found


def classify(
    model: nn.Module,
    texts: Sequence[str],
    tokenizer: TextTokenizer,
    template: ChatTemplate,
    *,
    labels: Sequence[str] = LABELS,
    batch_size: int = 16,
) -> list[Answer]:
    """The likeliest label of each text, and the probabilities of all.

    Args, Raises: as `label_log_probabilities`.
    """
    scores = label_log_probabilities(model, texts, tokenizer, template, labels=labels, batch_size=batch_size)
    return answers_of(scores, labels)


def accuracy(
    model: nn.Module,
    examples: Sequence[TaskExample],
    tokenizer: TextTokenizer,
    template: ChatTemplate,
    *,
    labels: Sequence[str] = LABELS,
    batch_size: int = 16,
) -> float:
    """Share of the examples whose label is the likeliest, from 0 to 1.

    Args, Raises: as `label_log_probabilities`; and ValueError if an example has another label.
    """
    if missing := {example.label for example in examples} - set(labels):
        raise ValueError(f"labels must have those of the examples, lacks {', '.join(sorted(missing))}")
    texts = [example.text for example in examples]
    found = classify(model, texts, tokenizer, template, labels=labels, batch_size=batch_size)
    return sum(a.label == e.label for a, e in zip(found, examples, strict=True)) / len(examples)
