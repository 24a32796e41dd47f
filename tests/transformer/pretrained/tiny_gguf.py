"""Writes small GGUF files with the `gguf` package: an independent hand for what this library reads."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from cme295lab.transformer import DecoderLM, ModelConfig
from tests.transformer.pretrained.tiny import tiny_tokenizer

CONFIG = ModelConfig(  # rows of whole blocks of 32 numbers
    name="tiny", vocab_size=320, num_layers=2, dim=64, num_heads=4, num_kv_heads=2, mlp_dim=96, max_seq=40,
    rope_theta=50_000.0,
)  # fmt: skip

LLAMA_CPP = {
    "attention_norm": "attn_norm", "attention.query": "attn_q", "attention.key": "attn_k", "attention.value": "attn_v",
    "attention.out": "attn_output", "mlp_norm": "ffn_norm", "mlp.gate": "ffn_gate", "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}  # fmt: skip
Kind = gguf.GGMLQuantizationType


def write_gguf(
    path: Path,
    model: DecoderLM,
    kind: Kind = Kind.F32,
    *,
    values: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    without: tuple[str, ...] = (),
    architecture: str = "llama",
) -> Path:
    """Write a Llama-like model and the tiny vocabulary.

    Args:
        path: the file.
        model: its matrices are stored as `kind`, its norms as F32.
        kind: F32, F16, BF16, Q8_0, Q4_1 or another type that the package can quantise to.
        values: metadata that replace the right ones, or add to them.
        tensors: tensors that replace the right ones, or add to them.
        without: names of values and tensors to leave out.
        architecture: what the file says it is.
    """
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in (_values(model) | (values or {})).items():
        if name not in without:
            _add(writer, name, value)
    for name, array in (llama_cpp_tensors(model) | (tensors or {})).items():
        if name in without:
            continue
        if array.ndim == 1 or kind is Kind.F32:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, name: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(name, value)
        return
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    add[type(value)](name, value)


def _values(model: DecoderLM) -> dict[str, Any]:
    config, tokenizer = model.config, tiny_tokenizer().tokenizer
    vocabulary = tokenizer.get_vocab()
    return {
        "llama.block_count": config.num_layers,
        "llama.context_length": config.max_seq,
        "llama.embedding_length": config.dim,
        "llama.feed_forward_length": config.mlp_dim,
        "llama.attention.head_count": config.num_heads,
        "llama.attention.head_count_kv": config.num_kv_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.value_length": config.head_dim,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": config.rope_theta,
        "llama.attention.layer_norm_rms_epsilon": config.norm_eps,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": sorted(vocabulary, key=vocabulary.get),
        "tokenizer.ggml.token_type": [3 if number == 0 else 1 for number in range(len(vocabulary))],
        "tokenizer.ggml.merges": tiny_merges(),
        "tokenizer.ggml.eos_token_id": 0,
    }


def tiny_merges() -> list[str]:
    """The merges of the tiny vocabulary, as GGUF has them."""
    return [" ".join(pair) for pair in json.loads(tiny_tokenizer().tokenizer.to_str())["model"]["merges"]]


def llama_cpp_tensors(model: DecoderLM) -> dict[str, np.ndarray]:
    """The weights under llama.cpp's names, with the rows of Q and K in its order."""
    config, state = model.config, model.state_dict()
    tensors = {"token_embd.weight": state["embedding.weight"], "output_norm.weight": state["norm.weight"]}
    if not config.tied_head:
        tensors["output.weight"] = state["head.weight"]
    for layer in range(config.num_layers):
        for ours, theirs in LLAMA_CPP.items():
            tensor = state[f"layers.{layer}.{ours}.weight"]
            if theirs in ("attn_q", "attn_k"):
                tensor = permute(tensor, tensor.shape[0] // config.head_dim)
            tensors[f"blk.{layer}.{theirs}.weight"] = tensor
    return {name: tensor.float().numpy().copy() for name, tensor in tensors.items()}


def permute(weights: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Row by row: pair i of a head, (i, i + half), goes to rows 2i and 2i + 1."""
    out = torch.empty_like(weights)
    head_dim = weights.shape[0] // num_heads
    for head in range(num_heads):
        for i in range(head_dim // 2):
            for which in (0, 1):
                out[head * head_dim + 2 * i + which] = weights[head * head_dim + i + which * head_dim // 2]
    return out
