"""A tiny random model with a tokenizer of letters: what the decoding widgets need of a pretrained one."""

from dataclasses import dataclass

import torch

from cme295lab.transformer import DecoderLM, ModelConfig

ALPHABET = "<abcdefghijklmnopqrstuvwxyz .\n"


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
