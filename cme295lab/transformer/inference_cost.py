"""What writing a token costs: bytes that must be read, operations, and the shortest time that a GPU can need.

Reading a prompt (prefill) and writing tokens one at a time (decode) run the same products, in different shapes. A
matrix of P parameters costs 2P FLOP per token in both. But prefill reads it once for all tokens of the prompt, decode
once for one token of each sequence:

    time of a decode step  >=  max(bytes read / bandwidth, FLOP / peak)
    bytes read             =   weights  +  batch · context · 2 · L · kv_heads · head_dim · bytes per number

FLOP per byte (arithmetic intensity) of decode grows with the batch, until the cache outweighs the weights: each
sequence brings a cache of its own, which no other shares. A prompt of some hundred tokens is beyond a GPU's ridge
point; decode with a batch of 1 does about one FLOP per byte, where a GPU could do hundreds.

Counted are all matrices and the cache. Neither are norms and activations, nor the traffic of intermediate results,
which a real step has on top: these are lower bounds. All parameters are read, the embedding's table among them, as is
customary, though a step needs few of its rows. Of a mixture of experts, a token reads those that it is sent to, and a
batch the union of them (expected number, each token's choice even and independent of the others').

Source: Pope et al. 2022, "Efficiently Scaling Transformer Inference", §2; Williams et al. 2009, "Roofline".
"""

from __future__ import annotations

from dataclasses import dataclass

from cme295lab.hardware import Device, get_device
from cme295lab.transformer.config import ModelConfig

_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}


def kv_numbers_per_token(config: ModelConfig) -> int:
    """Numbers that a cache holds of one token: a key and a value for each key/value head of each layer.

    Example:
        >>> from cme295lab.transformer import preset
        >>> 2 * kv_numbers_per_token(preset("llama-3-8b"))  # bytes, in bf16
        131072
    """
    return 2 * config.num_layers * config.kv_dim


def kv_bytes(config: ModelConfig, *, num_positions: int, batch_size: int = 1, bytes_per_number: float = 2) -> float:
    """Bytes of keys and values of so many positions of each row: what `StaticCache.num_bytes` measures.

    Args:
        config: the model.
        num_positions: positions held, or made room for, in each row; padding counts.
        batch_size: rows.
        bytes_per_number: 2 for bf16.
    """
    return kv_numbers_per_token(config) * num_positions * batch_size * bytes_per_number


def parameters_read(config: ModelConfig, num_tokens: int) -> float:
    """Parameters that a forward pass over some tokens reads: all, or those of the experts that some token is sent to.

    Args:
        config: the model.
        num_tokens: tokens that pass together.

    Example: of Mixtral one token reads 12.9 billion, and 32 tokens nearly all 46.7.
        >>> from cme295lab.transformer import preset
        >>> [round(parameters_read(preset("mixtral-8x7b"), tokens) / 1e9, 1) for tokens in (1, 4, 32)]
        [12.9, 32.4, 46.7]
    """
    if not config.num_experts:
        return config.num_parameters
    spared = (1 - config.experts_per_token / config.num_experts) ** num_tokens  # chance that an expert is not needed
    experts = config.num_layers * config.num_experts * config.parameters_per_expert
    return config.num_parameters - spared * experts


@dataclass(frozen=True, kw_only=True)
class InferenceCost:
    """What a forward pass costs at least, on one GPU.

    Attributes:
        num_tokens: tokens that it reads, of all sequences together.
        weight_bytes: of the parameters read.
        kv_bytes: of keys and values read, those of the tokens themselves among them.
        flops: operations of all products.
        memory_s: bytes over bandwidth.
        compute_s: operations over the peak.
    """

    num_tokens: int
    weight_bytes: float
    kv_bytes: float
    flops: float
    memory_s: float
    compute_s: float

    @property
    def bytes_read(self) -> float:
        return self.weight_bytes + self.kv_bytes

    @property
    def lower_bound_s(self) -> float:
        """The shortest time possible: reading and computing overlap, and the longer of the two counts."""
        return max(self.memory_s, self.compute_s)

    @property
    def bound(self) -> str:
        """ "memory" or "compute": what takes longer."""
        return "memory" if self.memory_s >= self.compute_s else "compute"

    @property
    def intensity(self) -> float:
        """FLOP per byte read; compare with the GPU's ridge point."""
        return self.flops / self.bytes_read

    @property
    def tokens_per_s(self) -> float:
        """At most, of all sequences together."""
        return self.num_tokens / self.lower_bound_s


