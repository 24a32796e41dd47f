"""A language model with a head that names a class instead of the next token.

The hidden state of a text's last token is all that the model knows when it is about to go on: it has read the whole
text. A linear layer turns it into a score per class. The rest is a choice of what to train, and from where:

    way             the model starts              is trained                      numbers trained (course-4m)
    from scratch    at random                     with the head                   all 4.0 million
    frozen base     pretrained                    the head alone                  514
    fine-tuned      pretrained                    with the head                   all 4.0 million

The head of a frozen base needs each text's hidden state once: it is computed once and kept.

Source: Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", §3.2 (a linear layer on the
last token's state); Howard and Ruder 2018, "Universal Language Model Fine-tuning for Text Classification".
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cme295lab.transformer.decoder import DecoderLM


class TextClassifier(nn.Module):
    """A decoder and a linear head on the hidden state of each text's last token.

    Args:
        base: the decoder; it is copied.
        num_classes: of the task.

    Raises:
        ValueError: if there are fewer than two classes.
    """

    def __init__(self, base: DecoderLM, num_classes: int = 2) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        self.base = copy.deepcopy(base)
        self.base.head = nn.Identity()  # type: ignore[assignment]  # its output is now the last norm's
        self.output = nn.Linear(base.config.dim, num_classes)
        nn.init.zeros_(self.output.weight)  # no class is preferred, whatever the hidden state is
        nn.init.zeros_(self.output.bias)

    def features(self, tokens: Int[Tensor, "texts seq"], lengths: Int[Tensor, " texts"]) -> Float[Tensor, "texts dim"]:
        """Hidden states of the last real tokens.

        Args:
            tokens: texts, padded on the right with anything: a causal model does not see what comes later.
            lengths: real tokens of each text.
        """
        hidden = self.base(tokens)
        return hidden[torch.arange(len(tokens)), lengths - 1]

    def forward(
        self, tokens: Int[Tensor, "texts seq"], lengths: Int[Tensor, " texts"]
    ) -> Float[Tensor, "texts classes"]:
        """Scores of the classes for each text."""
        return self.output(self.features(tokens, lengths))


def pad(texts: Sequence[Sequence[int]], *, max_seq: int) -> tuple[Int[Tensor, "texts seq"], Int[Tensor, " texts"]]:
    """Texts of unequal lengths as one tensor, and their lengths.

    Args:
        texts: token numbers of each.
        max_seq: what the model takes.

    Raises:
        ValueError: if there is no text, an empty one, or one that is too long.
    """
    lengths = [len(text) for text in texts]
    if not lengths or min(lengths) < 1 or max(lengths) > max_seq:
        raise ValueError(
            f"texts must have 1 to {max_seq} tokens each, got {len(texts)} of {min(lengths, default=0)} to "
            f"{max(lengths, default=0)}"
        )
    tokens = torch.zeros(len(texts), max(lengths), dtype=torch.long)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = torch.tensor(text)
    return tokens, torch.tensor(lengths)
