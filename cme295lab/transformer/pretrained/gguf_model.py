"""A Llama in a GGUF file as a `DecoderLM` and its tokenizer.

Three things differ from the Hugging Face layout:

- Names: "blk.0.attn_q.weight" is `layers.0.attention.query.weight`.
- The rows of the query and key matrices are in another order. RoPE turns pairs of numbers; llama.cpp wants a pair next
  to each other, 2i and 2i + 1, and Hugging Face and this library want it half a head apart, i and i + head_dim / 2.
- The vocabulary is in the metadata: tokens, their kinds, and the merges of byte-pair encoding.

Source: github.com/ggml-org/llama.cpp, convert_hf_to_gguf.py; tests compare with `transformers` reading the same file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from cme295lab.transformer.config import ModelConfig
from cme295lab.transformer.decoder import DecoderLM
from cme295lab.transformer.pretrained.assemble import assemble
from cme295lab.transformer.pretrained.config_values import ConfigValues
from cme295lab.transformer.pretrained.gguf_file import GgufFile
from cme295lab.transformer.pretrained.hub import check_vocabulary
from cme295lab.transformer.pretrained.hub_names import Part, renamed
from cme295lab.transformer.text import TextTokenizer

_LAYER = {
    "attention_norm": "attn_norm",
    "attention.value": "attn_v",
    "attention.out": "attn_output",
    "mlp_norm": "ffn_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}
_EMBEDDING, _HEAD, _ROPE = "token_embd.weight", "output.weight", "rope_freqs.weight"
_CONTROL, _USER_DEFINED = 3, 4  # kinds of tokens: those that text does not contain, and added ones that it may


def load_gguf(
    path: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[DecoderLM, TextTokenizer]:
    """Read a model and its tokenizer from a GGUF file.

    Args:
        path: the file; its tensors are Q4_1, Q8_0, F16, BF16 or F32.
        dtype: of the parameters: quantised numbers are turned into it.
        device: where they go.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or has a model, an option, a type or a vocabulary that is not supported.
    """
    file = GgufFile(path)
    config = config_from_gguf(file, name=path.stem)
    tokenizer = tokenizer_from_gguf(file.metadata, file.where)
    check_vocabulary(tokenizer, config, file.where)
    return assemble(config, file, _parts(config), dtype=dtype, device=device), tokenizer


def config_from_gguf(file: GgufFile, *, name: str) -> ModelConfig:
    """The config of a model in a GGUF file.

    Raises:
        ValueError: if its architecture or an option is not supported, or a value is missing.
    """
    read = ConfigValues(file.metadata, file.where)
    read.require("general.architecture", ("llama",), "for other models, take their Hugging Face folder", None)
    read.require("llama.expert_count", (0,), "for a mixture of experts, take its Hugging Face folder", 0)
    read.require("llama.rope.scaling.type", ("none",), "RoPE scaling is not read from GGUF files", "none")
    if _ROPE in file.shapes:
        raise ValueError(f"{file.where} has {_ROPE}, scaled RoPE frequencies: take the model's Hugging Face folder")
    if _EMBEDDING not in file.shapes:
        raise ValueError(f"{file.where} has no {_EMBEDDING}: does it hold a whole model?")
    dim, heads = read.count("llama.embedding_length"), read.count("llama.attention.head_count")
    head_dim = read.count("llama.attention.key_length", dim // heads)
    read.require("llama.attention.value_length", (head_dim,), "values are as wide as keys", head_dim)
    read.require("llama.rope.dimension_count", (head_dim,), "all of a head is rotated", head_dim)
    try:
        return ModelConfig(
            name=name,
            vocab_size=file.shapes[_EMBEDDING][0],
            num_layers=read.count("llama.block_count"),
            dim=dim,
            num_heads=heads,
            num_kv_heads=read.count("llama.attention.head_count_kv", heads),
            head_dim=head_dim,
            mlp_dim=read.count("llama.feed_forward_length"),
            max_seq=read.count("llama.context_length"),
            tied_head=_HEAD not in file.shapes,
            norm_eps=_shortest(read.number("llama.attention.layer_norm_rms_epsilon")),
            rope_theta=_shortest(read.number("llama.rope.freq_base", 10_000.0)),
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file.where} describes no possible model: {error}") from error


def _shortest(number: float) -> float:
    """The decimal number that somebody wrote before it became an fp32: 1e-05, not 9.99999974e-06."""
    return float(str(np.float32(number)))


def _parts(config: ModelConfig) -> Iterator[Part]:
    yield renamed("embedding.weight", _EMBEDDING)
    for layer in range(config.num_layers):
        for ours, theirs in _LAYER.items():
            yield renamed(f"layers.{layer}.{ours}.weight", f"blk.{layer}.{theirs}.weight")
        yield _halved(f"layers.{layer}.attention.query.weight", f"blk.{layer}.attn_q.weight", config.head_dim)
        yield _halved(f"layers.{layer}.attention.key.weight", f"blk.{layer}.attn_k.weight", config.head_dim)
    yield renamed("norm.weight", "output_norm.weight")
    if not config.tied_head:
        yield renamed("head.weight", _HEAD)


def _halved(ours: str, theirs: str, head_dim: int) -> Part:
    """A matrix whose rows go in pairs in the file, and in half heads here."""

    def reorder(tensors: list[Tensor], pair: tuple[int, int]) -> list[Tensor]:
        if tensors[0].shape[0] % head_dim:
            raise ValueError(f"{theirs} has shape {tuple(tensors[0].shape)}: no whole heads of {head_dim}")
        return [tensors[0].unflatten(0, (-1, *pair)).transpose(1, 2).flatten(0, 2)]

    return Part(
        ours=(ours,),
        theirs=(theirs,),
        read=lambda tensors: reorder(tensors, (head_dim // 2, 2)),
        write=lambda tensors: reorder(tensors, (2, head_dim // 2)),
    )


def tokenizer_from_gguf(metadata: Mapping[str, Any], where: str) -> TextTokenizer:
    """Rebuild a byte-level BPE vocabulary from the metadata.

    Raises:
        ValueError: if it is of another kind, or its parts do not fit together.
    """
    read = ConfigValues(metadata, where)
    read.require("tokenizer.ggml.model", ("gpt2",), "byte-level BPE is what can be rebuilt", None)
    read.require("tokenizer.ggml.pre", tuple(_SPLITS), "it says how text is split before merging", None)
    read.require("tokenizer.ggml.add_bos_token", (False,), "texts begin with no special token", False)
    read.require("tokenizer.ggml.add_space_prefix", (False,), "texts begin as they are", False)
    tokens, kinds, merges = (read.get(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type", "merges"))
    if not all(isinstance(part, list) for part in (tokens, kinds, merges)) or len(tokens) != len(kinds):
        raise ValueError(f"{where}: tokenizer.ggml needs tokens, as many values of token_type, and merges")
    if len(set(tokens)) != len(tokens):
        raise ValueError(f"{where}: a token is in the vocabulary twice")
    try:
        pairs = [tuple(merge.split(" ")) for merge in merges]
        tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=pairs))
    except Exception as error:  # the library raises plain Exception for a merge that makes no token
        raise ValueError(f"{where}: the merges do not fit the vocabulary: {error}") from error
    tokenizer.pre_tokenizer = _SPLITS[metadata["tokenizer.ggml.pre"]]()
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    added = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])
    end = read.get("tokenizer.ggml.eos_token_id")
    return TextTokenizer(tokenizer, end_token=end)


def _byte_level() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


# How text is split before merging: GPT-2's words, with digits one by one in SmolLM.
_SPLITS = {
    "gpt-2": _byte_level,
    "smollm": lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _byte_level()]),
}
