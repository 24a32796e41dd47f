"""The shape of a decoder-only language model, and the number of its parameters.

A model is an embedding, `num_layers` blocks of attention and MLP, a last norm and a head. Two families cover nearly all
published models, and a `ModelConfig` mixes their parts freely:

    part        Llama, Mistral                          GPT-2, GPT-3, Megatron
    positions   "rope": rotations, no parameters        "learned": a table of max_seq × dim
    norm        "rmsnorm": a weight                     "layernorm": a weight and a bias
    MLP         "swiglu": 3 matrices dim × mlp_dim      "gelu": 2 matrices, mlp_dim = 4 dim
    attention   num_kv_heads <= num_heads               one key/value head per query head
    biases      none                                    in every linear layer of a block
    head        a matrix of its own                     the embedding once more ("tied")

Counting is exact: `config.num_parameters` is the integer that the published checkpoints have.

    >>> preset("llama-3-8b").num_parameters, preset("gpt-2").num_parameters
    (8030261248, 124439808)

Not covered here: mixture of experts, biases in some linear layers only, norms in other places.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Literal, get_args

Mlp = Literal["swiglu", "gelu"]
Norm = Literal["rmsnorm", "layernorm"]
Position = Literal["rope", "learned"]

_KINDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"mlp": get_args(Mlp), "norm": get_args(Norm), "position": get_args(Position)}
)
_COUNTS = ("vocab_size", "num_layers", "dim", "num_heads", "num_kv_heads", "head_dim", "mlp_dim", "max_seq")


@dataclass(frozen=True, kw_only=True)
class ParameterCounts:
    """Parameters of a model by part; `total` is their sum.

    Attributes:
        token_embedding: the table of token vectors.
        position_embedding: the table of learned positions.
        attention: query, key, value and output projections of all layers.
        mlp: MLP matrices of all layers.
        norms: all norms, the last one included.
        head: the output matrix; 0 where it is tied to the embedding.
    """

    token_embedding: int
    position_embedding: int
    attention: int
    mlp: int
    norms: int
    head: int

    @property
    def embedding(self) -> int:
        """Both tables: tokens and positions."""
        return self.token_embedding + self.position_embedding

    @property
    def total(self) -> int:
        return sum(getattr(self, item.name) for item in fields(self))


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a decoder-only language model.

    Attributes:
        name: what to call it.
        vocab_size: number of tokens.
        num_layers: blocks.
        dim: width of the residual stream.
        num_heads: query heads.
        num_kv_heads: key/value heads, a divisor of num_heads; None means num_heads.
        head_dim: width of a head; None means dim / num_heads.
        mlp_dim: inner width of the MLP.
        mlp: "swiglu" (three matrices) or "gelu" (two).
        norm: "rmsnorm" (weight) or "layernorm" (weight and bias).
        position: "rope" (rotations of queries and keys) or "learned" (a table added to the embedding).
        max_seq: longest sequence; with learned positions, the rows of their table.
        tied_head: whether the head is the token embedding itself.
        bias: whether the linear layers of a block have biases (the head never has one).
        dropout: probability of dropping, on the embedding, attention probabilities and both residual branches.
        norm_eps: added to the mean square or variance in a norm.
        rope_theta: base of the rotation frequencies.

    Raises:
        TypeError: if a count is not an integer or a switch not a bool.
        ValueError: if a value is out of range, or values do not fit together.
    """

    name: str = "model"
    vocab_size: int
    num_layers: int
    dim: int
    num_heads: int
    num_kv_heads: int = None  # type: ignore[assignment]  # filled in below: an int for whoever reads it
    head_dim: int = None  # type: ignore[assignment]
    mlp_dim: int
    mlp: Mlp = "swiglu"
    norm: Norm = "rmsnorm"
    position: Position = "rope"
    max_seq: int
    tied_head: bool = False
    bias: bool = False
    dropout: float = 0.0
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0

    def __post_init__(self) -> None:
        for name, default in (("num_kv_heads", lambda: self.num_heads), ("head_dim", self._default_head_dim)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default())
        for name in _COUNTS:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be an int, got {value!r} of type {type(value).__name__}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("tied_head", "bias"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        for name, allowed in _KINDS.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        for name in ("norm_eps", "rope_theta"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be a positive number, got {getattr(self, name)}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads must be a multiple of num_kv_heads, got {self.num_heads} and {self.num_kv_heads}: "
                f"each key/value head serves a whole group of query heads"
            )
        if self.position == "rope" and self.head_dim % 2:
            raise ValueError(f"head_dim must be even with position='rope', got {self.head_dim}: RoPE rotates pairs")

    def _default_head_dim(self) -> int:
        if not (isinstance(self.dim, int) and isinstance(self.num_heads, int) and self.num_heads > 0):
            return 1  # the check of dim and num_heads, next, says what is wrong
        if self.dim % self.num_heads:
            raise ValueError(
                f"dim must be a multiple of num_heads unless head_dim is given, got {self.dim} and {self.num_heads}"
            )
        return self.dim // self.num_heads

    @property
    def query_dim(self) -> int:
        """Width of all queries of a token together."""
        return self.num_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Width of all keys (or all values) of a token together."""
        return self.num_kv_heads * self.head_dim

    @property
    def attention_parameters_per_layer(self) -> int:
        """Projections to queries, keys and values, and back."""
        biases = self.query_dim + 2 * self.kv_dim + self.dim if self.bias else 0
        return 2 * self.dim * self.query_dim + 2 * self.dim * self.kv_dim + biases

    @property
    def mlp_parameters_per_layer(self) -> int:
        """Two matrices and, with SwiGLU, a gate."""
        num_inner = 2 if self.mlp == "swiglu" else 1  # matrices that lead into the inner width
        biases = num_inner * self.mlp_dim + self.dim if self.bias else 0
        return (num_inner + 1) * self.dim * self.mlp_dim + biases

    @property
    def norm_parameters(self) -> int:
        """Parameters of one norm."""
        return self.dim * (2 if self.norm == "layernorm" else 1)

    @property
    def parameters_per_layer(self) -> int:
        """Parameters of one block: attention, MLP and two norms."""
        return self.attention_parameters_per_layer + self.mlp_parameters_per_layer + 2 * self.norm_parameters

    @property
    def counts(self) -> ParameterCounts:
        """Parameters by part."""
        return ParameterCounts(
            token_embedding=self.vocab_size * self.dim,
            position_embedding=self.max_seq * self.dim if self.position == "learned" else 0,
            attention=self.num_layers * self.attention_parameters_per_layer,
            mlp=self.num_layers * self.mlp_parameters_per_layer,
            norms=(2 * self.num_layers + 1) * self.norm_parameters,
            head=0 if self.tied_head else self.vocab_size * self.dim,
        )

    @property
    def num_parameters(self) -> int:
        """Parameters, exactly: a tied head is counted once."""
        return self.counts.total

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `from_dict` turns back into an equal config."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """The config of such values.

        Raises:
            ValueError: if a name is not one of a config's; TypeError if one that is needed lacks.
        """
        known = [item.name for item in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"a ModelConfig has no {', '.join(unknown)}; it has {', '.join(known)}")
        return cls(**values)


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
    # Three that train on a laptop.
    _llama("course-1m", 4, 128, 352, 2048, 4, 2, max_seq=1024, tied_head=True),
    _llama("course-4m", 4, 256, 704, 4096, 8, 4, max_seq=1024, tied_head=True),
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
    # The 7.5B model of Narayanan et al. 2021, Table 1, which ZeRO's Fig. 1 shards; Korthikanti et al. 2022, Table 3.
    _gpt("megatron-7.5b", 36, 4096, 32, 51200, 2048),
    _gpt("megatron-22b", 48, 6144, 64, 51200, 2048),
    _gpt("megatron-175b", 96, 12288, 96, 51200, 2048),
    _gpt("megatron-530b", 105, 20480, 128, 51200, 2048),
    _gpt("megatron-1t", 128, 25600, 160, 51200, 2048),
)

PRESETS: Mapping[str, ModelConfig] = MappingProxyType({config.name: config for config in _TABLE})
"""Published models, and three small ones of this course, by name."""


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
