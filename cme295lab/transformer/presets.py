"""Published models and the course's own small ones, as `ModelConfig`s by name.

    >>> preset("llama-3-8b").num_parameters, preset("gpt-2").num_parameters
    (8030261248, 124439808)
    >>> preset("mixtral-8x7b").num_parameters, preset("mixtral-8x7b").num_active_parameters
    (46702792704, 12879925248)
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from cme295lab.transformer.config import ModelConfig


def _llama(name: str, layers: int, dim: int, mlp_dim: int, vocab: int, heads: int, kv: int, **more: Any) -> ModelConfig:
    return ModelConfig(
        name=name, num_layers=layers, dim=dim, mlp_dim=mlp_dim, vocab_size=vocab, num_heads=heads, num_kv_heads=kv,
        **more,
    )  # fmt: skip


def _gpt(name: str, layers: int, dim: int, heads: int, vocab: int, max_seq: int, dropout: float = 0.0) -> ModelConfig:
    return ModelConfig(
        name=name, num_layers=layers, dim=dim, mlp_dim=4 * dim, vocab_size=vocab, num_heads=heads, max_seq=max_seq,
        mlp="gelu", norm="layernorm", position="learned", tied_head=True, bias=True, dropout=dropout,
    )  # fmt: skip


_TABLE = (
    # Ours, which train on a laptop. All but the largest share a vocabulary.
    _llama("course-draft", 2, 64, 176, 4096, 4, 2, max_seq=1024, tied_head=True),
    _llama("course-1m", 4, 112, 288, 4096, 4, 2, max_seq=1024, tied_head=True),
    _llama("course-4m", 4, 256, 704, 4096, 8, 4, max_seq=1024, tied_head=True),
    _llama("course-moe", 4, 128, 176, 4096, 4, 2, max_seq=1024, tied_head=True, num_experts=8, experts_per_token=2),
    _llama("course-30m", 8, 512, 1408, 6144, 8, 4, max_seq=2048),
    # Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; Brown et al. 2020, Table 2.1.
    _gpt("gpt-2", 12, 768, 12, 50257, 1024),
    _gpt("gpt-2-medium", 24, 1024, 16, 50257, 1024),
    _gpt("gpt-2-large", 36, 1280, 20, 50257, 1024),
    _gpt("gpt-2-xl", 48, 1600, 25, 50257, 1024),
    _gpt("gpt-3", 96, 12288, 96, 50257, 2048),
    # Touvron et al. 2023, "Llama 2"; Grattafiori et al. 2024, "The Llama 3 Herd of Models"; Jiang et al. 2023.
    _llama("llama-2-7b", 32, 4096, 11008, 32000, 32, 32, max_seq=4096),
    _llama("llama-2-13b", 40, 5120, 13824, 32000, 40, 40, max_seq=4096),
    _llama("llama-2-70b", 80, 8192, 28672, 32000, 64, 8, max_seq=4096),
    _llama("llama-3-8b", 32, 4096, 14336, 128256, 32, 8, max_seq=8192, rope_theta=500_000.0),
    _llama("llama-3-70b", 80, 8192, 28672, 128256, 64, 8, max_seq=8192, rope_theta=500_000.0),
    _llama("llama-3-405b", 126, 16384, 53248, 128256, 128, 8, max_seq=131_072, rope_theta=500_000.0),
    _llama("mistral-7b", 32, 4096, 14336, 32000, 32, 8, max_seq=32_768),
    # Jiang et al. 2024, "Mixtral of Experts"; Allal et al. 2025, "SmolLM2".
    _llama("mixtral-8x7b", 32, 4096, 14336, 32000, 32, 8, max_seq=32_768, rope_theta=1e6, num_experts=8,
           experts_per_token=2),
    _llama("smollm2-135m", 30, 576, 1536, 49152, 9, 3, max_seq=8192, rope_theta=100_000.0, tied_head=True),
    # The 7.5B model of Narayanan et al. 2021, Table 1, which ZeRO's Fig. 1 shards; Korthikanti et al. 2022, Table 3.
    _gpt("megatron-7.5b", 36, 4096, 32, 51200, 2048),
    _gpt("megatron-22b", 48, 6144, 64, 51200, 2048),
    _gpt("megatron-175b", 96, 12288, 96, 51200, 2048),
    _gpt("megatron-530b", 105, 20480, 128, 51200, 2048),
    _gpt("megatron-1t", 128, 25600, 160, 51200, 2048),
)  # fmt: skip

PRESETS: Mapping[str, ModelConfig] = MappingProxyType({config.name: config for config in _TABLE})
"""Published models, and small ones of this course, by name."""


def preset(name: str) -> ModelConfig:
    """The config of a published model, or of one of the course's own, by name.

    Raises:
        TypeError: if the name is no string.
        ValueError: if there is none of that name; the message lists them all and the closest.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string such as 'llama-3-8b', got {name!r} of type {type(name).__name__}")
    if name not in PRESETS:
        close = difflib.get_close_matches(name.lower(), PRESETS, n=1, cutoff=0.4)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown model {name!r}.{hint} Known: {', '.join(PRESETS)}")
    return PRESETS[name]
