"""The parameters of a model one by one: name and shape, whole or as one rank of a split model holds them.

Names and shapes are those of `DecoderLM.named_parameters()`; a test compares them. Some optimizers need more than the
total: Adafactor keeps a row and a column of each matrix, 8-bit Adam a constant per block of each tensor.

Tensor parallelism (Megatron's) divides: query, key, value, gate and up by their outputs, out and down by their inputs,
embedding and head by the vocabulary. It copies: norms, learned positions, the biases of out and down; and, with more
ranks than key/value heads, the keys and values. What does not divide is rounded up, as padding would.

Pipeline parallelism gives each stage its layers, the first also the embeddings, the last also norm and head. A tied
head costs the last stage a copy of the embedding.

Source: Shoeybi et al. 2019, "Megatron-LM", §3.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from cme295lab.memory.formulas.setting import ParallelConfig
from cme295lab.transformer.config import ModelConfig

Part = Literal["embedding", "attention", "mlp", "norms", "head"]


@dataclass(frozen=True, kw_only=True)
class ParameterShape:
    """A parameter.

    Attributes:
        name: as in `DecoderLM.named_parameters()`.
        shape: its lengths.
        part: what it belongs to.
        layer: number of its layer; None outside of them.
    """

    name: str
    shape: tuple[int, ...]
    part: Part
    layer: int | None = None

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


@functools.lru_cache(maxsize=256)
def parameter_shapes(config: ModelConfig, parallel: ParallelConfig | None = None) -> tuple[ParameterShape, ...]:
    """The parameters that one rank computes with, before ZeRO divides them.

    Args:
        config: the model.
        parallel: its split; None means the whole model.
    """
    split = parallel or ParallelConfig()
    first, last = split.pipeline_rank == 0, split.pipeline_rank == split.pipeline - 1
    vocab = -(-config.vocab_size // split.tensor)
    found: list[ParameterShape] = []
    if first:
        found.append(ParameterShape(name="embedding.weight", shape=(vocab, config.dim), part="embedding"))
        if config.position == "learned":
            shape = (config.max_seq, config.dim)
            found.append(ParameterShape(name="position_embedding.weight", shape=shape, part="embedding"))
    for layer in layers_of_stage(config, split):
        found.extend(_layer_shapes(config, split.tensor, layer))
    if last:
        found.extend(_norm_shapes(config, "norm", None))
        if not config.tied_head or not first:
            found.append(ParameterShape(name="head.weight", shape=(vocab, config.dim), part="head"))
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class StageCounts:
    """Sums over the parameters of one rank.

    Attributes:
        total: elements of all of them.
        largest: elements of the largest.
        largest_in_loop: elements that an Adam in a loop over tensors holds, at most: the root and its quotient, and the
            quotient of the tensor before.
        largest_in_mlp: elements of the largest matrix of an MLP.
        largest_layer: elements of the layer that has the most.
        num_layers: layers.
    """

    total: int
    largest: int
    largest_in_loop: int
    largest_in_mlp: int
    largest_layer: int
    num_layers: int


@functools.lru_cache(maxsize=256)
def stage_counts(config: ModelConfig, parallel: ParallelConfig) -> StageCounts:
    """Sums over the parameters that one rank computes with; remembered, because searches ask for them often."""
    shapes = parameter_shapes(config, parallel)
    counts = [shape.num_elements for shape in shapes]
    layers: dict[int, int] = {}
    for shape in shapes:
        if shape.layer is not None:
            layers[shape.layer] = layers.get(shape.layer, 0) + shape.num_elements
    return StageCounts(
        total=sum(counts),
        largest=max(counts),
        largest_in_loop=max(before + 2 * count for before, count in zip([0, *counts], counts)),
        largest_in_mlp=max(shape.num_elements for shape in shapes if shape.part == "mlp"),
        largest_layer=max(layers.values()),
        num_layers=len(layers),
    )


@functools.lru_cache(maxsize=1024)
def share_done(config: ModelConfig, parallel: ParallelConfig, layer: int, after_mlp: bool) -> Fraction:
    """Share of a rank's parameters whose gradients exist while the backward pass is at a layer.

    Args:
        config: the model.
        parallel: its split.
        layer: number of the layer.
        after_mlp: whether it is past the layer's MLP and output projection, at the core of its attention.
    """
    there = 0
    for shape in parameter_shapes(config, parallel):
        behind = shape.part != "embedding" if shape.layer is None else shape.layer > layer
        mlp_or_out = shape.part == "mlp" or ".attention.out." in shape.name
        if behind or (shape.layer == layer and after_mlp and mlp_or_out):
            there += shape.num_elements
    return Fraction(there, stage_counts(config, parallel).total)


def layers_of_stage(config: ModelConfig, parallel: ParallelConfig) -> range:
    """The layers of a pipeline stage: the first ones hold one more where they do not divide."""
    each, more = divmod(config.num_layers, parallel.pipeline)
    rank = parallel.pipeline_rank
    start = rank * each + min(rank, more)
    return range(start, start + each + (rank < more))


def local_kv_dim(config: ModelConfig, tensor: int) -> int:
    """Width of the keys of a token on one rank: at least a head, copied where there are more ranks than heads."""
    return max(config.num_kv_heads // tensor, 1) * config.head_dim


def _layer_shapes(config: ModelConfig, tensor: int, layer: int) -> Iterator[ParameterShape]:
    dim, query, kv = config.dim, config.query_dim // tensor, local_kv_dim(config, tensor)
    inner = config.mlp_dim // tensor
    yield from _norm_shapes(config, f"layers.{layer}.attention_norm", layer)
    projections = (("query", query, dim), ("key", kv, dim), ("value", kv, dim), ("out", dim, query))
    for name, num_outputs, num_inputs in projections:
        path = f"layers.{layer}.attention.{name}"
        yield from _linear_shapes(config, path, num_outputs, num_inputs, "attention", layer)
    yield from _norm_shapes(config, f"layers.{layer}.mlp_norm", layer)
    mlp = f"layers.{layer}.mlp"
    if config.num_experts:  # the router is on every rank, each expert is split like an MLP
        yield ParameterShape(name=f"{mlp}.router.weight", shape=(config.num_experts, dim), part="mlp", layer=layer)
    for path in [f"{mlp}.experts.{number}" for number in range(config.num_experts)] or [mlp]:
        for name in ("gate", "up") if config.mlp == "swiglu" else ("up",):
            yield from _linear_shapes(config, f"{path}.{name}", inner, dim, "mlp", layer)
        yield from _linear_shapes(config, f"{path}.down", dim, inner, "mlp", layer)


def _linear_shapes(
    config: ModelConfig, name: str, num_outputs: int, num_inputs: int, part: Part, layer: int
) -> Iterator[ParameterShape]:
    yield ParameterShape(name=f"{name}.weight", shape=(num_outputs, num_inputs), part=part, layer=layer)
    if config.bias:
        yield ParameterShape(name=f"{name}.bias", shape=(num_outputs,), part=part, layer=layer)


def _norm_shapes(config: ModelConfig, name: str, layer: int | None) -> Iterator[ParameterShape]:
    for kind in ("weight", "bias") if config.norm == "layernorm" else ("weight",):
        yield ParameterShape(name=f"{name}.{kind}", shape=(config.dim,), part="norms", layer=layer)
