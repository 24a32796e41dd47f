"""Tiny random models with a tokenizer of letters: what the widgets of decoding and routing need of trained ones."""

from dataclasses import dataclass

import torch

from cme295lab.transformer import DecoderLM, ModelConfig
from cme295lab.widgets.routing_scenario import RoutingText, routing_text

ALPHABET = "<abcdefghijklmnopqrstuvwxyz .\n"

MIXTURE = ModelConfig(
    vocab_size=len(ALPHABET), num_layers=2, dim=16, num_heads=2, mlp_dim=24, max_seq=64, num_experts=5,
    experts_per_token=2,
)  # fmt: skip


class LetterTokenizer:
    """A token is a letter; "<" is the end token."""

    end_token = 0
    vocab_size = len(ALPHABET)

    def encode(self, text: str) -> list[int]:
        return [ALPHABET.index(letter) for letter in text]

    def decode(self, tokens: list[int]) -> str:
        return "".join(ALPHABET[token] for token in tokens)

    def token_text(self, token: int) -> str:
        return ALPHABET[token]


@dataclass(frozen=True, kw_only=True)
class FakePretrained:
    """What `load_pretrained` gives, as far as the widgets look."""

    model: DecoderLM
    tokenizer: LetterTokenizer
    name: str = "letters"
    source: str = "random weights"


def fake_pretrained(seed: int = 0, *, max_seq: int = 64) -> FakePretrained:
    """A random model with sharp opinions: its weights are larger than those that training begins with."""
    torch.manual_seed(seed)
    config = ModelConfig(vocab_size=len(ALPHABET), num_layers=2, dim=32, num_heads=4, mlp_dim=48, max_seq=max_seq)
    model = DecoderLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    return FakePretrained(model=model.eval(), tokenizer=LetterTokenizer())


def fake_mixture(seed: int, *, favourite: int | None = None) -> DecoderLM:
    """A random mixture of experts; with a favourite, all routers prefer that expert for about any token."""
    torch.manual_seed(seed)
    model = DecoderLM(MIXTURE)
    with torch.no_grad():
        for layer in model.layers:
            layer.mlp.router.weight.mul_(30)
            if favourite is not None:
                layer.mlp_norm.weight.zero_()[0] = 1.0  # what is left of a token: its first number
                layer.mlp.router.weight[:, 0] = torch.arange(5.0).roll(favourite - 4)
    return model.eval()


def fake_mixtures() -> tuple[dict[float, DecoderLM], RoutingText]:
    """Two mixtures by coefficient, the one without balancing with a favourite, and a text of two domains."""
    parts = [("english", "the cat sat on"), ("code", "for i in x.")]
    models = {0.1: fake_mixture(1), 0.0: fake_mixture(2, favourite=4)}
    return models, routing_text(parts, LetterTokenizer())
