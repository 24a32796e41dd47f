"""Which tensors of a checkpoint make up each parameter of a `DecoderLM`, and how.

Most parameters are one tensor under another name. The exceptions:

- GPT-2 keeps its matrices transposed, (in, out), and queries, keys and values in one tensor, side by side.
- A tied head is not in the file, or is there a second time.
- The matrices of experts have numbers for names: w1 is the gate, w3 goes up, w2 down.

A `Part` says it for one parameter in both directions: `read` builds ours from theirs, `write` gives theirs from ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cme295lab.transformer.config import ModelConfig
from cme295lab.transformer.pretrained.hub_config import GPT2

_LLAMA_LAYER = {
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
}
_LLAMA_MLP = {"mlp.gate": "mlp.gate_proj", "mlp.up": "mlp.up_proj", "mlp.down": "mlp.down_proj"}
_GPT2_LAYER = {
    "attention_norm": "ln_1",
    "attention.out": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}
_GPT2_QKV = ("query", "key", "value")


@dataclass(frozen=True, kw_only=True)
class Part:
    """Parameters of ours and the tensors of a checkpoint that hold the same numbers.

    Attributes:
        ours: names of parameters of a `DecoderLM`.
        theirs: names of tensors in the checkpoint.
        read: their tensors -> ours.
        write: our tensors -> theirs.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    read: Callable[[list[Tensor]], list[Tensor]]
    write: Callable[[list[Tensor]], list[Tensor]]


def renamed(ours: str, theirs: str) -> Part:
    """One tensor under another name."""
    return Part(ours=(ours,), theirs=(theirs,), read=list, write=list)


def transposed(ours: str, theirs: str) -> Part:
    """One matrix, (out, in) here and (in, out) there."""
    return Part(ours=(ours,), theirs=(theirs,), read=_transpose, write=_transpose)


def _transpose(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.T for tensor in tensors]


def joined(ours: tuple[str, ...], theirs: str, *, transpose: bool) -> Part:
    """Several tensors of the same shape here that stand side by side in one there."""

    def read(tensors: list[Tensor]) -> list[Tensor]:
        whole = tensors[0].T if transpose else tensors[0]
        if whole.shape[0] % len(ours):
            raise ValueError(f"{theirs} has shape {tuple(tensors[0].shape)}, which {len(ours)} parameters cannot share")
        return list(whole.chunk(len(ours)))

    def write(tensors: list[Tensor]) -> list[Tensor]:
        whole = torch.cat(tensors)
        return [whole.T if transpose else whole]

    return Part(ours=ours, theirs=(theirs,), read=read, write=write)


def parts_of(config: ModelConfig, architecture: str) -> Iterator[Part]:
    """All parts of a model, layer by layer; a tied head is not among them."""
    yield from _gpt2_parts(config) if architecture == GPT2 else _llama_parts(config)


def _llama_parts(config: ModelConfig) -> Iterator[Part]:
    yield renamed("embedding.weight", "model.embed_tokens.weight")
    for layer in range(config.num_layers):
        names = _LLAMA_LAYER | (_mixtral_mlp(config.num_experts) if config.num_experts else _LLAMA_MLP)
        for ours, theirs in names.items():
            kinds = ("weight", "bias") if config.bias and "norm" not in ours else ("weight",)
            for kind in kinds:
                yield renamed(f"layers.{layer}.{ours}.{kind}", f"model.layers.{layer}.{theirs}.{kind}")
    yield renamed("norm.weight", "model.norm.weight")
    if not config.tied_head:
        yield renamed("head.weight", "lm_head.weight")


def _mixtral_mlp(num_experts: int) -> dict[str, str]:
    names = {"mlp.router": "block_sparse_moe.gate"}
    for expert in range(num_experts):
        for ours, theirs in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
            names[f"mlp.experts.{expert}.{ours}"] = f"block_sparse_moe.experts.{expert}.{theirs}"
    return names


def _gpt2_parts(config: ModelConfig) -> Iterator[Part]:
    yield renamed("embedding.weight", "transformer.wte.weight")
    yield renamed("position_embedding.weight", "transformer.wpe.weight")
    for layer in range(config.num_layers):
        ours, theirs = f"layers.{layer}", f"transformer.h.{layer}"
        for kind in ("weight", "bias"):
            qkv = tuple(f"{ours}.attention.{name}.{kind}" for name in _GPT2_QKV)
            yield joined(qkv, f"{theirs}.attn.c_attn.{kind}", transpose=kind == "weight")
            for here, there in _GPT2_LAYER.items():
                make = transposed if kind == "weight" and "norm" not in here else renamed
                yield make(f"{ours}.{here}.{kind}", f"{theirs}.{there}.{kind}")
    for kind in ("weight", "bias"):
        yield renamed(f"norm.{kind}", f"transformer.ln_f.{kind}")
    if not config.tied_head:
        yield renamed("head.weight", "lm_head.weight")
