"""Small models and a small vocabulary that the tests of this folder share."""

from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from cme295lab.transformer import DecoderLM, ModelConfig
from cme295lab.transformer.config import RopeScaling
from cme295lab.transformer.text import TextTokenizer

TEXTS = ["the model reads the text", "def add(a, b):\n    return a + b\n", "12 + 30 = 42, said the small model"]
END = "<|end|>"
SHAPE: dict[str, Any] = {
    "vocab_size": 320, "num_layers": 2, "dim": 48, "num_heads": 6, "num_kv_heads": 2, "mlp_dim": 80, "max_seq": 40
}  # fmt: skip
GPT: dict[str, Any] = {"mlp": "gelu", "norm": "layernorm", "position": "learned", "bias": True, "num_kv_heads": 6}
CONFIGS = {
    "untied": ModelConfig(**SHAPE, name="untied", rope_theta=50_000.0, norm_eps=1e-6),
    "tied": ModelConfig(**SHAPE, name="tied", tied_head=True),
    "wide heads": ModelConfig(**SHAPE, name="wide heads", head_dim=12),
    "biases": ModelConfig(**SHAPE, name="biases", bias=True),
    "experts": ModelConfig(**SHAPE, name="experts", num_experts=5, experts_per_token=2),
    "long": ModelConfig(
        **SHAPE, name="long", rope_scaling=RopeScaling(factor=4.0, high_freq_factor=3.0, original_max_seq=16)
    ),
    "gpt": ModelConfig(**SHAPE | GPT, name="gpt", tied_head=True, dropout=0.25),
    "gpt untied": ModelConfig(**SHAPE | GPT, name="gpt untied"),
}
TOKENS = torch.tensor([[7, 1, 300, 45, 45, 2, 99, 319, 0, 3, 250], [8, 300, 2, 45, 7, 1, 99, 0, 31, 12, 4]])


@cache
def tiny_tokenizer() -> TextTokenizer:
    """Byte-level BPE, 300 tokens at most; <|end|> is number 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return TextTokenizer(tokenizer, end_token=END)


def random_model(config: ModelConfig) -> DecoderLM:
    """A model whose parameters are all random and none near 0, norms and biases among them."""
    torch.manual_seed(1)
    model = DecoderLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(mean=1.0 if "norm" in name else 0.0, std=0.2)
    return model


@torch.no_grad()
def logits_of(model: DecoderLM) -> torch.Tensor:
    """Logits of the same tokens for every model."""
    return model(TOKENS)
