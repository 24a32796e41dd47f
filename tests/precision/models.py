"""Small models and batches that several tests of mixed precision train."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cme295lab.precision.mixed_precision import StepRecord
from cme295lab.transformer.config import ModelConfig
from cme295lab.transformer.decoder import AttentionKind, DecoderLM

TINY = ModelConfig(
    name="tiny", num_layers=2, dim=24, mlp_dim=40, vocab_size=61, num_heads=3, num_kv_heads=1, max_seq=32,
    tied_head=True,
)  # fmt: skip


class OneWeight(nn.Module):
    """A number, whose gradient is the factor that the loss has."""

    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value]))

    def loss(self, factor: float) -> Tensor:
        """The weight times the factor."""
        return (self.weight * factor).sum()


class PlainModel(nn.Module):
    """Embedding, norm, MLP and the embedding again as head: has every kind of operator, and no shapes to check.

    (The course's models have their shapes checked in tests, which takes them thirty times as long.)
    """

    def __init__(self, dim: int = 24) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(TINY.vocab_size, dim)
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, 2 * dim)
        self.down = nn.Linear(2 * dim, dim, bias=False)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of the next token."""
        x = self.embedding(tokens)
        x = x + self.down(F.silu(self.up(self.norm(x))))
        return F.cross_entropy(F.linear(x, self.embedding.weight).flatten(0, 1), targets.flatten())


def tiny_model(seed: int = 0, attention: AttentionKind = "flash") -> DecoderLM:
    """Two layers, 0.01 million parameters, with weights as large as a narrow model needs."""
    torch.manual_seed(seed)
    model = DecoderLM(TINY, attention=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
    return model


def tiny_batches(count: int, rows: int = 5, seq: int = 13) -> list[tuple[Tensor, Tensor]]:
    """Tokens and targets that can be learnt: each token decides the next, but for some noise."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(count):
        columns = [torch.randint(0, TINY.vocab_size, (rows,), generator=generator)]
        for _ in range(seq):
            noise = torch.randint(0, 3, (rows,), generator=generator)
            columns.append((columns[-1] * 7 + 3 + noise) % TINY.vocab_size)
        tokens = torch.stack(columns, dim=1)
        batches.append((tokens[:, :-1], tokens[:, 1:]))
    return batches


def losses(records: list[StepRecord]) -> list[float]:
    """The curve of a training."""
    return [record.loss for record in records]