def decode_cost(
    config: ModelConfig, *, context: int, batch_size: int = 1, dtype: str = "bf16", device: str | Device = "A100"
) -> InferenceCost:
    """The cost of writing one token of each sequence.

    Args:
        config: the model.
        context: positions that each sequence then has; 0 leaves the cache out.
        batch_size: sequences.
        dtype: "fp32", "bf16", "fp16" or "fp8", of weights and cache.
        device: a GPU of `cme295lab.hardware`.

    Raises:
        ValueError: if a count is out of range, or the GPU has no such format.

    Example: Llama-2 7B on an A100 with 80 GB, weights alone: 13.48 GB at 2039 GB/s.
        >>> from cme295lab.transformer import preset
        >>> round(decode_cost(preset("llama-2-7b"), context=0).lower_bound_s * 1e3, 2)
        6.61
    """
    _check(config, context=context, batch_size=batch_size, least_context=0)
    core = 4 * config.num_layers * config.query_dim * context  # QKᵀ and times V: each 2 FLOP per key and number
    return _cost(
        config,
        num_tokens=batch_size,
        flops=batch_size * (2 * (_layer_parameters(config) + _head_parameters(config)) + core),
        positions=batch_size * context,
        dtype=dtype,
        device=device,
    )


def prefill_cost(
    config: ModelConfig, *, context: int, batch_size: int = 1, dtype: str = "bf16", device: str | Device = "A100"
) -> InferenceCost:
    """The cost of reading prompts of `context` tokens: causal attention, and logits of the last position alone.

    Args: as `decode_cost`, with a context of at least 1.

    Raises:
        ValueError: if a count is out of range, or the GPU has no such format.

    Example: a prompt of 512 tokens computes 497 times as much per byte as a token that is decoded behind it.
        >>> from cme295lab.transformer import preset
        >>> llama = preset("llama-2-7b")
        >>> round(prefill_cost(llama, context=512).intensity / decode_cost(llama, context=512).intensity)
        497
    """
    _check(config, context=context, batch_size=batch_size, least_context=1)
    pairs = context * (context + 1) // 2  # of a query and a key that it may see
    core = 4 * config.num_layers * config.query_dim * pairs
    return _cost(
        config,
        num_tokens=batch_size * context,
        flops=batch_size * (2 * (context * _layer_parameters(config) + _head_parameters(config)) + core),
        positions=batch_size * context,
        dtype=dtype,
        device=device,
    )


def _cost(
    config: ModelConfig, *, num_tokens: int, flops: float, positions: int, dtype: str, device: str | Device
) -> InferenceCost:
    gpu = get_device(device)
    if dtype not in _BYTES:
        raise ValueError(f"dtype must be one of {', '.join(_BYTES)}, got {dtype!r}")
    if dtype not in gpu.peak_flops_per_s:
        raise ValueError(f"dtype {dtype!r}: {gpu.name} computes in {', '.join(gpu.peak_flops_per_s)}")
    weights = _BYTES[dtype] * parameters_read(config, num_tokens)
    cache = kv_bytes(config, num_positions=positions, bytes_per_number=_BYTES[dtype])
    return InferenceCost(
        num_tokens=num_tokens,
        weight_bytes=weights,
        kv_bytes=cache,
        flops=flops,
        memory_s=(weights + cache) / gpu.bandwidth_bytes_per_s,
        compute_s=flops / gpu.peak_flops_per_s[dtype],
    )


def _layer_parameters(config: ModelConfig) -> int:
    """Parameters of the matrices that a token is multiplied with in all layers."""
    idle = config.num_layers * (config.num_experts - config.experts_per_token) * config.parameters_per_expert
    return config.counts.attention + config.counts.mlp - idle


def _head_parameters(config: ModelConfig) -> int:
    return config.vocab_size * config.dim


def _check(config: ModelConfig, *, context: int, batch_size: int, least_context: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if not least_context <= context <= config.max_seq:
        raise ValueError(
            f"context must be {least_context} to the max_seq of {config.name}, {config.max_seq}, got {context}"
        )
