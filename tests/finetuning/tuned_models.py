"""Small models that prefixes, prompts and adapters are put on."""

import torch

from cme295lab.transformer.config import ModelConfig
from cme295lab.transformer.decoder import AttentionKind, DecoderLM

_SIZES = {"vocab_size": 31, "num_layers": 2, "dim": 24, "mlp_dim": 20, "max_seq": 24}
ROPE = ModelConfig(**_SIZES, num_heads=4, num_kv_heads=2, head_dim=6)
LEARNED = ModelConfig(
    **_SIZES, num_heads=3, position="learned", norm="layernorm", mlp="gelu", bias=True, tied_head=True
)
CONFIGS = {"rope-gqa": ROPE, "learned": LEARNED}


def model_of(config: ModelConfig = ROPE, *, attention: AttentionKind = "flash", seed: int = 0) -> DecoderLM:
    """A model in float64 whose weights are large enough that all its parts matter."""
    torch.manual_seed(seed)
    model = DecoderLM(config, attention=attention).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
    return model


def tokens_of(rows: int = 3, seq: int = 7, seed: int = 1) -> torch.Tensor:
    """Token numbers."""
    return torch.randint(0, 31, (rows, seq), generator=torch.Generator().manual_seed(seed))
