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

With `num_experts` each layer has that many MLPs and a router, and a token passes `experts_per_token` of them (Mixtral).
Counting is exact: `config.num_parameters` is the integer that the published checkpoints have (`presets`).

Not covered here: biases in some linear layers only, norms in other places, attention within a sliding window.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any, Literal, get_args

Mlp = Literal["swiglu", "gelu"]
Norm = Literal["rmsnorm", "layernorm"]
Position = Literal["rope", "learned"]

_KINDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"mlp": get_args(Mlp), "norm": get_args(Norm), "position": get_args(Position)}
)
_COUNTS = (
    "vocab_size", "num_layers", "dim", "num_heads", "num_kv_heads", "head_dim", "mlp_dim", "max_seq",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ParameterCounts:
    """Parameters of a model by part; `total` is their sum.

    Attributes:
        token_embedding: the table of token vectors.
        position_embedding: the table of learned positions.
        attention: query, key, value and output projections of all layers.
        mlp: MLP matrices of all layers; with experts, all of theirs and the routers.
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
class RopeScaling:
    """How Llama 3.1 stretches its rotations to a longer context: slow ones by `factor`, fast ones not at all.

    Attributes:
        factor: by which the slow rotations are slowed down.
        low_freq_factor, high_freq_factor: rotations with fewer turns than the first, in the original context, are
            slowed down in full; with more than the second not at all; in between smoothly.
        original_max_seq: the context before.

    Raises:
        ValueError: if a value is not positive, or the second factor is not above the first.

    Source: Grattafiori et al. 2024, "The Llama 3 Herd of Models", §3.4.2, and its released code.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq: int = 8192

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"{item.name} of a RopeScaling must be a positive number, got {value!r}")
        if self.high_freq_factor <= self.low_freq_factor:
            low, high = self.low_freq_factor, self.high_freq_factor
            raise ValueError(f"high_freq_factor must be above low_freq_factor, got {high} and {low}")


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
        mlp_dim: inner width of the MLP, or of each expert.
        mlp: "swiglu" (three matrices) or "gelu" (two).
        norm: "rmsnorm" (weight) or "layernorm" (weight and bias).
        position: "rope" (rotations of queries and keys) or "learned" (a table added to the embedding).
        max_seq: longest sequence; with learned positions, the rows of their table.
        tied_head: whether the head is the token embedding itself.
        bias: whether the linear layers of a block have biases (the head never has one).
        dropout: probability of dropping, on the embedding, attention probabilities and both residual branches.
        norm_eps: added to the mean square or variance in a norm.
        rope_theta: base of the rotation frequencies.
        rope_scaling: how they are stretched to a longer context; None means not.
        num_experts: MLPs that a router chooses from in each layer; 0 means one MLP and no router.
        experts_per_token: how many of them a token passes; num_experts makes the mixture dense.
        capacity_factor: how many tokens an expert takes, in multiples of an even share; None means all.

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
    rope_scaling: RopeScaling | None = None
    num_experts: int = 0
    experts_per_token: int = 0
    capacity_factor: float | None = None

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
        if self.rope_scaling is not None and not isinstance(self.rope_scaling, RopeScaling):
            raise TypeError(f"rope_scaling must be a RopeScaling or None, got {self.rope_scaling!r}")
        self._check_experts()

    def _check_experts(self) -> None:
        for name in ("num_experts", "experts_per_token"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be an int, got {value!r} of type {type(value).__name__}")
        if self.num_experts < 0:
            raise ValueError(f"num_experts must be 0 (one MLP) or more, got {self.num_experts}")
        least = 1 if self.num_experts else 0
        if not least <= self.experts_per_token <= self.num_experts:
            raise ValueError(
                f"experts_per_token must be {least} to num_experts = {self.num_experts}, got {self.experts_per_token}"
            )
        if self.capacity_factor is None:
            return
        if not self.num_experts:
            raise ValueError(f"capacity_factor={self.capacity_factor} needs experts: num_experts is 0")
        if not (math.isfinite(self.capacity_factor) and self.capacity_factor > 0):
            raise ValueError(f"capacity_factor must be a positive number or None, got {self.capacity_factor}")

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
        """One MLP; with experts, all of them and the router."""
        if not self.num_experts:
            return self.parameters_per_expert
        return self.num_experts * (self.parameters_per_expert + self.dim)

    @property
    def parameters_per_expert(self) -> int:
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

    @property
    def num_active_parameters(self) -> int:
        """Parameters that a token passes: all but the experts that it is not sent to."""
        idle = self.num_layers * (self.num_experts - self.experts_per_token) * self.parameters_per_expert
        return self.num_parameters - idle

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `from_dict` turns back into an equal config."""
        return asdict(self)

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
        scaling = values.get("rope_scaling")
        if isinstance(scaling, Mapping):
            return cls(**{**values, "rope_scaling": RopeScaling(**scaling)})
        return cls(**values)
